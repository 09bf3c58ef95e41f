"""The data set as a model, and its views: brute force in float64, digits at small noise, files, memory."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import distributions as td
from torch.autograd import forward_ad

from gradlogp import InputError
from gradlogp.kernels import Additive, Gaussian, Kernel
from gradlogp.models import GaussianReference
from gradlogp.oracles import Empirical, attention, online

F64, F32 = torch.float64, torch.float32
B, N, D = 6, 2500, 3
RNG = np.random.default_rng(5)
DATA = torch.from_numpy(RNG.normal(np.array([5.0, -3.0, 0.0]), size=(N, D)))
X_T = torch.from_numpy(RNG.normal(np.array([5.0, -3.0, 0.0]), size=(B, D))) * 1.1
INDEX = torch.tensor([0, 2499, 1023, 1024, 7, 2047])  # ends of the table and of its blocks
SOURCE = X_T + 0.05
LABELS = torch.arange(N) % 3
LABEL = torch.tensor([2, 0, 0, 1, 2, 0])
SIGMAS, ALPHAS = np.array([0.1, 0.5, 1.0, 2.0, 0.3, 30.0]), np.array([1.0, 0.9, 0.5, 0.1, 0.0, 2.0])
ROOT = np.array([[0.5, 0.0, 0.0], [0.2, 0.4, 0.0], [-0.1, 0.1, 0.3]])
PRECISION = np.linalg.inv(ROOT @ ROOT.T)


def t64(v: Any) -> torch.Tensor:
    return torch.as_tensor(v, dtype=F64)


def normal(sigma: float, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return stats.norm(0, sigma).logpdf(u).sum(1), -u / sigma**2


def laplace(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return stats.laplace(0, 0.4).logpdf(u).sum(1), -np.sign(u) / 0.4


def student(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return stats.t(4, 0, 0.3).logpdf(u).sum(1), -5 * u / (4 * 0.3**2 + u**2)


def full(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return stats.multivariate_normal(np.zeros(D), ROOT @ ROOT.T).logpdf(u), -u @ PRECISION


# the kernel, and (row, x_t − alpha·x) -> log k and ∇log k; alpha of a row
NOISE: dict[str, tuple[Kernel, Callable[[int, np.ndarray], Any], Callable[[int], float]]] = {
    "gaussian": (Gaussian(0.3), lambda i, u: normal(0.3, u), lambda i: 1.0),
    "alpha": (Gaussian(0.3, 0.7), lambda i, u: normal(0.3, u), lambda i: 0.7),
    "rows": (Gaussian(t64(SIGMAS), t64(ALPHAS)), lambda i, u: normal(SIGMAS[i], u), lambda i: ALPHAS[i]),
    "small": (Gaussian(1e-3), lambda i, u: normal(1e-3, u), lambda i: 1.0),
    "shifted": (Additive(td.Normal(t64(0.2), t64(0.3))), lambda i, u: normal(0.3, u - 0.2), lambda i: 1.0),
    "laplace": (Additive(td.Laplace(t64(0.0), t64(0.4))), lambda i, u: laplace(u), lambda i: 1.0),
    "student": (Additive(td.StudentT(t64(4.0), t64(0.0), t64(0.3))), lambda i, u: student(u), lambda i: 1.0),
    "full": (
        Additive(td.MultivariateNormal(torch.zeros(D, dtype=F64), scale_tril=t64(ROOT))),
        lambda i, u: full(u),
        lambda i: 1.0,
    ),
}
VIEWS: dict[str, tuple[Callable[[Empirical], Any], Callable[[int, np.ndarray], np.ndarray]]] = {
    "all": (lambda e: e, lambda i, x: x),
    "leave one out": (lambda e: e.leave_one_out(INDEX), lambda i, x: np.delete(x, INDEX[i], 0)),
    "including": (
        lambda e: e.including(SOURCE.to(e.data.dtype)),
        lambda i, x: np.concatenate([x, SOURCE[i : i + 1].numpy().astype(x.dtype)]),
    ),
    "of class": (lambda e: e.of_class(LABELS, 1), lambda i, x: x[LABELS.numpy() == 1]),
    "of classes": (lambda e: e.of_class(LABELS, LABEL), lambda i, x: x[(LABEL[i] == LABELS).numpy()]),
}
noises = pytest.mark.parametrize("noise", NOISE)
views = pytest.mark.parametrize("view", [v.replace(" ", "-") for v in VIEWS])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of rows, and of queries."""
    monkeypatch.setattr(attention, "_LOGITS", 2**12)
    monkeypatch.setattr(attention, "_NUMBERS", 2**13)
    monkeypatch.setattr(online, "_NUMBERS", 2**12)


