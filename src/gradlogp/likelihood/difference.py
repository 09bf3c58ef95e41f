"""Differences of log-density from scores alone, along two paths."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial.legendre import legroots
from torch import Tensor

from gradlogp._shapes import (
    Batch,
    InputError,
    Rows,
    as_batch,
    as_count,
    as_number,
    dot,
    event_size,
    squared_norm,
)
from gradlogp.diagnostics.ladder import score_at
from gradlogp.kernels import Kernel
from gradlogp.kernels.base import require_levels
from gradlogp.models import ScoreModel, require_model
from gradlogp.oracles.base import chunks

NODES = 15  # of a piece: Lobatto's 8 and Kronrod's 7
_ROUNDING = 4  # times eps·∫|f|: taken for rounding


@dataclass(frozen=True)
class LogDensityDifference:
    """log p_σ(y) − log p_σ(x) of each row, and what it may be wrong by, in nats.

    Attributes:
        value: by the straight path, ``(B,)``.
        quadrature: estimated error of the rule on that path, ``(B,)``.
        path: the larger disagreement with two bent paths, ``(B,)``: 0, to quadrature, of a gradient.
        n_scores: scores taken of each row, all paths together, ``(B,)``.
    """

    value: Tensor
    quadrature: Tensor
    path: Tensor
    n_scores: Tensor

    @property
    def error(self) -> Tensor:
        """Quadrature + path, ``(B,)``."""
        return self.quadrature + self.path

    def __str__(self) -> str:
        def worst(v: Tensor) -> str:
            return f"{v.median().item():.1e} in the median, {v.max().item():.1e} at most"

        by = f"by quadrature: {worst(self.quadrature)}; by the path: {worst(self.path)}"
        return f"log-density differences of {len(self.value)} rows; nats off {by}"


def log_density_difference(
    model: ScoreModel,
    x: Batch,
    y: Batch,
    kernel: Kernel,
    *,
    atol: float = 1e-4,
    max_nodes: int = 960,
    bend: float = 0.25,
    generator: torch.Generator | None = None,
) -> LogDensityDifference:
    """log p_σ(y) − log p_σ(x) from the score ψ, and how far from a gradient ψ is between the two.

        value = ∫₀¹ ⟨ψ(x + td), d⟩ dt,    d = y − x
        path  = max over ± of |value − ∫₀¹ ⟨ψ(γ±), γ±'⟩ dt|,    γ±(t) = x + td ± 4t(1 − t)·bend·‖d‖·u

    u is a random unit vector orthogonal to d. By Stokes' theorem each disagreement is the flux of ψ's curl through the
    area ⅔·bend·‖d‖² between the paths: |dᵀ(J − Jᵀ)u|·⅔·bend·‖d‖ for an affine ψ with Jacobian J. It is 0 for any
    gradient, also a wrong one: ``path`` is what the value would change by on another path as good, not its distance
    from the true density's, which for a learnt score that is nearly a gradient can be much larger. It sees one plane
    of D − 1 through d, so it varies by row and seed; in the mean square over u it has the part of the curl that
    involves d. It is 0 in one dimension, where every score is a gradient. A larger bend sees more of the surroundings,
    and where nothing was learnt there, its errors.

    ``quadrature`` is the sum over pieces of QUADPACK's estimate S·min(1, (200·|K − L|/S)^{3/2}), L Lobatto's rule of 8
    nodes, K Kronrod's with 7 more, S = ∫|f − K|: at most the spread S, which it is where f jumps (atoms under Laplace
    noise), and a large over-estimate where f is smooth. Row by row, pieces are cut in half until it is below atol,
    max_nodes would be passed, or all is rounding of scores, taken as 4 eps·∫|f|; it says then what is left. The ends of
    pieces are nodes, so that no jump hides between two; a hill between all nodes does.
    :func:`gradlogp.samplers.log_ratio` is the same integral by a fixed rule of few nodes.

    A model that has an energy knows the difference: −(energy(y, kernel) − energy(x, kernel)), at two evaluations. This
    function asks for scores only, and is then a check on them.

    Args:
        model: a score model; no gradient of it is taken.
        x: where from, ``(B, *event)``, as points of the noisy space.
        y: where to, like x.
        kernel: the level, one or one a row.
        atol: wanted error of the quadrature, in nats.
        max_nodes: scores of a row at most on each of the three paths; at least 15.
        bend: how far the second paths go out, over ‖d‖; > 0.
        generator: source of u.

    Raises:
        InputError: batches that are not finite or not of one shape, scores that are not, numbers out of range.

    Reference: Gander and Gautschi (2000), "Adaptive quadrature – revisited", for such pairs of rules (theirs have 4 and
    7 nodes); Piessens et al. (1983), "QUADPACK", for the estimate of the error.
    """
    require_model(model)
    x, y = as_batch(x, "x").detach(), as_batch(y, "y").detach()
    if x.shape != y.shape or x.dtype != y.dtype:
        got = f"{tuple(x.shape)} {x.dtype} and {tuple(y.shape)} {y.dtype}"
        raise InputError(f"x and y: got {got}, want one shape and dtype")
    require_levels(kernel, x)
    atol, bend = as_number(atol, "atol"), as_number(bend, "bend")
    if as_count(max_nodes, "max_nodes", most=sys.maxsize) < NODES:
        raise InputError(f"max_nodes: got {max_nodes}, want at least {NODES}")
    d = y.double() - x.double()
    straight = _integral(_Path(model, kernel, x, d, torch.zeros_like(d)), atol, max_nodes)
    path, n_scores = torch.zeros_like(straight.value), straight.n_scores
    if event_size(tuple(x.shape[1:])) > 1:
        side = bend * _sideways(d, generator)
        for s in (side, -side):
            bent = _integral(_Path(model, kernel, x, d, s), atol, max_nodes)
            path = torch.maximum(path, (bent.value - straight.value).abs())
            n_scores = n_scores + bent.n_scores
    return LogDensityDifference(straight.value, straight.error, path, n_scores)


@dataclass(frozen=True)
class _Path:
    """γ(t) = x + td + 4t(1 − t)·side, in float64, and the integrand ⟨ψ(γ), γ'⟩ with ψ in the dtype of x."""

    model: ScoreModel
    kernel: Kernel
    x: Batch
    d: Tensor
    side: Tensor

    def __call__(self, rows: Tensor, t: Tensor) -> Tensor:
        """f at each row's own times, ``(N,), (N, K) -> (N, K)``, in float64."""
        parts = [self._part(rows[i], t[i]) for i in chunks(len(rows), t.shape[1] * self.x[0].numel(), self.x.device)]
        return torch.cat(parts)

    def _part(self, rows: Tensor, t: Tensor) -> Tensor:
        row, at = rows.repeat_interleave(t.shape[1]), t.flatten().reshape(-1, *(1,) * (self.x.ndim - 1))
        d, side = self.d[row], self.side[row]
        where, along = self.x[row] + at * d + 4 * at * (1 - at) * side, d + 4 * (1 - 2 * at) * side
        with torch.no_grad():
            psi = score_at(self.model, where.to(self.x), self.kernel.rows(row))
        return dot(psi.double(), along).reshape(t.shape)


