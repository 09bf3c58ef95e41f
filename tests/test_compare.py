"""Two models on the same rows, and two models fitted on halves: against the truth and many refits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import BY_NAME, mvn, t64

from gradlogp import InputError
from gradlogp.diagnostics import compare, split_half
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import GaussianReference, ScoreFunction, ScoreModel
from gradlogp.oracles import Empirical, GaussianMixture

LAPLACE = BY_NAME["laplace"].kernel()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def changed(model: ScoreModel, f: Callable[[torch.Tensor, torch.Tensor, Kernel], torch.Tensor]) -> ScoreModel:
    return ScoreFunction(lambda x_t, kernel: f(model.score(x_t, kernel), x_t, kernel))


MIXTURE = GaussianMixture(t64([0.3, 0.7]), t64([[1.0, 0.0], [-1.0, 0.5]]), t64([0.1, 0.4]))
X = MIXTURE.sample(150, generator=seeded(0))
SHRUNK = changed(MIXTURE, lambda s, x_t, k: 0.7 * s)
SHIFTED = changed(MIXTURE, lambda s, x_t, k: s + 0.2)
LADDER = [Gaussian(s) for s in (0.1, 0.5, 2.0)]


def oracle_difference(a: ScoreModel, b: ScoreModel, law: Any, kernel: Kernel) -> tuple[float, float]:
    """J_ESM(A) − J_ESM(B) over fresh draws, and its standard error."""
    g = seeded(9)
    x_t = kernel.sample(law.sample(20_000, generator=g), generator=g)
    s = law.score(x_t, kernel)
    each = 0.5 * ((a.score(x_t, kernel) - s).square().sum(1) - (b.score(x_t, kernel) - s).square().sum(1))
    return each.mean().item(), each.std().item() / math.sqrt(len(each))


# --- compare ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [*LADDER, Gaussian(0.5, 0.6), LAPLACE], ids=repr)
def test_is_the_difference_of_the_errors(kernel: Kernel) -> None:
    law = Empirical(MIXTURE.sample(300, generator=seeded(5)))
    a, b = (changed(law, lambda s, x_t, k, c=c: c[0] * s + c[1]) for c in ((0.7, 0.0), (1.0, 0.2)))
    found = compare(a, b, law.sample(200, generator=seeded(6)), kernel, n_noise=6).levels[0].difference
    want, error = oracle_difference(a, b, law, kernel)
    assert abs(found.value - want) < 4 * math.hypot(found.stderr, error)


@pytest.mark.parametrize("kernel", [*LADDER, LAPLACE], ids=repr)
@pytest.mark.parametrize("n_noise", [None, 3])
def test_the_other_way_round_the_sign_is_turned(kernel: Kernel, n_noise: int | None) -> None:
    wavy = ScoreFunction(lambda x_t, k: torch.sin(3 * x_t) - 0.4 * x_t)
    affine = ScoreFunction(lambda x_t, k: -0.5 * x_t + 0.2)
    ab = compare(wavy, affine, X, kernel, n_noise=n_noise)
    ba = compare(affine, wavy, X, kernel, n_noise=n_noise)
    for p, q in ((ab.total, ba.total), (ab.levels[0].difference, ba.levels[0].difference)):
        assert p.value == pytest.approx(-q.value, rel=1e-12)
        assert p.stderr == pytest.approx(q.stderr, rel=1e-9)
    assert {ab.better, ba.better} in ({"A", "B"}, {None})


def test_plain_and_averaged_targets_by_brute_force() -> None:
    """E[⟨B − A, T − A⟩ − ½‖B − A‖²] with the better of the two targets, on the draws that the models saw."""
    seen = []

    def look(x_t: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        seen.append(x_t)
        return -0.5 * x_t

    b = ScoreFunction(lambda x_t, k: torch.sin(x_t))
    kernel = Gaussian(1.5)  # large: the averaged target is the better one
    found = compare(ScoreFunction(look), b, X[:20], kernel, n_noise=4).levels[0].difference
    x_t = seen[0]
    psi_a, psi_b = -0.5 * x_t, torch.sin(x_t)
    t = Empirical(X[:20]).score(x_t, kernel)
    each = ((psi_b - psi_a) * (t - psi_a)).sum(1) - 0.5 * (psi_b - psi_a).square().sum(1)
    assert found.value == pytest.approx(each.mean().item(), rel=1e-9)
    alternative = 0.5 * ((psi_a - t).square().sum(1) - (psi_b - t).square().sum(1))
    assert found.value == pytest.approx(alternative.mean().item(), rel=1e-9)


def test_finds_the_better_model_and_where_it_is_better() -> None:
    at_small = changed(MIXTURE, lambda s, x_t, k: s * (0.0 if k.sigma < 0.5 else 1.0))
    found = compare(at_small, MIXTURE, X, [Gaussian(s) for s in (0.4, 1.0, 2.0)])
    assert found.better == "B"
    assert "B is better" in str(found)
    assert "most of it at σ = 0.4" in str(found)
    assert [level.share for level in found.levels] == [1.0, 0.0, 0.0]
    assert found.levels[1].difference.value == found.levels[1].difference.stderr == 0
    other = compare(MIXTURE, SHRUNK, X, LADDER[1:])
    assert other.better == "A"
    assert all(level.difference.value < 0 for level in other.levels)
    assert sum(abs(level.share) for level in other.levels) == pytest.approx(1.0)
    total = np.mean([level.sigma**2 * level.difference.value for level in other.levels])
    assert other.total.value == pytest.approx(total)
    frame = other.to_frame()
    assert frame["sigma"].to_list() == [0.5, 2.0]
    assert frame["difference"].to_list() == [level.difference.value for level in other.levels]


def test_equal_models_are_equal() -> None:
    found = compare(SHRUNK, SHRUNK, X, LADDER)
    assert (found.total.value, found.total.stderr, found.better) == (0.0, 0.0, None)
    assert str(found).startswith("no difference shown")
    assert "nan" not in str(found)


def test_equally_good_models_are_not_told_apart() -> None:
    """By symmetry ψ + c and ψ − c have the same error."""
    up, down = (changed(MIXTURE, lambda s, x_t, k, c=c: s + c) for c in (0.2, -0.2))
    z = [compare(up, down, MIXTURE.sample(50, generator=seeded(s)), LADDER[1], n_noise=4).total.z for s in range(40)]
    assert np.mean(np.abs(z) > 2.1) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 40)
    assert abs(np.mean(z)) < 4 * 1.1 / math.sqrt(40)


def test_its_standard_error_is_the_spread() -> None:
    found = [
        compare(SHRUNK, SHIFTED, MIXTURE.sample(50, generator=seeded(100 + s)), Gaussian(0.6), n_noise=4).total
        for s in range(100)
    ]
    spread = np.std([e.value for e in found], ddof=1)
    assert 0.75 < np.sqrt(np.mean([e.stderr**2 for e in found])) / spread < 1.35


@pytest.mark.parametrize("name", ["lognormal", "gumbel"])
def test_noise_to_one_side(name: str) -> None:
    kernel = BY_NAME[name].kernel()
    a, b = (ScoreFunction(lambda x_t, k, c=c: -c * x_t) for c in (0.5, 0.1))
    found = compare(a, b, X, kernel, n_noise=4)
    assert math.isfinite(found.total.value + found.total.stderr)


# --- split_half -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [*LADDER, LAPLACE], ids=repr)
def test_a_constant_difference(kernel: Kernel) -> None:
    """¼‖c‖² exactly."""
    a = ScoreFunction(lambda x_t, k: torch.sin(x_t))
    b = changed(a, lambda s, x_t, k: s + t64([0.3, -0.4]))
    level = split_half(a, b, X, kernel).levels[0]
    assert level.half.value == pytest.approx(0.25 * 0.25, rel=1e-12)
    assert level.half.stderr < 1e-15
    assert level.full.value == level.half.value / 2
    assert level.full.stderr == level.half.stderr / 2


def test_what_it_is_relative_to() -> None:
    """Scores −x and 0: ¼‖x‖²/2 over ½‖x/2‖² is 1."""
    a, b = (ScoreFunction(lambda x_t, k, c=c: -c * x_t) for c in (1.0, 0.0))
    found = split_half(a, b, X, LADDER)
    for level in found.levels:
        assert level.relative.value == pytest.approx(1.0, rel=1e-12)
        assert level.relative.stderr < 1e-12
    assert "at most 1e+02 % of the score's size" in str(found)
    assert found.to_frame()["relative"].to_list() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_fits_on_halves_differ_by_the_variance_of_a_fit(sigma: float) -> None:
    """Many refits of the affine score: the mean of ¼‖ψ_A − ψ_B‖² is ½E‖ψ − Eψ‖² at N/2 rows."""
    law, kernel, n = GaussianMixture(t64([1.0]), t64([[0.5, -1.0]]), 0.8), Gaussian(sigma), 30
    x = law.sample(100, generator=seeded(0))
    found = []
    for seed in range(150):
        halves = law.sample(2 * n, generator=seeded(100 + seed)).split(n)
        a, b = (GaussianReference.of_data(half) for half in halves)
        found.append(split_half(a, b, x, kernel, generator=seeded(3)).levels[0].half.value)
    x_t = kernel.sample(x.repeat(6, 1), generator=seeded(3))  # the same draws
    fits = [GaussianReference.of_data(law.sample(n, generator=seeded(900 + s))).score(x_t, kernel) for s in range(300)]
    several = torch.stack(fits)
    each = 0.5 * (several - several.mean(0)).square().sum(2).mean(1) * 300 / 299
    error = math.hypot(np.std(found) / math.sqrt(150), each.std().item() / math.sqrt(300))
    assert abs(np.mean(found) - each.mean().item()) < 4 * error


def test_equal_fits_do_not_differ() -> None:
    level = split_half(SHRUNK, SHRUNK, X, LADDER[0]).levels[0]
    assert (level.half.value, level.half.stderr, level.relative.value) == (0.0, 0.0, 0.0)


# --- what they refuse -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [compare, split_half])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.where(X[3, 0] != X, t64(math.nan))}, "row 3 holds NaN"),
        ({"x": X[:1]}, "got 1 row, want at least"),
        ({"x": X.numpy()}, "got ndarray"),
        ({"kernels": 0.3}, "kernels: got 0.3"),
        ({"kernels": Gaussian(torch.ones(150))}, "one level for all rows"),
        ({"kernels": mvn()}, "event shape"),
        ({"b": ScoreFunction(lambda x_t, k: x_t * math.nan)}, "its score holds NaN"),
        ({"a": ScoreFunction(lambda x_t, k: x_t[:, :1])}, "score gave shape"),
        ({"n_noise": 0}, "n_noise: got 0"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
@pytest.mark.usefixtures("as_a_user")
def test_bad_input(f: Callable[..., Any], change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"a": SHRUNK, "b": SHIFTED, "x": X, "kernels": LADDER[0], "n_noise": None} | change
    with pytest.raises(InputError, match=message) as e:
        f(given["a"], given["b"], given["x"], given["kernels"], n_noise=given["n_noise"])
    assert "\n" not in str(e.value)
