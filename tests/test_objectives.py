"""Objectives: closed forms for affine models, quadrature, and each against the others."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import BY_NAME, COVARIANCE, F64, LAWS, SHIFT, Law, ids, mvn, t64
from scipy import integrate, stats
from torch import distributions as td

from gradlogp import InputError
from gradlogp.kernels import Additive, Gaussian, Kernel
from gradlogp.models import GaussianReference, Preconditioned, ScoreFunction, ScoreModel
from gradlogp.networks import ResidualMLP
from gradlogp.objectives import (
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    FiniteDifferenceScoreMatching,
    ImplicitScoreMatching,
    Objective,
    SlicedScoreMatching,
    gaussian,
    rademacher,
    sphere,
)
from gradlogp.oracles import Empirical, GaussianMixture, Quadrature

D = 3
A = t64(np.random.default_rng(3).normal(size=(D, D))) * 0.7  # not symmetric
C = t64([0.5, -1.0, 0.2])
LEVELS = t64([0.2, 0.5, 1.0, 2.0])
PROJECTIONS = [rademacher, gaussian, sphere]
SLICED = [SlicedScoreMatching(p, variance_reduced=v) for p in PROJECTIONS for v in (True, False)]
FINITE = [FiniteDifferenceScoreMatching(1e-4, p) for p in PROJECTIONS]
IMPLICIT: list[Objective] = [ImplicitScoreMatching(), *SLICED, SlicedScoreMatching(n_projections=3), *FINITE]
DENOISING: list[Objective] = [
    *(DenoisingScoreMatching(n) for n in (1, 3)),
    *(DenoisingScoreMatching(n, antithetic=True) for n in (2, 4)),
]


def name(o: Any) -> str:
    inner = [getattr(v, "__name__", str(v)) for v in vars(o).values()]
    return "-".join([type(o).__name__, *inner])


def affine(a: torch.Tensor = A, c: torch.Tensor = C) -> ScoreModel:
    return ScoreFunction(lambda x_t, kernel: (x_t.flatten(1) @ a.T + c).reshape(x_t.shape))


def skewed(n: int, d: int = D) -> torch.Tensor:
    """Data that are not Gaussian: skewed, correlated, off centre."""
    e = td.Exponential(t64(1.0))
    torch.manual_seed(0)
    return e.sample((n, d)) @ t64(np.random.default_rng(1).normal(size=(d, d))) + 0.3


def within(values: torch.Tensor, want: float | torch.Tensor, k: float = 4.5, slack: float = 0.0) -> None:
    r = values.double() - want
    assert abs(r.mean().item()) < k * r.std().item() / len(r) ** 0.5 + slack, (r.mean(), r.std() / len(r) ** 0.5)


def noise_moments(kernel: str) -> tuple[Kernel, np.ndarray, np.ndarray, float]:
    """A kernel, the mean and covariance of its noise, and its Fisher information, from SciPy."""
    if kernel == "mvn":
        return mvn(), SHIFT, COVARIANCE, float(np.trace(np.linalg.inv(COVARIANCE)))
    if kernel == "gaussian":
        return Gaussian(0.6), np.zeros(D), 0.36 * np.eye(D), D / 0.36
    if kernel == "alpha":
        return Gaussian(0.6, 0.5), np.zeros(D), 0.36 * np.eye(D), D / 0.36
    law = BY_NAME[kernel]
    s = law.kernel()
    return s, np.full(D, law.scipy.mean()), law.scipy.var() * np.eye(D), s.fisher_information((D,)).item()


KERNELS = ["gaussian", "alpha", "mvn", "normal shifted", "laplace", "student 5", "logistic", "mixture", "gennorm 1.5"]


# --- closed forms -----------------------------------------------------------------------------------------------------


def affine_losses(kernel: str, x: torch.Tensor) -> tuple[Kernel, float, float]:
    """J_ISM = ½(|Am + c|² + tr A(αα S + N)Aᵀ) + tr A and J_DSM = J_ISM + ½I(q): any data, any noise."""
    k, shift, n, fisher = noise_moments(kernel)
    alpha = k.alpha.item()
    mean = alpha * x.mean(0).numpy() + shift
    cov = alpha**2 * np.cov(x.numpy().T, ddof=0) + n
    a, c = A.numpy(), C.numpy()
    ism = 0.5 * (np.sum((a @ mean + c) ** 2) + np.trace(a @ cov @ a.T)) + np.trace(a)
    return k, ism, ism + 0.5 * fisher


def draws_of(x: torch.Tensor, n: int) -> torch.Tensor:
    return x[torch.randint(len(x), (n,), generator=torch.Generator().manual_seed(5))]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("objective", IMPLICIT, ids=name)
def test_implicit_loss_of_an_affine_model(kernel: str, objective: Objective) -> None:
    x = skewed(400)
    k, ism, _ = affine_losses(kernel, x)
    with torch.no_grad():
        rows = objective(affine(), draws_of(x, 16_000), k, generator=torch.Generator().manual_seed(1))
    assert rows.shape == (16_000,)
    within(rows, ism)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("objective", DENOISING, ids=name)
def test_denoising_loss_of_an_affine_model(kernel: str, objective: DenoisingScoreMatching) -> None:
    x = skewed(400)
    k, _, dsm = affine_losses(kernel, x)
    if objective.antithetic and not k.symmetric:
        with pytest.raises(InputError, match="not symmetric"):
            objective(affine(), x, k)
        return
    rows = objective(affine(), draws_of(x, 16_000), k, generator=torch.Generator().manual_seed(2))
    assert rows.shape == (16_000,)
    within(rows, dsm)


def test_explicit_loss_of_an_affine_model_on_gaussian_data() -> None:
    """ψ − s is affine, so J_ESM is ½(|bias|² + tr)."""
    root = t64(np.random.default_rng(2).normal(size=(D, D)))
    s = root @ root.T
    oracle, k = GaussianMixture(t64([1.0]), C[None], s[None]), mvn()
    v = s + t64(COVARIANCE)
    mean = C + t64(SHIFT)
    b = A + torch.linalg.inv(v)
    bias = A @ mean + C
    want = 0.5 * (bias @ bias + torch.trace(b @ v @ b.T))
    g = torch.Generator().manual_seed(0)
    within(ExplicitScoreMatching(oracle)(affine(), oracle.sample(20_000, generator=g), k, generator=g), want)
    assert ExplicitScoreMatching(oracle)(oracle, C[None], k, generator=g).item() == 0


@pytest.mark.parametrize("law", LAWS, ids=ids)
def test_losses_on_the_line_by_quadrature(law: Law) -> None:
    """psi = sin(2u) over two atoms: every loss is an integral over the noise."""
    atoms, model = t64([[-0.5], [0.8]]), ScoreFunction(lambda x_t, kernel: torch.sin(2 * x_t))
    s, m = law.scipy.var() ** 0.5, law.scipy.mean()
    cuts = sorted({m + v * s for v in (-60, -8, -3, -1, 1, 3, 8, 60)} | set(law.kinks))

    def mean(f: Any) -> float:
        return sum(
            integrate.quad(lambda u: 0.5 * (f(-0.5 + u) + f(0.8 + u)) * law.scipy.pdf(u), a, b, limit=200)[0]
            for a, b in itertools.pairwise(cuts)
        )

    with np.errstate(over="ignore", divide="ignore"):
        ism = mean(lambda x: 0.5 * np.sin(2 * x) ** 2 + 2 * np.cos(2 * x))
    x = atoms.repeat(8000, 1)
    kernel = law.kernel()
    half = 0.5 * kernel.fisher_information((1,)).item()
    for objective in (ImplicitScoreMatching(), SlicedScoreMatching(), FiniteDifferenceScoreMatching()):
        slack = 5e-3 if isinstance(objective, FiniteDifferenceScoreMatching) else 0
        within(objective(model, x, kernel, generator=torch.Generator().manual_seed(0)), ism, slack=slack)
    within(DenoisingScoreMatching()(model, x, kernel, generator=torch.Generator().manual_seed(0)), ism + half)


def test_explicit_loss_on_the_line_by_quadrature() -> None:
    b, oracle = 0.5, Quadrature(td.Laplace(t64(0.0), t64(0.5)))
    kernel = BY_NAME["laplace"].kernel()

    def integrand(u: float) -> float:
        p = (b * math.exp(-u / b) - 0.3 * math.exp(-u / 0.3)) / (b * b - 0.09)
        score = (math.exp(-u / 0.3) - math.exp(-u / b)) / (b * b - 0.09) / p
        return 0.5 * (-0.7 * u - score) ** 2 * p

    want = integrate.quad(integrand, 0, 30)[0]
    x = oracle.sample(4000, generator=torch.Generator().manual_seed(0))
    model = ScoreFunction(lambda x_t, kernel: -0.7 * x_t)
    within(ExplicitScoreMatching(oracle)(model, x, kernel, generator=torch.Generator().manual_seed(1)), want)


# --- each against the others ------------------------------------------------------------------------------------------


def random_network(event: tuple[int, ...] = (D,), data: torch.Tensor | None = None) -> Preconditioned:
    torch.manual_seed(1)
    net = ResidualMLP(event, width=12, depth=1)
    torch.nn.init.normal_(net.last.weight, std=0.3)
    x = skewed(400, math.prod(event)).reshape(400, *event) if data is None else data
    return Preconditioned(net.double(), GaussianReference.of_data(x, 0.5))


ROWS = Gaussian(LEVELS.repeat(1500), t64([1.0, 0.7, 0.3, 0.9]).repeat(1500))


@pytest.mark.parametrize("kernel", [ROWS, Gaussian(0.5), BY_NAME["laplace"].kernel(), mvn()], ids=repr)
def test_every_objective_of_a_network_is_the_same_up_to_its_constant(kernel: Kernel) -> None:
    x, model = draws_of(skewed(400), 6000), random_network()
    half = 0.5 * kernel.fisher_information((D,))
    with torch.no_grad():
        want = ImplicitScoreMatching()(model, x, kernel, generator=torch.Generator().manual_seed(3))
        for objective in [*SLICED, SlicedScoreMatching(n_projections=3), FiniteDifferenceScoreMatching(1e-3)]:
            got = objective(model, x, kernel, generator=torch.Generator().manual_seed(3))
            within(got - want, 0.0, slack=1e-4)
        for objective in DENOISING:
            if kernel.symmetric or not objective.antithetic:
                got = objective(model, x, kernel, generator=torch.Generator().manual_seed(3))
                within(got - want - half, 0.0)


def test_levels_stay_with_their_rows() -> None:
    """Per-row levels: the rows of one level have that level's loss, with several draws a row as well."""
    x = torch.zeros(6000, D, dtype=F64)
    kernel = Gaussian(LEVELS.repeat(1500))
    for objective in [*DENOISING, *IMPLICIT]:
        rows = objective(affine(), x, kernel, generator=torch.Generator().manual_seed(4)).reshape(1500, 4)
        for j, s in enumerate(LEVELS.tolist()):
            ism = 0.5 * (C @ C + s**2 * A.square().sum()) + A.trace()
            within(rows[:, j], ism + (0.5 * D / s**2 if objective in DENOISING else 0.0))


