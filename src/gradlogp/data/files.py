"""Files in and out: text, parquet, npy, npz, chosen by the name's extension."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradlogp._shapes import InputError
from gradlogp.data import dtypes
from gradlogp.data.arrays import read_npy, read_npz
from gradlogp.data.choice import Choice
from gradlogp.data.containers import Parts
from gradlogp.data.dtypes import Numbers
from gradlogp.data.parquet import parquet_column, read_parquet
from gradlogp.data.schema import Dialect, Schema, Table, table_columns, table_of
from gradlogp.data.source import TEXT, Source, extension_of, shown, source
from gradlogp.data.text import parse_csv, parse_labels


def load_file(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    min_rows: int = 1,
    allow_missing: bool = False,
) -> Table:
    """Load a table of numbers: ``.csv``, ``.tsv``, ``.txt``, ``.parquet``, ``.npy`` or ``.npz``, or such as ``.gz``.

    A folder of parquet files is one table, and a pipe is csv unless it begins as another format does. Of an npz file
    the only array is taken, or the one called ``x``, ``X`` or ``data``; the fields of a structured array are columns.
    Nothing is unpickled. What was left out, such as a saved row index, and what was read in one of two ways is said in
    the table's ``notes``.

    Args:
        path: the file.
        columns: names of the columns to take, in the file's order; None takes all.
        drop: names of columns to leave out.
        min_rows: how many rows are wanted at least.
        allow_missing: whether missing values are let through, as NaN.

    Raises:
        InputError: for a file that is not there, not readable, empty, corrupt or of another format, for columns that
            are not there, for more numbers than memory holds, and as :func:`gradlogp.data.read` does for what it holds.
    """
    found = source(path)
    choice = Choice(None if columns is None else tuple(columns), tuple(drop))
    parts, dialect = _READERS[found.extension](found, choice)
    return table_of(parts, found.what, dialect, min_rows=min_rows, allow_missing=allow_missing)


def load_labels(path: str | os.PathLike[str], column: str) -> list[Any]:
    """Load one column of a csv or parquet file as labels, text or numbers: the groups that rows belong to.

    Raises:
        InputError: as :func:`load_file` does for the file, and for a column that is not there.
    """
    if Path(path).is_fifo():
        raise InputError(f"{shown(path)}: got a pipe, which can be read once, want a file for groups by name")
    found = source(path)
    if found.extension not in _OF_COLUMNS:
        raise InputError(
            f"{found.what}: got an array, whose columns have no names, want csv or parquet for groups by name"
        )
    return list(parse_labels(found, column) if found.extension in TEXT else parquet_column(found, column))


def save_file(path: str | os.PathLike[str], values: Numbers, schema: Schema, floating: bool = False) -> None:
    """Save numbers ``(n, *event)`` with the names and types of a schema; the file is replaced whole or not at all.

    Raises:
        InputError: for an unknown extension, a folder that is not there or not writable, rows that are no vectors in a
            csv or parquet file, and as :meth:`gradlogp.data.Schema.restore` does.
    """
    what, (extension, packed) = shown(path), extension_of(path)
    held = _frame(values, schema, floating, what) if extension in _OF_COLUMNS else _array(values, schema, floating)
    dialect = replace(schema.dialect, separator="\t") if extension == ".tsv" else schema.dialect

    def write(file: Any) -> None:
        if not packed:
            _WRITERS[extension](held, file, dialect)
            return
        whole = io.BytesIO()
        _WRITERS[extension](held, whole, dialect)
        file.write(gzip.compress(whole.getbuffer(), mtime=0))

    _replace(Path(os.path.realpath(path)), what, write)


def check_output(path: str | os.PathLike[str], schema: Schema) -> None:
    """Refuse a place where :func:`save_file` could not write such data: before long work, not after it.

    Raises:
        InputError: as :func:`save_file` does for the extension, the folder and the shape of rows.
    """
    what = shown(path)
    if extension_of(path)[0] in _OF_COLUMNS:
        table_columns(schema, what)
    _check_place(Path(os.path.realpath(path)), what)


# -- writers


def _frame(values: Numbers, schema: Schema, floating: bool, what: str) -> pl.DataFrame:
    """A polars frame with the schema's names and types, whatever kind the schema is."""
    names = table_columns(schema, what)
    types = schema.dtypes if schema.columns is not None else schema.dtypes * len(names)
    plain = tuple("float32" if dtypes.plain(t) in ("float16", "bfloat16") else dtypes.plain(t) for t in types)
    frame: pl.DataFrame = Schema(names, plain, schema.event_shape, "polars").restore(values, floating=floating)
    return frame


def _array(values: Numbers, schema: Schema, floating: bool) -> NDArray[Any]:
    """An array of the type that all columns share."""
    types = [dtypes.plain(dtypes.floating_of(t) if floating else t) for t in schema.dtypes]
    common = str(np.result_type(*("float32" if t == "bfloat16" else t for t in types)))
    array: NDArray[Any] = Schema(None, (common,), schema.event_shape, "numpy").restore(values)
    return array


def _write_csv(frame: pl.DataFrame, file: Any, dialect: Dialect) -> None:
    alone = frame.width == 1 and (dialect.decimal_comma or any(c in frame.columns[0] for c in ",;\t"))
    frame.write_csv(
        file,
        separator=dialect.separator,
        include_header=dialect.header,
        decimal_comma=dialect.decimal_comma,
        quote_style="always" if alone else "necessary",  # with nothing between cells a comma looks as if it were
    )


def _write_parquet(frame: pl.DataFrame, file: Any, _: Dialect) -> None:
    frame.write_parquet(file)


def _write_npy(array: NDArray[Any], file: Any, _: Dialect) -> None:
    np.save(file, array, allow_pickle=False)


def _write_npz(array: NDArray[Any], file: Any, _: Dialect) -> None:
    np.savez_compressed(file, x=array)


def _replace(path: Path, what: str, write: Callable[[Any], None]) -> None:
    """Write beside the file, then put it in its place in one step; a failure leaves what was there."""
    _check_place(path, what)
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        with open(beside, "xb") as file:
            write(file)
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, path)
    except (OSError, pl.exceptions.PolarsError) as error:  # polars has its own word for a full disk
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())[:120]
        raise InputError(f"{what}: got an error writing it ({reason}), want a writable file") from None
    finally:
        with contextlib.suppress(OSError):  # such as a name that is too long
            beside.unlink(missing_ok=True)


def _check_place(path: Path, what: str) -> None:
    if not path.parent.is_dir():
        raise InputError(f"{what}: got no folder {shown(path.parent)}, want one that exists: make it first")
    if path.is_dir():
        raise InputError(f"{what}: got a directory, want the name of a file to write")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{what}: got a folder that must not be written in, {shown(path.parent)}, want another")
    if all((path.parent / name).is_file() for name in _OF_A_MODEL):
        raise InputError(f"{what}: got a place inside the folder of a saved model, want one outside")


_OF_A_MODEL = ("config.json", "model.safetensors")  # a folder with anything else in it is not replaced by a save
_READERS: dict[str, Callable[[Source, Choice], tuple[Parts, Dialect]]] = {
    **dict.fromkeys(TEXT, parse_csv),
    ".parquet": read_parquet,
    ".npy": read_npy,
    ".npz": read_npz,
}
_WRITERS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(TEXT, _write_csv),
    ".parquet": _write_parquet,
    ".npy": _write_npy,
    ".npz": _write_npz,
}
_OF_COLUMNS = (*TEXT, ".parquet")
