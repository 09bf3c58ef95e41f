"""Data that lie on a grid come back on it: counts, prices, grey levels, yes or no.

A coordinate is on a grid where its values are offset + k·step for whole k and that is no accident:

* **decimals**: every value is a fraction n/q, bit by bit, with q a power of ten (1 for whole numbers). At most two
  decimals are taken at their word, more of them where the grid has under 10⁵ points or the values repeat;
* **repeats**: at most half as many values as rows, all on a grid of at most 4096 points found as the greatest common
  divisor of their gaps, the rounding of the numbers (of float32, where they fit in it) allowed for.

A step larger than the last decimal wants evidence too: m random multiples of a unit share the divisor g with
probability about g^(2−m). Values of at most nine decimals that are on no grid keep so many decimals.

Differences are taken of values scaled by a power of two, so that no finite ones overflow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gradlogp._shapes import InputError, short
from gradlogp.data.dtypes import Floats, Numbers

MAX_POINTS = 4096
_SCALES = tuple(10**k for k in range(10))
_LIMIT = {True: 2.0**24, False: 2.0**53}  # of whole numbers that float32 and float64 hold
_DIVISORS = (*(2**k for k in range(1, 17)), 255, 65535)


@dataclass(frozen=True)
class Axis:
    """One coordinate: its grid, or step 0 for a continuous or a constant one (constant: low = high).

    Args:
        step: distance of neighbours on the grid; 0 for no grid.
        offset: a point of the grid.
        low: the smallest value seen.
        high: the largest value seen.
        scale: q where the values are fractions n/q, else 0; a power of ten without a grid.
        single: whether the values are float32 numbers.
        points: the points from low to high where they are no such fractions.
    """

    step: float
    offset: float
    low: float
    high: float
    scale: int = 0
    single: bool = False
    points: tuple[float, ...] = ()

    @property
    def gridded(self) -> bool:
        """Whether values are put back: on a grid, or constant."""
        return self.step > 0 or self.low == self.high

    def snap(self, values: Floats) -> Floats:
        """The nearest point of the grid between low and high; NaN stays, a continuous coordinate keeps its decimals."""
        if not self.gridded:
            return self.rounded(values)
        if self.step == 0:
            return np.where(np.isnan(values), values, self.low)
        k = np.clip(np.rint(self._steps(values)), 0, self.last)
        return np.clip(self._point(k), self.low, self.high)

    def rounded(self, values: Floats) -> Floats:
        """Values with as many decimals as the data have, where those have from one to nine; else as they are."""
        if self.scale not in _SCALES[1:]:
            return values
        with np.errstate(over="ignore"):
            numerator = np.rint(values * self.scale)
        held = np.abs(numerator) < 2.0**53
        return np.where(held, _fraction(np.where(held, numerator, 0.0), self.scale, self.single), values)

    @property
    def last(self) -> int:
        """Steps from the offset to the largest value."""
        return round(float(self._steps(np.array([self.high]))[0]))

    def _steps(self, values: Floats) -> Floats:
        """How many steps from the offset values are."""
        exponent = -_exponent(self.low, self.high)
        with np.errstate(over="ignore"):
            scaled = np.ldexp(values, exponent)
        steps: Floats = (scaled - math.ldexp(self.offset, exponent)) / math.ldexp(self.step, exponent)
        return steps

    def _point(self, k: Floats) -> Floats:
        if self.points:
            index = np.nan_to_num(k).astype(np.intp)
            return np.where(np.isnan(k), k, np.asarray(self.points)[index])
        first, stride = round(self.offset * self.scale), round(self.step * self.scale)
        return _fraction(first + k * stride, self.scale, self.single)


@dataclass(frozen=True)
class Grid:
    """The grid of each coordinate of ``(N, *event)`` data, flattened."""

    axes: tuple[Axis, ...]

    @cached_property
    def step(self) -> Floats:
        """Distance of neighbours, 0 for a continuous or constant coordinate."""
        return np.array([axis.step for axis in self.axes])

    @cached_property
    def offset(self) -> Floats:
        """A point of each grid."""
        return np.array([axis.offset for axis in self.axes])

    @cached_property
    def low(self) -> Floats:
        """The smallest value seen."""
        return np.array([axis.low for axis in self.axes])

    @cached_property
    def high(self) -> Floats:
        """The largest value seen."""
        return np.array([axis.high for axis in self.axes])

    def snap(self, values: Numbers) -> Floats:
        """Values ``(n, *event)`` on the grid, within the range seen; those on it already stay bit by bit.

        Raises:
            InputError: for another number of coordinates.
        """
        flat = _flat(values, len(self.axes))
        out = np.array(flat, order="F")
        for i, axis in enumerate(self.axes):
            if axis.gridded or axis.scale:
                out[:, i] = axis.snap(flat[:, i])
        return np.ascontiguousarray(out).reshape(np.shape(values))

    def rounded(self, values: Numbers) -> Floats:
        """Values ``(n, *event)`` with as many decimals as the data have; those of whole numbers are left alone.

        Raises:
            InputError: for another number of coordinates.
        """
        flat = _flat(values, len(self.axes))
        out = np.stack([axis.rounded(flat[:, i]) for i, axis in enumerate(self.axes)], 1)
        return out.reshape(np.shape(values))

    def to_json(self) -> list[dict[str, Any]]:
        """As a list of JSON types, one entry a coordinate; what an axis has by default is left out."""
        return [_axis_to_json(axis) for axis in self.axes]

    @staticmethod
    def from_json(entries: Any) -> Grid:
        """Back from :meth:`to_json`.

        Raises:
            InputError: for anything that :meth:`to_json` does not write.
        """
        if not isinstance(entries, list | tuple):
            raise InputError(f"grid: got {short(entries)}, want a list of axes")
        return Grid(tuple(map(_axis_from_json, entries)))


def detect_grid(values: Numbers) -> Grid:
    """Find the grid of each coordinate of finite data ``(N, *event)``; see the module for what counts as one.

    Raises:
        InputError: for data without rows or with NaN or infinity.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim < 2 or values.size == 0 or not np.isfinite(values).all():
        raise InputError(f"grid: got data of shape {values.shape} or not finite, want finite numbers (N, *event)")
    columns = np.ascontiguousarray(values.reshape(len(values), -1).T)
    return Grid(tuple(_detect(column) for column in columns))


