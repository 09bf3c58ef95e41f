"""Is the score's size right? Two numbers that are 1 for the true score, on held-out rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows, dot, event_size, squared_norm
from gradlogp.diagnostics.dependence import MIN_GROUPS, as_groups, independent_units
from gradlogp.diagnostics.estimates import Estimate
from gradlogp.diagnostics.ladder import (
    as_kernels,
    as_rows,
    frame_of,
    linearise,
    per_datum,
    per_unit,
    ratio,
    repeated,
    some_of,
)
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel, gaussian_form
from gradlogp.objectives import divergence, rademacher

_EXACT_DIVERGENCE_UP_TO = 4  # coordinates


@dataclass(frozen=True)
class CalibrationLevel:
    """The two numbers at one noise level; both are 1 for the true score.

    Attributes:
        kernel: the convolution.
        sigma: its scale.
        residual: E‖x − D(x_t)‖² over what the model itself says that it is.
        slope: E⟨ψ, t⟩/E‖ψ‖², the factor on ψ that would make its loss smallest.
    """

    kernel: Kernel
    sigma: float
    residual: Estimate
    slope: Estimate


@dataclass(frozen=True)
class Calibration:
    """Whether a model's scores have the right size.

    Attributes:
        levels: one for each kernel.
        cautions: what in the rows speaks against independent draws, in words.
    """

    levels: tuple[CalibrationLevel, ...]
    cautions: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = (f"residual {v.residual}, slope {v.slope} at σ = {v.sigma:.3g}" for v in self.levels)
        return "calibration (1 is right): " + "; ".join((*parts, *self.cautions))

    def to_frame(self) -> Any:
        """A polars frame, one row a level."""
        return frame_of(self.levels)


def calibration(
    model: ScoreModel,
    x: Batch,
    kernels: Kernel | Iterable[Kernel],
    *,
    groups: Sequence[Any] | np.ndarray | Tensor | None = None,
    n_noise: int | None = None,
    max_rows: int = 512,
    generator: torch.Generator | None = None,
) -> Calibration:
    """Compare the denoiser's error with the model's own prediction of it, and find the best factor on the score.

        residual = E‖x − D(x_t)‖² / [σ²(d + σ² E tr ∇ψ(x_t))/α²],    slope = E⟨ψ(x_t), t⟩ / E‖ψ(x_t)‖²

    with t = ∇log k(x_t | x) and D = (x_t + σ²ψ)/α. Both are 1 for the true score: Tweedie's second-order formula is
    Cov[x | x_t] = σ²(I + σ²∇∇log p_σ)/α², and E[t | x_t] = ∇log p_σ. For every ψ, E⟨ψ, t⟩ = −E tr ∇ψ, hence

        residual − 1 = (1 − slope)·σ²E‖ψ‖²/(d + σ²E tr ∇ψ):

    they find the same fault, the slope in units of the score, the residual in units of the posterior variance. They
    are 1 for some wrong scores as well, such as the best affine one. A slope below 1 is a score that is too large: the
    mark of over-training.

    The trace is exact up to 4 coordinates; above, it is vᵀ∇ψ v with random signs v, one for each draw: that costs one
    backward pass, and its variance is at most that of ‖x − D‖² itself where the posterior is Gaussian.

    Standard errors are over rows, by the delta method. The rows are taken as independent draws, or their groups are;
    rows that are correlated in their order count by runs as long as the correlation. A part of the law rarer than 3/N
    may be unseen. 1.96 standard errors cover 95 % from about 200 rows on, 88 to 94 % at 20 rows, and 80 % for 200 rows
    of an autoregression with ρ = 0.9, which count as some 12.

    Args:
        model: any score model ψ that autograd can follow.
        x: clean rows that the model was not trained on, ``(B, *event)``.
        kernels: one kernel or several, isotropic Gaussian, each with one level for all rows.
        groups: one label a row, of any kind: rows of one group may depend on each other.
        n_noise: draws of noise for each row; by default enough for 512 noisy rows.
        max_rows: rows used at most, drawn at random.
        generator: source of the draws.

    Raises:
        InputError: x not a finite batch of 2 rows at least, kernels that are not isotropic Gaussian, a score with no
            gradient, fewer than 4 groups.
    """
    several = as_kernels(kernels)
    held_out = as_rows(x, "x")
    for kernel in several:
        if gaussian_form(kernel, held_out, "calibration").kind != "isotropic" or not bool(kernel.alpha > 0):
            raise InputError(f"calibration: got {kernel!r}, want isotropic Gaussian noise and alpha > 0")
    unit, cautions = independent_units(held_out, as_groups(groups, len(held_out), least=MIN_GROUPS))
    some = some_of(held_out, max_rows, generator)
    unit = None if unit is None else unit[some.cpu()]
    rows, n = repeated(held_out[some], n_noise)
    return Calibration(tuple(_level(model, rows, n, unit, k, generator) for k in several), cautions)


@torch.no_grad()
def _level(
    model: ScoreModel, x: Batch, n: int, unit: Tensor | None, kernel: Kernel, generator: torch.Generator | None
) -> CalibrationLevel:
    x_t = kernel.sample(x, generator=generator)
    psi, trace = _score_and_trace(model, x_t, kernel, generator)
    t = kernel.score(x_t, x)
    # x − D = σ²(t − ψ)/α, and everything over σ²/α²: no difference of large numbers
    variance = gaussian_form(kernel, x, "calibration").covariance.to(x).double()
    error = variance * squared_norm(t - psi).double()
    said = event_size(tuple(x.shape[1:])) + variance * trace.double()
    several = (error, said, dot(psi, t), squared_norm(psi))
    error, said, along, squared = (per_unit(per_datum(v, n), unit) for v in several)
    return CalibrationLevel(kernel, kernel.sigma.item(), ratio(error, said), ratio(along, squared))


def _score_and_trace(
    model: ScoreModel, x_t: Batch, kernel: Kernel, generator: torch.Generator | None
) -> tuple[Batch, Rows]:
    """ψ(x_t) and tr ∇ψ(x_t), exact in few coordinates, otherwise by one random projection."""
    psi, transposed_times = linearise(model, x_t, kernel)
    if event_size(tuple(x_t.shape[1:])) <= _EXACT_DIVERGENCE_UP_TO:
        return psi.detach(), divergence(psi, transposed_times)
    v = rademacher(psi, generator)
    return psi.detach(), dot(v, transposed_times(v))
