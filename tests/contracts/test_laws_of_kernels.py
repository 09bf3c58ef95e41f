"""Laws of every kernel, each against SciPy, quadrature, autograd or Monte Carlo."""

from __future__ import annotations

import itertools
import math

import mpmath as mp
import numpy as np
import pytest
import torch
from cases import BY_NAME, COVARIANCE, F64, LAWS, SHIFT, Case, Law, ids, mvn, t64
from scipy import integrate, stats
from torch import distributions as td

from gradlogp.kernels import Additive, Gaussian, Kernel, Logistic

SIGMAS, ALPHAS = t64([0.1, 0.5, 1.0, 2.0, 3.0, 0.7]), t64([1.0, 0.9, 0.5, 0.1, 0.0, 2.0])
CHANNELS = t64([0.2, 0.5])[:, None, None]
GAUSSIANS = [
    Case("gaussian", Gaussian(0.7), (3,)),
    Case("gaussian alpha", Gaussian(0.7, 0.4), (2, 2, 3)),
    Case("gaussian rows", Gaussian(SIGMAS), (3,)),
    Case("gaussian rows alpha", Gaussian(SIGMAS, ALPHAS), (2, 2, 3)),
]
OVER_EVENT = [
    Case("mvn", mvn(), (3,)),
    Case("independent laplace", Additive(td.Independent(td.Laplace(t64(SHIFT), t64([0.2, 0.5, 1.0])), 1)), (3,)),
    Case(
        "independent mvn",
        Additive(
            td.Independent(td.MultivariateNormal(torch.zeros(2, 3, dtype=F64), t64(np.stack([COVARIANCE] * 2))), 1)
        ),
        (2, 3),
    ),
    Case(
        "mixture of mvn",
        Additive(
            td.MixtureSameFamily(
                td.Categorical(t64([0.4, 0.6])),
                td.MultivariateNormal(t64([[0.0, 0.5], [0.3, -0.4]]), torch.eye(2, dtype=F64) * 0.4),
            )
        ),
        (2,),
    ),
]
PER_COORDINATE = [
    Case("normal per coordinate", Additive(td.Normal(t64(0.0), t64([0.2, 0.5, 1.0]))), (3,)),
    Case("normal per channel", Additive(td.Normal(t64(0.0), CHANNELS)), (2, 2, 3)),
    Case("student per row of the image", Additive(td.StudentT(t64([[3.0], [8.0]]), 0.1, 0.5)), (2, 2, 3)),
    Case("laplace on an image", BY_NAME["laplace"].kernel(), (2, 2, 3)),
]
CASES = (
    GAUSSIANS + OVER_EVENT + PER_COORDINATE + [Case(law.name, law.kernel(), (3,)) for law in LAWS]
    + [Case(f"{law.name} by autograd", law.kernel(autograd=True), (3,)) for law in LAWS]
)  # fmt: skip
every = pytest.mark.parametrize("case", CASES, ids=ids)
every_law = pytest.mark.parametrize("law", LAWS, ids=ids)


def clean(case: Case, rows: int | None = None) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(rows or case.rows, *case.event, generator=g, dtype=F64)


