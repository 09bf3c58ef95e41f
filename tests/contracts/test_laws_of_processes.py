"""Laws of every process, against mpmath's closed forms, finite differences, Monte Carlo and a simulated SDE."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import mpmath as mp
import pytest
import torch
from cases import F64, ids, t64

from gradlogp import InputError, kernels, processes
from gradlogp.processes import EDM, VE, VP, Cosine, OrnsteinUhlenbeck, Process, RectifiedFlow, SubVP

Real = Callable[[mp.mpf], mp.mpf]
F32 = torch.float32


@dataclass(frozen=True)
class Law:
    """A process, and its alpha, sigma, f and g² as the literature writes them; times between which to simulate."""

    name: str
    process: Process
    alpha: Real
    sigma: Real
    f: Real
    g2: Real
    start: float = 0.05
    stop: float = 0.9

    def levels(self, t: float) -> tuple[mp.mpf, mp.mpf]:
        return self.alpha(mp.mpf(t)), self.sigma(mp.mpf(t))

    def times(self) -> list[float]:
        low, high = max(self.process.t_min, 1e-5), self.process.t_max
        return [low, 1e-4 + low, *(low + (high - low) * u for u in (0.013, 0.2, 0.5, 0.83)), high]


def linear(name: str, process: VP | SubVP, b0: float, b1: float) -> Law:
    def integral(t: mp.mpf) -> mp.mpf:
        return b0 * t + (mp.mpf(b1) - b0) * t**2 / 2

    def beta(t: mp.mpf) -> mp.mpf:
        return b0 + (mp.mpf(b1) - b0) * t

    sub = isinstance(process, SubVP)
    return Law(
        name,
        process,
        lambda t: mp.exp(-integral(t) / 2),
        lambda t: 1 - mp.exp(-integral(t)) if sub else mp.sqrt(1 - mp.exp(-integral(t))),
        lambda t: -beta(t) / 2,
        lambda t: beta(t) * (1 - mp.exp(-2 * integral(t))) if sub else beta(t),
    )


def one(t: mp.mpf) -> mp.mpf:
    return mp.mpf(1)


def zero(t: mp.mpf) -> mp.mpf:
    return mp.mpf(0)


def geometric(t: mp.mpf) -> mp.mpf:
    return mp.mpf(0.01) * (mp.mpf(50) / mp.mpf(0.01)) ** t


LAWS = [
    Law("ve", VE(0.01, 50), one, geometric, zero, lambda t: 2 * geometric(t) ** 2 * mp.log(50 / mp.mpf(0.01))),
    linear("vp", VP(), 0.1, 20.0),
    linear("vp constant beta", VP(3.0, 3.0), 3.0, 3.0),
    linear("subvp", SubVP(0.1, 20), 0.1, 20.0),
    Law(
        "cosine",
        Cosine(),
        lambda t: mp.cos(mp.pi * t / 2),
        lambda t: mp.sin(mp.pi * t / 2),
        lambda t: -mp.pi / 2 * mp.tan(mp.pi * t / 2),
        lambda t: mp.pi * mp.tan(mp.pi * t / 2),
    ),
    Law("flow", RectifiedFlow(), lambda t: 1 - t, lambda t: t, lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
    Law(
        "ou",
        OrnsteinUhlenbeck(),
        lambda t: mp.exp(-t),
        lambda t: mp.sqrt(1 - mp.exp(-2 * t)),
        lambda t: mp.mpf(-1),
        lambda t: mp.mpf(2),
        stop=1.5,
    ),
    Law("edm", EDM(), one, lambda t: t, zero, lambda t: 2 * t, stop=3.0),
]
every = pytest.mark.parametrize("law", LAWS, ids=ids)
both = pytest.mark.parametrize("dtype", [F64, F32], ids=str)
CLOSED = [law for law in LAWS if law.process.domain.high_in]


@pytest.fixture(autouse=True)
def _digits() -> None:
    mp.mp.dps = 40


def close(got: torch.Tensor, want: list[mp.mpf], rtol: float) -> None:
    """Each number within a relative error of mpmath's."""
    assert got.shape == (len(want),)
    for value, exact in zip(got.tolist(), want, strict=True):
        assert abs(value - exact) <= rtol * abs(exact), (value, exact)


def test_every_process_is_under_test() -> None:
    public = {getattr(processes, name) for name in processes.__all__}
    assert {type(law.process) for law in LAWS} == {c for c in public if issubclass(c, Process) and c is not Process}


# --- the kernels ----------------------------------------------------------------------------------------------------


