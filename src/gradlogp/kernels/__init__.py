"""Convolution kernels q: the noise x_t ~ k(· | x) of denoising score matching.

:class:`Gaussian` is the kernel of diffusion models; :class:`Additive` takes any density with a gradient. A kernel
for which J_ESM = J_DSM + C fails is refused when it is built.
"""

from gradlogp.kernels.additive import Additive
from gradlogp.kernels.base import GaussianForm, Kernel
from gradlogp.kernels.gaussian import Gaussian
from gradlogp.kernels.laws import GeneralizedNormal, Logistic

__all__ = ["Additive", "Gaussian", "GaussianForm", "GeneralizedNormal", "Kernel", "Logistic"]
