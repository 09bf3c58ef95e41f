"""The score error at one level, between a lower and an upper bound that need no truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp.diagnostics.auditor import MOST_TREES, where
from gradlogp.diagnostics.comparisons import Comparisons, best_weights
from gradlogp.diagnostics.estimates import Z_THRESHOLD, Jackknifed
from gradlogp.diagnostics.references import (
    Draws,
    Posterior,
    Rows,
    mean_of_rows,
    squared_norm_without_each,
    without_each,
)
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel


@dataclass(frozen=True)
class Sides:
    """What the held-out rows say at one level, each with its jackknife replicates.

    Attributes:
        dsm: J_DSM(ψ), with ½‖t‖² as control variate.
        skill: E[⟨ψ, t⟩ − ½‖ψ‖²] = ½I(q) − J_DSM(ψ); at the true score it is ½E‖∇log p_σ‖².
        lower: J_DSM(ψ) − J_DSM(ψ + f), a lower bound of the score error in expectation.
        upper: ½E‖ψ − T‖² over references with the source, an upper bound in expectation.
        fewer: the same with a half and a quarter of the references.
        units: what each independent unit of rows contributes to the lower and the upper bound, ``(U,)`` each.
        weights: the share in f of each direction, the mean over the two halves.
        where: in which region of x_t f gains most, where it surely gains, in at most 64 coordinates.
    """

    dsm: Jackknifed
    skill: Jackknifed
    lower: Jackknifed
    upper: Jackknifed
    fewer: tuple[Jackknifed, Jackknifed]
    units: tuple[Tensor, Tensor]
    weights: dict[str, float]
    where: str | None


@dataclass(frozen=True)
class _Chunk:
    """What some draws contribute, small: no dimension of the event is left.

    Attributes:
        row, block: of each draw, ``(Q,)``.
        dsm, noise: ½‖ψ − t‖² and ½‖t‖².
        upper: ½‖ψ − T‖² over all blocks, its own half, its own quarter, ``(Q, 3)``.
        upper_without: the same without each block, ``(Q, 3, G)``.
        fit_gram, fit_rhs, fit_plain: ⟨d_k, d_l⟩, ⟨d_k, T − ψ⟩ and ⟨d_k, t − ψ⟩ of the fitting directions, T over the
            own block.
        gram, cross, plain: ⟨d_k, d_l⟩, ⟨d_k, e_b⟩ ``(Q, K, G)`` and ⟨d_k, t − ψ⟩ of those used.
        weight: the weight of each block in T over the own half, ``(Q, G)``.
    """

    row: Tensor
    block: Tensor
    dsm: Tensor
    noise: Tensor
    upper: Tensor
    upper_without: Tensor
    fit_gram: Tensor
    fit_rhs: Tensor
    fit_plain: Tensor
    gram: Tensor
    cross: Tensor
    plain: Tensor
    weight: Tensor


def measure(
    model: ScoreModel,
    rows: Rows,
    kernel: Kernel,
    comparisons: Comparisons,
    n_noise: int,
    generator: torch.Generator,
) -> Sides:
    """Both sides at one level."""
    half_fisher = 0.5 * float(kernel.fisher_information(tuple(rows.x.shape[1:])))
    draws = list(Draws.of(rows, kernel, model, n_noise, generator))
    residual = _residual(draws, rows)
    parts = [_chunk(d, rows, kernel, comparisons, residual) for d in draws]
    c = _Chunk(*(torch.cat([getattr(p, name) for p in parts]) for name in _Chunk.__dataclass_fields__))
    g = rows.n_blocks
    dsm = _with_control_variate(c.dsm, c.noise - half_fisher, c.block, g)
    uppers = [Jackknifed.mean_of(c.upper[:, i], c.block, g, c.upper_without[:, i]) for i in range(3)]
    lower, weights, gain = _lower(c, rows, comparisons.names(kernel))
    looked = residual.shape[1] <= MOST_TREES and lower.estimate.z > Z_THRESHOLD
    region = where(torch.cat([d.x_t.flatten(1) for d in draws]), gain, rows.half[c.block]) if looked else None
    units = rows.means(gain, c.row), rows.means(c.upper[:, 0], c.row)
    return Sides(dsm, -dsm + half_fisher, lower, uppers[0], (uppers[1], uppers[2]), units, weights, region)


def _residual(draws: list[Draws], rows: Rows) -> Tensor:
    """The mean of t − ψ over the draws of each block, ``(G, D)``."""
    total = draws[0].psi.new_zeros(rows.n_blocks, draws[0].psi.shape[1])
    for d in draws:
        total.index_add_(0, d.block, d.target - d.psi)
    counts = torch.bincount(torch.cat([d.block for d in draws]), minlength=rows.n_blocks)
    return total / counts[:, None]


def _chunk(draws: Draws, rows: Rows, kernel: Kernel, comparisons: Comparisons, residual: Tensor) -> _Chunk:
    posterior = Posterior.at(draws, rows, kernel)
    upper, upper_without = _uppers(posterior, draws.block, rows)
    w, _ = posterior.mean(_alike(rows, draws.block, 2))
    e_own = posterior.e[torch.arange(len(w), device=w.device), draws.block]  # shares no row with the fitting directions
    d = comparisons.at(draws, posterior, kernel, residual)
    e_plain = (draws.target - draws.psi)[:, :, None]
    return _Chunk(
        row=draws.row,
        block=draws.block,
        dsm=0.5 * (draws.psi - draws.target).square().sum(1),
        noise=0.5 * draws.target.square().sum(1),
        upper=upper,
        upper_without=upper_without,
        fit_gram=d.fit @ d.fit.mT,
        fit_rhs=(d.fit @ e_own[:, :, None]).squeeze(2),
        fit_plain=(d.fit @ e_plain).squeeze(2),
        gram=d.use @ d.use.mT,
        cross=d.use @ posterior.e.mT,
        plain=(d.use @ e_plain).squeeze(2),
        weight=w,
    )


def _alike(rows: Rows, block: Tensor, modulus: int) -> Tensor:
    """Which blocks belong to the same part as each draw's, of ``modulus`` interleaved parts, ``(Q, G)``."""
    b = torch.arange(rows.n_blocks, device=block.device)
    return b % modulus == block[:, None] % modulus