@every
@both
def test_levels_are_the_literatures_in_either_precision(law: Law, dtype: torch.dtype) -> None:
    """From t = 1e-5 to t_max: in float32 within one rounding of the exact function of the float32 time."""
    t, p = torch.tensor(law.times(), dtype=dtype), law.process
    t = t.clamp_max(p.t_max)
    rtol = 1e-7 if dtype == F32 else 1e-12
    alpha, sigma = zip(*(law.levels(v) for v in t.tolist()), strict=True)
    kernel = p(t)
    assert kernel.alpha.dtype == kernel.sigma.dtype == dtype
    close(kernel.alpha, alpha, rtol)
    close(kernel.sigma, sigma, rtol)
    close(p.alpha(t), alpha, rtol)
    close(p.sigma(t), sigma, rtol)
    ratio = [s / a for s, a in zip(sigma, alpha, strict=True)]
    close(p.ratio(t), ratio, rtol)
    for got, want in ((p.log_alpha(t), alpha), (p.log_ratio(t), ratio)):
        for value, exact in zip(got.tolist(), (mp.log(w) for w in want), strict=True):
            assert abs(value - exact) <= 2 * torch.finfo(dtype).eps * (1 + abs(exact))


def test_close_to_an_end_where_the_data_are_gone() -> None:
    """1 − 2⁻²⁰ is a float32 number: the ratio there is 1048575, or 2²¹/π to one part in 10¹²."""
    for dtype in (F64, F32):
        t = torch.tensor(1 - 2.0**-20, dtype=dtype)
        assert RectifiedFlow().ratio(t).item() == pytest.approx(2**20 - 1, rel=1e-7)
        assert Cosine().ratio(t).item() == pytest.approx(2**21 / math.pi, rel=1e-7)
        assert Cosine().alpha(t).item() == pytest.approx(math.pi / 2**21, rel=1e-7)


def test_song_leaves_some_of_the_data_at_the_end() -> None:
    assert VP()(1.0).alpha.item() == pytest.approx(math.exp(-5.025), rel=1e-14)
    assert VP(beta_min=0.1, beta_max=20)(1).sigma.item() == pytest.approx(math.sqrt(-math.expm1(-10.05)), rel=1e-14)


def test_a_long_time_does_not_overflow() -> None:
    kernel = OrnsteinUhlenbeck()(2000.0)
    assert (kernel.alpha.item(), kernel.sigma.item()) == (0.0, 1.0)


@every
def test_a_number_and_a_tensor_of_times_agree(law: Law) -> None:
    times = law.times()[1:4]
    rows = law.process(t64(times))
    assert rows.sigma.shape == rows.alpha.shape == (3,)
    for i, t in enumerate(times):
        kernel = law.process(t)
        assert isinstance(kernel, kernels.Gaussian)
        assert kernel.sigma.shape == kernel.alpha.shape == ()
        assert kernel.sigma.dtype == F64
        assert kernel.sigma == rows.sigma[i]
        assert kernel.alpha == rows.alpha[i]


# --- the inverse ----------------------------------------------------------------------------------------------------


@every
@both
def test_time_is_the_inverse_of_the_ratio(law: Law, dtype: torch.dtype) -> None:
    """Relative to t, but for VE, whose log ratio is −4.6 at t = 0: absolute there."""
    t = torch.tensor(law.times(), dtype=dtype).clamp_max(law.process.t_max)
    eps = torch.finfo(dtype).eps
    got = law.process.time(law.process.ratio(t))
    torch.testing.assert_close(got, t, rtol=80 * eps, atol=eps if law.name == "ve" else 0)


@every
@both
def test_the_kernel_of_a_ratio_has_it(law: Law, dtype: torch.dtype) -> None:
    """Also in float32, and where a float32 time could not say it (ratio 1e7)."""
    low, high = law.process.ratio(law.start).item(), law.process.ratio(law.process.t_max).item()
    if not law.process.domain.high_in:
        high = 1e7
    ratio = torch.tensor([low, math.sqrt(low * high), 0.99 * high], dtype=dtype)
    kernel = law.process.at_ratio(ratio)
    assert kernel.sigma.dtype == dtype
    close(kernel.sigma.double() / kernel.alpha.double(), [mp.mpf(r) for r in ratio.tolist()], 2e-7)
    t = [mp.mpf(v) for v in law.process.time(ratio.double()).tolist()]
    close(kernel.alpha, [law.alpha(v) for v in t], 2e-7 if law.name not in ("cosine", "flow") else 1e-6)


