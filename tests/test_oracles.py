"""Bad input to oracles, and what a user leans on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as td

from gradlogp import InputError
from gradlogp.kernels import Additive, Gaussian
from gradlogp.models import GaussianReference
from gradlogp.oracles import Empirical, GaussianMixture, Quadrature

pytestmark = pytest.mark.usefixtures("as_a_user")

W, M = torch.tensor([0.5, 0.5]), torch.tensor([[0.0, 1.0], [2.0, 3.0]])
MIXTURE, DATA, LINE = GaussianMixture(W, M, 0.1), Empirical(M), Quadrature(td.Laplace(0.0, 1.0))
LAPLACE, NAN = Additive(td.Laplace(0.0, 1.0)), math.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianMixture(W[:1], M, 0.1), "weights: got shape (1,), want (2,), one a component"),
        (lambda: GaussianMixture(torch.tensor([1.0, 0.0]), M, 0.1), "weights: got one that is not positive"),
        (lambda: GaussianMixture(torch.tensor([1.0, -1.0]), M, 0.1), "weights: got one that is not positive"),
        (lambda: GaussianMixture(torch.tensor([1.0, NAN]), M, 0.1), "weights: got one that is not positive"),
        (lambda: GaussianMixture(W, M[0], 0.1), "means: got shape (2,), torch.float32, want finite floats (K, *event)"),
        (lambda: GaussianMixture(W, M * NAN, 0.1), "means: got shape (2, 2), torch.float32, want finite floats"),
        (lambda: GaussianMixture(W, M.int(), 0.1), "means: got shape (2, 2), torch.int32, want finite floats"),
        (lambda: GaussianMixture(W, "means", 0.1), "means: got 'means', want numbers"),
        (lambda: GaussianMixture(W, M, -0.1), "covariances: got a negative variance -0.1, want positive semi-definite"),
        (lambda: GaussianMixture(W, M, NAN), "covariances: got NaN or infinity"),
        (lambda: GaussianMixture(W, M, torch.ones(3)), "covariances: got shape (3,), want a number, (2,), (2, 2) or"),
        (lambda: GaussianMixture(W, M, torch.ones(2, 3, 3)), "covariances: got shape (2, 3, 3), want a number"),
        (lambda: GaussianMixture(W, M, torch.tensor([[[1.0, 0.5], [0.0, 1.0]]] * 2)), "a matrix that is not symmetric"),
        (lambda: GaussianMixture(W, M, torch.tensor([[[1.0, 2.0], [2.0, 1.0]]] * 2)), "got a negative variance -1"),
        (lambda: MIXTURE.score(M, LAPLACE), "GaussianMixture: needs a Gaussian kernel, got Additive(Laplace)"),
        (lambda: MIXTURE.denoise(M, LAPLACE), "denoise: needs a Gaussian kernel, got Additive(Laplace)"),
        (lambda: MIXTURE.log_prob(M[:, :1], Gaussian(1)), "x_t: got event shape (1,), want (2,)"),
        (lambda: MIXTURE.score(M * NAN, Gaussian(1)), "x_t: row 0 holds NaN or infinity"),
        (lambda: MIXTURE.score(M.int(), Gaussian(1)), "x_t: got dtype torch.int32, want a floating dtype"),
        (lambda: MIXTURE.score(M, Gaussian(torch.ones(3))), "noise level: got (3,) values for 2 rows"),
        (lambda: MIXTURE.score([1.0], Gaussian(1)), "x_t: got list, want a torch.Tensor"),
        (lambda: MIXTURE.sample(0), "n: got 0, want at least 1"),
        (lambda: MIXTURE.sample(2.5), "n: got 2.5, want a whole number >= 1"),
        (lambda: Empirical(M * NAN), "data: row 0 holds NaN or infinity"),
        (lambda: Empirical(M[0]), "data: got shape (2,), want (B, *event)"),
        (lambda: Empirical([[1.0]]), "data: got list, want a torch.Tensor"),
        (lambda: DATA.sample(-1), "n: got -1, want at least 1"),
        (lambda: DATA.score(M[:, :1], Gaussian(1)), "x_t: got event shape (1,), want (2,)"),
        (lambda: DATA.denoise(M, Gaussian(1, torch.ones(5))), "noise level: got (5,) values for 2 rows"),
        (lambda: DATA.log_prob(M / 0, LAPLACE), "x_t: row 0 holds NaN or infinity"),
        (lambda: Quadrature(td.Normal(torch.zeros(2), 1.0)), "Quadrature: got batch and event shapes (2,), ()"),
        (lambda: Quadrature(td.Dirichlet(torch.ones(2))), "Quadrature: got batch and event shapes (), (2,)"),
        (lambda: Quadrature(td.Poisson(2.0)), "Quadrature(Poisson): discrete, so it has no density; use a continuous"),
        (lambda: Quadrature("normal"), "Quadrature: got str, want a torch.distributions.Distribution"),
        (lambda: Quadrature(td.Normal(0.0, 1.0), order=0), "order: got 0, want at least 1"),
        (lambda: LINE.score(M, Gaussian(1)), "x_t: got event shape (2,), want (1,)"),
        (lambda: LINE.sample(0), "n: got 0, want at least 1"),
        (lambda: LINE.score(M[:, :1] * NAN, Gaussian(1)), "x_t: row 0 holds NaN or infinity"),
    ],
)
def test_bad_input_is_named_on_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as e:
        call()
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_alpha_zero_leaves_only_the_noise() -> None:
    x_t = torch.tensor([[0.3, -0.2]])
    kernel = Gaussian(0.5, 0.0)
    for oracle in (MIXTURE, DATA):
        torch.testing.assert_close(oracle.score(x_t, kernel), -x_t / 0.25)
        torch.testing.assert_close(oracle.denoise(x_t, kernel), M.mean(0, keepdim=True))
    with pytest.raises(InputError, match="alpha is 0, so x_t says nothing about x"):
        GaussianMixture(W, M, torch.eye(2).expand(2, 2, 2)).denoise(x_t, _WrittenOut(0.0))


class _WrittenOut(Gaussian):
    """Isotropic noise, written with a full covariance."""

    def __init__(self, alpha: float) -> None:
        super().__init__(0.5, alpha)

    def gaussian_form(self, event_shape):  # type: ignore[no-untyped-def]
        form = super().gaussian_form(event_shape)
        return type(form)(form.alpha, form.shift, 0.25 * torch.eye(2), "full")


def test_alpha_counts_under_a_full_covariance_too() -> None:
    full = torch.tensor([[[1.0, 0.3], [0.3, 0.5]], [[0.2, -0.1], [-0.1, 0.9]]])
    x_t = torch.tensor([[0.3, -0.2], [1.0, 2.0]])
    for model in (GaussianMixture(W, M, full), GaussianMixture(W, M, 0.1), GaussianReference.of_moments(M[0], full[0])):
        for name in ("log_prob", "score", "denoise", "posterior_covariance"):
            if hasattr(model, name):
                got, want = (getattr(model, name)(x_t, k) for k in (_WrittenOut(0.6), Gaussian(0.5, 0.6)))
                torch.testing.assert_close(got, want)


def test_an_oracle_moves_and_saves_like_any_module() -> None:
    other = GaussianMixture(torch.tensor([0.9, 0.1]), M + 1, 0.1)
    other.load_state_dict(MIXTURE.state_dict())
    torch.testing.assert_close(other.score(M, Gaussian(0.3)), MIXTURE.score(M, Gaussian(0.3)))


def test_the_reference_of_a_data_set_is_its_gaussian() -> None:
    data = torch.randn(50, 3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5]) + 1
    reference = Empirical(data).reference
    torch.testing.assert_close(reference.mean, data.mean(0))
    covariance = (reference.eigenvectors * reference.eigenvalues) @ reference.eigenvectors.T
    torch.testing.assert_close(covariance, torch.cov(data.T, correction=0))
    assert Empirical(torch.ones(3, 2)).reference is None
    assert Empirical(torch.ones(1, 2)).reference is None


def test_weights_need_not_sum_to_one() -> None:
    a, b = GaussianMixture([1.0, 3.0], M, 0.1), GaussianMixture([0.25, 0.75], M, 0.1)
    torch.testing.assert_close(a.log_prob(M, Gaussian(1)), b.log_prob(M, Gaussian(1)))


def test_breakpoints_of_the_caller_are_met() -> None:
    """A density that jumps where nothing says so: a step of a uniform mixture."""
    law = td.TransformedDistribution(td.Uniform(0.0, 1.0), [td.transforms.AffineTransform(-0.5, 1.0)])
    ends = torch.tensor([-0.5, 0.5])
    x_t = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    got = Quadrature(law, breakpoints=ends).score(x_t, Gaussian(0.05))
    want = Quadrature(td.Uniform(-0.5, 0.5)).score(x_t, Gaussian(0.05))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_a_diagonal_covariance_written_in_full_keeps_its_small_variances() -> None:
    variances = torch.tensor([[1e-4, 1.0, 100.0, 1e4]])
    x, kernel = torch.tensor([[0.01, 1.0, 1.0, 1.0]]), Gaussian(1e-3)
    full = GaussianMixture(torch.ones(1), torch.zeros(1, 4), torch.diag_embed(variances)).score(x, kernel)
    assert full[0, 0].item() == pytest.approx(-0.01 / (1e-4 + 1e-6), rel=1e-4)


def test_a_density_that_is_infinite_at_its_end_is_refused() -> None:
    oracle = Quadrature(td.Beta(0.5, 0.5))
    with pytest.raises(InputError, match="infinite at a point"):
        oracle.score(torch.tensor([[0.5]]), Gaussian(0.1))


class Unknown(td.Distribution):
    """A user's law that says nothing of where it lives."""

    arg_constraints = {}  # noqa: RUF012
    support = td.constraints.real

    def __init__(self, law: td.Distribution, log_factor: float = 0.0) -> None:
        super().__init__(torch.Size(), validate_args=False)
        self.sampled, self.log_q, self.log_factor = law.sample, law.log_prob, log_factor

    def sample(self, sample_shape=()):  # type: ignore[no-untyped-def]
        return self.sampled(torch.Size(sample_shape))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return self.log_q(value) + self.log_factor


