"""The stable target: the denoising target, averaged over what else could have been the source of a noisy row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gradlogp._shapes import Batch, event_size, per_row, squared_norm
from gradlogp.kernels import Gaussian, Kernel

_WORKSPACE = 2**22  # numbers that a chunk may spread over
_ROUNDED = 1e-12  # nats that a product of matrices may round off a float64 weight


def posterior_score(x_t: Batch, kernel: Kernel, references: Tensor, sources: Tensor | None = None) -> Tensor:
    """T(x_t) = Σ_j w_j ∇log k(x_t | x_j), w_j ∝ k(x_t | x_j) over the references x_j, like x_t; without gradients.

    If the source x of x_t is one of the references and all of them are exchangeable, w_j is the probability that x_j is
    the source, so T = E[∇log k(x_t | x) | x_t, references] and E[T | x_t] = ∇log p_σ(x_t), for any number of
    references. Each row is weighted by its own level. For a Gaussian kernel it is (alpha·Σ_j w_j x_j − x_t)/sigma².

    Args:
        x_t: noisy rows, ``(B, *event)``.
        kernel: k, with a level for all rows or one a row.
        references: ``(M, *event)``, the same for all rows; or ``(G, M, *event)``, the g-th M for the g-th of G equal,
            consecutive groups of rows.
        sources: where the references do not include them, each row's source, ``(B, *event)``: the references are then
            these M and it. A target without its source is biased, as the score of another law of M points.

    Reference: Xu, Tong and Jaakkola (2023), "Stable target field for reduced variance score estimation", equation 4.
    """
    event = tuple(x_t.shape[1:])
    groups = (references if references.ndim == x_t.ndim + 1 else references[None]).to(x_t)
    numbers = 1 if isinstance(kernel, Gaussian) else event_size(event)
    with torch.no_grad():
        if len(x_t) * groups.shape[1] * numbers <= _WORKSPACE:
            return _average(x_t, kernel, groups, sources)
        parts = [
            _average(x_t[rows], kernel.rows(rows), groups[some], None if sources is None else sources[rows])
            for some, rows in _chunks(len(x_t), groups, numbers)
        ]
        return torch.cat(parts)


def posterior_weights(x_t: Batch, kernel: Gaussian, points: Tensor, sources: Tensor | None = None) -> Tensor:
    """w_j ∝ exp(−‖x_t − alpha·x_j‖²/(2 sigma²)) over points ``(G, M, *event)``: ``(G, B/G, M)`` in x_t's dtype.

    With sources there is one weight more, the last, of each row's own. Squares are expanded in float64, as a product of
    matrices. For a float64 batch differences are squared instead where that would lose 10⁻¹² of a weight or more.
    """
    g = len(points)
    alpha, sigma = (v.to(x_t.device).double().reshape(g if v.ndim else 1, -1, 1) for v in (kernel.alpha, kernel.sigma))
    logits = _log_densities(x_t.flatten(1).unflatten(0, (g, -1)), alpha, sigma, points.flatten(2))
    if sources is not None:
        own = squared_norm(x_t.double() - per_row(kernel.alpha.double(), x_t.double()) * sources.double())
        logits = torch.cat([logits, own.reshape(g, -1, 1) / (-2 * sigma**2)], dim=2)
    logits = (logits - logits.amax(2, keepdim=True)).to(x_t.dtype)
    return torch.softmax(logits.clamp_min_(-60), dim=2)  # processors are slow where float32 all but underflows


def _log_densities(a: Tensor, alpha: Tensor, sigma: Tensor, b: Tensor) -> Tensor:
    """−‖a_i − alpha_i b_j‖²/(2 sigma_i²) in each group, ``(G, Q, D), (G, Q, 1) twice, (G, M, D) -> (G, Q, M)``."""
    scale, centre = -0.5 / sigma**2, b.double().mean((0, 1))
    from_centre, b_from_centre = a.double() - alpha * centre, b.double() - centre
    near, slope, squares = scale * _squares(from_centre), scale * alpha**2, _squares(b_from_centre).mT
    if a.dtype == torch.float64 and -torch.finfo(a.dtype).eps * (near.min() + slope.min() * squares.max()) > _ROUNDED:
        safe = torch.where(alpha > 0, alpha, 1.0)  # at alpha = 0 all references are equally likely
        return slope * torch.cdist(a / safe, b, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    start = torch.addcmul(near, slope, squares)
    return torch.baddbmm(start, from_centre * (-2 * scale * alpha), b_from_centre.mT)


def _squares(v: Tensor) -> Tensor:
    """‖v‖² over the last dimension, which is kept."""
    return v.square().sum(-1, keepdim=True)


def _gaussian_average(x_t: Batch, kernel: Gaussian, points: Tensor, sources: Tensor | None) -> Tensor:
    """(alpha·Σ_j w_j x_j − x_t)/sigma² over points ``(G, M, *event)``; no pair of rows is written out."""
    weights = posterior_weights(x_t, kernel, points, sources)
    m = points.shape[1]
    mean = (weights[:, :, :m] @ points.flatten(2)).reshape(x_t.shape)
    if sources is not None:
        mean = mean + per_row(weights[:, :, m].reshape(-1), sources) * sources
    return (per_row(kernel.alpha, x_t) * mean - x_t) / per_row(kernel.sigma**2, x_t)


def _average(x_t: Batch, kernel: Kernel, points: Tensor, sources: Tensor | None) -> Tensor:
    """Σ_j w_j ∇log k(x_t | x_j) over points ``(G, M, *event)``."""
    if isinstance(kernel, Gaussian):
        return _gaussian_average(x_t, kernel, points, sources)
    return _pairwise_average(x_t, kernel, points, sources)


def _pairwise_average(x_t: Batch, kernel: Kernel, points: Tensor, sources: Tensor | None) -> Tensor:
    """The same for any kernel, pair by pair."""
    b, event = len(x_t), tuple(x_t.shape[1:])
    candidates = points.repeat_interleave(b // len(points), dim=0)
    if sources is not None:
        candidates = torch.cat([candidates, sources[:, None]], dim=1)
    m = candidates.shape[1]
    pair = torch.arange(b, device=x_t.device).repeat_interleave(m)
    at, x, kernel = x_t[pair], candidates.reshape(b * m, *event), kernel.rows(pair)
    weights = torch.softmax(kernel.log_prob(at, x).reshape(b, m), dim=1)
    seen = torch.where(weights[:, :, None] > 0, kernel.score(at, x).reshape(b, m, -1), 0.0)  # 0 · inf is 0 here
    return (weights[:, None] @ seen).reshape(x_t.shape)


def _chunks(n: int, groups: Tensor, numbers_a_pair: int) -> Iterator[tuple[slice, Tensor]]:
    """Groups and their rows, so many at a time that the workspace stays small; rows of one group are cut too."""
    g, q = len(groups), n // len(groups)
    a_row = groups.shape[1] * numbers_a_pair
    rows = torch.arange(n, device=groups.device)
    if g == 1:
        return ((slice(0, 1), part) for part in rows.split(max(1, _WORKSPACE // a_row)))
    size = max(1, _WORKSPACE // (a_row * q))
    return ((slice(i, i + size), rows[i * q : (i + size) * q]) for i in range(0, g, size))
