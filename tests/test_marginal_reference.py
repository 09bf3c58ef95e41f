"""The marginal reference is exact where it says so, and better than the Gaussian elsewhere."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from sklearn.datasets import load_digits

from gradlogp import InputError
from gradlogp.kernels import Additive, Gaussian
from gradlogp.models import GaussianReference, MarginalReference, Marginals, marginal, tweedie
from gradlogp.objectives import DenoisingScoreMatching
from gradlogp.oracles import GaussianMixture

KERNELS = [
    Gaussian(0.01),
    Gaussian(0.5),
    Gaussian(30.0),
    Gaussian(0.7, alpha=0.4),
    Gaussian(torch.linspace(0.1, 3, 64).double()),
]


def one_gaussian_each(mean: torch.Tensor, variance: torch.Tensor) -> Marginals:
    return Marginals(mean[:, None], variance[:, None], torch.zeros(len(mean), 1).to(mean))


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_exact_for_gaussian_data_of_any_covariance(kernel, g):
    a = torch.randn(4, 4, generator=g, dtype=torch.float64)
    gaussian = GaussianReference.of_moments(torch.randn(4, generator=g).double(), a @ a.T)
    reference = MarginalReference(gaussian, one_gaussian_each(gaussian.mean, (a @ a.T).diagonal()))
    x_t = 3 * torch.randn(64, 4, generator=g, dtype=torch.float64)
    torch.testing.assert_close(reference.denoise(x_t, kernel), gaussian.denoise(x_t, kernel), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(reference.score(x_t, kernel), gaussian.score(x_t, kernel), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_exact_for_independent_coordinates_of_any_law(kernel, g):
    """Two coordinates of two components each are a mixture of four, which the oracle knows."""
    m, s = torch.tensor([[-1.0, 2.0], [0.0, 5.0]]).double(), torch.tensor([[0.1, 0.4], [0.0, 1.0]]).double()
    w = torch.tensor([[0.3, 0.7], [0.6, 0.4]]).double()
    pairs = [(i, j) for i in (0, 1) for j in (0, 1)]
    weights = torch.stack([w[0, i] * w[1, j] for i, j in pairs])
    means = torch.stack([torch.stack([m[0, i], m[1, j]]) for i, j in pairs])
    variances = torch.stack([torch.stack([s[0, i], s[1, j]]) for i, j in pairs])
    exact = GaussianMixture(weights, means, variances)
    gaussian = GaussianReference.of_moments(exact.mean, torch.diag(exact.covariance.diagonal()))
    reference = MarginalReference(gaussian, Marginals(m, s, w.log()))
    x_t = kernel.sample(exact.sample(64, generator=g), generator=g)
    torch.testing.assert_close(reference.denoise(x_t, kernel), exact.denoise(x_t, kernel), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(reference.score(x_t, kernel), exact.score(x_t, kernel), rtol=1e-6, atol=1e-6)


def skewed(g: torch.Generator, n: int = 2000) -> torch.Tensor:
    z = torch.randn(n, 5, generator=g, dtype=torch.float64)
    z[:, 1] += z[:, 0]
    return torch.stack([z[:, 0].exp(), z[:, 1], (z[:, 1] > 0.5).double(), (3 * z[:, 3]).round(), 2.0 + 0 * z[:, 4]], 1)


def test_the_marginals_have_the_moments_of_the_data(g):
    x = skewed(g)
    marginals = Marginals.of_data(x)
    w = marginals.log_weights.exp()
    mean = (w * marginals.means).sum(1)
    variance = (w * (marginals.means**2 + marginals.variances)).sum(1) - mean**2
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance, x.var(0, correction=0), rtol=1e-5, atol=1e-6)


def test_large_noise_leaves_the_best_affine_score(g):
    """The difference from the Gaussian falls faster than the Gaussian's own signal, as 1/σ."""
    reference = MarginalReference.of_data(skewed(g))
    x = skewed(g)
    shares = []
    for sigma in (30.0, 300.0, 3000.0):
        x_t = Gaussian(sigma).sample(x, generator=g)
        gaussian = reference.gaussian.denoise(x_t, Gaussian(sigma)) - reference.mean
        shares.append(
            ((reference.denoise(x_t, Gaussian(sigma)) - reference.mean - gaussian).norm() / gaussian.norm()).item()
        )
    assert shares[0] < 0.2
    assert shares[1] < 0.2 * shares[0]
    assert shares[2] < 0.2 * shares[1]


