"""The log-density of the probability flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradlogp._shapes import Batch, InputError, Rows, as_batch, as_number, same_event
from gradlogp.kernels import Gaussian
from gradlogp.likelihood.bound import require_score_model
from gradlogp.likelihood.gaussian_at import gaussian_at
from gradlogp.likelihood.linearised import Linearised, Near
from gradlogp.likelihood.path import follow
from gradlogp.likelihood.probes import Hutchinson
from gradlogp.likelihood.residual import Clock, ResidualFlow
from gradlogp.likelihood.traces import Exact, Signs, Trace
from gradlogp.models import GaussianReference, ScoreModel, event_of
from gradlogp.samplers import Frame
from gradlogp.samplers.starts import STOP, seed_from

FAR = 100.0  # default sigma_max of a model that has no largest level, in standard deviations of the widest direction
EXACT_BELOW = 128  # coordinates up to which the trace is exact by default
_NEAR = 0.02  # noise that is added first, in units of the density's own scale there
_BEYOND = 1.0  # w is followed to log sigma_max + 1
_ROWS = 2**17  # rows times coordinates at a time
_PATH = 0.25  # of atol: error of a step of the path


@dataclass(frozen=True)
class LogProb:
    """The log-density of each row, and what it may be wrong by, ``(B,)``, in nats.

    Attributes:
        value: log p_{sigma_min}(x), of the probability flow's density.
        quadrature: estimated error of the integral of the divergence.
        path: what errors of the path were worth before they were taken out.
        above: what the flow above sigma_max, which is taken for the Gaussian's, may be worth.
        probes: standard error of random probes; 0 with the exact trace.
    """

    value: Rows
    quadrature: Rows
    path: Rows
    above: Rows
    probes: Rows

    @property
    def rounding(self) -> Rows:
        """What the dtype of the value may have cost."""
        return 8 * torch.finfo(self.value.dtype).eps * (1 + self.value.abs())

    @property
    def error(self) -> Rows:
        """The numerical error: quadrature + path + above + 3 probes, and rounding."""
        return self.quadrature + self.path + self.above + 3 * self.probes + self.rounding


def log_prob(
    model: ScoreModel,
    x: Batch,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    trace: Trace | None = None,
    generator: torch.Generator | None = None,
) -> LogProb:
    """log p_{sigma_min}(x): the log-density, at each row, of what the probability flow makes of noise.

    With u = Vᵀ(y − μ)/r, r = √(λ + s²), in the eigen-coordinates of the Gaussian N(μ, VΛVᵀ) with the data's moments,

        log p(x) = log N(u(s_max); 0, I) − Σ log r(s_min) + ∫ tr ∇(D_G − D)(y(s); s) d log s

    along the flow du/d log s = Vᵀ(D_G − D)/r from x at sigma_min up to sigma_max: all that is Gaussian is in closed
    form, above sigma_max the flow is the Gaussian's own, and for Gaussian data the integral is 0.

    The path is followed to a tolerance in nats. What it still errs is taken out, to first order: along any path y(s)
    the log-density changes by the divergence and by ∇log p·(y' − flow).

    p_{sigma_min} is the density of the data with noise sigma_min; p itself is its limit. Where the model is exact, so
    is the value, within ``error``. A learnt model's own error is not in it.

    Args:
        model: any score model for Gaussian noise.
        x: rows ``(B, *event)``, looked at as they are, at noise sigma_min.
        sigma_min: default the smallest level trained, otherwise 0.002 of the data's scale.
        sigma_max: default the largest level trained, otherwise 100 standard deviations of the widest direction.
        trace: :class:`Exact` (default up to 128 coordinates) or :class:`Hutchinson`, with the accuracy wanted.
        generator: source of the probes.

    Raises:
        InputError: rows that are no finite batch or do not fit the model, levels that are not positive and in order, a
            model of other than Gaussian noise, or one that is not finite or not smooth along the path.

    Reference: Song et al. (2021), "Score-based generative modeling through stochastic differential equations",
    equation 39.
    """
    with torch.inference_mode(False), torch.no_grad():
        x = _rows_for(model, x).clone()
        low, high, reference = _levels(model, x, sigma_min, sigma_max)
        frame = Frame.of(reference.to(x.device)).like(x.double())
        flow = ResidualFlow(model, frame, Clock(low, high), tuple(x.shape[1:]), x.dtype)
        trace = _trace_for(x, trace)
        _require_differentiable(model, x[:1], low)
        seed, size = seed_from(generator), max(16, _ROWS // max(x[0].numel(), 16))
        places = torch.arange(len(x)).split(size)
        parts = [_some(flow, x[some[0] : some[-1] + 1], trace, Signs(seed, some.tolist())) for some in places]
        value, *errors = (torch.cat(v).to(x.dtype) for v in zip(*parts, strict=True))
    return LogProb(value, *errors)


def _some(flow: ResidualFlow, x: Batch, trace: Trace, signs: Signs) -> tuple[Tensor, ...]:
    """The fields of :class:`LogProb` for some rows, in float64."""
    low, high = (
        torch.full((len(x),), v, dtype=torch.float64, device=x.device) for v in (flow.clock.s_min, flow.clock.s_max)
    )
    start = flow.frame.into(x.double()) / flow.radius(low)
    point = Linearised.at(flow, x, low)
    near = trace.near(point, low, signs)
    w = _first(flow, x, _near_row(flow, start, low, near, point.denoised.detach()))
    end = torch.full_like(w, math.log(flow.clock.s_max) + _BEYOND)
    path = follow(flow, start + flow.fields(start, w)[0] / 2, w, end[0].item(), _PATH * trace.atol)
    last = path.last + flow.fields(path.last, end)[0] / 2  # ∫ e^{−2w} = 1/2
    integral = trace.integral(flow, path, (w, end), near, signs)
    d = start.shape[1]
    ends = -0.5 * last.square().sum(1) - 0.5 * d * math.log(2 * math.pi) - flow.radius(low).log().sum(1)
    above = _above(flow, last, high, trace, signs)
    return ends + integral.value, integral.quadrature, integral.path, above, integral.probes


def _near_row(flow: ResidualFlow, u: Tensor, low: Rows, near: Near, denoised: Batch) -> Rows:
    """log of a small share of ℓ, the density's own scale at the row, 1/ℓ² = ‖∇² log p‖_F + ‖∇ log p‖²/D."""
    d = u.shape[1]
    r = flow.radius(low)
    score = (flow.frame.into(denoised) - r * u) / low[:, None] ** 2
    curvature = near.curvature.sqrt() / low**2 + score.square().sum(1) / d
    scale: Tensor = _NEAR * d**-0.25 * curvature.clamp_min(1e-30).rsqrt()
    return scale.log().clamp(max=math.log(flow.clock.s_max) - 1)


def _first(flow: ResidualFlow, x: Batch, near_row: Rows) -> Rows:
    """The w to begin at: so far down that all changes as e^{2w} below it, and by little.

    By the density's scale at the row, unless the row is where the density is flat and what is around it comes into
    view at larger noise: so levels from below sigma_min on, each twice the last, are looked at, as far as that scale.
    """
    d, w = x[0].numel(), near_row.clone()
    enough = _NEAR**2 * d**-0.5
    at = torch.full_like(w, math.log(flow.clock.s_min * _NEAR))
    rows = (at < w).nonzero()[:, 0]
    while len(rows):
        bent = _bend(flow, x[rows], at[rows]) > enough
        w[rows[bent]] = at[rows[bent]] - math.log(2)
        at[rows] += math.log(2)
        rows = rows[~bent & (at[rows] < near_row[rows])]
    return w


def _bend(flow: ResidualFlow, x: Batch, w: Rows) -> Rows:
    """What the integrand is made of, at rows that have not moved: ‖∇(D_G − D)‖_F, by two probes, and |∇log p·du/dw|."""
    s = flow.clock.level(w)
    point = Linearised.at(flow, x, s)
    signs = 2.0 * torch.randint(0, 2, (2, x[0].numel()), generator=torch.Generator().manual_seed(0)) - 1
    probes = [v.to(s).expand(len(x), -1) for v in signs]  # the same for all rows, always
    residual = [(flow.reference_times(v, s) - point.transposed_times(v)).square().sum(1) for v in probes]
    q, score = flow.fields(flow.frame.into(x.double()) / flow.radius(s), w, point.denoised.detach())
    return torch.stack(residual).mean(0).sqrt() * flow.clock.rate(w) + (score * q).sum(1).abs()


def _above(flow: ResidualFlow, u: Tensor, high: Rows, trace: Trace, signs: Signs) -> Rows:
    """What lies above sigma_max: the log-ratio to the Gaussian, ∫ (div q − u·q) d log s.

    Far above the data's scale both terms fall as s⁻³ or faster, so that half of their sizes at sigma_max is more than
    their integrals. From a sigma_max below the standard deviation of the widest direction nothing is known: infinite.
    """
    if flow.clock.s_max < flow.frame.widest:
        return torch.full_like(high, math.inf)
    r = flow.radius(high)
    point = Linearised.at(flow, flow.place(u, high), high)
    c = r * u
    q = (flow.frame.variance / r**2 * c - flow.frame.into(point.denoised.detach())) / r
    divergence = trace.residual(flow, point, high, signs)
    return (divergence.abs() + (u * q).sum(1).abs()) / 2


def _trace_for(x: Batch, trace: object) -> Trace:
    if trace is None:
        return Exact() if x[0].numel() <= EXACT_BELOW else Hutchinson()
    if not isinstance(trace, Trace):
        raise InputError(f"trace: got {trace!r}, want likelihood.Exact(atol) or likelihood.Hutchinson(atol)")
    return trace


def _require_differentiable(model: ScoreModel, row: Batch, sigma: float) -> None:
    """Refuse a score that is cut off from x, in which autograd would find no slope."""
    with torch.enable_grad():
        score = model.score(row.detach().requires_grad_(), Gaussian(sigma))
    if not score.requires_grad:
        raise InputError("model: its score does not depend on x for autograd, want one that is not detached")


def _rows_for(model: ScoreModel, x: Batch) -> Batch:
    require_score_model(model, "log_prob")
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0 for m in model.modules()):
        raise InputError("model: got one in training mode, which drops units at random, want model.eval()")
    x, known = as_batch(x), event_of(model)
    if x.dtype not in (torch.float32, torch.float64):
        raise InputError(f"x: got {x.dtype}, want float32 or float64: small noise is below its rounding")
    return x if known is None else same_event(x, known)


def _levels(
    model: ScoreModel, x: Batch, sigma_min: float | None, sigma_max: float | None
) -> tuple[float, float, GaussianReference]:
    """The ends, and the Gaussian: the model's, or the one that it sees at sigma_max."""
    reference, trained = model.reference, model.levels
    if reference is None and (sigma_min is None or sigma_max is None):
        raise InputError("sigma_min, sigma_max: this model does not know the data's scale, want both given")
    if sigma_max is None and reference is not None:
        sigma_max = trained[1] if trained is not None else FAR * reference.eigenvalues.max().sqrt().item()
    if sigma_min is None and reference is not None:
        sigma_min = trained[0] if trained is not None else STOP * reference.data_scale.item()
    low, high = as_number(sigma_min, "sigma_min"), as_number(sigma_max, "sigma_max")
    if low >= high:
        raise InputError(f"sigma_min, sigma_max: got {low:g} and {high:g}, want sigma_min < sigma_max")
    return low, high, gaussian_at(model, x, high) if reference is None else reference
