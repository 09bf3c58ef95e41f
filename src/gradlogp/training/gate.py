"""How far a part is believed at each noise level: as far as held-out rows show that it helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gradlogp._shapes import Batch, as_count, dot, squared_norm
from gradlogp.kernels import Gaussian
from gradlogp.models import N_GATES, OnReference, ScoreModel, require_gaussian
from gradlogp.training.levels import Levels

_LEAST, _DRAWS, _NUMBERS = 256, 2048, 10**7
_NEGLIGIBLE = 0.02  # a share of a part that is not worth its time


def calibrate(
    model: OnReference,
    held_out: Batch,
    levels: Levels,
    *,
    parts: Sequence[ScoreModel] = (),
    n_draws: int | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Believe a network, and models stacked on it, at each level as far as held-out rows show that they help.

    The loss weighs an error of the score by σ², so at small σ it cannot see a network that is wrong. With
    D = D_ref + β·N the gate is the best β at each level: see :func:`best_shares`. A part is left out where its share is
    negligible at all levels.

    Args:
        model: the trained model; its gate is set, and what is stacked on it.
        held_out: rows that it was not trained on.
        levels: the levels that it was trained on.
        parts: models to stack on it, in this order.
        n_draws: draws of noise a level, about; fewer rows are repeated, of more the first are taken. By default 2048,
            or as many as make 10⁷ numbers over all levels, but 256 at least.
        generator: source of the draws.

    Raises:
        InputError: a model that was trained with other noise than Gaussian.
    """
    require_gaussian(model, "calibrate")
    sigma = _gate_levels(levels)
    model.unstack()
    model.set_gate(sigma, torch.ones(N_GATES))

    def learned(x_t: Tensor, kernel: Gaussian, _: Tensor) -> Tensor:
        return model.correction(x_t, kernel)

    def towards(part: ScoreModel, x_t: Tensor, kernel: Gaussian, denoised: Tensor) -> Tensor:
        return model.skip.project(part.denoise(x_t, kernel) - denoised)

    steps: list[Callable[[Tensor, Gaussian, Tensor], Tensor]] = [learned, *(partial(towards, part) for part in parts)]
    own, *others = best_shares(model.skip.denoise, steps, held_out, levels, n_draws=n_draws, generator=generator)
    model.set_gate(sigma, own)
    for part, shares in zip(parts, others, strict=True):
        if bool((shares > _NEGLIGIBLE).any()):
            model.stack(part, sigma, shares)


def best_shares(
    denoise: Callable[[Tensor, Gaussian], Tensor],
    steps: Sequence[Callable[[Tensor, Gaussian, Tensor], Tensor]],
    held_out: Batch,
    levels: Levels,
    *,
    n_draws: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The shares β_i of steps N_i that are best made from a denoiser D, at each of 16 levels, ``(len(steps), 16)``.

    In turn, D ← D + β_i·N_i(x_t, D) with β_i = E⟨x − D, N_i⟩/E‖N_i‖², less one standard error over rows, cut to [0, 1].
    Draws come in pairs x ± n: most of what noise adds to ⟨x − D, N_i⟩ at small σ changes its sign with n.

    Args:
        denoise: (x_t, kernel) -> D.
        steps: (x_t, kernel, D) -> N_i.
        held_out: rows that none of them was fitted to.
        levels: their ends are those of the 16 levels, which are even in log σ.
        n_draws: see :func:`calibrate`.
        generator: source of the draws.
    """
    if n_draws is None:
        n_draws = max(_LEAST, min(_DRAWS, _NUMBERS // (N_GATES * held_out[0].numel())))
    pairs = math.ceil(as_count(n_draws, "n_draws", each=held_out[0].nbytes) / 2)
    x = held_out[:pairs]
    n, once = len(x), x.repeat(math.ceil(pairs / len(x)), *(1,) * (x.ndim - 1))
    rows, shares = torch.cat([once, once]), []
    for s in _gate_levels(levels):
        kernel = Gaussian(s)
        x_t = kernel.sample(once, generator=generator)
        x_t = torch.cat([x_t, 2 * once - x_t])
        with torch.no_grad():
            denoised = denoise(x_t, kernel)
            for move in steps:
                part = move(x_t, kernel, denoised)
                xy, xx = (v.double().reshape(-1, n).sum(0) for v in (dot(rows - denoised, part), squared_norm(part)))
                shares.append(shrunk_slope(xy, xx))
                denoised = denoised + shares[-1].to(part) * part
    return torch.stack(shares).reshape(N_GATES, len(steps)).T


def _gate_levels(levels: Levels) -> Tensor:
    return torch.logspace(math.log10(levels.sigma_min), math.log10(levels.sigma_max), N_GATES, dtype=torch.float64)


def shrunk_slope(xy: Tensor, xx: Tensor) -> Tensor:
    """Σxy/Σxx less its standard error over rows, the last axis, cut to [0, 1]; 0 where there is nothing to scale."""
    total = xx.sum(-1, keepdim=True).clamp_min(torch.finfo(xx.dtype).tiny)
    slope = xy.sum(-1, keepdim=True) / total
    stderr = (xy - slope * xx).square().sum(-1).sqrt() / total[..., 0]
    return (slope[..., 0] - stderr).clamp(0, 1)
