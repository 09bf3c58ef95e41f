"""The share of the training rows that a model has memorised: the truth has 0, the rows' own score 1, blends between."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import BY_NAME, F64, mvn, t64
from scipy.spatial.distance import cdist

from gradlogp import InputError
from gradlogp.diagnostics import Estimate, memorisation, nearest_neighbours
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import GaussianReference, Preconditioned, ScoreFunction, ScoreModel
from gradlogp.networks import ResidualMLP
from gradlogp.oracles import Empirical, GaussianMixture

SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(d: int) -> GaussianMixture:
    return GaussianMixture(torch.ones(4), torch.randn(4, d, generator=seeded(0), dtype=F64), 0.25)


def rows(truth: GaussianMixture, n: int, m: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = seeded(seed)
    return truth.sample(n, generator=g), truth.sample(m, generator=g)


def blend(a: ScoreModel, b: ScoreModel, share: float) -> ScoreModel:
    return ScoreFunction(lambda x_t, k: (1 - share) * a.score(x_t, k) + share * b.score(x_t, k))


LADDER = [Gaussian(s) for s in SIGMAS]
LAPLACE, STUDENT, MIXED = (BY_NAME[n].kernel() for n in ("laplace", "student 5", "mixture"))


# --- the two ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "n", "m"), [(2, 100, 100), (16, 300, 150)])
@pytest.mark.parametrize("seed", range(4))
def test_the_truth_has_memorised_nothing_and_the_rows_own_score_all(d: int, n: int, m: int, seed: int) -> None:
    truth = mixture(d)
    train, test = rows(truth, n, m, seed)
    for model, want in ((truth, 0.0), (Empirical(train), 1.0)):
        levels = memorisation(model, train, test, LADDER, generator=seeded(seed)).levels
        assert [level.sigma for level in levels] == list(SIGMAS)
        assert levels[0].informative
        assert not levels[-1].informative
        for level in levels:
            assert 0 <= level.value.value <= 1
            assert abs(level.value.value - want) <= 4 * level.value.stderr
            assert level.informative or (level.value.value, level.value.stderr) == (0, 1)
            if level.informative:
                assert level.value.stderr < 0.25
                assert want == 0 or (level.value.value, level.value.stderr) == (1, 0)


@pytest.mark.parametrize("kernel", [Gaussian(0.3, 0.7), LAPLACE, MIXED, mvn()], ids=repr)
def test_under_any_kernel(kernel: Kernel) -> None:
    """Under kernels with no exact mixture: a fixed field for 0, and the rows' own score for 1."""
    train, test = (5 * x for x in rows(mixture(3), 60, 60, 0))
    field = ScoreFunction(lambda x_t, k: torch.sin(2 * x_t) - 0.1 * x_t)
    (zero,) = memorisation(field, train, test, kernel, generator=seeded(1), n_noise=8).levels
    (one,) = memorisation(Empirical(train), train, test, kernel, generator=seeded(1), n_noise=8).levels
    (some,) = memorisation(blend(field, Empirical(train), 0.7), train, test, kernel, generator=seeded(1)).levels
    assert zero.informative
    assert abs(zero.value.value) <= 4 * zero.value.stderr
    assert zero.value.stderr < 0.2
    assert (one.value.value, one.value.stderr) == (1, 0)
    assert some.value.value > 5 * some.value.stderr


