"""Training: the levels' law, the weighting, what is held out, what is averaged, what is kept."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from gradlogp import InputError
from gradlogp.kernels import Gaussian
from gradlogp.models import GaussianReference, MarginalReference, Preconditioned
from gradlogp.networks import ResidualMLP
from gradlogp.objectives import DenoisingScoreMatching
from gradlogp.oracles import Empirical
from gradlogp.training import (
    Average,
    HeldOut,
    NoiseLevels,
    Recipe,
    Record,
    WeightedLoss,
    calibrate,
    in_vain,
    kept,
    train,
)
from gradlogp.training import held_out as looks
from gradlogp.training.adamw import AdamW


def two_clusters(n: int, g: torch.Generator) -> torch.Tensor:
    centre = torch.randint(0, 2, (n, 1), generator=g) * 4.0 - 2.0
    return torch.cat([centre, -centre], 1) + 0.3 * torch.randn(n, 2, generator=g)


def new_model(x: torch.Tensor, fade: float = math.inf, dropout: float = 0.0) -> Preconditioned:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResidualMLP(tuple(x.shape[1:]), width=32, depth=1, dropout=dropout)
    return Preconditioned(network, GaussianReference.of_data(x, fade=fade)).eval()


def test_levels_are_a_cut_normal_in_log_sigma():
    levels = NoiseLevels(0.01, 5.0, centre=-1.0, spread=0.9)
    u = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    low, high = (math.log(0.01) + 1) / 0.9, (math.log(5.0) + 1) / 0.9
    want = stats.truncnorm(low, high, loc=-1.0, scale=0.9).ppf(u.numpy())
    np.testing.assert_allclose(levels.quantile(u).log().numpy(), want, atol=1e-8)


def test_levels_may_be_uniform_in_log_sigma():
    u = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    np.testing.assert_allclose(NoiseLevels(0.01, 100.0).quantile(u).numpy(), [0.01, 0.1, 100.0], rtol=1e-12)


def test_a_batch_has_one_level_in_each_stratum(g):
    levels = NoiseLevels(0.01, 5.0, centre=-1.0, spread=0.9)
    sigma = levels.draw(64, generator=g, like=torch.zeros(1, dtype=torch.float64))
    edges = levels.quantile(torch.arange(1, 64, dtype=torch.float64) / 64)
    assert torch.bucketize(sigma, edges).sort().values.tolist() == list(range(64))
    assert not bool((sigma.diff() > 0).all())


def test_levels_follow_the_units_of_the_data(g):
    x = two_clusters(500, g)
    ours, thousand = (NoiseLevels.of_data(GaussianReference.of_data(c * x), c * 0.5) for c in (1.0, 1000.0))
    assert thousand.sigma_min == pytest.approx(1000 * ours.sigma_min, rel=1e-4)
    assert thousand.sigma_max == pytest.approx(1000 * ours.sigma_max, rel=1e-4)
    assert thousand.centre - ours.centre == pytest.approx(math.log(1000), rel=1e-4)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (math.nan, 1.0), (1.0, math.inf)]
)
def test_levels_out_of_order_are_refused(low, high):
    with pytest.raises(InputError, match=r"sigma_(min|max)"):
        NoiseLevels(low, high)


def test_the_weighted_loss_is_the_networks_mean_square_error(g):
    """‖F − (x − D_ref)/c_out‖²/D, written with the network itself."""
    x = two_clusters(50, g).double()
    model = new_model(x).double()
    torch.nn.init.normal_(model.network.last.weight, std=0.5)
    sigma = torch.linspace(0.05, 4.0, 50, dtype=torch.float64)
    loss = WeightedLoss(DenoisingScoreMatching(), model.reference)(model, x, sigma, torch.Generator().manual_seed(3))
    x_t = Gaussian(sigma).sample(x, generator=torch.Generator().manual_seed(3))
    d, s = model.skip.data_scale, sigma[:, None]
    z = (x_t - model.skip.mean) / (s**2 + d**2).sqrt()
    c_out = s * d / (s**2 + d**2).sqrt()
    f = model.network(z, (sigma / d).log())
    target = (x - model.skip.denoise(x_t, Gaussian(sigma))) / c_out
    torch.testing.assert_close(loss, (f - target).square().mean(1), rtol=1e-8, atol=1e-10)


def test_a_scalar_skip_alone_has_loss_one(g):
    x = torch.randn(20_000, 3, generator=g) * 2
    model = new_model(x)
    levels = NoiseLevels(0.05, 20.0)
    each = WeightedLoss(DenoisingScoreMatching(), model.reference)(
        model, x, levels.draw(len(x), generator=g, like=x), g
    )
    assert abs(each.mean().item() - 1) < 4 * each.std().item() / math.sqrt(len(x))


def test_held_out_loss_uses_the_same_noise_at_every_look_and_its_error_is_over_rows(g):
    x = two_clusters(100, g)
    model = new_model(x)
    loss = WeightedLoss(DenoisingScoreMatching(), model.reference)
    look = HeldOut(x, NoiseLevels(0.1, 5.0), loss, seed=1)
    assert look(model) == look(model)
    values = [HeldOut(x, NoiseLevels(0.1, 5.0), loss, seed=s)(model)[0] for s in range(40)]
    assert len(set(values)) == 40
    assert look.x_t.shape[0] >= 2048
    assert abs(look(model)[0] - np.mean(values)) < 5 * look(model)[1]


LEVELS = NoiseLevels(0.2, 6.0)


def gaussian_case(n: int, seed: int, factor: float = 1.0) -> tuple[HeldOut, Preconditioned, float, float]:
    """N(0, 4I) in float64 under the score of N(0, 4·factor·I): a look, the weighted score error and the true floor."""
    g = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(n, 2, generator=g, dtype=torch.float64)
    model = new_model(x).double()
    model.skip = GaussianReference.of_moments(torch.zeros(2, dtype=torch.float64), 4 * factor * torch.eye(2).double())
    truth = WeightedLoss(DenoisingScoreMatching(), model.skip)
    s = LEVELS.quantile((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    wrong = (1 / (4 * factor + s**2) - 1 / (4 + s**2)) ** 2 * (4 + s**2)  # a direction's E(ψ − s)²
    floor = 1 / s**2 - 1 / (4 + s**2)
    error, least = ((truth.weight(s) * 2 * 0.5 * v).mean().item() for v in (wrong, floor))
    return HeldOut(x, LEVELS, truth, seed, min_draws=4 * n), model, error, least


def test_what_is_left_and_the_floor_on_gaussian_data():
    """left is at least the score error, floor at most the true one, together the loss; both near them for many rows."""
    for factor in (1.0, 2.0):
        for n in (20, 1000):
            looks = [gaussian_case(n, seed, factor) for seed in range(20 if n == 20 else 5)]
            _, _, error, least = looks[0]
            seen = np.array([[*look(model)[:4], look.floor] for look, model, _, _ in looks])
            loss, _, left, _, floor = seen.mean(0)
            stderr = seen.std(0, ddof=1) / math.sqrt(len(seen))
            assert abs(loss - left - floor) < 5 * (seen[:, 0] - seen[:, 2] - seen[:, 4]).std() / math.sqrt(len(seen))
            assert abs(loss - error - least) < 5 * stderr[0]
            assert left > error - 5 * stderr[2]
            assert floor < least + 5 * stderr[4]
            assert n == 20 or abs(left - error) < 0.1 * least
            assert n == 1000 or left > error + 5 * stderr[2]


def test_the_standard_errors_count_that_rows_share_references():
    """Against the spread over 300 fresh sets of 150 rows, known to 4·√(2/300) = 0.33; else they say a quarter."""
    looks = [gaussian_case(150, seed, 0.3) for seed in range(300)]
    seen = np.array([[*look(model)[:4], look.floor, look.floor_stderr] for look, model, _, _ in looks])
    for value, stderr in ((0, 1), (2, 3), (4, 5)):
        spread = seen[:, value].var(ddof=1)
        assert np.mean(seen[:, stderr] ** 2) / spread == pytest.approx(1, abs=0.35), value
    look, model, _, _ = looks[0]
    left = 0.5 * look.weight * (model.score(look.x_t, look.kernel) - look.groups[0].target).square().sum(1)
    alone = left.reshape(150, -1).mean(1).var().item() / 150
    assert alone < 0.5 * seen[:, 2].var(ddof=1)


def test_the_target_of_a_look_is_the_empirical_score_of_the_held_out_rows(g, monkeypatch):
    x = two_clusters(60, g).double()
    loss = WeightedLoss(DenoisingScoreMatching(), GaussianReference.of_data(x))
    look = HeldOut(x, LEVELS, loss, seed=1)
    want = Empirical(x).score(look.x_t, look.kernel)
    torch.testing.assert_close(look.groups[0].target, want, rtol=1e-9, atol=1e-9)
    clean = look.x_t + look.kernel.sigma[:, None] ** 2 * look.target
    torch.testing.assert_close(clean.reshape(60, -1, 2)[:, 0], clean.reshape(60, -1, 2)[:, -1])
    monkeypatch.setattr("gradlogp.training.held_out._PAIRS", 15 * len(look.x_t))
    cut = HeldOut(x, LEVELS, loss, seed=1)
    assert [len(group.x) for group in cut.groups] == [15] * 4
    draws = len(cut.x_t) // 60
    for k, group in enumerate(cut.groups):
        rows = torch.arange(15 * draws) + k * 15 * draws
        own = clean[rows][::draws]
        want = Empirical(own).score(cut.x_t[rows], cut.kernel.rows(rows))
        torch.testing.assert_close(group.target, want, rtol=1e-9, atol=1e-9)
    model = new_model(x).double()
    assert cut(model).held_out == pytest.approx(look(model).held_out, rel=1e-12)
    assert look(model).left < cut(model).left < cut(model).held_out


def test_one_held_out_row_leaves_all_of_the_loss(g):
    x = two_clusters(50, g)
    model = new_model(x)
    look = HeldOut(x[:1], LEVELS, WeightedLoss(DenoisingScoreMatching(), model.reference), seed=1)
    seen = look(model)
    assert seen.left == pytest.approx(seen.held_out, rel=1e-5)
    assert look.floor == pytest.approx(0, abs=1e-9)
    assert seen.left_stderr == math.inf


def test_the_average_follows_with_a_warm_up(g):
    model = new_model(two_clusters(20, g))
    average = Average(model, 0.999)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
        for p in average.model.parameters():
            p.zero_()
    average.update(0)
    first = next(average.model.parameters()).flatten()[0].item()
    assert first == pytest.approx(0.9)
    average.update(100_000)
    assert next(average.model.parameters()).flatten()[0].item() == pytest.approx(0.999 * first + 0.001, rel=1e-5)


def test_training_learns_what_the_skip_leaves_and_the_records_say_so(g):
    x, held_out = two_clusters(2000, g), two_clusters(500, g)
    model = new_model(x)
    levels = NoiseLevels(0.05, 10.0, centre=0.0, spread=1.2)
    records = list(
        train(model, x, held_out, levels=levels, recipe=Recipe(n_steps=300, evaluate_every=100), generator=g)
    )
    assert [r.step for r in records] == [0, 100, 200, 300]
    assert [r.progress for r in records] == [0.0, pytest.approx(0.33, abs=0.02), pytest.approx(0.66, abs=0.02), 1.0]
    assert records[0].held_out == pytest.approx(1.0, abs=4 * records[0].held_out_stderr + 0.05)
    assert records[-1].held_out < 0.6 * records[0].held_out
    assert all(r.held_out_stderr > 0 for r in records)
    for r in records:
        assert abs(r.held_out - r.left - r.floor) < 4 * math.hypot(r.held_out_stderr, r.left_stderr, r.floor_stderr)
        assert 0 < r.left < r.held_out
    assert not model.training


def test_the_best_weights_are_kept_and_a_good_start_is_never_left_worse(g):
    """On Gaussian data the best affine score is the truth: whatever training does to 40 rows, a look back is kept."""
    x, held_out = torch.randn(40, 3, generator=g), torch.randn(400, 3, generator=g)
    model = new_model(x, fade=0.0)
    levels, seed = NoiseLevels(0.05, 10.0), torch.Generator().manual_seed(5)
    recipe = Recipe(n_steps=400, learning_rate=5e-3, evaluate_every=50, patience=4)  # looks 50 apart up to 400
    records = list(train(model, x, held_out, levels=levels, recipe=recipe, generator=seed))
    best = min(records, key=lambda r: r.left)
    assert best == kept(records)
    assert records[-1].step < 400
    assert records[-1].step == best.step + 4 * 50
    again = torch.Generator().manual_seed(5)
    noise_seed = int(torch.randint(2**31, (), generator=again))
    loss = WeightedLoss(DenoisingScoreMatching(), model.reference)
    seen = HeldOut(held_out, levels, loss, noise_seed)(model)
    assert (seen.held_out, seen.left) == pytest.approx((best.held_out, best.left), rel=1e-6)


def test_stopping_early_leaves_the_best_so_far(g):
    x = two_clusters(300, g)
    model = new_model(x)
    steps = train(model, x, x[:50], levels=NoiseLevels(0.05, 10.0), recipe=Recipe(n_steps=10_000), generator=g)
    next(steps)
    record = next(steps)
    steps.close()
    assert record.best
    assert not model.training
    assert model.network.last.weight.abs().max() > 0


def test_looks_come_early_and_thin_out():
    step, looks = 0, []
    while step < 2000:
        looks.append(step := Recipe().next_look(step))
    assert looks[:8] == [25, 50, 75, 100, 125, 150, 175, 200]
    assert all(b - a <= a / 8 for a, b in pairwise(looks[7:]))
    assert len(looks) < 35
    for i in range(len(looks) - 6):  # six looks without a better one: half of the steps, and at least 150
        assert 150 <= looks[i + 6] - looks[i] <= max(150, 0.55 * looks[i + 6])


def test_a_network_that_learns_nothing_stops_after_150_steps(g):
    """The Gaussian of the rows' law is the truth: what is learnt from 40 rows is noise."""
    x, held_out = torch.randn(40, 3, generator=g), torch.randn(400, 3, generator=g)
    truth = GaussianReference(torch.zeros(3), torch.ones(3), torch.eye(3))
    model = Preconditioned(ResidualMLP((3,), width=32, depth=1), truth)
    records = list(train(model, x, held_out, levels=NoiseLevels(0.05, 10.0), generator=g))
    assert kept(records).step == 0
    assert records[-1].step == 150


