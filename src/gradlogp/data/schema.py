"""What kind of thing came in: the memory that puts numbers back into it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

import numpy as np

from gradlogp._shapes import InputError, short
from gradlogp.data import dtypes
from gradlogp.data.containers import ARRAYS, FRAMES, Name, Parts, check_numbers, pack, some, unique, unpack
from gradlogp.data.dtypes import Floats, Numbers


@dataclass(frozen=True)
class Dialect:
    """How a csv file is written."""

    separator: str = ","
    header: bool = True
    decimal_comma: bool = False


@dataclass(frozen=True)
class Schema:
    """Kind of container, names and types of columns, shape of a row.

    Args:
        columns: column names, or None for arrays.
        dtypes: one type a column, or a single one for arrays, e.g. ``("int64", "float32")``.
        event_shape: shape of one row; ``(D,)`` for a table.
        kind: ``numpy``, ``torch``, ``records`` (a structured array), ``pandas``, ``polars``, ``pyarrow``, ``modin`` or
            ``cudf``.
        dialect: how the csv file that the table came from is written.
    """

    columns: tuple[Name, ...] | None
    dtypes: tuple[str, ...]
    event_shape: tuple[int, ...]
    kind: str
    dialect: Dialect = field(default_factory=Dialect)

    def to_json(self) -> dict[str, Any]:
        """As a dictionary of JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_json(entry: Any) -> Schema:
        """Back from :meth:`to_json`.

        Raises:
            InputError: for anything that :meth:`to_json` does not write.
        """
        return _from_json(entry)

    def of_columns(self, names: tuple[str, ...]) -> Schema:
        """Other columns of floats, in a container of the same kind and a file of the same dialect."""
        return replace(self, columns=names, dtypes=("float64",) * len(names), event_shape=(len(names),))

    def check(self, x: Any, name: str = "X", *, min_rows: int = 1, allow_missing: bool = False) -> Table:
        """Read data for use with a model fitted on this schema.

        Columns are matched by name and put into the fitted order; an array is taken by position. Types may differ.
        The schema of the table is that of ``x``, in the fitted order.

        Raises:
            InputError: for missing or extra columns or another shape of rows, and as :func:`read` does.
        """
        parts = _parts(x, name)
        if self.columns is not None and parts.columns is not None:
            parts = _reorder(parts, _order(self.columns, parts.columns, name))
        elif parts.values.ndim >= 2 and parts.values.shape[1:] != self.event_shape:
            raise InputError(f"{name}: got {_words(parts.values.shape[1:])}, want {_words(self.event_shape)} as fitted")
        return table_of(parts, name, _dialect(x), min_rows=min_rows, allow_missing=allow_missing)

    def restore(self, values: Numbers, like: Any = None, *, floating: bool = False) -> Any:
        """Numbers ``(n, *event)`` in the fitted order, back into the kind of thing that came in.

        Integer columns are rounded and clipped to the type's range, bool columns go to the nearest of 0 and 1.

        Args:
            values: the numbers.
            like: data that :meth:`check` accepts, whose kind, types, column order and index are taken instead.
            floating: for gradients and the like: names stay, integer and bool columns become float64.

        Raises:
            InputError: for another shape, and for NaN or infinity in an integer or bool column.
        """
        values = _fits(np.asarray(values, dtype=np.float64), self.event_shape)
        target, index = self, None
        if like is not None:
            target, values, index = self._as(like, values)
        types = tuple(map(dtypes.floating_of, target.dtypes)) if floating else target.dtypes
        out = pack(target.kind, target.columns, types, values, index=index)
        return out.to(like.device) if target.kind == "torch" and hasattr(like, "device") else out

    def _as(self, like: Any, values: Floats) -> tuple[Schema, Floats, Any]:
        """The schema of other data, the values in its column order, and its pandas index."""
        parts = _parts(like, "like")
        if self.columns is not None and parts.columns is not None:
            values = values[:, _order(parts.columns, self.columns, "like")]
        schema = Schema(parts.columns, parts.dtypes, self.event_shape, parts.kind)
        return schema, values, like.index if parts.kind == "pandas" and hasattr(like, "index") else None


@dataclass(frozen=True)
class Table:
    """Numbers, float64 ``(N, *event)``, and the kind of thing that they came in.

    Args:
        values: the numbers.
        schema: the kind of thing.
        notes: a line on each part that was left out, as a saved row index is, or read in one way of two.
    """

    values: Floats
    schema: Schema
    notes: tuple[str, ...] = ()


def read(x: Any, name: str = "X", *, min_rows: int = 1, allow_missing: bool = False) -> Table:
    """Read an array, a tensor, a data frame or lists of numbers.

    Of a frame, the row index that pandas saves as ``__index_level_0__`` is left out, as the table's ``notes`` say.

    Args:
        x: an array or tensor ``(N, *event)``, a pandas, polars or pyarrow frame, lists of rows, a list of tensors or
            a ``TensorDataset`` of one.
        name: what a message calls the data.
        min_rows: how many rows are wanted at least; 2 to fit.
        allow_missing: whether missing values are let through, as NaN.

    Raises:
        InputError: for text, dates, categories, objects, complex or sparse data, missing or infinite values, whole
            numbers that float64 does not hold, ragged rows, too few rows, no columns, a column name that comes twice,
            and what holds more than rows, such as a dataset of inputs and labels.
    """
    return table_of(_parts(x, name), name, _dialect(x), min_rows=min_rows, allow_missing=allow_missing)


