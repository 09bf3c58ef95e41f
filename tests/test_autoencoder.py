"""Vincent's denoising auto-encoder, any denoiser as a score, and the chain of objectives."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.linear_model import LinearRegression
from torch.nn import functional as F

from gradlogp import (
    InputError,
    ScoreDensity,
    diagnostics,
    kernels,
    likelihood,
    models,
    objectives,
    oracles,
    processes,
    samplers,
    training,
)
from gradlogp.kernels import Gaussian
from gradlogp.models import DenoisingAutoencoder, from_denoiser
from gradlogp.objectives import CrossEntropy, DenoisingScoreMatching, ReconstructionError
from gradlogp.training import OneLevel, Recipe, weights

F64 = torch.float64
CASES = [((1,), 1, 0.3, 0), ((3,), 7, 0.05, 1), ((2, 3, 4), 5, 1.7, 2), ((50,), 20, 12.0, 3)]


def drawn(event=(3,), hidden=7, sigma=0.4, seed=0, **options):
    """An auto-encoder of random parameters, in float64."""
    g = torch.Generator().manual_seed(seed)
    d = math.prod(event)
    W, b = torch.randn(hidden, d, generator=g, dtype=F64), torch.randn(hidden, generator=g, dtype=F64)
    return DenoisingAutoencoder(W, b, torch.randn(*event, generator=g, dtype=F64), sigma, **options)


def untied(**options):
    decoder = torch.randn(3, 7, generator=torch.Generator().manual_seed(9), dtype=F64)
    return drawn(decoder=decoder, **options)


def rows(n, *event, seed=4):
    return torch.randn(n, *event, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize(("event", "hidden", "sigma", "seed"), CASES)
def test_reconstruction_error_is_two_sigma_to_the_fourth_times_the_denoising_loss_of_every_row(
    event, hidden, sigma, seed
):
    """J_DAE = 2σ⁴ J_DSM, by NumPy from the parameters: a lost ½, a mean for a sum, or σ² for σ⁴ shows at once."""
    m = drawn(event, hidden, sigma, seed)
    x = rows(40, *event)
    k = Gaussian(sigma)
    dsm = DenoisingScoreMatching()(m, x, k, torch.Generator().manual_seed(7))
    dae = ReconstructionError()(m, x, k, torch.Generator().manual_seed(7))
    torch.testing.assert_close(dae / (2 * sigma**4), dsm, rtol=1e-12, atol=0)
    x_t = k.sample(x, generator=torch.Generator().manual_seed(7))
    W, b, c = (p.detach().numpy() for p in (m.W, m.b, m.c))
    for noisy, clean, one, two in zip(x_t.numpy(), x.numpy(), dsm.tolist(), dae.tolist(), strict=True):
        r = W.T @ special.expit(W @ noisy.ravel() + b) + c.ravel()
        assert two == pytest.approx(((r - clean.ravel()) ** 2).sum(), rel=1e-11)
        psi, target = (r - noisy.ravel()) / sigma**2, (clean - noisy).ravel() / sigma**2
        assert one == pytest.approx(0.5 * ((psi - target) ** 2).sum(), rel=1e-11)
    torch.testing.assert_close(m.reconstruction_error(x_t, x), dae, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("event", "hidden", "sigma", "seed"), CASES)
def test_the_score_is_the_gradient_of_minus_the_energy(event, hidden, sigma, seed):
    m = drawn(event, hidden, sigma, seed)
    x = rows(20, *event).requires_grad_()
    (slope,) = torch.autograd.grad(-m.energy(x).sum(), x)
    torch.testing.assert_close(m.score(x).detach(), slope, rtol=1e-12, atol=1e-12 * slope.abs().max().item())
    torch.testing.assert_close(m.score(x, Gaussian(sigma)), m.score(x), rtol=1e-14, atol=0)


def test_the_energy_is_the_formula_of_the_paper():
    m = drawn()
    W, b, c = (p.detach().numpy() for p in (m.W, m.b, m.c))
    for x, e in zip(rows(5, 3).numpy(), m.energy(rows(5, 3)).tolist(), strict=True):
        want = -(c @ x - 0.5 * x @ x + np.logaddexp(0, W @ x + b).sum()) / 0.4**2
        assert e == pytest.approx(want, rel=1e-12)


def test_the_energy_of_one_unit_is_the_log_of_a_mixture_of_two_gaussians():
    """softplus is log(1 + e^u): with one hidden unit e^{−E} is N(c, σ²) and N(c + W, σ²) in known shares (by SciPy)."""
    W, b, c, sigma = (
        torch.tensor([[1.3]], dtype=F64),
        torch.tensor([0.2], dtype=F64),
        torch.tensor([0.5], dtype=F64),
        1.0,
    )
    m = DenoisingAutoencoder(W, b, c, sigma)
    # e^{cx − x²/2}(1 + e^{Wx + b}) = e^{c²/2} e^{−(x−c)²/2} + e^{b + (c+W)²/2} e^{−(x−c−W)²/2}
    share = special.expit(0.2 + (1.8**2 - 0.5**2) / 2)
    means = torch.tensor([[0.5], [1.8]], dtype=F64)
    oracle = oracles.GaussianMixture(torch.tensor([1 - share, share], dtype=F64), means, 1.0 - 1e-8)
    x = torch.linspace(-4, 6, 30, dtype=F64)[:, None]
    tiny = Gaussian(1e-4)
    difference = -m.energy(x) - oracle.log_prob(x, tiny)
    assert difference.std().item() < 1e-10
    torch.testing.assert_close(m.score(x), oracle.score(x, tiny), rtol=1e-10, atol=1e-10)


def jacobian(m, x):
    return torch.autograd.functional.jacobian(lambda v: m.score(v[None])[0], x)


def test_the_jacobian_of_tied_weights_is_symmetric_and_that_of_untied_ones_is_not():
    x = rows(1, 3)[0]
    tied, loose = jacobian(drawn(), x), jacobian(untied(), x)
    assert (tied - tied.T).abs().max().item() < 1e-12 * tied.abs().max().item()
    m = untied()
    h = torch.sigmoid(m.W @ x + m.b)
    want = (m.decoder @ torch.diag(h * (1 - h)) @ m.W - torch.eye(3, dtype=F64)) / 0.4**2
    torch.testing.assert_close(loose, want.detach(), rtol=1e-12, atol=1e-12)
    assert (loose - loose.T).abs().max().item() > 0.1


def test_curl_measures_the_antisymmetric_share_of_untied_weights(g):
    x, k = rows(60, 3), Gaussian(0.4)
    assert diagnostics.curl(drawn(), x, k, generator=g).levels[0].value.value < 1e-24
    found = (
        diagnostics.curl(untied(), x, k, n_projections=64, generator=torch.Generator().manual_seed(1)).levels[0].value
    )
    x_t = k.sample(x.repeat(10, 1), generator=torch.Generator().manual_seed(2))
    j = torch.stack([jacobian(untied(), row) for row in x_t])
    exact = ((j - j.mT) / 2).square().sum() / j.square().sum()
    assert abs(found.value - exact.item()) < 5 * found.stderr
    assert found.value > 15 * found.stderr


def test_there_is_no_energy_without_tied_weights_and_a_linear_output():
    for m in (untied(), drawn(output=torch.sigmoid)):
        assert not m.conservative
        assert m.unnormalised_log_prob(rows(2, 3), m.kernel) is None
        with pytest.raises(InputError, match="there is no energy"):
            m.energy(rows(2, 3))


def test_it_is_right_at_its_own_level_only_and_under_alpha_as_at_the_rescaled_point():
    m, x = drawn(), rows(5, 3)
    with pytest.raises(InputError, match=r"want sigma = 0\.4, the one level"):
        m.score(x, Gaussian(0.5))
    with pytest.raises(InputError, match="want isotropic Gaussian noise"):
        m.denoise(x, kernels.Additive(torch.distributions.Normal(0.1, 0.4)))
    k = Gaussian(0.2, alpha=0.5)
    torch.testing.assert_close(m.denoise(0.5 * x, k), m.reconstruct(x))
    torch.testing.assert_close(m.score(0.5 * x, k), m.score(x) / 0.5)
    (slope,) = torch.autograd.grad(-m.energy(at := (0.5 * x).requires_grad_(), k).sum(), at)
    torch.testing.assert_close(slope, m.score(x).detach() / 0.5)


def test_shapes_of_events_do_not_matter():
    flat, image = drawn((12,), 5, seed=3), drawn((3, 2, 2), 5, seed=3)
    x = rows(4, 12)
    torch.testing.assert_close(image.score(x.reshape(4, 3, 2, 2)).flatten(1), flat.score(x), rtol=1e-14, atol=0)
    torch.testing.assert_close(image.energy(x.reshape(4, 3, 2, 2)), flat.energy(x), rtol=1e-14, atol=0)


@pytest.mark.parametrize("sigma", [0.5, 0.3])
def test_training_on_either_loss_ends_at_the_same_parameters(sigma):
    """The gradients differ by 2σ⁴ and nothing else: the same seeds, a step that counts no unit, the same end."""
    x = rows(300, 4).sign() * 0.7 + 0.1 * rows(300, 4, seed=5)
    ends = []
    for objective, unit in ((DenoisingScoreMatching(), 1.0), (ReconstructionError(), 2 * sigma**4)):
        m = DenoisingAutoencoder.of_data(x, 12, sigma, generator=torch.Generator().manual_seed(1))
        sgd = partial(torch.optim.SGD, momentum=0.9)
        recipe = Recipe(
            n_steps=400, batch_size=32, learning_rate=0.02 * sigma**4 / unit, weight=weights.Plain(), clip=math.inf,
            weight_decay=0.0, optimiser=sgd, patience=99, ema=0.5,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(2)
        records = list(
            training.train(
                m, x[:200], x[200:], levels=OneLevel(sigma), recipe=recipe, objective=objective, generator=generator
            )
        )
        assert records[-1].held_out < 0.9 * records[0].held_out
        ends.append([p.detach() for p in m.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_training_approaches_the_score_of_its_rows(g):
    """Two points on the line at σ = 1: one hidden unit of W = 2 is E[x | x̃] = tanh(x̃) = 2 sigmoid(2x̃) − 1 exactly."""
    x = torch.tensor([[-1.0], [1.0]], dtype=F64).repeat(100, 1)
    m = DenoisingAutoencoder.of_data(x, 1, 1.0, generator=g)
    recipe = Recipe(n_steps=800, learning_rate=0.05, weight=weights.Plain(), weight_decay=0.0, clip=math.inf)
    list(training.train(m, x, x, levels=OneLevel(1.0), recipe=recipe, objective=ReconstructionError(), generator=g))
    at = torch.linspace(-2, 2, 21, dtype=F64)[:, None]
    assert (m.reconstruct(at).detach() - at.tanh()).abs().max().item() < 0.05
    assert m.W.abs().item() == pytest.approx(2, abs=0.1)


def test_cross_entropy_has_the_same_minimiser_as_the_squared_error():
    """−E log of Bernoulli at D is least at D = E[x | x_t]: against the exact denoiser of binary rows, and beside it."""
    x = (rows(20_000, 2) > 0.3).double()
    exact = oracles.Empirical(x[:4000])
    k = Gaussian(0.6)

    def loss(shift):
        model = from_denoiser(
            lambda v: torch.sigmoid(torch.logit(exact.denoise(v, k).clamp(1e-9, 1 - 1e-9)) + shift), 0.6
        )
        return CrossEntropy()(model, x, k, torch.Generator().manual_seed(0))

    best = loss(0.0)
    for shift in (-0.3, 0.3):
        worse = loss(shift) - best
        assert worse.mean() > 4 * worse.std() / math.sqrt(len(worse))
    p = exact.denoise(x_t := k.sample(x, generator=torch.Generator().manual_seed(0)), k).numpy()
    want = -(special.xlogy(x.numpy(), p) + special.xlog1py(1 - x.numpy(), -p)).sum(1)
    np.testing.assert_allclose(best.numpy(), want, rtol=1e-6)
    assert len(x_t) == len(want)


def test_cross_entropy_refuses_what_is_no_probability(g):
    with pytest.raises(InputError, match=r"denoiser outside \[0, 1\]"):
        CrossEntropy()(drawn(), torch.zeros(5, 3, dtype=F64), Gaussian(0.4), g)
    with pytest.raises(InputError, match=r"x outside \[0, 1\]"):
        CrossEntropy()(drawn(output=torch.sigmoid), 2 + torch.zeros(5, 3, dtype=F64), Gaussian(0.4), g)


def test_initial_weights_reconstruct_the_mean():
    x = 3 + rows(200, 2, 3)
    for tied in (True, False):
        m = DenoisingAutoencoder.of_data(x, 9, 0.2, tied=tied, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(m.reconstruct(x.mean(0)[None])[0], x.mean(0))
        assert m.conservative == tied


def test_second_derivatives_of_the_energy_are_there_far_out():
    m = DenoisingAutoencoder(torch.ones(1, 1, dtype=F64), torch.zeros(1, dtype=F64), torch.zeros(1, dtype=F64), 1.0)
    for at in (-800.0, 0.0, 800.0):
        x = torch.tensor([[at]], dtype=F64)
        (h,) = torch.autograd.functional.hessian(lambda v: m.energy(v).sum(), x).flatten().tolist()
        p = special.expit(at)
        assert h == pytest.approx(1 - p * (1 - p), abs=1e-12)


def test_the_level_is_part_of_the_state():
    m, other = drawn(sigma=0.4), drawn(sigma=2.0, seed=8)
    other.load_state_dict(m.state_dict())
    torch.testing.assert_close(other.score(rows(4, 3)), m.score(rows(4, 3)))
    assert "sigma=0.4" in repr(other)
    torch.testing.assert_close(m(rows(4, 3)), m.reconstruct(rows(4, 3)))


BAD = [
    ({"sigma": 0.0}, "sigma: got 0, want a finite number > 0"),
    ({"sigma": -1.0}, "sigma: got -1"),
    ({"W": torch.ones(4, 2)}, r"W, b, c: got shapes \(4, 2\), \(4,\), \(3,\)"),
    ({"b": torch.ones(5)}, r"W, b, c: got shapes \(4, 3\), \(5,\), \(3,\)"),
    ({"W": torch.full((4, 3), math.nan)}, "W: got Tensor, want a tensor of finite"),
    ({"decoder": torch.ones(4, 3)}, r"decoder: got shape \(4, 3\), want \(3, 4\)"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_bad_parameters_are_refused_in_one_line(changed, message):
    given = {"W": torch.ones(4, 3), "b": torch.ones(4), "c": torch.ones(3), "sigma": 0.5}
    with pytest.raises(InputError, match=message):
        DenoisingAutoencoder(**(given | changed))
    with pytest.raises(InputError, match=r"x: got event shape \(2,\), want \(3,\)"):
        DenoisingAutoencoder(**given).score(torch.ones(5, 2))


# Any denoiser.


def mixture():
    means = torch.tensor([[-1.0, 0.5, 0.0], [1.0, 0.0, -0.5]], dtype=F64)
    return oracles.GaussianMixture(torch.tensor([0.4, 0.6]), means, torch.tensor([0.3, 0.6]))


@pytest.mark.parametrize("k", [Gaussian(0.7), Gaussian(0.35, alpha=0.5), Gaussian(torch.full((6,), 0.7, dtype=F64))])
def test_an_exact_denoiser_gives_the_exact_score(k):
    """E[x | x̃] of a mixture, wrapped at one level or told the level, is its score under every alpha."""
    oracle, x_t = mixture(), rows(6, 3)
    one = from_denoiser(lambda v: oracle.denoise(v, Gaussian(0.7)), 0.7)
    told = from_denoiser(lambda v, s: oracle.denoise(v, Gaussian(s)))
    for m in (one, told):
        torch.testing.assert_close(m.score(x_t, k), oracle.score(x_t, k), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(m.denoise(x_t, k), oracle.denoise(x_t, k), rtol=1e-9, atol=1e-9)


def test_score_error_sampling_and_langevin_take_a_wrapped_denoiser(g):
    oracle = mixture()
    told = from_denoiser(lambda v, s: oracle.denoise(v, Gaussian(s)), reference=oracle.reference)
    error = diagnostics.score_error(told, oracle, oracle.sample(200, generator=g), [Gaussian(0.5)]).levels[0]
    assert abs(error.error.upper.value) < 1e-9
    same = [samplers.sample(m, 300, 8, generator=torch.Generator().manual_seed(3)) for m in (told, oracle)]
    torch.testing.assert_close(*same, rtol=1e-6, atol=1e-6)
    one = from_denoiser(lambda v: oracle.denoise(v, Gaussian(0.7)), 0.7)
    start = Gaussian(0.7).sample(oracle.sample(3000, generator=g), generator=g)
    x = samplers.langevin(one, start, [Gaussian(0.7)], 60, generator=g)
    for a, b in ((x.mean(0), oracle.mean), (x.T.cov(), oracle.covariance + 0.49 * torch.eye(3))):
        assert (a - b).abs().max().item() < 4.5 * 1.6 * math.sqrt(2 / 3000)


def test_a_denoiser_of_scikit_learn_that_is_right_has_the_right_score(g):
    """Least squares from noisy to clean rows of a Gaussian is E[x | x̃]: the score −(Σ + σ²I)⁻¹(x̃ − μ), to its error."""
    root = torch.tensor([[1.0, 0.0], [0.8, 0.4]], dtype=F64)
    x = rows(100_000, 2) @ root.T + 1.0
    x_t = Gaussian(0.5).sample(x, generator=g)
    fitted = LinearRegression().fit(x_t.numpy(), x.numpy())
    m = from_denoiser(fitted.predict, 0.5, arrays=True)
    at = rows(50, 2, seed=8) + 1.0
    exact = -(at - 1.0) @ torch.linalg.inv(root @ root.T + 0.25 * torch.eye(2, dtype=F64))
    # the slopes' standard error is √(residual variance/n) over the noisy columns' deviation, about 0.003; by 1/σ²
    assert (m.score(at, Gaussian(0.5)) - exact).abs().max().item() < 5 * 0.003 * 3 / 0.25
    error = diagnostics.score_error(m, None, x[:400], [Gaussian(0.5)])
    assert error.levels[0].dsm.value > 0


def test_what_needs_a_gradient_refuses_a_function_of_arrays(g):
    m = from_denoiser(lambda v: 0.5 * v, 0.5, arrays=True)
    x = rows(20, 2)
    for needs in (
        lambda: objectives.ImplicitScoreMatching()(m, x, Gaussian(0.5), g),
        lambda: diagnostics.curl(m, x, Gaussian(0.5), generator=g),
        lambda: models.posterior(m, x, Gaussian(0.5)),
    ):
        with pytest.raises(InputError, match="got no gradient in x_t"):
            needs()


class Detached(models.Denoiser):
    """A denoiser that varies, cut off from autograd: the score still has the gradient of −x_t/σ²."""

    def __init__(self, reference):
        super().__init__()
        self.known = reference

    @property
    def reference(self):
        return self.known

    def denoise(self, x_t, kernel):
        return 0.5 * x_t.detach()


def test_a_score_that_is_cut_off_is_refused_where_its_divergence_would_be_taken_for_0(g):
    x, k = rows(20, 2), Gaussian(0.5)
    cut = models.ScoreFunction(lambda x_t, kernel: -x_t.detach())
    constant = models.ScoreFunction(lambda x_t, kernel: torch.ones_like(x_t))
    for objective in (objectives.ImplicitScoreMatching(), objectives.SlicedScoreMatching()):
        with pytest.raises(InputError, match="got no gradient in x_t"):
            objective(cut, x, k, g)
        torch.testing.assert_close(objective(constant, x, k, g), torch.ones(20, dtype=F64))
    with pytest.raises(InputError, match="got no gradient in x_t"):
        likelihood.bound(
            cut, x, processes.VP(), method=likelihood.BoundMethod(form=likelihood.HutchinsonForm()), generator=g
        )
    for reference, message in (
        (None, r"Detached\.denoise: got no gradient in x_t"),
        (models.GaussianReference.of_data(x), "got a denoiser without a gradient"),
    ):
        with pytest.raises(InputError, match=message):
            likelihood.log_prob(Detached(reference), x, sigma_min=0.1, sigma_max=10.0)


def test_answers_that_do_not_fit_are_refused():
    x = rows(4, 2)
    with pytest.raises(InputError, match="arrays=True for a function of numpy arrays"):
        from_denoiser(lambda v: v.numpy(), 0.5).denoise(x, Gaussian(0.5))
    with pytest.raises(InputError, match=r"f gave shape \(4,\), want that of its input, \(4, 2\)"):
        from_denoiser(lambda v: v.sum(1), 0.5).denoise(x, Gaussian(0.5))
    with pytest.raises(InputError, match=r"want sigma = 0\.5, the one level"):
        from_denoiser(lambda v: v, 0.5).denoise(x, Gaussian(0.7))
    with pytest.raises(InputError, match="sigma: got 0"):
        from_denoiser(lambda v: v, 0.0)
    with pytest.raises(InputError, match=r"want \(x̃, σ\) -> x̂, or a sigma for a function of x̃ alone"):
        from_denoiser(lambda v: v)
    with pytest.raises(InputError, match="want x̃ -> x̂ at the one sigma"):
        from_denoiser(lambda v, s: v, 0.3)
    with pytest.raises(InputError, match=r"want one of all levels; at one level samplers\.langevin"):
        samplers.sample(from_denoiser(lambda v: v, 0.5), 10, sigma_max=2.0, sigma_min=0.1, event_shape=(2,))
    with pytest.raises(InputError, match="needs a Gaussian kernel"):
        from_denoiser(lambda v, s: v).denoise(x, kernels.Additive(torch.distributions.Laplace(0.0, 1.0)))


def test_one_column_as_scikit_learn_has_it():
    x = rows(50, 1)
    m = from_denoiser(LinearRegression().fit(x.numpy(), 0.5 * x[:, 0].numpy()).predict, 0.5, arrays=True)
    torch.testing.assert_close(m.denoise(x, Gaussian(0.5)), 0.5 * x)


def test_modes_of_a_function_of_arrays(g):
    oracle = mixture()
    f = from_denoiser(lambda v: oracle.denoise(torch.from_numpy(v), Gaussian(0.7)).numpy(), 0.7, arrays=True)
    x = oracle.sample(50, generator=g)
    found, exact = samplers.modes(f, x, Gaussian(0.7)), samplers.modes(oracle, x, Gaussian(0.7))
    torch.testing.assert_close(found.points, exact.points, rtol=1e-5, atol=1e-5)
    assert found.curvature.isnan().all()
    assert "curvature not known" in str(found)


def test_what_has_nothing_to_train_and_what_is_no_model_is_refused(as_a_user):
    x, k = rows(40, 3), Gaussian(0.5)
    fixed, est = from_denoiser(lambda v: v, 0.5), ScoreDensity()
    with pytest.raises(InputError, match="no parameter to train"):
        next(training.train(fixed, x, x, levels=OneLevel(0.5)))
    with pytest.raises(InputError, match=r"levels: got 0\.5"):
        next(training.train(drawn(), x, x, levels=0.5))
    with pytest.raises(InputError, match="held_out: got event shape"):
        next(training.train(drawn(), x, x[:, :2], levels=OneLevel(0.5)))
    for call in (
        lambda: diagnostics.chain(est, x, k),
        lambda: diagnostics.stein_test(est, x, k),
        lambda: diagnostics.curl(est, x, k),
        lambda: samplers.modes(est, x, k),
        lambda: samplers.langevin(est, x, [k]),
        lambda: likelihood.log_density_difference(est, x, x, k),
        lambda: models.posterior(est, x, k),
        lambda: next(training.train(est, x, x, levels=OneLevel(0.5))),
    ):
        with pytest.raises(InputError, match=r"got ScoreDensity, want a score model, such as est\.model_"):
            call()
    for call in (
        lambda: models.posterior(mixture(), x, 0.5),
        lambda: likelihood.log_density_difference(mixture(), x, x, 0.5),
        lambda: fixed.score(x, 0.5),
        lambda: diagnostics.stein_test(mixture(), x, 0.5),
    ):
        with pytest.raises(InputError, match=r"got 0\.5, want a kernel"):
            call()
    with pytest.raises(InputError, match="ndarray"):
        models.posterior(mixture(), x.numpy(), k)
    with pytest.raises(InputError, match="NaN"):
        models.posterior(mixture(), x * math.nan, k)
    assert torch.allclose(drawn().score(x.float()), drawn().score(x).float())  # in its own dtype, answered in theirs


def test_a_convolutional_denoiser_trained_elsewhere_is_a_model(g):
    """A small convolutional network, trained by torch alone: its parameters are the model's, its score is bracketed."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 1, 3, padding=1))
    x = (torch.linspace(0, 1, 6)[:, None] * torch.ones(6)).expand(400, 1, 6, 6) * torch.rand(400, 1, 1, 1, generator=g)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(200):
        optimiser.zero_grad()
        F.mse_loss(net(x + 0.3 * torch.randn(x.shape, generator=g)), x).backward()
        optimiser.step()
    m = from_denoiser(net, 0.3)
    assert models.count_parameters(m) == sum(p.numel() for p in net.parameters())
    level = diagnostics.score_error(m, None, x[:100], [Gaussian(0.3)], generator=g).levels[0]
    trivial = diagnostics.score_error(from_denoiser(lambda v: v, 0.3), None, x[:100], [Gaussian(0.3)], generator=g)
    assert level.dsm.value < 0.5 * trivial.levels[0].dsm.value
    assert diagnostics.self_check(m, x[:50], Gaussian(0.3), generator=g).holds


