"""The mean of a kernel over rows of data: what a data set and its views have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch, Rows, as_batch, event_size, same_event, squared_norm
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.kernels.base import require_levels
from gradlogp.models import ScoreModel
from gradlogp.oracles import attention, online
from gradlogp.oracles.online import Pairs
from gradlogp.oracles.queries import Queries, Seen
from gradlogp.oracles.tables import Table


@dataclass(frozen=True)
class Sight:
    """Some of the queries (all where ``queries`` is None), the rows that they see, and what sets each apart."""

    table: Table
    seen: Seen
    queries: Tensor | None = None


class Parzen(ScoreModel):
    """p_σ(x_t) = (1/n) Σ_i k(x_t | x_i) over the n rows that a query sees, for any kernel (Parzen 1962).

    Rows are streamed: the memory taken does not grow with their number. With an isotropic Gaussian kernel it takes
    two matrix products (:mod:`gradlogp.oracles.attention`), with another an online softmax over pairs. Where x_t
    requires a gradient, the online softmax is taken for all, and its graph does grow.

    An answer has the dtype of x_t. In float64 it is right to about 1e-10 of its size, in float32 to 1e-5, at any
    noise level.
    """

    event_shape: tuple[int, ...]

    @abstractmethod
    def _sights(self, n_queries: int) -> Iterator[Sight]:
        """Which rows the queries see; each query once.

        Raises:
            InputError: not as many queries as this view is of.
        """

    def log_prob(self, x_t: Batch, kernel: Kernel) -> Rows:
        """Log p_σ(x_t) = log Σ_i k(x_t | x_i) − log n, in nats."""
        return self._over_sights(lambda part: (part.log_prob,), x_t, kernel, None)[0]

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """∇log p_σ(x_t) = Σ_i w_i ∇log k(x_t | x_i), w_i ∝ k(x_t | x_i) the posterior of the rows."""
        return self._over_sights(lambda part: (part.score(),), x_t, kernel, _score)[0]

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """E[x | x_t] = Σ_i w_i x_i, for any kernel."""
        return self._over_sights(lambda part: (part.mean(),), x_t, kernel, _clean)[0]

    def log_prob_and_score(self, x_t: Batch, kernel: Kernel) -> tuple[Rows, Batch]:
        """Both, in one pass over the rows: ``(B,)`` in nats, and like x_t."""
        log_prob, score = self._over_sights(lambda part: (part.log_prob, part.score()), x_t, kernel, _score)
        return log_prob, score

    def half_target_variance(self, x_t: Batch, kernel: Kernel) -> Rows:
        """½ Σ_i w_i ‖∇log k(x_t | x_i) − ∇log p_σ(x_t)‖², the variance that no model of the target explains, ``(B,)``.

        Its mean over x_t ~ p_σ is −C = J_DSM of this very score. By differences, so never negative, and right to 1e-10
        of itself down to where the mean's own rounding shows, 1e-24 of the kernel's Fisher information. Two passes.
        """
        x_t = same_event(x_t, self.event_shape, "x_t")
        return self._over_sights(_half_variance, x_t.double(), kernel, _score)[0].to(x_t.dtype)

    def _over_sights(
        self, f: Callable[[_Part], tuple[Tensor, ...]], x_t: Batch, kernel: Kernel, value: online.Value | None
    ) -> list[Tensor]:
        """f over blocks of queries, joined in their order and cast to the dtype of x_t."""
        dtype = same_event(x_t, self.event_shape, "x_t").dtype
        x_t = as_batch(x_t, "x_t")
        require_levels(kernel, x_t)
        differentiated = _differentiated(x_t, kernel)
        order, parts = [], []
        for sight in self._sights(len(x_t)):
            queries = torch.arange(len(x_t), device=x_t.device) if sight.queries is None else sight.queries
            form = None if differentiated else _isotropic(kernel, self.event_shape)
            block = (online if form is None else attention).query_block(len(sight.table), event_size(self.event_shape))
            for rows in queries.split(block):
                at = rows if sight.queries is None else torch.searchsorted(queries, rows)
                part = _part(x_t[rows], kernel.rows(rows), sight.table, sight.seen.of(at), form is not None, value)
                order.append(rows)
                parts.append(f(part))
        back = torch.cat(order).argsort()
        return [torch.cat(v)[back].to(dtype) for v in zip(*parts, strict=True)]


@dataclass(frozen=True)
class _Part:
    """Some queries, answered.

    Attributes:
        log_prob: log p_σ(x_t), ``(B,)``.
        average: the score, or the mean of x where the kernel is Gaussian or that was asked for, ``(B, D)``.
        log_sum: log Σ_i k(x_t | x_i), without the Gaussian's normaliser.
    """

    x_t: Tensor
    kernel: Kernel
    table: Table
    seen: Seen
    queries: Queries | None
    log_sum: Tensor
    log_prob: Tensor
    average: Tensor

    def mean(self) -> Tensor:
        """E[x | x_t]."""
        return self.average.reshape(self.x_t.shape)

    def score(self) -> Tensor:
        """∇log p_σ(x_t)."""
        if self.queries is None:
            return self.average.reshape(self.x_t.shape)
        alpha, sigma = self.queries.alpha[:, None], self.queries.sigma[:, None]
        return ((alpha * self.average - self.queries.x_t) / sigma**2).reshape(self.x_t.shape)


def _part(x_t: Tensor, kernel: Kernel, table: Table, seen: Seen, fast: bool, value: online.Value | None) -> _Part:
    """Log p_σ, and the average that was asked for."""
    dtype = torch.float64 if x_t.dtype == torch.float64 else torch.float32
    b, x_t, log_n = len(x_t), x_t.double(), math.log(seen.count(len(table)))
    form = _isotropic(kernel, tuple(x_t.shape[1:])) if fast else None
    if form is None:
        log_sum, average = online.log_sum_and_average(x_t, kernel, table, seen, value)
        return _Part(x_t, kernel, table, seen, None, log_sum, log_sum - log_n, average)
    alpha, sigma, shift = form
    queries = Queries((x_t - shift.to(x_t)).flatten(1), alpha.to(x_t).expand(b), sigma.to(x_t).expand(b), seen)
    log_sum, average = attention.log_sum_and_mean(queries, table, dtype, mean=value is not None)
    log_z = x_t[0].numel() * (0.5 * math.log(2 * math.pi) + queries.sigma.log())
    return _Part(x_t, kernel, table, seen, queries, log_sum, log_sum - log_n - log_z, average)


def _half_variance(part: _Part) -> tuple[Tensor]:
    """½ Σ_i w_i ‖∇log k_i − s‖²; for the Gaussian alpha²/(2 sigma⁴)·Σ_i w_i ‖x_i − E[x | x_t]‖²."""
    queries = part.queries
    if queries is not None:
        spread = attention.spread(queries, part.table, part.log_sum, part.average)
        return (0.5 * (queries.alpha / queries.sigma**2) ** 2 * spread,)
    score = part.score()

    def value(pairs: Pairs) -> Tensor:
        return squared_norm(_score(pairs) - score[pairs.query])

    return (0.5 * online.log_sum_and_average(part.x_t, part.kernel, part.table, part.seen, value)[1][:, 0],)


def _score(pairs: Pairs) -> Tensor:
    return pairs.kernel.score(pairs.x_t, pairs.x)


def _clean(pairs: Pairs) -> Tensor:
    return pairs.x


def _isotropic(kernel: Kernel, event_shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor] | None:
    """alpha, sigma and shift of a kernel alpha·x + shift + N(0, sigma² I), if it is one."""
    form = kernel.gaussian_form(event_shape)
    if form is None or form.kind != "isotropic":
        return None
    sigma = kernel.sigma if type(kernel) is Gaussian else form.covariance.double().sqrt()  # its square may overflow
    return form.alpha, sigma, form.shift


def _differentiated(x_t: Tensor, kernel: Kernel) -> bool:
    """Whether the answer is to carry a derivative, backward or forward."""
    levels = (kernel.sigma, kernel.alpha) if isinstance(kernel, Gaussian) else ()
    backward = torch.is_grad_enabled() and any(v.requires_grad for v in (x_t, *levels))
    return backward or torch.autograd.forward_ad.unpack_dual(x_t).tangent is not None
