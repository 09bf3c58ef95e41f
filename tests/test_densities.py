"""Log-densities and outliers by the estimator, and the command for them."""

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom, multivariate_normal, norm
from tampering import edit_tensors

from gradlogp import InputError, ScoreDensity
from gradlogp.cli import main
from gradlogp.likelihood import Exact, Hutchinson

MEAN, SCALE = np.array([5.0, -20.0, 0.0]), np.array([0.5, 30.0, 400.0])


def rows(n, seed=0):
    """A correlated Gaussian in units that are far apart."""
    z = np.random.default_rng(seed).normal(size=(n, 3))
    z[:, 1] = 0.8 * z[:, 0] + 0.6 * z[:, 1]
    return MEAN + SCALE * z


def true_log_prob(x):
    correlation = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]])
    return multivariate_normal(MEAN, correlation * np.outer(SCALE, SCALE)).logpdf(x)


@pytest.fixture(scope="module")
def fitted():
    return ScoreDensity(random_state=0, n_steps=50, contamination=0.05, verbose=False).fit(rows(4000))


def test_log_densities_are_per_the_data_s_own_units(fitted):
    x = rows(300, seed=1)
    true, found = true_log_prob(x), fitted.score_samples(x)
    assert true.std() > 1
    assert np.abs(found - true).mean() < 0.1  # 4000 rows: a term of the log-density errs by about 1/√4000
    assert fitted.score(x) == pytest.approx(found.mean())
    assert found.dtype == np.float64


def test_constant_columns_are_left_out():
    x = np.c_[rows(1000), np.full(1000, 7.0)]
    plain = ScoreDensity(random_state=0, n_steps=1, verbose=False, standardize=True)
    without, within = plain.fit(x[:, :3]).score_samples(x[:50, :3]), plain.fit(x).score_samples(x[:50])
    assert np.abs(without - within).max() < 0.1
    x[0, 3] = 7.5  # off the constant there is no density to speak of
    assert plain.score_samples(x[:1])[0] < within[0] - 50


def test_a_trained_density_integrates_to_one():
    g = np.random.default_rng(0)
    x = np.r_[g.normal(-2, 0.3, 700), g.normal(1, 1.0, 1300)][:, None] * 10
    model = ScoreDensity(random_state=0, n_steps=400, verbose=False).fit(x)
    grid = np.linspace(-120, 120, 2001)[:, None]
    density = np.exp(model.score_samples(grid))
    assert np.trapezoid(density, grid[:, 0]) == pytest.approx(1, abs=2e-3)
    true = (0.35 * norm(-20, 3).pdf(grid) + 0.65 * norm(10, 10).pdf(grid))[:, 0]
    assert np.abs(density - true).max() < 0.1 * true.max()


def test_the_probabilities_of_counts_add_up():
    g = np.random.default_rng(0)
    x = np.c_[g.binomial(6, 0.3, 3000), g.normal(2, 3, 3000)]
    model = ScoreDensity(random_state=0, n_steps=200, verbose=False).fit(x)
    counts = np.arange(-1, 8).astype(float)
    mass = np.zeros(len(counts))
    at = np.linspace(-10, 14, 13)  # the other column is integrated over
    for i, y in enumerate(at):
        found = model.log_mass(np.c_[counts, np.full(len(counts), y)], n_draws=24, random_state=i)
        mass += found.value.exp().numpy() * (at[1] - at[0])
    assert mass.sum() == pytest.approx(1, abs=0.05)  # 24 draws a cell, of which the density fills half
    assert np.abs(mass[1:8] - binom(6, 0.3).pmf(np.arange(7))).max() < 0.03
    assert (found.elbo <= found.value).all()


def test_the_accuracy_can_be_chosen(fitted):
    x = rows(20, seed=2)
    fine, coarse = (fitted.log_prob(x, trace=trace) for trace in (Exact(1e-5), Hutchinson(0.1)))
    assert (fine.error < 2e-2).all()  # what is above sigma_max is in it
    assert ((fine.value - coarse.value).abs() < fine.error + coarse.error).all()


def test_outliers_by_scikit_learn_s_conventions(fitted):
    x = rows(500, seed=3)
    far = MEAN + SCALE * np.array([[0.0, 0.0, 7.0], [3.0, -3.0, 0.0]])
    decision, label = fitted.decision_function(np.r_[x[:50], far]), fitted.predict(np.r_[x, far])
    assert set(label) == {-1, 1}
    assert (label[-2:] == -1).all()
    assert np.array_equal(label[[*range(50), -2, -1]] == -1, decision < 0)
    assert decision[:20] == pytest.approx(fitted.score_samples(x[:20]) - fitted.offset_)
    share = (label[:500] == -1).mean()
    assert fitted.outlier_share_.stderr == pytest.approx(np.sqrt(0.05 * 0.95 / 402))  # of 400 held-out rows
    stderr = np.hypot(fitted.outlier_share_.stderr, np.sqrt(0.05 * 0.95 / 500))
    assert abs(share - 0.05) < 4 * stderr


