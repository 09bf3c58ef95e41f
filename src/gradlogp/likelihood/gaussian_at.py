"""The Gaussian that a model itself sees at its largest noise."""

from __future__ import annotations

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError
from gradlogp.kernels import Gaussian
from gradlogp.models import GaussianReference, ScoreModel, linearise
from gradlogp.models.jacobian import matrix

_ROUNDS = 20
_MAX_COORDINATES = 2048


def gaussian_at(model: ScoreModel, like: Batch, sigma: float) -> GaussianReference:
    """N(μ, Σ) from the denoiser at noise sigma: D(μ) = μ, and ∇D(μ) = Σ(Σ + σ²)⁻¹, so that Σ = σ² J(I − J)⁻¹.

    For σ far above the data's scale it has the data's moments.

    Args:
        model: any score model for Gaussian noise.
        like: a row or more of its event shape, dtype and device.
        sigma: the noise.

    Raises:
        InputError: a denoiser that is not finite there or lets no gradient through, or more than 2048 coordinates.
    """
    d = like[0].numel()
    if d > _MAX_COORDINATES:
        raise InputError(f"log_prob: got a model of {d} coordinates that knows no Gaussian reference, want one")
    kernel, mean = Gaussian(sigma), torch.zeros_like(like[:1])
    with torch.no_grad():
        for _ in range(_ROUNDS):
            mean = model.denoise(mean, kernel)
    jacobian = matrix(*linearise(model.denoise, mean, kernel, name=f"{type(model).__name__}.denoise"))[0].double().cpu()
    if not bool(jacobian.isfinite().all()):
        raise InputError(f"log_prob: the model is not finite at sigma = {sigma:g}, want a finite one")
    return GaussianReference.of_moments(mean[0].double().cpu(), _covariance(jacobian, sigma)).to(like.device)


def _covariance(jacobian: Tensor, sigma: float) -> Tensor:
    """σ² J(I − J)⁻¹ of the symmetric part, eigenvalues between 0 and 1."""
    gain, basis = torch.linalg.eigh((jacobian + jacobian.T).double() / 2)
    gain = gain.clamp(1e-12, 1 - 1e-6)
    covariance: Tensor = (basis * (sigma**2 * gain / (1 - gain))) @ basis.T
    return covariance
