"""A Gaussian mixture of maximum likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradlogp._shapes import Batch, as_batch, as_count
from gradlogp.oracles.mixture import GaussianMixture

_ITERATIONS, _LLOYD = 60, 5
_TOLERANCE = 1e-3  # nats a row that an iteration must bring


def fit_mixture(
    x: Batch,
    n_components: int,
    *,
    full: bool = True,
    floor: float = 0.0,
    generator: torch.Generator | None = None,
) -> GaussianMixture:
    """Fit a Gaussian mixture by expectation maximization, from centers placed by k-means++.

    Each covariance is the mean of what its rows say and of a prior that counts for ν rows:

        S_k = (Σ_i r_ik (x_i − m_k)(x_i − m_k)ᵀ + ν·S/K^(2/D)) / (Σ_i r_ik + ν) + floor·I

    with S the covariance of all rows, so that K pieces of that volume fill it, and ν = D + 2, or 3 for a diagonal: no
    component collapses on a row.

    Args:
        x: rows, ``(N, *event)``.
        n_components: K, at most N.
        full: covariances between coordinates too; else variances only.
        floor: variance that each covariance has at least in each direction.
        generator: source of the first centers.

    Raises:
        InputError: more components than rows, or rows that are not finite.

    Reference: Dempster, Laird and Rubin (1977); Arthur and Vassilvitskii (2007), "k-means++"; Fraley and Raftery
    (2007), "Bayesian regularization for normal mixture estimation", for the prior.
    """
    x = as_batch(x)
    k = as_count(n_components, "n_components", least=1, most=len(x))
    rows, event = x.detach().flatten(1).double(), tuple(x.shape[1:])
    n, d = rows.shape
    centered = rows - rows.mean(0)
    whole = centered.T @ centered / n if full else centered.square().mean(0)
    count = (d if full else 1) + 2.0
    prior = whole * (count / k ** (2 / d))
    least = max(floor, 1e-12 * centered.square().mean().item(), torch.finfo(rows.dtype).tiny)

    def maximized(r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = r.sum(0)
        means = (r.T @ rows) / total.clamp_min(1e-12)[:, None]
        scale = (total + count)[:, None]
        if not full:
            second = (r.T @ rows.square()) - total[:, None] * means.square()
            return total, means, (second.clamp_min(0) + prior) / scale + least
        parts = []
        for weight, mean in zip(r.T, means, strict=True):
            some = weight > 1e-8
            v = (rows[some] - mean) * weight[some].sqrt()[:, None]
            parts.append(v.T @ v)
        eye = least * torch.eye(d, dtype=rows.dtype, device=rows.device)
        return total, means, (torch.stack(parts) + prior) / scale[:, :, None] + eye

    total, means, covariances = maximized(_nearest(rows, _centers(rows, k, generator)))
    before = -math.inf
    for _ in range(_ITERATIONS):
        log_joint = (total.clamp_min(1e-12) / n).log() + _log_normal(rows, means, covariances)
        log_likelihood = torch.logsumexp(log_joint, 1).mean().item()
        total, means, covariances = maximized(torch.softmax(log_joint, 1))
        if log_likelihood < before + _TOLERANCE:
            break
        before = log_likelihood
    used = total > 1e-6 * n
    shape = (int(used.sum()), *event)
    kept = covariances[used] if full else covariances[used].reshape(shape)
    return GaussianMixture(total[used] / n, means[used].reshape(shape).to(x.dtype), kept)


def _log_normal(rows: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """log N(x_i; m_k, S_k), ``(N, K)``."""
    d = rows.shape[1]
    if covariances.ndim == 2:
        precision = 1 / covariances
        squares = rows.square() @ precision.T - 2 * rows @ (precision * means).T + (precision * means.square()).sum(1)
        return -0.5 * (squares + covariances.log().sum(1) + d * math.log(2 * math.pi))
    root = torch.linalg.cholesky(covariances)
    white = torch.linalg.solve_triangular(root, torch.eye(d, dtype=rows.dtype, device=rows.device), upper=False)
    y = torch.einsum("ni,kji->nkj", rows, white) - torch.einsum("ki,kji->kj", means, white)
    log_determinant = root.diagonal(dim1=1, dim2=2).log().sum(1)
    log_normal: Tensor = -0.5 * (y.square().sum(2) + d * math.log(2 * math.pi)) - log_determinant
    return log_normal


def _centers(rows: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    """K rows, each drawn with a probability as its squared distance from those before, then moved by Lloyd's steps."""
    n = len(rows)
    index = torch.randint(n, (1,), generator=generator, device=rows.device)
    least = (rows - rows[index]).square().sum(1)
    for _ in range(k - 1):
        weight = least if bool(least.sum() > 0) else torch.ones_like(least)
        drawn = torch.multinomial(weight, 1, generator=generator)
        index = torch.cat([index, drawn])
        least = torch.minimum(least, (rows - rows[drawn]).square().sum(1))
    centers = rows[index]
    for _ in range(_LLOYD):
        r = _nearest(rows, centers)
        centers = torch.where(r.sum(0)[:, None] > 0, (r.T @ rows) / r.sum(0).clamp_min(1)[:, None], centers)
    return centers


def _nearest(rows: Tensor, centers: Tensor) -> Tensor:
    """1 at the nearest center of each row, ``(N, K)``."""
    squares = centers.square().sum(1) - 2 * rows @ centers.T
    return torch.eye(len(centers), dtype=rows.dtype, device=rows.device)[squares.argmin(1)]