def test_discrete_columns_come_to_their_values_at_small_noise(g):
    x = skewed(g)
    reference = MarginalReference.of_data(x)
    kernel = Gaussian(0.05)
    d = reference.denoise(kernel.sample(x, generator=g), kernel)
    assert (d[:, 2:4] - x[:, 2:4]).abs().max() < 1e-6
    assert (d[:, 4] - 2.0).abs().max() < 1e-12


def test_constant_and_collinear_columns_are_exact(g):
    x = skewed(g)
    x = torch.cat([x, 2 * x[:, :1] - x[:, 1:2] + 3], 1)
    reference = MarginalReference.of_data(x)
    kernel = Gaussian(0.4)
    x_t = kernel.sample(x, generator=g)
    d, s = reference.denoise(x_t, kernel), reference.score(x_t, kernel)
    torch.testing.assert_close(d[:, 5], 2 * d[:, 0] - d[:, 1] + 3, rtol=1e-8, atol=1e-8)
    across = torch.tensor([2.0, -1.0, 0.0, 0.0, 0.0, -1.0]).double()
    torch.testing.assert_close(s @ across, -(x_t @ across + 3) / 0.16, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(s[:, 4], -(x_t[:, 4] - 2.0) / 0.16, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sigma", [1e-3, 0.3, 100.0])
def test_score_and_denoiser_are_tweedies(dtype, sigma, g):
    reference = MarginalReference.of_data(skewed(g).to(dtype))
    kernel = Gaussian(sigma)
    x_t = kernel.sample(skewed(g, 100).to(dtype), generator=g)
    s, d = reference.score(x_t, kernel), reference.denoise(x_t, kernel)
    assert bool(torch.isfinite(s).all())
    error = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(tweedie(x_t, s, kernel), d, rtol=error, atol=error * max(1.0, sigma))


def test_better_than_the_gaussian_on_rows_it_has_not_seen(g):
    x = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)
    train, test = x[::2], x[1::2]
    reference = MarginalReference.of_data(train)
    for sigma, ratio in ((0.03, 0.4), (0.1, 0.75), (0.5, 0.87)):
        losses = [
            DenoisingScoreMatching(4)(m, test, Gaussian(sigma), generator=torch.Generator().manual_seed(0))
            for m in (reference, reference.gaussian)
        ]
        difference = losses[0] - ratio * losses[1]
        assert difference.mean() < -4 * difference.std() / len(test) ** 0.5


def test_event_shapes_and_other_noise(g):
    x = torch.tensor(load_digits().images[:200, None] / 8 - 1, dtype=torch.float32)
    reference, flat = MarginalReference.of_data(x), MarginalReference.of_data(x.flatten(1))
    kernel = Gaussian(0.4)
    x_t = kernel.sample(x, generator=g)
    torch.testing.assert_close(reference.score(x_t, kernel).flatten(1), flat.score(x_t.flatten(1), kernel))
    laplace = Additive(torch.distributions.Laplace(0.0, 0.3))
    torch.testing.assert_close(reference.score(x_t, laplace), reference.gaussian.score(x_t, laplace))
    with pytest.raises(InputError, match="needs a Gaussian kernel"):
        reference.denoise(x_t, laplace)


def test_parts_that_do_not_fit_are_refused(g):
    gaussian = GaussianReference.of_data(torch.randn(20, 3, generator=g))
    with pytest.raises(InputError, match="want one a coordinate, 3"):
        MarginalReference(gaussian, Marginals.of_data(torch.randn(20, 2, generator=g)))
    with pytest.raises(InputError, match=r"want \(D, V\) three times"):
        Marginals(torch.zeros(3, 2), torch.zeros(3, 1), torch.zeros(3, 2))


def test_few_rows_of_a_continuous_column_are_no_atoms(g):
    x = torch.randn(30, 3, generator=g, dtype=torch.float64)
    marginals = Marginals.of_data(x)
    assert bool((marginals.variances[marginals.log_weights > -1e9] > 1e-6).all())
    reference = MarginalReference.of_data(x)
    x_t = torch.randn(500, 3, generator=g, dtype=torch.float64)
    nearest = torch.cdist(reference.denoise(x_t, Gaussian(0.3)), x).min(1).values
    assert nearest.median() > 0.2


def mixed_columns(g: torch.Generator, n: int = 300) -> torch.Tensor:
    """Columns of atoms on one and on many values, one that is constant, and columns of components; float64."""
    z = torch.randn(n, 40, generator=g, dtype=torch.float64)
    z[:, 1:] += z[:, :1]
    z[:, :20] = (2 * z[:, :20]).round()
    z[:, 5], z[:, 30:] = 3.0, z[:, 30:].exp()
    return z


@pytest.mark.parametrize("spread", [1, 2**13, 2**30])
def test_a_few_columns_at_a_time_give_the_mean_of_each(spread, g, monkeypatch):
    monkeypatch.setattr(marginal, "_SPREAD", spread)
    law = Marginals.of_data(mixed_columns(g))
    y, noise = (torch.randn(64, 40, generator=g, dtype=torch.float64) for _ in range(2))
    noise = noise.exp().requires_grad_()
    r, variance = y[:, :, None] - law.means, law.variances + noise[:, :, None]
    w = torch.softmax(law.log_weights - 0.5 * (r * r / variance + variance.log()), dim=2)
    plain, quick = (w * (law.means + law.variances / variance * r)).sum(2), law.denoise(y, noise)
    torch.testing.assert_close(quick, plain, rtol=1e-10, atol=1e-10)
    slopes = [torch.autograd.grad(v.square().sum(), noise)[0] for v in (quick, plain)]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0, 30.0, 1000.0])
