"""What of the flow is solved exactly, and the default sampler that is fitted to a model."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from gradlogp import InputError, ScoreDensity, processes
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import GaussianReference, ScoreFunction, ScoreModel
from gradlogp.oracles import GaussianMixture
from gradlogp.samplers import (
    Field,
    Frame,
    Plan,
    ReferenceExact,
    calibrate,
    given,
    karras,
    log_uniform,
    sample,
    trajectory,
)
from gradlogp.samplers.calibration import FITTED, Accuracy, fit
from gradlogp.samplers.frame import adams_bashforth
from gradlogp.samplers.nodes import _local_errors, candidates, cheapest
from gradlogp.samplers.noise import Noise
from gradlogp.samplers.pilot import Pilot, measured_frame

F64 = torch.float64


def t64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def mixture() -> GaussianMixture:
    """Three overlapping components in the plane: smooth, not Gaussian, no sharp boundary between basins."""
    covariances = torch.stack(
        [t64([[0.5, 0.2], [0.2, 0.4]]), t64([[0.3, -0.1], [-0.1, 0.6]]), 0.4 * torch.eye(2).double()]
    )
    return GaussianMixture(t64([0.5, 0.3, 0.2]), t64([[-0.6, 0.2], [0.7, 0.5], [0.3, -0.9]]), covariances)


def exact_flow(model: ScoreModel, y: torch.Tensor, s_max: float, s_min: float) -> torch.Tensor:
    """SciPy's DOP853 in log s, to 1e-9."""
    shape = y.shape

    def f(log_s: float, flat: np.ndarray) -> np.ndarray:
        s = math.exp(log_s)
        x = torch.from_numpy(flat.copy()).reshape(shape)
        return (-(s**2) * model.score(x, Gaussian(s))).flatten().numpy()

    ends = (math.log(s_max), math.log(s_min))
    solved = integrate.solve_ivp(f, ends, y.flatten().numpy(), "DOP853", rtol=1e-9, atol=1e-10)
    return torch.from_numpy(solved.y[:, -1].copy()).reshape(shape)


def starts(model: GaussianMixture, n: int, s: float, seed: int = 3) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return Gaussian(s).sample(model.sample(n, generator=g), generator=g)


@cache
def from_80() -> torch.Tensor:
    """Where 300 starts at 80 end, at 0.002."""
    return exact_flow(mixture(), starts(mixture(), 300, 80.0), 80.0, 0.002)


