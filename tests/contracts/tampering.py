"""Saved models, changed by someone who makes the hashes right again: what is then left are the checks of content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from gradlogp import checkpoints


def seal(folder: Path) -> None:
    """Make both hashes right."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("config_sha256", None)
    config["weights_sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    config["config_sha256"] = checkpoints._hash_of(config)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object], *, sealed: bool = True) -> None:
    """Change the configuration in place."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")
    if sealed:
        seal(folder)


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object], *, sealed: bool = True) -> None:
    """Change the tensors in place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    if sealed:
        seal(folder)
