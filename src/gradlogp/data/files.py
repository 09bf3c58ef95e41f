"""Files in and out: csv, parquet, npy, npz, chosen by the name's extension."""

from __future__ import annotations

import io
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradlogp._shapes import InputError
from gradlogp.data import dtypes
from gradlogp.data.choice import Choice
from gradlogp.data.containers import short, without_index
from gradlogp.data.dtypes import Numbers
from gradlogp.data.schema import Dialect, Schema, Table, read, table_columns
from gradlogp.data.text import parse_csv, parse_labels


def load_file(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    min_rows: int = 1,
    allow_missing: bool = False,
) -> Table:
    """Load a table of numbers: ``.csv``, ``.parquet``, ``.npy`` or ``.npz``.

    Of an npz file the only array is taken, or the one called ``x``, ``X`` or ``data``. Nothing is unpickled. What was
    left out, such as a saved row index, and what was read in one of two ways is said in the table's ``notes``.

    Args:
        path: the file.
        columns: names of the columns to take, of csv and parquet, in the file's order; None takes all.
        drop: names of columns to leave out.
        min_rows: how many rows are wanted at least.
        allow_missing: whether missing values are let through, as NaN.

    Raises:
        InputError: for a file that is not there, not readable, empty, corrupt or of another format, for columns that
            are not there, and as :func:`gradlogp.data.read` does for what it holds.
    """
    what = _shown(path)
    reader = _by_extension(path, _READERS)
    choice = Choice(None if columns is None else tuple(columns), tuple(drop))
    if choice.made and reader in (_read_npy, _read_npz):
        raise InputError(
            f"{what}: got an array, whose columns have no names, want csv or parquet to choose columns by name"
        )
    held, dialect, notes = reader(_bytes(path, what), what, choice)
    table = read(held, what, min_rows=min_rows, allow_missing=allow_missing)
    return Table(table.values, replace(table.schema, dialect=dialect), (*notes, *table.notes))


def load_labels(path: str | os.PathLike[str], column: str) -> list[Any]:
    """Load one column of a csv or parquet file as labels, text or numbers: the groups that rows belong to.

    Raises:
        InputError: as :func:`load_file` does for the file, and for a column that is not there.
    """
    what = _shown(path)
    reader, raw = _by_extension(path, _READERS), _bytes(path, what)
    if reader in (_read_npy, _read_npz):
        raise InputError(f"{what}: got an array, whose columns have no names, want csv or parquet for groups by name")
    labels = parse_labels(raw, what, column) if reader is parse_csv else reader(raw, what, Choice((column,)))[0][column]
    return list(labels)


def save_file(path: str | os.PathLike[str], values: Numbers, schema: Schema, floating: bool = False) -> None:
    """Save numbers ``(n, *event)`` with the names and types of a schema; the file is replaced whole or not at all.

    Raises:
        InputError: for an unknown extension, a folder that is not there or not writable, rows that are no vectors in a
            csv or parquet file, and as :meth:`gradlogp.data.Schema.restore` does.
    """
    what = _shown(path)
    writer = _by_extension(path, _WRITERS)
    frame = writer in (_write_csv, _write_parquet)
    held = _frame(values, schema, floating, what) if frame else _array(values, schema, floating)
    _replace(Path(os.path.realpath(path)), what, lambda file: writer(held, file, schema.dialect))


def check_output(path: str | os.PathLike[str], schema: Schema) -> None:
    """Refuse a place where :func:`save_file` could not write such data: before long work, not after it.

    Raises:
        InputError: as :func:`save_file` does for the extension, the folder and the shape of rows.
    """
    what = _shown(path)
    if _by_extension(path, _WRITERS) in (_write_csv, _write_parquet):
        table_columns(schema, what)
    _check_place(Path(os.path.realpath(path)), what)


def _shown(path: str | os.PathLike[str]) -> str:
    """A path as a message shows it, on one line."""
    text = os.fspath(path)
    if "\0" in text:
        raise InputError(f"path: got {short(text)}, want one without a null character")
    return text if text.isprintable() else repr(text)