def _parts(x: Any, name: str) -> Parts:
    if isinstance(x, Table):
        return Parts(x.schema.kind, x.schema.columns, x.schema.dtypes, x.values, x.notes)
    return unpack(x, name)


def _dialect(x: Any) -> Dialect:
    return x.schema.dialect if isinstance(x, Table) else Dialect()


def table_of(parts: Parts, name: str, dialect: Dialect, *, min_rows: int, allow_missing: bool) -> Table:
    """A table of what was taken apart, if it holds enough rows of finite numbers.

    Raises:
        InputError: as :func:`gradlogp.data.containers.check_numbers` does.
    """
    check_numbers(parts, name, min_rows=min_rows, allow_missing=allow_missing)
    schema = Schema(parts.columns, parts.dtypes, parts.values.shape[1:], parts.kind, dialect)
    return Table(parts.values, schema, parts.notes)


def _order(want: tuple[Name, ...], got: tuple[Name, ...], name: str) -> list[int]:
    """Positions in ``got`` of the wanted columns."""
    there, wanted = set(got), set(want)
    missing, extra = [c for c in want if c not in there], [c for c in got if c not in wanted]
    if missing or extra:
        lack = f"got no column {some(missing)}" if missing else ""
        more = f"got an extra column {some(extra)}" if extra else ""
        raise InputError(f"{name}: {' and '.join(filter(None, (lack, more)))}, want the {len(want)} columns as fitted")
    place = {column: i for i, column in enumerate(got)}
    return [place[column] for column in want]


def _reorder(parts: Parts, order: list[int]) -> Parts:
    if order == list(range(len(order))):
        return parts
    columns = tuple(parts.columns[i] for i in order) if parts.columns else None
    values = np.ascontiguousarray(parts.values[:, order])
    return replace(parts, columns=columns, dtypes=tuple(parts.dtypes[i] for i in order), values=values)


def _words(event_shape: tuple[int, ...]) -> str:
    return f"{event_shape[0]} columns" if len(event_shape) == 1 else f"rows of shape {event_shape}"


def _fits(values: Floats, event_shape: tuple[int, ...]) -> Floats:
    if values.shape[1:] != event_shape or values.ndim == 0:
        raise InputError(f"values: got shape {values.shape}, want (n, {', '.join(map(str, event_shape))})")
    return values


# -- validation of what a file says


def _from_json(entry: Any) -> Schema:
    """Build a schema from outside data, each entry checked."""
    names = set(Schema.__dataclass_fields__)
    _want(isinstance(entry, Mapping) and set(entry) == names, "entries", entry, ", ".join(sorted(names)))
    columns, types, shape, kind = (entry[k] for k in ("columns", "dtypes", "event_shape", "kind"))
    _want(_all(shape, int) and shape and min(shape) > 0, "event_shape", shape, "a list of positive integers")
    _want(_all(types, str) and {dtypes.plain(t) for t in types} <= dtypes.KNOWN, "dtypes", types, "known types")
    if columns is None:
        _want(kind in ARRAYS, "kind", kind, f"one of {', '.join(ARRAYS)}")
        _want(len(types) == 1, "dtypes", types, "one type for an array")
    else:
        _want(kind in FRAMES, "kind", kind, f"one of {', '.join(FRAMES)}")
        _want(_all(columns, *get_args(Name)), "columns", columns, "a list of column names")
        unique(tuple(columns), "schema: columns")
        _want([len(columns)] == list(shape) == [len(types)], "columns", columns, "one name, type and cell a column")
    return Schema(tuple(columns) if columns is not None else None, tuple(types), tuple(shape), kind, _dialect_of(entry))


def _dialect_of(entry: Mapping[str, Any]) -> Dialect:
    got = entry["dialect"]
    right = isinstance(got, Mapping) and set(got) == set(Dialect.__dataclass_fields__)
    right = (
        right and got["separator"] in (",", ";", "\t", "|", " ") and _all([got["header"], got["decimal_comma"]], bool)
    )
    _want(right, "dialect", got, "separator, header and decimal_comma")
    return Dialect(got["separator"], got["header"], got["decimal_comma"])


def _all(items: Any, *types: type) -> bool:
    """Whether this is a list of such items; True is no integer."""
    return isinstance(items, list | tuple) and all(type(item) in types for item in items)


def _want(right: Any, key: str, got: Any, want: str) -> None:
    if not right:
        raise InputError(f"schema: {key}: got {short(got)}, want {want}")


def table_columns(schema: Schema, what: str) -> tuple[str, ...]:
    """Column names for a file of columns; an array's are column_0, column_1, …

    Raises:
        InputError: for rows that are no vectors.
    """
    if len(schema.event_shape) != 1:
        raise InputError(f"{what}: got rows of shape {schema.event_shape}, want a table; save such arrays as .npy")
    if schema.columns is not None:
        return unique(tuple(map(str, schema.columns)), what)  # type: ignore[return-value]
    return tuple(f"column_{i}" for i in range(math.prod(schema.event_shape)))
