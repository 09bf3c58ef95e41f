"""Names of column types, and float64 numbers back into them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradlogp._shapes import InputError

Floats: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[Any]

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
