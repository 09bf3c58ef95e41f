"""Columns of any finite size, in the model's units and back, or refused in one line."""

from __future__ import annotations

import numpy as np
import pytest

from gradlogp import InputError, ScoreDensity
from gradlogp.data import detect_grid, read
from gradlogp.estimators.units import Units


def units_of(x, standardize="auto"):
    table = read(x)
    return Units.of_data(table.values, standardize, detect_grid(table.values), table.schema)


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(100, 3)) * [1.0, 2.0, 3.0] + 1.0


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-13, 1e-12, 1.0, 1e12, 1e13, 1e200, 1e299])
def test_moments_of_any_size_scale_with_the_data(x, scale):
    one, units = units_of(x, True), units_of(x * scale, True)
    assert units.offset / scale == pytest.approx(one.offset, rel=1e-12)
    assert units.scale / scale == pytest.approx(one.scale, rel=1e-12)
    z = units.to_model(x * scale).numpy()
    assert z == pytest.approx(one.to_model(x).numpy(), abs=1e-6)
    assert units.from_model(units.to_model(x * scale)) / scale == pytest.approx(x, rel=1e-5, abs=1e-6)


def test_columns_that_float32_holds_keep_their_own_unit(x):
    for scale in (1e-11, 1.0, 1e11):
        assert np.array_equal(units_of(x * scale).scale, np.ones(3))
    assert units_of(x).in_words == "the columns' shared unit"
    assert units_of(x * [1, 1e3, 1e6]).in_words == "standard deviations of each column"


def test_others_share_a_unit_that_float32_holds(x):
    for scale in (1e-200, 1e-20, 1e20, 1e200):
        units = units_of(x * scale)
        assert units.shared
        assert units.scale == pytest.approx(np.full(3, (x * scale / scale).std(0).max() * scale), rel=1e-9)
        assert units.in_words.startswith("units of ")
        with pytest.raises(InputError, match="standardize: got False and standard deviations from"):
            units_of(x * scale, False)


def test_columns_of_scales_far_apart(x):
    units = units_of(x * [1e-299, 1.0, 1e299])
    assert units.to_model(x * [1e-299, 1.0, 1e299]).numpy().std(0) == pytest.approx(np.ones(3), rel=1e-5)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            [1.7e308, -1.7e308, 1.0, 2.0],
            "X: column 1: got a value beyond 1e\\+300 at row 0, want the column divided",
        ),
        (
            [1e-310, 2e-310, 3e-310, 1e-310],
            "X: column 1: got a standard deviation below 1e-300, want the column",
        ),
        ([0.1, 0.2, 0.3, 1e200], "X: column 1: got 1e\\+200 at row 3, so far from the others"),
        ([1e9, 1.0, 2.0, -0.5], "X: column 1: got 1e\\+09 at row 0, so far from the others"),
    ],
)
def test_columns_that_cannot_be_held_are_refused_in_a_true_line(x, column, message):
    values = x[:40].copy()
    values[:4, 1] = column
    if "deviation" in message:
        values[:, 1] = np.resize(column, 40)
    with pytest.raises(InputError, match=f"^{message}") as error:
        ScoreDensity(verbose=False).fit(values)
    assert "\n" not in str(error.value)


def test_a_constant_column_may_have_any_value(x):
    values = np.c_[x, np.full(100, 1e299)]
    assert np.isfinite(units_of(values).to_model(values).numpy()).all()


def test_a_fit_does_not_see_the_unit():
    x = np.random.default_rng(0).normal(size=(40, 2)) @ [[1.0, 0.5], [0.0, 0.3]]
    quick = {"random_state": 0, "n_steps": 3, "width": 8, "depth": 1, "sampling_steps": 2, "verbose": False}
    one, huge = ScoreDensity(**quick, standardize=True).fit(x), ScoreDensity(**quick, standardize=True).fit(x * 1e250)
    for a, b in (
        (one.sample(3), huge.sample(3) / 1e250),
        (one.score_samples(x[:2]), huge.score_samples(x[:2] * 1e250) + 2 * np.log(1e250)),
        (one.grad_log_prob(x[:2]), huge.grad_log_prob(x[:2] * 1e250) * 1e250),
        (one.denoise(x[:2]), huge.denoise(x[:2] * 1e250) / 1e250),
    ):
        assert b == pytest.approx(a, rel=2e-3, abs=1e-3)
