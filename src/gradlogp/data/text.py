"""Tables in csv text: what separates the cells, which line names the columns, which columns are none of the data."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import NamedTuple

import polars as pl

from gradlogp._shapes import InputError
from gradlogp.data.choice import Choice
from gradlogp.data.containers import UNNAMED, short, unique
from gradlogp.data.numerals import is_missing, is_number, to_numbers
from gradlogp.data.schema import Dialect

_SEPARATORS = "\t;,"


def parse_csv(raw: bytes, what: str, choice: Choice | None = None) -> tuple[pl.DataFrame, Dialect, tuple[str, ...]]:
    """Parse a csv file, each column as narrow a type as its cells allow: bool, int64 or float64.

    The separator is a comma, a semicolon or a tab. A first row of numbers only is data, unless it counts 0, 1, 2, …
    Lines before it that begin with ``#`` are read past; the last of them names the columns if none does. A first column
    without a name, or with that which pandas gives it, is a saved row index, and left out; so are columns without a
    name and without values, as separators at the ends of lines make. The marks in numbers are those of the file: see
    :func:`gradlogp.data.numerals.to_numbers`.

    Returns:
        The columns chosen; how the file is written; lines on what was left out or read in one way of two.

    Raises:
        InputError: for bytes that are not UTF-8, no rows, ragged rows, names that are blank or come twice, and text.
    """
    try:
        return _parse(_decode(raw, what), what, Choice() if choice is None else choice)
    except csv.Error as error:  # such as a quote that is never closed
        raise InputError(f"{what}: got csv that cannot be parsed ({error}), want a table of numbers") from None


def parse_labels(raw: bytes, what: str, column: str) -> pl.Series:
    """One column of a csv file as it is written.

    Raises:
        InputError: as :func:`parse_csv`, and for a column that is not there.
    """
    columns = _texts(_decode(raw, what), what, Choice((column,))).columns
    return columns[Choice((column,)).of(columns.columns, what)[0]]


class _Texts(NamedTuple):
    """The columns of a file as text, and how it is written."""

    columns: pl.DataFrame
    notes: tuple[str, ...]
    names: list[str]
    separator: str
    header: bool


def _parse(whole: str, what: str, choice: Choice) -> tuple[pl.DataFrame, Dialect, tuple[str, ...]]:
    columns, index, names, separator, header = _texts(whole, what, choice)
    kept = choice.of(columns.columns, what, gone=tuple(names))
    numbers, comma, thousands = to_numbers(columns, separator, kept, what)
    return numbers, Dialect(separator, header, comma), (*index, *choice.left_out(columns.columns), *thousands)


def _texts(whole: str, what: str, choice: Choice) -> _Texts:
    comment, text, stated = _preamble(whole)
    separator = stated or _separator(text)
    first, body = _split_first(text, separator)
    names, header = first, not _is_data(first, body, separator)
    if header and not body.strip():
        raise InputError(f"{what}: got a header and no rows, want rows of numbers below it")
    if not header:
        (header, names), body = _names_above(comment, first, separator), text
    names = _fit_width(names, body, separator, what, whole.count("\n") - body.count("\n") + 1)
    columns, index = _named(_read(body, separator, len(names), what), names, choice, what)
    return _Texts(columns, tuple(index), list(names), separator, header)


def _decode(raw: bytes, what: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: got text that is not UTF-8 (byte {error.start}), want csv saved as UTF-8") from None
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise InputError(f"{what}: got an empty file, want rows of numbers")
    return text.rstrip("\n")


def _preamble(text: str) -> tuple[str, str, str | None]:
    """The last line of comment above a table, the table, and what separates its cells if the first line says so."""
    text = text.lstrip("\n")
    stated = re.match(r'"?sep=([,;\t])"?\n+', text, re.IGNORECASE)
    text = text[stated.end() :] if stated else text
    comments = re.match(r"(?:#[^\n]*\n+)*", text)
    table = text[comments.end() :] if comments else text
    if table == text or table.startswith("#"):  # no comments, or nothing but such lines: those are rows
        return "", text, stated[1] if stated else None
    comment = text[: -len(table)].rstrip("\n").rpartition("\n")[2]
    return re.sub(r"^#+\s+", "", comment), table, stated[1] if stated else None


def _separator(text: str) -> str:
    """The first of tab, semicolon and comma that comes equally often in each of the first lines, else the commonest.

    Below a header it may come once more or less, for row names or at the ends of lines.
    """
    lines = [re.sub('"[^"]*"', "", line) for line in text[:65536].split("\n", 10)[:10]]
    lines = lines[:-1] if len(text) > 65536 and len(lines) > 1 else lines
    below = {s: {line.count(s) for line in lines[1:] if line} or {lines[0].count(s)} for s in _SEPARATORS}
    above = {separator: lines[0].count(separator) for separator in _SEPARATORS}
    for most in (0, 1):
        for separator, counts in below.items():
            if len(counts) == 1 and above[separator] * min(counts) > 0 and abs(above[separator] - min(counts)) <= most:
                return separator
    if not any(above.values()):  # one name: that of one column of numbers?
        names = [s for s in _SEPARATORS if below[s] == {1} and (s != "," or _row_names(text.partition("\n")[2], s))]
        return names[0] if names else ";"
    return max(",;\t", key=lines[0].count)


def _row_names(body: str, separator: str) -> bool:
    """Whether the first cells of rows are their names: quoted, text, or counting from 0 or 1."""
    starts = [line.partition(separator)[0].strip() for line in body.split("\n", 50)[:50]]
    counting = any(starts == [str(first + i) for i in range(len(starts))] for first in (0, 1))
    return counting or not is_number(starts[0])


def _split_first(text: str, separator: str) -> tuple[list[str], str]:
    """The first record, and the text below it."""
    lines = io.StringIO(text)
    first = next(csv.reader(lines, delimiter=separator))
    return [cell.strip() for cell in first], text[lines.tell() :]


def _is_data(cells: list[str], body: str, separator: str) -> bool:
    """Whether a first row is data: numbers only, and not the header 0, 1, 2, … of a saved array."""
    cells = _without_blank_end(cells)
    known = all(is_number(cell) or is_missing(cell) for cell in cells)
    if not known or not any(map(is_number, cells)):
        return False
    names = cells[1:] if cells[0] == "" else cells
    counting = names == [str(i) for i in range(len(names))] and (len(names) > 2 or cells[0] == "")
    index = cells[0] == "" and all(map(str.isdigit, names)) and body.startswith(f"0{separator}")
    return not counting and not index


def _without_blank_end(cells: list[str]) -> list[str]:
    last = max((i for i, cell in enumerate(cells) if cell), default=-1)
    return cells[: last + 1]


def _names_above(comment: str, first: list[str], separator: str) -> tuple[bool, list[str]]:
    """Names of columns from a comment above rows without a header, and whether it holds such; else column_0, …"""
    width = len(_without_blank_end(first))
    cells = [cell.strip() for cell in next(csv.reader([comment], delimiter=separator), [])]
    if len(cells) == width and all(cell and " " not in cell and not is_number(cell) for cell in cells):
        return True, [*cells, *first[width:]]
    return False, [*(f"column_{i}" for i in range(width)), *first[width:]]


def _fit_width(names: list[str], body: str, separator: str, what: str, line: int) -> list[str]:
    """As many names as rows have cells, blank ones for row names and for separators at the ends of lines.

    Raises:
        InputError: naming the first row that has another number of cells.
    """
    rows = list(_rows(body, separator))
    widths, bare = {width for width, _ in rows if width > 0}, _without_blank_end(names)
    if widths == {len(names)}:
        return names
    if widths == {len(names) + 1}:
        if all(row.endswith(separator) for row in body.split("\n") if row):
            return [*names, ""]
        if _row_names(body, separator):
            return ["", *names]
    if widths == {len(bare)}:
        return bare
    row, (width, end) = next((i, r) for i, r in enumerate(rows) if r[0] not in (0, len(names)))
    cells = f"{width} cell{'s' * (width != 1)} in row {row} (line {end + line})"
    shown = short(body.split("\n")[end])
    hint = "; quote a cell that holds a comma" if separator == "," and width > len(names) else ""
    raise InputError(f"{what}: got {cells}, {shown}, want {len(names)} as in the first line{hint}")


def _rows(body: str, separator: str) -> Iterator[tuple[int, int]]:
    """How many cells each row has, 0 for a blank line, and its last line (quoted cells need the slow way)."""
    if '"' not in body:
        yield from ((row.count(separator) + 1 if row else 0, i) for i, row in enumerate(body.split("\n")))
        return
    reader = csv.reader(io.StringIO(body), delimiter=separator)
    for row in reader:
        yield len(row), reader.line_num - 1


def _read(body: str, separator: str, width: int, what: str) -> pl.DataFrame:
    """Cells as text, null for empty ones; blank lines count as rows only if there is one column."""
    if width > 1 and '"' not in body:
        body = re.sub("\n\n+", "\n", body.lstrip("\n"))
    names = [str(i) for i in range(width)]
    try:
        return pl.read_csv(
            body.encode(), separator=separator, has_header=False, new_columns=names, infer_schema_length=0
        )
    except pl.exceptions.PolarsError as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{what}: got csv that cannot be parsed ({reason}), want a table of numbers") from None


def _named(frame: pl.DataFrame, names: list[str], choice: Choice, what: str) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """The columns of the data, and a line on the saved row index that stood before them.

    Raises:
        InputError: for a column of values without a name after the first named one, and a name that comes twice.
    """
    taken: dict[str, pl.Series] = {}
    index: list[str] = []
    for i, (name, column) in enumerate(zip(names, frame.iter_columns(), strict=True)):
        if name == "" and (column.fill_null("").str.strip_chars() == "").all():
            continue
        if not taken and (name == "" or (re.fullmatch(UNNAMED, name) and not choice.names([name]))):
            index.append("the first column, which has no name" if name == "" else f"column {short(name)}")
        elif name == "":
            raise InputError(f"{what}: got no name for column {i} in the header, want one")
        elif name in taken:
            unique(tuple(filter(None, names)), what)
        else:
            taken[name] = column.alias(name)
    if not taken:
        raise InputError(f"{what}: got no column with a name, want one for each column")
    return pl.DataFrame(list(taken.values())), tuple(f"left out {name}: a saved row index" for name in index)
