"""Energy models: a score that is a gradient, its density ratios, and the estimator that fits one."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as td
from torch import nn

from gradlogp import InputError, ScoreDensity, diagnostics, kernels, likelihood, objectives, oracles, samplers, training
from gradlogp.cli import main
from gradlogp.kernels import Gaussian
from gradlogp.models import EnergyModel, GaussianReference, MarginalReference, Preconditioned, ScoreFunction
from gradlogp.networks import Potential, ResidualMLP

F64 = torch.float64
KERNELS = [
    Gaussian(0.5),
    Gaussian(0.5, alpha=0.7),
    Gaussian(torch.linspace(0.1, 3.0, 8, dtype=F64), torch.linspace(0.3, 1.0, 8, dtype=F64)),
    kernels.Additive(td.Laplace(0.0, 0.4)),
    kernels.Additive(td.Normal(torch.tensor([0.1, -0.2, 0.3], dtype=F64), torch.tensor([0.2, 0.5, 1.0], dtype=F64))),
    kernels.Additive(td.MultivariateNormal(torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64) + 0.4)),
]


def rows(n, *event, seed=0):
    return torch.randn(n, *event, generator=torch.Generator().manual_seed(seed), dtype=F64)


def of_rank_two(n, seed=0):
    """Rows that vary in a plane of three dimensions."""
    return rows(n, 2, seed=seed) @ torch.tensor([[1.0, 0.3, -0.5], [0.2, 2.0, 1.0]], dtype=F64) + 1.0


class Quartic(nn.Module):
    """G = Σ z⁴/4 + c·z₀z₁ with the level c, whose gradient is known."""

    def forward(self, z, c):
        flat = z.flatten(1)
        return flat.pow(4).sum(1) / 4 + c * flat[:, 0] * flat[:, 1]


def slope(z, c):
    out = z**3
    out[:, 0] += c * z[:, 1]
    out[:, 1] += c * z[:, 0]
    return out


def random_potential(event=(3,), **options):
    torch.manual_seed(1)
    network = Potential(event, width=16, depth=2, **options).double()
    for p in network.parameters():
        nn.init.normal_(p, std=0.4)
    return network


@pytest.mark.parametrize("fade", [0.0, 1.0])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("data", [rows, of_rank_two])
def test_the_score_is_minus_the_gradient_of_the_energy(kernel, fade, data):
    """Under every kind of noise, with null directions, gates and levels: autograd of the energy in float64."""
    x = data(200, 3) if data is rows else data(200)
    m = EnergyModel(random_potential(), GaussianReference.of_data(x, fade=fade)).double()
    m.set_gate(torch.logspace(-2, 1, 16, dtype=F64), torch.linspace(0.2, 1, 16, dtype=F64))
    m.levels = (0.15, 4.0)
    at = (1.5 * rows(8, 3, seed=5)).requires_grad_()
    (want,) = torch.autograd.grad(-m.energy(at, kernel).sum(), at)
    got = m.score(at.detach(), kernel)
    torch.testing.assert_close(got.detach(), want, rtol=1e-12, atol=1e-12 * want.abs().max().item())
    assert (m.unnormalised_log_prob(at, kernel) == -m.energy(at, kernel)).all()


def test_it_is_the_preconditioned_network_whose_output_is_the_potentials_gradient():
    """Against a free-form model that is handed ∇G by hand: the factor alpha·σ_d/sigma of the energy."""
    x = of_rank_two(100)
    reference = GaussianReference.of_data(x, fade=0.5)

    class Slope(nn.Module):
        def forward(self, z, c):
            return slope(z, c)

    energy, free = EnergyModel(Quartic(), reference), Preconditioned(Slope(), reference)
    for k in KERNELS:
        torch.testing.assert_close(energy.score(x[:8], k), free.score(x[:8], k), rtol=1e-12, atol=1e-12)
        if k is not KERNELS[3]:
            torch.testing.assert_close(energy.denoise(x[:8], k), free.denoise(x[:8], k), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[1], KERNELS[4], KERNELS[5]], ids=repr)
def test_a_potential_of_zero_leaves_the_gaussians_log_density(kernel):
    """Differences against SciPy's log-density of N(alpha·μ + shift, alpha²Σ + K)."""
    x = rows(300, 3) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 0.6]], dtype=F64)
    m = EnergyModel(Potential((3,), width=8).double(), GaussianReference.of_data(x))
    form = kernel.gaussian_form((3,))
    k = {"isotropic": lambda c: c.item() * np.eye(3), "diagonal": lambda c: np.diag(c), "full": lambda c: c.numpy()}
    covariance = form.alpha.item() ** 2 * np.cov(x.numpy().T, bias=True) + k[form.kind](form.covariance)
    mean = form.alpha.item() * x.numpy().mean(0) + np.broadcast_to(form.shift.numpy(), 3)
    law = stats.multivariate_normal(mean, covariance)
    difference = -m.energy(x, kernel).detach().numpy() - law.logpdf(x.numpy())
    assert np.ptp(difference) < 1e-10


