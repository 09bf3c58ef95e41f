"""Masses of cells from densities, against cumulative distribution functions and quadrature, and the laws on cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from gradlogp import InputError, likelihood, processes
from gradlogp.diagnostics import Estimate
from gradlogp.kernels import Gaussian
from gradlogp.likelihood.coupling import CellFlow
from gradlogp.likelihood.dequantise import (
    DenoisingSurrogate,
    UniformDequantisation,
    VariationalDequantisation,
    fit_dequantiser,
)
from gradlogp.likelihood.discrete import bits_per_dim, log_mass, mass_bound
from gradlogp.oracles import GaussianMixture

F64 = torch.float64
WEIGHTS, MEANS, SCALES = (0.3, 0.7), (-1.2, 1.1), (0.4, 0.7)
GRID = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]], dtype=F64)


def density(y: Tensor) -> Tensor:
    """Independent coordinates, each the same mixture on the line."""
    each = torch.stack(
        [
            math.log(w) + torch.distributions.Normal(m, s).log_prob(y)
            for w, m, s in zip(WEIGHTS, MEANS, SCALES, strict=True)
        ]
    )
    return each.logsumexp(0).flatten(1).sum(1)


def log_pdf(y: float) -> float:
    return math.log(sum(w * stats.norm.pdf(y, m, s) for w, m, s in zip(WEIGHTS, MEANS, SCALES, strict=True)))


def mass(low: float, high: float) -> float:
    """Of an interval, by SciPy."""
    parts = zip(WEIGHTS, MEANS, SCALES, strict=True)
    return sum(w * (stats.norm.cdf(high, m, s) - stats.norm.cdf(low, m, s)) for w, m, s in parts)


def bent(event: tuple[int, ...], n_rows: int = 64, widths: Tensor | float = 1.0, below: float = 0.0):
    """A law whose flow is far from the identity, and rows."""
    g = torch.Generator().manual_seed(5)
    x = torch.randint(-2, 3, (n_rows, *event), generator=g).double()
    law = VariationalDequantisation(widths, x, width=8, below=below, generator=g)
    for layer in law.flow.layers:
        torch.nn.init.normal_(layer.last.weight, std=0.6, generator=g)
        torch.nn.init.normal_(layer.last.bias, std=0.3, generator=g)
    return law, x


# bits


def test_bits_of_both_conventions_of_images():
    """Levels 0..255 as [0, 1) and [−1, 1): +8 and +7, and the two are one number for one law."""
    nats = torch.tensor([-3.0, 40.0], dtype=F64)
    d = 3 * 32 * 32
    by_hand = -nats / (d * math.log(2))
    assert torch.allclose(bits_per_dim(nats, d, 1 / 256), by_hand + 8)
    assert torch.allclose(bits_per_dim(nats, d, 2 / 256), by_hand + 7)
    moved = nats - d * math.log(2)  # y = 2 x01 − 1 has half the density in each coordinate
    assert torch.allclose(bits_per_dim(moved, d, 2 / 256), bits_per_dim(nats, d, 1 / 256))
    each = torch.full((d,), 2 / 256)
    assert torch.allclose(bits_per_dim(nats, d, each), by_hand + 7)


def test_a_uniform_die_has_its_bits():
    """Eight equal levels in each of five coordinates: three bits, as mass, and as density of any scale."""
    assert bits_per_dim(5 * math.log(1 / 8), 5) == pytest.approx(3.0)
    assert bits_per_dim(5 * math.log(1 / 20), 5, 20 / 8) == pytest.approx(3.0)
    e = bits_per_dim(Estimate(5 * math.log(1 / 8), 5 * math.log(2)), 5)
    assert (e.value, e.stderr) == (pytest.approx(3.0), pytest.approx(1.0))
    mixed = bits_per_dim(-1.0, 2, torch.tensor([0.5, 2.0]))
    assert mixed == pytest.approx(1 / (2 * math.log(2)))


# masses


@pytest.mark.parametrize("below", [0.0, 0.5, 1.0])
def test_many_draws_give_the_mass_of_the_cell(below: float, g: torch.Generator):
    truth = np.array([math.log(mass(x - below, x + 1 - below)) for x in GRID[:, 0].tolist()])
    found = log_mass(density, GRID, UniformDequantisation(1.0, below=below), n_draws=40_000, generator=g)
    assert (np.abs(found.value.numpy() - truth) < 4.5 * found.stderr.numpy()).all()
    assert (found.stderr < 0.02).all()


def test_the_standard_errors_are_those_of_repetitions(g: torch.Generator):
    x = GRID[1:2].repeat(4000, 1)
    found = log_mass(density, x, UniformDequantisation(1.0), n_draws=32, generator=g)
    for value, stderr in ((found.value, found.stderr), (found.elbo, found.elbo_stderr)):
        assert stderr.square().mean().sqrt().item() == pytest.approx(value.std().item(), rel=0.06)
    bound = mass_bound(lambda y: -density(y), x, UniformDequantisation(1.0), n_draws=32, generator=g)
    assert bound.stderr.square().mean().sqrt().item() == pytest.approx(bound.value.std().item(), rel=0.06)


def test_uniform_elbo_by_quadrature_and_below_the_mass(g: torch.Generator):
    h = 1.5
    found = log_mass(density, GRID, UniformDequantisation(h), n_draws=20_000, generator=g)
    bound = mass_bound(lambda y: -density(y), GRID, UniformDequantisation(h), n_draws=20_000, generator=g)
    for i, x in enumerate(GRID[:, 0].tolist()):
        elbo = integrate.quad(log_pdf, x, x + h)[0] / h + math.log(h)
        assert abs(found.elbo[i].item() - elbo) < 4.5 * found.elbo_stderr[i].item()
        assert abs(bound.value[i].item() + elbo) < 4.5 * bound.stderr[i].item()
        assert elbo < math.log(mass(x, x + h))


def test_more_draws_are_tighter_and_never_above(g: torch.Generator):
    """Means over 20 000 repetitions: ELBO < 2 draws < 4 < 16 < truth; the bias is about ½ variance."""
    x = torch.full((20_000, 1), -1.0, dtype=F64)
    truth = math.log(mass(-1.0, 0.5))
    law, means = UniformDequantisation(1.5), []
    for k in (2, 4, 16):
        found = log_mass(density, x, law, n_draws=k, generator=g)
        if k == 2:
            means.append(found.elbo_mean)
        means.append(found.mean)
    for low, high in zip(means, [*means[1:], Estimate(truth, 0.0)], strict=True):
        assert high.value - low.value > 4 * math.hypot(low.stderr, high.stderr)
    assert truth - means[-1].value == pytest.approx(found.value.var().item() / 2, rel=0.25)


def test_mass_in_two_dimensions_with_correlation(g: torch.Generator):
    c = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=F64)
    law = stats.multivariate_normal([0.2, -0.1], c.numpy())
    normal = torch.distributions.MultivariateNormal(torch.tensor([0.2, -0.1], dtype=F64), c)
    x = torch.tensor([[0.0, 0.0], [-1.0, 1.0]], dtype=F64)
    h = torch.tensor([1.0, 0.5], dtype=F64)
    found = log_mass(normal.log_prob, x, UniformDequantisation(h), n_draws=20_000, generator=g)
    for i, corner in enumerate(x.numpy()):
        truth = math.log(law.cdf(corner + h.numpy(), lower_limit=corner))
        assert abs(found.value[i].item() - truth) < 4.5 * found.stderr[i].item()


@pytest.mark.parametrize("learnt", [False, True])
def test_continuous_columns_keep_their_density(learnt: bool, g: torch.Generator):
    """Second column continuous: mass of the first times density of the second, for any law on the cell."""
    h = torch.tensor([1.5, 0.0], dtype=F64)
    law = bent((2,), widths=h)[0] if learnt else UniformDequantisation(h)
    x = torch.tensor([[-1.0, 0.37], [1.0, -2.5]], dtype=F64)
    y, _ = law.sample(x, generator=g)
    assert torch.equal(y[:, 1], x[:, 1])
    assert not torch.equal(y[:, 0], x[:, 0])
    found = log_mass(density, x, law, n_draws=40_000, generator=g)
    for i, (a, b) in enumerate(x.tolist()):
        truth = math.log(mass(a, a + 1.5)) + log_pdf(b)
        assert abs(found.value[i].item() - truth) < 4.5 * found.stderr[i].item() < 0.2


def test_images_are_their_flat_rows(g: torch.Generator):
    x = torch.randint(-2, 3, (3, 1, 2, 2), generator=g).double()
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    image = log_mass(density, x, UniformDequantisation(1.0), generator=seeds[0])
    flat = log_mass(density, x.flatten(1), UniformDequantisation(1.0), generator=seeds[1])
    assert torch.equal(image.value, flat.value)


def test_where_the_density_is_zero(g: torch.Generator):
    """Uniform on (0.25, 2): a cell that is cut, and one outside."""

    def box(y: Tensor) -> Tensor:
        inside = (y > 0.25) & (y < 2)
        return torch.where(inside, -math.log(1.75), -math.inf)[:, 0].to(y)

    x = torch.tensor([[0.0], [5.0]], dtype=F64)
    found = log_mass(box, x, UniformDequantisation(1.0), n_draws=20_000, generator=g)
    assert abs(found.value[0].item() - math.log(0.75 / 1.75)) < 4.5 * found.stderr[0].item()
    assert found.elbo[0].item() == found.value[1].item() == -math.inf
    assert found.stderr[1].item() == found.elbo_stderr[0].item() == math.inf


# the law on the cell


def test_it_starts_as_the_uniform_law(g: torch.Generator):
    x = torch.randint(0, 5, (50, 3), generator=g).double()
    law = VariationalDequantisation(2.0, x, generator=g)
    a, b = (torch.Generator().manual_seed(4) for _ in range(2))
    (y, log_q), (u, log_u) = law.sample(x, generator=a), UniformDequantisation(2.0).sample(x, generator=b)
    assert torch.allclose(y, u, atol=1e-12)
    assert torch.allclose(log_q, log_u, atol=1e-10)
    assert log_q[0].item() == pytest.approx(-3 * math.log(2))


@pytest.mark.parametrize("d", [1, 2])
def test_it_integrates_to_one_over_the_cell(d: int):
    law, x = bent((d,), widths=0.7, below=0.5)
    n = 1201 if d == 1 else 301
    side = (torch.arange(n, dtype=F64) + 0.5) / n * 1.4 - 0.7  # twice the cell: outside of it there is nothing
    y = torch.cartesian_prod(*[side] * d).reshape(-1, d)
    for row in x[:2]:
        q = law.log_prob(row + y, row.expand(len(y), d)).exp()
        assert q.sum().item() * (1.4 / n) ** d == pytest.approx(1.0, abs=3e-3)
    assert q.max() > 1.5 * q[q > 0].median()


@pytest.mark.parametrize("d", [1, 2, 5])
def test_log_det_is_that_of_autograd(d: int, g: torch.Generator):
    law, x = bent((d,))
    v, c = torch.rand(4, d, generator=g, dtype=F64), law._condition(x[:4])
    _, log_q = law.flow(v, c)
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda r, i=i: law.flow(r[None], c[i : i + 1])[0][0], v[i])
        assert log_q[i].item() == pytest.approx(-torch.linalg.slogdet(jacobian)[1].item(), abs=1e-9)
    assert log_q.abs().max() > 0.1


@pytest.mark.parametrize("event", [(1,), (4,), (1, 2, 3)])
def test_density_of_draws_is_that_of_the_inverse(event: tuple[int, ...], g: torch.Generator):
    law, x = bent(event, widths=0.3, below=0.25)
    y, log_q = law.sample(x, generator=g)
    assert torch.allclose(law.log_prob(y, x), log_q, atol=1e-8)
    assert ((y >= x - 0.075 - 1e-12) & (y <= x + 0.225 + 1e-12)).all()
    assert (law.log_prob(x + 0.23, x) == -math.inf).all()


def test_every_coordinate_depends_on_others_and_on_x():
    law, x = bent((3,))
    v = torch.full((1, 3), 0.4, dtype=F64)
    c = law._condition(x[:1])
    j = torch.autograd.functional.jacobian(lambda r: law.flow(r[None], c)[0][0], v[0])
    assert (j.abs() > 1e-6).all()
    j = torch.autograd.functional.jacobian(lambda r: law.flow(v, r[None])[0][0], c[0])
    assert (j.abs() > 1e-6).all()


def test_cell_flow_far_out_is_finite():
    flow = CellFlow(2, 1, generator=torch.Generator().manual_seed(0))
    u, log_q = flow(torch.tensor([[0.0, 1.0], [1e-300, 0.5]], dtype=F64), torch.zeros(2, 1, dtype=F64))
    assert u.isfinite().all()
    assert log_q.isfinite().all()


@pytest.mark.parametrize("d", [1, 2])
def test_training_comes_near_the_mass(d: int):
    """Steep within the cell, σ = 0.35 of a bin: variational between uniform and truth, and its weights more even."""
    g = torch.Generator().manual_seed(1)
    s = 0.35 if d == 1 else 0.5
    normal = torch.distributions.Normal(torch.tensor(0.4, dtype=F64), s)
    x = torch.randint(-1, 2, (512, d), generator=g).double()
    law = VariationalDequantisation(1.0, x, width=16, generator=g)
    fit = fit_dequantiser(
        law, lambda y, _: -normal.log_prob(y).sum(1), x, n_steps=300, batch_size=128, learning_rate=2e-2, generator=g
    )
    u = log_mass(lambda y: normal.log_prob(y).sum(1), x, UniformDequantisation(1.0), n_draws=64, generator=g)
    v = log_mass(lambda y: normal.log_prob(y).sum(1), x, law, n_draws=64, generator=g)
    cdf = stats.norm(0.4, s).cdf
    truth = torch.tensor(np.log(cdf(x.numpy() + 1) - cdf(x.numpy()))).sum(1)
    lost = [Estimate.mean_of(truth - m.elbo) for m in (u, v)]
    assert lost[1].value > -4 * lost[1].stderr
    assert lost[1].value < 0.1 * lost[0].value
    assert v.stderr.mean() < 0.3 * u.stderr.mean()
    gain = Estimate.mean_of(v.elbo - u.elbo)
    assert abs(fit.gain.value - gain.value) < 4.5 * math.hypot(fit.gain.stderr, gain.stderr)
    assert fit.looks[0].gain.value == pytest.approx(0.0, abs=1e-9)


def test_a_fit_that_goes_wrong_is_not_kept(g: torch.Generator):
    """A surrogate that is flat: the uniform law is the best, whatever the rate."""
    x = torch.randint(0, 3, (64, 2), generator=g).double()
    law = VariationalDequantisation(1.0, x, width=8, generator=g)
    fit = fit_dequantiser(law, lambda y, _: 0 * y.sum(1), x, n_steps=20, learning_rate=0.5, generator=g)
    assert fit.gain.value == pytest.approx(0.0, abs=1e-9)
    assert min(look.gain.value for look in fit.looks) < -0.05


# the surrogate


def oracle() -> GaussianMixture:
    means = torch.tensor([[-1.2, 0.4], [1.1, -0.3]], dtype=F64)
    return GaussianMixture(torch.tensor(WEIGHTS, dtype=F64), means, torch.tensor(SCALES, dtype=F64) ** 2)


@pytest.mark.parametrize("process", [processes.EDM(), processes.VP()], ids=str)
def test_surrogate_is_the_log_density_and_so_is_its_gradient(process):
    """An exact score, the mixture's own Gaussian at the end: −log p within noise, and its gradient −∇log p."""
    model, g = oracle(), torch.Generator().manual_seed(2)
    surrogate = DenoisingSurrogate(model, process, prior=model.reference)
    y = torch.tensor([[-0.7, 0.1]], dtype=F64).repeat(60_000, 1).requires_grad_()
    value = surrogate(y, g)
    truth = -model.log_prob(y[:1].detach(), Gaussian(1e-6))[0].item()
    e = Estimate.mean_of(value.detach())
    assert abs(e.value - truth) < 4.5 * e.stderr < 0.1
    (gradient,) = torch.autograd.grad(value.sum(), y)
    score = model.score(y[:1].detach(), Gaussian(1e-6))[0]
    for j in range(2):
        e = Estimate.mean_of(gradient[:, j])
        assert abs(e.value + score[j].item()) < 4.5 * e.stderr < 0.25


