"""Laws of every sampler: order against exact end points, law against recursions by hand, reductions, dtypes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import mpmath as mp
import numpy as np
import pandas as pd
import pytest
import torch
from cases import F64, ids, t64
from scipy import integrate, optimize, stats

from gradlogp import InputError, samplers
from gradlogp.kernels import Gaussian
from gradlogp.models import GaussianReference, ScoreFunction, ScoreModel
from gradlogp.oracles import GaussianMixture
from gradlogp.processes import EDM, VE, VP, Cosine, OrnsteinUhlenbeck, Process, RectifiedFlow, SubVP
from gradlogp.samplers import (
    DDIM,
    ERSDE,
    AdaptiveRungeKutta,
    Ancestral,
    Churn,
    DPMSolver2,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    Euler,
    EulerMaruyama,
    ExponentialAdamsBashforth,
    Field,
    Grid,
    Heun,
    LinearMultistep,
    Memory,
    PredictorCorrector,
    ReferenceExact,
    SDEDPMSolverPP2M,
    SDEDPMSolverPP3M,
    State,
    Step,
    UniPC,
    given,
    karras,
    log_uniform,
    sample,
    trajectory,
)
from gradlogp.samplers.exponential import weights
from gradlogp.samplers.loop import follow
from gradlogp.samplers.noise import Noise

Normal = Callable[[torch.Tensor], torch.Tensor]
MEAN, VARIANCE = 0.7, 0.8
GAUSSIAN = GaussianReference.of_moments(t64([MEAN]), t64([[VARIANCE]]))
W, LOC, VAR = (0.4, 0.6), (-1.0, 1.0), (0.3, 0.2)
MIXTURE = GaussianMixture(t64(W), t64(LOC)[:, None], t64(VAR))
LOW = 0.2  # the last level
OTHER = GaussianReference.of_moments(t64([0.0]), t64([[1.3]]))  # for neither of the two


@dataclass(frozen=True)
class Method:
    """A step for a number of steps; its order, a grid on which it is measured, and from where and with how many steps.

    Methods of order above 2 start at 1000, where their first steps of low order do no harm.
    """

    name: str
    step: Callable[[int], Step]
    order: int
    grid: Grid = log_uniform
    high: float = 30.0
    steps: tuple[int, ...] = (80, 160)
    at_least: bool = False


def method(name: str, step: Step, order: int, grid: Grid = log_uniform) -> Method:
    """One that is the same for any number of steps."""
    high, steps = (1000.0, (120, 240)) if order > 2 else (30.0, (80, 160))
    return Method(name, lambda n: step, order, grid, high, steps)


def square(s: torch.Tensor) -> torch.Tensor:
    return s**2


DETERMINISTIC = [
    method("euler", Euler(), 1),
    method("euler karras", Euler(), 1, karras),
    method("heun", Heun(), 2),
    method("heun karras", Heun(), 2, karras),
    method("dpm 2", DPMSolver2(), 2),
    Method("adaptive", lambda n: AdaptiveRungeKutta(1e9, 1e9), 5),  # one trial step a level
    method("dpm++ 2s", DPMSolverPP2S(), 2),
    method("dpm++ 2m", DPMSolverPP2M(), 2),
    Method("dpm++ 2m karras", lambda n: DPMSolverPP2M(), 2, karras, steps=(160, 320)),
    method("dpm++ 3m", DPMSolverPP3M(), 3),
    method("dpm++ 3m published", DPMSolverPP3M(published=True), 2),
    *[method(f"unipc {p}", UniPC(p), p + 1) for p in (1, 2, 3)],
    *[method(f"unipc {p} predictor", UniPC(p, corrector=False), p) for p in (1, 2, 3)],
    *[method(f"exponential {k}", ExponentialAdamsBashforth(k), k) for k in (1, 2, 3, 4)],
    method("deis 3", ExponentialAdamsBashforth(3, noise=True), 3, karras),
    Method("deis 4", lambda n: ExponentialAdamsBashforth(4, noise=True), 4, high=1000.0, steps=(240, 480)),
    method("deis 2 in time", ExponentialAdamsBashforth(2, noise=True, variable=VP().time), 2),
    *[Method(f"lms {k}", lambda n, k=k: LinearMultistep(k), k, high=1000.0, steps=(240, 480)) for k in (1, 2, 3, 4)],
    *[method(f"reference exact {k}", ReferenceExact(OTHER, k), k) for k in (1, 2, 3)],
    method("ddim 0", DDIM(), 1),
    method("sde-dpm++ 3m 0", SDEDPMSolverPP3M(eta=0.0), 3),
]
STOCHASTIC = [
    method("ddim 1", DDIM(1.0), 1),
    method("ddim 0.5", DDIM(0.5), 1),
    method("ancestral", Ancestral(), 1),
    method("euler-maruyama", EulerMaruyama(), 1),
    method("sde-dpm++ 2m", SDEDPMSolverPP2M(), 2),
    method("sde-dpm++ 2m 0.5", SDEDPMSolverPP2M(0.5), 2),
    Method("sde-dpm++ 3m", lambda n: SDEDPMSolverPP3M(), 2, high=20.0, steps=(160, 320)),
    method("er-sde 1", ERSDE(1), 1),
    method("er-sde 2", ERSDE(2), 2),
    Method("er-sde 3", lambda n: ERSDE(3), 2, at_least=True),
    method("er-sde 2 of s^2", ERSDE(2, square), 2),
    method("er-sde 3 of s^2", ERSDE(3, square), 2),
    Method("churn", lambda n: Churn(20.0, n), 2),
    Method("churn between", lambda n: Churn(20.0, n, s_tmin=0.5, s_tmax=5.0), 2),
    method("predictor-corrector", PredictorCorrector(Euler(), snr=0.2, n_corrections=2), 0),
]
ALL = DETERMINISTIC + STOCHASTIC
every = pytest.mark.parametrize("m", ALL, ids=ids)
deterministic = pytest.mark.parametrize("m", DETERMINISTIC, ids=ids)


def end_of(
    model: ScoreModel,
    y: torch.Tensor,
    step: Step,
    levels: torch.Tensor,
    process: Process | None = None,
) -> torch.Tensor:
    """The last state of the library's loop."""
    *_, (_, _, end) = follow(Field(model, process), y, levels, step, Noise(7))
    return end


