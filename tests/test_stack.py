"""The stack: mixtures fitted to rows, how far each model is believed, and what is kept of a network beside them."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as Reference
from tampering import edit_tensors

from gradlogp import InputError, ScoreDensity
from gradlogp.estimators.building import mixtures
from gradlogp.kernels import Additive, Gaussian
from gradlogp.models import ClosedForm, GaussianReference, MarginalReference, Preconditioned
from gradlogp.networks import ResidualMLP
from gradlogp.objectives import DenoisingScoreMatching
from gradlogp.oracles import GaussianMixture, fit_mixture
from gradlogp.training import Goal, HeldOut, NoiseLevels, WeightedLoss, best_shares, calibrate, kept, train

F64 = torch.float64


def truth(dtype: torch.dtype = F64) -> GaussianMixture:
    """Three components, one narrow, one tilted."""
    means = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.0, -2.0]], dtype=dtype)
    tilted = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=F64)
    covariances = torch.stack([0.1 * torch.eye(2, dtype=F64), tilted, torch.diag(torch.tensor([0.8, 0.05], dtype=F64))])
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2], dtype=F64), means, covariances)


def covariances(mixture: GaussianMixture) -> torch.Tensor:
    v = mixture.vectors
    return torch.diag_embed(mixture.variances) if v is None else (v * mixture.variances[:, None]) @ v.mT


@pytest.mark.parametrize("full", [True, False])
def test_one_component_is_the_sample_moments(full, g):
    x = truth().sample(500, generator=g)
    fitted = fit_mixture(x, 1, full=full, floor=0.01, generator=g)
    s = np.cov(x.numpy().T, bias=True)
    want = (s if full else np.diag(np.diag(s))) + 0.01 * np.eye(2)
    np.testing.assert_allclose(fitted.means[0], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariances(fitted)[0], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_of_many_rows_it_is_scikit_learns_maximum(kind, g):
    """The prior of five rows moves a covariance of thousands by some thousandths; started where scikit-learn ends."""
    x = truth().sample(20_000, generator=g)
    full = kind == "full"
    ours = fit_mixture(x, 3, full=full, generator=g)
    theirs = Reference(3, covariance_type=kind, tol=1e-7, max_iter=500, random_state=0, n_init=3).fit(x.numpy())
    order, other = ours.means[:, 0].argsort(), np.argsort(theirs.means_[:, 0])
    np.testing.assert_allclose(ours.log_weights.exp()[order], theirs.weights_[other], atol=2e-3)
    np.testing.assert_allclose(ours.means[order], theirs.means_[other], atol=5e-3)
    want = theirs.covariances_[other]
    want = want if full else np.stack([np.diag(v) for v in want])
    np.testing.assert_allclose(covariances(ours)[order], want, atol=0.01)


def test_the_prior_is_that_of_so_many_rows_of_the_whole(g):
    """Two clusters so far apart that all is known: S_k = (n_k s_k + ν S)/(n_k + ν), ν = D + 2, S = Σ n_k s_k/n."""
    x = torch.cat([torch.randn(40, 3, generator=g, dtype=F64), 100 + torch.randn(60, 3, generator=g, dtype=F64)])
    fitted = fit_mixture(x, 2, generator=g)
    parts, nu = [np.cov(rows.numpy().T, bias=True) for rows in (x[:40], x[40:])], 5
    s = 0.4 * parts[0] + 0.6 * parts[1]
    for rows, k in ((x[:40], fitted.means[:, 0].argmin()), (x[40:], fitted.means[:, 0].argmax())):
        n, own = len(rows), np.cov(rows.numpy().T, bias=True)
        want = (n * own + nu * s) / (n + nu)
        np.testing.assert_allclose(covariances(fitted)[k], want, rtol=1e-6)
        assert fitted.log_weights[k].exp().item() == pytest.approx(n / 100)


def test_more_components_fit_better_and_none_collapses(g):
    x, new = truth().sample(300, generator=g), truth().sample(2000, generator=g)
    here = [fit_mixture(x, k, generator=g).log_prob(new, Gaussian(1e-6)).mean().item() for k in (1, 3, 32)]
    assert here[0] < here[1] - 0.3
    without = Reference(32, reg_covar=1e-9, random_state=0).fit(x.numpy()).score(new.numpy())
    assert here[2] > without + 0.4  # 32 components on 300 rows
    copies = torch.ones(20, 2, dtype=F64) * torch.arange(2)[:, None].repeat_interleave(10, 0)
    assert bool(fit_mixture(copies, 4, generator=g).score(copies, Gaussian(0.1)).isfinite().all())


def test_events_of_any_shape_and_what_is_refused(g):
    x = torch.randn(30, 2, 3, generator=g)
    fitted = fit_mixture(x, 2, generator=g)
    assert fitted.event_shape == (2, 3)
    assert fitted.sample(4, generator=g).shape == (4, 2, 3)
    assert fitted.sample(4, generator=g).dtype == x.dtype
    with pytest.raises(InputError, match="n_components: got 31, want at most 30"):
        fit_mixture(x, 31)
    with pytest.raises(InputError, match="NaN"):
        fit_mixture(torch.full((5, 2), torch.nan), 1)


# -- what a model does with parts that are stacked on it


def stackable(x: torch.Tensor) -> Preconditioned:
    torch.manual_seed(0)
    network = ResidualMLP(tuple(x.shape[1:]), width=16, depth=1).to(x)
    torch.nn.init.normal_(network.last.weight, std=0.1)
    return Preconditioned(network, GaussianReference.of_data(x)).eval()


def test_a_part_counts_as_its_share_says_at_its_level(g):
    x, part = truth().sample(200, generator=g), truth()
    model = stackable(x)
    knots = torch.logspace(-1, 0, 16, dtype=F64)
    for name in ("score", "denoise"):
        plain = {s: getattr(model, name)(x, Gaussian(s)) for s in (0.05, 0.1, 10**-0.5, 1.0, 3.0)}
        model.stack(part, knots, torch.linspace(0, 1, 16, dtype=F64))
        for s, share in ((0.05, 0.0), (0.1, 0.0), (10**-0.5, 0.5), (1.0, 1.0), (3.0, 1.0)):
            want = (1 - share) * plain[s] + share * getattr(part, name)(x, Gaussian(s))
            torch.testing.assert_close(getattr(model, name)(x, Gaussian(s)), want, rtol=1e-5, atol=1e-5)
        model.unstack()


def test_a_second_part_moves_what_the_first_has_made(g):
    x, first, second = (
        truth().sample(200, generator=g),
        truth(),
        GaussianMixture([1.0], torch.zeros(1, 2).double(), 1.0),
    )
    model, kernel, knots = stackable(x), Gaussian(0.7, alpha=0.8), torch.logspace(-1, 1, 16, dtype=F64)
    own = model.denoise(x, kernel)
    model.stack(first, knots, torch.full((16,), 0.25, dtype=F64))
    model.stack(second, knots, torch.full((16,), 0.5, dtype=F64))
    want = 0.5 * (0.75 * own + 0.25 * first.denoise(x, kernel)) + 0.5 * second.denoise(x, kernel)
    torch.testing.assert_close(model.denoise(x, kernel), want, rtol=1e-5, atol=1e-6)
    tweedie = (x + 0.7**2 * model.score(x, kernel)) / 0.8
    torch.testing.assert_close(tweedie, model.denoise(x, kernel), rtol=1e-5, atol=1e-5)


def test_parts_stay_out_of_constant_directions_and_of_other_noise(g):
    x = torch.cat([truth().sample(200, generator=g), torch.full((200, 1), 3.0, dtype=F64)], 1)
    part = fit_mixture(x, 3, floor=0.1, generator=g)
    model, kernel = stackable(x), Gaussian(0.5)
    x_t = kernel.sample(x, generator=g)
    other = Additive(torch.distributions.Laplace(torch.zeros(3, dtype=F64), 0.3))
    plain = model.score(x_t, other)
    model.stack(part, torch.logspace(-1, 1, 16, dtype=F64), torch.ones(16, dtype=F64))
    assert torch.equal(model.score(x_t, other), plain)
    torch.testing.assert_close(model.denoise(x_t, kernel)[:, 2], torch.full((200,), 3.0, dtype=F64))
    torch.testing.assert_close(model.denoise(x_t, kernel)[:, :2], part.denoise(x_t, kernel)[:, :2])
    with pytest.raises(InputError, match=r"stack: got a part of event shape \(2,\), want \(3,\)"):
        model.stack(truth(), torch.ones(16), torch.ones(16))


# -- how far each is believed


LEVELS = NoiseLevels(0.1, 3.0)


def test_the_share_is_the_least_squares_slope_less_its_error(g):
    """With D = 0 and N = c·E[x | x_t] the best share is 1/c: the residual of the posterior mean is orthogonal to it."""
    x, p = truth().sample(4000, generator=g), truth()

    def scaled(c):
        return lambda x_t, kernel, _: c * p.denoise(x_t, kernel)

    for c in (1.5, 3.0):
        (shares,) = best_shares(lambda x_t, _: torch.zeros_like(x_t), [scaled(c)], x, LEVELS, n_draws=4000, generator=g)
        assert bool((shares < 1 / c + 0.02).all())
        assert bool((shares > 1 / c - 0.05).all())
    wrong = best_shares(lambda x_t, _: torch.zeros_like(x_t), [scaled(-1.0)], x, LEVELS, generator=g)
    assert bool((wrong == 0).all())


def test_shares_are_of_what_the_steps_before_have_left(g):
    """A half of E[x | x_t], and then the rest of the way towards it: 1 and 1; the same half once more brings 1 too."""
    x, p = truth().sample(4000, generator=g), truth()

    def half(x_t, kernel, _):
        return 0.5 * p.denoise(x_t, kernel)

    def rest(x_t, kernel, denoised):
        return p.denoise(x_t, kernel) - denoised

    for steps in ([half, rest], [half, half]):
        found = best_shares(lambda x_t, _: torch.zeros_like(x_t), steps, x, LEVELS, n_draws=4000, generator=g)
        assert found.shape == (2, 16)
        assert bool((found > 0.9).all())


def test_a_look_at_a_stack_is_that_of_what_it_comes_to(g):
    """With the truth as a part any model comes to the truth; with a useless part to itself."""
    x, p = truth().sample(2000, generator=g), truth()
    model = ClosedForm(GaussianReference.of_data(x))
    loss = WeightedLoss(DenoisingScoreMatching(), model.reference)
    alone, best = HeldOut(x, LEVELS, loss, 0)(model), HeldOut(x, LEVELS, loss, 0)(p)
    stacked = HeldOut(x, LEVELS, loss, 0, parts=[p])(model)
    assert alone.held_out > best.held_out + 0.1
    assert stacked.held_out == pytest.approx(best.held_out, abs=0.01)
    assert stacked.left == pytest.approx(best.left, abs=0.01)
    far = GaussianMixture([1.0], torch.full((1, 2), 50.0, dtype=F64), 1e-3)
    assert HeldOut(x, LEVELS, loss, 0, parts=[far])(model).held_out == pytest.approx(alone.held_out, rel=0.02)


def test_a_gain_has_the_error_of_the_difference(g):
    """Over fresh held-out rows the gain of one model on another scatters as its standard error says."""
    p, wide = truth(), GaussianReference.of_data(truth().sample(4000, generator=g))
    loss = WeightedLoss(DenoisingScoreMatching(), wide)
    seen = []
    for seed in range(60):
        look = HeldOut(p.sample(100, generator=g), LEVELS, loss, seed)
        first = look(wide)
        assert (first.gain, first.gain_stderr) == (0.0, 0.0)
        found = look(p)
        assert found.gain == pytest.approx(first.left - found.left, rel=1e-9)
        seen.append((found.gain, found.gain_stderr))
    gain, stderr = np.array(seen).T
    assert 0.63 < gain.std() / stderr.mean() < 1.37  # four standard errors of a standard deviation of 60


def test_calibrate_stacks_what_helps_and_leaves_out_what_does_not(g):
    x, p = truth().sample(1500, generator=g), truth()
    far = GaussianMixture([1.0], torch.full((1, 2), 50.0, dtype=F64), 1e-3)
    model = ClosedForm(GaussianReference.of_data(x))
    for _ in range(2):  # again is the same, not once more
        calibrate(model, x, LEVELS, parts=[far, p], generator=g)
        assert [part is p for part in model.parts] == [True]
    new, kernel = truth().sample(1000, generator=g), Gaussian(0.5)
    x_t = kernel.sample(new, generator=g)
    error = (model.denoise(x_t, kernel) - p.denoise(x_t, kernel)).square().mean()
    assert error < 0.01 * (model.skip.denoise(x_t, kernel) - p.denoise(x_t, kernel)).square().mean()


def test_a_network_beside_the_truth_is_not_kept_and_ends_soon(g):
    x = truth().sample(600, generator=g)
    model = stackable(x.float())
    torch.nn.init.zeros_(model.network.last.weight)
    history = list(train(model, x[60:].float(), x[:60].float(), levels=LEVELS, parts=[truth()], generator=g))
    assert kept(history).step == 0
    assert history[-1].step == 250
    alone = stackable(x.float())
    torch.nn.init.zeros_(alone.network.last.weight)
    steps = train(alone, x[60:].float(), x[:60].float(), levels=LEVELS, generator=g)
    assert kept([record for record, _ in zip(steps, range(6), strict=False)]).step > 0


# -- the estimator


def crossed() -> GaussianMixture:
    """Two narrow components across each other, which diagonal covariances do not have."""
    slant = torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=F64)
    return GaussianMixture(
        [0.6, 0.4], torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=F64), torch.stack([slant, 2 * torch.eye(2) - slant])
    )


@pytest.fixture(scope="module")
def rows():
    return crossed().sample(800, generator=torch.Generator().manual_seed(0)).numpy()


@pytest.fixture(scope="module")
def closed(rows):
    return ScoreDensity(network=None, random_state=0, verbose=False).fit(rows)


def test_without_a_network_it_is_about_a_mixture_of_its_own(closed, rows):
    """Its log-densities of new rows are those of the truth, to what 720 rows tell: about 11 parameters/(2·720) nats."""
    new = crossed().sample(300, generator=torch.Generator().manual_seed(1))
    gap = crossed().log_prob(new, Gaussian(closed.levels_.sigma_min)).numpy() - closed.score_samples(new.numpy())
    assert -0.02 < gap.mean() < 0.06 + 4 * gap.std() / 300**0.5
    assert closed.kept_step_ == 0
    assert isinstance(closed.model_, ClosedForm)
    assert [record.step for record in closed.history_] == [0]
    draws = closed.sample(2000, random_state=1)
    assert np.abs(draws.mean(0) - rows.mean(0)).max() < 4 * rows.std(0).max() * (1 / 2000 + 1 / 800) ** 0.5
    np.testing.assert_allclose(np.cov(draws.T), np.cov(rows.T), rtol=0.2, atol=0.1)


def test_a_stack_is_the_same_saved_and_loaded(closed, rows, tmp_path):
    closed.save(tmp_path / "m")
    again = ScoreDensity.load(tmp_path / "m")
    assert again.network is None
    assert len(again.model_.parts) == len(closed.model_.parts) > 0
    for sigma in (0.1, 1.0):
        assert np.array_equal(again.grad_log_prob(rows, sigma), closed.grad_log_prob(rows, sigma))
    assert np.array_equal(again.sample(20, random_state=3), closed.sample(20, random_state=3))


PART = "model.parts.0."
TENSORS = {
    "a negative variance": lambda t: t[PART + "variances"].neg_(),
    "weights of mass 2": lambda t: t[PART + "log_weights"].add_(0.7),
    "a weight of 0": lambda t: t[PART + "log_weights"][:1].fill_(-torch.inf),
    "means in float32": lambda t: t.update({PART + "means": t[PART + "means"].float()}),
    "means of other columns": lambda t: t.update({PART + "means": t[PART + "means"][:, :1].contiguous()}),
    "eigenvectors that are none": lambda t: t[PART + "vectors"].mul_(1.1),
    "no gate": lambda t: (t.pop("model.gates.0.at"), t.pop("model.gates.0.share")),
    "a share of 2": lambda t: t["model.gates.0.share"].fill_(2.0),
    "a gate that turns back": lambda t: t.update({"model.gates.0.at": t["model.gates.0.at"].flip(0)}),
    "a part less than gates": lambda t: [t.pop(k) for k in list(t) if k.startswith(PART)],
}


@pytest.mark.parametrize("what", TENSORS)
def test_a_stack_that_cannot_be_is_refused(closed, tmp_path, what):
    closed.save(tmp_path / "m")
    edit_tensors(tmp_path / "m", TENSORS[what])
    with pytest.raises(InputError, match="does not fit together"):
        ScoreDensity.load(tmp_path / "m")


def test_no_mixture_is_begun_after_the_time_for_it(rows, g):
    x = torch.from_numpy(rows).float()
    goal = Goal.score(NoiseLevels(0.05, 5.0))
    base = MarginalReference.of_data(x[80:])
    assert len(mixtures(base, x[80:], x[:80], goal, g)) > 0
    assert mixtures(base, x[80:], x[:80], goal, g, until=time.perf_counter()) == []


def test_networks_that_are_none(rows):
    with pytest.raises(InputError, match="network: got 'mlp', want 'auto', or None"):
        ScoreDensity(network="mlp").fit(rows)
    with pytest.raises(InputError, match="energy: got True without a network, want a network"):
        ScoreDensity(network=None, energy=True).fit(rows)


def test_the_default_is_not_behind_the_simple_models(rows):
    """In log-density, of the Gaussian, the marginals and scikit-learn's mixture of as many components as it has."""
    est = ScoreDensity(random_state=0, verbose=False, n_steps=200).fit(rows)
    new = crossed().sample(300, generator=torch.Generator().manual_seed(2)).numpy()
    ours = est.score_samples(new)
    for rival in (Reference(2, random_state=0), Reference(1)):
        gap = rival.fit(rows).score_samples(new) - ours
        assert gap.mean() < max(0.03, 4 * gap.std() / 300**0.5)
    assert isinstance(est.model_.skip, MarginalReference)


