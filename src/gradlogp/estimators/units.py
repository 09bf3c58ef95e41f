"""Between the data's units and the model's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradlogp._shapes import Batch
from gradlogp.data import Grid

Array = NDArray[np.float64]

SCALES_APART = 10.0  # columns whose standard deviations differ by more than this factor are given a unit each
PIXEL_LEVELS = 256


@dataclass(frozen=True)
class Units:
    """z = (x − offset)/scale, coordinate by coordinate: between the data's units and the model's.

    ``scale`` is 1 where all columns share a unit; sigma is then in that unit. Otherwise it is each column's standard
    deviation, and noise of level sigma has standard deviation sigma·scale_j in column j.
    """

    offset: Array
    scale: Array

    @classmethod
    def of_data(cls, values: Array, standardize: bool | str, grid: Grid) -> Units:
        """The mean, and the columns' standard deviations if they do not share a unit."""
        offset, spread = values.mean(0), values.std(0)
        if standardize == "auto":
            standardize = values.ndim == 2 and not _share_a_unit(spread, grid)
        return cls(offset, np.where(spread > 0, spread, 1.0) if standardize else np.ones_like(spread))

    def to_model(self, values: Array) -> Tensor:
        """float32 model units; the difference is taken in float64."""
        return torch.from_numpy((values - self.offset) / self.scale).float()

    def from_model(self, z: Tensor) -> Array:
        """Back to the data's units."""
        values: Array = self.offset + self.scale * z.double().numpy()
        return values


def _share_a_unit(spread: Array, grid: Grid) -> bool:
    """Columns share a unit if their standard deviations are within a factor of 10, or if they look like pixels.

    Pixels lie on one grid of at most 256 levels, from one lowest value on; some hardly vary.
    """
    varies = spread.reshape(-1) > 0
    varying, low, high, step = (v.reshape(-1)[varies] for v in (spread, grid.low, grid.high, grid.step))
    if varying.size == 0 or varying.max() <= SCALES_APART * varying.min():
        return True
    one_grid = step.min() > 0 and np.ptp(step) < 1e-9 * step[0] and np.ptp(low) < 1e-9 * step[0]
    return bool(one_grid and (high.max() - low[0]) / step[0] < PIXEL_LEVELS)


def smallest_scale(rows: Batch, grid: Grid, units: Units) -> float:
    """The smallest scale worth resolving, in model units: the narrowest column's, or what a grid wipes out."""
    spread = rows.flatten(1).double().std(0)
    narrowest = spread[spread > 0].min().item() if bool((spread > 0).any()) else 1.0
    steps = (grid.step.reshape(-1) / units.scale.reshape(-1))[grid.low.reshape(-1) < grid.high.reshape(-1)]
    return max(narrowest, 25 * float(steps.min())) if len(steps) and steps.min() > 0 else narrowest
