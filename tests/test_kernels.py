"""Which noise is refused, and why; bad input to kernels; laws that a user writes."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from gradlogp import InputError, diagnostics
from gradlogp.kernels import Additive, Gaussian, GeneralizedNormal
from gradlogp.models import ScoreFunction
from gradlogp.oracles import Empirical

pytestmark = pytest.mark.usefixtures("as_a_user")


class OnTheLine(td.Distribution):
    """A user's law: a density on the line with draws by rejection."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real

    def __init__(self) -> None:
        super().__init__(torch.Size(), validate_args=False)

    def sample(self, sample_shape=()):  # type: ignore[no-untyped-def]
        n = torch.Size(sample_shape).numel()
        u = torch.rand(64 * n + 1000, dtype=torch.float64) * 2 - 1
        keep = torch.rand(len(u), dtype=torch.float64) < self.log_prob(u).exp() / 1.6
        return u[keep][:n].reshape(sample_shape)


class Triangle(OnTheLine):
    def log_prob(self, value: Tensor) -> Tensor:
        return (1 - value.abs()).clamp_min(0).log()


class Epanechnikov(OnTheLine):
    def log_prob(self, value: Tensor) -> Tensor:
        return (0.75 * (1 - value**2)).clamp_min(0).log()


class Quartic(OnTheLine):
    """15/16 (1 − u²)²: compact, and I(q) = 10."""

    def log_prob(self, value: Tensor) -> Tensor:
        return (15 / 16 * (1 - value**2).clamp_min(0) ** 2).log()


