"""Laws of every oracle, each against SciPy, mpmath, closed forms or brute force in float64."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from cases import BY_NAME, COVARIANCE, F64, LAWS, SHIFT, Law, ids, mvn, t64
from scipy import integrate, special, stats
from torch import distributions as td

from gradlogp.kernels import Additive, Gaussian, Kernel
from gradlogp.oracles import Empirical, GaussianMixture, Oracle, Quadrature

W, K, D = [0.2, 0.5, 0.3], 3, 3
MEANS = np.array([[0.0, 1.0, -1.0], [2.0, -1.0, 0.5], [-2.0, 0.0, 0.0]])
ROOT = np.random.default_rng(0).normal(size=(K, D, D))
SPREADS: dict[str, Any] = {
    "one number": (0.3, [0.3 * np.eye(D)] * K),
    "isotropic": (t64([0.3, 0.1, 0.0]), [v * np.eye(D) for v in (0.3, 0.1, 0.0)]),
    "diagonal": (t64([[0.1, 0.5, 0.2], [0.3, 0.0, 1.0], [0.2, 0.2, 0.4]]), None),
    "full": (t64(ROOT @ ROOT.transpose(0, 2, 1) / 4), list(ROOT @ ROOT.transpose(0, 2, 1) / 4)),
    "full, singular": (t64(ROOT[..., :1] @ ROOT[..., :1].transpose(0, 2, 1)), None),
}
SIGMAS, ALPHAS = [0.1, 0.5, 1.0, 2.0, 0.3, 0.7], [1.0, 0.9, 0.5, 0.1, 0.3, 2.0]
NOISE: dict[str, tuple[Kernel, Any]] = {  # the kernel, and row -> (alpha, shift, covariance)
    "isotropic": (Gaussian(0.4), lambda i: (1.0, np.zeros(D), 0.16 * np.eye(D))),
    "alpha": (Gaussian(0.4, 0.7), lambda i: (0.7, np.zeros(D), 0.16 * np.eye(D))),
    "rows": (Gaussian(t64(SIGMAS), t64(ALPHAS)), lambda i: (ALPHAS[i], np.zeros(D), SIGMAS[i] ** 2 * np.eye(D))),
    "normal": (Additive(td.Normal(t64(0.2), t64(0.4))), lambda i: (1.0, np.full(D, 0.2), 0.16 * np.eye(D))),
    "diagonal": (
        Additive(td.Normal(t64(SHIFT), t64([0.2, 0.5, 1.0]))),
        lambda i: (1.0, SHIFT, np.diag([0.04, 0.25, 1.0])),
    ),
    "full": (mvn(), lambda i: (1.0, SHIFT, COVARIANCE)),
}
spreads = pytest.mark.parametrize("spread", SPREADS)
noises = pytest.mark.parametrize("noise", NOISE)


def covariances(spread: str) -> list[np.ndarray]:
    given, matrices = SPREADS[spread]
    if matrices is not None:
        return matrices
    return [np.diag(v) if v.ndim == 1 else v for v in given.numpy()]


def mixture(spread: str, dtype: torch.dtype = F64) -> GaussianMixture:
    c = SPREADS[spread][0]
    return GaussianMixture(t64(W), t64(MEANS).to(dtype), c if isinstance(c, float) else c.to(dtype))


def points(seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(6, D, generator=torch.Generator().manual_seed(seed), dtype=F64)


class ByHand:
    """The mixture at one row, component by component with SciPy and explicit inverses."""

    def __init__(self, x_t: np.ndarray, spread: str, alpha: float, shift: np.ndarray, k: np.ndarray) -> None:
        parts = covariances(spread)
        noisy = [alpha**2 * s + k for s in parts]
        r = [x_t - alpha * m - shift for m in MEANS]
        logs = [stats.multivariate_normal(np.zeros(D), c).logpdf(v) for c, v in zip(noisy, r, strict=True)]
        self.log_prob = special.logsumexp(logs, b=W)
        p = np.array(W) * np.exp(np.array(logs) - self.log_prob)
        pull = [np.linalg.inv(c) @ v for c, v in zip(noisy, r, strict=True)]
        self.score = -sum(w * v for w, v in zip(p, pull, strict=True))
        each = [m + alpha * s @ v for m, s, v in zip(MEANS, parts, pull, strict=True)]
        self.mean = sum(w * e for w, e in zip(p, each, strict=True))
        within = [s - alpha**2 * s @ np.linalg.inv(c) @ s for s, c in zip(parts, noisy, strict=True)]
        second = sum(w * (c + np.outer(e, e)) for w, c, e in zip(p, within, each, strict=True))
        self.covariance = second - np.outer(self.mean, self.mean)


# --- Gaussian mixtures ------------------------------------------------------------------------------------------------


@spreads
@noises
@pytest.mark.parametrize(("dtype", "tol"), [(F64, 1e-8), (torch.float32, 2e-4)])
def test_mixture_is_that_of_scipy(spread: str, noise: str, dtype: torch.dtype, tol: float) -> None:
    oracle, (kernel, at) = mixture(spread, dtype), NOISE[noise]
    x_t = points().to(dtype)
    hands = [ByHand(x.double().numpy(), spread, *at(i)) for i, x in enumerate(x_t)]
    for got, name in [
        (oracle.log_prob(x_t, kernel), "log_prob"),
        (oracle.score(x_t, kernel), "score"),
        (oracle.denoise(x_t, kernel), "mean"),
        (oracle.posterior_covariance(x_t, kernel), "covariance"),
    ]:
        assert got.dtype == dtype
        np.testing.assert_allclose(got, [getattr(h, name) for h in hands], rtol=tol, atol=tol)


@spreads
@noises
def test_mixture_score_is_the_gradient_of_its_log_density(spread: str, noise: str) -> None:
    oracle, kernel = mixture(spread), NOISE[noise][0]
    x_t = points(1).requires_grad_()
    (want,) = torch.autograd.grad(oracle.log_prob(x_t, kernel).sum(), x_t)
    torch.testing.assert_close(oracle.score(x_t, kernel).detach(), want, rtol=1e-9, atol=1e-9)


@spreads
@noises
def test_mixture_denoises_by_tweedie_and_its_covariance_is_the_jacobian(spread: str, noise: str) -> None:
    oracle, (kernel, at) = mixture(spread), NOISE[noise]
    x_t = points(2)
    jacobian = torch.func.jacrev(lambda x: oracle.denoise(x, kernel).sum(0))(x_t).permute(1, 0, 2)
    for i in range(6):
        alpha, shift, k = at(i)
        mean = (x_t[i].numpy() - shift + k @ oracle.score(x_t, kernel)[i].numpy()) / alpha
        np.testing.assert_allclose(oracle.denoise(x_t, kernel)[i], mean, rtol=1e-8, atol=1e-9)
        got = oracle.posterior_covariance(x_t, kernel)[i]
        np.testing.assert_allclose(got, jacobian[i].numpy() @ k / alpha, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sigma", [1e-3, 1.0])
def test_mixture_in_float32_far_out_and_at_small_noise(sigma: float) -> None:
    """Against mpmath with 50 digits, 30 standard deviations out."""
    mp.mp.dps = 50
    means, variances = [[0.0, 1.0], [3.0, -2.0]], [[0.5, 0.0], [0.2, 1.5]]
    oracle = GaussianMixture(torch.tensor([0.25, 0.75]), torch.tensor(means), torch.tensor(variances))
    x_t = torch.tensor([[30.0, -20.0], [-45.0, 45.0], [0.0, 1.0 + 30e-3], [1e-3, 1.0], [3.0, -2.0]])
    for x, log_prob, score, mean in zip(
        x_t,
        oracle.log_prob(x_t, Gaussian(sigma)),
        oracle.score(x_t, Gaussian(sigma)),
        oracle.denoise(x_t, Gaussian(sigma)),
        strict=True,
    ):
        x = [mp.mpf(v) for v in x.tolist()]
        parts, s2 = [], mp.mpf(sigma) ** 2
        for w, m, v in zip((0.25, 0.75), means, torch.tensor(variances).double().tolist(), strict=True):
            c = [u + s2 for u in v]
            q = sum((a - b) ** 2 / u + mp.log(2 * mp.pi * u) for a, b, u in zip(x, m, c, strict=True))
            parts.append((w * mp.exp(-q / 2), [(a - b) / u for a, b, u in zip(x, m, c, strict=True)]))
        p = sum(w for w, _ in parts)
        want = np.array([float(-sum(w * r[j] for w, r in parts) / p) for j in range(2)])
        assert log_prob.item() == pytest.approx(float(mp.log(p)), rel=2e-6, abs=1e-5)
        np.testing.assert_allclose(score, want, rtol=2e-6, atol=1e-5)
        np.testing.assert_allclose(
            mean, [float(a + s2 * b) for a, b in zip(x, want, strict=True)], rtol=2e-6, atol=1e-5
        )


LARGE = """
import resource, time, torch
from gradlogp.kernels import Gaussian
from gradlogp.oracles import GaussianMixture
torch.set_num_threads(1)

