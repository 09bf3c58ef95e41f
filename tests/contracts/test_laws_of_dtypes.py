"""Rows of any floating dtype with a model of any: finite, and right to the coarser of the two."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradlogp import InputError, diagnostics, likelihood, samplers, training
from gradlogp import objectives as obj
from gradlogp.kernels import Gaussian
from gradlogp.models import (
    DenoisingAutoencoder,
    EnergyModel,
    GaussianReference,
    MarginalReference,
    Preconditioned,
    ScoreFunction,
    ScoreModel,
    from_denoiser,
    posterior,
    posterior_covariance,
)
from gradlogp.networks import Potential, ResidualMLP
from gradlogp.oracles import Empirical, GaussianMixture
from gradlogp.processes import VP

pytestmark = [pytest.mark.usefixtures("as_a_user"), pytest.mark.filterwarnings("ignore:Converting a tensor with")]
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
ROWS, MODELS = (F16, BF16, F32, F64), (F32, F64)
SIGMA = 0.5


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


DATA = torch.randn(64, 2, generator=seeded(1), dtype=F64) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]], dtype=F64) + 0.5
REFERENCE, COLUMN = GaussianReference.of_data(DATA), GaussianReference.of_data(DATA[:, :1])


def untrained(network: nn.Module) -> nn.Module:
    """A network that says something: its last layer starts at zero."""
    torch.nn.init.normal_(network.last.weight, std=0.02, generator=seeded(3))
    return network


class Denoised(nn.Module):
    """A user's denoiser, of float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Score(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x_t: Tensor, kernel: Any) -> Tensor:
        return -x_t + self.layer(x_t)


def build() -> dict[str, ScoreModel]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = untrained(ResidualMLP((2,), width=8, depth=1))
        return {
            "preconditioned": Preconditioned(network, copy.deepcopy(REFERENCE)),
            "energy": EnergyModel(untrained(Potential((2,), width=8, depth=1)), copy.deepcopy(REFERENCE)),
            "gaussian": copy.deepcopy(REFERENCE),
            "marginals": MarginalReference.of_data(DATA),
            "auto-encoder": DenoisingAutoencoder.of_data(DATA.float(), 4, SIGMA, generator=seeded()),
            "denoiser": from_denoiser(Denoised(), SIGMA, reference=copy.deepcopy(REFERENCE)),
            "function": ScoreFunction(Score()),
            "mixture": GaussianMixture(torch.tensor([0.5, 0.5]), DATA[:2], 0.3),
            "rows": Empirical(DATA),
        }


KINDS = tuple(build())
pairs = pytest.mark.parametrize(("of_model", "of_rows"), [(m, r) for m in MODELS for r in ROWS])


def tolerance(*dtypes: torch.dtype) -> float:
    return 40 * max(torch.finfo(d).eps for d in dtypes)


def asked(model: ScoreModel, x: Tensor, kernel: Gaussian) -> Iterator[tuple[str, Tensor]]:
    for name in ("score", "denoise", "unnormalised_log_prob", "log_prob", "energy", "centred", "project"):
        if hasattr(model, name):
            out = getattr(model, name)(x, kernel) if name != "project" else model.project(x)
            if out is not None:
                yield name, out


@pairs
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_computes_in_its_dtype_and_answers_in_that_of_the_rows(
    kind: str, of_model: torch.dtype, of_rows: torch.dtype
) -> None:
    """Against the same numbers all in float64."""
    model, x = build()[kind].to(of_model), DATA[:6].to(of_rows)
    exact = copy.deepcopy(model).double()
    kernel = Gaussian(SIGMA)
    want = dict(asked(exact, x.double(), kernel))
    for name, got in asked(model, x, kernel):
        assert got.dtype == of_rows, name
        scale = want[name].abs().max().item() + 1
        torch.testing.assert_close(got.double(), want[name], rtol=0, atol=scale * tolerance(of_model, of_rows))


Call = Callable[[ScoreModel, Tensor], Any]
K, KS = Gaussian(SIGMA), [Gaussian(0.3), Gaussian(1.0)]
ORACLE = GaussianMixture(torch.tensor([0.5, 0.5]), DATA[:2], 0.3)
LEVELS = {"sigma_min": 0.1, "sigma_max": 5.0}


