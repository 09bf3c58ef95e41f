"""What is measured on held-out rows at each look: the loss, and what of it the model has left to learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradlogp._shapes import Batch, as_batch, as_count, dot, event_size, per_row, squared_norm
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import ScoreModel
from gradlogp.objectives import posterior_weights
from gradlogp.training.any_kernel import PairGroup
from gradlogp.training.gate import shrunk_slope
from gradlogp.training.levels import Levels
from gradlogp.training.loss import WeightedLoss

MIN_DRAWS = 2048
MAX_ROWS = 2**14  # looked at, of more: a look is then no longer than some tens of steps
_RANGES = 8  # of levels, that a part has a share each in
_PAIRS, _WORK = 2**23, 2**30  # noisy rows times references that are kept, and that times coordinates


class Look(NamedTuple):
    """One look: means over held-out rows and their standard errors.

    Attributes:
        held_out: the weighted loss, λ(σ)·½‖ψ − t‖², t the target of denoising score matching.
        left: λ(σ)·½‖ψ − T‖² with the stable target T: an upper bound, in expectation, on the weighted score error.
        gain: how much less is left than at the first look, row by row.
    """

    held_out: float
    held_out_stderr: float
    left: float
    left_stderr: float
    gain: float
    gain_stderr: float


class HeldOut:
    """The loss on fixed rows with fixed noise, so that two looks differ by the model only; a look is a forward pass.

    Every noisy row x_t has the target t = ∇log k(x_t | x), and the stable target T = Σ_j w_j ∇log k(x_t | x_j) over
    held-out rows that include its source x (:func:`gradlogp.objectives.posterior_score`). With weights λ(σ)

        E λ½‖ψ − t‖² = E λ½‖ψ − T‖² + E λ½ tr Cov(t | x_t, rows)       held_out = left + floor, in expectation,

    left is at least the weighted score error, with the same minimum over ψ as held_out and less noise; the floor is
    of no model and at most the loss of the true score. The rows are the references of each other: all of them, or,
    where they are many, those of one of several groups drawn at random.

    Standard errors are over rows, each with all its noise. That of left and floor is the infinitesimal jackknife (Efron
    1982, chapter 6), with U_j the derivative of the mean by the weight of row j, as a noisy row and as a reference,

        s.e.² = Σ_j U_j²/(n(n − 1)),    U_j = left_j − left − Σ_i w_ij λ_i ⟨ψ_i − T_i, t_ij − T_i⟩

    and neglects what is of second order in the weights.

    Args:
        x: held-out rows, ``(N, *event)``; of more than 16 384 as many, at random.
        levels: noise levels to look at.
        loss: gives the weight of a level.
        seed: of the noise.
        min_draws: noisy rows at least; fewer held-out rows are repeated, each with its own noise.
        parts: other models; looked at is what each model is worth with these stacked on it: see
            :class:`~gradlogp.models.OnReference`. Shares are one for each of 8 ranges of levels.

    Attributes:
        floor, floor_stderr: the mean of λ½ tr Cov(t | x_t, rows) and its standard error.
    """

    def __init__(
        self,
        x: Batch,
        levels: Levels,
        loss: WeightedLoss,
        seed: int,
        min_draws: int = MIN_DRAWS,
        parts: Sequence[ScoreModel] = (),
    ) -> None:
        g = torch.Generator(x.device).manual_seed(seed)
        x = as_batch(x)[torch.randperm(len(x), generator=g, device=x.device)[:MAX_ROWS]]
        self.n = len(x)
        rows = repeated(x, as_count(min_draws, "min_draws", each=x[0].nbytes))
        sigma = levels.draw(len(rows), generator=g, like=x)
        self.kernel, self.weight = loss.kernel(sigma), loss.weight(sigma)
        self.x_t = self.kernel.sample(rows, generator=g)
        self.target = self.kernel.score(self.x_t, rows)
        draws, d = len(rows) // self.n, event_size(tuple(x.shape[1:]))
        gaussian = isinstance(self.kernel, Gaussian)
        m = max(1, (min(_PAIRS, _WORK // d) if gaussian else _PAIRS // d) // len(rows))
        index = torch.arange(len(rows), device=x.device)
        self.groups = [
            _group(part, self.x_t[i], self.kernel.rows(i), self.weight[i])
            for part, i in ((x[j], index[j[0] * draws : (j[-1] + 1) * draws]) for j in _split(self.n, m, x.device))
        ]
        self._first: tuple[Tensor, Tensor] | None = None
        with torch.no_grad():
            self.parts = [part.score(self.x_t, self.kernel) for part in parts]
        place = sigma.argsort().argsort() * _RANGES // len(rows)
        self._cell = place * self.n + torch.arange(len(rows), device=x.device) // draws
        self.floor, self.floor_stderr = self._mean(*_joined([g.floor() for g in self.groups]))

    def __call__(self, model: ScoreModel) -> Look:
        """The loss, what is left of it, and what that gained on the first model seen, with their standard errors."""
        with torch.no_grad():
            psi = model.score(self.x_t, self.kernel)
            for part in self.parts:
                psi = psi + per_row(self._share(psi, part), psi) * (part - psi)
            loss = 0.5 * self.weight * squared_norm(psi - self.target)
            left, shared = _joined([g.left(part) for g, part in zip(self.groups, self._parts(psi), strict=True)])
        if self._first is None:
            self._first = left, shared
        gain = self._mean(self._first[0] - left, self._first[1] - shared)
        return Look(*self._mean(loss.double(), torch.zeros_like(shared)), *self._mean(left, shared), *gain)

    def _share(self, psi: Batch, part: Batch) -> Tensor:
        """How far ψ is best moved towards a part: least squares over the rows in each range of levels, held back."""
        target = torch.cat([group.target for group in self.groups])
        step = part - psi
        xy, xx = (
            torch.zeros(_RANGES * self.n, dtype=torch.float64, device=psi.device).index_add_(
                0, self._cell, (self.weight * v).double()
            )
            for v in (dot(target - psi, step), squared_norm(step))
        )
        share = shrunk_slope(xy.reshape(_RANGES, self.n), xx.reshape(_RANGES, self.n))
        return share[self._cell // self.n].to(psi)

    def _parts(self, psi: Batch) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = psi.split([len(group.target) for group in self.groups])
        return parts

    def _mean(self, each: Tensor, shared: Tensor) -> tuple[float, float]:
        """The mean over noisy rows, and its standard error over rows, given each row's effect as a reference."""
        u = each.reshape(self.n, -1).mean(1)
        mean = u.mean()
        if self.n == 1:
            return mean.item(), math.inf
        return mean.item(), ((u - mean + shared).square().sum() / (self.n * (self.n - 1))).sqrt().item()


