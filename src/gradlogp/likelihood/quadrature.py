"""The trapezoidal rule on a line, refined where the integrand bends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradlogp._shapes import Rows
from gradlogp.samplers.polynomials import lagrange

N_COARSE = 16  # intervals to begin with
MAX_LEVEL = 8  # halvings
_FALL = 0.125  # what is left of a surprise at the next halving; ultimately 1/64
_PADS = 3

Integrand = Callable[[Tensor, Tensor], Tensor]  # (row, w), (K,) each -> (K, C)


def grid(low: Rows, high: Rows, n: int) -> tuple[Tensor, Rows]:
    """n + 1 equidistant places for each row, ``(B, n + 1)``, and their distance, ``(B,)``."""
    step = (high - low) / n
    return low[:, None] + step[:, None] * torch.arange(n + 1, device=low.device), step


def weights(step: Rows, n: int) -> Tensor:
    """h, and at both ends h Σ_{k>=0} e^{−2kh}: an end stands for all beyond, where values fall as e^{∓2w}; (B, n+1)."""
    out = step[:, None].repeat(1, n + 1)
    out[:, 0] = out[:, -1] = step / -torch.expm1(-2 * step)
    return out


def refined(f: Integrand, low: Rows, high: Rows, atol: Rows) -> tuple[Tensor, Rows]:
    """∫ f dw over the whole line for each row, ``(B, C)``, and an estimate of the error of its first component.

    By the trapezoidal rule between low and high, with tails f ∝ e^{∓2w} beyond. Each halving of the distance first
    predicts the values in between, by the polynomial through the six nearest, and calls f only where predictions near
    there erred by enough to matter at the last halving. For an analytic f they fall with each halving, ultimately
    64-fold; they are taken to fall 8-fold.

    Args:
        f: (rows, w) -> values, for K pairs at once; its first component decides.
        low: where the equidistant values begin, ``(B,)``.
        high: where they end, ``(B,)``.
        atol: wanted error, ``(B,)``.

    Reference: Trefethen and Weideman (2014), "The exponentially convergent trapezoidal rule".
    """
    w, step = grid(low, high, N_COARSE)
    rows = torch.arange(len(low), device=low.device)
    values = f(rows[:, None].expand_as(w).reshape(-1), w.reshape(-1)).reshape(*w.shape, -1)
    surprise = (_between(values[:, ::2], 2 * step) - values[:, 1::2])[..., 0].abs()
    total, error = values.new_empty(len(low), values.shape[2]), torch.zeros_like(step)
    for level in range(MAX_LEVEL + 1):
        middle, step, expected = _between(values, step), step / 2, _FALL * _near(surprise)
        wanted = (step[:, None] * expected > atol[rows, None] / N_COARSE) & (level < MAX_LEVEL)
        row, k = wanted.nonzero(as_tuple=True)
        surprise = expected.clone()
        if len(row):
            true = f(rows[row], low[rows[row]] + step[row] * (2 * k + 1))
            surprise[row, k] = (true - middle[row, k])[:, 0].abs()
            middle[row, k], expected[row, k] = true, 0.0
        values = _merged(values, middle)
        error[rows] += 2 * step * expected.sum(1)
        going = wanted.any(1)
        done = ~going
        total[rows[done]] = _integral(values[done], step[done])
        error[rows[done]] += _tail_error(values[done, :, 0], step[done])
        if not bool(going.any()):
            break
        rows, values, step, surprise = rows[going], values[going], step[going], surprise[going]
    return total, error


def _integral(values: Tensor, step: Rows) -> Tensor:
    """The rule on values ``(B, n + 1, C)``."""
    return (weights(step, values.shape[1] - 1)[..., None] * values).sum(1)


def _tail_error(values: Tensor, step: Rows) -> Rows:
    """What the tails may be wrong by: a term e^{±4w} beside e^{±2w}, read off the outer two values at both ends."""
    fall = torch.exp(-2 * step)
    left, right = values[:, 0] - values[:, 1] * fall, values[:, -1] - values[:, -2] * fall
    return (left.abs() + right.abs()) * fall / (1 - fall) / 4


def _between(values: Tensor, step: Rows) -> Tensor:
    """The values in the middle of each interval, by the polynomial through the six nearest nodes, with the tails."""
    fall = torch.exp(-2 * step[:, None] * torch.arange(1, _PADS, device=step.device))[..., None]
    padded = torch.cat([(values[:, :1] * fall).flip(1), values, values[:, -1:] * fall], 1)
    nodes = torch.arange(2 * _PADS, dtype=values.dtype, device=values.device)
    return padded.unfold(1, 2 * _PADS, 1) @ lagrange(nodes, nodes.new_tensor([_PADS - 0.5]))[:, 0]


def _near(surprise: Tensor) -> Tensor:
    """For each interval the surprise at the middle that is one of its ends, or a quarter of the neighbouring ones."""
    padded = torch.nn.functional.pad(surprise, (1, 1))
    return torch.maximum(surprise, torch.maximum(padded[:, :-2], padded[:, 2:]) / 4).repeat_interleave(2, 1)


def _merged(values: Tensor, middle: Tensor) -> Tensor:
    """The nodes and the values in between, in order."""
    out = values.new_empty(len(values), values.shape[1] + middle.shape[1], values.shape[2])
    out[:, ::2], out[:, 1::2] = values, middle
    return out