def f64(v) -> torch.Tensor:  # type: ignore[no-untyped-def]
    return torch.tensor(v, dtype=torch.float64)


AT = f64([[3.3], [0.0], [-1.0]])
NARROW = {
    "a needle": ([1 - 9e-4, 9e-4], [0.0, 3.3333], [1.0, 1e-5]),
    "two that are narrow": ([0.5, 0.5], [0.0, 1.0], [1e-6, 1e-6]),
    "two far off": ([0.5, 0.5], [-1e6, 1e6], [1.0, 1.0]),
}


def narrow(name: str, form: str) -> tuple[td.Distribution, list[float], list[float], list[float]]:
    w, loc, scale = NARROW[name]
    law = td.MixtureSameFamily(td.Categorical(f64(w)), td.Normal(f64(loc), f64(scale)))
    if form == "moved":
        return td.TransformedDistribution(law, [td.AffineTransform(1.0, 1.0)]), w, [v + 1 for v in loc], scale
    return (Unknown(law) if form == "unknown" else law), w, loc, scale


@pytest.mark.parametrize("form", ["mixture", "moved", "unknown"])
@pytest.mark.parametrize("name", NARROW)
def test_quadrature_meets_a_density_that_is_narrow(name: str, form: str) -> None:
    """Against the closed form of the mixture; the needle is where no quantile of 63 is."""
    law, w, loc, scale = narrow(name, form)
    at, kernel = AT + (1e6 if "far" in name else 0), Gaussian(0.5)
    exact = GaussianMixture(f64(w), f64(loc)[:, None], f64(scale) ** 2)
    oracle = Quadrature(law)
    torch.testing.assert_close(oracle.log_prob(at, kernel), exact.log_prob(at, kernel), rtol=1e-6, atol=1e-7)
    off = (oracle.score(at, kernel) - exact.score(at, kernel)).abs().flatten()
    assert bool((off <= 3 * oracle.error(at, kernel) + 1e-9).all())
    assert bool((off < 1e-6).all())


