"""One-dimensional noise laws that torch lacks, and the closed forms of the score of a law.

``closed_form`` knows, for a law q, its score ∇log q and its Fisher information E‖∇log q‖². A law that it does not
know is left to autograd and quadrature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from gradlogp._shapes import InputError

_INSIDE = 0.02  # share of points beside draws that are in the support; a surface has a width of rounding

Shape = torch.Size | list[int] | tuple[int, ...]


class Logistic(td.Distribution):
    """q(u) = e^{−v} / (s (1 + e^{−v})²), v = (u − loc)/s; variance π²s²/3, Fisher information 1/(3s²)."""

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: float | Tensor, scale: float | Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = td.utils.broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draws by inversion; u is kept off 0 and 1, where the quantile is infinite."""
        eps = torch.finfo(self.loc.dtype).tiny
        u = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
        return self.icdf(u.clamp(eps, 1 - torch.finfo(u.dtype).eps / 2))

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(u) = −|v| − 2 log(1 + e^{−|v|}) − log s, stable in both tails."""
        v = ((value - self.loc) / self.scale).abs()
        return -v - 2 * torch.nn.functional.softplus(-v) - self.scale.log()

    def cdf(self, value: Tensor) -> Tensor:
        """1/(1 + e^{−v})."""
        return torch.sigmoid((value - self.loc) / self.scale)

    def icdf(self, value: Tensor) -> Tensor:
        """loc + s·log(p/(1 − p))."""
        return self.loc + self.scale * torch.logit(value)

    @property
    def mean(self) -> Tensor:
        """loc."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """π² s²/3."""
        return (torch.pi * self.scale) ** 2 / 3


class GeneralizedNormal(td.Distribution):
    """q(u) = b / (2a Γ(1/b)) · exp(−(|u − loc|/a)^b): Laplace at b = 1, N(loc, a²/2) at b = 2.

    Its Fisher information is finite for b > 1/2 only.
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real,
        "scale": constraints.positive,
        "power": constraints.positive,
    }
    support = constraints.real

    def __init__(
        self, loc: float | Tensor, scale: float | Tensor, power: float | Tensor, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale, self.power = td.utils.broadcast_all(loc, scale, power)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """±a·G^{1/b}, G ~ Gamma(1/b)."""
        with torch.no_grad():
            g = td.Gamma(1 / self.power, torch.ones_like(self.power)).sample(torch.Size(sample_shape))
            sign = torch.randint(0, 2, g.shape, device=g.device, dtype=g.dtype) * 2 - 1
            return self.loc + sign * self.scale * g ** (1 / self.power)

    def log_prob(self, value: Tensor) -> Tensor:
        """−(|u − loc|/a)^b + log b − log 2a − log Γ(1/b)."""
        log_z = (2 * self.scale / self.power).log() + torch.lgamma(1 / self.power)
        return -(((value - self.loc).abs() / self.scale) ** self.power) - log_z

    @property
    def mean(self) -> Tensor:
        """loc."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """a² Γ(3/b)/Γ(1/b)."""
        return self.scale**2 * torch.exp(torch.lgamma(3 / self.power) - torch.lgamma(1 / self.power))


def log_density(law: td.Distribution, n: Tensor) -> Tensor:
    """log q(n), −inf outside the support, where torch's ``log_prob`` may be anything."""
    if isinstance(law, td.MixtureSameFamily):
        parts = law.component_distribution
        each = log_density(parts, n.unsqueeze(-1 - len(parts.event_shape)))
        return torch.logsumexp(each + law.mixture_distribution.logits.log_softmax(-1), dim=-1)
    if isinstance(law, td.Independent):
        each = log_density(law.base_dist, n)
        return each.flatten(each.ndim - law.reinterpreted_batch_ndims).sum(-1)
    if type(law).log_prob is td.TransformedDistribution.log_prob:
        return _log_density_of_transformed(law, n)
    support = support_of(law)
    inside = None if support is None else support.check(n)
    if inside is None or bool(inside.all()):
        log_q: Tensor = law.log_prob(n)
        return log_q
    safe = _held(n, inside, len(law.event_shape))
    return torch.where(inside, law.log_prob(safe), -torch.inf)


def _log_density_of_transformed(law: Any, n: Tensor) -> Tensor:
    """log q(n) = log q_base(x) − log|det ∂n/∂x| where n is made of x, −inf where it is made of nothing.

    As ``TransformedDistribution.log_prob`` has it; its own support is the last transform's image of all numbers.
    """
    y, event_dim = n, len(law.event_shape)
    inside, log_det = torch.ones((), dtype=torch.bool, device=n.device), n.new_zeros(())
    if type(law) is not td.TransformedDistribution and (support := support_of(law)) is not None:
        inside = inside & support.check(n)  # such as a simplex
    for transform in reversed(law.transforms):
        codomain, k = transform.codomain, transform.domain.event_dim
        inside = inside & _rightmost(codomain.check(y), event_dim - codomain.event_dim).all(-1)
        y = _held(y, inside, event_dim)
        x = transform.inv(y)
        event_dim += k - codomain.event_dim
        log_det = log_det + _rightmost(transform.log_abs_det_jacobian(x, y), event_dim - k).sum(-1)
        inside = inside & _rightmost(torch.isfinite(x), event_dim).all(-1)
        y = _held(x, inside, event_dim)
    log_q = _rightmost(log_density(law.base_dist, y), event_dim - len(law.base_dist.event_shape)).sum(-1)
    return torch.where(inside, log_q - log_det, -torch.inf)


def _rightmost(v: Tensor, n: int) -> Tensor:
    """The last n dimensions as one, which may be of one number."""
    return v.flatten(v.ndim - n) if n else v.unsqueeze(-1)


def _held(n: Tensor, inside: Tensor, event_dim: int) -> Tensor:
    """n, with what is not inside replaced by what is, so that no NaN comes back as a gradient."""
    if bool(inside.all()):
        return n
    at = inside.reshape(*inside.shape, *(1,) * event_dim)
    n, at = torch.broadcast_tensors(n, at)
    some = n[at.flatten(at.ndim - event_dim)[..., 0] if event_dim else at][:1].detach()
    return torch.where(at, n, some.squeeze(0)) if len(some) else n


def support_of(law: td.Distribution) -> constraints.Constraint | None:
    """The support of a law, None if it does not say."""
    try:
        return law.support
    except NotImplementedError:
        return None


def coordinates(law: td.Distribution) -> td.Distribution | None:
    """The law of each coordinate, with the event's shape as its batch's, where the coordinates are independent."""
    if not law.event_shape:
        return law
    if type(law) is td.Independent:
        return coordinates(law.base_dist)
    if type(law) is not td.TransformedDistribution:
        return None
    transforms = [_of_each(t) for t in law.transforms]
    base = coordinates(law.base_dist)
    if base is None or any(t.domain.event_dim or t.codomain.event_dim for t in transforms):
        return None
    each = td.TransformedDistribution(base, transforms, validate_args=False)
    return each if each.batch_shape == law.event_shape else None


def _of_each(transform: td.Transform) -> td.Transform:
    """A transform of coordinates one by one, where it says that it is of an event."""
    if type(transform) is td.IndependentTransform:
        return _of_each(transform.base_transform)
    return td.AffineTransform(transform.loc, transform.scale) if type(transform) is td.AffineTransform else transform


def parts(law: td.Distribution, draw: Callable[[td.Distribution], Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Weights and draws of each component of a mixture, or a transformed one; of another law, 1 and its draws."""
    if type(law) is td.TransformedDistribution and law.base_dist.event_shape == law.event_shape:
        through = td.ComposeTransform(law.transforms)
        return [(w, through(u)) for w, u in parts(law.base_dist, draw)]
    if not isinstance(law, td.MixtureSameFamily):
        return [(torch.ones((), dtype=torch.float64), draw(law))]
    weights = law.mixture_distribution.logits.log_softmax(-1).exp()
    draws = draw(law.component_distribution).unbind(-1 - len(law.event_shape))
    return list(zip(weights.unbind(-1), draws, strict=True))


def require_density(law: td.Distribution, draw: Callable[[], Tensor], name: str) -> Tensor:
    """Draws of the law, after checking that it has a density that is finite there."""
    use = "use a continuous law with log_prob"
    if _is_discrete(law):
        raise InputError(f"{name}: discrete, so it has no density; {use}")
    try:
        draws = draw()
        log_q = log_density(law, draws)
    except (NotImplementedError, RuntimeError, AttributeError, ValueError) as e:
        raise InputError(f"{name}: no density ({first_line(e)}); {use}") from None
    if not bool(torch.isfinite(log_q).all()):
        raise InputError(f"{name}: its log density is not finite at its own draws; {use}")
    if law.event_shape and torch.isfinite(log_density(law, _beside(draws))).double().mean() < _INSIDE:
        raise InputError(
            f"{name}: its draws of shape {tuple(law.event_shape)} lie on a surface, so it has no density over all of "
            "the event; use a law with one"
        )
    return draws


def _is_discrete(law: td.Distribution) -> bool:
    """Whether a law, or what it is made of, is on separate points."""
    inner = getattr(law, "base_dist", None) or getattr(law, "component_distribution", None)
    if isinstance(inner, td.Distribution) and _is_discrete(inner):
        return True
    return law.has_enumerate_support or bool(getattr(support_of(law), "is_discrete", False))


def _beside(draws: Tensor) -> Tensor:
    """Points a thousandth of their spread off the first draws, in a random direction."""
    g = torch.Generator(draws.device).manual_seed(0)
    some = draws[:256]
    off = torch.randn(some.shape, generator=g, dtype=draws.dtype, device=draws.device)
    return some + 1e-3 * draws.std() * off


def first_line(e: Exception) -> str:
    """What an exception says, on one line."""
    return (str(e).splitlines() or [type(e).__name__])[0]


@dataclass(frozen=True)
class ClosedForm:
    """What is known of a law q.

    Attributes:
        score: u -> ∇log q(u), the shape of u.
        fisher: E‖∇log q‖², of the law's batch shape; None where only quadrature gives it.
    """

    score: Callable[[Tensor], Tensor]
    fisher: Tensor | None


def closed_form(law: td.Distribution) -> ClosedForm | None:
    """The closed form of a law's score and Fisher information, or None; a subclass may have another density."""
    return _closed_form(law) if type(law) in _closed_form.registry else None


@singledispatch
def _closed_form(law: td.Distribution) -> ClosedForm | None:  # noqa: ARG001
    return None


@_closed_form.register
def _(law: td.Normal) -> ClosedForm:
    return ClosedForm(lambda u: -(u - law.loc) / law.scale**2, law.scale**-2)


@_closed_form.register
def _(law: td.Laplace) -> ClosedForm:
    return ClosedForm(lambda u: -torch.sign(u - law.loc) / law.scale, law.scale**-2)


@_closed_form.register
def _(law: td.StudentT) -> ClosedForm:
    nu, s = law.df, law.scale

    def score(u: Tensor) -> Tensor:
        v = u - law.loc
        return -(nu + 1) * v / (nu * s**2 + v**2)

    return ClosedForm(score, (nu + 1) / ((nu + 3) * s**2))


@_closed_form.register
def _(law: Logistic) -> ClosedForm:
    return ClosedForm(lambda u: -torch.tanh((u - law.loc) / (2 * law.scale)) / law.scale, 1 / (3 * law.scale**2))


@_closed_form.register
def _(law: GeneralizedNormal) -> ClosedForm | None:
    a, b = law.scale, law.power
    if bool((b <= 0.5).any()):  # infinite Fisher information: refused by the examination of the density
        return None

    def score(u: Tensor) -> Tensor:
        v = (u - law.loc) / a
        return torch.where(v == 0, 0.0, -b * torch.sign(v) * v.abs() ** (b - 1) / a)

    log_ratio = torch.lgamma(2 - 1 / b) - torch.lgamma(1 / b)
    return ClosedForm(score, (b / a) ** 2 * log_ratio.exp())


@_closed_form.register(td.MultivariateNormal)
@_closed_form.register(td.LowRankMultivariateNormal)
def _(law: td.MultivariateNormal | td.LowRankMultivariateNormal) -> ClosedForm:
    precision = law.precision_matrix

    def score(u: Tensor) -> Tensor:
        return -((u - law.loc).unsqueeze(-2) @ precision).squeeze(-2)

    return ClosedForm(score, precision.diagonal(dim1=-2, dim2=-1).sum(-1))


@_closed_form.register(td.Independent)
def _(law: td.Independent[Any]) -> ClosedForm | None:
    base = closed_form(law.base_dist)
    if base is None or base.fisher is None:
        return None
    fisher = base.fisher.expand(law.base_dist.batch_shape)
    return ClosedForm(base.score, fisher.flatten(fisher.ndim - law.reinterpreted_batch_ndims).sum(-1))


@_closed_form.register
def _(law: td.MixtureSameFamily) -> ClosedForm | None:
    parts = law.component_distribution
    component = closed_form(parts)
    if component is None:
        return None
    k_dim = -1 - len(parts.event_shape)

    def score(u: Tensor) -> Tensor:
        each = u.unsqueeze(k_dim)
        log_r = log_density(parts, each) + law.mixture_distribution.logits.log_softmax(-1)
        r = torch.softmax(log_r, dim=-1).reshape(*log_r.shape, *(1,) * len(parts.event_shape))
        shape = torch.broadcast_shapes(each.shape, r.shape)
        return (r * component.score(each.expand(shape))).sum(k_dim)

    return ClosedForm(score, None)
