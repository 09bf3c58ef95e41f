"""How a table is laid out in text: what separates the cells, and which line names the columns."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

from gradlogp.data.numerals import is_missing, is_number

SEPARATORS = "\t;|,"


class Layout(NamedTuple):
    """Names of columns, what separates cells, whether a line names the columns, the lines above the rows, and rows."""

    names: list[str]
    separator: str
    header: bool
    lines_above: int
    body: str


def layout(whole: str) -> Layout:
    """Tell the layout from the first lines of a table."""
    comment, text, stated = _preamble(whole)
    separator = stated or _separator(text)
    first, body = _split_first(text, separator)
    names, header = first, not _is_data(first, body, separator)
    if not header:
        (header, names), body = _names_above(comment, first, separator), text
    above = whole.count("\n") - body.count("\n")
    return Layout(names, separator, header, above, body)


def _preamble(text: str) -> tuple[str, str, str | None]:
    """The last line of comment above a table, the table, and what separates its cells if the first line says so."""
    text = text.lstrip("\n")
    stated = re.match(r'"?sep=([,;|\t])"?\n+', text, re.IGNORECASE)
    text = text[stated.end() :] if stated else text
    comments = re.match(r"(?:#[^\n]*\n+)*", text)
    table = text[comments.end() :] if comments else text
    if table == text or not table or table.startswith("#"):  # no comments, or nothing but such lines: those are rows
        return "", text, stated[1] if stated else None
    comment = text[: -len(table)].rstrip("\n").rpartition("\n")[2]
    return re.sub(r"^#+\s*", "", comment), table, stated[1] if stated else None


def _separator(text: str) -> str:
    """Spaces, or the first of tab, ;, | and comma that comes as often in each of the first lines, or the commonest.

    Below a header it may come once more or less, for row names or at the ends of lines.
    """
    lines = [re.sub('"[^"]*"', "", line) for line in text[:65536].split("\n", 10)[:10]]
    lines = lines[:-1] if len(text) > 65536 and len(lines) > 1 else lines
    below = {s: {line.count(s) for line in lines[1:] if line} or {lines[0].count(s)} for s in SEPARATORS}
    above = {separator: lines[0].count(separator) for separator in SEPARATORS}
    if _by_spaces(text):
        return " "
    for most in (0, 1):
        for separator, counts in below.items():
            if len(counts) == 1 and above[separator] * min(counts) > 0 and abs(above[separator] - min(counts)) <= most:
                return separator
    if not any(above.values()):  # one name: that of one column of numbers?
        names = [s for s in SEPARATORS if below[s] == {1} and (s != "," or row_names(text.partition("\n")[2], s))]
        return names[0] if names else ";"
    return max(",;\t|", key=lines[0].count)


def _by_spaces(text: str) -> bool:
    """Whether runs of spaces separate the cells: as many cells in each of the first lines, numbers among them.

    Where there are other marks too, all cells are numbers, and are not with commas between them.
    """
    lines = [line for line in text[:65536].split("\n", 10)[:10] if line.strip()]
    lines = lines[:-1] if len(text) > 65536 and len(lines) > 1 else lines
    cells = [_words(line) for line in lines]
    lines = [re.sub('"[^"]*"', '""', line) for line in lines]
    rows = cells[1:] or cells
    width = len(rows[0])
    if width < 2 or any(len(row) != width for row in rows) or not any(is_number(cell) for row in rows for cell in row):
        return False
    named = len(cells[0]) == width - 1 and (not is_number(rows[0][0]) or row_names("\n".join(lines[1:]), " "))
    if len(cells[0]) != width and not named:
        return False
    marks = [mark for mark in SEPARATORS if any(mark in line for line in lines)]
    if marks == ["\t"]:
        return len({line.count("\t") for line in lines}) > 1
    return not marks or (marks == [","] and _numbers_by_spaces(rows, lines[1:] or lines))


def _numbers_by_spaces(rows: list[list[str]], lines: Sequence[str]) -> bool:
    by_comma = all(is_number(cell.strip()) for line in lines for cell in line.split(","))
    return not by_comma and all(
        (is_number(cell) or is_missing(cell)) and cell[0] != "," != cell[-1] for row in rows for cell in row
    )


def _words(line: str) -> list[str]:
    """Cells that spaces separate; what is in quotes is one."""
    return [cell.strip('"') for cell in re.findall(r'"[^"]*"|[^\s"]+', line)]


def row_names(body: str, separator: str) -> bool:
    """Whether the first cells of rows are their names: quoted, text, or counting from 0 or 1."""
    starts = [line.strip().partition(separator)[0].strip() for line in body.split("\n", 50)[:50] if line.strip()]
    counting = any(starts == [str(first + i) for i in range(len(starts))] for first in (0, 1))
    return counting or not (starts and is_number(starts[0]))


def _split_first(text: str, separator: str) -> tuple[list[str], str]:
    """The first record, and the text below it."""
    lines = io.StringIO(text)
    first = next(csv.reader(_trimmed(lines, separator), delimiter=separator, skipinitialspace=separator == " "), [])
    return [cell.strip() for cell in first], text[lines.tell() :]


def _trimmed(lines: io.StringIO, separator: str) -> Sequence[str] | io.StringIO:
    line = lines.readline().strip() if separator == " " else ""
    return [re.sub(r'("[^"]*")|[ \t]+', lambda found: found[1] or " ", line)] if separator == " " else lines


def _is_data(cells: list[str], body: str, separator: str) -> bool:
    """Whether a first row is data: numbers only, and not the header 0, 1, 2, … of a saved array."""
    cells = without_blank_end(cells)
    known = all(is_number(cell) or is_missing(cell) for cell in cells)
    if not known or not any(map(is_number, cells)):
        return False
    names = cells[1:] if cells[0] == "" else cells
    counting = names == [str(i) for i in range(len(names))] and (len(names) > 2 or cells[0] == "")
    index = cells[0] == "" and all(map(str.isdigit, names)) and body.startswith(f"0{separator}")
    return not counting and not index


def without_blank_end(cells: list[str]) -> list[str]:
    """Names up to the last one that is not blank."""
    last = max((i for i, cell in enumerate(cells) if cell), default=-1)
    return cells[: last + 1]


def _names_above(comment: str, first: list[str], separator: str) -> tuple[bool, list[str]]:
    """Names of columns from a comment above rows without a header, and whether it holds such; else column_0, …"""
    width = len(without_blank_end(first))
    for mark in dict.fromkeys((separator, ",")):  # numpy.savetxt separates cells by spaces, and names as it is told
        text = " ".join(comment.split()) if mark == " " else comment
        cells = [cell.strip() for cell in next(csv.reader([text], delimiter=mark), [])]
        if len(cells) == width and all(cell and " " not in cell and not is_number(cell) for cell in cells):
            return True, [*cells, *first[width:]]
    return False, [*(f"column_{i}" for i in range(width)), *first[width:]]