class NoDensity(td.Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError


class NoGradient(td.Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        return torch.from_numpy(-0.5 * value.detach().numpy() ** 2 - 0.5 * np.log(2 * np.pi))


class Heavier(td.Normal):
    """A subclass with another density, that must not be taken for its parent."""

    def log_prob(self, value: Tensor) -> Tensor:
        return td.Laplace(self.loc, self.scale).log_prob(value)

    def sample(self, sample_shape=()):  # type: ignore[no-untyped-def]
        return td.Laplace(self.loc, self.scale).sample(sample_shape)


class NoSupport(OnTheLine):
    @property
    def support(self):  # type: ignore[no-untyped-def, override]
        raise NotImplementedError

    def log_prob(self, value: Tensor) -> Tensor:
        return td.Normal(0.0, 1.0).log_prob(value)

    def sample(self, sample_shape=()):  # type: ignore[no-untyped-def]
        return torch.randn(sample_shape, dtype=torch.float64)


def jump(at: str) -> str:
    return f"density jumps by .* at u = ({at}), so it is not weakly differentiable, J_ESM = J_DSM \\+ C fails"


NOT_FINITE = r"Fisher information .* is infinite or cannot be shown finite \(near u = "
ONE, ZERO = torch.ones(3), torch.zeros(3)


@pytest.mark.parametrize(
    ("law", "why"),
    [
        (td.Uniform(-0.5, 0.5), jump("-0.5|0.5")),
        (td.Exponential(2.0), jump("0")),
        (td.HalfNormal(1.0), jump("0")),
        (td.Pareto(1.0, 3.0), jump("1|0.999")),
        (td.Gamma(2.0, 1.0), NOT_FINITE),
        (td.Gamma(1.5, 1.0), NOT_FINITE),
        (td.Gamma(0.5, 1.0), "its density is not finite near u = 0"),
        (td.Beta(2.0, 2.0), NOT_FINITE),
        (Triangle(), NOT_FINITE),
        (Epanechnikov(), NOT_FINITE),
        (GeneralizedNormal(0.0, 1.0, 0.5), NOT_FINITE),
        (GeneralizedNormal(0.0, 1.0, 0.4), NOT_FINITE),
        (
            td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.Uniform(torch.tensor([-1.0, 0.5]), 2.0)),
            jump("-?[0-9.]+"),
        ),
        (td.Independent(td.Uniform(-ONE, ONE), 1), jump("-?[0-9.]+")),
        (td.Uniform(-ONE, ONE), jump("-?[0-9.]+")),
        (td.Dirichlet(2 * ONE), "lie on a surface, so it has no density over all of the event"),
        (td.VonMises(0.0, 1.0), "integrates to infinity over the line, want 1; use a law of numbers, not of angles"),
        (td.Poisson(3.0), "discrete, so it has no density; use a continuous law"),
        (td.Bernoulli(0.5), "discrete, so it has no density; use a continuous law"),
        (td.Categorical(ONE), "discrete, so it has no density; use a continuous law"),
        (NoDensity(0.0, 1.0), r"no density \(NotImplementedError\); use a continuous law with log_prob"),
        (NoGradient(0.0, 1.0), r"its density has no gradient \(.*\); use a law with one"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, td.Distribution) else "",
)
def test_noise_for_which_the_theorem_fails_is_refused(law: td.Distribution, why: str) -> None:
    with pytest.raises(InputError) as e:
        Additive(law)
    assert re.search(why, str(e.value))
    assert str(e.value).startswith(f"Additive({type(law).__name__}")
    assert "; use a" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_users_law_is_taken_by_autograd() -> None:
    kernel = Additive(Quartic())
    assert kernel.fisher_information((1,)).item() == pytest.approx(10, rel=1e-6)
    u = torch.tensor([[0.5], [-0.2]], dtype=torch.float64)
    torch.testing.assert_close(kernel.score(u, 0 * u), -4 * u / (1 - u**2))
    outside = torch.tensor([[1.5]], dtype=torch.float64)
    assert kernel.score(outside, 0 * outside).item() == 0
    assert kernel.log_prob(outside, 0 * outside).item() == -np.inf


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    kernel = Additive(Heavier(torch.tensor(0.0), torch.tensor(0.5)))
    u = torch.tensor([[0.7], [-0.2]], dtype=torch.float64)
    torch.testing.assert_close(kernel.score(u, 0 * u), torch.tensor([[-2.0], [2.0]], dtype=torch.float64))
    assert kernel.fisher_information((1,)).item() == pytest.approx(4, rel=1e-8)
    assert kernel.gaussian_form((1,)) is None


def test_a_law_that_does_not_say_its_support_is_on_the_line() -> None:
    assert Additive(NoSupport()).fisher_information((1,)).item() == pytest.approx(1, rel=1e-8)


X = torch.randn(4, 3)
LEVELS = torch.tensor([0.1, 0.2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Gaussian(0), "sigma: got 0, want a finite number > 0"),
        (lambda: Gaussian(-1.0), "sigma: got -1, want"),
        (lambda: Gaussian(float("nan")), "sigma: got nan, want"),
        (lambda: Gaussian(torch.tensor([1.0, float("inf")])), "sigma: got inf, want"),
        (lambda: Gaussian("0.1"), "sigma: got '0.1', want a number"),
        (lambda: Gaussian(0.1, -0.1), "alpha: got -0.1, want a finite number >= 0"),
        (lambda: Gaussian(0.1, torch.ones(2, 2)), "alpha: got shape (2, 2), want"),
        (lambda: Gaussian(LEVELS).sample(X), "noise level: got (2,) values for 4 rows"),
        (lambda: Gaussian(0.1, LEVELS).score(X, X), "noise level: got (2,) values for 4 rows"),
        (lambda: Gaussian(LEVELS).log_prob(X, X), "noise level: got (2,) values for 4 rows"),
        (lambda: Gaussian(0.1).sample(X.int()), "x: got dtype torch.int32, want a floating dtype"),
        (lambda: Gaussian(0.1).sample(X[0]), "x: got shape (3,), want (B, *event)"),
        (lambda: Gaussian(0.1).sample([1.0]), "x: got list, want a torch.Tensor"),
        (lambda: Gaussian(0.1).score(X, X[:, :1]), "x_t and x: got shapes (4, 3) and (4, 1), want the same"),
        (lambda: Gaussian(0.1).log_prob(X, X[:1]), "x_t and x: got shapes (4, 3) and (1, 3), want the same"),
        (
            lambda: Gaussian(LEVELS).after(Gaussian(0.1, torch.ones(3))),
            "after: noise level: got 2 and 3 values",
        ),
        (
            lambda: Gaussian(0.1).after(Gaussian(torch.ones(1), LEVELS)),
            "after: noise level: got 1 and 2 values",
        ),
        (
            lambda: Gaussian(0.1).after(Additive(td.Normal(0.0, 1.0))),
            "after: got Additive(Normal), want a Gaussian",
        ),
        (lambda: Additive("laplace"), "Additive: got str, want a torch.distributions.Distribution"),
        (
            lambda: Additive(td.Normal(0.0, ONE)).sample(X[:, :2]),
            "got event shape (2,), want one that broadcasts with (3,)",
        ),
        (lambda: Additive(td.Normal(0.0, ONE)).score(X[:, :1], X[:, :1]), "got event shape (1,), want one that"),
        (lambda: Additive(td.Normal(ZERO, ONE)).fisher_information((2,)), "got event shape (2,), want one that"),
        (
            lambda: Additive(td.MultivariateNormal(ZERO, torch.eye(3))).sample(X[:, :2]),
            "got event shape (2,), want (3,)",
        ),
        (
            lambda: Additive(td.MultivariateNormal(ZERO.expand(2, 3), torch.eye(3))),
            "got batch shape (2,), want one law",
        ),
        (lambda: Additive(td.Laplace(0.0, 1.0)).sample(X.long()), "x: got dtype torch.int64, want a floating"),
        (lambda: Additive(td.Laplace(0.0, 1.0)).score(X, X[:1]), "x_t and x: got shapes (4, 3) and (1, 3)"),
        (lambda: Additive(td.Laplace(1.0, 1.0)).reflect(X, X), "Additive(Laplace): antithetic pairs need noise with"),
    ],
)
def test_bad_input_is_named_on_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as e:
        call()
    assert message in str(e.value)
    assert "\n" not in str(e.value)


# --- Fisher information: what a rule has not met --------------------------------------------------------------------


def f64(v) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.tensor(v, dtype=torch.float64)


def normals(w: list[float], loc: list[float], scale: list[float]) -> td.MixtureSameFamily:
    return td.MixtureSameFamily(td.Categorical(f64(w)), td.Normal(f64(loc), f64(scale)))


class Unknown(td.Distribution):
    """A user's law that says nothing of itself: no location, no scale, no components."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real

    def __init__(self, law: td.Distribution, log_factor: float = 0.0) -> None:
        super().__init__(torch.Size(), validate_args=False)
        self.sampled, self.log_q, self.log_factor = law.sample, law.log_prob, log_factor

    def sample(self, sample_shape=()):  # type: ignore[no-untyped-def]
        return self.sampled(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_q(value) + self.log_factor


NARROW = {
    "a needle": ([1 - 9e-4, 9e-4], [0.0, 3.3333], [1.0, 1e-5]),
    "a needle without weight": ([1 - 1e-7, 1e-7], [0.0, 3.3333], [1.0, 1e-7]),
    "two that are narrow": ([0.5, 0.5], [0.0, 1.0], [1e-6, 1e-6]),
    "a narrow and a wide one": ([0.5, 0.5], [0.0, 1.0], [1e-6, 1.0]),
    "two far off": ([0.5, 0.5], [-1e6, 1e6], [1.0, 1.0]),
    "most of it far off": ([0.1, 0.9], [0.0, 100.0], [1e-6, 1.0]),
}


def fisher_of_normals(w: list[float], loc: list[float], scale: list[float]) -> float:
    """∫ q'²/q around each component, by SciPy, with the density written out."""
    w_, m, s = (np.array(v)[:, None] for v in (w, loc, scale))

    def integrand(u: float) -> float:
        z = (u - m) / s
        q = w_ * np.exp(-0.5 * z**2) / (s * math.sqrt(2 * math.pi))
        return float((q * z / s).sum() ** 2 / max(q.sum(), 1e-300))

    cuts = sorted({float(c + v * t) for c, t in zip(loc, scale, strict=True) for v in (-40, -8, -3, 0, 3, 8, 40)})
    return sum(
        integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-11, limit=200)[0] for a, b in itertools.pairwise(cuts)
    )


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("form", ["mixture", "autograd", "moved", "independent", "unknown"])
def test_fisher_information_of_what_is_narrow(name: str, form: str) -> None:
    """A grid from quantiles of draws steps over a needle; its components' places, or a draw in it, tell."""
    want, law = fisher_of_normals(*NARROW[name]), normals(*NARROW[name])
    kernel, event = Additive(law, autograd=form == "autograd"), (1,)
    if form == "moved":
        kernel, want = Additive(td.TransformedDistribution(law, [td.AffineTransform(1.0, -2.0)])), want / 4
    elif form == "independent":
        kernel, event, want = Additive(td.Independent(law.expand((2,)), 1)), (2,), 2 * want
    elif form == "unknown":
        if "without weight" in name:
            pytest.skip("no draw meets it")
        kernel = Additive(Unknown(law))
    got, error = (f(event).item() for f in (kernel.fisher_information, kernel.fisher_information_error))
    assert abs(got - want) <= error + 1e-8 * want
    assert error <= 1e-8 * want
    even = {"moved": "two that are narrow"}.get(form, "two far off")  # 1 − 2·{0, 1}, and ±1e6
    assert kernel.symmetric == (name == even)


