"""How far the law of the reverse SDE can be from an oracle: theorem 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows, as_count, event_size, per_row, squared_norm
from gradlogp.diagnostics import Estimate
from gradlogp.likelihood.bound import end_of, require_score_model
from gradlogp.likelihood.times import ImportanceTimes
from gradlogp.models import Reference, ScoreModel
from gradlogp.oracles.base import Oracle
from gradlogp.processes import Process
from gradlogp.processes.base import Time

_BLOCK = 16  # draws that share strata of λ


@dataclass(frozen=True)
class KLBound:
    """KL(p ‖ p_θ^SDE) <= value, in nats, both densities seen at t_min.

    Attributes:
        value: score + prior, from shared draws.
        score: ½ ∫ g² E‖∇log p_t − s_θ‖² dt, the likelihood-weighted explicit score matching objective.
        prior: KL(p_T ‖ π).
    """

    value: Estimate
    score: Estimate
    prior: Estimate


def kl_bound(
    model: ScoreModel,
    oracle: Oracle,
    process: Process,
    n: int,
    *,
    t_min: Time | None = None,
    t_max: Time | None = None,
    prior: Reference | None = None,
    generator: torch.Generator | None = None,
) -> KLBound:
    """An upper bound on KL(p ‖ p_θ^SDE) for an oracle p and the model's reverse SDE, started from π at t_max.

        KL(p ‖ p_θ^SDE) <= ½ ∫ g² E‖∇log p_t − s_θ‖² dt + KL(p_T ‖ π) = ∫ E‖n_p − n‖² dλ + KL(p_T ‖ π),

    n = sigma s, λ = log(sigma/alpha) from t_min to t_max; p and p_θ^SDE are those at t_min. It is an equality if s_θ is
    the score of any diffusion of the same SDE that ends in π, whatever it starts from (theorem 2); a perfect score has
    the bound KL(p_T ‖ π), and is strictly better than that. It says nothing of the probability-flow ODE's density.

    Args:
        model: a score model for Gaussian kernels.
        oracle: an exact density, with samples.
        process: t ↦ kernel, with its SDE.
        n: draws, at least 2; rounded up to blocks of 16 that have stratified λ, from 32 on.
        t_min: where the process starts; by default the process's.
        t_max: where π is; by default the process's.
        prior: as for :func:`bound`.
        generator: source of the draws.

    Raises:
        InputError: parts of another type, a model trained under other than Gaussian noise, n < 2, times outside
            of the domain or in the wrong order.

    Reference: Song, Durkan, Murray and Ermon (2021), theorems 1 and 2.
    """
    require_score_model(model, "likelihood.kl_bound")
    if not isinstance(oracle, Oracle):
        raise InputError(f"oracle: got {type(oracle).__name__}, want an exact density, such as oracles.GaussianMixture")
    times = ImportanceTimes(process, t_min, t_max)
    n = as_count(n, least=2, each=8)
    block = _BLOCK if n >= 2 * _BLOCK else 1
    x = oracle.sample(-(-n // block) * block, generator=generator)
    score = _score_error(model, oracle, x, times, block, generator)
    at_end = _end_error(oracle, x, times, prior, generator)
    return KLBound(*(Estimate.mean_of(v.reshape(-1, block).mean(1)) for v in (score + at_end, score, at_end)))


def _score_error(
    model: ScoreModel,
    oracle: Oracle,
    x: Batch,
    times: ImportanceTimes,
    block: int,
    generator: torch.Generator | None,
) -> Rows:
    """(Z/2) ‖n_p − n‖² at times drawn for each block, one a row."""
    t = torch.cat([times.draw(block, generator=generator) for _ in range(len(x) // block)])
    kernel = times.process(t.to(x.device))
    with torch.no_grad():
        x_t = kernel.sample(x, generator=generator)
        difference = (oracle.score(x_t, kernel) - model.score(x_t, kernel)).double()
    return 0.5 * times.normaliser * squared_norm(per_row(kernel.sigma, difference) * difference)


def _end_error(
    oracle: Oracle, x: Batch, times: ImportanceTimes, prior: Reference | None, generator: torch.Generator | None
) -> Tensor:
    """Log p_T(x_T) − log π(x_T); both as densities of x_T/alpha."""
    kernel = times.process(times.t_max)
    x_t = kernel.sample(x.double(), generator=generator)
    jacobian = event_size(tuple(x.shape[1:])) * times.process.log_alpha(times.t_max)
    log_p = oracle.log_prob(x_t, kernel) + jacobian.to(x_t)
    return log_p - end_of(prior, x).log_prob(x_t / kernel.alpha.to(x_t), math.exp(times.last))
