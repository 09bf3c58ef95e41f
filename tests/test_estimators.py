"""ScoreDensity: the same every time, the same kind of thing out as in, units right, nothing touched on the way."""

from __future__ import annotations

import copy
import pickle
import random
import statistics
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from gradlogp import ScoreDensity
from gradlogp.kernels import Gaussian
from gradlogp.oracles import GaussianMixture
from gradlogp.samplers import sample

QUICK = {
    "n_steps": 20,
    "width": 16,
    "depth": 1,
    "sampling_steps": 8,
    "random_state": 0,
    "device": "cpu",
    "verbose": False,
}
MIX = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.3, 0.4, 1.2]])


def fit(X, **more) -> ScoreDensity:
    return ScoreDensity(**QUICK | more).fit(X)


def rows(n: int = 80, d: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.fixture(scope="module")
def fitted() -> ScoreDensity:
    return fit(rows())


# -- the same every time


def outputs(est: ScoreDensity) -> list[np.ndarray]:
    X = rows(9, seed=1)
    return [est.sample(11), est.sample(3, random_state=5), est.grad_log_prob(X, 0.3), est.denoise(X, 0.3)]


def test_random_state_gives_the_same_bit_by_bit(fitted, tmp_path):
    torch.manual_seed(1234)  # of no consequence
    again = fit(rows())
    fitted.save(tmp_path / "m")
    for other in (fitted, again, ScoreDensity.load(tmp_path / "m")):
        for got, want in zip(outputs(other), outputs(fitted), strict=True):
            np.testing.assert_array_equal(got, want)
    held_out = [[r.held_out for r in e.history_] for e in (fitted, again)]
    assert held_out[0] == held_out[1]


def test_dropout_is_the_same_too():
    a, b = fit(rows(), dropout=0.5), fit(rows(), dropout=0.5)
    for p, q in zip(a.model_.state_dict().values(), b.model_.state_dict().values(), strict=True):
        assert torch.equal(p, q)


def test_other_seeds_differ(fitted):
    other = fit(rows(), random_state=1)
    assert not np.array_equal(other.sample(5), fitted.sample(5))
    assert not np.array_equal(fitted.sample(5, random_state=1), fitted.sample(5, random_state=2))
    fresh = fit(rows(), random_state=None)
    assert not np.array_equal(fresh.sample(5), fresh.sample(5))


@pytest.mark.usefixtures("as_a_user")
def test_a_numpy_random_state_is_taken():
    X = rows()
    a, b = (fit(X, random_state=np.random.RandomState(3)) for _ in range(2))
    np.testing.assert_array_equal(a.grad_log_prob(X, 1.0), b.grad_log_prob(X, 1.0))


# -- what comes in goes out


FRAME = {
    "age": np.random.default_rng(0).integers(18, 80, 60),
    "weight": np.random.default_rng(1).normal(70, 10, 60),
    "ratio": np.random.default_rng(2).normal(0.5, 0.1, 60).astype(np.float32),
}


@pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])
def test_frames_in_frames_out(library):
    X = library.DataFrame(FRAME)
    est = fit(X)
    drawn = est.sample(20)
    assert type(drawn) is type(X)
    assert list(drawn.columns) == list(X.columns)
    assert list(drawn.dtypes) == list(X.dtypes)
    assert list(est.feature_names_in_) == list(FRAME)
    for out in (est.grad_log_prob(X, 0.5), est.denoise(X, 0.5)):
        assert type(out) is type(X)
        assert list(out.columns) == list(X.columns)
        assert [str(t).lower() for t in out.dtypes] == ["float64", "float64", "float32"]


