"""Second-order Tweedie: the covariance of the clean datum given the noisy one."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as td

from gradlogp import InputError, ScoreDensity
from gradlogp.cli import main
from gradlogp.kernels import Additive, Gaussian
from gradlogp.models import GaussianReference, ScoreFunction, from_denoiser, posterior, posterior_covariance
from gradlogp.oracles import Empirical, GaussianMixture

F64 = torch.float64
Z90 = stats.norm.ppf(0.95)


def mixture(event=(3,)):
    g = torch.Generator().manual_seed(0)
    d = int(np.prod(event))
    root = torch.randn(3, d, d, generator=g, dtype=F64) / 2
    means = 1.5 * torch.randn(3, *event, generator=g, dtype=F64)
    return GaussianMixture(torch.tensor([0.2, 0.5, 0.3]), means, root @ root.mT)


KERNELS = [
    Gaussian(0.6),
    Gaussian(0.6, alpha=0.5),
    Gaussian(torch.linspace(0.2, 2.0, 7, dtype=F64), torch.linspace(0.2, 1.0, 7, dtype=F64)),
    Additive(td.Normal(torch.tensor([0.1, -0.2, 0.3], dtype=F64), torch.tensor([0.2, 0.5, 1.0], dtype=F64))),
    Additive(td.MultivariateNormal(torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64) + 0.4)),
]


def rows(n, *event, seed=1):
    return torch.randn(n, *event, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_it_is_the_posterior_covariance_of_a_mixture(kernel):
    """From the score alone, against the closed form over components, under noise of every kind and scale."""
    oracle, x_t = mixture(), 2 * rows(7, 3)
    model = ScoreFunction(oracle.score)
    c, removed = posterior_covariance(model, x_t, kernel)
    torch.testing.assert_close(c, oracle.posterior_covariance(x_t, kernel), rtol=1e-8, atol=1e-9)
    assert removed.max().item() < 1e-9
    found = posterior(model, x_t, kernel)
    want = oracle.posterior_covariance(x_t, kernel).diagonal(dim1=1, dim2=2).sqrt()
    torch.testing.assert_close(found.std, want, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found.mean, oracle.denoise(x_t, kernel), rtol=1e-9, atol=1e-9)


def test_it_is_the_weighted_covariance_of_a_data_set():
    """Rows weighted by k(x_t | x_i), by NumPy."""
    data, x_t = rows(30, 2, seed=3), rows(5, 2)
    c, _ = posterior_covariance(Empirical(data), x_t, Gaussian(0.7))
    for i in range(5):
        w = np.exp(-((x_t[i] - data) ** 2).sum(1).numpy() / (2 * 0.49))
        np.testing.assert_allclose(c[i].numpy(), np.cov(data.numpy().T, aweights=w, ddof=0), rtol=1e-8)


def test_an_event_of_any_shape_and_slices_of_rows(monkeypatch):
    flat, image, x_t = mixture((4,)), mixture((2, 2)), rows(9, 4)
    whole = posterior(flat, x_t, Gaussian(0.5))
    shaped = posterior(image, x_t.reshape(9, 2, 2), Gaussian(0.5))
    monkeypatch.setattr(sys.modules["gradlogp.models.posterior"], "_WORKSPACE", 32)
    sliced = posterior(flat, x_t, Gaussian(torch.full((9,), 0.5, dtype=F64)))
    for name in ("mean", "std"):
        torch.testing.assert_close(getattr(shaped, name).flatten(1), getattr(whole, name))
        torch.testing.assert_close(getattr(sliced, name), getattr(whole, name))


def test_what_is_no_covariance_becomes_the_nearest_one():
    """A denoiser with a known Jacobian: its symmetric part, with eigenvalues below 0 set to 0, by NumPy."""
    j = torch.tensor([[0.5, 0.4, 0.0], [-0.2, -0.3, 0.1], [0.3, 0.0, 0.2]], dtype=F64)
    c, removed = posterior_covariance(from_denoiser(lambda v: v @ j.T, 0.5), rows(2, 3), Gaussian(0.5))
    symmetric = 0.25 * (j + j.T).numpy() / 2
    w, v = np.linalg.eigh(symmetric)
    np.testing.assert_allclose(c[0].numpy(), v @ np.diag(np.maximum(w, 0)) @ v.T, atol=1e-14)
    assert removed[1].item() == pytest.approx(-w[w < 0].sum() / np.abs(w).sum())
    found = posterior(from_denoiser(lambda v: v @ j.T, 0.5), rows(2, 3), Gaussian(0.5))
    np.testing.assert_allclose(found.std[0].numpy(), np.sqrt(np.diag(v @ np.diag(np.maximum(w, 0)) @ v.T)), atol=1e-14)
    assert "removed" in repr(found)


def test_the_band_covers_the_clean_datum_of_exact_models_as_often_as_it_says(g):
    """±1.645 standard deviations: 90 % for a Gaussian; standard errors over rows, whose coordinates depend."""
    oracle = GaussianMixture(torch.ones(1), torch.zeros(1, 5, dtype=F64), mixture((5,)).variances[0].diag()[None] + 0.1)
    x = oracle.sample(6000, generator=g)
    x_t = Gaussian(0.6).sample(x, generator=g)
    found = posterior(oracle, x_t, Gaussian(0.6))
    inside = ((x - found.mean).abs() <= Z90 * found.std).double()
    assert abs(inside.mean().item() - 0.9) < 4.5 * inside.mean(1).std().item() / 6000**0.5
    z = (x - found.mean) / found.std
    assert abs(z.square().mean().item() - 1) < 4.5 * z.square().mean(1).std().item() / 6000**0.5


def test_noise_that_is_not_gaussian_and_alpha_0_are_refused():
    with pytest.raises(InputError, match="posterior: needs a Gaussian kernel"):
        posterior(mixture(), rows(2, 3), Additive(td.Laplace(0.0, 1.0)))
    with pytest.raises(InputError, match="alpha is 0"):
        posterior(mixture(), rows(2, 3), Gaussian(0.5, alpha=0.0))


@pytest.fixture(scope="module")
def fitted():
    """Gaussian columns of scales 1 and 100, so that the exact standard deviations are known."""
    x = rows(3000, 2, seed=7).numpy() @ np.array([[1.0, 60.0], [0.0, 80.0]])
    quick = {"n_steps": 60, "width": 16, "depth": 1, "device": "cpu", "random_state": 0, "verbose": False}
    return x, ScoreDensity(standardize=True, **quick).fit(x)


def test_the_estimators_standard_deviations_are_in_the_columns_units(fitted):
    x, est = fitted
    scale = est.noise_scale_
    covariance = np.cov(x.T)
    mean, std = est.denoise(x[:50], 0.5, return_std=True)
    k = np.diag((0.5 * scale) ** 2)
    exact = np.sqrt(np.diag(covariance - covariance @ np.linalg.inv(covariance + k) @ covariance))
    np.testing.assert_allclose(std, np.broadcast_to(exact, std.shape), rtol=0.06)
    np.testing.assert_array_equal(mean, est.denoise(x[:50], 0.5))


def test_frames_in_frames_out(fitted):
    pd = pytest.importorskip("pandas")
    x, _ = fitted
    frame = pd.DataFrame(x, columns=["a", "b"])
    est = ScoreDensity(n_steps=2, width=4, depth=1, random_state=0, verbose=False).fit(frame[:60])
    mean, std = est.denoise(frame.iloc[5:9], 30.0, return_std=True)
    assert list(std.columns) == ["a", "b"]
    assert list(std.index) == list(mean.index) == [5, 6, 7, 8]


def test_the_command_writes_them_too(fitted, tmp_path, capsys):
    x, est = fitted
    est.save(tmp_path / "m")
    np.savetxt(tmp_path / "x.csv", x[:9], delimiter=",", header="a,b", comments="")
    np.save(tmp_path / "x.npy", x[:9])
    call = ["denoise", str(tmp_path / "m"), str(tmp_path / "x.npy"), "--sigma", "0.5"]
    out, std = str(tmp_path / "out.npy"), str(tmp_path / "std.npy")
    assert main([*call, "--out", out, "--std", std]) == 0
    want = est.denoise(x[:9], 0.5, return_std=True)
    np.testing.assert_allclose(np.load(out), want[0])
    np.testing.assert_allclose(np.load(std), want[1])
    assert "standard deviations of x given x_σ" in capsys.readouterr().out
    for other in (out, str(tmp_path / "x.npy")):
        assert main([*call, "--out", out, "--std", other]) == 2
        assert "want another file" in capsys.readouterr().err
    assert GaussianReference.of_data(torch.from_numpy(x)).event_shape == (2,)
