"""Measured numbers with their errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
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


@dataclass(frozen=True)
class Jackknifed:
    """A statistic of rows dealt into blocks, and what it is without each block (Tukey 1958; Künsch 1989).

    Functions of such statistics are taken replicate by replicate, so that a ratio or a difference of quantities that
    share rows, noise and references gets its standard error right without a formula of its own.

    Attributes:
        value: the statistic of all rows.
        without: the statistic without block b, ``(G,)``.
    """

    value: Tensor
    without: Tensor

    @classmethod
    def mean_of(cls, values: Tensor, block: Tensor, n_blocks: int, without: Tensor | None = None) -> Jackknifed:
        """The mean over draws, ``(Q,)``, each in a block, ``(Q,)``.

        Args:
            values: one a draw.
            block: the block of each draw's row.
            n_blocks: G.
            without: what each draw's value is without each block, ``(Q, G)``, where a draw depends on other rows.
        """
        kept = block[:, None] != torch.arange(n_blocks, device=block.device)
        each = (values[:, None] if without is None else without).double()
        sums, counts = torch.where(kept, each, 0.0).sum(0), kept.sum(0)
        return cls(values.double().mean(), sums / counts)

    @classmethod
    def of(cls, f: Callable[..., Tensor], *parts: Jackknifed) -> Jackknifed:
        """f(parts), replicate by replicate."""
        return cls(f(*(p.value for p in parts)), f(*(p.without for p in parts)))

    def __add__(self, other: Jackknifed | float) -> Jackknifed:
        a, b = (other.value, other.without) if isinstance(other, Jackknifed) else (other, other)
        return Jackknifed(self.value + a, self.without + b)

    def __rmul__(self, factor: float) -> Jackknifed:
        return Jackknifed(factor * self.value, factor * self.without)

    def __neg__(self) -> Jackknifed:
        return Jackknifed(-self.value, -self.without)

    def __sub__(self, other: Jackknifed | float) -> Jackknifed:
        return self + -other

    @property
    def estimate(self) -> Estimate:
        """The value, and √((G − 1)/G Σ_b (without_b − mean)²); infinite where a replicate is not finite."""
        g = len(self.without)
        if not bool(self.without.isfinite().all()):
            return Estimate(self.value.item(), math.inf)
        spread = (self.without - self.without.mean()).square().sum()
        return Estimate(self.value.item(), (spread * (g - 1) / g).sqrt().item())
