"""gradlogp: learn the score ∇log p of data by denoising score matching, and know how far it is from the true one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlogp.estimators import ScoreDensity as ScoreDensity

__version__ = "0.1.0"

_MODULES = (
    "data",
    "diagnostics",
    "kernels",
    "likelihood",
    "models",
    "networks",
    "objectives",
    "oracles",
    "processes",
    "samplers",
    "training",
)

__all__ = ["InputError", "ScoreDensity", "__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    """Modules are imported when first used, so that ``import gradlogp`` is quick."""
    if name in _MODULES:
        return import_module(f"gradlogp.{name}")
    if name == "ScoreDensity":
        return import_module("gradlogp.estimators").ScoreDensity
    if name == "InputError":
        return import_module("gradlogp._errors").InputError
    raise AttributeError(f"module 'gradlogp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