@pytest.mark.parametrize("d", [2, 16])
@pytest.mark.parametrize(
    "spoil", [lambda s, x_t: s + 1, lambda s, x_t: 0.3 * s, lambda s, x_t: -s, lambda s, x_t: s + torch.sin(9 * x_t)]
)
def test_a_bad_model_that_never_saw_the_rows_has_memorised_nothing(
    d: int, spoil: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> None:
    truth = mixture(d)
    train, test = rows(truth, 150, 150, 1)
    model = ScoreFunction(lambda x_t, k: spoil(truth.score(x_t + 0.3, k), x_t))
    for level in memorisation(model, train, test, LADDER, generator=seeded(2)).levels:
        assert abs(level.value.value) <= 4 * level.value.stderr


def test_an_event_of_any_shape_and_float32() -> None:
    truth = mixture(4)
    train, test = (x.float() for x in rows(truth, 100, 50, 0))
    flat = memorisation(Empirical(train), train, test, LADDER, generator=seeded(0))
    shaped = [x.reshape(-1, 1, 2, 2) for x in (train, test)]
    square = memorisation(Empirical(shaped[0]), *shaped, LADDER, generator=seeded(0))
    assert [v.value for v in flat.levels] == [v.value for v in square.levels]
    assert flat.levels[0].value == Estimate(1.0, 0.0)


# --- between the ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "n", "sigma"), [(2, 200, 0.1), (16, 200, 0.4)])
def test_blends_have_the_share_of_the_closed_form(d: int, n: int, sigma: float) -> None:
    """(λ²(A − B) + 2λB)/(B + λ²A), A and B from many fresh rows of the truth and much noise on the training rows."""
    truth, kernel = mixture(d), Gaussian(sigma)
    train, test = rows(truth, n, 2000, 3)
    memory = Empirical(train)

    def half_distance(x: torch.Tensor) -> float:
        x_t = kernel.sample(x, generator=seeded(4))
        return 0.5 * (memory.score(x_t, kernel) - truth.score(x_t, kernel)).square().sum(1).mean().item()

    a, b = half_distance(truth.sample(5000, generator=seeded(5))), half_distance(train.repeat(25, 1))
    found = []
    for share in (0.0, 0.1, 0.3, 0.6, 0.9, 1.0):
        want = 1 - (1 - share) * (b / (b + share**2 * a)) ** 0.5
        model = blend(truth, memory, share)
        (level,) = memorisation(model, train, test, kernel, generator=seeded(6), max_rows=2000, n_noise=10).levels
        assert abs(level.value.value - want) <= 4 * level.value.stderr + 1e-9
        assert level.value.stderr < 0.05
        found.append(level.value.value)
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("d", "sigma", "share", "chance"),
    [(2, 0.1, 0.0, 0.5), (2, 0.1, 0.2, 0), (2, 0.1, 0.6, 0), (8, 0.3, 0.0, 0.5), (8, 0.3, 0.3, 0), (8, 0.5, 0.4, 0)],
)
def test_the_standard_error_is_the_spread_over_seeds(d: int, sigma: float, share: float, chance: float) -> None:
    """New rows and new noise each time. Where the truth is 0, half of the values are cut off there."""
    truth, z, values, errors = mixture(d), [], [], []
    for seed in range(200):
        train, test = rows(truth, 60, 60, 100 + seed)
        model = blend(truth, Empirical(train), share)
        (level,) = memorisation(model, train, test, Gaussian(sigma), generator=seeded(seed), n_noise=2).levels
        if level.informative:
            values.append(level.value.value)
            errors.append(level.value.stderr)
    v, e = np.array(values), np.array(errors)
    assert len(v) > 180
    if chance:
        assert abs((v == 0).mean() - chance) < 4 * math.sqrt(chance * (1 - chance) / len(v))
        z = v[v > 0] / e[v > 0]  # the upper half of a standard normal: its mean square is 1 ± √(2/n)
        assert abs((z**2).mean() - 1) < 4 * math.sqrt(2 / len(z)) + 0.1
    else:
        z = (v - v.mean()) / e
        assert 0.8 < e.mean() / v.std() < 1.25
        assert 0.8 < z.std() < 1.2
    assert np.abs(z).max() < 4.5


def test_the_common_part_lowers_the_error_and_leaves_the_value() -> None:
    """On Gaussian data the pooled Gaussian is nearly the score: the gap without it would have a far larger error."""
    truth = GaussianMixture(torch.ones(1), torch.ones(1, 8, dtype=F64), 1.0)
    train, test = rows(truth, 200, 200, 0)
    kernel = Gaussian(0.5)
    (level,) = memorisation(truth, train, test, kernel, generator=seeded(0), n_noise=4).levels
    gain = []
    for x in (train, test):
        x_t = kernel.sample(x.repeat(4, 1), generator=seeded(1))
        psi = truth.score(x_t, kernel)
        each = (psi * kernel.score(x_t, x.repeat(4, 1)) - 0.5 * psi**2).sum(1).reshape(4, -1).mean(0)
        gain.append(each)
    x_t = kernel.sample(train, generator=seeded(2))
    distance = 0.5 * (truth.score(x_t, kernel) - Empirical(train).score(x_t, kernel)).square().sum(1).mean()
    plain = math.hypot(*(v.std().item() / math.sqrt(len(v)) for v in gain)) / distance.item()
    assert level.value.stderr < 0.5 * plain
    assert abs(level.value.value) <= 4 * level.value.stderr