class _Group:
    """Rows that are the references of each other's noisy rows: stable targets, and what each row has part in.

    With q noisy rows a row, t_ij − T_i = (x_j − m_i)/σ_i² and m_i = Σ_j w_ij x_j.
    """

    def __init__(self, x: Tensor, x_t: Tensor, kernel: Gaussian, weight: Tensor) -> None:
        w = posterior_weights(x_t, kernel, x[None])[0].double()
        w = w / w.sum(1, keepdim=True)
        flat, at = x.flatten(1).double(), x_t.flatten(1).double()
        centre = flat.mean(0)
        flat, at = flat - centre, at - centre
        self.variance = kernel.sigma.double()[:, None] ** 2
        self.weight = weight.double()[:, None]
        self.mean = w @ flat
        self.target = ((self.mean - at) / self.variance).reshape(x_t.shape).to(x_t.dtype)
        self.x, self.w = flat, w

    def left(self, psi: Tensor) -> tuple[Tensor, Tensor]:
        """λ½‖ψ − T‖² of each noisy row, and −Σ_i w_ij λ_i⟨ψ_i − T_i, t_ij − T_i⟩/q of each row."""
        error = (psi - self.target).flatten(1).double()
        a = self.weight * error / self.variance
        dots = self._gathered(a) * self.x
        shared = self._gathered((a * self.mean).sum(1, keepdim=True)).squeeze(1) - dots.sum(1)
        return (0.5 * self.weight[:, 0]) * error.square().sum(1), shared

    def floor(self) -> tuple[Tensor, Tensor]:
        """λ½ tr Cov = λ½ Σ_j w_ij‖t_ij − T_i‖² of each noisy row, and the part of each row as a reference."""
        squares = self.x.square().sum(1)
        h = 0.5 * self.weight / self.variance**2
        size = self.mean.square().sum(1, keepdim=True)
        each = h * (self.w @ squares[:, None] - size).clamp_min(0)
        dots = (self._gathered(h * self.mean) * self.x).sum(1)
        shared = squares * self._gathered(h)[:, 0] - 2 * dots + self._gathered(h * size - each)[:, 0]
        return each[:, 0], shared

    def _gathered(self, v: Tensor) -> Tensor:
        """Σ_i w_ij v_i over the noisy rows, per noisy row a row: ``(q·m, K) -> (m, K)``."""
        return (self.w.T @ v) * (self.w.shape[1] / self.w.shape[0])


def _group(x: Tensor, x_t: Tensor, kernel: Kernel, weight: Tensor) -> _Group | PairGroup:
    """In closed form for Gaussian noise, otherwise pair by pair."""
    return _Group(x, x_t, kernel, weight) if isinstance(kernel, Gaussian) else PairGroup(x, x_t, kernel, weight)


def repeated(x: Batch, at_least: int) -> Tensor:
    """Each row as often, in succession, as makes so many rows."""
    return x.repeat_interleave(max(1, math.ceil(at_least / len(x))), dim=0)


def _split(n: int, size: int, device: torch.device) -> tuple[Tensor, ...]:
    """The numbers below n in consecutive parts of equal length, ``size`` at most; the last may be shorter."""
    parts: tuple[Tensor, ...] = torch.arange(n, device=device).split(math.ceil(n / math.ceil(n / size)))
    return parts


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
