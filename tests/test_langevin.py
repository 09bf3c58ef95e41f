"""Langevin sampling with scores of any kernel, and training with noise of any law."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as td

from gradlogp import InputError, samplers
from gradlogp.kernels import Additive, Gaussian, Kernel
from gradlogp.models import GaussianReference, Preconditioned, ScoreFunction, ScoreModel, require_gaussian
from gradlogp.networks import ResidualMLP
from gradlogp.objectives import DenoisingScoreMatching
from gradlogp.oracles import Empirical, GaussianMixture, Quadrature
from gradlogp.samplers import langevin, langevin_trajectory, log_ratio
from gradlogp.samplers.noise import Noise
from gradlogp.training import HeldOut, NoiseLevels, Recipe, WeightedLoss, calibrate, train
from gradlogp.training.any_kernel import PairGroup, Scaled, at_levels
from gradlogp.training.held_out import _Group

F64 = torch.float64


def laplace(s: float) -> Kernel:
    return Additive(td.Laplace(0.0, s))


def student(s: float) -> Kernel:
    return Additive(td.StudentT(5.0, 0.0, s))


def on_the_line() -> GaussianMixture:
    return GaussianMixture(torch.tensor([0.3, 0.7]), torch.tensor([[-2.0], [1.0]], dtype=F64), torch.tensor([0.2, 0.5]))


def cdf_on_the_line(sigma: float):
    def cdf(u):
        a, b = math.sqrt(0.2 + sigma**2), math.sqrt(0.5 + sigma**2)
        return 0.3 * stats.norm.cdf(u, -2, a) + 0.7 * stats.norm.cdf(u, 1, b)

    return cdf


def in_space() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.5, 0.0], [1.0, 0.0, -0.5]], dtype=F64)
    return GaussianMixture(torch.tensor([0.4, 0.6]), means, torch.tensor([0.3, 0.6]))


def learnt(oracle: GaussianMixture) -> ScoreFunction:
    """The score of an oracle without its density."""
    return ScoreFunction(oracle.score)


def z_of_moments(x: torch.Tensor, mean: float, variance: float, kurtosis: float) -> tuple[float, float]:
    """Of the mean, and of the mean square around the true mean; kurtosis is E(x − m)⁴/v²."""
    n = len(x)
    z_mean = (x.mean().item() - mean) / math.sqrt(variance / n)
    z_variance = ((x - mean).square().mean().item() / variance - 1) / math.sqrt((kurtosis - 1) / n)
    return z_mean, z_variance


GEOMETRIC = [Gaussian(s) for s in (3.0, 1.6, 0.8, 0.3)]


@pytest.mark.parametrize("with_density", [True, False])
def test_annealed_chains_have_the_law_of_a_mixture(with_density, g):
    """Modes that no chain leaves at the last level, in the right shares; a wrong sign of the test or ratio shows."""
    oracle = on_the_line()
    model = oracle if with_density else learnt(oracle)
    x = langevin(model, 4000, GEOMETRIC, 24, max_step=math.inf, event_shape=(1,), generator=g)[:, 0].double()
    assert stats.kstest(x.numpy(), cdf_on_the_line(0.3)).pvalue > 1e-4
    draws = Gaussian(0.3).sample(oracle.sample(1_000_000, generator=g), generator=g)[:, 0]
    kurtosis = ((draws - draws.mean()).pow(4).mean() / draws.var() ** 2).item()
    mean, variance = 0.3 * -2 + 0.7, 0.3 * 0.2 + 0.7 * 0.5 + 0.09 + 0.21 * 9
    assert max(abs(z) for z in z_of_moments(x, mean, variance, kurtosis)) < 4.5


@pytest.mark.parametrize("family", [laplace, student])
def test_chains_have_the_law_of_atoms_under_noise_that_is_not_gaussian(family, g):
    """Scores that jump at every atom, and tails of power 6."""
    atoms = torch.tensor([[-1.0], [0.0], [0.25], [2.0]], dtype=F64)
    ladder = [family(s) for s in (2.0, 1.3, 0.9, 0.6, 0.4, 0.3)]
    x = langevin(Empirical(atoms), 1500, ladder, 40, generator=g)[:, 0].numpy()
    law = stats.laplace if family is laplace else stats.t(5)
    assert stats.kstest(x, lambda u: law.cdf((u[:, None] - atoms[:, 0].numpy()) / 0.3).mean(1)).pvalue > 1e-4


def test_chains_have_the_law_of_a_density_by_quadrature_under_laplace_noise(g):
    """A mixture of Normals with Laplace noise; from a start far too wide."""
    mixture = td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.3, 0.7], dtype=F64)),
        td.Normal(torch.tensor([-1.0, 0.8], dtype=F64), torch.tensor([0.3, 0.5], dtype=F64)),
    )
    start = 2 * torch.randn(150, 1, generator=g, dtype=F64)
    x = langevin(Quadrature(mixture, order=3), start, [laplace(0.5)], 20, generator=g)[:, 0]
    rng = np.random.default_rng(0)
    first = rng.random(400_000) < 0.3
    clean = np.where(first, rng.normal(-1.0, 0.3, first.size), rng.normal(0.8, 0.5, first.size))
    assert stats.ks_2samp(x.numpy(), clean + rng.laplace(0, 0.5, first.size)).pvalue > 1e-4


def test_without_the_metropolis_test_the_variance_is_that_of_the_discretised_chain(g):
    """x + h·s + √(2h)z on N(m, v) has variance v/(1 − h/2v), never v; with the test it has v at the same h."""
    v, n = 0.5 + 0.25, 40_000
    oracle = GaussianMixture(torch.ones(1), torch.tensor([[1.5]], dtype=F64), torch.tensor([0.5]))
    for adjusted, want in ((False, v / (1 - 0.6 / (2 * v))), (True, v)):
        run = langevin_trajectory(
            oracle, n, [Gaussian(0.5)], 40, adjusted=adjusted, step=0.6 / 0.25, event_shape=(1,), generator=g
        )
        end = list(run)[-1]
        assert max(abs(z) for z in z_of_moments(end.x, 1.5, want, 3.0)) < 4.5
        assert end.step_size == pytest.approx(0.6)
        assert (end.acceptance == 1.0) != adjusted


def test_shifted_noise_shifts_the_law_and_where_chains_may_go(g):
    """N(2, 4) with N(10, 0.25) on top is N(12, 4.25): from data and from a count, for a score without its density."""
    reference = GaussianReference.of_moments(torch.tensor([2.0], dtype=F64), torch.tensor([[4.0]], dtype=F64))
    kernel = Additive(td.Normal(torch.tensor(10.0, dtype=F64), torch.tensor(0.5, dtype=F64)))
    start = 12 + math.sqrt(4.25) * torch.randn(3000, 1, generator=g, dtype=F64)
    x = langevin(reference, start, [kernel], 40, max_step=10.0, generator=g)
    assert max(abs(z) for z in z_of_moments(x[:, 0], 12.0, 4.25, 3.0)) < 5
    wide = Additive(td.Normal(torch.tensor(10.0, dtype=F64), torch.tensor(4.0, dtype=F64)))
    _, first = sys.modules["gradlogp.samplers.langevin"]._chains(reference, 4000, kernel, None, Noise(1), g)
    assert max(abs(z) for z in z_of_moments(first[:, 0], 12.0, 4.25, 3.0)) < 5
    x = langevin(reference, 3000, [wide, kernel], 80, max_step=10.0, generator=g)
    assert max(abs(z) for z in z_of_moments(x[:, 0], 12.0, 4.25, 3.0)) < 5


class Runaway(ScoreModel):
    """Knows that the data are N(0, 1) on the line, but its score pushes outwards everywhere."""

    reference = GaussianReference(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64), torch.ones(1, 1, dtype=F64))

    def score(self, x_t, kernel):
        return 0.5 * x_t

    def denoise(self, x_t, kernel):
        raise AssertionError


def test_a_score_that_runs_away_is_held_within_what_was_learnt(g):
    x = langevin(Runaway(), torch.zeros(200, 1, dtype=F64), [Gaussian(1.0)], 200, max_step=0.5, generator=g)
    assert 3 < x.abs().max().item() < 4 * math.sqrt(2)


def test_chains_stay_within_the_stated_distance_of_the_mean():
    """√tr(C) + 3√λ_max(C) from alpha·μ + shift: of rank one in three dimensions, under noise of three variances."""
    v = torch.tensor([[0.6], [0.8], [0.0]], dtype=F64)
    reference = GaussianReference(torch.tensor([1.0, 0.0, -1.0], dtype=F64), torch.tensor([4.0], dtype=F64), v)
    shift, std = torch.tensor([0.0, 2.0, 0.0], dtype=F64), torch.tensor([0.5, 1.0, 1.5], dtype=F64)
    for kernel, trace, top, mean in (
        (Gaussian(0.5, alpha=0.5), 1.0 + 3 * 0.25, 1.25, 0.5 * reference.mean),
        (Additive(td.Normal(shift, std)), 4.0 + 3.5, 4.0 + 2.25, reference.mean + shift),
    ):
        radius = math.sqrt(trace) + 3 * math.sqrt(top)
        level = sys.modules["gradlogp.samplers.langevin"]._Level(reference, kernel, 5, "here")
        at = torch.stack([mean + s * radius * torch.tensor([0.0, 0.6, 0.8], dtype=F64) for s in (0.999, -0.999, 1.001)])
        assert level.outside(at).tolist() == [False, False, True]


@pytest.mark.parametrize("nodes", [2, 3, 4, 6])
def test_the_line_integral_is_the_difference_of_log_densities_to_the_stated_error(nodes, g):
    oracle, kernel = in_space(), Gaussian(0.4)
    x, d = torch.randn(50, 3, generator=g, dtype=F64), 0.7 * torch.randn(50, 3, generator=g, dtype=F64)
    want = oracle.log_prob(x + d, kernel) - oracle.log_prob(x, kernel)
    got = log_ratio(learnt(oracle), x, x + d, kernel, nodes)
    t = torch.cos(math.pi * (torch.arange(40, dtype=F64) + 0.5) / 40)  # f by Chebyshev's interpolation of its values
    at = x[:, None] + ((t[:, None] + 1) / 2) * d[:, None]
    f = (oracle.score(at.reshape(-1, 3), kernel).reshape(50, 40, 3) * d[:, None]).sum(2)
    derivative = 2 * nodes - 2
    largest = []  # of |f^{(2n−2)}| along each line
    for row in f:
        p = np.polynomial.chebyshev.Chebyshev.fit((t.numpy() + 1) / 2, row.numpy(), 24, domain=[0, 1])
        largest.append(np.abs(p.deriv(derivative)(np.linspace(0, 1, 400))).max())
    n = nodes
    constant = n * (n - 1) ** 3 * math.factorial(n - 2) ** 4 / ((2 * n - 1) * math.factorial(2 * n - 2) ** 3)
    error = (got - want).abs().numpy()
    assert (error <= 1.01 * constant * np.array(largest) + 1e-12).all()
    assert (error / (constant * np.array(largest))).max() > 0.5  # the bound is met
    torch.testing.assert_close(log_ratio(learnt(oracle), x + d, x, kernel, nodes), -got, rtol=1e-10, atol=1e-12)


def test_the_line_integral_is_exact_for_affine_scores_and_for_polynomials(g):
    x, y = torch.randn(20, 3, generator=g, dtype=F64), torch.randn(20, 3, generator=g, dtype=F64)
    covariance = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    model = GaussianReference.of_moments(torch.tensor([1.0, 0.0, 2.0], dtype=F64), covariance)
    law = td.MultivariateNormal(model.mean, covariance + 0.25 * torch.eye(3, dtype=F64))
    torch.testing.assert_close(log_ratio(model, x, y, Gaussian(0.5), 2), law.log_prob(y) - law.log_prob(x))
    for nodes in (3, 4, 5, 7):
        power = 2 * nodes - 3
        at = ScoreFunction(lambda u, k, power=power: u**power)
        want = ((y ** (power + 1) - x ** (power + 1)) / (power + 1)).sum(1)
        torch.testing.assert_close(log_ratio(at, x, y, Gaussian(1.0), nodes), want)


@pytest.mark.parametrize("target", [0.574, 0.8])
def test_the_step_is_adapted_to_the_acceptance_wanted_at_every_level(target, g):
    levels = [Gaussian(2.0), Gaussian(0.5)]
    for state in langevin_trajectory(in_space(), 256, levels, 60, target_acceptance=target, generator=g):
        assert abs(state.acceptance - target) < 0.05


def test_a_row_does_not_depend_on_how_many_are_asked_for():
    def run(n: int) -> list[samplers.LangevinState]:
        generator = torch.Generator().manual_seed(3)
        return list(langevin_trajectory(in_space(), n, GEOMETRIC[:3], 20, event_shape=(3,), generator=generator))

    few, some, many = run(5), run(300), run(700)
    for a, b, c in zip(few, some, many, strict=True):
        assert [len(s.x) for s in (a, b, c)] == [5, 300, 700]
        torch.testing.assert_close(a.x, c.x[:5], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(b.x, c.x[:300], rtol=1e-9, atol=1e-9)
        assert a.step_size == pytest.approx(c.step_size, rel=1e-9)
    assert not torch.equal(few[0].x[0], few[0].x[1])


def test_the_default_ladder_has_the_fisher_scales_of_the_training_noise():
    reference = GaussianReference.of_moments(torch.zeros(2, dtype=F64), torch.diag(torch.tensor([4.0, 1.0], dtype=F64)))
    for noise in (None, laplace, student):
        model = ScoreFunction(lambda x, k: -x)
        with pytest.raises(InputError, match="ladder: this model does not know"):
            samplers.default_ladder(model)
        model = Preconditioned(ResidualMLP((2,), width=4, depth=1), reference, noise)
        sigma = torch.stack([k.sigma for k in samplers.default_ladder(model)])
        assert sigma[0].item() == pytest.approx(4.0)
        assert sigma[-1].item() == pytest.approx(0.02 * math.sqrt(2.5))
        assert (sigma[:-1] / sigma[1:]).tolist() == pytest.approx([(sigma[0] / sigma[1]).item()] * (len(sigma) - 1))
        assert type(samplers.default_ladder(model)[0]) is (Gaussian if noise is None else Additive)


def test_a_ladder_may_shrink_the_data(g):
    """Kernels alpha·x + sigma·z of a variance-preserving process: the chains are shrunk along."""
    oracle = GaussianMixture(torch.ones(1), torch.tensor([[3.0]], dtype=F64), torch.tensor([0.5]))
    ladder = [Gaussian(math.sqrt(1 - a**2), alpha=a) for a in (0.1, 0.5, 0.9)]
    x = langevin(oracle, 20_000, iter(ladder), 40, event_shape=(1,), generator=g)
    assert max(abs(z) for z in z_of_moments(x, 2.7, 0.81 * 0.5 + 0.19, 3.0)) < 4.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ladder": []}, "ladder: got none"),
        ({"ladder": Gaussian(1.0)}, "ladder: got Gaussian(sigma=1)"),
        ({"ladder": [1.0, 0.5]}, "ladder: got [1.0, 0.5]"),
        ({"ladder": [Gaussian(0.5), Gaussian(1.0)]}, "sigma = 1 after 0.5 at level 2"),
        ({"ladder": [Gaussian(torch.tensor([0.5, 1.0]))]}, "one level for all rows"),
        ({"ladder": [Gaussian(0.5, alpha=0.0)]}, "alpha > 0"),
        ({"n_steps": 0}, "n_steps: got 0"),
        ({"nodes": 1}, "nodes: got 1"),
        ({"target_acceptance": 1.0}, "target_acceptance: got 1"),
        ({"step": -1.0}, "step: got -1"),
        ({"max_step": 0.0}, "max_step: got 0"),
        ({"event_shape": None}, "event_shape"),
    ],
)
@pytest.mark.usefixtures("as_a_user")
def test_what_cannot_be_used_is_said_in_one_line(options, message):
    arguments = {"ladder": [Gaussian(1.0)], "n_steps": 4, "event_shape": (1,), **options}
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        langevin(ScoreFunction(lambda x, k: -x), 4, **arguments)
    assert message in str(error.value)


@pytest.mark.parametrize("adjusted", [True, False])
def test_chains_that_are_not_finite_stop_with_their_level(adjusted):
    def bad(x: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        return x * (torch.nan if kernel.sigma.item() < 1.0 else -1.0)

    with pytest.raises(InputError, match=r"not finite at level 2 of 2, .*sigma = 0\.5"):
        langevin(ScoreFunction(bad), torch.ones(3, 1), [Gaussian(1.0), Gaussian(0.5)], 4, adjusted=adjusted, step=0.1)


def test_a_proposal_where_there_is_no_density_is_rejected(g):
    """An exponential law, cut at 0, whose score is not a number beyond; chains stay inside and keep the law."""

    class Cut(ScoreFunction):
        def log_prob(self, x: torch.Tensor, kernel: Kernel) -> torch.Tensor:
            return torch.where(x > 0, -x, -math.inf).squeeze(1)

    model = Cut(lambda x, k: torch.where(x > 0, -1.0, math.nan))
    x = langevin(model, torch.rand(3000, 1, generator=g, dtype=F64) + 0.5, [Gaussian(1.0)], 120, generator=g)[:, 0]
    assert stats.kstest(x.numpy(), "expon").pvalue > 1e-4


class Outward(GaussianReference):
    """A Gaussian whose score points outwards where no data are, as a learnt one may."""

    def score(self, x_t: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        psi = super().score(x_t, kernel)
        return torch.where(x_t.norm(dim=1, keepdim=True) > 9.0, -psi, psi)


def test_chains_do_not_run_away_where_nothing_was_learnt(g):
    """C = (1 + sigma²)I in the plane: none beyond (√2 + 3)√(1 + sigma²); within, the law is as it was."""
    model = Outward(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64), torch.eye(2, dtype=F64))
    ladder = [Gaussian(s) for s in (4.0, 2.0, 0.5)]
    for state in langevin_trajectory(model, 2000, ladder, 40, max_step=2.0, generator=g):
        assert state.x.norm(dim=1).max().item() <= (math.sqrt(2) + 3) * math.hypot(1, state.kernel.sigma.item())
    assert stats.kstest(state.x[:, 0].numpy() / math.sqrt(1.25), "norm").pvalue > 1e-4
    far = langevin(ScoreFunction(model.score), 10 * torch.ones(4, 2, dtype=F64), ladder[1:], 40, generator=g)
    assert far.norm(dim=1).min() > 20  # without the data's moments they do


# --- models that know their noise -------------------------------------------------------------------------------------


def two_clusters(n: int, g: torch.Generator) -> torch.Tensor:
    centre = torch.randint(0, 2, (n, 1), generator=g) * 2.0 - 1.0
    return torch.cat([centre, -centre], 1) + 0.3 * torch.randn(n, 2, generator=g)


def new_model(x: torch.Tensor, noise=None) -> Preconditioned:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResidualMLP((2,), width=32, depth=1)
    return Preconditioned(network, GaussianReference.of_data(x), noise)


def test_a_model_of_other_noise_is_refused_where_gaussian_noise_is_needed(g):
    x = two_clusters(50, g)
    for noise in (None, Gaussian, lambda s: Additive(td.Normal(0.0, s))):
        require_gaussian(new_model(x, noise), "sample")
    require_gaussian(on_the_line(), "sample")
    for noise in (laplace, lambda s: Additive(td.Normal(1.0, s)), lambda s: Additive(td.Normal(torch.zeros(2), s))):
        kind = "Additive(Laplace)" if noise is laplace else "Additive(Normal)"
        with pytest.raises(InputError, match=r"^sample: got a model trained with Additive[^\n]*langevin") as error:
            require_gaussian(new_model(x, noise), "sample")
        assert kind in str(error.value)
    with pytest.raises(InputError, match="calibrate: got a model trained with Additive"):
        calibrate(new_model(x, laplace), x, NoiseLevels(0.1, 3.0))
    assert langevin(new_model(x, laplace), 4, n_steps=1, generator=g).shape == (4, 2)  # the default ladder
    with pytest.raises(InputError, match="ladder of Gaussian kernels: got a model trained with Additive"):
        langevin(new_model(x, laplace), 4, [Gaussian(1.0)], generator=g)


@pytest.mark.parametrize("law", [td.Laplace(0.0, 1.0), td.StudentT(5.0, 0.1, 1.0), td.Gumbel(0.0, 1.0)])
def test_noise_at_a_level_of_each_rows_own_is_that_of_its_level(law, g):
    unit = Additive(law)
    sigma = torch.tensor([0.1, 0.7, 3.0], dtype=F64)
    kernel = at_levels(lambda s: Additive(td.TransformedDistribution(law, td.AffineTransform(0.0, s))), (2,))(sigma)
    torch.testing.assert_close(kernel.sigma, sigma, rtol=1e-3, atol=0)
    x = torch.randn(3, 2, generator=g, dtype=F64)
    x_t = kernel.sample(x, generator=g).requires_grad_()
    for i, s in enumerate((sigma / unit.sigma).tolist()):
        own = Additive(td.TransformedDistribution(law, td.AffineTransform(0.0, s)))
        at, of = x_t[i : i + 1].detach(), x[i : i + 1]
        got, want = kernel.rows(torch.tensor([i])).log_prob(at, of), own.log_prob(at, of)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(kernel.log_prob(x_t, x).sum(), x_t)
    torch.testing.assert_close(kernel.score(x_t.detach(), x), gradient, rtol=1e-4, atol=1e-6)
    many = torch.zeros(60_000, 2, dtype=F64)
    wide = Scaled(unit, sigma.repeat(20_000))
    each = wide.score(wide.sample(many, generator=g), many).square().sum(1).reshape(-1, 3)
    z = (each.mean(0) - wide.fisher_information((2,))[:3]) / (each.std(0) / math.sqrt(20_000) + 1e-9)
    assert z.abs().max() < 4.5


def test_a_family_that_is_no_scale_family_is_refused():
    with pytest.raises(InputError, match=r"noise: got Additive.StudentT.*want a scale family"):
        at_levels(lambda s: Additive(td.StudentT(3.0 + s, 0.0, s)), (2,))
    with pytest.raises(InputError, match=r"noise: got 1\.0 at scale 1, want a kernel"):
        at_levels(lambda s: s, (2,))
    for noise in (None, Gaussian, lambda s: Additive(td.Normal(0.0, s))):
        assert type(at_levels(noise, (2,))(torch.ones(3))) is Gaussian


def test_pairs_of_rows_and_the_closed_form_agree_for_gaussian_noise(g):
    x = torch.randn(7, 2, generator=g, dtype=F64)
    kernel = Gaussian(torch.rand(21, generator=g, dtype=F64) + 0.3)
    x_t, weight = kernel.sample(x.repeat_interleave(3, 0), generator=g), torch.rand(21, generator=g, dtype=F64)
    psi = torch.randn(21, 2, generator=g, dtype=F64)
    pairs, closed = PairGroup(x, x_t, kernel, weight), _Group(x, x_t, kernel, weight)
    torch.testing.assert_close(pairs.target, closed.target)
    for a, b in zip((*pairs.left(psi), *pairs.floor()), (*closed.left(psi), *closed.floor()), strict=True):
        torch.testing.assert_close(a, b)


def test_a_gaussian_family_trains_as_no_family_does(g):
    x = two_clusters(200, g)
    runs = []
    for noise in (None, Gaussian, lambda s: Additive(td.Normal(0.0, s))):
        generator = torch.Generator().manual_seed(1)
        steps = train(
            new_model(x, noise), x, x[:50], levels=NoiseLevels(0.1, 3.0), recipe=Recipe(n_steps=20, evaluate_every=10),
            generator=generator,
        )  # fmt: skip
        runs.append([(r.loss, r.held_out, r.left, r.floor) for r in steps])
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("family", [laplace, student])
def test_training_with_other_noise_learns_its_score(family, g):
    """On three atoms the score is known: Σ_j w_j ∇log q(x_t − x_j)."""
    atoms = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [1.0, 1.5]])
    x = atoms.repeat(100, 1)
    model = new_model(x, family)
    levels, exact = NoiseLevels(0.3, 2.0), Empirical(atoms)
    recipe = Recipe(n_steps=300, batch_size=64, evaluate_every=100, patience=100, learning_rate=5e-3, ema=0.98)
    records = list(train(model, x, x[:30], levels=levels, recipe=recipe, generator=g))
    assert records[-1].left < 0.7 * records[0].left
    kernel = family(0.8)
    x_t = kernel.sample(x.repeat(20, 1), generator=g)
    truth = exact.score(x_t, kernel)
    error, size = ((v.square().sum(1)).mean().item() for v in (model.score(x_t, kernel) - truth, truth))
    start = (new_model(x).score(x_t, kernel) - truth).square().sum(1).mean().item()
    assert error < 0.4 * min(start, size)


@pytest.mark.parametrize("family", [laplace, student])
def test_what_is_left_and_the_floor_add_up_to_the_loss(family, g):
    """held_out = left + floor in expectation: 30 seeds of noise, in standard errors of their spread."""
    x = two_clusters(60, g)
    model = new_model(x, family)
    loss = WeightedLoss(DenoisingScoreMatching(), model.reference, family)
    looks = [HeldOut(x, NoiseLevels(0.3, 3.0), loss, seed, min_draws=240) for seed in range(30)]
    gap = np.array([look(model).held_out - look(model).left - look.floor for look in looks])
    assert abs(gap.mean()) < 4.5 * gap.std(ddof=1) / math.sqrt(30)
    assert all(look.floor > 0 for look in looks)
