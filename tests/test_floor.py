"""The floor −C = min_ψ J_DSM against closed forms, SciPy's quadrature, and brute force on the same draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import BY_NAME, F64, LAWS, MixtureOfNormals, mvn, t64
from scipy import integrate, stats
from torch import distributions as td

from gradlogp import InputError
from gradlogp.diagnostics import floor, gaussian_floor
from gradlogp.kernels import Additive, Gaussian, Kernel
from gradlogp.models import GaussianReference
from gradlogp.oracles import Empirical, GaussianMixture, Quadrature

D = 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Gaussian data ----------------------------------------------------------------------------------------------------

ROOT = np.random.default_rng(0).normal(size=(D, D))
COVARIANCES: dict[str, Any] = {
    "isotropic": 0.7,
    "diagonal": np.array([0.01, 1.0, 25.0]),
    "full": ROOT @ ROOT.T,
    "rank one": np.outer(ROOT[0], ROOT[0]),
}
KERNELS: dict[str, tuple[Kernel, float, Any]] = {
    "isotropic": (Gaussian(0.3), 1.0, 0.3**2 * np.eye(D)),
    "alpha": (Gaussian(0.3, 0.4), 0.4, 0.3**2 * np.eye(D)),
    "normal": (Additive(td.Normal(t64(0.2), t64(0.3))), 1.0, 0.3**2 * np.eye(D)),
    "diagonal": (Additive(td.Normal(t64([0.0] * D), t64([0.1, 0.5, 2.0]))), 1.0, np.diag([0.01, 0.25, 4.0])),
    "full": (mvn(), 1.0, None),
}


def noise_covariance(name: str) -> np.ndarray:
    kernel, _, k = KERNELS[name]
    return np.asarray(kernel.distribution.covariance_matrix if k is None else k)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("data", COVARIANCES)
def test_of_gaussian_data_is_half_the_difference_of_the_precisions(data: str, name: str) -> None:
    kernel, alpha, _ = KERNELS[name]
    k, s = noise_covariance(name), COVARIANCES[data]
    covariance = s * np.eye(D) if np.ndim(s) == 0 else np.diag(s) if np.ndim(s) == 1 else s
    want = 0.5 * (np.trace(np.linalg.inv(k)) - np.trace(np.linalg.inv(alpha**2 * covariance + k)))
    found = floor(GaussianMixture(t64([1.0]), t64([[1.0, 2.0, 3.0]]), t64(covariance)[None]), kernel)
    assert found.value == pytest.approx(want, rel=1e-12)
    assert found.stderr < 1e-12 * want
    reference = GaussianReference.of_moments(torch.zeros(D, dtype=F64), t64(covariance))
    assert gaussian_floor(reference, kernel) == pytest.approx(want, rel=1e-12)


def test_at_large_noise_nothing_cancels() -> None:
    """½λ/(σ²(λ + σ²)), where the difference of the precisions has lost all its digits."""
    found = floor(GaussianMixture(t64([1.0]), t64([[0.0]]), 1e-4), Gaussian(1e4))
    assert found.value == pytest.approx(0.5 * 1e-4 / (1e8 * (1e-4 + 1e8)), rel=1e-13)


def test_single_precision_oracles_lose_nothing() -> None:
    s = torch.from_numpy(ROOT @ ROOT.T).float()
    found = floor(GaussianMixture(torch.ones(1), torch.zeros(1, D), s[None]), Gaussian(0.01))
    values = np.linalg.eigvalsh(s.double().numpy())
    assert found.value == pytest.approx(0.5 * (values / (1e-4 * (values + 1e-4))).sum(), rel=1e-9)


def test_of_one_point_is_zero() -> None:
    found = floor(GaussianMixture(t64([1.0]), t64([[0.3, 2.0]]), 0.0), Gaussian(0.5))
    assert (found.value, found.stderr) == (0.0, 0.0)


def test_the_best_affine_score_bounds_it() -> None:
    oracle = GaussianMixture(t64([0.4, 0.6]), t64([[-1.0, 0.0], [1.0, 2.0]]), t64([0.1, 0.4]))
    reference = GaussianReference.of_moments(oracle.mean, oracle.covariance)
    for sigma in (0.1, 1.0, 10.0):
        assert 0 < floor(oracle, Gaussian(sigma)).value < gaussian_floor(reference, Gaussian(sigma))


# --- by cubature ------------------------------------------------------------------------------------------------------


def fisher(pdf: Callable[[float], float], dpdf: Callable[[float], float], points: list[float]) -> float:
    """∫ (p′)²/p between consecutive points."""
    total = 0.0
    for a, b in itertools.pairwise(points):
        total += integrate.quad(
            lambda x: dpdf(x) ** 2 / pdf(x) if pdf(x) > 1e-290 else 0.0, a, b, epsabs=0, epsrel=1e-12, limit=200
        )[0]
    return total


W, M, S = [0.3, 0.7], [-1.0, 1.5], [0.5, 0.8]


@pytest.mark.parametrize("alpha", [1.0, 0.6])
@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.5, 1.0, 5.0])
def test_of_a_mixture_on_the_line(sigma: float, alpha: float) -> None:
    scales = [math.hypot(alpha * s, sigma) for s in S]
    centres = [alpha * m for m in M]
    noisy = MixtureOfNormals(W, centres, scales)

    def slope(x: float) -> float:
        parts = zip(W, centres, scales, strict=True)
        return float(sum(-w * (x - m) / s**2 * stats.norm.pdf(x, m, s) for w, m, s in parts))

    points = sorted(m + k * s for m, s in zip(centres, scales, strict=True) for k in (-12, -4, 0, 4, 12))
    information = fisher(noisy.pdf, slope, points)
    want = 0.5 * (1 / sigma**2 - information)
    oracle = GaussianMixture(t64(W), t64(M)[:, None], t64(S) ** 2)
    found = floor(oracle, Gaussian(sigma, alpha))
    assert found.value == pytest.approx(want, rel=1e-8)
    assert abs(found.value - want) < 10 * found.stderr + 1e-9 * want


def two_bumps(d: int, m: float, s: float) -> GaussianMixture:
    centre = torch.full((d,), m / math.sqrt(d), dtype=F64)
    return GaussianMixture(t64([0.5, 0.5]), torch.stack([centre, -centre]), s**2)


def floor_of_two_bumps(d: int, m: float, s: float, sigma: float) -> float:
    """½(d/σ² − I), I = d/v − |m|²·mmse/v², mmse = 1 − E tanh(g + √g Z), v = s² + σ², g = |m|²/v."""
    v = s**2 + sigma**2
    g = m * m / v
    mean = integrate.quad(
        lambda z: math.tanh(g + math.sqrt(g) * z) * stats.norm.pdf(z), -12, 12, epsrel=1e-13, limit=200
    )[0]
    return 0.5 * (d / sigma**2 - d / v + m * m * (1 - mean) / v**2)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("d", [1, 2])
def test_of_two_bumps_is_an_integral_on_the_line(d: int, sigma: float) -> None:
    found = floor(two_bumps(d, 1.3, 0.5), Gaussian(sigma))
    assert found.value == pytest.approx(floor_of_two_bumps(d, 1.3, 0.5, sigma), rel=1e-8)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_in_many_dimensions_draws_agree(sigma: float) -> None:
    found = floor(two_bumps(8, 1.3, 0.5), Gaussian(sigma), generator=seeded(1))
    assert found.stderr > 0
    assert abs(found.value - floor_of_two_bumps(8, 1.3, 0.5, sigma)) < 4 * found.stderr


@pytest.mark.parametrize("sigma", [0.4, 1.0])
def test_of_atoms_in_the_plane(sigma: float) -> None:
    """The coordinates of a square of equal atoms are independent: each has a half of the floor."""
    square = GaussianMixture(torch.ones(4, dtype=F64), t64([[0, 0], [0, 1], [1, 0], [1.0, 1]]), 0.0)
    line = floor_of_two_bumps(1, 0.5, 0.0, sigma)
    assert floor(square, Gaussian(sigma)).value == pytest.approx(2 * line, rel=1e-7)


def test_images_are_flat_rows() -> None:
    flat = two_bumps(2, 1.3, 0.5)
    image = GaussianMixture(t64([0.5, 0.5]), flat.means.reshape(2, 1, 2, 1), 0.25)
    assert floor(image, Gaussian(0.4)) == floor(flat, Gaussian(0.4))


@pytest.mark.parametrize("centre", [0.0, 1000.0])
@pytest.mark.parametrize("law", ["laplace", "normal"])
def test_of_a_law_on_the_line_wherever_it_lies(law: str, centre: float) -> None:
    """Data Laplace(b₀) with Laplace(b) noise: (b₀e^{−|x|/b₀} − be^{−|x|/b})/(2(b₀² − b²)), or Gaussian noise."""
    b0, b = 0.8, 0.3
    oracle = Quadrature(td.Laplace(t64(centre), t64(b0)))
    if law == "laplace":
        kernel: Kernel = Additive(td.Laplace(t64(0.0), t64(b)))
        c = 1 / (2 * (b0**2 - b**2))
        pdf = lambda x: c * (b0 * math.exp(-x / b0) - b * math.exp(-x / b))  # noqa: E731
        dpdf = lambda x: c * (math.exp(-x / b) - math.exp(-x / b0))  # noqa: E731
        want = 0.5 * (1 / b**2 - 2 * fisher(pdf, dpdf, [1e-300, 1.0, 10.0, 40.0]))
    else:
        kernel = Gaussian(b)

        def pdf(x: float) -> float:
            return 0.5 * (side(x) + side(-x)) / b0

        def dpdf(x: float) -> float:
            return 0.5 * (side(-x) - side(x)) / b0**2

        def side(x: float) -> float:  # e^{−x/b₀ + b²/2b₀²} Φ(x/b − b/b₀)
            return float(np.exp(-x / b0 + b * b / (2 * b0 * b0) + stats.norm.logcdf(x / b - b / b0)))

        want = 0.5 * (1 / b**2 - 2 * fisher(pdf, dpdf, [0.0, 1.0, 5.0, 30.0]))
    found = floor(oracle, kernel)
    assert found.value == pytest.approx(want, rel=1e-7)
    assert found.stderr < 1e-6 * want


# --- of a data set ----------------------------------------------------------------------------------------------------

DATA = torch.randn(17, D, generator=seeded(0), dtype=F64) + 5


@pytest.mark.parametrize(
    "kernel",
    [Gaussian(0.5), Gaussian(0.5, 0.6), Gaussian(0.01), mvn(), *(BY_NAME[law.name].kernel() for law in LAWS[2:6])],
    ids=repr,
)
def test_of_a_data_set_is_brute_force_on_the_same_draws(kernel: Kernel) -> None:
    found = floor(Empirical(DATA), kernel, n=400, generator=seeded(3))
    g = seeded(3)
    x_t = kernel.sample(Empirical(DATA).sample(400, generator=g), generator=g)
    each = []
    for row in x_t:
        here = row.expand_as(DATA)
        log_k, t = kernel.log_prob(here, DATA).numpy(), kernel.score(here, DATA).numpy()
        w = np.exp(log_k - log_k.max())
        w /= w.sum()
        each.append(0.5 * (w[:, None] * (t - w @ t) ** 2).sum())
    assert found.value == pytest.approx(np.mean(each), rel=1e-10, abs=1e-300)
    assert found.stderr == pytest.approx(np.std(each, ddof=1) / 20, rel=1e-9, abs=1e-300)


def test_of_atoms_both_ways() -> None:
    atoms = t64([[0.0, 0.0], [0.0, 1.0], [1.0, 0.5]])
    exact = floor(GaussianMixture(torch.ones(3, dtype=F64), atoms, 0.0), Gaussian(0.5))
    drawn = floor(Empirical(atoms), Gaussian(0.5), generator=seeded(0))
    assert abs(drawn.value - exact.value) < 4 * drawn.stderr


def test_is_the_loss_of_the_true_score() -> None:
    kernel = Additive(td.MultivariateNormal(t64([0.1, -0.2]), t64([[0.5, 0.2], [0.2, 0.4]])))
    oracle, g = two_bumps(2, 1.0, 0.3), seeded(5)
    x = oracle.sample(40_000, generator=g)
    x_t = kernel.sample(x, generator=g)
    loss = 0.5 * (oracle.score(x_t, kernel) - kernel.score(x_t, x)).square().sum(1)
    assert abs(loss.mean().item() - floor(oracle, kernel).value) < 4 * loss.std().item() / 200


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    one = GaussianMixture(t64([1.0]), t64([[0.0]]), 1.0)
    with pytest.raises(InputError, match="one level for all rows"):
        floor(one, Gaussian(t64([0.1, 0.2])))
    with pytest.raises(InputError, match="needs a Gaussian kernel"):
        floor(one, Additive(td.Laplace(t64(0.0), t64(1.0))))
    with pytest.raises(InputError, match="n: got 0"):
        floor(Empirical(DATA), Gaussian(0.5), n=0)
