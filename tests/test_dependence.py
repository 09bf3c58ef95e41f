"""Rows that depend on each other, that lack a part of the law, or that are few: what the numbers say of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import F64, t64
from scipy import stats

from gradlogp import InputError
from gradlogp.diagnostics import Comparison, Estimate, calibration, compare, score_error
from gradlogp.diagnostics.dependence import (
    _ranks,
    as_groups,
    blocks_of_units,
    consecutive_blocks,
    correlation_length,
    near_repeats,
    of_units,
    runs,
)
from gradlogp.diagnostics.estimates import reach
from gradlogp.diagnostics.ladder import per_unit, ratio
from gradlogp.diagnostics.references import Rows
from gradlogp.kernels import Gaussian
from gradlogp.models import ScoreFunction
from gradlogp.oracles import GaussianMixture

ONE = Gaussian(1.0)
NORMAL = GaussianMixture(t64([1.0]), t64([[0.0, 0.0]]), torch.eye(2, dtype=F64)[None])
RARE = GaussianMixture(
    t64([0.98, 0.02]), t64([[0.0, 0.0], [8.0, 0.0]]), torch.stack([torch.eye(2).double(), 0.01 * torch.eye(2).double()])
)
SHRUNK = ScoreFunction(lambda x_t, k: -0.7 * x_t)
SHIFTED = ScoreFunction(lambda x_t, k: -0.5 * x_t + 0.3)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def autoregressive(rho: float, n: int, seed: int, d: int = 1) -> torch.Tensor:
    z = torch.randn(n, d, generator=seeded(seed), dtype=F64)
    x = [z[0]]
    for v in z[1:]:
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * v)
    return torch.stack(x)


# --- how far a mean may be off ----------------------------------------------------------------------------------------


def test_reach_by_hand() -> None:
    v = t64([0.0, 0.0, 1.0, 2.0, 2.0, 3.0, 4.0, 8.0, 16.0])
    c, q = v.numpy() - v.numpy().mean(), 2.0
    s = v.numpy().std(ddof=1) / 3
    skewness = stats.skew(v.numpy()) / 3
    assert np.sort(c)[-4] < 0  # less than its half lies above the mean: as heavy a tail as there is
    above = (q + skewness / 6 * (1 + 2 * q * q)) * s + 3 / 9 * c.max() / (1 - 0.8)
    low = np.sort(-c)
    hill_below = np.log(low[-3:] / low[-4]).mean()
    below = q * s + 3 / 9 * low.max() / (1 - hill_below)
    assert reach(0.1, v, q) == pytest.approx((below, above), rel=1e-12)
    assert reach(0.1, -v, q) == pytest.approx((above, below), rel=1e-12)
    wider = reach(2 * s, v, q)
    assert wider[0] - below == pytest.approx(q * s, rel=1e-12)
    assert reach(0.5, torch.ones(20, dtype=F64), q) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "mean", "n"), [("expon", 1.0, 20), ("rare", 0.02, 150), ("t3 squared", 3.0, 100), ("t3 squared", 3.0, 300)]
)
def test_a_mean_of_few_large_values_is_covered(name: str, mean: float, n: int) -> None:
    """One of 150 values that is large with probability 0.02 is missed in (0.98)^150 = 4.8 % of the sets."""
    g = np.random.default_rng(0)
    draw = {
        "expon": lambda: g.exponential(size=n),
        "rare": lambda: (g.random(n) < 0.02).astype(float),
        "t3 squared": lambda: g.standard_t(3, n) ** 2,
    }[name]
    q, n_sets = stats.t.isf(0.025, n - 1), 300
    inside = 0
    for _ in range(n_sets):
        v = torch.from_numpy(draw())
        below, above = reach(0.0, v, q)
        inside += v.mean().item() - below <= mean <= v.mean().item() + above
    assert inside / n_sets >= 0.95 - 4 * math.sqrt(0.05 * 0.95 / n_sets)


# --- what the order and the distances of rows show --------------------------------------------------------------------


@pytest.mark.parametrize(("rho", "n"), [(0.5, 300), (0.9, 1000)])
def test_the_correlation_length_is_that_of_an_autoregression(rho: float, n: int) -> None:
    """(1 + ρ)/(1 − ρ), to 2.5 standard errors of ρ on each side; gone when rows are shuffled."""
    want = (1 + rho) / (1 - rho)
    off = 2.5 * math.sqrt((1 - rho**2) / n)
    for seed in range(5):
        x = autoregressive(rho, n, seed, 2)
        found = correlation_length(x.exp())
        assert (1 + rho - off) / (1 - rho + off) - 0.3 * want < found < 1.3 * (1 + rho + off) / (1 - rho - off)
        assert correlation_length(x[torch.randperm(n, generator=seeded(seed))]) == 1


def test_a_slow_drift_and_changing_size_are_seen() -> None:
    z = torch.randn(1000, 1, generator=seeded(0), dtype=F64)
    drift = torch.linspace(-0.5, 0.5, 1000, dtype=F64)[:, None]
    assert correlation_length(z + drift) > 1
    assert correlation_length(z * autoregressive(0.98, 1000, 1).exp()) > 1
    assert correlation_length(z) == 1


def test_independent_rows_raise_no_alarm() -> None:
    g = np.random.default_rng(1)
    several = {
        "Cauchy": lambda: g.standard_cauchy((100, 4)),
        "rare": lambda: (g.random((100, 4)) < 0.03).astype(float),
        "whole numbers": lambda: g.integers(0, 4, (100, 4)).astype(float),
        "clusters": lambda: g.normal(size=(100, 2)) + 20 * g.integers(0, 3, (100, 1)),
    }
    order = near = 0
    for draw in several.values():
        for _ in range(100):
            x = torch.from_numpy(draw())
            order += correlation_length(x) > 1
            near += near_repeats(x, seeded(0))[0] > 0
    assert order <= 4  # 0.4 expected: 5 or more happen once in 14 000
    assert near <= 4
    assert correlation_length(torch.ones(50, 2)) == 1
    assert correlation_length(torch.arange(10.0)[:, None]) == 1  # too few


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("copies", [1, 3])
def test_rows_with_a_little_noise_on_them_nearly_repeat(unit: float, copies: int) -> None:
    g = seeded(0)
    x = torch.randn(200, 3, generator=g, dtype=F64)
    more = [x[:20] + 1e-3 * torch.randn(20, 3, generator=g, dtype=F64) for _ in range(copies)]
    found, n = near_repeats(unit * torch.cat([x, *more]), seeded(1))
    assert n == 200 + 20 * copies
    assert 0.9 * 20 * (1 + copies) <= found <= 20 * (1 + copies)
    assert near_repeats(torch.cat([x, x[:20]]), seeded(1)) == (0, 200)  # exact repeats are counted elsewhere


# --- blocks and units -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "g"), [(40, 4), (103, 8), (1000, 20)])
def test_blocks_of_consecutive_rows(n: int, g: int) -> None:
    """Each a run; even blocks are the first half, and b mod 4 are the quarters."""
    block = consecutive_blocks(n, g)
    assert block.unique().tolist() == list(range(g))
    assert (block.diff() != 0).sum() == g - 1
    assert block.bincount().max() - block.bincount().min() <= 1
    middle = int((block % 2 == 0).sum())
    assert (block[:middle] % 2 == 0).all()
    assert ((block % 4).diff() != 0).sum() == 3


def test_groups_are_dealt_whole_and_evenly() -> None:
    unit = torch.repeat_interleave(torch.arange(30), torch.arange(1, 31))
    block = blocks_of_units(torch.randperm(30, generator=seeded(0)), unit, 8)
    assert all(len(block[unit == u].unique()) == 1 for u in range(30))
    sizes = block.bincount()
    assert len(sizes) == 8
    assert sizes.max() - sizes.min() <= 4
    assert runs(10, 3.0).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_units_have_the_mean_of_rows_and_the_cluster_variance() -> None:
    v, unit = torch.randn(60, generator=seeded(0), dtype=F64), torch.arange(60) % 7
    found = of_units(v, unit)
    assert found.mean().item() == pytest.approx(v.mean().item(), abs=1e-14)
    sums = np.array([(v[unit == u] - v.mean()).sum().item() for u in range(7)])
    stderr = found.std().item() / math.sqrt(7)
    assert stderr == pytest.approx(math.sqrt(7 / 6 * (sums**2).sum()) / 60, rel=1e-12)
    assert of_units(v, None) is v


def test_rows_that_come_three_times_count_once_in_a_ratio() -> None:
    a, b = torch.rand(25, generator=seeded(0), dtype=F64), torch.rand(25, generator=seeded(1), dtype=F64) + 1
    unit = torch.arange(25).repeat(3)
    once, thrice = ratio(a, b), ratio(per_unit(a.repeat(3), unit), per_unit(b.repeat(3), unit))
    assert thrice.value == pytest.approx(once.value, rel=1e-12)
    assert thrice.stderr == pytest.approx(once.stderr, rel=1e-12)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0, 1], r"groups: got shape \(2,\), want one label for each of 40 rows"),
        (["a", "b"] * 20, "groups: got 2 different labels, want at least 4"),
        (torch.zeros(40, 1), r"groups: got shape \(40, 1\)"),
    ],
)
@pytest.mark.usefixtures("as_a_user")
def test_groups_that_are_refused(groups: Any, message: str) -> None:
    x = NORMAL.sample(40, generator=seeded(0))
    for call in (
        lambda: score_error(SHRUNK, None, x, ONE, groups=groups),
        lambda: compare(SHRUNK, SHIFTED, x, ONE, groups=groups),
        lambda: calibration(SHRUNK, x, ONE, groups=groups),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_labels_of_any_kind() -> None:
    want = [1, 0, 1, 2]
    for labels in (
        ["b", "a", "b", "c"],
        np.array([5, 2, 5, 9]),
        t64([5, 2, 5, 9]),
        np.array(["b", "a", "b", "c"], object),
    ):
        found = as_groups(labels, 4)
        assert found is not None
        assert found.tolist() == want
    assert as_groups(None, 4) is None


# --- the reports ------------------------------------------------------------------------------------------------------


def test_copies_in_one_group_do_not_sharpen_the_report() -> None:
    """Each of 40 rows five times: with groups standard errors as from 40 rows, without them √5 smaller."""
    x = NORMAL.sample(40, generator=seeded(3))
    groups = list(range(40)) * 5
    wide = score_error(SHRUNK, None, x, ONE, n_noise=40).levels[0]
    told = score_error(SHRUNK, None, x.repeat(5, 1), ONE, n_noise=8, groups=groups)
    level = told.levels[0]
    untold = score_error(SHRUNK, None, x.repeat(5, 1), ONE, n_noise=8).levels[0]
    assert told.n_independent == 40
    assert told.cautions == ()
    assert 0.6 < level.error.upper.stderr / wide.error.upper.stderr < 1.7
    assert untold.error.upper.stderr < 0.7 * level.error.upper.stderr
    one, five = (compare(SHRUNK, SHIFTED, x.repeat(5, 1), ONE, n_noise=8, groups=g).total for g in (None, groups))
    assert one.stderr < 0.7 * five.stderr
    one, five = (calibration(SHRUNK, x.repeat(5, 1), ONE, groups=g).levels[0].slope for g in (None, groups))
    assert one.stderr < 0.7 * five.stderr
    rows = Rows.dealt(x.repeat(5, 1), seeded(0), torch.tensor(groups))
    assert all(len(rows.block[i::40].unique()) == 1 for i in range(40))


def test_correlated_rows_are_told_and_not_certified() -> None:
    x = autoregressive(0.9, 600, 0)
    found = score_error(SHIFTED, None, x, ONE, n_noise=2)
    (caution,) = found.cautions
    assert caution.startswith("the rows are correlated in their order: 600 of them count as ")
    assert 20 <= (found.n_independent or 0) <= 60
    assert found.levels[0].verdict != "certified"
    assert caution in str(found)
    assert caution in compare(SHRUNK, SHIFTED, x, ONE, n_noise=2).cautions
    assert caution in str(calibration(SHRUNK, x, ONE))
    shuffled = x[torch.randperm(600, generator=seeded(0))]
    as_told = score_error(SHIFTED, None, x, ONE, n_noise=2, groups=range(600))
    for other in (score_error(SHIFTED, None, shuffled, ONE, n_noise=2), as_told):
        assert other.cautions == ()
        assert other.n_independent == 600
        assert other.levels[0].error.upper.stderr < found.levels[0].error.upper.stderr


def test_rows_that_count_as_too_few_leave_the_interval_open() -> None:
    found = score_error(SHIFTED, None, autoregressive(0.99, 200, 1), ONE, n_noise=4)
    assert (found.n_independent or 0) < 8
    assert found.levels[0].interval == (0.0, math.inf)
    assert found.levels[0].verdict == "only bounded below"
    assert "not known from these rows" in str(found)


def test_near_copies_are_told() -> None:
    x = NORMAL.sample(300, generator=seeded(0))
    more = x[:30] + 1e-3 * torch.randn(30, 2, generator=seeded(1), dtype=F64)
    both = torch.cat([x, more])[torch.randperm(330, generator=seeded(2))]
    found = score_error(SHRUNK, None, both, Gaussian(3.0), n_noise=2)
    assert len(found.cautions) == 1
    assert " of 330 rows nearly repeat others: this holds only if they are draws, not copies" in str(found)
    assert found.levels[0].verdict == "bracketed"


def test_nothing_is_certified_from_fewer_than_300_rows() -> None:
    for n, verdict in ((299, "bracketed"), (300, "certified")):
        x = NORMAL.sample(n, generator=seeded(0))
        found = score_error(SHRUNK, None, x, Gaussian(3.0), n_noise=2)
        assert found.levels[0].verdict == verdict
        assert ("a part rarer than 1 % may be unseen" in str(found)) is (verdict == "bracketed")


def test_a_known_law_is_drawn_from() -> None:
    """½·0.02·‖−x/2 + …‖² of a cluster that few of 100 rows show; rows that are not of the law do not matter."""
    x_t = ONE.sample(RARE.sample(200_000, generator=seeded(1)), generator=seeded(2))
    values = 0.5 * (NORMAL.score(x_t, ONE) - RARE.score(x_t, ONE)).square().sum(1)
    truth, slack = values.mean().item(), 2 * values.std().item() / math.sqrt(len(values))
    size = 0.5 * RARE.score(x_t, ONE).square().sum(1).mean().item()
    for seed in range(8):
        found = score_error(NORMAL, RARE, torch.zeros(3, 2, dtype=F64), ONE, generator=seeded(seed))
        (level,) = found.levels
        assert level.verdict == "exact"
        assert level.interval[0] - slack <= truth <= level.interval[1] + slack
        assert level.relative[0] - 0.01 <= truth / size <= level.relative[1] + 0.01
        assert found.n_rows >= 2048
        assert found.n_draws == 2 * found.n_rows
        assert level.error.lower.stderr < 0.15 * truth


def test_which_of_two_models_is_better_is_by_student() -> None:
    """As sure as a normal 4: 5.1 standard errors with 20 blocks, 15.6 with 4."""
    for n_blocks in (4, 20):
        limit = stats.t.isf(stats.norm.sf(4), n_blocks - 1)
        for z, better in ((0.99 * limit, None), (1.01 * limit, "B"), (-1.01 * limit, "A")):
            assert Comparison((), Estimate(z, 1.0), n_blocks).better == better


def test_ranks_are_scipys() -> None:
    """Of columns with ties, and of the distances from their medians; against scipy.stats."""
    x = torch.randint(0, 5, (50, 3), generator=torch.Generator().manual_seed(0)).double()
    distance = ((x - x.median(0).values) / x.std(0)).square().sum(1, keepdim=True)
    want = stats.rankdata(torch.cat([x, distance], 1).numpy(), axis=0)
    np.testing.assert_allclose(_ranks(x).numpy(), want - want.mean(0), atol=1e-12)
