"""Log-density, entropy, divergence and mutual information from denoising errors, against closed forms and integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from gradlogp import InputError
from gradlogp.kernels import Additive, Gaussian
from gradlogp.likelihood.divergence_between import kl_divergence
from gradlogp.likelihood.entropy import cross_entropy, denoising_log_prob, entropy
from gradlogp.likelihood.information import (
    Levels,
    Pair,
    denoiser,
    gaussian_denoiser,
    gaussian_log_loss,
    levels_for,
)
from gradlogp.likelihood.mutual import IndependentGroups, mutual_information
from gradlogp.models import Denoiser, GaussianReference, ScoreFunction
from gradlogp.oracles import GaussianMixture

F64 = torch.float64
MODES = ([0.3, 0.7], [-2.0, 1.0], [0.1, 0.5])  # weights, means, standard deviations
TINY = 1e-300  # where a density underflows it weighs nothing
OTHER = ([0.6, 0.4], [-1.0, 1.5], [0.6, 0.9])


def mixture_1d(modes=MODES, dtype=F64) -> GaussianMixture:
    w, m, s = (torch.tensor(v, dtype=dtype) for v in modes)
    return GaussianMixture(w, m[:, None], s**2)


def pdf(y, s, modes=MODES):
    """The same mixture under noise s, by SciPy."""
    return sum(w * stats.norm.pdf(y, m, math.hypot(d, s)) for w, m, d in zip(*modes, strict=True))


def expected_log_pdf(x: float, s: float, modes=MODES) -> float:
    """E_z log p_s(x + s·z) by quadrature."""
    f = lambda z: stats.norm.pdf(z) * math.log(pdf(x + s * z, s, modes))  # noqa: E731
    return integrate.quad(f, -9, 9, limit=400)[0]


def line_integral(f) -> float:
    """By the trapezoidal rule, which is exact to rounding for what vanishes at both ends; wide enough for s = 2.5."""
    y = np.linspace(-28, 28, 28_001)
    return float(np.sum(f(y)) * (y[1] - y[0]))


def covariance(d: int, seed: int) -> Tensor:
    a = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=F64) / math.sqrt(d)
    return a @ a.T + 0.2 * torch.eye(d, dtype=F64)


def gaussian(mean: Tensor, cov: Tensor) -> GaussianMixture:
    return GaussianMixture(torch.ones(1), mean[None], cov[None])


def mixture(d: int, seed: int, n: int = 3) -> GaussianMixture:
    g = torch.Generator().manual_seed(seed)
    means = 1.2 * torch.randn(n, d, generator=g, dtype=F64)
    return GaussianMixture(torch.arange(1.0, n + 1), means, torch.stack([covariance(d, seed + k) for k in range(n)]))


def noisy(model: GaussianMixture, n: int, s: float, g: torch.Generator) -> Tensor:
    return Gaussian(s).sample(model.sample(n, generator=g), generator=g)


class WithReference(Denoiser):
    """A model with another reference than its own."""

    def __init__(self, model, reference) -> None:
        super().__init__()
        self.model, self.given = model, reference

    @property
    def reference(self):
        return self.given

    def denoise(self, x_t, kernel):
        return self.model.denoise(x_t, kernel)


class Spoilt(WithReference):
    """D* + s²/(1 + s²)·b."""

    def denoise(self, x_t, kernel):
        s2 = (kernel.sigma**2).expand(len(x_t))[:, None]
        return self.model.denoise(x_t, kernel) + s2 / (1 + s2) * torch.tensor([0.7, -0.4]).to(x_t)


def check_z(z: list[float]) -> None:
    """Standard normal: mean, spread and largest value of independent z-scores, each at 4 to 5 of its own errors."""
    z = np.array(z)
    n = len(z)
    assert abs(z.mean()) < 4.5 / math.sqrt(n), z
    assert 1 - 4 / math.sqrt(2 * n) < z.std(ddof=1) < 1 + 4.5 / math.sqrt(2 * n), z
    assert np.abs(z).max() < 5, z


def z_scores(measure, exact: float, error: float = 0.0, n_seeds: int = 16) -> list[float]:
    """Of a measurement on fresh rows and draws for each seed."""
    found = [measure(torch.Generator().manual_seed(seed)) for seed in range(n_seeds)]
    return [(e.value - exact) / math.hypot(e.stderr, error) for e in found]


# --- each row ---


@pytest.mark.parametrize("s", [0.02, 0.3, 1.0])
def test_log_prob_of_a_row_is_the_mean_log_density_of_its_noisy_copies(s):
    x = torch.tensor([-2.5, -2.05, -0.5, 0.7, 3.0], dtype=F64)
    exact = np.array([expected_log_pdf(v, s) for v in x.tolist()])
    many = x.repeat(60)[:, None]
    r = denoising_log_prob(mixture_1d(), many, sigma_min=s, generator=torch.Generator().manual_seed(1))
    z = ((r.value - torch.from_numpy(exact).repeat(60)) / r.stderr).reshape(60, 5)
    assert z.mean(0).abs().max() < 4.5 / math.sqrt(60)
    assert z.abs().max() < 8  # of t with 15 degrees of freedom
    spread = r.value.reshape(60, 5).std(0)
    assert (spread / r.stderr.reshape(60, 5).square().mean(0).sqrt()).sub(1).abs().max() < 0.45


def test_log_prob_tends_to_that_of_the_clean_row():
    x = torch.linspace(-3, 3, 40, dtype=F64)[:, None]
    r = denoising_log_prob(mixture_1d(), x, sigma_min=1e-3, n_draws=128, generator=torch.Generator().manual_seed(0))
    exact = np.log(pdf(x[:, 0].numpy(), 0.0))
    z = (r.value.numpy() - exact) / r.stderr.numpy()
    assert abs(z.mean()) < 4 / math.sqrt(40)
    assert np.abs(z).max() < 6
    assert r.stderr.median() < 0.15


def test_log_prob_is_below_the_log_density_at_root_two_times_the_noise():
    """Jensen, with quadrature on both sides; the draws only decide by how much."""
    x, s = torch.tensor([[-2.2], [0.0], [1.0]], dtype=F64), 0.5
    r = denoising_log_prob(mixture_1d(), x, sigma_min=s, n_draws=256, generator=torch.Generator().manual_seed(0))
    above = np.log(pdf(x[:, 0].numpy(), math.sqrt(2) * s))
    assert (r.value.numpy() - 4 * r.stderr.numpy() < above).all()


def test_log_prob_of_a_gaussian_is_a_closed_form_with_no_error():
    cov, s = covariance(5, 0), 0.3
    mean = torch.arange(5, dtype=F64)
    x = gaussian(mean, cov).sample(6, generator=torch.Generator().manual_seed(0)) * 2
    r = denoising_log_prob(gaussian(mean, cov), x, sigma_min=s, n_draws=1, n_replicates=2)
    noise_cov = (cov + s**2 * torch.eye(5, dtype=F64)).numpy()
    exact = stats.multivariate_normal(mean.numpy(), noise_cov).logpdf(x.numpy())
    exact = exact - 0.5 * s**2 * np.trace(np.linalg.inv(noise_cov))  # E of the quadratic form's own noise
    np.testing.assert_allclose(r.value.numpy(), exact, rtol=1e-6)
    assert r.stderr.max() < 1e-6


@pytest.mark.parametrize("s", [0.05, 2.0])
def test_gaussian_log_loss_with_directions_in_which_nothing_varies(s):
    v = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)).Q
    eigenvalues, mean = torch.tensor([2.0, 0.5], dtype=F64), torch.tensor([1.0, 0, -1, 2], dtype=F64)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    found = gaussian_log_loss(GaussianReference(mean, eigenvalues, v[:, :2]), x, s)
    noise_cov = (v[:, :2] * eigenvalues) @ v[:, :2].T + s**2 * torch.eye(4, dtype=F64)
    law = stats.multivariate_normal(mean.numpy(), noise_cov.numpy())
    u, w = np.polynomial.hermite_e.hermegauss(5)  # exact for a quadratic
    grid, weight = np.stack(np.meshgrid(*[u] * 4), -1).reshape(-1, 4), np.prod(np.meshgrid(*[w] * 4), 0).reshape(-1)
    weight = weight / weight.sum()
    exact = [-(law.logpdf(row + s * grid) * weight).sum() for row in x.numpy()]
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-9)


def test_which_gaussian_is_subtracted_does_not_matter():
    model, s, x = mixture_1d(), 0.2, torch.tensor([[-1.8], [0.4]], dtype=F64)
    wrong = GaussianReference(
        torch.tensor([0.5], dtype=F64), torch.tensor([0.8], dtype=F64), torch.ones(1, 1, dtype=F64)
    )
    r = denoising_log_prob(
        WithReference(model, wrong),
        x.repeat(40, 1),
        sigma_min=s,
        sigma_max=300.0,
        n_draws=64,
        generator=torch.Generator().manual_seed(2),
    )
    exact = torch.tensor([expected_log_pdf(-1.8, s), expected_log_pdf(0.4, s)]).repeat(40)
    check_z(((r.value - exact) / r.stderr).tolist())


# --- entropy and cross-entropy ---


def test_entropy_of_a_mixture_on_the_line():
    s, model = 0.05, mixture_1d()
    exact = line_integral(lambda y: -pdf(y, s) * np.log(pdf(y, s) + TINY))
    check_z(z_scores(lambda g: entropy(model, model.sample(200, generator=g), sigma_min=s, generator=g), exact))


@pytest.mark.parametrize("d", [2, 8, 32])
def test_entropy_of_a_mixture_against_draws_of_its_log_density(d):
    s, model, g = 0.05, mixture(d, 5), torch.Generator().manual_seed(99)
    draws = -model.log_prob(noisy(model, 100_000, s, g), Gaussian(s))
    error = draws.std().item() / math.sqrt(len(draws))
    measure = lambda g: entropy(model, model.sample(200, generator=g), sigma_min=s, generator=g)  # noqa: E731
    check_z(z_scores(measure, draws.mean().item(), error))


@pytest.mark.parametrize("d", [1, 2, 8, 32])
def test_entropy_of_a_gaussian_whose_model_has_another_reference(d):
    cov, s = covariance(d, 1), 0.1
    model = gaussian(torch.zeros(d, dtype=F64), cov)
    other = GaussianReference.of_moments(torch.full((d,), 0.1, dtype=F64), 1.3 * covariance(d, 2))
    exact = 0.5 * torch.logdet(2 * math.pi * math.e * (cov + s**2 * torch.eye(d, dtype=F64))).item()

    def measure(g):
        x = model.sample(300, generator=g)
        return entropy(WithReference(model, other), x, sigma_min=s, sigma_max=200.0, generator=g)

    check_z(z_scores(measure, exact))


def test_the_error_says_that_it_is_small_on_many_rows():
    """2 % and less, or the test above would pass with wide errors."""
    g = torch.Generator().manual_seed(0)
    model = mixture(8, 5)
    e = entropy(model, model.sample(2000, generator=g), sigma_min=0.05, generator=g)
    assert e.stderr < 0.01 * e.value


def test_cross_entropy_of_two_mixtures_on_the_line():
    s, q, p = 0.1, mixture_1d(OTHER), mixture_1d()
    exact = line_integral(lambda y: -pdf(y, s) * np.log(pdf(y, s, OTHER) + TINY))
    measure = lambda g: cross_entropy(q, p.sample(200, generator=g), sigma_min=s, generator=g)  # noqa: E731
    check_z(z_scores(measure, exact))


def test_a_wrong_model_is_above_the_entropy_by_its_own_error():
    """∫ s⁻³ ‖s²/(1 + s²)·b‖² ds = ½‖b‖²·[1/(1 + s₀²) − 1/(1 + s₁²)]."""
    s0, s1, cov = 0.1, 100.0, covariance(2, 3)
    truth = gaussian(torch.zeros(2, dtype=F64), cov)
    h = 0.5 * torch.logdet(2 * math.pi * math.e * (cov + s0**2 * torch.eye(2, dtype=F64))).item()
    excess = 0.5 * (0.7**2 + 0.4**2) * (1 / (1 + s0**2) - 1 / (1 + s1**2))
    spoilt = Spoilt(truth, truth.reference)
    measure = lambda g: entropy(  # noqa: E731
        spoilt, truth.sample(200, generator=g), sigma_min=s0, sigma_max=s1, generator=g
    )
    check_z(z_scores(measure, h + excess))


def test_what_is_neglected_above_sigma_max_is_in_the_error_and_only_raises_the_value():
    model, s0, g = mixture_1d(), 0.1, torch.Generator().manual_seed(0)
    x = model.sample(40_000, generator=g)
    exact = line_integral(lambda y: -pdf(y, s0) * np.log(pdf(y, s0) + TINY))
    reference = model.reference
    for s1 in (1.5, 2.5):
        v = reference.eigenvalues.item() + s1**2
        at_top = stats.norm(reference.mean.item(), math.sqrt(v))
        kl = line_integral(lambda y, s1=s1, law=at_top: pdf(y, s1) * (np.log(pdf(y, s1) + TINY) - law.logpdf(y)))
        e = entropy(model, x, sigma_min=s0, sigma_max=s1, generator=g)
        alone = stderr_of_rows_and_draws(model, x, s0, s1)
        assert abs(e.value - exact - kl) < 5 * alone
        assert math.sqrt(e.stderr**2 - alone**2) > kl * 0.9
        assert e.value > exact - 4 * alone


def stderr_of_rows_and_draws(model, x, s0, s1) -> float:
    """The standard error of rows and draws alone, from independent replicates of the integral."""
    g = torch.Generator().manual_seed(5)
    pair = Pair(denoiser(model, x, "model"), gaussian_denoiser(model.reference))
    rows = gaussian_log_loss(model.reference, x, s0) + pair.integral(x, pair.pilot(x, s0, s1, g), (1, 16), g)[:, 0]
    return rows.std().item() / math.sqrt(len(rows))


# --- divergence ---


@pytest.mark.parametrize(("d", "shift"), [(1, 0.5), (2, 3.0), (8, 1.0), (32, 0.3)])
def test_kl_of_two_gaussians(d, shift):
    s = 0.1
    a, b = covariance(d, 1), covariance(d, 2)
    m = shift * torch.linspace(0.5, 1, d, dtype=F64)
    p, q = gaussian(torch.zeros(d, dtype=F64), a), gaussian(m, b)
    eye = s**2 * torch.eye(d, dtype=F64)
    laws = [torch.distributions.MultivariateNormal(mean, c + eye) for mean, c in ((0 * m, a), (m, b))]
    exact = torch.distributions.kl_divergence(*laws).item()
    check_z(z_scores(lambda g: kl_divergence(p, q, p.sample(150, generator=g), sigma_min=s, generator=g), exact))


def test_kl_of_two_mixtures_on_the_line_both_ways():
    s, p, q = 0.1, mixture_1d(), mixture_1d(OTHER)
    forward = line_integral(lambda y: pdf(y, s) * np.log((pdf(y, s) + TINY) / (pdf(y, s, OTHER) + TINY)))
    back = line_integral(lambda y: pdf(y, s, OTHER) * np.log((pdf(y, s, OTHER) + TINY) / (pdf(y, s) + TINY)))
    assert abs(forward - back) > 0.3
    check_z(z_scores(lambda g: kl_divergence(p, q, p.sample(200, generator=g), sigma_min=s, generator=g), forward))
    check_z(z_scores(lambda g: kl_divergence(q, p, q.sample(200, generator=g), sigma_min=s, generator=g), back))


def test_kl_counts_what_differs_above_sigma_max_as_gaussians_do():
    """With all levels far below the distance of the means nearly all of KL is the Gaussians' at sigma_max."""
    p = gaussian(torch.zeros(2, dtype=F64), covariance(2, 1))
    q = gaussian(torch.tensor([3.0, 1.0], dtype=F64), covariance(2, 2))
    g = torch.Generator().manual_seed(0)
    x = p.sample(2000, generator=g)
    low, high = (kl_divergence(p, q, x, sigma_min=0.1, sigma_max=s, generator=g) for s in (0.2, 50.0))
    assert abs(low.value - high.value) < 4 * math.hypot(low.stderr, high.stderr)
    assert low.stderr < 0.03 * low.value


