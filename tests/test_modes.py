"""Modes by ascent on a score: against SciPy's maxima of the same density, and mean shift by loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from sklearn.cluster import DBSCAN
from torch import distributions as td

from gradlogp import InputError
from gradlogp.kernels import Additive, Gaussian
from gradlogp.models import GaussianReference, Preconditioned, ScoreFunction
from gradlogp.networks import ResidualMLP
from gradlogp.oracles import Empirical, GaussianMixture, Quadrature
from gradlogp.samplers import modes
from gradlogp.samplers.modes import _linked, _ordered
from gradlogp.training import NoiseLevels, Recipe, train

F64 = torch.float64


def parts(d: int, k: int, seed: int, spread: float):
    """Weights, means and full covariances of a random mixture, in numpy."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(k, d, d)) * 0.5 / math.sqrt(d)
    return rng.dirichlet(np.full(k, 5.0)), rng.normal(size=(k, d)) * spread, a @ a.swapaxes(1, 2) + 0.03 * np.eye(d)


CASES = {
    "line": (np.array([0.3, 0.7]), np.array([[-2.0], [1.0]]), np.array([[[0.2]], [[0.5]]])),
    "plane": parts(2, 5, 0, 2.0),
    "space": parts(8, 6, 2, 1.2),
}


def oracle_of(case) -> GaussianMixture:
    return GaussianMixture(*(torch.as_tensor(v) for v in case))


def log_density(case, sigma: float, alpha: float = 1.0):
    """log p_σ by SciPy."""
    weights, means, covariances = case
    eye = np.eye(means.shape[1])
    laws = [
        stats.multivariate_normal(alpha * means[k], alpha**2 * covariances[k] + sigma**2 * eye)
        for k in range(len(means))
    ]
    return lambda u: float(
        np.logaddexp.reduce([np.log(w) + law.logpdf(u) for w, law in zip(weights, laws, strict=True)])
    )


def hessian(f, x, e):
    steps = e * np.eye(len(x))
    return np.array([[f(x + a + b) - f(x + a - b) - f(x - a + b) + f(x - a - b) for a in steps] for b in steps]) / (
        4 * e * e
    )


def starts(oracle, n: int, kernel, g) -> torch.Tensor:
    return kernel.sample(oracle.sample(n, generator=g).double(), generator=g)


def distinct(x: np.ndarray, distance: float) -> np.ndarray:
    kept: list[np.ndarray] = []
    for row in x:
        if all(np.linalg.norm(row - other) > distance for other in kept):
            kept.append(row)
    return np.array(kept)


def ends(found, x: torch.Tensor) -> torch.Tensor:
    return found.points[found.labels]


def plain(model, x, kernel, n: int, h: float = 1.0) -> torch.Tensor:
    """x <- x + hσ²ψ(x), so many times."""
    for _ in range(n):
        x = x + h * kernel.sigma**2 * model.score(x, kernel)
    return x


@pytest.mark.parametrize(("name", "sigma", "alpha"), [
    ("line", 0.3, 1.0), ("plane", 0.2, 1.0), ("plane", 0.15, 0.6), ("space", 0.25, 1.0)
])  # fmt: skip
def test_the_modes_are_the_maxima_that_scipy_finds(name, sigma, alpha, g):
    case, kernel = CASES[name], Gaussian(sigma, alpha)
    oracle = oracle_of(case)
    found = modes(oracle, starts(oracle, 300, kernel, g), kernel, rtol=1e-9)
    f = log_density(case, sigma, alpha)
    first = np.concatenate([alpha * case[1], starts(oracle, 30, kernel, g).numpy()])
    peaks = []
    for at in first:
        at = optimize.minimize(lambda u: -f(u), at, method="BFGS", jac="3-point", options={"gtol": 1e-9}).x
        peaks.append(optimize.minimize(lambda u: -f(u), at, method="BFGS", jac="3-point", options={"gtol": 1e-9}).x)
    peaks = distinct(np.array(peaks), 0.05 * sigma)
    maxima = found.points[found.is_maximum].numpy()
    apart = np.linalg.norm(peaks[:, None] - maxima[None], axis=2)
    assert apart.shape[0] == apart.shape[1] > 1
    assert apart.min(0).max() < 1e-5 * sigma
    assert apart.min(1).max() < 1e-5 * sigma
    assert found.is_maximum.all()
    assert (found.gradient_norm < 2e-9).all()
    for point, curvature in zip(maxima, found.curvature.tolist(), strict=True):
        assert curvature == pytest.approx(np.linalg.eigvalsh(hessian(f, point, 1e-3 * sigma))[-1], abs=1e-3 / sigma**2)


