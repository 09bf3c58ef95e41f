"""The number of torch's threads, for the length of a call."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class _Shared:
    """Calls that are under way in all threads, and the setting before the first of them."""

    n_calls: int = 0
    before: int = 1


class _Own(threading.local):
    """How many calls of this thread are inside of each other."""

    depth = 0


_lock, _shared, _own = threading.Lock(), _Shared(), _Own()


@contextmanager
def threads(n: int | None) -> Iterator[None]:
    """Use so many threads, and put the setting back; None leaves it, −1 is all processors, −2 all but one.

    torch's setting is one of each thread, and what was set last is that of threads that begin later. So calls that
    overlap in several threads put back what was there before the first of them.
    """
    if n is None:
        yield
        return
    with _lock:
        before = torch.get_num_threads()
        if _shared.n_calls == 0:
            _shared.before = before
        _shared.n_calls += 1
        _own.depth += 1
        torch.set_num_threads(int(n) if n > 0 else max(1, (os.cpu_count() or 1) + 1 + n))
    try:
        yield
    finally:
        with _lock:
            _shared.n_calls -= 1
            _own.depth -= 1
            torch.set_num_threads(before if _own.depth else _shared.before)
