"""Does J_ESM = J_DSM + C hold for a noise density q on the line, and what is its Fisher information?

The equality needs q to be weakly differentiable (no jump) and I(q) = ∫ q'²/q = 4 ∫ (√q)'² finite. Over nested grids
the discrete energy 4 Σ (Δ√q)²/Δu grows, and its limit is I(q) if √q is in H¹, infinity otherwise. So the grid
is bisected wherever that still adds energy: where it never stops adding, there is a jump or a singularity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradlogp._shapes import InputError
from gradlogp.kernels.landmarks import graded

_MOST_INTERVALS = 20_000  # a periodic density has more than can be resolved
_MISSED = 1e-9  # mass, in float64; a part of so little may have any Fisher information

LogDensity = Callable[[Tensor], Tensor]

_ALTERNATIVES = (
    "use a kernel with a continuous density and finite Fisher information, such as Gaussian, Laplace or Logistic"
)


@dataclass(frozen=True)
class Grid:
    """Edges of the intervals on which a density is smooth enough for Gauss–Legendre quadrature.

    Attributes:
        missing: the mass that they miss, infinite if it is more than rounding: any information may be in it.
    """

    edges: Tensor
    missing: float = 0.0

    def integrate(self, f: LogDensity) -> tuple[float, float]:
        """∫ f and its error: intervals are bisected while that changes it, as it does beside a singularity."""
        _, value, error = self._bisected(f)
        return value.sum().item(), error.sum().item()

    def resolving(self, f: LogDensity) -> Grid:
        """The grid with the edges at which :meth:`integrate` bisects it."""
        return Grid(self._bisected(f)[0].flatten().unique())

    def _bisected(self, f: LogDensity, n_bisections: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
        """Intervals that are bisected no more, ``(2, n)``, ∫ f over each, and its error."""
        a, b = self.edges[:-1], self.edges[1:]
        coarse, done, total = _gauss_legendre(f, a, b), [], 0.0
        for i in range(n_bisections):
            middle = (a + b) / 2
            left, right = _gauss_legendre(f, a, middle), _gauss_legendre(f, middle, b)
            fine, change = left + right, (left + right - coarse).abs()
            last = (middle <= a) | (middle >= b)  # two numbers with none between: all of it may be wrong
            more = (change > 1e-13 * abs(total + fine.sum().item())) & ~last
            more &= (more.sum() < _MOST_INTERVALS) & (i < n_bisections - 1)
            done.append(torch.stack([a, b, fine, 8 * torch.where(last, fine.abs(), change)])[:, ~more])
            total += fine[~more].sum().item()
            if not bool(more.any()):
                break
            a, b = torch.cat([a[more], middle[more]]), torch.cat([middle[more], b[more]])
            coarse = torch.cat([left[more], right[more]])
        a, b, value, error = torch.cat(done, 1)
        return torch.stack([a, b]), value, error


def _gauss_legendre(f: LogDensity, a: Tensor, b: Tensor) -> Tensor:
    """∫ f over each interval, with 16 nodes."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(16))
    half = (b - a)[:, None] / 2
    values: Tensor = f(a[:, None] + half * (1 + nodes)) * weights * half
    total: Tensor = values.nansum(1)
    return total


