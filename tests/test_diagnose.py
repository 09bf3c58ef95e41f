"""``diagnose``, of the estimator and the command, and ``score_error_``: on the right rows, in the right units, kept."""

from __future__ import annotations

import json
import os
import re
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from tampering import edit_config

from gradlogp import InputError, ScoreDensity, audit
from gradlogp.cli import main
from gradlogp.diagnostics import ScoreError, score_error
from gradlogp.diagnostics.references import default_noise
from gradlogp.estimators import diagnosis
from gradlogp.kernels import Gaussian

QUICK = {"n_steps": 20, "width": 8, "depth": 1, "random_state": 0, "device": "cpu", "verbose": False}


def frame(n: int, seed: int = 0) -> pl.DataFrame:
    r = np.random.default_rng(seed)
    return pl.DataFrame({"age": r.integers(18, 80, n), "income": r.lognormal(10, 1, n), "ratio": r.normal(size=n)})


TRAIN, TEST = frame(100), frame(40, 1)


@pytest.fixture(scope="module")
def est() -> ScoreDensity:
    return ScoreDensity(**QUICK).fit(TRAIN)


@pytest.fixture(scope="module")
def found(est) -> audit.Audit:
    return est.diagnose(TEST, TRAIN, n_levels=3)


@pytest.fixture(scope="module")
def home(est, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    est.save(home / "model")
    TRAIN.write_csv(home / "train.csv")
    TEST.write_parquet(home / "test.parquet")
    frame(7).write_csv(home / "few.csv")
    pl.DataFrame({"a": [1.0, 2.0]}).write_csv(home / "other.csv")
    return home


def run(capsys, *argv: object) -> tuple[int, str, str]:
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


# -- the error that fit measures


def same(a: ScoreError, b: ScoreError) -> bool:
    return (a.n_rows, a.n_draws) == (b.n_rows, b.n_draws) and all(
        {k: v for k, v in vars(x).items() if k != "kernel"} == {k: v for k, v in vars(y).items() if k != "kernel"}
        and x.sigma == y.sigma
        for x, y in zip(a.levels, b.levels, strict=True)
    )


def test_fit_measures_the_error_on_its_held_out_rows(est, monkeypatch):
    assert est.n_held_out_ == est.score_error_.n_rows == 10
    sigma = [level.sigma for level in est.score_error_.levels]
    assert len(sigma) == 12
    assert (sigma[0], sigma[-1]) == pytest.approx((est.levels_.sigma_min, est.levels_.sigma_max))
    assert np.ptp(np.diff(np.log(sigma))) < 1e-9
    seen = []

    def watched(model, reference, rows, kernels, groups, n_noise, generator):
        assert groups is None
        seen.append((reference, rows, score_error(model, reference, rows, kernels[:1], generator=generator)))
        return seen[-1][-1]

    monkeypatch.setattr(diagnosis, "score_error", watched)
    again = ScoreDensity(**QUICK | {"n_steps": 1}).fit(TRAIN)
    assert seen == []  # not before it is asked for
    assert again.score_error_ is again.score_error_
    ((reference, rows, error),) = seen
    assert again.score_error_ is error
    assert reference == [again.model_.skip]
    values = again.units_.to_model(TRAIN.to_numpy().astype(float))
    is_row = (rows[:, None] == values).all(2)
    assert is_row.any(1).all()  # rows of the data, and
    inside = values[~is_row.any(0)]
    np.testing.assert_allclose(again.model_.reference.mean, inside.mean(0), atol=1e-5)  # not those trained on


def test_too_few_held_out_rows_are_not_measured():
    small = ScoreDensity(**QUICK).fit(TRAIN[:70])
    assert small.score_error_ is None
    assert small.n_held_out_ == 7


def test_the_error_comes_back_as_it_was(est, tmp_path):
    est.save(tmp_path / "m")
    other = ScoreDensity.load(tmp_path / "m")
    assert same(other.score_error_, est.score_error_)
    assert str(other.score_error_) == str(est.score_error_)
    assert other.score_error_.to_frame().equals(est.score_error_.to_frame())
    assert other.n_held_out_ == 10


def test_infinite_ends_come_back(est):
    level = est.score_error_.levels[0]
    wide = ScoreError((diagnosis._level(diagnosis._level_to_json(level)),), 10, 10)
    entry = diagnosis.to_json(wide)
    entry["levels"][0] |= {"r2_interval": ["-inf", 1.0], "estimate": [0.1, "inf"], "where": "x0 < 1"}
    back = diagnosis.from_json(json.loads(json.dumps(entry, allow_nan=False)))
    assert back.levels[0].r2_interval == (-np.inf, 1.0)
    assert back.levels[0].estimate.stderr == np.inf
    assert diagnosis.to_json(back) == entry


def test_models_without_an_error_are_loaded(home, tmp_path, capsys):
    ScoreDensity.load(home / "model").save(tmp_path / "m")
    edit_config(tmp_path / "m", lambda c: c.update(score_error=None))
    few = ScoreDensity.load(tmp_path / "m")
    assert few.score_error_ is None
    few.save(tmp_path / "again")
    _, out, _ = run(capsys, "info", tmp_path / "again")
    assert "not measured in fit (stopped, or too few" in out
    ScoreDensity.load(tmp_path / "again")


def test_an_error_that_is_no_error_is_refused(home, tmp_path):
    ScoreDensity.load(home / "model").save(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    error = config["score_error"]
    for wrong in ([], {"levels": 3}, "text", error | {"levels": [{"sigma": -1}]}, error | {"n_independent": "many"}):
        edit_config(tmp_path / "m", lambda c, wrong=wrong: c.update(score_error=wrong))
        with pytest.raises(InputError, match="does not fit together"):
            ScoreDensity.load(tmp_path / "m")


def test_info_and_fit_print_the_error(home, tmp_path, capsys, est):
    told = f"{str(est.score_error_).removeprefix('score error ')} (all levels together; 10 held-out rows, which"
    _, out, _ = run(capsys, "info", home / "model")
    assert re.search(f"^score error +{re.escape(told)} also chose when to stop", out, re.MULTILINE)
    quick = ("--steps", 20, "--width", 8, "--depth", 1, "--seed", 0, "--device", "cpu")
    _, out, _ = run(capsys, "fit", home / "train.csv", "--out", tmp_path / "m", *quick)
    assert re.search(r"^score error .* also chose when to stop", out, re.MULTILINE)


# -- diagnose


def test_diagnose_measures_the_rows_given_in_the_models_units(est, found):
    units = est.units_
    test, train = (units.to_model(x.to_numpy().astype(float)) for x in (TEST, TRAIN))
    kernels = [Gaussian(v.sigma) for v in found.score_error.levels]
    generator = torch.Generator().manual_seed(0)
    noise = default_noise(len(test), audit.MIN_DRAWS)
    want = score_error(est.model_, [est.model_.skip, train], test, kernels, n_noise=noise, generator=generator)
    assert same(found.score_error, want)
    assert found.repeats == audit.Repeats(100, 0, 40, 0)
    assert found.history == tuple(est.history_)
    np.testing.assert_allclose(found.data, TEST.to_numpy(), rtol=1e-5)
    ages = found.samples[:, 0]
    assert (ages == np.rint(ages)).all()
    assert found.view.names == ("age", "income", "ratio")
    assert found.view.sigma_unit == "standard deviations of each column"
    assert "income" not in str(found)


def test_another_kind_and_order_of_columns_make_the_same_report(est, found):
    shuffled = TEST.select("ratio", "age", "income").to_pandas()
    assert isinstance(shuffled, pd.DataFrame)
    again = est.diagnose(shuffled, TRAIN, n_levels=3)
    assert same(again.score_error, found.score_error)
    assert again.neighbours == found.neighbours


def test_another_seed_makes_other_draws(est, found):
    other = est.diagnose(TEST, n_levels=3, random_state=5)
    assert other.memorisation is None
    assert not same(other.score_error, found.score_error)


def test_diagnose_changes_nothing_in_the_model(est, found):
    before = {k: v.clone() for k, v in est.model_.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    est.diagnose(TEST[:8], n_levels=2)
    assert all(torch.equal(v, before[k]) for k, v in est.model_.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not est.model_.training


def test_pixels_are_shown_as_images():
    x = np.random.default_rng(0).integers(0, 17, size=(80, 16)).astype(float)
    est = ScoreDensity(**QUICK | {"n_steps": 2}).fit(x)
    found = est.diagnose(x[:1].repeat(8, 0) + np.eye(8, 16), n_levels=2)
    assert found.view.sigma_unit == "data unit"
    assert found.view.image_shape((16,)) == (4, 4)
    assert not est.diagnose(x[:8] + 0.5, n_levels=2).view.image_shape((15,))


@pytest.mark.parametrize("constant", [True, False])
def test_hard_rows_are_measured_all_the_same(constant):
    """Constant columns, few values, rows that repeat."""
    r = np.random.default_rng(0)
    x = np.c_[r.integers(0, 2, (120, 2)), np.ones(120) if constant else r.integers(0, 3, 120)].astype(float)
    est = ScoreDensity(**QUICK | {"n_steps": 2}).fit(x[:100])
    assert est.score_error_.n_rows == 10
    found = est.diagnose(x[100:], x[:100], n_levels=2)
    assert found.repeats == audit.Repeats(100, 100, 20, 20)
    assert "are training rows" not in found.sentences.not_good
    assert found.to_html().count("<img") == 5


@pytest.mark.parametrize(
    ("x", "more", "message"),
    [
        (TEST[:7], {}, "X_test: got 7 rows, want at least 8"),
        (TEST.drop("age"), {}, "X_test: got no column 'age'"),
        (TEST.with_columns(age=None), {}, "X_test"),
        (TRAIN, {"X_train": TRAIN}, "held-out rows: got 100 that are all among the training rows"),
        (TEST, {"X_train": TEST.drop("age")}, "X_train: got no column 'age'"),
        (TEST, {"n_levels": 1}, "n_levels: got 1, want at least 2"),
        (TEST, {"n_levels": 2.5}, "n_levels: got 2.5"),
        (TEST, {"random_state": "x"}, "random_state: got 'x'"),
        (TEST, {"out": "no/such/folder"}, "no/such/folder: the folder .* does not exist"),
        ("text", {}, "X_test: got the text"),
    ],
)
def test_bad_input_is_refused(est, x, more, message, as_a_user):
    with pytest.raises(InputError, match=message) as e:
        est.diagnose(x, **more)
    assert "\n" not in str(e.value)


# -- the command


def test_the_command_writes_the_report_into_the_models_folder(home, tmp_path, capsys, found):
    ScoreDensity.load(home / "model").save(tmp_path / "m")
    argv = ("diagnose", tmp_path / "m", home / "test.parquet", "--train", home / "train.csv", "--levels", 3)
    code, out, err = run(capsys, *argv)
    assert (code, err) == (0, "")
    assert out == f"{found}\nwrote {tmp_path / 'm' / 'report.html'} and report.json\n"
    names = ["config.json", "model.safetensors", "report.html", "report.json"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == names
    ScoreDensity.load(tmp_path / "m")
    again = ("fit", home / "train.csv", "--out", tmp_path / "m", "--steps", 2, "--width", 8, "--quiet")
    assert run(capsys, *again) == (0, "", "")  # fit replaces it
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == names[:2]


def test_the_command_writes_elsewhere_and_is_quiet(home, tmp_path, capsys):
    argv = ("diagnose", home / "model", home / "test.parquet", "--levels", 2, "--seed", 3, "--out", tmp_path / "r")
    assert run(capsys, *argv, "--quiet") == (0, "", "")
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["report.html", "report.json"]
    assert len(json.loads((tmp_path / "r" / "report.json").read_text())["score_error"]) == 2
    assert sorted(p.name for p in (home / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_a_bar_on_a_terminal(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    argv = ("diagnose", home / "model", home / "test.parquet", "--levels", 2, "--out", tmp_path / "r")
    _, _, err = run(capsys, *argv)
    assert "diagnose" in err
    assert "%" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere", "test.parquet"], "nowhere: no such folder, want a saved model"),
        (["model", "nowhere.csv"], "nowhere.csv"),
        (["model", "other.csv"], "other.csv: got no column"),
        (["model", "few.csv"], "few.csv: got 7 rows, want at least 8"),
        (["model", "test.parquet", "--train", "other.csv"], "other.csv: got no column"),
        (["model", "train.csv", "--train", "train.csv"], "train.csv: got 100 that are all among the training rows"),
        (["model", "test.parquet", "--out", "few.csv"], "few.csv: is a file, want a folder for the report"),
        (["model", "test.parquet", "--out", "no/folder"], "does not exist"),
        (["model", "test.parquet", "--levels", "1"], "--levels: got 1, want at least 2"),
        (["model", "test.parquet", "--levels", "x"], "argument --levels: got 'x', want a whole number"),
    ],
)
def test_mistakes_are_told_on_one_line(home, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(home)
    code, out, err = run(capsys, "diagnose", *argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(os.listdir(home / "model")) == ["config.json", "model.safetensors"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gradlogp.audit.result.os.access", lambda *_: False)
    monkeypatch.setattr("gradlogp.estimators.diagnosis.measure", lambda *_, **__: 1 / 0)
    code, _, err = run(capsys, "diagnose", home / "model", home / "test.parquet", "--out", tmp_path)
    assert code == 2
    assert "must not be written in, want another folder" in err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(home, tmp_path, capsys):
    tmp_path.chmod(0o500)
    code, _, err = run(capsys, "diagnose", home / "model", home / "test.parquet", "--out", tmp_path)
    tmp_path.chmod(0o700)
    assert code == 2
    assert "must not be written in" in err