def test_kl_of_a_model_with_itself_is_0():
    model = mixture(8, 1)
    e = kl_divergence(model, model, model.sample(50, generator=torch.Generator().manual_seed(0)))
    assert (e.value, e.stderr) == (0.0, 0.0)


# --- mutual information ---


def marginal(model: GaussianMixture, cov: Tensor, some: list[int]) -> GaussianMixture:
    means = model.means[:, some]
    return GaussianMixture(model.log_weights.exp(), means, cov[:, some][:, :, some])


@pytest.mark.parametrize(("d", "columns"), [(2, [1]), (32, [*range(31, 0, -2)]), (5, [4, 0])])
def test_mutual_information_of_a_gaussian(d, columns):
    s, cov = 0.1, covariance(d, 4)
    if d == 2:
        cov = torch.tensor([[1.0, 0.8], [0.8, 1.5]], dtype=F64)
    joint = gaussian(torch.linspace(-1, 1, d, dtype=F64), cov)
    rest = [j for j in range(d) if j not in columns]
    first, second = marginal(joint, cov[None], columns), marginal(joint, cov[None], rest)
    c = (cov + s**2 * torch.eye(d, dtype=F64)).numpy()
    log_det = [np.linalg.slogdet(c[np.ix_(i, i)])[1] for i in (columns, rest, [*range(d)])]
    exact = 0.5 * (log_det[0] + log_det[1] - log_det[2])

    def measure(g):
        x = joint.sample(150, generator=g)
        return mutual_information(joint, first, second, x, columns, sigma_min=s, generator=g)

    check_z(z_scores(measure, exact, n_seeds=10))


