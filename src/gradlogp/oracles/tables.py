"""Rows of data, in memory or in a file, read a few at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlogp._shapes import InputError, require_batch

_BLOCK = 2**20  # numbers that are looked at together


@dataclass(frozen=True)
class RowsInFile:
    """Where the rows of a read-only memory map lie. Read from the file, they do not stay in the process's memory."""

    path: Path
    offset: int
    dtype: np.dtype
    row_size: int

    @classmethod
    def of(cls, array: np.ndarray) -> RowsInFile | None:
        """The place of a contiguous view of a memory map opened to be read; None for any other array."""
        root: Any = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        mapped = isinstance(root, np.memmap) and root.mode == "r" and root.filename is not None
        if not mapped or not array.flags.c_contiguous:
            return None
        offset = root.offset + array.ctypes.data - root.ctypes.data
        return cls(Path(root.filename), offset, array.dtype, array[0].size)

    def require(self, n_rows: int) -> RowsInFile:
        """Check that the file still holds the rows: to touch a map beyond its end would end the process."""
        want = self.offset + n_rows * self.row_size * self.dtype.itemsize
        got = self.path.stat().st_size if self.path.exists() else 0
        if got < want:
            raise InputError(f"data: {self.path.name} has {got} bytes, want {want}, as when it was given")
        return self

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop, flattened, ``(stop − start, D)``."""
        at = self.offset + start * self.row_size * self.dtype.itemsize
        count = (stop - start) * self.row_size
        return torch.from_numpy(np.fromfile(self.path, self.dtype, count, offset=at)).reshape(-1, self.row_size)


@dataclass(frozen=True)
class Table:
    """The rows of a data set, or some of them.

    Attributes:
        data: ``(N, *event)``.
        file: where the same rows lie in a file, if they do.
        subset: which rows count, all if None.
    """

    data: Tensor
    file: RowsInFile | None = None
    subset: Tensor | None = None

    def __len__(self) -> int:
        return len(self.data if self.subset is None else self.subset)

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop, flattened, ``(n, D)``, in the data's dtype."""
        if self.subset is not None:
            return self.data[self.subset[start:stop]].flatten(1)
        if self.file is not None:
            return self.file.read(start, stop)
        return self.data[start:stop].flatten(1)

    def blocks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """The number of the first row, and the rows, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield start, self.read(start, min(start + size, len(self)))

    def blocks_of_numbers(self) -> Iterator[tuple[int, Tensor]]:
        """Blocks of about a million numbers."""
        return self.blocks(max(1, _BLOCK // max(self.data[0].numel(), 1)))

    def some(self) -> Tensor:
        """32 runs of 8 rows, spread evenly, or all if they are no more, ``(n, D)``."""
        n = len(self)
        runs = [(0, n)] if n <= 256 else [(round(i * (n - 8) / 31), 8) for i in range(32)]
        return torch.cat([self.read(start, start + size) for start, size in runs])


def as_table(data: object) -> Table:
    """Check data, a few rows at a time: a tensor or an array ``(N, *event)`` of floats, finite. Nothing is copied.

    Raises:
        InputError: another type, dtype or shape; no rows; NaN or infinity.
    """
    tensor = _shared(data) if isinstance(data, np.ndarray) else require_batch(data, "data")
    table = Table(tensor, RowsInFile.of(data) if isinstance(data, np.ndarray) else None)
    for start, rows in table.blocks_of_numbers():
        finite = torch.isfinite(rows).all(1)
        if not bool(finite.all()):
            row = start + int((~finite).nonzero()[0, 0])
            raise InputError(f"data: row {row} holds NaN or infinity, want finite numbers")
    return table


def _shared(array: np.ndarray) -> Tensor:
    """The array's own memory as a tensor."""
    if array.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InputError(f"data: got dtype {array.dtype}, want float32 or float64")
    if array.ndim < 2 or array.size == 0:
        raise InputError(f"data: got shape {array.shape}, want (N, *event) with N >= 1, e.g. (100, 2)")
    if min(array.strides) < 0:
        raise InputError(f"data: got strides {array.strides}, want none negative; numpy.ascontiguousarray makes it so")
    with warnings.catch_warnings():  # it is never written to
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
