"""The loss of rows at their noise levels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from gradlogp._shapes import Batch, Rows
from gradlogp.kernels import Kernel
from gradlogp.models import GaussianReference, ScoreModel
from gradlogp.objectives import Objective
from gradlogp.training.any_kernel import at_levels
from gradlogp.training.weights import EDM, Scale, Weight


class WeightedLoss:
    """The loss of each row at its level, λ(σ)·J_DSM; the weights are in :mod:`gradlogp.training.weights`.

    The same weights, at the Fisher scale σ, for noise that is not Gaussian.

    Args:
        objective: J_DSM.
        reference: gives σ_d and R.
        noise: scale -> kernel, of noise that is not Gaussian; see :func:`gradlogp.training.any_kernel.at_levels`.
        weight: λ; EDM's unless said.
    """

    def __init__(
        self,
        objective: Objective,
        reference: GaussianReference,
        noise: Callable[[float], Kernel] | None = None,
        weight: Weight | None = None,
    ) -> None:
        self.objective, self.law = objective, EDM() if weight is None else weight
        self.kernel = at_levels(noise, reference.event_shape)
        self.data = Scale.of(reference)

    def weight(self, sigma: Rows) -> Rows:
        """λ(σ)."""
        return self.law(sigma, self.data)

    def weighted_by(self, weight: Weight) -> WeightedLoss:
        """The same loss with another weight."""
        other = copy.copy(self)
        other.law = weight
        return other

    def __call__(self, model: ScoreModel, x: Batch, sigma: Rows, generator: torch.Generator | None) -> Rows:
        """Loss of each row, ``(B,)``."""
        return self.weight(sigma) * self.objective(model, x, self.kernel(sigma), generator=generator)