def test_many_coordinates_take_a_diagonal_common_part() -> None:
    g = seeded(0)
    scale = torch.linspace(0.5, 2, 300, dtype=F64)
    truth = GaussianMixture(torch.ones(1), torch.zeros(1, 300, dtype=F64), scale.square()[None])
    train, test = (scale * torch.randn(80, 300, generator=g, dtype=F64) for _ in range(2))
    for model, want in ((truth, 0.0), (Empirical(train), 1.0)):
        for level in memorisation(model, train, test, [Gaussian(0.5), Gaussian(1.0)], generator=g).levels:
            assert level.informative
            assert abs(level.value.value - want) <= 4 * level.value.stderr
            assert level.value.stderr < 0.02


# --- what comes back --------------------------------------------------------------------------------------------------


def test_it_says_what_it_found_and_is_repeatable() -> None:
    truth = mixture(2)
    train, test = rows(truth, 100, 100, 0)
    found = memorisation(truth, train, test, LADDER, generator=seeded(0))
    again = memorisation(truth, train, test, tuple(LADDER), generator=seeded(0))
    assert [v.value for v in found.levels] == [v.value for v in again.levels]
    text = str(found)
    assert "\n" not in text
    assert f"{found.levels[0].value} at σ = 0.05" in text
    assert "cannot tell at σ = 1.6" in text
    frame = found.to_frame()
    assert frame.columns == ["kernel", "sigma", "value", "value_stderr", "informative"]
    assert frame["sigma"].to_list() == list(SIGMAS)
    assert frame["value"].to_list() == [float(level.value) for level in found.levels]