def examine(log_q: LogDensity, draws: Tensor, name: str, known: Tensor | None = None) -> Grid:
    """Refine a grid until it resolves √q; refuse a density for which that never ends.

    Args:
        log_q: log density of float64 points, −inf outside its support.
        draws: float64 draws from q; they say where it lives.
        name: what to call it in the message.
        known: further points to begin with, such as :func:`landmarks`.

    Raises:
        InputError: a jump, or infinite Fisher information; the message says which.
    """
    edges = _first_grid(draws, draws[:0] if known is None else known)
    root = (0.5 * log_q(edges)).exp()
    _require_finite(root, edges, name)
    for _ in range(400):
        middle = (edges[:-1] + edges[1:]) / 2
        root_middle = (0.5 * log_q(middle)).exp()
        _require_finite(root_middle, middle, name)
        left, right = (root_middle - root[:-1]), (root[1:] - root_middle)
        h = edges.diff()
        gain = 4 * (2 * (left**2 + right**2) - (left + right) ** 2) / h
        hot = int(gain.argmax())
        total = (4 * root.diff() ** 2 / h).sum()
        split = gain > 1e-5 * total
        if not bool(torch.isfinite(total)) or bool((split & (h < 1e-14 * middle.abs())).any()):
            break
        if not bool(split.any()):
            return Grid(edges)
        edges, order = torch.cat([edges, middle[split]]).sort()
        root = torch.cat([root, root_middle[split]])[order]
    raise InputError(_refusal(log_q, middle[hot], h[hot], name))


def _require_finite(root: Tensor, at: Tensor, name: str) -> None:
    bad = at[~torch.isfinite(root)]
    if len(bad):
        raise InputError(f"{name}: its density is not finite near u = {bad[0].item():.3g}; {_ALTERNATIVES}")


def _first_grid(draws: Tensor, known: Tensor) -> Tensor:
    """Edges that reach the center and heavy tails, at quantiles, and known ones."""
    quantiles = draws.quantile(torch.linspace(0.0, 1.0, 259, dtype=draws.dtype))  # narrow modes are met
    return graded(torch.cat([_reaching(draws), quantiles, quantiles.new_zeros(1), known]))


def _reaching(draws: Tensor) -> Tensor:
    """Points at u = median + scale·sinh(w)."""
    low, median, high = draws.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=draws.dtype))
    far = torch.linspace(18.5, 90.0, 144, dtype=torch.float64)
    w = torch.cat([-far, torch.linspace(-18.0, 18.0, 577, dtype=torch.float64), far])
    points: Tensor = median + (high - low) * torch.sinh(w)
    return points


def _refusal(log_q: LogDensity, u: Tensor, h: Tensor, name: str) -> str:
    """Why the refinement never ended at u: how the density differs over h, and over eight times as much, tells."""
    below, above = (log_q(torch.stack([u + side * h, u + side * 8 * h])).exp() for side in (-1, 1))
    near, far = (above - below).abs().tolist()
    seen = near > 1e-6 * max(below.max().item(), above.max().item())  # both sides of a cusp are alike
    at = f"u = {round(u.item(), 9) + 0.0:.4g}"
    if seen and near > 1.02 * far:
        return f"{name}: its density grows without bound near {at}; {_ALTERNATIVES}"
    if seen and near > 0.98 * far:
        return (
            f"{name}: its density jumps by {near:.3g} at {at}, so it is not weakly differentiable, "
            f"J_ESM = J_DSM + C fails and the minimizer of J_DSM is not the score; {_ALTERNATIVES}"
        )
    return (
        f"{name}: its Fisher information E[(d/du log q)^2] is infinite or cannot be shown finite (near {at}), "
        f"so J_DSM is infinite; {_ALTERNATIVES}"
    )


def _density(log_q: LogDensity) -> LogDensity:
    return lambda u: log_q(u).exp()


def whole_grid(log_q: LogDensity, draws: Tensor, name: str, known: Tensor) -> Grid:
    """A grid that :func:`examine` refined, over which the density integrates to 1.

    What a rule has not met it cannot bound, but its mass is missing: then every draw becomes an edge, too. A part of a
    billionth of the mass, that no draw and no landmark met, may still be there.

    Args:
        log_q: log density of float64 points, −inf outside its support.
        draws: float64 draws from q.
        name: what to call it in the message.
        known: landmarks of the law.

    Raises:
        InputError: as of :func:`examine`; a density that does not integrate to 1 over the line.
    """
    tolerance = max(_MISSED, 16 * torch.finfo(log_q(draws[:1]).dtype).eps)
    for edges in (known, torch.cat([known, draws])):
        grid = examine(log_q, draws, name, edges)
        mass, _ = grid.integrate(_density(log_q))
        if abs(1 - mass) <= tolerance:
            return Grid(grid.edges, abs(1 - mass))
    _require_mass(mass, name)
    return Grid(grid.edges, math.inf)


