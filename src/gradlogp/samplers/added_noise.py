"""Methods that add noise beside a step: Euler and Maruyama's, churn, and Langevin corrections.

"Order" is that of mean and covariance at the end, in the step size, for Gaussian data: of a weak error.
"""

from __future__ import annotations

import math

from torch import Tensor

from gradlogp._shapes import Batch, InputError, as_count, as_number
from gradlogp.samplers.exponential import as_amount
from gradlogp.samplers.field import Field
from gradlogp.samplers.runge_kutta import Heun
from gradlogp.samplers.step import Memory, Step


class EulerMaruyama(Step):
    """x' = x − Δ (f x − g² ∇log p_t(x)) + g √Δ z,   Δ = t − t': the reverse SDE, in the process's own time.

    x = x_t = alpha·y, drift f and diffusion g of the flow's process at t, ∇log p_t = (alpha·D − x)/sigma².

    One call, order 1. Reference: Song et al. (2021), "Score-based generative modeling through stochastic differential
    equations", equation 6.
    """

    order = 1
    stochastic = True

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """One call of the model."""
        t, elapsed = flow.time(s), flow.time(s) - flow.time(s_next)
        kernel, x = flow.kernel(s), flow.noisy(y, s)
        score = (kernel.alpha * flow.denoise(y, s) - x) / kernel.sigma**2
        g = flow.process.diffusion(t)
        x = x - elapsed * (flow.process.drift(x, t) - g**2 * score) + g * elapsed.sqrt() * memory.normal(x)
        return flow.clean(x, s_next)


class Churn(Step):
    """Heun's step from ŝ = (1 + γ)s to s', begun at ŷ = y + √(ŝ² − s²) S_noise z.

    γ = min(S_churn/n_steps, √2 − 1) where S_tmin <= s <= S_tmax, otherwise 0.

    Two calls, order 2 (for S_noise = 1; otherwise what is added is not what ŝ says, and the law is not that of the
    data). Reference: Karras et al. (2022), "Elucidating the design space of diffusion-based generative models",
    algorithm 2.

    Args:
        s_churn: S_churn, over all steps; 0 is Heun's method.
        n_steps: of the run, over which S_churn is divided.
        s_tmin, s_tmax: noise ratios between which noise is added. The process must have (1 + γ)·s_tmax.
        s_noise: S_noise, a factor of the noise that is added.

    Raises:
        InputError: options that are negative, or s_tmin >= s_tmax.
    """

    order = 2
    calls = 2

    def __init__(
        self, s_churn: float, n_steps: int, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
    ) -> None:
        self.s_churn, self.s_noise = as_amount(s_churn, "s_churn"), as_number(s_noise, "s_noise")
        self.n_steps = as_count(n_steps, "n_steps")
        self.s_tmin, self.s_tmax = as_amount(s_tmin, "s_tmin"), s_tmax
        if not self.s_tmin < s_tmax:
            raise InputError(f"s_tmin, s_tmax: got {s_tmin:g} and {s_tmax:g}, want s_tmin < s_tmax")
        self.stochastic = self.s_churn > 0

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """Two calls of the model."""
        inside = self.s_tmin <= s.item() <= self.s_tmax
        gamma = min(self.s_churn / self.n_steps, math.sqrt(2) - 1) if inside else 0.0
        if gamma > 0:
            y = y + s * math.sqrt(gamma * (2 + gamma)) * self.s_noise * memory.normal(y)
        return Heun()(flow, y, s * (1 + gamma), s_next, memory)


class PredictorCorrector(Step):
    """A step of another method to s', then n times y ← y + ε ∇log p_{s'}(y) + √(2ε) z,   ε = 2 (snr·s')².

    With ∇log p = (D − y)/s'² this is y ← y + 2 snr² (D − y) + 2 snr s' z. Song et al. set ε = 2 (snr·‖z‖/‖∇log p‖)²,
    the norms averaged over the batch; here their ratio is s', which it is for large events, so that a row does not
    depend on the batch.

    Langevin steps of a fixed size have a law of their own: with many levels, a direction of variance V at s' has
    V/(1 − (snr·s')²/V) instead, so that the order is 0. Calls: the predictor's, and n.

    Reference: Song et al. (2021), "Score-based generative modeling through stochastic differential equations",
    algorithms 2 to 5.

    Args:
        predictor: the other method.
        snr: the corrector's step, as a share of the noise; > 0, and < 1, beyond which Langevin steps do not settle.
        n_corrections: n.

    Raises:
        InputError: an snr that is not between 0 and 1, or an n below 1.
    """

    order = 0
    stochastic = True

    def __init__(self, predictor: Step, snr: float = 0.16, n_corrections: int = 1) -> None:
        self.predictor = predictor
        self.snr = as_number(snr, "snr")
        if not self.snr < 1:
            raise InputError(f"snr: got {self.snr:g}, want a number between 0 and 1")
        self.n_corrections = as_count(n_corrections, "n_corrections")
        self.calls = predictor.calls + self.n_corrections

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """The predictor's calls of the model, and one a correction."""
        y = self.predictor(flow, y, s, s_next, memory)
        for _ in range(self.n_corrections):
            pull = flow.denoise(y, s_next) - y
            y = y + 2 * self.snr**2 * pull + 2 * self.snr * s_next * memory.normal(y)
        return y
