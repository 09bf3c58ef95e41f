"""Times for the likelihood weighting: where g²/sigma² has its mass."""

from __future__ import annotations

import torch
from torch import Tensor

from gradlogp._shapes import InputError, Level, as_count, as_level, as_number
from gradlogp.processes import Process
from gradlogp.processes.base import Time


class ImportanceTimes:
    """Times with density g(t)²/(Z sigma(t)²) on [t_min, t_max], so that the likelihood weighting g² has no weights.

    Since g² = 2 sigma² dλ/dt with λ = log(sigma/alpha) for every process, g² dt/sigma² is 2 dλ: λ is uniform,

        Z = 2 (λ(t_max) − λ(t_min)),    quantile(u) = time(exp(λ(t_min) + u (λ(t_max) − λ(t_min)))),

    and ½∫ g² E‖s − target‖² dt = Z/2 · E_t E‖sigma s + z‖². Nothing is integrated or inverted numerically.

    Args:
        process: t ↦ kernel.
        t_min: first time; by default the process's.
        t_max: last time; by default the process's. sigma/alpha must be finite there: it is on the whole domain.

    Raises:
        InputError: not a process, a time that is outside of its domain or not one number, or t_min >= t_max.

    Reference: Song, Durkan, Murray and Ermon (2021), "Maximum likelihood training of score-based diffusion models",
    section 5.1.
    """

    def __init__(self, process: Process, t_min: Time | None = None, t_max: Time | None = None) -> None:
        if not isinstance(process, Process):
            raise InputError(f"process: got {process!r}, want an instance of a process, such as processes.VP()")
        self.process = process
        self.t_min = _one_time(process, process.t_min if t_min is None else t_min, "t_min")
        self.t_max = _one_time(process, process.t_max if t_max is None else t_max, "t_max")
        if self.t_min >= self.t_max:
            raise InputError(f"t_min, t_max: got {self.t_min:g} and {self.t_max:g}, want t_min < t_max")
        self.first, self.last = (process.log_ratio(t).item() for t in (self.t_min, self.t_max))

    def __repr__(self) -> str:
        return f"ImportanceTimes({self.process!r}, t_min={self.t_min:g}, t_max={self.t_max:g})"

    @property
    def width(self) -> float:
        """λ(t_max) − λ(t_min): how many times the noise ratio grows e-fold."""
        return self.last - self.first

    @property
    def normaliser(self) -> float:
        """Z = ∫ g²/sigma² dt = 2 (λ(t_max) − λ(t_min)), without a unit."""
        return 2 * self.width

    def density(self, t: Time) -> Level:
        """g(t)²/(Z sigma(t)²), per unit of time, like t; 0 outside of [t_min, t_max].

        Raises:
            InputError: a time outside of the process's domain.
        """
        t = as_level(t, "t", positive=False)
        density = (self.process.diffusion(t) / self.process.sigma(t)).square() / self.normaliser
        return torch.where((t >= self.t_min) & (t <= self.t_max), density, 0.0)

    def quantile(self, u: Time) -> Level:
        """The time that a share u of the mass is before, like u.

        Raises:
            InputError: a share that is not in [0, 1].
        """
        u = as_level(u, "u", positive=False)
        if bool((u > 1).any()):
            raise InputError(f"u: got {u.max().item():g}, want shares from 0 to 1")
        ratio = (self.first + u.double() * self.width).exp()
        return self.process.time(ratio).clamp(self.t_min, self.t_max).to(u.dtype)

    def draw(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n stratified draws, ``(n,)`` in float64, in increasing order: one from each n-th of the mass.

        Raises:
            InputError: n < 1.
        """
        n = as_count(n, each=24)
        device = None if generator is None else generator.device
        inside = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
        return self.quantile((torch.arange(n, dtype=torch.float64, device=device) + inside) / n)


def _one_time(process: Process, t: Time, name: str) -> float:
    value = as_number(t, name, positive=False)
    if bool(process.domain.outside(torch.tensor(value, dtype=torch.float64))):
        raise InputError(f"{name}: got {value:g}, want {process.domain} for {process!r}")
    return value
