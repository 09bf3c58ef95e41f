"""How far a score is from the true one: against the truth, brute force on the same draws, and many seeds."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from cases import BY_NAME, F64, mvn, t64

from gradlogp import InputError
from gradlogp.diagnostics import Estimate, ScoreError, bracket, score_error
from gradlogp.diagnostics.bracket import Sides, measure
from gradlogp.diagnostics.comparisons import Comparisons, best_weights
from gradlogp.diagnostics.estimates import Jackknifed
from gradlogp.diagnostics.references import Draws, Posterior, Rows, without_each
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import GaussianReference, ScoreFunction, ScoreModel
from gradlogp.oracles import Empirical, GaussianMixture

LAPLACE, STUDENT, ONE_SIDED = (BY_NAME[n].kernel() for n in ("laplace", "student 5", "lognormal"))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def times(c: float, model: ScoreModel) -> ScoreModel:
    return ScoreFunction(lambda x_t, kernel: c * model.score(x_t, kernel))


def plus(c: float, model: ScoreModel) -> ScoreModel:
    return ScoreFunction(lambda x_t, kernel: model.score(x_t, kernel) + c)


def affine(a: float, c: float) -> ScoreModel:
    return ScoreFunction(lambda x_t, kernel: a * x_t + c)


WAVY = ScoreFunction(lambda x_t, kernel: torch.sin(3 * x_t) - 0.4 * x_t.flip(-1) + 0.2)


def quick(law: GaussianMixture) -> Empirical:
    """A truth whose floor is not integrated: 300 atoms, the rows of X among them."""
    return Empirical(torch.cat([X, law.sample(220, generator=seeded(8))]))


ZERO, CONSTANT, WILD = affine(0.0, 0.0), affine(0.0, 3.0), affine(5.0, 0.0)
MIXTURE = GaussianMixture(t64([0.3, 0.7]), t64([[1.0, 0.0], [-1.0, 0.5]]), t64([0.1, 0.4]))
COVARIANCE = t64([[1.0, 0.6], [0.6, 0.5]])
X = MIXTURE.sample(80, generator=seeded(0))
OTHERS = MIXTURE.sample(300, generator=seeded(1))
TRUTH = quick(MIXTURE)
NORMAL = GaussianMixture(t64([1.0]), t64([[0.5, -1.0]]), COVARIANCE[None])


# --- the truth is known -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("c", [0.0, 0.8, 1.3, -1.0])
def test_a_scaled_score_of_gaussian_data(c: float, sigma: float) -> None:
    """½(c − 1)² tr(Σ + σ²)⁻¹, and R² = 1 − (c − 1)²."""
    x = NORMAL.sample(400, generator=seeded(0))
    level = score_error(times(c, NORMAL), NORMAL, x, Gaussian(sigma)).levels[0]
    size = 0.5 * np.trace(np.linalg.inv(COVARIANCE.numpy() + sigma**2 * np.eye(2)))
    assert abs(float(level.error.lower) - (c - 1) ** 2 * size) < 4 * level.error.lower.stderr + 1e-12
    assert abs(float(level.size.lower) - size) < 4 * level.size.lower.stderr
    assert float(level.r2.lower) == pytest.approx(1 - (c - 1) ** 2, rel=1e-12, abs=1e-12)
    assert level.r2.lower.stderr < 1e-12
    assert level.error.lower == level.error.upper
    assert level.verdict == "exact"
    assert level.estimate is None
    low, high = level.interval
    assert 0 <= low <= (c - 1) ** 2 * size <= high + 1e-15
    floor = 0.5 * (2 / sigma**2 - 2 * size)
    assert float(level.floor.lower) == pytest.approx(floor, rel=1e-12)
    gap = float(level.dsm) - floor - (c - 1) ** 2 * size
    assert abs(gap) < 4 * level.dsm.stderr


@pytest.mark.parametrize("kernel", [LAPLACE, Gaussian(0.4, 0.7), mvn()], ids=repr)
def test_a_data_set_is_its_own_truth(kernel: Kernel) -> None:
    """J_DSM = J_ESM + floor where the rows of the test are all the rows there are."""
    x = torch.randn(30, 3, generator=seeded(0), dtype=F64)
    level = score_error(affine(-0.5, 0.1), Empirical(x), x, kernel).levels[0]
    assert level.verdict == "exact"
    least, dsm, error = (float(v) for v in (level.floor.lower, level.dsm, level.error.lower))
    assert abs(dsm - error - least) < 4 * math.hypot(level.dsm.stderr, level.floor.lower.stderr)
    assert float(score_error(Empirical(x), Empirical(x), x, kernel).levels[0].error.upper) < 1e-16


# --- brute force on the same draws ------------------------------------------------------------------------------------

KERNELS: list[Kernel] = [Gaussian(0.3), Gaussian(0.6, 0.5), LAPLACE, STUDENT]


class Captured:
    """Both sides at one level of a small problem, with the draws that they come from."""

    def __init__(self, kernel: Kernel, event: tuple[int, ...] = (2,), n: int = 25, n_noise: int = 4) -> None:
        g = seeded(4)
        x = torch.randn(n, *event, generator=g, dtype=F64) + torch.randint(0, 2, (n, *(1,) * len(event)), generator=g)
        self.kernel, self.seen = kernel, []
        self.rows = Rows.dealt(x, seeded(1))
        model = ScoreFunction(self.look)
        self.comparisons = Comparisons(self.rows, {"given": affine(-0.3, 0.2)})
        self.sides: Sides = measure(model, self.rows, kernel, self.comparisons, n_noise, seeded(2))
        self.draws = next(iter(Draws.of(self.rows, kernel, model, n_noise, seeded(2))))
        assert torch.equal(self.seen[0], self.draws.x_t)
        assert torch.equal(self.draws.block, self.rows.block[self.draws.row])
        assert torch.bincount(self.draws.row).unique().tolist() == [n_noise]

    def look(self, x_t: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        self.seen.append(x_t)
        flat = x_t.flatten(1)
        return (torch.sin(flat) - 0.4 * flat.flip(1)).reshape(x_t.shape)

    def stable_target(self, without: int | None, modulus: int = 1) -> torch.Tensor:
        """T(x_t) over the blocks alike each draw's own, less one."""
        out = torch.full_like(self.draws.psi, math.nan)
        for part in range(modulus):
            seen = self.rows.block % modulus == part
            if without is not None:
                seen &= self.rows.block != without
            here = self.draws.block % modulus == part
            out[here] = Empirical(self.rows.x[seen]).score(self.draws.x_t[here], self.kernel).flatten(1)
        return out

    def mean(self, values: torch.Tensor, without: int | None) -> float:
        return values[self.draws.block != (-1 if without is None else without)].mean().item()