def test_the_shares_are_those_of_the_basins_of_the_gradients_flow(g):
    """Row by row, against Euler's steps of σ²/20 in numpy; and counts, errors and order."""
    case, sigma, n = CASES["plane"], 0.3, 400
    weights, means, covariances = case
    noisy = [np.linalg.inv(c + sigma**2 * np.eye(2)) for c in covariances]
    norm = weights * np.sqrt(np.linalg.det(np.array(noisy)))
    x = starts(oracle_of(case), n, Gaussian(sigma), g)
    u = x.numpy().copy()
    for _ in range(3000):
        pull = [(means[k] - u) @ noisy[k] for k in range(5)]
        r = np.stack([norm[k] * np.exp(-0.5 * (pull[k] * (means[k] - u)).sum(1)) for k in range(5)])
        r /= r.sum(0)
        u += sigma**2 / 20 * sum(r[k][:, None] * pull[k] for k in range(5))
    found = modes(oracle_of(case), x, Gaussian(sigma))
    assert np.abs(ends(found, x).numpy() - u).max() < 1e-3 * sigma
    brute = distinct(u, 0.05)
    counts = sorted(((np.linalg.norm(u - m, axis=1) < 0.05).sum() for m in brute), reverse=True)
    assert len(counts) > 2
    assert (found.shares * n).round().long().tolist() == counts
    p = [(k + 2) / (n + 4) for k in counts]
    assert found.stderr.tolist() == pytest.approx([math.sqrt(v * (1 - v) / (n + 4)) for v in p])


def test_on_data_it_is_mean_shift():
    """Explicit means in numpy, Σ w_i x_i, w_i ∝ e^{−‖x − x_i‖²/2σ²}, to the end; a start in 100 may differ."""
    rng, sigma = np.random.default_rng(1), 0.35
    data = rng.normal(size=(60, 2))
    u = data.copy()
    for _ in range(2000):
        w = np.exp(-0.5 * ((u[:, None] - data[None]) ** 2).sum(2) / sigma**2)
        u = (w / w.sum(1, keepdims=True)) @ data
    found = modes(Empirical(data), torch.as_tensor(data), Gaussian(sigma), rtol=1e-8)
    brute = distinct(u, 0.1 * sigma)
    apart = np.linalg.norm(brute[:, None] - found.points.numpy()[None], axis=2)
    assert apart.shape[0] == apart.shape[1] > 3
    assert apart.min(0).max() < 1e-5 * sigma
    assert (np.linalg.norm(ends(found, u).numpy() - u, axis=1) < 1e-3).mean() >= 0.98


def test_small_hills_on_a_wide_one_are_not_leapt_over(g):
    """Nine starts in ten lie on a hill 10σ wide: steps as long as that would pass over those of σ."""
    centres = torch.randn(5, 2, generator=g, dtype=F64)
    means, variances = torch.cat([torch.zeros(1, 2, dtype=F64), centres]), torch.tensor([1.0] + [0.02] * 5)
    oracle, kernel = GaussianMixture(torch.tensor([0.9] + [0.02] * 5), means, variances), Gaussian(0.1)
    x = starts(oracle, 200, kernel, g)
    there = plain(oracle, x, kernel, 1500)

    def same(**limits) -> float:
        found = modes(oracle, x, kernel, **limits)
        assert (found.labels >= 0).all()
        return ((ends(found, x) - there).norm(dim=1) < 0.05 * 0.1).double().mean().item()

    assert same() >= 0.98
    assert same(reach=1e9) < 0.85


def test_it_takes_far_fewer_scores_than_mean_shift(g):
    oracle, kernel = oracle_of(CASES["space"]), Gaussian(0.08)
    x = starts(oracle, 50, kernel, g)
    found = modes(oracle, x, kernel)
    u, cost = x.clone(), 0
    while len(u):
        psi = oracle.score(u, kernel)
        cost += len(u)
        u = (u + 0.08**2 * psi)[psi.norm(dim=1) * 0.08 > 1e-6]
    assert (found.labels >= 0).all()
    assert found.n_scores < cost / 20


