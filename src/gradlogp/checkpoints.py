"""A saved model: a folder with ``model.safetensors`` and ``config.json``, written whole, read without unpickling.

The configuration holds the SHA-256 of the weights and of itself, so that no other weights, no flipped bit and no edit
is taken for what was saved. A save writes the new weights beside the old ones, under a name made of their hash; then
it replaces ``config.json``, which names that hash. From this one step on the folder holds the new model. The weights
then get their own name. A crash between the two is put right by whoever saves next, and is nothing to a reader.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlogp._errors import InputError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
REPORT, NUMBERS = "report.html", "report.json"  # what `gradlogp diagnose` adds to a model's folder
if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "gradlogp model"
FORMAT_VERSION = 2
SUMMARY = "summary"  # of the configuration: what `gradlogp info` prints
HASH, CONFIG_HASH = "weights_sha256", "config_sha256"
UNDER_WAY = ".gradlogp-"  # what a save that was cut off may leave begins with
MOST_TEXT = 1 << 26  # bytes of a configuration: some 10^5 columns


def save(path: str | Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write a model folder, whole or not at all: a model that is there stays until the new one is complete.

    Two that save to one place at once wait for each other. Files have the modes that the umask gives.

    Raises:
        InputError: the place is a file or a folder that is no model, its parent is missing, or it cannot be written.
    """
    from safetensors.torch import save as bytes_of

    check_destination(path)
    folder = Path(os.path.realpath(path))
    weights = bytes_of({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    config = {"format": FORMAT, "format_version": FORMAT_VERSION, **config, HASH: hashlib.sha256(weights).hexdigest()}
    text = json.dumps(config | {CONFIG_HASH: _hash_of(config)}, indent=1, allow_nan=False) + "\n"
    is_new = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
        with _locked(folder):
            try:
                _write_through(_waiting(folder, config[HASH]), weights)
                _write_through(folder / CONFIG, text.encode())
            finally:
                _tidy(folder)
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror or e}), want a place with room for a model") from None
    finally:
        if is_new:
            with suppress(OSError):  # it holds a model
                folder.rmdir()


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a model folder: its tensors and its configuration, which were saved together.

    Raises:
        InputError: no such folder, a missing file, or one that is corrupt, changed, or of another format or version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as tensors_from

    weights, config = _verified(path)
    try:
        return tensors_from(weights), config
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as e:
        reason = str(e).splitlines()[0][:200]
        raise InputError(f"{Path(path) / WEIGHTS}: cannot be read ({reason}), want it as it was saved") from None


def summary(path: str | Path) -> list[tuple[str, str]] | None:
    """Read what a saved model says of itself, lines of a name and a text, without torch.

    Returns:
        None for a model that was saved without.

    Raises:
        InputError: as :func:`load`, but for tensors that do not fit together.
    """
    lines = _verified(path)[1].get(SUMMARY)
    if not isinstance(lines, list) or not all(isinstance(line, list) and len(line) == 2 for line in lines):
        return None
    return [(str(name), str(text)) for name, text in lines]