def test_the_score_is_there_where_gradients_are_off_and_double_backward_where_they_are_on():
    m, x = EnergyModel(random_potential(), GaussianReference.of_data(rows(50, 3))), rows(4, 3)
    k = Gaussian(0.5)
    on = m.score(x, k)
    assert on.requires_grad
    with torch.no_grad():
        off = m.score(x, k)
    with torch.inference_mode():
        inside = m.score(x.clone(), k)
    assert not off.requires_grad
    torch.testing.assert_close(off, on.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inside.clone(), off, rtol=0, atol=0)
    # the loss's gradient in a weight, against a central difference
    weight = m.network.first.weight

    def loss():
        return objectives.DenoisingScoreMatching()(m, x, k, torch.Generator().manual_seed(0)).mean()

    (slope_,) = torch.autograd.grad(loss(), weight)
    h, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            weight[2, 1] += sign * h
        values.append(loss().item())
        with torch.no_grad():
            weight[2, 1] -= sign * h
    assert slope_[2, 1].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


class Product(nn.Module):
    """A potential that saves its level for the backward pass."""

    def forward(self, z, c):
        return (z.flatten(1) ** 4).sum(1) * c


def test_inference_mode_with_a_potential_that_keeps_its_level():
    m, x = EnergyModel(Product(), GaussianReference.of_data(rows(50, 3))), rows(4, 3)
    for k in (Gaussian(0.5), Gaussian(torch.full((4,), 0.5, dtype=F64))):
        with torch.inference_mode():
            inside = m.score(x.clone(), k)
        torch.testing.assert_close(inside.clone(), m.score(x, k).detach(), rtol=1e-12, atol=1e-12)


def test_the_gaussians_energy_keeps_its_digits_beside_null_directions():
    """Columns u and 2u of size 1000 in float32, noise of 0.5: against float64, by which it is right."""
    u = 1000 * rows(4000, 1)
    x = torch.cat([u, 2 * u], 1)
    y = (x[:500] + 0.5 * rows(500, 2, seed=3)).float()
    fine, coarse = GaussianReference.of_data(x), GaussianReference.of_data(x.float())
    off = coarse.energy(y, Gaussian(0.5)).double() - fine.energy(y.double(), Gaussian(0.5))
    assert off.abs().max().item() < 2e-3


def test_dropout_and_frozen_weights_do_not_matter(g):
    """As the running average of the weights has them: no parameter wants a gradient, the score is still there."""
    m = EnergyModel(random_potential(dropout=0.5), GaussianReference.of_data(rows(50, 3))).eval()
    frozen = copy.deepcopy(m).requires_grad_(False)
    torch.testing.assert_close(frozen.score(rows(4, 3), Gaussian(0.5)), m.score(rows(4, 3), Gaussian(0.5)).detach())
    assert diagnostics.self_check(m, rows(200, 3), Gaussian(0.5), generator=g).holds


def test_curl_of_an_energy_is_rounding_and_of_a_free_form_network_is_not(g):
    x = rows(80, 3)
    reference = GaussianReference.of_data(x)
    torch.manual_seed(0)
    network = ResidualMLP((3,), width=16).double()
    nn.init.normal_(network.last.weight)
    levels = [Gaussian(s) for s in (0.1, 1.0, 3.0)]
    energy = diagnostics.curl(EnergyModel(random_potential(), reference), x, levels, generator=g)
    free = diagnostics.curl(Preconditioned(network, reference), x, levels, generator=g)
    assert all(level.value.value < 1e-20 for level in energy.levels)
    assert max(level.value.value for level in free.levels) > 1e-3


def mixture():
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.5]])
    return oracles.GaussianMixture(torch.tensor([0.35, 0.65]), means, torch.tensor([0.15, 0.3]))


@pytest.fixture(scope="module")
def learnt():
    """An energy trained for some seconds on draws of a mixture of two."""
    g, oracle = torch.Generator().manual_seed(0), mixture()
    x = oracle.sample(8000, generator=g)
    torch.manual_seed(0)
    m = EnergyModel(Potential((2,), width=48, depth=2), GaussianReference.of_data(x, fade=1.0))
    levels = training.NoiseLevels(0.1, 6.0)
    list(training.train(m, x[:7000], x[7000:], levels=levels, recipe=training.Recipe(n_steps=600), generator=g))
    return m


