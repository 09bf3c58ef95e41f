"""What a process is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Level, as_level, per_row, require_batch
from gradlogp.kernels import Gaussian
from gradlogp.kernels.gaussian import same_rows

Number: TypeAlias = float | int
Time: TypeAlias = float | int | Tensor  # () or (B,)


@dataclass(frozen=True)
class Domain:
    """The times at which a process has a kernel: from low to high, either end in it or not."""

    low: float = 0.0
    high: float = 1.0
    low_in: bool = False
    high_in: bool = False

    def outside(self, t: Tensor) -> Tensor:
        """Which times are not in the domain, like t."""
        above = t >= self.low if self.low_in else t > self.low
        below = t <= self.high if self.high_in else t < self.high
        return ~(above & below)

    def __str__(self) -> str:
        low, high = "<=" if self.low_in else "<", "<=" if self.high_in else "<"
        return f"{self.low:g} {low} t" + ("" if math.isinf(self.high) else f" {high} {self.high:g}")


class Process(ABC):
    """A process t ↦ Gaussian(sigma(t), alpha(t)); a subclass gives log alpha, log(sigma/alpha), and its inverse.

    A time is a number or one a row, ``(B,)``; what comes back has its shape and dtype, float64 for a number.

    Attributes:
        t_min: where a default range of times starts, next to clean data.
        t_max: where it ends; sigma/alpha is finite there.
        domain: the times that are taken.

    Reference: Song et al. (2021), "Score-based generative modeling through stochastic differential equations".
    """

    t_min: float = 1e-5
    t_max: float = 1.0
    domain: Domain = Domain()

    @abstractmethod
    def _log_alpha(self, t: Tensor) -> Tensor:
        """Log alpha at float64 times in the domain, differentiable."""

    @abstractmethod
    def _log_ratio(self, t: Tensor) -> Tensor:
        """log(sigma/alpha) at float64 times in the domain, differentiable and increasing."""

    @abstractmethod
    def _time(self, ratio: Tensor) -> Tensor:
        """The inverse of sigma/alpha, for any positive float64 ratio."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value:g}' for name, value in vars(self).items())})"

    def __call__(self, t: Time) -> Gaussian:
        """The kernel at t: x_t = alpha(t)·x + sigma(t)·z.

        Raises:
            InputError: a time outside the domain.
        """
        return Gaussian(self.sigma(t), self.alpha(t))

    def log_alpha(self, t: Time) -> Level:
        """The log of :meth:`alpha`."""
        return self._at(t, self._log_alpha)

    def log_ratio(self, t: Time) -> Level:
        """The log of :meth:`ratio`."""
        return self._at(t, self._log_ratio)

    def alpha(self, t: Time) -> Level:
        """The factor of the clean data."""
        return self._at(t, lambda t: self._log_alpha(t).exp())

    def sigma(self, t: Time) -> Level:
        """The standard deviation of the noise, in the data's unit."""
        return self._at(t, self._sigma)

    def ratio(self, t: Time) -> Level:
        """sigma/alpha: the noise on x_t/alpha, in the data's unit."""
        return self._at(t, lambda t: self._log_ratio(t).exp())

    def time(self, ratio: Time) -> Level:
        """The t at which sigma/alpha is ``ratio``, in closed form; like ratio.

        Raises:
            InputError: a ratio that is not finite and positive, or that no time of the domain has.
        """
        ratio = as_level(ratio, "ratio")
        return self._time_of(ratio).to(ratio.dtype)

    def at_ratio(self, ratio: Time) -> Gaussian:
        """The kernel whose sigma/alpha is ``ratio``, with no rounding of t in between; errors as :meth:`time`."""
        ratio = as_level(ratio, "ratio")
        alpha = self._log_alpha(self._time_of(ratio)).exp()
        return Gaussian((alpha * ratio).to(ratio.dtype), alpha.to(ratio.dtype))

    def drift(self, x: Batch, t: Time) -> Batch:
        """f(t)·x with f = d log alpha/dt, like x; in the data's unit per unit of time.

        Raises:
            InputError: x is not a batch, times for another number of rows, or a time outside the domain.
        """
        require_batch(x)
        return per_row(_slope(self._log_alpha, self._times(t).double()), x) * x

    def diffusion(self, t: Time) -> Level:
        """g(t) = sigma·√(2 d log(sigma/alpha)/dt), in the data's unit per √time; like t.

        Raises:
            InputError: a time outside the domain.
        """
        return self._at(t, lambda t: self._sigma(t) * (2 * _slope(self._log_ratio, t)).sqrt())

    def between(self, s: Time, t: Time) -> Gaussian:
        """The transition kernel x_s → x_t, s < t: ``process(t)`` is ``process.between(s, t).after(process(s))``.

        alpha = alpha_t/alpha_s and sigma² = sigma_t² − (alpha_t/alpha_s)² sigma_s² = sigma_t²(1 − (ratio_s/ratio_t)²),
        by expm1 of the difference of log ratios, so that close times cost a few roundings of the log ratios, no more.

        Raises:
            InputError: a time outside the domain, an s that is not before its t, or different numbers of rows.

        Reference: Kingma et al. (2021), "Variational diffusion models", appendix A.
        """
        starts, ends = self._times(s, "s"), self._times(t, "t")
        same_rows("s and t", starts, ends)
        dtype = torch.result_type(starts, ends)
        s64, t64 = starts.double(), ends.double()
        _require_before(s64, t64)
        alpha = (self._log_alpha(t64) - self._log_alpha(s64)).exp()
        fresh = -torch.expm1(2 * (self._log_ratio(s64) - self._log_ratio(t64)))  # share of sigma_t² that is not of s
        return Gaussian((self._sigma(t64) * fresh.sqrt()).to(dtype), alpha.to(dtype))

    def _at(self, t: Time, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A function of float64 times, at checked times, in their dtype."""
        t = self._times(t)
        return function(t.double()).to(t.dtype)

    def _sigma(self, t: Tensor) -> Tensor:
        return (self._log_alpha(t) + self._log_ratio(t)).exp()

    def _times(self, t: Time, name: str = "t") -> Tensor:
        t = as_level(t, name, positive=False)
        outside = self.domain.outside(t)
        if bool(outside.any()):
            raise InputError(f"{name}: got {t[outside].reshape(-1)[0].item():g}, want {self.domain} for {self!r}")
        return t

    def _time_of(self, ratio: Tensor) -> Tensor:
        """Float64 times; a ratio that is that of an end but for rounding has the time of that end."""
        t, low, high = self._time(ratio.double()), self.domain.low, self.domain.high
        for end in [low] * self.domain.low_in + [high] * self.domain.high_in:
            at_end = self._log_ratio(t.new_tensor(end)).exp()
            t = torch.where((ratio / at_end - 1).abs() < 16 * torch.finfo(ratio.dtype).eps, end, t)
        outside = self.domain.outside(t)
        if bool(outside.any()):
            bad = ratio[outside].reshape(-1)[0].item()
            raise InputError(f"ratio: got {bad:g}, want a sigma/alpha that {self!r} has for {self.domain}")
        return t


def _require_before(s: Tensor, t: Tensor) -> None:
    s, t = torch.broadcast_tensors(s, t)
    late = s >= t
    if bool(late.any()):
        at_s, at_t = (v[late].reshape(-1)[0].item() for v in (s, t))
        raise InputError(f"s and t: got s = {at_s:g} and t = {at_t:g}, want s < t")


def _slope(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """The derivative of a function of each time, by autograd; also where gradients are switched off."""
    slope: Tensor = torch.func.grad(lambda t: function(t).sum())(t)
    return slope


def one_number(value: Number, name: str) -> float:
    """A finite number > 0."""
    level = as_level(value, name)
    if level.ndim:
        raise InputError(f"{name}: got shape {tuple(level.shape)}, want one number")
    return level.item()


def log_one_minus_exp(v: Tensor) -> Tensor:
    """log(1 − e^{−v}), v > 0, exact for small v."""
    return torch.log(-torch.expm1(-v))