def resolving(log_q: LogDensity, edges: Tensor, draws: Tensor, name: str) -> Grid:
    """A grid of some edges and as few others as it takes for a rule without bisections to see all of a density.

    Args:
        log_q: log density of float64 points, −inf outside its support; it may jump.
        edges: that are to be among those of the grid.
        draws: float64 draws from q, that are used where mass is missing.
        name: what to call it in the message.

    Raises:
        InputError: a density that does not integrate to 1 over the line.
    """
    density, fine = _density(log_q), Grid(graded(edges)).resolving(_density(log_q))
    if abs(1 - _gauss_legendre(density, fine.edges[:-1], fine.edges[1:]).sum().item()) > _MISSED:
        fine = Grid(graded(torch.cat([edges, _reaching(draws), draws]))).resolving(density)
    each = _gauss_legendre(density, fine.edges[:-1], fine.edges[1:])
    beneath = torch.cat([each.new_zeros(1), each.cumsum(0)])
    missing = abs(1 - beneath[-1].item())
    _require_mass(beneath[-1].item(), name)
    some = each.nonzero()[:, 0]
    ends = torch.stack([some[0], some[-1] + 1])
    at = torch.cat([torch.searchsorted(fine.edges, edges).clamp(ends[0], ends[1]), ends])
    while True:
        at = at.unique()
        a, b = at[:-1], at[1:]
        off = _gauss_legendre(density, fine.edges[a], fine.edges[b]) - (beneath[b] - beneath[a])
        unseen = (off.abs() > 1e-13) & (b - a > 1)
        if not bool(unseen.any()):
            return Grid(fine.edges[at], missing if missing <= _MISSED else math.inf)
        at = torch.cat([at, ((a + b) // 2)[unseen]])


def _require_mass(mass: float, name: str) -> None:
    if not 0.999 < mass < 1.001:
        got = f"{mass:.4g}" if mass < 1e3 else "infinity"
        raise InputError(
            f"{name}: its density integrates to {got} over the line, want 1; use a law of numbers, not of angles, "
            "with a normalized log_prob"
        )


def fisher_by_quadrature(log_q: LogDensity, score: LogDensity, grid: Grid) -> tuple[float, float]:
    """I(q) = ∫ (∇log q)² q du, and its error: that of the quadrature, infinite where mass is missing."""
    density = _density(log_q)

    def integrand(u: Tensor) -> Tensor:
        q = density(u)
        return torch.where(q > 0, score(u) ** 2 * q, 0.0)

    fisher, error = grid.integrate(integrand)
    return fisher, error + grid.missing * fisher


def fisher_by_sampling(score: LogDensity, parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """I(q) = Σ_k w_k E_k‖∇log q‖² over draws of each part, and its standard error: infinite where there is none.

    The mean of ‖∇log q‖² has a standard error only if its square has a mean: if its tail t^{−a} falls faster than
    a = 2 (Hill 1975, "A simple general approach to inference about the tail of a distribution").
    """
    mean = variance = torch.zeros((), dtype=torch.float64)
    for weight, draws in parts:
        each = score(draws).flatten(1).square().sum(1)
        mean = mean + weight * each.mean()
        variance = variance + (weight**2 * each.var() / len(each) if _has_variance(each) else math.inf)
    return mean, variance.sqrt()


def _has_variance(values: Tensor) -> bool:
    """Whether the largest of positive numbers fall off faster than t^{−2}, by two standard errors of Hill's index."""
    k = max(8, math.isqrt(len(values)) // 2)
    top = values.topk(k + 1).values
    rise = (top[:k] / top[k]).log().mean().item()
    return rise * 2 * (1 + 2 / math.sqrt(k)) < 1