class ByHand:
    """One query, from all its pairs."""

    def __init__(self, x_t: np.ndarray, x: np.ndarray, i: int, noise: str) -> None:
        _, pair, alpha = NOISE[noise]
        log_k, target = pair(i, x_t - alpha(i) * x)
        w = special.softmax(log_k)
        self.log_prob = special.logsumexp(log_k) - np.log(len(x))
        self.score, self.denoise = w @ target, w @ x
        kept = w > 1e-200
        r = (target - w @ target)[kept]
        if w.max() > 0.5:  # the mean is close to one: from the others, by no difference of close numbers
            top = w.argmax()
            v, others = target[kept] - target[top], w[kept]
            mean = others @ v
            r = v - mean
        self.half_target_variance = 0.5 * (w[kept] * (r**2).sum(1)).sum()


def answers(model: Any, x_t: torch.Tensor, kernel: Kernel) -> dict[str, np.ndarray]:
    names = ("log_prob", "score", "denoise", "half_target_variance")
    return {name: getattr(model, name)(x_t, kernel) for name in names}


@views
@noises
@pytest.mark.parametrize(("dtype", "tol"), [(F64, 1e-10), (F32, 1e-5)], ids=["float64", "float32"])
@pytest.mark.usefixtures("small_blocks")
def test_every_view_under_any_noise_is_brute_force(view: str, noise: str, dtype: torch.dtype, tol: float) -> None:
    make, rows = VIEWS[view.replace("-", " ")]
    data, x_t, kernel = DATA.to(dtype), X_T.to(dtype), NOISE[noise][0]
    model = make(Empirical(data))
    got = answers(model, x_t, kernel)
    x = data.double().numpy()
    if view == "including":
        hands = [
            ByHand(x_t[i].double().numpy(), np.r_[x, SOURCE[i : i + 1].to(dtype).double().numpy()], i, noise)
            for i in range(B)
        ]
    else:
        hands = [ByHand(x_t[i].double().numpy(), rows(i, x), i, noise) for i in range(B)]
    for name, value in got.items():
        assert value.dtype == dtype
        want = np.array([getattr(h, name) for h in hands])
        atol = 1e-18 if name == "half_target_variance" else tol * np.abs(want).max() * 1e-3
        np.testing.assert_allclose(value, want, rtol=tol, atol=atol, err_msg=name)
    both = model.log_prob_and_score(x_t, kernel)
    torch.testing.assert_close(both, (got["log_prob"], got["score"]), rtol=tol, atol=tol)