@pytest.mark.parametrize("atoms", [False, True])
def test_ascents_end_at_the_highest_point_seen_and_no_step_is_too_long_or_short(atoms, g):
    oracle, kernel, seen = oracle_of(CASES["plane"]), Gaussian(0.15), []
    if atoms:  # as many as make ridges and saddles
        oracle = GaussianMixture(torch.ones(60), 0.5 * torch.randn(60, 2, generator=g, dtype=F64), 0.0)

    def score(x_t, k):
        seen.append(x_t)
        return oracle.score(x_t, k)

    straight = 0
    for start in starts(oracle, 25, kernel, g):
        seen.clear()
        found = modes(ScoreFunction(score), start[None], kernel)
        path = torch.cat(seen[: found.n_calls])
        assert len(path) == found.n_calls == found.n_scores
        log_p = oracle.log_prob(path, kernel)
        assert log_p[-1] >= log_p.max() - 1e-9
        if (log_p[1:] >= log_p[:-1] - 1e-9).all():  # none was refused
            straight += 1
            own = 0.15**2 * oracle.score(path[:-1], kernel).norm(dim=1)
            steps = (path[1:] - path[:-1]).norm(dim=1)
            assert (steps <= torch.maximum(own, torch.tensor(0.075)) * (1 + 1e-9)).all()
            assert (steps >= own * (1 - 1e-9)).all()
    assert straight >= 3


@pytest.mark.parametrize(("sigma", "n"), [(0.79, 2), (0.81, 1)])
def test_two_equal_gaussians_merge_where_the_distance_says(sigma, n):
    """Variance 0.36 + σ² = v at ±1: two modes at the roots of x = tanh(x/v) for v < 1, one at 0 for v > 1."""
    v = 0.36 + sigma**2
    oracle = GaussianMixture(torch.ones(2), torch.tensor([[-1.0], [1.0]], dtype=F64), 0.36)
    found = modes(oracle, torch.linspace(-3, 3, 40, dtype=F64)[:, None], Gaussian(sigma), rtol=1e-9)
    assert len(found.points) == n
    assert found.is_maximum.all()
    root = optimize.brentq(lambda u: u - math.tanh(u / v), 1e-3, 2.0, xtol=1e-12) if n == 2 else 0.0
    assert found.points.abs().flatten().tolist() == pytest.approx([root] * n, abs=1e-5 * sigma)
    assert found.curvature.tolist() == pytest.approx([-1 / v + (1 - root**2) / v**2] * n, rel=1e-4)


def test_a_start_between_two_modes_is_told_from_them():
    """At the saddle of two Gaussians of variance v at ±m, the curvature across is −1/v + m²/v², along it −1/v."""
    v = 0.3 + 0.25
    oracle = GaussianMixture(torch.ones(2), torch.tensor([[-1.5, 0.0], [1.5, 0.0]], dtype=F64), 0.3)
    x = torch.tensor([[0.0, 0.7], [0.0, 0.0], [1.0, 0.2], [-2.0, 0.1], [-0.4, 1.0]], dtype=F64)
    found = modes(oracle, x, Gaussian(0.5))
    assert found.labels.tolist() == [1, 1, 2, 0, 0]
    assert found.is_maximum.tolist() == [True, False, True]
    torch.testing.assert_close(found.points[1], torch.zeros(2, dtype=F64), atol=1e-6, rtol=0)
    assert found.curvature[1].item() == pytest.approx(-1 / v + 1.5**2 / v**2, rel=1e-6)
    assert "modes: 2 and 1 beside them that are no maxima, from 5 starts; 0 starts did not" in str(found)
    assert str(found).count("not a maximum") == 1


def test_a_plateau_is_no_maximum_nor_is_what_rounding_makes_of_it(g):
    flat = ScoreFunction(lambda x_t, k: (-x_t - 1).clamp_min(0) - (x_t - 1).clamp_min(0))
    found = modes(flat, torch.tensor([[0.2], [0.21], [3.0], [-4.0]], dtype=F64), Gaussian(1.0), rtol=1e-3, merge=5.0)
    assert found.labels.tolist() == [0, 0, 0, 0]
    assert found.curvature.tolist() == [0.0]
    assert found.is_maximum.tolist() == [False]


def test_single_precision_arrives_where_rounding_lets_it(g):
    """At σ = 0.02 and x about 3, ‖ψ‖σ has an error of 1e-4 by 1e-6 of x: above rtol."""
    means = torch.tensor([[3.0, 2.0], [-3.0, 2.0]])
    oracle, kernel = GaussianMixture(torch.ones(2), means, 1e-5), Gaussian(0.02)
    x = kernel.sample(oracle.sample(60, generator=g), generator=g)
    rounded = ScoreFunction(lambda x_t, k: oracle.score(x_t * (1 + 1e-6 * torch.randn(x_t.shape, generator=g)), k))
    found = modes(rounded, x, kernel, n_steps=15)
    assert x.dtype == found.points.dtype == torch.float32
    assert (found.labels >= 0).all()
    torch.testing.assert_close(
        found.points, means[[0, 1]] if found.points[0, 0] > 0 else means[[1, 0]], atol=1e-3, rtol=0
    )


