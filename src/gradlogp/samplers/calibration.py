"""A sampler fitted to a model: where to step and with which weights, from a pilot, and how accurate it then is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from torch import Tensor

from gradlogp._shapes import Batch
from gradlogp.samplers.field import Field
from gradlogp.samplers.frame import Frame, adams_bashforth
from gradlogp.samplers.grids import karras, log_uniform
from gradlogp.samplers.nodes import candidates
from gradlogp.samplers.pilot import FAR, N_ABOVE, N_LEVELS, Pilot, follow
from gradlogp.samplers.reference import Tabulated

N_PAST = 6  # velocities that a step combines
N_REWEIGHTED = 2
RIDGE = 1e-7  # of its weights, in units of the largest inner product
FITTED = N_LEVELS // 2  # with more steps the rule is Adams–Bashforth's; a little above, that is less accurate
ORDER = 4
FINER = 2  # fine steps for each of a pilot's, to measure what a plan and its pilot leave
_LEFT = 0.1  # of an error, where steps of order 4 are halved; a sixteenth for steps that are small enough


@dataclass(frozen=True)
class Accuracy:
    """How far rows end from where the model's flow takes them; a coordinate, in the data's unit.

    The distance of a row is its root mean square over coordinates. It is measured on rows that nothing was fitted to,
    from the ends of twice as many fine steps as a pilot's: of order 4, they leave a tenth of a pilot's own error, and
    each error below has a tenth of its value for that.

    Rows that start near a boundary between modes end in another mode. They make most of the root mean square, and few
    rows may show none of them. Errors that grow toward such a boundary are larger than t in a share c/t of the rows, so
    that those between the largest seen and Δ, how far apart two rows are, add 2c(Δ − largest) to the mean square. The
    error of the root mean square has that in it, with the largest c that the upper tenth of the rows shows.

    Attributes:
        median: half of the rows are nearer.
        stderr: standard error of the median, from its neighbors in rank.
        ninety: nine rows in ten are nearer.
        ninety_stderr: its standard error, likewise.
        rms: root mean square over rows.
        rms_stderr: its error: a standard error of the mean square, and rows in another mode that were not seen.
        n_rows: rows it was measured on.
    """

    median: float
    stderr: float
    ninety: float
    ninety_stderr: float
    rms: float
    rms_stderr: float
    n_rows: int

    def __str__(self) -> str:
        half = f"half of the rows within {self.median:.1e} ± {self.stderr:.0e}"
        most = f"nine in ten within {self.ninety:.1e} ± {self.ninety_stderr:.0e}"
        return f"{half}, {most}, root mean square {self.rms:.1e} ± {self.rms_stderr:.0e}"

    @classmethod
    def of(cls, ends: Tensor, truth: Tensor) -> Accuracy:
        """Of ends, and where finer steps end, ``(N, D)`` each."""
        d = (ends - truth).double().square().mean(1).sqrt().sort().values
        median, ninety, square = d.median().item(), d.quantile(0.9).item(), d.square()
        mean, error = square.mean().item(), (square.var() / len(d)).sqrt().item()
        rms, worst = mean**0.5, mean + error + _unseen(d, truth)
        return cls(
            median=median,
            stderr=math.hypot(_rank_error(d, 0.5), _LEFT * median),
            ninety=ninety,
            ninety_stderr=math.hypot(_rank_error(d, 0.9), _LEFT * ninety),
            rms=rms,
            rms_stderr=math.hypot(worst**0.5 - rms, _LEFT * rms),
            n_rows=len(d),
        )


def _rank_error(d: Tensor, share: float) -> float:
    """The standard error of a quantile of sorted values: half of what is between ranks nq ± √(nq(1 − q))."""
    n = len(d)
    low, high = (round(n * share + side * (n * share * (1 - share)) ** 0.5 - 0.5) for side in (-1, 1))
    return (d[min(high, n - 1)] - d[max(low, 0)]).item() / 2


def _unseen(d: Tensor, truth: Tensor) -> float:
    """2c(Δ − d_max), c the largest k·d_k/n of the k-th largest of sorted distances, k up to n/10."""
    largest = d.flip(0)[: max(1, len(d) // 10)]
    c = (largest * torch.arange(1, len(largest) + 1).to(d)).max().item() / len(d)
    apart = (2 * truth.double().var(0).mean()).sqrt().item()
    return max(0.0, 2 * c * (apart - d[-1].item()))


@dataclass(frozen=True, repr=False)
class Plan:
    """How to sample a model in a number of steps.

    Attributes:
        frame: eigen-coordinates of the Gaussian whose flow is exact.
        start: where it starts, s_max.
        levels: n_steps + 1 decreasing noise ratios: where it lands from s_max, then each step, to s_min.
        weights: of each step over the last velocities.
        accuracy: how near it comes to the flow.
    """

    frame: Frame
    start: float
    levels: Tensor
    weights: tuple[Tensor, ...]
    accuracy: Accuracy

    def __repr__(self) -> str:
        ends = f"{self.start:.4g} to {self.levels[-1].item():.4g}"
        return f"{len(self.weights)} steps, {ends}, landing at {self.levels[0].item():.4g}: {self.accuracy}"

    @property
    def fitted(self) -> bool:
        """Whether its weights were fitted to the pilot, one for all directions."""
        return self.weights[0].ndim == 1

    @property
    def step(self) -> Tabulated:
        """The step that carries it out."""
        return Tabulated(self.frame, self.levels, self.weights)

    @property
    def grid(self) -> Tensor:
        """The levels between which the loop steps."""
        return torch.cat([torch.tensor([self.start], dtype=torch.float64), self.levels[1:]])


def fitted_plan(flow: Field, pilot: Pilot, unseen: Batch, n_steps: int, budget: int) -> Plan:
    """The best of some grids of n_steps <= 40 steps, each with weights fitted to the pilot's rows.

    Args:
        flow: the model.
        pilot: its flow.
        unseen: half as many other rows at its start, of which as many as the budget allows say how accurate it is.
        n_steps: of the plan.
        budget: calls a row of the pilot to spend; one grid is fitted in any case, and an eighth as many rows followed.
    """
    fits = []
    for nodes in islice(candidates(pilot, n_steps), max(1, budget // n_steps - 1)):
        weights, ends = fit(flow, pilot, nodes)
        fits.append(((ends - pilot.states[-1]).square().mean().item(), nodes, weights))
    _, nodes, weights = min(fits, key=lambda f: f[0])
    left = (budget - len(fits) * n_steps) * len(pilot.first)
    some = unseen[: max(len(unseen) // 4, left // (FINER * (N_ABOVE + N_LEVELS) + n_steps))]
    fine = Pilot.of(flow, pilot.frame, some, pilot.start.item(), pilot.levels[-1].item(), FINER)
    ends = carried_out(flow, fine, [FINER * i for i in nodes], weights)
    accuracy = Accuracy.of(ends, fine.states[-1])
    return Plan(pilot.frame, pilot.start.item(), pilot.levels[nodes], tuple(weights), accuracy)


def fit(flow: Field, pilot: Pilot, nodes: list[int]) -> tuple[list[Tensor], Tensor]:
    """Weights of each step by least squares, one step after the other, and the ends of the rows.

    Each step starts where the step before ended, not on the flow, and aims at the flow: what went wrong before is put
    right as far as the velocities can. It is ridge regression around Euler's weights, (1, 0, …), in which rows that are
    far off count less: 1/(1 + (r/3m)²), r a row's residual and m the median.
    """
    c = pilot.landed(nodes[0])
    past: list[Tensor] = []
    weights: list[Tensor] = []
    for i, j in pairwise(nodes):
        s, s_next = pilot.levels[i], pilot.levels[j]
        past = [pilot.velocity(flow, c, i), *past][:N_PAST]
        weights.append(_least_squares(pilot.frame, c, s, s_next, past, pilot.states[j]))
        c = pilot.frame.advance(c, s, s_next, past, weights[-1])
    return weights, c


def carried_out(flow: Field, pilot: Pilot, nodes: list[int], weights: list[Tensor]) -> Tensor:
    """Ends of the rows by given weights."""
    c = pilot.landed(nodes[0])
    past: list[Tensor] = []
    for (i, j), a in zip(pairwise(nodes), weights, strict=True):
        past = [pilot.velocity(flow, c, i), *past][:N_PAST]
        c = pilot.frame.advance(c, pilot.levels[i], pilot.levels[j], past[: len(a)], a)
    return c


def _least_squares(frame: Frame, c: Tensor, s: Tensor, s_next: Tensor, past: list[Tensor], target: Tensor) -> Tensor:
    r_next = frame.radius(s_next)
    scale = r_next * frame.turn(s, s_next)
    features = torch.stack([scale * q for q in past]).double()  # (K, N, D)
    left = (target - frame.advance(c, s, s_next, past[:1], torch.ones(1))).double()
    share = torch.ones(len(c), 1, dtype=torch.float64, device=c.device)
    for _ in range(N_REWEIGHTED + 1):
        flat = features.flatten(1)
        weighted = (features * share).flatten(1)
        gram = weighted @ flat.T
        ridge = (RIDGE * gram.diagonal().max()).clamp_min(torch.finfo(torch.float64).tiny)  # no q is left of a Gaussian
        weights: Tensor = torch.linalg.solve(gram + ridge * torch.eye(len(past)).to(gram), weighted @ left.flatten())
        r = (left - torch.einsum("k,knd->nd", weights, features)).norm(dim=1, keepdim=True)
        share = 1 / (1 + (r / (3 * r.median()).clamp_min(torch.finfo(torch.float64).tiny)) ** 2)
    weights[0] += 1
    return weights.cpu()


def plain_plan(flow: Field, frame: Frame, y: Batch, s_max: float, s_min: float, n_steps: int) -> Plan:
    """Adams–Bashforth of order 4, for more steps than weights are fitted for; its error by doubling the steps."""
    frame, event = frame.like(y), tuple(y.shape[1:])
    first = frame.into(y)
    levels, finer = (_spread(frame, s_max, s_min, k) for k in (n_steps, 2 * n_steps))
    ends = [follow(flow, frame, first, grid, event)[0][-1] for grid in (levels, finer)]
    exact = frame.exactly
    weights = [
        adams_bashforth(exact, [levels[j] for j in range(i, max(i - ORDER, -1), -1)], levels[i + 1])
        for i in range(n_steps)
    ]
    return Plan(frame, s_max, levels, tuple(weights), Accuracy.of(*ends))


def _spread(frame: Frame, s_max: float, s_min: float, n: int) -> Tensor:
    """n + 1 levels: Karras' from 8 standard deviations of the widest direction on, a tenth of them above."""
    far = FAR * frame.widest
    if far >= s_max or far <= s_min:
        return karras(s_max, s_min, n)
    above = max(2, n // 10)
    return torch.cat([log_uniform(s_max, far, above)[:-1], karras(far, s_min, n - above)])