def test_surrogate_is_the_bound_where_the_decoder_counts():
    """From t_min = 0.4, where the term of [0, t_min] is large: the number of ``likelihood.bound``."""
    model, g = oracle(), torch.Generator().manual_seed(2)
    y = torch.tensor([[-0.7, 0.1]], dtype=F64)
    options = {"t_min": 0.4, "t_max": 20.0, "prior": model.reference}
    bound = Estimate.mean_of(likelihood.bound(model, y.repeat(400, 1), processes.EDM(), generator=g, **options).value)
    e = Estimate.mean_of(DenoisingSurrogate(model, processes.EDM(), **options)(y.repeat(60_000, 1), g))
    assert abs(e.value - bound.value) < 4.5 * math.hypot(e.stderr, bound.stderr) < 0.15


def test_mass_by_the_bound_and_by_the_flow(g: torch.Generator):
    """An exact score has one density: both ways come to the uniform ELBO of the mixture."""
    model, law = oracle(), UniformDequantisation(1.0)
    x = torch.tensor([[-2.0, 0.0], [0.0, -1.0]], dtype=F64)
    truth = log_mass(lambda y: model.log_prob(y, Gaussian(1e-6)), x, law, n_draws=20_000, generator=g)
    found = mass_bound(
        lambda y: likelihood.bound(model, y, processes.EDM(), prior=model.reference, generator=g).value,
        x,
        law,
        n_draws=64,
        generator=g,
    )
    assert ((found.value + truth.elbo).abs() < 4.5 * found.stderr.hypot(truth.elbo_stderr)).all()
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    flow = log_mass(
        lambda y: likelihood.log_prob(model, y, sigma_min=1e-3).value, x, law, n_draws=4, generator=seeds[0]
    )
    same = log_mass(lambda y: model.log_prob(y, Gaussian(1e-3)), x, law, n_draws=4, generator=seeds[1])
    assert torch.allclose(flow.value, same.value, atol=3e-3)