def test_clusters_far_apart_keep_their_width(g):
    """The prior is of what is within clusters, not of the distance between them."""
    means = 10 * torch.randn(5, 2, generator=g, dtype=F64)
    p = GaussianMixture(torch.ones(5), means, 0.01)
    for full in (True, False):
        fitted = fit_mixture(p.sample(3000, generator=g), 5, full=full, generator=g)
        assert fitted.n_components == 5
        assert (fitted.variances.sqrt() - 0.1).abs().max() < 4 * 0.1 / 1200**0.5  # of a standard deviation of 600 rows


def test_a_part_that_is_right_is_believed_at_small_noise(g):
    """Held-out rows tell it there too: by pairs of draws x ± n, as what noise adds to the slope changes its sign."""
    x, p = truth().sample(500, generator=g), truth()
    model = ClosedForm(GaussianReference.of_data(x))
    calibrate(model, x, NoiseLevels(0.02, 3.0), parts=[p], generator=g)
    (gate,) = model.gates
    assert bool((gate.share[:12] > 0.7).all())


def test_what_a_mixture_cannot_be_fitted_to():
    x = torch.randn(20, 2)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="want a floor that is not negative"):
            fit_mixture(x, 2, floor=bad)
    with pytest.raises(InputError, match="rows whose squares are finite"):
        fit_mixture(1e200 * x.double(), 2)
