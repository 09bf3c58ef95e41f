"""A pilot: a few rows followed along the flow in many small steps, as the truth that large steps are fitted to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch
from gradlogp.models import GaussianReference
from gradlogp.samplers.field import Field
from gradlogp.samplers.frame import Frame, adams_bashforth
from gradlogp.samplers.grids import karras
from gradlogp.samplers.step import require_finite

N_LEVELS = 80  # fine steps; Adams–Bashforth of order 4 is then good to 1e-4 or so
FAR = 8.0  # standard deviations of the widest direction from where on fine steps are needed
N_ABOVE = 3  # steps above
FULL = 4  # rows a coordinate from which on a covariance is measured
N_ROUGH = 24  # steps of the run that measures a Gaussian where the model knows none


@dataclass(frozen=True)
class Pilot:
    """Rows on the flow, at fine levels.

    Attributes:
        frame: eigen-coordinates of the Gaussian.
        start: where the rows started, s_max.
        first: their coordinates there, ``(N, D)``.
        levels: M + 1 decreasing noise ratios, to s_min.
        states: their coordinates at each, ``(M + 1, N, D)``.
        velocities: q at each but the last, ``(M, N, D)``.
        event_shape: of a row.
    """

    frame: Frame
    start: Tensor
    first: Tensor
    levels: Tensor
    states: Tensor
    velocities: Tensor
    event_shape: tuple[int, ...]

    @classmethod
    def of(cls, flow: Field, frame: Frame, y: Batch, s_max: float, s_min: float, finer: int = 1) -> Pilot:
        """Follow the rows y from s_max to s_min; finer: so many steps for each of the usual, whose levels are kept."""
        frame, event = frame.like(y), tuple(y.shape[1:])
        far = FAR * frame.widest
        if not s_min < far < s_max:
            far = s_max
        n_above, n_levels = finer * N_ABOVE, finer * N_LEVELS
        above = torch.logspace(0, 1, n_above + 1, base=far / s_max, dtype=torch.float64)[:-1] * s_max
        levels = torch.cat([above[: 0 if far == s_max else None], karras(far, s_min, n_levels)])
        first = frame.into(y)
        states, velocities = follow(flow, frame, first, levels, event)
        fine = slice(len(levels) - n_levels - 1, None)
        return cls(frame, levels[0], first, levels[fine], states[fine], velocities[fine], event)

    def velocity(self, flow: Field, c: Tensor, level: int) -> Tensor:
        """The model's velocity at c at one of the levels."""
        return self.frame.velocity(flow, self.frame.back(c, self.event_shape), c, self.levels[level])

    def landed(self, level: int) -> Tensor:
        """Where the Gaussian's flow takes the rows, ``(N, D)``."""
        return self.frame.exact(self.first, self.start, self.levels[level])


def follow(
    flow: Field, frame: Frame, c: Tensor, levels: Tensor, event_shape: tuple[int, ...], order: int = 4
) -> tuple[Tensor, Tensor]:
    """States at the levels and velocities at all but the last, by :func:`adams_bashforth`."""
    states, velocities = [c], []
    exact = frame.exactly
    for i in range(len(levels) - 1):
        velocities.append(frame.velocity(flow, frame.back(states[-1], event_shape), states[-1], levels[i]))
        last = range(i, max(i - order, -1), -1)
        weights = adams_bashforth(exact, [levels[j] for j in last], levels[i + 1])
        states.append(frame.advance(states[-1], levels[i], levels[i + 1], [velocities[j] for j in last], weights))
        require_finite(states[-1], i + 1, len(levels) - 1, levels[i + 1])
    return torch.stack(states), torch.stack(velocities)


def measured_frame(flow: Field, y: Batch, s_max: float, s_min: float) -> Frame:
    """The frame of where a rough run of the rows y ends, for a model that knows no Gaussian.

    With fewer than four rows a coordinate, whose covariance would fit these rows and no others, all directions have
    the same variance.
    """
    n, d = len(y), y[0].numel()
    zeros = torch.zeros(d, dtype=y.dtype, device=y.device)
    plain = Frame(zeros, zeros, None, 0.0)
    ends = follow(flow, plain, plain.into(y), karras(s_max, s_min, N_ROUGH), tuple(y.shape[1:]), order=2)[0][-1]
    if n >= FULL * d:
        return Frame.of(GaussianReference.of_data(ends))
    mean = ends.double().mean(0)
    centred = ends.double() - mean
    widest = torch.linalg.matrix_norm(centred, 2).item() / n**0.5
    return Frame(mean, centred.square().mean().expand(d), None, widest)
