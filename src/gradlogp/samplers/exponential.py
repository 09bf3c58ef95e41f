"""What exponential integrators share: one step for a given mean of the denoiser, and the means of polynomials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, as_count, as_level
from gradlogp.samplers.polynomials import gauss, lagrange
from gradlogp.samplers.step import Evaluation, Memory

Variable: TypeAlias = Callable[[Tensor], Tensor]  # noise ratios -> what a polynomial is in, elementwise

_POINTS, _WEIGHTS = gauss(32)


def log_step(s: Tensor, s_next: Tensor) -> Tensor:
    """h = λ' − λ = log(s/s'), λ = −log s; > 0, and right for close levels."""
    return torch.log1p((s - s_next) / s_next)


def mixed(y: Batch, denoised: Batch, s: Tensor, s_next: Tensor, memory: Memory, renewal: Tensor | float = 0.0) -> Batch:
    """y' = κ y + (1 − κ) D + s' √(1 − e^{−2c}) z,   κ = (s'/s) e^{−c},   c >= 0.

    The law of y' given y = x + s·ε where D = x: of the noise, the share e^{−2c} of its variance at s' is the old
    ε, the rest is new. c = 0 is the probability flow, c = log(s/s') the posterior q(y' | y, x); every first-order
    method is a choice of c, and a method of higher order puts for D its mean over the step.

    Args:
        y: the state at s.
        denoised: D, or its mean over the step.
        s: noise ratio of y.
        s_next: that to go to, below s.
        memory: draws z.
        renewal: c.
    """
    c = torch.as_tensor(renewal, dtype=torch.float64)
    rate = log_step(s, s_next) + c
    mean = (-rate).exp() * y - torch.expm1(-rate) * denoised
    return mean if c == 0 else mean + s_next * (-torch.expm1(-2 * c)).sqrt() * memory.normal(y)


def midpoint(past: Sequence[Evaluation], s: Tensor, s_next: Tensor) -> Batch:
    """(1 + 1/2r) D_0 − (1/2r) D_{−1}, r = h_{−1}/h: a line in λ at the middle of the step; D_0 where that is all."""
    if len(past) < 2:
        return past[0].denoised
    half = log_step(s, s_next) / (2 * log_step(past[1].s, past[0].s))
    return past[0].denoised + half * (past[0].denoised - past[1].denoised)


def weights(levels: Sequence[Tensor], s: Tensor, s_next: Tensor, density: Variable, variable: Variable) -> Tensor:
    """∫ density(σ) ℓ_j(u(σ)) dλ from λ = −log s to −log s', ℓ_j Lagrange's polynomials at ``levels``; ``(k,)``.

    By Gauss and Legendre's rule in λ, 32 points: exact to rounding over a step of any length met in practice, and with
    no difference of large terms for close levels.

    Args:
        levels: where the polynomial is given, k noise ratios.
        s: where the step begins.
        s_next: where it ends.
        density: of the noise ratios at the points, ``(32,)``.
        variable: u, elementwise; what the polynomial is in.
    """
    h = log_step(s, s_next)
    sigma = s * (-h * _POINTS).exp()
    basis = lagrange(variable(torch.stack(list(levels))), variable(sigma))
    integrals: Tensor = basis @ (h * _WEIGHTS * density(sigma))
    return integrals


def combined(coefficients: Tensor, values: Sequence[Batch]) -> Batch:
    """Σ_j c_j v_j."""
    total = coefficients[0] * values[0]
    for c, v in zip(coefficients[1:], values[1:], strict=True):
        total = total + c * v
    return total


def polynomial_mean(
    evaluations: Sequence[Evaluation], s: Tensor, s_next: Tensor, variable: Variable = torch.log
) -> Batch:
    """∫ e^{−(λ'−l)} D(l) dl/(1 − e^{−h}): the mean of the polynomial through these D, as the flow weighs it."""
    w = weights([e.s for e in evaluations], s, s_next, lambda sigma: s_next / sigma, variable)
    return combined(w / w.sum(), [e.denoised for e in evaluations])


def as_order(order: int, highest: int) -> int:
    """Check an order: a whole number from 1 to the highest."""
    order = as_count(order, "order")
    if order > highest:
        raise InputError(f"order: got {order}, want 1 to {highest}")
    return order


def as_amount(value: float, name: str, most: float = float("inf")) -> float:
    """Check an option: one finite number from 0 to the most."""
    level = as_level(value, name, positive=False)
    if level.ndim or level.item() > most:
        got = tuple(level.shape) if level.ndim else f"{level.item():g}"
        raise InputError(f"{name}: got {got}, want one number from 0 to {most:g}")
    return level.item()
