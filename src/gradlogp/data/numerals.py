"""Numbers as people write them: decimal and thousands marks, which a file has one of each, and words for missing."""

from __future__ import annotations

import re
from collections.abc import Callable

import polars as pl

from gradlogp._shapes import InputError, short
from gradlogp.data import dtypes
from gradlogp.data.containers import some

MISSING = (
    *("", "na", "n/a", "n.a.", "nan", "-nan", "<na>", "#na", "#n/a", "#n/a n/a", "nil", "null", "none", "missing"),
    *("?", "-", "--", "—", "–", ".", "..", "...", "…", "*", "\\n", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
    *("#div/0!", "#value!", "#num!", "#ref!", "#name?", "#null!"),
)
MINUS = "−"  # as a typesetter has it
_SPACES = "'’\u00a0\u202f "  # between groups of three digits these are thousands marks whatever the decimal mark


def _pattern(decimal: str) -> str:
    """A number with this decimal mark, the other one of point and comma between groups of three digits."""
    d, t = re.escape(decimal), re.escape(other_mark(decimal))
    plain = rf"(\d+({d}\d*)?|{d}\d+)([eE][+-]?\d+)?"
    return rf"^[+-]?({plain}|{_grouped(t)}({d}\d*)?|(?i:inf|infinity))$".replace(r"\d", "[0-9]")


def _grouped(mark: str) -> str:
    return rf"[1-9][0-9]{{0,2}}({mark}[0-9]{{3}})+"


def other_mark(decimal: str) -> str:
    """The mark of point and comma that is not the decimal one."""
    return "." if decimal == "," else ","


PATTERNS = {decimal: _pattern(decimal) for decimal in ".,"}
_SPACED, _TIGHT = (
    rf"^[+-]?({'|'.join(_grouped(mark) for mark in marks)})([.,][0-9]*)?$" for marks in (_SPACES, _SPACES[:-1])
)
_ANY = "|".join(pattern[1:-1] for pattern in PATTERNS.values())
_KINDS = {  # what text is, if all cells of a column are so, and what to do
    "percentages": (rf"^({_ANY})\s*%$", "remove the % signs first"),
    "amounts of money": (rf"^([+-]?[$€£¥₹]\s*({_ANY})|({_ANY})\s*[$€£¥₹])$", "remove the currency signs first"),
    "dates or times": (
        r"^(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d\d))([ T].*)?$|^\d{1,2}:\d\d(:\d\d.*)?$",
        "convert them first, e.g. to days since the first, or drop the column",
    ),
    "decimal points and decimal commas": (rf"^({_ANY})$", "write all with one decimal mark first"),
    "numbers with a unit": (rf"^({_ANY})\s*[^\W\d_]+\d?$", "remove the unit first"),
}


def is_number(cell: str) -> bool:
    """Whether a cell is a number in either notation."""
    return any(re.match(pattern, cell) for pattern in (*PATTERNS.values(), _SPACED))


def is_missing(cell: str) -> bool:
    """Whether a cell is a word or sign for a missing number."""
    return cell.lower() in MISSING


def to_numbers(texts: pl.DataFrame, separator: str, kept: list[str], what: str) -> tuple[pl.DataFrame, bool, list[str]]:
    """The kept columns of text, each as narrow a type as its cells allow: bool, int64 or float64.

    All columns have a say in what the file's marks are: the decimal mark is the one with which all of them are numbers,
    the other one marks thousands. Where both are possible a comma is a decimal mark beside ``;`` and marks thousands in
    cells that a comma separates.

    Returns:
        The columns; whether the decimal mark is a comma; a line on marks that could be read otherwise.

    Raises:
        InputError: for text, columns with different decimal marks, and whole numbers that float64 does not hold.
    """
    cells = {column.name: _cells(column, _SPACED if texts.width > 1 else _TIGHT) for column in texts.iter_columns()}
    plain = {name: _plain(column) for name, column in cells.items()}
    decimal, bare = ".", dict[str, pl.Series | None](cells)
    if any(column is None for column in plain.values()):
        decimal = _decimal_mark(cells, plain, separator, kept, what)
        bare = {name: _unmarked(cells[name], decimal) for name in kept}
        plain = {name: None if column is None else _plain(column) for name, column in bare.items()}
    text = [name for name in kept if plain[name] is None]
    if text:
        raise InputError(f"{what}: {_describe({name: cells[name] for name in text}, decimal, texts.width)}")
    numbers = pl.DataFrame([column for name in kept if (column := plain[name]) is not None])
    for name in kept:
        column = bare[name]
        if column is not None and numbers[name].dtype != pl.Boolean:
            check_whole(column, lambda row, name=name: f"{what}: column {short(name)}, row {row}")  # type: ignore[misc]
    return numbers, decimal == ",", _marks_said([cells[name] for name in kept], decimal, texts.width == 1)


def _cells(column: pl.Series, spaced: str) -> pl.Series:
    """Trimmed cells, null for missing, with a plain minus sign and without marks between groups of three digits."""
    text = without_missing(column)
    if text.cast(pl.Float64, strict=False).null_count() == text.null_count():
        return text
    text = text.str.replace(MINUS, "-", literal=True)
    marked = text.str.contains(spaced)
    bare = text.str.replace_all(f"[{_SPACES}]", "")
    return pl.select(pl.when(marked).then(bare).otherwise(text)).to_series().alias(column.name)


def without_missing(column: pl.Series) -> pl.Series:
    """Trimmed cells, null for missing."""
    text = column.str.strip_chars()
    short_ones = text.str.len_bytes() <= max(len(word.encode()) for word in MISSING)
    missing = short_ones & text.str.to_lowercase().is_in(MISSING)
    return pl.select(pl.when(~missing).then(text)).to_series().alias(column.name)


def _plain(text: pl.Series) -> pl.Series | None:
    """The numbers or truths of cells without thousands marks and with decimal points; None where a cell is neither."""
    for dtype in (pl.Int64, pl.Float64):
        numbers = text.cast(dtype, strict=False)
        if numbers.null_count() == text.null_count():
            return numbers
    return text.str.to_lowercase() == "true" if _are_truths(text) else None


def check_whole(text: pl.Series, where: Callable[[int], str]) -> None:
    """Refuse whole numbers that float64 does not hold.

    Args:
        text: cells, null for missing.
        where: how a message names the cell at a position.

    Raises:
        InputError: naming the first of them.
    """
    long = pl.select(pl.arg_where(text.str.contains(r"^[+-]?[0-9]{16,}$"))).to_series()
    cells = text.gather(long).to_list()
    for place, cell in zip(long, cells, strict=True):
        if len(cell) > 400:
            raise InputError(f"{where(place)}: got a number of {len(cell)} digits, want numbers that float64 holds")
    dtypes.exactly([int(cell) for cell in cells], lambda i: where(long[i]))


def _are_truths(text: pl.Series) -> bool:
    return bool(text.drop_nulls().str.to_lowercase().is_in(["true", "false"]).all())


def _unmarked(text: pl.Series, decimal: str) -> pl.Series | None:
    """Cells with decimal points and no thousands marks, or truths; None where a cell is neither with these marks."""
    if _fits(text, decimal):
        return text.str.replace_all(other_mark(decimal), "", literal=True).str.replace(decimal, ".", literal=True)
    return text if _are_truths(text) else None


def _fits(text: pl.Series, decimal: str) -> bool:
    return bool(text.drop_nulls().str.contains(PATTERNS[decimal]).all())


def _decimal_mark(
    cells: dict[str, pl.Series], plain: dict[str, pl.Series | None], separator: str, kept: list[str], what: str
) -> str:
    """The one decimal mark with which all columns are numbers that are numbers with any."""
    fits = {name: [d for d in ".," if _fits(cells[name], d)] for name in cells}
    numbers = {name: marks for name, marks in fits.items() if marks}
    for names in (numbers, [name for name in kept if name in numbers]):  # what is left out has a say, and no veto
        both = [d for d in ".," if all(d in numbers[name] for name in names)]
        if both:
            marked = [name for name in names if plain[name] is None and name in kept]
            return both[0] if len(both) == 1 else _either(cells, marked, separator, what)
    point, comma = (next(n for n in kept if numbers.get(n) == [d]) for d in ".,")
    first = {
        n: next(c for c in cells[n] if c and not re.match(PATTERNS[d], c)) for n, d in ((point, ","), (comma, "."))
    }
    raise InputError(
        f"{what}: got decimal points in column {short(point)} ({short(first[point])}) and decimal commas in column "
        f"{short(comma)} ({short(first[comma])}), want one decimal mark in a file"
    )


def _either(cells: dict[str, pl.Series], marked: list[str], separator: str, what: str) -> str:
    """Which of the two marks is the decimal one, where all numbers, some of them with commas, are so with either."""
    if not marked or separator == ",":
        return "."
    if separator == ";":
        return ","
    name = marked[0]
    cell = next(cell for cell in cells[name] if cell and "," in cell)
    raise InputError(
        f"{what}: column {short(name)}: got {short(cell)}, which may be a decimal comma or thousands, want decimal "
        "points and no thousands marks, or ; between cells if it is a decimal comma"
    )


def _marks_said(columns: list[pl.Series], decimal: str, alone: bool) -> list[str]:
    """A line on the first number whose marks could be read otherwise: with thousands, or a comma in the only column."""
    mark = other_mark(decimal)
    what = {".": "points mark thousands", ",": "commas mark thousands"}[mark]
    if alone and decimal == ",":
        mark, what = ",", "commas are decimal marks"
    for column in columns:
        marked = column.filter(column.str.contains(mark, literal=True))
        if len(marked):
            number = marked[0].replace(other_mark(decimal), "").replace(decimal, ".")
            return [f"{what}: {marked[0]} in column {short(column.name)} is {number}"]
    return []


def _describe(columns: dict[str, pl.Series], decimal: str, width: int) -> str:
    """What columns of text hold, those of the first one's kind before those of others, and what to do."""
    kinds: dict[str, list[str]] = {}
    for name, text in columns.items():
        kinds.setdefault(_kind(text), []).append(name)
    kind, names = next(iter(kinds.items()))
    text = columns[names[0]]
    if kind == "text":
        row, cell = _first_text(text, decimal)
        advice = f"encode or drop the column{'s' * (len(names) > 1)} first"
        advice = advice if width > 1 else "separate cells by a comma, ; or a tab"
    else:
        row, cell = next((i, c) for i, c in enumerate(text) if c is not None)
        advice = _KINDS[kind][1]
    where = f" of {short(names[0])}" if len(names) > 1 else ""
    got = f"{_named(names)}: got {kind}, first {short(cell)} at row {row}{where}"
    others = "".join(f", and {other} in {_named(more)}" for other, more in kinds.items() if other != kind)
    return f"{got}{others}, want numbers; {advice}"


def _kind(text: pl.Series) -> str:
    cells = text.drop_nulls()
    return next((kind for kind, (pattern, _) in _KINDS.items() if cells.str.contains(pattern).all()), "text")


def _named(names: list[str]) -> str:
    return f"column{'s' * (len(names) > 1)} {some(names)}"


def _first_text(text: pl.Series, decimal: str) -> tuple[int, str]:
    """The first cell that is no number, else the first."""
    cells = [(i, cell) for i, cell in enumerate(text) if cell is not None]
    return next(((i, c) for i, c in cells if not re.match(PATTERNS[decimal], c)), cells[0])
