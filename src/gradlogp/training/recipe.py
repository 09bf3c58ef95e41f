"""How to train."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        n_steps: steps at most.
        batch_size: rows a step.
        learning_rate: the peak of AdamW's.
        weight_decay: AdamW's.
        warm_up: steps over which the rate rises; it then falls to 0 as a cosine.
        clip: largest norm of a gradient.
        ema: decay of the average of the weights, once warmed up.
        evaluate_every: steps between two looks at the held-out loss.
        patience: looks without a better one before it stops.
        max_seconds: stop by then at the latest, the cosine squeezed to fit.
    """

    n_steps: int = 10_000
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warm_up: int = 100
    clip: float = 1.0
    ema: float = 0.999
    evaluate_every: int = 100
    patience: int = 20
    max_seconds: float = math.inf

    def rate(self, step: int, progress: float) -> float:
        """The learning rate, warm-up times cosine."""
        return (
            self.learning_rate
            * min(1.0, (step + 1) / self.warm_up)
            * 0.5
            * (1 + math.cos(math.pi * min(progress, 1.0)))
        )
