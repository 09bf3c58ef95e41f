"""Any density on the line under any kernel, by quadrature: what the rest is tested against."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch import distributions as td

from gradlogp._shapes import Batch, InputError, Rows, per_row, same_event
from gradlogp.kernels import Kernel
from gradlogp.kernels.laws import in_float64, log_density
from gradlogp.oracles.base import Oracle, WeightedPoints, by_chunks

_N_EDGES = 160  # about as many intervals a row; it only sizes the chunks


class Quadrature(Oracle):
    """p_σ(x_t) = ∫ k(x_t | x) p(x) dx, event shape ``(1,)``, by Gauss–Legendre between breakpoints of p and of the kernel.

    The breakpoints of p are the ends of its support, its quantiles and a sinh grid that reaches the tails; those of the kernel
    are where x = x_t/alpha, and geometric steps of its scale to both sides, so that kinks and narrow noise are met.

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
        if distribution.batch_shape or distribution.event_shape:
            shapes = f"{tuple(distribution.batch_shape)}, {tuple(distribution.event_shape)}"
            raise InputError(f"Quadrature: got batch and event shapes {shapes}, want a law of one number, (), ()")
        self.distribution = distribution
        self._law = in_float64(distribution)
        self._order = order
        self.register_buffer("edges", _edges(self._law, breakpoints))

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Batch:
        """Draws from p, ``(n, 1)``."""
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.distribution.sample((n, 1))

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
        """Numerical error of the score: its change when the nodes are doubled, ``(B,)``."""
        fine = self._over_rows(lambda points: points.score(), x_t.double(), kernel, 2 * self._order)
        return (fine - self.score(x_t.double(), kernel)).abs().flatten()

    def _over_rows(self, f, x_t: Batch, kernel: Kernel, order: int) -> Tensor:  # type: ignore[no-untyped-def]
        same_event(x_t, self.event_shape, "x_t")

        def at_rows(x_t: Tensor, kernel: Kernel) -> Tensor:
            nodes, log_weights = self._nodes(x_t, kernel, order)
            result: Tensor = f(WeightedPoints(x_t, nodes[..., None], log_weights, kernel))
            return result

        return by_chunks(at_rows, x_t, kernel, _N_EDGES * order * 4)

    def _nodes(self, x_t: Tensor, kernel: Kernel, order: int) -> tuple[Tensor, Tensor]:
        """Nodes ``(B, M)`` and log(weight · p(node)), between the breakpoints of p and those of the kernel at each row."""
        alpha, sigma = (per_row(v, x_t).expand_as(x_t) for v in (kernel.alpha, kernel.sigma))
        steps = torch.cat([torch.zeros(1), 2.0 ** torch.arange(-6, 5)]).to(x_t)
        steps = torch.cat([-steps[1:].flip(0), steps])
        own = (x_t.detach() - sigma * steps) / alpha.clamp_min(1e-12)
        edges = torch.cat([self.edges.expand(len(x_t), -1), own.clamp(self.edges[0], self.edges[-1])], 1).sort(1).values
        t, w = (torch.from_numpy(v).to(x_t) for v in np.polynomial.legendre.leggauss(order))
        half = edges.diff(dim=1)[:, :, None] / 2
        nodes = (edges[:, :-1, None] + half * (1 + t)).flatten(1)
        return nodes, (half * w).flatten(1).log() + log_density(self._law, nodes)


def _edges(law: td.Distribution, breakpoints: Tensor | None) -> Tensor:
    """Breakpoints of p: support ends, quantiles, a sinh grid over the tails, and the caller's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = law.sample((8193,))
    p = torch.linspace(0.0, 1.0, 65, dtype=draws.dtype)[1:-1]
    quantiles = draws.quantile(p)
    scale = draws.quantile(0.75) - draws.quantile(0.25)
    tails = quantiles[31] + scale * torch.sinh(torch.linspace(-12.0, 12.0, 49, dtype=draws.dtype))
    own = torch.zeros(0, dtype=draws.dtype) if breakpoints is None else breakpoints.to(draws)
    ends = [getattr(law.support, name, None) for name in ("lower_bound", "upper_bound")]
    low, high = (float(torch.as_tensor(v if v is not None else inf)) for v, inf in zip(ends, (-torch.inf, torch.inf), strict=True))
    edges = torch.cat([quantiles, tails, own]).clamp(low, high)
    return edges.unique(sorted=True)
