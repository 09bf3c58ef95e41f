"""Held-out rows as references for each other: the stable target and all that is measured against it.

Rows are dealt into blocks. At each noisy draw x_t the posterior mean of the target over any union S of blocks is

    T_S(x_t) = Σ_{b∈S} w_b s_b,    w_b ∝ p_b(x_t),    s_b = ∇log p_b(x_t),    p_b = Σ_{j∈b} k(· | x_j)

so the blocks' own densities and scores, computed once, give the target over all rows, over half of them, over all but
the draw's own block, and without any block for a jackknife.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch
from gradlogp.diagnostics.dependence import blocks_of_units, consecutive_blocks, independent_units, of_units
from gradlogp.diagnostics.estimates import Estimate
from gradlogp.diagnostics.ladder import as_rows, score_at
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel
from gradlogp.oracles import Empirical

N_BLOCKS = 20  # of a jackknife: 19 degrees of freedom
MIN_ROWS = 8
MIN_CERTIFIED = 300  # independent rows: among as many a part of 1 % of the law is in 19 cases of 20
MIN_DRAWS = 4096  # few rows are repeated with fresh noise
_WORKSPACE = 2**22  # numbers a chunk of draws may spread over
_NEGLIGIBLE = 1e-9


def default_noise(n_rows: int, min_draws: int = MIN_DRAWS) -> int:
    """Draws for each row, an even number, that make so many draws at least."""
    return 2 * math.ceil(min_draws / (2 * n_rows))


@dataclass(frozen=True)
class Rows:
    """Clean rows, dealt into blocks of nearly equal size; what depends on each other is in one block.

    Attributes:
        x: the rows, ``(N, *event)``.
        block: the block of each, ``(N,)``.
        n_blocks: G; a multiple of 4, so that there are equal halves and quarters.
        unit: which independent unit each row belongs to, ``(N,)``: its group, or a run of consecutive rows; None where
            each row is one.
        cautions: what in the rows speaks against independent draws, in words.
    """

    x: Tensor
    block: Tensor
    n_blocks: int
    unit: Tensor | None = None
    cautions: tuple[str, ...] = ()

    @classmethod
    def dealt(cls, x: Batch, generator: torch.Generator, groups: Tensor | None = None) -> Rows:
        """Deal rows into 20 blocks, or fewer where there are fewer than two independent units a block.

        Groups are dealt whole, at random. Without them rows are dealt at random if their order shows nothing; otherwise
        consecutive rows stay together, and so do the first and the second half.

        Raises:
            InputError: too few rows.
        """
        x = as_rows(x, "x_test", MIN_ROWS).detach()
        unit, cautions = independent_units(x, groups)
        n_units = len(x) if unit is None else int(unit.max()) + 1
        g = max(4, min(N_BLOCKS, 4 * (n_units // 8)))
        if groups is None and unit is not None:
            block = consecutive_blocks(len(x), g)
        else:
            order = torch.randperm(n_units, generator=generator, device=generator.device).cpu()
            block = blocks_of_units(order, unit, g)
        return cls(x, block.to(x.device), g, None if unit is None else unit.to(x.device), cautions)

    @property
    def n_units(self) -> int:
        """Rows that count as independent: all, or the number of groups or runs."""
        return len(self.x) if self.unit is None else int(self.unit.max()) + 1

    def means(self, values: Tensor, row: Tensor) -> Tensor:
        """What each unit contributes to the mean over draws, ``(Q,), (Q,) -> (U,)``; every row has as many draws."""
        return of_units(mean_of_rows(values, row, len(self.x)), self.unit)

    @property
    def certifiable(self) -> bool:
        """Whether the rows may stand for their law: enough independent ones, and nothing that speaks against it."""
        return self.n_units >= MIN_CERTIFIED and not self.cautions

    @property
    def widening(self) -> float:
        """Factor on a standard error from blocks of consecutive rows, whose neighbors are correlated: √(1 + G/U).

        For blocks of n rows and a correlation length L, the variance of the mean of all is (1 + L/n) times what the
        spread of the blocks says, nearly and at most; U = N/L.
        """
        consecutive = self.unit is not None and bool(self.cautions)
        return math.sqrt(1 + self.n_blocks / self.n_units) if consecutive else 1.0

    def widened(self, estimate: Estimate) -> Estimate:
        """The estimate with its standard error times :attr:`widening`."""
        return Estimate(estimate.value, self.widening * estimate.stderr)

    @property
    def half(self) -> Tensor:
        """0 or 1 for each block, ``(G,)``."""
        return torch.arange(self.n_blocks, device=self.x.device) % 2

    def of_blocks(self, chosen: Tensor) -> Tensor:
        """The rows of the blocks where ``chosen``, ``(G,)``, holds."""
        return self.x[chosen[self.block]]


def mean_of_rows(values: Tensor, row: Tensor, n_rows: int) -> Tensor:
    """The mean over the draws of each row, ``(Q, …) -> (N, …)``; every row has as many."""
    total = values.new_zeros(n_rows, *values.shape[1:])
    return total.index_add_(0, row, values) * (n_rows / len(row))


@dataclass(frozen=True)
class Draws:
    """Some noisy draws with the model's score and the target at each, flattened over the event.

    Attributes:
        x_t: noisy rows, ``(Q, *event)``.
        row: the index of each draw's source, ``(Q,)``.
        block: the block of each draw's source.
        psi: ψ(x_t), ``(Q, D)``, float64.
        target: ∇log k(x_t | x), ``(Q, D)``, float64.
    """

    x_t: Tensor
    row: Tensor
    block: Tensor
    psi: Tensor
    target: Tensor

    @classmethod
    def of(
        cls, rows: Rows, kernel: Kernel, model: ScoreModel, n_noise: int, generator: torch.Generator
    ) -> Iterator[Draws]:
        """Chunks of ``n_noise`` draws of each row, small enough to spread over the blocks.

        Where the noise is symmetric, n and −n are drawn in pairs: terms odd in the noise, of order 1/σ, then cancel.

        Raises:
            InputError: the model's score is not finite.
        """
        pairs = kernel.symmetric and n_noise % 2 == 0
        index = torch.arange(len(rows.x), device=rows.x.device).repeat(n_noise // 2 if pairs else n_noise)
        size = max(1, _WORKSPACE // (2 * rows.n_blocks * rows.x[0].numel()))
        for chosen in index.split(size):
            some, x = chosen, rows.x[chosen]
            x_t = kernel.sample(x, generator=generator)
            if pairs:
                some, x, x_t = torch.cat([some, some]), torch.cat([x, x]), torch.cat([x_t, kernel.reflect(x_t, x)])
            with torch.no_grad():
                psi, target = score_at(model, x_t, kernel), kernel.score(x_t, x)
            yield cls(x_t, some, rows.block[some], psi.flatten(1).double(), target.flatten(1).double())


@dataclass(frozen=True)
class Posterior:
    """The blocks at some draws, relative to a model: log p_b ``(Q, G)`` and e_b = s_b − ψ, ``(Q, G, D)``."""

    log_p: Tensor
    e: Tensor

    @classmethod
    def at(cls, draws: Draws, rows: Rows, kernel: Kernel | Sequence[Kernel]) -> Posterior:
        """Each block's log-density and score at the draws, in float64; e_b is 0 where p_b is.

        Args:
            draws: noisy draws.
            rows: the references.
            kernel: the convolution; or one for each block.
        """
        log_p, scores = block_scores(draws.x_t, rows, kernel)
        return cls(log_p, torch.where(log_p[:, :, None] > -torch.inf, scores - draws.psi[:, None], 0.0))

    def mean(self, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of the allowed blocks, ``(Q, G)``, and T − ψ over them, ``(Q, D)``.

        Args:
            allowed: ``(Q, G)``; where none is allowed, or p_b is 0 in all of them, the weights and T − ψ are 0.
        """
        allowed = allowed & (self.log_p > -torch.inf)
        w = torch.softmax(torch.where(allowed, self.log_p, -torch.inf), dim=1)
        w = torch.where(allowed.any(1, keepdim=True), w, 0.0)
        return w, torch.einsum("qg,qgd->qd", w, self.e)


