"""What a step is, and what it carries to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError
from gradlogp.samplers.field import Field


@dataclass(frozen=True)
class Evaluation:
    """One call of the model: D(y; s).

    Attributes:
        s: noise ratio sigma/alpha, a float64 scalar.
        y: where, ``(n, *event)``.
        denoised: D(y; s), like y.
    """

    s: Tensor
    y: Batch
    denoised: Batch

    @property
    def slope(self) -> Batch:
        """dy/ds = (y − D)/s."""
        return (self.y - self.denoised) / self.s.to(self.y)


@dataclass(frozen=True)
class Residual:
    """What of the flow is left beside a Gaussian's, at one level: q of :class:`~gradlogp.samplers.frame.Frame`.

    Attributes:
        s: noise ratio sigma/alpha, a float64 scalar.
        velocity: q, ``(n, D)`` in eigen-coordinates.
    """

    s: Tensor
    velocity: Tensor


@dataclass
class Memory:
    """What a method carries from one step to the next.

    Attributes:
        normal: draws standard normal numbers like its argument; the same for a row whatever batch it is in.
        step: steps taken so far.
        past: evaluations so far, the newest first; a method keeps as many as it needs.
        residuals: the same of a reference-exact method.
        coordinates: the state that a reference-exact step returned last, and its eigen-coordinates.
        step_size: of a method that chooses its own, one a row.
    """

    normal: Callable[[Batch], Batch]
    step: int = 0
    past: list[Evaluation] = field(default_factory=list)
    residuals: list[Residual] = field(default_factory=list)
    coordinates: tuple[Batch, Tensor] | None = None
    step_size: Tensor | None = None

    def evaluate(self, flow: Field, y: Batch, s: Tensor, keep: int) -> Evaluation:
        """Call the model at (y, s), and keep this evaluation and those before it, ``keep`` in all."""
        new = Evaluation(s, y, flow.denoise(y, s))
        self.past[:] = [new, *self.past][:keep]
        return new


class Step(ABC):
    """One step of a method, from noise ratio s down to s_next, in y = x_t/alpha.

    A step has no state of its own: what a multistep method carries is in the memory, which is new for each run.

    Attributes:
        order: of the error in the step size: of the end point, or in law where the step draws noise.
        calls: calls of the model in a step.
        stochastic: whether it draws noise.
    """

    order: int
    calls: int = 1
    stochastic: bool = False

    @abstractmethod
    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """The state at s_next, like y.

        Args:
            flow: the model.
            y: the state at s, ``(n, *event)``.
            s: its noise ratio, a float64 scalar.
            s_next: where to go, likewise, s > s_next > 0.
            memory: of this run.
        """


def require_finite(y: Tensor, i: int, n_steps: int, s: Tensor) -> None:
    """Check a state after step i; the message says at which step and level.

    Raises:
        InputError: it is not finite.
    """
    if not bool(torch.isfinite(y).all()):
        at = f"after step {i} of {n_steps}, at sigma = {s.item():.4g}"
        raise InputError(f"sampler: not finite {at}; check the model and its levels")
