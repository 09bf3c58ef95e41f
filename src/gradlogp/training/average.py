"""The running average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from gradlogp.models import ScoreModel


class Average:
    """Exponential moving average of a model's weights, with a warm-up: decay min(ema, (1 + t)/(10 + t))."""

    def __init__(self, model: ScoreModel, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._own: list[Tensor] = list(self.model.parameters())
        self._followed = list(model.parameters())
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the model's weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._own, [p.detach() for p in self._followed], 1 - decay)
