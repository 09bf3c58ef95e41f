"""Weights of the noise levels, λ(σ): what a loss at one level counts beside a loss at another.

All are for J = J_DSM(ψ; σ) at alpha = 1, with its ½ and summed over the event, and are written as

    λ(σ) = (2σ²/R)·w(σ/σ_d),        λ·J = w·‖ε̂ − z‖²/R,        ε̂ = −σψ,

R the number of directions in which the data vary and σ_d² their mean variance: w is the weight of the noise-prediction
loss per direction, which is 1 for ψ = 0. So weights have no unit, and losses of data of any size compare.

**Scaled kernels need nothing of their own.** With x_t = alpha·x + sigma·z and s = sigma/alpha, x_t/alpha is x + s·z,
the score of x_t is ψ(x_t/alpha; s)/alpha, and so J of x_t is J(s)/alpha². Hence sigma²·J of x_t is s²·J(s): the weight
sigma_t² on scores of x_t is :class:`SigmaSquared` at s. With g² = 2 sigma² d log s/dt, whatever the schedule,

    ∫ g² J_t dt = ∫ 2 s² J(s) d log s                                (½∫ g² E‖ψ_t − t‖² dt of the likelihood bound)

which is R·log(s_max/s_min) times the mean of :class:`SigmaSquared`'s loss over levels that are uniform in log s.

**Weight and law of the levels are two things.** What is minimised is ∫ λ(σ)p(σ)J(σ) dσ, p the density of the levels; to
minimise ∫ m(σ)J(σ) dσ with levels drawn from p, take λ = m/p: :class:`Drawn`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from gradlogp._shapes import InputError, Rows, as_count, as_level
from gradlogp.models import GaussianReference
from gradlogp.training.levels import Levels, TimeLevels


@dataclass(frozen=True)
class Scale:
    """What of the data a weight depends on.

    Attributes:
        variance: σ_d², the mean variance over the directions in which the data vary.
        n_directions: R, how many these are.
    """

    variance: float
    n_directions: int

    @classmethod
    def of(cls, reference: GaussianReference) -> Scale:
        """That of the Gaussian with the data's moments."""
        return cls(reference.data_scale.item() ** 2, reference.eigenvalues.numel())


class Weight(ABC):
    """λ(σ) for levels ``(B,)`` of data of a scale."""

    @abstractmethod
    def __call__(self, sigma: Rows, data: Scale) -> Rows:
        """λ(σ), ``(B,)``; fixed: what losses are told, and looks compared, in."""

    def minimised(self, loss: Rows, sigma: Rows) -> Rows:  # noqa: ARG002
        """What is minimised, given the losses λ(σ)·J of rows: these themselves, unless something is learnt."""
        return loss

    def parameters(self) -> list[nn.Parameter]:
        """What is trained along with the model: nothing, unless something is learnt."""
        return []


@dataclass(frozen=True)
class EDM(Weight):
    """λ = 2σ²(σ² + σ_d²)/(σ_d² R), w = 1 + σ²/σ_d²: the default.

    2σ⁴J is the denoiser's square error and c_out² = σ²σ_d²/(σ² + σ_d²), so λ·J is the mean square error of the
    network's output per direction, and 1 for a scalar skip alone. It is also the loss of v-prediction, or weight
    SNR + 1 on the denoiser's error.

    Reference: Karras et al. (2022), "Elucidating the design space of diffusion-based generative models", table 1.
    """

    def __call__(self, sigma: Rows, data: Scale) -> Rows:
        """λ(σ)."""
        return 2 * (sigma**2 / data.variance) * (sigma**2 + data.variance) / data.n_directions


@dataclass(frozen=True)
class Uniform(Weight):
    """λ = 2σ_d²/R, w = σ_d²/σ²: the score error itself, the same at all levels; the constant makes it unit-free.

    Its loss is about σ_d²/σ² per direction, so the smallest levels are nearly all of it.

    Reference: Vincent (2011), "A connection between score matching and denoising autoencoders", equation 9.
    """

    def __call__(self, sigma: Rows, data: Scale) -> Rows:
        """λ(σ)."""
        return torch.full_like(sigma, 2 * data.variance / data.n_directions)


