"""Exact p ∗ q: densities whose score under a kernel is known. Each is a model, so all is tested on it untrained."""

from gradlogp.oracles.base import Oracle
from gradlogp.oracles.empirical import Empirical, Including, LeaveOneOut, OfClass
from gradlogp.oracles.fitting import fit_mixture
from gradlogp.oracles.mixture import GaussianMixture
from gradlogp.oracles.parzen import Parzen
from gradlogp.oracles.quadrature import Quadrature

__all__ = [
    "Empirical",
    "GaussianMixture",
    "Including",
    "LeaveOneOut",
    "OfClass",
    "Oracle",
    "Parzen",
    "Quadrature",
    "fit_mixture",
]