class Counting(ScoreModel):
    """Counts calls, and rows of calls."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model, self.calls, self.rows = model, 0, 0

    def score(self, x_t: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(x_t)
        return self.model.score(x_t, kernel)

    def denoise(self, x_t: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(x_t)
        return self.model.denoise(x_t, kernel)

    @property
    def reference(self) -> GaussianReference | None:
        return self.model.reference


# --- the frame ---


@pytest.mark.parametrize("variance", [0.0, 1e-14, 1e-6, 0.3, 1.0, 400.0])
@pytest.mark.parametrize(("s", "s_next"), [(80.0, 3.0), (2.0, 1.9), (0.5, 0.002), (1e-3, 2e-3)])
def test_the_turn_is_the_integral_of_ds_over_the_variance(variance, s, s_next):
    frame = Frame(t64([0.0]), t64([variance]), None, 1.0)
    want, _ = integrate.quad(
        lambda u: math.exp(u) / (variance + math.exp(2 * u)), math.log(s), math.log(s_next), epsabs=0, epsrel=1e-11
    )
    assert frame.turn(t64(s), t64(s_next)).item() == pytest.approx(want, rel=1e-9)


def singular() -> GaussianReference:
    """In 4 dimensions, with one direction in which the data do not vary."""
    a = t64([[1.0, 0.3, 0.0], [0.2, 2.0, 0.1], [0.5, -1.0, 0.2], [0.0, 0.4, 3.0]])
    return GaussianReference.of_moments(t64([1.0, -2.0, 0.5, 3.0]), a @ a.T)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_one_step_is_exact_for_gaussian_data_and_in_directions_that_do_not_vary(order, g):
    model = singular()
    assert model.eigenvalues.numel() == 3
    y = 7 * torch.randn(20, 4, generator=g, dtype=F64)
    want = exact_flow(model, y, 9.0, 0.05)
    got = sample(model, y, 1, sigma_max=9.0, sigma_min=0.05, step=ReferenceExact(model, order))
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


def test_the_velocity_is_the_derivative_of_the_scaled_state(g):
    model, s, h = mixture(), 0.7, 1e-4
    frame, flow = Frame.of(model.reference), Field(model)
    y = starts(model, 10, s)
    ahead = exact_flow(model, y, s, s - h)
    u, u_ahead = (frame.into(v) / frame.radius(t64(at)) for v, at in ((y, s), (ahead, s - h)))
    slope = (u_ahead - u) / frame.turn(t64(s), t64(s - h))
    torch.testing.assert_close(frame.velocity(flow, y, frame.into(y), t64(s)), slope, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_weights_integrate_polynomials_exactly(k):
    variance, levels, s_next = np.array([0.0, 0.04, 9.0]), [1.0, 1.3, 1.9, 2.2, 3.5, 4.0][:k], 0.6
    weights = adams_bashforth(
        Frame(torch.zeros(3, dtype=F64), t64(variance), None, 3.0), [t64(s) for s in levels], t64(s_next)
    )
    for d, v in enumerate(variance):
        x = [(-1 / s if v == 0 else math.atan(s / math.sqrt(v)) / math.sqrt(v)) for s in [*levels, s_next]]
        for power in range(k):
            p = np.polynomial.Polynomial([0] * power + [1]).integ()
            want = (p(x[-1]) - p(x[0])) / (x[-1] - x[0])
            assert sum(weights[i, d].item() * x[i] ** power for i in range(k)) == pytest.approx(
                want, rel=1e-8, abs=1e-10
            )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_measured_order_on_a_mixture(order):
    model = mixture()
    high = 400.0  # so high that the first steps, of lower order, err little
    y = starts(model, 20, high)
    want, errors = exact_flow(model, y, high, 0.05), []
    for n in (120, 240):
        end = sample(
            model, y, n, sigma_max=high, sigma_min=0.05, step=ReferenceExact(model.reference, order), grid=log_uniform
        )
        errors.append((end - want).square().mean().sqrt().item())
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.2


def test_orders_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match="order: got 5, want 1 to 4"):
        ReferenceExact(singular(), 5)


# --- the pilot and the levels ---


@pytest.fixture(scope="module")
def pilot() -> tuple[Field, Pilot]:
    model = mixture()
    y = starts(model, 64, 20.0)
    return Field(model), Pilot.of(Field(model), Frame.of(model.reference), y, 20.0, 0.01)


def test_the_pilot_is_on_the_flow(pilot):
    flow, p = pilot
    y = starts(mixture(), 64, 20.0)
    for level in (20, 50, 80):
        want = exact_flow(flow.model, y, 20.0, p.levels[level].item())
        assert (p.frame.back(p.states[level], (2,)) - want).abs().max() < 2e-4


def small(p: Pilot) -> Pilot:
    """Every tenth level of it."""
    return replace(p, levels=p.levels[::10], states=p.states[::10], velocities=p.velocities[::10])


def test_local_errors_are_what_least_squares_leaves(pilot, monkeypatch):
    monkeypatch.setattr("gradlogp.samplers.nodes._RIDGE", 1e-12)
    p = small(pilot[1])
    first, then = _local_errors(p)
    variance, s = p.frame.variance.numpy(), p.levels.numpy()
    x = np.arctan(s[:, None] / np.sqrt(variance)) / np.sqrt(variance)
    end = np.sqrt(variance + s[-1] ** 2)
    u, q = p.states.numpy() / np.sqrt(variance + s[:, None, None] ** 2), p.velocities.numpy()
    landed = p.first.numpy() / np.sqrt(variance + p.start.item() ** 2)

    def left(change, features):
        a, b = np.stack([f.ravel() for f in features], 1), change.ravel()
        return np.linalg.lstsq(a, b, rcond=None)[1][0] / len(change)

    for p_, i, j in [(0, 1, 2), (1, 3, 6), (2, 4, 5), (3, 6, 8)]:
        dx = (x[j] - x[i]) * end
        assert then[p_, i, j].item() == pytest.approx(
            left((u[j] - u[i]) * end, [dx * q[i], dx * q[p_]]), rel=1e-3, abs=1e-11
        )
        assert first[i, j].item() == pytest.approx(left((u[j] - landed) * end, [dx * q[i]]), rel=1e-3, abs=1e-11)
    assert math.isinf(then[1, 1, 2].item())
    assert math.isinf(first[3, 2].item())


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4])
def test_dynamic_programming_finds_the_best_of_all_choices(pilot, n_steps):
    p = small(pilot[1])
    first, then = _local_errors(p)
    m = len(p.levels) - 1

    def cost(path):
        return first[path[0], path[1]] + sum(then[a, b, c] for a, b, c in zip(path, path[1:], path[2:], strict=False))

    best = min(((*c, m) for c in itertools.combinations(range(m), n_steps)), key=lambda path: float(cost(path)))
    assert cost(cheapest(p, n_steps)) == pytest.approx(float(cost(best)), rel=1e-12)


def test_candidates_are_grids_that_end_at_the_last_level(pilot):
    for n in (1, 5, 20, FITTED):
        for nodes in candidates(pilot[1], n):
            assert len(nodes) == n + 1
            assert nodes[-1] == len(pilot[1].levels) - 1
            assert all(a < b for a, b in pairwise(nodes))


def test_one_row_far_off_does_not_spoil_the_weights(pilot):
    flow, p = pilot
    states = p.states.clone()
    states[45, 0] += 100.0
    nodes = [30, 45, 80]
    others = replace(p, first=p.first[1:], states=p.states[:, 1:], velocities=p.velocities[:, 1:])
    without, with_it = (fit(flow, q, nodes)[0][0] for q in (others, replace(p, states=states)))
    assert with_it.item() == pytest.approx(without.item(), rel=0.01)


def test_weights_are_those_of_least_squares(pilot, monkeypatch):
    monkeypatch.setattr("gradlogp.samplers.calibration.N_REWEIGHTED", 0)
    flow, p = pilot
    weights, _ = fit(flow, p, [30, 45, 80])
    c = p.landed(30)
    q = p.velocity(flow, c, 30)
    r = (p.frame.variance + p.levels[45] ** 2).sqrt()
    feature = r * p.frame.turn(p.levels[30], p.levels[45]) * q
    target = p.states[45] - c * r / (p.frame.variance + p.levels[30] ** 2).sqrt()
    want = np.linalg.lstsq(feature.reshape(-1, 1).numpy(), target.reshape(-1).numpy(), rcond=None)[0]
    assert weights[0].numpy() == pytest.approx(want, rel=1e-5)
    assert [len(a) for a in weights] == [1, 2]


# --- the default sampler ---


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("n_steps", [5, 10, 20])
def test_the_default_is_far_ahead_of_heun_at_the_same_calls(n_steps, known):
    exact = mixture()
    model = exact if known else ScoreFunction(exact.score)
    y = starts(exact, 300, 80.0)
    want = from_80()
    end = sample(model, y, n_steps, sigma_max=80.0, sigma_min=0.002)
    other = sample(model, y, max(n_steps // 2, 1), sigma_max=80.0, sigma_min=0.002, step=_heun(), grid=karras)
    near, others = ((v - want).square().mean(1).sqrt() for v in (end, other))
    assert near.square().mean() < 0.05**2 * others.square().mean()
    told = calibrate(model, n_steps, sigma_max=80.0, sigma_min=0.002, starts=y).accuracy
    for value, stderr, p in ((told.median, told.stderr, 0.5), (told.ninety, told.ninety_stderr, 0.9)):
        rank = math.sqrt(
            p * (1 - p) / len(near)
        )  # the error of the quantile found, of which these rows are a sample too
        own = 0.5 * (near.quantile(p + rank) - near.quantile(p - rank)).item()
        assert value == pytest.approx(near.quantile(p).item(), abs=4 * math.hypot(stderr, own))


SIXTEEN = torch.randn(10, 16, generator=torch.Generator().manual_seed(5), dtype=F64)
RING = (torch.arange(8, dtype=F64) * torch.pi / 4)[:, None]


HARD = {
    "25 modes": GaussianMixture(torch.ones(25), torch.cartesian_prod(*2 * [torch.arange(-2.0, 3.0, dtype=F64)]), 0.01),
    "ring": GaussianMixture(torch.ones(8), 2 * torch.cat([RING.cos(), RING.sin()], 1), 0.01),
    "16 coordinates": GaussianMixture(torch.ones(10), SIXTEEN, 0.05 + 0.1 * SIXTEEN**2),
    "line": GaussianMixture(t64([0.4, 0.6]), t64([[-1.0], [1.0]]), t64([0.01, 0.04])),
}


@functools.cache
def followed(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows at 80, and where 400 steps of order 4 take them: six hundred times as near as a pilot's 80."""
    exact = HARD[name]
    y = starts(exact, 250, 80.0)
    fine = Pilot.of(Field(exact), Frame.of(exact.reference), y, 80.0, 0.002, finer=5)
    return y, fine.frame.back(fine.states[-1], exact.event_shape)


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("n_steps", [5, 20, FITTED, 60])
def test_what_a_plan_says_of_its_accuracy_covers_the_truth(name, n_steps):
    """On rows that it has not seen; at 40 fitted steps the pilot's own error is most of it."""
    exact, (y, truth), ends = HARD[name], followed(name), {"sigma_max": 80.0, "sigma_min": 0.002}
    d = (sample(exact, y, n_steps, **ends) - truth).square().mean(1).sqrt()
    told = calibrate(exact, n_steps, **ends).accuracy
    rank = {q: (d.quantile(q + 0.02) - d.quantile(q - 0.02)).item() / 2 for q in (0.5, 0.9)}  # of 250, about 0.7 σ
    assert told.median == pytest.approx(d.median().item(), abs=4 * math.hypot(told.stderr, rank[0.5]))
    assert told.ninety == pytest.approx(d.quantile(0.9).item(), abs=4 * math.hypot(told.ninety_stderr, rank[0.9]))
    rms = d.square().mean().sqrt().item()
    assert told.rms == pytest.approx(rms, abs=4 * told.rms_stderr)
    assert told.median + 4 * told.stderr < 4 * d.median()
    assert told.rms_stderr < 0.2


