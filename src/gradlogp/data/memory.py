"""How much memory there is, so that what does not fit is refused before work."""

from __future__ import annotations

import os
from pathlib import Path

from gradlogp._shapes import InputError

_GB = 1e9


def available() -> float:
    """Bytes that can be had: what the machine can free, and what its control group leaves; infinity if unknown."""
    found = [_machine()]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, now = (_first_number(Path("/sys/fs/cgroup") / name) for name in (limit, used))
        if most is not None and now is not None:
            found.append(max(most - now, 0.0))
    return min(found)


def check_room(need: float | int, what: str, why: str) -> None:
    """Refuse what needs more memory than there is.

    Raises:
        InputError: with both numbers.
    """
    there = available()
    if need > there:
        raise InputError(
            f"{what}: got {why}, which needs about {need / _GB:.3g} GB of memory, want at most the "
            f"{there / _GB:.3g} GB that are free; take fewer columns or rows"
        )


def _machine() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _first_number(path: Path) -> float | None:
    try:
        return float(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # no such limit, or the word max
        return None
