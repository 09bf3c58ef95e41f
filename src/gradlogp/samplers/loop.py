"""The one loop that drives every step."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, as_batch, as_count
from gradlogp.models import GaussianReference, ScoreModel, require_gaussian, require_model
from gradlogp.processes import Process
from gradlogp.samplers.field import Field
from gradlogp.samplers.grids import Grid, Levels, as_grid, karras, levels_of
from gradlogp.samplers.noise import Noise
from gradlogp.samplers.plans import plan_for
from gradlogp.samplers.reference import ReferenceExact
from gradlogp.samplers.starts import LOW_PRECISION, MOST_STEPS, ends, event_shape_of, require_within, seed_from, start
from gradlogp.samplers.step import Memory, Step, require_finite

N_STEPS = 20  # by default
_ROW_BYTES = 8  # of a number that is drawn, at least: of the parts and of the whole


@dataclass(frozen=True)
class State:
    """Where the loop stands.

    Attributes:
        step: steps taken so far, 0 to n_steps.
        sigma: the noise ratio sigma/alpha that y is at, in the data's unit; 0 where y is denoised.
        y: the batch in the data's own scale, y = x_t/alpha = x + sigma·z, ``(n, *event)``: a draw of p_sigma.
        alpha: the process's factor of the data at this level; 1 without a process.
    """

    step: int
    sigma: float
    y: Batch
    alpha: float = 1.0

    @property
    def x(self) -> Batch:
        """The process's own state, x_t = alpha·y: what the model is shown."""
        return self.y if self.alpha == 1 else self.alpha * self.y


def follow(flow: Field, y: Batch, levels: Tensor, step: Step, noise: Noise) -> Iterator[tuple[int, Tensor, Batch]]:
    """Follow a method along decreasing levels, yielding (steps taken, level, y): the start, and after each step.

    A step to a last level of 0 is y' = D(y; s).

    Raises:
        InputError: a state that is no longer finite; says at which step and level.
    """
    memory = Memory(noise)
    yield 0, levels[0], y
    for i, (s, s_next) in enumerate(pairwise(levels), 1):
        memory.step = i - 1
        with torch.no_grad():
            y = step(flow, y, s, s_next, memory) if s_next > 0 else flow.denoise(y, s)
        require_finite(y, i, len(levels) - 1, s_next)
        yield i, s_next, y