@pytest.mark.parametrize("sigma", [0.3, 0.8])
def test_learnt_log_density_ratios_are_near_the_exact_ones(learnt, sigma, g):
    """On the bulk, between the modes too: the constant is one for all."""
    oracle, k = mixture(), Gaussian(sigma)
    x_t = k.sample(oracle.sample(2000, generator=g), generator=g)
    bulk = oracle.log_prob(x_t, k) > oracle.log_prob(x_t, k).quantile(0.1)
    with torch.no_grad():
        difference = (learnt.unnormalised_log_prob(x_t, k) - oracle.log_prob(x_t, k))[bulk]
    assert (difference - difference.mean()).square().mean().sqrt().item() < 0.12
    line = samplers.log_ratio(learnt, x_t[:50], x_t[50:100], k, nodes=64)
    energies = learnt.energy(x_t[:50], k) - learnt.energy(x_t[50:100], k)
    torch.testing.assert_close(line.float(), energies.detach(), rtol=2e-3, atol=2e-3)


def test_langevin_takes_the_energy_for_its_metropolis_test(learnt, g):
    """Started from data at one level, with long steps: the law is that of the model, here near the exact one."""
    oracle, k = mixture(), Gaussian(0.5)
    start = k.sample(oracle.sample(2000, generator=g), generator=g)
    calls = []

    class Counted(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, z, c):
            calls.append(len(z))
            return self.network(z, c)

    m = copy.deepcopy(learnt)
    m.network = Counted(m.network)
    x = samplers.langevin(m, start, [k], 30, max_step=1.0, generator=g)
    assert len(calls) == 2 * 31  # the score and the energy of each point, and nothing in between
    draws = k.sample(oracle.sample(100_000, generator=g), generator=g)
    assert stats.ks_2samp(x[:, 0].numpy(), draws[:, 0].numpy()).statistic < 0.06
    assert ((x[:, 0] > 0).float().mean() - 0.65).abs() < 0.06


def test_the_flow_and_the_likelihood_take_an_energy(learnt, g):
    oracle = mixture()
    x = oracle.sample(40, generator=g)
    found = likelihood.log_prob(learnt, x, sigma_min=0.2, sigma_max=6.0)
    exact = oracle.log_prob(x, Gaussian(0.2))
    assert (found.value - exact).abs().median().item() < 0.1
    draws = samplers.sample(learnt, 500, 8, generator=g)
    assert ((draws[:, 0] > 0).float().mean() - 0.65).abs() < 4.5 * math.sqrt(0.65 * 0.35 / 500) + 0.03


def test_what_is_no_potential_or_no_gaussian_is_refused(as_a_user):
    x = rows(50, 3)
    with pytest.raises(InputError, match="got a MarginalReference, want a GaussianReference"):
        EnergyModel(Potential((3,)), MarginalReference.of_data(x))
    with pytest.raises(InputError, match=r"the network \w+ gave shape \(4, 3\), want \(4,\)"):
        EnergyModel(ResidualMLP((3,)).double(), GaussianReference.of_data(x)).score(x[:4], Gaussian(0.5))

    class Flat(nn.Module):
        def forward(self, z, c):
            return c.detach() * 0

    with pytest.raises(InputError, match="got no gradient in x"):
        EnergyModel(Flat(), GaussianReference.of_data(x)).score(x[:4], Gaussian(0.5))


def test_only_what_has_a_potential_says_a_log_density():
    x, k = rows(20, 2).float(), Gaussian(0.5)
    free = Preconditioned(ResidualMLP((2,)), GaussianReference.of_data(x))
    assert free.unnormalised_log_prob(x, k) is None
    assert ScoreFunction(free.score).unnormalised_log_prob(x, k) is None
    torch.testing.assert_close(mixture().unnormalised_log_prob(x, k), mixture().log_prob(x, k))


# The estimator.


@pytest.fixture(scope="module")
def fitted():
    g = torch.Generator().manual_seed(3)
    X = mixture().sample(1500, generator=g).double().numpy() * np.array([1.0, 50.0])
    quick = {"n_steps": 250, "width": 48, "depth": 2, "device": "cpu", "random_state": 0, "verbose": False}
    return X, ScoreDensity(energy=True, standardize=True, **quick).fit(X)