# The chain.


@pytest.mark.parametrize("model", [drawn(), untied(), models.GaussianReference.of_data(2 * rows(50, 3))], ids=type)
def test_the_chain_holds_for_every_model_on_any_rows(model, g):
    x = rows(90, 3, seed=1).exp()
    found = diagnostics.chain(model, x, Gaussian(0.4), n_draws=20_000, generator=g)
    assert found.holds
    assert found.dae_residual < 1e-12
    assert diagnostics.chain(model, x, Gaussian(0.2, alpha=0.5), generator=g).holds
    assert found.half_fisher == pytest.approx(3 / (2 * 0.16))
    parzen = oracles.Empirical(x)
    x_t = Gaussian(0.4).sample(x.repeat(300, 1), generator=torch.Generator().manual_seed(5))
    floor = diagnostics.floor(parzen, Gaussian(0.4))
    assert abs(found.constant.value + floor.value) < 4.5 * found.constant.stderr + floor.stderr
    assert len(x_t) == 27_000
    assert "holds" in str(found)


def test_a_model_whose_denoiser_is_not_its_score_breaks_the_chain(g):
    found = diagnostics.chain(_WrongDenoiser(drawn()), rows(50, 3), Gaussian(0.4), generator=g)
    assert found.dae_residual > 0.01
    assert not found.holds
    assert "FAILS" in str(found)


