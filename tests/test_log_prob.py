"""The log-density of the probability flow, against exact densities, quadrature and SciPy's integrator."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.stats import multivariate_normal

from gradlogp import InputError, kernels, likelihood, models, networks, oracles, processes
from gradlogp.likelihood import Exact, Hutchinson
from gradlogp.likelihood.linearised import Near
from gradlogp.likelihood.quadrature import refined
from gradlogp.likelihood.residual import Clock


def a_mixture(d, k=5, seed=0, dtype=torch.float64, event=None):
    g = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(k, d, generator=g, dtype=dtype)
    factors = torch.randn(k, d, d, generator=g, dtype=dtype) / math.sqrt(d)
    covariances = 0.5 * factors @ factors.mT + 0.05 * torch.eye(d, dtype=dtype)
    weights = torch.rand(k, generator=g, dtype=dtype) + 0.2
    return oracles.GaussianMixture(weights, means.reshape(k, *(event or (d,))), covariances)


def rows_of(oracle, n, sigma, seed=1):
    g = torch.Generator().manual_seed(seed)
    return kernels.Gaussian(sigma).sample(oracle.sample(n, generator=g), generator=g)


def a_network_model(d, seed=0, dtype=torch.float64):
    """A random network on a Gaussian: not the score of anything, with curl."""
    torch.manual_seed(seed)
    network = networks.ResidualMLP((d,), width=16, depth=1).to(dtype)
    torch.nn.init.normal_(network.last.weight, std=0.3)
    reference = models.GaussianReference.of_moments(torch.ones(d, dtype=dtype), torch.eye(d, dtype=dtype) * 1.5)
    return models.Preconditioned(network, reference).to(dtype).eval()


# --- exact models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "event"), [(1, (1,)), (2, (2,)), (8, (8,)), (64, (64,)), (64, (1, 8, 8))])
def test_mixtures_are_right_within_the_stated_error(d, event):
    oracle, sigma = a_mixture(d, event=event), 0.02
    x = rows_of(oracle, 300 if d < 64 else 24, sigma)
    found = likelihood.log_prob(oracle, x, sigma_min=sigma)
    error = (found.value - oracle.log_prob(x, kernels.Gaussian(sigma))).abs()
    assert found.value.shape == found.error.shape == (len(x),)
    assert (error <= found.error).double().mean() >= 0.95
    assert error.max() < 1e-3
    assert found.error.max() < 1e-2  # and the statement says something


@pytest.mark.parametrize("sigma_max", [4.0, 30.0])
def test_what_is_above_sigma_max_is_in_the_error(sigma_max):
    oracle = a_mixture(2)
    x = rows_of(oracle, 200, 0.1)
    found = likelihood.log_prob(oracle, x, sigma_min=0.1, sigma_max=sigma_max)
    error = (found.value - oracle.log_prob(x, kernels.Gaussian(0.1))).abs()
    assert (error <= found.error).double().mean() >= 0.95
    if sigma_max == 4.0:
        assert error.max() > 1e-2  # there is something to state
        assert found.above.median() < 10 * error.median()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(1,), (3,), (1, 4, 4)])
def test_gaussians_are_in_closed_form(event, dtype):
    d, g = math.prod(event), torch.Generator().manual_seed(0)
    factor = torch.randn(d, d, generator=g, dtype=torch.float64)
    mean, covariance = torch.randn(d, generator=g, dtype=torch.float64), factor @ factor.T / d
    model = models.GaussianReference.of_moments(mean.reshape(event), covariance).to(dtype)
    x = model.sample_noisy(50, kernels.Gaussian(0.3), generator=g)
    found = likelihood.log_prob(model, x, sigma_min=0.3)
    true = multivariate_normal(mean.numpy(), covariance.numpy() + 0.09 * np.eye(d)).logpdf(
        x.flatten(1).double().numpy()
    )
    assert found.value.dtype == dtype
    assert np.abs(found.value.double().numpy() - true).max() < (2e-5 if dtype == torch.float32 else 1e-9)
    probed = likelihood.log_prob(model, x, sigma_min=0.3, trace=Hutchinson())
    torch.testing.assert_close(probed.value, found.value, rtol=1e-5, atol=1e-5)  # the Gaussian leaves nothing to probe
    assert probed.probes.max() < 1e-4


def test_constant_coordinates_count_as_noise_alone():
    oracle = oracles.GaussianMixture(torch.ones(1), torch.tensor([[1.0, 5.0]]).double(), torch.tensor([[2.0, 0.0]]))
    x = rows_of(oracle, 20, 0.2)
    found = likelihood.log_prob(oracle, x, sigma_min=0.2)
    torch.testing.assert_close(found.value, oracle.log_prob(x, kernels.Gaussian(0.2)), rtol=0, atol=1e-8)


def test_points_far_out_and_between_modes():
    oracle = oracles.GaussianMixture(torch.ones(2), torch.tensor([[-3.0], [3.0]]).double(), 0.01)
    x = torch.tensor([[0.0], [0.01], [3.0], [8.0], [-20.0]]).double()
    found = likelihood.log_prob(oracle, x, sigma_min=0.05)
    error = (found.value - oracle.log_prob(x, kernels.Gaussian(0.05))).abs()
    assert (error <= found.error).all(), (error, found.error)
    assert (error / oracle.log_prob(x, kernels.Gaussian(0.05)).abs()).max() < 1e-4


FLAT = {
    "two components that just merge": oracles.GaussianMixture(
        torch.ones(2), torch.tensor([[-1.0], [1.0]]).double(), 1.0
    ),
    "a plateau": oracles.GaussianMixture(torch.ones(17), torch.linspace(-4, 4, 17).double()[:, None], 0.25),
}


@pytest.mark.parametrize("name", FLAT)
def test_where_the_density_is_flat(name):
    """The gradient and the curvature vanish at the row, which says nothing about the scale of what is around it."""
    x = torch.tensor([[0.0], [0.01], [0.3], [-1.7]]).double()
    found = likelihood.log_prob(FLAT[name], x, sigma_min=0.002)
    error = (found.value - FLAT[name].log_prob(x, kernels.Gaussian(0.002))).abs()
    assert (error <= found.error).all()
    assert error.max() < 1e-3


def test_a_direction_that_the_reference_takes_for_constant():
    narrow = torch.diag(torch.tensor([1e-8, 1e4]).double())
    oracle = oracles.GaussianMixture(torch.ones(1), torch.zeros(1, 2).double(), narrow[None])
    x = oracle.sample(30, generator=torch.Generator().manual_seed(0))
    found = likelihood.log_prob(oracle, x, sigma_min=1e-5, sigma_max=1e4)
    error = (found.value - oracle.log_prob(x, kernels.Gaussian(1e-5))).abs()
    assert (error <= found.error).double().mean() >= 0.95
    assert error.max() < 1e-3


@pytest.mark.parametrize("sigma", [1e-2, 1e-6])
def test_float32_down_to_tiny_noise(sigma):
    oracle = a_mixture(2, dtype=torch.float32)
    x = rows_of(oracle, 60, sigma)
    found = likelihood.log_prob(oracle, x, sigma_min=sigma)
    error = (found.value - oracle.log_prob(x, kernels.Gaussian(sigma))).abs()
    assert (error <= found.error).float().mean() >= 0.95
    assert error.max() < 1e-3


def test_in_inference_mode():
    oracle = a_mixture(2)
    x = rows_of(oracle, 20, 0.1)
    outside = likelihood.log_prob(oracle, x, sigma_min=0.1)
    with torch.inference_mode():
        inside = likelihood.log_prob(oracle, x + 0, sigma_min=0.1)
    assert torch.equal(inside.value, outside.value)


def test_one_row_far_out_does_not_spoil_the_others():
    oracle = a_mixture(2)
    x = torch.cat([rows_of(oracle, 5, 0.1), torch.tensor([[1e6, 0.0]]).double()])
    found = likelihood.log_prob(oracle, x, sigma_min=0.1, sigma_max=1e7)
    error = (found.value - oracle.log_prob(x, kernels.Gaussian(0.1))).abs()
    assert (error <= found.error).all()
    assert error[:5].max() < 1e-3


def test_below_the_data_s_scale_nothing_is_known_of_what_is_above():
    found = likelihood.log_prob(a_mixture(2), torch.zeros(2, 2).double(), sigma_min=0.01, sigma_max=0.1)
    assert found.error.isinf().all()


def test_a_model_that_knows_no_gaussian():
    oracle = a_mixture(3)
    bare = models.ScoreFunction(oracle.score)
    x = rows_of(oracle, 50, 0.05)
    found = likelihood.log_prob(bare, x, sigma_min=0.05, sigma_max=300.0)
    assert (found.value - oracle.log_prob(x, kernels.Gaussian(0.05))).abs().max() < 1e-3


def test_atol_is_kept():
    oracle = a_mixture(4)
    x = rows_of(oracle, 100, 0.02)
    true = oracle.log_prob(x, kernels.Gaussian(0.02))
    errors = [
        (likelihood.log_prob(oracle, x, sigma_min=0.02, trace=Exact(atol)).value - true).abs().max().item()
        for atol in (1e-1, 1e-5)
    ]
    assert errors[1] < 1e-4 < errors[0] < 1e-1


# --- any model ------------------------------------------------------------------------------------------------------


def test_the_density_of_any_model_integrates_to_one():
    model = a_network_model(1)
    x = torch.linspace(-14, 16, 601, dtype=torch.float64)[:, None]
    value = likelihood.log_prob(model, x, sigma_min=0.1, sigma_max=30.0, trace=Exact(1e-5)).value
    assert value.exp().max() > 0.1
    assert abs(np.trapezoid(value.exp().numpy(), x[:, 0].numpy()) - 1) < 1e-4


def test_a_model_with_curl_against_an_integrator():
    model, low, high = a_network_model(2), 0.1, 40.0
    x = 1 + 1.3 * torch.randn(12, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = likelihood.log_prob(model, x, sigma_min=low, sigma_max=high)
    error = (found.value - torch.tensor([_by_scipy(model, row, low, high) for row in x])).abs()
    assert (error <= found.quadrature + found.path + 1e-6).double().mean() >= 0.95
    assert error.max() < 1e-3


def _by_scipy(model, x, low, high):
    """d(y, log p)/d log s = (y − D, −tr(I − ∇D)), and N(μ, Σ + s²) at the end."""

    def slope(tau, state):
        y = torch.tensor(state[:2])
        kernel = kernels.Gaussian(math.exp(tau))

        def denoise(y):
            return model.denoise(y[None], kernel)[0]

        y.requires_grad_()
        out = denoise(y)
        trace = sum(torch.autograd.grad(out[j], y, retain_graph=True)[0][j].item() for j in range(2))
        return np.append((y - out).detach().numpy(), 2 - trace)

    end = solve_ivp(slope, (math.log(low), math.log(high)), np.append(x.numpy(), 0.0), rtol=1e-9, atol=1e-10).y[:, -1]
    reference = model.reference
    mean, variance = reference.mean.numpy(), (reference.eigenvalues[0] + high**2).item()
    return multivariate_normal(mean, variance * np.eye(2)).logpdf(end[:2]) + end[2]


def test_levels_that_a_model_was_trained_at_are_the_default():
    model = a_network_model(2)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model.levels = (0.2, 7.0)
    found, given = likelihood.log_prob(model, x), likelihood.log_prob(model, x, sigma_min=0.2, sigma_max=7.0)
    assert torch.equal(found.value, given.value)


# --- probes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("atol", [0.3, 0.05])
def test_probes_are_right_within_their_standard_error(atol):
    oracle = a_mixture(16, k=3)
    x = rows_of(oracle, 200, 0.05)
    true = oracle.log_prob(x, kernels.Gaussian(0.05))
    found = likelihood.log_prob(
        oracle, x, sigma_min=0.05, trace=Hutchinson(atol), generator=torch.Generator().manual_seed(0)
    )
    assert found.probes.mean() < 1.2 * atol
    assert ((found.value - true).abs() <= found.error).double().mean() >= 0.95
    z = (found.value - true) / (found.probes**2 + found.quadrature**2 + 0.01**2).sqrt()
    assert abs(z.mean()) < 4.5 * 1.5 / math.sqrt(len(x))  # unbiased
    assert z.std() < 1.5


def test_few_probes_where_they_are_limited():
    model = a_network_model(12)
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = {"sigma_min": 0.3, "sigma_max": 20.0}
    g = torch.Generator().manual_seed(0)
    found = likelihood.log_prob(model, x, trace=Hutchinson(1e-6, max_probes=3), generator=g, **ends)
    exact = likelihood.log_prob(model, x, trace=Exact(1e-4), **ends)
    z = (found.value - exact.value) / found.probes
    assert found.probes.min() > 1e-3  # three probes are not exact
    assert abs(z.mean()) < 4.5 * z.std() / math.sqrt(len(x))
    assert 0.5 < z.std() < 1.8


def test_a_row_does_not_depend_on_the_others():
    oracle = a_mixture(6)
    x = rows_of(oracle, 9, 0.1)
    for trace in (Exact(), Hutchinson(0.5)):
        every = likelihood.log_prob(oracle, x, trace=trace, generator=torch.Generator().manual_seed(4))
        first = likelihood.log_prob(oracle, x[:4], trace=trace, generator=torch.Generator().manual_seed(4))
        torch.testing.assert_close(every.value[:4], first.value, rtol=0, atol=1e-9)


# --- parts ----------------------------------------------------------------------------------------------------------


def test_refined_quadrature_against_scipy():
    centres = torch.tensor([-1.0, 0.5, 0.0]).double()
    widths = torch.tensor([1.0, 0.2, 0.05]).double()

    def f(rows, w):
        t = (w - centres[rows]) / widths[rows]
        added = torch.exp(2 * w)
        return (added / (1 + added) ** 2 * (1 + torch.tanh(t)))[:, None]

    value, error = refined(
        f, torch.full((3,), -6.0).double(), torch.full((3,), 6.0).double(), torch.full((3,), 1e-6).double()
    )
    for i in range(3):

        def g(w, i=i):
            return math.exp(2 * w) / (1 + math.exp(2 * w)) ** 2 * (1 + math.tanh((w - centres[i]) / widths[i]))

        true = quad(g, -25, centres[i].item(), epsabs=1e-12)[0] + quad(g, centres[i].item(), 25, epsabs=1e-12)[0]
        assert abs(value[i, 0] - true) <= error[i]
        assert abs(value[i, 0] - true) < 1e-6


def test_the_clock_runs_from_sigma_min_to_sigma_max():
    clock, w = Clock(0.1, 5.0), torch.linspace(-9, 9, 7).double()
    assert torch.allclose(clock.level(torch.tensor([-30.0, 30.0]).double()), torch.tensor([0.1, 5.0]).double())
    slope = torch.func.vmap(torch.func.grad(lambda w: clock.level(w).log()))(w)
    torch.testing.assert_close(clock.rate(w), slope)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((3, 2), math.nan)}, "x: row 0"),
        ({"x": torch.zeros(3, 4)}, "x: got event shape"),
        ({"sigma_min": -1.0}, "sigma_min: got -1"),
        ({"sigma_min": 5.0, "sigma_max": 1.0}, "sigma_min, sigma_max: got 5 and 1"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": torch.zeros(3, 2)} | change
    with pytest.raises(InputError, match=message):
        likelihood.log_prob(a_mixture(2, dtype=torch.float32), arguments.pop("x"), **arguments)


def broken_reference():
    return models.GaussianReference.of_moments(torch.zeros(2), torch.eye(2))


def test_wrong_kinds_of_things(as_a_user):
    oracle, x = a_mixture(2), torch.zeros(2, 2).double()
    with pytest.raises(InputError, match="trace: got 'exact'"):
        likelihood.log_prob(oracle, x, trace="exact")
    with pytest.raises(InputError, match="model: got Linear"):
        likelihood.log_prob(torch.nn.Linear(2, 2), x)
    narrow = models.ScoreFunction(lambda x_t, kernel: -x_t[:, :1])
    with pytest.raises(InputError, match=r"ScoreFunction: score gave shape \(1, 1\), want that of its input, \(1, 2\)"):
        likelihood.log_prob(narrow, x, sigma_min=0.1, sigma_max=10.0)


def test_bad_options_and_models():
    with pytest.raises(InputError, match="atol"):
        Exact(0.0)
    with pytest.raises(InputError, match="max_probes"):
        Hutchinson(max_probes=2)
    bare = models.ScoreFunction(lambda x_t, kernel: -x_t)
    with pytest.raises(InputError, match="does not know the data's scale"):
        likelihood.log_prob(bare, torch.zeros(2, 2))
    broken = models.ScoreFunction(lambda x_t, kernel: x_t * math.nan)
    with pytest.raises(InputError, match="finite"):
        likelihood.log_prob(broken, torch.zeros(2, 2), sigma_min=0.1, sigma_max=10.0)
    detached = models.ScoreFunction(lambda x_t, kernel: (-x_t).detach())
    with pytest.raises(InputError, match="detached"):
        likelihood.log_prob(detached, torch.zeros(2, 2), sigma_min=0.1, sigma_max=10.0)
    dropping = models.Preconditioned(networks.ResidualMLP((2,), dropout=0.2), broken_reference())
    with pytest.raises(InputError, match="training mode"):
        likelihood.log_prob(dropping.train(), torch.zeros(2, 2))
    low, full = (
        likelihood.log_prob(a_mixture(2), torch.zeros(2, 2, dtype=d)).value for d in (torch.bfloat16, torch.float32)
    )
    assert torch.allclose(low.float(), full, rtol=1e-2)
    laplace = models.Preconditioned(
        networks.ResidualMLP((2,)),
        models.GaussianReference.of_data(torch.randn(20, 2)),
        noise=lambda s: kernels.Additive(torch.distributions.Laplace(0.0, s)),
    )
    with pytest.raises(InputError, match="Gaussian noise"):
        likelihood.log_prob(laplace, torch.zeros(2, 2))


# --- the value beside the bound -------------------------------------------------------------------------------------


def test_the_gap_vanishes_for_an_exact_score():
    oracle = a_mixture(2)
    x = oracle.sample(64, generator=torch.Generator().manual_seed(5))
    process = processes.VP()
    found = likelihood.gap(oracle, x, process, t_min=1e-3, generator=torch.Generator().manual_seed(0))
    assert abs(found.mean.value) < 4 * found.mean.stderr + 1e-2
    assert (found.value.abs() < 6 * found.stderr + 0.02).all()
    low = process.ratio(1e-3).item()
    torch.testing.assert_close(found.ode.value, oracle.log_prob(x, kernels.Gaussian(low)), rtol=0, atol=2e-3)


def test_the_gap_of_a_wrong_linear_score():
    """Both laws are Gaussian, with other variances: u − u²α²/V + (uα/V)²π of the SDE's, (u/V)π of the ODE's."""
    u, data = 0.5, 2.0  # the model's variance, and that of the Gaussian both start from
    wrong = models.GaussianReference.of_moments(torch.zeros(1).double(), torch.full((1, 1), u).double())

    class Wrong(models.ScoreFunction):
        reference = models.GaussianReference.of_moments(torch.zeros(1).double(), torch.full((1, 1), data).double())

    x = torch.tensor([[0.0], [0.7], [1.5]]).double()
    process, method = processes.VP(), likelihood.BoundMethod(n_draws=8192)
    g = torch.Generator().manual_seed(0)
    found = likelihood.gap(Wrong(wrong.score), x, process, t_min=1e-4, t_max=0.4, method=method, generator=g)
    alpha, sigma = process.alpha(0.4).item(), process.sigma(0.4).item()
    v, prior = alpha**2 * u + sigma**2, alpha**2 * data + sigma**2
    ode, sde = u / v * prior, u - u**2 * alpha**2 / v + (u * alpha / v) ** 2 * prior
    assert abs(ode - sde) > 0.1
    true = [-0.5 * (x[:, 0] ** 2 / s + math.log(2 * math.pi * s)) for s in (ode, sde)]
    torch.testing.assert_close(found.ode.value, true[0], rtol=0, atol=2e-3)
    assert (found.sde.value + true[1] > -4 * found.sde.stderr - 1e-3).all()


def test_the_gaussian_of_a_row_is_read_off_the_jacobian():
    g = torch.Generator().manual_seed(0)
    factor = torch.randn(4, 4, generator=g, dtype=torch.float64)
    covariance, s = factor @ factor.T + 0.1 * torch.eye(4), torch.tensor([0.7]).double()
    jacobian = covariance @ torch.linalg.inv(covariance + s**2 * torch.eye(4))  # of E[x | y]
    near = Near.of_jacobian(jacobian[None], s)
    torch.testing.assert_close(near.variance[0], torch.linalg.eigvalsh(covariance))
    back = near.basis[0] @ torch.diag(near.variance[0]) @ near.basis[0].T
    torch.testing.assert_close(back, covariance)
    precision = torch.linalg.inv(covariance + s**2 * torch.eye(4))  # −∇² log p
    torch.testing.assert_close(near.curvature[0] / s[0] ** 4, precision.square().sum())
