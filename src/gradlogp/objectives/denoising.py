"""Denoising score matching, with the plain and the stable target."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from gradlogp._shapes import (
    Batch,
    InputError,
    Rows,
    as_batch,
    as_count,
    require_batch,
    row_keys,
    same_event,
    squared_norm,
)
from gradlogp.kernels import Kernel
from gradlogp.kernels.base import require_levels
from gradlogp.models import ScoreModel
from gradlogp.objectives.stable import posterior_score


class DenoisingScoreMatching:
    """½‖ψ(x_t) − ∇log k(x_t | x)‖², x_t ~ k(· | x) (Vincent 2011, equation 9): needs samples only.

    With references, the stable target (Xu, Tong and Jaakkola 2023, equation 4) takes the place of ∇log k(x_t | x):

        T_B(x_t) = Σ_j w_j ∇log k(x_t | x_j),    w_j ∝ k(x_t | x_j),    over a set B of rows that includes the source x

    w_j is the probability that x_j ∈ B is the source, so T_B = E[∇log k(x_t | x) | x_t, B]: the gradient is the same in
    expectation, with less variance, and

        J_DSM(ψ) = J_STF(ψ) + ½E tr Cov(∇log k(x_t | x) | x_t, B),    J_ESM(ψ) ≤ J_STF(ψ) ≤ J_DSM(ψ),

    J_STF falling as B grows: the loss is itself an upper bound, in expectation, on the score error. All this holds for
    rows that are exchangeable: independent draws of one law, or a shuffled data set.

    Args:
        n_noise: draws of noise for each datum; the loss of a row is their mean.
        antithetic: draw n and −n in pairs; ``n_noise`` is then even, and the noise symmetric.
        references: B. None takes the source alone. A whole number m cuts the batch, in its order, into groups of m rows
            (the last may be smaller): B is the group of the row, m = 1 the source alone, m >= the batch the whole
            batch. A tensor ``(M, *event)`` of rows of the same law: if every row of the batch is among them, equal in
            all digits, they are B; otherwise B is these M and the row's own source, M + 1 in all (a row that is there
            already then counts twice). Give the rows that the batches are drawn from, or rows that have nothing to do
            with them. A target without the source would be biased.

    Raises:
        InputError: ``n_noise`` < 1, or odd with ``antithetic``; references < 1, or no finite batch, or, when called, of
            another event shape than the batch.
    """

    def __init__(self, n_noise: int = 1, *, antithetic: bool = False, references: int | Tensor | None = None) -> None:
        self.n_noise = as_count(n_noise, "n_noise")
        if antithetic and n_noise % 2:
            raise InputError(f"n_noise: got {n_noise}, want an even number >= 2 for antithetic pairs")
        self.antithetic = antithetic
        self.references: int | _Known
        if isinstance(references, Tensor):
            self.references = _Known(as_batch(references, "references"))
        else:
            self.references = 1 if references is None else as_count(references, "references", most=sys.maxsize)

    def __call__(self, model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None = None) -> Rows:
        """The loss of each row, ``(B,)``."""
        draws = self.n_noise // 2 if self.antithetic else self.n_noise
        repeated, kernel = _repeat(x, kernel, draws)
        x_t = kernel.sample(repeated, generator=generator)
        loss = self._loss(model, x_t, repeated, kernel, x)
        if self.antithetic:
            loss = (loss + self._loss(model, kernel.reflect(x_t, repeated), repeated, kernel, x)) / 2
        return loss.reshape(-1, draws).mean(1)

    def _loss(self, model: ScoreModel, x_t: Tensor, sources: Tensor, kernel: Kernel, x: Tensor) -> Tensor:
        return 0.5 * squared_norm(model.score(x_t, kernel) - self._target(x_t, sources, kernel, x))

    def _target(self, x_t: Tensor, sources: Tensor, kernel: Kernel, x: Tensor) -> Tensor:
        """The target at x_t, drawn from sources, which are the rows of x, each some times in succession."""
        if isinstance(self.references, _Known):
            known = self.references.as_(x)
            return posterior_score(x_t, kernel, known.rows, None if known.include(x) else sources)
        m = min(self.references, len(x))
        if m == 1:
            return kernel.score(x_t, sources)
        n = len(x) // m * m
        groups = x[:n].reshape(-1, m, *x.shape[1:])
        if n == len(x):
            return posterior_score(x_t, kernel, groups)
        rows = torch.arange(len(x_t), device=x_t.device).tensor_split((n * (len(x_t) // len(x)),))
        parts = zip(rows, (groups, x[n:]), strict=True)
        return torch.cat([posterior_score(x_t[i], kernel.rows(i), references) for i, references in parts])


class _Known:
    """Reference rows, in the dtype and on the device of the batches, and whether a batch is among them."""

    def __init__(self, rows: Batch) -> None:
        self.rows = rows.detach()
        self._like: _Known | None = None
        self._sorted, self._order = row_keys(self.rows).sort()

    def as_(self, x: Batch) -> _Known:
        """These rows for batches like x; what was made last is kept."""
        if (x.dtype, x.device) == (self.rows.dtype, self.rows.device):
            return self
        if self._like is None or (x.dtype, x.device) != (self._like.rows.dtype, self._like.rows.device):
            self._like = _Known(self.rows.to(x))
        return self._like

    def include(self, x: Batch) -> bool:
        """Whether every row of x is equal, in all digits, to one of the references."""
        same_event(x, tuple(self.rows.shape[1:]))
        at = torch.searchsorted(self._sorted, row_keys(x)).clamp(max=len(self.rows) - 1)
        return bool((self.rows[self._order[at]] == x).all())


def _repeat(x: Batch, kernel: Kernel, n: int) -> tuple[Tensor, Kernel]:
    """Each row, and the kernel's level of it, n times in succession."""
    x = require_batch(x)
    require_levels(kernel, x)
    if n == 1:
        return x, kernel
    rows = torch.arange(len(x), device=x.device).repeat_interleave(n)
    return x[rows], kernel.rows(rows)