def gradient(loss: torch.Tensor, model: ScoreModel) -> torch.Tensor:
    return torch.cat([v.flatten() for v in torch.autograd.grad(loss, tuple(model.parameters()))])


def test_explicit_and_denoising_losses_have_the_same_gradient() -> None:
    """∇J_ESM = ∇J_DSM = ∇J_ISM = ∇J_SSM for a random network, within 4 standard errors over 60 batches, Bonferroni."""
    oracle = Empirical(skewed(30))
    model = random_network(data=oracle.data)
    kernel = Gaussian(0.7, 0.8)
    others: list[Objective] = [
        DenoisingScoreMatching(4, antithetic=True),
        ImplicitScoreMatching(),
        SlicedScoreMatching(),
    ]
    differences: list[list[torch.Tensor]] = [[] for _ in others]
    for seed in range(60):
        x = oracle.sample(200, generator=torch.Generator().manual_seed(seed))
        esm = ExplicitScoreMatching(oracle)(model, x, kernel, generator=torch.Generator().manual_seed(1000 + seed))
        want = gradient(esm.mean(), model)
        for objective, out in zip(others, differences, strict=True):
            loss = objective(model, x, kernel, generator=torch.Generator().manual_seed(1000 + seed))
            out.append(gradient(loss.mean(), model) - want)
    for out in differences:
        d = torch.stack(out)
        z = d.mean(0) / (d.std(0) / 60**0.5).clamp_min(1e-12)
        assert (z.abs() < 6).all()
        assert (z.abs() > 2.5).float().mean() < 0.08
        assert d.mean(0).norm() < 0.35 * want.norm()