def seconds(f):  # of this process's own, on the processor
    start = time.process_time()
    f()
    return time.process_time() - start

g = torch.Generator().manual_seed(0)
oracle = GaussianMixture(torch.ones(50), torch.randn(50, 784, generator=g), torch.rand(50, 784, generator=g) + 0.01)
x, kernel = oracle.sample(2000, generator=g), Gaussian(torch.rand(2000, generator=g) + 0.1)


def peak():  # kB; of the address space where that is told: the resident part depends on what else the machine does
    try:
        return int(open("/proc/self/status").read().split("VmPeak:")[1].split()[0])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


oracle.score(x[:500], kernel.rows(torch.arange(500)))  # several chunks: what the machine's libraries and allocator take
before = peak()
scores = []
took = seconds(lambda: scores.append(oracle.score(x, kernel)))
more = peak() - before
means, variances = torch.randn(50, 784, generator=g), torch.rand(50, 784, generator=g) + 0.01
passes = lambda: [((x - m) ** 2 / v).sum(1) for m, v in zip(means, variances)]
print(took, more, sorted(seconds(passes) for _ in range(3))[1])
score = scores[0]
i = torch.tensor([0, 1999])
torch.testing.assert_close(score[i], oracle.score(x[i], kernel.rows(i)))
"""


def test_mixture_of_784_coordinates_is_quick_and_small() -> None:
    """In a fresh process, whose memory is its own. Spread out at once, the rows would take several times 630 MB.

    What one chunk takes depends on the machine's allocator; that four times the rows take no more does not, once glibc
    is told to give freed blocks back rather than to choose as it goes. The time is counted in that of one plain pass
    over all rows and components, in the same process: a busy machine slows both.
    """
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576"}
    run = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True, env=env)
    out = run.stdout.split()
    assert float(out[0]) < 150 * float(out[2])  # 5 to 20
    assert int(out[1]) < 200_000  # kB


@spreads
def test_mixture_draws_and_moments(spread: str) -> None:
    oracle, n = mixture(spread), 40_000
    mean = np.average(MEANS, axis=0, weights=W)
    spread_of_means = np.cov(MEANS.T, aweights=W, ddof=0)
    covariance = sum(w * c for w, c in zip(W, covariances(spread), strict=True)) + spread_of_means
    np.testing.assert_allclose(oracle.mean, mean, atol=1e-7)
    np.testing.assert_allclose(oracle.covariance, covariance, atol=1e-7)
    np.testing.assert_allclose(oracle.reference.mean, mean, atol=1e-7)
    x = oracle.sample(n, generator=torch.Generator().manual_seed(3)).numpy()
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(D))
    r = np.linalg.solve(root, (x - mean).T)
    assert (np.abs(r.mean(1)) * n**0.5 < 4.5).all()
    products = r[:, None] * r[None]
    stderr = products.std(2) / n**0.5 + 1e-12
    assert (np.abs(products.mean(2) - np.eye(D)) / stderr < 4.8).all()
    a = np.array([1.0, -0.5, 0.7])
    scales = [(a @ c @ a) ** 0.5 for c in covariances(spread)]
    if min(scales) > 1e-6:
        parts = [stats.norm(a @ m, s) for m, s in zip(MEANS, scales, strict=True)]
        assert stats.kstest(x @ a, lambda u: sum(w * p.cdf(u) for w, p in zip(W, parts, strict=True))).pvalue > 1e-5


# --- data sets --------------------------------------------------------------------------------------------------------

DATA = t64(np.random.default_rng(1).normal(size=(15, D)))


@pytest.mark.parametrize("law", LAWS, ids=ids)
@pytest.mark.parametrize(("dtype", "tol"), [(F64, 1e-9), (torch.float32, 2e-4)])
def test_data_set_under_any_noise_is_brute_force(law: Law, dtype: torch.dtype, tol: float) -> None:
    oracle, kernel = Empirical(DATA.to(dtype)), law.kernel()
    x_t = kernel.sample(DATA[:6].to(dtype), generator=torch.Generator().manual_seed(4))
    u = x_t.double().numpy()[:, None] - DATA.to(dtype).double().numpy()
    with np.errstate(divide="ignore"):
        logs = law.scipy.logpdf(u).sum(2)
    log_prob = special.logsumexp(logs, axis=1) - np.log(15)
    weights = special.softmax(logs, axis=1)
    np.testing.assert_allclose(oracle.log_prob(x_t, kernel), log_prob, rtol=tol, atol=tol)
    np.testing.assert_allclose(oracle.denoise(x_t, kernel), weights @ DATA.numpy(), rtol=tol, atol=tol)
    x_t = x_t.double().requires_grad_()
    (want,) = torch.autograd.grad(oracle.log_prob(x_t, kernel).sum(), x_t)
    torch.testing.assert_close(oracle.score(x_t, kernel).detach(), want.to(x_t), rtol=1e-9, atol=1e-9)


@noises
@pytest.mark.parametrize(("dtype", "tol"), [(F64, 1e-9), (torch.float32, 2e-4)])
def test_data_set_under_gaussian_noise_is_brute_force(noise: str, dtype: torch.dtype, tol: float) -> None:
    oracle, (kernel, at) = Empirical(DATA.to(dtype)), NOISE[noise]
    x_t = points(5).to(dtype)
    for i in range(6):
        alpha, shift, k = at(i)
        r = x_t[i].double().numpy() - alpha * DATA.to(dtype).double().numpy() - shift
        logs = stats.multivariate_normal(np.zeros(D), k).logpdf(r)
        w = special.softmax(logs)
        assert oracle.log_prob(x_t, kernel)[i].item() == pytest.approx(special.logsumexp(logs) - np.log(15), rel=tol)
        np.testing.assert_allclose(oracle.score(x_t, kernel)[i], -np.linalg.solve(k, w @ r), rtol=tol, atol=tol)
        np.testing.assert_allclose(oracle.denoise(x_t, kernel)[i], w @ DATA.numpy(), rtol=tol, atol=tol)


@noises
def test_data_set_is_a_mixture_of_points(noise: str) -> None:
    oracle, kernel = GaussianMixture(torch.ones(15), DATA, 0.0), NOISE[noise][0]
    x_t = points(6).requires_grad_()
    for name in ("log_prob", "score", "denoise"):
        a, b = (getattr(o, name)(x_t, kernel) for o in (oracle, Empirical(DATA)))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    (want,) = torch.autograd.grad(Empirical(DATA).log_prob(x_t, kernel).sum(), x_t)
    torch.testing.assert_close(Empirical(DATA).score(x_t, kernel).detach(), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma", [1e-3, 0.05])
def test_data_set_in_float32_keeps_its_digits_at_small_noise(sigma: float) -> None:
    data = 100 + torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).round(decimals=2) * 0.01
    x_t = data[:20] + sigma * torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    r = x_t.double().numpy()[:, None] - data.double().numpy()
    logs = stats.norm(0, sigma).logpdf(r).sum(2)
    want = -np.einsum("bn,bnd->bd", special.softmax(logs, axis=1), r) / sigma**2
    oracle = Empirical(data)
    np.testing.assert_allclose(oracle.score(x_t, Gaussian(sigma)), want, rtol=1e-5, atol=1e-5 / sigma)
    np.testing.assert_allclose(
        oracle.log_prob(x_t, Gaussian(sigma)), special.logsumexp(logs, axis=1) - np.log(200), rtol=1e-5
    )


def test_data_set_draws_its_rows_evenly() -> None:
    data = torch.arange(5.0)[:, None]
    counts = Empirical(data).sample(20_000, generator=torch.Generator().manual_seed(0))[:, 0].int().bincount()
    assert stats.chisquare(counts.numpy()).pvalue > 1e-5


# --- quadrature -------------------------------------------------------------------------------------------------------


def laplace_and_gaussian(x: float, b: float, s: float) -> tuple[float, float]:
    mp.mp.dps = 40
    x, b, s = mp.mpf(x), mp.mpf(b), mp.mpf(s)
    a = mp.exp(-x / b) * mp.erfc((s / b - x / s) / mp.sqrt(2))
    c = mp.exp(x / b) * mp.erfc((s / b + x / s) / mp.sqrt(2))
    return float(mp.log((a + c) / (4 * b)) + s**2 / (2 * b**2)), float((c - a) / (b * (a + c)))


def laplace_and_laplace(x: float, b: float, s: float) -> tuple[float, float]:
    mp.mp.dps = 40
    u, b, s = abs(mp.mpf(x)), mp.mpf(b), mp.mpf(s)
    p = b * mp.exp(-u / b) - s * mp.exp(-u / s)
    return float(mp.log(p / (2 * (b * b - s * s)))), float((mp.exp(-u / s) - mp.exp(-u / b)) / p) * (1 if x > 0 else -1)


def normal_and_gaussian(x: float, v: float, s: float) -> tuple[float, float]:
    return stats.norm(0, math.hypot(v, s)).logpdf(x), -x / (v**2 + s**2)


def uniform_and_gaussian(x: float, a: float, s: float) -> tuple[float, float]:
    mp.mp.dps = 60
    z, h = mp.mpf(x), mp.mpf(a)
    p = (mp.ncdf((z + h) / s) - mp.ncdf((z - h) / s)) / (2 * h)
    return float(mp.log(p)), float((mp.npdf((z + h) / s) - mp.npdf((z - h) / s)) / (2 * h * s) / p)


LAPLACE, NORMAL, UNIFORM = (
    td.Laplace(t64(0.0), t64(0.5)),
    td.Normal(t64(0.0), t64(0.7)),
    td.Uniform(t64(-1.0), t64(1.0)),
)
QUADRATURES = [
    *((LAPLACE, Gaussian(s), laplace_and_gaussian, 0.5, s) for s in (0.003, 0.01, 0.3, 3.0, 50.0)),
    *((LAPLACE, Additive(td.Laplace(t64(0.0), t64(s))), laplace_and_laplace, 0.5, s) for s in (0.01, 0.3, 2.0)),
    *((NORMAL, Gaussian(s), normal_and_gaussian, 0.7, s) for s in (0.01, 0.4, 5.0)),
    *((NORMAL, Additive(td.Normal(t64(0.0), t64(s))), normal_and_gaussian, 0.7, s) for s in (0.01, 0.4)),
    *((UNIFORM, Gaussian(s), uniform_and_gaussian, 1.0, s) for s in (0.01, 0.5, 4.0)),
]


@pytest.mark.parametrize(("law", "kernel", "exact", "a", "s"), QUADRATURES)
def test_quadrature_is_the_closed_form(law: td.Distribution, kernel: Kernel, exact: Any, a: float, s: float) -> None:
    oracle = Quadrature(law)
    reach = a + 4 * s if isinstance(law, td.Uniform) else 6 * a + 6 * s
    x_t = t64(np.concatenate([np.linspace(-reach, reach, 21), [1e-4, -0.3 * s, 0.011]]))[:, None]
    log_prob, score = zip(*(exact(float(x), a, s) for x in x_t), strict=True)
    wrong = np.abs(oracle.score(x_t, kernel)[:, 0].numpy() - score)
    assert (wrong <= oracle.error(x_t, kernel).numpy()).all()
    assert (wrong * min(s, 1) <= 1e-12).all()
    np.testing.assert_allclose(oracle.log_prob(x_t, kernel), log_prob, atol=1e-12)
    low = oracle.score(x_t.float(), kernel)
    np.testing.assert_allclose(low[:, 0], oracle.score(x_t.float().double(), kernel)[:, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("law", LAWS, ids=ids)
@pytest.mark.parametrize(
    ("data", "scipy_data", "cuts"),
    [
        (td.StudentT(t64(4.0), t64(0.3), t64(0.5)), stats.t(4, 0.3, 0.5), (0.3,)),
        (td.Exponential(t64(2.0)), stats.expon(0, 0.5), (0.0,)),
        (td.Gumbel(t64(0.0), t64(0.5)), stats.gumbel_r(0, 0.5), ()),
    ],
)
def test_quadrature_of_any_two_laws_is_scipys(law: Law, data: Any, scipy_data: Any, cuts: tuple[float, ...]) -> None:
    oracle, kernel = Quadrature(data), law.kernel()
    for x_t in (-1.3, 0.41, 2.7):

        def moment(power: int, x_t: float = x_t) -> float:
            edges = sorted(
                {-3000.0, -30.0, -5.0, -1.0, 0.0, 1.0, 5.0, 30.0, 3000.0, *cuts, *(x_t - k for k in law.kinks)}
            )
            total = 0.0
            for a, b in itertools.pairwise(edges):
                ends = (b if b in [x_t - k for k in law.kinks] else a, a if b in [x_t - k for k in law.kinks] else b)
                c, e = ends

                def f(w: float, c: float = c, e: float = e) -> float:
                    x = c + (e - c) * w**4
                    with np.errstate(over="ignore", divide="ignore"):
                        return x**power * scipy_data.pdf(x) * law.scipy.pdf(x_t - x) * abs(e - c) * 4 * w**3

                total += integrate.quad(f, 0, 1, epsabs=1e-13, epsrel=1e-11, limit=300)[0]
            return total

        at = t64([[x_t]])
        p, m = moment(0), moment(1)
        if p == 0:
            assert oracle.log_prob(at, kernel).item() == -math.inf
            continue
        assert oracle.log_prob(at, kernel).item() == pytest.approx(math.log(p), abs=1e-8)
        assert oracle.denoise(at, kernel).item() == pytest.approx(m / p, rel=1e-8, abs=1e-8)
        h = 1e-4
        difference = (oracle.log_prob(at + h, kernel) - oracle.log_prob(at - h, kernel)).item() / (2 * h)
        smooth = law.name not in ("laplace", "gennorm 0.7")
        assert oracle.score(at, kernel).item() == pytest.approx(difference, rel=1e-6 if smooth else 1e-4, abs=1e-6)
        assert oracle.error(at, kernel).item() < 1e-8


def test_quadrature_finds_narrow_noise_far_from_zero() -> None:
    noise = td.MixtureSameFamily(td.Categorical(t64([0.3, 0.7])), td.Normal(t64([2.0, 5.0]), t64([0.003, 0.002])))
    oracle, kernel = Quadrature(td.Normal(t64(0.0), t64(0.7))), Additive(noise)
    x_t = t64(np.linspace(-1, 8, 19))[:, None]
    exact = GaussianMixture(t64([0.3, 0.7]), t64([[2.0], [5.0]]), t64([0.49 + 0.003**2, 0.49 + 0.002**2]))
    nothing = Gaussian(1e-9)
    torch.testing.assert_close(oracle.score(x_t, kernel), exact.score(x_t, nothing), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(oracle.log_prob(x_t, kernel), exact.log_prob(x_t, nothing), rtol=1e-9, atol=1e-9)


def test_quadrature_at_levels_of_each_row_and_with_alpha() -> None:
    oracle, x_t = Quadrature(td.Normal(t64(0.5), t64(0.7))), t64([[0.1], [-1.0], [3.0]])
    sigma, alpha = t64([0.1, 1.0, 0.5]), t64([1.0, 0.5, 0.0])
    exact = GaussianMixture(t64([1.0]), t64([[0.5]]), 0.49)
    for name in ("log_prob", "score", "denoise"):
        got, want = (getattr(o, name)(x_t, Gaussian(sigma, alpha)) for o in (oracle, exact))
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_quadrature_draws_from_its_law_and_spares_the_global_state() -> None:
    before = torch.random.get_rng_state()
    oracle = Quadrature(td.Laplace(t64(0.3), t64(0.5)))
    a, b = (oracle.sample(5000, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(a, b)
    assert stats.kstest(a[:, 0].numpy(), stats.laplace(0.3, 0.5).cdf).pvalue > 1e-5


# --- every oracle -----------------------------------------------------------------------------------------------------

IMAGE = Empirical(DATA[:12].reshape(3, 2, 2, 3).contiguous())
BY_MIXTURE = [(s, n) for s in ("diagonal", "full") for n in ("alpha", "diagonal", "full")]
BY_DATA = ("laplace", "student 5", "mixture", "gennorm 0.7")
EVERY: dict[str, tuple[Oracle, Kernel]] = {
    **{f"mixture {s}, {n}": (mixture(s), NOISE[n][0]) for s, n in BY_MIXTURE},
    "data, gaussian": (Empirical(DATA), Gaussian(0.5, 0.8)),
    **{f"data, {n}": (Empirical(DATA), BY_NAME[n].kernel()) for n in BY_DATA},
    "data, mvn": (Empirical(DATA), mvn()),
    "images, logistic": (IMAGE, BY_NAME["logistic"].kernel()),
    "images, gaussian": (IMAGE, Gaussian(0.6)),
    "quadrature, laplace": (Quadrature(td.Laplace(t64(0.3), t64(0.5))), BY_NAME["laplace"].kernel()),
    "quadrature, gaussian": (Quadrature(td.Uniform(t64(-1.0), t64(2.0))), Gaussian(0.3, 0.5)),
}
every = pytest.mark.parametrize(("oracle", "kernel"), EVERY.values(), ids=[n.replace(" ", "-") for n in EVERY])


@every
def test_the_exact_score_is_the_minimiser_of_dsm(oracle: Oracle, kernel: Kernel) -> None:
    """J_DSM(s + εf) − J_DSM(s) = ½ε²E‖f‖² for every f, that is E⟨f, s − t⟩ = 0; and so at ε = ±½ the loss is raised."""
    g, n = torch.Generator().manual_seed(11), 2500 if isinstance(oracle, Quadrature) else 8000
    x = oracle.sample(n, generator=g)
    x_t = kernel.sample(x, generator=g)
    s, t = oracle.score(x_t, kernel).flatten(1), kernel.score(x_t, x).flatten(1)
    flat, d = x_t.flatten(1), s.shape[1]
    a = torch.randn(3, d, d, generator=g, dtype=F64) / d**0.5
    for f in (
        s,
        flat,
        torch.ones_like(flat),
        flat.tanh(),
        (flat @ a[0]).sin(),
        (flat @ a[1]).cos(),
        torch.sign(flat @ a[2]),
    ):
        cross = (f * (s - t)).sum(1)
        assert abs(cross.mean().item()) < 4.5 * cross.std().item() / n**0.5
        for epsilon in (-0.5, 0.5):
            rise = epsilon * cross + 0.5 * epsilon**2 * f.square().sum(1)
            assert rise.mean().item() > -4.5 * rise.std().item() / n**0.5


@every
def test_rows_are_answered_one_by_one(oracle: Oracle, kernel: Kernel) -> None:
    x_t = kernel.sample(oracle.sample(5, generator=torch.Generator().manual_seed(2)))
    for name in ("log_prob", "score", "denoise"):
        if (
            name == "denoise"
            and isinstance(oracle, GaussianMixture)
            and kernel.gaussian_form(oracle.event_shape) is None
        ):
            continue
        together = getattr(oracle, name)(x_t, kernel)
        alone = torch.cat([getattr(oracle, name)(x_t[i : i + 1], kernel) for i in range(5)])
        torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


def test_event_shapes_are_equivalent() -> None:
    data = DATA[:12].reshape(3, 2, 2, 3)
    x_t = data + 0.1
    c = torch.rand(3, 12, generator=torch.Generator().manual_seed(0), dtype=F64)
    full = torch.diag_embed(c) + 0.3
    for kernel in (Gaussian(0.5, 0.8), Gaussian(t64([0.1, 0.2, 0.9])), BY_NAME["laplace"].kernel()):
        pairs = [(Empirical(data), Empirical(data.flatten(1)))]
        if isinstance(kernel, Gaussian):
            w = t64([1.0, 2.0, 3.0])
            given = [(0.2, 0.2), (t64([0.1, 0.2, 0.3]),) * 2, (full, full), (c.reshape(data.shape), c)]
            pairs += [(GaussianMixture(w, data, v), GaussianMixture(w, data.flatten(1), u)) for v, u in given]
        for image, flat in pairs:
            for name in ("log_prob", "score", "denoise"):
                got, want = getattr(image, name)(x_t, kernel), getattr(flat, name)(x_t.flatten(1), kernel)
                assert name == "log_prob" or got.shape == x_t.shape
                torch.testing.assert_close(got.flatten(), want.flatten())
            a, b = (o.sample(4, generator=torch.Generator().manual_seed(0)) for o in (image, flat))
            torch.testing.assert_close(a.flatten(1), b)


@every
def test_draws_are_reproducible(oracle: Oracle, kernel: Kernel) -> None:
    before = torch.random.get_rng_state()
    a, b = (oracle.sample(7, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == (7, *oracle.event_shape)
    assert torch.equal(before, torch.random.get_rng_state())
