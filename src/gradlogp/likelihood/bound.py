"""An upper bound on −log p(x), datum by datum, for the density of the model's reverse SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows, as_batch, event_size, same_event
from gradlogp.diagnostics import Estimate
from gradlogp.likelihood.bound_gaussian import Normal
from gradlogp.likelihood.bound_method import N_REPLICATES, BoundMethod
from gradlogp.likelihood.bound_sampling import AT_CLEAN, Levels, Sampler
from gradlogp.likelihood.times import ImportanceTimes
from gradlogp.models import Reference, ScoreModel, event_of, require_gaussian, require_model
from gradlogp.processes import Process
from gradlogp.processes.base import Time


@dataclass(frozen=True)
class Bound:
    """An upper bound on −log p_θ^SDE(x) of each row, in nats: not on the density of the probability-flow ODE.

    Attributes:
        value: the bound, ``(B,)``; it has noise of its own, so what holds is value + a few stderr.
        stderr: its standard error, ``(B,)``: from independent replicates, with the rounding of the row's dtype and the
            size of ½ h(λ_min), the part for noise below t_min, of which the Gaussian decoder is not exact.
        dof: degrees of freedom of each stderr, at least: 15.
        prior: the part E[−log π(x_T) | x] − D log alpha_T, ``(B,)``, exact.
        known: the part that is known in closed form, ``(B,)``: the prior and the Gaussian reference's integral.
        n_draws: calls of the model for each row, ``(B,)``.
        times: the range of times.
        truncated: whether the terms of [0, t_min] are left out, so that it is no bound for x.
    """

    value: Rows
    stderr: Rows
    dof: int
    prior: Rows
    known: Rows
    n_draws: Tensor
    times: ImportanceTimes
    truncated: bool

    @property
    def mean(self) -> Estimate:
        """The mean over rows, in nats; its standard error is that of rows drawn from a population (two at least)."""
        return Estimate.mean_of(self.value)


def bound(
    model: ScoreModel,
    x: Batch,
    process: Process,
    *,
    t_min: Time | None = None,
    t_max: Time | None = None,
    prior: Reference | None = None,
    method: BoundMethod | None = None,
    generator: torch.Generator | None = None,
) -> Bound:
    """An upper bound, in nats, on −log p_θ^SDE(x): p_θ^SDE is the law of the model's reverse SDE started from π.

        L(x) = E[−log π(x_T) | x] − D log alpha_T + ∫ h dλ + ½ h(λ_min),    h(λ) = E[‖n‖² + 2 n·z | x],

    with x_t = alpha·x + sigma·z, n = sigma s_θ(x_t), λ = log(sigma/alpha) from t_min to t_max. It is theorem 3 with
    g² dt = 2 sigma² dλ; ½ h(λ_min) and −D log alpha_min are what the Gaussian decoder N((x_ε + sigma² s)/alpha,
    (sigma/alpha)² I) from x_ε to x adds, ε = t_min. Then −log p_θ^SDE(x) <= L(x) for any score, with equality if s_θ is
    the score of a diffusion that ends in π. If s_θ = ∇log q_t, L(x) = −log q_0(x) + E[log q_T(x_T) − log π(x_T) | x].
    The density of the probability-flow ODE is another one, and can be on either side of −L.

    The integral is sampled at stratified λ, 16 times independently; of the model's Gaussian reference, where it has
    one, it is known, and only the difference is sampled: for a Gaussian model there is nothing left to sample. A row's
    result depends on the generator, the row and its place, not on the other rows.

    Args:
        model: a score model for Gaussian kernels.
        x: rows ``(B, *event)``; the model is called in their dtype.
        process: t ↦ kernel, with its SDE.
        t_min: where the process starts, next to clean data; by default the process's.
        t_max: where π is compared; by default the process's, at which sigma/alpha is finite.
        prior: a Gaussian of the data; π is that Gaussian seen through process(t_max), N(alpha·μ, alpha²Σ + sigma² I),
            which is tighter. By default π = N(0, sigma(t_max)² I).
        method: number of draws and form of the integrand; by default 512 draws.
        generator: source of the draws.

    Returns:
        The bound of each row, with a standard error.

    Raises:
        InputError: a model that was trained under other than Gaussian noise, rows with NaN, parts of another type,
            times outside of the domain or in the wrong order, or a score that is not finite.

    Reference: Song, Durkan, Murray and Ermon (2021), "Maximum likelihood training of score-based diffusion models",
    theorem 3 and appendix B.
    """
    with torch.inference_mode(False):
        x, method = _checked(model, x, method)
        return _bound(model, x, ImportanceTimes(process, t_min, t_max), prior, method, generator)


def _bound(
    model: ScoreModel,
    x: Batch,
    times: ImportanceTimes,
    prior: Reference | None,
    method: BoundMethod,
    generator: torch.Generator | None,
) -> Bound:
    terms = _Terms.of(x, times, end_of(prior, x), _control(model, prior, x, method), method)
    levels = Levels.of(times, terms.control, method)
    sampled = Sampler(model, times, method, terms.control, levels)(x, generator)
    value = terms.known + sampled.mean
    rounding = torch.finfo(x.dtype).eps * (terms.size + value.abs() + sampled.mean.abs())
    stderr = sampled.stderr.hypot(rounding + terms.clean.abs())
    value, stderr, at_end, known = (v.to(x.dtype) for v in (value, stderr, terms.prior, terms.known))
    n_draws = sampled.rounds * method.draws_a_round
    return Bound(value, stderr, N_REPLICATES - 1, at_end, known, n_draws, times, truncated=not method.truncation)


@dataclass(frozen=True)
class _Terms:
    """What is known in closed form, ``(B,)`` in float64, about the size of all that is added up, and the control.

    ``clean`` is the part of the control for noise below t_min.
    """

    prior: Rows
    known: Rows
    size: Rows
    clean: Rows
    control: Normal | None

    @classmethod
    def of(cls, x: Batch, times: ImportanceTimes, end: Normal, control: Normal | None, method: BoundMethod) -> _Terms:
        d = event_size(tuple(x.shape[1:]))
        log_alpha = 0.0 if method.truncation else d * times.process.log_alpha(times.t_min).item()
        prior = end.cross_entropy(x, math.exp(times.last)) + log_alpha
        size = prior.abs() + d * times.width
        if control is None:
            return cls(prior, prior, size, torch.zeros_like(prior), None)
        clean = AT_CLEAN * control.integrand(x, math.exp(times.first)) * method.truncation
        rest = control.integral(x, times.first, times.last) + clean
        return cls(prior, prior + rest, size + rest.abs(), clean, control)


def _control(model: ScoreModel, prior: Reference | None, x: Batch, method: BoundMethod) -> Normal | None:
    known = prior if model.reference is None else model.reference
    return Normal.of(known.reference, x) if method.control and known is not None else None


def _checked(model: ScoreModel, x: Batch, method: object) -> tuple[Batch, BoundMethod]:
    require_score_model(model, "likelihood.bound")
    method = BoundMethod() if method is None else method
    if not isinstance(method, BoundMethod):
        raise InputError(f"method: got {method!r}, want a BoundMethod, such as BoundMethod(n_draws=1024)")
    x, known = as_batch(x).detach().clone(), event_of(model)
    if x.dtype not in (torch.float32, torch.float64):
        raise InputError(f"x: got {x.dtype}, want float32 or float64: noise next to clean data is below its rounding")
    return x if known is None else same_event(x, known), method


def require_score_model(model: ScoreModel, what: str) -> None:
    """Refuse what is not a score model, and one that was trained under other than Gaussian noise."""
    require_model(model)
    require_gaussian(model, what)


def end_of(prior: object, x: Batch) -> Normal:
    """The Gaussian that π is when seen at t_max; without a prior all of it is noise.

    Raises:
        InputError: not a reference, or one of another event shape.
    """
    if prior is None:
        return Normal.at_origin(x)
    if not isinstance(prior, Reference):
        raise InputError(f"prior: got {type(prior).__name__}, want a Gaussian of the data, such as model.reference")
    same_event(x, prior.event_shape)
    return Normal.of(prior.reference, x)