@pytest.mark.parametrize("objective", [*DENOISING, *IMPLICIT], ids=name)
@pytest.mark.parametrize("kernel", [Gaussian(0.5, 0.8), Gaussian(LEVELS), BY_NAME["laplace"].kernel()], ids=repr)
def test_event_shapes_give_equal_rows(objective: Objective, kernel: Kernel) -> None:
    x = skewed(4, 12)
    flat, image = random_network((12,)), random_network((2, 2, 3))
    got = objective(image, x.reshape(4, 2, 2, 3), kernel, generator=torch.Generator().manual_seed(0))
    want = objective(flat, x, kernel, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(got, want)
    assert got.requires_grad
    with torch.no_grad():
        again = objective(flat, x, kernel, generator=torch.Generator().manual_seed(0))
    assert not again.requires_grad
    torch.testing.assert_close(again, want)


# --- variance ---------------------------------------------------------------------------------------------------------


def test_variance_of_an_affine_loss() -> None:
    """On the line, data N(m, v), ψ = ax + b: u = ax~ + b + z/σ ~ N(am + b, τ), Var(½u²) = τ²/2 + (am + b)²τ."""
    m, v, s, a, b = 0.4, 1.3, 0.3, -0.8, 0.5
    g = torch.Generator().manual_seed(0)
    x = m + v**0.5 * torch.randn(200_000, 1, generator=g, dtype=F64)
    rows = DenoisingScoreMatching()(affine(t64([[a]]), t64([b])), x, Gaussian(s), generator=g)
    tau = a * a * (v + s * s) + 1 / s**2 + 2 * a
    want = tau**2 / 2 + (a * m + b) ** 2 * tau
    assert rows.var().item() == pytest.approx(want, rel=5 * (14 / 200_000) ** 0.5)
    within(rows, 0.5 * (tau + (a * m + b) ** 2))


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_projections_have_unit_covariance_and_the_variance_of_hutchinson(projection: Any) -> None:
    """Var vᵀAv is 2(‖S‖² − ΣS_ii²), 2‖S‖² or 2d/(d+2)·(‖S‖² − (tr S)²/d), S = (A + Aᵀ)/2."""
    n = 40_000
    v = projection(torch.zeros(n, 1, D, 1, dtype=F64), torch.Generator().manual_seed(0)).reshape(n, D)
    products = v[:, :, None] * v[:, None]
    stderr = products.std(0) / n**0.5
    assert ((products.mean(0) - torch.eye(D)).abs() <= 4.5 * stderr + 1e-12).all()
    if projection is not gaussian:
        torch.testing.assert_close(v.square().sum(1), torch.full((n,), float(D), dtype=F64))
    s = (A + A.T) / 2
    square = s.square().sum()
    want = {
        rademacher: 2 * (square - s.diagonal().square().sum()),
        gaussian: 2 * square,
        sphere: 2 * D / (D + 2) * (square - s.trace() ** 2 / D),
    }[projection]
    q = torch.einsum("ni,ij,nj->n", v, A, v)
    within(q, A.trace())
    assert q.var().item() == pytest.approx(want.item(), rel=0.06)


def test_variance_reduction_and_noise_repetition_reduce_variance() -> None:
    x, model = draws_of(skewed(400), 8000), affine()

    def spread(objective: Objective, sigma: float) -> float:
        return objective(model, x, Gaussian(sigma), generator=torch.Generator().manual_seed(0)).var().item()

    reduced, full = (spread(SlicedScoreMatching(variance_reduced=v), 0.5) for v in (True, False))
    assert reduced < 0.8 * full
    one, four = (spread(DenoisingScoreMatching(n), 0.02) for n in (1, 4))
    assert four == pytest.approx(one / 4, rel=0.15)  # at small noise nearly all variance is the noise's
    plain, many = (spread(SlicedScoreMatching(n_projections=n), 0.5) for n in (1, 16))
    assert many < plain


def test_antithetic_pairs_cancel_the_cross_term() -> None:
    """For constant ψ the pair's loss is ½|c|² + ½|z|²/σ²: the term in 1/σ is gone."""
    sigma = 0.1
    model = affine(torch.zeros(D, D, dtype=F64), C)
    rows = DenoisingScoreMatching(2, antithetic=True)(model, torch.zeros(20_000, D, dtype=F64), Gaussian(sigma))
    radius = 2 * sigma**2 * (rows - 0.5 * C @ C)
    assert stats.kstest(radius.numpy(), stats.chi2(D).cdf).pvalue > 1e-5


def test_divergence_is_the_trace_of_the_jacobian() -> None:
    model, x = random_network(), skewed(5)
    kernel = Gaussian(1e-9)
    got = ImplicitScoreMatching()(model, x, kernel, generator=torch.Generator().manual_seed(0))
    x_t = kernel.sample(x, generator=torch.Generator().manual_seed(0))
    jacobian = torch.func.jacrev(lambda v: model.score(v, kernel).sum(0))(x_t)
    psi = model.score(x_t, kernel)
    torch.testing.assert_close(got, 0.5 * psi.square().sum(1) + torch.einsum("ibi->b", jacobian))


def test_a_constant_model_has_no_divergence() -> None:
    x, model = skewed(4), ScoreFunction(lambda x_t, kernel: torch.ones_like(x_t))
    for objective in (ImplicitScoreMatching(), SlicedScoreMatching(), FiniteDifferenceScoreMatching()):
        rows = objective(model, x, Gaussian(0.5), generator=torch.Generator().manual_seed(0))
        if isinstance(objective, FiniteDifferenceScoreMatching):
            assert torch.isfinite(rows).all()
        else:
            torch.testing.assert_close(rows, torch.full((4,), 1.5, dtype=F64))


def test_finite_differences_converge_at_second_order() -> None:
    model, x = random_network(), draws_of(skewed(400), 50)
    exact = SlicedScoreMatching(variance_reduced=False)(
        model, x, Gaussian(0.5), generator=torch.Generator().manual_seed(0)
    )
    wrong = [
        (FiniteDifferenceScoreMatching(e)(model, x, Gaussian(0.5), generator=torch.Generator().manual_seed(0)) - exact)
        .abs()
        .mean()
        .item()
        for e in (0.08, 0.04, 0.02)
    ]
    for a, b in itertools.pairwise(wrong):
        assert math.log2(a / b) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("objective", [*DENOISING, *IMPLICIT], ids=name)
def test_equal_generators_give_equal_losses(objective: Objective) -> None:
    before, x = torch.random.get_rng_state(), torch.randn(5, D, generator=torch.Generator().manual_seed(0)).double()
    a, b = (objective(affine(), x, Gaussian(0.5), generator=torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(before, torch.random.get_rng_state())


# --- bad input --------------------------------------------------------------------------------------------------------

X = torch.randn(4, 3)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DenoisingScoreMatching(0), "n_noise: got 0, want at least 1"),
        (lambda: DenoisingScoreMatching(3, antithetic=True), "n_noise: got 3, want an even number >= 2"),
        (lambda: DenoisingScoreMatching(1.5), "n_noise: got 1.5, want a whole number"),
        (lambda: SlicedScoreMatching(n_projections=0), "n_projections: got 0, want at least 1"),
        (lambda: FiniteDifferenceScoreMatching(0.0), "step: got 0.0, want a finite number > 0"),
        (lambda: FiniteDifferenceScoreMatching(math.nan), "step: got nan, want a finite number > 0"),
        (lambda: DenoisingScoreMatching()(affine(), X.int(), Gaussian(1)), "x: got dtype torch.int32, want a floating"),
        (lambda: ImplicitScoreMatching()(affine(), X[0], Gaussian(1)), "x: got shape (3,), want (B, *event)"),
        (lambda: DenoisingScoreMatching(2)(affine(), X, Gaussian(torch.ones(9))), "got (9,) values for 4 rows"),
        (lambda: DenoisingScoreMatching()(affine(), X, Gaussian(torch.ones(2))), "got (2,) values for 4 rows"),
        (lambda: DenoisingScoreMatching()(affine(), [1.0], Gaussian(1)), "x: got list, want a torch.Tensor"),
        (
            lambda: DenoisingScoreMatching(2, antithetic=True)(affine(), X.double(), BY_NAME["mixture"].kernel()),
            "antithetic pairs need noise with n and -n equally likely, and this is not symmetric",
        ),
    ],
)
def test_bad_input_is_named_on_one_line(call: Any, message: str) -> None:
    with pytest.raises(InputError) as e:
        call()
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_any_callable_of_the_right_kind_is_an_objective() -> None:
    assert isinstance(DenoisingScoreMatching(), Objective)
    assert isinstance(Additive(td.Laplace(0.0, 1.0)), Kernel)