def test_few_rows_are_used_where_few_are_asked_for() -> None:
    truth = mixture(2)
    train, test = rows(truth, 500, 500, 0)
    seen = []

    def score(x_t: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        seen.append(len(x_t))
        return truth.score(x_t, kernel)

    memorisation(ScoreFunction(score), train, test, Gaussian(0.1), max_rows=50, n_noise=3, generator=seeded(0))
    assert seen == [150, 150]


def test_it_is_quick() -> None:
    """Twelve levels on a table of 1600 × 64 take a small part of a fit's time (0.45 s on one core of a server)."""
    x, y = torch.randn(1600, 64, generator=seeded(0)), torch.randn(360, 64, generator=seeded(1))
    model = Preconditioned(ResidualMLP((64,)), GaussianReference.of_data(x)).eval()
    start = time.process_time()
    memorisation(model, x, y, [Gaussian(float(s)) for s in torch.logspace(-2, 0.6, 12)], generator=seeded(0))
    assert time.process_time() - start < 5


# --- samples ----------------------------------------------------------------------------------------------------------


def test_nearest_neighbours_of_copies_and_of_new_rows() -> None:
    truth = mixture(8)
    train, test = rows(truth, 200, 300, 0)
    new = truth.sample(400, generator=seeded(9))
    honest = nearest_neighbours(new, train, test)
    assert abs(honest.copies.value - honest.held_out_copies.value) < 4 * honest.copies.stderr
    assert abs(honest.distance_ratio.value - 1) < 4 * honest.distance_ratio.stderr
    assert honest.distance_ratio.stderr < 0.05
    noisy = train[:100] + 0.01 * torch.randn(100, 8, generator=seeded(1), dtype=F64)
    copied = nearest_neighbours(noisy, train, test)
    assert copied.copies.value == 1
    assert copied.distance_ratio.value < 0.05
    half = nearest_neighbours(torch.cat([noisy, new[:100]]), train, test)
    assert abs(half.copies.value - 0.5) < 4 * half.copies.stderr


def test_nearest_neighbours_against_brute_force() -> None:
    g = np.random.default_rng(0)
    samples, train, test = g.normal(size=(300, 2)), g.normal(size=(50, 2)), g.normal(size=(201, 2))
    found = nearest_neighbours(t64(samples), t64(train), t64(test))
    own, new = (np.sort(cdist(x, train), axis=1)[:, :2] for x in (samples, test))
    assert found.copies.value == pytest.approx((own[:, 0] / own[:, 1] < 1 / 3).mean(), abs=1e-12)
    assert found.held_out_copies.value == pytest.approx((new[:, 0] / new[:, 1] < 1 / 3).mean(), abs=1e-12)
    assert found.distance_ratio.value == pytest.approx(np.median(own[:, 0]) / np.median(new[:, 0]), rel=1e-12)
    again = nearest_neighbours(*(t64(x).reshape(-1, 1, 2) for x in (samples, train, test)))
    assert again == found
    frame = found.to_frame()
    assert frame.shape == (1, 6)
    assert frame["copies"][0] == found.copies.value
    assert "copies of training rows" in str(found)


def test_standard_errors_of_nearest_neighbours() -> None:
    """Given the training rows, over new samples and held-out rows."""
    g = seeded(0)
    train = torch.randn(60, 3, generator=g, dtype=F64)
    found = [
        nearest_neighbours(
            torch.randn(150, 3, generator=g, dtype=F64), train, torch.randn(100, 3, generator=g, dtype=F64)
        )
        for _ in range(300)
    ]
    for name in ("copies", "held_out_copies", "distance_ratio"):
        values = np.array([getattr(f, name).value for f in found])
        errors = np.array([getattr(f, name).stderr for f in found])
        assert 0.85 < errors.mean() / values.std() < 1.2, name


def test_training_rows_that_are_equal_count_once() -> None:
    g = seeded(0)
    train, test = (torch.randn(40, 2, generator=g, dtype=F64) for _ in range(2))
    doubled = torch.cat([train, train, train[:5]])
    assert nearest_neighbours(test, doubled, test) == nearest_neighbours(test, train, test)
    exact = nearest_neighbours(train, doubled, test)
    assert exact.copies.value == 1
    assert exact.distance_ratio.value == 0
    assert 0 < exact.copies.stderr < 0.1
    seen = nearest_neighbours(test, train, train)
    assert seen.distance_ratio == Estimate(math.inf, math.inf)
    assert nearest_neighbours(train, train, train).distance_ratio == Estimate(1.0, math.inf)


# --- bad input --------------------------------------------------------------------------------------------------------

X = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
K = Gaussian(0.3)
NAN = torch.cat([X[:-1], torch.full((1, 2), torch.nan)])
BROKEN = ScoreFunction(lambda x_t, k: x_t / 0)
FLAT = ScoreFunction(lambda x_t, k: x_t[:, :1])


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, NAN, K), "x_test: row 19 holds NaN"),
        ((NAN, X, K), "x_train: row 19 holds NaN"),
        ((X[:1], X, K), "x_train: got 1 row, want at least 2"),
        ((X, X[:1], K), "x_test: got 1 row, want at least 2"),
        ((X, X[:0], K), "x_test: got shape"),
        ((X, X[:, :1], K), r"x_test: got event shape \(1,\), want \(2,\)"),
        ((X.numpy(), X, K), "x_train: got ndarray"),
        ((torch.ones(5, 2), torch.ones(5, 2), K), "do not vary|vary"),
        ((X, X, []), "kernels: got none"),
        ((X, X, 0.3), "kernels: got 0.3, want a kernel"),
        ((X, X, [K, 0.3]), "kernels: got"),
        ((X, X, Gaussian(torch.ones(20))), "want one level for all rows"),
    ],
)
def test_bad_input_is_refused_on_one_line(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        memorisation(Empirical(X), *arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("as_a_user")
def test_bad_options_and_models_are_refused() -> None:
    for option in ({"n_noise": 0}, {"n_noise": 1.5}, {"max_rows": 0}):
        with pytest.raises(InputError, match=next(iter(option))):
            memorisation(Empirical(X), X, X, K, **option)
    for model, message in ((BROKEN, "NaN or infinity"), (FLAT, "want that of its input")):
        with pytest.raises(InputError, match=message):
            memorisation(model, X, X, K)
    for rows_, message in (
        ((X[:1], X, X), "samples: got 1 row"),
        ((X, X[:, :1], X), "samples: got event shape"),
        ((X, torch.ones(4, 2), X), "got 1 distinct row"),
        ((X, X, NAN), "x_test: row 19"),
    ):
        with pytest.raises(InputError, match=message):
            nearest_neighbours(*rows_)