def test_errors_of_quantiles_are_those_of_their_ranks(g):
    """Of 400 exponential distances: √(q/(1 − q)/n); and a share c/t of rows up to Δ adds 2cΔ to the mean square."""
    d = -torch.rand(400, 1, generator=g, dtype=F64).log()
    told = Accuracy.of(d, torch.zeros_like(d))
    assert told.stderr == pytest.approx(math.sqrt(1 / 400), rel=0.35, abs=0.1 * told.median)
    assert told.ninety_stderr == pytest.approx(math.hypot(math.sqrt(9 / 400), 0.23), rel=0.35)
    apart = torch.cat([torch.full((200, 1), -3.0), torch.full((200, 1), 3.0)]).double()
    ends = apart + 0.01 / torch.linspace(0.0025, 1, 400, dtype=F64)[:, None].flip(0)  # P(d > t) = 0.01/t, to 4
    seen = Accuracy.of(ends[:390], apart[:390])
    whole = (0.02 * 4 - 0.01**2) ** 0.5
    assert seen.rms + 2 * seen.rms_stderr > whole > seen.rms + 0.5 * seen.rms_stderr


def _heun():
    from gradlogp.samplers import heun

    return heun


def test_a_step_is_a_call_and_a_plan_costs_less_than_a_thousand_points_in_fifty_steps():
    model = Counting(mixture())
    for n in (5, 20, 35, 40):
        model.calls = model.rows = 0
        calibrate(model, n, sigma_max=80.0, sigma_min=0.002)
        assert model.rows < 50_000
        model.calls = model.rows = 0
        sample(model, 300, n, sigma_max=80.0, sigma_min=0.002, generator=torch.Generator().manual_seed(1))
        assert (model.calls, model.rows) == (n, 300 * n)