@pytest.mark.parametrize("form", ["mixture", "moved", "unknown"])
@pytest.mark.parametrize("name", ["a needle", "two that are narrow"])
def test_quadrature_meets_noise_that_is_narrow(name: str, form: str) -> None:
    """N(0, 1) and noise of a mixture of normals: a mixture with variances 1 + s²."""
    law, w, loc, scale = narrow(name, form)
    exact = GaussianMixture(f64(w), f64(loc)[:, None], f64(scale) ** 2 + 1 - 1e-18)
    got, want = Quadrature(td.Normal(f64(0.0), f64(1.0))), Gaussian(1e-9)
    torch.testing.assert_close(got.log_prob(AT, Additive(law)), exact.log_prob(AT, want), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got.score(AT, Additive(law)), exact.score(AT, want), rtol=1e-4, atol=1e-4)


def test_quadrature_says_what_it_cannot_know() -> None:
    missing = Quadrature(Unknown(td.Normal(f64(0.0), f64(1.0)), -1e-4))
    assert bool((missing.error(AT, Gaussian(0.5)) == math.inf).all())
    for law in (td.VonMises(0.0, 1.0), Unknown(td.Normal(f64(0.0), f64(1.0)), 0.1)):
        with pytest.raises(InputError, match=r"its density integrates to .* over the line, want 1; use a law"):
            Quadrature(law)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("arrays", [False, True], ids=["tensors", "arrays"])
