"""What a long call tells on stderr: a bar that starts no thread, and its phases by name."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import ClassVar

from tqdm.auto import tqdm

SHORT = 0.2  # s: of less no shares are told
LEAST = 0.005  # a share that is told


class Bar(tqdm):  # type: ignore[misc]
    """tqdm's, shown as often as it moves, and so without the thread that watches bars that have slowed down."""

    monitor_interval: ClassVar[int] = 0


class Phases:
    """A context that names each phase of a call as it starts, and tells their shares of its time at the end.

    On a terminal a name stays until the next one replaces it; elsewhere each is a plain line. What cannot be written is
    left out: a closed terminal must not end the call.

    Args:
        what: the call.
        shown: whether anything is told.
    """

    def __init__(self, what: str, shown: bool) -> None:
        self.what, self.seconds = what, dict[str, float]()
        self._shown, self._name, self._width = shown and sys.stderr is not None, "", 0
        self._since = time.perf_counter()

    def __call__(self, name: str) -> None:
        """Start a phase; the one before ends. Phases of one name count together."""
        if name == self._name:
            return
        self._stop()
        self._name = name
        text = f"{self.what}: {name}"
        if self._terminal():
            self._write(text.ljust(self._width) + "\r")  # what is printed next replaces it
            self._width = len(text)
        else:
            self._write(text + "\n")

    def __enter__(self) -> Phases:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the last phase, and tell the shares in one line unless the call failed."""
        self._stop()
        if self._width and self._terminal():
            self._write(" " * self._width + "\r")
        if kind is not None:
            return
        total = sum(self.seconds.values())
        shares = [f"{name} {100 * s / total:.0f} %" for name, s in self.seconds.items() if s >= LEAST * total]
        if total >= SHORT:
            self._write(f"{self.what} {total:.1f} s: {', '.join(shares)}\n")

    def _stop(self) -> None:
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = "", now

    def _terminal(self) -> bool:
        return self._shown and not sys.stderr.closed and sys.stderr.isatty()

    def _write(self, text: str) -> None:
        if self._shown:
            with suppress(OSError, ValueError):  # ValueError: of a closed file
                sys.stderr.write(text)
                sys.stderr.flush()
