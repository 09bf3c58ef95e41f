"""The weights of the noise levels: their papers' definitions, the likelihood's integral, variance, what is learnt."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from gradlogp import InputError, processes
from gradlogp.kernels import Gaussian
from gradlogp.models import GaussianReference, Preconditioned
from gradlogp.networks import ResidualMLP
from gradlogp.objectives import DenoisingScoreMatching
from gradlogp.processes import VE, VP, Cosine, OrnsteinUhlenbeck, RectifiedFlow, SubVP
from gradlogp.training import (
    Goal,
    HeldOut,
    Levels,
    NoiseLevels,
    Recipe,
    TimeLevels,
    WeightedLoss,
    kept,
    train,
    weights,
)

F64 = torch.float64
PROCESSES = [VP(), SubVP(), VE(0.01, 50.0), Cosine(), RectifiedFlow(), OrnsteinUhlenbeck(), processes.EDM()]
LOW, HIGH = 0.03, 6.0


def scalars(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


# --- each weight is its paper's, in the paper's own parametrisation ---------------------------------------------------


class Drawn:
    """One draw of rows, levels and noise, and the errors of a random model in every parametrisation, per direction.

    The data's scale σ_d is 1.7 or so: for ε, x0 and v of a variance-preserving process they are taken in that unit.
    """

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        root = torch.tensor([[2.0, 0.4, 0.0], [0.0, 0.7, 0.2], [0.0, 0.0, 2.2]], dtype=F64)
        self.x = torch.randn(200, 3, generator=g, dtype=F64) @ root
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = ResidualMLP((3,), width=16, depth=1)
            torch.nn.init.normal_(network.last.weight, std=0.5)
        self.model = Preconditioned(network, GaussianReference.of_data(self.x)).double().eval()
        self.data = weights.Scale.of(self.model.reference)
        self.sigma = torch.logspace(-2, 1.2, 200, dtype=F64)
        self.z = torch.randn(200, 3, generator=g, dtype=F64)
        s = self.sigma[:, None]
        x_t = self.x + s * self.z
        with torch.no_grad():
            psi, clean = (f(x_t, Gaussian(self.sigma)) for f in (self.model.score, self.model.denoise))
        self.j = 0.5 * (psi + self.z / s).square().sum(1)
        unit = self.model.reference.data_scale
        alpha = 1 / (1 + (s / unit) ** 2).sqrt()
        sg = alpha * s / unit
        eps = (x_t - clean) / s
        self.eps = (eps - self.z).square().mean(1)
        self.x0 = ((clean - self.x) / unit).square().mean(1)
        self.v = ((alpha * eps - sg * clean / unit) - (alpha * self.z - sg * self.x / unit)).square().mean(1)
        self.snr = ((alpha / sg) ** 2)[:, 0]
        self.clean_error = (clean - self.x).square().mean(1)
        self.score_error = (psi + self.z / s).square().mean(1)


def test_each_weight_is_that_of_its_paper_in_another_parametrisation():
    d = Drawn()
    low, high = d.snr.clamp(max=5.0), d.snr.clamp(min=1.0)
    edm = (d.sigma**2 + d.data.variance) / (d.sigma**2 * d.data.variance)  # λ of Karras et al. on ‖D − x‖²
    cases: list[tuple[weights.Weight, torch.Tensor]] = [
        (weights.SigmaSquared(), d.eps),
        (weights.SNR(0.0), d.snr * d.x0),
        (weights.SNR(), high * d.x0),
        (weights.SNR(), high / d.snr * d.eps),
        (weights.MinSNR(5.0), low * d.x0),
        (weights.MinSNR(5.0), low / d.snr * d.eps),
        (weights.MinSNR(5.0), low / (d.snr + 1) * d.v),
        (weights.MinSNR(1e9), d.eps),
        (weights.EDM(), edm * d.clean_error),
        (weights.EDM(), d.v),
        (weights.Uniform(), d.data.variance * d.score_error),
    ]
    for weight, want in cases:
        torch.testing.assert_close(weight(d.sigma, d.data) * d.j, want, rtol=1e-7, atol=1e-9, msg=repr(weight))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("unit", [1.0, 1.7])
def test_likelihood_is_g_squared_on_scores_of_scaled_rows(process, unit):
    """½g²‖ψ_t − t‖² of x_t = alpha·x/unit + sigma·z, with g² by finite differences, and sigma_t² beside sigma²."""
    d = Drawn()
    t = torch.linspace(process.t_min + 0.02, min(process.t_max, 5.0) - 0.02, 200, dtype=F64)
    times = TimeLevels(process, t_min=process.t_min + 0.01, t_max=min(process.t_max, 5.0) - 0.01, unit=unit)
    h = 1e-6
    variance_slope, log_alpha_slope = (
        (f(t + h) - f(t - h)) / (2 * h) for f in (lambda t: process.sigma(t) ** 2, process.log_alpha)
    )
    kernel = process(t)
    g2 = variance_slope - 2 * log_alpha_slope * kernel.sigma**2
    x_t = kernel.alpha[:, None] * d.x / unit + kernel.sigma[:, None] * d.z
    with torch.no_grad():  # the model is of x, the process runs on x/unit
        psi = unit * d.model.score(unit * x_t, Gaussian(unit * kernel.sigma, kernel.alpha))
        s = unit * kernel.sigma / kernel.alpha
        j = 0.5 * (d.model.score(d.x + s[:, None] * d.z, Gaussian(s)) + d.z / s[:, None]).square().sum(1)
    j_t = 0.5 * (psi + d.z / kernel.sigma[:, None]).square().sum(1)
    constant = (times.t_max - times.t_min) / (3 * math.log(times.sigma_max / times.sigma_min))
    got = weights.Likelihood(times)(s, d.data) * j
    torch.testing.assert_close(got, constant * g2 * j_t, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(weights.SigmaSquared()(s, d.data) * j, 2 / 3 * kernel.sigma**2 * j_t, rtol=1e-7, atol=0)


NUMBERS = {  # of the weight before it had a name, at σ_d of 0x1.4dc87ep+0 and R = 3
    torch.float32: ["0x1.d89af20000000p-14", "0x1.aeec5e0000000p-2", "0x1.624d720000000p+18"],
    torch.float64: ["0x1.d89af04180a44p-14", "0x1.aeec5ca5244b0p-2", "0x1.624d6fa08f723p+18"],
}


@pytest.mark.parametrize("dtype", NUMBERS)
def test_the_default_weight_is_what_it_was_in_all_digits(dtype):
    data = weights.Scale(float.fromhex("0x1.4dc87e0000000p+0") ** 2, 3)
    got = weights.EDM()(torch.tensor([0.013, 0.7, 31.0], dtype=dtype), data)
    assert [v.hex() for v in got.tolist()] == NUMBERS[dtype]
    loss = WeightedLoss(DenoisingScoreMatching(), GaussianReference.of_moments(torch.zeros(3), 1.7 * torch.eye(3)))
    assert loss.law == weights.EDM() == Recipe().weight == Goal.score(NoiseLevels(0.1, 1.0)).weight
    assert (loss.data.variance, loss.data.n_directions) == (pytest.approx(1.7), 3)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_weights_follow_the_unit_of_the_data(factor):
    """J is in 1/unit², so λ is in unit²."""
    sigma, one = torch.logspace(-1, 1, 5, dtype=F64), weights.Scale(2.0, 3)
    other = weights.Scale(2.0 * factor**2, 3)
    times = [TimeLevels(VP(), unit=u) for u in (1.0, factor)]
    for weight in (weights.EDM(), weights.Uniform(), weights.SigmaSquared(), weights.SNR(), weights.MinSNR()):
        torch.testing.assert_close(weight(factor * sigma, other), factor**2 * weight(sigma, one), rtol=1e-9, atol=0)
    a, b = (weights.Likelihood(t) for t in times)
    torch.testing.assert_close(b(factor * sigma, other), factor**2 * a(sigma, one), rtol=1e-9, atol=0)


# --- the law of the levels, and the integral that both make -----------------------------------------------------------


LAWS: list[Levels] = [
    NoiseLevels(LOW, HIGH),
    NoiseLevels(LOW, HIGH, centre=-1.0, spread=0.8),
    *(TimeLevels(p, t_max=min(p.t_max, 5.0)) for p in PROCESSES),
    TimeLevels(VP(0.2, 10.0), t_min=1e-3, t_max=0.9, unit=3.0),
]


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_the_density_of_log_sigma_is_the_slope_of_its_quantiles(law):
    u, h = torch.linspace(0.01, 0.99, 50, dtype=F64), 1e-5
    slope = (law.quantile(u + h).log() - law.quantile(u - h).log()) / (2 * h)
    torch.testing.assert_close(law.log_density(law.quantile(u)), -slope.log(), rtol=1e-5, atol=1e-5)
    ends = law.quantile(scalars(0.0, 1.0)).tolist()
    assert ends == pytest.approx([law.sigma_min, law.sigma_max], rel=1e-6)
    drawn = law.draw(1000, generator=torch.Generator().manual_seed(0), like=torch.zeros(1))
    assert drawn.dtype == torch.float32
    assert bool(torch.isfinite(law.log_density(drawn)).all())


def test_levels_of_a_process_have_its_times_uniform():
    times = TimeLevels(SubVP(), t_min=0.1, t_max=0.7, unit=2.0)
    sigma = times.quantile(torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=F64))
    assert stats.kstest(SubVP().time(sigma / 2).numpy(), stats.uniform(0.1, 0.6).cdf).pvalue > 1e-3


WRONG = 2.5  # variance of the affine model where the data have 1


def affine() -> Preconditioned | GaussianReference:
    return GaussianReference.of_moments(torch.zeros(2, dtype=F64), WRONG * torch.eye(2, dtype=F64))


def song(process: VP | SubVP, t_min: float, t_max: float) -> float:
    """½∫ g² E‖ψ_t − t‖² dt by quadrature in t, of two coordinates, for N(0, I) and the affine score: in x_t, not x."""

    def integrand(t: float) -> float:
        b = process.beta_min * t + (process.beta_max - process.beta_min) * t**2 / 2
        beta, var = process.beta_min + (process.beta_max - process.beta_min) * t, -math.expm1(-b)
        g2, var = (beta, var) if isinstance(process, VP) else (-beta * math.expm1(-2 * b), var**2)
        a, total = -1 / (math.exp(-b) * WRONG + var), math.exp(-b) + var
        return 0.5 * g2 * 2 * (a * a * total + 1 / var + 2 * a)  # E‖a·x_t + z/σ‖²

    return integrate.quad(integrand, t_min, t_max, epsabs=1e-10, epsrel=1e-9, limit=500)[0]


@pytest.mark.parametrize("process", [VP(), SubVP()], ids=repr)
def test_loss_and_levels_are_an_unbiased_estimate_of_the_likelihood_integral(process):
    """With g² at uniform times, importance-sampled, and from levels of any law: R·log(s_max/s_min) times the loss."""
    times = TimeLevels(process, t_min=0.01)
    even = Goal.likelihood(times).levels
    bell = NoiseLevels(times.sigma_min, times.sigma_max, centre=-0.5, spread=2.0)
    likelihood, noise = weights.Likelihood(times), weights.SigmaSquared()
    assert Goal.likelihood(times).weight == noise
    goals = [
        (Goal(likelihood, times), 0.03),
        (Goal.likelihood(times), 0.006),
        (Goal(weights.Drawn(likelihood, times, even), even), 0.006),
        (Goal(weights.Drawn(noise, even, bell), bell), 0.01),
        (Goal(weights.Drawn(likelihood, times, bell), bell), 0.01),
    ]
    g = torch.Generator().manual_seed(1)
    want, constant = song(process, 0.01, 1.0), 2 * math.log(times.sigma_max / times.sigma_min)
    n = 200_000
    for goal, precise in goals:
        loss = WeightedLoss(DenoisingScoreMatching(), affine(), weight=goal.weight)
        loss.data = weights.Scale(1.0, 2)
        x = torch.randn(n, 2, generator=g, dtype=F64)
        sigma = goal.levels.quantile(torch.rand(n, generator=g, dtype=F64))
        each = constant * loss(affine(), x, sigma, g)
        stderr = each.std().item() / math.sqrt(n)
        assert abs(each.mean().item() - want) < 4.5 * stderr, goal
        assert stderr < precise * want, goal


def test_importance_sampling_takes_the_schedule_out_of_the_weight():
    """g²·p_t/p_log-uniform is σ², whatever the process."""
    sigma, data = torch.logspace(-1, 0.5, 20, dtype=F64), weights.Scale(1.3, 4)
    for process in PROCESSES:
        times = TimeLevels(process, t_max=min(process.t_max, 5.0))
        drawn = weights.Drawn(weights.Likelihood(times), times, NoiseLevels(times.sigma_min, times.sigma_max))
        torch.testing.assert_close(drawn(sigma, data), weights.SigmaSquared()(sigma, data), rtol=1e-9, atol=0)


# --- variance ---------------------------------------------------------------------------------------------------------


def moments(process: VP | SubVP, t_min: float, d: int, *, even: bool) -> list[float]:
    """E Y, …, E Y⁴ of one row's loss Y for N(0, I) and its exact score, by quadrature.

    J given t is τχ²_d/2 with τ = v/(s²(v + s²)), so Y = (share of the weight)·κ·χ²_d/d with κ = s²τ.
    """

    def at(t: float) -> tuple[float, float]:
        b = process.beta_min * t + (process.beta_max - process.beta_min) * t**2 / 2
        beta = process.beta_min + (process.beta_max - process.beta_min) * t
        if isinstance(process, VP):
            return beta / (-2 * math.expm1(-b)), -math.expm1(-b) / math.exp(-b)
        return -beta * math.expm1(-2 * b) / (2 * math.expm1(-b) ** 2), math.expm1(-b) ** 2 / math.exp(-b)

    def integral(f) -> float:
        edges = np.geomspace(t_min, 1.0, 12)
        return sum(integrate.quad(lambda t: f(*at(t)), a, b, epsrel=1e-9)[0] for a, b in itertools.pairwise(edges))

    span, length = integral(lambda rate, s2: rate), 1 - t_min
    chi = [float(np.prod([(d + 2 * i) / d for i in range(k)])) for k in range(1, 5)]
    if even:  # log s uniform, no weight
        return [c * integral(lambda rate, s2, k=k: rate / (1 + s2) ** k) / span for k, c in enumerate(chi, 1)]
    return [
        c * integral(lambda rate, s2, k=k: (rate * length / span / (1 + s2)) ** k) / length
        for k, c in enumerate(chi, 1)
    ]


def variance(m: list[float], n: int) -> tuple[float, float]:
    """The variance, and the standard error of its estimate from n draws."""
    a, b, c, d = m
    var = b - a**2
    fourth = d - 4 * a * c + 6 * a**2 * b - 3 * a**4
    return var, math.sqrt((fourth - var**2) / n)


@pytest.mark.parametrize(("process", "d"), [(VP(), 1), (SubVP(), 1), (VP(), 5)], ids=repr)
def test_importance_sampling_divides_the_variance_of_the_loss_by_the_exact_factor(process, d):
    n, t_min = 400_000, 0.003
    times, g = TimeLevels(process, t_min=t_min), torch.Generator().manual_seed(2)
    exact = GaussianReference.of_moments(torch.zeros(d, dtype=F64), torch.eye(d, dtype=F64))
    seen, told = [], []
    for goal, even in ((Goal(weights.Likelihood(times), times), False), (Goal.likelihood(times), True)):
        loss = WeightedLoss(DenoisingScoreMatching(), exact, weight=goal.weight)
        x = torch.randn(n, d, generator=g, dtype=F64)
        each = loss(exact, x, goal.levels.quantile(torch.rand(n, generator=g, dtype=F64)), g)
        m = moments(process, t_min, d, even=even)
        want, stderr = variance(m, n)
        assert stderr < 0.06 * want
        assert abs(each.mean().item() - m[0]) < 4.5 * math.sqrt(want / n)
        assert abs(each.var().item() - want) < 4.5 * stderr
        seen.append(each.var().item())
        told.append((want, stderr / want))
    factor, share = told[0][0] / told[1][0], math.hypot(told[0][1], told[1][1])
    assert seen[0] / seen[1] == pytest.approx(factor, rel=4.5 * share)
    assert factor > 5


# --- what is learnt ---------------------------------------------------------------------------------------------------

LEVELS = NoiseLevels(0.2, 6.0)


def expected(sigma: torch.Tensor) -> torch.Tensor:
    """E[2σ²J/R | σ] for N(0, 4I) and the score of N(0, 10I): the floor and the error."""
    a = -1 / (10 + sigma**2)
    return sigma**2 * (a**2 * (4 + sigma**2) + 1 / sigma**2 + 2 * a)


def test_learned_variance_converges_to_the_log_of_the_expected_loss_at_each_level():
    g = torch.Generator().manual_seed(0)
    model = GaussianReference.of_moments(torch.zeros(2, dtype=F64), 10 * torch.eye(2, dtype=F64))
    weight = weights.LearnedVariance(LEVELS, weights.SigmaSquared(), n_knots=12)
    loss = WeightedLoss(DenoisingScoreMatching(), model, weight=weight)
    optimiser = torch.optim.Adam(weight.parameters(), lr=0.05)
    for step in range(600):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / 600)
        sigma = LEVELS.draw(1024, generator=g, like=torch.zeros(1, dtype=F64))
        each = loss(model, 2 * torch.randn(1024, 2, generator=g, dtype=F64), sigma, g)
        optimiser.zero_grad()
        weight.minimised(each, sigma).mean().backward()
        optimiser.step()
    sigma = LEVELS.quantile(torch.linspace(0.02, 0.98, 60, dtype=F64))
    u, want = weight.log_variance(sigma).detach(), expected(sigma).log()
    assert want.max() - want.min() > 0.8
    assert (u - want).abs().max() < 0.06
    minimum = weight.minimised(expected(sigma), sigma).mean().item()
    assert minimum == pytest.approx((1 + want).mean().item(), abs=0.005)  # L·e^{−log L} + log L


def test_learned_variance_is_linear_between_its_knots_and_constant_beyond():
    weight = weights.LearnedVariance(NoiseLevels(0.1, 10.0), n_knots=5)
    with torch.no_grad():
        weight.values.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0, 4.0]))
    sigma = torch.logspace(-2, 2, 41, dtype=F64)
    want = np.interp(sigma.log10().numpy(), [-1, -0.5, 0, 0.5, 1], [1.0, -2.0, 0.5, 3.0, 4.0])
    np.testing.assert_allclose(weight.log_variance(sigma).detach().numpy(), want, atol=1e-9)
    assert weights.EDM()(sigma, weights.Scale(1.0, 2)).equal(weight(sigma, weights.Scale(1.0, 2)))


def clusters(n: int, g: torch.Generator) -> torch.Tensor:
    centre = torch.randint(0, 2, (n, 1), generator=g) * 4.0 - 2.0
    return torch.cat([centre, -centre], 1) + 0.3 * torch.randn(n, 2, generator=g)


def new_model(x: torch.Tensor, fade: float = math.inf) -> Preconditioned:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResidualMLP(tuple(x.shape[1:]), width=32, depth=1)
    return Preconditioned(network, GaussianReference.of_data(x, fade=fade)).eval()


def goals() -> list[Goal]:
    levels, times = NoiseLevels(0.1, 8.0, 0.0, 1.2), TimeLevels(VP(), t_min=1e-2, unit=2.0)
    even = NoiseLevels(0.1, 8.0)
    return [
        Goal.score(levels),
        Goal.likelihood(levels),
        Goal(weights.Uniform(), levels),
        Goal(weights.SNR(), levels),
        Goal(weights.MinSNR(), levels),
        Goal(weights.SigmaSquared(), times),
        Goal(weights.Likelihood(times), times),
        Goal(weights.Drawn(weights.EDM(), even, levels), levels),
        Goal(weights.LearnedVariance(levels), levels),
    ]


@pytest.mark.parametrize("i", range(9))
def test_training_with_each_weight_improves_a_tiny_problem(i, g):
    goal = goals()[i]
    x, held_out = clusters(1000, g), clusters(400, g)
    model = new_model(x)
    recipe = Recipe(n_steps=150, evaluate_every=50, batch_size=128, weight=goal.weight)
    plain = DenoisingScoreMatching()
    records = list(train(model, x, held_out, levels=goal.levels, recipe=recipe, objective=plain, generator=g))
    first, best = records[0], kept(records)
    assert best.held_out < first.held_out
    assert best.left < 0.9 * first.left  # on the same noise
    assert records[-1].loss > 0  # told on the fixed scale, whatever is minimised
    assert abs(first.loss - first.held_out) < 0.35 * first.held_out


def test_the_default_trains_as_the_weight_that_it_names(g):
    x = clusters(300, g)
    models = []
    for recipe in (Recipe(n_steps=30, evaluate_every=10), Recipe(n_steps=30, evaluate_every=10, weight=weights.EDM())):
        model = new_model(x)
        seed = torch.Generator().manual_seed(1)
        records = list(train(model, x, x[:50], levels=NoiseLevels(0.1, 8.0), recipe=recipe, generator=seed))
        models.append((model.network.last.weight, [(r.loss, r.held_out, r.left) for r in records]))
    assert torch.equal(models[0][0], models[1][0])
    assert models[0][1] == models[1][1]


def test_training_trains_what_the_weight_learns(g):
    """The model starts as the truth for Gaussian data, so u tends to the log of the floor, −log(1 + σ²/4)."""
    x = 2 * torch.randn(4000, 2, generator=g)
    weight = weights.LearnedVariance(LEVELS, weights.SigmaSquared(), n_knots=8)
    recipe = Recipe(n_steps=500, batch_size=256, weight=weight, learning_rate=2e-3, patience=100)
    objective = DenoisingScoreMatching()
    model = new_model(x, fade=0.0)
    list(train(model, x, x[:200], levels=LEVELS, recipe=recipe, objective=objective, generator=g))
    sigma = LEVELS.quantile(torch.linspace(0.05, 0.95, 30, dtype=F64))
    u, want = weight.log_variance(sigma).detach(), -torch.log1p(sigma**2 / 4)
    assert want.min() < -2
    assert (u - want).abs().max() < 0.25
    assert (u - want).abs().mean() < 0.1


def test_looks_are_at_the_goal_of_the_recipe_and_keep_its_best(g):
    x, held_out = clusters(400, g), clusters(300, g)
    model = new_model(x)
    look, times = Goal.likelihood(NoiseLevels(0.05, 10.0)), TimeLevels(VP(), t_min=1e-2)
    recipe = Recipe(n_steps=60, evaluate_every=10, weight=weights.MinSNR(), look=look)
    seeded = torch.Generator().manual_seed(4)
    records = list(train(model, x, held_out, levels=times, recipe=recipe, generator=seeded))
    seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(4)))
    loss = WeightedLoss(DenoisingScoreMatching(), model.reference, weight=weights.EDM()).weighted_by(look.weight)
    seen, best = HeldOut(held_out, look.levels, loss, seed)(model), min(records, key=lambda r: r.left)
    assert kept(records) == best
    assert (seen.held_out, seen.left) == pytest.approx((best.held_out, best.left), rel=1e-6)
    assert loss.law == look.weight
    other = WeightedLoss(DenoisingScoreMatching(), model.reference)
    assert other.weighted_by(look.weight) is not other
    assert other.law == weights.EDM()


def test_what_cannot_be_is_said_in_one_line():
    learned = weights.LearnedVariance(LEVELS)
    cases = [
        (lambda: weights.MinSNR(0.0), "gamma: got 0, want"),
        (lambda: weights.MinSNR(math.nan), "gamma: got nan"),
        (lambda: weights.SNR(-1.0), "floor: got -1"),
        (lambda: weights.LearnedVariance(LEVELS, n_knots=1), "n_knots: got 1, want at least 2"),
        (lambda: weights.LearnedVariance(LEVELS, learned), "weight: got LearnedVariance, which learns"),
        (lambda: weights.Drawn(learned, LEVELS, LEVELS), "weight: got LearnedVariance, which learns"),
        (lambda: TimeLevels(VP(), t_min=0.5, t_max=0.5), "t_min, t_max: got 0.5 and 0.5"),
        (lambda: TimeLevels(VP(), t_max=1.5), r"t: got 1.5, want 0 < t <= 1"),
        (lambda: TimeLevels(VP(), unit=0.0), "unit: got 0"),
        (lambda: weights.Likelihood(TimeLevels(VP()))(scalars(1e6), weights.Scale(1.0, 1)), "ratio: got 1e"),
    ]
    for make, message in cases:
        with pytest.raises(InputError, match=message) as error:
            make()
        assert "\n" not in str(error.value)