def _by_extension(path: str | os.PathLike[str], table: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    extension = Path(path).suffix.lower()
    if extension not in table:
        got = f"the extension {short(extension)}" if extension else "no extension"
        raise InputError(f"{_shown(path)}: got {got}, want one of {', '.join(table)}")
    return table[extension]


def _bytes(path: str | os.PathLike[str], what: str) -> bytes:
    """The bytes of a file."""
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{what}: got no such file, want a file of {', '.join(EXTENSIONS)}") from None
    except IsADirectoryError:
        raise InputError(f"{what}: got a directory, want a file of {', '.join(EXTENSIONS)}") from None
    except OSError as error:
        raise InputError(f"{what}: got an error reading it ({error.strerror or error}), want a readable file") from None
    if not raw:
        raise InputError(f"{what}: got an empty file of 0 bytes, want rows of numbers")
    return raw


# -- readers: bytes, with a choice of columns -> what read() takes, the dialect, and lines on what was left out


def _read_parquet(raw: bytes, what: str, choice: Choice) -> tuple[pl.DataFrame, Dialect, tuple[str, ...]]:
    try:
        frame = pl.read_parquet(raw)
    except (Exception, pl.exceptions.PanicException):
        raise InputError(f"{what}: got a file that is corrupt or not parquet, want a parquet file") from None
    columns, notes = without_index(tuple(frame.columns), keep=choice.columns or ())
    names = [str(column) for column in columns]
    kept = choice.of(names, what, gone=frame.columns)
    return frame.select(kept), Dialect(), (*notes, *choice.left_out(names))


def _read_npy(raw: bytes, what: str, _: Choice) -> tuple[NDArray[Any], Dialect, tuple[str, ...]]:
    if not raw.startswith(b"\x93NUMPY"):
        raise InputError(f"{what}: got a file that is corrupt or not npy, want an array saved by numpy.save")
    return _numpy_array(lambda: np.load(io.BytesIO(raw), allow_pickle=False), what), Dialect(), ()


def _read_npz(raw: bytes, what: str, _: Choice) -> tuple[NDArray[Any], Dialect, tuple[str, ...]]:
    if not raw.startswith(b"PK"):
        raise InputError(f"{what}: got a file that is corrupt or not npz, want arrays saved by numpy.savez")
    try:
        archive = np.load(io.BytesIO(raw), allow_pickle=False)
    except Exception:
        raise InputError(f"{what}: got a corrupt npz file, want arrays saved by numpy.savez") from None
    with archive:
        name = _choose(archive.files, what)
        return _numpy_array(lambda: archive[name], f"{what}: array {short(name)}"), Dialect(), ()


def _choose(names: list[str], what: str) -> str:
    """The only array, or the one with a name for data."""
    known = names if len(names) == 1 else [name for name in ("x", "X", "data") if name in names]
    if not known:
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        shown = (", ".join(map(short, names[:10])) or "none") + more
        raise InputError(f"{what}: got {len(names)} arrays ({shown}), want one, or one called x, X or data")
    return known[0]


def _numpy_array(load: Callable[[], Any], what: str) -> NDArray[Any]:
    try:
        array = load()
    except Exception as error:  # a corrupt file fails in any way: bad zip, bad header, no memory for its shape
        if "allow_pickle" in str(error):
            raise InputError(f"{what}: got an array of pickled objects, want an array of numbers") from None
        raise InputError(f"{what}: got a corrupt array, want one saved whole by numpy") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{what}: got something that is no array, want an array of numbers")
    return array


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


def _write_csv(frame: pl.DataFrame, file: BinaryIO, dialect: Dialect) -> None:
    alone = frame.width == 1 and (dialect.decimal_comma or any(c in frame.columns[0] for c in ",;\t"))
    frame.write_csv(
        file,
        separator=dialect.separator,
        include_header=dialect.header,
        decimal_comma=dialect.decimal_comma,
        quote_style="always" if alone else "necessary",  # with nothing between cells a comma looks as if it were
    )


def _write_parquet(frame: pl.DataFrame, file: BinaryIO, _: Dialect) -> None:
    frame.write_parquet(file)


def _write_npy(array: NDArray[Any], file: BinaryIO, _: Dialect) -> None:
    np.save(file, array, allow_pickle=False)


def _write_npz(array: NDArray[Any], file: BinaryIO, _: Dialect) -> None:
    np.savez_compressed(file, x=array)


def _replace(path: Path, what: str, write: Callable[[BinaryIO], None]) -> None:
    """Write beside the file, then put it in its place in one step; a failure leaves what was there."""
    _check_place(path, what)
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        with open(beside, "xb") as file:
            write(file)
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{what}: got an error writing it ({error.strerror or error}), want a writable file") from None
    finally:
        beside.unlink(missing_ok=True)


def _check_place(path: Path, what: str) -> None:
    if not path.parent.is_dir():
        raise InputError(f"{what}: got no folder {_shown(path.parent)}, want one that exists: make it first")
    if path.is_dir():
        raise InputError(f"{what}: got a directory, want the name of a file to write")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{what}: got a folder that must not be written in, {_shown(path.parent)}, want another")


_READERS: dict[str, Callable[..., Any]] = {
    ".csv": parse_csv,
    ".parquet": _read_parquet,
    ".npy": _read_npy,
    ".npz": _read_npz,
}
_WRITERS: dict[str, Callable[..., Any]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".npy": _write_npy,
    ".npz": _write_npz,
}
EXTENSIONS = tuple(_READERS)
