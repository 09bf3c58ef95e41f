"""The Stein test: its kernel by autograd, its statistic by loops and closed forms, its p-values by what they do."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from cases import F64, t64
from scipy.integrate import quad
from scipy.spatial.distance import pdist
from scipy.stats import kstest, logistic, norm

from gradlogp import InputError
from gradlogp.diagnostics import (
    Estimate,
    GaussianRBF,
    InverseMultiquadric,
    SteinBase,
    SteinTest,
    stein,
    stein_kernel,
    stein_test,
)
from gradlogp.kernels import Additive, Gaussian
from gradlogp.models import GaussianReference, ScoreFunction
from gradlogp.oracles import GaussianMixture, Quadrature

FIELD = ScoreFunction(lambda x_t, k: torch.sin(3 * x_t) - x_t)
NOISE = Gaussian(0.6)
BASES = {
    "imq": (InverseMultiquadric(1.3), lambda d: (1 + (d @ d) / 1.69) ** -0.5),
    "imq -0.8": (InverseMultiquadric(0.7, -0.8), lambda d: (1 + (d @ d) / 0.49) ** -0.8),
    "rbf": (GaussianRBF(1.4), lambda d: (-(d @ d) / (2 * 1.96)).exp()),
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


def normal(d, mean=0.0):
    """N(mean, I) once it has the noise."""
    return GaussianMixture(torch.ones(1), torch.full((1, d), mean, dtype=F64), 1 - 0.36)


def by_autograd(k, x, y, s_x, s_y):
    """u(x, y) from derivatives of k, for one pair."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = k(x - y)
    d_x, d_y = torch.autograd.grad(value, (x, y), create_graph=True)
    trace = sum(torch.autograd.grad(d_x[i], y, retain_graph=True)[0][i] for i in range(len(x)))
    return ((s_x @ s_y) * value + s_x @ d_y + s_y @ d_x + trace).item()


