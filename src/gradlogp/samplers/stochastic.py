"""Methods that renew a part of the noise: each is a choice of which part, and of a mean of the denoiser.

"Order" is that of mean and covariance at the end, in the step size, for Gaussian data: of a weak error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError
from gradlogp.samplers.dpm import parabola
from gradlogp.samplers.exponential import as_amount, as_order, combined, log_step, midpoint, mixed, weights
from gradlogp.samplers.field import Field
from gradlogp.samplers.step import Memory, Step


class DDIM(Step):
    """y' = D + √(s'² − w²) ε + w z,   ε = (y − D)/s,   w = η (s'/s) √(s² − s'²).

    In :func:`~gradlogp.samplers.exponential.mixed`, e^{−2c} = 1 − η² (1 − (s'/s)²). η = 0 is Euler's method for the
    probability flow, η = 1 draws from the posterior q(y' | y, x = D).

    One call, order 1. Reference: Song, Meng and Ermon (2021), "Denoising diffusion implicit models", equation 12.

    Args:
        eta: η, from 0 to 1.

    Raises:
        InputError: an η that is not.
    """

    order = 1

    def __init__(self, eta: float = 0.0) -> None:
        self.eta = as_amount(eta, "eta", most=1.0)
        self.stochastic = self.eta > 0

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """One call of the model."""
        return mixed(y, flow.denoise(y, s), s, s_next, memory, _posterior(self.eta, s, s_next))


class Ancestral(Step):
    """y' = y + (s_↓ − s)(y − D)/s + s_↑ z,   s_↑ = η s' √(s² − s'²)/s,   s_↓ = √(s'² − s_↑²).

    Euler's method down to s_↓, and noise back up to s': the same law as :class:`DDIM` with the same η, in the words of
    ancestral sampling. η = 1 is DDPM with the smaller of its two variances, that of q(y' | y, x = D).

    One call, order 1. Reference: Ho, Jain and Abbeel (2020), "Denoising diffusion probabilistic models", equation 7.

    Args:
        eta: η, from 0 to 1.

    Raises:
        InputError: an η that is not.
    """

    order = 1

    def __init__(self, eta: float = 1.0) -> None:
        self.eta = as_amount(eta, "eta", most=1.0)
        self.stochastic = self.eta > 0

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """One call of the model."""
        return mixed(y, flow.denoise(y, s), s, s_next, memory, _posterior(self.eta, s, s_next))


def _posterior(eta: float, s: Tensor, s_next: Tensor) -> Tensor:
    """c with e^{−2c} = 1 − η² (1 − (s'/s)²); log(s/s') at η = 1."""
    return -0.5 * torch.log1p(eta**2 * torch.expm1(-2 * log_step(s, s_next)))


class SDEDPMSolverPP2M(Step):
    """y' = κ y + (1 − κ) [(1 + 1/2r) D_0 − (1/2r) D_{−1}] + s' √(1 − e^{−2ηh}) z,   κ = (s'/s) e^{−ηh}.

    r = h_{−1}/h, h = log(s/s'); of order 1 in the first step. η = 0 is DPM-Solver++ 2M.

    One call, order 2. Reference: Lu et al. (2022), "DPM-Solver++", section 6.

    Args:
        eta: η >= 0; 1 is the reverse SDE.

    Raises:
        InputError: a negative η.
    """

    order = 2

    def __init__(self, eta: float = 1.0) -> None:
        self.eta = as_amount(eta, "eta")
        self.stochastic = self.eta > 0

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """One call of the model."""
        memory.evaluate(flow, y, s, keep=2)
        c = self.eta * log_step(s, s_next)
        return mixed(y, midpoint(memory.past, s, s_next), s, s_next, memory, c)


class SDEDPMSolverPP3M(Step):
    """y' = κ y − φ₁ D_0 + φ₂ d₁ − φ₃ d₂ + s' √(1 − e^{−2ηh}) z,   κ = (s'/s) e^{−ηh}.

    As :class:`~gradlogp.samplers.dpm.DPMSolverPP3M`, with φ at H = (1 + η)h: φ₁ = e^{−H} − 1, φ₂ = φ₁/H + 1,
    φ₃ = φ₂/H − 1/2. η = 0 is that method, of order 3.

    One call. Reference: Lu et al. (2022), "DPM-Solver++", section 6; three steps as in its appendix.

    Args:
        eta: η >= 0; 1 is the reverse SDE.

    Raises:
        InputError: a negative η.
    """

    def __init__(self, eta: float = 1.0) -> None:
        self.eta = as_amount(eta, "eta")
        self.stochastic = self.eta > 0
        self.order = 2 if self.stochastic else 3

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """One call of the model."""
        memory.evaluate(flow, y, s, keep=3)
        c = self.eta * log_step(s, s_next)
        return mixed(y, parabola(memory.past, s, s_next, c), s, s_next, memory, c)


def extended(s: Tensor) -> Tensor:
    """φ(s) = s (e^{s^0.3} + 10): the noise scale that Cui et al. found best, s in units of about the data's scale."""
    return s * ((s**0.3).exp() + 10)


class ERSDE(Step):
    """y' = r y + Σ_j w_j D_j + √(s'² − r² s²) z,   r = φ(s')/φ(s),   w_j = ∫_{s'}^{s} φ(s') (φ'/φ²) ℓ_j(s) ds.

    ℓ_j are Lagrange's polynomials in s at the last levels, so that order 1 is y' = r y + (1 − r) D + noise. φ(s) = s
    is the probability flow, φ(s) = s² the reverse SDE (posterior sampling).

    One call; the first steps are of lower order. Reference: Cui et al. (2023), "Elucidating the solution space of
    extended reverse-time SDE for diffusion models", equations 16 to 18 in sigma/alpha.

    Args:
        order: number of evaluations used, 1 to 3.
        phi: φ, of float64 noise ratios, elementwise and differentiable by torch; φ(s)/s must not fall with s.

    Raises:
        InputError: another order, or, in a step, a φ(s)/s that falls.
    """

    stochastic = True

    def __init__(self, order: int = 1, phi: Callable[[Tensor], Tensor] = extended) -> None:
        self.evaluations = as_order(order, 3)
        self.order = min(self.evaluations, 2)
        self.phi = phi

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """One call of the model."""
        memory.evaluate(flow, y, s, keep=self.evaluations)
        w = weights([e.s for e in memory.past], s, s_next, self._density(s_next), lambda sigma: sigma)
        mean = combined(w / w.sum(), [e.denoised for e in memory.past])
        return mixed(y, mean, s, s_next, memory, self._renewal(s, s_next))

    def _density(self, s_next: Tensor) -> Callable[[Tensor], Tensor]:
        """φ(s') φ'(σ) σ/φ(σ)², against dλ."""

        def density(sigma: Tensor) -> Tensor:
            slope: Tensor = torch.func.grad(lambda u: self.phi(u).sum())(sigma)
            return self.phi(s_next) * slope * sigma / self.phi(sigma) ** 2

        return density

    def _renewal(self, s: Tensor, s_next: Tensor) -> Tensor:
        """c = log(φ(s)/s) − log(φ(s')/s')."""
        c = (self.phi(s) / self.phi(s_next)).log() - log_step(s, s_next)
        if not c > -1e-12:
            raise InputError(f"phi: phi(s)/s falls from s = {s_next.item():.4g} to {s.item():.4g}, want one that rises")
        return torch.where(c < 1e-14, 0.0, c)  # φ(s) ∝ s: rounding is no noise