def test_each_residual_alone_can_break_the_chain(g):
    found = diagnostics.chain(drawn(), rows(50, 3), Gaussian(0.4), generator=g)
    assert found.holds
    off = diagnostics.Estimate(5.0, 1.0)
    for change in ({"ism_residual": off}, {"esm_residual": off}, {"dae_residual": 1e-3}):
        assert not replace(found, **change).holds
    line = str(replace(found, esm_residual=diagnostics.Estimate(-0.25, 0.125))).splitlines()[4]
    assert "J_ESM" in line
    assert "off by -0.25 ± 0.1 (z = -2.00)" in line
    assert f"the Parzen density of these {50:,} rows" in str(found)


def test_rows_that_are_few_draws_of_a_known_law_do_not_alarm():
    """Repeats of a row are no new draws of the law: the residual's z over seeds is that of a standard normal."""
    oracle = oracles.GaussianMixture(torch.ones(1), torch.zeros(1, 2, dtype=F64), 1.0)
    wrong, z = models.ScoreFunction(lambda x, k: -3 * x), []
    for seed in range(40):
        x, g = rows(30, 2, seed=seed), torch.Generator().manual_seed(1000 + seed)
        z.append(diagnostics.chain(wrong, x, Gaussian(2.0), oracle=oracle, generator=g).esm_residual.z)
    assert abs(np.mean(z)) < 4.5 * np.std(z) / math.sqrt(40)
    assert 0.6 < np.std(z) < 1.7