# --- the kernel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("d", [1, 3])
def test_the_stein_kernel_is_made_of_derivatives_of_the_base_kernel(name, d):
    base, k = BASES[name]
    x, y, s_x, s_y = draws(4, d), draws(5, d, seed=1), draws(4, d, seed=2), draws(5, d, seed=3)
    u = stein_kernel(base, x, y, s_x, s_y)
    assert u.shape == (4, 5)
    for i, j in itertools.product(range(4), range(5)):
        assert u[i, j].item() == pytest.approx(by_autograd(k, x[i], y[j], s_x[i], s_y[j]), rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("name", BASES)
def test_its_expectation_is_zero_by_quadrature(name):
    """The logistic density, whose score is −tanh(x/2), against rows in the middle and in the tails."""
    x, y = torch.linspace(-45, 45, 20_001, dtype=F64)[:, None], t64([[-4.0], [0.3], [2.0]])
    p = t64(logistic.pdf(x.numpy()))
    u = stein_kernel(BASES[name][0], x, y, -torch.tanh(x / 2), -torch.tanh(y / 2))
    assert torch.trapezoid(p * u, x, dim=0).abs().max().item() < 1e-10
    assert torch.trapezoid(p * u.abs(), x, dim=0).min().item() > 0.05


@pytest.mark.parametrize("name", BASES)
def test_its_expectation_is_zero_by_draws(name, g):
    oracle = GaussianMixture(t64([0.3, 0.7]), t64([[-2.0, 0.0], [1.0, 1.0]]), t64([[[1.0, 0.6], [0.6, 0.5]]] * 2))
    x = NOISE.sample(oracle.sample(20_000, generator=g), generator=g)
    y = t64([[0.0, 0.0], [-3.0, 1.0], [2.0, 2.0], [5.0, -4.0]])
    u = stein_kernel(BASES[name][0], x, y, oracle.score(x, NOISE), oracle.score(y, NOISE))
    for column in u.T:
        assert abs(Estimate.mean_of(column).z) < 4.5
    wrong = stein_kernel(BASES[name][0], x, y, oracle.score(x, NOISE) + 0.3, oracle.score(y, NOISE) + 0.3)
    assert max(abs(Estimate.mean_of(column).z) for column in wrong.T) > 10


def test_it_is_positive_semi_definite():
    x, s = draws(40, 2), draws(40, 2, seed=1)
    for base, _ in BASES.values():
        u = stein_kernel(base, x, x, s, s)
        assert torch.linalg.eigvalsh(u)[0].item() > -1e-10 * u.diagonal().max().item()


def test_rows_far_from_zero_keep_their_digits():
    """By a shift that rounds nothing; and beside one row that is far from all others."""
    x, s = (draws(50, 3) * 1024).round() / 1024, draws(50, 3, seed=1)
    base = InverseMultiquadric(1.0)
    near, far = (stein_kernel(base, v, v, s, s) for v in (x, x + 2.0**30))
    assert torch.allclose(near, far, rtol=1e-12, atol=1e-12)
    outlier = torch.cat([x, torch.full((1, 3), 1e9, dtype=F64)])
    beside = stein_kernel(base, outlier, outlier, *[torch.cat([s, s[:1]])] * 2)
    assert torch.allclose(beside[:-1, :-1], near, rtol=1e-12, atol=1e-12)


# --- the statistic ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_the_statistic_is_the_mean_over_pairs(name):
    base, k = BASES[name]
    x = draws(12, 2)
    s = FIELD.score(x, NOISE)
    pairs = [by_autograd(k, x[i], x[j], s[i], s[j]) for i, j in itertools.permutations(range(12), 2)]
    found = stein_test(FIELD, x, NOISE, base=base, noise=False, generator=seeded(1))
    assert found.statistic.value == pytest.approx(np.mean(pairs), rel=1e-10)
    assert (found.n_rows, found.base) == (12, base)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("d", [1, 3])
def test_the_discrepancy_of_two_gaussians(name, d, g):
    """Scores of N(0, I) and N(m1, I) differ by the constant m, so KSD² = ‖m‖² E k(z), z ~ N(0, 2I); by quadrature."""
    base, k = BASES[name]
    m, grid = 0.7, np.random.default_rng(0).normal(size=(200_000, d)) * math.sqrt(2)
    if d == 1:
        mean_k = quad(lambda z: k(t64([z])).item() * norm.pdf(z, scale=math.sqrt(2)), -20, 20)[0]
    elif name == "rbf":
        mean_k = (1.96 / 3.96) ** 1.5
    else:
        scale, beta = base.scale, base.exponent
        mean_k = ((1 + (grid**2).sum(1) / scale**2) ** beta).mean()  # to 0.2 %
    found = stein_test(normal(d), normal(d, m).sample(3000, generator=g), NOISE, base=base, generator=g).statistic
    assert abs(found.value - d * m**2 * mean_k) < 4.5 * found.stderr
    assert found.stderr < 0.1 * found.value


@pytest.mark.parametrize(("shift", "n"), [(0.0, 60), (0.1, 150), (0.3, 10)])
def test_its_standard_error_is_the_spread_over_seeds(shift, n):
    """At the null hypothesis, where 2√(Var of the means over rows/n) is 1.4 times the spread, and away from it."""
    found = []
    for seed in range(250):
        g = seeded(seed)
        x = normal(16, shift).sample(n, generator=g)
        found.append(stein_test(normal(16), x, NOISE, base=GaussianRBF(4.0), n_bootstrap=1, generator=g).statistic)
    spread = np.std([e.value for e in found], ddof=1)
    stated = math.sqrt(np.mean([e.stderr**2 for e in found]))
    assert 0.82 < stated / spread < 1.25  # the spread of 250 values is known to 5 %
    mean = Estimate.mean_of(t64([e.value for e in found]))
    want = 16 * shift**2 * (16 / 18) ** 8
    assert abs(mean.value - want) < 4.5 * mean.stderr


def test_the_block_size_changes_nothing(monkeypatch):
    x, found = draws(70, 3), []
    for pairs in (1, 70 * 7, 70 * 16, 10**6):
        monkeypatch.setattr(stein, "_PAIRS", pairs)
        found.append(stein_test(FIELD, x, NOISE, generator=seeded(0)))
    for other in found[1:]:
        assert other.p_value == found[0].p_value
        assert other.statistic.value == pytest.approx(found[0].statistic.value, rel=1e-11)
        assert other.statistic.stderr == pytest.approx(found[0].statistic.stderr, rel=1e-9)


def test_events_of_any_shape_and_float32():
    x = draws(60, 6)
    flat, again = (stein_test(FIELD, x, NOISE, generator=seeded(0)) for _ in range(2))
    image = stein_test(FIELD, x.reshape(60, 1, 2, 3), NOISE, generator=seeded(0))
    assert flat == again == image
    single = stein_test(FIELD, x.float(), NOISE, noise=False, generator=seeded(0))
    double = stein_test(FIELD, x.float().double(), NOISE, noise=False, generator=seeded(0))
    assert single.statistic.value == pytest.approx(double.statistic.value, rel=1e-4)
    assert single.p_value == double.p_value
    u = stein_kernel(InverseMultiquadric(1.0), *[x.reshape(60, 1, 2, 3)] * 4)
    assert torch.equal(u, stein_kernel(InverseMultiquadric(1.0), x, x, x, x))


def test_the_default_base_has_half_the_median_distance():
    x = draws(50, 3)  # 1225 pairs, an odd number
    base = stein_test(FIELD, x, NOISE, noise=False).base
    assert base == InverseMultiquadric(base.scale, -0.5)
    assert base.scale == pytest.approx(0.5 * np.median(pdist(x.numpy())), rel=1e-12)


def test_a_base_of_ones_own():
    class Four(SteinBase):
        def derivatives(self, r2):
            return tuple(4 * v for v in InverseMultiquadric(1.0).derivatives(r2))

    one, four = (
        stein_test(FIELD, draws(40, 2), NOISE, base=b, generator=seeded(0)) for b in (InverseMultiquadric(1.0), Four())
    )
    assert four.statistic.value == pytest.approx(4 * one.statistic.value, rel=1e-12)
    assert four.p_value == one.p_value


# --- the p-value ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_the_bootstrap_against_all_signs(shift):
    """Eight rows have 2⁸ signs; at the largest shift only those that all agree reach the statistic."""
    x = draws(8, 2) + shift
    s = -x
    u = stein_kernel(InverseMultiquadric(1.0), x, x, s, s).fill_diagonal_(0)
    signs = t64(list(itertools.product((-1.0, 1.0), repeat=8)))
    share = torch.stack([e @ u @ e >= u.sum() - 1e-9 for e in signs]).double().mean().item()
    model = ScoreFunction(lambda x_t, k: -x_t)
    found = stein_test(model, x, NOISE, base=InverseMultiquadric(1.0), noise=False, n_bootstrap=20_000).p_value
    assert abs(found.value - share) < 4.5 * found.stderr
    assert found.stderr < 0.004
    assert shift < 3 or share == 2 / 256


def test_the_p_value_of_few_draws():
    """(1 + k)/(B + 1): never 0, and what it says of its own error is its spread."""
    x = draws(30, 1)
    far = stein_test(ScoreFunction(lambda x_t, k: -x_t), x + 5, NOISE, n_bootstrap=9, generator=seeded(0))
    assert far.p_value.value == 0.1
    assert far.rejects(0.1)
    assert not far.rejects(0.099)
    every = [stein_test(FIELD, x, NOISE, noise=False, n_bootstrap=100, generator=seeded(i)).p_value for i in range(200)]
    spread = np.std([p.value for p in every])
    assert 0.8 < spread / np.mean([p.stderr for p in every]) < 1.25


CALIBRATED = {
    "modes far apart, D = 2": GaussianMixture(
        t64([0.2, 0.3, 0.5]), t64([[-5.0, 0.0], [5.0, 0.0], [0.0, 6.0]]), torch.tensor(0.5)
    ),
    "a skew law on the line": Quadrature(torch.distributions.Gamma(t64(2.0), t64(1.0))),
    "Gaussian, D = 8": normal(8),
}


@pytest.mark.parametrize("name", CALIBRATED)
def test_p_values_are_uniform_for_the_true_score(name):
    oracle, p = CALIBRATED[name], []
    for seed in range(100):
        g = seeded(seed)
        x = oracle.sample(200, generator=g)
        p.append(stein_test(oracle, x, NOISE, n_bootstrap=300, generator=g).p_value.value)
    assert kstest(p, "uniform").pvalue > 1e-3
    for level in (0.05, 0.2, 0.5, 0.8):
        assert abs(np.mean(np.array(p) <= level) - level) < 4.5 * math.sqrt(level * (1 - level) / 100)


def test_p_values_are_uniform_under_noise_that_is_not_gaussian():
    kernel = Additive(torch.distributions.Laplace(t64(0.0), t64(0.5)))
    oracle, p = Quadrature(torch.distributions.Normal(t64(0.0), t64(1.0))), []
    for seed in range(60):
        g = seeded(seed)
        x = oracle.sample(50, generator=g)
        p.append(stein_test(oracle, x, kernel, n_bootstrap=300, generator=g).p_value.value)
    assert kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("d", [1, 2, 8])
def test_a_shift_of_a_third_of_a_standard_deviation_is_found(d, every):
    """500 rows, the level of 5 %; 20 seeds, each of which fails in 1 of 50 cases or less."""
    shift = torch.full((d,), 0.3, dtype=F64) if every else 0.3 * torch.eye(d, dtype=F64)[0]
    found = 0
    for seed in range(20):
        g = seeded(seed)
        x = normal(d).sample(500, generator=g) + shift
        found += stein_test(normal(d), x, NOISE, n_bootstrap=200, generator=g).rejects()
    assert found >= 18


def test_noise_is_added_unless_the_rows_have_it(g):
    oracle = normal(2)
    x = oracle.sample(500, generator=g)
    x_t = NOISE.sample(x, generator=g)
    assert not stein_test(oracle, x, NOISE, generator=g).rejects(0.001)
    assert stein_test(oracle, x, NOISE, noise=False, generator=g).rejects(0.001)
    assert not stein_test(oracle, x_t, NOISE, noise=False, generator=g).rejects(0.001)


def test_a_lost_mode_goes_unseen():
    """As the docstring says: half of the mass is missing, six standard deviations away."""
    modes = GaussianMixture(t64([0.5, 0.5]), t64([[-6.0], [6.0]]), torch.tensor(0.64))
    rejections = 0
    for seed in range(20):
        g = seeded(seed)
        rejections += stein_test(modes, normal(1, 6.0).sample(300, generator=g), NOISE, generator=g).rejects()
    assert rejections <= 8


# --- what it says, and what it refuses --------------------------------------------------------------------------------


def test_the_result(g):
    found = stein_test(FIELD, draws(40, 2), NOISE, max_rows=20, generator=g)
    assert found.n_rows == 20
    assert str(found) == f"Stein test of 20 rows: p = {found.p_value}, KSD² = {found.statistic}"
    fixed = SteinTest(Estimate(0.1, 0.2), Estimate(0.05, 0.01), 9, GaussianRBF(1.0))
    assert fixed.rejects()
    assert not fixed.rejects(0.01)


def test_no_gradient_is_kept_and_the_model_is_asked_once(g):
    calls = []
    weight = torch.ones((), dtype=F64, requires_grad=True)
    model = ScoreFunction(lambda x_t, k: calls.append(torch.is_grad_enabled()) or -weight * x_t)
    stein_test(model, draws(40, 2), NOISE, generator=g)
    assert calls == [False]


X = draws(30, 2)
REFUSED = {
    "few rows": (lambda: stein_test(FIELD, X[:7], NOISE), "x: got 7 rows, want at least 8"),
    "few rows asked for": (lambda: stein_test(FIELD, X, NOISE, max_rows=5), "max_rows: got 5, want at least 8"),
    "NaN": (lambda: stein_test(FIELD, X.masked_fill(X > 1, math.nan), NOISE), "x: row"),
    "not a tensor": (lambda: stein_test(FIELD, X.numpy(), NOISE), "x: got ndarray, want"),
    "equal rows": (lambda: stein_test(FIELD, torch.ones(20, 2), NOISE, noise=False), "x: the median distance"),
    "no bootstrap": (lambda: stein_test(FIELD, X, NOISE, n_bootstrap=0), "n_bootstrap: got 0, want"),
    "half a draw": (lambda: stein_test(FIELD, X, NOISE, n_bootstrap=2.5), "n_bootstrap: got 2.5, want"),
    "no kernel": (lambda: stein_test(FIELD, X, 0.5), "kernels: got 0.5, want"),
    "two kernels": (lambda: stein_test(FIELD, X, [NOISE, NOISE]), "kernel: got 2, want one"),
    "a level a row": (lambda: stein_test(FIELD, X, Gaussian(torch.ones(30))), "want one level for all rows"),
    "no model": (lambda: stein_test(3, X, NOISE), "model: got int, want"),
    "another shape": (lambda: stein_test(ScoreFunction(lambda x, k: x[:, :1]), X, NOISE), "score gave shape"),
    "infinite score": (lambda: stein_test(ScoreFunction(lambda x, k: x / 0), X, NOISE), "model: its score holds NaN"),
    "overflow": (lambda: stein_test(ScoreFunction(lambda x, k: 1e200 * x), X, NOISE), "the statistic overflows"),
    "base": (lambda: stein_test(FIELD, X, NOISE, base="rbf"), "base: got 'rbf', want"),
    "scale": (lambda: GaussianRBF(0.0), "scale: got 0, want a finite number > 0"),
    "a scale that is none": (lambda: InverseMultiquadric(math.nan), "scale: got nan, want"),
    "several scales": (lambda: GaussianRBF([1.0, 2.0]), "scale: got [1.0, 2.0], want"),
    "exponent": (lambda: InverseMultiquadric(1.0, 0.5), "exponent: got 0.5, want"),
    "level": (lambda: stein_test(FIELD, X, NOISE).rejects(5), "level: got 5, want"),
    "scores": (lambda: stein_kernel(GaussianRBF(1.0), X, X, X[:3], X), "want the same"),
    "events": (lambda: stein_kernel(GaussianRBF(1.0), X, X[:, :1], X, X[:, :1]), "y: got event shape"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_input_is_refused_in_one_line(kind, as_a_user):
    call, words = REFUSED[kind]
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_the_rows_own_moments_passes_for_gaussian_rows(g):
    x = draws(800, 3) @ t64([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.3, 0.4]])
    assert not stein_test(GaussianReference.of_data(x[:400]), x[400:], NOISE, generator=g).rejects(0.001)
    assert stein_test(GaussianReference.of_data(x[:400]), x[400:].abs(), NOISE, generator=g).rejects(0.001)