def test_missing_mass_is_not_said_to_be_nothing() -> None:
    kernel = Additive(Unknown(td.Normal(f64(0.0), f64(1.0)), -1e-4))
    assert kernel.fisher_information_error((1,)).item() == math.inf
    for off, got in ((-0.1, "0.9048"), (0.1, "1.105")):
        with pytest.raises(InputError, match=f"its density integrates to {got} over the line, want 1; use a law"):
            Additive(Unknown(td.Normal(f64(0.0), f64(1.0)), off))


GAMMAS = td.Gamma(f64([[3.0, 3.5], [4.0, 2.5]]), f64(1.0))  # I = 1/(a − 2) each


@pytest.mark.parametrize(
    "law",
    [
        td.Independent(GAMMAS, 2),
        td.Independent(td.Independent(GAMMAS, 1), 1),
        td.TransformedDistribution(td.Independent(GAMMAS, 2), [td.AffineTransform(-4.0, 1.0)]),
        td.TransformedDistribution(td.Independent(GAMMAS, 2), [td.AffineTransform(-4.0, 1.0, event_dim=2)]),
        td.Independent(td.TransformedDistribution(GAMMAS, [td.AffineTransform(f64([[1.0, 2], [3, 4]]), 1.0)]), 2),
    ],
    ids=["independent", "twice", "moved", "moved over the event", "each moved"],
)
def test_independent_coordinates_have_their_information_exactly(law: td.Distribution) -> None:
    """‖∇log q‖² of Gamma(a ≤ 4) has no variance: a mean of draws of it has no standard error."""
    kernel, want = Additive(law), 1 + 1 / 1.5 + 1 / 2 + 2
    got, error = (f((2, 2)).item() for f in (kernel.fisher_information, kernel.fisher_information_error))
    assert abs(got - want) <= error + 1e-10
    assert error < 1e-5  # moved by 4, numbers are 1e-15 apart, and u^(−1/2) is infinite at the end


