"""Independent estimates of the integral of the bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows, per_row
from gradlogp.kernels import Gaussian
from gradlogp.likelihood.bound_forms import Draw
from gradlogp.likelihood.bound_gaussian import Normal
from gradlogp.likelihood.bound_method import N_REPLICATES, BoundMethod
from gradlogp.likelihood.times import ImportanceTimes
from gradlogp.models import ScoreModel
from gradlogp.samplers.noise import Noise
from gradlogp.samplers.starts import seed_from

AT_CLEAN = 0.5  # mass of the term of t_min: ½ h(λ_min), half a unit of λ
_FOCUS = (
    0.7  # share of draws at the control's scales; the rest is uniform in λ, so that no weight is above 10/3 of that
)
_BELOW, _ABOVE = 3.0, 1.5  # how far these go beyond the log of its least and largest standard deviation
_WORKSPACE = 2**20  # float64 numbers that the noisy rows of one call of the model hold


@dataclass(frozen=True)
class Levels:
    """A density of levels λ = log(sigma/alpha), constant between edges; those below ``first`` stand for ``first``.

    Attributes:
        edges: of the pieces, increasing.
        shares: the mass before each edge, from 0 to 1.
        first: λ(t_min).
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    first: float

    @classmethod
    def of(cls, times: ImportanceTimes, control: Normal | None, method: BoundMethod) -> Levels:
        """Uniform from λ(t_min) − ½, which gives h(λ_min) its half, to λ(t_max); most of it at a control's scales."""
        start = times.first - AT_CLEAN * method.truncation
        low, high = _scales(control)
        low, high = max(low, start), min(high, times.last)
        if low >= high:
            return cls((start, times.last), (0.0, 1.0), times.first)
        edges = (start, low, high, times.last)
        even = (1 - _FOCUS) / (times.last - start)
        masses = [(b - a) * even + _FOCUS * (a == low) for a, b in pairwise(edges) if b > a]
        shares = [sum(masses[:i]) / sum(masses) for i in range(len(masses))]
        return cls(tuple(dict.fromkeys(edges)), (*shares, 1.0), times.first)

    def at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The levels at shares u of the mass, and their weights: one over the density."""
        edges, shares = (torch.tensor(v, dtype=u.dtype, device=u.device) for v in (self.edges, self.shares))
        piece = torch.searchsorted(shares[1:-1].contiguous(), u, right=True)
        weight = (edges.diff() / shares.diff())[piece]
        return (edges[piece] + (u - shares[piece]) * weight).clamp_min(self.first), weight


def _scales(control: Normal | None) -> tuple[float, float]:
    """Where the score of data with a Gaussian's moments differs from that of the Gaussian, mostly."""
    if control is None or len(control.variance) == 0:
        return math.inf, -math.inf
    low, high = control.variance.aminmax()
    return 0.5 * math.log(low.item()) - _BELOW, 0.5 * math.log(high.item()) + _ABOVE


@dataclass(frozen=True)
class Means:
    """Means of independent replicates of each row, ``(B,)``: how many, their mean, squares about it, and rounds."""

    count: Tensor
    mean: Rows
    spread: Rows
    rounds: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Means:
        """Of one round of replicates, ``(R, B)``."""
        mean = values.mean(0)
        spread = (values - mean).square().sum(0)
        return cls(torch.full_like(mean, len(values)), mean, spread, torch.ones_like(mean, dtype=torch.long))

    @classmethod
    def joined(cls, parts: list[Means]) -> Means:
        """Of rows one after the other."""
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in ("count", "mean", "spread", "rounds")))

    def merged(self, rows: Tensor, other: Means) -> Means:
        """With another round of some rows."""
        n, m, delta = self.count[rows], other.count, other.mean - self.mean[rows]
        return Means(
            self.count.index_add(0, rows, m),
            self.mean.index_add(0, rows, delta * m / (n + m)),
            self.spread.index_add(0, rows, other.spread + delta**2 * n * m / (n + m)),
            self.rounds.index_add(0, rows, other.rounds),
        )

    @property
    def stderr(self) -> Rows:
        """Of the mean."""
        return (self.spread / (self.count - 1) / self.count).sqrt()


@dataclass(frozen=True)
class Sampler:
    """Independent estimates of ∫ h dλ + ½ h(λ_min), a control's h subtracted."""

    model: ScoreModel
    times: ImportanceTimes
    method: BoundMethod
    control: Normal | None
    levels: Levels

    def __call__(self, x: Batch, generator: torch.Generator | None) -> Means:
        """All rows, in chunks; what is drawn for a row depends on its place, not on the chunk."""
        size, seed = max(1, _WORKSPACE // (self.method.n_strata * x[0].numel())), seed_from(generator)
        return Means.joined([self._rows(some, Noise(seed, i * size)) for i, some in enumerate(x.split(size))])

    def _rows(self, x: Batch, noise: Noise) -> Means:
        """One round for all rows; for a tolerance, as many as the error of a round that is then left out asks for.

        The left out one would bring a bias: where it is low it often says that it is exact.
        """
        method, rows = self.method, torch.arange(len(x), device=x.device)
        means = self._round(x, noise, rows)
        if method.atol is None:
            return means
        most = max(1, method.max_draws // method.draws_a_round - 1)
        rounds = (means.stderr / method.atol).square().ceil().clamp(1, most)
        means = self._round(x, noise, rows)
        for done in range(1, int(rounds.max().item())):
            active = rows[rounds > done]
            means = means.merged(active, self._round(x, noise, active))
        return replace(means, rounds=means.rounds + 1)

    def _round(self, x: Batch, noise: Noise, active: Tensor) -> Means:
        return Means.of(torch.stack([self._replicate(x, noise, active) for _ in range(N_REPLICATES)]))

    def _replicate(self, x: Batch, noise: Noise, active: Tensor) -> Tensor:
        """One estimate from one set of strata, for the active of consecutive rows, ``(A,)``."""
        m, event = self.method.n_strata, tuple(x.shape[1:])

        def normals(*shape: int) -> Tensor:
            return noise(x.new_empty((), dtype=torch.float64).expand(len(x), *shape))[active]

        offset = torch.special.ndtr(normals(m))
        level, weight = self.levels.at((torch.arange(m, device=x.device) + offset) / m)
        kernel = self.times.process.at_ratio(level.exp().flatten())
        clean = x[active].double().repeat_interleave(m, 0)
        x_t, z = _noisy(clean, normals(m, *event).flatten(0, 1), kernel, x.dtype)
        draw = Draw(x_t, z, kernel, self.control, lambda: normals(m, *event).flatten(0, 1))
        return (_finite(self.method.form(self.model, draw), kernel).reshape(-1, m) * weight).mean(1)


def _noisy(x: Batch, z: Batch, kernel: Gaussian, dtype: torch.dtype) -> tuple[Batch, Batch]:
    """alpha·x + sigma·z in the model's dtype, and the z that it then has."""
    centre, sigma = per_row(kernel.alpha, x) * x, per_row(kernel.sigma, x)
    x_t = (centre + sigma * z).to(dtype)
    return x_t, (x_t.double() - centre) / sigma


def _finite(h: Tensor, kernel: Gaussian) -> Tensor:
    bad = ~h.isfinite()
    if bool(bad.any()):
        ratio = (kernel.sigma / kernel.alpha)[bad][0].item()
        raise InputError(f"model: got a score that is not finite at sigma/alpha = {ratio:.4g}, want finite numbers")
    return h
