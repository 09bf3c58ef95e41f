"""What a score model is, the closed-form references, and the network that learns what they leave.

A model takes a kernel, not a time: ``model.score(x_t, kernel)`` is ψ(x_t) for that convolution, so the noise of
training and of sampling are decoupled. Exact densities (``gradlogp.oracles``) are models too.
"""

from gradlogp.models.autoencoder import DenoisingAutoencoder
from gradlogp.models.base import (
    Denoiser,
    Density,
    Reference,
    ScoreFunction,
    ScoreModel,
    count_parameters,
    event_of,
    gaussian_form,
    isotropic,
    require_gaussian,
    require_model,
    score_from_denoised,
    tweedie,
)
from gradlogp.models.energy import EnergyModel
from gradlogp.models.from_denoiser import FromDenoiser, from_denoiser
from gradlogp.models.gate import N_GATES, Gate
from gradlogp.models.gaussian import NULL_TOLERANCE, GaussianReference
from gradlogp.models.jacobian import linearise
from gradlogp.models.marginal import MarginalReference, Marginals
from gradlogp.models.posterior import Posterior, posterior, posterior_covariance
from gradlogp.models.preconditioned import ClosedForm, OnReference, Preconditioned

__all__ = [
    "NULL_TOLERANCE",
    "N_GATES",
    "ClosedForm",
    "Denoiser",
    "DenoisingAutoencoder",
    "Density",
    "EnergyModel",
    "FromDenoiser",
    "Gate",
    "GaussianReference",
    "MarginalReference",
    "Marginals",
    "OnReference",
    "Posterior",
    "Preconditioned",
    "Reference",
    "ScoreFunction",
    "ScoreModel",
    "count_parameters",
    "event_of",
    "from_denoiser",
    "gaussian_form",
    "isotropic",
    "linearise",
    "posterior",
    "posterior_covariance",
    "require_gaussian",
    "require_model",
    "score_from_denoised",
    "tweedie",
]