@pytest.mark.parametrize("law", CLOSED, ids=ids)
@both
def test_the_ratio_of_an_end_has_the_time_of_that_end(law: Law, dtype: torch.dtype) -> None:
    p = law.process
    for end in [p.domain.low] * p.domain.low_in + [p.domain.high]:
        ratio = p.ratio(torch.tensor(end, dtype=dtype))
        for step in (0.0, math.inf, -math.inf):
            t = p.time(torch.nextafter(ratio, torch.full_like(ratio, step)) if step else ratio)
            assert t.item() == pytest.approx(end, abs=1e-6)
            p(t)


# --- drift and diffusion --------------------------------------------------------------------------------------------


def f_of(p: Process, t: torch.Tensor) -> torch.Tensor:
    return p.drift(torch.ones(len(t), 1, dtype=t.dtype), t)[:, 0]


@every
@both
def test_drift_and_diffusion_are_the_literatures(law: Law, dtype: torch.dtype) -> None:
    t = torch.tensor(law.times(), dtype=dtype).clamp_max(law.process.t_max)
    at = [mp.mpf(v) for v in t.tolist()]
    rtol = 2e-7 if dtype == F32 else 1e-10
    close(f_of(law.process, t), [law.f(v) for v in at], rtol)
    close(law.process.diffusion(t) ** 2, [law.g2(v) for v in at], 2 * rtol)
    assert law.process.diffusion(t).dtype == dtype


@every
def test_drift_and_diffusion_are_finite_differences_of_the_levels(law: Law) -> None:
    """f = d log alpha/dt and dσ²/dt = 2fσ² + g², by central differences: error h²/6 of the third derivative."""
    p, t = law.process, t64(law.times()[2:-1])
    h = 1e-5 * torch.minimum(t, (p.domain.high - t).abs()).clamp_max(1.0)
    f, g = f_of(p, t), p.diffusion(t)
    torch.testing.assert_close((p.alpha(t + h) - p.alpha(t - h)) / (2 * h), f * p.alpha(t), rtol=1e-7, atol=1e-9)
    dv = (p.sigma(t + h) ** 2 - p.sigma(t - h) ** 2) / (2 * h)
    torch.testing.assert_close(dv, 2 * f * p.sigma(t) ** 2 + g**2, rtol=1e-7, atol=1e-8)


@every
def test_drift_takes_any_event_and_a_time_a_row(law: Law) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(3, 2, 2, 2, generator=g)
    t = t64(law.times()[1:4])
    want = torch.stack([float(law.f(mp.mpf(v))) * row for v, row in zip(t.tolist(), x.double(), strict=True)])
    drift = law.process.drift(x, t)
    assert drift.dtype == x.dtype
    torch.testing.assert_close(drift.double(), want, rtol=2e-7, atol=0)
    torch.testing.assert_close(law.process.drift(x, t[0].item())[0], drift[0], rtol=0, atol=0)


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_derivatives_do_not_need_gradients_switched_on(law: Law, mode: Callable[[], torch.no_grad]) -> None:
    t = t64(law.times())
    want = f_of(law.process, t), law.process.diffusion(t)
    with mode():
        inside = t64(law.times())
        got = f_of(law.process, inside), law.process.diffusion(inside)
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(want, got, strict=True))
    torch.func.vmap(lambda x: law.process.drift(x, t))(torch.ones(2, len(t), 3, dtype=F64))


@every
def test_levels_and_coefficients_have_gradients_in_time(law: Law) -> None:
    t = t64(law.times()[2:-1]).requires_grad_()
    at = [mp.mpf(v) for v in t.tolist()]
    for value, exact in (
        (law.process.sigma(t), law.sigma),
        (law.process.alpha(t), law.alpha),
        (law.process.diffusion(t) ** 2, law.g2),
        (f_of(law.process, t), law.f),
    ):
        (d,) = torch.autograd.grad(value.sum(), t) if value.requires_grad else (torch.zeros_like(t),)
        want = t64([float(mp.diff(exact, v)) for v in at])
        torch.testing.assert_close(d, want, rtol=1e-8, atol=1e-9)


# --- transitions ----------------------------------------------------------------------------------------------------


def transition(law: Law, s: float, t: float) -> tuple[mp.mpf, mp.mpf]:
    """(alpha, sigma) of x_s → x_t from the difference of variances, in 40 digits."""
    (a_s, s_s), (a_t, s_t) = law.levels(s), law.levels(t)
    return a_t / a_s, mp.sqrt(s_t**2 - (a_t / a_s) ** 2 * s_s**2)