def gammas(a: float) -> Additive:
    parts = td.Independent(td.Gamma(torch.full((2, 2), a, dtype=torch.float64), f64([[1.0], [1.5]])), 1)
    return Additive(td.MixtureSameFamily(td.Categorical(f64([0.5, 0.5])), parts))


def test_a_mean_of_draws_without_variance_has_no_standard_error() -> None:
    assert gammas(3.0).fisher_information_error((2,)).item() == math.inf
    assert gammas(12.0).fisher_information_error((2,)).item() < 0.1


@pytest.mark.parametrize(
    "check",
    [
        lambda m, x, k: diagnostics.equivalence(m, Empirical(x), k, 64),
        lambda m, x, k: diagnostics.self_check(m, x, k, min_draws=64),
        lambda m, x, k: diagnostics.score_error(m, None, x, k),
    ],
    ids=["equivalence", "self_check", "score_error"],
)
def test_nothing_holds_within_an_infinite_error(check) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="whose Fisher information has no finite error, want one that has"):
        check(ScoreFunction(lambda x_t, _: -x_t), x, gammas(3.0))


def test_a_needle_over_an_event_is_met_in_its_own_draws() -> None:
    """Σ_k w_k D/s_k²: far apart, each component has its own score; 5 standard errors."""
    eye = torch.eye(2, dtype=torch.float64)
    parts = td.MultivariateNormal(f64([[0.0, 0.0], [6.0, 0.0]]), torch.stack([eye, 1e-10 * eye]))
    kernel = Additive(td.MixtureSameFamily(td.Categorical(f64([1 - 1e-6, 1e-6])), parts))
    want = 2 * ((1 - 1e-6) + 1e-6 / 1e-10)
    got, error = (f((2,)).item() for f in (kernel.fisher_information, kernel.fisher_information_error))
    assert abs(got - want) < 5 * error
    assert error < 0.03 * want
    assert not kernel.symmetric