def test_a_plan_is_forgotten_when_the_model_changes():
    model = singular()
    plan = calibrate(model, 5, sigma_max=9.0, sigma_min=0.1)
    assert len(model.sampling_plans) == 1
    sample(model, 3, 5, sigma_max=9.0, sigma_min=0.1)
    assert list(model.sampling_plans.values()) == [plan]
    before = list(model.sampling_plans)
    model.mean = model.mean + 1.0  # a change that no version tells
    sample(model, 3, 5, sigma_max=9.0, sigma_min=0.1)
    assert len(model.sampling_plans) == 1
    assert list(model.sampling_plans) != before


@pytest.mark.parametrize("n_steps", [1, 2, FITTED, FITTED + 1, 100])
def test_any_number_of_steps(n_steps):
    model = mixture()
    y = starts(model, 300, 80.0)
    error = sample(model, y, n_steps, sigma_max=80.0, sigma_min=0.002) - from_80()
    assert error.square().mean().sqrt() < {1: 0.3, 2: 0.2, FITTED: 1e-3, FITTED + 1: 2e-3, 100: 1e-4}[n_steps]


def test_gaussian_data_are_exact_in_one_call():
    model = singular()
    y = 30 * torch.randn(50, 4, generator=torch.Generator().manual_seed(2), dtype=F64)
    got = sample(model, y, 1, sigma_max=30.0, sigma_min=0.01)
    torch.testing.assert_close(got, exact_flow(model, y, 30.0, 0.01), rtol=1e-6, atol=1e-6)
    assert calibrate(model, 1, sigma_max=30.0, sigma_min=0.01).accuracy.rms < 1e-6