@every
@pytest.mark.parametrize("share", [0.5, 1e-3, 1e-6, 1e-9])
def test_transitions_are_right_for_close_times(law: Law, share: float) -> None:
    """The error of sigma is that of rounding two log ratios (and t itself), over their difference."""
    for s in law.times()[1:-1]:
        t = s + share * min(s, law.process.t_max - s)
        kernel, (alpha, sigma) = law.process.between(s, t), transition(law, s, t)
        assert abs(kernel.alpha.item() / alpha - 1) < 1e-13
        logs = [mp.log(b / a) for a, b in (law.levels(s), law.levels(t))]
        rounding = 4e-16 * max(1, *(abs(v) for v in logs)) / min(1, logs[1] - logs[0])
        assert abs(kernel.sigma.item() / sigma - 1) < 2 * rounding + 1e-14


@every
def test_transitions_in_float32_are_as_good_as_float32(law: Law) -> None:
    """Neighbouring float32 times: one rounding apart."""
    s = torch.tensor([law.start, law.stop], dtype=F32)
    t = torch.nextafter(s, torch.full_like(s, 9.0))
    kernel = law.process.between(s, t)
    assert kernel.sigma.dtype == F32
    alpha, sigma = zip(*(transition(law, a, b) for a, b in zip(s.tolist(), t.tolist(), strict=True)), strict=True)
    close(kernel.sigma, sigma, 3e-7)
    close(kernel.alpha, alpha, 1e-7)


@every
def test_kernels_are_a_semigroup(law: Law) -> None:
    p = law.process
    r, s, t = t64([0.1, 0.2]), t64([0.25, 0.201]), t64([0.7, 0.99])
    composed = [p.between(r, t), p.between(s, t).after(p.between(r, s))]
    composed += [p(t), p.between(s, t).after(p(s)), p.between(s, t).after(p.between(r, s)).after(p(r))]
    composed += [p(t), p.between(s, t).after(p.between(r, s).after(p(r)))]
    for want, got in ((0, 1), (2, 3), (2, 4), (5, 6)):
        torch.testing.assert_close(composed[got].alpha, composed[want].alpha, rtol=1e-12, atol=0)
        torch.testing.assert_close(composed[got].sigma, composed[want].sigma, rtol=1e-12, atol=0)


def test_the_geometric_process_starts_from_blurred_data() -> None:
    p = VE(0.3, 5.0)
    assert p(0.0).sigma.item() == pytest.approx(0.3, rel=1e-15)
    t = 0.4
    assert p.between(0.0, t).sigma.item() ** 2 == pytest.approx(p.sigma(t).item() ** 2 - 0.3**2, rel=1e-14)


@every
def test_two_draws_in_a_row_have_the_law_of_one(law: Law, g: torch.Generator) -> None:
    """Mean and variance of 100 000 draws through s: within 4.5 standard errors, σ/√n and σ²√(2/n)."""
    p, n, x = law.process, 100_000, 1.3
    x_t = p.between(0.3, 0.8).sample(p(0.3).sample(torch.full((n, 1), x, dtype=F64), generator=g), generator=g)
    alpha, sigma = (float(v) for v in law.levels(0.8))
    assert abs(x_t.mean().item() - alpha * x) < 4.5 * sigma / math.sqrt(n)
    assert abs(x_t.var().item() - sigma**2) < 4.5 * sigma**2 * math.sqrt(2 / n)


@every
def test_the_simulated_sde_has_these_marginals(law: Law, g: torch.Generator) -> None:
    """Euler–Maruyama from k(start), 100 steps, 20 000 paths: within 4.5 standard errors and the bias of the steps.

    The bias is that of Euler's own recursion of mean and variance, m' = (1 + fh)m and v' = (1 + fh)²v + g²h, with the
    literature's f and g²; it is below 12 % of sigma (mean) and of sigma² (variance), and halves with the step.
    """
    p, n, x0 = law.process, 20_000, 1.3
    grid = torch.linspace(law.start, law.stop, 101, dtype=F64)
    x = p(law.start).sample(torch.full((n, 1), x0, dtype=F64), generator=g)
    for t, t_next in itertools.pairwise(grid):
        h = t_next - t
        x = x + h * p.drift(x, t) + p.diffusion(t) * h.sqrt() * torch.randn(n, 1, generator=g, dtype=F64)
    alpha, sigma = (float(v) for v in law.levels(law.stop))
    (m_bias, v_bias), finer = euler_bias(law, x0, 100), euler_bias(law, x0, 200)
    assert max(abs(m_bias) / sigma, abs(v_bias) / sigma**2) < 0.12
    for bias, half in zip((m_bias, v_bias), finer, strict=True):
        assert half == pytest.approx(bias / 2, rel=0.15, abs=1e-12)
    assert abs(x.mean().item() - alpha * x0) < 4.5 * sigma / math.sqrt(n) + abs(m_bias)
    assert abs(x.var().item() - sigma**2) < 4.5 * sigma**2 * math.sqrt(2 / n) + abs(v_bias)


