"""Gaussian kernels over a data set: softmax attention, streamed, in two matrix products and with all its digits.

With c a centre of the data, y = x_t − alpha·c and x̃_i = x_i − c, the logit of row i is

    −‖x_t − alpha·x_i‖²/(2 sigma²) = [alpha·⟨y, x̃_i⟩ − alpha²‖x̃_i‖²/2]/sigma² − ‖y‖²/(2 sigma²).

The bracket is one product, of ``(−alpha²/2, alpha·y, −r)/sigma²`` and ``(‖x̃_i‖², x̃_i, 1)``, r a reference near the
query's largest; e to it times ``(x̃_i, 1)`` is the other. Rounding in the first moves a logit by about (Higham and Mary
2019, "A new approach to probabilistic rounding error analysis", theorem 2.4)

    δ = u(√(D+2) + 2)(alpha‖y‖R + alpha²R²/2)/sigma²,     u the unit roundoff, R = max ‖x̃_i‖.

So some pairs are taken out and computed again from the difference x_t − alpha·x_i, in float64. Where δ is moderate,
those whose share w_i of the sum is above tolerance/δ, of which there cannot be more than δ/tolerance a query. Where δ
is large, and in blocks of which few pairs count, all whose share is not negligible; the rest is then dropped, and there
is no second product.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradlogp.oracles.queries import Queries, squared_distances
from gradlogp.oracles.tables import Table

_LOGITS = 2**18  # logits at a time: 1 MB in float32, which stays in the cache
_NUMBERS = 2**21  # of a block of rows
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-13}  # of a share's bound, by the dtype of the answer
_NEGLIGIBLE = 1e-2  # what shares may be dropped together, in tolerances
_COARSE = {torch.float32: 1e-2, torch.float64: 1e-6}  # a δ above which the product only finds the rows that count
_NARROW = 16  # coordinates, below which a product in float64 costs little
_LIFT = 20.0  # by how much a logit may exceed its reference before that is raised
_SMALLEST = -80.0  # below, a weight is nothing beside 1; a denormal number would slow the second product
_CROWDED = 1 / 50  # share of pairs to be computed again, above which float64 is quicker
_FEW = 1 / 500  # share of pairs, up to which to compute them again is quicker than a second product
_FLUSH = 8  # blocks that float32 sums


def query_block(n_rows: int, event: int) -> int:
    """How many queries are answered together."""
    return max(1, min(_LOGITS // min(n_rows, 1024), _NUMBERS // (2 * event)))


def log_sum_and_mean(queries: Queries, table: Table, dtype: torch.dtype, *, mean: bool = True) -> tuple[Tensor, Tensor]:
    """log Σ_i exp(−‖x_t − alpha·x_i‖²/(2 sigma²)), ``(B,)``, and E[x | x_t], ``(B, D)`` (nothing without ``mean``).

    Args:
        queries: at most :func:`query_block` of them.
        table: the data.
        dtype: float32 where digits to float32's are wanted, else float64.
        mean: whether to take the second product.
    """
    d = queries.x_t.shape[1]
    size = max(1, min(_LOGITS // len(queries.x_t), _NUMBERS // (d + 2), 8192))
    for working in (torch.float32, torch.float64) if dtype == torch.float32 and d >= _NARROW else (torch.float64,):
        stream = _Stream(queries, table, working, dtype, mean)
        for start, rows in table.blocks(size):
            stream.add(start, rows)
            if stream.crowded:
                break
        else:
            break
    return stream.result()


def spread(queries: Queries, table: Table, log_sum: Tensor, mean: Tensor) -> Tensor:
    """Σ_i w_i ‖x_i − mean‖², ``(B,)``: all by differences, so never negative and right where it is small."""
    total, seen = torch.zeros_like(log_sum), queries.seen
    for start, rows in table.blocks(max(1, min(_LOGITS // len(mean), _NUMBERS // (4 * mean.shape[1])))):
        rows = rows.double()
        logits = queries.log_kernels(rows)
        hidden = seen.hidden_pairs(start, len(rows))
        if hidden is not None:
            logits[hidden] = -math.inf
        total += ((logits - log_sum[:, None]).exp() * squared_distances(mean, rows)).sum(1)
    if seen.source is not None:
        weight = (queries.source_log_kernel(seen.source) - log_sum).exp()
        total += weight * (seen.source.double() - mean).square().sum(1)
    return total


def _centre_and_length(table: Table) -> tuple[Tensor, float]:
    """A centre, and the unit of length in which the product neither overflows nor underflows; by medians."""
    rows = table.some()
    centre = rows.median(0).values.double()
    length = (rows.double() - centre).square().mean(1).sqrt().median().item()
    return centre, 1.0 if length == 0 or 1e-3 < length < 1e3 else 2.0 ** round(math.log2(length))


class _Exact:
    """Online sums over pairs, from differences, in float64: the maximum, Σ e^{l − maximum} and Σ e^{l − maximum} x̃."""

    def __init__(self, queries: Queries, centre: Tensor, mean: bool) -> None:
        self._queries, self._centre, self._mean = queries, centre, mean
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._n_waiting = 0
        b, d = queries.x_t.shape
        self.top = torch.full((b,), -math.inf, dtype=torch.float64, device=centre.device)
        self.sums = torch.zeros(b, d + 1 if mean else 1, dtype=torch.float64, device=centre.device)
        source = queries.seen.source
        if source is not None:
            self.top = queries.source_log_kernel(source)
            self.sums[:, -1] = 1
            if mean:
                self.sums[:, :-1] = source.double() - centre

    def add(self, query: Tensor, rows: Tensor) -> None:
        """Pairs of a query's number and a row, ``(P,)`` and ``(P, D)``; they may wait for others."""
        self._waiting.append((query, rows))
        self._n_waiting += rows.numel()
        if self._n_waiting > _LOGITS:
            self.settle()

    def settle(self) -> None:
        """Take in the pairs that wait, not so many at a time that they take much memory."""
        if self._waiting:
            query, rows = (torch.cat(v) for v in zip(*self._waiting, strict=True))
            size = max(1, _LOGITS // rows.shape[1])
            for q, x in zip(query.split(size), rows.split(size), strict=True):
                self._add(q, x.double())
        self._waiting, self._n_waiting = [], 0

    def _add(self, query: Tensor, rows: Tensor) -> None:
        logits = self._queries.log_kernel(query, rows)
        top = self.top.scatter_reduce(0, query, logits, "amax")
        some = query.unique()
        decay = torch.where(self.top[some] == top[some], 1.0, (self.top[some] - top[some]).exp())
        self.sums[some] *= decay[:, None]
        self.top = top
        weights = (logits - top[query]).exp().nan_to_num(nan=0.0)[:, None]
        if self._mean:
            values = torch.cat([rows - self._centre, torch.ones_like(weights)], 1)
            self.sums.index_add_(0, query, values.mul_(weights))
        else:
            self.sums.index_add_(0, query, weights)


class _Stream:
    """The sums over the rows met so far, for one block of queries."""

    def __init__(self, queries: Queries, table: Table, dtype: torch.dtype, answer: torch.dtype, mean: bool) -> None:
        self._queries, self._dtype, self._mean = queries, dtype, mean
        self._tolerance, self._most = _TOLERANCE[answer], _COARSE[answer]
        self._negligible = math.log(len(table) / (_NEGLIGIBLE * self._tolerance))
        self._centre, length = _centre_and_length(table)
        self._length = length
        alpha, variance = queries.alpha, (queries.sigma / length) ** 2
        y = (queries.x_t - alpha[:, None] * self._centre) / length
        norm = y.norm(dim=1)
        scale = torch.minimum(1 / variance, torch.finfo(dtype).max ** 0.4 / (alpha * norm + alpha**2).clamp_min(1e-300))
        self._unit = scale * variance  # 1, or less where the product would overflow; δ is large there
        self._left_out = norm**2 / (2 * variance)
        parts = [(-(alpha**2) / 2 * scale)[:, None], (alpha * scale)[:, None] * y, torch.zeros_like(norm)[:, None]]
        self._left = torch.cat(parts, 1).to(dtype)
        roundoff = torch.finfo(dtype).eps / 2 * (math.sqrt(self._left.shape[1]) + 2)
        self._rounding_of = (roundoff * alpha * norm / variance, roundoff * alpha**2 / (2 * variance))
        self._radius = -1.0
        self._exact = _Exact(queries, self._centre, mean)
        self._source = self._exact.top + self._left_out
        self._best = self._source * self._unit
        self._reference = torch.full_like(norm, -math.inf, dtype=dtype)
        self._level = torch.zeros_like(norm)  # the reference, 0 where there is none yet
        self._total = torch.zeros_like(norm)  # of all weights, as the product gives them
        self._sums = torch.zeros_like(self._exact.sums)
        self._recent = torch.zeros_like(self._sums, dtype=dtype)
        self._workspace: Tensor | None = None
        self._settled = False  # whether every query has a reference
        self._n_blocks, self._n_pairs, self._n_again, self._try_at = 0, 0, 0, 0

    @property
    def crowded(self) -> bool:
        """Whether so many pairs are computed again that float64 is quicker, or a square overflows."""
        many = self._n_pairs >= 4 * _LOGITS and self._n_again > _CROWDED * self._n_pairs
        return self._dtype != torch.float64 and (many or not math.isfinite(self._radius))

    def add(self, start: int, rows: Tensor) -> None:
        """Take in rows ``(n, D)``, the first of which is row ``start`` of the table."""
        right = self._augmented(rows)
        logits = self._left @ right.T
        hidden = self._queries.seen.hidden_pairs(start, len(rows))
        if hidden is not None:
            logits[hidden] = -math.inf
        top = self._lift(logits)
        self._n_blocks += 1
        self._n_pairs += logits.numel()
        if self._few(logits, top, hidden, rows):
            return
        weights = logits.clamp_(min=_SMALLEST).exp_()
        if self._some_coarse:
            weights[self._coarse] = 0
        if self._moderate:
            self._again(*self._heavy(weights, top), rows)
        self._recent[:, -1] += weights.sum(1)
        if self._mean:
            self._recent[:, :-1].addmm_(weights, right[:, 1:-1])
        if self._n_blocks % _FLUSH == 0:
            self._flush()

    def result(self) -> tuple[Tensor, Tensor]:
        """The logarithm of the sum, and the mean."""
        self._flush()
        exact = self._exact
        exact.settle()
        log_sums = [self._sums[:, -1].log() + self._level - self._left_out, exact.sums[:, -1].log() + exact.top]
        log_sum = torch.logaddexp(*log_sums)
        mean = self._centre.expand(len(log_sum), -1)
        if self._mean:
            for part, sums in zip(log_sums, (self._sums, exact.sums), strict=True):
                share = ((part - log_sum).exp() / sums[:, -1].clamp_min(1e-300))[:, None]
                length = self._length if sums is self._sums else 1.0
                mean = mean + torch.where(share > 0, share * length * sums[:, :-1], 0.0)
        return log_sum, mean

    def _augmented(self, rows: Tensor) -> Tensor:
        """(‖x̃_i‖², x̃_i, 1), ``(n, D + 2)``; and δ."""
        if self._workspace is None:
            self._workspace = torch.ones(len(rows), rows.shape[1] + 2, dtype=self._dtype, device=rows.device)
        right = self._workspace[: len(rows)]
        centred = right[:, 1:-1]
        if rows.dtype == self._dtype:
            torch.sub(rows, self._centre.to(rows), out=centred)
        else:
            centred.copy_(rows.double() - self._centre)
        if self._length != 1:
            centred /= self._length
        torch.linalg.vecdot(centred, centred, out=right[:, 0])
        radius = right[:, 0].max().sqrt().item()
        if not radius <= self._radius:
            self._widen(radius)
        return right

    def _widen(self, radius: float) -> None:
        """δ at a larger R, and what follows from it for each query."""
        self._radius = radius
        delta = self._rounding_of[0] * radius + self._rounding_of[1] * radius**2
        self._coarse = ~(delta <= self._most)
        self._some_coarse, self._all_coarse = bool(self._coarse.any()), bool(self._coarse.all())
        self._moderate = bool((~self._coarse & (delta > self._tolerance)).any())
        self._share = torch.where(self._coarse, math.inf, self._tolerance / delta)
        self._margin = (self._negligible + 2 * delta) * self._unit

    def _lift(self, logits: Tensor) -> Tensor:
        """Raise the reference of queries whose largest logit is far above it; the largest logits, ``(B,)``."""
        top = logits.amax(1)
        if self._settled and top.amax().item() <= _LIFT:
            return top
        unset = self._reference.isinf()
        some = (top.isfinite() & ((top > _LIFT) | unset)).nonzero()[:, 0]
        rise, new = top[some], unset[some]
        logits[some] -= rise[:, None]
        top[some] = 0
        decay = torch.where(new, 1.0, (-rise).exp())
        self._total[some] *= decay
        self._recent[some] *= decay[:, None]
        self._sums[some] *= decay[:, None]
        self._reference[some] = torch.where(new, rise, self._reference[some] + rise)
        self._settled = bool(self._reference.isfinite().all())
        self._level = torch.where(self._reference.isfinite(), self._reference, 0.0).double()
        self._left[:, -1] = -self._level
        return top

    def _few(self, logits: Tensor, top: Tensor, hidden: tuple[Tensor, Tensor] | None, rows: Tensor) -> bool:
        """Compute again the pairs of coarse queries that count; where they are few, of all queries, and that is all."""
        self._best = torch.where(top.isfinite(), torch.maximum(self._best, self._level + top), self._best)
        everything = logits.numel()
        if self._all_coarse:
            self._again(*self._near(logits, top, hidden, None, everything)[0], rows)
            return True
        if self._n_blocks >= self._try_at:
            (query, row), few = self._near(logits, top, hidden, None, int(_FEW * everything))
            if few:
                self._again(query, row, rows)
                self._total.index_add_(0, query, logits[query, row].exp().double())
                return True
            self._try_at = 2 * self._n_blocks + 1
        if self._some_coarse:
            self._again(*self._near(logits, top, hidden, self._coarse, everything)[0], rows)
        return False

    def _near(
        self, logits: Tensor, top: Tensor, hidden: tuple[Tensor, Tensor] | None, some: Tensor | None, most: int
    ) -> tuple[tuple[Tensor, Tensor], bool]:
        """The pairs whose share may not be negligible, of some queries: query and row; and whether within ``most``."""
        floor = (self._best - self._margin - self._level).to(logits)
        floor = torch.where(top.isnan() | (top == math.inf), -math.inf, floor)  # overflow: all of them
        above = ~(top <= floor)
        queries = (above if some is None else above & some).nonzero()[:, 0]
        near = ~(logits[queries] <= floor[queries, None])
        if hidden is not None and len(queries):
            shown = torch.ones_like(logits, dtype=torch.bool)
            shown[hidden] = False
            near &= shown[queries]
        few = most >= near.numel() or int(near.sum()) <= most
        at, row = near.nonzero(as_tuple=True) if few else (queries[:0], queries[:0])
        return (queries[at], row), few

    def _heavy(self, weights: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """Where δ is moderate, the pairs whose share of the sum so far is above tolerance/δ; they lose their weight."""
        self._total += weights.sum(1)
        total = self._total
        if self._queries.seen.source is not None:
            total = total + (self._source - self._level).exp()
        floor = (total * self._share).to(weights)
        queries = (top.exp() > floor).nonzero()[:, 0]
        at, row = (weights[queries] > floor[queries, None]).nonzero(as_tuple=True)
        query = queries[at]
        weights[query, row] = 0
        return query, row

    def _again(self, query: Tensor, row: Tensor, rows: Tensor) -> None:
        """Pairs from their differences."""
        if len(query):
            self._exact.add(query, rows[row])
            self._n_again += len(query)

    def _flush(self) -> None:
        self._sums += self._recent
        self._recent.zero_()
