"""What is asked of a data set: noisy rows, their noise levels, and which rows of the data each sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """Which rows each query sees: all of a table, but for ``hidden``, and its own ``source`` with the same weight.

    Attributes:
        hidden: the row that a query does not see, ``(B,)``, or None.
        source: a row that only this query sees, ``(B, D)``, or None.
    """

    hidden: Tensor | None = None
    source: Tensor | None = None

    def of(self, rows: Tensor) -> Seen:
        """What some of the queries see."""
        return Seen(*(None if v is None else v[rows] for v in (self.hidden, self.source)))

    def count(self, n_rows: int) -> int:
        """How many rows a query sees."""
        return n_rows - (self.hidden is not None) + (self.source is not None)

    def hidden_pairs(self, start: int, n: int) -> tuple[Tensor, Tensor] | None:
        """The queries that do not see a row of start to start + n, and which of these it is."""
        if self.hidden is None:
            return None
        query = ((self.hidden >= start) & (self.hidden < start + n)).nonzero()[:, 0]
        return query, self.hidden[query] - start


@dataclass(frozen=True)
class Queries:
    """Rows to be answered, in float64: x_t − shift ``(B, D)``, alpha and sigma ``(B,)``, and what each sees."""

    x_t: Tensor
    alpha: Tensor
    sigma: Tensor
    seen: Seen

    def log_kernel(self, query: Tensor, rows: Tensor) -> Tensor:
        """−‖x_t − alpha·x‖²/(2 sigma²) of pairs, by differences, ``(P,)``."""
        r = (self.x_t[query] - self.alpha[query, None] * rows) / self.sigma[query, None]
        return -0.5 * r.square().sum(1)

    def source_log_kernel(self, source: Tensor) -> Tensor:
        """The same of each query and its own source, ``(B,)``."""
        return self.log_kernel(torch.arange(len(source), device=source.device), source.double())

    def log_kernels(self, rows: Tensor) -> Tensor:
        """The same of all pairs, ``(B, n)``, for ``(n, D)`` rows."""
        if bool((self.alpha == self.alpha[0]).all()):
            squared = squared_distances(self.x_t, self.alpha[0] * rows)
        else:
            pairs = zip(self.x_t, self.alpha, strict=True)
            squared = torch.cat([squared_distances(x[None], a * rows) for x, a in pairs])
        return -squared / (2 * self.sigma[:, None] ** 2)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖² by differences."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_()
