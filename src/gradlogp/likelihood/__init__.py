"""Log-densities: of the probability flow, bounds on those of the SDE, and what follows from denoising errors.

Three numbers that are told apart. :func:`log_prob` is the **value** of the log-density of what the probability flow (an
ODE) makes of noise. :func:`bound` is an upper **bound** on −log-density of what the reverse SDE makes of it: another
density, unless the score is exact. :func:`denoising_log_prob` is a lower bound from denoising errors alone, with no
derivative of the model.
"""

from gradlogp.likelihood.bound import Bound, bound
from gradlogp.likelihood.bound_divergence import KLBound, kl_bound
from gradlogp.likelihood.bound_forms import BoundForm, DenoisingForm, DivergenceForm, HutchinsonForm
from gradlogp.likelihood.bound_method import BoundMethod
from gradlogp.likelihood.dequantise import (
    DenoisingSurrogate,
    Dequantisation,
    DequantiserFit,
    UniformDequantisation,
    VariationalDequantisation,
    fit_dequantiser,
)
from gradlogp.likelihood.difference import LogDensityDifference, log_density_difference
from gradlogp.likelihood.discrete import LogMass, MassBound, bits_per_dim, log_mass, mass_bound
from gradlogp.likelihood.divergence_between import kl_divergence
from gradlogp.likelihood.entropy import DenoisingLogProb, cross_entropy, denoising_log_prob, entropy
from gradlogp.likelihood.flow import LogProb, log_prob
from gradlogp.likelihood.gap import Gap, gap
from gradlogp.likelihood.mutual import IndependentGroups, mutual_information
from gradlogp.likelihood.probes import Hutchinson
from gradlogp.likelihood.times import ImportanceTimes
from gradlogp.likelihood.traces import Exact, Trace

__all__ = [
    "Bound",
    "BoundForm",
    "BoundMethod",
    "DenoisingForm",
    "DenoisingLogProb",
    "DenoisingSurrogate",
    "Dequantisation",
    "DequantiserFit",
    "DivergenceForm",
    "Exact",
    "Gap",
    "Hutchinson",
    "HutchinsonForm",
    "ImportanceTimes",
    "IndependentGroups",
    "KLBound",
    "LogDensityDifference",
    "LogMass",
    "LogProb",
    "MassBound",
    "Trace",
    "UniformDequantisation",
    "VariationalDequantisation",
    "bits_per_dim",
    "bound",
    "cross_entropy",
    "denoising_log_prob",
    "entropy",
    "fit_dequantiser",
    "gap",
    "kl_bound",
    "kl_divergence",
    "log_density_difference",
    "log_mass",
    "log_prob",
    "mass_bound",
    "mutual_information",
]
