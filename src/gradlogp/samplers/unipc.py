"""UniPC: a predictor of DPM-Solver++'s kind, and a corrector that costs no call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gradlogp._shapes import Batch
from gradlogp.samplers.exponential import as_order, midpoint, mixed, polynomial_mean
from gradlogp.samplers.field import Field
from gradlogp.samplers.step import Evaluation, Memory, Step


class UniPC(Step):
    """y' = e^{−h} y + (1 − e^{−h}) D̄, twice: predicted from past denoisers, corrected once D is known at the end.

    D̄ is the mean ∫ e^{−(λ'−l)} D(l) dl/(1 − e^{−h}) of a polynomial in λ. Predictor of order p: through
    D_0 … D_{1−p}; corrector: through the denoiser at the predicted state too. Two lines have the weights of the
    published B(h) = e^{h} − 1 instead: predictor of order 2, (1 + 1/2r) D_0 − (1/2r) D_{−1}; corrector of order 1,
    (D' + D_0)/2. The next step starts from the corrected state, and past denoisers are those at predicted states. The
    states in a trajectory are the predicted ones; the last is not corrected, as its denoiser is not known.

    One call, order p + 1 (p without the corrector). The first steps are of lower order.

    Reference: Zhao et al. (2023), "UniPC: A unified predictor-corrector framework for fast sampling of diffusion
    models", algorithms 1 and 2.

    Args:
        order: p, of the predictor: 1, 2 or 3.
        corrector: whether to correct.

    Raises:
        InputError: another order.
    """

    def __init__(self, order: int = 2, corrector: bool = True) -> None:
        self.predictor_order = as_order(order, 3)
        self.corrector = corrector
        self.order = self.predictor_order + corrector

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """One call of the model."""
        denoised = flow.denoise(y, s)
        if self.corrector and memory.past:
            y = _corrected(Evaluation(s, y, denoised), memory)
        memory.past[:] = [Evaluation(s, y, denoised), *memory.past][: self.predictor_order]
        return mixed(y, _predicted(memory.past, s, s_next), s, s_next, memory)


def _predicted(past: Sequence[Evaluation], s: Tensor, s_next: Tensor) -> Batch:
    """D̄ of the step to come."""
    return midpoint(past, s, s_next) if len(past) < 3 else polynomial_mean(past, s, s_next)


def _corrected(new: Evaluation, memory: Memory) -> Batch:
    """The step that led to ``new``, taken again with its denoiser."""
    last = memory.past[0]
    if len(memory.past) == 1:
        mean = (new.denoised + last.denoised) / 2
    else:
        mean = polynomial_mean([new, *memory.past], last.s, new.s)
    return mixed(last.y, mean, last.s, new.s, memory)
