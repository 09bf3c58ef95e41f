"""How much memory there is, and the largest request that fits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_KILOBYTE = 1024


def free(device: torch.device | None = None) -> int:
    """Bytes that can be had now: of a GPU its own, otherwise what the system, a container and a limit leave."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return max(min(_of_the_system(), _of_the_container(), _below_the_limit()), 0)


def largest(needed: Callable[[int], int], value: int, most: int) -> int:
    """The largest number up to value whose need, which grows with it, is at most so many bytes; 0 if none's is."""
    low, high = 0, value
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= most else (low, middle - 1)
    return low


def said(n_bytes: int) -> str:
    """Bytes as a message has them, e.g. ``"24 GB"``."""
    scale, unit = next((s, u) for s, u in ((10**9, "GB"), (10**6, "MB"), (1000, "kB"), (1, "bytes")) if n_bytes >= s)
    number = min(n_bytes, 10**30) / scale
    return f"{number:{',.0f' if 10 <= number < 1e6 else '.2g'}} {unit}".replace("e+", "e")


def _of_the_system() -> int:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * _KILOBYTE
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return sys.maxsize


def _of_the_container() -> int:
    limit = next(iter(_lines("/sys/fs/cgroup/memory.max")), "max").strip()
    return int(limit) if limit.isdigit() else sys.maxsize


def _below_the_limit() -> int:
    """What a limit on the process's own addresses (``ulimit -v``) leaves."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = next(iter(_lines("/proc/self/statm")), "0").split()[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit - int(pages) * os.sysconf("SC_PAGE_SIZE")


def _lines(path: str) -> list[str]:
    """The lines of a file of the system's; none where there is no such file."""
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []
