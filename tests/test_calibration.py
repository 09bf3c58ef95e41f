"""Calibration of a score's size, and its curl."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from cases import BY_NAME, F64, mvn, t64
from torch import distributions as td

from gradlogp import InputError
from gradlogp.diagnostics import Estimate, calibration, curl
from gradlogp.kernels import Additive, Gaussian, Kernel
from gradlogp.models import GaussianReference, MarginalReference, Preconditioned, ScoreFunction, ScoreModel
from gradlogp.networks import ResidualMLP
from gradlogp.oracles import Empirical, GaussianMixture

LADDER = [Gaussian(0.1), Gaussian(0.4, 0.6), Gaussian(1.5)]
LAPLACE = BY_NAME["laplace"].kernel()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(d: int) -> GaussianMixture:
    root = torch.randn(3, d, d, generator=seeded(0), dtype=F64) / d**0.5
    return GaussianMixture(torch.ones(3), torch.randn(3, d, generator=seeded(1), dtype=F64), root @ root.mT)


def affine(a: torch.Tensor, c: torch.Tensor | float = 0.0) -> ScoreModel:
    return ScoreFunction(lambda x_t, k: x_t @ a.T + c)


def network(event: tuple[int, ...], reference: Any = GaussianReference) -> Preconditioned:
    torch.manual_seed(1)
    net = ResidualMLP(event, width=12, depth=1)
    torch.nn.init.normal_(net.last.weight, std=0.3)
    x = torch.randn(100, *event, dtype=F64, generator=seeded(5)) + 1
    return Preconditioned(net.double(), reference.of_data(x)).double().eval()


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 3, 9])
@pytest.mark.parametrize("seed", range(3))
def test_the_truth_is_calibrated(d: int, seed: int) -> None:
    """Exact and projected traces, and alpha other than 1."""
    truth = mixture(d)
    found = calibration(truth, truth.sample(3000, generator=seeded(seed)), LADDER, generator=seeded(seed))
    for level in found.levels:
        for value in (level.residual, level.slope):
            assert abs(value.value - 1) < 4 * value.stderr
        assert level.residual.stderr < 0.1


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 2.0])
def test_a_factor_on_the_score_shows_as_its_inverse(factor: float) -> None:
    """For c·s: slope = 1/c, residual = 1 + c(c − 1)·σ²E‖s‖²/(d + cσ²E tr ∇s), and E‖s‖² = −E tr ∇s."""
    truth = mixture(3)
    x = truth.sample(4000, generator=seeded(2))
    model = ScoreFunction(lambda x_t, k: factor * truth.score(x_t, k))
    for level in calibration(model, x, LADDER, max_rows=4000, generator=seeded(3)).levels:
        assert abs(level.slope.value - 1 / factor) < 4 * level.slope.stderr
        x_t = level.kernel.sample(truth.sample(20_000, generator=seeded(4)), generator=seeded(5))
        size = level.sigma**2 * truth.score(x_t, level.kernel).square().sum(1).mean().item()
        want = 1 + factor * (factor - 1) * size / (3 - factor * size)
        if 3 - factor * size > 0.3:
            assert abs(level.residual.value - want) < 4.5 * level.residual.stderr + 0.02 * abs(want - 1)


@pytest.mark.parametrize("kernel", LADDER, ids=repr)
@pytest.mark.parametrize("d", [3, 7])
def test_an_affine_score_has_closed_forms(kernel: Gaussian, d: int) -> None:
    """ψ = A x_t + c: with m, S the moments of the rows and V = α²S + σ²I,  E‖ψ‖² = ‖αAm + c‖² + tr AVAᵀ,
    E⟨ψ, t⟩ = −tr A, E‖x − D‖² = σ⁴(d/σ² + E‖ψ‖² + 2 tr A)/α²."""
    a = t64(np.random.default_rng(0).normal(size=(d, d))) / 2 - 0.5 * torch.eye(d, dtype=F64)
    c = t64(np.random.default_rng(1).normal(size=d))
    x = torch.randn(400, d, generator=seeded(0), dtype=F64) ** 3 / 3
    alpha, sigma = kernel.alpha.item(), kernel.sigma.item()
    v = alpha**2 * torch.cov(x.T, correction=0) + sigma**2 * torch.eye(d, dtype=F64)
    squared = ((alpha * a @ x.mean(0) + c).square().sum() + (a @ v @ a.T).trace()).item()
    trace = a.trace().item()
    (level,) = calibration(affine(a, c), x, kernel, n_noise=40, generator=seeded(1)).levels
    assert abs(level.slope.value + trace / squared) < 4 * level.slope.stderr
    want = (d + sigma**2 * (squared + 2 * trace)) / (d + sigma**2 * trace)
    assert abs(level.residual.value - want) < 4 * level.residual.stderr
    assert level.residual.value - 1 == pytest.approx(
        (1 - level.slope.value) * sigma**2 * squared / (d + sigma**2 * trace), abs=6 * level.residual.stderr
    )


@pytest.mark.parametrize(("d", "n_noise"), [(2, 1), (6, 3)])
def test_standard_errors_of_calibration_are_the_spread_over_seeds(d: int, n_noise: int) -> None:
    truth = mixture(d)
    model = ScoreFunction(lambda x_t, k: 0.7 * truth.score(x_t, k))
    found = [
        calibration(model, truth.sample(80, generator=seeded(s)), Gaussian(0.5), n_noise=n_noise, generator=seeded(s))
        for s in range(200)
    ]
    for name in ("residual", "slope"):
        values = [getattr(f.levels[0], name) for f in found]
        v, e = np.array([float(u) for u in values]), np.array([u.stderr for u in values])
        assert 0.85 < e.mean() / v.std() < 1.15, name


def test_additive_normal_noise_is_the_gaussian_kernel() -> None:
    """With a shift: t and D know it."""
    truth = mixture(2)
    x = truth.sample(2000, generator=seeded(0))
    kernel = Additive(td.Normal(t64(0.3), t64(0.5)))
    (level,) = calibration(truth, x, kernel, generator=seeded(1), max_rows=2000).levels
    for value in (level.residual, level.slope):
        assert abs(value.value - 1) < 4 * value.stderr
        assert value.stderr < 0.1


def test_a_score_of_zero_has_no_slope() -> None:
    zero = ScoreFunction(lambda x_t, k: torch.zeros_like(x_t))
    (level,) = calibration(zero, torch.randn(50, 3, generator=seeded(0)), Gaussian(0.5), generator=seeded(0)).levels
    assert level.slope == Estimate(0.0, float("inf"))
    assert abs(level.residual.value - 1) < 4 * level.residual.stderr


# --- curl -------------------------------------------------------------------------------------------------------------


def antisymmetric_share(a: torch.Tensor) -> float:
    return (((a - a.T) / 2).square().sum() / a.square().sum()).item()


@pytest.mark.parametrize("kernel", [Gaussian(0.5), Gaussian(0.5, 0.6), LAPLACE, mvn()], ids=repr)
@pytest.mark.parametrize("tied", [True, False])
def test_curl_of_a_linear_field(kernel: Kernel, tied: bool) -> None:
    """‖(A − Aᵀ)/2‖²/‖A‖² in Frobenius norm; 0 for A = WᵀW − I, not for A = UᵀW − I."""
    w, u = t64(np.random.default_rng(0).normal(size=(2, 4, 3)))
    a = (w.T @ w if tied else u.T @ w) - torch.eye(3, dtype=F64)
    x = torch.randn(200, 3, generator=seeded(0), dtype=F64)
    (level,) = curl(affine(a, 0.4), x, kernel, n_projections=50, generator=seeded(1)).levels
    want = antisymmetric_share(a)
    assert (want == 0) == tied
    assert abs(level.value.value - want) <= 4 * level.value.stderr + 1e-30
    assert level.value.stderr < 0.01
    assert 0 <= level.value.value <= 1


def test_curl_of_a_rotation_and_of_a_spiral() -> None:
    """A rotation has 1; −I + rI_⊥ in the plane has r²/(1 + r²), for each sign of v."""
    turn = t64([[0.0, 1.0], [-1.0, 0.0]])
    x = torch.randn(30, 2, generator=seeded(0), dtype=F64)
    for r in (0.2, 1.0, 3.0):
        for a, want in ((r * turn, 1.0), (r * turn - torch.eye(2, dtype=F64), r**2 / (1 + r**2))):
            (level,) = curl(affine(a), x, Gaussian(0.5), generator=seeded(1)).levels
            assert level.value.value == pytest.approx(want, abs=1e-12)


def test_curl_of_a_curved_field_against_its_jacobian() -> None:
    """The Jacobian of a network by autograd, row by row."""
    model, kernel = network((4,)), Gaussian(0.7)
    x = torch.randn(60, 4, generator=seeded(0), dtype=F64)
    (level,) = curl(model, x, kernel, n_projections=200, generator=seeded(1)).levels
    x_t = kernel.sample(x.repeat(10, 1), generator=seeded(2))
    jacobians = torch.func.vmap(torch.func.jacrev(lambda row: model.score(row[None], kernel)[0]))(x_t)
    odd, whole = ((jacobians - jacobians.mT) / 2).square().sum((1, 2)), jacobians.square().sum((1, 2))
    share = (odd.mean() / whole.mean()).item()
    independent = ((odd - share * whole) / whole.mean()).std().item() / len(x_t) ** 0.5
    assert abs(level.value.value - share) < 4 * np.hypot(level.value.stderr, independent)
    assert level.value.value > 5 * level.value.stderr


@pytest.mark.parametrize("kernel", [Gaussian(0.3), Gaussian(0.5, 0.6), LAPLACE, mvn()], ids=repr)
def test_true_scores_have_no_curl(kernel: Kernel) -> None:
    x = torch.randn(40, 3, generator=seeded(0), dtype=F64)
    truths: list[ScoreModel] = [Empirical(x), GaussianReference.of_data(x)]
    if kernel.gaussian_form((3,)) is not None:
        truths.append(mixture(3))
    for model in truths:
        (level,) = curl(model, x, kernel, generator=seeded(1)).levels
        assert 0 <= level.value.value < 1e-20
    (odd,) = curl(network((3,)), x, kernel, generator=seeded(1)).levels
    assert odd.value.value > 1e-6


def test_curl_and_calibration_take_any_event_and_an_outer_no_grad() -> None:
    x = torch.randn(40, 1, 2, 3, generator=seeded(0), dtype=F64)
    for reference in (GaussianReference, MarginalReference):
        model = network((1, 2, 3), reference)
        outside = [f(model, x, LADDER, generator=seeded(1)) for f in (curl, calibration)]
        with torch.no_grad():
            inside = [f(model, x, LADDER, generator=seeded(1)) for f in (curl, calibration)]
        assert inside == outside
        assert all(p.grad is None for p in model.parameters())


def test_a_constant_score_has_no_curl_and_one_without_gradient_is_refused() -> None:
    x = torch.randn(20, 3, generator=seeded(0))
    for constant in (lambda x_t, k: torch.ones_like(x_t), lambda x_t, k: 0 * x_t):
        assert curl(ScoreFunction(constant), x, Gaussian(0.5)).levels[0].value == Estimate(0.0, 0.0)
    cut = ScoreFunction(torch.no_grad()(lambda x_t, k: -x_t))
    for check in (curl, calibration):
        with pytest.raises(InputError, match="got no gradient in x_t"):
            check(cut, x, Gaussian(0.5))


def test_the_curl_s_standard_error_is_the_spread_over_seeds() -> None:
    model = network((4,))
    found = [
        curl(model, torch.randn(60, 4, generator=seeded(s), dtype=F64), Gaussian(0.7), generator=seeded(s))
        .levels[0]
        .value
        for s in range(200)
    ]
    v, e = np.array([float(f) for f in found]), np.array([f.stderr for f in found])
    assert 0.85 < e.mean() / v.std() < 1.15


# --- both -------------------------------------------------------------------------------------------------------------


def test_they_say_what_they_found() -> None:
    x = torch.randn(40, 3, generator=seeded(0), dtype=F64)
    found, turned = (f(network((3,)), x, LADDER, generator=seeded(0)) for f in (calibration, curl))
    for text in (str(found), str(turned)):
        assert "\n" not in text
        assert "at σ = 0.4" in text
    assert found.to_frame().columns == ["kernel", "sigma", "residual", "residual_stderr", "slope", "slope_stderr"]
    assert turned.to_frame()["value"].to_list() == [float(level.value) for level in turned.levels]
    assert turned.to_frame()["kernel"].to_list()[1] == "Gaussian(sigma=0.4, alpha=0.6)"


def test_they_are_quick() -> None:
    """Twelve levels at 64 coordinates (0.27 and 0.2 s on one core of a server)."""
    model = Preconditioned(ResidualMLP((64,)), GaussianReference.of_data(torch.randn(500, 64))).eval()
    kernels = [Gaussian(float(s)) for s in torch.logspace(-2, 0.6, 12)]
    start = time.process_time()
    for f in (calibration, curl):
        f(model, torch.randn(360, 64), kernels)
    assert time.process_time() - start < 5


X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[:1], Gaussian(0.5)), "x: got 1 row, want at least 2"),
        ((X * torch.nan, Gaussian(0.5)), "x: row 0 holds NaN"),
        ((X.numpy(), Gaussian(0.5)), "x: got ndarray"),
        ((X, ()), "kernels: got none"),
        ((X, "Gaussian"), "kernels: got"),
        ((X, Gaussian(torch.ones(20))), "one level for all rows"),
    ],
)
def test_bad_input_is_refused_on_one_line(arguments: Any, message: str) -> None:
    for check in (calibration, curl):
        with pytest.raises(InputError, match=message) as caught:
            check(GaussianReference.of_data(X), *arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("as_a_user")
def test_other_bad_input_is_refused() -> None:
    model = GaussianReference.of_data(X)
    for kernel, message in ((LAPLACE, "Gaussian"), (mvn(), "isotropic"), (Gaussian(1.0, 0.0), "alpha > 0")):
        with pytest.raises(InputError, match=message):
            calibration(model, X, [Gaussian(0.5), kernel])
    with pytest.raises(InputError, match="n_noise"):
        calibration(model, X, Gaussian(0.5), n_noise=0)
    with pytest.raises(InputError, match="n_projections"):
        curl(model, X, Gaussian(0.5), n_projections=0)
    with pytest.raises(InputError, match="NaN or infinity"):
        curl(ScoreFunction(lambda x_t, k: x_t / 0), X, Gaussian(0.5))
