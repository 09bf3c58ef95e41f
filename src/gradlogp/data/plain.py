"""Columns of numbers with one decimal mark and no thousands marks, from cells that come in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradlogp.data.dtypes import Floats
from gradlogp.data.numerals import MINUS, PATTERNS, check_whole, other_mark, without_missing


class NotPlainError(Exception):
    """Cells that must be seen together to know what they are, or that are no numbers."""


class PlainNumbers:
    """Some columns of a table as numbers, block by block.

    Args:
        width: how many columns the table has.
        kept: which of them are taken.
        blank: which of them hold nothing.
        decimal: the decimal mark.
        where: how a message names the cell of a row in a column.
    """

    def __init__(
        self, width: int, kept: Sequence[int], blank: Sequence[int], decimal: str, where: Callable[[int, int], str]
    ) -> None:
        self._width, self._kept, self._blank = width, list(kept), list(blank)
        self._decimal, self._where = decimal, where
        self._others = sorted(set(range(width)) - set(kept) - set(blank))
        self._values, self._n = np.empty((0, len(self._kept))), 0
        self._marked = False  # whether a decimal mark has been seen
        self._whole, self._truths, self._numbers = (np.full(width, value) for value in (True, False, False))
        self._plain, self._elsewise = np.full(width, True), np.full(width, True)

    def add(self, texts: pl.Series) -> None:
        """Take the cells of whole rows.

        Raises:
            NotPlainError: for other cells than plain numbers, truths or words for missing in the columns kept.
            InputError: for a whole number in them that float64 does not hold.
        """
        text = texts.str.strip_chars()
        if self._blank and (text.str.len_bytes().to_numpy().reshape(-1, self._width)[:, self._blank] > 0).any():
            raise NotPlainError
        text = self._with_points(text)
        values, truths, bad = _numbers(text)
        table = values.reshape(-1, self._width)
        truth, wrong = truths.reshape(table.shape), bad.reshape(table.shape)
        self._plain &= ~wrong.any(0)
        if not self._plain[self._kept].all():
            raise NotPlainError
        missing = np.isnan(table) & ~wrong
        self._truths |= truth.any(0)
        self._numbers |= (~missing & ~truth).any(0)
        if (self._truths & self._numbers)[self._kept].any():
            raise NotPlainError
        whole = text.cast(pl.Int64, strict=False).is_not_null().to_numpy().reshape(table.shape)
        self._whole &= (whole | missing).all(0)
        self._check_whole(text, len(table))
        self._hear_others(texts, table.shape)
        end = self._n + len(table)
        if end > len(self._values):
            self._values.resize((max(end, int(1.25 * self._n)), len(self._kept)), refcheck=False)
        self._values[self._n : end] = table[:, self._kept]
        self._n = end

    def columns(self) -> tuple[Floats, tuple[str, ...]]:
        """The numbers, NaN for missing, and the columns' types.

        Raises:
            NotPlainError: where a column that is not kept says that the other mark is the decimal one.
        """
        if (self._elsewise & ~self._plain)[self._others].any() or (self._decimal == "," and not self._marked):
            raise NotPlainError
        self._values.resize((self._n, len(self._kept)), refcheck=False)
        kinds = np.where(self._whole, "int64", np.where(self._truths, "bool", "float64"))
        return self._values, tuple(kinds[self._kept].tolist())

    def _with_points(self, text: pl.Series) -> pl.Series:
        """Cells with a decimal point; those with one already are no numbers where the mark is a comma."""
        if self._decimal == ".":
            return text
        commas = text.str.contains(",", literal=True)
        kept = np.zeros(self._width, dtype=bool)
        kept[self._kept] = True
        self._marked |= bool((commas.to_numpy().reshape(-1, self._width) & kept).any())
        points = text.str.contains(".", literal=True)
        comma = text.str.replace(",", ".", literal=True)
        return pl.select(pl.when(points).then(pl.lit("a point")).otherwise(comma)).to_series()

    def _check_whole(self, text: pl.Series, rows: int) -> None:
        if self._others:
            kept = np.zeros(self._width, dtype=bool)
            kept[self._kept] = True
            text = pl.select(pl.when(pl.Series(np.tile(kept, rows))).then(text)).to_series()
        check_whole(text, lambda i: self._where(self._n + i // self._width, i % self._width))

    def _hear_others(self, texts: pl.Series, shape: tuple[int, ...]) -> None:
        """Note which of the columns not kept are numbers with the other decimal mark."""
        if self._others and not self._plain[self._others].all():
            fits = without_missing(texts).str.contains(PATTERNS[other_mark(self._decimal)]).fill_null(True)
            self._elsewise &= fits.to_numpy().reshape(shape).all(0)


def _numbers(text: pl.Series) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """Cells as numbers, NaN for missing; which of them are truths, 1 or 0; and which are neither."""
    numbers = text.cast(pl.Float64, strict=False)
    values = np.array(numbers.to_numpy())
    truths, bad = np.zeros(len(values), dtype=bool), np.zeros(len(values), dtype=bool)
    odd = np.flatnonzero(numbers.is_null().to_numpy())
    if len(odd):
        rest = without_missing(text.gather(odd)).str.replace(MINUS, "-", literal=True)
        lower = rest.str.to_lowercase()
        truths[odd] = lower.is_in(["true", "false"]).fill_null(False).to_numpy()
        values[odd] = rest.cast(pl.Float64, strict=False).to_numpy()
        values[truths] = (text.filter(pl.Series(truths)).str.to_lowercase() == "true").to_numpy()
        bad[odd] = rest.is_not_null().to_numpy() & np.isnan(values[odd])
    return values, truths, bad