def averaged(objective: Any) -> Call:
    return lambda m, x: objective(m, x, K, generator=seeded())


def trained(model: ScoreModel, x: Tensor) -> Any:
    recipe = training.Recipe(n_steps=2, batch_size=16)
    records = training.train(model, x, x[:32], levels=training.OneLevel(SIGMA), recipe=recipe, generator=seeded())
    return [*records, model.score(x, K)]


EXACT: dict[str, Call] = {  # that draw nothing, or nothing that a dtype changes
    "posterior": lambda m, x: posterior(m, x, K),
    "posterior covariance": lambda m, x: posterior_covariance(m, x, K)[0],
    "sample of rows": lambda m, x: samplers.sample(m, x, 3, step=samplers.heun, **LEVELS),
    "modes": lambda m, x: samplers.modes(m, x[:8], K, n_steps=40).points,
    "log ratio": lambda m, x: samplers.log_ratio(m, x[:8], x[8:16], K),
    "log_prob": lambda m, x: likelihood.log_prob(m, x[:4], **LEVELS),
    "log_density_difference": lambda m, x: likelihood.log_density_difference(m, x[:8], x[8:16], K).value,
}
DRAWN: dict[str, Call] = {
    "sample": lambda m, x: samplers.sample(m, 8, 3, step=samplers.heun, generator=seeded()),
    "sample by default": lambda m, x: samplers.sample(m, x[:8], 3, **LEVELS, generator=seeded()),
    "trajectory": lambda m, x: [s.x for s in samplers.trajectory(m, x[:8], 3, **LEVELS, generator=seeded())],
    "langevin": lambda m, x: samplers.langevin(m, x[:8], KS[::-1], 3, generator=seeded()),
    "bound": lambda m, x: likelihood.bound(m, x[:8], VP(), generator=seeded()),
    "gap": lambda m, x: likelihood.gap(m, x[:4], VP(), generator=seeded()),
    "denoising_log_prob": lambda m, x: likelihood.denoising_log_prob(m, x[:8], n_draws=8, generator=seeded()),
    "cross_entropy": lambda m, x: likelihood.cross_entropy(m, x, n_draws=8, generator=seeded()),
    "entropy": lambda m, x: likelihood.entropy(m, x, n_draws=8, generator=seeded()),
    "kl_divergence": lambda m, x: likelihood.kl_divergence(m, m, x, n_draws=8, generator=seeded()),
    "kl_bound": lambda m, x: likelihood.kl_bound(m, ORACLE, VP(), 64, generator=seeded()),
    "mutual_information": lambda m, x: likelihood.mutual_information(
        m, COLUMN, COLUMN, x, [0], n_draws=8, generator=seeded()
    ),
    "log_mass": lambda m, x: likelihood.log_mass(
        lambda y: likelihood.log_prob(m, y, **LEVELS).value,
        x[:8],
        likelihood.UniformDequantisation(0.1),
        n_draws=4,
        generator=seeded(),
    ),
    "dsm": averaged(obj.DenoisingScoreMatching(2)),
    "stable target": averaged(obj.DenoisingScoreMatching(2, references=DATA[:16])),
    "esm": averaged(obj.ExplicitScoreMatching(ORACLE)),
    "ism": averaged(obj.ImplicitScoreMatching()),
    "sliced": averaged(obj.SlicedScoreMatching()),
    "finite differences": averaged(obj.FiniteDifferenceScoreMatching()),
    "reconstruction": averaged(obj.ReconstructionError()),
    "equivalence": lambda m, x: diagnostics.equivalence(m, ORACLE, K, 64, generator=seeded()),
    "self_check": lambda m, x: diagnostics.self_check(m, x, K, min_draws=64, generator=seeded()),
    "score_error, oracle": lambda m, x: diagnostics.score_error(m, ORACLE, x, K, generator=seeded()),
    "score_error, rows": lambda m, x: diagnostics.score_error(m, x[:32], x[32:], K, generator=seeded()),
    "memorisation": lambda m, x: diagnostics.memorisation(m, x[:32], x[32:], K, n_noise=2, generator=seeded()),
    "nearest_neighbours": lambda m, x: diagnostics.nearest_neighbours(x[:8], x[8:40], x[40:]),
    "compare": lambda m, x: diagnostics.compare(m, REFERENCE, x, K, n_noise=2, generator=seeded()),
    "split_half": lambda m, x: diagnostics.split_half(m, REFERENCE, x, K, n_noise=2, generator=seeded()),
    "calibration": lambda m, x: diagnostics.calibration(m, x, K, n_noise=2, generator=seeded()),
    "curl": lambda m, x: diagnostics.curl(m, x, K, generator=seeded()),
    "stein_test": lambda m, x: diagnostics.stein_test(m, x, K, n_bootstrap=50, generator=seeded()),
    "chain": lambda m, x: diagnostics.chain(m, x, K, n_draws=64, generator=seeded()),
    "train": trained,
}