# --- one law in float64, whatever it was given by -------------------------------------------------------------------


def ill_conditioned() -> Tensor:
    """A covariance of condition 20 000, in float32."""
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    c = (q * f64([1.0, 1e-2, 5e-5])) @ q.T
    return 0.5 * (c + c.T).float()


C32 = ill_conditioned()
L32, P32 = torch.linalg.cholesky(C32), torch.linalg.inv(C32.double()).float()
P32 = 0.5 * (P32 + P32.T)
NORMALS = {
    "covariance": (lambda: td.MultivariateNormal(torch.zeros(3), C32), C32.double()),
    "factor": (lambda: td.MultivariateNormal(torch.zeros(3), scale_tril=L32), L32.double() @ L32.double().T),
    "precision": (lambda: td.MultivariateNormal(torch.zeros(3), precision_matrix=P32), torch.linalg.inv(P32.double())),
    "low rank": (
        lambda: td.LowRankMultivariateNormal(torch.zeros(3), L32[:, :1], 1e-5 * torch.ones(3)),
        L32[:, :1].double() @ L32[:, :1].double().T + (1e-5 * torch.ones(3)).double().diag(),
    ),
    "over two rows": (
        lambda: td.Independent(td.MultivariateNormal(torch.zeros(2, 3), C32), 1),
        torch.block_diag(C32.double(), C32.double()),
    ),
}