def _flat(values: Numbers, width: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim < 2 or math.prod(array.shape[1:]) != width:
        raise InputError(f"grid: got values of shape {array.shape}, want (n, *event) with {width} coordinates")
    return array.reshape(len(array), width)


# -- detection, one coordinate at a time


def _detect(column: Floats) -> Axis:
    low, high = float(column.min()), float(column.max())
    if low == high:
        return Axis(0.0, low, low, high)
    head = column[:512]
    if _scale(head) == 0 and len(np.unique(head)) == len(head) == 512:
        return Axis(0.0, low, low, high)
    points = np.unique(column)
    repeats = 2 * len(points) <= len(column)
    return _decimals(points, repeats) or _lattice(points, repeats) or _continuous(points)


def _continuous(points: Floats) -> Axis:
    """No grid, but decimals where the values have them, and a hundred times fewer than they could have."""
    low, high, scale, single = float(points[0]), float(points[-1]), _scale(points), _single(points)
    if 100 * max(-low, high) * scale > _LIMIT[single] or scale == 1:
        scale = 0
    return Axis(0.0, low, low, high, scale, single and scale > 1)


def _single(values: Floats) -> bool:
    """Whether all values are float32 numbers."""
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float32) == values).all())


def _fraction(numerator: Floats, scale: int, single: bool) -> Floats:
    """n/q, rounded as the data were."""
    out = numerator / scale
    return out.astype(np.float32).astype(np.float64) if single else out


def _scale(values: Floats) -> int:
    """The smallest power of ten q of which all values are fractions n/q bit by bit, or 0."""
    single = _single(values)
    return next((q for q in _SCALES if _are_fractions(values, q, single, _LIMIT[single])), 0)


def _are_fractions(values: Floats, scale: int, single: bool, limit: float) -> bool:
    with np.errstate(over="ignore"):
        numerator = np.rint(values * scale)
    if np.abs(numerator).max() >= limit:
        return False
    return bool((_fraction(numerator, scale, single) == values).all())


