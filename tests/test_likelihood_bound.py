"""The bound of theorem 3 of Song et al. (2021) against closed forms, quadrature, oracles and its own other forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize

from gradlogp import InputError, processes
from gradlogp.kernels import Additive, Gaussian
from gradlogp.likelihood import bound_sampling
from gradlogp.likelihood.bound import bound
from gradlogp.likelihood.bound_divergence import kl_bound
from gradlogp.likelihood.bound_forms import DenoisingForm, DivergenceForm, HutchinsonForm
from gradlogp.likelihood.bound_gaussian import Normal
from gradlogp.likelihood.bound_method import BoundMethod
from gradlogp.likelihood.bound_sampling import Levels
from gradlogp.likelihood.times import ImportanceTimes
from gradlogp.models import GaussianReference, Preconditioned, ScoreFunction
from gradlogp.oracles import GaussianMixture

F64 = torch.float64
PROCESSES = [
    processes.VP(),
    processes.SubVP(),
    processes.VE(0.01, 50.0),
    processes.EDM(),
    processes.Cosine(),
    processes.RectifiedFlow(),
    processes.OrnsteinUhlenbeck(),
]
IDS = [type(p).__name__ for p in PROCESSES]
SM = math.log(5000.0)  # log(sigma_max/sigma_min) of the VE above


def beta_integral(t: float) -> float:
    return 0.1 * t + 0.5 * 19.9 * t * t


# alpha, sigma, g², written out from the tables of the literature; not the library's log ratios
WRITTEN = {
    "VP": (
        lambda t: math.exp(-0.5 * beta_integral(t)),
        lambda t: math.sqrt(-math.expm1(-beta_integral(t))),
        lambda t: 0.1 + 19.9 * t,
    ),
    "SubVP": (
        lambda t: math.exp(-0.5 * beta_integral(t)),
        lambda t: -math.expm1(-beta_integral(t)),
        lambda t: (0.1 + 19.9 * t) * -math.expm1(-2 * beta_integral(t)),
    ),
    "VE": (lambda t: 1.0, lambda t: 0.01 * 5000.0**t, lambda t: 2 * (0.01 * 5000.0**t) ** 2 * SM),
    "EDM": (lambda t: 1.0, lambda t: t, lambda t: 2 * t),
    "Cosine": (
        lambda t: math.cos(math.pi * t / 2),
        lambda t: math.sin(math.pi * t / 2),
        lambda t: math.pi * math.tan(math.pi * t / 2),
    ),
    "RectifiedFlow": (lambda t: 1 - t, lambda t: t, lambda t: 2 * t / (1 - t)),
    "OrnsteinUhlenbeck": (
        lambda t: math.exp(-t),
        lambda t: math.sqrt(-math.expm1(-2 * t)),
        lambda t: 2.0,
    ),
}


def t64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def over_time(f, low: float, high: float) -> float:
    """∫ f dt, in log t where that is the scale of it."""
    if low == 0:
        return integrate.quad(f, low, high, limit=500)[0]
    return integrate.quad(lambda v: f(math.exp(v)) * math.exp(v), math.log(low), math.log(high), limit=500)[0]


def in_the_plane() -> GaussianReference:
    return GaussianReference.of_moments(t64([0.7, -0.4]), t64([[0.9, 0.5], [0.5, 0.6]]))


def mixture(d: int = 2) -> GaussianMixture:
    """Three components with different full covariances."""
    g = seeded(d)
    means = torch.randn(3, d, generator=g, dtype=F64)
    a = 0.4 * torch.randn(3, d, d, generator=g, dtype=F64) / math.sqrt(d)
    return GaussianMixture(t64([0.5, 0.3, 0.2]), means, a @ a.mT + 0.1 * torch.eye(d, dtype=F64))


def network_score(d: int, seed: int = 1) -> ScoreFunction:
    """A random smooth function that is the score of nothing."""
    g = seeded(seed)
    a, b, c = (torch.randn(n, d, generator=g, dtype=F64) for n in (8, 8, 1))

    def score(x_t: torch.Tensor, kernel: Gaussian) -> torch.Tensor:
        sigma = kernel.sigma.to(x_t)[:, None]
        hidden = torch.tanh(x_t.flatten(1) @ a.to(x_t).T + sigma)
        return ((hidden @ b.to(x_t) - x_t.flatten(1) + c.to(x_t)) / (1 + sigma)).reshape(x_t.shape)

    return ScoreFunction(score)


def gaussian_nll(x: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    return -torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)


def exact_family(x: torch.Tensor, process: processes.Process) -> torch.Tensor:
    """−log q_0(x) + E[log q_T(x_T) − log N(x_T; 0, sigma_T² I) | x] for the Gaussian of :func:`in_the_plane`."""
    alpha, sigma, _ = (f(process.t_max) for f in WRITTEN[type(process).__name__])
    mu, cov = t64([0.7, -0.4]), t64([[0.9, 0.5], [0.5, 0.6]])
    c_end, eye = alpha**2 * cov + sigma**2 * torch.eye(2, dtype=F64), torch.eye(2, dtype=F64)

    def mean_log(mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        spread = 0.5 * sigma**2 * torch.trace(torch.linalg.inv(covariance))
        return -gaussian_nll(alpha * x, mean, covariance) - spread

    return gaussian_nll(x, mu, cov) + mean_log(alpha * mu, c_end) - mean_log(t64([0.0, 0.0]), sigma**2 * eye)


# Times ---------------------------------------------------------------------------------------------------------------


def test_the_published_normalisers_and_inverse_distributions():
    u = torch.linspace(0, 1, 9, dtype=F64)
    for process, z, antiderivative, inverse in (
        (
            processes.VP(),
            23.8645,
            lambda b: torch.log(torch.expm1(b)),
            lambda y: torch.log1p(torch.exp(y)),
        ),
        (
            processes.SubVP(),
            37.6789,
            lambda b: 2 * torch.log(torch.expm1(b)) - b,
            lambda y: 2 * torch.asinh(torch.exp(y / 2) / 2),
        ),
    ):
        times = ImportanceTimes(process, 1e-5)
        assert times.normaliser == pytest.approx(z, abs=5e-5)
        b = inverse(antiderivative(t64(beta_integral(1e-5))) + u * times.normaliser)
        t = (-0.1 + (0.01 + 2 * 19.9 * b).sqrt()) / 19.9
        torch.testing.assert_close(times.quantile(u), t, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_importance_times_against_integrated_and_inverted_weights(process):
    _, sigma, g2 = WRITTEN[type(process).__name__]
    times = ImportanceTimes(process)

    def weight(t: float) -> float:
        return g2(t) / sigma(t) ** 2

    z = over_time(weight, times.t_min, times.t_max)
    assert times.normaliser == pytest.approx(z, rel=1e-6)
    for u in (0.03, 0.4, 0.9):
        t = optimize.brentq(
            lambda t, u=u: over_time(weight, times.t_min, t) / z - u, times.t_min + 1e-12, times.t_max, xtol=1e-13
        )
        assert times.quantile(u).item() == pytest.approx(t, rel=1e-5)
        assert times.density(t).item() == pytest.approx(weight(t) / z, rel=1e-6)
    assert times.quantile(0.0).item() == pytest.approx(times.t_min, abs=1e-12)
    assert times.quantile(1.0).item() == pytest.approx(times.t_max, rel=1e-12)
    assert times.quantile(1.0).item() <= times.t_max


def test_draws_of_times_are_stratified_and_uniform_within():
    times = ImportanceTimes(processes.VP(), 1e-4, 0.7)

    def share(t: torch.Tensor) -> torch.Tensor:
        b = 0.1 * t + 0.5 * 19.9 * t * t
        mass = torch.log(torch.expm1(b))
        low, high = (math.log(math.expm1(beta_integral(v))) for v in (1e-4, 0.7))
        return (mass - low) / (high - low)

    draws = torch.stack([times.draw(8, generator=seeded(i)) for i in range(400)])
    within = share(draws) * 8 - torch.arange(8)
    assert bool(((within >= -1e-6) & (within <= 1 + 1e-6)).all())
    assert within.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / 3200))
    assert within.var().item() == pytest.approx(1 / 12, rel=0.1)
    assert times.density(t64([5e-5, 0.8])).tolist() == [0.0, 0.0]


# The control in closed form ------------------------------------------------------------------------------------------


def test_closed_forms_of_a_gaussian_against_dense_matrices_and_quadrature(g):
    mean, low_rank = torch.randn(4, generator=g, dtype=F64), torch.randn(4, 2, generator=g, dtype=F64)
    cov = low_rank @ low_rank.T
    reference = GaussianReference.of_moments(mean, cov)
    assert len(reference.eigenvalues) == 2
    x = torch.randn(3, 4, generator=g, dtype=F64)
    normal, eye = Normal.of(reference, x), torch.eye(4, dtype=F64)

    def h(s: float) -> torch.Tensor:
        """E‖n‖² + 2 sigma² div s at alpha = 1, y = x + s z, s = −P(y − μ): moments of a quadratic form."""
        p = torch.linalg.inv(cov + s * s * eye)
        r = x - mean
        return s * s * ((r @ p).square().sum(1) + s * s * torch.trace(p @ p) - 2 * torch.trace(p))

    for s in (0.02, 0.8, 30.0):
        torch.testing.assert_close(normal.integrand(x, s), h(s), rtol=1e-9, atol=1e-12)
        covariance = cov + s * s * eye
        cross = gaussian_nll(x, mean, covariance) + 0.5 * s * s * torch.trace(torch.linalg.inv(covariance))
        torch.testing.assert_close(normal.cross_entropy(x, s), cross)
        torch.testing.assert_close(normal.log_prob(x, s), -gaussian_nll(x, mean, covariance))
    whole = [integrate.quad(lambda v, i=i: h(math.exp(v))[i].item(), -4, 3, limit=200)[0] for i in range(3)]
    torch.testing.assert_close(normal.integral(x, -4.0, 3.0), t64(whole), rtol=1e-8, atol=1e-8)


def test_scores_and_divergences_of_the_control_against_autograd(g):
    reference = GaussianReference.of_moments(t64([1.0, -1.0, 0.5]), torch.diag(t64([2.0, 0.3, 0.0])))
    x = torch.randn(5, 3, generator=g, dtype=F64)
    kernel = Gaussian(t64([0.1, 0.5, 1.0, 2.0, 3.0]), t64([1.0, 0.9, 0.5, 0.3, 0.0]))
    normal, sigma = Normal.of(reference, x), kernel.sigma
    v = torch.randn(5, 3, generator=g, dtype=F64)

    jacobian = torch.autograd.functional.jacobian(lambda x: reference.score(x, kernel).sum(0), x).permute(1, 0, 2)
    torch.testing.assert_close(normal.scaled_score(x, kernel), sigma[:, None] * reference.score(x, kernel))
    trace = sigma**2 * jacobian.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(normal.scaled_divergence(kernel), trace)
    curvature = sigma**2 * torch.einsum("bi,bij,bj->b", v, jacobian, v)
    torch.testing.assert_close(normal.scaled_curvature(v, kernel), curvature)


def test_levels_are_a_density_with_half_a_unit_at_the_first():
    times = ImportanceTimes(processes.VP())
    x = torch.zeros(1, 2, dtype=F64)
    for control in (None, Normal.of(in_the_plane(), x)):
        levels = Levels.of(times, control, BoundMethod())
        u = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
        level, weight = levels.at(u)
        for f in (torch.ones_like, torch.exp, torch.cos):
            inside = {torch.ones_like: times.width, torch.exp: math.exp(times.last) - math.exp(times.first)}.get(
                f, math.sin(times.last) - math.sin(times.first)
            )
            want = inside + 0.5 * f(t64(times.first)).item()
            assert (f(level) * weight).mean().item() == pytest.approx(want, rel=2e-4, abs=1e-3)
        assert level.min().item() == times.first


# Exact values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_a_gaussian_model_has_its_closed_form_sampled_or_not(process):
    model = in_the_plane()
    x = t64([[0.7, -0.4], [2.0, 1.0], [-1.5, 0.5]]).repeat_interleave(8, 0)
    exact = exact_family(x, process)
    known = bound(model, x, process, generator=seeded(1))
    assert bool(((known.value - exact).abs() <= 4 * known.stderr + 1e-9).all())
    torch.testing.assert_close(known.value, exact, rtol=0, atol=2e-3 if process.t_min == 0 else 2e-5)
    assert known.stderr.max().item() < 5e-3  # of the noise below t_min; nothing is sampled
    sampled = bound(model, x, process, method=BoundMethod(n_draws=512, control=False), generator=seeded(2))
    z = (sampled.value - exact) / sampled.stderr
    assert z.abs().max().item() < 5.5  # t with 15 degrees of freedom, 24 rows
    assert abs(z.mean().item()) < 4 * math.sqrt(15 / 13 / 24)
    assert sampled.stderr.min().item() > 0.2


@pytest.mark.parametrize("process", PROCESSES[:4], ids=IDS[:4])
def test_a_wrong_linear_score_against_the_exact_density_of_its_sde(process):
    """Data N(0, v), the model believes N(0, u): the reverse SDE is Gaussian, of variance u − u²a²/V + (ua/V)² π."""
    alpha, sigma, g2 = WRITTEN[type(process).__name__]
    a, s2 = alpha(process.t_max), sigma(process.t_max) ** 2
    v, u = 0.6, 1.3
    big = a * a * u + s2
    sde = u - u * u * a * a / big + (u * a / big) ** 2 * s2
    model = GaussianReference.of_moments(t64([0.0]), t64([[u]]))
    grid = torch.linspace(-4, 4, 17, dtype=F64)[:, None]
    result = bound(model, grid, process, generator=seeded(0))
    nll = 0.5 * (grid[:, 0] ** 2 / sde + math.log(2 * math.pi * sde))
    slack = 1e-3 if process.t_min == 0 else 1e-6  # what the Gaussian decoder at t_min takes for q_0
    assert bool((result.value - nll > -slack).all())
    assert (result.value - nll).max().item() < 0.05

    def error(t: float) -> float:
        """½ g² E|∇log p_t − s_θ|² for x_t ~ N(0, a²v + s²)."""
        truth, believed = (alpha(t) ** 2 * w + sigma(t) ** 2 for w in (v, u))
        return 0.5 * g2(t) * truth * (1 / truth - 1 / believed) ** 2

    at_end = a * a * v + s2
    kl = 0.5 * (at_end / s2 - 1 - math.log(at_end / s2))
    entropy = 0.5 * math.log(2 * math.pi * math.e * v)
    want = entropy + over_time(error, process.t_min, process.t_max) + kl
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    average = bound(model, math.sqrt(v) * t64(nodes)[:, None], process, generator=seeded(0)).value @ t64(weights)
    assert average.item() / math.sqrt(2 * math.pi) == pytest.approx(want, abs=slack + 1e-5)


def test_an_arbitrary_score_against_quadrature_over_noise_and_time():
    """One dimension, a score that is not linear: both integrals of L^SM by quadrature, in t, with g² and div f."""
    alpha, sigma, g2 = WRITTEN["SubVP"]
    process, t_min, t_max = processes.SubVP(), 0.01, 0.8
    score = lambda x_t, s: np.sin(2 * x_t) / (1 + s) - x_t  # noqa: E731
    slope = lambda x_t, s: 2 * np.cos(2 * x_t) / (1 + s) - 1  # noqa: E731
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    x = 0.9

    def integrand(t: float) -> float:
        s = sigma(t)
        x_t = alpha(t) * x + s * nodes
        middle = weights @ (score(x_t, s) ** 2 + 2 * slope(x_t, s))
        return 0.5 * g2(t) * middle + 0.5 * (0.1 + 19.9 * t)  # − div f, f = −beta/2

    a, s = alpha(t_max), sigma(t_max)
    end = 0.5 * (math.log(2 * math.pi * s * s) + (a * a * x * x + s * s) / (s * s))
    a0, s0 = alpha(t_min), sigma(t_min)
    x_eps = a0 * x + s0 * nodes
    decoded = (x_eps + s0**2 * score(x_eps, s0)) / a0
    width = (s0 / a0) ** 2
    decoder = weights @ (0.5 * (x - decoded) ** 2 / width) + 0.5 * math.log(2 * math.pi * width)
    noise_entropy = 0.5 * math.log(2 * math.pi * math.e * s0**2)
    without = end + over_time(integrand, t_min, t_max)

    def f(x_t: torch.Tensor, kernel: Gaussian) -> torch.Tensor:
        return torch.sin(2 * x_t) / (1 + kernel.sigma[:, None]) - x_t

    rows = torch.full((64, 1), x, dtype=F64)
    prior = GaussianReference.of_moments(t64([0.3]), t64([[1.5]]))
    spread = a * a * 1.5 + s * s
    other = 0.5 * (math.log(2 * math.pi * spread) + ((a * x - a * 0.3) ** 2 + s * s) / spread)
    for truncation, given, want in (
        (True, None, without + decoder - noise_entropy),
        (False, None, without),
        (True, prior, without - end + other + decoder - noise_entropy),
        (False, prior, without - end + other),
    ):
        for form in (DenoisingForm(), DivergenceForm()):
            method = BoundMethod(n_draws=1024, truncation=truncation, form=form)
            result = bound(
                ScoreFunction(f),
                rows,
                process,
                t_min=t_min,
                t_max=t_max,
                prior=given,
                method=method,
                generator=seeded(3),
            )
            error = result.value.std().item() / 8
            assert result.value.mean().item() == pytest.approx(want, abs=4 * error)
            assert error < 0.08
            assert result.truncated is not truncation


# Mixtures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 8])
@pytest.mark.parametrize("process", [PROCESSES[0], PROCESSES[3], PROCESSES[5]], ids=["VP", "EDM", "RectifiedFlow"])
def test_an_exact_score_of_a_mixture_has_the_known_gap(process, d):
    oracle = mixture(d)
    x = oracle.sample(48, generator=seeded(5))
    nll = -oracle.log_prob(x, Gaussian(1e-6))
    matched = bound(oracle, x, process, prior=oracle.reference, generator=seeded(6))
    z = (matched.value - nll) / matched.stderr
    assert z.abs().max().item() < 5.5
    assert abs(z.mean().item()) < 4 * math.sqrt(15 / 13 / 48)

    plain = bound(oracle, x, process, generator=seeded(7))
    assert bool((plain.value - nll > -4.5 * plain.stderr).all())
    kernel = process(process.t_max)
    x_t = kernel.sample(x.repeat(2000, 1), generator=seeded(8))
    log_pi = torch.distributions.Normal(0.0, kernel.sigma).log_prob(x_t).sum(1)
    gap = (oracle.log_prob(x_t, kernel) - log_pi).reshape(2000, 48).mean(0)
    z = (plain.value - nll - gap) / plain.stderr
    assert abs(z.mean().item()) < 4 * math.sqrt(15 / 13 / 48)
    torch.testing.assert_close((plain.value - matched.value).mean(), gap.mean(), rtol=0, atol=0.2)


@pytest.mark.parametrize("with_reference", [False, True])
def test_all_forms_have_the_same_mean_for_any_score(with_reference):
    x = t64([[0.3, -1.0, 0.7]]).expand(48, 3)
    model = network_score(3)
    if with_reference:
        reference = GaussianReference.of_moments(t64([0.1, 0.0, 0.5]), torch.diag(t64([1.0, 0.5, 2.0])))
        body = network_score(3)

        class Body(torch.nn.Module):
            def forward(self, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
                return 0.3 * body.function(z, Gaussian(c.exp()))

        model = Preconditioned(Body(), reference)
    forms = [DenoisingForm(), DivergenceForm(), HutchinsonForm(), HutchinsonForm(3)]
    values = [
        bound(model, x, processes.VP(), method=BoundMethod(n_draws=128, form=form), generator=seeded(i)).value
        for i, form in enumerate(forms)
    ]
    for value in values[1:]:
        error = math.hypot(value.std().item(), values[0].std().item()) / math.sqrt(48)
        assert abs((value.mean() - values[0].mean()).item()) < 4 * error
        assert error < 0.5


def test_every_form_is_exact_for_a_gaussian_model():
    x = t64([[0.3, -1.0], [2.0, 2.0]])
    want = exact_family(x, processes.VP())
    for form in (DenoisingForm(), DivergenceForm(), HutchinsonForm()):
        result = bound(in_the_plane(), x, processes.VP(), method=BoundMethod(n_draws=16, form=form))
        torch.testing.assert_close(result.value, want, rtol=0, atol=1e-6)


# Standard errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [BoundMethod(n_draws=128), BoundMethod(n_draws=128, control=False), BoundMethod(n_draws=64, atol=0.15)],
    ids=["control", "plain", "atol"],
)
def test_stated_errors_are_the_spread_over_independent_rows(method):
    oracle = mixture()
    x = t64([[0.2, 0.4]]).expand(400, 2)
    result = bound(oracle, x, processes.VP(), prior=oracle.reference, method=method, generator=seeded(0))
    spread, rms = result.value.std().item(), result.stderr.square().mean().sqrt().item()
    assert spread / rms == pytest.approx(1, abs=0.16)  # 4 standard errors of it
    nll = -oracle.log_prob(x[:1], Gaussian(1e-6)).item()
    assert result.value.mean().item() == pytest.approx(nll, abs=4 * spread / 20)
    assert result.dof == 15


def test_seeds_are_independent_and_repeatable():
    oracle, x = mixture(), t64([[0.2, 0.4]])

    def run(seed: int):
        return bound(oracle, x, processes.VP(), method=BoundMethod(n_draws=64), generator=seeded(seed))

    values = [run(seed) for seed in range(40)]
    assert torch.equal(run(3).value, values[3].value)
    spread = torch.cat([v.value for v in values]).std().item()
    rms = torch.cat([v.stderr for v in values]).square().mean().sqrt().item()
    assert spread / rms == pytest.approx(1, abs=0.46)


def test_more_draws_for_the_rows_that_need_them():
    oracle = mixture()
    x = torch.cat([oracle.sample(12, generator=seeded(1)), t64([[30.0, 30.0]])])  # the last is hopeless
    coarse = bound(oracle, x, processes.VP(), method=BoundMethod(n_draws=64), generator=seeded(2))
    method = BoundMethod(n_draws=64, atol=0.2, max_draws=1000)
    fine = bound(oracle, x, processes.VP(), method=method, generator=seeded(2))
    assert coarse.n_draws.tolist() == [64] * 13
    more = coarse.stderr > 0.2
    assert 1 < int(more.sum()) < 13
    assert bool((fine.n_draws[more] > 128).all())
    assert fine.n_draws[~more].unique().tolist() == [128]
    assert fine.n_draws[-1].item() == 960
    assert bool((fine.n_draws[:-1] < 960).all())
    assert bool((fine.stderr[:-1] < 0.35).all())
    assert fine.stderr[:-1].median().item() < 0.22


def test_rounding_of_float32_is_within_the_stated_error():
    reference = GaussianReference.of_moments(t64([0.7, -0.4]), t64([[0.9, 0.5], [0.5, 0.6]])).float()
    x = in_the_plane().sample_noisy(200, Gaussian(1e-3), generator=seeded(3)).float()
    for process in (processes.VP(), processes.EDM()):
        result = bound(reference, x, process, method=BoundMethod(n_draws=16), generator=seeded(4))
        assert result.value.dtype == result.stderr.dtype == torch.float32
        error = (result.value.double() - exact_family(x.double(), process)).abs()
        assert bool((error < 5 * result.stderr + 1e-7 * process.t_min / 2e-3).all())
        assert result.stderr.max().item() < 1e-4


def test_float32_agrees_with_float64():
    oracle = mixture()
    x = oracle.sample(32, generator=seeded(1))
    double = bound(oracle, x, processes.VP(), generator=seeded(2))
    single = bound(oracle, x.float(), processes.VP(), generator=seeded(2))
    torch.testing.assert_close(single.value.double(), double.value, rtol=1e-4, atol=1e-3)
    assert single.stderr.dtype == torch.float32


# Rows, shapes, truncation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [BoundMethod(n_draws=32), BoundMethod(32, form=HutchinsonForm(), atol=0.3, max_draws=128)]
)
def test_a_row_does_not_depend_on_other_rows_nor_on_chunks(method, monkeypatch):
    oracle = mixture()
    x = oracle.sample(40, generator=seeded(1))
    whole = bound(oracle, x, processes.VP(), method=method, generator=seeded(2))
    first = bound(oracle, x[:7], processes.VP(), method=method, generator=seeded(2))
    torch.testing.assert_close(first.value, whole.value[:7], rtol=1e-10, atol=1e-10)
    changed = torch.cat([x[:20] * 5, x[20:]])
    others = bound(oracle, changed, processes.VP(), method=method, generator=seeded(2))
    torch.testing.assert_close(others.value[20:], whole.value[20:], rtol=1e-10, atol=1e-10)
    monkeypatch.setattr(bound_sampling, "_WORKSPACE", 60)
    chunked = bound(oracle, x, processes.VP(), method=method, generator=seeded(2))
    torch.testing.assert_close(chunked.value, whole.value, rtol=1e-10, atol=1e-10)
    assert chunked.n_draws.tolist() == whole.n_draws.tolist()
    same_rows = bound(oracle, x[:1].expand(40, 2), processes.VP(), method=method, generator=seeded(2)).value
    assert len(same_rows.unique()) == 40


def test_images_are_the_same_as_their_flattened_rows():
    g = seeded(0)
    means = torch.randn(3, 1, 8, 8, generator=g, dtype=F64)
    image, flat = (GaussianMixture(torch.ones(3), m, 0.3) for m in (means, means.flatten(1)))
    x = image.sample(4, generator=g)
    method = BoundMethod(n_draws=64)
    a = bound(image, x, processes.VP(), method=method, generator=seeded(1))
    b = bound(flat, x.flatten(1), processes.VP(), method=method, generator=seeded(1))
    torch.testing.assert_close(a.value, b.value)
    assert a.value.shape == a.stderr.shape == (4,)
    nll = -image.log_prob(x, Gaussian(1e-6))
    assert bool((a.value - nll > -5.5 * a.stderr).all())


def test_with_its_truncation_terms_the_value_hardly_depends_on_t_min():
    oracle = GaussianMixture(torch.ones(3), t64([[0.0, 1.0], [1.0, 0.0], [-1.0, -0.5]]), 0.02)
    x = oracle.sample(64, generator=seeded(1))
    steps = (1e-5, 1e-4, 1e-3, 1e-2)

    def values(truncation: bool) -> tuple[list[float], float]:
        method, prior = BoundMethod(1024, truncation=truncation), oracle.reference
        results = [
            bound(oracle, x, processes.VP(), t_min=t, prior=prior, method=method, generator=seeded(3)) for t in steps
        ]
        return [r.mean.value for r in results], results[0].stderr.square().mean().sqrt().item() / 8

    with_terms, error = values(True)
    assert error < 0.05
    assert max(with_terms) - min(with_terms) < 0.03
    without, error = values(False)
    kernels = [processes.VP()(t) for t in steps]
    smoothed = []
    for k in kernels:
        x_t = k.sample(x.repeat(400, 1), generator=seeded(4))
        smoothed.append(-oracle.log_prob(x_t, k).mean().item())
    assert smoothed[-1] - smoothed[0] > 0.06
    for i in range(4):
        assert without[i] == pytest.approx(smoothed[i], abs=4 * error)
        assert without[i] - without[0] == pytest.approx(smoothed[i] - smoothed[0], abs=0.03)


# Divergences ---------------------------------------------------------------------------------------------------------


def one_dimensional() -> GaussianMixture:
    return GaussianMixture(t64([0.4, 0.6]), t64([[-1.0], [0.8]]), t64([[0.2], [0.3]]))


def test_theorem_2_the_bound_is_the_divergence_for_the_score_of_a_diffusion_that_ends_in_the_prior():
    p, q = one_dimensional(), GaussianReference.of_moments(t64([0.3]), t64([[1.5]]))
    process = processes.VP()
    result = kl_bound(q, p, process, 20_000, t_min=1e-3, prior=q, generator=seeded(0))
    kernel = process(1e-3)
    a, s2 = kernel.alpha.item(), kernel.sigma.item() ** 2
    grid = torch.linspace(-8, 8, 8001, dtype=F64)[:, None]
    log_p = p.log_prob(grid, kernel)
    log_q = torch.distributions.Normal(0.3 * a, math.sqrt(1.5 * a * a + s2)).log_prob(grid[:, 0]).double()
    kl = torch.trapezoid(log_p.exp() * (log_p - log_q), grid[:, 0]).item()
    assert abs(result.value.value - kl) < 4 * result.value.stderr
    assert result.value.stderr < 0.03 * kl
    assert result.value.value == pytest.approx(result.score.value + result.prior.value)


def test_theorem_1_bounds_the_divergence_from_the_exact_sde():
    process = processes.OrnsteinUhlenbeck()
    v, u, t_max = 0.6, 1.3, 0.3  # noise is far from covering the data at the end, so that π matters
    alpha, sigma, g2 = WRITTEN["OrnsteinUhlenbeck"]
    a, s2 = alpha(t_max), sigma(t_max) ** 2
    big = a * a * u + s2
    sde = u - u * u * a * a / big + (u * a / big) ** 2 * s2
    kl = 0.5 * (v / sde - 1 - math.log(v / sde))
    p = GaussianMixture(t64([1.0]), t64([[0.0]]), t64([[v]]))
    model = GaussianReference.of_moments(t64([0.0]), t64([[u]]))
    result = kl_bound(model, p, process, 20_000, t_min=1e-5, t_max=t_max, generator=seeded(0))

    def error(t: float) -> float:
        truth, believed = (alpha(t) ** 2 * w + sigma(t) ** 2 for w in (v, u))
        return 0.5 * g2(t) * truth * (1 / truth - 1 / believed) ** 2

    at_end = a * a * v + s2
    assert abs(result.score.value - over_time(error, 1e-5, t_max)) < 4 * result.score.stderr
    want = 0.5 * (at_end / s2 - 1 - math.log(at_end / s2))
    assert abs(result.prior.value - want) < 4 * result.prior.stderr
    assert result.value.value - 4 * result.value.stderr > kl

    perfect = kl_bound(p, p, process, 64, t_max=t_max, generator=seeded(0))
    assert perfect.score.value == pytest.approx(0, abs=1e-20)


# Bad input -----------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_in_the_users_words(as_a_user):
    model, x, vp = in_the_plane(), torch.zeros(2, 2, dtype=F64), processes.VP()
    nan = ScoreFunction(lambda x_t, kernel: x_t * torch.nan)
    laplace = network_score(2)
    laplace.noise = lambda s: Additive(torch.distributions.Laplace(0.0, s))
    for call, message in (
        (lambda: bound("model", x, vp), "model: got str"),
        (lambda: bound(laplace, x, vp), "want Gaussian noise"),
        (lambda: kl_bound(laplace, mixture(), vp, 10), "want Gaussian noise"),
        (lambda: bound(model, x, "VP"), "process: got 'VP'"),
        (lambda: bound(model, x, processes.VP), "process: got"),
        (lambda: bound(model, x * torch.nan, vp), "x: row 0 holds NaN"),
        (lambda: bound(model, torch.zeros(2, 3), vp), "x: got event shape"),
        (lambda: bound(model, x, vp, t_min=0.5, t_max=0.5), "t_min, t_max: got 0.5 and 0.5"),
        (lambda: bound(model, x, vp, t_min=0.0), "t_min: got 0, want 0 < t <= 1"),
        (lambda: bound(model, x, processes.RectifiedFlow(), t_max=1.0), "t_max: got 1, want 0 < t < 1"),
        (lambda: bound(model, x, vp, t_max=torch.tensor([0.5, 0.6])), "t_max: got 2 numbers"),
        (lambda: bound(model, x, vp, prior=torch.zeros(2)), "prior: got Tensor"),
        (lambda: bound(network_score(3), torch.zeros(2, 3, dtype=F64), vp, prior=model), "x: got event shape"),
        (lambda: bound(model, x, vp, method=512), "method: got 512"),
        (lambda: bound(nan, x, vp), "model: got a score that is not finite"),
        (lambda: BoundMethod(n_draws=0), "n_draws: got 0"),
        (lambda: BoundMethod(n_draws=1.5), "n_draws: got 1.5"),
        (lambda: BoundMethod(form=DenoisingForm), "form: got"),
        (lambda: BoundMethod(form="denoising"), "form: got 'denoising'"),
        (lambda: BoundMethod(atol=0.0), "atol: got 0.0"),
        (lambda: BoundMethod(max_draws=100), "max_draws: got 100"),
        (lambda: HutchinsonForm(0), "n_projections: got 0"),
        (lambda: ImportanceTimes(vp).quantile(1.5), "u: got 1.5"),
        (lambda: ImportanceTimes(vp).draw(0), "n: got 0"),
        (lambda: ImportanceTimes(vp).density(2.0), "t: got 2"),
        (lambda: kl_bound(model, mixture(), vp, 1), "n: got 1"),
        (lambda: kl_bound(model, model, vp, 10), "oracle: got GaussianReference"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