@pytest.fixture(scope="module", params=KERNELS, ids=repr)
def captured(request: pytest.FixtureRequest) -> Captured:
    return Captured(request.param)


def test_the_upper_bound_and_its_replicates(captured: Captured) -> None:
    psi, s = captured.draws.psi, captured.sides
    several = [(1, s.upper), (2, s.fewer[0]), (4, s.fewer[1])]
    for modulus, found in several:
        for b in [None, *range(captured.rows.n_blocks)] if modulus < 4 else [None]:
            t = captured.stable_target(b, modulus)
            want = captured.mean(0.5 * (psi - t).square().sum(1), b)
            got = found.value.item() if b is None else found.without[b].item()
            assert got == pytest.approx(want, rel=1e-9), (modulus, b)


def directions(c: Captured) -> torch.Tensor:
    """The directions of the other half of the rows at each draw, in NumPy's words, ``(Q, K, D)``."""
    x, kernel, alpha, sigma = c.rows.x.flatten(1), c.kernel, c.kernel.alpha.item(), c.kernel.sigma.item()
    residual = c.draws.target - c.draws.psi
    means = [residual[c.draws.block == b].mean(0) for b in range(c.rows.n_blocks)]
    out: list[Any] = [None] * len(residual)
    for h in (0, 1):
        mine = (c.draws.block % 2 != h).nonzero()[:, 0]
        other = x[c.rows.block % 2 == h]
        x_t, psi = c.draws.x_t[mine].flatten(1), c.draws.psi[mine]
        n, dim = other.shape
        covariance = np.atleast_2d(np.cov(other.numpy().T, bias=True))
        d = [psi, torch.stack(means[h::2]).mean(0).expand_as(psi), Empirical(other).score(x_t, kernel) - psi]
        if isinstance(kernel, Gaussian):
            bandwidth = math.sqrt(np.trace(covariance) / dim) * n ** (-1 / (dim + 4))
            wider = Gaussian(math.hypot(sigma, alpha * bandwidth), alpha)
            d.append(Empirical(other).score(x_t, wider) - psi)
        precision = np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(dim))
        d.append(t64(-(x_t - alpha * other.mean(0)).numpy() @ precision) - psi)
        d.append(-0.3 * x_t + 0.2 - psi)
        for q, row in zip(mine.tolist(), torch.stack(d, 1), strict=True):
            out[q] = row
    return torch.stack(out)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_the_lower_bound_is_a_difference_of_losses(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """J_DSM(ψ) − J_DSM(ψ + f) for weights that are given: T for the draws of half 1, t for those of half 0."""
    k = 6 if isinstance(kernel, Gaussian) else 5
    weights = [torch.linspace(-0.5, 0.7, k, dtype=F64), torch.linspace(0.4, -0.3, k, dtype=F64)]
    answers = iter([(weights[0], 2.0), (-weights[0], 1.0), (-weights[1], 1.0), (weights[1], 2.0)])
    monkeypatch.setattr(bracket, "best_weights", lambda gram, rhs: next(answers))
    c = Captured(kernel)
    half = c.draws.block % 2
    beta = torch.stack(weights)[1 - half]
    f = torch.einsum("qk,qkd->qd", beta, directions(c))
    psi = c.draws.psi
    for b in [None, *range(c.rows.n_blocks)]:
        t = torch.where(half[:, None] == 1, c.stable_target(b, 2), c.draws.target)
        fall = 0.5 * (psi - t).square().sum(1) - 0.5 * (psi + f - t).square().sum(1)
        got = c.sides.lower.value if b is None else c.sides.lower.without[b]
        assert got.item() == pytest.approx(c.mean(fall, b), rel=1e-8, abs=1e-9), b
    assert list(c.sides.weights.values()) == pytest.approx(((weights[0] + weights[1]) / 2).tolist())


def test_the_loss_and_its_control_variate(captured: Captured) -> None:
    d, half = captured.draws, 0.5 * float(captured.kernel.fisher_information((2,)))
    loss, noise = 0.5 * (d.psi - d.target).square().sum(1), 0.5 * d.target.square().sum(1)
    slope = np.cov(loss, noise)[0, 1] / noise.var().item() if noise.var() > 1e-20 else 0.0
    want = (loss - slope * (noise - half)).mean().item()
    assert captured.sides.dsm.value.item() == pytest.approx(want, rel=1e-9)
    assert captured.sides.skill.value.item() == pytest.approx(half - want, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kernel", [Gaussian(0.6, 0.5), LAPLACE], ids=repr)
def test_images_are_flat_rows(kernel: Kernel) -> None:
    flat, image = Captured(kernel, (4,)).sides, Captured(kernel, (1, 2, 2)).sides
    for name in ("dsm", "skill", "lower", "upper"):
        a, b = getattr(flat, name), getattr(image, name)
        assert torch.allclose(a.value, b.value, rtol=1e-9)
        assert torch.allclose(a.without, b.without, rtol=1e-9)
    assert list(flat.weights.values()) == pytest.approx(list(image.weights.values()))


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("kernel", [Gaussian(0.4), LAPLACE], ids=repr)
def test_what_is_measured_on_a_half_has_not_seen_it(kernel: Kernel, half: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of one half is changed: the weights and the directions that are used on that half stay as they are."""
    x = MIXTURE.sample(24, generator=seeded(0))
    rows = Rows.dealt(x, seeded(1))
    mine = int((rows.block % 2 == half).nonzero()[0])
    changed = x.clone()
    changed[mine] += 3.0
    moved = Rows(changed, rows.block, rows.n_blocks)
    used = []
    for r in (rows, moved):
        found: list[Any] = []

        def weights(gram: Any, rhs: Any, found: list[Any] = found) -> tuple[torch.Tensor, float]:
            found.append(best_weights(gram, rhs))
            return found[-1]

        monkeypatch.setattr(bracket, "best_weights", weights)
        comparisons = Comparisons(r, {})
        measure(WAVY, r, kernel, comparisons, 4, seeded(2))
        draws = next(iter(Draws.of(r, kernel, WAVY, 4, seeded(2))))
        here = torch.full_like(draws.x_t, 0.3)  # f at one point for all
        there = Draws(here, draws.row, draws.block, WAVY.score(here, kernel), draws.target)
        d = comparisons.at(there, Posterior.at(there, r, kernel), kernel, bracket._residual([draws], r))
        used.append((found[2 * (1 - half) : 2 * (1 - half) + 2], d.use[draws.block % 2 == half]))
    (before, f_before), (after, f_after) = used
    for (a, promise_a), (b, promise_b) in zip(before, after, strict=True):
        assert torch.equal(a, b)
        assert promise_a == promise_b
    assert torch.equal(f_before, f_after)


def test_the_draws_are_pairs_where_the_noise_is_symmetric() -> None:
    x = MIXTURE.sample(12, generator=seeded(0))
    rows = Rows.dealt(x, seeded(0))
    for kernel, n, paired in ((Gaussian(0.3, 0.5), 4, True), (LAPLACE, 4, True), (LAPLACE, 3, False)):
        d = torch.cat([d.x_t - kernel.alpha * x[d.row] for d in Draws.of(rows, kernel, WAVY, n, seeded(0))])
        assert (d.sum(0).abs().max() < 1e-12).item() is paired


def test_large_work_is_done_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise is drawn in another order, so that the counts are the same and the answers agree."""
    x, kernel = MIXTURE.sample(24, generator=seeded(0)), Gaussian(0.5)
    rows = Rows.dealt(x, seeded(1))

    def sides() -> Sides:
        return measure(WAVY, rows, kernel, Comparisons(rows, {}), 40, seeded(2))

    whole = sides()
    monkeypatch.setattr(sys.modules["gradlogp.diagnostics.references"], "_WORKSPACE", 5000)
    several = list(Draws.of(rows, kernel, WAVY, 40, seeded(0)))
    assert len(several) > 3
    assert torch.bincount(torch.cat([d.row for d in several])).unique().tolist() == [40]
    parts = sides()
    for name in ("dsm", "upper"):
        a, b = getattr(whole, name).estimate, getattr(parts, name).estimate
        assert abs(a.value - b.value) < 4 * math.hypot(a.stderr, b.stderr)


def test_rows_are_dealt_into_equal_blocks() -> None:
    for n, blocks in ((8, 4), (11, 4), (16, 8), (24, 12), (40, 20), (1000, 20)):
        rows = Rows.dealt(torch.randn(n, 1), seeded(0))
        sizes = torch.bincount(rows.block)
        assert len(sizes) == rows.n_blocks == blocks
        assert sizes.max() - sizes.min() <= 1
        assert rows.half.sum() * 2 == blocks


# --- the weights ------------------------------------------------------------------------------------------------------


def test_the_weights_are_the_best_ones_where_evidence_is_plenty() -> None:
    g = seeded(0)
    d = torch.randn(4000, 3, 2, generator=g, dtype=F64)
    target = torch.einsum("k,nkd->nd", t64([0.5, -1.0, 0.0]), d) + 0.1 * torch.randn(4000, 2, generator=g, dtype=F64)
    gram, rhs = d @ d.mT, (d @ target[:, :, None])[:, :, 0]
    beta, promise = best_weights(gram, rhs)
    assert beta[:2].tolist() == pytest.approx([0.5, -1.0], abs=0.01)
    assert abs(beta[2]) < 0.01
    assert 0.9 * 1.25 < promise < 1.25


def test_no_weights_where_there_is_none() -> None:
    g = seeded(0)
    d = torch.randn(200, 3, 2, generator=g, dtype=F64)
    noise = torch.randn(200, 2, 1, generator=g, dtype=F64)
    beta, promise = best_weights(d @ d.mT, (d @ noise)[:, :, 0])
    assert beta.abs().max() == 0
    assert promise == 0
    beta, promise = best_weights(torch.zeros(20, 3, 3, dtype=F64), torch.zeros(20, 3, dtype=F64))
    assert beta.abs().max() == 0


# --- the bracket holds what is known ----------------------------------------------------------------------------------


def holds(level: Any, truth: float) -> None:
    low, high = level.interval
    assert low <= truth <= high, (level, truth)
    assert float(level.error.lower) - 4.5 * level.error.lower.stderr <= truth
    assert truth <= float(level.error.upper) + 4.5 * level.error.upper.stderr


@pytest.mark.parametrize(
    ("sigma", "alpha", "loose"),
    [(0.05, 1.0, None), (0.5, 1.0, None), (0.5, 0.5, None), (3.0, 1.0, 0.03), (20.0, 1.0, 0.03)],
)
@pytest.mark.parametrize(("a", "c"), [(-0.5, 0.2), (-2.0, 1.0), (0.3, 0.0)])
def test_an_affine_score_of_gaussian_data(a: float, c: float, sigma: float, alpha: float, loose: float | None) -> None:
    """J_ESM = ½[‖A·αm + c‖² + tr A(α²Σ + σ²)Aᵀ] + tr A + ½ tr(α²Σ + σ²)⁻¹."""
    x = NORMAL.sample(200 if loose is None else 300, generator=seeded(7))
    v = alpha**2 * COVARIANCE.numpy() + sigma**2 * np.eye(2)
    m = alpha * np.array([0.5, -1.0])
    truth = 0.5 * (((a * m + c) ** 2).sum() + a * a * np.trace(v)) + 2 * a + 0.5 * np.trace(np.linalg.inv(v))
    level = score_error(affine(a, c), None, x, Gaussian(sigma, alpha), n_noise=6).levels[0]
    holds(level, truth)
    r2 = 1 - truth / (0.5 * np.trace(np.linalg.inv(v)))
    assert level.r2_interval[0] <= r2 <= level.r2_interval[1]
    if loose is not None:
        spread = 4 * level.error.upper.stderr
        assert float(level.error.upper) - float(level.error.lower) < loose * truth + spread
        assert level.verdict == "certified"


@pytest.mark.parametrize("kernel", [Gaussian(0.1), Gaussian(0.5), Gaussian(0.5, 0.6), Gaussian(2.0), LAPLACE], ids=repr)
@pytest.mark.parametrize("change", [lambda m: m, lambda m: times(0.7, m), lambda m: plus(0.5, m)], ids="0*+")
def test_a_changed_score_of_many_atoms(kernel: Kernel, change: Callable[[ScoreModel], ScoreModel]) -> None:
    """A law that is known under any kernel: 400 atoms."""
    law = Empirical(MIXTURE.sample(400, generator=seeded(0)))
    g = seeded(1)
    x, many = law.sample(200, generator=g), law.sample(4000, generator=g)
    model, x_t = change(law), kernel.sample(many, generator=g)
    truth = 0.5 * (model.score(x_t, kernel) - law.score(x_t, kernel)).square().sum(1)
    found = score_error(model, MIXTURE.sample(50, generator=g), x, kernel, n_noise=6).levels[0]
    holds(found, truth.mean().item())


def test_rows_that_repeat() -> None:
    """Corners of a cube: rows are equal to each other, within a block and over the halves."""
    corners = torch.cartesian_prod(*[t64([0.0, 1.0])] * 3)
    weights = torch.arange(1.0, 9.0, dtype=F64)
    law = GaussianMixture(weights, corners, 0.0)
    x, many = law.sample(120, generator=seeded(0)), law.sample(20_000, generator=seeded(2))
    kernels = [Gaussian(s) for s in (0.05, 0.3, 1.0)]
    found = score_error(times(0.8, law), None, x, kernels, n_noise=10)
    for level, kernel in zip(found.levels, kernels, strict=True):
        x_t = kernel.sample(many, generator=seeded(1))
        holds(level, (0.04 * 0.5 * law.score(x_t, kernel).square().sum(1)).mean().item())
    finite(found)
    same = score_error(WAVY, None, torch.ones(20, 2, dtype=F64), Gaussian(0.5))
    finite(same)
    x_t = Gaussian(0.5).sample(torch.ones(20_000, 2, dtype=F64), generator=seeded(0))
    truth = 0.5 * (WAVY.score(x_t, Gaussian(0.5)) + (x_t - 1) / 0.25).square().sum(1)
    holds(same.levels[0], truth.mean().item())


# --- the errors are what they say -------------------------------------------------------------------------------------


N_SEEDS = 100


@pytest.fixture(scope="module")
def many() -> tuple[list[ScoreError], list[float], list[float]]:
    """One model at one level, on many draws of the rows; the truth at each level, and its size."""
    model, kernels, found = affine(-0.5, 0.0), [Gaussian(0.8)], []
    for seed in range(N_SEEDS):
        x = NORMAL.sample(24, generator=seeded(1000 + seed))
        found.append(score_error(model, None, x, kernels, n_noise=4, generator=seeded(seed)))
    truths, sizes = [], []
    for kernel in kernels:
        v = COVARIANCE.numpy() + kernel.sigma.item() ** 2 * np.eye(2)
        sizes.append(0.5 * np.trace(np.linalg.inv(v)))
        truths.append(0.5 * 0.25 * (1.25 + np.trace(v)) - 1.0 + sizes[-1])
    return found, truths, sizes


SIDES: dict[str, Callable[[Any], Estimate]] = {
    "lower": lambda level: level.error.lower,
    "upper": lambda level: level.error.upper,
    "dsm": lambda level: level.dsm,
    "r2": lambda level: level.r2.lower,
    "floor": lambda level: level.floor.lower,
}


@pytest.mark.parametrize("side", SIDES)
def test_standard_errors_are_the_spread(many: Any, side: str) -> None:
    """That of the lower bound does not hold the choice of its weights, which the other half of the rows made."""
    estimates = [SIDES[side](report.levels[0]) for report in many[0]]
    spread = np.std([e.value for e in estimates], ddof=1)
    stated = np.sqrt(np.mean([e.stderr**2 for e in estimates]))
    assert (0.55 if side == "lower" else 0.75) < stated / spread < 1.35, (stated, spread)


def test_intervals_hold_at_95_per_cent_all_together(many: Any) -> None:
    found, truths, sizes = many
    inside = [
        all(
            level.interval[0] <= truth <= level.interval[1]
            and level.r2_interval[0] <= 1 - truth / size <= level.r2_interval[1]
            for level, truth, size in zip(report.levels, truths, sizes, strict=True)
        )
        for report in found
    ]
    assert np.mean(inside) >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / len(found))


def test_bounds_are_bounds_on_average(many: Any) -> None:
    found, truths, _ = many
    for i, truth in enumerate(truths):
        for sign, side in ((1, "lower"), (-1, "upper")):
            values = np.array([SIDES[side](report.levels[i]).value for report in found])
            assert sign * (values.mean() - truth) < 4 * values.std() / math.sqrt(len(values))


# --- what is known besides --------------------------------------------------------------------------------------------


def errors(reference: Any, model: ScoreModel = WAVY, kernel: Kernel | None = None) -> ScoreError:
    return score_error(model, reference, X, kernel or Gaussian(0.3), n_noise=10)


def true_error(model: ScoreModel, kernel: Kernel) -> float:
    """J_ESM over fresh draws of the mixture."""
    x_t = kernel.sample(MIXTURE.sample(40_000, generator=seeded(3)), generator=seeded(4))
    return 0.5 * (model.score(x_t, kernel) - MIXTURE.score(x_t, kernel)).square().sum(1).mean().item()


def test_kinds_of_reference() -> None:
    truth = true_error(WAVY, Gaussian(0.3))
    kinds: dict[str, Any] = {
        "none": None,
        "rows": OTHERS,
        "rows with some of the test": torch.cat([OTHERS, X]),
        "a model": times(0.9, MIXTURE),
        "several": [OTHERS, GaussianReference.of_data(OTHERS), OTHERS[:50]],
        "a data set": Empirical(OTHERS),
        "in a list": [Empirical(torch.cat([OTHERS, X]))],
    }
    lower = {}
    for name, reference in kinds.items():
        found = errors(reference)
        assert found.levels[0].verdict != "exact"
        finite(found)
        low, high = found.levels[0].interval
        assert low < truth < high
        lower[name] = found.levels[0].error.lower.value
    assert lower["rows"] == lower["a data set"] == lower["rows with some of the test"] == lower["in a list"]
    assert lower["a model"] > 0.8 * truth
    assert errors(NORMAL).levels[0].verdict == "exact"
    assert errors(Empirical(torch.cat([OTHERS, X]))).levels[0].verdict == "exact"
    names = errors(kinds["several"]).levels[0].weights
    assert [n for n in names if "reference" in n.lower()] == [
        "Parzen of reference 1",
        "affine of reference 1",
        "GaussianReference 2",
        "Parzen of reference 3",
        "affine of reference 3",
    ]


def test_the_sign_of_zero_sets_no_rows_apart() -> None:
    x = torch.zeros(20, 2, dtype=F64)
    x[:, 1] = torch.arange(20.0)
    negative = x.clone()
    negative[:, 0] = -0.0
    assert score_error(WAVY, Empirical(negative), x, Gaussian(0.5)).levels[0].verdict == "exact"


def test_a_shared_model_is_found_out() -> None:
    """Against the truth as a comparison the lower bound is nearly the error."""
    kernel = Gaussian(0.4)
    truth = true_error(WAVY, kernel)
    level = errors(times(1.0, MIXTURE), kernel=kernel).levels[0]
    assert abs(level.error.lower.value - truth) < 4 * level.error.lower.stderr
    names = level.weights
    assert names["ScoreFunction 1"] > 0.5


# --- bad models, and what is printed ----------------------------------------------------------------------------------

LADDER = [Gaussian(s) for s in (5.0, 0.02, 1.0, 0.3)]


def finite(report: ScoreError) -> None:
    """No NaN in the table, and one line of text for the whole and for each level."""
    for name, column in report.to_frame().to_dict(as_series=False).items():
        assert not any(isinstance(v, float) and math.isnan(v) for v in column), name
    for text in (str(report), *(str(level) for level in report.levels)):
        assert "\n" not in text
        assert "nan" not in text
        assert "inf" not in text
    for level in report.levels:
        low, high = level.interval
        assert 0 <= low <= high
        assert level.r2_interval[0] <= level.r2_interval[1] <= 1
        assert 0 <= level.relative[0] <= level.relative[1]


@pytest.mark.parametrize("name", ["zero", "constant", "wild", "true", "wavy"])
def test_bad_models_leave_no_nan(name: str) -> None:
    law = TRUTH
    model = {"zero": ZERO, "constant": CONSTANT, "wild": WILD, "true": law, "wavy": WAVY}[name]
    x = law.sample(80, generator=seeded(2))
    found, truth = (score_error(model, r, x, LADDER, n_noise=10) for r in ([], law))
    finite(found)
    finite(truth)
    for level, kernel, exact in zip(found.levels, LADDER, truth.levels, strict=True):
        assert level.kernel is kernel
        assert level.sigma == kernel.sigma
        low, high = level.interval
        margin = 5 * exact.error.lower.stderr + 1e-12
        assert low - margin <= float(exact.error.lower) <= high + margin


@pytest.mark.parametrize("kernel", [ONE_SIDED, BY_NAME["gumbel"].kernel()], ids=repr)
def test_noise_to_one_side(kernel: Kernel) -> None:
    """Draws that no row of another block can have made: p_b is 0 there."""
    finite(score_error(affine(-0.5, 0.0), None, X, kernel, n_noise=3))


def test_a_wild_model_is_known_to_be_wild() -> None:
    """Where the size of the score is lost in the noise of the error, ½I(q) still bounds it."""
    level = score_error(WILD, None, X, Gaussian(5.0), n_noise=10).levels[0]
    exact = score_error(WILD, TRUTH, X, Gaussian(5.0)).levels[0]
    assert 100 < level.relative[0] <= exact.error.lower.value / exact.size.lower.value


def test_what_the_report_says() -> None:
    exact = score_error(times(0.9, TRUTH), TRUTH, X, LADDER, n_noise=4)
    assert str(exact) == "score error (95 %) at σ ≥ 0.02: 1 % to 1 % of the score's size at worst"
    assert str(exact.levels[0]) == "σ = 5: score error 1 % to 1 % of the score's size (exact)"
    assert exact.known_from == 0.02
    found = score_error(times(0.9, MIXTURE), None, X, LADDER, n_noise=10)
    assert found.known_from == math.inf  # 80 rows certify nothing
    assert [level.verdict for level in found.levels].count("bracketed") == 2
    assert str(found).startswith("score error (95 %) at σ ≥ 1: ")
    assert ", in what these 80 rows show: a part rarer than 3.8 % may be unseen; below: " in str(found)
    assert "repeat" not in str(found)
    several = score_error(times(0.9, MIXTURE), None, MIXTURE.sample(300, generator=seeded(2)), LADDER[:1], n_noise=4)
    assert several.known_from == 5.0
    assert "show" not in str(several)
    low = score_error(CONSTANT, None, X[:10], LADDER[1])
    assert low.known_from == math.inf
    assert str(low).startswith("score error (95 %) at every level: ")
    twice = score_error(CONSTANT, None, X[:10].repeat(2, 1), LADDER[1])
    assert twice.n_repeats == 10
    assert str(twice).endswith("10 of 20 rows repeat others: this holds only if they are draws, not copies")


def test_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.figure

    sys.modules.pop("matplotlib.pyplot", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails
    found = score_error(WILD, None, X, LADDER, n_noise=4)
    axes = found.plot()
    axes.figure.canvas.draw()
    assert axes.get_xscale() == "log"
    own = matplotlib.figure.Figure().subplots()
    assert found.plot(own) is own
    lines = {line.get_label(): line for line in own.containers}
    assert set(lines) == {"at least", "at most"}


# --- scales, digits, dtypes -------------------------------------------------------------------------------------------


def test_single_precision() -> None:
    x = X.float()
    kernels = [Gaussian(0.3), Gaussian(2.0)]
    model = times(0.8, MIXTURE)
    for reference in (None, OTHERS.float()):
        a = score_error(model, reference, x, kernels, n_noise=10)
        finite(a)
        assert all(
            low <= 0.04 * size <= high
            for (low, high), size in zip((level.interval for level in a.levels), sizes_of(kernels), strict=True)
        )


def sizes_of(kernels: Sequence[Kernel]) -> list[float]:
    return [true_error(ZERO, kernel) for kernel in kernels]


@pytest.mark.parametrize("unit", [1e-3, 1e3])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_unit_and_the_place_of_the_data_do_not_matter(unit: float, offset: float) -> None:
    """ψ(x) -> ψ((x − m)/u)/u at σu: the error is divided by u²."""
    moved = ScoreFunction(lambda x_t, kernel: WAVY.score((x_t - unit * offset) / unit, kernel) / unit)
    for sigma in (1e-3, 0.5, 100.0):
        a = errors(None, kernel=Gaussian(sigma)).levels[0]
        b = score_error(moved, None, unit * (X + offset), Gaussian(sigma * unit), n_noise=10).levels[0]
        tolerance = 1e-6 if offset == 0 else 2e-4
        for side in ("lower", "upper"):
            p, q = getattr(a.error, side), getattr(b.error, side)
            assert q.value * unit**2 == pytest.approx(p.value, rel=tolerance, abs=tolerance * a.error.upper.value)
            assert getattr(b.r2, side).value == pytest.approx(getattr(a.r2, side).value, rel=10 * tolerance, abs=1e-4)


def test_from_tiny_noise_to_huge() -> None:
    """Below the distances of rows nothing but the lower bound is known; far above, all is."""
    x = NORMAL.sample(300, generator=seeded(0))
    kernels = [Gaussian(1e-3), Gaussian(100.0)]
    found = score_error(times(0.9, NORMAL), None, x, kernels)
    finite(found)
    tiny, huge = found.levels
    assert tiny.verdict == "only bounded below"
    assert huge.verdict == "certified"
    size = 0.5 * np.trace(np.linalg.inv(COVARIANCE.numpy() + 1e4 * np.eye(2)))
    assert huge.interval[0] <= 0.01 * size <= huge.interval[1]
    assert huge.interval[1] < 0.012 * size


def test_two_calls_agree_and_a_generator_is_heeded() -> None:
    assert errors(None).levels[0].error == errors(None).levels[0].error
    a = score_error(WAVY, None, X, Gaussian(0.3), generator=seeded(1)).levels[0]
    assert a.error != errors(None).levels[0].error
    report = score_error(WAVY, None, X, Gaussian(0.3), n_noise=3)
    assert (report.n_rows, report.n_draws) == (80, 240)


# --- what it refuses --------------------------------------------------------------------------------------------------


def broken(change: Callable[[torch.Tensor], torch.Tensor]) -> ScoreModel:
    return ScoreFunction(lambda x_t, kernel: change(-x_t))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": X.where(X[3, 0] != X, t64(math.nan))}, "x_test: row 3 holds NaN"),
        ({"x_test": X[:3]}, "x_test: got 3 rows, want at least 8"),
        ({"x_test": X.long()}, "x_test: got dtype torch.int64"),
        ({"x_test": X[:, 0]}, "x_test: got shape"),
        ({"x_test": X.numpy()}, "x_test: got ndarray"),
        ({"kernels": 0.3}, "kernels: got 0.3"),
        ({"kernels": []}, "kernels: got none"),
        ({"kernels": Gaussian(torch.ones(80))}, "one level for all rows"),
        ({"kernels": LAPLACE, "reference": MIXTURE}, "needs a Gaussian kernel"),
        ({"kernels": mvn()}, "event shape"),
        ({"model": broken(lambda v: v * math.nan)}, "its score holds NaN"),
        ({"model": broken(lambda v: v[:, :1])}, "score gave shape"),
        ({"reference": GaussianMixture(t64([1.0]), t64([[0.0] * 3]), 1.0)}, "x_test: got event shape"),
        ({"reference": X}, "the rows of x_test themselves"),
        ({"reference": X[:5]}, "the rows of x_test themselves"),
        ({"reference": [Empirical(X)]}, "the rows of x_test themselves"),
        ({"reference": OTHERS[:, :1]}, "reference: got event shape"),
        ({"reference": "truth"}, "reference: got str, want None"),
        ({"reference": [3.0]}, "reference: got float, want None"),
        ({"reference": broken(lambda v: v * math.inf)}, "its score holds NaN"),
        ({"n_noise": 0}, "n_noise: got 0"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
@pytest.mark.usefixtures("as_a_user")
def test_bad_input(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"model": WAVY, "reference": None, "x_test": X, "kernels": Gaussian(0.3)} | change
    with pytest.raises(InputError, match=message) as e:
        score_error(**arguments)
    assert "\n" not in str(e.value)


# --- the jackknife ----------------------------------------------------------------------------------------------------


def test_of_a_mean_over_rows_is_the_plain_standard_error() -> None:
    v = torch.randn(37, generator=seeded(0), dtype=F64)
    found = Jackknifed.mean_of(v.repeat_interleave(3), torch.arange(37).repeat_interleave(3), 37).estimate
    want = Estimate.mean_of(v)
    assert found.value == pytest.approx(want.value, rel=1e-12)
    assert found.stderr == pytest.approx(want.stderr, rel=1e-12)


def test_of_a_ratio_is_the_delta_method() -> None:
    n = 2000
    b = torch.randn(n, generator=seeded(0), dtype=F64) + 4
    a = 2 * b + torch.randn(n, generator=seeded(1), dtype=F64)
    block = torch.arange(n)
    ja, jb = (Jackknifed.mean_of(v, block, n) for v in (a, b))
    found = Jackknifed.of(lambda p, q: p / q, ja, jb).estimate
    r = (a.mean() / b.mean()).item()
    assert found.value == pytest.approx(r, rel=1e-12)
    assert found.stderr == pytest.approx(((a - r * b).std() / b.mean() / math.sqrt(n)).item(), rel=2e-3)


def test_arithmetic_is_replicate_by_replicate() -> None:
    n = 12
    a, b = (Jackknifed.mean_of(torch.randn(n, generator=seeded(s), dtype=F64), torch.arange(n), n) for s in (0, 1))
    for found, f in (
        (a + b, lambda p, q: p + q),
        (a - b, lambda p, q: p - q),
        (-a, lambda p, q: -p),
        (3.0 * a - 1.0, lambda p, q: 3 * p - 1),
    ):
        want = Jackknifed.of(f, a, b)
        assert torch.allclose(found.value, want.value)
        assert torch.allclose(found.without, want.without)
    infinite = Jackknifed(a.value, torch.where(a.without > a.value, torch.inf, a.without))
    assert infinite.estimate.stderr == math.inf


def test_a_block_left_out_leaves_the_mean_of_the_others() -> None:
    g = seeded(0)
    w, a = torch.rand(5, 4, generator=g, dtype=F64), torch.randn(5, 4, generator=g, dtype=F64)
    w = w / w.sum(1, keepdim=True)
    found = without_each(w, (w * a).sum(1), a)
    for b in range(4):
        kept = [c for c in range(4) if c != b]
        assert torch.allclose(found[:, b], (w * a)[:, kept].sum(1) / w[:, kept].sum(1))
    certain = without_each(t64([[1.0, 0.0]]), t64([3.0]), t64([[3.0, 7.0]]))
    assert certain.tolist() == [[3.0, 3.0]]
