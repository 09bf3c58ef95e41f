"""Log-density differences along two paths: against exact densities, and against circulations in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import distributions as td

from gradlogp import InputError
from gradlogp.kernels import Additive, Gaussian
from gradlogp.likelihood import log_density_difference
from gradlogp.likelihood.difference import _integral, _lobatto_kronrod, _Path
from gradlogp.models import ScoreFunction
from gradlogp.oracles import Empirical, GaussianMixture, Quadrature

F64 = torch.float64
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)  # by a quarter, to the left


def mixture(d: int, k: int, g) -> GaussianMixture:
    a = torch.randn(k, d, d, generator=g, dtype=F64) * 0.5 / math.sqrt(d)
    means = 1.5 * torch.randn(k, d, generator=g, dtype=F64)
    return GaussianMixture(torch.ones(k), means, a @ a.mT + 0.02 * torch.eye(d, dtype=F64))


def pairs(oracle, kernel, n: int, g):
    return (kernel.sample(oracle.sample(n, generator=g).double(), generator=g) for _ in range(2))


def truth(oracle, x, y, kernel):
    return oracle.log_prob(y, kernel) - oracle.log_prob(x, kernel)


def affine(jacobian: torch.Tensor) -> ScoreFunction:
    return ScoreFunction(lambda x_t, k: x_t @ jacobian.mT - 0.3)


def laplace(s: float) -> Additive:
    return Additive(td.Laplace(0.0, s))


@pytest.mark.parametrize(("d", "sigma", "alpha"), [(1, 0.3, 1.0), (2, 0.1, 1.0), (2, 0.2, 0.6), (8, 0.2, 1.0)])
def test_differences_are_those_of_exact_densities_within_the_stated_error(d, sigma, alpha, g):
    oracle, kernel = mixture(d, 5, g), Gaussian(sigma, alpha)
    x, y = pairs(oracle, kernel, 400, g)
    found = log_density_difference(oracle, x, y, kernel, generator=g)
    off = (found.value - truth(oracle, x, y, kernel)).abs()
    assert (off <= found.error + 1e-12).double().mean() >= 0.99
    assert off.mean() < 1e-5
    assert (found.quadrature <= 1e-4).all()
    assert found.path.mean() < 1e-4  # of a gradient: 0 to quadrature
    assert (found.path == 0).all() == (d == 1)
    back = log_density_difference(oracle, y, x, kernel, generator=g)
    torch.testing.assert_close(back.value, -found.value, atol=2e-4, rtol=0)


def test_fewer_nodes_say_a_larger_error_that_still_covers(g):
    oracle, kernel = mixture(2, 5, g), Gaussian(0.05)
    x, y = pairs(oracle, kernel, 400, g)
    want, medians = truth(oracle, x, y, kernel), []
    for max_nodes in (15, 105, 960):
        found = log_density_difference(oracle, x, y, kernel, atol=1e-6, max_nodes=max_nodes, generator=g)
        assert found.n_scores.max() <= 3 * max_nodes
        assert ((found.value - want).abs() <= found.error + 1e-12).double().mean() >= 0.95
        medians.append(found.quadrature.median().item())
    assert medians[0] > 30 * medians[1] > 30 * medians[2]
    few = log_density_difference(oracle, x, y, kernel, atol=1e-6, max_nodes=15, generator=g)
    assert (few.n_scores == 45).all()
    assert (few.quadrature > 1e-6).double().mean() > 0.7
    many = log_density_difference(oracle, x, y, kernel, atol=1e-9, max_nodes=4000, generator=g)
    torch.testing.assert_close(many.value, want, atol=1e-9, rtol=1e-10)


@pytest.mark.parametrize("bend", [0.1, 0.25, 1.0])
def test_the_disagreement_is_the_curl_times_the_area_between_the_paths(bend, g):
    """ψ = −x + ω·turn(x): curl 2ω, area ⅔·bend·‖d‖²; the straight path has −½Δ‖x‖² + ω⟨turn(x), d⟩."""
    omega = 0.7
    model = ScoreFunction(lambda x_t, k: -x_t + omega * x_t @ TURN.mT)
    x, y = torch.randn(2, 50, 2, generator=g, dtype=F64)
    d = y - x
    found = log_density_difference(model, x, y, Gaussian(1.0), bend=bend, generator=g)
    straight = (x.square() - y.square()).sum(1) / 2 + omega * (x[:, 0] * d[:, 1] - x[:, 1] * d[:, 0])
    torch.testing.assert_close(found.value, straight)
    circulation = 2 * omega * (2 / 3) * bend * d.square().sum(1)
    torch.testing.assert_close(found.path, circulation)
    assert found.quadrature.max() < 1e-12
    for sign in (1, -1):  # to the left, straight there and bent back is anticlockwise
        bent = _integral(_Path(model, Gaussian(1.0), x, d, sign * bend * d @ TURN.mT), 1e-6, 960)
        torch.testing.assert_close(straight - bent.value, sign * circulation)


def test_the_directions_are_uniform_across_the_path(g):
    """ψ = Jx in 5-D, one pair 4000 times: E path² = (⅔·bend·‖d‖)² ‖P(J − Jᵀ)d‖²/4, P across d, to 4.5 errors."""
    jacobian = torch.randn(5, 5, generator=g, dtype=F64)
    x, y = torch.randn(2, 1, 5, generator=g, dtype=F64).expand(2, 4000, 5)
    d = (y - x)[0]
    found = log_density_difference(affine(jacobian), x, y, Gaussian(1.0), generator=g)
    across = (jacobian - jacobian.mT) @ d
    want = (2 / 3 * 0.25 * d.norm()) ** 2 * (across.square().sum() - (across @ d) ** 2 / d.square().sum()) / 4
    squares = found.path.square()
    assert abs(squares.mean() - want) < 4.5 * squares.std() / math.sqrt(4000)
    assert squares.std() > 0.3 * want
    torch.testing.assert_close(found.value[0], (jacobian @ (x[0] + y[0]) / 2 - 0.3) @ d)


def test_a_wrong_gradient_is_not_seen_and_a_score_on_one_side_is(g):
    """path is no distance to the truth: 0 for ∇ of anything. The larger of both sides counts."""
    x, y = torch.randn(2, 30, 2, generator=g, dtype=F64)
    wrong = log_density_difference(ScoreFunction(lambda x_t, k: -5 * x_t**3), x, y, Gaussian(1.0), generator=g)
    torch.testing.assert_close(wrong.value, 1.25 * (x**4 - y**4).sum(1))
    assert wrong.path.max() < 1e-9

    zero, one = torch.zeros(8, 2, dtype=F64), torch.tensor([[1.0, 0.0]], dtype=F64).expand(8, 2)
    for sign in (1, -1):

        def above(
            x_t, k, sign=sign
        ):  # curl ∓2h above the line through 0 and (1, 0), none below: ψ₁ = ±h², h the height
            h = x_t[:, 1].clamp_min(0)
            return torch.stack([sign * h**2, torch.zeros_like(h)], 1)

        found = log_density_difference(ScoreFunction(above), zero, one, Gaussian(1.0), bend=0.3, generator=g)
        torch.testing.assert_close(found.path, torch.full((8,), 0.3**2 * 8 / 15, dtype=F64))  # ∫ (1.2 t(1 − t))² dt


@pytest.mark.parametrize("d", [1, 2])
def test_the_error_covers_where_the_score_jumps(d, g):
    """Atoms under Laplace noise: 30 jumps for each coordinate."""
    oracle, kernel = Empirical(torch.randn(30, d, generator=g, dtype=F64)), laplace(0.5)
    x, y = pairs(oracle, kernel, 300, g)
    want = truth(oracle, x, y, kernel)
    for max_nodes in (105, 960):
        found = log_density_difference(oracle, x, y, kernel, max_nodes=max_nodes, generator=g)
        off = (found.value - want).abs()
        assert off.max() > 1e-6
        assert (off <= found.error + 1e-12).double().mean() >= 0.98
        assert (off <= found.quadrature + 1e-12).double().mean() >= 0.98


def test_laplace_noise_on_a_smooth_law(g):
    law = td.MixtureSameFamily(td.Categorical(torch.tensor([0.4, 0.6])), td.Normal(torch.tensor([-1.5, 1.0]), 0.4))
    oracle, kernel = Quadrature(law), laplace(0.5)
    x, y = pairs(oracle, kernel, 60, g)
    found = log_density_difference(oracle, x, y, kernel)
    off = (found.value - truth(oracle, x, y, kernel)).abs()
    assert (off <= found.error + 1e-12).all()
    assert off.mean() < 1e-5


def test_any_event_shape_any_level_a_row_and_any_function(g):
    oracle = mixture(8, 4, g)
    x, y = pairs(oracle, Gaussian(0.3), 20, g)

    def run(model, kernel, shape=(8,)):
        seed = torch.Generator().manual_seed(3)
        return log_density_difference(model, x.reshape(-1, *shape), y.reshape(-1, *shape), kernel, generator=seed)

    def flat(x_t, k):  # from numpy, of any shape
        return torch.from_numpy(oracle.score(x_t.flatten(1), k).numpy()).reshape(x_t.shape)

    a, b = run(oracle, Gaussian(0.3)), run(ScoreFunction(flat), Gaussian(0.3), (2, 2, 2))
    for name in ("value", "quadrature", "path", "n_scores"):
        torch.testing.assert_close(getattr(b, name), getattr(a, name))
    levels = torch.linspace(0.2, 0.6, 20, dtype=F64)
    found = run(oracle, Gaussian(levels))
    torch.testing.assert_close(found.value, truth(oracle, x, y, Gaussian(levels)), atol=1e-5, rtol=0)
    assert "20 rows" in str(found)
    assert "\n" not in str(found)


@pytest.mark.parametrize("d", [1, 3])
def test_no_difference_from_a_point_to_itself(d, g):
    x = torch.randn(5, d, generator=g, dtype=F64)
    found = log_density_difference(affine(torch.randn(d, d, generator=g, dtype=F64)), x, x, Gaussian(1.0), generator=g)
    for v in (found.value, found.quadrature, found.path, found.error):
        assert (v == 0).all()


def test_single_precision_ends_at_rounding(g):
    """An atom at σ = 0.01: slopes of 1e4 nats put 1e-4 out of reach; cutting comes to an end, and the error says it."""
    oracle, kernel = GaussianMixture(torch.ones(1), torch.tensor([[1.3, -0.7]]), 0.0), Gaussian(0.01)

    def score(x_t, k):
        assert x_t.dtype == torch.float32
        return oracle.score(x_t, k)

    x, y = 2 * torch.randn(2, 100, 2, generator=g)
    found = log_density_difference(ScoreFunction(score), x, y, kernel, generator=g)
    off = (found.value - truth(oracle, x.double(), y.double(), kernel)).abs()
    assert found.n_scores.max() < 1000
    assert (found.quadrature > 1e-4).double().mean() > 0.9
    assert off.max() > 1e-4
    assert (off <= found.error).double().mean() >= 0.95
    assert found.value.dtype == F64


def test_the_rule_is_that_of_lobatto_and_kronrod():
    """With 7 nodes as Gander and Gautschi print it; with 15 exact to degree 21 (Lobatto's 8 nodes: 13), no further."""
    nodes, kronrod, lobatto = (np.array(v) for v in _lobatto_kronrod(4))
    a, b = math.sqrt(2 / 3), 1 / math.sqrt(5)
    assert 2 * nodes - 1 == pytest.approx([-1, -a, -b, 0, b, a, 1], abs=1e-14)
    assert 2 * 1470 * kronrod == pytest.approx([77, 432, 625, 672, 625, 432, 77], rel=1e-12)
    assert 12 * lobatto == pytest.approx([1, 0, 5, 0, 5, 0, 1], abs=1e-13)
    nodes, kronrod, lobatto = (np.array(v) for v in _lobatto_kronrod())
    assert len(nodes) == 15
    for weights, degree in ((kronrod, 21), (lobatto, 13)):
        off = [abs(weights @ (2 * nodes - 1) ** k - (k % 2 == 0) / (k + 1)) for k in range(degree + 2)]
        assert max(off[:-1]) < 1e-14
        assert off[-1] > 1e-9
    assert (kronrod > 0).all()


@pytest.mark.parametrize("change", [
    {"x": torch.zeros(3, 2)}, {"x": torch.zeros(2, 2).double()}, {"x": torch.full((2, 2), math.inf)}, {"y": [1.0]},
    {"atol": 0.0}, {"max_nodes": 14}, {"max_nodes": 100.5}, {"bend": 0.0}, {"kernel": Gaussian(torch.ones(3))},
    {"model": ScoreFunction(lambda x, k: x / 0)}, {"model": ScoreFunction(lambda x, k: x[:1])},
])  # fmt: skip
def test_bad_input_is_refused(change, as_a_user):
    given = {
        "model": ScoreFunction(lambda x, k: -x),
        "x": torch.zeros(2, 2),
        "y": torch.ones(2, 2),
        "kernel": Gaussian(0.1),
    }
    with pytest.raises(InputError, match=r"^[^\n]*: (got|row|its score|score gave)[^\n]*want[^\n]*$"):
        log_density_difference(**given | change)
