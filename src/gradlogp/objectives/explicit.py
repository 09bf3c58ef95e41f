"""Score matching against a known score."""

from __future__ import annotations

import torch

from gradlogp._shapes import Batch, Rows, squared_norm
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel


class ExplicitScoreMatching:
    """½‖ψ(x_t) − ∇log p_σ(x_t)‖² against an oracle's score (Hyvärinen 2005, equation 2).

    Args:
        oracle: the exact model of the data.
    """

    def __init__(self, oracle: ScoreModel) -> None:
        self.oracle = oracle

    def __call__(self, model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None = None) -> Rows:
        """The loss of each row, ``(B,)``."""
        x_t = kernel.sample(x, generator=generator)
        return 0.5 * squared_norm(model.score(x_t, kernel) - self.oracle.score(x_t, kernel))