def euler_bias(law: Law, x0: float, n_steps: int) -> tuple[float, float]:
    """What Euler's mean and variance at ``stop`` are off."""
    alpha, sigma = (float(v) for v in law.levels(law.start))
    m, v, h = alpha * x0, sigma**2, (law.stop - law.start) / n_steps
    for i in range(n_steps):
        t = mp.mpf(law.start + i * h)
        f, g2 = float(law.f(t)), float(law.g2(t))
        m, v = (1 + f * h) * m, (1 + f * h) ** 2 * v + g2 * h
    alpha, sigma = (float(v) for v in law.levels(law.stop))
    return m - alpha * x0, v - sigma**2


# --- input ----------------------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
X = torch.ones(4, 3)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VP()(0.0), "t: got 0, want 0 < t <= 1 for VP(beta_min=0.1, beta_max=20)"),
        (lambda: VP()(500), "t: got 500, want 0 < t <= 1 for VP"),
        (lambda: VP()(-0.1), "t: got -0.1, want a finite number >= 0"),
        (lambda: VP()(NAN), "t: got nan, want a finite number"),
        (lambda: VP()("now"), "t: got 'now', want a number"),
        (lambda: VP()(torch.ones(2, 2)), "t: got shape (2, 2), want a number or one number a row"),
        (lambda: VP().drift(X, torch.tensor([0.1, 0.2])), "got (2,) values for 4 rows"),
        (lambda: VP().drift(X, 1.5), "t: got 1.5, want 0 < t <= 1"),
        (lambda: VP().drift([1.0], 0.5), "x: got list, want a torch.Tensor"),
        (lambda: SubVP().diffusion(torch.tensor([0.5, 0.0])), "t: got 0, want 0 < t <= 1 for SubVP"),
        (lambda: VE(1, 2)(1.1), "t: got 1.1, want 0 <= t <= 1 for VE(sigma_min=1, sigma_max=2)"),
        (lambda: RectifiedFlow()(1.0), "t: got 1, want 0 < t < 1 for RectifiedFlow()"),
        (lambda: Cosine().alpha(1.0), "t: got 1, want 0 < t < 1 for Cosine()"),
        (lambda: Cosine().log_alpha(1.0), "t: got 1, want 0 < t < 1 for Cosine()"),
        (lambda: EDM().sigma(0.0), "t: got 0, want 0 < t for EDM()"),
        (lambda: OrnsteinUhlenbeck().log_ratio(INF), "t: got inf, want a finite number"),
        (lambda: VP(0.0, 20.0), "beta_min: got 0, want a finite number > 0"),
        (lambda: VP(0.1, INF), "beta_max: got inf, want a finite number > 0"),
        (lambda: SubVP(20.0, 0.1), "beta_min, beta_max: got 20 and 0.1, want beta_min <= beta_max"),
        (lambda: VP(torch.ones(2)), "beta_min: got shape (2,), want one number"),
        (lambda: VE(1.0, 1.0), "sigma_min, sigma_max: got 1 and 1, want sigma_min < sigma_max"),
        (lambda: VE(-1.0, 1.0), "sigma_min: got -1, want a finite number > 0"),
        (lambda: VE(0.1, NAN), "sigma_max: got nan, want a finite number > 0"),
        (lambda: VP().time(0.0), "ratio: got 0, want a finite number > 0"),
        (lambda: VP().time(200.0), "ratio: got 200, want a sigma/alpha that VP(beta_min=0.1, beta_max=20) has for 0 <"),
        (lambda: VE(1, 2).at_ratio(torch.tensor([1.5, 0.5])), "ratio: got 0.5, want a sigma/alpha that VE"),
        (lambda: VP().between(0.5, 0.5), "s and t: got s = 0.5 and t = 0.5, want s < t"),
        (lambda: VP().between(0.5, torch.tensor([0.6, 0.25])), "s and t: got s = 0.5 and t = 0.25, want s < t"),
        (lambda: VP().between(0.0, 0.5), "s: got 0, want 0 < t <= 1 for VP"),
        (lambda: VP().between(torch.ones(2) / 4, torch.ones(3) / 2), "s and t: got 2 and 3 values, want one value"),
    ],
)
def test_bad_input_is_named_on_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as e:
        call()
    assert message in str(e.value)
    assert "\n" not in str(e.value)
