"""Reference-exact steps: the Gaussian part of the flow is integrated exactly, the rest by a multistep rule."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gradlogp._shapes import Batch
from gradlogp.models import GaussianReference
from gradlogp.samplers.exponential import as_order
from gradlogp.samplers.field import Field
from gradlogp.samplers.frame import Frame, adams_bashforth
from gradlogp.samplers.step import Memory, Residual, Step


class ReferenceExact(Step):
    """Adams–Bashforth on what is left of the flow beside a Gaussian's; exact in one step for Gaussian data.

    In the variables of :class:`~gradlogp.samplers.frame.Frame`, c' = r'·(c/r + ∫ q dx), q the polynomial in x through
    its last values. One call of the model.

    Args:
        reference: the Gaussian, as a rule ``model.reference``.
        order: 1 to 4; the first steps have as many values as there are.

    Raises:
        InputError: another order.

    Reference: exponential Adams–Bashforth methods as in Zhang and Chen (2023), "Fast sampling of diffusion models with
    exponential integrator", with the linear part of the Gaussian in place of −x/2.
    """

    def __init__(self, reference: GaussianReference, order: int = 2) -> None:
        self.frame = Frame.of(reference)
        self.order = as_order(order, 4)

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """One call of the model."""
        frame = self.frame.like(y)
        c = _coordinates(frame, y, memory)
        past = _remember(memory, Residual(s, frame.velocity(flow, y, c, s)), self.order)
        weights = adams_bashforth(self.frame.exactly, [p.s for p in past], s_next)
        return _moved(frame, y, frame.advance(c, s, s_next, [p.velocity for p in past], weights), memory)


class Tabulated(Step):
    """A multistep rule with weights of its own for each step, from a start that a Gaussian's flow reaches exactly.

    Its first step follows the Gaussian from s to ``levels[0]``, with no call of the model, and goes on from there.

    Args:
        frame: of the Gaussian.
        levels: n + 1 decreasing noise ratios; the first is where it lands.
        weights: of each of the n steps, over the last velocities, the newest first: ``(K,)`` or ``(K, D)``.
    """

    order = 1

    def __init__(self, frame: Frame, levels: Tensor, weights: Sequence[Tensor]) -> None:
        self.frame = frame
        self.levels = levels
        self.weights = weights

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """One call of the model."""
        frame, i = self.frame.like(y), memory.step
        c, at, weights = _coordinates(frame, y, memory), s, self.weights[i]
        if i == 0:
            at = self.levels[0]
            c = frame.exact(c, s, at)
            y = frame.back(c, tuple(y.shape[1:]))
        past = _remember(memory, Residual(at, frame.velocity(flow, y, c, at)), len(self.weights[-1]))
        c = frame.advance(c, at, s_next, [p.velocity for p in past][: len(weights)], weights)
        return _moved(frame, y, c, memory)


def _coordinates(frame: Frame, y: Batch, memory: Memory) -> Tensor:
    """Those of y, which are known if it is the state that was returned last."""
    known = memory.coordinates
    return known[1] if known is not None and known[0] is y else frame.into(y)


def _moved(frame: Frame, y: Batch, c: Tensor, memory: Memory) -> Batch:
    """The state at the coordinates c, of the shape of y."""
    moved = frame.back(c, tuple(y.shape[1:]))
    memory.coordinates = moved, c
    return moved


def _remember(memory: Memory, new: Residual, keep: int) -> list[Residual]:
    """Keep the newest ``keep`` residuals, this one included."""
    memory.residuals[:] = [new, *memory.residuals][:keep]
    return memory.residuals