@views
@pytest.mark.parametrize("noise", ["alpha", "rows", "laplace"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch's own forward mode
def test_score_of_a_view_is_the_gradient_of_its_log_density(view: str, noise: str) -> None:
    model, kernel = VIEWS[view.replace("-", " ")][0](Empirical(DATA)), NOISE[noise][0]
    x_t = X_T.clone().requires_grad_()
    (want,) = torch.autograd.grad(model.log_prob(x_t, kernel).sum(), x_t)
    torch.testing.assert_close(model.score(X_T, kernel), want, rtol=1e-9, atol=1e-9)
    _, with_graph = model.log_prob_and_score(x_t, kernel)
    torch.testing.assert_close(with_graph.detach(), want, rtol=1e-9, atol=1e-9)
    probe, h = torch.ones_like(X_T), 1e-5
    if noise != "laplace":
        difference = (model.score(X_T + h * probe, kernel) - model.score(X_T - h * probe, kernel)) / (2 * h)
        (pulled,) = torch.autograd.grad((with_graph * probe).sum(), x_t)
        with forward_ad.dual_level():
            pushed = forward_ad.unpack_dual(model.score(forward_ad.make_dual(X_T, probe), kernel)).tangent
        torch.testing.assert_close(pushed, difference, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pulled, difference, rtol=1e-5, atol=1e-5)  # the Jacobian is symmetric


def test_the_mean_of_half_the_target_variance_is_the_loss_of_the_score() -> None:
    """E½‖s − t‖² = E V over x_t ~ p_σ, for a Gaussian and a Laplace kernel; 4.5 standard errors."""
    data = DATA[:30]
    model, g, n = Empirical(data), torch.Generator().manual_seed(0), 4000
    for kernel in (Gaussian(0.5, 0.8), NOISE["laplace"][0]):
        x = model.sample(n, generator=g)
        x_t = kernel.sample(x, generator=g)
        loss = 0.5 * (model.score(x_t, kernel) - kernel.score(x_t, x)).square().sum(1)
        gap = loss - model.half_target_variance(x_t, kernel)
        assert abs(gap.mean().item()) < 4.5 * gap.std().item() / n**0.5
        assert model.half_target_variance(x_t, kernel).min() >= 0


# --- digits -----------------------------------------------------------------------------------------------------------


def exact(x_t: torch.Tensor, data: torch.Tensor, sigma: torch.Tensor, alpha: float = 1.0) -> tuple[np.ndarray, ...]:
    """log p_σ and its score by differences in float64."""
    log_prob, score = [], []
    for x, s in zip(x_t.double(), sigma.double(), strict=True):
        r = alpha * data.double() - x
        logits = -r.square().sum(1) / (2 * s**2)
        w = torch.softmax(logits, 0)
        log_z = math.log(len(data)) + x.numel() * (s.log() + 0.5 * math.log(2 * math.pi))
        log_prob.append(torch.logsumexp(logits, 0) - log_z)
        score.append(w @ r / s**2)
    return torch.stack(log_prob).numpy(), torch.stack(score).numpy()


def clusters(g: torch.Generator, n: int, d: int) -> torch.Tensor:
    return torch.randn(5, d, generator=g)[torch.arange(n) % 5] + 0.05 * torch.randn(n, d, generator=g)


def twins(g: torch.Generator, n: int, d: int) -> torch.Tensor:
    """Two tight groups far from each other, every row twice: nearly all pairs must be computed again."""
    half = torch.where(torch.arange(n // 2) % 2 == 0, 300.0, -300.0)[:, None] + torch.randn(n // 2, d, generator=g)
    return torch.cat([half, half])


def overflow(g: torch.Generator, n: int, d: int) -> torch.Tensor:
    """One row whose square is infinite in float32."""
    x = torch.randn(n, d, generator=g)
    x[n // 2] = 1e22
    return x


def outlier(g: torch.Generator, n: int, d: int) -> torch.Tensor:
    x = torch.randn(n, d, generator=g)
    x[n // 2] = 1e4
    return x


KINDS: dict[str, Callable[[torch.Generator, int, int], torch.Tensor]] = {
    "normal": lambda g, n, d: torch.randn(n, d, generator=g),
    "far from zero": lambda g, n, d: 1000 + torch.randn(n, d, generator=g),
    "on a surface": lambda g, n, d: torch.tanh(torch.randn(n, 3, generator=g) @ torch.randn(3, d, generator=g)),
    "clusters": clusters,
    "twins": twins,
    "outlier": outlier,
    "overflow": overflow,
    "tiny": lambda g, n, d: 1e-6 * torch.randn(n, d, generator=g),
    "huge": lambda g, n, d: 1e25 * torch.randn(n, d, generator=g),  # its squares overflow in float32
}


def relative(got: torch.Tensor, want: np.ndarray) -> float:
    return float((np.linalg.norm(got.double().numpy() - want, axis=1) / np.linalg.norm(want, axis=1)).max())


@pytest.mark.parametrize("d", [2, 64, 784])
@pytest.mark.parametrize("kind", KINDS, ids=[k.replace(" ", "-") for k in KINDS])
@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_digits_are_kept_at_every_noise_level(kind: str, d: int, alpha: float, request: pytest.FixtureRequest) -> None:
    """One query a level, from 1e-4 to 30 of the data's scale, in one call: product, some pairs again, all again."""
    if alpha != 1 and d < 784:
        request.getfixturevalue("small_blocks")
    g = torch.Generator().manual_seed(3)
    data = KINDS[kind](g, 1200, d)
    scale = {"tiny": 1e-6, "huge": 1e25}.get(kind, 1.0)
    sigma = scale * torch.logspace(-4, 1.5, 23)
    x_t = alpha * data[torch.randint(1200, (23,), generator=g)]
    x_t = x_t + sigma[:, None] * torch.randn(23, d, generator=g)
    log_prob, score = exact(x_t, data, sigma, alpha)
    size = np.abs(log_prob) + d
    got_log_prob, got = Empirical(data).log_prob_and_score(x_t, Gaussian(sigma, alpha))
    stuck = np.linalg.norm(score, axis=1) == 0  # x_t rounded onto a row
    assert relative(got[~stuck], score[~stuck]) < 1e-5
    assert float((np.abs(got_log_prob.double().numpy() - log_prob) / size).max()) < 2e-6
    got_log_prob, got = Empirical(data.double()).log_prob_and_score(x_t.double(), Gaussian(sigma.double(), alpha))
    assert relative(got[~stuck], score[~stuck]) < 1e-10
    assert float((np.abs(got_log_prob.numpy() - log_prob) / size).max()) < 1e-11


def test_a_query_far_from_all_data_still_sees_the_nearest() -> None:
    data = torch.randn(1200, 64, generator=torch.Generator().manual_seed(0))
    x_t = torch.tensor([1e2, 1e4, 1e6])[:, None] * torch.ones(64)
    sigma = torch.tensor([1.0, 1.0, 0.1])
    log_prob, score = exact(x_t, data, sigma)
    got_log_prob, got = Empirical(data).log_prob_and_score(x_t, Gaussian(sigma))
    np.testing.assert_allclose(got, score, rtol=1e-6)
    np.testing.assert_allclose(got_log_prob, log_prob, rtol=1e-6)


def test_a_row_whose_square_overflows_float64_may_be_left_out() -> None:
    data = torch.randn(50, 20, generator=torch.Generator().manual_seed(0), dtype=F64)
    data[7] = 1e170
    x_t = data[[7, 8]] + 0.1
    got = Empirical(data).leave_one_out(torch.tensor([7, 8])).denoise(x_t, Gaussian(torch.tensor([1.0, 0.5])))
    others = torch.cat([data[:7], data[9:]])
    torch.testing.assert_close(got[1], x_t[1] + 0.25 * t64(exact(x_t[1:], others, torch.tensor([0.5]))[1][0]))
    assert not torch.equal(got[0], data[7])


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_left_out_is_the_row_itself_where_it_holds_all_the_weight(sigma: float) -> None:
    """At its own row a query's score is 0 with it, and not without; twice with it is the row with twice the weight."""
    data = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([0, 1, 1023, 1024, 2999])
    model, kernel, level = Empirical(data), Gaussian(sigma), torch.full((5,), sigma)
    without = [exact(data[i : i + 1], torch.cat([data[:i], data[i + 1 :]]), level[:1])[1][0] for i in index]
    assert relative(model.leave_one_out(index).score(data[index], kernel), np.array(without)) < 1e-5
    twice = [exact(data[i : i + 1] + 0.1, torch.cat([data, data[i : i + 1]]), level[:1])[1][0] for i in index]
    assert relative(model.including(data[index]).score(data[index] + 0.1, kernel), np.array(twice)) < 1e-5


def test_two_rows_of_which_one_is_left_out() -> None:
    data = torch.tensor([[1.0, 2.0], [1e3, -1e3]])
    model = Empirical(data).leave_one_out(torch.tensor([0, 1]))
    torch.testing.assert_close(model.denoise(data, Gaussian(0.1)), data.flip(0))
    assert torch.equal(model.half_target_variance(data, Gaussian(0.1)), torch.zeros(2))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_half_the_target_variance_keeps_its_digits_where_it_is_small(dtype: torch.dtype) -> None:
    """Two rows: w(1 − w)‖x_1 − x_2‖²·alpha²/(2 sigma⁴), down to e^{−500} of its largest."""
    data = 100 + torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=dtype)
    x_t = 100 + torch.stack([torch.linspace(-9, 2, 12, dtype=dtype), torch.zeros(12, dtype=dtype)], 1)
    u = x_t[:, 0].double() - 100
    logit = (u**2 - (u - 1) ** 2) / (2 * 0.2**2)
    want = torch.sigmoid(logit) * torch.sigmoid(-logit) / (2 * 0.2**4)
    got = Empirical(data).half_target_variance(x_t, Gaussian(0.2))
    seen = want > torch.finfo(dtype).tiny
    torch.testing.assert_close(got[seen].double(), want[seen], rtol=1e-10 if dtype == F64 else 1e-6, atol=0)


# --- arrays and files -------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", DATA.numpy().reshape(N, 3, 1))
    return tmp_path / "rows.npy"


def arrays(path: Path) -> Iterator[tuple[str, np.ndarray, torch.Tensor]]:
    image = DATA.reshape(N, 3, 1)
    whole = np.load(path, mmap_mode="r")
    yield "array", image.numpy(), image
    yield "memory map", whole, image
    yield "some rows of a map", whole[100:2000], image[100:2000]
    yield "every other row of a map", whole[::2], image[::2]
    yield "map to be written", np.load(path, mmap_mode="r+"), image
    yield "map of changes", np.load(path, mmap_mode="c"), image
    yield "raw, with a header", np.memmap(path, np.float64, "r", offset=128, shape=(N, 3, 1)), image


def test_arrays_and_memory_maps_are_shared_and_answer_like_tensors(file: Path) -> None:
    x_t, kernel = X_T.reshape(B, 3, 1), Gaussian(0.3, 0.9)
    for name, array, tensor in arrays(file):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model, want = Empirical(array), Empirical(tensor)
        assert model.data.data_ptr() == array.ctypes.data, name
        assert torch.equal(model.data, tensor), name
        assert ("data" in model.state_dict()) is False
        for method in ("log_prob", "score", "denoise", "half_target_variance"):
            assert torch.equal(getattr(model, method)(x_t, kernel), getattr(want, method)(x_t, kernel)), (name, method)
        a, b = (m.leave_one_out(torch.arange(B)).score(x_t, kernel) for m in (model, want))
        assert torch.equal(a, b)
        a, b = (m.of_class(torch.arange(len(tensor)) % 2, 1).score(x_t, kernel) for m in (model, want))
        assert torch.equal(a, b)
        a, b = (m.sample(5, generator=torch.Generator().manual_seed(0)) for m in (model, want))
        assert torch.equal(a, b)
        torch.testing.assert_close(model.reference.eigenvalues, GaussianReference.of_data(tensor).eigenvalues)
    moved = Empirical(np.load(file, mmap_mode="r")).to(F32)
    assert moved.data.dtype == F32
    assert torch.equal(
        moved.score(x_t.float(), kernel), Empirical(DATA.float().reshape(N, 3, 1)).score(x_t.float(), kernel)
    )


def test_data_in_float32_answer_float64_queries_and_the_other_way_round() -> None:
    for data, x_t in ((DATA.float(), X_T), (DATA, X_T.float())):
        log_prob, score = exact(x_t, data, torch.full((B,), 0.3))
        tol = 1e-10 if x_t.dtype == F64 else 1e-5
        got = Empirical(data).log_prob_and_score(x_t, Gaussian(torch.full((B,), 0.3)))
        assert got[1].dtype == x_t.dtype
        np.testing.assert_allclose(got[0], log_prob, rtol=tol)
        np.testing.assert_allclose(got[1], score, rtol=tol, atol=tol)


def test_the_reference_of_wide_data_is_shrunk_and_of_constant_data_is_none() -> None:
    wide = DATA[:5].repeat(1, 3)
    torch.testing.assert_close(Empirical(wide).reference.eigenvalues, GaussianReference.of_data(wide).eigenvalues)
    assert Empirical(np.ones((4, 2))).reference is None


MODEL = Empirical(DATA)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Empirical(np.ones((3, 2), int)), "data: got dtype int64, want float32 or float64"),
        (lambda: Empirical(np.ones((3, 2), ">f4")), "data: got dtype >f4, want float32 or float64"),
        (lambda: Empirical(np.ones(3)), "data: got shape (3,), want (N, *event) with N >= 1"),
        (lambda: Empirical(np.ones((0, 3))), "data: got shape (0, 3), want (N, *event) with N >= 1"),
        (lambda: Empirical(np.array([[1.0], [math.nan]])), "data: row 1 holds NaN or infinity"),
        (lambda: Empirical(np.r_[np.ones((600_000, 2)), [[1.0, math.nan]]]), "data: row 600000 holds NaN or infinity"),
        (lambda: Empirical(np.ones((3, 2))[::-1]), "data: got strides (-16, 8), want none negative"),
        (lambda: Empirical(torch.full((3, 2), math.inf)), "data: row 0 holds NaN or infinity"),
        (lambda: MODEL.leave_one_out(torch.tensor([0, N])), f"index: got 0 to {N}, want 0 to {N - 1}"),
        (lambda: MODEL.leave_one_out(torch.tensor([-1])), "index: got -1 to -1, want 0 to"),
        (lambda: MODEL.leave_one_out(torch.tensor([0.0])), "index: got shape (1,), torch.float32, want a tensor of"),
        (lambda: MODEL.leave_one_out([0]), "index: got list, want a tensor of whole numbers, (B,)"),
        (
            lambda: MODEL.leave_one_out(INDEX).score(X_T[:2], Gaussian(1)),
            "index: got 6 for 2 queries, want one a query",
        ),
        (lambda: Empirical(DATA[:1]).leave_one_out(torch.tensor([0])), "leave_one_out: got 1 row of data, want at"),
        (lambda: MODEL.including(X_T[:, :2]), "source: got event shape (2,), want (3,)"),
        (lambda: MODEL.including(X_T / 0), "source: row 0 holds NaN or infinity"),
        (lambda: MODEL.including(X_T).log_prob(X_T[:2], Gaussian(1)), "source: got 6 for 2 queries, want one"),
        (lambda: MODEL.of_class(LABELS[:5], 0), f"labels: got 5 for {N} rows of data, want one a row"),
        (lambda: MODEL.of_class(LABELS.double(), 0), "labels: got shape (2500,), torch.float64, want a tensor of"),
        (lambda: MODEL.of_class(LABELS, 7), "label: got 7, want the class of at least one row of data"),
        (lambda: MODEL.of_class(LABELS, 0.5), "label: got shape (1,), torch.float32, want a tensor of whole numbers"),
        (lambda: MODEL.of_class(LABELS, LABEL).score(X_T[:2], Gaussian(1)), "label: got 6 for 2 queries, want one"),
        (lambda: MODEL.half_target_variance(X_T[:, :2], Gaussian(1)), "x_t: got event shape (2,), want (3,)"),
        (lambda: MODEL.log_prob_and_score(X_T * math.nan, Gaussian(1)), "x_t: row 0 holds NaN or infinity"),
    ],
)
def test_bad_input_is_named_on_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as e:
        call()
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_a_file_that_was_cut_is_named(file: Path) -> None:
    model = Empirical(np.memmap(file, np.float64, "r", offset=128, shape=(N, 3)))
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(InputError, match=r"data: rows.npy has 20000 bytes, want 60128"):
        model.score(X_T, Gaussian(0.3))


# --- memory -----------------------------------------------------------------------------------------------------------

LARGE = """
import resource, sys
import numpy as np, torch
from gradlogp.kernels import Additive, Gaussian
from gradlogp.oracles import Empirical
torch.set_num_threads(1)
path, kind = sys.argv[1:]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
g = torch.Generator().manual_seed(0)
rows = np.load(path, mmap_mode="r")[: 15_000 if kind == "laplace" else None]
small = torch.from_numpy(np.array(rows[: len(rows) // 4]))
x_t = small[:128] + 0.1
kernel = Additive(torch.distributions.Laplace(0.0, 0.5)) if kind == "laplace" else Gaussian(0.5)
def work(data, n):
    model = Empirical(data)
    x = x_t[:n]
    model.log_prob_and_score(x, kernel), model.denoise(x, kernel)
    model.leave_one_out(torch.arange(n)).score(x, kernel), model.including(x).score(x, kernel)
    model.half_target_variance(x[:4], kernel)
n = 4 if kind == "laplace" else 128
data = torch.from_numpy(np.array(rows)) if kind == "tensor" else rows
work(small, n)  # what the machine's libraries and allocator take
before = peak()
work(data, n)
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["tensor", "file", "laplace"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, kind: str) -> None:
    """In a fresh process, four times the rows after a warm-up.

    All logits together would take 77 MB, the file in memory 38 MB, all pairs under a Laplace kernel 31 MB, a quarter of
    which the warm-up may have had.
    """
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(150_000, 64)).astype(np.float32))
    command = [sys.executable, "-c", LARGE, str(tmp_path / "rows.npy"), kind]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(out) < 20_000  # kB