def test_mutual_information_of_a_mixture():
    s, columns, rest, g = 0.1, [3, 0], [1, 2], torch.Generator().manual_seed(7)
    covs = torch.stack([covariance(4, k) for k in (1, 2)])
    joint = GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[0.0] * 4, [2.0, -2, 1, 2]], dtype=F64), covs)
    first, second = marginal(joint, covs, columns), marginal(joint, covs, rest)
    y, k = noisy(joint, 200_000, s, g), Gaussian(s)
    ratio = joint.log_prob(y, k) - first.log_prob(y[:, columns], k) - second.log_prob(y[:, rest], k)
    measure = lambda g: mutual_information(  # noqa: E731
        joint, first, second, joint.sample(150, generator=g), columns, sigma_min=s, generator=g
    )
    check_z(z_scores(measure, ratio.mean().item(), ratio.std().item() / math.sqrt(len(ratio)), 10))


def test_independent_groups_are_the_block_diagonal_model():
    columns, rest = [3, 1], [0, 2]
    cov = torch.zeros(4, 4, dtype=F64)
    cov[np.ix_(columns, columns)], cov[np.ix_(rest, rest)] = covariance(2, 1), covariance(2, 2)
    both = gaussian(torch.arange(4, dtype=F64), cov)
    model = IndependentGroups(marginal(both, cov[None], columns), marginal(both, cov[None], rest), columns)
    x, k = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=F64), Gaussian(0.7)
    for found in (model, model.reference):
        torch.testing.assert_close(found.denoise(x, k), both.denoise(x, k))
        torch.testing.assert_close(found.score(x, k), both.score(x, k))


