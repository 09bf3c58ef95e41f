"""Processes that shrink the data at a rate, alpha = e^{−∫rate}: Song's two, and the one with a constant rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradlogp._shapes import InputError
from gradlogp.processes.base import Domain, Number, Process, log_one_minus_exp, one_number


class _LinearBeta(Process):
    """alpha = e^{−B/2}, B(t) = ∫₀ᵗ beta = beta_min·t + (beta_max − beta_min)·t²/2, so f = −beta(t)/2."""

    domain = Domain(high_in=True)

    def __init__(self, beta_min: Number = 0.1, beta_max: Number = 20.0) -> None:
        self.beta_min, self.beta_max = one_number(beta_min, "beta_min"), one_number(beta_max, "beta_max")
        if self.beta_max < self.beta_min:
            raise InputError(
                f"beta_min, beta_max: got {self.beta_min:g} and {self.beta_max:g}, want beta_min <= beta_max"
            )

    def _integral(self, t: Tensor) -> Tensor:
        """B(t)."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def _inverse(self, integral: Tensor) -> Tensor:
        """The t >= 0 with B(t) = ``integral``, by the form of the quadratic formula that does not cancel."""
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return 2 * integral / (self.beta_min + root)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * self._integral(t)


class VP(_LinearBeta):
    """Variance preserving: alpha = e^{−B/2}, sigma² = 1 − e^{−B}, 0 < t <= 1.

    B = beta_min·t + (beta_max − beta_min)·t²/2, f = −beta(t)/2 and g² = beta(t) = beta_min + (beta_max − beta_min)·t.
    At t = 1 the data are not gone: with the defaults alpha = e^{−5.025} = 0.0066.

    Args:
        beta_min: beta(0); > 0.
        beta_max: beta(1); >= beta_min.

    Raises:
        InputError: rates that are not finite and positive, or that decrease.

    Reference: Song et al. (2021), equation 11 and appendix C.
    """

    def _log_ratio(self, t: Tensor) -> Tensor:
        b = self._integral(t)
        return 0.5 * (b + log_one_minus_exp(b))

    def _time(self, ratio: Tensor) -> Tensor:
        return self._inverse(torch.log1p(ratio**2))


class SubVP(_LinearBeta):
    """Sub-variance preserving: alpha = e^{−B/2}, sigma = 1 − e^{−B} (the standard deviation), 0 < t <= 1.

    f = −beta(t)/2 and g² = beta(t)·(1 − e^{−2B}), with B and beta those of :class:`VP`.

    Args:
        beta_min: beta(0); > 0.
        beta_max: beta(1); >= beta_min.

    Raises:
        InputError: rates that are not finite and positive, or that decrease.

    Reference: Song et al. (2021), equation 12 and appendix C.
    """

    def _log_ratio(self, t: Tensor) -> Tensor:
        b = self._integral(t)
        return 0.5 * b + log_one_minus_exp(b)

    def _time(self, ratio: Tensor) -> Tensor:
        return self._inverse(2 * torch.asinh(0.5 * ratio))


class OrnsteinUhlenbeck(Process):
    """dx = −x dt + √2 dw: alpha = e^{−t}, sigma² = 1 − e^{−2t}, t > 0; f = −1 and g² = 2.

    Reference: Uhlenbeck and Ornstein (1930), "On the theory of the Brownian motion".
    """

    t_max = 5.0
    domain = Domain(high=math.inf)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -t

    def _log_ratio(self, t: Tensor) -> Tensor:
        return t + 0.5 * log_one_minus_exp(2 * t)

    def _time(self, ratio: Tensor) -> Tensor:
        return 0.5 * torch.log1p(ratio**2)