def test_merge_is_in_units_of_sigma_and_places_go_by_their_starts():
    x = torch.linspace(-3, 2, 20, dtype=F64)[:, None]
    apart = modes(oracle_of(CASES["line"]), x, Gaussian(0.3), merge=9.9)
    assert (apart.points[0] - apart.points[1]).abs().item() == pytest.approx(3.0, abs=0.02)
    assert len(modes(oracle_of(CASES["line"]), x, Gaussian(0.3), merge=10.1).points) == 1
    assert _ordered(torch.tensor([0, 1, 1, 1, 2, 2])).tolist() == [2, 0, 0, 0, 1, 1]


def test_any_event_shape_and_the_space_of_the_noisy_points(g):
    case = CASES["space"]
    flat, kernel = oracle_of(case), Gaussian(0.25)
    image = GaussianMixture(*(torch.as_tensor(v) for v in (case[0], case[1].reshape(-1, 2, 2, 2), case[2])))
    x = starts(flat, 60, kernel, g)
    a, b = modes(flat, x, kernel), modes(image, x.reshape(-1, 2, 2, 2), kernel)
    assert b.points.shape[1:] == (2, 2, 2)
    torch.testing.assert_close(b.points.flatten(1), a.points)
    torch.testing.assert_close(b.curvature, a.curvature)
    assert torch.equal(a.labels, b.labels)
    c = modes(flat, 0.3 * x, Gaussian(0.25 * 0.3, alpha=0.3))  # the same law, in other units
    torch.testing.assert_close(c.points, 0.3 * a.points, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(c.curvature, a.curvature / 0.3**2, rtol=1e-5, atol=0)


def test_a_learnt_model_has_the_modes_of_a_mixture(g):
    """Four clusters of unequal shares: their places to 0.2 σ, half of them to 0.1, shares to 4 standard errors."""
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    means = torch.tensor([[2.0, 2.0], [-2.0, 1.5], [1.5, -2.0], [-1.5, -2.0]])
    oracle, kernel = GaussianMixture(weights, means, 0.09), Gaussian(0.4)
    x = oracle.sample(4000, generator=g)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResidualMLP((2,), width=64, depth=2)
    model = Preconditioned(network, GaussianReference.of_data(x)).eval()
    recipe = Recipe(n_steps=600, evaluate_every=200, ema=0.98)
    list(train(model, x, x[:500], levels=NoiseLevels(0.1, 3.0, centre=-0.9, spread=0.6), recipe=recipe, generator=g))
    found = modes(model, kernel.sample(oracle.sample(1000, generator=g), generator=g), kernel)
    assert (found.labels >= 0).double().mean() > 0.99
    assert found.is_maximum[:4].all()
    off = (found.points[:4] - means).norm(dim=1) / 0.4  # the modes of p_σ are at the means to 1e-6
    assert off.max() < 0.2
    assert off.median() < 0.1
    assert ((found.shares[:4] - weights).abs() < 4 * found.stderr[:4]).all()
    assert found.shares[4:].sum() < 0.01


def test_a_black_box_is_enough_and_autograd_that_misses_jumps_is_not_believed(g):
    """Laplace noise on a smooth law: the maxima of its density by SciPy; at atoms, where ψ jumps, no convergence."""
    mixture = td.MixtureSameFamily(td.Categorical(torch.tensor([0.4, 0.6])), td.Normal(torch.tensor([-1.5, 1.0]), 0.4))
    oracle, kernel = Quadrature(mixture), Additive(td.Laplace(0.0, 0.5))
    x = torch.linspace(-3, 3, 20, dtype=F64)[:, None]
    found = modes(oracle, x, kernel, rtol=1e-8)

    def height(u: float) -> float:
        return oracle.log_prob(torch.tensor([[u]], dtype=F64), kernel).item()

    peaks = [
        optimize.minimize_scalar(lambda u: -height(u), bounds=b, method="bounded", options={"xatol": 1e-9}).x
        for b in ((-2, -1), (0.5, 1.5))
    ]
    assert sorted(found.points.flatten().tolist()) == pytest.approx(peaks, abs=1e-6)
    assert found.curvature.isnan().all()
    assert not found.is_maximum.any()
    atoms = modes(Empirical(torch.tensor([[-1.0], [1.0]], dtype=F64)), x, kernel, n_steps=50)
    assert (atoms.labels == -1).all()
    assert atoms.points.shape == (0, 1)
    box = ScoreFunction(lambda x_t, k: torch.as_tensor(2.0 * np.sign(-x_t.numpy()) - x_t.numpy()))
    assert (modes(box, x, kernel, n_steps=50).labels == -1).all()
    smooth = ScoreFunction(lambda x_t, k: torch.as_tensor(-np.sinh(x_t.numpy() - 1)))
    one = modes(smooth, x, kernel)
    assert one.points.item() == pytest.approx(1.0, abs=1e-6)
    assert one.curvature.isnan().all()
    assert one.shares.item() == 1.0


@pytest.mark.parametrize("stiffness", [1.0, 5.0, 40.0])
def test_a_score_steeper_than_noise_allows_is_climbed_all_the_same(stiffness, g):
    """σ²ψ = −c·x: steps of σ² diverge for c > 2."""
    model = ScoreFunction(lambda x_t, k: -stiffness * torch.tensor([1.0, 0.3], dtype=F64) * (x_t - 1) / k.sigma**2)
    found = modes(model, torch.randn(50, 2, generator=g, dtype=F64), Gaussian(0.5))
    assert (found.labels == 0).all()
    torch.testing.assert_close(found.points, torch.ones(1, 2, dtype=F64), rtol=0, atol=1e-5)
    assert found.curvature.item() == pytest.approx(-0.3 * stiffness / 0.25)


def test_rows_that_run_away_are_counted(g):
    def score(x_t, k):  # to 1 from below 3, beyond it out
        return torch.where(x_t < 3, 1 - x_t, x_t.exp())

    x = torch.tensor([[0.0], [2.0], [4.0], [5.0], [0.5]], dtype=F64)
    found = modes(ScoreFunction(score), x, Gaussian(1.0), n_steps=60)
    assert found.labels.tolist() == [0, 0, -1, -1, 0]
    assert found.shares.tolist() == pytest.approx([0.6])
    assert "2 starts did not converge" in str(found)
    assert (modes(ScoreFunction(score), x[:1], Gaussian(0.1), n_steps=1).labels == -1).all()


def test_ends_are_linked_as_single_linkage_does(g):
    """scikit-learn's DBSCAN of core points alone, on chains, duplicates and loners."""
    chain = torch.arange(0, 5, 0.09, dtype=F64)[:, None] * torch.tensor([1.0, 0.5], dtype=F64)
    x = torch.cat([torch.rand(200, 2, generator=g, dtype=F64) * 3, chain + 5, chain[::9], torch.zeros(50, 2).double()])
    x = x + 1e-9 * torch.randn(x.shape, generator=g, dtype=F64)
    want = DBSCAN(eps=0.12, min_samples=1).fit_predict(x.numpy())
    got = _linked(x, 0.12).numpy()
    pairs = {(int(a), int(b)) for a, b in zip(want, got, strict=True)}
    assert len(pairs) == len(set(want)) == len(set(got))
    assert len(set(want)) > 10


@pytest.mark.parametrize("change", [
    {"kernel": Gaussian(torch.tensor([0.1, 0.2]))}, {"kernel": 0.1}, {"n_steps": 0}, {"rtol": 0.0}, {"merge": -1.0},
    {"reach": math.inf}, {"x": torch.tensor([[0.0], [math.nan]])}, {"x": torch.zeros(3)},
    {"model": ScoreFunction(lambda x, k: x / 0)}, {"model": ScoreFunction(lambda x, k: x[:1])},
])  # fmt: skip
def test_bad_input_is_refused(change, as_a_user):
    given = {"model": ScoreFunction(lambda x, k: -x), "x": torch.zeros(2, 1), "kernel": Gaussian(0.1)} | change
    with pytest.raises(InputError, match=r"^[^\n]*: (got|row|its score|score gave)[^\n]*want[^\n]*$"):
        modes(**given)


def test_digits_far_from_zero_do_not_make_modes_of_their_own():
    """N(1000, 0.1²) in float32 under noise of 0.01: one mode, to what float32 can tell at 1000."""
    reference = GaussianReference(torch.tensor([1000.0]), torch.tensor([0.01]), torch.ones(1, 1))
    x = 1000 + 0.1 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    found = modes(reference, x, Gaussian(0.01))
    assert len(found.points) == 1
    assert abs(found.points.item() - 1000) < 2e-3
    assert bool((found.labels == 0).all())
