"""Networks and functions of users: what they may give, and what is refused in one line instead of broadcast."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import config
from torch import Tensor, nn

from gradlogp import InputError, kernels, models, samplers, training

ROWS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
REFERENCE, LEVEL = models.GaussianReference.of_data(ROWS), kernels.Gaussian(0.5)


@pytest.fixture(scope="module", autouse=True)
def as_users_do():
    """No checks but the library's own."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


class Changed(nn.Module):
    """A linear network whose output is changed."""

    def __init__(self, change: Callable[[Tensor], Any], n_outputs: int = 3) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(3, n_outputs), change

    def forward(self, z: Tensor, c_noise: Tensor) -> Any:
        return self.change(self.linear(z))


def train(model: models.ScoreModel) -> None:
    recipe, g = training.Recipe(n_steps=2, batch_size=8), torch.Generator().manual_seed(0)
    list(training.train(model, ROWS, ROWS, levels=training.NoiseLevels(0.1, 1.0), recipe=recipe, generator=g))


# what a network makes of its output (B, 3): words of the message
REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "one column": (lambda v: v[:, :1], "shape (40, 1), want that of its input, (40, 3)"),
    "one more dimension": (lambda v: v[:, :, None], "shape (40, 3, 1), want that of its input, (40, 3)"),
    "one row": (lambda v: v[:1], "shape (1, 3), want that of its input, (40, 3)"),
    "a number": (lambda v: v.sum(), "shape (), want"),
    "None": (lambda v: None, "gave a NoneType, want a tensor"),
    "an int": (lambda v: 3, "gave a int, want a tensor"),
    "an array": (lambda v: v.detach().numpy(), "gave a ndarray, want a tensor"),
    "two": (lambda v: (v, v), "gave a tuple, want a tensor"),
    "float64": (lambda v: v.double(), "gave torch.float64, want torch.float32"),
    "whole numbers": (lambda v: v.long(), "gave torch.int64, want torch.float32"),
    "complex": (lambda v: v.to(torch.complex64), "gave torch.complex64, want"),
}
UNTRAINABLE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "detached": (lambda v: v.detach(), "without a gradient"),
    "NaN": (lambda v: v * math.nan, "nan before the first step"),
    "infinite": (lambda v: v + math.inf, "before the first step"),
}


def message(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 200
    assert "learning rate" not in text
    return text


@pytest.mark.parametrize("kind", REFUSED)
def test_a_network_that_is_not_like_its_input(kind):
    change, words = REFUSED[kind]
    model = models.Preconditioned(Changed(change), REFERENCE)
    for call in (lambda: model.score(ROWS, LEVEL), lambda: model.denoise(ROWS, LEVEL)):
        text = message(call)
        assert "the network Changed" in text
        assert words in text
    assert "the network Changed" in message(train, model)


@pytest.mark.parametrize("kind", UNTRAINABLE)
def test_a_network_that_cannot_be_trained(kind):
    change, words = UNTRAINABLE[kind]
    assert words in message(train, models.Preconditioned(Changed(change), REFERENCE))


POTENTIALS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a column": (lambda v: v, "shape (40, 1), want (40,), a number a row"),
    "float64": (lambda v: v[:, 0].double(), "gave torch.float64, want torch.float32"),
    "None": (lambda v: None, "gave a NoneType"),
    "whole numbers": (lambda v: v[:, 0].long(), "gave torch.int64"),
    "detached": (lambda v: v[:, 0].detach(), "no gradient in x"),
}


@pytest.mark.parametrize("kind", POTENTIALS)
def test_a_potential_that_is_not_a_number_a_row(kind):
    change, words = POTENTIALS[kind]
    assert words in message(models.EnergyModel(Changed(change, 1), REFERENCE).score, ROWS, LEVEL)


FUNCTIONS = {k: v for k, v in REFUSED.items() if k not in ("float64", "an array")}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions(kind):
    change, words = FUNCTIONS[kind]
    score = models.ScoreFunction(lambda x, kernel: change(-x))
    assert words in message(score.score, ROWS, LEVEL)
    assert words in message(models.from_denoiser(change, 0.5).denoise, ROWS, LEVEL)
    ends = {"sigma_max": 1.0, "sigma_min": 0.1, "step": samplers.heun}
    assert "ScoreFunction: score gave" in message(lambda: samplers.sample(score, ROWS, 2, **ends))


def test_a_function_of_more_digits_answers_as_its_rows():
    """Functions are often written with float64 constants."""
    mean = torch.zeros(3, dtype=torch.float64)
    for model in (models.ScoreFunction(lambda x, kernel: mean - x), models.from_denoiser(lambda x: x + mean, 0.5)):
        assert model.score(ROWS, LEVEL).dtype == torch.float32
    assert torch.equal(models.ScoreFunction(lambda x, kernel: mean - x).score(ROWS, LEVEL), -ROWS)


def test_mixed_precision_works():
    model = models.Preconditioned(Changed(lambda v: v), REFERENCE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.score(ROWS, LEVEL)
    assert found.dtype == torch.float32
    assert torch.allclose(found, model.score(ROWS, LEVEL), atol=0.05)