def test_a_pandas_index_and_another_order_of_columns_are_kept():
    X = pd.DataFrame(FRAME)
    est = fit(X)
    turned = X[["ratio", "age", "weight"]].iloc[10:15]
    got = est.grad_log_prob(turned, 0.5)
    assert list(got.columns) == ["ratio", "age", "weight"]
    assert list(got.index) == list(range(10, 15))
    pd.testing.assert_frame_equal(got[X.columns], est.grad_log_prob(X, 0.5).iloc[10:15], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_arrays_in_arrays_out(dtype):
    X = (10 * rows()).astype(dtype)
    est = fit(X)
    assert est.sample(4).dtype == dtype
    assert est.sample(4).shape == (4, 3)
    floating = dtype if dtype != np.int16 else np.float64
    assert est.grad_log_prob(X, 1.0).dtype == floating
    assert est.denoise(X, 1.0).dtype == floating
    assert est.n_features_in_ == 3
    assert not hasattr(est, "feature_names_in_")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
def test_tensors_in_tensors_out(dtype):
    X = torch.from_numpy(10 * rows()).to(dtype)
    est = fit(X)
    drawn = est.sample(4)
    assert isinstance(drawn, torch.Tensor)
    assert drawn.dtype == dtype
    assert est.grad_log_prob(X, 1.0).dtype == (dtype if dtype.is_floating_point else torch.float64)


def test_another_kind_than_fitted_gives_its_own_kind():
    est = fit(pl.DataFrame(FRAME))
    array = np.column_stack(list(FRAME.values()))
    assert isinstance(est.denoise(array, 0.5), np.ndarray)
    assert isinstance(est.denoise(pd.DataFrame(FRAME), 0.5), pd.DataFrame)


def test_images_keep_their_shape():
    X = np.random.default_rng(0).integers(0, 17, size=(50, 4, 5)).astype(np.uint8)
    est = fit(X)
    drawn = est.sample(6)
    assert drawn.shape == (6, 4, 5)
    assert drawn.dtype == np.uint8
    assert est.grad_log_prob(X[:7], 3.0).shape == (7, 4, 5)
    assert est.noise_scale_.shape == (4, 5)
    assert (est.noise_scale_ == 1).all()


def test_integers_come_back_on_their_grid():
    r = np.random.default_rng(0)
    X = np.column_stack([r.integers(0, 5, 100) * 3, np.round(r.normal(50, 5, 100), 1), r.integers(0, 2, 100)])
    drawn = fit(X).sample(200)
    assert set(drawn[:, 0]) <= {0, 3, 6, 9, 12}
    np.testing.assert_array_equal(drawn[:, 1], np.round(drawn[:, 1], 1))
    assert set(drawn[:, 2]) == {0, 1}
    assert (drawn.min(0) >= X.min(0)).all()
    assert (drawn.max(0) <= X.max(0)).all()


def test_the_data_are_left_alone():
    for X in (rows(), torch.from_numpy(rows()), pl.DataFrame(FRAME)):
        before = copy.deepcopy(X)
        est = fit(X)
        est.grad_log_prob(X, 0.5)
        est.denoise(X, 0.5)
        assert np.array_equal(np.asarray(X), np.asarray(before))


# -- units


@pytest.mark.parametrize(
    ("scale", "standardize"),
    [((1.0, 1.0, 1.0), "auto"), ((1.0, 1.0, 1.0), True), ((1e-3, 1.0, 1e4), "auto")],
    ids=["shared", "standardised", "scales apart"],
)
def test_the_gradient_of_gaussian_data_is_exact(scale, standardize):
    """−(Σ + σ² diag(noise_scale²))⁻¹(x − μ), in 1/unit of each column.

    The relative error of a Gaussian's score from the sample covariance is about √(D/n) = 2 % at σ = 0, and less above;
    the reference's marginals, mixtures of 32, add about as much at σ = 1. Measured: 2.2, 0.9 and 0.2 % at σ = 1, 2, 8.
    """
    scale = np.array(scale)
    r, mean = np.random.default_rng(0), np.array([5.0, -2.0, 1.0]) * scale
    covariance = (MIX @ MIX.T) * np.outer(scale, scale)
    X = mean + (r.normal(size=(8000, 3)) @ MIX.T) * scale
    est = fit(X, standardize=standardize)
    unit = est.noise_scale_
    np.testing.assert_allclose(unit, X.std(0) if standardize is True or scale[0] != 1 else 1.0)
    for sigma, tolerance in ((1.0, 0.05), (2.0, 0.02), (8.0, 0.005)):
        noisy = covariance + sigma**2 * np.diag(unit**2)
        X_t = X[:500] + sigma * unit * r.normal(size=(500, 3))
        want = -np.linalg.solve(noisy / np.outer(unit, unit), ((X_t - mean) / unit).T).T
        got = est.grad_log_prob(X_t, sigma) * unit
        assert np.sqrt(((got - want) ** 2).sum() / (want**2).sum()) < tolerance


def test_above_the_largest_level_the_score_is_the_gaussians(fitted):
    X, model = rows(9, seed=1), fitted.model_
    sigma = 3 * fitted.levels_.sigma_max
    z = torch.from_numpy(X - fitted.units_.offset).float()
    mean, lam, v = (getattr(model.skip.gaussian, k).double() for k in ("mean", "eigenvalues", "eigenvectors"))
    want = -((z.double() - mean) @ v / (lam + sigma**2)) @ v.T
    got = fitted.grad_log_prob(X, sigma)
    # the reference corrected by its marginals: the Gaussian up to skewness, which fades with sigma
    np.testing.assert_allclose(got, want.numpy(), rtol=0.02, atol=1e-3 * np.abs(want.numpy()).max())


def test_denoise_is_tweedie_of_the_gradient():
    for X in (rows(), rows() * [1e-3, 1.0, 1e4]):
        est = fit(X)
        for sigma in (0.1, 1.0, 3.0, 100.0):
            step = (sigma * est.noise_scale_) ** 2 * est.grad_log_prob(X, sigma)
            error = (est.denoise(X, sigma) - (X + step)) / est.noise_scale_
            assert np.abs(error).max() < 1e-5 * max(1.0, sigma)


def test_one_level_a_row_is_as_each_row_alone(fitted):
    X = rows(6, seed=1)
    sigma = np.array([0.05, 0.3, 1.0, 2.0, 5.0, 50.0])
    for each in (sigma, torch.from_numpy(sigma), list(sigma)):
        got = fitted.grad_log_prob(X, each)
        want = np.concatenate([fitted.grad_log_prob(X[i : i + 1], s) for i, s in enumerate(sigma)])
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(fitted.denoise(X), fitted.denoise(X, fitted.levels_.sigma_min))


def test_rows_in_many_slices_are_as_few(fitted, monkeypatch):
    X = rows(50, seed=2)
    want = fitted.grad_log_prob(X, np.linspace(0.1, 9, 50))
    monkeypatch.setattr("gradlogp.estimators.density.ROWS_AT_A_TIME", 7)
    np.testing.assert_allclose(fitted.grad_log_prob(X, np.linspace(0.1, 9, 50)), want, rtol=1e-4, atol=1e-6)
    assert fitted.sample(20).shape == (20, 3)


def test_everything_scales_with_a_shared_unit():
    X = rows() * [1.0, 3.0, 0.5]
    small, large = fit(X), fit(1000 * X)
    assert (small.noise_scale_ == 1).all()
    assert (large.noise_scale_ == 1).all()
    assert large.levels_.sigma_max == pytest.approx(1000 * small.levels_.sigma_max, rel=1e-5)
    assert large.levels_.sigma_min == pytest.approx(1000 * small.levels_.sigma_min, rel=1e-5)
    np.testing.assert_allclose(large.sample(30) / 1000, small.sample(30), atol=1e-3)
    got, want = large.grad_log_prob(1000 * X, 500.0), small.grad_log_prob(X, 0.5)
    np.testing.assert_allclose(1000 * got, want, atol=1e-3)


def test_scales_far_apart_and_large_offsets():
    r = np.random.default_rng(0)
    X = np.column_stack([1e-3 + 1e-6 * r.normal(size=300), 1e6 * r.normal(size=300), 1e9 + r.normal(size=300)])
    est = fit(X)
    np.testing.assert_allclose(est.noise_scale_, X.std(0))
    drawn = est.sample(500)
    np.testing.assert_allclose((drawn.mean(0) - X.mean(0)) / X.std(0), 0, atol=0.25)
    np.testing.assert_allclose(drawn.std(0) / X.std(0), 1, atol=0.2)
    gradient = est.grad_log_prob(X, 1.0) * X.std(0)  # of N(0, 2) in each column's unit: standard deviation ½
    np.testing.assert_allclose(gradient.std(0), 0.5, atol=0.1)


def test_constant_and_collinear_columns_stay_so():
    r = np.random.default_rng(0)
    a = r.normal(size=100)
    X = np.column_stack([a, np.full(100, 7.5), 2 * a + 1])
    est = fit(X)
    drawn = est.sample(50)
    assert (drawn[:, 1] == 7.5).all()
    np.testing.assert_allclose(drawn[:, 2], 2 * drawn[:, 0] + 1, atol=1e-5)
    sigma, off = 0.5, X[:5] + np.array([0.0, 0.25, 0.0])
    np.testing.assert_allclose(est.grad_log_prob(off, sigma)[:, 1], -0.25 / sigma**2, rtol=1e-4)
    np.testing.assert_allclose(est.denoise(off, sigma)[:, 1], 7.5, atol=1e-5)
    across = est.grad_log_prob(X[:5] + 0.1 * np.array([2, 0, -1]), sigma) @ np.array([2, 0, -1])
    np.testing.assert_allclose(across, -0.5 / sigma**2, rtol=1e-3)


def test_sampling_works_with_the_model_alone(fitted):
    g = torch.Generator().manual_seed(0)
    assert sample(fitted.model_, 5, 4, generator=g).shape == (5, 3)


# -- scikit-learn's ways


def test_parameters_and_clone():
    est = ScoreDensity(**QUICK)
    assert est.get_params() == ScoreDensity().get_params() | QUICK
    assert est.set_params(width=7).width == 7
    est.fit(rows())
    fresh = clone(est)
    assert fresh.get_params() == est.get_params()
    with pytest.raises(NotFittedError, match="fit"):
        fresh.sample(1)
    np.testing.assert_array_equal(fresh.fit(rows()).sample(3), est.sample(3))


def test_defaults_are_not_changed_by_fit():
    est = ScoreDensity(**QUICK | {"width": None, "n_steps": 1})
    before = dict(est.get_params())
    est.fit(rows())
    assert est.get_params() == before


def test_a_fitted_estimator_is_pickled_and_copied(fitted):
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        for got, want in zip(outputs(other), outputs(fitted), strict=True):
            np.testing.assert_array_equal(got, want)


def test_fitting_again_forgets_the_first_fit():
    est = fit(pd.DataFrame(FRAME))
    est.fit(rows(d=2))
    assert est.n_features_in_ == 2
    assert not hasattr(est, "feature_names_in_")
    assert est.sample(3).shape == (3, 2)
    np.testing.assert_array_equal(est.sample(3), fit(rows(d=2)).sample(3))


def test_the_history_is_kept_and_steps_can_be_watched():
    est = ScoreDensity(**QUICK | {"n_steps": 200, "patience": 10})
    records = list(est.fit_steps(rows()))
    assert records == est.history_
    assert [r.step for r in records if r.step > 0] == [25, 50, 75, 100, 125, 150, 175, 200]
    assert records[-1].progress == 1
    assert all(r.held_out_stderr > 0 for r in records)
    assert est.self_check_.holds


def test_max_seconds_ends_the_training():
    est = fit(rows(), n_steps=10**7, max_seconds=0.5, patience=10**6)
    assert 0 < est.history_[-1].step < 10**7
    assert est.history_[-1].seconds < 3


# -- nothing touched


def state() -> tuple:
    array = np.random.get_state()
    return (
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        array[1].tolist(),
        array[2:],
        random.getstate(),
    )


@pytest.mark.usefixtures("as_a_user")
def test_global_state_is_untouched(fitted, tmp_path):
    before = state()
    est = fit(rows(), dropout=0.3)
    assert state() == before
    est.sample(3)
    est.grad_log_prob(rows(), 1.0)
    est.save(tmp_path / "m")
    ScoreDensity.load(tmp_path / "m").sample(2)
    assert state() == before


def test_global_state_is_untouched_by_another_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        est = fit(rows())
        assert torch.get_default_dtype() == torch.float64
        np.testing.assert_allclose(est.sample(5), fit(rows()).sample(5))
    finally:
        torch.set_default_dtype(torch.float32)


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_light_and_changes_nothing():
    code = (
        "import sys, torch, numpy as np\n"
        "numbers = lambda: (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())\n"
        "state = lambda: (*numbers(), torch.get_default_dtype())\n"
        "before = state()\n"
        "import gradlogp\n"
        "print([m for m in ('sklearn', 'matplotlib', 'polars', 'pandas') if m in sys.modules])\n"
        "from gradlogp import ScoreDensity\n"
        "print(state() == before, 'matplotlib' in sys.modules)"
    )
    assert python(code).splitlines() == ["[]", "True False"]


def test_import_is_quick():
    code = "import time, torch\nstart = time.perf_counter()\nimport gradlogp\nprint(time.perf_counter() - start)"
    assert statistics.median(float(python(code)) for _ in range(3)) <= 0.3


def test_whole_numbers_of_unlike_size_do_not_share_a_unit():
    """Ages, children and time stamps lie on one grid, of step 1, and are no pixels."""
    r = np.random.default_rng(0)
    X = np.stack([r.integers(18, 90, 600), r.integers(0, 4, 600), r.integers(1_600_000_000, 1_700_000_000, 600)], 1)
    est = ScoreDensity(n_steps=20, random_state=0, verbose=False).fit(X)
    np.testing.assert_allclose(est.noise_scale_, X.std(0))
    share = np.bincount(est.sample(2000)[:, 1], minlength=4) / 2000
    assert np.abs(share - np.bincount(X[:, 1]) / 600).max() < 0.08


def test_pixels_share_a_unit_even_if_some_hardly_vary():
    r = np.random.default_rng(0)
    X = r.integers(0, 17, (200, 4))
    X[:, 3] = 0
    X[0, 3] = 1
    assert (ScoreDensity(n_steps=1, random_state=0, verbose=False).fit(X).noise_scale_ == 1).all()


def test_the_score_is_never_worse_than_the_closed_form_at_any_level():
    """A known mixture, half of its coordinates correlated: the relative error of the score from σ_min to σ_max."""
    g = torch.Generator().manual_seed(0)
    rho = 0.9 * torch.ones(4, 4) + 0.1 * torch.eye(4)
    covariances = torch.stack([rho, torch.eye(4)])
    exact = GaussianMixture(torch.ones(2), torch.zeros(2, 4), covariances)
    X = exact.sample(1500, generator=g).numpy()
    est = ScoreDensity(n_steps=300, random_state=0, verbose=False).fit(X)
    for sigma in np.geomspace(est.levels_.sigma_min, est.levels_.sigma_max, 7):
        kernel = Gaussian(float(sigma))
        x_t = kernel.sample(exact.sample(3000, generator=g), generator=g)
        want = exact.score(x_t, kernel)
        learnt = torch.as_tensor(est.grad_log_prob(x_t.numpy(), sigma))
        closed = est.model_.skip.score(x_t - torch.from_numpy(est.units_.offset).float(), kernel)
        error, before = ((s - want).square().sum() / want.square().sum() for s in (learnt, closed))
        assert error < 1.05 * before + 0.01, sigma