def numbers(result: Any) -> Iterator[float]:
    """All numbers of a result, that is a tensor, a number, or made of such."""
    if isinstance(result, Tensor):
        if result.is_floating_point():
            yield from result.double().flatten().tolist()
    elif isinstance(result, float):
        yield result
    elif isinstance(result, dict):
        yield from numbers(list(result.values()))
    elif isinstance(result, list | tuple):
        for v in result:
            yield from numbers(v)
    elif is_dataclass(result):
        for f in fields(result):
            yield from numbers(getattr(result, f.name))


def answer(call: Call, of_model: torch.dtype, x: Tensor) -> list[float]:
    found = list(numbers(call(build()["preconditioned"].to(of_model), x)))
    assert found
    return found


@pairs
@pytest.mark.parametrize("name", EXACT)
def test_what_is_computed_is_right_to_the_coarser_dtype(name: str, of_model: torch.dtype, of_rows: torch.dtype) -> None:
    """Against the same call with the same numbers, all in float64; some thousand roundings are allowed for."""
    x = DATA.to(of_rows)
    got, want = answer(EXACT[name], of_model, x), answer(EXACT[name], F64, x.double())
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=0.02, atol=0.02)


@pairs
@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn_is_finite_in_any_dtype(name: str, of_model: torch.dtype, of_rows: torch.dtype) -> None:
    assert all(not math.isnan(v) for v in answer(DRAWN[name], of_model, DATA.to(of_rows)))


@pytest.mark.parametrize("of_rows", [F32, F64])
@pytest.mark.parametrize("name", [n for n in DRAWN if n not in {"langevin", "train"}])  # whose steps tip over
def test_draws_are_those_of_the_rows_whatever_the_model_computes_in(name: str, of_rows: torch.dtype) -> None:
    """A float32 model beside its float64 copy, on the same draws."""
    got, want = (torch.tensor(answer(DRAWN[name], of_model, DATA.to(of_rows))) for of_model in MODELS)
    torch.testing.assert_close(got, want, rtol=0.01, atol=0.002, equal_nan=False)


TAKES_NO_ROWS = {"sample", "equivalence", "kl_bound"}


@pytest.mark.parametrize("name", [n for n in (EXACT | DRAWN) if n not in TAKES_NO_ROWS])
def test_rows_on_another_device_are_named_on_one_line(name: str) -> None:
    with pytest.raises(InputError) as e:
        (EXACT | DRAWN)[name](build()["preconditioned"], DATA.float().to("meta"))
    assert "meta" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_another_device_is_named_on_one_line(kind: str) -> None:
    for name in ("score", "denoise"):
        with pytest.raises(InputError, match="meta"):
            getattr(build()[kind], name)(DATA.to("meta"), K)


class Damped(ScoreModel):
    """A user's own class, with names of its own for its arguments."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.ones(1))

    def score(self, x, kernel):
        return -self.rate * x

    def denoise(self, x, kernel):
        return self.rate * x


def test_arguments_may_be_given_by_the_names_of_a_subclass():
    x = torch.ones(2, 3, dtype=torch.float64)
    assert torch.equal(Damped().score(x=x, kernel=Gaussian(1.0)), -x)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Damped().score(kernel=Gaussian(1.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_model_in_half_precision_answers(dtype):
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    network = ResidualMLP(event_shape=(2,), width=8, depth=1, dropout=0.0)
    model = Preconditioned(network, MarginalReference.of_data(x)).eval()
    want = model.score(x, Gaussian(0.5))
    got = copy.deepcopy(model).half().score(x.to(dtype), Gaussian(0.5))
    assert got.dtype == dtype
    assert (got.float() - want).abs().max() < 0.02 * want.abs().max()
