"""Log-mass of data that lie on a grid, from a density, and bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows, as_batch, as_count
from gradlogp.diagnostics import Estimate
from gradlogp.likelihood.dequantise import Dequantisation

_ROWS = 4096  # rows that one call of the density gets, at least one draw for each row

T = TypeVar("T", Tensor, float, Estimate)


def bits_per_dim(nats: T, n_dims: int, bin_width: Tensor | float = 1.0) -> T:
    """Bits per dimension of a log-mass, or of a log-density of y and the width h of y's cells,

        bits = −(nats + Σ_i log h_i)/(D ln 2) = −nats/(D ln 2) + mean_i log2(1/h_i).

    A log-mass, such as that of :func:`log_mass`, has its widths in it: leave h = 1. Of a density of
    y = scale·x01 + shift, where 256 levels of x01 fill [0, 1], h = scale/256: 8 − log2(scale) is added, which is 8 for
    y in [0, 1] and 7 for y in [−1, 1]. An upper bound on −log p is given as minus that bound.

    Args:
        nats: log-mass or log-density, **not** its negative: a tensor, a number or an Estimate.
        n_dims: D, coordinates of a datum.
        bin_width: h > 0, in the unit of y: one for all coordinates or one each, D of them.

    Raises:
        InputError: n_dims < 1, widths that are not positive and finite, or another number of them.

    Reference: Theis, van den Oord and Bethge (2016), "A note on the evaluation of generative models", section 3.1.
    """
    d = as_count(n_dims, "n_dims")
    h = torch.as_tensor(bin_width, dtype=torch.float64).flatten()
    if len(h) not in (1, d) or not bool((h.isfinite() & (h > 0)).all()):
        raise InputError(f"bin_width: got {bin_width!r}, want one finite width > 0, or {d} of them")
    unit, extra = d * math.log(2), -h.log2().mean().item()
    if isinstance(nats, Estimate):
        return Estimate(-nats.value / unit + extra, nats.stderr / unit)  # type: ignore[return-value]
    return -nats / unit + extra


@dataclass(frozen=True)
class LogMass:
    """The log-mass of each row's cell under a density, ``(B,)``, in nats: two lower bounds from the same draws.

    Attributes:
        value: the log of the mean weight, log 1/K Σ_k p(y_k)/q(y_k | x): a lower bound in expectation that rises to
            the log-mass with K, by about ½ stderr² in all where that is small.
        stderr: its standard error by the delta method; too small where few draws carry the weight (stderr near 1).
        elbo: the mean of the log-weights, 1/K Σ_k log p(y_k) − log q(y_k | x): a lower bound in expectation.
        elbo_stderr: its standard error.
        n_draws: K.
    """

    value: Rows
    stderr: Rows
    elbo: Rows
    elbo_stderr: Rows
    n_draws: int

    @property
    def mean(self) -> Estimate:
        """The mean of ``value`` over rows; its standard error is that of rows drawn from a population."""
        return Estimate.mean_of(self.value)

    @property
    def elbo_mean(self) -> Estimate:
        """The mean of ``elbo`` over rows, likewise."""
        return Estimate.mean_of(self.elbo)


@dataclass(frozen=True)
class MassBound:
    """An upper bound on −log of the mass of each row's cell, ``(B,)``, in nats.

    Attributes:
        value: the mean over draws of L(y) + log q(y | x); it has noise, so what holds is value + a few stderr.
        stderr: its standard error, over draws: noise of L and of y together.
        n_draws: K.
    """

    value: Rows
    stderr: Rows
    n_draws: int

    @property
    def mean(self) -> Estimate:
        """The mean over rows; its standard error is that of rows drawn from a population."""
        return Estimate.mean_of(self.value)


def log_mass(
    log_density: Callable[[Tensor], Tensor],
    x: Batch,
    dequantiser: Dequantisation,
    *,
    n_draws: int = 16,
    generator: torch.Generator | None = None,
) -> LogMass:
    """Log P(cell of x) = log ∫_cell p(y) dy, from below: y_1 … y_K ~ q(y | x), w_k = p(y_k)/q(y_k | x),

        E[1/K Σ log w_k]  <=  E[log 1/K Σ w_k]  <=  log P(cell of x),

    the ELBO and the importance-weighted bound, which rises with K. Where the cell has continuous coordinates it is the
    log of their density times the mass of the others.

    The log-density must be exact or nearly so, :func:`~gradlogp.likelihood.log_prob` (the probability flow's):
    ``lambda y: likelihood.log_prob(model, y).value``. Of one that is right on average but has noise of variance v, the
    importance-weighted value can be up to v/2 too high; a noisy bound is for :func:`mass_bound`.

    Args:
        log_density: rows ``(N, *event)`` -> ``(N,)`` nats; −inf where the density is 0.
        x: rows on the grid, ``(B, *event)``.
        dequantiser: the law on the cells.
        n_draws: K, at least 2.
        generator: source of the draws.

    Raises:
        InputError: n_draws < 2, rows that do not fit the dequantiser, or a log-density of another shape or that is NaN
            or +inf.

    Reference: Burda, Grosse and Salakhutdinov (2016), "Importance weighted autoencoders", theorem 1.
    """
    x = as_batch(x)
    k = _at_least_two(n_draws, len(x))
    log_p, log_q = _over_draws(log_density, x, dequantiser, k, generator)
    log_w = log_p - log_q
    value = log_w.logsumexp(0) - math.log(k)
    ratio = torch.where(value.isfinite(), (log_w - value).exp(), math.inf)
    stderr = torch.where(value.isfinite(), ratio.std(0) / math.sqrt(k), math.inf)
    elbo_stderr = torch.where(log_w.isfinite().all(0), log_w.std(0) / math.sqrt(k), math.inf)
    value, stderr, elbo, elbo_stderr = (v.to(x.dtype) for v in (value, stderr, log_w.mean(0), elbo_stderr))
    return LogMass(value, stderr, elbo, elbo_stderr, k)


def mass_bound(
    bound: Callable[[Tensor], Tensor],
    x: Batch,
    dequantiser: Dequantisation,
    *,
    n_draws: int = 16,
    generator: torch.Generator | None = None,
) -> MassBound:
    """An upper bound on −log P(cell of x) from one on −log p(y), L(y): E_{y ~ q(y|x)}[L(y) + log q(y | x)].

    It is linear in L, so noise in L does not bias it: ``lambda y: likelihood.bound(model, y, process).value``, the
    SDE's. With importance weights, as in :func:`log_mass`, noise would.

    Args:
        bound: rows ``(N, *event)`` -> ``(N,)`` nats, with noise of its own at each call.
        x: as for :func:`log_mass`.
        dequantiser: as for :func:`log_mass`.
        n_draws: as for :func:`log_mass`.
        generator: source of the draws.

    Raises:
        InputError: as :func:`log_mass`.

    Reference: Song, Durkan, Murray and Ermon (2021), "Maximum likelihood training of score-based diffusion models",
    section 5.
    """
    x = as_batch(x)
    k = _at_least_two(n_draws, len(x))
    negative, log_q = _over_draws(lambda y: -bound(y), x, dequantiser, k, generator)
    each = log_q - negative
    return MassBound(each.mean(0).to(x.dtype), (each.std(0) / math.sqrt(k)).to(x.dtype), k)


def _over_draws(
    log_density: Callable[[Tensor], Tensor],
    x: Batch,
    dequantiser: object,
    n_draws: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """log p(y) and log q(y | x) of each draw, ``(K, B)`` in float64; several draws a call where rows are few."""
    if not isinstance(dequantiser, Dequantisation):
        want = "a dequantiser, such as UniformDequantisation(1.0)"
        raise InputError(f"dequantiser: got {type(dequantiser).__name__}, want {want}")
    parts, at_once = [], max(1, _ROWS // len(x))
    for done in range(0, n_draws, at_once):
        k = min(at_once, n_draws - done)
        with torch.no_grad():
            y, log_q = dequantiser.sample(x.repeat(k, *(1,) * (x.ndim - 1)), generator=generator)
            log_p = _rows_of(log_density(y), len(y))
        parts.append(torch.stack([log_p.double(), log_q.double()]).reshape(2, k, len(x)))
    log_p, log_q = torch.cat(parts, 1)
    return log_p, log_q


def _rows_of(log_p: object, n: int) -> Tensor:
    if not isinstance(log_p, Tensor) or log_p.shape != (n,):
        got = tuple(log_p.shape) if isinstance(log_p, Tensor) else type(log_p).__name__
        raise InputError(f"log_density: got {got}, want a tensor ({n},), such as log_prob(model, y).value")
    if bool((log_p.isnan() | (log_p == math.inf)).any()):
        raise InputError("log_density: got NaN or +inf for a draw, want numbers of nats, or −inf")
    return log_p


def _at_least_two(n_draws: int, n_rows: int) -> int:
    """A number of draws: the standard error is that of the draws."""
    return as_count(n_draws, "n_draws", least=2, each=16 * n_rows)
