"""Which noise is refused, and why; bad input to kernels; laws that a user writes."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from gradlogp import InputError
from gradlogp.kernels import Additive, Gaussian, GeneralizedNormal

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
        (td.Dirichlet(2 * ONE), "use a kernel with a continuous density"),
        (td.VonMises(0.0, 1.0), r"integrates to .* over the line, want 1 \(is it circular\?\)"),
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