class Direct(Field):
    """A denoiser in y, with nothing between it and the step; for many small steps."""

    def __init__(self, denoiser: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(GAUSSIAN)
        self.denoiser = denoiser

    def denoise(self, y: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return self.denoiser(y, s.reshape(-1, 1))


def of_gaussian(y: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """m + v/(v + s²)·(y − m)."""
    return MEAN + VARIANCE / (VARIANCE + s**2) * (y - MEAN)


def of_mixture(y: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Σ_k P(k | y) (m_k + v_k/(v_k + s²)·(y − m_k))."""
    m, v = t64(LOC), t64(VAR)
    total = v + s**2
    log_joint = t64(W).log() - 0.5 * (total.log() + (y - m) ** 2 / total)
    return (log_joint.softmax(1) * (m + v / total * (y - m))).sum(1, keepdim=True)


def test_the_denoiser_here_is_that_of_the_library() -> None:
    y, s = EXACT[30.0][0], t64(2.0)
    torch.testing.assert_close(of_mixture(y, s), MIXTURE.denoise(y, Gaussian(s)))
    torch.testing.assert_close(of_gaussian(y, s), GAUSSIAN.denoise(y, Gaussian(s)))


def steps(flow: Field, y: torch.Tensor, step: Step, levels: torch.Tensor, normal: Normal) -> torch.Tensor:
    memory = Memory(normal)
    with torch.no_grad():
        for s, s_next in pairwise(levels):
            y = step(flow, y, s, s_next, memory)
    return y


def test_every_sampler_is_under_test() -> None:
    public = {getattr(samplers, name) for name in samplers.__all__}
    steps = {c for c in public if isinstance(c, type) and issubclass(c, Step) and c is not Step}
    assert {type(m.step(5)) for m in ALL} == steps


@every
def test_the_order_and_the_noise_are_declared(m: Method) -> None:
    step = m.step(5)
    assert step.order == m.order
    assert step.stochastic == (m in STOCHASTIC)


@every
def test_the_class_says_its_formula_and_its_source(m: Method) -> None:
    doc = type(m.step(5)).__doc__ or ""
    assert re.search(r"[=←].*[+−√·(]", doc)
    assert re.search(r"\b(19|20)\d\d\b", doc)


# --- deterministic: the order, against exact end points -------------------------------------------------------------


def cdf(u: float, s: float) -> float:
    return sum(w * stats.norm.cdf(u, m, math.sqrt(v + s * s)) for w, m, v in zip(W, LOC, VAR, strict=True))


def quantile(p: float) -> float:
    return optimize.brentq(lambda u: cdf(u, LOW) - p, -30, 30, xtol=1e-15, rtol=1e-14)


def ends(high: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Starts at s = high, and where the flow takes them: in one dimension it keeps quantiles."""
    y = (0.2 + math.sqrt(1 + high**2) * torch.linspace(-2, 2, 7, dtype=F64))[:, None]
    gaussian = MEAN + (y - MEAN) * math.sqrt((VARIANCE + LOW**2) / (VARIANCE + high**2))
    mixture = [quantile(cdf(x, high)) for x in y[:, 0].tolist()]
    return y, gaussian, t64(mixture)[:, None]


EXACT = {high: ends(high) for high in (20.0, 30.0, 1000.0)}


@deterministic
@pytest.mark.parametrize("on_mixture", [False, True], ids=["gaussian", "mixture"])
def test_order_of_the_end_points(m: Method, on_mixture: bool) -> None:
    y, gaussian, mixture = EXACT[m.high]
    flow, exact = (Direct(of_mixture), mixture) if on_mixture else (Direct(of_gaussian), gaussian)
    coarse, fine = (
        (steps(flow, y, m.step(n), m.grid(m.high, LOW, n), Noise(0)) - exact).square().mean().sqrt().item()
        for n in m.steps
    )
    assert fine > 1e-13
    assert abs(math.log2(coarse / fine) - m.order) < 0.2


def test_published_third_order_is_second() -> None:
    """With half the curvature the end points are ten times as far off at 240 steps."""
    y, _, exact = EXACT[1000.0]
    levels = log_uniform(1000.0, LOW, 240)
    true, published = (
        (steps(Direct(of_mixture), y, DPMSolverPP3M(p), levels, Noise(0)) - exact).abs().max() for p in (False, True)
    )
    assert published > 10 * true


# --- stochastic: the law on Gaussian data ---------------------------------------------------------------------------


def law(m: Method, n: int, process: Process | None = None, low: float = LOW) -> tuple[float, float]:
    """Mean and variance at the end, exactly: the run is affine in its start and its noise, and its gains are rows."""
    levels, draws = m.grid(m.high, low, n), 4 * n
    y = torch.zeros(2 + draws, 1, dtype=F64)
    y[1] = 1.0
    rows = iter(range(2, 2 + draws))

    def unit(like: torch.Tensor) -> torch.Tensor:
        z = torch.zeros_like(like)
        z[next(rows)] = 1.0
        return z

    flow = Direct(of_gaussian) if process is None else Field(GAUSSIAN, process)
    out = steps(flow, y, m.step(n), levels, unit)[:, 0]
    gains = out[1:] - out[0]
    variances = torch.ones_like(gains)
    variances[0] = VARIANCE + m.high**2
    return (out[0] + gains[0] * (MEAN + 3.0)).item(), (gains**2 * variances).sum().item()


@pytest.mark.parametrize("m", [m for m in STOCHASTIC if m.order > 0], ids=ids)
def test_order_of_the_law(m: Method) -> None:
    coarse, fine = (abs(law(m, n)[1] - VARIANCE - LOW**2) for n in m.steps)
    order = math.log2(coarse / fine)
    assert order > m.order - 0.2
    assert m.at_least or order < m.order + 0.2


@pytest.mark.parametrize("process", [VP(), Cosine(), OrnsteinUhlenbeck()], ids=repr)
def test_order_of_the_reverse_sde_in_its_own_time(process: Process) -> None:
    m = method("", EulerMaruyama(), 1)
    coarse, fine = (abs(law(m, n, process)[1] - VARIANCE - LOW**2) for n in m.steps)
    assert abs(math.log2(coarse / fine) - 1) < 0.2


@pytest.mark.parametrize("snr", [0.1, 0.3])
def test_langevin_corrections_have_a_law_of_their_own(snr: float) -> None:
    """In many levels close to s = 1: variance V/(1 − ε/2V), ε = 2 snr², not V = v + 1; a correction has no order."""
    step, v = PredictorCorrector(Heun(), snr, 4), VARIANCE + 1
    variance = law(Method("", lambda n: step, 0, high=1.001), 200, low=1.0)[1]
    assert variance == pytest.approx(v / (1 - snr**2 / v), rel=5e-4)


Recursion = Callable[[np.ndarray], Iterator[tuple[np.ndarray, float]]]
"""Of levels: for each step, what e = y − m becomes, (a_0, a_1, a_2) of e now and before, and the noise added."""


def shrink(s: float) -> float:
    """D = m + v/(v + s²)·e."""
    return VARIANCE / (VARIANCE + s * s)


def ddim(eta: float) -> Recursion:
    def of(levels: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        for s, t in pairwise(levels):
            w = eta * t / s * math.sqrt(s * s - t * t)
            d = shrink(s)
            yield np.array([d + math.sqrt(t * t - w * w) * (1 - d) / s]), w

    return of


def ancestral(levels: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    for s, t in pairwise(levels):
        up = t / s * math.sqrt(s * s - t * t)
        down = math.sqrt(t * t - up * up)
        yield np.array([1 + (down - s) * (1 - shrink(s)) / s]), up


def maruyama(levels: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """dx = −2s ∇log p ds back in time: f = 0, g² = 2s."""
    for s, t in pairwise(levels):
        yield np.array([1 - 2 * s * (s - t) / (VARIANCE + s * s)]), math.sqrt(2 * s * (s - t))


def churned(s_churn: float, low: float, high: float, s_noise: float) -> Recursion:
    def of(levels: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        for s, t in pairwise(levels):
            gamma = min(s_churn / (len(levels) - 1), math.sqrt(2) - 1) if low <= s <= high else 0.0
            hat = s + gamma * s
            h, k, k_next = t - hat, hat / (VARIANCE + hat * hat), t / (VARIANCE + t * t)
            a = 1 + h / 2 * (k + k_next * (1 + h * k))
            yield np.array([a]), a * math.sqrt(hat * hat - s * s) * s_noise

    return of


def sde_dpm(eta: float, three: bool = False) -> Recursion:
    def of(levels: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        lam, d = -np.log(levels), shrink_all(levels)
        for i, (s, t) in enumerate(pairwise(levels)):
            h = lam[i + 1] - lam[i]
            keep = t / s * math.exp(-eta * h)
            a = np.array([keep + (1 - keep) * d[i], 0.0, 0.0])
            if i >= 1:
                r = (lam[i] - lam[i - 1]) / h
                slope = np.array([d[i] / r, -d[i - 1] / r, 0.0])
            if i == 1 or (i >= 1 and not three):
                a = a + (1 - keep) * slope / 2
            elif i >= 2:
                r1 = (lam[i - 1] - lam[i - 2]) / h
                before = np.array([0.0, d[i - 1] / r1, -d[i - 2] / r1])
                first = slope + r * (slope - before) / (r + r1)
                second = 2 * (slope - before) / (r + r1)
                H = (1 + eta) * h
                phi2 = (math.exp(-H) - 1 + H) / H
                a = a + phi2 * first - (phi2 / H - 0.5) * second
            yield a, t * math.sqrt(1 - math.exp(-2 * eta * h))

    return of


def shrink_all(levels: np.ndarray) -> list[float]:
    return [shrink(s) for s in levels]


def phi_default(s: float) -> float:
    return s * (math.exp(s**0.3) + 10)


def er_sde(order: int, phi: Callable[[float], float]) -> Recursion:
    """Order 2 as published, (1 − r) D + [s' − s + φ(s')∫ds/φ] D'; order 3 by integrating parabolas in 1/φ by parts."""

    def of(levels: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        d = shrink_all(levels)
        for i, (s, t) in enumerate(pairwise(levels)):
            r = phi(t) / phi(s)
            a = np.array([r + (1 - r) * d[i], 0.0, 0.0])
            k = min(order, i + 1)
            one = integrate.quad(lambda u, t=t: phi(t) / phi(u), t, s, epsabs=0, epsrel=1e-12)[0]
            if k >= 2:
                gap = levels[i] - levels[i - 1]
                slope = np.array([d[i], -d[i - 1], 0.0]) / gap
                a = a + (t - s + one) * slope
            if k == 3:  # + δ (u − s)(u − s_{−1}), δ the second divided difference
                delta = (slope - np.array([0.0, d[i - 1], -d[i - 2]]) / (levels[i - 1] - levels[i - 2])) / (
                    levels[i] - levels[i - 2]
                )
                weight = integrate.quad(
                    lambda u, t=t, s=s, gap=gap: phi(t) / phi(u) * (2 * (u - s) + gap), t, s, epsabs=0, epsrel=1e-11
                )[0]
                a = a + ((t - s) * (t - s + gap) + weight) * delta
            yield a, math.sqrt(t * t - s * s * r * r)

    return of


def corrected(snr: float, n: int) -> Recursion:
    def of(levels: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        for s, t in pairwise(levels):
            a, variance, step = 1 + (t - s) * (1 - shrink(s)) / s, 0.0, 2 * (snr * t) ** 2
            for _ in range(n):
                pull = 1 - step / (VARIANCE + t * t)
                a, variance = a * pull, variance * pull**2 + 2 * step
            yield np.array([a]), math.sqrt(variance)

    return of


BY_HAND: list[tuple[Method, Recursion]] = [
    (method("ddim 1", DDIM(1.0), 1), ddim(1.0)),
    (method("ddim 0.5", DDIM(0.5), 1), ddim(0.5)),
    (method("ancestral", Ancestral(), 1), ancestral),
    (method("euler-maruyama", EulerMaruyama(), 1), maruyama),
    (Method("churn", lambda n: Churn(8.0, n), 2), churned(8, 0, math.inf, 1)),
    (Method("churn much", lambda n: Churn(80.0, n, 0.5, 9.0, 1.02), 2), churned(80, 0.5, 9.0, 1.02)),
    (method("sde-dpm++ 2m", SDEDPMSolverPP2M(), 2), sde_dpm(1.0)),
    (method("sde-dpm++ 2m 0.4", SDEDPMSolverPP2M(0.4), 2), sde_dpm(0.4)),
    (method("sde-dpm++ 3m", SDEDPMSolverPP3M(), 2), sde_dpm(1.0, three=True)),
    (method("sde-dpm++ 3m 0.4", SDEDPMSolverPP3M(0.4), 2), sde_dpm(0.4, three=True)),
    (method("er-sde 1", ERSDE(1), 1), er_sde(1, phi_default)),
    (method("er-sde 2", ERSDE(2), 2), er_sde(2, phi_default)),
    (method("er-sde 3", ERSDE(3), 2), er_sde(3, phi_default)),
    (method("er-sde 3 of s^2", ERSDE(3, square), 2), er_sde(3, lambda s: s * s)),
    (method("predictor-corrector", PredictorCorrector(Euler(), 0.2, 2), 0), corrected(0.2, 2)),
]
by_hand = pytest.mark.parametrize(("m", "recursion"), BY_HAND, ids=[ids(m) for m, _ in BY_HAND])


def moments(recursion: Recursion, levels: np.ndarray) -> tuple[float, float]:
    """Mean and variance of e at the end, from mean 3 and variance v + s_max²: of (e_i, e_{i−1}, e_{i−2}) jointly."""
    mean, covariance = np.full(3, 3.0), np.full((3, 3), VARIANCE + levels[0] ** 2)
    for coefficients, noise in recursion(levels):
        matrix = np.zeros((3, 3))
        matrix[0, : len(coefficients)], matrix[1, 0], matrix[2, 1] = coefficients, 1, 1
        mean, covariance = matrix @ mean, matrix @ covariance @ matrix.T
        covariance[0, 0] += noise**2
    return mean[0], covariance[0, 0]


@by_hand
def test_the_law_is_that_of_the_recursion_by_hand(m: Method, recursion: Recursion) -> None:
    mean, variance = moments(recursion, karras(m.high, LOW, 14).numpy())
    got_mean, got_variance = law(Method(m.name, m.step, m.order, karras, m.high), 14)
    assert got_mean - MEAN == pytest.approx(mean, rel=1e-9)
    assert got_variance == pytest.approx(variance, rel=1e-9)


@by_hand
def test_chains_have_the_law_of_the_recursion(m: Method, recursion: Recursion) -> None:
    """100 000 chains of two coordinates, the data's independent: means, variances, covariance within 5 standard errors.

    Standard errors: √(V/n) of the mean, V√(2/n) of the variance, V/√n of the covariance.
    """
    n, levels = 100_000, karras(m.high, LOW, 14)
    data = GaussianReference.of_moments(t64([MEAN, MEAN]), VARIANCE * torch.eye(2, dtype=F64))
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    x = end_of(data, MEAN + 3 + math.sqrt(VARIANCE + m.high**2) * z, m.step(14), levels)
    mean, variance = moments(recursion, levels.numpy())
    covariance = torch.cov(x.T)
    assert (x.mean(0) - MEAN - mean).abs().max() < 5 * math.sqrt(variance / n)
    assert (covariance.diagonal() - variance).abs().max() < 5 * variance * math.sqrt(2 / n)
    assert covariance[0, 1].abs() < 5 * variance / math.sqrt(n)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("process", [VP(), RectifiedFlow()], ids=repr)
def test_ddim_is_the_papers_in_its_own_coordinates(eta: float, process: Process) -> None:
    """x_s = a_s D + √(σ_s² − w²) ε + w z, w = η (σ_s/σ_t) √(1 − a_t²/a_s²) for VP; in general σ_{s|t}."""
    t, s = process.time(t64(3.0)), process.time(t64(1.1))
    (a_t, s_t), (a_s, s_s) = ((process.alpha(u).item(), process.sigma(u).item()) for u in (t, s))
    y, z = t64([[0.4], [-5.0]]), t64([[0.3], [1.7]])
    x_t = a_t * y
    d = MIXTURE.denoise(x_t, Gaussian(s_t, a_t))
    w = eta * s_s / s_t * math.sqrt(s_t**2 - (a_t / a_s * s_s) ** 2)
    if isinstance(process, VP):
        assert w == pytest.approx(eta * s_s / s_t * math.sqrt(1 - a_t**2 / a_s**2), rel=1e-12)
    want = a_s * d + math.sqrt(s_s**2 - w**2) * (x_t - a_t * d) / s_t + w * z
    got = a_s * steps(Field(MIXTURE, process), y, DDIM(eta), t64([3.0, 1.1]), lambda like: z)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


# --- reductions -----------------------------------------------------------------------------------------------------

Y = EXACT[30.0][0]
LEVELS = karras(30.0, 0.05, 12)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (DDIM(0.0), Euler()),
        (Ancestral(0.0), Euler()),
        (UniPC(1, corrector=False), Euler()),
        (ExponentialAdamsBashforth(1), Euler()),
        (ExponentialAdamsBashforth(1, noise=True), Euler()),
        (LinearMultistep(1), Euler()),
        (ERSDE(1, lambda s: 3 * s), Euler()),
        (ReferenceExact(GaussianReference.of_moments(t64([0.0]), t64([[1e-12]])), 1), Euler()),
        (Churn(0.0, 12), Heun()),
        (Churn(5.0, 12, s_tmin=100.0), Heun()),
        (UniPC(2, corrector=False), DPMSolverPP2M()),
        (SDEDPMSolverPP2M(0.0), DPMSolverPP2M()),
        (SDEDPMSolverPP3M(0.0), DPMSolverPP3M()),
        (UniPC(3, corrector=False), DPMSolverPP3M()),
        (ExponentialAdamsBashforth(2, noise=True, variable=lambda s: s), LinearMultistep(2)),
        (ERSDE(3, lambda s: s), ExponentialAdamsBashforth(3, variable=lambda s: s)),
        (Ancestral(1.0), DDIM(1.0)),
        (Ancestral(0.3), DDIM(0.3)),
        (Ancestral(1.0), ERSDE(1, square)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_reductions(a: Step, b: Step) -> None:
    """The same end points, noise and all."""
    torch.testing.assert_close(end_of(MIXTURE, Y, a, LEVELS), end_of(MIXTURE, Y, b, LEVELS), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (DPMSolverPP2M(), Euler()),
        (DPMSolverPP3M(), Euler()),
        (UniPC(3), Euler()),
        (ExponentialAdamsBashforth(4), Euler()),
        (LinearMultistep(4), Euler()),
        (SDEDPMSolverPP2M(), DDIM(1.0)),
        (SDEDPMSolverPP3M(), DDIM(1.0)),
        (ERSDE(3, square), DDIM(1.0)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_the_first_step_is_of_first_order(a: Step, b: Step) -> None:
    one, other = (end_of(MIXTURE, Y, step, LEVELS[:2]) for step in (a, b))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_two_steps_have_one_half_in_place_of_an_integral() -> None:
    """Order 2, exponential less DPM-Solver++ 2M: (D_0 − D_{−1})/r·[(e^{−h} − 1 + h)/h − (1 − e^{−h})/2]."""
    s = t64([9.0, 4.0, 1.5])
    middle = end_of(MIXTURE, Y, Euler(), s[:2])
    h, h_before = (s[1] / s[2]).log(), (s[0] / s[1]).log()
    change = (MIXTURE.denoise(middle, Gaussian(s[1])) - MIXTURE.denoise(Y, Gaussian(s[0]))) * h / h_before
    want = change * (((-h).exp() - 1 + h) / h - (1 - (-h).exp()) / 2)
    got = end_of(MIXTURE, Y, ExponentialAdamsBashforth(2), s) - end_of(MIXTURE, Y, DPMSolverPP2M(), s)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc_is_the_published_linear_system(p: int) -> None:
    """Coefficients from R(p) ρ = b with B(h) = e^{−h} − 1 for data prediction, solved by numpy; levels of Karras."""
    s, x = LEVELS.numpy(), Y.numpy()
    lam = -np.log(s)

    def denoise(y: np.ndarray, i: int) -> np.ndarray:
        return MIXTURE.denoise(torch.from_numpy(y), Gaussian(s[i])).numpy()

    def step(y: np.ndarray, i: int, m: list[np.ndarray], q: int, new: np.ndarray | None) -> np.ndarray:
        """From level i to i + 1 with order q, m[0] at level i."""
        h = lam[i + 1] - lam[i]
        r = [(lam[i - k] - lam[i]) / h for k in range(1, q)] + [1.0]
        B = math.expm1(-h)
        phi, b, factorial = math.expm1(-h) / -h - 1, [], 1
        for k in range(1, q + 1):
            b.append(phi * factorial / B)
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        R = np.array([[v**k for v in r] for k in range(q)])
        out = s[i + 1] / s[i] * y - B * m[0]
        differences = [(m[k] - m[0]) / r[k - 1] for k in range(1, q)]
        if new is None:
            rho = np.array([0.5]) if q == 2 else np.linalg.solve(R[:-1, :-1], b[:-1]) if q > 2 else []
        else:
            rho = np.array([0.5]) if q == 1 else np.linalg.solve(R, np.array(b))
            differences = [*differences, new - m[0]]
        return out - B * sum((c * d for c, d in zip(rho, differences, strict=True)), np.zeros_like(y))

    at, predicted, m = x, x, []
    for i in range(len(s) - 1):
        new = denoise(predicted, i)
        if i > 0:
            at = step(at, i - 1, m, min(p, i), new)
        m = [new, *m][:p]
        predicted = step(at, i, m, min(p, i + 1), None)
    got = end_of(MIXTURE, Y, UniPC(p), LEVELS)
    torch.testing.assert_close(got, torch.from_numpy(predicted), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("gap", [3.0, 0.3, 1e-3, 1e-6])
@pytest.mark.parametrize("noise", [False, True])
def test_weights_are_exact_integrals_for_any_gaps(gap: float, noise: bool) -> None:
    """Four levels in the ratios 1 : 2 : 0.7 of their gaps in log s, against 40 digits; the sum has no rounding left."""
    log_s = [0.3 + 3.7 * gap, 0.3 + 3 * gap, 0.3 + gap, 0.3]
    levels = [math.exp(v) for v in reversed(log_s)]
    s, s_next = levels[0], math.exp(0.3 - gap)
    mp.mp.dps = 40
    at = [mp.log(v) for v in map(mp.mpf, levels)]
    low, high = mp.log(mp.mpf(s_next)), mp.log(mp.mpf(s))

    def exact(j: int) -> mp.mpf:
        def f(u: mp.mpf) -> mp.mpf:
            basis = mp.fprod((u - at[i]) / (at[j] - at[i]) for i in range(4) if i != j)
            return basis * (-mp.exp(u) if noise else mp.mpf(s_next) * mp.exp(-u))

        return mp.quad(f, [low, high])

    want = [float(exact(j)) for j in range(4)]
    got = weights(
        [t64(v) for v in levels], t64(s), t64(s_next), (lambda u: -u) if noise else (lambda u: s_next / u), torch.log
    )
    scale = sum(map(abs, want))
    torch.testing.assert_close(got, t64(want), rtol=0, atol=scale * (1e-13 + 4e-16 / gap))
    total = s_next - s if noise else -math.expm1(-(math.log1p((s - s_next) / s_next)))
    assert got.sum().item() == pytest.approx(total, rel=1e-12)


@functools.cache
def drawn(m: Method, process: Process | None = None) -> torch.Tensor:
    """Four steps from 20 to 0.05 by the library."""
    return sample(
        MIXTURE,
        EXACT[20.0][0],
        4,
        sigma_max=20.0,
        sigma_min=0.05,
        step=m.step(4),
        grid=log_uniform,
        process=process,
        generator=torch.Generator().manual_seed(3),
    )


@pytest.mark.parametrize("process", [VP(), SubVP(), Cosine(), RectifiedFlow(), OrnsteinUhlenbeck()], ids=repr)
def test_every_process_drives_the_same_end_points(process: Process) -> None:
    """At the same noise ratios, noise included; but for the SDE that is in the process's own time."""
    for m in ALL:
        if m.name != "euler-maruyama":
            torch.testing.assert_close(
                drawn(m, process), drawn(m), rtol=1e-10, atol=1e-10, msg=lambda t, m=m: f"{m.name}: {t}"
            )


PROCESSES = [VE(1e-3, 50.0), EDM(), VP(), SubVP(), Cosine(), RectifiedFlow(), OrnsteinUhlenbeck()]
ONE_OF_EACH = list({type(m.step(5)): m for m in ALL}.values())


@functools.cache
def variance_at_1(m: Method, process: Process | None) -> float:
    """Of 20 steps from sigma 20 to 1, without sampling."""
    return law(replace(m, high=20.0, grid=log_uniform), 20, process, low=1.0)[1]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("m", ONE_OF_EACH, ids=ids)
def test_draws_are_of_the_data_seen_at_the_last_level_under_every_process(m: Method, process: Process) -> None:
    """N(m, v + 1) at sigma 1, where alpha is 0.5 to 0.7: within 12 % for 20 steps, and 5 standard errors of theirs."""
    n, own_time = 4000, m.name == "euler-maruyama"
    x = sample(
        GAUSSIAN, n, 20, sigma_max=20.0, sigma_min=1.0, step=m.step(20), grid=log_uniform, process=process,
        generator=torch.Generator().manual_seed(5),
    )[:, 0].double()  # fmt: skip
    assert abs(x.mean().item() - MEAN) < 5 * math.sqrt((VARIANCE + 1) / n) + 0.02
    of_steps = math.sqrt(variance_at_1(m, process if own_time else None))
    assert of_steps == pytest.approx(math.sqrt(VARIANCE + 1), rel=0.12)
    assert abs(x.std().item() / of_steps - 1) < 5 / math.sqrt(2 * n)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_default_draws_the_data_seen_at_the_last_level_under_every_process(process: Process) -> None:
    """One component: the Gaussian's flow is exact, and its fit has nothing left to fit."""
    exact = GaussianMixture(t64([1.0]), t64([[MEAN]]), t64([VARIANCE]))
    y = EXACT[20.0][0]
    want = MEAN + (y - MEAN) * math.sqrt((VARIANCE + 1) / (VARIANCE + 400))
    for n_steps in (1, 6, 60):
        got = sample(exact, y, n_steps, sigma_max=20.0, sigma_min=1.0, process=process)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", [None, *PROCESSES], ids=repr)
def test_a_trajectory_has_the_state_of_the_process_and_that_of_the_data(process: Process | None) -> None:
    """x = alpha·y at each level; the first y is the start, the last what is sampled."""
    options = {"sigma_max": 20.0, "sigma_min": 0.5, "step": Heun(), "process": process}
    states = list(trajectory(MIXTURE, EXACT[20.0][0], 4, **options))
    for state in states:
        alpha = 1.0 if process is None else process.alpha(process.time(state.sigma)).item()
        assert state.alpha == pytest.approx(alpha, rel=1e-9)
        torch.testing.assert_close(state.x, alpha * state.y)
    assert torch.equal(states[0].y, EXACT[20.0][0])
    assert torch.equal(states[-1].y, sample(MIXTURE, EXACT[20.0][0], 4, **options))
    half = sample(MIXTURE, states[2].y, 2, **options | {"sigma_max": states[2].sigma, "grid": given_after(states, 2)})
    torch.testing.assert_close(half, states[-1].y)


def given_after(states: list[State], first: int) -> list[float]:
    return [state.sigma for state in states[first:]]


# --- levels that are given ------------------------------------------------------------------------------------------

SIX = log_uniform(20.0, 0.05, 6)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    "levels",
    [SIX, SIX.float(), SIX.numpy(), SIX.tolist(), tuple(SIX.tolist()), pd.Series(SIX, index=range(3, 10)), given(SIX)],
    ids=lambda v: type(v).__name__,
)
def test_levels_of_any_kind_are_a_grid(levels: object) -> None:
    """The number of steps and the ends follow from them; said as well they must be theirs."""
    y, want = EXACT[20.0][0], sample(MIXTURE, EXACT[20.0][0], 6, sigma_max=20.0, sigma_min=0.05, grid=log_uniform)
    torch.testing.assert_close(sample(MIXTURE, y, grid=levels), want, rtol=1e-5, atol=1e-5)
    same = sample(MIXTURE, y, 6, sigma_max=20.0, sigma_min=0.05, grid=levels)
    torch.testing.assert_close(same, want, rtol=1e-5, atol=1e-5)
    for other in ({"n_steps": 7}, {"n_steps": 20}, {"sigma_max": 30.0}, {"sigma_min": 0.04}):
        with pytest.raises(InputError, match=r"^grid: got \d+ steps from .* to .*, want 6 steps from 20 to 0.05$"):
            sample(MIXTURE, y, grid=levels, **other)


@pytest.mark.parametrize("process", [None, RectifiedFlow()], ids=repr)
@every
def test_a_last_level_of_0_is_the_denoised_of_the_one_before(m: Method, process: Process | None) -> None:
    y = EXACT[20.0][0]
    options = {"step": m.step(6), "process": process}
    ends, cleaned = (
        sample(MIXTURE, y, grid=levels, generator=torch.Generator().manual_seed(1), **options)
        for levels in (SIX, [*SIX.tolist(), 0.0])
    )
    torch.testing.assert_close(cleaned, of_mixture(ends, t64(0.05)), rtol=1e-9, atol=1e-9)
    last = list(trajectory(MIXTURE, y, grid=lambda high, low, n: [*SIX.tolist(), 0.0], n_steps=7, **options))[-1]
    assert (last.step, last.sigma, last.alpha) == (7, 0.0, 1.0)


# --- precision and batches ------------------------------------------------------------------------------------------


@every
def test_float32_is_within_1e_4_of_float64(m: Method) -> None:
    y, levels = EXACT[20.0][0].float(), m.grid(20.0, 0.05, 10)
    single, double = (end_of(MIXTURE, v, m.step(10), levels) for v in (y, y.double()))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@every
def test_a_model_of_low_precision_runs(m: Method) -> None:
    """It sees its own dtype; the state keeps its digits, and is at the end within the model's precision."""
    seen = []

    def score(x_t: torch.Tensor, kernel: Gaussian) -> torch.Tensor:
        seen.append(x_t.dtype)
        return (-x_t.float() / (1 + kernel.sigma.to(x_t.device).float().reshape(-1, 1) ** 2)).to(x_t.dtype)

    start = torch.linspace(-40, 40, 9)[:, None].bfloat16()
    low, full = (
        sample(ScoreFunction(score), x, 8, sigma_max=20.0, sigma_min=0.2, step=m.step(8), grid=karras,
               generator=torch.Generator().manual_seed(0))
        for x in (start, start.float())
    )  # fmt: skip
    assert low.dtype == torch.bfloat16
    assert set(seen) == {torch.bfloat16, torch.float32}
    assert (low.float() - full).abs().max() < 0.3


@every
def test_a_row_does_not_depend_on_its_batch(m: Method, g: torch.Generator) -> None:
    """Rows 20 to 26 of 50, alone; events of two dimensions."""
    mixture = GaussianMixture(t64([0.5, 0.5]), t64([[-1.0, 0.5, 2.0], [1.0, 0.0, -1.0]]), t64([0.2, 0.4]))
    if isinstance(m.step(6), ReferenceExact):
        m = method("", ReferenceExact(mixture.reference), 2)
    y, levels = 20 * torch.randn(50, 3, generator=g, dtype=F64), m.grid(20.0, 0.05, 6)
    *_, (_, _, whole) = follow(Field(mixture), y, levels, m.step(6), Noise(5))
    *_, (_, _, part) = follow(Field(mixture), y[20:27], levels, m.step(6), Noise(5, first=20))
    torch.testing.assert_close(part, whole[20:27], rtol=1e-10, atol=1e-10)


@every
def test_a_step_keeps_nothing_from_run_to_run_and_leaves_its_input_alone(m: Method) -> None:
    y, step = EXACT[20.0][0].clone(), m.step(4)
    first, again = (end_of(MIXTURE, y, step, m.grid(20.0, 0.05, 4)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(y, EXACT[20.0][0])


@every
def test_a_model_that_is_not_finite_stops_the_run(m: Method) -> None:
    def bad(x_t: torch.Tensor, kernel: Gaussian) -> torch.Tensor:
        return torch.where(kernel.sigma < 1.0, torch.nan, -1.0) * x_t / (1 + kernel.sigma.max() ** 2)

    with pytest.raises(InputError, match=r"at sigma = \d"):
        end_of(ScoreFunction(bad), torch.ones(1, 1, dtype=F64), m.step(8), log_uniform(20.0, 0.2, 8))


# --- the adaptive method --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_adaptive_errors_follow_the_tolerance(tolerance: float) -> None:
    y, _, exact = EXACT[30.0]
    end = steps(Direct(of_mixture), y, AdaptiveRungeKutta(tolerance, tolerance), t64([30.0, LOW]), Noise(0))
    error = (end - exact).abs().max().item()
    assert 1e-2 * tolerance < error < 10 * tolerance


def test_adaptive_rows_have_steps_of_their_own() -> None:
    """A row in a hard place takes more calls; the easy rows are not in them."""
    rows: list[int] = []

    def counted(x_t: torch.Tensor, kernel: Gaussian) -> torch.Tensor:
        rows.append(len(x_t))
        return hard.score(x_t, kernel)

    hard = GaussianMixture(t64([0.5, 0.5]), t64([[-1.0], [1.0]]), t64([1e-4, 1e-4]))
    y = t64([[0.02], [30.0], [31.0], [-33.0]])
    end_of(ScoreFunction(counted), y, AdaptiveRungeKutta(1e-6, 1e-6), t64([20.0, 0.01]))
    assert rows[0] == 4
    assert rows[-1] < 4
    assert rows == sorted(rows, reverse=True)
    alone = len(rows)
    rows.clear()
    end_of(ScoreFunction(counted), y[1:], AdaptiveRungeKutta(1e-6, 1e-6), t64([20.0, 0.01]))
    assert len(rows) < alone


def test_adaptive_rows_do_not_depend_on_their_batch() -> None:
    y, step, levels = EXACT[30.0][0], AdaptiveRungeKutta(1e-4, 1e-4), log_uniform(30.0, 0.2, 3)
    whole = steps(Direct(of_mixture), y, step, levels, Noise(0))
    for i in range(len(y)):
        alone = steps(Direct(of_mixture), y[i : i + 1], step, levels, Noise(0))
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-11, atol=1e-11)


def test_adaptive_sizes_are_carried_from_level_to_level() -> None:
    """One a row; and a short way that is left does not make them short."""
    y, flow, memory = EXACT[30.0][0], Direct(of_mixture), Memory(Noise(0))
    step = AdaptiveRungeKutta(1e-3, 1e-3)
    y = step(flow, y, t64(30.0), t64(0.5), memory)
    before = memory.step_size
    assert before is not None
    assert before.shape == (7,)
    assert len(before.unique()) > 3
    step(flow, y, t64(0.5), t64(0.499), memory)
    assert memory.step_size is not None
    assert bool((memory.step_size >= before).all())


def test_adaptive_says_where_it_stalled() -> None:
    def wild(x_t: torch.Tensor, kernel: Gaussian) -> torch.Tensor:
        return torch.where(kernel.sigma.reshape(-1, 1) < 3.0, 1e3 * torch.sign(torch.sin(1e7 * x_t)), -x_t / 400)

    y = torch.ones(2, 1, dtype=F64)
    with pytest.raises(InputError, match=r"stalled at sigma = (3|2\.9)[\d.]* of 20 to 0\.2; want"):
        end_of(ScoreFunction(wild), y, AdaptiveRungeKutta(1e-8, 1e-8, max_steps=400), t64([20.0, 0.2]))
    with pytest.raises(InputError, match=r"stalled at sigma = \d+[\d.]* of 20 to 0\.2; want"):
        end_of(MIXTURE, y, AdaptiveRungeKutta(max_steps=3), t64([20.0, 0.2]))


# --- input ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UniPC(4), "order: got 4, want 1 to 3"),
        (lambda: ExponentialAdamsBashforth(0), "order: got 0, want at least 1"),
        (lambda: LinearMultistep(5), "order: got 5, want 1 to 4"),
        (lambda: LinearMultistep(1.5), "order: got 1.5, want a whole number"),
        (lambda: ERSDE(4), "order: got 4, want 1 to 3"),
        (lambda: DDIM(1.5), "eta: got 1.5, want one number from 0 to 1"),
        (lambda: Ancestral(-0.1), "eta: got -0.1, want a finite number >= 0"),
        (lambda: DDIM(torch.ones(2)), "eta: got (2,), want one number"),
        (lambda: SDEDPMSolverPP2M(math.nan), "eta: got nan"),
        (lambda: SDEDPMSolverPP3M("1"), "eta: got '1'"),
        (lambda: Churn(-1.0, 10), "s_churn: got -1"),
        (lambda: Churn(1.0, 0), "n_steps: got 0, want at least 1"),
        (lambda: Churn(1.0, 10, 2.0, 1.0), "s_tmin, s_tmax: got 2 and 1, want s_tmin < s_tmax"),
        (lambda: Churn(1.0, 10, s_noise=0.0), "s_noise: got 0, want a finite number > 0"),
        (lambda: PredictorCorrector(Euler(), 0.0), "snr: got 0, want a finite number > 0"),
        (lambda: PredictorCorrector(Euler(), 1.0), "snr: got 1, want a number between 0 and 1"),
        (lambda: PredictorCorrector(Euler(), 0.1, 0), "n_corrections: got 0"),
        (lambda: AdaptiveRungeKutta(0.0), "rtol: got 0, want a finite number > 0"),
        (lambda: AdaptiveRungeKutta(1e-3, -1.0), "atol: got -1"),
        (lambda: AdaptiveRungeKutta(max_steps=0), "max_steps: got 0"),
        (lambda: end_of(MIXTURE, Y, ERSDE(1, torch.sqrt), LEVELS), "phi: phi(s)/s falls from s ="),
    ],
)  # fmt: skip
def test_bad_options_are_named_on_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as e:
        call()
    assert message in str(e.value)
    assert "\n" not in str(e.value)