def trajectory(
    model: ScoreModel,
    x_or_n: Batch | int,
    n_steps: int | None = None,
    *,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    step: Step | None = None,
    grid: Grid | Levels | None = None,
    process: Process | None = None,
    event_shape: tuple[int, ...] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """Follow a sampler from σ_max to σ_min, yielding the start and the state after each step.

    Each :class:`State` holds y, a draw of p_σ in the data's own scale, and the process's x_t = alpha·y: the last y is
    what :func:`sample` returns.

    Without a step and a grid it is the default sampler, one call of the model a step: the Gaussian part of the flow is
    solved exactly, and levels and weights for the rest are fitted to the model by :func:`calibrate`, at the first use
    of a model and number of steps. A count starts from the Gaussian with the data's mean and covariance, seen at σ_max,
    where the model knows it, and from N(0, σ_max² I) otherwise.

    Args:
        model: a score model for Gaussian kernels.
        x_or_n: a noisy start y = x + σ_max·z in the data's own scale, ``(n, *event)``, whatever the process; or how
            many to draw. A process's own x_t starts as x_t/alpha, and a :class:`State` goes on from its ``y``.
        n_steps: steps of the grid; by default 20.
        sigma_max: where to start, in the data's unit; by default 10 standard deviations of the data's widest direction.
        sigma_min: where to stop; by default 0.002 of the data's scale. The result is at this level, not denoised.
        step: one step of a method; with a grid alone, :class:`ReferenceExact` of order 2.
        grid: (sigma_max, sigma_min, n_steps) -> n_steps + 1 decreasing levels; with a step alone, :func:`karras`. Or
            the levels themselves, from which the three then follow. A last level of 0 means: denoise at the one before,
            with one call of the model.
        process: t ↦ kernel with x_t = alpha·x + sigma·z; the levels are then noise ratios sigma/alpha. It changes the
            kernel that the model is shown and :attr:`State.x`, nothing else. By default alpha = 1.
        event_shape: shape of one sample, where the model does not know it.
        generator: source of the start and of a step's noise. The numbers of a row depend on its place alone.

    Raises:
        InputError: a model that was trained under other than Gaussian noise, levels that do not decrease or are not
            those asked for, no steps, an unknown event shape, or a state that is no longer finite (the message says at
            which step and level).
    """
    run = _Run.of(model, x_or_n, n_steps, (sigma_max, sigma_min), step, grid, process, event_shape, generator)
    return run.states(x_or_n, Noise(run.seed), generator)


def sample(
    model: ScoreModel,
    x_or_n: Batch | int,
    n_steps: int | None = None,
    *,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    step: Step | None = None,
    grid: Grid | Levels | None = None,
    process: Process | None = None,
    event_shape: tuple[int, ...] | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    callback: Callable[[State], None] | None = None,
) -> Batch:
    """Draws of p_{σ_min}, ``(n, *event)``: the last y of :func:`trajectory`, with its arguments and errors.

    They are in the data's own scale, whatever the process. Two more arguments: ``batch_size``, rows at a time, by
    default all of them (the draws do not depend on it); and ``callback``, which is called with each :class:`State` of
    each batch.
    """
    run = _Run.of(model, x_or_n, n_steps, (sigma_max, sigma_min), step, grid, process, event_shape, generator)
    n = len(x_or_n) if isinstance(x_or_n, Tensor) else x_or_n
    size = n if batch_size is None else as_count(batch_size, "batch_size", most=sys.maxsize)
    parts = []
    for first in range(0, n, size):
        some = x_or_n[first : first + size] if isinstance(x_or_n, Tensor) else min(size, n - first)
        for state in run.states(some, Noise(run.seed, first), generator):
            if callback is not None:
                callback(state)
        parts.append(state.y)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class _Run:
    """A sampler with its levels: all that the batches of a run share."""

    flow: Field
    step: Step
    levels: Tensor
    seed: int
    event_shape: tuple[int, ...] | None
    low_precision: torch.dtype | None

    @classmethod
    def of(
        cls,
        model: ScoreModel,
        x_or_n: Batch | int,
        n_steps: int | None,
        between: tuple[float | None, float | None],
        step: Step | None,
        grid: Grid | Levels | None,
        process: Process | None,
        event_shape: tuple[int, ...] | None,
        generator: torch.Generator | None,
    ) -> _Run:
        _check_parts(model, process, step)
        require_gaussian(model, "sampler")
        grid, n_steps, between = as_grid(grid, n_steps, between)
        high, low = ends(model, *between)
        require_within(process, high, low)
        n_steps = N_STEPS if n_steps is None else as_count(n_steps, "n_steps", most=MOST_STEPS)
        given = as_batch(x_or_n, "x") if isinstance(x_or_n, Tensor) else None
        if given is None and not isinstance(x_or_n, int | np.integer):
            raise InputError(
                f"x_or_n: got {type(x_or_n).__name__}, want a torch.Tensor of noisy rows, or a whole number"
            )
        asked = x_or_n.dtype if isinstance(x_or_n, Tensor) else None
        low_precision = asked if asked in LOW_PRECISION else None
        flow = Field(model, process, low_precision)
        event_shape = event_shape_of(model, event_shape, given)
        if given is None:
            as_count(x_or_n, most=sys.maxsize, each=_ROW_BYTES * math.prod(event_shape))
        if step is None and grid is None:
            plan = plan_for(flow, n_steps, (high, low), event_shape, given)
            step, levels = plan.step, plan.grid
        else:
            step = ReferenceExact(_reference(model)) if step is None else step
            levels = levels_of(karras if grid is None else grid, high, low, n_steps)
        return cls(flow, step, levels, seed_from(generator), event_shape, low_precision)

    def states(self, x_or_n: Batch | int, noise: Noise, generator: torch.Generator | None) -> Iterator[State]:
        """The states of some rows."""
        first = start(self.flow.model, x_or_n, self.levels[0], self.event_shape, noise, generator)
        if self.low_precision is not None:
            first = first.float()  # the model sees its own dtype, the state keeps its digits
        for i, s, y in follow(self.flow, first, self.levels, self.step, noise):
            alpha = self.flow.kernel(s).alpha.item() if s > 0 else 1.0
            yield State(i, s.item(), y if self.low_precision is None else y.to(self.low_precision), alpha)


def _check_parts(model: object, process: object, step: object) -> None:
    require_model(model)
    if process is not None and not isinstance(process, Process):
        raise InputError(f"process: got {process!r}, want an instance of a process, such as processes.VP()")
    if step is not None and not isinstance(step, Step):
        raise InputError(f"step: got {step!r}, want an instance of a step, such as samplers.Heun()")


def _reference(model: ScoreModel) -> GaussianReference:
    if model.reference is None:
        raise InputError("grid: this model knows no Gaussian of its data's moments, want a step too, e.g. step=heun")
    return model.reference
