"""Samplers: a step, and the one loop that drives it.

The probability-flow ODE of x_σ = x + σz is dx/dσ = −σ ∇log p_σ(x) (Song et al. 2021, equation 13; Karras et al. 2022,
equation 1): followed from σ_max down to σ_min it turns a draw of p_{σ_max} into a draw of p_{σ_min}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, as_batch, as_count, as_level
from gradlogp.kernels import Gaussian
from gradlogp.models import ScoreModel, event_of

Step = Callable[[ScoreModel, Batch, Tensor, Tensor], Batch]
Grid = Callable[[float, float, int], Tensor]

START = 10.0  # default sigma_max, in standard deviations of the widest direction of the data
STOP = 0.002  # default sigma_min, in units of the data's scale


def euler(model: ScoreModel, x: Batch, sigma: Tensor, sigma_next: Tensor) -> Batch:
    """First order: x + (σ' − σ)·(−σ ψ(x; σ)). One call of the model."""
    return x + (sigma_next - sigma) * _slope(model, x, sigma)


def heun(model: ScoreModel, x: Batch, sigma: Tensor, sigma_next: Tensor) -> Batch:
    """Second order: the mean of the slopes at both ends (Karras et al. 2022, algorithm 1). Two calls of the model."""
    slope = _slope(model, x, sigma)
    ahead = _slope(model, x + (sigma_next - sigma) * slope, sigma_next)
    return x + (sigma_next - sigma) * (slope + ahead) / 2


def _slope(model: ScoreModel, x: Batch, sigma: Tensor) -> Batch:
    """dx/dσ = −σ ψ(x; σ)."""
    return -sigma.to(x) * model.score(x, Gaussian(sigma))


def karras(sigma_max: float, sigma_min: float, n_steps: int, rho: float = 7.0) -> Tensor:
    """Levels σ_i = (σ_max^{1/ρ} + i/n (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ, i = 0 … n, in float64 (Karras et al. 2022, 5)."""
    ramp = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    levels: Tensor = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return levels


@dataclass(frozen=True)
class State:
    """Where the loop stands.

    Attributes:
        step: steps taken so far, 0 to n_steps.
        sigma: the noise level that x is at, in the data's unit.
        x: the batch, ``(n, *event)``.
    """

    step: int
    sigma: float
    x: Batch


def trajectory(
    model: ScoreModel,
    x_or_n: Batch | int,
    n_steps: int = 20,
    *,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    step: Step = heun,
    grid: Grid = karras,
    event_shape: tuple[int, ...] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """Follow the flow from σ_max to σ_min, yielding the start and the state after each step.

    A count starts from the Gaussian with the data's mean and covariance, seen at σ_max, where the model knows it, and
    from N(0, σ_max² I) otherwise.

    Args:
        model: a score model.
        x_or_n: a noisy start at σ_max, ``(n, *event)``, or how many to draw.
        n_steps: steps of the grid.
        sigma_max: where to start, in the data's unit; by default 10 standard deviations of the data's widest direction.
        sigma_min: where to stop; by default 0.002 of the data's scale. The result is at this level, not denoised.
        step: one step of a method.
        grid: (sigma_max, sigma_min, n_steps) -> n_steps + 1 decreasing levels.
        event_shape: shape of one sample, where the model does not know it.
        generator: source of the start.

    Raises:
        InputError: levels that do not decrease, no steps, an unknown event shape, or a state that is no longer finite
            (the message says at which step and level).
    """
    sigma_max, sigma_min = _levels(model, sigma_max, sigma_min)
    if n_steps < 1:
        raise InputError(f"n_steps: got {n_steps}, want at least 1")
    x = _start(model, x_or_n, sigma_max, event_shape, generator)
    levels = grid(sigma_max, sigma_min, n_steps)
    yield State(0, levels[0].item(), x)
    for i, (sigma, sigma_next) in enumerate(pairwise(levels), 1):
        with torch.no_grad():
            x = step(model, x, sigma, sigma_next)
        if not bool(torch.isfinite(x).all()):
            raise InputError(
                f"sampler: not finite after step {i} of {n_steps}, at sigma = {sigma_next.item():.4g}; check the model"
            )
        yield State(i, sigma_next.item(), x)


def sample(
    model: ScoreModel,
    x_or_n: Batch | int,
    n_steps: int = 20,
    *,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    step: Step = heun,
    grid: Grid = karras,
    event_shape: tuple[int, ...] | None = None,
    generator: torch.Generator | None = None,
) -> Batch:
    """The last state of :func:`trajectory`: draws of p_{σ_min}, ``(n, *event)``; same arguments and errors."""
    states = trajectory(
        model, x_or_n, n_steps, sigma_max=sigma_max, sigma_min=sigma_min, step=step, grid=grid,
        event_shape=event_shape, generator=generator,
    )  # fmt: skip
    x = None
    for state in states:
        x = state.x
    assert x is not None
    return x


def _levels(model: ScoreModel, sigma_max: float | None, sigma_min: float | None) -> tuple[float, float]:
    reference = model.reference
    if reference is None and (sigma_max is None or sigma_min is None):
        raise InputError("sigma_max, sigma_min: this model does not know the data's scale, want both given")
    if reference is not None:
        sigma_max = START * reference.eigenvalues.max().sqrt().item() if sigma_max is None else sigma_max
        sigma_min = STOP * reference.data_scale.item() if sigma_min is None else sigma_min
    high, low = (as_level(v, name).item() for v, name in ((sigma_max, "sigma_max"), (sigma_min, "sigma_min")))
    if high <= low:
        raise InputError(f"sigma_max, sigma_min: got {high:g} and {low:g}, want sigma_max > sigma_min")
    return high, low


def _start(
    model: ScoreModel,
    x_or_n: Batch | int,
    sigma_max: float,
    event_shape: tuple[int, ...] | None,
    generator: torch.Generator | None,
) -> Batch:
    if isinstance(x_or_n, Tensor):
        return as_batch(x_or_n, "x")
    n = as_count(x_or_n)
    if model.reference is not None:
        return model.reference.sample_noisy(n, Gaussian(sigma_max), generator=generator)
    event_shape = event_shape or event_of(model)
    if event_shape is None:
        raise InputError("event_shape: the model does not know it, want the shape of one sample, e.g. (2,)")
    device = generator.device if generator is not None else None
    return sigma_max * torch.randn(n, *event_shape, generator=generator, device=device)
