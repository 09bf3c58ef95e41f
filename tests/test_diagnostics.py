"""J_ESM = J_DSM + C as a tool, the self-check that needs no truth, and measured numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import BY_NAME, F64, mvn, t64
from scipy import integrate, stats
from torch import distributions as td

from gradlogp import InputError, diagnostics
from gradlogp.diagnostics import Bracket, Estimate, equivalence, self_check
from gradlogp.kernels import Additive, Gaussian, Kernel
from gradlogp.models import GaussianReference, Preconditioned, ScoreFunction, ScoreModel
from gradlogp.networks import ResidualMLP
from gradlogp.objectives import DenoisingScoreMatching, FiniteDifferenceScoreMatching, ImplicitScoreMatching
from gradlogp.oracles import Empirical, GaussianMixture, Oracle, Quadrature

D = 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wavy() -> ScoreModel:
    a = t64(np.random.default_rng(3).normal(size=(D, D)))
    return ScoreFunction(lambda x_t, kernel: torch.sin(x_t @ a.T) - 0.4 * x_t + 0.2)


def network(event: tuple[int, ...] = (D,), data: torch.Tensor | None = None) -> Preconditioned:
    torch.manual_seed(1)
    net = ResidualMLP(event, width=12, depth=1)
    torch.nn.init.normal_(net.last.weight, std=0.3)
    x = torch.randn(100, *event, dtype=F64) + 1 if data is None else data
    return Preconditioned(net.double(), GaussianReference.of_data(x, 0.5))


ROOT = t64(np.random.default_rng(0).normal(size=(2, D, D)))
MIXTURE = GaussianMixture(t64([0.3, 0.7]), t64([[1.0, 0.0, 2.0], [-1.0, 0.5, 0.0]]), ROOT @ ROOT.mT / 3)
DATA = Empirical(torch.randn(20, D, generator=seeded(0), dtype=F64) + 0.5)
IMAGES = Empirical(torch.randn(6, 1, 3, 2, generator=seeded(0), dtype=F64))
GAUSSIAN, ALPHA = Gaussian(0.5), Gaussian(0.5, 0.6)
LAPLACE, STUDENT, MIXED = (BY_NAME[n].kernel() for n in ("laplace", "student 5", "mixture"))

# --- the equivalence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("oracle", "kernel"),
    [
        *((MIXTURE, k) for k in (GAUSSIAN, ALPHA, mvn())),
        *((DATA, k) for k in (GAUSSIAN, ALPHA, mvn(), LAPLACE, STUDENT, MIXED)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("model", [wavy(), network(), DATA, MIXTURE], ids=lambda m: type(m).__name__)
def test_the_two_objectives_differ_by_a_constant(model: ScoreModel, oracle: Oracle, kernel: Kernel) -> None:
    if isinstance(model, GaussianMixture) and kernel.gaussian_form((D,)) is None:
        pytest.skip("a mixture is exact under Gaussian noise only")
    e = equivalence(model, oracle, kernel, 5000, generator=seeded(0))
    assert e.holds
    assert abs(e.residual.z) < 4
    assert e.residual.value == pytest.approx(float(e.j_esm) - float(e.j_dsm) - float(e.constant), abs=1e-9)
    assert float(e.constant) < 0
    if model is oracle:
        assert float(e.j_esm) == 0
        assert abs((-float(e.constant) - float(e.j_dsm)) / math.hypot(e.j_dsm.stderr, e.constant.stderr)) < 4.5


def test_on_the_line_and_on_images() -> None:
    line = ScoreFunction(lambda x_t, kernel: torch.cos(x_t) - x_t)
    for law in (td.Laplace(t64(0.3), t64(0.5)), td.Uniform(t64(-1.0), t64(2.0))):
        for kernel in (GAUSSIAN, LAPLACE):
            assert equivalence(line, Quadrature(law), kernel, 1500, generator=seeded(1)).holds
    assert equivalence(network((1, 3, 2)), IMAGES, LAPLACE, 4000, generator=seeded(1)).holds


def test_constant_of_gaussian_data() -> None:
    """C = −½ tr(K⁻¹ − (αα S + K)⁻¹)."""
    s = ROOT[0] @ ROOT[0].T
    oracle = GaussianMixture(t64([1.0]), torch.zeros(1, D, dtype=F64), s[None])
    for kernel, alpha in ((ALPHA, 0.6), (mvn(), 1.0)):
        form = kernel.gaussian_form((D,))
        k = form.covariance if form.kind == "full" else form.covariance * torch.eye(D, dtype=F64)
        want = -0.5 * torch.trace(torch.linalg.inv(k) - torch.linalg.inv(alpha**2 * s + k)).item()
        e = equivalence(wavy(), oracle, kernel, 20_000, generator=seeded(2))
        assert abs(float(e.constant) - want) < 4.5 * e.constant.stderr


def test_constant_of_two_components() -> None:
    """I(p_s) = d/v − |m|² mmse/v², mmse = 1 − E tanh(g + √g Z), g = |m|²/v."""
    m, v = 1.5, 0.3 + 0.25
    gain = m**2 / v
    mmse = 1 - integrate.quad(lambda z: math.tanh(gain + math.sqrt(gain) * z) * stats.norm.pdf(z), -12, 12)[0]
    want = 0.5 * (1 / v - m**2 * mmse / v**2) - 0.5 / 0.25
    oracle = GaussianMixture(t64([1.0, 1.0]), t64([[m], [-m]]), 0.3)
    e = equivalence(oracle, oracle, GAUSSIAN, 40_000, generator=seeded(3))
    assert abs(float(e.constant) - want) < 4.5 * e.constant.stderr


def test_constant_of_points() -> None:
    """−C = (mean‖x_i‖² − E‖E[x | x_t]‖²)/(2σ⁴)."""
    e = equivalence(wavy(), DATA, GAUSSIAN, 20_000, generator=seeded(4))
    x_t = GAUSSIAN.sample(DATA.sample(20_000, generator=seeded(5)), generator=seeded(6))
    spread = (DATA.data.square().sum(1).mean() - DATA.denoise(x_t, GAUSSIAN).square().sum(1)) / (2 * 0.5**4)
    stderr = math.hypot(spread.std().item() / 20_000**0.5, e.constant.stderr)
    assert abs(float(e.constant) + spread.mean().item()) < 4.5 * stderr


# --- the self-check ---------------------------------------------------------------------------------------------------


class FlippedScore(Gaussian):
    def score(self, x_t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return -super().score(x_t, x)


class ForgetsAlpha(Gaussian):
    def score(self, x_t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return Gaussian(self.sigma).score(x_t, x)


class SquaresAlpha(Gaussian):
    def sample(self, x: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        return Gaussian(self.sigma, self.alpha**2).sample(x, generator=generator)


class StandardDeviationForVariance(Gaussian):
    def score(self, x_t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.sigma * super().score(x_t, x)


class FisherOfOneCoordinate(Gaussian):
    def fisher_information(self, event_shape: tuple[int, ...]) -> torch.Tensor:
        return 1 / self.sigma**2


class WrongCholesky(Additive):
    def score(self, x_t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """−L⁻¹z for −L⁻ᵀz, n = Lz."""
        lower = torch.linalg.cholesky(self.distribution.covariance_matrix)
        z = torch.linalg.solve(lower, (x_t - x - self.distribution.loc).T)
        return -torch.linalg.solve(lower, z).T


def changed(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
    """A denoising objective that a user wrote: the squares of each row, changed somehow."""

    def objective(model: ScoreModel, x: Any, kernel: Kernel, generator: torch.Generator | None = None) -> torch.Tensor:
        x_t = kernel.sample(x, generator=generator)
        return change(model.score(x_t, kernel).flatten(1), kernel.score(x_t, x).flatten(1))

    return objective


OBJECTIVES = {
    "lost half": changed(lambda psi, t: (psi - t).square().sum(1)),
    "mean for sum": changed(lambda psi, t: 0.5 * (psi - t).square().mean(1)),
    "flipped target": changed(lambda psi, t: 0.5 * (psi + t).square().sum(1)),
    "norm for square": changed(lambda psi, t: 0.5 * (psi - t).norm(dim=1)),
    "no target": changed(lambda psi, t: 0.5 * psi.square().sum(1)),
}
WRONG_KERNELS = [
    FlippedScore(0.5, 0.8),
    ForgetsAlpha(0.5, 0.8),
    SquaresAlpha(0.5, 0.6),
    StandardDeviationForVariance(0.5),
    FisherOfOneCoordinate(0.5),
    WrongCholesky(td.MultivariateNormal(t64(np.zeros(D)), t64(0.3 * np.eye(D) + 2))),
    FlippedScore(torch.linspace(0.2, 1, 20, dtype=F64), 0.8),
]
X = MIXTURE.sample(20, generator=seeded(0)) + 1


@pytest.mark.parametrize("kernel", WRONG_KERNELS, ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("model", [wavy(), network()], ids=["wavy", "network"])
def test_self_check_sees_a_wrong_kernel(kernel: Kernel, model: ScoreModel) -> None:
    check = self_check(model, X, kernel, generator=seeded(0))
    assert not check.holds
    assert abs(check.z) > 10
    assert "self-check FAILS" in str(check)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("kernel", [Gaussian(0.5, 0.8), LAPLACE, mvn()], ids=repr)
def test_self_check_sees_a_wrong_objective(objective: Any, kernel: Kernel) -> None:
    for model in (wavy(), network()):
        check = self_check(model, X, kernel, objective=objective, generator=seeded(0))
        assert not check.holds
        assert abs(check.z) > 10


def test_equivalence_sees_a_wrong_kernel_and_a_wrong_oracle() -> None:
    assert abs(equivalence(wavy(), MIXTURE, FlippedScore(0.5), 5000, generator=seeded(0)).residual.z) > 10
    assert not equivalence(wavy(), MIXTURE, ForgetsAlpha(0.5, 0.5), 5000, generator=seeded(0)).holds

    class Biased(GaussianMixture):
        def score(self, x_t: torch.Tensor, kernel: Kernel) -> torch.Tensor:
            return 0.5 * super().score(x_t, kernel)

    e = equivalence(wavy(), Biased(t64([1.0]), t64([[0.0, 1.0, 2.0]]), 0.3), GAUSSIAN, 20_000, generator=seeded(0))
    assert abs(e.residual.z) > 10
    assert "FAILS" in str(e)


PER_ROW = Gaussian(torch.linspace(0.2, 1, 20, dtype=F64), torch.linspace(0, 1, 20, dtype=F64))
RIGHT: dict[str, Callable[[int], float]] = {
    "gaussian": lambda i: self_check(wavy(), X, ALPHA, generator=seeded(i)).z,
    "rows": lambda i: self_check(wavy(), X, PER_ROW, generator=seeded(i)).z,
    "laplace": lambda i: self_check(wavy(), X, LAPLACE, generator=seeded(i)).z,
    "equivalence": lambda i: equivalence(wavy(), MIXTURE, ALPHA, 2000, generator=seeded(i)).residual.z,
}


@pytest.mark.parametrize("z_of", RIGHT.values(), ids=RIGHT)
def test_right_code_is_alarmed_at_the_stated_rate(z_of: Callable[[int], float]) -> None:
    """Over 200 seeds z is a standard normal."""
    z = np.array([z_of(1000 + i) for i in range(200)])
    assert stats.kstest(z, stats.norm.cdf).pvalue > 1e-4
    assert abs((np.abs(z) > 1.96).sum() - 10) < 4 * (200 * 0.05 * 0.95) ** 0.5
    assert np.abs(z).max() < 4.5


def test_threshold_alarms_once_in_16_000() -> None:
    assert 2 * stats.norm.sf(diagnostics.Z_THRESHOLD) == pytest.approx(1 / 15_800, rel=0.01)


@pytest.mark.parametrize("kernel", [GAUSSIAN, STUDENT, MIXED, mvn(), BY_NAME["gumbel"].kernel()], ids=repr)
@pytest.mark.parametrize("model", [wavy(), network(), DATA], ids=lambda m: type(m).__name__)
def test_self_check_passes_for_right_code(model: ScoreModel, kernel: Kernel) -> None:
    for objective in (None, DenoisingScoreMatching(2)):
        check = self_check(model, X, kernel, objective=objective, generator=seeded(1))
        assert check.holds
        assert check.half_fisher == pytest.approx(0.5 * kernel.fisher_information((D,)).item())
    assert "self-check passes" in str(check)


def test_self_check_reports_the_two_losses() -> None:
    check, x = self_check(wavy(), X, ALPHA, generator=seeded(1)), X.repeat(1000, 1)
    for objective, got in ((DenoisingScoreMatching(), check.j_dsm), (ImplicitScoreMatching(), check.j_ism)):
        rows = objective(wavy(), x, ALPHA, generator=seeded(2))
        assert abs(rows.mean().item() - float(got)) < 4.5 * math.hypot(got.stderr, rows.std().item() / len(rows) ** 0.5)
        assert got.stderr == pytest.approx(rows.std().item() / 4100**0.5, rel=0.1)
    assert float(check.residual) == pytest.approx(float(check.j_dsm) - float(check.j_ism) - check.half_fisher)


def test_above_100_coordinates_the_divergence_is_projected() -> None:
    x, model = torch.randn(50, 11, 11, generator=seeded(0)) + 1, ScoreFunction(lambda x_t, k: torch.tanh(x_t) - x_t)
    assert self_check(model, x, Gaussian(0.5, 0.8), generator=seeded(0)).holds
    for kernel in (FlippedScore(0.5, 0.8), ForgetsAlpha(0.5, 0.8)):
        assert abs(self_check(model, x, kernel, generator=seeded(0)).z) > 10
    assert abs(self_check(model, x, GAUSSIAN, objective=OBJECTIVES["mean for sum"], generator=seeded(0)).z) > 10


def test_self_check_leaves_no_gradient_and_is_reproducible() -> None:
    model, before = network(), torch.random.get_rng_state()
    a, b = (self_check(model, X, LAPLACE, generator=seeded(3)) for _ in range(2))
    assert a == b
    assert a != self_check(model, X, LAPLACE, generator=seeded(4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    e, f = (equivalence(model, DATA, LAPLACE, 500, generator=seeded(3)) for _ in range(2))
    assert e == f
    assert torch.equal(before, torch.random.get_rng_state())


def test_many_rows_are_taken_in_parts_with_fresh_noise() -> None:
    """More rows than fit at a time: the noise of the parts differs."""
    rows = Empirical(torch.zeros(1, 1, dtype=F64)).sample(9000)
    constant = ScoreFunction(lambda x_t, kernel: torch.zeros_like(x_t))
    check = self_check(constant, rows, Gaussian(1.0), generator=seeded(0))
    assert check.residual.stderr == pytest.approx(0.5**0.5 / 9000**0.5, rel=0.1)
    seen: list[torch.Tensor] = []
    spy = ScoreFunction(lambda x_t, kernel: (seen.append(x_t.detach()), 0 * x_t)[1])
    self_check(spy, rows, Gaussian(1.0), generator=seeded(0))
    assert len({round(float(v.flatten()[0]), 9) for v in seen}) == 3  # 4096 + 4096 + 808, each seen by both losses


# --- measured numbers -------------------------------------------------------------------------------------------------


def test_an_estimate_is_a_mean_and_its_standard_error() -> None:
    v = torch.randn(200, generator=seeded(0))
    e = Estimate.mean_of(v)
    assert float(e) == pytest.approx(v.numpy().astype(float).mean())
    assert e.stderr == pytest.approx(stats.sem(v.numpy().astype(float)))
    assert e.z == pytest.approx(e.value / e.stderr)
    assert Estimate.mean_of(v, 3.0).stderr == pytest.approx(math.hypot(e.stderr, 3.0))
    assert Estimate(0.0, 0.0).z == 0
    assert Estimate(-1.0, 0.0).z == -math.inf
    assert Estimate(2.0, 0.0).z == math.inf
    assert Estimate(-2.0, 0.5).z == -4
    assert str(Estimate(1.23456, 0.0123)) == "1.235 ± 0.01"
    assert str(Bracket(Estimate(1.0, 0.1), Estimate(2.0, 0.2))) == "between 1 ± 0.1 and 2 ± 0.2"


def test_the_verdict_is_at_four_standard_errors() -> None:
    e = Estimate(0.0, 1.0)
    for value, holds in ((3.99, True), (-3.99, True), (4.01, False), (-4.01, False), (math.nan, False)):
        assert diagnostics.Equivalence(e, e, e, Estimate(value, 1.0)).holds is holds
        assert diagnostics.SelfCheck(e, e, 1.0, Estimate(value, 1.0)).holds is holds


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Estimate.mean_of(torch.ones(1)), "standard error: got 1 value, want at least 2"),
        (lambda: equivalence(wavy(), DATA, GAUSSIAN, 1), "standard error: got 1 value, want at least 2"),
        (lambda: equivalence(wavy(), DATA, GAUSSIAN, 0), "n: got 0, want at least 1"),
        (lambda: equivalence(wavy(), DATA, Gaussian(torch.ones(20)), 20), "values, 1 to 1>), want one level for all"),
        (lambda: equivalence(wavy(), MIXTURE, LAPLACE, 20), "GaussianMixture: needs a Gaussian kernel"),
        (lambda: self_check(wavy(), X * math.nan, GAUSSIAN), "x: row 0 holds NaN or infinity"),
        (lambda: self_check(wavy(), X.int(), GAUSSIAN), "x: got dtype torch.int32, want a floating dtype"),
        (lambda: self_check(wavy(), X.numpy(), GAUSSIAN), "x: got ndarray, want a torch.Tensor"),
        (lambda: self_check(wavy(), X[0], GAUSSIAN), "x: got shape (3,), want (B, *event)"),
        (lambda: self_check(wavy(), X, Gaussian(torch.ones(30))), "noise level: got (30,) values for 20 rows"),
        (lambda: self_check(wavy(), X, Gaussian(torch.ones(3))), "noise level: got (3,) values for 20 rows"),
    ],
)
def test_bad_input_is_named_on_one_line(call: Any, message: str) -> None:
    with pytest.raises(InputError) as e:
        call()
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_any_objective_may_be_checked_by_its_own_constant() -> None:
    """An implicit loss is not a denoising one: it lacks ½ I(q), and the check says by how much."""
    check = self_check(wavy(), X, GAUSSIAN, objective=FiniteDifferenceScoreMatching(1e-3), generator=seeded(0))
    assert abs(float(check.residual) + check.half_fisher) < 4.5 * check.residual.stderr


def test_a_loss_that_does_not_vary_is_no_alarm() -> None:
    model = ScoreFunction(lambda x_t, _: torch.zeros_like(x_t))
    check = self_check(model, torch.randn(100, 2), Additive(td.Laplace(0.0, 0.3)))
    assert check.holds
