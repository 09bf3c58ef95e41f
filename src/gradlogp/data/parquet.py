"""Tables in parquet files, and in folders of them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from gradlogp._shapes import InputError, short
from gradlogp.data.choice import Choice
from gradlogp.data.containers import Parts, places, unpack, without_index
from gradlogp.data.memory import check_room
from gradlogp.data.schema import Dialect
from gradlogp.data.source import Source, parts

AT_A_TIME = 2**21  # numbers


def read_parquet(source: Source, choice: Choice) -> tuple[Parts, Dialect]:
    """Read the columns chosen; a column of lists of one length is so many columns.

    Raises:
        InputError: for a file that is corrupt or too large, and as :func:`gradlogp.data.containers.unpack` does.
    """
    with _corrupt(source):
        rows, index = _open(source)
        schema = rows.collect_schema()
        count = int(rows.select(pl.len()).collect().item())
    spread = {n: places(n, t.size) for n, t in schema.items() if isinstance(t, pl.Array) and len(t.shape) == 1}
    choice = choice.spread(spread)
    there = [name for column in schema for name in spread.get(column, {column: None})]
    columns, notes = without_index(tuple(there), keep=choice.columns or (), saved=index)
    names = [str(column) for column in columns]
    kept = choice.of(names, source.what, gone=there)
    check_room(1.5 * 8 * count * len(kept), source.what, f"{count:,} rows of {len(kept):,} columns")
    taken = {name: pl.col(name) for name in schema if name not in spread}
    taken |= {name: cell for cells in spread.values() for name, cell in cells.items()}
    read = [taken[name].alias(name) for name in kept]
    held = _by_columns(source, rows, read, count)
    said = [
        f"column {short(n)} of lists is columns {short(next(iter(c)))} to {short(list(c)[-1])}"
        for n, c in spread.items()
    ]
    return replace(held, notes=(*notes, *said, *choice.left_out(names))), Dialect()


def _by_columns(source: Source, rows: pl.LazyFrame, read: list[pl.Expr], count: int) -> Parts:
    """Some columns at a time, so that the numbers are hardly held twice."""
    values, types, names = np.empty((count, len(read))), list[str](), list[Any]()
    step = max(1, AT_A_TIME // max(count, 1))
    for i in range(0, len(read), step):
        with _corrupt(source):
            frame = rows.select(read[i : i + step]).collect()
        part = unpack(frame, source.what)
        values[:, i : i + step] = part.values
        types += part.dtypes
        names += part.columns or ()
    return Parts("polars", tuple(names), tuple(types), values)


def parquet_column(source: Source, column: str) -> pl.Series:
    """One column as it is.

    Raises:
        InputError: as :func:`read_parquet`, and for a column that is not there.
    """
    with _corrupt(source):
        rows, _ = _open(source)
        Choice((column,)).of(rows.collect_schema().names(), source.what)
        return rows.select(column).collect()[column]


def _open(source: Source) -> tuple[pl.LazyFrame, list[str]]:
    """The rows of a file, or of all files in a folder, and the names of the row index that pandas has saved."""
    if source.path.is_dir():
        files = parts(source.path)
        return pl.scan_parquet(files, hive_partitioning=True, glob=False), _saved_index(
            pl.read_parquet_metadata(files[0])
        )
    if source.packed or source.held is not None:
        raw = source.whole()
        return pl.scan_parquet(io.BytesIO(raw)), _saved_index(pl.read_parquet_metadata(io.BytesIO(raw)))
    rows = pl.scan_parquet(source.path, hive_partitioning=False, glob=False)
    return rows, _saved_index(pl.read_parquet_metadata(source.path))


def _saved_index(metadata: Mapping[str, str]) -> list[str]:
    """Columns that pandas notes as those of its row index."""
    try:
        return [name for name in json.loads(metadata["pandas"])["index_columns"] if isinstance(name, str)]
    except (KeyError, TypeError, ValueError):
        return []


@contextlib.contextmanager
def _corrupt(source: Source) -> Iterator[None]:
    """Say in one line what the library finds wrong, in whatever way it fails."""
    try:
        yield
    except InputError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        what = "a folder with a file" if source.path.is_dir() else "a file"
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{source.what}: got {what} that is corrupt or not parquet ({reason}), want parquet") from None