def test_covariances_are_symmetric_to_the_rounding_of_their_dtype(dtype: torch.dtype, arrays: bool) -> None:
    """As scikit-learn's float32 ``covariances_``, the entries beside the diagonal off by a rounding or two."""
    a = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = a @ a.mT + 0.5 * torch.eye(4)
    c = exact.to(dtype)
    c = torch.where(torch.ones(4, 4).tril(-1) > 0, c * (1 + 2 * torch.finfo(dtype).eps), c)
    assert bool((c != c.mT).any())
    weights, means = torch.tensor([0.3, 0.7], dtype=dtype), torch.zeros(2, 4, dtype=dtype)
    given = (weights, means, c)
    if arrays:
        if dtype == torch.bfloat16:
            pytest.skip("numpy has none")
        given = tuple(v.numpy() for v in given)
    x, kernel = 0.3 * torch.ones(1, 4, dtype=torch.float64), Gaussian(0.5)
    got = GaussianMixture(*given).score(x, kernel)
    want = GaussianMixture(weights.double(), means.double(), exact).score(x, kernel)
    torch.testing.assert_close(got, want, rtol=0, atol=20 * max(torch.finfo(dtype).eps, 1e-15))
    assert GaussianReference.of_moments(means[0], c[0]).eigenvalues.dtype == dtype
    wrong = c.clone()
    wrong[:, 0, 1] += 0.5 * c.diagonal(dim1=1, dim2=2).amax()
    for off in (wrong, c + torch.full_like(c, NAN)):
        with pytest.raises(InputError, match=r"not symmetric|NaN"):
            GaussianMixture(weights, means, off)
        with pytest.raises(InputError, match=r"not symmetric|NaN"):
            GaussianReference.of_moments(means[0], off[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_direction_without_variance_is_one_in_every_dtype(dtype: torch.dtype) -> None:
    """A matrix of rank 2 rounded to a dtype: its other eigenvalues are that rounding, of either sign."""
    a = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    c = (a @ a.T).to(dtype)
    assert GaussianReference.of_moments(torch.zeros(6, dtype=dtype), c).eigenvalues.numel() == 2
    assert (GaussianMixture([1.0], torch.zeros(1, 6), c[None]).variances > 0).sum().item() == 2