@pytest.mark.parametrize("asked", [False, True], ids=["new", "asked for all"])
@pytest.mark.parametrize("name", NORMALS)
def test_a_float32_normal_is_one_law(name: str, asked: bool) -> None:
    """Density, score, information, form and draws are those of what was given, in float64; not of a factor of it."""
    build, c = NORMALS[name]
    law = build()
    if asked:  # torch then keeps what it computed in float32
        own = law.base_dist if isinstance(law, td.Independent) else law
        assert all(v.ndim >= 2 for v in (own.covariance_matrix, own.precision_matrix, own.scale_tril))
    kernel, event, precision = Additive(law), tuple(law.event_shape), torch.linalg.inv(c)
    x = 0.01 * torch.randn(5, *event, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = stats.multivariate_normal(np.zeros(len(c)), c.numpy()).logpdf(x.flatten(1).numpy())
    np.testing.assert_allclose(kernel.log_prob(x, 0 * x), want, rtol=1e-9)
    torch.testing.assert_close(kernel.score(x, 0 * x).flatten(1), -x.flatten(1) @ precision, rtol=1e-8, atol=1e-6)
    assert kernel.fisher_information(event).item() == pytest.approx(precision.trace().item(), rel=1e-9)
    form = kernel.gaussian_form(event)
    if form is not None:
        torch.testing.assert_close(form.covariance, c, rtol=1e-9, atol=1e-14)
    z = torch.zeros(20_000, *event, dtype=torch.float64)
    n = kernel.sample(z, generator=torch.Generator().manual_seed(2)).flatten(1)
    assert abs(((n @ precision) * n).sum().item() - n.numel()) < 4.5 * math.sqrt(2 * n.numel())


def test_weights_of_a_mixture_are_given_once() -> None:
    weights = td.Categorical(torch.tensor([0.3, 0.7]))
    assert weights.logits.dtype == torch.float32  # which torch keeps
    kernel = Additive(td.MixtureSameFamily(weights, td.Normal(torch.tensor([0.0, 3.0]), 1.0)))
    at = f64([[0.2]])
    w = torch.tensor([0.3, 0.7]).double()
    want = ((w / w.sum()) @ td.Normal(f64([0.0, 3.0]), f64(1.0)).log_prob(at[0]).exp()).log()
    torch.testing.assert_close(kernel.log_prob(at, 0 * at)[0], want, rtol=1e-12, atol=1e-12)


# --- every law of torch ---------------------------------------------------------------------------------------------

DISCRETE, SURFACE = "discrete, so it has no density", "lie on a surface, so it has no density over all of the event"
JUMPS, UNBOUNDED = "its density jumps by", "its density grows without bound near u = 0"
EVERY = {  # a law, and its Fisher information or why it is refused
    "Bernoulli": (td.Bernoulli(0.5), DISCRETE),
    "Beta": (td.Beta(4.0, 4.0), 42.0),  # ((a − 1)² E[(1/u − 1/(1 − u))²])
    "Binomial": (td.Binomial(3, torch.tensor(0.5)), DISCRETE),
    "Categorical": (td.Categorical(ONE), DISCRETE),
    "Cauchy": (td.Cauchy(0.0, 2.0), 1 / 8),
    "Chi2": (td.Chi2(8.0), 1 / 8),
    "ContinuousBernoulli": (td.ContinuousBernoulli(torch.tensor(0.3)), JUMPS),
    "Dirichlet": (td.Dirichlet(5 * ONE), SURFACE),
    "Exponential": (td.Exponential(1.0), JUMPS),
    "FisherSnedecor": (td.FisherSnedecor(8.0, 8.0), 70 / 9),
    "Gamma": (td.Gamma(4.0, 2.0), 2.0),
    "Geometric": (td.Geometric(0.5), DISCRETE),
    "Gumbel": (td.Gumbel(0.0, 2.0), 1 / 4),
    "HalfCauchy": (td.HalfCauchy(1.0), JUMPS),
    "HalfNormal": (td.HalfNormal(1.0), JUMPS),
    "InverseGamma": (td.InverseGamma(3.0, 2.0), 18.0),  # a(a + 1)(a + 3)/b²
    "Kumaraswamy": (td.Kumaraswamy(4.0, 4.0), 54.857142857),
    "LKJCholesky": (td.LKJCholesky(3, 1.0), SURFACE),
    "Laplace": (td.Laplace(0.0, 2.0), 1 / 4),
    "LogNormal": (td.LogNormal(0.0, 0.5), 5 * math.exp(0.5)),  # (1 + 1/σ²)e^{2σ²}
    "LogisticNormal": (td.LogisticNormal(torch.zeros(2), torch.ones(2)), SURFACE),
    "LowRankMultivariateNormal": (td.LowRankMultivariateNormal(ZERO, torch.ones(3, 1), ONE), 2.25),
    "Multinomial": (td.Multinomial(3, ONE), DISCRETE),
    "MultivariateNormal": (td.MultivariateNormal(ZERO, 2 * torch.eye(3)), 1.5),
    "NegativeBinomial": (td.NegativeBinomial(3.0, torch.tensor(0.5)), DISCRETE),
    "Normal": (td.Normal(0.0, 2.0), 1 / 4),
    "OneHotCategorical": (td.OneHotCategorical(ONE), DISCRETE),
    "OneHotCategoricalStraightThrough": (td.OneHotCategoricalStraightThrough(ONE), DISCRETE),
    "Pareto": (td.Pareto(1.0, 3.0), JUMPS),
    "Poisson": (td.Poisson(3.0), DISCRETE),
    "RelaxedBernoulli": (td.RelaxedBernoulli(torch.tensor(0.5), torch.tensor(0.3)), UNBOUNDED),
    "RelaxedOneHotCategorical": (td.RelaxedOneHotCategorical(torch.tensor(0.5), ONE), SURFACE),
    "StudentT": (td.StudentT(4.0), 5 / 7),
    "Uniform": (td.Uniform(-1.0, 1.0), JUMPS),
    "VonMises": (td.VonMises(0.0, 1.0), "integrates to infinity over the line, want 1; use a law of numbers"),
    "Weibull": (td.Weibull(1.0, 4.0), 15.952085),  # (b² Γ(3 − 2/b) + … )
    "Wishart": (td.Wishart(torch.tensor(4.0), torch.eye(2)), SURFACE),
}
if hasattr(td, "GeneralizedPareto"):  # not in the oldest torch
    EVERY["GeneralizedPareto"] = td.GeneralizedPareto(*torch.tensor([0.0, 1.0, 0.3])), JUMPS


def test_noise_does_not_need_the_newest_laws_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(td, "GeneralizedPareto", raising=False)
    assert Additive(td.Laplace(0.0, 2.0)).fisher_information((1,)).item() == pytest.approx(1 / 4)


def test_every_law_of_torch_is_among_them() -> None:
    kinds = {n for n in td.__all__ if isinstance(getattr(td, n), type) and issubclass(getattr(td, n), td.Distribution)}
    wrappers = {"Distribution", "ExponentialFamily", "Independent", "MixtureSameFamily", "TransformedDistribution"}
    assert kinds - wrappers == set(EVERY)


@pytest.mark.filterwarnings("ignore:Singular sample detected")
@pytest.mark.parametrize("form", ["itself", "expanded", "independent", "moved"])
@pytest.mark.parametrize("name", EVERY)
def test_every_law_of_torch_is_right_or_refused_for_what_it_is(name: str, form: str) -> None:
    law, want = EVERY[name]
    own, over = tuple(law.event_shape), law.event_shape != ()
    if form == "expanded" and over:
        pytest.skip("the law of a whole event has no batch")
    if form == "moved" and over and not isinstance(want, str):
        pytest.skip("by draws, in a test of its own")
    if form in ("expanded", "independent"):
        law = law.expand((2,))
        law = td.Independent(law, 1) if form == "independent" else law
    elif form == "moved":
        law = td.TransformedDistribution(law, [td.AffineTransform(0.0, 3.0, event_dim=len(own))])
    if isinstance(want, str):
        with pytest.raises(InputError) as e:
            Additive(law)
        assert want in str(e.value)
        assert "; use a" in str(e.value)
        assert "\n" not in str(e.value)
        return
    kernel, event = Additive(law), own if form in ("itself", "moved") and over else ((2, *own) if over else (2,))
    times = (1 if form == "itself" and over else 2) / (9 if form == "moved" else 1)
    got, error = (f(event).item() for f in (kernel.fisher_information, kernel.fisher_information_error))
    assert got == pytest.approx(times * want, rel=1e-7)
    assert error < 1e-7 * got


def test_a_transformed_law_that_is_no_product_is_sampled() -> None:
    """A rotated, stretched normal: I = tr (A Aᵀ)⁻¹ within 5 standard errors, and its own density."""
    base = td.MultivariateNormal(f64([0.0, 0.0]), f64([[1.0, 0.5], [0.5, 1.0]]))
    kernel = Additive(td.TransformedDistribution(base, [td.AffineTransform(f64([1.0, 2.0]), 2.0, event_dim=1)]))
    got, error = (f((2,)).item() for f in (kernel.fisher_information, kernel.fisher_information_error))
    assert abs(got - 2 / 0.75 / 4) < 5 * error
    u = f64([[0.3, 1.7]])
    want = stats.multivariate_normal([1.0, 2.0], [[4.0, 2.0], [2.0, 4.0]]).logpdf(u[0].numpy())
    assert kernel.log_prob(u, 0 * u).item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("autograd", [False, True])
def test_a_moved_law_ends_where_it_is_moved_to(autograd: bool) -> None:
    """−5 + 2·Gamma(4): torch's own density is NaN below −5."""
    kernel = Additive(
        td.TransformedDistribution(td.Gamma(4.0, 1.0), [td.AffineTransform(-5.0, 2.0)]), autograd=autograd
    )
    u = f64([[-6.0], [-4.0], [0.0], [9.0]])
    np.testing.assert_allclose(kernel.log_prob(u, 0 * u), stats.gamma(4, -5, 2).logpdf(u[:, 0].numpy()), rtol=1e-12)
    np.testing.assert_allclose(kernel.score(u, 0 * u)[:, 0], [0, 3 / 1 - 0.5, 3 / 5 - 0.5, 3 / 14 - 0.5], rtol=1e-12)


def test_a_kernel_shows_what_it_is() -> None:
    assert repr(Gaussian(0.5)) == "Gaussian(sigma=0.5)"
    assert repr(Additive(td.Independent(td.Laplace(ZERO, ONE), 1))) == "Additive(Independent(Laplace))"


def test_independent_laws_without_a_closed_form_have_their_information_by_quadrature() -> None:
    kernel = Additive(td.Independent(td.Gumbel(torch.zeros(3), 0.5), 1))
    assert kernel.fisher_information((3,)).item() == pytest.approx(12.0, abs=1e-6)
    assert kernel.fisher_information_error((3,)).item() < 1e-6


# --- one kernel after another ---------------------------------------------------------------------------------------


def test_one_gaussian_after_another_is_the_integral_over_what_lies_between() -> None:
    """Chapman–Kolmogorov: k(z | x) = ∫ k2(z | y) k1(y | x) dy."""
    k1, k2, x = Gaussian(0.7, 0.6), Gaussian(0.3, 1.7), 1.3

    def density(k: Gaussian, to: float, start: float) -> float:
        to_, start_ = (torch.tensor([[v]], dtype=torch.float64) for v in (to, start))
        return k.log_prob(to_, start_).exp().item()

    for z in (-0.5, 1.0, 2.6):
        want = integrate.quad(lambda y, z=z: density(k2, z, y) * density(k1, y, x), -8, 10, epsabs=1e-12, limit=200)[0]
        assert density(k2.after(k1), z, x) == pytest.approx(want, rel=1e-9)
    assert density(k1.after(k2), 1.0, x) != pytest.approx(density(k2.after(k1), 1.0, x), rel=0.1)


def test_one_gaussian_after_another_is_two_draws(g: torch.Generator) -> None:
    """Mean and variance of 100 000 draws a level, within 4.5 standard errors: σ/√n and σ²√(2/n)."""
    n, x = 100_000, torch.tensor([1.3, -0.4, 2.0], dtype=torch.float64)
    k1 = Gaussian(torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64), 0.6)
    k2 = Gaussian(0.4, torch.tensor([1.0, 0.3, 0.0], dtype=torch.float64))
    rows = torch.arange(3).repeat_interleave(n)
    z = k2.rows(rows).sample(k1.rows(rows).sample(x[rows, None], generator=g), generator=g).reshape(3, n)
    k = k2.after(k1)
    assert (k.sigma.shape, k.alpha.shape) == ((3,), (3,))
    assert bool(((z.mean(1) - k.alpha * x).abs() < 4.5 * k.sigma / math.sqrt(n)).all())
    assert bool(((z.var(1) - k.sigma**2).abs() < 4.5 * k.sigma**2 * math.sqrt(2 / n)).all())


def test_kernels_one_after_another_are_associative() -> None:
    a, b, c = Gaussian(0.2, 0.9), Gaussian(torch.tensor([1.5, 0.1]), 0.5), Gaussian(0.7, torch.tensor([0.3, 2.0]))
    left, right = c.after(b).after(a), c.after(b.after(a))
    torch.testing.assert_close(left.sigma, right.sigma)
    torch.testing.assert_close(left.alpha, right.alpha)
    assert left.sigma.dtype == torch.float32
    assert Gaussian(4.0).after(Gaussian(3.0)).sigma.item() == 5.0
