"""How far a part is believed at each noise level: as far as held-out rows show that it helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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

    def learnt(x_t: Batch, kernel: Gaussian) -> tuple[Batch, Batch]:
        return model.skip.denoise(x_t, kernel), model.correction(x_t, kernel)

    model.set_gate(sigma, best_shares(learnt, held_out, levels, n_draws=n_draws, generator=generator))
    for part in parts:

        def further(x_t: Batch, kernel: Gaussian, part: ScoreModel = part) -> tuple[Batch, Batch]:
            below = model.denoise(x_t, kernel)
            return below, model.skip.project(part.denoise(x_t, kernel) - below)

        shares = best_shares(further, held_out, levels, n_draws=n_draws, generator=generator)
        if bool((shares > _NEGLIGIBLE).any()):
            model.stack(part, sigma, shares)


def best_shares(
    parts: Callable[[Batch, Gaussian], tuple[Batch, Batch]],
    held_out: Batch,
    levels: Levels,
    *,
    n_draws: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The share β of a step N that is best added to a denoiser D, at each of 16 levels: least squares, held back.

    β = E⟨x − D, N⟩/E‖N‖², less one standard error over rows, cut to [0, 1].

    Args:
        parts: gives D and N.
        held_out: rows that neither was fitted to.
        levels: their ends are those of the 16 levels, which are even in log σ.
        n_draws: see :func:`calibrate`.
        generator: source of the draws.
    """
    if n_draws is None:
        n_draws = max(_LEAST, min(_DRAWS, _NUMBERS // (N_GATES * held_out[0].numel())))
    x = held_out[: as_count(n_draws, "n_draws", each=held_out[0].nbytes)]
    n, rows = len(x), x.repeat(math.ceil(n_draws / len(x)), *(1,) * (x.ndim - 1))
    shares = []
    for s in _gate_levels(levels):
        x_t, kernel = Gaussian(s).sample(rows, generator=generator), Gaussian(s)
        with torch.no_grad():
            denoised, part = parts(x_t, kernel)
        xy, xx = (v.double().reshape(-1, n).sum(0) for v in (dot(rows - denoised, part), squared_norm(part)))
        shares.append(shrunk_slope(xy, xx))
    return torch.stack(shares)


def _gate_levels(levels: Levels) -> Tensor:
    return torch.logspace(math.log10(levels.sigma_min), math.log10(levels.sigma_max), N_GATES, dtype=torch.float64)


def shrunk_slope(xy: Tensor, xx: Tensor) -> Tensor:
    """Σxy/Σxx less its standard error over rows, the last axis, cut to [0, 1]; 0 where there is nothing to scale."""
    total = xx.sum(-1, keepdim=True).clamp_min(torch.finfo(xx.dtype).tiny)
    slope = xy.sum(-1, keepdim=True) / total
    stderr = (xy - slope * xx).square().sum(-1).sqrt() / total[..., 0]
    return (slope[..., 0] - stderr).clamp(0, 1)