def test_float32_keeps_its_digits_at_every_level(sigma, g):
    x = mixed_columns(g)
    exact = MarginalReference.of_data(x)
    x_t = Gaussian(sigma).sample(x, generator=g).float()
    d = copy.deepcopy(exact).float().denoise(x_t, Gaussian(sigma)) - exact.mean.float()
    want = exact.denoise(x_t.double(), Gaussian(sigma)) - exact.mean
    assert (d - want).norm() < 2e-4 * want.norm()


@pytest.mark.parametrize("slope", [0.0, 1e-4, 1.0])
def test_a_projection_leaves_out_what_does_not_vary_be_it_columns_or_directions(slope, g):
    """A column that is all but constant is no constant: it follows the other."""
    x = torch.randn(50, 2, 2, generator=g, dtype=torch.float64)
    x[:, 1, 1] = slope * x[:, 0, 0]
    reference = GaussianReference.of_data(x)
    v = torch.randn(9, 2, 2, generator=g, dtype=torch.float64)
    assert reference.eigenvalues.numel() == 3
    seen = reference.project(v)
    torch.testing.assert_close(seen[:, 1, 1], slope * seen[:, 0, 0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(seen.flatten(1) @ reference.eigenvectors, v.flatten(1) @ reference.eigenvectors)


def wide_reference(d: int, dtype: torch.dtype, g: torch.Generator) -> MarginalReference:
    """Eight atoms a coordinate, and eigenvalues over eight decades."""
    v = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    gaussian = GaussianReference(torch.zeros(d, dtype=torch.float64), torch.logspace(-6, 2, d, dtype=torch.float64), v)
    scale = (v**2 @ gaussian.eigenvalues).sqrt()[:, None]
    atoms = scale * torch.linspace(-1.5, 1.5, 8, dtype=torch.float64)
    return MarginalReference(gaussian, Marginals(atoms, torch.zeros_like(atoms), torch.zeros_like(atoms))).to(dtype)


def test_knots_sum_over_many_eigenvalues_as_these_do(g):
    reference = wide_reference(600, torch.float32, g)
    lam, v = reference.gaussian.eigenvalues, reference.gaussian.eigenvectors
    knots, shares, prior, _ = (u.double() for u in marginal._spectrum(lam, v))
    assert len(knots) < 150
    assert torch.equal(marginal._spectrum(lam.double(), v.double())[0], lam.double())
    s2 = torch.logspace(-9, 5, 60, dtype=torch.float64)
    plain = (lam.double() * s2[:, None] / (lam.double() + s2[:, None])) @ v.double().square().T
    quick = (knots * s2[:, None] / (knots + s2[:, None])) @ (shares * prior).T
    assert ((quick - plain) / plain).abs().max() < 1e-6  # ten roundings of float32


@pytest.mark.parametrize("sigma", [0.001, 0.1, 10.0, 1000.0])
def test_many_coordinates_in_float32_are_those_in_float64(sigma, g):
    reference, kernel = wide_reference(600, torch.float32, g), Gaussian(sigma)
    x_t = reference.gaussian.sample_noisy(20, kernel, generator=g)
    want = copy.deepcopy(reference).double().denoise(x_t.double(), kernel)
    assert (reference.denoise(x_t, kernel) - want).norm() < 2e-5 * want.norm()


def test_what_follows_from_buffers_follows_when_they_change(g):
    x_t, kernel = torch.randn(5, 3, generator=g), Gaussian(torch.tensor([0.1, 0.3, 1.0, 3.0, 9.0]))
    one, other = (MarginalReference.of_data(torch.randn(50, 3, generator=g).exp()) for _ in range(2))
    before, want = one.score(x_t, kernel), other.score(x_t, kernel)
    copied = copy.deepcopy(one)
    one.load_state_dict(other.state_dict())  # in place
    assert torch.equal(one.score(x_t, kernel), want)
    assert torch.equal(copied.score(x_t, kernel), before)
    assert torch.equal(pickle.loads(pickle.dumps(one)).double().float().score(x_t, kernel), want)


@pytest.mark.parametrize("width", [1e-2, 1e-3, 1e-4])
def test_a_narrow_peak_keeps_its_width(width, g):
    """Nine tenths of the rows are in a normal peak: the components there have its mass and width."""
    at_peak = torch.rand(6000, generator=g) < 0.9
    x = torch.where(at_peak, width * torch.randn(6000, generator=g), 3 + torch.randn(6000, generator=g)).double()
    fitted = Marginals.of_data(x[:, None])
    near = (fitted.means[0].abs() < 5 * width) & (fitted.log_weights[0] > -10)
    w = fitted.log_weights[0][near].exp()
    spread = ((w * (fitted.variances[0][near] + fitted.means[0][near] ** 2)).sum() / w.sum()).sqrt()
    assert w.sum().item() == pytest.approx(0.9, abs=4 * (0.09 / 6000) ** 0.5)
    assert spread.item() == pytest.approx(width, rel=0.1)


def test_many_columns_are_fitted_in_parts(monkeypatch, g):
    """Parts change nothing, and each column keeps its own law."""
    rows = torch.randn(500, 7, generator=g).double() * torch.arange(1, 8)
    rows[:, ::2] += 9 * torch.randint(3, (500, 4), generator=g)
    whole = Marginals.of_data(rows)
    monkeypatch.setattr(marginal, "_COLUMNS", 3)
    parts = Marginals.of_data(rows)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-12, atol=1e-12)