def test_samples_have_the_law_of_the_data(g):
    exact = mixture()
    x = sample(exact, 20_000, 12, sigma_max=40.0, sigma_min=0.002, generator=g).double()
    w, m = exact.log_weights.exp().numpy(), exact.means.numpy()
    v = [0.5, 0.3, 0.4]

    def cdf(u):
        return sum(wk * stats.norm.cdf(u, mk[0], math.sqrt(vk)) for wk, mk, vk in zip(w, m, v, strict=True))

    assert stats.kstest(x[:, 0].numpy(), cdf).pvalue > 1e-4


def test_the_result_does_not_depend_on_the_batch():
    model = mixture()
    whole, parts, fewer = (
        sample(model, n, 6, sigma_max=20.0, sigma_min=0.01, generator=torch.Generator().manual_seed(5), batch_size=b)
        for n, b in ((100, None), (100, 7), (30, 30))
    )
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fewer, whole[:30], rtol=1e-9, atol=1e-9)


def test_noise_is_standard_normal_and_each_row_its_own():
    z = Noise(7)(torch.empty(40_000, 3))
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-4
    assert abs(np.corrcoef(z[1:, 0], z[:-1, 0])[0, 1]) < 5 / math.sqrt(40_000)
    torch.testing.assert_close(Noise(7, first=11_000)(torch.empty(50, 3)), z[11_000:11_050], rtol=0, atol=0)
    noise = Noise(7)
    first, second = noise(torch.empty(2000, 3)), noise(torch.empty(2000, 3))
    assert abs(np.corrcoef(first.flatten(), second.flatten())[0, 1]) < 5 / math.sqrt(6000)


def test_any_process_follows_the_same_flow():
    model, vp = mixture(), processes.VP(0.1, 20.0)
    y = starts(model, 40, 20.0)
    want, got = (sample(model, y, 8, sigma_max=20.0, sigma_min=0.5, process=process) for process in (None, vp))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_other_dtypes(dtype, tolerance):
    model = mixture()
    y = starts(model, 60, 4.0).to(dtype)
    want = sample(model, y.double(), 10, sigma_max=4.0, sigma_min=0.01)
    got = sample(model, y, 10, sigma_max=4.0, sigma_min=0.01)
    assert got.dtype == dtype
    assert (got.double() - want).square().mean().sqrt() < tolerance