# input


@pytest.mark.parametrize("widths", [-1.0, math.nan, math.inf, torch.tensor([1.0, -0.5]), torch.empty(0), "a"])
def test_widths_that_cannot_be(widths, as_a_user):
    for make in (UniformDequantisation, lambda h: VariationalDequantisation(h, torch.zeros(3, 2))):
        with pytest.raises(InputError, match=r"widths: got .*, want"):
            make(widths)


def test_bad_input(as_a_user):
    law, x = UniformDequantisation(torch.ones(2)), torch.zeros(3, 2)
    bad = [
        (lambda: UniformDequantisation(1.0, below=1.5), "below: got 1.5"),
        (lambda: law.sample(torch.zeros(3, 4)), "x: got event shape"),
        (lambda: law.sample(x * math.nan), "x: row 0 holds NaN"),
        (lambda: UniformDequantisation(1e-3).sample(x + 1e6), "widths: got 0.001, near the rounding"),
        (lambda: law.log_prob(x[:2], x), "y: got 2 rows, want 3"),
        (lambda: VariationalDequantisation(0.0, x), "widths: got 0 for all"),
        (lambda: VariationalDequantisation(torch.ones(3), x), "x: got event shape"),
        (lambda: log_mass(density, x, law, n_draws=0), "n_draws: got 0"),
        (lambda: log_mass(density, x, law, n_draws=1), "n_draws: got 1"),
        (lambda: mass_bound(density, x, law, n_draws=1), "n_draws: got 1"),
        (lambda: log_mass(density, x, 1.0), "dequantiser: got float"),
        (lambda: log_mass(lambda y: y, x, law), "log_density: got"),
        (lambda: log_mass(lambda y: y[:, 0] * math.nan, x, law), "log_density: got NaN"),
        (lambda: fit_dequantiser(law, lambda y, g: y[:, 0], x), "dequantiser: got Uniform"),
        (lambda: fit_dequantiser(VariationalDequantisation(1.0, x), lambda y, g: y[:, 0], x, n_steps=0), "n_steps"),
        (
            lambda: fit_dequantiser(VariationalDequantisation(1.0, x), lambda y, g: y[:, 0] * math.nan, x),
            "surrogate: got values that are not finite",
        ),
        (
            lambda: fit_dequantiser(VariationalDequantisation(1.0, x), lambda y, g: y.detach()[:, 0], x),
            "surrogate: got values without a gradient",
        ),
        (lambda: bits_per_dim(1.0, 0), "n_dims: got 0"),
        (lambda: bits_per_dim(1.0, 2, 0.0), "bin_width: got 0.0"),
        (lambda: bits_per_dim(1.0, 2, torch.ones(3)), "bin_width: got"),
        (lambda: DenoisingSurrogate(1, processes.EDM()), "model: got int"),
    ]
    for call, message in bad:
        with pytest.raises(InputError) as error:
            call()
        assert message in str(error.value)
        assert "\n" not in str(error.value).replace("\n ", " ")


def test_model_and_grid_are_left_alone(g: torch.Generator):
    """Gradients go to the law alone; x off any grid is a cell like another."""
    weight = torch.nn.Parameter(torch.tensor(1.0, dtype=F64))
    x = torch.rand(20, 2, generator=g, dtype=F64)
    law = VariationalDequantisation(1.0, x, width=4, generator=g)
    fit_dequantiser(law, lambda y, _: weight * y.square().sum(1), x, n_steps=3, batch_size=8, generator=g)
    assert weight.grad is None
    assert all(p.grad is None for p in law.parameters())