def test_the_threshold_is_saved(fitted, tmp_path):
    fitted.save(tmp_path / "m")
    again = ScoreDensity.load(tmp_path / "m")
    assert again.offset_ == fitted.offset_
    x = rows(5, seed=4)
    assert np.array_equal(again.predict(x), fitted.predict(x))


def test_a_threshold_when_first_asked_for_or_saved(tmp_path):
    model = ScoreDensity(random_state=0, n_steps=1, verbose=False).fit(rows(400))
    assert model._unseen.log_prob is None
    model.save(tmp_path / "m")
    assert len(model._unseen.log_prob) == 40
    again, x = ScoreDensity.load(tmp_path / "m"), rows(200, seed=5)
    assert np.array_equal(again.predict(x), model.predict(x))
    assert (again.predict(x) == -1).mean() == pytest.approx(0.1, abs=0.21)  # 4 √(0.09 (1/40 + 1/200))
    half = again.set_params(contamination=0.5).offset_
    assert (model.score_samples(x) < half).mean() == pytest.approx(0.5, abs=0.35)


def test_a_model_of_a_fit_that_was_stopped_has_no_threshold(fitted, tmp_path):
    fitted.save(tmp_path / "m")
    edit_tensors(tmp_path / "m", lambda tensors: tensors.pop("unseen.log_prob"))
    old = ScoreDensity.load(tmp_path / "m")
    assert not hasattr(old, "offset_")
    with pytest.raises(InputError, match="saved without a threshold, want it fitted and saved again"):
        old.predict(rows(5))


def test_the_likelihood_objective_is_saved_and_used(tmp_path):
    model = ScoreDensity(random_state=0, n_steps=20, objective="likelihood", verbose=False).fit(rows(400))
    plain = ScoreDensity(random_state=0, n_steps=20, verbose=False).fit(rows(400))
    losses = [[record.loss for record in m.history_] for m in (model, plain)]
    assert all(a != b for a, b in zip(*losses, strict=True))
    model.save(tmp_path / "m")
    again = ScoreDensity.load(tmp_path / "m")
    assert again.get_params()["objective"] == "likelihood"
    assert np.array_equal(again.score_samples(rows(5)), model.score_samples(rows(5)))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"contamination": 0.7}, "contamination: got 0.7"),
        ({"contamination": 0.0}, "contamination: got 0.0"),
        ({"objective": "speed"}, "objective: got 'speed'"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(InputError, match=message):
        ScoreDensity(**parameters).fit(rows(20))


def test_bad_rows(fitted):
    for bad in (rows(3)[:, :2], np.full((2, 3), np.nan)):
        with pytest.raises(InputError, match="X"):
            fitted.score_samples(bad)


def test_the_command(fitted, tmp_path, capsys):
    x = np.r_[rows(30, seed=6), [MEAN + 9 * SCALE]]
    pl.DataFrame(x, schema=["a", "b", "c"]).write_csv(tmp_path / "x.csv")
    fitted.save(tmp_path / "m")
    arguments = ["logprob", str(tmp_path / "m"), str(tmp_path / "x.csv"), "--out", str(tmp_path / "out.csv")]
    assert main([*arguments, "--outliers"]) == 0
    told = capsys.readouterr().out
    assert "of 31 rows" in told
    assert "outliers, below" in told
    out = pl.read_csv(tmp_path / "out.csv")
    assert out.columns == ["log_prob", "error", "outlier"]
    assert np.allclose(out["log_prob"], fitted.score_samples(x), atol=1e-6)
    assert out["outlier"][-1] == 1
    assert main([*arguments, "--atol", "-1"]) == 2
    assert "atol" in capsys.readouterr().err


def test_the_command_of_a_model_without_a_share(tmp_path, capsys):
    ScoreDensity(random_state=0, n_steps=1, verbose=False).fit(rows(40)).save(tmp_path / "m")
    np.save(tmp_path / "x.npy", rows(3))
    arguments = ["logprob", str(tmp_path / "m"), str(tmp_path / "x.npy"), "--out", str(tmp_path / "out.npy")]
    assert main([*arguments, "--outliers"]) == 0
    assert "expected 0.2 ± 0.2 of new rows" in capsys.readouterr().out
    assert np.load(tmp_path / "out.npy").shape == (3, 3)
    assert main([*arguments, "--quiet"]) == 0
    assert np.load(tmp_path / "out.npy").shape == (3, 2)
    assert main([*arguments[:-1], str(tmp_path / "out.csv"), "--quiet"]) == 0
    assert pl.read_csv(tmp_path / "out.csv").columns == ["log_prob", "error"]