def test_images_are_as_their_pixels(g):
    model = GaussianMixture(t64([0.5, 0.5]), torch.randn(2, 1, 2, 2, generator=g, dtype=F64), t64(0.1))
    flat = GaussianMixture(t64([0.5, 0.5]), model.means, t64(0.1))
    y = 10 * torch.randn(30, 1, 2, 2, generator=g, dtype=F64)
    a = sample(model, y, 6, sigma_max=10.0, sigma_min=0.01)
    b = sample(flat, y.flatten(1), 6, sigma_max=10.0, sigma_min=0.01)
    torch.testing.assert_close(a.flatten(1), b, rtol=1e-6, atol=1e-6)


def test_a_start_at_low_noise_is_taken_as_it_is():
    """At half a standard deviation the rows are no draws of a Gaussian: the pilot is taken from the start itself."""
    model = GaussianMixture(t64([0.5, 0.5]), t64([[-3.0, 0.0], [3.0, 0.0]]), t64(0.2))
    y = starts(model, 300, 1.0)
    error = sample(model, y, 6, sigma_max=1.0, sigma_min=0.002) - exact_flow(model, y, 1.0, 0.002)
    assert error.square().mean().sqrt() < 0.02


def test_a_measured_frame_is_that_of_the_data():
    model = mixture()
    y = starts(model, 256, 30.0)
    got = measured_frame(Field(ScoreFunction(model.score)), y, 30.0, 0.002)
    assert got.basis is not None
    se = model.covariance.diagonal().max().item() / 16  # of a variance over 256 rows: √2 v/16
    assert (got.mean - model.mean).abs().max() < 5 * math.sqrt(model.covariance.diagonal().max().item() / 256)
    v = (got.basis * got.variance) @ got.basis.T
    assert (v - model.covariance).abs().max() < 5 * math.sqrt(2) * se


def test_a_model_of_many_coordinates_that_knows_no_gaussian(g):
    """256 rows say nothing on 200 × 200 covariances: one variance is measured, and other rows are as the pilot's."""
    model = GaussianMixture(t64([0.5, 0.5]), torch.randn(2, 200, generator=g, dtype=F64), t64(0.3))
    y = starts(model, 300, 80.0)
    want = sample(model, y, 150, sigma_max=80.0, sigma_min=0.002)
    unknown = ScoreFunction(model.score)
    distance = (sample(unknown, y, 10, sigma_max=80.0, sigma_min=0.002) - want).square().mean(1).sqrt()
    assert distance[200:].median() < 5e-3
    assert distance[200:].median() < 2 * distance[:100].median()


def test_what_a_plan_says_is_one_line():
    text = str(calibrate(mixture(), 5, sigma_max=20.0, sigma_min=0.01))
    assert "\n" not in text
    assert len(text) < 300
    assert "5 steps" in text


def test_callback_and_trajectory_see_every_step():
    model, seen = mixture(), []
    sample(model, 10, 4, sigma_max=9.0, sigma_min=0.1, batch_size=6, callback=seen.append)
    assert [s.step for s in seen] == [0, 1, 2, 3, 4] * 2
    assert [len(s.x) for s in seen] == [6] * 5 + [4] * 5
    sigmas = [s.sigma for s in trajectory(model, 3, 4, sigma_max=9.0, sigma_min=0.1)]
    assert sigmas[0] == 9.0
    assert sigmas[-1] == 0.1
    assert all(a > b for a, b in pairwise(sigmas))