@dataclass(frozen=True)
class Plain(Weight):
    """λ = 1: the objective as it is, in its own unit; for one level of noise, where no level counts beside another."""

    def __call__(self, sigma: Rows, data: Scale) -> Rows:  # noqa: ARG002
        """1."""
        return torch.ones_like(sigma)


@dataclass(frozen=True)
class SigmaSquared(Weight):
    """λ = 2σ²/R, w = 1: the loss of noise prediction, ‖ε̂ − z‖²/R.

    With levels drawn uniformly in log σ it is the likelihood objective of every process, importance-sampled
    (:class:`Likelihood`): in nats, R·log(σ_max/σ_min) times it. With times drawn uniformly
    (:class:`gradlogp.training.TimeLevels`) it is the usual objective of diffusion models.

    Reference: Song and Ermon (2019), "Generative modeling by estimating gradients of the data distribution", section
    4.2; Ho, Jain and Abbeel (2020), "Denoising diffusion probabilistic models", equation 14.
    """

    def __call__(self, sigma: Rows, data: Scale) -> Rows:
        """λ(σ)."""
        return 2 * sigma**2 / data.n_directions


@dataclass(frozen=True)
class SNR(Weight):
    """max(SNR, floor) on the denoiser's error ‖D − x‖²/(σ_d² R), SNR = σ_d²/σ²: w = max(1, floor·σ²/σ_d²).

    As ‖D − x‖² = 2σ⁴J, λ = 2σ⁴·max(SNR, floor)/(σ_d² R). A floor of 0 is the plain SNR, which is
    :class:`SigmaSquared`; 1 is the truncated SNR, which does not let the denoiser go unlearnt where all is noise.

    Args:
        floor: >= 0.

    Raises:
        InputError: a floor that is not finite and non-negative.

    Reference: Salimans and Ho (2022), "Progressive distillation for fast sampling of diffusion models", section 4.
    """

    floor: float = 1.0

    def __post_init__(self) -> None:
        as_level(self.floor, "floor", positive=False)

    def __call__(self, sigma: Rows, data: Scale) -> Rows:
        """λ(σ)."""
        return 2 * sigma**2 * (self.floor * sigma**2 / data.variance).clamp_min(1) / data.n_directions


