"""What an objective is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from gradlogp._shapes import Batch, Rows
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel


@runtime_checkable
class Objective(Protocol):
    """A loss for each row."""

    def __call__(self, model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None = None) -> Rows:
        """Loss of each clean row, ``(B,)``."""
        ...