def test_the_default_optimizer_is_adamw():
    """As torch.optim.AdamW, with groups, rates that change, and a parameter that has no gradient at times."""

    def end(optimizer):
        torch.manual_seed(0)
        net, extra = torch.nn.Linear(4, 3), torch.nn.Parameter(torch.ones(2))
        own = optimizer(
            [
                {"params": list(net.parameters()), "weight_decay": 0.1},
                {"params": [extra], "weight_decay": 0.0, "lr": 3e-2},
            ],
            lr=1e-2,
        )
        for i in range(12):
            own.param_groups[0]["lr"] = 1e-2 / (i + 1)
            own.zero_grad()
            x = torch.randn(8, 4)
            loss = net(x).square().mean() + (((extra * x[:, :2]).sum(1) - 1).square().mean() if i % 3 else 0.0)
            loss.backward()
            own.step()
        return torch.cat([p.detach().flatten() for p in (*net.parameters(), extra)])

    with torch.random.fork_rng():
        torch.testing.assert_close(end(AdamW), end(torch.optim.AdamW), rtol=1e-6, atol=1e-7)


def test_training_does_not_wait_for_a_compiler():
    """torch.optim.Optimizer imports torch._dynamo, autograd with grad_outputs sympy: a second of a first fit each."""
    code = (
        "import sys, numpy as np; from gradlogp import ScoreDensity\n"
        "ScoreDensity(n_steps=1, width=4, depth=1, verbose=False).fit(np.random.default_rng(0).normal(size=(20, 2)))\n"
        "print({'torch._dynamo', 'sympy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_limit_of_time_is_kept_and_the_rate_falls_to_its_end(g):
    recipe = Recipe(n_steps=10**6, max_seconds=1.0, evaluate_every=10)
    x = two_clusters(200, g)
    records = list(train(new_model(x), x, x[:50], levels=NoiseLevels(0.05, 10.0), recipe=recipe, generator=g))
    assert records[-1].progress == 1.0
    assert records[-1].seconds < 5.0
    assert recipe.rate(10_000, 0.0) == recipe.learning_rate
    assert recipe.rate(10_000, 0.7) == pytest.approx(recipe.learning_rate)
    assert recipe.rate(10_000, 0.85) == pytest.approx(recipe.learning_rate / 2)
    assert recipe.rate(10_000, 1.0) == 0.0
    assert recipe.rate(0, 0.0) == pytest.approx(recipe.learning_rate / 100)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_same_generator_trains_the_same_model_and_leaves_the_global_one_alone(dropout, g):
    x = two_clusters(200, g)
    before = torch.get_rng_state()
    models = []
    for seed in (1, 1, 2):
        model = new_model(x, dropout=dropout)
        recipe = Recipe(n_steps=20, evaluate_every=10)
        seeded = torch.Generator().manual_seed(seed)
        list(train(model, x, x[:50], levels=NoiseLevels(0.05, 10.0), recipe=recipe, generator=seeded))
        models.append(model.network.last.weight)
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])
    assert torch.equal(before, torch.get_rng_state())