@dataclass(frozen=True)
class MinSNR(Weight):
    """min(SNR, γ) on the denoiser's error ‖D − x‖²/(σ_d² R), SNR = σ_d²/σ²: w = min(1, γσ²/σ_d²).

    λ = 2σ⁴·min(SNR, γ)/(σ_d² R): noise prediction, but for levels below σ_d/√γ, which count less.

    Args:
        gamma: γ > 0.

    Raises:
        InputError: a γ that is not finite and positive.

    Reference: Hang et al. (2023), "Efficient diffusion training via Min-SNR weighting strategy".
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        as_level(self.gamma, "gamma")

    def __call__(self, sigma: Rows, data: Scale) -> Rows:
        """λ(σ)."""
        return 2 * sigma**2 * (self.gamma * sigma**2 / data.variance).clamp_max(1) / data.n_directions


@dataclass(frozen=True)
class Likelihood(Weight):
    """g(t)² of a process, for its times drawn uniformly: w = (t_max − t_min)·(d log s/dt)/log(s_max/s_min).

    g²·J of x_t is (g²/alpha²)·J(s) with s = sigma/alpha, and g² = 2 sigma² d log s/dt, so λ is g²/alpha² times

        c = (t_max − t_min)/(R·log(s_max/s_min)),        E_t λJ = ½∫ g² E‖ψ_t − t‖² dt / (R·log(s_max/s_min)),

    which is the mean of :class:`SigmaSquared`'s loss over log-uniform levels: the same objective, with the weight's
    variance in t on top (``benchmarks/loss_variance.py``). For levels of another law, see :class:`Drawn`.

    Args:
        times: the process with the range of its times, and the data's unit that it runs in.

    Raises:
        InputError: when called, a level that the process does not have.

    Reference: Song, Durkan, Murray and Ermon (2021), "Maximum likelihood training of score-based diffusion models",
    theorem 1.
    """

    times: TimeLevels

    def __call__(self, sigma: Rows, data: Scale) -> Rows:
        """λ(σ)."""
        process, unit = self.times.process, self.times.unit
        t = process.time(sigma / unit)
        g2 = (unit * process.diffusion(t) / process.alpha(t)) ** 2
        span = math.log(self.times.sigma_max / self.times.sigma_min)
        return g2 * ((self.times.t_max - self.times.t_min) / (data.n_directions * span))


@dataclass(frozen=True)
class Drawn(Weight):
    """A weight meant for levels of one law, for levels drawn from another: λ·p_meant/p_drawn.

    E_drawn[λ (p_meant/p_drawn) J] = E_meant[λJ] wherever both laws have the same levels: importance sampling.

    Args:
        weight: λ.
        meant: the levels that it was meant for.
        drawn: the levels that training draws.

    Raises:
        InputError: a weight with something to learn: give this one to it instead.

    Reference: Song, Durkan, Murray and Ermon (2021), "Maximum likelihood training of score-based diffusion models".
    """

    weight: Weight
    meant: Levels
    drawn: Levels

    def __post_init__(self) -> None:
        _require_fixed(self.weight)

    def __call__(self, sigma: Rows, data: Scale) -> Rows:
        """λ(σ)·p_meant(σ)/p_drawn(σ)."""
        return self.weight(sigma, data) * (self.meant.log_density(sigma) - self.drawn.log_density(sigma)).exp()


class LearnedVariance(Weight):
    """A weight over what is learnt of its own loss: λ·J·e^{−u(σ)} + u(σ) is minimised, over the model and u.

    For a given model the best u is log E[λJ | σ], and then every level counts alike: the weight that trains is
    λ/E[λJ | σ]. u is linear in log σ between knots, constant beyond the ends, 0 to begin with; in its values the loss
    is convex. Looks at held-out rows, and the losses told, are of λ·J alone, as u moves.

    Args:
        levels: the levels that it is for.
        weight: λ; EDM's unless said.
        n_knots: values of u, equally spaced in log σ.

    Attributes:
        at: log σ of the knots, ``(n_knots,)``.
        values: u there, ``(n_knots,)``; trained.

    Raises:
        InputError: fewer than 2 knots, or a weight with something to learn itself.

    Reference: Karras et al. (2024), "Analyzing and improving the training dynamics of diffusion models".
    """

    def __init__(self, levels: Levels, weight: Weight | None = None, n_knots: int = 16) -> None:
        n_knots = as_count(n_knots, "n_knots", least=2, most=10_000)
        self.weight = EDM() if weight is None else weight
        _require_fixed(self.weight)
        if not levels.sigma_min < levels.sigma_max:
            raise InputError(f"levels: got one level, {levels.sigma_min:g}, want a range to learn a variance over")
        low, high = math.log(levels.sigma_min), math.log(levels.sigma_max)
        self.at = torch.linspace(low, high, n_knots, dtype=torch.float64)
        self.values = nn.Parameter(torch.zeros(n_knots))

    def __call__(self, sigma: Rows, data: Scale) -> Rows:
        """λ(σ)."""
        return self.weight(sigma, data)

    def log_variance(self, sigma: Rows) -> Rows:
        """u(σ), ``(B,)``, differentiable in its values."""
        at, values = self.at.to(sigma), self.values.to(sigma)
        place = ((sigma.log() - at[0]) / (at[1] - at[0])).clamp(0, len(at) - 1)
        left = place.floor().long().clamp(max=len(at) - 2)
        share = place - left
        return values[left] * (1 - share) + values[left + 1] * share

    def minimised(self, loss: Rows, sigma: Rows) -> Rows:
        """λJ·e^{−u(σ)} + u(σ)."""
        u = self.log_variance(sigma)
        return loss * torch.exp(-u) + u

    def parameters(self) -> list[nn.Parameter]:
        """The values of u."""
        return [self.values]


def _require_fixed(weight: Weight) -> None:
    if weight.parameters():
        raise InputError(f"weight: got {type(weight).__name__}, which learns, want a fixed one")
