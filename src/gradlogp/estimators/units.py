"""Between the data's units and the model's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradlogp._shapes import InputError
from gradlogp.data import Grid, Schema
from gradlogp.data.containers import cell_name

Array = NDArray[np.float64]

SCALES_APART = 10.0  # columns whose standard deviations differ by more than this factor are given a unit each
PIXEL_LEVELS = 256
PLAIN = 1e-12, 1e12  # spreads between which float32 holds rows, noise and losses in the data's own unit
LARGEST = 1e300  # of values and of 1/spread: beyond, sums, differences and gradients are no float64 numbers
FAR = 1e15  # model units from the mean: beyond, float32 cannot square a distance


@dataclass(frozen=True)
class Units:
    """z = (x − offset)/scale, coordinate by coordinate: between the data's units and the model's.

    ``scale`` is 1 where all columns share a unit; sigma is then in that unit. Otherwise it is each column's standard
    deviation, and noise of level sigma has standard deviation sigma·scale_j in column j.
    """

    offset: Array
    scale: Array

    @classmethod
    def of_data(cls, values: Array, standardize: bool | str, grid: Grid, schema: Schema) -> Units:
        """The mean, and the columns' standard deviations if they do not share a unit.

        A unit that is shared is the data's own, or their widest standard deviation where float32 does not hold them.

        Raises:
            InputError: values, or standard deviations, that float64 or the unit asked for cannot hold.
        """
        offset, spread = _moments(values)
        huge: NDArray[np.bool_] = np.abs(values) > LARGEST
        row = int(huge.reshape(len(huge), -1).any(1).argmax())
        want = "the column divided by a constant, or that row left out"
        _refuse(np.asarray(huge.any(0)), schema, f"a value beyond {LARGEST:g} at row {row}", want)
        _refuse(
            (spread > 0) & (spread < 1 / LARGEST), schema, f"a standard deviation below {1 / LARGEST:g}",
            "the column multiplied by a constant, or dropped",
        )  # fmt: skip
        one_unit = values.ndim > 2 or _share_a_unit(spread, grid) if standardize == "auto" else not standardize
        if not one_unit:
            scale = np.where(spread > 0, spread, 1.0)
        else:
            scale = np.full_like(spread, _common_unit(spread, standardize))
        _refuse_collapsed(values, spread, schema)
        return cls(offset, scale)

    @property
    def shared(self) -> bool:
        """Whether all coordinates are measured in one unit."""
        return bool((self.scale == self.scale.flat[0]).all())

    @property
    def in_words(self) -> str:
        """What a noise level is counted in."""
        if not self.shared:
            return "standard deviations of each column"
        unit = self.scale.flat[0]
        return "the columns' shared unit" if unit == 1 else f"units of {unit:.4g}"

    def to_model(self, values: Array) -> Tensor:
        """float32 model units; the difference is taken in float64."""
        return torch.from_numpy((values - self.offset) / self.scale).float()

    def checked(self, values: Array, schema: Schema, name: str = "X") -> Tensor:
        """Rows in model units, if float32 can square their distances.

        Raises:
            InputError: naming the first cell that is too far away.
        """
        far = self.far(values)
        if far.any():
            row, cell = divmod(int(far.reshape(-1).argmax()), far[0].size)
            where = cell_name(schema.columns, schema.event_shape, cell)
            got = f"{values.reshape(len(values), -1)[row, cell]:g} in {where} at row {row}"
            raise InputError(f"{name}: got {got}, want it within {FAR:g} noise units of the fitted mean")
        return self.to_model(values)

    def far(self, values: Array) -> NDArray[np.bool_]:
        """Which cells are farther than 10¹⁵ model units from the mean."""
        with np.errstate(over="ignore"):
            return ~(np.abs((values - self.offset) / self.scale) <= FAR)

    def from_model(self, z: Tensor) -> Array:
        """Back to the data's units."""
        values: Array = self.offset + self.scale * z.double().numpy()
        return values


def _moments(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each coordinate, of any finite values: scaled by powers of 2, which is exact."""
    _, exponent = np.frexp(np.abs(values).max(0))
    scaled = np.ldexp(values, -exponent)
    return np.ldexp(scaled.mean(0), exponent), np.ldexp(scaled.std(0), exponent)


def _common_unit(spread: Array, standardize: bool | str) -> float:
    """1, or the widest standard deviation where all that vary are too wide or too narrow for float32."""
    varying = spread[spread > 0]
    if varying.size == 0 or (varying.min() >= PLAIN[0] and varying.max() <= PLAIN[1]):
        return 1.0
    if standardize is False:
        got = f"standard deviations from {varying.min():.3g} to {varying.max():.3g}"
        raise InputError(f"standardize: got False and {got}, want True or 'auto' beyond {PLAIN[0]:g} to {PLAIN[1]:g}")
    return float(varying.max())


def _refuse(bad: NDArray[np.bool_], schema: Schema, got: str, want: str) -> None:
    """Refuse the first coordinate that is bad."""
    if bad.any():
        where = cell_name(schema.columns, schema.event_shape, int(bad.reshape(-1).argmax()))
        raise InputError(f"X: {where}: got {got}, want {want}")


def _refuse_collapsed(values: Array, spread: Array, schema: Schema) -> None:
    """Refuse a column that a few far cells make so wide that float32 cannot tell the others apart."""
    if values.ndim > 2:  # pixels and the like
        return
    low, high = np.quantile(values, [0.1, 0.9], axis=0)
    bad = (low < high) & (high / 2 - low / 2 < 0.5e-6 * spread)
    if bad.any():
        column = int(bad.argmax())
        row = int(np.abs(values[:, column] - low[column]).argmax())
        got = f"{values[row, column]:g} at row {row}, so far from the others that float32 cannot tell those apart"
        _refuse(bad, schema, got, "that row left out, or the column's logarithm")


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