def _verified(path: str | Path) -> tuple[bytes, dict[str, Any]]:
    """The weights and the configuration of a folder, which were saved together."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{path}: no such folder, want a saved model")
    try:
        return _read(folder)
    except InputError:  # a save may be under way: wait for it, and look once more
        with suppress(OSError), _locked(folder, shared=True):
            return _read(folder)
        raise


def _read(folder: Path) -> tuple[bytes, dict[str, Any]]:
    config = _config(folder)
    weights = _bytes(folder, WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != config[HASH]:
        with suppress(InputError):
            weights = _bytes(folder, _waiting(folder, config[HASH]).name)
    if hashlib.sha256(weights).hexdigest() != config[HASH]:
        raise InputError(
            f"{folder / WEIGHTS}: is not what was saved with {CONFIG} (SHA-256 differs), want both as saved"
        )
    return weights, config


def _config(folder: Path) -> dict[str, Any]:
    """The configuration, if it is one of ours and as it was saved."""
    try:
        config = json.loads(_bytes(folder, CONFIG, MOST_TEXT), parse_constant=_refuse)
    except (ValueError, RecursionError) as e:
        if isinstance(e, InputError):
            raise
        reason = str(e).splitlines()[0][:200]
        raise InputError(f"{folder / CONFIG}: cannot be read ({reason}), want it as it was saved") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{folder / CONFIG}: is not the configuration of a gradlogp model, want its folder")
    if config.get("format_version") != FORMAT_VERSION:
        got = str(config.get("format_version"))[:20]
        raise InputError(f"{folder / CONFIG}: format version {got}, want {FORMAT_VERSION}")
    if config.pop(CONFIG_HASH, None) != _hash_of(config) or not isinstance(config.get(HASH), str):
        raise InputError(
            f"{folder / CONFIG}: was changed since it was saved (SHA-256 differs), want it as it was saved"
        )
    return config


def _bytes(folder: Path, name: str, most: int = sys.maxsize) -> bytes:
    file = folder / name
    if not file.is_file():  # nor is a device one
        raise InputError(f"{folder}: has no {name}, want a saved model")
    try:
        if (size := file.stat().st_size) > most:
            raise InputError(f"{file}: cannot be read ({size:,} bytes), want it as it was saved")
        return file.read_bytes()
    except (OSError, MemoryError) as e:
        reason = getattr(e, "strerror", None) or "larger than the memory"
        raise InputError(f"{file}: cannot be read ({reason}), want it as it was saved") from None


def _hash_of(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _refuse(constant: str) -> None:
    raise ValueError(f"got {constant}, which is no number")


# -- writing


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
    if not os.access(place if place.is_dir() else place.parent, os.W_OK):
        raise InputError(f"{path}: must not be written in, want another folder")
    if place.is_dir():
        _check_replaceable(place, path)


def is_model(folder: Path) -> bool:
    """Whether a folder is one of a saved model, by its configuration."""
    try:
        config = json.loads(_bytes(folder, CONFIG, MOST_TEXT))
    except (ValueError, RecursionError):  # an InputError too
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def _check_replaceable(place: Path, shown: str | Path) -> None:
    """Only a folder that holds a model and nothing else may be replaced."""
    names = [p.name for p in place.iterdir() if not p.name.startswith(UNDER_WAY)]
    others = sorted(set(names) - {WEIGHTS, CONFIG, REPORT, NUMBERS})
    if others:
        raise InputError(f"{shown}: is a folder that holds {others[0]!r}, not of a model; want a new name")
    if names and not is_model(place):
        raise InputError(f"{shown}: is a folder that holds something other than a gradlogp model, want a new name")


def _waiting(folder: Path, digest: str) -> Path:
    """Where weights wait for the configuration that names them."""
    return folder / f"{UNDER_WAY}{digest[:32]}"


def _write_through(file: Path, content: bytes) -> None:
    """Write a file whole or not at all, and to the disk, not only to the system's memory."""
    beside = file.with_name(f"{UNDER_WAY}{file.name}.part")
    with open(beside, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    os.replace(beside, file)


def _tidy(folder: Path) -> None:
    """Give weights that the configuration names their own name; what else a save left half done goes."""
    _sync(folder)
    keep = None
    with suppress(InputError):
        keep = _waiting(folder, _config(folder)[HASH])
    if keep is not None and keep.exists():
        for name in (REPORT, NUMBERS):  # of the model that was there
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # readers find them here too
            os.replace(keep, folder / WEIGHTS)
        _sync(folder)
    for left in folder.glob(f"{UNDER_WAY}*"):
        if left.is_dir():  # of a report
            shutil.rmtree(left, ignore_errors=True)
        elif left != keep:
            left.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Write a folder's names to the disk, where the system can."""
    with suppress(OSError):
        at = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(at)
        finally:
            os.close(at)


@contextmanager
def _locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Keep others out of a folder: a lock of the system's, which ends with the process however that ends."""
    if sys.platform == "win32":  # two writers at once are not kept apart there
        yield
        return
    import fcntl

    at = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(at, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(at)