def block_scores(x_t: Batch, rows: Rows, kernel: Kernel | Sequence[Kernel]) -> tuple[Tensor, Tensor]:
    """log p_b and ∇log p_b of each block at x_t, ``(Q, G)`` and ``(Q, G, D)``, in float64."""
    kernels = [kernel] * rows.n_blocks if isinstance(kernel, Kernel) else kernel
    x_t = x_t.double()
    blocks = [Empirical(rows.x[rows.block == b]) for b in range(rows.n_blocks)]
    parts = [block.log_prob_and_score(x_t, k) for block, k in zip(blocks, kernels, strict=True)]
    sizes = torch.bincount(rows.block, minlength=rows.n_blocks).to(x_t)
    log_p = torch.stack([log_p for log_p, _ in parts], 1) + sizes.log()
    return log_p, torch.stack([score.flatten(1) for _, score in parts], 1)


def without_each(w: Tensor, e_mean: Tensor, each: Tensor) -> Tensor:
    """Σ_{c≠b} w_c a_c / Σ_{c≠b} w_c for each b, ``(Q, G)``, from Σ_c w_c a_c ``(Q,)`` and the a_b ``(Q, G)``."""
    rest = _rest(w)
    return torch.where(rest > _NEGLIGIBLE, (e_mean[:, None] - w * each) / rest.clamp_min(_NEGLIGIBLE), e_mean[:, None])


def squared_norm_without_each(w: Tensor, e_mean: Tensor, e: Tensor) -> Tensor:
    """‖Σ_{c≠b} w_c e_c‖²/(Σ_{c≠b} w_c)² for each b, ``(Q, G)``."""
    rest = _rest(w)
    norm = e_mean.square().sum(1, keepdim=True)
    cross, own = torch.einsum("qd,qgd->qg", e_mean, e), e.square().sum(2)
    numerator = (norm - 2 * w * cross + w * w * own).clamp_min(0.0)
    return torch.where(rest > _NEGLIGIBLE, numerator / rest.clamp_min(_NEGLIGIBLE) ** 2, norm)


def _rest(w: Tensor) -> Tensor:
    """Σ_{c≠b} w_c: a draw's own block leaves at least its own share."""
    return w.sum(1, keepdim=True) - w
