"""Any kernel over a data set: an online softmax, block of rows by block of rows, in float64 and differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import event_size
from gradlogp.kernels import Kernel
from gradlogp.oracles.queries import Seen
from gradlogp.oracles.tables import Table

_NUMBERS = 2**17  # of pairs at a time: 1 MB in float64


@dataclass(frozen=True)
class Pairs:
    """Every query with each of some rows: x_t and x ``(B·n, *event)``, the kernel of each, and the query's number."""

    x_t: Tensor
    x: Tensor
    kernel: Kernel
    query: Tensor


Value = Callable[[Pairs], Tensor]


def query_block(n_rows: int, event: int) -> int:
    """How many queries are answered together."""
    return max(1, _NUMBERS // (event * min(n_rows, 256)))


def log_sum_and_average(
    x_t: Tensor, kernel: Kernel, table: Table, seen: Seen, value: Value | None
) -> tuple[Tensor, Tensor]:
    """log Σ_i k(x_t | x_i), ``(B,)``, and Σ_i w_i value_i, ``(B, D)``, w_i ∝ k(x_t | x_i); nothing where it is None.

    Each block of rows has its maximum m, sum s = Σ e^{l − m} and Σ e^{l − m}·value; two blocks join as
    (max(m, m'), e^{m − max}s + e^{m' − max}s', …).
    """
    b = len(x_t)
    top = torch.full((b,), -math.inf, dtype=x_t.dtype, device=x_t.device)
    total, average = torch.zeros_like(top), torch.zeros(b, 1, dtype=x_t.dtype, device=x_t.device)
    for pairs, shown in _blocks(x_t, kernel, table, seen):
        logits = pairs.kernel.log_prob(pairs.x_t, pairs.x).reshape(b, -1)
        logits = logits if shown is None else torch.where(shown, logits, -math.inf)
        new = torch.maximum(top, logits.detach().amax(1))
        at = torch.where(new == -math.inf, 0.0, new)  # all weights nothing so far
        decay, weights = (top - at).exp(), (logits - at[:, None]).exp()
        total, top = decay * total + weights.sum(1), new
        if value is not None:
            values = value(pairs).reshape(*logits.shape, -1)
            values = torch.where(weights[:, :, None] > 0, values, 0.0)  # 0 · inf is 0 here
            average = decay[:, None] * average + (weights[:, None, :] @ values).squeeze(1)
    return top + total.log(), average / total[:, None]


def _blocks(x_t: Tensor, kernel: Kernel, table: Table, seen: Seen) -> Iterator[tuple[Pairs, Tensor | None]]:
    """The pairs of each block of rows, and which of them count, ``(B, n)``, or None for all."""
    b, event = len(x_t), tuple(x_t.shape[1:])
    if seen.source is not None:
        query = torch.arange(b, device=x_t.device)
        yield Pairs(x_t, seen.source.double().reshape(x_t.shape), kernel, query), None
    for start, rows in table.blocks(max(1, _NUMBERS // (b * event_size(event)))):
        n = len(rows)
        query = torch.arange(b, device=x_t.device).repeat_interleave(n)
        x = rows.double().reshape(1, n, *event).expand(b, n, *event).reshape(b * n, *event)
        shown, hidden = None, seen.hidden_pairs(start, n)
        if hidden is not None:
            shown = torch.ones(b, n, dtype=torch.bool, device=x_t.device)
            shown[hidden] = False
        yield Pairs(x_t[query], x, kernel.rows(query), query), shown