@dataclass(frozen=True)
class _Pieces:
    """Pieces of rows' paths from a, h long: the integral of each, its estimated error, and whether more nodes help.

    ``noise`` is what rounding makes of a mean of f.
    """

    row: Tensor
    a: Tensor
    h: Tensor
    value: Tensor
    error: Tensor
    noise: Tensor
    fine: Tensor

    @classmethod
    def of(cls, f: _Path, row: Tensor, a: Tensor, h: Tensor, noise: Tensor | None = None) -> _Pieces:
        nodes, kronrod, lobatto = (a.new_tensor(v) for v in _lobatto_kronrod())
        values = f(row, a[:, None] + h[:, None] * nodes)
        mean = values @ kronrod
        if noise is None:
            noise = _ROUNDING * torch.finfo(f.x.dtype).eps * (values.abs() @ kronrod)
        spread, off = (values - mean[:, None]).abs() @ kronrod, (mean - values @ lobatto).abs()
        error = spread * (200 * off / spread).nan_to_num(0.0).pow(1.5).clamp_max(1.0)
        fine = off <= noise
        return cls(row, a, h, h * mean, h * torch.where(fine, noise, torch.maximum(error, noise)), noise, fine)

    def __getitem__(self, i: Tensor) -> _Pieces:
        return _Pieces(*(v[i] for v in vars(self).values()))

    def halves(self, f: _Path) -> _Pieces:
        """Each piece as two."""
        h = self.h / 2
        return _Pieces.of(f, self.row.repeat(2), torch.cat([self.a, self.a + h]), h.repeat(2), self.noise.repeat(2))

    def __add__(self, other: _Pieces) -> _Pieces:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Pieces(*(torch.cat(pair) for pair in pairs))

    def sums(self, v: Tensor, n: int) -> Rows:
        """Of a number a piece, over each row's pieces."""
        return v.new_zeros(n).index_add_(0, self.row, v)