def _uppers(posterior: Posterior, block: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """½‖T − ψ‖² over all, half and a quarter of the blocks, and without each block."""
    full, without = [], []
    for modulus in (1, 2, 4):
        w, mean = posterior.mean(_alike(rows, block, modulus))
        full.append(0.5 * mean.square().sum(1))
        without.append(0.5 * squared_norm_without_each(w, mean, posterior.e))
    return torch.stack(full, 1), torch.stack(without, 1)


def _with_control_variate(values: Tensor, control: Tensor, block: Tensor, n_blocks: int) -> Jackknifed:
    """The mean of values with the multiple of a control of mean 0 taken off that leaves the least variance."""
    c = control - control.mean()
    slope = (c * (values - values.mean())).mean() / c.square().mean().clamp_min(torch.finfo(c.dtype).tiny)
    return Jackknifed.mean_of(values - slope * control, block, n_blocks)


def _lower(c: _Chunk, rows: Rows, names: list[str]) -> tuple[Jackknifed, dict[str, float], Tensor]:
    """E[⟨f, T − ψ⟩ − ½‖f‖²], f with the weights of the other half; those weights, averaged; the gain of each draw.

    T is the target averaged over the own half, or the plain target, whose odd part cancels in pairs of noise: the
    other half says which promises more, averaging over a block only, so that T and d_k share no reference.
    """
    gram, averaged, plain = (mean_of_rows(v, c.row, len(rows.x)) for v in (c.fit_gram, c.fit_rhs, c.fit_plain))
    chosen = []
    for h in (0, 1):
        own = rows.half[rows.block] == h
        (a, promise), (b, plain_promise) = (best_weights(gram[own], rhs[own]) for rhs in (averaged, plain))
        chosen.append((b, True) if plain_promise > promise else (a, False))
    weights, is_plain = torch.stack([w for w, _ in chosen]), torch.tensor([p for _, p in chosen])
    other = 1 - rows.half[c.block]
    beta, use_plain = weights[other], is_plain.to(other.device)[other]
    each = torch.einsum("qk,qkg->qg", beta, c.cross)
    averaged_full, plain_full = (c.weight * each).sum(1), (beta * c.plain).sum(1)
    full = torch.where(use_plain, plain_full, averaged_full)
    without = torch.where(use_plain[:, None], plain_full[:, None], without_each(c.weight, averaged_full, each))
    norm = 0.5 * torch.einsum("qk,qkl,ql->q", beta, c.gram, beta)
    value = Jackknifed.mean_of(full - norm, c.block, rows.n_blocks, without - norm[:, None])
    return value, dict(zip(names, weights.mean(0).tolist(), strict=True)), full - norm
