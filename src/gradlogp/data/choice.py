"""Which columns of a file are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from gradlogp._shapes import InputError
from gradlogp.data.containers import some


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
        kept = [c for c in there if (self.columns is None or c in self.columns) and c not in self.drop]
        if not kept and self.made:
            raise InputError(f"{what}: got all {len(there)} columns left out, want at least one")
        return kept

    @staticmethod
    def _check(asked: tuple[str, ...], there: Sequence[str], what: str) -> None:
        missing = [c for c in asked if c not in there]
        if missing:
            near = get_close_matches(missing[0], there, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            count = f"the {len(asked)} columns" if len(asked) > 1 else "a column"
            raise InputError(f"{what}: got no column {some(missing)}, want {count} asked for among {some(there)}{hint}")

    def left_out(self, there: Sequence[str]) -> tuple[str, ...]:
        """A line on the columns that are there and are not taken."""
        out = [c for c in there if (self.columns is not None and c not in self.columns) or c in self.drop]
        return (f"left out column{'s' * (len(out) > 1)} {some(out)}",) if out else ()
