"""Log-densities of rows, in the data's units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gradlogp import likelihood
from gradlogp._shapes import Batch
from gradlogp.estimators.parameters import device_from, generator_from
from gradlogp.estimators.units import Array
from gradlogp.models import OnReference

if TYPE_CHECKING:
    from gradlogp.estimators.density import DensityEstimator

ROWS_AT_A_TIME = 256  # between two movements of the bar


def log_prob(
    est: DensityEstimator,
    z: Batch,
    trace: likelihood.Trace | None,
    state: Any = None,
    *,
    model: OnReference | None = None,
    what: str = "log-density",
) -> likelihood.LogProb:
    """The log-density of rows in model units, per the data's units; on the estimator's device, with a bar.

    Of the estimator's model, or of another in the same units and at the same levels.
    """
    generator = generator_from(est.random_state if state is None else state, device_from(est.device))
    model, levels, parts = (est.model_ if model is None else model).to(generator.device), est.levels_, []
    ends = {"sigma_min": float(levels.sigma_min), "sigma_max": float(levels.sigma_max)}
    try:
        with est._bar(what, len(z)) as bar:
            for rows in z.to(generator.device).split(ROWS_AT_A_TIME):
                parts.append(likelihood.log_prob(model, rows, trace=trace, generator=generator, **ends))
                bar.update(len(rows))
    finally:
        model.cpu()
    value, quadrature, *errors = (_joined(parts, name) for name in ("value", "quadrature", "path", "above", "probes"))
    quadrature = quadrature + _joined(parts, "rounding")  # in float64, of which the value is now, it would be lost
    return likelihood.LogProb(value - _unit(est), quadrature, *errors)


def log_mass(est: DensityEstimator, values: Array, n_draws: int, state: Any = None) -> likelihood.LogMass:
    """The log of the probability of the cell around each row: of each column's grid, centred at its points."""
    x = torch.from_numpy(np.ascontiguousarray(values))
    widths = np.where(est.grid_.low < est.grid_.high, est.grid_.step, 0.0).reshape(values.shape[1:])
    cells = likelihood.UniformDequantisation(torch.from_numpy(widths), below=0.5)
    generator = generator_from(est.random_state if state is None else state, torch.device("cpu"))

    def log_density(y: Tensor) -> Tensor:
        return log_prob(est, est.units_.to_model(y.numpy()), None, state).value

    return likelihood.log_mass(log_density, x, cells, n_draws=n_draws, generator=generator)


def _joined(parts: list[likelihood.LogProb], name: str) -> Tensor:
    return torch.cat([getattr(part, name) for part in parts]).cpu().double()


def _unit(est: DensityEstimator) -> float:
    """What the density in model units has more in nats: log of the scales, and of the noise in constant columns."""
    varies = est.grid_.low < est.grid_.high
    scales = np.log(est.units_.scale.reshape(-1)[varies]).sum()
    noise = math.log(est.levels_.sigma_min) + 0.5 * math.log(2 * math.pi)
    return float(scales) - np.count_nonzero(~varies) * noise