def pair(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    x = clean(case)
    return case.kernel.sample(x, generator=torch.Generator().manual_seed(2)), x


def one_level(kernel: Kernel, rows: int) -> Kernel:
    """The kernel for many rows: per-row levels repeated."""
    return kernel.rows(torch.arange(rows) % 6)


# --- density --------------------------------------------------------------------------------------------------------


@every_law
@pytest.mark.parametrize("autograd", [False, True])
def test_log_prob_is_scipys(law: Law, autograd: bool) -> None:
    u = torch.linspace(-6, 6, 40, dtype=F64)[:, None] * float(law.scipy.var()) ** 0.5 + 0.01
    x = torch.full_like(u, 0.3)
    with np.errstate(divide="ignore"):
        want = law.scipy.logpdf(u[:, 0].numpy())
    got = law.kernel(autograd=autograd).log_prob(x + u, x).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


@every_law
def test_parameters_in_float32_leave_a_normalised_density(law: Law) -> None:
    kernel = Additive(to_float32(law.torch))

    def q(u: float) -> float:
        return kernel.log_prob(t64([[u]]), t64([[0.0]])).exp().item()

    s, m = law.scipy.var() ** 0.5, law.scipy.mean()
    cuts = sorted({m - 40 * s, m - 3 * s, m, m + 3 * s, m + 40 * s, *law.kinks})
    mass = sum(integrate.quad(q, a, b, epsabs=1e-11, limit=200)[0] for a, b in itertools.pairwise(cuts))
    assert mass == pytest.approx(1.0, abs=2e-6 if law.name == "student 5" else 1e-8)


def to_float32(law: td.Distribution) -> td.Distribution:
    if isinstance(law, td.MixtureSameFamily):
        parts = law.component_distribution
        return td.MixtureSameFamily(
            td.Categorical(law.mixture_distribution.probs.float()), td.Normal(parts.loc.float(), parts.scale.float())
        )
    names = [n for n in ("df", "loc", "scale", "power") if n in law.arg_constraints]
    return type(law)(*(getattr(law, n).float() for n in names))


@pytest.mark.parametrize("case", GAUSSIANS, ids=ids)
def test_gaussian_log_prob_is_scipys(case: Case) -> None:
    x_t, x = pair(case)
    sigma, alpha = (v.expand(6).numpy() for v in (case.kernel.sigma, case.kernel.alpha))
    want = [
        stats.norm(a * xi, s).logpdf(xti).sum()
        for a, s, xi, xti in zip(alpha, sigma, x.numpy(), x_t.numpy(), strict=True)
    ]
    np.testing.assert_allclose(case.kernel.log_prob(x_t, x), want, rtol=1e-12)


@pytest.mark.parametrize(
    ("case", "law"),
    [
        (OVER_EVENT[0], stats.multivariate_normal(SHIFT, COVARIANCE).logpdf),
        (OVER_EVENT[1], lambda u: stats.laplace(SHIFT, [0.2, 0.5, 1.0]).logpdf(u).sum(-1)),
        (OVER_EVENT[2], lambda u: stats.multivariate_normal(np.zeros(3), COVARIANCE).logpdf(u).sum(-1)),
        (PER_COORDINATE[0], lambda u: stats.norm(0, [0.2, 0.5, 1.0]).logpdf(u).sum(-1)),
        (PER_COORDINATE[1], lambda u: stats.norm(0, CHANNELS.numpy()).logpdf(u).sum((1, 2, 3))),
        (PER_COORDINATE[2], lambda u: stats.t(np.array([[3.0], [8.0]]), 0.1, 0.5).logpdf(u).sum((1, 2, 3))),
        (PER_COORDINATE[3], lambda u: stats.laplace(0, 0.3).logpdf(u).sum((1, 2, 3))),
    ],
)
def test_log_prob_over_an_event_is_scipys(case: Case, law) -> None:  # type: ignore[no-untyped-def]
    x_t, x = pair(case)
    np.testing.assert_allclose(case.kernel.log_prob(x_t, x), law((x_t - x).numpy()), rtol=1e-10)


# --- score ----------------------------------------------------------------------------------------------------------


@every
def test_score_is_the_gradient_of_log_prob(case: Case) -> None:
    x_t, x = pair(case)
    x_t.requires_grad_()
    (want,) = torch.autograd.grad(case.kernel.log_prob(x_t, x).sum(), x_t)
    torch.testing.assert_close(case.kernel.score(x_t, x).detach(), want, rtol=1e-10, atol=1e-10)


@every_law
def test_score_is_scipys_difference(law: Law) -> None:
    u = np.linspace(-3.03, 3.04, 15) * law.scipy.var() ** 0.5
    u = u[law.scipy.pdf(u) > 1e-12]
    h = 1e-5
    want = (law.scipy.logpdf(u + h) - law.scipy.logpdf(u - h)) / (2 * h)
    x = torch.zeros(len(u), 1, dtype=F64)
    np.testing.assert_allclose(law.kernel().score(t64(u)[:, None], x)[:, 0], want, rtol=1e-6, atol=1e-6)


@every_law
def test_closed_form_equals_autograd(law: Law) -> None:
    x_t, x = pair(Case(law.name, law.kernel(), (3,), 50))
    a, b = (law.kernel(autograd=v).score(x_t, x) for v in (False, True))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@every
def test_float32_keeps_the_score(case: Case) -> None:
    x_t, x = (v.float() for v in pair(case))
    got, want = case.kernel.score(x_t, x), case.kernel.score(x_t.double(), x.double())
    assert got.dtype == torch.float32
    assert case.kernel.log_prob(x_t, x).dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


# --- Fisher information ---------------------------------------------------------------------------------------------


def fisher_by_quad(law: Law) -> float:
    """∫ (d/du log q)² q du from SciPy's density alone, by differences; around a singularity with mpmath's digits."""
    if law.name.startswith("gennorm"):
        return fisher_of_gennorm(*law.scipy.args[:1], law.scipy.args[2])
    if law.name == "laplace":
        return 1 / 0.3**2  # (log q)' = ±1/b almost everywhere
    h = 1e-3 * law.scipy.var() ** 0.5

    def integrand(u: float) -> float:
        at = law.scipy.logpdf(u + h * np.array([-2, -1, 1, 2]))
        return float((at @ [1, -8, 8, -1] / (12 * h)) ** 2 * law.scipy.pdf(u)) if np.isfinite(at).all() else 0.0

    s, c = law.scipy.var() ** 0.5, law.scipy.mean()
    cuts = [c + v * s for v in (-60, -12, -3, -1, 0, 1, 3, 12, 60)]
    if law.kinks:
        cuts = [k + v * s for k in law.kinks for v in (-60, -3, -3e-3, 3e-3, 0.5, 3, 60)]
    return sum(integrate.quad(integrand, a, b, epsabs=1e-12, limit=200)[0] for a, b in itertools.pairwise(cuts))


def fisher_of_gennorm(b: float, a: float) -> float:
    def log_q(u: mp.mpf) -> mp.mpf:
        return -((u / a) ** b)

    cuts = [0, *(mp.mpf(10) ** j for j in range(-60, 0, 6)), 1, 4, 20, 100]
    mass = mp.quad(lambda u: mp.exp(log_q(u)), cuts)
    return float(mp.quad(lambda u: mp.diff(log_q, u, h=u * mp.mpf(10) ** -9) ** 2 * mp.exp(log_q(u)), cuts) / mass)


@every_law
@pytest.mark.parametrize("autograd", [False, True])
def test_fisher_information_is_that_of_scipys_density(law: Law, autograd: bool) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        want = fisher_by_quad(law)
    kernel = law.kernel(autograd=autograd)
    got, error = kernel.fisher_information((1,)).item(), kernel.fisher_information_error((1,)).item()
    assert abs(got - want) <= error + 1e-8 * want
    assert error <= 1e-8 * want
    assert kernel.sigma.item() == pytest.approx(want**-0.5, rel=1e-4)
    assert kernel.fisher_information((2, 3)).item() == pytest.approx(6 * got)


@every
def test_fisher_information_is_the_mean_square_of_the_score(case: Case) -> None:
    n = 24_000
    x, kernel = clean(case, n), one_level(case.kernel, n)
    each = kernel.score(kernel.sample(x, generator=torch.Generator().manual_seed(3)), x).flatten(1).square().sum(1)
    fisher = kernel.fisher_information(case.event).expand(n)
    z = (each - fisher) / fisher
    error = case.kernel.fisher_information_error(case.event).max().item() / fisher.max().item()
    assert abs(z.mean().item()) <= 4.5 * math.hypot(z.std().item() / n**0.5, error) + 1e-12
    assert fisher[0].item() == pytest.approx(each[fisher == fisher[0]].mean().item(), rel=0.15)


# --- draws ----------------------------------------------------------------------------------------------------------


@every_law
@pytest.mark.parametrize("event", [(1,), (2, 3)])
def test_draws_have_scipys_law(law: Law, event: tuple[int, ...]) -> None:
    n = 20_000 // math.prod(event)
    x = torch.randn(n, *event, dtype=F64)
    noise = (law.kernel().sample(x, generator=torch.Generator().manual_seed(5)) - x).flatten().numpy()
    assert stats.kstest(noise, law.scipy.cdf).pvalue > 1e-5
    mean, var = law.scipy.mean(), law.scipy.var()
    assert abs(noise.mean() - mean) < 4.5 * (var / noise.size) ** 0.5
    squares = (noise - mean) ** 2
    assert abs(squares.mean() - var) < 4.5 * squares.std() / noise.size**0.5
    assert abs(law.torch.mean.item() - mean) < 1e-12
    assert law.torch.variance.item() == pytest.approx(var)


@pytest.mark.parametrize("case", GAUSSIANS + PER_COORDINATE[:2] + OVER_EVENT[:1], ids=ids)
def test_gaussian_draws_have_their_mean_and_covariance(case: Case) -> None:
    """Standardised by SciPy's numbers, coordinate by coordinate: N(0, I), also across coordinates."""
    n = 30_000
    x, kernel = clean(case, n), one_level(case.kernel, n)
    x_t = kernel.sample(x, generator=torch.Generator().manual_seed(6))
    form = kernel.gaussian_form(case.event)
    alpha = form.alpha if form.alpha.ndim == 0 else form.alpha.reshape(-1, *(1,) * len(case.event))
    r = (x_t - alpha * x).flatten(1)
    if case.name == "mvn":
        r = (r - t64(SHIFT)) @ torch.linalg.inv(torch.linalg.cholesky(t64(COVARIANCE))).T
    elif case.name == "normal per channel":
        r = r / CHANNELS.expand(case.event).flatten()
    elif case.name == "normal per coordinate":
        r = r / t64([0.2, 0.5, 1.0])
    else:
        r = r / (SIGMAS.repeat(n // 6)[:, None] if "rows" in case.name else 0.7)
    d = r.shape[1]
    assert stats.chi2(n * d).sf(r.square().sum().item()) > 1e-5
    assert (r.mean(0).abs() * n**0.5 < 4.5).all()
    z = (r.T @ r / n - torch.eye(d)) * n**0.5 / (1 + torch.eye(d)).sqrt()
    assert (z.abs() < 4.8).all()


@every
def test_score_has_the_identity_of_integration_by_parts(case: Case) -> None:
    """E[t·f(x_t)] = −E div f(x_t), f(x_t) = sin(A x_t): it ties draws and score together."""
    n = 24_000
    x, kernel = clean(case, n), one_level(case.kernel, n)
    x_t = kernel.sample(x, generator=torch.Generator().manual_seed(7))
    d = math.prod(case.event)
    a = torch.randn(d, d, generator=torch.Generator().manual_seed(8), dtype=F64) / d**0.5
    inner = x_t.flatten(1) @ a.T
    each = (kernel.score(x_t, x).flatten(1) * inner.sin()).sum(1) + inner.cos() @ a.diagonal()
    assert abs(each.mean().item()) < 4.5 * each.std().item() / n**0.5


@every
def test_generator_makes_draws_equal_and_spares_the_global_state(case: Case) -> None:
    x, before = clean(case), torch.random.get_rng_state()
    a, b = (case.kernel.sample(x, generator=torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(before, torch.random.get_rng_state())
    g = torch.Generator().manual_seed(9)
    first, second = (case.kernel.sample(x, generator=g) for _ in range(2))
    assert torch.equal(first, a)
    assert not torch.equal(second, a)
    torch.manual_seed(4)
    c = case.kernel.sample(x)
    assert not torch.equal(c, case.kernel.sample(x))
    torch.manual_seed(4)
    assert torch.equal(c, case.kernel.sample(x))


@every
def test_building_and_using_a_kernel_draws_nothing_globally(case: Case) -> None:
    before = torch.random.get_rng_state()
    if isinstance(case.kernel, Additive):
        Additive(case.kernel.distribution)
    x_t, x = pair(case)
    case.kernel.score(x_t, x)
    assert torch.equal(before, torch.random.get_rng_state())


# --- rows, reflection, form -----------------------------------------------------------------------------------------


@every
def test_rows_are_the_kernel_of_those_rows(case: Case) -> None:
    x_t, x = pair(case)
    index = torch.tensor([3, 0, 0, 5])
    some = case.kernel.rows(index)
    torch.testing.assert_close(some.log_prob(x_t[index], x[index]), case.kernel.log_prob(x_t, x)[index])
    torch.testing.assert_close(some.score(x_t[index], x[index]), case.kernel.score(x_t, x)[index])
    fisher = case.kernel.fisher_information(case.event).expand(6)
    torch.testing.assert_close(some.fisher_information(case.event).expand(4), fisher[index])


@every
def test_event_shapes_are_equivalent(case: Case) -> None:
    if case in OVER_EVENT or case in PER_COORDINATE:
        pytest.skip("bound to its event shape")
    x_t, x = pair(case)
    flat = case.kernel.log_prob(x_t.flatten(1), x.flatten(1))
    torch.testing.assert_close(case.kernel.log_prob(x_t, x), flat)
    torch.testing.assert_close(case.kernel.score(x_t, x).flatten(1), case.kernel.score(x_t.flatten(1), x.flatten(1)))


@every
def test_reflection_negates_the_noise_or_is_refused(case: Case) -> None:
    x_t, x = pair(case)
    asymmetric = {law.name for law in LAWS if not law.symmetric} | {"mvn", "mixture of mvn", "independent laplace"}
    if case.name.removesuffix(" by autograd") in asymmetric | {"student per row of the image"}:
        with pytest.raises(ValueError, match="antithetic pairs need noise"):
            case.kernel.reflect(x_t, x)
        return
    reflected = case.kernel.reflect(x_t, x)
    torch.testing.assert_close(case.kernel.log_prob(reflected, x), case.kernel.log_prob(x_t, x))
    torch.testing.assert_close(case.kernel.score(reflected, x), -case.kernel.score(x_t, x))
    assert not torch.allclose(reflected, x_t)


@every
def test_gaussian_form_is_the_kernel_written_out(case: Case) -> None:
    form = case.kernel.gaussian_form(case.event)
    if not (case.name.startswith(("gaussian", "normal")) or case.name == "mvn"):
        assert form is None
        return
    x_t, x = pair(case)
    d = math.prod(case.event)
    for i in range(6):
        alpha = form.alpha if form.alpha.ndim == 0 else form.alpha[i]
        k = form.covariance if form.kind != "isotropic" or form.covariance.ndim == 0 else form.covariance[i]
        k = {"isotropic": lambda k: k * torch.eye(d, dtype=F64), "diagonal": torch.diag, "full": lambda k: k}[
            form.kind
        ](k)
        mean = (alpha * x[i] + form.shift).flatten()
        want = stats.multivariate_normal(mean.numpy(), k.numpy()).logpdf(x_t[i].flatten().numpy())
        assert case.kernel.log_prob(x_t, x)[i].item() == pytest.approx(want, rel=1e-9)


def test_logistic_is_stable_in_its_tails() -> None:
    kernel = Additive(Logistic(t64(0.0), t64(0.1)))
    u = t64([[-500.0], [500.0]])
    np.testing.assert_allclose(kernel.log_prob(u, 0 * u), stats.logistic(0, 0.1).logpdf(u[:, 0]), rtol=1e-13)
    np.testing.assert_allclose(kernel.score(u, 0 * u)[:, 0], [10.0, -10.0], rtol=1e-13)


def test_logistic_quantiles_invert_its_distribution_function() -> None:
    law, p = Logistic(t64(0.3), t64(0.4)), torch.linspace(0.01, 0.99, 9, dtype=F64)
    np.testing.assert_allclose(law.icdf(p), stats.logistic(0.3, 0.4).ppf(p.numpy()), rtol=1e-12)
    torch.testing.assert_close(law.cdf(law.icdf(p)), p)
