"""Does J_ESM = J_DSM + C hold for a noise density q on the line, and what is its Fisher information?

The equality needs q to be weakly differentiable (no jump) and I(q) = ∫ q'²/q = 4 ∫ (√q)'² finite. Over nested grids
the discrete energy 4 Σ (Δ√q)²/Δu grows, and its limit is I(q) if √q is in H¹, infinity otherwise. So the grid
is bisected wherever that still adds energy: where it never stops adding, there is a jump or a singularity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradlogp._shapes import InputError

_MOST_INTERVALS = 4000  # a circular density has more than can be resolved

LogDensity = Callable[[Tensor], Tensor]

_ALTERNATIVES = (
    "use a kernel with a continuous density and finite Fisher information, such as Gaussian, Laplace or Logistic"
)


@dataclass(frozen=True)
class Grid:
    """Edges of the intervals on which a density is smooth enough for Gauss–Legendre quadrature."""

    edges: Tensor

    def integrate(self, f: LogDensity, n_bisections: int = 150) -> tuple[float, float]:
        """∫ f and its error: intervals are bisected while that changes it, as it does beside a singularity."""
        a, b = self.edges[:-1], self.edges[1:]
        coarse, value, error = _gauss_legendre(f, a, b), 0.0, 0.0
        for i in range(n_bisections):
            middle = (a + b) / 2
            left, right = _gauss_legendre(f, a, middle), _gauss_legendre(f, middle, b)
            fine, change = left + right, (left + right - coarse).abs()
            total = abs(value + fine.sum().item())
            more = (change > 1e-13 * total) & (middle > a) & (middle < b) & (i < n_bisections - 1)
            more &= more.sum() < _MOST_INTERVALS
            value += fine[~more].sum().item()
            error += 8 * change[~more].sum().item()
            if not bool(more.any()):
                break
            a, b = torch.cat([a[more], middle[more]]), torch.cat([middle[more], b[more]])
            coarse = torch.cat([left[more], right[more]])
        return value, error


def _gauss_legendre(f: LogDensity, a: Tensor, b: Tensor) -> Tensor:
    """∫ f over each interval, with 16 nodes."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(16))
    half = (b - a)[:, None] / 2
    return (f(a[:, None] + half * (1 + nodes)) * weights * half).nansum(1)


def examine(log_q: LogDensity, draws: Tensor, name: str) -> Grid:
    """Refine a grid until it resolves √q; refuse a density for which that never ends.

    Args:
        log_q: log density of float64 points, −inf outside its support.
        draws: float64 draws from q; they say where it lives.
        name: what to call it in the message.

    Raises:
        InputError: a jump, or infinite Fisher information; the message says which.
    """
    edges, scale = _first_grid(draws)
    root = (0.5 * log_q(edges)).exp()
    _require_finite(root, edges, name)
    for _ in range(60):
        middle = (edges[:-1] + edges[1:]) / 2
        root_middle = (0.5 * log_q(middle)).exp()
        _require_finite(root_middle, middle, name)
        left, right = (root_middle - root[:-1]), (root[1:] - root_middle)
        h = edges.diff()
        gain = 4 * (2 * (left**2 + right**2) - (left + right) ** 2) / h
        total = float((4 * root.diff() ** 2 / h).sum())
        split = gain > 1e-5 * total
        if not bool(split.any()):
            return Grid(edges)
        if bool((split & (h < 1e-13 * (middle.abs() + scale))).any()):
            break
        edges, order = torch.cat([edges, middle[split]]).sort()
        root = torch.cat([root, root_middle[split]])[order]
    raise InputError(_refusal(edges, root, name))


def _require_finite(root: Tensor, at: Tensor, name: str) -> None:
    bad = at[~torch.isfinite(root)]
    if len(bad):
        raise InputError(f"{name}: its density is not finite near u = {bad[0].item():.3g}; {_ALTERNATIVES}")


def _first_grid(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Edges at u = median + scale·sinh(w), that reach the centre and heavy tails, and at quantiles; and the scale."""
    low, median, high = draws.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=draws.dtype))
    scale = high - low
    w = torch.linspace(-18.0, 18.0, 577, dtype=torch.float64)
    quantiles = draws.quantile(torch.linspace(0.0, 1.0, 259, dtype=draws.dtype)[1:-1])  # narrow modes are met
    return torch.cat([median + scale * torch.sinh(w), quantiles, quantiles.new_zeros(1)]).unique(), scale


def _refusal(edges: Tensor, root: Tensor, name: str) -> str:
    hot = int((root.diff() ** 2 / edges.diff()).argmax())
    u = f"{round(edges[hot].item(), 9) + 0.0:.4g}"
    jump = abs(float(root[hot + 1] ** 2 - root[hot] ** 2))
    if jump > 1e-4 * float(root.max() ** 2):
        return (
            f"{name}: its density jumps by {jump:.3g} at u = {u}, so it is not weakly differentiable, "
            f"J_ESM = J_DSM + C fails and the minimiser of J_DSM is not the score; {_ALTERNATIVES}"
        )
    return (
        f"{name}: its Fisher information E[(d/du log q)^2] is infinite or cannot be shown finite (near u = {u}), "
        f"so J_DSM is infinite; {_ALTERNATIVES}"
    )


def fisher_by_quadrature(log_q: LogDensity, score: LogDensity, grid: Grid, name: str) -> tuple[float, float]:
    """I(q) = ∫ (∇log q)² q du, and its error: that of the quadrature, plus the mass that the grid misses.

    Raises:
        InputError: the density does not integrate to 1 over the line, as a circular one does not.
    """

    def integrand(u: Tensor) -> Tensor:
        density = log_q(u).exp()
        return torch.where(density > 0, score(u) ** 2 * density, 0.0)

    mass = grid.integrate(lambda u: log_q(u).exp())[0]
    if not 0.999 < mass < 1.001:
        raise InputError(
            f"{name}: its density integrates to {mass:.4g} over the line, want 1 (is it circular?); {_ALTERNATIVES}"
        )
    fisher, error = grid.integrate(integrand)
    return fisher, error + abs(1 - mass) * fisher
