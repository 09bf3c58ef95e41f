"""What holds the numbers: arrays, tensors and data frames, taken apart and put together again."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import narwhals as nw
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from gradlogp._shapes import InputError, short
from gradlogp.data import dtypes
from gradlogp.data.choice import Choice
from gradlogp.data.dtypes import Floats
from gradlogp.data.rows import as_array, rows_of, to_compare
from gradlogp.data.rows import some as some

Name: TypeAlias = str | int
UNNAMED = r"Unnamed: 0(\.\d+|_level_\d+)?"  # what pandas calls a first column without a name
_WHOLE = dtypes.INTEGERS | {"int128", "uint128"}
WIDE = 256  # columns from which a frame is taken at once: quicker, and twice the memory
ARRAYS = ("numpy", "torch")
FRAMES = ("pandas", "polars", "pyarrow", "modin", "cudf", "records")


@dataclass(frozen=True)
class Parts:
    """A container taken apart: kind, names and types of columns, numbers with NaN for missing, notes for the table.

    Of a file of text in which each row is a line, ``line`` is that of the first row.
    """

    kind: str
    columns: tuple[Name, ...] | None
    dtypes: tuple[str, ...]
    values: Floats
    notes: tuple[str, ...] = ()
    line: int | None = None


def unpack(x: Any, name: str) -> Parts:
    """Take apart whatever holds the numbers.

    Raises:
        InputError: for a container or a column that does not hold real numbers, or whole numbers that float64 does not.
    """
    if not isinstance(x, torch.Tensor) and nw.dependencies.is_into_dataframe(x):
        return _unpack_frame(x, name)
    x = x if isinstance(x, torch.Tensor) else rows_of(x, name)
    if isinstance(x, torch.Tensor):
        return _unpack_tensor(x, name)
    array = as_array(x, name)
    return _unpack_records(array, name) if array.dtype.names else _unpack_array(x, array, name)


# -- arrays and tensors


def _unpack_array(x: Any, array: NDArray[Any], name: str) -> Parts:
    kind, dtype = array.dtype.kind, array.dtype.name
    if kind in "US":
        raise InputError(f"{name}: {_first_text(array)}, want numbers only")
    if kind == "c":
        raise InputError(
            f"{name}: got complex numbers ({array.dtype}), want real ones, e.g. x.real and x.imag side by side"
        )
    if kind == "O":
        bad = next((i for i, cell in enumerate(array.flat) if not dtypes.is_number(cell)), None)
        if bad is not None:
            got = f"objects, first {short(array.flat[bad])}"
            raise InputError(f"{name}: {_cell(array.shape, bad)}: got {got}, want numbers")
        dtype = "float64"
    elif kind not in "fiub" or array.dtype.itemsize > 8:
        raise InputError(f"{name}: got dtype {array.dtype}, want real numbers of at most 64 bits, e.g. float64")
    return Parts("numpy", None, (dtype,), _floats(x, array, name))


def _unpack_records(array: NDArray[Any], name: str) -> Parts:
    """A structured array: each field is a column, or several where it holds so many numbers."""
    if array.ndim != 1:
        raise InputError(f"{name}: got a structured array of shape {array.shape}, want one dimension, of rows")
    columns: dict[str, Parts] = {}
    for field in array.dtype.names or ():
        part = unpack(array[field], f"{name}: column {short(field)}")
        if part.kind != "numpy" or part.values.ndim > 2:
            raise InputError(f"{name}: column {short(field)}: got the type {array.dtype[field]}, want numbers")
        cells = part.values.reshape(len(array), -1)
        names = [field] if part.values.ndim == 1 else [f"{field}_{i}" for i in range(cells.shape[1])]
        columns |= {n: replace(part, values=cells[:, i]) for i, n in enumerate(names)}
    values = np.column_stack([part.values for part in columns.values()])
    types = tuple(part.dtypes[0] for part in columns.values())
    return Parts("records", unique(tuple(columns), name), types, np.ascontiguousarray(values))


def choose(parts: Parts, choice: Choice, what: str) -> Parts:
    """The columns chosen."""
    if parts.columns is None or not choice.made:
        return parts
    names = [str(column) for column in parts.columns]
    kept = set(choice.of(names, what))
    places = [i for i, name in enumerate(names) if name in kept]
    return replace(
        parts,
        columns=tuple(names[i] for i in places),
        dtypes=tuple(parts.dtypes[i] for i in places),
        values=np.ascontiguousarray(parts.values[:, places]),
        notes=(*parts.notes, *choice.left_out(names)),
    )


def _floats(x: Any, array: NDArray[Any], name: str) -> Floats:
    """The array that x is, or makes, as float64 in a copy, NaN for masked."""
    cells = to_compare(x, array)
    if cells is not None:
        return dtypes.exactly(cells, lambda i: f"{name}: {_cell(array.shape, i)}").reshape(array.shape)
    values = array.astype(np.float64, order="C")
    return np.ma.filled(values, np.nan) if isinstance(array, np.ma.MaskedArray) else values


def _cell(shape: tuple[int, ...], position: int) -> str:
    """How a message names a cell of an array, by its column and row."""
    row, place = divmod(position, max(math.prod(shape[1:]), 1))
    return f"{cell_name(None, shape[1:], place)}, row {row}" if len(shape) > 1 else f"row {row}"


def _first_text(array: NDArray[Any]) -> str:
    """Where an array of texts first holds a text that is no number."""
    for index, cell in np.ndenumerate(array):
        try:
            float(cell)
        except ValueError:
            where = f"row {index[0]}" + "".join(f", column {i}" for i in index[1:2]) if index else "the only cell"
            return f"got text, first {short(cell.item() if hasattr(cell, 'item') else cell)} at {where}"
    return f"got numbers written as text ({array.dtype})"


def _unpack_tensor(x: torch.Tensor, name: str) -> Parts:
    dtype = str(x.dtype).removeprefix("torch.")
    if x.layout != torch.strided:
        raise InputError(f"{name}: got a sparse tensor ({x.layout}), want a dense one: call .to_dense() first")
    if dtype not in dtypes.KNOWN:
        raise InputError(f"{name}: got dtype {dtype}, want real numbers, e.g. float32")
    x = x.detach().cpu()
    array = x.to(torch.float64).numpy() if x.is_floating_point() else x.numpy()
    return Parts("torch", None, (dtype,), _floats(x, array, name))


# -- data frames


def _unpack_frame(x: Any, name: str) -> Parts:
    x = _spread(x) if nw.dependencies.is_polars_dataframe(x) else x
    columns, notes = without_index(_frame_columns(x, name), saved=_saved_index(x))
    x = _dense(x, columns) if nw.dependencies.is_pandas_dataframe(x) else x
    frame = nw.from_native(x, eager_only=True)
    if not columns:
        raise InputError(f"{name}: got 0 columns, want at least one")
    if len(columns) > WIDE and (parts := _at_once(x, columns, notes)) is not None:
        return parts
    series = {column: _of_numbers(frame.get_column(column), f"{name}: column {short(column)}") for column in columns}
    types = _series_types(series, name)
    kind = frame.implementation.value
    if kind == "pandas":
        own = [str(x[c].dtype) for c in columns]
        types = tuple(o if dtypes.plain(o) in dtypes.KNOWN else t for o, t in zip(own, types, strict=True))
    values = np.empty((len(frame), len(columns)))
    for i, (column, s) in enumerate(series.items()):
        values[:, i] = _series_values(s, f"{name}: column {short(column)}")
    return Parts(kind, columns, types, values, notes)


def _at_once(x: Any, columns: tuple[Name, ...], notes: tuple[str, ...]) -> Parts | None:
    """A wide pandas or polars frame of plain numbers that float64 holds; None for others."""
    pandas = nw.dependencies.is_pandas_dataframe(x)
    if not pandas and not nw.dependencies.is_polars_dataframe(x):
        return None
    x = x[list(columns)]
    types = tuple(str(t) if pandas else str(t).lower() for t in x.dtypes)
    if not set(types) <= dtypes.KNOWN - {"bool"}:
        return None
    values = np.array(x.to_numpy(), dtype=np.float64, order="C")
    large = (np.abs(values) >= dtypes.EXACT).any()
    return None if large else Parts("pandas" if pandas else "polars", columns, types, values, notes)


def _spread(x: Any) -> Any:
    """A polars frame with a column for each place in lists of one length."""
    wide = {n: t for n, t in x.schema.items() if isinstance(t, pl.Array) and len(t.shape) == 1}
    if not wide:
        return x
    return x.select(
        cell for n in x.columns for cell in (places(n, wide[n].size).values() if n in wide else (pl.col(n),))
    )


def places(name: str, count: int) -> dict[str, pl.Expr]:
    """A column for each place in lists of one length."""
    return {f"{name}_{i}": pl.col(name).arr.get(i).alias(f"{name}_{i}") for i in range(count)}


def _saved_index(x: Any) -> list[str]:
    """The columns of an arrow table that were the row index of a pandas frame."""
    noted = getattr(getattr(x, "schema", None), "pandas_metadata", None) or {}
    return [name for name in noted.get("index_columns", ()) if isinstance(name, str)]


def _dense(x: Any, columns: tuple[Name, ...]) -> Any:
    """A pandas frame whose sparse columns are dense, and categories that are numbers are these."""
    types, chosen = {}, set(columns)
    for column, dtype in zip(x.columns, x.dtypes, strict=True):
        if column not in chosen:
            continue
        if hasattr(dtype, "fill_value") and hasattr(dtype, "subtype"):
            types[column] = dtype.subtype
        elif hasattr(dtype, "categories") and getattr(dtype.categories.dtype, "kind", "O") in "iufb":
            types[column] = np.dtype(float) if x[column].hasnans else dtype.categories.dtype
    return x.astype(types) if types else x


def _of_numbers(series: nw.Series[Any], what: str) -> nw.Series[Any]:
    """A column of objects that all are numbers, as numbers."""
    if series.dtype != nw.Object or _all_missing(series):
        return series
    cells = series.to_list()
    if not all(dtypes.is_number(cell) for cell in cells):
        return series
    values = dtypes.exactly([None if dtypes.is_missing(c) else c for c in cells], lambda i: f"{what}, row {i}")
    kinds = {type(cell) for cell in cells}
    whole = all(issubclass(k, int | np.integer) for k in kinds) and bool((np.abs(values) < dtypes.EXACT).all())
    dtype = "bool" if kinds <= {bool, np.bool_} else "int64" if whole else "float64"
    return nw.new_series(series.name, values.astype(dtype), backend=series.implementation)


def _frame_columns(x: Any, name: str) -> tuple[Name, ...]:
    """Column names, of text or integers, each once (``column_names`` is pyarrow's word)."""
    columns = list(x.column_names if hasattr(x, "column_names") else x.columns)
    names = [int(c) if isinstance(c, np.integer) else c for c in columns]
    for column in names:
        if not isinstance(column, str | int) or isinstance(column, bool):
            raise InputError(f"{name}: got the column name {short(column)}, want text (or whole numbers)")
    return unique(tuple(names), name)


def without_index(
    columns: tuple[Name, ...], keep: Sequence[str] | None = None, saved: Sequence[str] = ()
) -> tuple[tuple[Name, ...], tuple[str, ...]]:
    """The columns but for a saved row index, and lines on that: pandas saves one as ``__index_level_0__``.

    One with a name is among those ``saved``, as pandas notes beside the columns; it is kept if it is among those to
    keep. In a file (``keep`` not None) that is also a first column ``Unnamed: 0``, as pandas calls one without a name,
    unless it is among those to keep.
    """
    index = [c for c in columns if isinstance(c, str) and re.fullmatch(r"__index_level_\d+__", c)]
    index += [c for c in saved if c in columns and c not in index and (keep is None or c not in keep)]
    if keep is not None:
        unnamed = itertools.takewhile(lambda c: bool(re.fullmatch(UNNAMED, str(c))), columns)
        index += [str(c) for c in unnamed if c not in keep]
    notes = tuple(f"left out column {short(c)}: a saved row index" for c in index)
    return tuple(c for c in columns if c not in index), notes


def unique(columns: tuple[Name, ...], name: str) -> tuple[Name, ...]:
    """Check that column names differ.

    Raises:
        InputError: naming the first one that comes twice.
    """
    seen: set[Name] = set()
    for column in columns:
        if column in seen:
            raise InputError(f"{name}: got {columns.count(column)} columns named {short(column)}, want each name once")
        seen.add(column)
    return columns


def _all_missing(series: nw.Series[Any]) -> bool:
    return bool(len(series) > 0 and series.null_count() == len(series))


def _series_values(series: nw.Series[Any], what: str) -> Floats:
    """A column as float64, NaN for missing (a column of nulls only may have no type that casts)."""
    if _all_missing(series):
        return np.full(len(series), np.nan)
    base = dtypes.plain(str(series.dtype))
    large = base in _WHOLE and len(series) and max(-int(series.min()), int(series.max())) > dtypes.EXACT
    if base.startswith("decimal"):
        values = np.asarray(series.cast(nw.String).cast(nw.Float64).to_numpy(), dtype=np.float64)
        large = bool((np.abs(values) >= dtypes.EXACT).any())
        if not large:
            return values
    if large:
        missing = series.is_null().to_list()
        cells = [None if none else cell for none, cell in zip(missing, series.to_list(), strict=True)]
        return dtypes.exactly(cells, lambda i: f"{what}, row {i}")
    return np.asarray(series.cast(nw.Float64).to_numpy(), dtype=np.float64)


def _series_types(series: dict[Name, nw.Series[Any]], name: str) -> tuple[str, ...]:
    """The plain types of a frame's columns; anything but numbers and bool is refused.

    Decimals and whole numbers of 128 bits, which no array has, are float64.
    """
    types = {column: _series_type(s) for column, s in series.items()}
    bad = [column for column, dtype in types.items() if dtype is None]
    if bad:
        others = f" (columns {some(bad[1:])} hold no numbers either)" if len(bad) > 1 else ""
        raise InputError(f"{name}: column {short(bad[0])}: {_no_numbers(series[bad[0]])}{others}")
    return tuple(dtype for dtype in types.values() if dtype is not None)


def _series_type(series: nw.Series[Any]) -> str | None:
    base = dtypes.plain(str(series.dtype))
    if base in dtypes.KNOWN:
        return base
    return "float64" if _all_missing(series) or base in _WHOLE or base.startswith("decimal") else None


def _no_numbers(series: nw.Series[Any]) -> str:
    """What a column holds that holds no numbers, and what to do."""
    dtype, base = series.dtype, dtypes.plain(str(series.dtype))
    if dtype in (nw.String, nw.Object, nw.Categorical) or base.startswith("enum"):
        kind = {"string": "text", "object": "objects"}.get(base, "categories")
        return f"got {kind}, {_first_cell(series)}"
    own = str(getattr(series.to_native(), "dtype", dtype))[:60]
    return f"got the type {own}, want numbers or bool; convert or drop the column first"


def _first_cell(series: nw.Series[Any]) -> str:
    """The first cell that is no number, with its row, and what to do."""
    row, cell = next((i, c) for i, c in enumerate(series.to_list()) if not dtypes.is_number(c))
    return f"first {short(cell)} at row {row}, want numbers; encode or drop the column first"


# -- and together again


def pack(
    kind: str, columns: tuple[Name, ...] | None, types: Sequence[str], values: Floats, *, index: Any = None
) -> Any:
    """Put float64 numbers into a container of this kind; a pandas index is put back where one is given.

    Raises:
        InputError: for NaN or infinity in an integer or bool column, or a library that is not installed.
    """
    if columns is None:
        array = dtypes.cast(values, types[0], "values")
        if kind == "numpy":
            return np.ascontiguousarray(array)
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(torch.bfloat16) if types[0] == "bfloat16" else tensor
    if kind == "records":
        return _records(columns, types, values)
    names = columns if kind in ("pandas", "modin") else tuple(map(str, columns))
    cells = {n: _cells(values[:, i], types[i], n) for i, n in enumerate(names)}
    try:
        frame: Any = nw.from_dict(cells, backend=kind).to_native()  # type: ignore[arg-type]
    except ImportError:
        raise InputError(f"data frame: {kind} is not installed, want it, or pass an array instead") from None
    return _finish_pandas(frame, names, types, index) if kind == "pandas" else frame


def _cells(values: Floats, dtype: str, column: Name) -> NDArray[Any]:
    return dtypes.cast(np.ascontiguousarray(values), dtype, f"column {short(column)}")


def _records(columns: tuple[Name, ...], types: Sequence[str], values: Floats) -> NDArray[Any]:
    """A structured array with a field for each column."""
    out = np.empty(
        len(values), dtype=[(str(column), dtypes.plain(t)) for column, t in zip(columns, types, strict=True)]
    )
    for i, column in enumerate(columns):
        out[str(column)] = _cells(values[:, i], types[i], column)
    return out


def _finish_pandas(frame: Any, names: tuple[Name, ...], types: Sequence[str], index: Any) -> Any:
    """Put back pandas' own types (nullable, arrow-backed), the index, and integer names as an integer index."""
    own = {n: t for n, t in zip(names, types, strict=True) if dtypes.plain(t) != t}
    frame = frame.astype(own) if own else frame
    if index is not None and len(index) == len(frame):
        frame.index = index
    return frame


def cell_name(columns: tuple[Name, ...] | None, event_shape: tuple[int, ...], position: int) -> str:
    """How a message names one coordinate: ``column 'age'``, ``column 3`` or ``cell (0, 3, 4)``."""
    if columns is not None:
        return f"column {short(columns[position])}"
    if len(event_shape) == 1:
        return f"column {position}"
    return f"cell {tuple(int(i) for i in np.unravel_index(position, event_shape))}"


def check_numbers(parts: Parts, name: str, *, min_rows: int, allow_missing: bool) -> None:
    """Check that there are rows and columns, and in them finite numbers (NaN for missing where that is allowed).

    Raises:
        InputError: naming the first bad column and row, and how many cells are bad.
    """
    shape = parts.values.shape
    if len(shape) < 2:
        got = "a single number" if not shape else f"a 1-D array of {shape[0]} values"
        raise InputError(f"{name}: got {got}, want rows and columns; for a single column use X.reshape(-1, 1)")
    if math.prod(shape[1:]) == 0:
        raise InputError(f"{name}: got 0 columns, shape {shape}, want at least one")
    if shape[0] < max(min_rows, 1):
        raise InputError(f"{name}: got {shape[0]} row{'s' * (shape[0] != 1)}, want at least {max(min_rows, 1)}")
    bad = np.isinf(parts.values) if allow_missing else ~np.isfinite(parts.values)
    if bad.any():
        raise InputError(f"{name}: {_describe(parts, bad.reshape(shape[0], -1))}")


def _others(parts: Parts, places: list[int]) -> str:
    if parts.columns is not None:
        return some([parts.columns[i] for i in places])
    return f"{len(places)} other {'columns' if parts.values.ndim == 2 else 'cells'}"


def _describe(parts: Parts, bad: NDArray[np.bool_]) -> str:
    """The first bad column: how many cells, and the first of them."""
    position = int(np.flatnonzero(bad.any(0))[0])
    column = bad[:, position]
    row = int(np.flatnonzero(column)[0])
    where = cell_name(parts.columns, parts.values.shape[1:], position)
    infinite = bool(np.isinf(parts.values.reshape(len(bad), -1)[row, position]))
    word = "infinite" if infinite else "missing (NaN or null)"
    others = [i for i in np.flatnonzero(bad.any(0)).tolist() if i != position]
    more = f" and {int(bad[:, others].sum())} more in {_others(parts, others)}" if others else ""
    cells = f"{int(column.sum())} cell{'s' * (int(column.sum()) != 1)}"
    line = "" if parts.line is None else f" (line {row + parts.line})"
    hint = "replace or drop them first" if infinite else "drop or fill them first"
    return f"{where}: got {cells} {word}, first at row {row}{line}{more}, want finite numbers; {hint}"
