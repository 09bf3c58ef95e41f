"""Closing the network where it does not help."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradlogp._shapes import Batch, Rows, as_count, dot, squared_norm
from gradlogp.kernels import Gaussian
from gradlogp.models import N_GATES, OnReference, require_gaussian
from gradlogp.training.levels import NoiseLevels

_LEAST, _DRAWS, _NUMBERS = 256, 2048, 10**7


def calibrate(
    model: OnReference,
    held_out: Batch,
    levels: NoiseLevels,
    *,
    n_draws: int | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Close the network's gate at the noise levels where held-out rows do not show that it helps.

    The loss weighs an error of the score by σ², so at small σ it cannot see a network that is wrong. At each of 16
    levels, with D = D_ref + β·N, the best β is E⟨x − D_ref, N⟩/E‖N‖²; the gate is that β less one standard error (over
    rows), cut to [0, 1].

    Args:
        model: the trained model; its gate is set.
        held_out: rows that it was not trained on.
        levels: the levels that it was trained on.
        n_draws: draws of noise a level, about; fewer rows are repeated, of more the first are taken. By default 2048,
            or as many as make 10⁷ numbers over all levels, but 256 at least.
        generator: source of the draws.

    Raises:
        InputError: a model that was trained with other noise than Gaussian.
    """
    require_gaussian(model, "calibrate")
    sigma = torch.logspace(math.log10(levels.sigma_min), math.log10(levels.sigma_max), N_GATES, dtype=torch.float64)
    model.set_gate(sigma, torch.ones(N_GATES))
    if n_draws is None:
        n_draws = max(_LEAST, min(_DRAWS, _NUMBERS // (N_GATES * held_out[0].numel())))
    x = held_out[: as_count(n_draws, "n_draws", each=held_out[0].nbytes)]
    n, rows = len(x), x.repeat(math.ceil(n_draws / len(x)), *(1,) * (x.ndim - 1))
    gates = []
    for s in sigma:
        x_t = Gaussian(s).sample(rows, generator=generator)
        with torch.no_grad():
            reference, part = model.skip.denoise(x_t, Gaussian(s)), model.correction(x_t, Gaussian(s))
        xy, xx = (v.double().reshape(-1, n).sum(0) for v in (dot(rows - reference, part), squared_norm(part)))
        gates.append(_shrunk_slope(xy, xx))
    model.set_gate(sigma, torch.stack(gates))


def _shrunk_slope(xy: Rows, xx: Rows) -> Tensor:
    """Σxy/Σxx less its standard error over rows, cut to [0, 1]; 0 where there is nothing to scale."""
    total = xx.sum().clamp_min(torch.finfo(xx.dtype).tiny)
    slope = xy.sum() / total
    return (slope - (xy - slope * xx).square().sum().sqrt() / total).clamp(0, 1)
