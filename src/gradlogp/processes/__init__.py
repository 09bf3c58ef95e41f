"""Processes: a map t ↦ Gaussian kernel, with the linear SDE that has these kernels.

x_t | x_0 ~ N(alpha(t)·x_0, sigma(t)² I) is the marginal of dx = f(t)·x dt + g(t) dw if and only if

    f = d log alpha/dt,        g² = d sigma²/dt − 2 f sigma² = 2 sigma² d log(sigma/alpha)/dt        (Song et al. 2021)

so a process is two functions of time, log alpha and log(sigma/alpha); drift and diffusion are their derivatives. They
are computed in float64, whatever the dtype of t, and rounded once.
"""

from gradlogp.processes.base import Domain, Process
from gradlogp.processes.exploding import EDM, VE
from gradlogp.processes.paths import Cosine, RectifiedFlow
from gradlogp.processes.preserving import VP, OrnsteinUhlenbeck, SubVP

__all__ = ["EDM", "VE", "VP", "Cosine", "Domain", "OrnsteinUhlenbeck", "Process", "RectifiedFlow", "SubVP"]
