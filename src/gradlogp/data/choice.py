"""Which columns of a file are taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from gradlogp._shapes import InputError
from gradlogp.data.rows import some


@dataclass(frozen=True)
class Choice:
    """The columns asked for, all of them where that is None, less some to leave out.

    Args:
        columns: names to take.
        drop: names to leave out.
    """

    columns: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()

    @property
    def made(self) -> bool:
        """Whether anything but the whole file is asked for."""
        return self.columns is not None or bool(self.drop)

    def names(self, columns: Sequence[str]) -> bool:
        """Whether a column is asked for by name."""
        return self.columns is not None and set(columns) <= set(self.columns)

    def of(self, there: Sequence[str], what: str, *, gone: Sequence[str] = ()) -> list[str]:
        """The names that are taken, in the file's order; those gone may be left out too.

        Raises:
            InputError: for a name that is not there, or no columns left.
        """
        self._check(self.columns or (), there, what)
        self._check(self.drop, list(dict.fromkeys([*there, *gone])), what)
        kept = [c for c in there if self._takes(c)]
        if not kept and self.made:
            raise InputError(f"{what}: got all {len(there)} columns left out, want at least one")
        return kept

    def spread(self, of: Mapping[str, Iterable[str]]) -> Choice:
        """The choice with all the columns that one of lists is made into in its place."""

        def names(asked: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name for one in asked for name in of.get(one, (one,)))

        return Choice(None if self.columns is None else names(self.columns), names(self.drop)) if of else self

    @cached_property
    def _sets(self) -> tuple[frozenset[str] | None, frozenset[str]]:
        return None if self.columns is None else frozenset(self.columns), frozenset(self.drop)

    def _takes(self, column: str) -> bool:
        asked, dropped = self._sets
        return (asked is None or column in asked) and column not in dropped

    @staticmethod
    def _check(asked: tuple[str, ...], there: Sequence[str], what: str) -> None:
        known = set(there)
        missing = [c for c in asked if c not in known]
        if missing:
            near = get_close_matches(missing[0], there, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            count = f"the {len(asked)} columns" if len(asked) > 1 else "a column"
            raise InputError(f"{what}: got no column {some(missing)}, want {count} asked for among {some(there)}{hint}")

    def left_out(self, there: Sequence[str]) -> tuple[str, ...]:
        """A line on the columns that are there and are not taken."""
        out = [c for c in there if not self._takes(c)]
        return (f"left out column{'s' * (len(out) > 1)} {some(out)}",) if out else ()
