"""Any density on the line under any kernel, by quadrature: what the rest is tested against."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch import distributions as td

from gradlogp._shapes import Batch, InputError, Rows, as_count, per_row, same_event
from gradlogp.kernels import Additive, Kernel
from gradlogp.kernels.laws import in_float64, log_density, require_density, support_of
from gradlogp.oracles.base import Oracle, WeightedPoints, by_chunks

_N_EDGES = 320  # about as many intervals a row; it only sizes the chunks
_STEPS = 2.0 ** torch.cat([torch.arange(-40.0, -3.0, 2.0), torch.arange(-3.0, 6.5, 0.5)]).double()
_N_DRAWS = 8193


class Quadrature(Oracle):
    """p_σ(x_t) = ∫ k(x_t | x) p(x) dx, event ``(1,)``, by Gauss–Legendre between breakpoints of p and of the kernel.

    The breakpoints of p are the ends of its support, its centres with geometric steps to both sides (so that a kink or
    a singularity is met), its quantiles and a sinh grid that reaches the tails. Those of the kernel are the same of
    the noise, put at x = (x_t − noise)/alpha.

    Args:
        distribution: the density p: a one-dimensional ``torch.distributions`` law with ``log_prob``.
        breakpoints: further points where p has a kink or a jump.
        order: nodes an interval.

    Raises:
        InputError: a distribution that is not one-dimensional or has no density.
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
        self._order = as_count(order, "order")
        self.register_buffer("edges", _edges(self._law, breakpoints))

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Batch:
        """Draws from p, ``(n, 1)``."""
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            draws: Tensor = self.distribution.sample(torch.Size((as_count(n), 1)))
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
        """Numerical error of the score: its change when the nodes are doubled, and its rounding, ``(B,)``."""
        x_t = x_t.double()
        fine = self._over_rows(lambda points: points.score(), x_t, kernel, 2 * self._order)
        rounding = 1e-13 * (fine.abs() + 1 / per_row(kernel.sigma, x_t))
        return ((fine - self.score(x_t, kernel)).abs() + rounding).flatten()

    def _over_rows(self, f: Callable[[WeightedPoints], Tensor], x_t: Batch, kernel: Kernel, order: int) -> Tensor:
        same_event(x_t, self.event_shape, "x_t")
        offsets = _offsets(kernel)

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
        u = offsets.to(x_t) if isinstance(kernel, Additive) else sigma * offsets.to(x_t)
        own = ((x_t.detach() - u) / alpha.clamp_min(1e-12)).clamp(self.edges[0], self.edges[-1])
        edges = torch.cat([self.edges.expand(len(x_t), -1), own], 1).sort(1).values
        t, w = (torch.from_numpy(v).to(x_t) for v in np.polynomial.legendre.leggauss(order))
        half = edges.diff(dim=1)[:, :, None] / 2
        nodes = (edges[:, :-1, None] + half * (1 + t)).flatten(1)
        return nodes, (half * w).flatten(1).log() + log_density(self._law, nodes)


def _offsets(kernel: Kernel) -> Tensor:
    """Breakpoints of the noise: of its law if it is additive, otherwise steps in units of sigma."""
    if isinstance(kernel, Additive):
        law = in_float64(kernel.distribution)
        centres, (low, high) = _centres(law), _ends(law)
        steps = kernel.sigma * _STEPS
        around = centres[:, None] + torch.cat([-steps, steps.new_zeros(1), steps])
        return torch.cat([around.flatten(), _quantiles(law, 15), low, high])
    steps = _STEPS[_STEPS > 0.1]
    return torch.cat([-steps, steps.new_zeros(1), steps])


def _edges(law: td.Distribution, breakpoints: Tensor | None) -> Tensor:
    """Breakpoints of p: support ends, its centres, quantiles, a sinh grid over the tails, and the caller's."""
    quantiles = _quantiles(law, 63)
    scale = quantiles[47] - quantiles[15]
    tails = quantiles[31] + scale * torch.sinh(torch.linspace(-18.0, 18.0, 73, dtype=quantiles.dtype))
    steps = scale * _STEPS
    around = (_centres(law)[:, None] + torch.cat([-steps, steps.new_zeros(1), steps])).flatten()
    own = quantiles.new_zeros(0) if breakpoints is None else breakpoints.to(quantiles).flatten()
    low, high = _ends(law)
    edges = torch.cat([quantiles, tails, around, own, low, high])
    floor = low.min().item() if low.numel() else -torch.inf
    ceiling = high.max().item() if high.numel() else torch.inf
    distinct: Tensor = edges.clamp(floor, ceiling).unique(sorted=True)
    return distinct


def _quantiles(law: td.Distribution, n: int) -> Tensor:
    """Quantiles of draws, that say where a law lives."""

    def draw() -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            draws: Tensor = law.sample(torch.Size((_N_DRAWS,)))
        return draws

    draws = require_density(law, draw, f"Quadrature({type(law).__name__})")
    return draws.flatten().quantile(torch.linspace(0.0, 1.0, n + 2, dtype=draws.dtype)[1:-1])


def _parts(law: td.Distribution) -> Iterator[td.Distribution]:
    """A law, or the components of a mixture."""
    if isinstance(law, td.MixtureSameFamily):
        yield from _parts(law.component_distribution)
    else:
        yield law


def _centres(law: td.Distribution) -> Tensor:
    """Locations and means, where they are finite: where a density may have a kink."""
    found = [_attribute(part, name) for part in _parts(law) for name in ("loc", "mean")]
    return torch.from_numpy(np.unique(torch.cat(found).numpy()))


def _ends(law: td.Distribution) -> tuple[Tensor, Tensor]:
    """Finite ends of the support, of every component: the lower and the upper ones."""
    supports = [support_of(part) for part in _parts(law)]
    low, high = (torch.cat([_attribute(s, name) for s in supports]) for name in ("lower_bound", "upper_bound"))
    return low, high


def _attribute(owner: object, name: str) -> Tensor:
    """A number or tensor of numbers that an object may have: those that are finite, flat."""
    try:
        value = getattr(owner, name, None)
    except NotImplementedError:
        value = None
    v = torch.zeros(0, dtype=torch.float64) if value is None else torch.as_tensor(value, dtype=torch.float64).flatten()
    return v[torch.isfinite(v)]
