"""Adams and Bashforth's multistep methods, with levels as they come: a polynomial through the past, integrated."""

from __future__ import annotations

import torch
from torch import Tensor

from gradlogp._shapes import Batch
from gradlogp.samplers.exponential import Variable, as_order, combined, mixed, polynomial_mean, weights
from gradlogp.samplers.field import Field
from gradlogp.samplers.step import Memory, Step


class ExponentialAdamsBashforth(Step):
    """y' = e^{−h} y + Σ_j w_j D_j, w_j = ∫_λ^{λ'} e^{−(λ'−l)} ℓ_j(u(l)) dl: DEIS, for the denoiser.

    ℓ_j are Lagrange's polynomials in u = −λ = log s (or another variable) at the last levels; h = λ' − λ = log(s/s').
    With ``noise``, the polynomial is that of ε = (y − D)/s, as published:

        y' = y + Σ_j w_j ε_j,      w_j = ∫_s^{s'} ℓ_j(u(s)) ds.

    One call, the order given; the first steps are of lower order.

    Reference: Zhang and Chen (2023), "Fast sampling of diffusion models with exponential integrator", section 3.

    Args:
        order: number of evaluations used, 1 to 4.
        noise: whether the polynomial is of the noise, not of the denoiser.
        variable: u, elementwise of noise ratios: ``torch.log``, or ``process.time`` for a polynomial in time.

    Raises:
        InputError: another order.
    """

    def __init__(self, order: int = 3, noise: bool = False, variable: Variable = torch.log) -> None:
        self.order = as_order(order, 4)
        self.noise = noise
        self.variable = variable

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """One call of the model."""
        memory.evaluate(flow, y, s, keep=self.order)
        if self.noise:
            return y + _noise_integral(memory, s, s_next, self.variable)
        return mixed(y, polynomial_mean(memory.past, s, s_next, self.variable), s, s_next, memory)


class LinearMultistep(Step):
    """y' = y + Σ_j w_j (dy/ds)_j, w_j = ∫_s^{s'} ℓ_j(s) ds, ℓ_j Lagrange's polynomials in s at the last levels.

    One call, the order given; the first steps are of lower order.

    Reference: Hairer, Nørsett and Wanner (1993), "Solving ordinary differential equations I", section III.5.

    Args:
        order: number of slopes used, 1 to 4.

    Raises:
        InputError: another order.
    """

    def __init__(self, order: int = 4) -> None:
        self.order = as_order(order, 4)

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """One call of the model."""
        memory.evaluate(flow, y, s, keep=self.order)
        return y + _noise_integral(memory, s, s_next, lambda sigma: sigma)


def _noise_integral(memory: Memory, s: Tensor, s_next: Tensor, variable: Variable) -> Batch:
    """∫_s^{s'} of the polynomial through the past slopes: ds = −s dλ."""
    w = weights([e.s for e in memory.past], s, s_next, lambda sigma: -sigma, variable)
    return combined(w, [e.slope for e in memory.past])
