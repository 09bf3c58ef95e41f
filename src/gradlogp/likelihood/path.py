"""The probability flow of rows of data, to a tolerance in nats, and where it is at any level in between."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import InputError, Rows
from gradlogp.likelihood.residual import ResidualFlow
from gradlogp.samplers.runge_kutta import ERROR, STAGES, weighted

_FIRST, _LONGEST, _SHORTEST = 0.4, 1.5, 0.01  # steps in w
_DENSE = (  # Dormand and Prince's pair: the last coefficient of its quartic between the ends of a step
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)


@dataclass(frozen=True)
class Path:
    """u(w) for each row, piecewise quartic, with continuous derivative.

    Attributes:
        ends: w at the ends of a row's steps, ``(B, S + 1)``; inf after its last.
        parts: five coefficients a step, ``(B, S, 5, D)``.
        first, last: u at the first and the last w, ``(B, D)``.
        scale: by what a row's errors may be larger, ``(B,)``: far out, where the log-density is large itself.
        excess: what steps of the shortest size erred more than they were to, ``(B,)``, in nats.
    """

    ends: Tensor
    parts: Tensor
    first: Tensor
    last: Tensor
    scale: Rows
    excess: Rows

    def at(self, rows: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """u and du/dw of some rows, ``(K, D)`` each, at w ``(K,)`` within the path."""
        step = torch.searchsorted(self.ends[rows], w[:, None].contiguous(), right=True)[:, 0] - 1
        step = torch.minimum(step.clamp_min(0), self.ends[rows].isfinite().sum(1) - 2)
        start = self.ends[rows, step]
        h = (self.ends[rows, step + 1] - start)[:, None]
        t = (w - start)[:, None] / h
        a, b, c, d, e = self.parts[rows, step].unbind(1)
        back = 1 - t
        inner, slope = d + back * e, -e
        inner, slope = c + t * inner, inner + t * slope
        inner, slope = b + back * inner, -inner + back * slope
        return a + t * inner, (inner + t * slope) / h


class _Steps:
    """The steps of all rows, each row at its own."""

    def __init__(self, w: Rows, u: Tensor) -> None:
        self.count = torch.zeros(len(w), dtype=torch.long, device=w.device)
        self.ends = w[:, None].clone()
        self.parts = u.new_zeros(len(w), 0, 5, u.shape[1])

    def add(self, rows: Tensor, w: Rows, parts: Tensor) -> None:
        """One more step of some rows, to w."""
        if int(self.count[rows].max()) == self.parts.shape[1]:
            more = max(8, self.parts.shape[1] // 2)
            self.ends = torch.cat([self.ends, self.ends.new_full((len(self.ends), more), math.inf)], 1)
            self.parts = torch.cat([self.parts, self.parts.new_zeros(len(self.parts), more, *self.parts.shape[2:])], 1)
        at = self.count[rows]
        self.parts[rows, at], self.ends[rows, at + 1] = parts, w
        self.count[rows] += 1


def follow(flow: ResidualFlow, u: Tensor, start: Rows, end: float, atol: float) -> Path:
    """The flow of rows from w = start to w = end.

    By Dormand and Prince's pair 5(4), each row with steps of its own. If a step ends a little off, at u + e, all that
    follows is the flow of another point, and the log-density comes out as that of u + e: wrong by ∇log p·e + O(e²). So
    a step is taken if

        |∇_u log p · e| + ½‖r e‖²/s² <= atol,

    e the difference of the two orders: the error is controlled in nats. (1/s² bounds −∇²log p_s.) Where that would take
    steps below 0.01 in w, as between narrow modes or far out, such steps are taken as they are, and what they err is
    kept.

    Args:
        flow: what moves a row.
        u: coordinates at the start, ``(B, D)``.
        start: w there, ``(B,)``.
        end: w at which all stop.
        atol: error allowed in a step, in nats.

    Raises:
        InputError: a model that is not finite on the way.

    Reference: Hairer, Nørsett and Wanner (1993), "Solving ordinary differential equations I", section II.6.
    """
    w, u, first, excess = start.clone(), u.clone(), u, torch.zeros_like(start)
    size, steps = torch.full_like(w, _FIRST), _Steps(w, u)
    scale = (u.square().sum(1) / (20 * (u.shape[1] + 10))).clamp_min(1.0)  # −2 log N(u) over that of common rows
    slope, score = flow.fields(u, w)
    while len(rows := (w < end).nonzero()[:, 0]):
        left = end - w[rows]
        h = torch.minimum(size[rows], left)
        new, slopes, new_score = _trial(flow, u[rows], slope[rows], w[rows], h)
        e = _nats(flow, h[:, None] * weighted(ERROR, slopes), score[rows], new_score, w[rows] + h) / (
            atol * scale[rows]
        )
        shortest = h <= _SHORTEST
        taken = (e <= 1) | (shortest & e.isfinite())
        if bool((shortest & ~taken).any()):
            stuck = flow.clock.level(w[rows][shortest & ~taken]).min().item()
            raise InputError(f"log_prob: the model is not finite at sigma = {stuck:.4g}, want a finite one")
        longer = (0.9 * e.clamp_min(1e-10) ** -0.2).nan_to_num(0.0).clamp(0.2, 4.0)
        size[rows] = (h * longer).clamp(_SHORTEST, _LONGEST)
        excess[rows] += torch.where(taken, atol * scale[rows] * (e - 1).clamp_min(0), 0.0)
        done = rows[taken]
        if len(done):
            arrived = torch.where(h == left, torch.full_like(h, end), w[rows] + h)
            steps.add(done, arrived[taken], _quartic(u[done], new[taken], h[taken], [k[taken] for k in slopes]))
            w[done], u[done], slope[done], score[done] = (v[taken] for v in (arrived, new, slopes[-1], new_score))
    return Path(steps.ends, steps.parts, first, u, scale, excess)


def _trial(flow: ResidualFlow, u: Tensor, slope: Tensor, w: Rows, h: Rows) -> tuple[Tensor, list[Tensor], Tensor]:
    """The end of a step, the slopes of its seven stages, and the score there."""
    slopes, new, score = [slope], u, slope
    for stage in STAGES:
        new = u + h[:, None] * weighted(stage, slopes)
        k, score = flow.fields(new, w + sum(stage) * h)
        slopes.append(k)
    return new, slopes, score


def _nats(flow: ResidualFlow, e: Tensor, score: Tensor, new_score: Tensor, w: Rows) -> Rows:
    """What an error e of u is worth, with the larger of the scores at both ends."""
    s = flow.clock.level(w)
    linear = torch.maximum((score * e).sum(1).abs(), (new_score * e).sum(1).abs())
    return linear + 0.5 * (flow.radius(s) * e / s[:, None]).square().sum(1)


def _quartic(u: Tensor, new: Tensor, h: Rows, slopes: list[Tensor]) -> Tensor:
    """The coefficients of a step, ``(B, 5, D)``."""
    h, change = h[:, None], new - u
    bend = h * slopes[0] - change
    return torch.stack([u, change, bend, change - h * slopes[-1] - bend, h * weighted(_DENSE, slopes)], 1)