def test_a_model_without_a_finite_score_is_named_with_its_level():
    def bad(x_t: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        return x_t * (torch.nan if kernel.sigma.item() < 1.0 else -0.1)

    with pytest.raises(InputError, match=r"^sampler: not finite after step \d+ of \d+, at sigma = 0\.\d+; [^\n]*$"):
        sample(ScoreFunction(bad), torch.ones(2, 1), sigma_max=3.0, sigma_min=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": ReferenceExact}, "step: got <class"),
        ({"step": "heun"}, "step: got 'heun', want an instance of a step, such as samplers.Heun()"),
        ({"grid": lambda high, low, n: [high, low]}, "grid: got 2 levels, want 6 decreasing levels for 5 steps"),
        ({"grid": lambda high, low, n: torch.linspace(low, high, n + 1)}, "that do not decrease"),
        ({"grid": "karras"}, "grid: got 'karras', want decreasing levels, or a function such as samplers.karras"),
        ({"grid": given([3.0, 1.0])}, "grid: got 5 steps from 3 to 0.1, want 1 steps from 3 to 1"),
        ({"batch_size": 0}, "batch_size: got 0, want at least 1"),
    ],
)
def test_what_does_not_fit_together_is_said_in_one_line(options, message, as_a_user):
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        sample(mixture(), torch.ones(4, 2), 5, sigma_max=3.0, sigma_min=0.1, **options)
    assert message in str(error.value)


def test_a_plan_fitted_to_starts_is_not_one_for_counts():
    """Without a Gaussian the pilot is the start: a count must not depend on what was sampled before."""
    model = mixture()
    a, b = (ScoreFunction(model.score) for _ in range(2))
    options = {"sigma_max": 9.0, "sigma_min": 0.1}
    sample(a, starts(model, 100, 9.0), 5, **options)
    same = [sample(m, 20, 5, event_shape=(2,), generator=torch.Generator().manual_seed(1), **options) for m in (a, b)]
    assert torch.equal(*same)
    sample(ScoreFunction(lambda x, k: -x / (1 + k.sigma**2).to(x)), 5, 3, event_shape=(3,), **options)
    assert len(a.sampling_plans) == 2


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, 5), {}, "model: got int, want a score model"),
        ((None, [[1.0, 2.0]]), {}, "x_or_n: got list, want a torch.Tensor of noisy rows, or a whole number"),
        ((None, 5), {"process": processes.VP}, "process: got <class"),
        ((None, 5), {"event_shape": (3,)}, "event_shape: got (3,), want (2,)"),
        ((None, 5), {"generator": 3}, "generator: got int, want a torch.Generator"),
        ((None, 5), {"sigma_max": torch.tensor([1.0, 2.0])}, "sigma_max: got 2 numbers, want one"),
    ],
)
def test_what_is_no_part_of_a_sampler_is_said(arguments, options, message, as_a_user):
    model, x = arguments
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        sample(mixture() if model is None else model, x, 5, **({"sigma_max": 3.0, "sigma_min": 0.1} | options))
    assert message in str(error.value)


def test_a_range_far_above_the_data():
    model = mixture()
    y = starts(model, 50, 200.0)
    torch.testing.assert_close(
        sample(model, y, 5, sigma_max=200.0, sigma_min=100.0), exact_flow(model, y, 200.0, 100.0), rtol=1e-4, atol=1e-3
    )


def test_starts_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"x: got event shape \(3,\), want \(2,\)"):
        sample(mixture(), torch.ones(4, 3), 5, sigma_max=3.0, sigma_min=0.1)


def test_a_saved_model_keeps_its_plan(tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 2)) @ np.array([[1.0, 0.4], [0.0, 0.5]])
    est = ScoreDensity(n_steps=30, random_state=0, verbose=False).fit(x)
    assert not hasattr(est.model_, "sampling_plans")  # not before it is asked for
    assert est.sampling_accuracy_.n_rows > 0
    est.save(tmp_path / "m")
    loaded = ScoreDensity.load(tmp_path / "m")
    (a,), (b,) = est.model_.sampling_plans.values(), loaded.model_.sampling_plans.values()
    assert isinstance(b, Plan)
    assert torch.equal(a.levels, b.levels)
    assert a.accuracy == b.accuracy
    np.testing.assert_array_equal(est.sample(5), loaded.sample(5))
    assert loaded.sampling_accuracy_ == a.accuracy
    assert len(loaded.model_.sampling_plans) == 1
