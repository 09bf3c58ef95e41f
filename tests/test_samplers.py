"""The sampler: exact on Gaussians, of the order stated, and clear about what it cannot use."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

from gradlogp import InputError
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import GaussianReference, ScoreFunction
from gradlogp.oracles import Empirical, GaussianMixture
from gradlogp.samplers import Field, Memory, euler, heun, karras, sample, trajectory


def gaussian_data() -> GaussianReference:
    covariance = torch.tensor([[1.0, 0.6, 0.0], [0.6, 2.0, 0.1], [0.0, 0.1, 0.3]], dtype=torch.float64)
    return GaussianReference.of_moments(torch.tensor([1.0, -2.0, 0.5]).double(), covariance)


def flow(model: GaussianReference, x: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
    """Each eigen-coordinate scales by √((λ + σ'²)/(λ + σ²)): the flow of Gaussian data, solved exactly."""
    y = (x - model.mean) @ model.eigenvectors
    ratio = ((model.eigenvalues + sigma_next**2) / (model.eigenvalues + sigma**2)).sqrt()
    return model.mean + (y * ratio) @ model.eigenvectors.T


@pytest.mark.parametrize(("step", "order"), [(euler, 1), (heun, 2)])
def test_order_of_convergence_on_the_exact_flow(step, order, g):
    model = gaussian_data()
    x = model.sample_noisy(100, Gaussian(8.0), generator=g)
    errors = []
    for n in (64, 128, 256):
        end = sample(model, x, n, sigma_max=8.0, sigma_min=0.1, step=step)
        errors.append((end - flow(model, x, 8.0, 0.1)).square().mean().sqrt().item())
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - order) < 0.2


def test_samples_of_a_mixture_have_its_law(g):
    exact = GaussianMixture(torch.tensor([0.3, 0.7]), torch.tensor([[-2.0], [1.0]]).double(), torch.tensor([0.2, 0.5]))
    x = sample(exact, 20_000, 60, sigma_max=40.0, sigma_min=0.01, generator=g)[:, 0].numpy()

    def cdf(u):
        return 0.3 * stats.norm.cdf(u, -2, math.sqrt(0.2001)) + 0.7 * stats.norm.cdf(u, 1, math.sqrt(0.5001))

    assert stats.kstest(x, cdf).pvalue > 1e-4


def test_few_atoms_are_found_again(g):
    atoms = torch.tensor([[0.0, 1.0], [2.0, -1.0], [-1.0, -1.0]])
    x = sample(Empirical(atoms), 900, 40, sigma_min=1e-3, generator=g)
    distance = torch.cdist(x, atoms)
    assert distance.min(1).values.max() < 0.01
    counts = distance.argmin(1).bincount(minlength=3)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_levels_of_karras():
    levels = karras(80.0, 0.002, 10)
    assert levels[0].item() == pytest.approx(80.0, rel=1e-12)
    assert levels[-1].item() == pytest.approx(0.002, rel=1e-9)
    middle = (0.5 * 80.0 ** (1 / 7) + 0.5 * 0.002 ** (1 / 7)) ** 7
    assert levels[5].item() == pytest.approx(middle, rel=1e-12)
    assert bool((levels.diff() < 0).all())


def test_trajectory_yields_the_start_and_each_step(g):
    model = gaussian_data()
    states = list(trajectory(model, 5, 7, sigma_max=4.0, sigma_min=0.5, step=heun, generator=g))
    assert [s.step for s in states] == list(range(8))
    assert states[0].sigma == pytest.approx(4.0)
    assert states[-1].sigma == pytest.approx(0.5)
    s, s_next = (torch.tensor(states[i].sigma, dtype=torch.float64) for i in (2, 3))
    after = heun(Field(model), states[2].x, s, s_next, Memory(torch.zeros_like))
    torch.testing.assert_close(after, states[3].x, rtol=1e-6, atol=1e-6)


def test_a_count_starts_from_the_noisy_gaussian(g):
    model = gaussian_data()
    x = next(trajectory(model, 50_000, 1, sigma_max=2.0, sigma_min=1.0, generator=g)).x
    want = (model.eigenvectors * model.eigenvalues) @ model.eigenvectors.T + 4.0 * torch.eye(3)
    error = math.sqrt(2 / 50_000) * want.diagonal().max().item()
    assert (torch.cov(x.T) - want).abs().max() < 5 * error
    assert (x.mean(0) - model.mean).abs().max() < 5 * math.sqrt(want.diagonal().max().item() / 50_000)


def test_the_same_generator_gives_the_same_samples():
    model = gaussian_data()
    a, b, c = (sample(model, 4, 3, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def unknown(x_t: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    return -x_t / (1 + kernel.sigma.to(x_t) ** 2)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((5,), {"sigma_max": 3.0, "sigma_min": 0.1}, "event_shape"),
        ((5,), {"event_shape": (2,)}, "sigma_max, sigma_min"),
        ((0,), {"sigma_max": 3.0, "sigma_min": 0.1, "event_shape": (2,)}, "n: got 0"),
        ((5,), {"sigma_max": 0.1, "sigma_min": 3.0, "event_shape": (2,)}, "sigma_max > sigma_min"),
        (
            (5,),
            {"sigma_max": 3.0, "sigma_min": 0.0, "event_shape": (2,)},
            "sigma_min: got 0, want a finite number > 0: data without noise have no score",
        ),
        ((5, 0), {"sigma_max": 3.0, "sigma_min": 0.1, "event_shape": (2,)}, "n_steps: got 0"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(arguments, options, message):
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        sample(ScoreFunction(unknown), *arguments, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_state_that_is_not_finite_stops_with_step_and_level():
    def bad(x_t: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        return x_t * (torch.nan if kernel.sigma.item() < 1.0 else -1.0)

    with pytest.raises(InputError, match=r"not finite after step \d+ of \d+, at sigma = 0\.\d+"):
        sample(ScoreFunction(bad), torch.zeros(2, 1) + 1, sigma_max=3.0, sigma_min=0.1, step=heun)
