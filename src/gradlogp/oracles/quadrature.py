"""Any density on the line under any kernel, by quadrature: what the rest is tested against."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch import distributions as td

from gradlogp._draws import Seeded
from gradlogp._shapes import Batch, InputError, Rows, as_count, per_row, same_event
from gradlogp.kernels import Additive, Gaussian, Kernel
from gradlogp.kernels.landmarks import CENTER, landmarks
from gradlogp.kernels.laws import log_density, require_density
from gradlogp.kernels.regularity import Grid, resolving
from gradlogp.kernels.twins import in_float64
from gradlogp.oracles.base import Oracle, WeightedPoints, by_chunks

_N_EDGES = 320  # about as many intervals a row; it only sizes the chunks
_STEPS = 2.0 ** torch.cat([torch.arange(-40.0, -3.0, 2.0), torch.arange(-3.0, 6.5, 0.5)]).double()
_N_DRAWS = 8193
_MOST_NODES = 1000
_OFFSETS: WeakKeyDictionary[Kernel, Grid] = WeakKeyDictionary()


class Quadrature(Oracle):
    """p_σ(x_t) = ∫ k(x_t | x) p(x) dx, event ``(1,)``, by Gauss–Legendre between breakpoints of p and of the kernel.

    The breakpoints of p are the ends of its support, its centers with geometric steps to both sides (so that a kink or
    a singularity is met), its quantiles and a sinh grid that reaches the tails, and where these miss some of its mass,
    others between its draws. Those of the kernel are the same of the noise, put at x = (x_t − noise)/alpha.

    Args:
        distribution: the density p: a one-dimensional ``torch.distributions`` law with ``log_prob``.
        breakpoints: further points where p has a kink or a jump.
        order: nodes an interval.

    Raises:
        InputError: a distribution that is not one-dimensional, has no density, or one that does not integrate to 1.
    """

    edges: Tensor
    event_shape = (1,)

    def __init__(self, distribution: td.Distribution, *, breakpoints: Tensor | None = None, order: int = 12) -> None:
        super().__init__()
        if not isinstance(distribution, td.Distribution):
            raise InputError(f"Quadrature: got {type(distribution).__name__}, want a torch.distributions.Distribution")
        if distribution.batch_shape or distribution.event_shape:
            shapes = f"{tuple(distribution.batch_shape)}, {tuple(distribution.event_shape)}"
            raise InputError(f"Quadrature: got batch and event shapes {shapes}, want a law of one number, (), ()")
        self.distribution = distribution
        self._law = in_float64(distribution)
        self._order = as_count(order, "order", most=_MOST_NODES)
        grid = _grid(self._law, breakpoints)
        self._missing = grid.missing
        self.register_buffer("edges", grid.edges)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Batch:
        """Draws from p, ``(n, 1)``."""
        n = as_count(n, most=sys.maxsize, each=8)
        seed = int(torch.randint(2**62, (), generator=generator))
        with Seeded(seed):
            draws: Tensor = self.distribution.sample(torch.Size((n, 1)))
        return draws

    def log_prob(self, x_t: Batch, kernel: Kernel) -> Rows:
        """Log ∫ k(x_t | x) p(x) dx, in nats."""
        return self._over_rows(lambda points: points.log_prob(), x_t, kernel, self._order)

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """∇log p_σ(x_t) = E[∇log k(x_t | x) | x_t]."""
        return self._over_rows(lambda points: points.score(), x_t, kernel, self._order)

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """E[x | x_t], for any kernel."""
        return self._over_rows(lambda points: points.mean(), x_t, kernel, self._order)

    def error(self, x_t: Batch, kernel: Kernel) -> Rows:
        """Numerical error of the score: its change when the nodes are doubled, and its rounding, ``(B,)``.

        Infinite where the nodes miss more than a billionth of the mass of p or of the noise.
        """
        x_t = x_t.double()
        fine = self._over_rows(lambda points: points.score(), x_t, kernel, 2 * self._order)
        rounding = 1e-13 * (fine.abs() + 1 / per_row(kernel.sigma, x_t))
        missing = 0.0 if math.isfinite(self._missing + _offsets(kernel).missing) else math.inf
        return ((fine - self.score(x_t, kernel)).abs() + rounding).flatten() + missing

    def _over_rows(self, f: Callable[[WeightedPoints], Tensor], x_t: Batch, kernel: Kernel, order: int) -> Tensor:
        same_event(x_t, self.event_shape, "x_t")
        offsets = _offsets(kernel).edges

        def at_rows(x_t: Tensor, kernel: Kernel) -> Tensor:
            nodes, log_weights = self._nodes(x_t, kernel, offsets, order)
            if bool((torch.isnan(log_weights) | (log_weights == torch.inf)).any()):
                raise InputError(
                    f"Quadrature({type(self._law).__name__}): the density is infinite at a point, want a bounded one"
                )
            return f(WeightedPoints(x_t, nodes[..., None], log_weights, kernel))

        return by_chunks(at_rows, x_t, kernel, _N_EDGES * order * 4)

    def _nodes(self, x_t: Tensor, kernel: Kernel, offsets: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """Nodes ``(B, M)`` and log(weight · p(node)), between the breakpoints of p and those of the kernel."""
        alpha, sigma = (per_row(v, x_t).expand_as(x_t) for v in (kernel.alpha, kernel.sigma))
        own = ((x_t.detach() - sigma * offsets.to(x_t)) / alpha.clamp_min(1e-12)).clamp(self.edges[0], self.edges[-1])
        edges = torch.cat([self.edges.expand(len(x_t), -1), own], 1).sort(1).values
        t, w = (torch.from_numpy(v).to(x_t) for v in np.polynomial.legendre.leggauss(order))
        half = edges.diff(dim=1)[:, :, None] / 2
        nodes = (edges[:, :-1, None] + half * (1 + t)).flatten(1)
        return nodes, (half * w).flatten(1).log() + log_density(self._law, nodes)


def _offsets(kernel: Kernel) -> Grid:
    """Breakpoints of the noise in units of sigma: steps, and where its law may bend or is narrow."""
    steps = _both_sides(_STEPS[_STEPS > 0.1])
    if isinstance(kernel, Gaussian):
        return Grid(steps)
    if kernel not in _OFFSETS:
        _OFFSETS[kernel] = _offsets_of_noise(kernel, steps)
    return _OFFSETS[kernel]


def _offsets_of_noise(kernel: Kernel, steps: Tensor) -> Grid:
    """Those of the noise of the first row, whose law in units of sigma is that of all."""

    def first(n: int) -> tuple[Kernel, Tensor, Tensor]:
        rows = kernel.rows(torch.zeros(n, dtype=torch.long))
        return rows, rows.sigma.double().reshape(-1).expand(n)[:, None], torch.zeros(n, 1, dtype=torch.float64)

    def log_q(u: Tensor) -> Tensor:
        rows, sigma, zero = first(u.numel())
        return rows.log_prob(sigma * u.reshape(-1, 1), zero).reshape(u.shape) + sigma[0].log()

    rows, sigma, zero = first(_N_DRAWS)
    draws = (rows.sample(zero, generator=torch.Generator().manual_seed(0)) / sigma).flatten()
    if isinstance(kernel, Additive):
        law = in_float64(kernel.distribution)
        centers = landmarks(law, CENTER).flatten() / sigma[0]
        steps = torch.cat([(centers[:, None] + _both_sides(_STEPS)).flatten(), landmarks(law).flatten() / sigma[0]])
    edges = torch.cat([steps[torch.isfinite(steps)], _quantiles(draws, 15)]).unique()
    return resolving(log_q, edges, draws, repr(kernel))


def _both_sides(steps: Tensor) -> Tensor:
    return torch.cat([-steps, steps.new_zeros(1), steps])


def _grid(law: td.Distribution, breakpoints: Tensor | None) -> Grid:
    """Breakpoints of p: landmarks and steps beside them, quantiles, a sinh grid over the tails, and the caller's."""
    name = f"Quadrature({type(law).__name__})"

    def draw() -> Tensor:
        with Seeded(0):
            draws: Tensor = law.sample(torch.Size((_N_DRAWS,)))
        return draws

    draws = require_density(law, draw, name).flatten()
    quantiles = _quantiles(draws, 63)
    scale = quantiles[47] - quantiles[15]
    tails = quantiles[31] + scale * torch.sinh(torch.linspace(-18.0, 18.0, 73, dtype=quantiles.dtype))
    around = (landmarks(law, CENTER)[:, None] + scale * _both_sides(_STEPS)).flatten()
    own = quantiles.new_zeros(0) if breakpoints is None else breakpoints.to(quantiles).flatten()
    edges = torch.cat([quantiles, tails, around, own, landmarks(law)])
    return resolving(lambda u: log_density(law, u), edges[torch.isfinite(edges)].unique(), draws, name)


def _quantiles(draws: Tensor, n: int) -> Tensor:
    return draws.quantile(torch.linspace(0.0, 1.0, n + 2, dtype=draws.dtype)[1:-1])
