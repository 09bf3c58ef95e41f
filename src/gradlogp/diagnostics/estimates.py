"""Measured numbers with their errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import InputError

UNSEEN = 3.0  # a part of mass p is among N independent rows with probability 1 − (1 − p)^N: 95 % at p = 3/N
_HEAVIEST = 0.8  # 1/index of a tail, at most: a mean of 1 has none
Z_THRESHOLD = 4.0  # |z| above this rejects; for a right model and kernel that happens once in 15 800 checks


@dataclass(frozen=True)
class Estimate:
    """A measured number: its value and its standard error.

    1.96 standard errors cover 95 % where it is a mean over some 200 independent rows or more; over 20 to 50 rows they
    cover 85 to 94 %, and less where few rows carry the mean.
    """

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


def reach(stderr: float, values: Tensor, q: float) -> tuple[float, float]:
    """How far below and above the mean of independent values its expectation may lie, q standard errors being usual.

    With s the larger of ``stderr`` and std/√N, γ the skewness of the mean, c the values less their mean:

        above:  [q + (γ⁺/6)(1 + 2q²)]·s + (3/N)·max c/(1 − H),    H = mean log(c₍ᵢ₎/c₍ₖ₊₁₎), i <= k = √N

    The bracket is for a mean of few large values, which is more often too low (Johnson 1978). The last term is the
    price of a part of mass 3/N, which N values lack in one case of 20, if its values go on as the tail that was seen:
    beyond the largest value those of a Pareto tail of index 1/H have the mean max c/(1 − H), with Hill's (1975) H of
    the k largest, at most 0.8. Below is the same of the negative values.
    """
    centred = values.double() - values.double().mean()
    n, spread = len(values), centred.std(correction=0).item()
    skewness = (centred**3).mean().item() / spread**3 / math.sqrt(n) if spread > 0 else 0.0
    wide = max(stderr, spread / math.sqrt(max(n - 1, 1)))

    def one_side(skewness: float, c: Tensor) -> float:
        return (q + max(skewness, 0.0) / 6 * (1 + 2 * q**2)) * wide + UNSEEN / n * _beyond(c)

    return one_side(-skewness, -centred), one_side(skewness, centred)


def _beyond(c: Tensor) -> float:
    """The mean of values beyond the largest, if they go on as a Pareto tail."""
    top = c.topk(min(math.ceil(math.sqrt(len(c))) + 1, len(c))).values
    if top[0] <= 0:
        return 0.0
    logs = top.clamp_min(torch.finfo(c.dtype).tiny).log()
    hill = (logs[:-1] - logs[-1]).mean().item() if len(logs) > 1 else 0.0
    return top[0].item() / (1 - min(hill, _HEAVIEST))


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
