"""Exact p ∗ q: densities whose score under a kernel is known. Each is a model, so all is tested on it untrained."""

from gradlogp.oracles.base import Oracle
from gradlogp.oracles.empirical import Empirical
from gradlogp.oracles.mixture import GaussianMixture
from gradlogp.oracles.quadrature import Quadrature

__all__ = ["Empirical", "GaussianMixture", "Oracle", "Quadrature"]
