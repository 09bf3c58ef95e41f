"""Processes that leave the data as they are and add noise: alpha = 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradlogp._shapes import InputError
from gradlogp.processes.base import Domain, Number, Process, one_number


class VE(Process):
    """Variance exploding, geometric: alpha = 1, sigma = sigma_min·(sigma_max/sigma_min)^t, 0 <= t <= 1.

    f = 0 and g² = 2 sigma² log(sigma_max/sigma_min). sigma(t) is the noise on *clean* data, and it is sigma_min at
    t = 0: the SDE has these marginals if it starts from p_0 = data ∗ N(0, sigma_min² I). Started at t = 0 from clean
    data it has variance sigma(t)² − sigma_min² only, which is that of ``between(0.0, t)``.

    Args:
        sigma_min: noise at t = 0, in the data's unit; > 0.
        sigma_max: noise at t = 1; > sigma_min.

    Raises:
        InputError: levels that are not finite, positive and increasing.

    Reference: Song et al. (2021), equation 9 and appendix C.
    """

    t_min = 0.0
    domain = Domain(low_in=True, high_in=True)

    def __init__(self, sigma_min: Number, sigma_max: Number) -> None:
        self.sigma_min, self.sigma_max = one_number(sigma_min, "sigma_min"), one_number(sigma_max, "sigma_max")
        if self.sigma_max <= self.sigma_min:
            raise InputError(
                f"sigma_min, sigma_max: got {self.sigma_min:g} and {self.sigma_max:g}, want sigma_min < sigma_max"
            )

    @property
    def _rate(self) -> float:
        """log(sigma_max/sigma_min)."""
        return math.log(self.sigma_max) - math.log(self.sigma_min)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _log_ratio(self, t: Tensor) -> Tensor:
        return math.log(self.sigma_min) + t * self._rate

    def _time(self, ratio: Tensor) -> Tensor:
        return (ratio.log() - math.log(self.sigma_min)) / self._rate


class EDM(Process):
    """Time is the noise level: alpha = 1, sigma = t, t > 0, in the data's unit; f = 0 and g² = 2t.

    Reference: Karras et al. (2022), "Elucidating the design space of diffusion-based generative models", table 1.
    """

    t_min = 0.002
    t_max = 80.0
    domain = Domain(high=math.inf)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _log_ratio(self, t: Tensor) -> Tensor:
        return t.log()

    def _time(self, ratio: Tensor) -> Tensor:
        return ratio