def test_the_estimators_gradient_is_that_of_its_log_density(fitted):
    """In the data's own units, one of which is 50 times the other: by central differences of the energy."""
    X, est = fitted
    at = X[:6]
    sigma, got = 0.4, est.grad_log_prob(X[:6], 0.4)
    for j, h in enumerate((1e-2, 0.5)):
        step = np.zeros(2)
        step[j] = h
        ends = [est.unnormalised_log_prob(at + s * step, sigma) for s in (1, -1)]
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * h), got[:, j], rtol=2e-2, atol=2e-3 / h * 1e-2)


def test_an_energy_is_saved_and_loaded(fitted, tmp_path):
    X, est = fitted
    est.save(tmp_path / "m")
    again = ScoreDensity.load(tmp_path / "m")
    assert isinstance(again.model_, EnergyModel)
    assert again.energy is True
    np.testing.assert_array_equal(again.unnormalised_log_prob(X, 0.3), est.unnormalised_log_prob(X, 0.3))
    np.testing.assert_array_equal(again.grad_log_prob(X[:5], 0.3), est.grad_log_prob(X[:5], 0.3))


@pytest.mark.parametrize("sigma", [0.4, 1.0])
def test_the_estimators_log_density_ratios_are_near_the_exact_ones(fitted, sigma):
    """In the data's units: the mixture stretched, under noise of σ times each column's standard deviation."""
    X, est = fitted
    stretch = torch.tensor([1.0, 50.0], dtype=F64)
    exact = oracles.GaussianMixture(
        torch.tensor([0.35, 0.65]), torch.tensor([[-1.5, 0.0], [1.5, 0.5]], dtype=F64) * stretch,
        torch.tensor([[0.15], [0.3]], dtype=F64) * stretch**2,
    )  # fmt: skip
    noise = kernels.Additive(td.Normal(torch.zeros(2, dtype=F64), sigma * torch.from_numpy(est.noise_scale_)))
    at = torch.from_numpy(X[:500])
    difference = est.unnormalised_log_prob(X[:500], sigma) - exact.log_prob(at, noise).numpy()
    assert difference.std() < 0.15 < 0.5 * exact.log_prob(at, noise).std()


def test_levels_of_rows_and_free_form_models(fitted):
    X, est = fitted
    sigma = np.array([0.2, 0.5, 50.0])
    each = [est.unnormalised_log_prob(X[i : i + 1], s)[0] for i, s in enumerate(sigma)]
    np.testing.assert_allclose(est.unnormalised_log_prob(X[:3], sigma), each, rtol=1e-5)
    free = ScoreDensity(n_steps=1, width=4, depth=1, random_state=0, verbose=False).fit(X[:60])
    with pytest.raises(InputError, match="want one fitted with energy=True"):
        free.unnormalised_log_prob(X, 0.3)
    with pytest.raises(InputError, match="the smallest trained"):
        est.unnormalised_log_prob(X, 1e-9)


def test_rows_to_the_models_units_and_back(fitted):
    X, est = fitted
    z = est.to_model(X[:5])
    np.testing.assert_allclose(z.numpy(), (X[:5] - X.mean(0)) / X.std(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(est.from_model(z), X[:5], rtol=1e-5)
    score = est.model_.score(z, Gaussian(0.4)).detach().numpy() / est.noise_scale_
    np.testing.assert_allclose(est.grad_log_prob(X[:5], 0.4), score, rtol=1e-5)
    found = samplers.modes(est.model_, est.to_model(X[:200]), Gaussian(0.3))
    near = np.abs(est.from_model(found.points[:2])[:, None] - np.array([[-1.5, 0.0], [1.5, 25.0]])) / X.std(0)
    assert near.max(2).min(1).max() < 0.15


def test_the_command_writes_its_log_densities(fitted, tmp_path, capsys):
    X, est = fitted
    est.save(tmp_path / "m")
    np.save(tmp_path / "x.npy", X[:9])
    call = ["logprob", str(tmp_path / "m"), str(tmp_path / "x.npy"), "--out", str(tmp_path / "out.npy")]
    assert main([*call, "--unnormalised", "0.4"]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy")[:, 0], est.unnormalised_log_prob(X[:9], 0.4))
    assert "but for a constant" in capsys.readouterr().out
    assert main([*call, "--unnormalised", "0.4", "--atol", "0.1"]) == 2
    assert "want them for normalised log-densities only" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "m")]) == 0
    assert ", an energy" in capsys.readouterr().out
    ScoreDensity(n_steps=1, width=4, depth=1, random_state=0, verbose=False).fit(X[:60]).save(tmp_path / "free")
    assert main(["logprob", str(tmp_path / "free"), *call[2:], "--unnormalised", "0.4"]) == 2
    err = capsys.readouterr().err
    assert "want one fitted with --energy" in err
    assert err.count("\n") == 1
