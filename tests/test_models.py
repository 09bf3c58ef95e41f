"""The Gaussian reference, preconditioning and Tweedie's formula, against mixtures of one component and scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import BY_NAME, F64, SHIFT, mvn, t64
from sklearn.covariance import ledoit_wolf
from torch import distributions as td

from gradlogp import InputError
from gradlogp.kernels import Additive, Gaussian, Kernel
from gradlogp.models import (
    Denoiser,
    GaussianReference,
    Preconditioned,
    ScoreFunction,
    count_parameters,
    event_of,
    score_from_denoised,
    tweedie,
)
from gradlogp.networks import ResidualMLP
from gradlogp.oracles import GaussianMixture

D = 3
ROOT = t64(np.random.default_rng(0).normal(size=(D, D)))
MEAN, SIGMA = t64([1.0, -2.0, 0.5]), ROOT @ ROOT.T
KERNELS: dict[str, Kernel] = {
    "gaussian": Gaussian(0.4),
    "alpha": Gaussian(0.4, 0.6),
    "rows": Gaussian(t64([0.01, 0.1, 1.0, 10.0, 100.0]), t64([1.0, 0.5, 2.0, 0.1, 0.9])),
    "normal": Additive(td.Normal(t64(0.3), t64(0.4))),
    "per coordinate": Additive(td.Normal(t64(SHIFT), t64([0.2, 0.5, 1.0]))),
    "mvn": mvn(),
}
by_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=[k.replace(" ", "-") for k in KERNELS])
FADES = [0.0, 0.5, 1.0, math.inf]


def points(n: int = 5, d: int = D, dtype: torch.dtype = F64) -> torch.Tensor:
    return 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype)


def network(event: tuple[int, ...] = (D,), dtype: torch.dtype = F64) -> ResidualMLP:
    """A network whose last layer is not zero."""
    torch.manual_seed(0)
    net = ResidualMLP(event, width=16, depth=1)
    torch.nn.init.normal_(net.last.weight, std=0.3)
    torch.nn.init.normal_(net.last.bias, std=0.3)
    return net.to(dtype)


def reference(fade: float = 0.0, covariance: torch.Tensor = SIGMA) -> GaussianReference:
    return GaussianReference.of_moments(MEAN, covariance, fade)


def flat_covariance(fade: float, alpha: float, sigma: float) -> torch.Tensor:
    """The matrix −dψ/dx of the reference, from its definition in eigen-directions, with NumPy."""
    values, v = np.linalg.eigh(SIGMA.numpy())
    scale = values.mean()
    w = sigma**2 / (sigma**2 + fade**2 * alpha**2 * scale) if math.isfinite(fade) else 0.0
    h = w / (alpha**2 * values + sigma**2) + (1 - w) / (alpha**2 * scale + sigma**2)
    return t64(v @ np.diag(h) @ v.T)


# --- the Gaussian reference -------------------------------------------------------------------------------------------


@by_kernel
@pytest.mark.parametrize(("dtype", "tol"), [(F64, 1e-9), (torch.float32, 1e-4)])
def test_unfaded_reference_is_a_mixture_of_one(kernel: Kernel, dtype: torch.dtype, tol: float) -> None:
    exact = GaussianMixture(t64([1.0]), MEAN[None], SIGMA[None])
    x_t = points(dtype=dtype)
    model = reference().to(dtype)
    torch.testing.assert_close(model.score(x_t, kernel), exact.score(x_t, kernel), rtol=tol, atol=tol)
    torch.testing.assert_close(model.denoise(x_t, kernel), exact.denoise(x_t, kernel), rtol=tol, atol=tol)


@pytest.mark.parametrize("fade", FADES)
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.1), (0.5, 2.0), (2.0, 0.7)])
def test_faded_reference_is_its_definition(fade: float, alpha: float, sigma: float) -> None:
    x_t = points()
    want = -(x_t - alpha * MEAN) @ flat_covariance(fade, alpha, sigma)
    torch.testing.assert_close(reference(fade).score(x_t, Gaussian(sigma, alpha)), want, rtol=1e-9, atol=1e-9)


def test_infinite_fade_is_the_skip_of_edm() -> None:
    x_t, sigma = points(), 0.8
    scale = SIGMA.trace() / D
    want = MEAN + scale / (sigma**2 + scale) * (x_t - MEAN)
    torch.testing.assert_close(reference(math.inf).denoise(x_t, Gaussian(sigma)), want)


@by_kernel
@pytest.mark.parametrize("fade", FADES)
def test_score_and_denoiser_agree_by_tweedie(kernel: Kernel, fade: float) -> None:
    x_t = points()
    for model in (reference(fade), Preconditioned(network(), reference(fade)), edge_case(fade)):
        d, s = model.denoise(x_t, kernel), model.score(x_t, kernel)
        torch.testing.assert_close(tweedie(x_t, s, kernel), d, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(score_from_denoised(x_t, d, kernel), s, rtol=1e-6, atol=1e-6)


def edge_case(fade: float) -> Preconditioned:
    """Data that vary in two of three directions."""
    return Preconditioned(network(), reference(fade, ROOT[:, :2] @ ROOT[:, :2].T))


def test_faded_reference_under_full_noise_is_the_isotropic_one_when_they_are_equal() -> None:
    x_t, k = points(), 0.25 * torch.eye(D, dtype=F64)
    for fade in FADES:
        for covariance in (SIGMA, ROOT[:, :2] @ ROOT[:, :2].T):
            model = reference(fade, covariance)
            for noise in (td.MultivariateNormal(MEAN, k), td.Normal(MEAN, t64([0.5] * D))):
                got = model.score(x_t + MEAN, Additive(noise))
                torch.testing.assert_close(got, model.score(x_t, Gaussian(0.5)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fade", FADES)
@pytest.mark.parametrize("rows", [40, 3])
def test_constant_and_collinear_columns_are_exact(fade: float, rows: int) -> None:
    a = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    constant = torch.full((rows, 1), 0.1, dtype=F64)
    x = torch.cat([a, constant] if rows == 3 else [a, constant, a[:, :1] + 2 * a[:, 1:]], 1)
    model, sigma, alpha = GaussianReference.of_data(x, fade), 0.3, 0.7
    null = [t64([0.0, 0.0, 1.0])] if rows == 3 else [t64([0.0, 0.0, 1.0, 0.0]), t64([1.0, 2.0, 0.0, -1.0]) / 6**0.5]
    assert len(model.eigenvalues) == x.shape[1] - len(null)
    x_t = points(d=x.shape[1])
    for m in (model, Preconditioned(network((x.shape[1],)), model)):
        for n in null:
            want = -(x_t - alpha * x.mean(0)) @ n / sigma**2
            torch.testing.assert_close(m.score(x_t, Gaussian(sigma, alpha)) @ n, want, rtol=1e-9, atol=1e-9)
            back = m.denoise(x_t, Gaussian(sigma, alpha)) @ n
            torch.testing.assert_close(back, (x.mean(0) @ n).expand(len(x_t)), rtol=1e-9, atol=1e-9)
        y = m.project(x_t) if isinstance(m, GaussianReference) else m.skip.project(x_t)
        torch.testing.assert_close(y, x_t - sum((x_t @ n)[:, None] * n for n in null))


def test_reference_of_data_has_their_moments() -> None:
    x = points(50) @ ROOT.T + MEAN
    model = GaussianReference.of_data(x.reshape(50, 1, 3, 1))
    assert model.event_shape == (1, 3, 1)
    torch.testing.assert_close(model.mean.flatten(), x.mean(0))
    covariance = (model.eigenvectors * model.eigenvalues) @ model.eigenvectors.T
    torch.testing.assert_close(covariance, torch.cov(x.T, correction=0))
    assert model.data_scale.item() == pytest.approx(torch.cov(x.T, correction=0).trace().item() ** 0.5 / 3**0.5)


def test_few_rows_are_shrunk_as_by_ledoit_and_wolf() -> None:
    x = torch.randn(12, 20, generator=torch.Generator().manual_seed(0), dtype=F64) * torch.linspace(0.5, 3, 20)
    model = GaussianReference.of_data(x)
    covariance = (model.eigenvectors * model.eigenvalues) @ model.eigenvectors.T
    np.testing.assert_allclose(covariance, ledoit_wolf(x.numpy())[0], rtol=1e-9, atol=1e-9)
    with_constant = GaussianReference.of_data(torch.cat([x, torch.full((12, 1), 0.1, dtype=F64)], 1))
    torch.testing.assert_close(with_constant.eigenvalues, model.eigenvalues)


@pytest.mark.parametrize("kernel", [Gaussian(0.5), Gaussian(0.5, 0.3), Gaussian(3.0, 0.0)])
@pytest.mark.parametrize("rank", [2, 3])
def test_noisy_draws_have_the_noisy_covariance(kernel: Gaussian, rank: int) -> None:
    n, covariance = 30_000, ROOT[:, :rank] @ ROOT[:, :rank].T
    model = reference(0.0, covariance)
    x = model.sample_noisy(n, kernel, generator=torch.Generator().manual_seed(1))
    a, s = kernel.alpha.item(), kernel.sigma.item()
    root = torch.linalg.cholesky(a**2 * covariance + s**2 * torch.eye(D, dtype=F64))
    r = torch.linalg.solve(root, (x - a * MEAN).T).T
    assert (r.mean(0).abs() * n**0.5 < 4.5).all()
    z = (r.T @ r / n - torch.eye(D)) * n**0.5 / (1 + torch.eye(D)).sqrt()
    assert (z.abs() < 4.5).all()
    again = model.sample_noisy(n, kernel, generator=torch.Generator().manual_seed(1))
    assert torch.equal(x, again)


# --- preconditioning --------------------------------------------------------------------------------------------------


@by_kernel
@pytest.mark.parametrize("fade", FADES)
def test_network_that_starts_at_zero_starts_as_the_reference(kernel: Kernel, fade: float) -> None:
    skip = reference(fade)
    model = Preconditioned(ResidualMLP((D,), width=8, depth=1).double(), skip)
    x_t = points()
    torch.testing.assert_close(model.score(x_t, kernel), skip.score(x_t, kernel))
    torch.testing.assert_close(model.denoise(x_t, kernel), skip.denoise(x_t, kernel))


class Recorder(torch.nn.Module):
    """Keeps what it is shown, and answers with ones."""

    def forward(self, z: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        self.z, self.c_noise = z, c_noise
        return torch.ones_like(z)


def test_preconditioning_is_that_of_edm() -> None:
    """Karras et al. (2022), table 1, with centred data: c_in, c_out and unit variance of what the network sees."""
    sigma, alpha = t64([0.1, 1.0, 10.0, 0.5, 2.0]), t64([1.0, 1.0, 0.5, 0.3, 1.0])
    net, skip, x_t = Recorder(), reference(math.inf), points()
    model = Preconditioned(net, skip)
    d = model.denoise(x_t, Gaussian(sigma, alpha))
    scale = (SIGMA.trace() / D) ** 0.5
    total = torch.sqrt(alpha**2 * scale**2 + sigma**2)
    torch.testing.assert_close(net.z, (x_t - alpha[:, None] * MEAN) / total[:, None])
    torch.testing.assert_close(net.c_noise, torch.log(sigma / (alpha * scale)))
    want = skip.denoise(x_t, Gaussian(sigma, alpha)) + (sigma * scale / total)[:, None]
    torch.testing.assert_close(d, want)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("fade", FADES)
@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("alpha", [0.0, 1e-6, 1.0])
def test_every_level_gives_finite_numbers(dtype: torch.dtype, fade: float, sigma: float, alpha: float) -> None:
    for covariance in (SIGMA, ROOT[:, :1] @ ROOT[:, :1].T):
        skip = reference(fade, covariance).to(dtype)
        for model in (skip, Preconditioned(network(dtype=dtype), skip)):
            x_t = alpha * MEAN.to(dtype) + sigma * points(dtype=dtype)
            for kernel in (Gaussian(sigma, alpha), Gaussian(torch.full((5,), sigma), torch.full((5,), alpha))):
                for y in (model.score(x_t, kernel), model.denoise(x_t, kernel)):
                    assert y.dtype == dtype
                    assert torch.isfinite(y).all()
        if alpha == 0:
            torch.testing.assert_close(skip.score(x_t, kernel), -x_t / sigma**2, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(skip.denoise(x_t, kernel), MEAN.to(dtype).expand(5, -1))


@by_kernel
def test_event_shapes_are_equivalent(kernel: Kernel) -> None:
    if kernel in (KERNELS["per coordinate"], KERNELS["mvn"]):
        pytest.skip("bound to its event shape")
    x = points(40, 12).reshape(40, 2, 2, 3)
    image, flat = GaussianReference.of_data(x, 0.5), GaussianReference.of_data(x.flatten(1), 0.5)
    net = network((12,))
    pairs = [(image, flat), (Preconditioned(network((2, 2, 3)), image), Preconditioned(net, flat))]
    for a, b in pairs:
        for name in ("score", "denoise"):
            got = getattr(a, name)(x[:5], kernel)
            assert got.shape == (5, 2, 2, 3)
            torch.testing.assert_close(got.flatten(1), getattr(b, name)(x[:5].flatten(1), kernel))


def test_small_noise_in_float32_keeps_digits() -> None:
    """ψ is no difference of large numbers: float32 agrees with float64 at sigma = 1e-4 as well as at 1."""
    for sigma in (1e-4, 1.0):
        exact, low = (Preconditioned(network(dtype=t), reference(0.5).to(t)) for t in (F64, torch.float32))
        x_t = MEAN + sigma * points()
        got = low.score(x_t.float(), Gaussian(sigma)).double()
        want = exact.score(x_t.float().double(), Gaussian(sigma))
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-4 * want.abs().max().item())


def test_reference_of_a_model_is_unfaded() -> None:
    model, x_t = Preconditioned(network(), reference(0.5)), points()
    torch.testing.assert_close(model.reference.score(x_t, Gaussian(0.3)), reference().score(x_t, Gaussian(0.3)))
    assert model.event_shape == event_of(model) == (D,)
    assert count_parameters(model) == count_parameters(model.network) == sum(p.numel() for p in network().parameters())
    assert event_of(ScoreFunction(lambda x_t, k: x_t)) is None


# --- models from functions --------------------------------------------------------------------------------------------


class Shrink(Denoiser):
    def denoise(self, x_t: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        return 0.9 * x_t + 0.1


@by_kernel
def test_a_denoiser_and_a_function_are_models_by_tweedie(kernel: Kernel) -> None:
    x_t, model = points(), Shrink()
    same = ScoreFunction(model.score)
    torch.testing.assert_close(same.denoise(x_t, kernel), model.denoise(x_t, kernel), rtol=1e-9, atol=1e-9)
    assert model.reference is None


def test_tweedie_of_full_noise_is_the_matrix_formula() -> None:
    form, x_t, s = mvn().gaussian_form((D,)), points(), points() + 1
    want = x_t - form.shift + (form.covariance @ s.T).T
    torch.testing.assert_close(tweedie(x_t, s, mvn()), want)


# --- bad input --------------------------------------------------------------------------------------------------------

EYE, NAN = torch.eye(3), math.nan
UNIT = GaussianReference(torch.zeros(3), torch.ones(3), EYE)
X = torch.randn(4, 3)
Ref = GaussianReference
BAD: list[tuple[Any, str]] = [
    (lambda: Ref(torch.zeros(3), torch.ones(2), EYE), "got shapes (3,), (2,), (3, 3), want (*event)"),
    (lambda: Ref(torch.zeros(3), torch.ones(0), EYE[:, :0]), "want (*event), (R,), (D, R) with R >= 1"),
    (lambda: Ref(torch.zeros(3), -torch.ones(3), EYE), "got an eigenvalue or fade that is negative or NaN"),
    (lambda: Ref(torch.zeros(3), NAN * torch.ones(3), EYE), "got an eigenvalue or fade that is negative"),
    (lambda: Ref(torch.zeros(3), torch.ones(3), EYE, -1.0), "got an eigenvalue or fade that is negative"),
    (lambda: Ref(torch.zeros(3), torch.ones(3), EYE, NAN), "got an eigenvalue or fade that is negative"),
    (lambda: Ref(NAN * torch.zeros(3), torch.ones(3), EYE), "got NaN or infinity in the mean"),
    (lambda: Ref.of_data(X[:1]), "x: got 1 row, want at least 2"),
    (lambda: Ref.of_data(torch.ones(5, 2)), "x: every column is constant, want data that vary"),
    (lambda: Ref.of_data(torch.full((2, 3), 0.1)), "x: every column is constant, want data that vary"),
    (lambda: Ref.of_data(X * NAN), "x: row 0 holds NaN or infinity"),
    (lambda: Ref.of_data([[1.0]]), "x: got list, want a torch.Tensor"),
    (lambda: Ref.of_moments(torch.zeros(3), torch.eye(2)), "covariance: got shape (2, 2), want (3, 3)"),
    (lambda: Ref.of_moments(torch.zeros(3), EYE * NAN), "covariance: got NaN or infinity"),
    (lambda: Ref.of_moments(torch.zeros(3), EYE.cumsum(0)), "covariance: got a matrix that is not symmetric"),
    (lambda: Ref.of_moments(torch.zeros(3), -EYE), "covariance: got an eigenvalue -1, want positive semi"),
    (lambda: UNIT.score(X[:, :2], Gaussian(1)), "x_t: got event shape (2,), want (3,)"),
    (lambda: UNIT.score(X.int(), Gaussian(1)), "x_t: got dtype torch.int32, want a floating dtype"),
    (lambda: UNIT.score(X, Gaussian(torch.ones(3))), "noise level: got (3,) values for 4 rows"),
    (lambda: UNIT.denoise(X, BY_NAME["laplace"].kernel()), "denoise: needs a Gaussian kernel, got Additive(Laplace)"),
    (lambda: UNIT.sample_noisy(0, Gaussian(1)), "n: got 0, want at least 1"),
    (lambda: Preconditioned(network(), UNIT).denoise(X, BY_NAME["laplace"].kernel()), "denoise: needs a Gaussian"),
    (lambda: Shrink().score(X, BY_NAME["laplace"].kernel()), "score of a denoiser: needs a Gaussian kernel, got Add"),
    (lambda: tweedie(X, X, Gaussian(1, 0)), "denoise: alpha is 0, so x_t says nothing about x; want alpha > 0"),
    (lambda: tweedie(X, X, BY_NAME["laplace"].kernel()), "denoise: needs a Gaussian kernel, got Additive(Laplace)"),
]  # fmt: skip


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named_on_one_line(call: Any, message: str) -> None:
    with pytest.raises(InputError) as e:
        call()
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_a_network_is_not_asked_about_noise_that_it_was_not_trained_at():
    torch.manual_seed(0)
    network = ResidualMLP((2,), width=16, depth=1)
    torch.nn.init.normal_(network.last.weight)
    model = Preconditioned(network, GaussianReference.of_moments(torch.zeros(2), torch.eye(2)))
    x, free = torch.randn(5, 2), {}
    for sigma in (0.001, 0.1, 1.0, 5.0, 6.0):
        free[sigma] = model.denoise(x, Gaussian(sigma))
    model.levels = (0.1, 5.0)
    for sigma in (0.1, 1.0, 5.0):
        torch.testing.assert_close(model.denoise(x, Gaussian(sigma)), free[sigma])
    above = Gaussian(6.0)
    assert torch.equal(model.denoise(x, above), model.skip.denoise(x, above))
    assert not torch.allclose(free[6.0], model.skip.denoise(x, above))
    below = [model.denoise(torch.zeros(1, 2), Gaussian(s)) / s for s in (0.01, 0.001)]  # c_out F(0, the smallest)
    torch.testing.assert_close(below[0], below[1], rtol=1e-2, atol=1e-4)
