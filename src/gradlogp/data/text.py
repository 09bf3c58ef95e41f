"""Tables in csv text, read in blocks where all cells are plain numbers, and whole where their marks must be told."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradlogp._shapes import InputError, short
from gradlogp.data.blocks import Cells, IrregularQuotesError, blocks, encoding_of, one_space, split
from gradlogp.data.choice import Choice
from gradlogp.data.containers import UNNAMED, Parts, unique, unpack
from gradlogp.data.layout import Layout, layout, row_names, without_blank_end
from gradlogp.data.memory import check_room
from gradlogp.data.numerals import to_numbers
from gradlogp.data.plain import NotPlainError, PlainNumbers
from gradlogp.data.schema import Dialect
from gradlogp.data.source import Source

Read = TypeVar("Read")

_OTHER = "windows-1252"  # what a file is read as that is not UTF-8


def parse_csv(source: Source, choice: Choice) -> tuple[Parts, Dialect]:
    """Read a csv file, each column as narrow a type as its cells allow: bool, int64 or float64.

    The separator is a comma, a semicolon, a tab, a bar or runs of spaces. A first row of numbers only is data, unless
    it counts 0, 1, 2, … Lines before it that begin with ``#`` are read past; the last of them names the columns if none
    does. A first column without a name, or with that which pandas gives it, is a saved row index, and left out; so are
    columns without a name and without values, as separators at the ends of lines make. The marks in numbers are those
    of the file: see :func:`gradlogp.data.numerals.to_numbers`.

    Returns:
        The columns chosen, with lines on what was left out or read in one way of two; how the file is written.

    Raises:
        InputError: for text of an unknown encoding, no rows, ragged rows, names that are blank or come twice, and text.
    """
    return _decoded(source, lambda encoding: _parse(source, encoding, choice))


def parse_labels(source: Source, column: str) -> pl.Series:
    """One column of a csv file as it is written.

    Raises:
        InputError: as :func:`parse_csv`, and for a column that is not there.
    """
    choice = Choice((column,))
    _, _, _, columns, _ = _decoded(source, lambda encoding: _texts(source, encoding, choice))
    return columns[choice.of(columns.columns, source.what)[0]]


def _decoded(source: Source, parse: Callable[[str], Read]) -> Read:
    """What is read from text in the encoding that it is in."""
    encoding, what = encoding_of(source), source.what
    try:
        return parse(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8":
            raise InputError(f"{what}: got text that is not the {encoding} it says, want csv saved as UTF-8") from None
    except csv.Error as error:
        raise _unparsed(what, str(error)) from None
    try:
        return parse(_OTHER)
    except UnicodeDecodeError as error:
        got = f"text that is neither UTF-8 nor {_OTHER} (byte {error.object[error.start]:#x})"
        raise InputError(f"{what}: got {got}, want csv saved as UTF-8") from None
    except InputError as error:
        raise InputError(f"{error} (read as {_OTHER}: it is not UTF-8)") from None
    except csv.Error as error:
        raise _unparsed(what, str(error)) from None


def _unparsed(what: str, reason: str) -> InputError:
    return InputError(f"{what}: got csv that cannot be parsed ({reason}), want a table of numbers")


def _parse(source: Source, encoding: str, choice: Choice) -> tuple[Parts, Dialect]:
    for decimal in ".,":
        try:
            parts, dialect = _by_blocks(source, encoding, choice, decimal)
            break
        except (NotPlainError, IrregularQuotesError):
            continue
    else:
        parts, dialect = _together(source, encoding, choice)
    said = (f"read as {encoding}: it is not UTF-8",) if encoding == _OTHER else ()
    return replace(parts, notes=(*said, *parts.notes)), dialect


# -- in blocks


def _by_blocks(source: Source, encoding: str, choice: Choice, decimal: str) -> tuple[Parts, Dialect]:
    """The numbers of a table whose cells are plain ones, with little more memory than for them."""
    found, rest = _begun(source, encoding)
    if decimal == "," and (found.separator != ";" or len(found.names) < 2):
        raise NotPlainError
    body = found.body.encode() + b"\n" * (not found.body.endswith("\n"))
    start = split(body, found.separator, len(found.names) == 1)
    names = _fit_width(found, start, source.what)
    roles = _roles(names, _blank(start.texts, names), choice, source.what)
    kept = choice.of(list(roles.taken), source.what, gone=tuple(names))
    places = [roles.taken[name] for name in kept]
    _check_fits(source, len(body), len(start.widths) * len(kept))
    numbers = PlainNumbers(
        len(names), places, roles.blank, decimal, lambda i, j: f"{source.what}: column {short(names[j])}, row {i}"
    )
    rows = lines = 0
    for block in _all_cells(start, rest, found, len(names)):
        _check_widths(block, found, len(names), source.what, rows, lines)
        numbers.add(block.texts)
        rows += len(block.widths)
        lines += block.block.count(b"\n")
        if source.packed:
            check_room(rows * len(kept) * 8, source.what, f"more than {rows:,} rows")
    values, types = numbers.columns()
    notes = (*roles.notes, *choice.left_out(list(roles.taken)))
    line = found.lines_above + 1 if lines == rows else None
    return Parts("polars", tuple(kept), types, values, notes, line), Dialect(
        found.separator, found.header, decimal == ","
    )


def _begun(source: Source, encoding: str) -> tuple[Layout, Iterator[bytes]]:
    """The layout of a table, with the first of its rows, and the blocks of the others."""
    rest = blocks(source, encoding)
    start = next(rest, b"")
    if not start.strip():
        raise InputError(f"{source.what}: got an empty file, want rows of numbers")
    found = layout(start.decode())
    while not found.body.strip() or re.fullmatch(rb"(?:#[^\n]*\n|\n)*", start):
        more = next(rest, b"")
        if not more and found.body.strip():
            break
        if not more:
            raise InputError(f"{source.what}: got a header and no rows, want rows of numbers below it")
        start += more
        found = layout(start.decode())
    if (
        found.separator == " "
        and not found.header
        and re.fullmatch(r"(?:[+-]?\d{1,3}(?: \d{3})+\s+)+", found.body + " ")
    ):
        got = f"{short(found.body.partition(chr(10))[0])} in each row, which may be one column of thousands or several"
        raise InputError(f"{source.what}: got {got}, want names of the columns above, or another mark between cells")
    return found, rest


def _all_cells(start: Cells, rest: Iterator[bytes], found: Layout, width: int) -> Iterator[Cells]:
    yield start
    for block in rest:
        yield split(block, found.separator, width == 1)


def _check_fits(source: Source, read: int, cells: int) -> None:
    """Refuse a file whose numbers are more than memory holds, as its first block lets expect."""
    if not source.packed and source.size > read > 0:
        cells = round(cells * source.size / read)
        check_room(cells * 8, source.what, f"a file of about {cells:,} numbers")


def _fit_width(found: Layout, start: Cells, what: str) -> list[str]:
    """As many names as rows have cells, blank ones for row names and for separators at the ends of lines.

    Raises:
        InputError: naming the first row that has another number of cells.
    """
    names, separator = found.names, found.separator
    widths, bare = set(start.widths.tolist()), without_blank_end(names)
    if widths == {len(names) + 1}:
        last = start.texts.gather_every(len(names) + 1, len(names))
        if (last == "").all():
            return [*names, ""]
        if row_names(found.body, separator):
            return ["", *names]
    if widths == {len(bare)}:
        return bare
    _check_widths(start, found, len(names), what, 0, 0)
    return names


def _check_widths(block: Cells, found: Layout, width: int, what: str, rows: int, lines: int) -> None:
    """Refuse a row that has another number of cells than the first line."""
    wrong = block.widths != width
    if not wrong.any():
        return
    row = int(wrong.argmax())
    line, count = block.line(row), int(block.widths[row])
    cells = f"{count} cell{'s' * (count != 1)} in row {rows + row} (line {found.lines_above + lines + line + 1})"
    text = short(block.block[block.starts[row] :].partition(b"\n")[0].decode())
    hint = "; quote a cell that holds a comma" if found.separator == "," and count > width else ""
    raise InputError(f"{what}: got {cells}, {text}, want {width} as in the first line{hint}")


class _Roles(NamedTuple):
    """Names and places of the columns of data, the places of blank columns, and lines on those left out."""

    taken: dict[str, int]
    blank: list[int]
    notes: tuple[str, ...]


def _blank(texts: pl.Series, names: list[str]) -> list[bool]:
    """Which columns have no name, and no values in these rows."""
    return [
        name == "" and bool((texts.gather_every(len(names), i).str.strip_chars() == "").all())
        for i, name in enumerate(names)
    ]


def _roles(names: list[str], blank: Sequence[bool], choice: Choice, what: str) -> _Roles:
    """What each column is: data, blank, or the saved row index that stands before them.

    Raises:
        InputError: for a column of values without a name after the first named one, and a name that comes twice.
    """
    taken: dict[str, int] = {}
    index: list[str] = []
    for i, name in enumerate(names):
        if blank[i]:
            continue
        if not taken and (name == "" or (re.fullmatch(UNNAMED, name) and not choice.names([name]))):
            index.append("the first column, which has no name" if name == "" else f"column {short(name)}")
        elif name == "":
            raise InputError(f"{what}: got no name for column {i} in the header, want one")
        elif name in taken:
            unique(tuple(filter(None, names)), what)
        else:
            taken[name] = i
    if not taken:
        raise InputError(f"{what}: got no column with a name, want one for each column")
    notes = tuple(f"left out {name}: a saved row index" for name in index)
    return _Roles(taken, [i for i, none in enumerate(blank) if none], notes)


# -- together


def _together(source: Source, encoding: str, choice: Choice) -> tuple[Parts, Dialect]:
    """The numbers of a table whose marks, or quotes, must be seen together."""
    found, names, roles, columns, line = _texts(source, encoding, choice)
    kept = choice.of(columns.columns, source.what, gone=tuple(names))
    numbers, comma, thousands = to_numbers(columns, found.separator, kept, source.what)
    parts = unpack(numbers, source.what)
    notes = (*roles.notes, *choice.left_out(columns.columns), *thousands)
    return replace(parts, notes=notes, line=line), Dialect(found.separator, found.header, comma)


_Texts: TypeAlias = tuple[Layout, list[str], _Roles, pl.DataFrame, int | None]


def _texts(source: Source, encoding: str, choice: Choice) -> _Texts:
    """The columns of a table as text, how it is laid out, and the line of the first row if each has its own."""
    if not source.packed:
        check_room(6 * source.size, source.what, f"text of {source.size / 1e9:.3g} GB with marks in its numbers")
    found, rest = _begun(source, encoding)
    body = b"".join([found.body.encode() + b"\n" * (not found.body.endswith("\n")), *rest])
    try:
        cells = split(body, found.separator, len(found.names) == 1)
    except IrregularQuotesError:
        cells = _by_records(body, found, source.what)
    names = _fit_width(found, cells, source.what)
    _check_widths(cells, found, len(names), source.what, 0, 0)
    roles = _roles(names, _blank(cells.texts, names), choice, source.what)
    columns = pl.DataFrame([cells.texts.gather_every(len(names), i).alias(n) for n, i in roles.taken.items()])
    return found, names, roles, columns, found.lines_above + 1 if body.count(b"\n") == columns.height else None


def _by_records(body: bytes, found: Layout, what: str) -> Cells:
    """Cells of a table with quotes within them, as Python reads it."""
    body = one_space(body) if found.separator == " " else body
    reader = csv.reader(io.StringIO(body.decode()), delimiter=found.separator, strict=True)
    records, lines = list[list[str]](), list[int]()
    line = 0
    try:
        for record in reader:
            if record or len(found.names) == 1:
                records.append(record or [""])
                lines.append(line)
            line = reader.line_num
    except csv.Error as error:
        at = f"{error}, in the row that begins on line {found.lines_above + line + 1}"
        raise _unparsed(what, at) from None
    begins = np.concatenate([[0], np.flatnonzero(np.frombuffer(body, np.uint8) == 10) + 1])
    widths: NDArray[np.intp] = np.array(list(map(len, records)), dtype=np.intp)
    return Cells(pl.Series([cell for record in records for cell in record]), widths, begins[lines], body)
