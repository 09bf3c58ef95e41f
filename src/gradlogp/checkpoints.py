"""A saved model: a folder with ``model.safetensors`` and ``config.json``, written atomically, read without unpickling."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradlogp._shapes import InputError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = "gradlogp model"
FORMAT_VERSION = 1


def save(path: str | Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write a model folder beside its place, then move it there: a model that is there stays whole until then.

    Raises:
        InputError: the place is a file or a folder that is no model, its parent is missing, or it cannot be written.
    """
    path = Path(path)
    check_destination(path)
    try:
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror})") from None
    try:
        fresh.chmod(0o755)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, fresh / WEIGHTS)
        text = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **config}, indent=1, allow_nan=False)
        (fresh / CONFIG).write_text(text + "\n", encoding="utf-8")
        _swap(fresh, path)
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror})") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check_destination(path: str | Path) -> None:
    """Refuse a place where a model must not be written: before long work, not after it.

    Raises:
        InputError: the place is a file or a folder that is no model, or its parent is missing.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")
    if path.is_file():
        raise InputError(f"{path}: is a file, want a folder for the model")
    if path.is_dir() and any(path.iterdir()) and not (path / CONFIG).is_file():
        raise InputError(f"{path}: is a folder that holds something other than a model, want a new name")


def _swap(fresh: Path, path: Path) -> None:
    """Put ``fresh`` at ``path``; what was there is put back if that fails."""
    old = fresh.with_name(fresh.name + ".old")
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(fresh, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a model folder: its tensors and its configuration.

    Raises:
        InputError: no such folder, a missing file, or one that is corrupt or of another format or version.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder, want a saved model")
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise InputError(f"{path}: has no {name}, want a saved model")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"{path / CONFIG}: cannot be read ({type(e).__name__})") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{path / CONFIG}: is not the configuration of a gradlogp model")
    if config.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path / CONFIG}: format version {config.get('format_version')!r}, want {FORMAT_VERSION}")
    try:
        tensors = load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as e:
        raise InputError(f"{path / WEIGHTS}: cannot be read ({str(e).splitlines()[0]})") from None
    return tensors, config
