"""The text of a table in blocks of whole rows, and their cells."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradlogp._shapes import InputError
from gradlogp.data.memory import check_room
from gradlogp.data.source import Source

BLOCK = 2**18  # characters
_CONTROLS = bytes(c for c in range(32) if c not in b"\t\n\v\f")  # no text holds them
_MARK = 31  # one of them stands between cells
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
_BOMS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # after the longer ones, of which one begins so
_NEWLINE, _QUOTE = b'\n"'


class IrregularQuotesError(Exception):
    """Quotes within cells, or one that is never closed: not for :func:`split`."""


class Cells(NamedTuple):
    """Cells row by row, as text without their quotes, how many each row has, and where in the block each row begins."""

    texts: pl.Series
    widths: NDArray[np.intp]
    starts: NDArray[np.intp]
    block: bytes

    def line(self, row: int) -> int:
        """On which line of the block a row begins, from 0 on."""
        return self.block.count(b"\n", 0, int(self.starts[row]))


def encoding_of(source: Source) -> str:
    """UTF-8, or what a byte-order mark or the zeros of UTF-16 say."""
    with source.open() as file:
        start = file.read(64)
    for bom, name in _BOMS.items():
        if start.startswith(bom):
            return name
    even, odd = start[: len(start) // 2 * 2 : 2], start[1::2]
    if len(odd) > 1 and not any(odd) and all(even):
        return "utf-16-le"
    return "utf-16-be" if len(even) > 1 and not any(even) and all(odd) else "utf-8"


def blocks(source: Source, encoding: str) -> Iterator[bytes]:
    """The text as UTF-8, each block ending at the end of a row; empty lines at the end of the file are left out.

    Raises:
        InputError: for what cannot be unpacked, for control characters, and a row that is too long for the memory.
        UnicodeDecodeError: for bytes of another encoding.
    """
    held = b""
    with source.open() as file:
        text: Any = io.TextIOWrapper(file, encoding, newline=None)
        while piece := text.read(max(BLOCK, len(held))):
            held += _checked(piece.encode(), source.what)
            if len(held) > 2**28:
                check_room(4 * len(held), source.what, "a row, or a quote that is not closed, of so many bytes")
            body = held[: _end_of_rows(held)].rstrip(b"\n")
            if body:
                yield body + b"\n"
                held = held[len(body) + 1 :]
        text.detach()
    if rest := held.rstrip(b"\n"):
        yield rest + b"\n"


def _checked(block: bytes, what: str) -> bytes:
    if len(block.translate(None, _CONTROLS)) < len(block):
        raise InputError(f"{what}: got binary data or control characters, want a table as text")
    return block


def _end_of_rows(block: bytes) -> int:
    """Where the last whole row ends; 0 if none does."""
    if b'"' not in block:
        return block.rfind(b"\n") + 1
    raw = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero((raw == _NEWLINE) & ~_inside(raw))
    return int(ends[-1]) + 1 if len(ends) else 0


def _inside(raw: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which bytes are within quotes; a quote that opens is, one that closes is not."""
    return np.logical_xor.accumulate(raw == _QUOTE)


def split(block: bytes, separator: str, blank_rows: bool) -> Cells:
    """The cells of a block that ends with a newline; whether blank lines are rows is said.

    Raises:
        IrregularQuotesError: for quotes that do not stand around whole cells.
    """
    if separator == " ":
        block = one_space(block)
    raw = np.frombuffer(block, np.uint8)
    between, ends = raw == ord(separator), raw == _NEWLINE
    if b'"' in block:
        inside = _inside(raw)
        between &= ~inside
        ends &= ~inside
        _check_quotes(raw, inside, between | ends)
    last = np.flatnonzero(ends)
    starts = np.concatenate([[0], last[:-1] + 1])
    if not blank_rows and (blank := starts == last).any():
        keep = np.ones(len(raw), dtype=bool)
        keep[last[blank]] = False
        return split(raw[keep].tobytes(), separator, True)._replace(starts=starts[~blank], block=block)
    marked = np.where(between | ends, np.uint8(_MARK), raw)[:-1].tobytes().decode()
    texts = pl.Series([marked]).str.split(chr(_MARK)).explode()
    if b'"' in block:
        texts = _unquoted(texts)
    widths = np.diff(np.searchsorted(np.flatnonzero(between), last), prepend=0) + 1
    return Cells(texts, widths, starts, block)


def _check_quotes(raw: NDArray[np.uint8], inside: NDArray[np.bool_], outer: NDArray[np.bool_]) -> None:
    """Check that quotes open at the beginning of cells and close at their ends, but for doubled ones."""
    quotes = raw == _QUOTE
    edge = outer | quotes
    opening, closing = np.flatnonzero(quotes & inside), np.flatnonzero(quotes & ~inside)
    begun = (opening == 0) | edge[opening - 1]
    if inside[-1] or not begun.all() or not edge[closing + 1].all():
        raise IrregularQuotesError


def _unquoted(texts: pl.Series) -> pl.Series:
    quoted = texts.str.starts_with('"')
    bare = texts.str.strip_prefix('"').str.strip_suffix('"').str.replace_all('""', '"', literal=True)
    return pl.select(pl.when(quoted).then(bare).otherwise(texts)).to_series()


def one_space(block: bytes) -> bytes:
    """One space for each run of spaces and tabs outside quotes, none at the beginnings and ends of lines."""
    block = re.sub(rb'("[^"]*")|[ \t]+', lambda found: found[1] or b" ", block)
    return re.sub(rb"^ | $", b"", block, flags=re.MULTILINE)