def test_any_event_shape(g):
    x = torch.randn(100, 1, 4, 4, generator=g)
    model = Preconditioned(ResidualMLP((1, 4, 4), width=16, depth=1), MarginalReference.of_data(x))
    recipe = Recipe(n_steps=5, evaluate_every=5, batch_size=300)
    records = list(train(model, x, x[:10], levels=NoiseLevels(0.1, 5.0), recipe=recipe, generator=g))
    assert math.isfinite(records[-1].held_out)


def test_bad_rows_and_a_loss_that_blows_up_are_said_in_one_line(g):
    x = two_clusters(100, g)
    bad = x.clone()
    bad[7, 0] = torch.nan
    for rows, held_out, message in ((bad, x, "x: row 7"), (x, bad, "held_out: row 7")):
        with pytest.raises(InputError, match=message):
            next(train(new_model(x), rows, held_out, levels=NoiseLevels(0.1, 5.0), generator=g))
    model = new_model(x)
    recipe = Recipe(n_steps=200, learning_rate=1e30, warm_up=1)
    with pytest.raises(InputError, match="not finite at step"):
        list(train(model, x, x[:20], levels=NoiseLevels(0.1, 5.0), recipe=recipe, generator=g))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


class Fixed(torch.nn.Module):
    """A network that says the same whatever it is trained on."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, z, c_noise):
        return self.f(z, c_noise)


def test_the_gate_closes_a_network_that_does_not_help_and_leaves_one_that_does(g):
    """Data N(0, 4I) under the scalar skip of N(0, I): the exact denoiser is known, so is what the network should be."""
    x = 2 * torch.randn(4000, 3, generator=g)
    skip = GaussianReference.of_moments(torch.zeros(3), torch.eye(3))
    levels = NoiseLevels(0.2, 8.0)

    def exact(z, c):  # (D − D_ref)/c_out with σ_d = 1: 4/(4 + σ²) − 1/(1 + σ²), of x_t
        s = c.exp()[:, None]
        return (4 / (4 + s**2) - 1 / (1 + s**2)) * z * (1 + s**2) / s

    noise = torch.randn(3, 3, generator=g)
    noise = noise - noise.T  # ⟨x − D_ref, Nz⟩ has mean 0
    twice, unrelated = (lambda z, c: 2 * exact(z, c)), (lambda z, c: z @ noise)
    cases = {"exact": (exact, 1.0), "twice": (twice, 0.5), "noise": (unrelated, 0.0)}
    for name, (f, want) in cases.items():
        model = Preconditioned(Fixed(f), skip)
        calibrate(model, x, levels, n_draws=4096, generator=g)
        error = {"exact": 0.1, "twice": 0.05, "noise": 0.05}[name]
        assert (model.gate.share - want).abs().max() < error, name


def test_the_gate_takes_fewer_draws_of_many_columns(g):
    """10⁷ numbers over 16 levels are 2048 draws of up to 305 columns, 1250 of 500, and 256 at least."""
    for d, want in ((2, 2048), (500, 1250), (5000, 256)):
        seen = []
        skip = GaussianReference(torch.zeros(d), torch.ones(1), torch.eye(d)[:, :1])
        model = Preconditioned(Fixed(lambda z, c, seen=seen: seen.append(len(z)) or 0 * z), skip)
        calibrate(model, torch.randn(want, d, generator=g), NoiseLevels(0.2, 8.0), generator=g)
        assert set(seen) == {want}


def test_a_look_is_at_some_of_very_many_rows_drawn_at_random(g, monkeypatch):
    monkeypatch.setattr(looks, "MAX_ROWS", 300)
    x = two_clusters(3000, g).sort(0).values
    model, loss = new_model(x), WeightedLoss(DenoisingScoreMatching(), GaussianReference.of_data(x))
    look = HeldOut(x, NoiseLevels(0.1, 5.0), loss, seed=1, min_draws=300)
    assert len(look.x_t) == 300
    assert abs(look.x_t[:, 0].mean() - x[:, 0].mean()) < 5 * look.x_t[:, 0].std() / 300**0.5
    monkeypatch.undo()
    whole = HeldOut(x, NoiseLevels(0.1, 5.0), loss, seed=1)
    some, all_ = look(model), whole(model)
    assert abs(some.held_out - all_.held_out) < 5 * some.held_out_stderr


def test_the_gate_is_linear_in_log_sigma_between_its_levels(g):
    model = new_model(torch.randn(50, 2, generator=g), fade=0.0)
    torch.nn.init.normal_(model.network.last.weight)
    sigma = torch.logspace(-1, 1, 16)
    kernel, x_t = Gaussian(0.5 * (sigma[4] * sigma[5]).sqrt() * 2), torch.randn(5, 2, generator=g)
    whole = model.score(x_t, kernel) - model.skip.score(x_t, kernel)
    gate = torch.zeros(16)
    gate[5] = 1.0
    model.set_gate(sigma, gate)
    part = model.score(x_t, kernel) - model.skip.score(x_t, kernel)
    torch.testing.assert_close(part, 0.5 * whole, rtol=1e-3, atol=1e-5)


def test_data_of_any_size_are_learnt_alike(g):
    """The loss has no unit: N(0, s²) from 1e-12 to 1e12."""
    x = two_clusters(300, g)
    losses = []
    for s in (1e-12, 1.0, 1e12):
        model = Preconditioned(ResidualMLP((2,), width=8, depth=1), MarginalReference.of_data(s * x))
        levels = NoiseLevels(0.05 * s, 10.0 * s)
        recipe = Recipe(n_steps=1, evaluate_every=1)
        losses.append(next(train(model, s * x, s * x[:100], levels=levels, recipe=recipe, generator=g)).loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.2)
    assert losses[2] == pytest.approx(losses[1], rel=0.2)


def test_looks_that_bring_a_thousandth_of_the_loss_are_in_vain():
    def history(*left, stderr=1e-4):
        return [
            Record(25 * i, 0.1, 1.0, 1.0, 0.1, False, 1.0, v, 0.1, left[0] - v, stderr, 0.5, 0.1)
            for i, v in enumerate(left)
        ]

    assert in_vain(history(0.5)) == 0
    assert in_vain(history(0.5, 0.4, 0.3)) == 0
    assert in_vain(history(0.5, 0.4, 0.4, 0.41)) == 2
    assert in_vain(history(0.5, 0.4, 0.3996, 0.3993)) == 2
    assert in_vain(history(0.5, 0.4, 0.3996, 0.3993, 0.3989)) == 0  # together more than a thousandth
    assert in_vain(history(0.5, 0.4, 0.38, 0.37, stderr=0.1)) == 2  # less than half a standard error
    assert in_vain(history(0.5, 0.4, 0.38, 0.34, stderr=0.1)) == 0
