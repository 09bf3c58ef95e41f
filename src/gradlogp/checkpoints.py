"""A saved model: a folder with ``model.safetensors`` and ``config.json``, written whole, read without unpickling."""

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
REPORT, NUMBERS = "report.html", "report.json"  # what `gradlogp diagnose` adds to a model's folder
FORMAT = "gradlogp model"
FORMAT_VERSION = 1


def save(path: str | Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write a model folder beside its place, then move it there: a model that is there stays whole until then.

    Raises:
        InputError: the place is a file or a folder that is no model, its parent is missing, or it cannot be written.
    """
    check_destination(path)
    path = Path(os.path.realpath(path))
    try:
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror}), want a folder that can") from None
    try:
        fresh.chmod(0o755)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, fresh / WEIGHTS)
        text = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **config}, indent=1, allow_nan=False)
        (fresh / CONFIG).write_text(text + "\n", encoding="utf-8")
        _swap(fresh, path)
    except (OSError, SafetensorError) as e:
        reason = getattr(e, "strerror", None) or str(e).splitlines()[0]
        raise InputError(f"{path}: cannot be written ({reason}), want a place with room for a model") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check_destination(path: str | Path) -> None:
    """Refuse a place where a model must not be written: before long work, not after it.

    Raises:
        InputError: the place is a file or a folder that is no model or holds more than one, or its parent is missing or
            must not be written in.
    """
    place = Path(os.path.realpath(path))
    if not place.parent.is_dir():
        raise InputError(f"{path}: the folder {place.parent} does not exist, want one that does: make it first")
    if place.exists() and not place.is_dir():
        raise InputError(f"{path}: is a file, want a folder for the model")
    if not os.access(place.parent, os.W_OK):
        raise InputError(f"{path}: the folder {place.parent} must not be written in, want another")
    if place.is_dir() and any(place.iterdir()):
        _check_replaceable(place, path)


def _check_replaceable(place: Path, shown: str | Path) -> None:
    """Only a folder that holds a model and nothing else may be replaced: whatever is in it goes."""
    others = sorted(p.name for p in place.iterdir() if p.name not in (WEIGHTS, CONFIG, REPORT, NUMBERS))
    if others:
        raise InputError(f"{shown}: is a folder that holds {others[0]!r}, not of a model; want a new name")
    try:
        config = json.loads((place / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{shown}: is a folder that holds something other than a gradlogp model, want a new name")


def _swap(fresh: Path, path: Path) -> None:
    """Put ``fresh`` at ``path``; what was there is put back if that fails."""
    old = fresh.with_name(fresh.name + ".old")
    try:
        if path.exists():
            os.replace(path, old)
        os.replace(fresh, path)
    except BaseException:  # an interrupt too
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        if path.exists():
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
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as e:
        reason = str(e).splitlines()[0]
        raise InputError(f"{path / CONFIG}: cannot be read ({reason}), want it as it was saved") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{path / CONFIG}: is not the configuration of a gradlogp model, want its folder")
    if config.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path / CONFIG}: format version {config.get('format_version')!r}, want {FORMAT_VERSION}")
    try:
        tensors = load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as e:
        raise InputError(
            f"{path / WEIGHTS}: cannot be read ({str(e).splitlines()[0]}), want it as it was saved"
        ) from None
    return tensors, config


def _refuse(constant: str) -> None:
    raise ValueError(f"got {constant}, which is no number")
