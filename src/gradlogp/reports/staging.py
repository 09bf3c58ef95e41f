"""Files that are put into a folder all at once, when they are all written, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from gradlogp._shapes import InputError

STAGING = ".gradlogp-new-"


@contextmanager
def staging(out: Path, last: str = "") -> Iterator[Path]:
    """A folder in ``out`` to write to; what is in it is moved to ``out`` at the end, ``last`` after all others.

    On an error or an interrupt it goes, as does an ``out`` that was made for nothing.

    Raises:
        InputError: ``out`` cannot be written.
    """
    made = not out.exists()
    try:
        out.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=STAGING, dir=out))
        try:
            yield fresh
            for item in sorted(fresh.iterdir(), key=lambda p: p.name == last):
                _move(item, out / item.name)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            if made and not any(out.iterdir()):
                out.rmdir()
    except BrokenPipeError:  # of the terminal, not of the folder
        raise
    except (OSError, SafetensorError) as e:
        reason = getattr(e, "strerror", None) or str(e).splitlines()[0]
        raise InputError(f"{out}: cannot be written ({reason}), want a folder that can") from None


def _move(item: Path, place: Path) -> None:
    """Move a file or a folder to its place; a folder that is there is replaced, or put back if that fails."""
    old = item.with_name(f".old-{item.name}")
    try:
        if item.is_dir() and place.exists():
            os.replace(place, old)
        os.replace(item, place)
    except BaseException:  # an interrupt too
        if old.exists() and not place.exists():
            os.replace(old, place)
        raise
