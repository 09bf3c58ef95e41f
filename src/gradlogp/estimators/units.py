"""Between the data's units and the model's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    varying = spread[spread > 0]
    if varying.size == 0 or varying.max() <= SCALES_APART * varying.min():
        return True
    return are_pixels(grid)


def are_pixels(grid: Grid) -> bool:
    """Whether all coordinates that vary lie on one grid of at most 256 levels, from one lowest value on."""
    varies = grid.low < grid.high
    low, high, step = (v[varies] for v in (grid.low, grid.high, grid.step))
    if step.size == 0 or step.min() == 0:
        return False
    one_grid = np.ptp(step) < 1e-9 * step[0] and np.ptp(low) < 1e-9 * step[0]
    return bool(one_grid and (high.max() - low[0]) / step[0] < PIXEL_LEVELS)


def grid_steps(grid: Grid, units: Units) -> Tensor:
    """The step of each coordinate's grid in model units, ``(*event)``; 0 for a continuous or constant one."""
    steps = np.where(grid.low < grid.high, grid.step, 0.0).reshape(units.scale.shape) / units.scale
    return torch.from_numpy(steps)