def test_where_each_draw_shows_its_row_it_is_said(g):
    found = diagnostics.chain(drawn(sigma=1e-3), rows(50, 3), Gaussian(1e-3), generator=g)
    assert "C is all but 0" in str(found)
    assert found.constant.value == pytest.approx(0, abs=1e-3)


class _WrongDenoiser(models.ScoreModel):
    """Tweedie's formula with σ for σ²."""

    def __init__(self, m):
        super().__init__()
        self.m = m

    def score(self, x_t, kernel):
        return self.m.score(x_t, kernel)

    def denoise(self, x_t, kernel):
        return x_t + 0.4 * self.m.score(x_t, kernel)


def test_the_chain_against_a_known_law_and_with_projections(g):
    oracle = mixture()
    found = diagnostics.chain(
        drawn(sigma=0.7), oracle.sample(3000, generator=g), Gaussian(0.7), oracle=oracle, generator=g
    )
    assert found.holds
    many = oracles.GaussianMixture(torch.ones(1), torch.zeros(1, 120, dtype=F64), 0.5)
    wide = drawn((120,), 8, 0.7, 1)
    found = diagnostics.chain(wide, many.sample(500, generator=g), Gaussian(0.7), oracle=many, generator=g)
    assert found.holds


def test_the_chain_refuses_what_it_does_not_hold_for():
    for kernel in (kernels.Additive(torch.distributions.Laplace(0.0, 1.0)), Gaussian(0.4, alpha=0.0)):
        with pytest.raises(InputError, match="Gaussian"):
            diagnostics.chain(drawn(), rows(20, 3), kernel)
    with pytest.raises(InputError, match="want at least 2"):
        diagnostics.chain(drawn(), rows(1, 3), Gaussian(0.4))
