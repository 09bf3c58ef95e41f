"""Tables in csv text: what separates the cells, whether there is a header, and numbers as people write them."""

from __future__ import annotations

import csv
import io
import re

import polars as pl

from gradlogp._shapes import InputError
from gradlogp.data.containers import short, unique
from gradlogp.data.schema import Dialect

_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_MISSING = ("", "na", "n/a", "nan", "null", "none", "-nan", "#n/a")


def parse_csv(raw: bytes, what: str) -> tuple[pl.DataFrame, Dialect]:
    """Parse a csv file, each column as narrow a type as its cells allow: bool, int64, float64, or text where all fail.

    The separator is a comma, a semicolon or a tab. A first row of numbers only is data, unless it counts 0, 1, 2, …
    Beside ``;`` a comma inside a number is a decimal comma.

    Raises:
        InputError: for bytes that are not UTF-8, no rows, ragged rows, and names that are blank or come twice.
    """
    text = _decode(raw, what)
    separator = _separator(text)
    first, body = _split_first(text, separator)
    header = not _is_data(first)
    names = _header_names(first, what) if header else tuple(f"column_{i}" for i in range(len(first)))
    body = body if header else text
    if not body:
        raise InputError(f"{what}: got a header and no rows, want rows of numbers below it")
    _refuse_ragged(body, separator, len(names), what, 2 if header else 1)
    frame = _read(body, separator, names, what)
    return _numbers(frame, separator, header)


def _decode(raw: bytes, what: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: got text that is not UTF-8 (byte {error.start}), want csv saved as UTF-8") from None
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise InputError(f"{what}: got an empty file, want rows of numbers")
    return text.strip("\n")


def _separator(text: str) -> str:
    """The first of tab, semicolon and comma that comes equally often in each of the first lines, else the commonest."""
    lines = [re.sub('"[^"]*"', "", line) for line in text[:65536].split("\n", 10)[:10]]
    lines = lines[:-1] if len(text) > 65536 and len(lines) > 1 else lines
    for separator in "\t;,":
        counts = {line.count(separator) for line in lines}
        if len(counts) == 1 and counts != {0}:
            return separator
    return max(",;\t", key=lines[0].count)


def _split_first(text: str, separator: str) -> tuple[list[str], str]:
    """The first record, and the text below it."""
    lines = io.StringIO(text)
    first = next(csv.reader(lines, delimiter=separator))
    return [cell.strip() for cell in first], text[lines.tell() :]


def _is_data(cells: list[str]) -> bool:
    """Whether a first row is data: numbers only, and not the header 0, 1, 2, … of a saved array."""
    numbers = [bool(_NUMBER.fullmatch(cell)) for cell in cells]
    known = all(number or cell.lower() in _MISSING[1:] for number, cell in zip(numbers, cells, strict=True))
    counting = len(cells) > 2 and cells == [str(i) for i in range(len(cells))]
    return known and any(numbers) and not counting


def _header_names(names: list[str], what: str) -> tuple[str, ...]:
    if "" in names:
        place = names.index("")
        raise InputError(f"{what}: got no name for column {place} in the header, want one; is it a saved row index?")
    return unique(tuple(names), what)  # type: ignore[return-value]


def _refuse_ragged(body: str, separator: str, width: int, what: str, line: int) -> None:
    """Check that every row has as many cells as the first (quoted cells need the slow way)."""
    if '"' in body:
        counts = [len(row) for row in csv.reader(io.StringIO(body), delimiter=separator)]
    else:
        counts = [row.count(separator) + 1 for row in body.split("\n")]
    for row, count in enumerate(counts):
        if count != width and not (width == 1 and count == 0):
            cells = f"{count} cell{'s' * (count != 1)}"
            raise InputError(f"{what}: got {cells} in row {row} (line {row + line}), want {width} as in the first line")


def _read(body: str, separator: str, names: tuple[str, ...], what: str) -> pl.DataFrame:
    """Parse cells; no column is guessed from its first rows alone."""
    try:
        return pl.read_csv(
            body.encode(), separator=separator, has_header=False, new_columns=list(names), infer_schema_length=None
        )
    except pl.exceptions.PolarsError as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{what}: got csv that cannot be parsed ({reason}), want a table of numbers") from None


def _numbers(frame: pl.DataFrame, separator: str, header: bool) -> tuple[pl.DataFrame, Dialect]:
    """Columns of text that are numbers after all."""
    columns, comma = [], False
    for column in frame.iter_columns():
        plain = _as_numbers(column)
        if plain is None and separator == ";":
            plain = _as_numbers(column.str.replace(",", ".", literal=True))
            comma = comma or plain is not None
        columns.append(column if plain is None else plain)
    return pl.DataFrame(columns), Dialect(separator, header, comma)


def _as_numbers(column: pl.Series) -> pl.Series | None:
    """The numbers of a column of text, or None where a cell is none: spaces, signs and words for missing are taken."""
    if column.dtype != pl.String:
        return column.cast(pl.Float64) if column.dtype in (pl.Int128, pl.UInt128) else column
    text = column.str.strip_chars().str.strip_prefix("+")
    missing = text.str.to_lowercase().is_in(_MISSING)
    text = pl.select(pl.when(~missing).then(text)).to_series().alias(column.name)
    for dtype in (pl.Int64, pl.Float64):
        numbers = text.cast(dtype, strict=False)
        if numbers.null_count() == text.null_count():
            return numbers
    words = text.str.to_lowercase()
    return words == "true" if words.drop_nulls().is_in(["true", "false"]).all() else None


def first_text(column: pl.Series) -> str:
    """Where a column of text first holds a cell that is no number."""
    for row, cell in enumerate(column):
        word = (cell or "").strip().lower()
        if word not in _MISSING and ("," in word or not _NUMBER.fullmatch(word)):
            return f"first {short(cell)} at row {row}"
    return "numbers among words"
