"""DPM-Solver++: exponential integrators of the denoiser in λ = −log s, h = log(s/s')."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradlogp._shapes import Batch
from gradlogp.samplers.exponential import log_step, midpoint, mixed
from gradlogp.samplers.field import Field
from gradlogp.samplers.step import Evaluation, Memory, Step


class DPMSolverPP2S(Step):
    """y' = e^{−h} y + (1 − e^{−h}) D(u; s_m), s_m = √(s s'), u = e^{−h/2} y + (1 − e^{−h/2}) D(y; s).

    Two calls, order 2. Reference: Lu et al. (2022), "DPM-Solver++: Fast solver for guided sampling of diffusion
    probabilistic models", algorithm 1 with r = 1/2.
    """

    order = 2
    calls = 2

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """Two calls of the model."""
        middle = (s * s_next).sqrt()
        u = mixed(y, flow.denoise(y, s), s, middle, memory)
        return mixed(y, flow.denoise(u, middle), s, s_next, memory)


class DPMSolverPP2M(Step):
    """y' = e^{−h} y + (1 − e^{−h}) [(1 + 1/2r) D_0 − (1/2r) D_{−1}], r = h_{−1}/h; of order 1 in the first step.

    One call, order 2. Reference: Lu et al. (2022), "DPM-Solver++", algorithm 2.
    """

    order = 2

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """One call of the model."""
        memory.evaluate(flow, y, s, keep=2)
        return mixed(y, midpoint(memory.past, s, s_next), s, s_next, memory)


class DPMSolverPP3M(Step):
    """y' = e^{−h} y − φ₁ D_0 + φ₂ d₁ − φ₃ d₂, from the parabola in λ through the last three denoisers.

    φ₁ = e^{−h} − 1, φ₂ = φ₁/h + 1, φ₃ = φ₂/h − 1/2; with r₀ = h_{−1}/h, r₁ = h_{−2}/h, δ₀ = (D_0 − D_{−1})/r₀ and
    δ₁ = (D_{−1} − D_{−2})/r₁, the derivatives of the parabola, times h and h², are

        d₁ = δ₀ + r₀ (δ₀ − δ₁)/(r₀ + r₁),      d₂ = 2 (δ₀ − δ₁)/(r₀ + r₁).

    Published code has 1 for this 2, and then the order is 2. The first two steps are of orders 1 and 2.

    One call, order 3. Reference: Lu et al. (2022), "DPM-Solver++", appendix.

    Args:
        published: whether d₂ is as in published code; order 2.
    """

    def __init__(self, published: bool = False) -> None:
        self.published = published
        self.order = 2 if published else 3

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """One call of the model."""
        memory.evaluate(flow, y, s, keep=3)
        mean = parabola(memory.past, s, s_next, curvature=1.0 if self.published else 2.0)
        return mixed(y, mean, s, s_next, memory)


def parabola(
    past: Sequence[Evaluation], s: Tensor, s_next: Tensor, renewal: Tensor | float = 0.0, curvature: float = 2.0
) -> Batch:
    """D_0 + (φ₂ d₁ − φ₃ d₂)/(1 − e^{−H}): the mean of a parabola in λ with weight e^{−H(1−x)}, 0 < x < 1.

    H = h + c and φ at H, c the renewal: c is uniform in λ. With fewer than three evaluations, :func:`midpoint`.
    """
    if len(past) < 3:
        return midpoint(past, s, s_next)
    h = log_step(s, s_next)
    r0, r1 = (log_step(a.s, b.s) / h for a, b in ((past[1], past[0]), (past[2], past[1])))
    d0 = (past[0].denoised - past[1].denoised) / r0
    d1 = (past[1].denoised - past[2].denoised) / r1
    bend = (d0 - d1) / (r0 + r1)
    rate = h + renewal
    phi1 = torch.expm1(-rate)
    phi2 = phi1 / rate + 1  # its rounding, ε/h, meets d₁ ∝ h; that of φ₃, ε/h², d₂ ∝ h²
    phi3 = phi2 / rate - 0.5
    return past[0].denoised - (phi2 * (d0 + r0 * bend) - phi3 * curvature * bend) / phi1
