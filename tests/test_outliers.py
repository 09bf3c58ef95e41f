"""The threshold of outliers, the share of new rows below it, and rows too far away for a number."""

from __future__ import annotations

import re
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.stats import norm

from gradlogp import InputError, ScoreDensity
from gradlogp.estimators import outliers
from gradlogp.estimators.outliers import NoThresholdError, Unseen
from gradlogp.estimators.summary import NOT_KEPT, measured

FAR = (1e16, 1e19, 1e25, 1e40, 1e200, 1.7e308)


def unseen(values, labels=None):
    values = torch.as_tensor(values, dtype=torch.float64)
    return Unseen(None, torch.arange(len(values)) if labels is None else torch.as_tensor(labels), values)


@pytest.mark.parametrize(("n", "share"), [(19, 0.05), (19, 0.1), (39, 0.3), (200, 0.05)])
def test_the_share_below_the_threshold_is_that_asked_for(n, share):
    rng = np.random.default_rng(0)
    tables = [unseen(rng.normal(size=n)) for _ in range(1500)]
    found = norm.cdf([table.threshold(share) for table in tables])
    stderr = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - share) < 4 * stderr + 0.02 / n  # a plain quantile is off by up to 1/n
    assert tables[0].share(share).stderr == pytest.approx(found.std(), rel=0.15)


def test_between_two_ranks_the_threshold_is_interpolated():
    table = unseen([3.0, 1.0, 2.0, 10.0])
    assert [table.threshold(c) for c in (0.2, 0.3, 0.4, 0.5)] == pytest.approx([1.0, 1.5, 2.0, 2.5])


def test_copies_count_as_one_row():
    rng = np.random.default_rng(1)
    values = rng.normal(size=60)
    once, five = unseen(values), unseen(values.repeat(5), np.arange(60).repeat(5))
    assert five.n_independent == 60
    assert five.share(0.1) == once.share(0.1)
    assert five.threshold(0.1) == pytest.approx(once.threshold(0.1), abs=0.1)
    one_often = unseen(np.r_[values, np.full(60, values.max())], np.r_[np.arange(60), np.full(60, values.argmax())])
    assert one_often.threshold(0.1) == pytest.approx(once.threshold(0.1))
    with pytest.raises(InputError, match=r"got 0.01 with 60 unseen rows, want at least 0.0164"):
        five.threshold(0.01)


def test_a_share_below_the_resolution_of_the_rows_is_refused_before_long_work(monkeypatch):
    x = np.random.default_rng(0).normal(size=(50, 2))
    monkeypatch.setattr("gradlogp.estimators.density.train", None)
    with pytest.raises(InputError, match=r"contamination: got 0.01 for 50 different rows, want at least 0.0196"):
        ScoreDensity(contamination=0.01, verbose=False).fit(x)
    with pytest.raises(InputError, match="for 10 different rows"):
        ScoreDensity(contamination=0.05, verbose=False).fit(x[:10].repeat(5, 0))


def test_no_threshold_is_an_attribute_that_is_not_there():
    empty = Unseen(None, torch.zeros(0, dtype=torch.long))
    with pytest.raises(NoThresholdError, match="want it fitted and saved again"):
        empty.threshold(0.5)


@pytest.fixture(scope="module")
def est():
    """Few rows, so that further models place the threshold; four of them."""
    x = np.random.default_rng(0).normal(size=(80, 2)) * [1.0, 3.0]
    quick = {"n_steps": 5, "width": 8, "depth": 1, "sampling_steps": 3}
    with mock.patch.object(outliers, "N_FOLDS", 4):
        return ScoreDensity(random_state=0, contamination=0.1, verbose=False, **quick).fit(x)


def test_few_rows_are_all_measured_each_by_a_model_that_has_not_seen_it(est):
    assert len(est._unseen.log_prob) == est._unseen.n_independent == 80
    assert est.outlier_share_.value == 0.1
    assert est.outlier_share_.stderr == pytest.approx(np.sqrt(0.1 * 0.9 / 82))
    new = np.random.default_rng(1).normal(size=(400, 2)) * [1.0, 3.0]
    share = (est.predict(new) == -1).mean()
    assert abs(share - 0.1) < 4 * np.hypot(est.outlier_share_.stderr, np.sqrt(0.09 / 400))


def test_without_a_share_the_held_out_rows_show_the_least_they_can(est):
    few = Unseen(None, torch.arange(5), torch.arange(5.0))
    asked = ScoreDensity()
    assert outliers.asked(asked, few) == pytest.approx(1 / 6)
    assert outliers.asked(asked, unseen(range(50))) == 0.1
    assert outliers.asked(est, few) == 0.1


@pytest.mark.parametrize("far", FAR)
def test_rows_far_out_are_outliers_and_otherwise_an_error_that_says_where(est, far):
    x = np.array([[0.0, 0.0], [0.5, -far], [0.0, 1.0]])
    label = est.predict(x)
    assert label[1] == -1
    assert np.array_equal(label[[0, 2]], est.predict(x[[0, 2]]))
    calls = {
        "score_samples": est.score_samples, "log_prob": est.log_prob, "score": est.score, "log_mass": est.log_mass,
        "decision_function": est.decision_function, "grad_log_prob": est.grad_log_prob, "denoise": est.denoise,
        "to_model": est.to_model, "std": lambda x: est.denoise(x, return_std=True),
    }  # fmt: skip
    for name, call in calls.items():
        with pytest.raises(InputError, match=f"^X: got {re.escape(f'{-far:g}')} in column 1 at row 1"):
            pytest.fail(f"{name}: {call(x)}")
    with pytest.raises(InputError, match=r"^X_test: got"):
        est.diagnose(np.r_[x, x, x])


@pytest.mark.parametrize("size", [1e3, 1e12])
def test_rows_that_float32_holds_have_finite_numbers(est, size):
    x = np.array([[0.0, size], [size, -size]])
    for value in (est.grad_log_prob(x), est.denoise(x), est.decision_function(x)):
        assert np.isfinite(value).all()
    assert (value < 0).all()


@pytest.mark.parametrize(("learning_rate", "kept"), [(0.1, 25), (10.0, 0)])
def test_a_fit_that_keeps_no_step_says_so(learning_rate, kept, capsys, monkeypatch):
    monkeypatch.setattr("gradlogp.estimators.density.mixtures", lambda *_: [])
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 400)
    x = np.c_[np.cos(angle), np.sin(angle)]
    quick = {"n_steps": 25, "width": 8, "depth": 1, "sampling_steps": 2, "learning_rate": learning_rate}
    est = ScoreDensity(random_state=0, **quick).fit(x)
    assert est.kept_step_ == kept
    told = capsys.readouterr().err
    assert ("No step of training was kept" in told) == (kept == 0)
    assert any(text.startswith("No step of training was kept") for _, text in measured(est)) == (kept == 0)


def test_training_that_helps_nothing_stops_by_itself_and_says_so(capsys):
    """Ten looks, one every 25 steps, and no limit of steps or time is met."""
    x = np.random.default_rng(0).normal(size=(300, 30))
    est = ScoreDensity(random_state=0, width=8, depth=1).fit(x)
    assert (est.kept_step_, est.history_[-1].step) == (0, 250)
    assert capsys.readouterr().err.splitlines()[-1] == f"fit: {NOT_KEPT}"