def _decimals(points: Floats, repeats: bool) -> Axis | None:
    """A grid of decimals, if the sorted distinct values are on one."""
    scale = _scale(points)
    if scale == 0:
        return None
    gaps = np.diff(np.rint(points * scale).astype(np.int64))
    stride = int(np.gcd.reduce(gaps))
    if not repeats and stride > 1 and (len(points) - 2) * math.log(stride) < math.log(100):
        stride = 1
    if not (repeats or scale <= 100 or int(gaps.sum()) // stride < 100_000):
        return None
    low, high = float(points[0]), float(points[-1])
    return Axis(stride / scale, low, low, high, scale, _single(points) and scale > 1)


def _lattice(points: Floats, repeats: bool) -> Axis | None:
    """A grid of any step, if the values repeat and their gaps have a common divisor."""
    if not repeats or len(points) > MAX_POINTS + 1:
        return None
    single, exponent = _single(points), _exponent(float(points[0]), float(points[-1]))
    scaled = np.ldexp(points, -exponent)
    error = float(np.abs(scaled).max()) * float(np.finfo(np.float32 if single else np.float64).eps)
    gap = _common_divisor(np.diff(scaled), error)
    if gap == 0:
        return None
    k = np.concatenate([[0.0], np.cumsum(np.rint(np.diff(scaled) / gap))])
    step = float((scaled[-1] - scaled[0]) / k[-1])
    off = float(np.abs(scaled - (scaled[0] + k * step)).max())
    if off > max(1e-6 * step, 4 * error) or not _no_accident(len(points), int(k[-1]), 8 * error / step):
        return None
    with np.errstate(over="ignore"):
        unit = float(np.ldexp(step, exponent))
    if not math.isfinite(unit) or abs(math.ldexp(unit, -exponent) - step) * k[-1] > 0.1 * step:
        return None  # no float64 is that step
    every = np.ldexp(scaled[0] + np.arange(k[-1] + 1) * step, exponent)
    every[k.astype(np.intp)] = points
    return _named(points, every, unit, single)


def _exponent(low: float, high: float) -> int:
    """The power of two that scales numbers from low to high into [−1, 1]."""
    return math.frexp(max(-low, high))[1]


def _common_divisor(gaps: Floats, error: float) -> float:
    """Euclid's algorithm for gaps known to about 2·error each; 0 where rounding hides the answer.

    The error of a remainder d − n·g is the gap's and n times the divisor's; a remainder within twice that is none.
    """
    divisor, slack, span = float(gaps.min()), 2 * error, float(gaps.sum())
    while divisor > max(span / (MAX_POINTS + 0.5), 10 * slack):
        count = np.rint(gaps / divisor)
        rest, doubt = np.abs(gaps - count * divisor), 2 * error + count * slack
        left = rest > 2 * doubt
        if not left.any():
            return divisor
        first = int(np.flatnonzero(left)[np.argmin(rest[left])])
        divisor, slack = float(rest[first]), float(doubt[first])
    return 0.0


def _no_accident(m: int, last: int, relative_error: float) -> bool:
    """Whether m values would hardly be on some grid of that many points by chance; two values always are."""
    return m == 2 or last * relative_error ** (m - 2) < 1e-2


def _named(points: Floats, every: Floats, step: float, single: bool) -> Axis:
    """The grid as fractions n/q, if the values are that bit by bit, else as a list of its points."""
    low, high = float(points[0]), float(points[-1])
    for scale in (q for q in _DIVISORS if 0.5 < step * q < 2**24 and abs(step * q - round(step * q)) < 1e-3):
        if _are_fractions(points, scale, single, 2.0**24):
            return Axis(round(step * scale) / scale, low, low, high, scale, single)
    return Axis(step, low, low, high, 0, single, tuple(every.tolist()))


# -- JSON


def _axis_to_json(axis: Axis) -> dict[str, Any]:
    entry = asdict(axis) | {"points": list(axis.points)}
    return {k: v for k, v in entry.items() if k in ("step", "offset", "low", "high") or v}


def _axis_from_json(entry: Any) -> Axis:
    wanted, known = {"step", "offset", "low", "high"}, set(Axis.__dataclass_fields__)
    if not isinstance(entry, Mapping) or not wanted <= set(entry) <= known:
        raise InputError(f"grid: got the axis {short(entry)}, want entries {', '.join(sorted(known))}")
    try:
        step, offset, low, high = (float(entry[key]) for key in ("step", "offset", "low", "high"))
        points = tuple(map(float, entry.get("points", ())))
        axis = Axis(step, offset, low, high, int(entry.get("scale", 0)), bool(entry.get("single", False)), points)
    except (TypeError, ValueError):
        raise InputError(f"grid: got the axis {short(entry)}, want numbers in it") from None
    if not _sound(axis):
        raise InputError(f"grid: got the axis {short(entry)}, want a finite grid from low to high")
    return axis


def _sound(axis: Axis) -> bool:
    numbers = (axis.step, axis.offset, axis.low, axis.high, *axis.points)
    if not all(map(math.isfinite, numbers)) or axis.step < 0 or not axis.offset <= axis.low <= axis.high:
        return False
    if axis.step == 0:
        return not axis.points and axis.scale in (0, *_SCALES[1:])
    return axis.scale > 0 if not axis.points else axis.scale == 0 and len(axis.points) == axis.last + 1
