"""Log-densities: of the probability flow, bounds on those of the SDE, and what follows from denoising errors."""

from gradlogp.likelihood.flow import LogProb, log_prob
from gradlogp.likelihood.traces import Exact, Hutchinson, Trace

__all__ = ["Exact", "Hutchinson", "LogProb", "Trace", "log_prob"]
