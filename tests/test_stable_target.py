"""The stable target: brute force, closed forms, exact unbiasedness, and less variance."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import BY_NAME, F64, mvn, t64
from scipy import integrate, stats

from gradlogp import InputError
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import GaussianReference, Preconditioned, ScoreFunction, ScoreModel
from gradlogp.networks import ResidualMLP
from gradlogp.objectives import DenoisingScoreMatching, posterior_score
from gradlogp.objectives.stable import posterior_weights
from gradlogp.oracles import Empirical

D = 3


def rows(n: int, d: int = D, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Recorded(ScoreModel):
    """ψ(x_t) = 0.3·sin(x_t), which keeps the noisy rows that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def score(self, x_t: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        self.seen.append(x_t)
        return 0.3 * x_t.sin()

    def denoise(self, x_t: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        raise NotImplementedError


def brute(x_t: np.ndarray, candidates: np.ndarray, alpha: float, sigma: float, law: str) -> np.ndarray:
    """Σ_j w_j ∇log k(x_t | x_j) for one row, with SciPy's densities."""
    u = x_t - alpha * candidates
    if law == "gaussian":
        log_k, score = stats.norm(0, sigma).logpdf(u), -u / sigma**2
    else:
        log_k, score = stats.laplace(0, sigma).logpdf(u), -np.sign(u) / sigma
    log_k = log_k.reshape(len(u), -1).sum(1)
    w = np.exp(log_k - log_k.max())
    return np.tensordot(w / w.sum(), score, 1)


def batch_of(i: int, m: int, n: int) -> slice:
    """The rows of the group of row i."""
    return slice(i // m * m, min(i // m * m + m, n))


SIGMAS, ALPHAS = t64([0.2, 0.5, 1.0, 2.0, 5.0, 0.7, 0.05]), t64([1.0, 0.5, 0.9, 0.0, 1.2, 0.3, 1.0])


@pytest.mark.parametrize("event", [(3,), (2, 1, 2)], ids=str)
@pytest.mark.parametrize(("n_noise", "antithetic"), [(1, False), (3, False), (2, True), (4, True)])
@pytest.mark.parametrize("m", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_the_loss_is_that_of_the_averaged_target(
    law: str, m: int, n_noise: int, antithetic: bool, event: tuple[int, ...]
) -> None:
    """Against a loop over rows, draws and references, each row with its own level, groups cut in order."""
    x, model = rows(7, math.prod(event)).reshape(7, *event), Recorded()
    kernel = Gaussian(SIGMAS, ALPHAS) if law == "gaussian" else BY_NAME["laplace"].kernel()
    objective = DenoisingScoreMatching(n_noise, antithetic=antithetic, references=m)
    got = objective(model, x, kernel, generator=torch.Generator().manual_seed(1))
    want = np.zeros(7)
    for x_t in model.seen:
        draws = x_t.reshape(7, -1, *event).numpy()
        psi = 0.3 * np.sin(draws)
        for i, k in itertools.product(range(7), range(draws.shape[1])):
            alpha, sigma = (ALPHAS[i].item(), SIGMAS[i].item()) if law == "gaussian" else (1.0, 0.3)
            target = brute(draws[i, k], x[batch_of(i, m, 7)].numpy(), alpha, sigma, law)
            want[i] += 0.5 * np.sum((psi[i, k] - target) ** 2) / (len(model.seen) * draws.shape[1])
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9)


@pytest.mark.parametrize("among", [True, False])
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_given_references_take_in_the_source_where_they_lack_it(law: str, among: bool) -> None:
    data = rows(20)
    x = data[[3, 3, 8, 0, 19, 5, 7]] if among else rows(7, seed=5)
    kernel = Gaussian(SIGMAS, ALPHAS) if law == "gaussian" else BY_NAME["laplace"].kernel()
    model = Recorded()
    got = DenoisingScoreMatching(references=data)(model, x, kernel, generator=torch.Generator().manual_seed(1))
    x_t = model.seen[0].numpy()
    for i in range(7):
        alpha, sigma = (ALPHAS[i].item(), SIGMAS[i].item()) if law == "gaussian" else (1.0, 0.3)
        candidates = data.numpy() if among else np.concatenate([data.numpy(), x[i : i + 1].numpy()])
        target = brute(x_t[i], candidates, alpha, sigma, law)
        assert got[i].item() == pytest.approx(0.5 * np.sum((0.3 * np.sin(x_t[i]) - target) ** 2), rel=1e-9)


def test_one_new_row_in_a_batch_adds_every_rows_own_source() -> None:
    data = rows(20)
    x = torch.cat([data[:3], rows(1, seed=9)])
    model = Recorded()
    got = DenoisingScoreMatching(references=data)(model, x, Gaussian(1.0), generator=torch.Generator().manual_seed(0))
    for i in range(4):
        target = brute(model.seen[0][i].numpy(), torch.cat([data, x[i : i + 1]]).numpy(), 1.0, 1.0, "gaussian")
        want = 0.5 * np.sum((0.3 * np.sin(model.seen[0][i].numpy()) - target) ** 2)
        assert got[i].item() == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("sigma", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_with_the_whole_data_set_it_is_the_empirical_score(sigma: float, offset: float) -> None:
    data = rows(300) + offset
    kernel = Gaussian(sigma, 0.8)
    x_t = kernel.sample(data, generator=torch.Generator().manual_seed(0))
    want = Empirical(data).score(x_t, kernel)
    torch.testing.assert_close(posterior_score(x_t, kernel, data), want, rtol=1e-10, atol=1e-10 * want.abs().max())


@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("alpha", [1.0, torch.linspace(0.3, 1.5, 300)], ids=["one", "many"])
def test_in_float32_digits_are_kept(sigma: float, offset: float, alpha: float | torch.Tensor) -> None:
    """The error is that of rounding x_t and x, some units in the last place of x over sigma², as without references."""
    data = (rows(300, 30) + offset).float()
    kernel = Gaussian(sigma, alpha)
    x_t = kernel.sample(data, generator=torch.Generator().manual_seed(0))
    want = posterior_score(x_t.double(), kernel, data.double())
    error = (posterior_score(x_t, kernel, data) - want).abs().max().item()
    assert error < 30 * 6e-8 * (5 + offset + 5 * sigma) / sigma**2


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("sigma", [1e-3, 0.01, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("alpha", [1.0, torch.linspace(0.0, 1.5, 300, dtype=F64)], ids=["one", "many"])
def test_in_float64_weights_are_those_of_differences(sigma: float, offset: float, alpha: float | torch.Tensor) -> None:
    """Where squares are expanded and where they are not; two rows are near each other at every level."""
    kernel = Gaussian(sigma, alpha)
    data = rows(150, 30).repeat(2, 1) + 0.3 * sigma * rows(300, 30, seed=1) + offset
    x_t = kernel.sample(data, generator=torch.Generator().manual_seed(0))
    apart = x_t[:, None] - torch.as_tensor(alpha, dtype=F64).reshape(-1, 1, 1) * data
    want = torch.softmax(-(apart**2).sum(2) / (2 * sigma**2), 1)
    rounded = 1e-15 * offset * (5 + sigma) / sigma**2
    torch.testing.assert_close(posterior_weights(x_t, kernel, data[None])[0], want, rtol=0, atol=1e-11 + rounded)


def test_many_references_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks change nothing, whatever is cut: rows of one group, or groups."""
    x, kernel = rows(24), Gaussian(torch.linspace(0.1, 2.0, 48, dtype=F64))
    x_t = kernel.sample(x.repeat_interleave(2, 0), generator=torch.Generator().manual_seed(0))
    cases = [(x, None), (x, x_t + 0.1), (x.reshape(4, 6, D), None), (x.reshape(4, 6, D), x_t - 0.1)]
    whole = [posterior_score(x_t, kernel, r, s) for r, s in cases]
    laplace = posterior_score(x_t, BY_NAME["laplace"].kernel(), x)
    monkeypatch.setattr("gradlogp.objectives.stable._WORKSPACE", 150)
    for (r, s), want in zip(cases, whole, strict=True):
        torch.testing.assert_close(posterior_score(x_t, kernel, r, s), want)
    torch.testing.assert_close(posterior_score(x_t, BY_NAME["laplace"].kernel(), x), laplace)


def test_the_target_carries_no_gradient() -> None:
    x = rows(6).requires_grad_()
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)
    loss = DenoisingScoreMatching(references=6)(ScoreFunction(lambda x_t, k: a * x_t.detach()), x, Gaussian(0.5))
    loss.sum().backward()
    assert a.grad is not None
    assert x.grad is None


# --- expectations -----------------------------------------------------------------------------------------------------


def two_atoms(kernel_sigma: float, prior: float, b: float) -> float:
    """E ½(bu − s(u))² for atoms ±1 with P(+1) = prior and x_t from that law; by quadrature."""
    n = stats.norm(0, kernel_sigma)

    def f(u: float) -> float:
        p = np.array([prior * n.pdf(u - 1), (1 - prior) * n.pdf(u + 1)])
        s = (p @ [(1 - u), (-1 - u)]) / p.sum() / kernel_sigma**2
        return 0.5 * (b * u - s) ** 2 * p.sum()

    return integrate.quad(f, -1 - 9 * kernel_sigma, 1 + 9 * kernel_sigma, limit=300, points=[-1, 0, 1])[0]


@pytest.mark.parametrize("m", [1, 2, 3, 8])
def test_its_expectation_over_two_atoms_is_a_binomial_sum_of_integrals(m: int) -> None:
    """Of m rows k are +1, k ~ Bin(m, ½), and the target is the score of atoms with weights k/m and 1 − k/m."""
    sigma, b, n = 0.9, -0.4, 48_000 // m * m
    g = torch.Generator().manual_seed(m)
    x = 2.0 * torch.randint(0, 2, (n, 1), generator=g).to(F64) - 1
    model = ScoreFunction(lambda x_t, k: b * x_t)
    loss = DenoisingScoreMatching(references=m)
    got = torch.cat([loss(model, part, Gaussian(sigma), generator=g) for part in x.split(6000 // m * m)])
    want = sum(stats.binom(m, 0.5).pmf(k) * two_atoms(sigma, k / m, b) for k in range(m + 1))
    each = got.reshape(-1, m).mean(1)
    assert abs(each.mean().item() - want) < 4.5 * each.std().item() / len(each) ** 0.5
    assert two_atoms(sigma, 0.5, b) <= want + 1e-12


def test_expectations_on_gaussian_data_fall_from_dsm_to_esm() -> None:
    """Data N(μ, S), affine ψ = Ax + c: J_DSM and J_ESM are known; J_STF,m + ½E tr Cov = J_DSM for each m."""
    r = np.random.default_rng(0)
    a, c, root = r.normal(size=(D, D)) * 0.4, r.normal(size=D), r.normal(size=(D, D))
    mu, s, sigma, n = r.normal(size=D), root @ root.T, 1.5, 65_536
    v = s + sigma**2 * np.eye(D)
    at = a @ mu + c
    dsm = 0.5 * (at @ at + np.trace(a @ v @ a.T)) + np.trace(a) + 0.5 * D / sigma**2
    esm = dsm - 0.5 * (D / sigma**2 - np.trace(np.linalg.inv(v)))
    model = ScoreFunction(lambda x_t, k: x_t @ t64(a).T + t64(c))
    x = t64(mu) + rows(n, seed=1) @ t64(root).T
    x_t = Gaussian(sigma).sample(x, generator=torch.Generator().manual_seed(0))
    found = []
    for m in (1, 2, 8, 64):
        g = torch.Generator().manual_seed(0)  # the same noise
        losses = DenoisingScoreMatching(references=m)(model, x, Gaussian(sigma), generator=g)
        groups = x.reshape(-1, m, D)
        log_k = -(x_t.reshape(-1, m, 1, D) - groups[:, None]).square().sum(3) / (2 * sigma**2)
        w = torch.softmax(log_k, 2)
        spread = (w @ groups.square().sum(2, keepdim=True)).squeeze(2) - (w @ groups).square().sum(2)
        total, stderr = mean(losses + 0.5 * spread.reshape(-1) / sigma**4)
        assert abs(total - dsm) < 4.5 * stderr
        found.append(losses)
    for one, more in itertools.pairwise(found):
        fall, stderr = mean(one - more)
        assert fall > 4 * stderr
    least, stderr = mean(found[-1])
    assert esm - 4.5 * stderr < least < esm + 0.2 * (dsm - esm)


def mean(losses: torch.Tensor) -> tuple[float, float]:
    """The mean and its standard error, over groups of 64 rows, which share their references."""
    each = losses.reshape(-1, 64).mean(1)
    return each.mean().item(), each.std().item() / len(each) ** 0.5


# --- gradients --------------------------------------------------------------------------------------------------------


def gradient(loss: torch.Tensor, model: ScoreModel) -> torch.Tensor:
    return torch.cat([v.flatten() for v in torch.autograd.grad(loss, tuple(model.parameters()))])


def network() -> Preconditioned:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = ResidualMLP((D,), width=8, depth=1)
        torch.nn.init.normal_(net.last.weight, std=0.3)
    return Preconditioned(net.double(), GaussianReference.of_data(rows(400), 0.5))


def biased(model: ScoreModel, x: torch.Tensor, kernel: Kernel, generator: Any = None) -> torch.Tensor:
    """The target without its source: what the next group's rows say."""
    x_t = kernel.sample(x, generator=generator)
    return 0.5 * (
        model.score(x_t, kernel) - posterior_score(x_t, kernel, x.roll(16, 0).reshape(-1, 16, D))
    ).square().sum(1)


@pytest.mark.parametrize("kernel", [Gaussian(2.0), Gaussian(0.7, 0.8), BY_NAME["laplace"].kernel(), mvn()], ids=repr)
def test_the_gradient_is_that_of_plain_denoising(kernel: Kernel) -> None:
    """Over 100 batches of fresh rows, for each form of reference; leaving the source out is found."""
    model = network()
    z2: dict[str, torch.Tensor] = {}
    found: dict[str, list[torch.Tensor]] = {"groups": [], "given": [], "biased": []}
    for seed in range(100):
        x = rows(64, seed=seed).exp()
        given = DenoisingScoreMatching(references=rows(16, seed=1000 + seed).exp())
        forms = {"groups": DenoisingScoreMatching(references=16), "given": given, "biased": biased}
        plain = gradient_of(DenoisingScoreMatching(), model, x, kernel, seed)
        for name, objective in forms.items():
            found[name].append(gradient_of(objective, model, x, kernel, seed) - plain)
    for name, differences in found.items():
        d = torch.stack(differences)
        z2[name] = (d.mean(0) / (d.std(0) / 10).clamp_min(1e-12)).square()
    for name in ("groups", "given"):
        assert z2[name].max() < 25
        assert z2[name].mean() < 2
    assert z2["biased"].mean() > 2.5


def gradient_of(objective: Any, model: ScoreModel, x: torch.Tensor, kernel: Kernel, seed: int) -> torch.Tensor:
    return gradient(objective(model, x, kernel, generator=torch.Generator().manual_seed(10_000 + seed)).mean(), model)


@pytest.mark.parametrize("sigma", [0.3, 2.0, 5.0])
def test_the_gradient_has_less_variance(sigma: float) -> None:
    """Batches from 200 rows: by a quarter at least where all rows are references, and by groups never more."""
    model, data = network(), rows(200).exp()
    objectives = [DenoisingScoreMatching(references=r) for r in (None, 64, data)]
    found: list[list[torch.Tensor]] = [[], [], []]
    for seed in range(100):
        x = data[torch.randint(200, (64,), generator=torch.Generator().manual_seed(seed))]
        for objective, out in zip(objectives, found, strict=True):
            out.append(gradient_of(objective, model, x, Gaussian(sigma), seed))
    plain, groups, whole = (torch.stack(out).var(0).sum().item() for out in found)
    assert groups < 1.01 * plain
    assert whole < 0.75 * plain


# --- bad input --------------------------------------------------------------------------------------------------------

X = torch.randn(4, 3)
BAD = X.clone()
BAD[2, 1] = torch.nan
MODEL = ScoreFunction(lambda x_t, k: x_t)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DenoisingScoreMatching(references=0), "references: got 0, want at least 1"),
        (lambda: DenoisingScoreMatching(references=2.5), "references: got 2.5, want a whole number"),
        (lambda: DenoisingScoreMatching(references="all"), "references: got 'all', want a whole number"),
        (lambda: DenoisingScoreMatching(references=X[0]), "references: got shape (3,), want (B, *event)"),
        (lambda: DenoisingScoreMatching(references=X[:0]), "references: got shape (0, 3), want (B, *event)"),
        (lambda: DenoisingScoreMatching(references=BAD), "references: row 2 holds NaN"),
        (lambda: DenoisingScoreMatching(references=X.int()), "references: got dtype torch.int32"),
        (
            lambda: DenoisingScoreMatching(references=X[:, :2])(MODEL, X, Gaussian(1.0)),
            "x: got event shape (3,), want (2,)",
        ),
        (lambda: DenoisingScoreMatching(references=3)(MODEL, [1.0], Gaussian(1.0)), "x: got list"),
        (lambda: DenoisingScoreMatching(references=3)(MODEL, X, Gaussian(torch.ones(9))), "got (9,) values for 4 rows"),
    ],
)
def test_bad_references_are_named_on_one_line(call: Any, message: str) -> None:
    with pytest.raises(InputError) as e:
        call()
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_one_row_is_its_own_batch() -> None:
    """With nothing else that could be the source, the target is the plain one; and float32 references serve float64."""
    x, g = rows(1), torch.Generator()
    plain, one, many = (
        DenoisingScoreMatching(references=r)(MODEL, x, Gaussian(0.5), generator=g.manual_seed(0)) for r in (None, 5, x)
    )
    torch.testing.assert_close(one, plain)
    torch.testing.assert_close(many, plain)
    single = x.float()
    again = DenoisingScoreMatching(references=single)(MODEL, single.double(), Gaussian(0.5), generator=g.manual_seed(0))
    torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-5)


def test_equal_rows_and_negative_zeros_are_known() -> None:
    data = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, -0.0], [3.0, 3.0]])
    x = torch.tensor([[-0.0, 1.0], [2.0, 0.0]])
    model = Recorded()
    got = DenoisingScoreMatching(references=data)(model, x, Gaussian(1.0), generator=torch.Generator().manual_seed(0))
    for i in range(2):
        target = brute(model.seen[0][i].double().numpy(), data.double().numpy(), 1.0, 1.0, "gaussian")
        want = 0.5 * np.sum((0.3 * np.sin(model.seen[0][i].double().numpy()) - target) ** 2)
        assert got[i].item() == pytest.approx(want, rel=1e-4)
