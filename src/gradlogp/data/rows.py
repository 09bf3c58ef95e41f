"""What counts as rows of numbers, of all that numpy would make an array of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import narwhals as nw
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, TensorDataset

from gradlogp._shapes import InputError, short
from gradlogp.data.dtypes import EXACT
from gradlogp.data.memory import check_room

_WANT = "want an array, a tensor or a data frame of numbers, (rows, columns)"
_STACK = "want its rows as one tensor, e.g. torch.stack"


def some(names: Sequence[Any]) -> str:
    """Names on one line, at most ten of them."""
    shown = ", ".join(map(short, names[:10]))
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def rows_of(x: Any, name: str) -> Any:
    """The tensor, array or lists that hold the rows; a dataset of one tensor is that tensor, a list of tensors a stack.

    Raises:
        InputError: for anything else, such as a dataset of inputs and labels, a loader or a generator: numpy would make
            an array of some of them, of another shape than their rows.
    """
    if isinstance(x, TensorDataset):
        if len(x.tensors) != 1:
            raise InputError(f"{name}: got a TensorDataset of {len(x.tensors)} tensors, want one: dataset.tensors[0]")
        return x.tensors[0]
    if isinstance(x, Sequence) and not isinstance(x, str | bytes | np.ndarray):
        return _listed(x, name)
    if hasattr(x, "nnz") and hasattr(x, "toarray"):
        check_room(8 * math.prod(x.shape), name, f"a sparse {type(x).__name__} of shape {tuple(x.shape)}")
        return x.toarray()
    _refuse(x, name)
    return x


def _listed(x: Sequence[Any], name: str) -> Any:
    """A list of rows."""
    if isinstance(x, memoryview):
        return x
    if isinstance(x, tuple) and len(x) == 2 and all(len(getattr(part, "shape", ())) in (1, 2) for part in x):
        _refuse_pair(x, name)
    x = x if isinstance(x, list | tuple) else list(x)
    kinds = {type(row) for row in x}
    tensors = [issubclass(kind, torch.Tensor) for kind in kinds]
    if tensors and all(tensors):
        return _stack(x, name)
    if any(issubclass(kind, Mapping) for kind in kinds):
        raise InputError(f"{name}: got a list of dictionaries, want a data frame, e.g. pandas.DataFrame(rows)")
    if any(map(nw.dependencies.is_into_dataframe, x[:1])):
        raise InputError(f"{name}: got a list of {len(x)} data frames, want one, e.g. pandas.concat(frames)")
    if any(isinstance(cell, torch.Tensor) for row in x[:1] if isinstance(row, list | tuple) for cell in row):
        raise InputError(f"{name}: got a list of tuples of tensors, {_STACK}([row[0] for row in rows])")
    return x


def _refuse_pair(x: Sequence[Any], name: str) -> None:
    """Refuse rows and labels in a tuple, as data sets are often loaded."""
    rows, labels = (tuple(part.shape) for part in x)
    if len(rows) == 2 and labels[0] == rows[0] and labels != rows:
        got = f"a tuple of shapes {rows} and {labels}, as rows and labels are loaded"
        raise InputError(f"{name}: got {got}, want the rows alone: X, y = data, then X")


def _stack(x: Sequence[Any], name: str) -> torch.Tensor:
    try:
        return torch.stack(list(x))
    except (RuntimeError, TypeError):
        shapes = sorted({tuple(row.shape) for row in x})
        raise InputError(
            f"{name}: got tensors of shapes {short(shapes)}, want rows of one shape, as dense tensors"
        ) from None


def _refuse(x: Any, name: str) -> None:
    got = type(x).__name__
    if hasattr(x, "collect") and hasattr(x, "lazy"):
        raise InputError(f"{name}: got a lazy frame, want its rows: .collect() it first")
    if nw.dependencies.is_into_series(x) and not isinstance(x, np.ndarray):
        raise InputError(f"{name}: got one column ({got}), want a data frame: call .to_frame() first")
    if isinstance(x, str | bytes) or hasattr(x, "__fspath__"):
        raise InputError(f"{name}: got the text {short(x)}, {_WANT}; a file is read by load_file")
    if isinstance(x, DataLoader):
        raise InputError(
            f"{name}: got a {got}, want its rows as one tensor, e.g. torch.cat([batch for batch in loader])"
        )
    if isinstance(x, Dataset):
        raise InputError(f"{name}: got a {got}, {_STACK}([row[0] for row in dataset]) where a row is a tuple")
    if isinstance(x, Mapping):
        hint = ", or its rows: x.data" if hasattr(x, "data") else ""
        raise InputError(f"{name}: got a {got}, want a data frame, e.g. pandas.DataFrame(x){hint}")
    if not _is_array(x):
        hint = "; make a list of its rows first" if isinstance(x, Iterable) or hasattr(x, "__getitem__") else ""
        raise InputError(f"{name}: got {got}, {_WANT}{hint}")


def _is_array(x: Any) -> bool:
    """Whether this is an array or a number, or says itself how it becomes an array."""
    return np.isscalar(x) or hasattr(x, "__array__") or hasattr(x, "__array_interface__")


def as_array(x: Any, name: str) -> NDArray[Any]:
    """An array of an array or of lists.

    Raises:
        InputError: for rows of different lengths.
    """
    try:
        return x if isinstance(x, np.ma.MaskedArray) else np.asarray(x)
    except (ValueError, TypeError):
        raise InputError(f"{name}: got rows of different lengths or not of numbers, want a full table") from None


def to_compare(x: Any, array: NDArray[Any]) -> list[Any] | None:
    """The cells of x, as an array, where their float64 copies may differ: whole numbers beyond 2^53, objects."""
    kind = array.dtype.kind
    if kind == "O":
        return list(array.ravel().tolist())
    if kind in "iu":
        cells = np.ma.filled(array, 0)
        large = cells.size and max(-int(cells.min()), int(cells.max())) > EXACT
        return list(array.ravel().tolist()) if large else None
    mixed = kind == "f" and isinstance(x, list | tuple) and bool((np.abs(array) >= EXACT).any())
    return list(np.asarray(x, dtype=object).ravel().tolist()) if mixed else None  # numpy made the whole ones float