# --- how ---


def test_levels_integrate_over_log_s():
    mass = torch.tensor([0.1, 0.6, 0.3], dtype=F64)
    levels = Levels(math.log(0.2), 0.5, mass)
    v = (torch.arange(100_000, dtype=F64) + 0.5) / 100_000
    s, weight = levels.quantile(v)
    assert s.min() > 0.2
    assert s.max() < 0.2 * math.exp(1.5)
    assert (s.diff() > 0).all()
    exact = integrate.quad(lambda u: math.exp(u) ** 2, math.log(0.2), math.log(0.2) + 1.5)[0]
    assert math.isclose((weight * s**2).mean().item(), exact, rel_tol=1e-8)


@pytest.mark.parametrize("n", [3, 500])
def test_default_levels_start_above_rows_that_are_far_from_the_model(n):
    reference = G2.reference
    x = X2[:3].repeat(n // 3 + 1, 1)[:n] + torch.tensor([300.0, 400.0], dtype=F64)
    high, low = levels_for((reference,), x, None, None)
    assert math.isclose(high, 10 * 500, rel_tol=0.02)
    assert math.isclose(low, 0.002 * reference.data_scale.item())
    assert levels_for((reference,), x, 0.1, 7.0) == (7.0, 0.1)


def test_the_pilot_lowers_the_variance_of_even_levels():
    model, g = mixture_1d(), torch.Generator().manual_seed(0)
    x = model.sample(500, generator=g)
    pair = Pair(denoiser(model, x, "model"), gaussian_denoiser(model.reference))
    levels = pair.pilot(x, 0.003, 14.0, g)
    even = Levels(levels.low, levels.width, torch.full_like(levels.mass, 1 / len(levels.mass)))
    variance = [pair.integral(x, some, (16, 8), g).var(1).mean().item() for some in (levels, even)]
    assert variance[0] < 0.75 * variance[1]


def test_rows_of_any_event_shape_and_dtype():
    flat = mixture(12, 3)
    x = flat.sample(200, generator=torch.Generator().manual_seed(0))
    covs = torch.stack([covariance(12, 3 + k) for k in range(3)])
    image = GaussianMixture(flat.log_weights.exp(), flat.means.reshape(3, 1, 3, 4), covs)
    a = entropy(flat, x, sigma_min=0.1, generator=torch.Generator().manual_seed(1))
    b = entropy(image, x.reshape(-1, 1, 3, 4), sigma_min=0.1, generator=torch.Generator().manual_seed(1))
    assert math.isclose(a.value, b.value, rel_tol=1e-9)
    c = entropy(flat, x.float(), sigma_min=0.1, generator=torch.Generator().manual_seed(1))
    assert abs(c.value - a.value) < 5 * math.hypot(a.stderr, c.stderr)
    r = denoising_log_prob(flat, x[:1].float(), generator=torch.Generator().manual_seed(1))
    assert r.value.dtype == torch.float32
    assert r.value.shape == r.stderr.shape == (1,)


def test_small_noise_in_float32_costs_no_digits():
    """σ_min is a thousand roundings of x: the errors are differences that are taken before they are rounded."""
    model = mixture_1d(dtype=torch.float32)
    exact = line_integral(lambda y: -pdf(y, 1e-3) * np.log(pdf(y, 1e-3) + TINY))
    x = lambda g: model.sample(200, generator=g)  # noqa: E731
    check_z(z_scores(lambda g: entropy(model, x(g), sigma_min=1e-3, generator=g), exact))


def test_the_same_generator_gives_the_same_numbers():
    model = mixture(4, 1)
    x = model.sample(30, generator=torch.Generator().manual_seed(0))
    values = [entropy(model, x, generator=torch.Generator().manual_seed(s)).value for s in (3, 3, 4)]
    assert values[0] == values[1] != values[2]


def test_a_model_without_a_reference_is_measured_against_the_rows_own_gaussian():
    exact, s = mixture_1d(), 0.1
    plain = ScoreFunction(exact.score)
    h = line_integral(lambda y: -pdf(y, s) * np.log(pdf(y, s) + TINY))
    check_z(z_scores(lambda g: entropy(plain, exact.sample(200, generator=g), sigma_min=s, generator=g), h))


# --- what cannot be used ---

G2 = gaussian(torch.zeros(2, dtype=F64), covariance(2, 0))
G1 = mixture_1d()
X2 = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


class Trained(WithReference):
    """A model of Laplace noise."""

    noise = staticmethod(lambda s: Additive(torch.distributions.Laplace(0.0, s)))


class Broken(WithReference):
    """NaN at small noise."""

    def denoise(self, x_t, kernel):
        return torch.where(kernel.sigma.expand(len(x_t))[:, None] < 0.1, math.nan, x_t)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: entropy(G2, X2[:1]), "standard error: got 1 value, want at least 2"),
        (lambda: entropy(G2, X2[:, :1]), "x: got event shape"),
        (lambda: entropy(G2, X2, sigma_min=1.0, sigma_max=0.5), "sigma_max, sigma_min: got 0.5 and 1"),
        (lambda: entropy(G2, X2, sigma_min=-1.0), "sigma_min: got -1"),
        (lambda: entropy(G2, X2, n_draws=0), "n_draws: got 0"),
        (lambda: entropy(G2, X2 * math.nan), "x: row 0 holds NaN"),
        (lambda: entropy(Trained(G2, G2.reference), X2), "model: got a model trained with"),
        (lambda: entropy(Broken(G2, G2.reference), X2), "model: got NaN or infinity from the model at sigma = 0."),
        (lambda: denoising_log_prob(G2, X2, n_replicates=1), "n_replicates: got 1, want at least 2"),
        (lambda: denoising_log_prob(G2, X2[:, :1]), "x: got event shape"),
        (lambda: kl_divergence(G2, G1, X2), "x_p: got event shape"),
        (lambda: kl_divergence(ScoreFunction(G2.score), G2, X2), "model_p: got a model that knows no mean"),
        (lambda: kl_divergence(G2, ScoreFunction(G2.score), X2), "model_q: got a model that knows no mean"),
        (lambda: mutual_information(G2, G1, G1, X2, [2]), r"columns: got \[2\], want 1 different whole numbers from 0"),
        (lambda: mutual_information(G2, G1, G1, X2, [0, 1]), r"columns: got \[0, 1\], want 1 different"),
        (lambda: mutual_information(G2, G2, G1, X2, [0, 0]), r"columns: got \[0, 0\], want 2 different"),
        (lambda: mutual_information(G2, G1, G1, X2[:, :1], [0]), "x: got event shape"),
        (lambda: mutual_information(G1, G1, G1, X2, [0]), "x: got event shape"),
    ],
)
@pytest.mark.usefixtures("as_a_user")
def test_what_cannot_be_used_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
