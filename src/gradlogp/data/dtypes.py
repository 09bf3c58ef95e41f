"""Names of column types, and float64 numbers back into them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradlogp._shapes import InputError

Floats: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[Any]

EXACT = 2**53  # float64 holds every whole number up to here
INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
KNOWN = INTEGERS | FLOATS | {"bool"}

_ARROW = {"double": "float64", "float": "float32", "halffloat": "float16"}


def plain(name: str) -> str:
    """The plain name of a type: pandas' ``Int64`` and ``double[pyarrow]`` are int64 and float64; else unchanged."""
    base = name.removesuffix("[pyarrow]")
    base = _ARROW.get(base, base.lower()) if base != name else base.lower()
    return {"boolean": "bool"}.get(base, base)


def floating_of(name: str) -> str:
    """The type for real numbers about such a column: a floating type stays, integers and bool become float64."""
    return name if plain(name) in FLOATS else "float64"


def exactly(cells: Sequence[Any], where: Callable[[int], str]) -> Floats:
    """Numbers as float64: NaN for None, and a whole number only if float64 holds it.

    Args:
        cells: Python numbers, decimals or None.
        where: how a message names the cell at a position.

    Raises:
        InputError: naming the first cell that float64 does not hold.
    """
    values = np.array([math.nan if is_missing(cell) else _float(cell) for cell in cells], dtype=np.float64)
    for i, (cell, value) in enumerate(zip(cells, values.tolist(), strict=True)):
        if not _same(cell, value):
            became = f"{value:.0f}" if math.isfinite(value) else value
            raise InputError(
                f"{where(i)}: got {cell}, which would change to {became} as float64, want numbers of at most "
                "15 digits; an identifier is no number to learn from: drop the column"
            )
    return values


def _float(cell: Any) -> float:
    try:
        return float(cell)
    except OverflowError:
        return math.inf


def _same(cell: Any, value: float) -> bool:
    """Whether a whole or large number comes back from float64 as itself; a fraction is rounded, as in any decimals."""
    whole = isinstance(cell, Integral) or (isinstance(cell, Decimal | Fraction) and _large_or_whole(cell))
    return not whole or (math.isfinite(value) and Fraction(value) == cell)


def _large_or_whole(cell: Decimal | Fraction) -> bool:
    """Whether a decimal or a fraction is a whole number, or one that is rounded to such."""
    return math.isfinite(cell) and (cell == int(cell) or abs(float(cell)) >= EXACT)


def is_missing(cell: Any) -> bool:
    """Whether a cell of objects is missing: None, NaN or what pandas has for such."""
    return cell is None or type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, float) and cell != cell)


def is_number(cell: Any) -> bool:
    """Whether a cell of objects is a real number, or missing."""
    return is_missing(cell) or isinstance(cell, Real | Decimal | np.bool_)


def cast(values: Floats, name: str, what: str) -> NDArray[Any]:
    """Numbers as a numpy type: integers rounded and clipped to the type's range, bool by nearest of 0 and 1.

    ``bfloat16``, which numpy lacks, comes as float32.

    Raises:
        InputError: for NaN or infinity in an integer or bool column.
    """
    base = plain(name)
    if base in FLOATS:
        with np.errstate(over="ignore"):
            return values.astype("float32" if base == "bfloat16" else base)
    _finite(values, base, what)
    return values >= 0.5 if base == "bool" else _integers(values, np.dtype(base))


def _finite(values: Floats, base: str, what: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        raise InputError(f"{what}: got NaN or infinity at row {row}, want finite numbers to store as {base}")


def _integers(values: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round and clip; the largest 64-bit integers are not float64 numbers, so the cast is kept below them."""
    info = np.iinfo(dtype)
    rounded = np.rint(values)
    inside = np.clip(rounded, float(info.min), np.nextafter(float(info.max), 0) if info.bits == 64 else float(info.max))
    out = inside.astype(dtype)
    return np.where(rounded >= float(info.max), np.array(info.max, dtype), out)
