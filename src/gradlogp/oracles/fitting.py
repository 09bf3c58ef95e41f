"""A Gaussian mixture of maximum likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, as_batch, as_count
from gradlogp.oracles.mixture import GaussianMixture

_ITERATIONS, _LLOYD = 60, 5
_NUMBERS = 2**21  # products of coordinates at a time
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

        S_k = (Σ_i r_ik (x_i − m_k)(x_i − m_k)ᵀ + ν·S) / (Σ_i r_ik + ν) + floor·I

    with S the covariance within the first clusters, of all of them together, and ν = D + 2, or 3 for a diagonal: no
    component collapses on a row.

    Args:
        x: rows, ``(N, *event)``.
        n_components: K, at most N.
        full: covariances between coordinates too; else variances only.
        floor: variance that each covariance has at least in each direction.
        generator: source of the first centers.

    Raises:
        InputError: more components than rows, rows whose squares are not finite, or a negative floor.

    Reference: Dempster, Laird and Rubin (1977); Arthur and Vassilvitskii (2007), "k-means++"; Fraley and Raftery
    (2007), "Bayesian regularization for normal mixture estimation", for the prior.
    """
    x = as_batch(x)
    k = as_count(n_components, "n_components", least=1, most=len(x))
    flat, event = x.detach().flatten(1).double(), tuple(x.shape[1:])
    offset = flat.mean(0)
    rows, (n, d) = flat - offset, flat.shape
    if not math.isfinite(rows.square().sum().item()) or not 0 <= floor < math.inf:
        got = f"floor {floor:g}, and rows of up to {rows.abs().max().item():.3g}"
        raise InputError(f"fit_mixture: got {got}, want a floor that is not negative and rows whose squares are finite")
    count = (d if full else 1) + 2.0
    least = max(floor, 1e-12 * rows.square().mean().item(), torch.finfo(rows.dtype).tiny)
    floors = least * torch.eye(d, dtype=rows.dtype, device=rows.device) if full else least

    def scattered(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total, first, second = moments.split([1, d, moments.shape[1] - d - 1], dim=1)
        means = first / total.clamp_min(1e-12)
        within = second - total * (_products(means) if full else means.square())
        return total[:, 0], means, within.reshape(-1, d, d) if full else within.clamp_min(0)

    def maximized(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total, means, within = scattered(moments)
        scale = total[:, None, None] if full else total[:, None]
        return total, means, (within + count * prior) / (scale + count) + floors

    centers = _centers(rows, k, generator)
    _, moments = _moments(rows, full, lambda part, _: _nearest(part, centers))
    prior = scattered(moments)[2].sum(0) / n
    total, means, covariances = maximized(moments)
    before = -math.inf
    for _ in range(_ITERATIONS):
        natural = _natural((total.clamp_min(1e-12) / n).log(), means, covariances)
        log_likelihood, moments = _moments(rows, full, partial(_log_joint, natural))
        total, means, covariances = maximized(moments)
        if log_likelihood < before + _TOLERANCE:
            break
        before = log_likelihood
    used = total > 1e-6 * n
    shape = (int(used.sum()), *event)
    kept = covariances[used] if full else covariances[used].reshape(shape)
    return GaussianMixture(total[used] / n, (means[used] + offset).reshape(shape).to(x.dtype), kept)


def _moments(rows: Tensor, full: bool, logits: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, Tensor]:
    """The mean log-likelihood, and Σ_i r_ik (1, x_i, x_i x_iᵀ), ``(K, F)``, for r the softmax of the logits."""
    parts = []
    for some in rows.split(max(1, _NUMBERS // rows.shape[1] ** 2)):
        second = _products(some) if full else some.square()
        features = torch.cat([torch.ones_like(some[:, :1]), some, second], dim=1)
        scores = logits(some, features)
        normalizer = torch.logsumexp(scores, dim=1, keepdim=True)
        parts.append((normalizer.sum(), torch.exp(scores - normalizer).T @ features))
    total, moments = (torch.stack(v).sum(0) for v in zip(*parts, strict=True))
    return total.item() / len(rows), moments


def _log_joint(natural: Tensor, _: Tensor, features: Tensor) -> Tensor:
    """log w_k N(x_i; m_k, S_k), ``(N, K)``."""
    return features @ natural


def _natural(log_weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """Coefficients of (1, x, x xᵀ) in log w_k N(x; m_k, S_k), ``(F, K)``."""
    k, d = means.shape
    if covariances.ndim == 2:
        precision = 1 / covariances
        slope, log_determinant, second = precision * means, covariances.log().sum(1), precision
    else:
        root = torch.linalg.cholesky(covariances)
        precision = torch.cholesky_inverse(root)
        slope = (precision @ means[:, :, None])[:, :, 0]
        log_determinant, second = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1), precision.reshape(k, d * d)
    constant = log_weights - 0.5 * ((slope * means).sum(1) + log_determinant + d * math.log(2 * math.pi))
    return torch.cat([constant[:, None], slope, -0.5 * second], dim=1).T


def _products(rows: Tensor) -> Tensor:
    """x xᵀ of each row, ``(N, D²)``."""
    return (rows[:, :, None] * rows[:, None, :]).flatten(1)


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
        r = _nearest(rows, centers).exp()
        centers = torch.where(r.sum(0)[:, None] > 0, (r.T @ rows) / r.sum(0).clamp_min(1)[:, None], centers)
    return centers


def _nearest(rows: Tensor, centers: Tensor) -> Tensor:
    """0 at the nearest center of each row, −∞ at the others, ``(N, K)``."""
    nearest = (centers.square().sum(1) - 2 * rows @ centers.T).argmin(1)
    return torch.full((len(rows), len(centers)), -math.inf).to(rows).scatter(1, nearest[:, None], 0.0)
