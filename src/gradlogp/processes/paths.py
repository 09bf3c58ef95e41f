"""Paths from data at t = 0 to pure noise at t = 1, where sigma/alpha is infinite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradlogp.processes.base import Process


class Cosine(Process):
    """Cosine: alpha = cos(πt/2), sigma = sin(πt/2), 0 < t < 1; no signal is left at t = 1, where f and g are infinite.

    f = −(π/2)·tan(πt/2) and g² = π·tan(πt/2).

    Reference: Nichol and Dhariwal (2021), "Improved denoising diffusion probabilistic models", equation 17 with s = 0.
    """

    t_max = 0.999

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1 - t)).log()

    def _log_ratio(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t).log() - self._log_alpha(t)

    def _time(self, ratio: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(ratio)


class RectifiedFlow(Process):
    """The straight path x_t = (1 − t)·x + t·z: alpha = 1 − t, sigma = t, 0 < t < 1; noise is at t = 1.

    f = −1/(1 − t) and g² = 2t/(1 − t).

    Reference: Liu, Gong and Liu (2023), "Flow straight and fast: learning to generate and transfer data with rectified
    flow"; there time runs the other way.
    """

    t_max = 0.999

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def _log_ratio(self, t: Tensor) -> Tensor:
        return t.log() - torch.log1p(-t)

    def _time(self, ratio: Tensor) -> Tensor:
        return ratio / (1 + ratio)