@dataclass(frozen=True)
class _Integral:
    """An integral of each row, its estimated error and what it cost."""

    value: Rows
    error: Rows
    n_scores: Tensor


def _integral(f: _Path, atol: float, max_nodes: int) -> _Integral:
    """∫₀¹ f dt of each row: pieces that err by more than their share of atol are cut in half, round by round."""
    n, x = len(f.x), f.x
    start = torch.zeros(n, dtype=torch.float64, device=x.device)
    pieces = _Pieces.of(f, torch.arange(n, device=x.device), start, start + 1)
    used = torch.full((n,), NODES, device=x.device)
    while True:
        cut = _too_coarse(pieces, atol, n)
        cost = 2 * NODES * pieces.sums(cut.double(), n).long()
        cut &= (used + cost <= max_nodes)[pieces.row]
        if not bool(cut.any()):
            return _Integral(pieces.sums(pieces.value, n), pieces.sums(pieces.error, n), used)
        used = used + 2 * NODES * pieces.sums(cut.double(), n).long()
        pieces = pieces[~cut] + pieces[cut].halves(f)


def _too_coarse(pieces: _Pieces, atol: float, n: int) -> Tensor:
    """Which pieces err by more than atol over their row's number of pieces, and than rounding, in rows above atol."""
    count, total = pieces.sums(torch.ones_like(pieces.h), n), pieces.sums(pieces.error, n)
    return (total > atol)[pieces.row] & (pieces.error > (atol / count)[pieces.row]) & ~pieces.fine


def _sideways(d: Tensor, generator: torch.Generator | None) -> Tensor:
    """‖d‖·u, u uniform among the unit vectors orthogonal to d, in float64; 0 where d is."""
    z = torch.randn(d.shape, generator=generator, dtype=torch.float64, device=d.device).flatten(1)
    flat = d.flatten(1)
    length = squared_norm(flat).sqrt()[:, None]
    e = flat / torch.where(length > 0, length, 1.0)
    for _ in range(2):  # once more, for what rounding left
        z = z - (z * e).sum(1, keepdim=True) * e
    return (length * z / squared_norm(z).sqrt()[:, None]).reshape(d.shape)


@lru_cache
def _lobatto_kronrod(n: int = (NODES + 1) // 2) -> tuple[list[float], list[float], list[float]]:
    """2n − 1 nodes on [0, 1], Kronrod's weights, and those of Lobatto's n nodes, which are 0 at every other node.

    Lobatto's nodes are the roots of ω = P_n − P_{n−2}, the ends among them; the further nodes are those of Stieltjes'
    polynomial E of degree n − 1: ∫ ω E P_k = 0 for all k < n − 1. The weights are those of interpolation.
    """
    u, w = np.polynomial.legendre.leggauss(2 * n)
    p = np.polynomial.legendre.legvander(u, n)
    inner = (p[:, :n] * (w * (p[:, n] - p[:, n - 2]))[:, None]).T @ p[:, :n]
    stieltjes = np.append(np.linalg.solve(inner[:-1, :-1], -inner[:-1, -1]), 1.0)
    omega = np.zeros(n + 1)
    omega[[n - 2, n]] = -1.0, 1.0
    own = np.sort(legroots(omega).real)
    own[[0, -1]] = -1.0, 1.0
    nodes, coarse = np.sort(np.concatenate([own, legroots(stieltjes).real])), np.zeros(2 * n - 1)
    coarse[::2] = _interpolating(own)
    return ((nodes + 1) / 2).tolist(), _interpolating(nodes).tolist(), coarse.tolist()


def _interpolating(nodes: np.ndarray) -> np.ndarray:
    """Weights with the right integral of every polynomial of lower degree than there are nodes, for [0, 1]."""
    moments = np.eye(len(nodes))[0]
    return np.linalg.solve(np.polynomial.legendre.legvander(nodes, len(nodes) - 1).T, moments)
