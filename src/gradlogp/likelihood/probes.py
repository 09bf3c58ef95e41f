"""The trace of a denoiser's Jacobian from random probes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Rows, as_count, as_number
from gradlogp.likelihood.linearised import Linearised, Near, at_levels
from gradlogp.likelihood.path import Path
from gradlogp.likelihood.quadrature import grid, weights
from gradlogp.likelihood.residual import ResidualFlow
from gradlogp.likelihood.traces import Integral, Signs, Trace, path_error

N_NODES = 48  # levels at which a trace is probed
FIRST_PROBES = 3  # at each
MAX_ROUNDS = 8
LOCAL_BELOW = 128  # coordinates up to which a row gets a Gaussian of its own

_Control = tuple[Callable[[Tensor, Tensor], Tensor], Tensor]  # (v, s) -> C v, and tr C


@dataclass(frozen=True)
class Hutchinson(Trace):
    """tr ∇D = E[vᵀ(∇D − C)v] + tr C for random signs v and a matrix C whose trace is known.

    C is ∇D_G of the Gaussian with the data's moments, or, up to 128 coordinates, that of the Gaussian whose score has
    the model's Jacobian where the row starts, whichever has shown the smaller variance near there: the one is right at
    large noise, the other at small.

    At each of 48 levels of a row's path, new probes each time, so that their errors average out along it: three at
    first, then as many as the wanted error asks for, where they weigh most. A level that would take about as many as
    there are coordinates gets the exact trace.

    The variance of a probe is 2(‖S‖_F² − Σ S_ii²), S the symmetric part of ∇D − C (Hutchinson 1990; Avron and Toledo
    2011).

    Args:
        atol: wanted standard error, in nats.
        max_probes: at a level, at most; None is as many as it takes.

    Raises:
        InputError: an atol that is not positive, or max_probes < 3.
    """

    atol: float = 0.05
    max_probes: int | None = None

    def __post_init__(self) -> None:
        as_number(self.atol, "atol")
        if self.max_probes is not None:
            as_count(self.max_probes, "max_probes", least=3, most=sys.maxsize)

    def near(self, point: Linearised, s: Rows, signs: Signs) -> Near:
        """The whole Jacobian up to 128 coordinates, otherwise the curvature from four probes."""
        if point.y[0].numel() <= LOCAL_BELOW:
            return Near.of_jacobian(point.jacobian(), s)
        return Near(torch.stack([point.probed(v)[1] for v in _four(point, signs)]).mean(0))

    def residual(self, flow: ResidualFlow, point: Linearised, s: Rows, signs: Signs) -> Rows:
        """From four probes."""
        probes = _four(point, signs)
        return torch.stack([_times(flow.reference_times, v, s) - point.probed(v)[0] for v in probes]).mean(0)

    def integral(self, flow: ResidualFlow, path: Path, ends: tuple[Rows, Rows], near: Near, signs: Signs) -> Integral:
        """Equidistant levels; probes in rounds until their standard error is small enough."""
        w, step = grid(*ends, N_NODES)
        tally = Tally(flow, path, near, w, weights(step, N_NODES), signs)
        tally.add(torch.ones_like(w, dtype=torch.bool), FIRST_PROBES)
        for round_ in range(MAX_ROUNDS):
            if not tally.more(self.atol, FIRST_PROBES << round_, self.max_probes):
                break
        coarse = torch.zeros_like(w)
        coarse[:, ::2] = weights(2 * step, N_NODES // 2)
        values = tally.mean - tally.slip
        change = ((tally.weights - coarse) * values).sum(1).abs() - 2 * tally.stderr(tally.weights - coarse)
        slips = tally.weights * tally.slip
        value = (tally.weights * values).sum(1)
        slipped = path_error(slips.sum(1), slips.abs().sum(1), path)
        return Integral(value, change.clamp_min(0) / 2, slipped, tally.stderr(tally.weights))


class Tally:
    """Probes at the levels of each row: their number, sum and sum of squares under each C, ``(C, B, N + 1)``."""

    def __init__(self, flow: ResidualFlow, path: Path, near: Near, w: Tensor, weights: Tensor, signs: Signs) -> None:
        self.flow, self.path, self.near, self.w, self.weights, self.signs = flow, path, near, w, weights, signs
        n_controls = 1 if near.basis is None else 2
        self.count, self.slip = torch.zeros_like(w), torch.zeros_like(w)
        self.total, self.square = w.new_zeros(n_controls, *w.shape), w.new_zeros(n_controls, *w.shape)
        self.exact, self.before = torch.zeros_like(w, dtype=torch.bool), torch.zeros_like(self.total)
        self.round = 1

    def more(self, atol: float, n: int, limit: int | None) -> bool:
        """n more probes where they are due; whether any were.

        With standard deviations σ_j of a probe at level j the least cost for a standard error atol is n_j = h_j σ_j
        Σ_i h_i σ_i/atol² probes (Neyman 1934). What is done at a level depends on its neighbours' probes, not on its
        own, so that the mean of its own has no bias.
        """
        each = (self.weights**2 * self._beside(self._variances()).gather(0, self._choice)[0]).sqrt()
        near = torch.nn.functional.pad(each, (2, 2)).unfold(1, 5, 1).sum(2)
        of_all = each.sum(1, keepdim=True) - near + 5 * each  # but of those that its own probes have a part in
        least = each * of_all / (atol * self.path.scale[:, None]) ** 2
        settle = ~self.exact & (least >= 0.75 * self.path.first.shape[1]) & (limit is None)
        due = ~self.exact & ~settle & (least > self.count)
        if limit is not None:
            due &= self.count + n <= limit
        self.settle(settle)
        self.add(due, n)
        return bool((settle | due).any())

    def add(self, where: Tensor, n: int) -> None:
        """n more probes at some levels."""
        row, k = where.nonzero(as_tuple=True)
        if len(row) == 0:
            return
        signs = self.signs(self.round, (self.w.shape[1], n, self.path.first.shape[1]), self.w.device)
        self.round += 1
        w = self.w[row, k]

        def probes(point: Linearised, some: slice) -> Tensor:
            v, s = signs[row[some], k[some]].double(), self.flow.clock.level(w[some])
            each = [point.probed(v[:, i])[0] for i in range(n)]
            controls = [[_times(f, v[:, i], s) - t for i in range(n)] for f, t in self._controls(row[some], s)]
            return torch.stack(
                [torch.stack([c - e for c, e in zip(row_, each, strict=True)], 1) for row_ in controls], 1
            )

        values, slip = at_levels(self.flow, self.path, row, w, probes)  # tr D_G − … : (K, C, n)
        known = self.flow.reference_trace(self.flow.clock.level(w))
        values = (values + known[:, None, None]) * self.flow.clock.rate(w)[:, None, None]
        self.slip[row, k] = slip
        self.count[row, k] += n
        self.total[:, row, k] += values.sum(2).T
        self.square[:, row, k] += values.square().sum(2).T

    def settle(self, where: Tensor) -> None:
        """The exact trace at some levels."""
        row, k = where.nonzero(as_tuple=True)
        if len(row) == 0:
            return
        self.before[:, row, k] = self._of_probes()[:, row, k]
        w = self.w[row, k]
        traces, slip = at_levels(self.flow, self.path, row, w, lambda point, _: point.trace()[0][:, None])
        self.slip[row, k], self.exact[row, k], self.count[row, k] = slip, True, 1.0
        known = self.flow.reference_trace(self.flow.clock.level(w))
        self.total[:, row, k] = (known - traces[:, 0]) * self.flow.clock.rate(w)

    def _controls(self, row: Tensor, s: Tensor) -> list[_Control]:
        """C v and tr C for each C."""
        out: list[_Control] = [(self.flow.reference_times, self.flow.reference_trace(s))]
        if self.near.basis is not None and self.near.variance is not None:
            basis, variance = self.near.basis[row], self.near.variance[row]

            def times(v: Tensor, s: Tensor) -> Tensor:
                gain = variance / (variance + s[:, None] ** 2)
                return (basis @ (gain * (v[:, None] @ basis)[:, 0])[..., None])[..., 0]

            out.append((times, (variance / (variance + s[:, None] ** 2)).sum(1)))
        return out

    @property
    def _choice(self) -> Tensor:
        return self._beside(self._variances()).argmin(0, keepdim=True)

    @property
    def mean(self) -> Tensor:
        """Of the probes at each level, under the C of smaller variance."""
        return (self.total / self.count).gather(0, self._choice)[0]

    def stderr(self, weights: Tensor) -> Rows:
        """Of a weighted sum over the levels."""
        return (weights**2 * self._spread() / self.count).sum(1).sqrt()

    def _variances(self) -> Tensor:
        """Of one probe at each level; where the trace is exact, as it was before."""
        return torch.where(self.exact, self.before, self._of_probes())

    def _of_probes(self) -> Tensor:
        return ((self.square - self.total**2 / self.count) / (self.count - 1).clamp_min(1)).clamp_min(0)

    def _beside(self, variances: Tensor) -> Tensor:
        """The mean over the two levels on each side, since that of a few probes is rough."""
        padded = torch.nn.functional.pad(variances, (2, 2), mode="replicate")
        return (padded[..., :-4] + padded[..., 1:-3] + padded[..., 3:-1] + padded[..., 4:]) / 4

    def _spread(self) -> Tensor:
        """The variance of one probe at each level under the chosen C: its own or its neighbours', the larger."""
        variances = self._variances()
        larger = torch.where(self.exact, 0.0, torch.maximum(self._beside(variances), variances))
        return larger.gather(0, self._choice)[0]


def _times(matrix: Callable[[Tensor, Tensor], Tensor], v: Tensor, s: Tensor) -> Rows:
    """vᵀC v."""
    return (v * matrix(v, s)).sum(1)


def _four(point: Linearised, signs: Signs) -> tuple[Tensor, ...]:
    return signs(0, (4, point.y[0].numel()), point.y.device).double().unbind(1)
