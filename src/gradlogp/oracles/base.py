"""What an oracle is, chunks of rows, and the posterior average over weighted points."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gradlogp._shapes import Batch, Rows, as_batch, event_size, require_batch
from gradlogp.kernels import Kernel
from gradlogp.kernels.base import require_levels
from gradlogp.models import ScoreModel

_WORKSPACE = 2**22  # numbers a chunk of rows may spread over: 32 MB in float64


class Oracle(ScoreModel):
    """An exact density p and its convolution with a kernel.

    It computes in float64, or so that digits are kept, and answers in the dtype of x_t.
    """

    event_shape: tuple[int, ...]
    keeps_digits = True

    @abstractmethod
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Batch:
        """Draws from p, ``(n, *event)``."""

    @abstractmethod
    def log_prob(self, x_t: Batch, kernel: Kernel) -> Rows:
        """Log p_σ(x_t) in nats, p_σ = p ∗ q, ``(B,)``."""


def chunks(n_rows: int, numbers_a_row: int, device: torch.device) -> Iterator[Tensor]:
    """Indices of consecutive rows, so many at a time that the workspace stays small."""
    size = max(1, _WORKSPACE // max(numbers_a_row, 1))
    return iter(torch.arange(n_rows, device=device).split(size))


def by_chunks(f: Callable[[Tensor, Kernel], Tensor], x_t: Batch, kernel: Kernel, numbers_a_row: int) -> Tensor:
    """f over chunks of rows, in float64, joined and cast back."""
    dtype, x_t = require_batch(x_t, "x_t").dtype, as_batch(x_t, "x_t")
    require_levels(kernel, x_t)
    parts = [f(x_t[rows].double(), kernel.rows(rows)) for rows in chunks(len(x_t), numbers_a_row, x_t.device)]
    return torch.cat(parts).to(dtype)


class WeightedPoints:
    """p as weighted points: log p_σ, the score and the mean of x given x_t, for any kernel.

    The points are shared by all rows, ``(M, *event)`` with log-weights ``(M,)``, or each row's own, ``(B, M, *event)``
    with ``(B, M)``. With w_j ∝ exp(log_weight_j)·k(x_t | x_j):  ∇log p_σ(x_t) = Σ_j w_j ∇log k(x_t | x_j).
    """

    def __init__(self, x_t: Batch, points: Tensor, log_weights: Tensor, kernel: Kernel) -> None:
        b, event = len(x_t), tuple(x_t.shape[1:])
        self.points = points.expand(b, *points.shape[-1 - len(event) :])
        m = self.points.shape[1]
        pair = torch.arange(b, device=x_t.device).repeat_interleave(m)
        self._pairs = (x_t[pair], self.points.reshape(b * m, *event), kernel.rows(pair))
        self._shape = (b, m, event_size(event))
        self.log_joint = self._pairs[2].log_prob(self._pairs[0], self._pairs[1]).reshape(b, m) + log_weights

    def log_prob(self) -> Rows:
        """log Σ_j exp(log_weight_j) k(x_t | x_j)."""
        return torch.logsumexp(self.log_joint, dim=1)

    def score(self) -> Tensor:
        """Σ_j w_j ∇log k(x_t | x_j), flattened, ``(B, D)``."""
        x_t, x, kernel = self._pairs
        return self._average(kernel.score(x_t, x))

    def mean(self) -> Tensor:
        """Σ_j w_j x_j, flattened, ``(B, D)``."""
        return self._average(self._pairs[1])

    def _average(self, values: Tensor) -> Tensor:
        weights = torch.softmax(self.log_joint, dim=1)
        seen = torch.where(weights[:, :, None] > 0, values.reshape(self._shape), 0.0)  # 0 · inf is 0 here
        return (weights[:, None, :] @ seen).squeeze(1)
