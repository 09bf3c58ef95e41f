"""The weighting of the noise levels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gradlogp._shapes import Batch, Rows
from gradlogp.kernels import Kernel
from gradlogp.models import GaussianReference, Preconditioned
from gradlogp.objectives import Objective
from gradlogp.training.any_kernel import at_levels


class WeightedLoss:
    """The loss of each row at its level: λ(σ)·J_DSM with λ = 2σ²(σ² + σ_d²)/(σ_d² R), R directions in which data vary.

    2σ⁴ J_DSM is the denoiser's square error and c_out² = σ²σ_d²/(σ² + σ_d²), so λ·J_DSM is the mean square error of the
    network's output per direction: the weighting of EDM (Karras et al. 2022, table 1), and 1 for a scalar skip alone.
    The same weights, at the Fisher scale σ, for noise that is not Gaussian.

    Args:
        objective: J_DSM.
        reference: gives σ_d and R.
        noise: scale -> kernel, of noise that is not Gaussian; see :func:`gradlogp.training.any_kernel.at_levels`.
    """

    def __init__(
        self, objective: Objective, reference: GaussianReference, noise: Callable[[float], Kernel] | None = None
    ) -> None:
        self.objective = objective
        self.kernel = at_levels(noise, reference.event_shape)
        self.variance = reference.data_scale.item() ** 2
        self.n_coordinates = reference.eigenvalues.numel()

    def weight(self, sigma: Rows) -> Rows:
        """λ(σ)."""
        return 2 * (sigma**2 / self.variance) * (sigma**2 + self.variance) / self.n_coordinates

    def __call__(self, model: Preconditioned, x: Batch, sigma: Rows, generator: torch.Generator | None) -> Rows:
        """Loss of each row, ``(B,)``."""
        return self.weight(sigma) * self.objective(model, x, self.kernel(sigma), generator=generator)
