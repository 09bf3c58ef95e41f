"""A progress bar that starts no thread."""

from __future__ import annotations

from typing import ClassVar

from tqdm.auto import tqdm


class Bar(tqdm):  # type: ignore[misc]
    """tqdm's, shown as often as it moves, and so without the thread that watches bars that have slowed down."""

    monitor_interval: ClassVar[int] = 0
