"""One-step methods for the probability flow dy/ds = (y − D)/s."""

from __future__ import annotations

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows, as_count, as_number, per_row, sum_event
from gradlogp.samplers.field import Field
from gradlogp.samplers.step import Memory, Step


class Euler(Step):
    """y' = y + (s' − s)(y − D)/s: DDIM without noise (Song, Meng and Ermon 2021), for every process."""

    order = 1

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:  # noqa: ARG002
        """One call of the model."""
        return y + (s_next - s).to(y) * flow.slope(y, s)


class Heun(Step):
    """y' = y + (s' − s)(d + d')/2: the mean of the slopes at both ends (Karras et al. 2022, algorithm 1)."""

    order = 2
    calls = 2

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:  # noqa: ARG002
        """Two calls of the model."""
        h, slope = (s_next - s).to(y), flow.slope(y, s)
        return y + h * (slope + flow.slope(y + h * slope, s_next)) / 2


class DPMSolver2(Step):
    """y' = y + (s' − s) ε(u; s_m), ε = (y − D)/s, u = y + (s_m − s) ε(y; s), s_m = √(s s'): the middle in log s.

    Two calls, order 2. Reference: Lu et al. (2022), "DPM-Solver: A fast ODE solver for diffusion probabilistic model
    sampling in around 10 steps", algorithm 1 with r = 1/2.
    """

    order = 2
    calls = 2

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:  # noqa: ARG002
        """Two calls of the model."""
        middle = (s * s_next).sqrt()
        u = y + (middle - s) * flow.slope(y, s)
        return y + (s_next - s) * flow.slope(u, middle)


_FIRST = 0.25  # first trial step in log s
STAGES = (  # Dormand and Prince's pair: one line a stage
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # order 5 less order 4


class AdaptiveRungeKutta(Step):
    """dy/dτ = D − y, τ = −log s, by Dormand and Prince's pair 5(4), with a step size for each row.

    A trial step of a row is taken if e = ‖(y'₅ − y'₄)/(atol + rtol max(|y|, |y'|))‖ <= 1, the root mean square over the
    event, and its next size is 0.9 e^{−1/5} (from 0.2 to 5) times as long. No row looks at another, so that results do
    not depend on the batch; rows that have arrived are left out of the calls. The last sizes are carried to the next
    level.

    Six calls a trial step, and one a level; order 5 in the size, and an error in proportion to rtol and atol.

    Reference: Dormand and Prince (1980), "A family of embedded Runge-Kutta formulae".

    Args:
        rtol: error allowed in a trial step, as a share of y.
        atol: the same in the data's unit.
        max_steps: trial steps from one level to the next, at most.

    Raises:
        InputError: options that are not positive; or, in a step, a row that has not arrived after ``max_steps``, or
            whose size has gone to nothing: where the model is not finite or not smooth.
    """

    order = 5
    calls = 7

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 1000) -> None:
        self.rtol, self.atol = as_number(rtol, "rtol"), as_number(atol, "atol")
        self.max_steps = as_count(max_steps, "max_steps")

    def __call__(self, flow: Field, y: Batch, s: Tensor, s_next: Tensor, memory: Memory) -> Batch:
        """Seven calls of the model for all rows at least."""
        y, whole = y.clone(), (s / s_next).log().item()
        tau = torch.zeros(len(y), dtype=torch.float64, device=y.device)
        size = torch.full_like(tau, _FIRST) if memory.step_size is None else memory.step_size.clone()
        slope = flow.denoise(y, s) - y
        for _ in range(self.max_steps):
            rows = (tau < whole).nonzero()[:, 0]
            if len(rows) == 0:
                memory.step_size = size
                return y
            left = whole - tau[rows]
            h = torch.minimum(size[rows], left)
            new, end_slope, error = _trial(flow, y[rows], slope[rows], s, tau[rows], h)
            e = self._size_of(error, y[rows], new)
            taken, wanted = e <= 1, h * _factor(e)
            size[rows] = torch.where(taken & (h == left), torch.maximum(size[rows], wanted), wanted)
            tau[rows] = torch.where(taken, torch.where(h == left, whole, tau[rows] + h), tau[rows])
            y[rows[taken]], slope[rows[taken]] = new[taken], end_slope[taken]
            if bool((size[rows] < 1e-10).any()):
                break
        stuck = s * (-tau.min()).exp()
        raise InputError(
            f"AdaptiveRungeKutta: stalled at sigma = {stuck.item():.4g} of {s.item():.4g} to {s_next.item():.4g}; "
            "want a model that is finite and smooth, a larger rtol or atol, or more max_steps"
        )

    def _size_of(self, error: Batch, y: Batch, new: Batch) -> Rows:
        """e, in float64."""
        scaled = error / (self.atol + self.rtol * torch.maximum(y.abs(), new.abs()))
        return (sum_event(scaled.double() ** 2) / scaled[0].numel()).sqrt()


def _factor(e: Rows) -> Rows:
    """By how much the next step is longer; the least where e is not finite."""
    return (0.9 * e.clamp_min(1e-10) ** -0.2).nan_to_num(0.0).clamp(0.2, 5.0)


def _trial(flow: Field, y: Batch, slope: Batch, s: Tensor, tau: Rows, h: Rows) -> tuple[Batch, Batch, Batch]:
    """The state after a step of size h a row, its slope there, and the difference of the two orders."""
    slopes, new = [slope], y
    for stage in STAGES:
        new = y + per_row(h, y) * weighted(stage, slopes)
        slopes.append(flow.denoise(new, s * (-(tau + sum(stage) * h)).exp()) - new)
    return new, slopes[-1], per_row(h, y) * weighted(ERROR, slopes)


def weighted(numbers: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """Σ_i a_i k_i."""
    total = numbers[0] * slopes[0]
    for a, k in zip(numbers[1:], slopes[1:], strict=True):
        total = total + a * k
    return total
