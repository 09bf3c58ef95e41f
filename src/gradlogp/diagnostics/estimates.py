"""Measured numbers with their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gradlogp._shapes import InputError

Z_THRESHOLD = 4.0  # |z| above this rejects; for a right model and kernel that happens once in 15 800 checks


@dataclass(frozen=True)
class Estimate:
    """A measured number: its value and its standard error."""

    value: float
    stderr: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.stderr:.1g}"

    @property
    def z(self) -> float:
        """The value in standard errors; 0 for 0 ± 0."""
        if self.stderr > 0 or self.value == 0:
            return self.value / (self.stderr or 1.0)
        return math.copysign(math.inf, self.value)

    @classmethod
    def mean_of(cls, values: Tensor, numerical_error: float = 0.0) -> Estimate:
        """The mean of independent values, its standard error, and a numerical error added in quadrature."""
        v = values.double()
        if len(v) < 2:
            raise InputError(f"standard error: got {len(v)} value, want at least 2")
        return cls(v.mean().item(), math.hypot(v.std().item() / math.sqrt(len(v)), numerical_error))


@dataclass(frozen=True)
class Bracket:
    """A number known from two sides."""

    lower: Estimate
    upper: Estimate

    def __str__(self) -> str:
        return f"between {self.lower} and {self.upper}"
