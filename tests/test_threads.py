"""Fits in several threads: one random state, one result, and torch's settings and global source as they were."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from jaxtyping import config
from torch import distributions as td
from torch import nn

from gradlogp import ScoreDensity, kernels, oracles, training
from gradlogp._draws import Seeded
from gradlogp.diagnostics.auditor import SmallNetwork
from gradlogp.estimators.building import closed_form, network_sizes, put_together
from gradlogp.estimators.threads import threads
from gradlogp.likelihood.coupling import CellFlow

X = np.random.default_rng(0).normal(size=(60, 2))
QUICK = {"n_steps": 3, "width": 8, "depth": 1, "dropout": 0.3, "device": "cpu", "random_state": 3, "verbose": False}
ROWS = torch.from_numpy(X).float()


def trained(seed: int = 3, energy: bool = False) -> dict[str, torch.Tensor]:
    """The weights of a network with dropout, made and trained from one seed."""
    model = put_together(network_sizes(ROWS, 8, 1, 0.3), closed_form(ROWS, energy), seed)
    levels, recipe = training.NoiseLevels(0.1, 2.0), training.Recipe(n_steps=20, batch_size=16)
    for _ in training.train(model, ROWS[:40], ROWS[40:], levels=levels, recipe=recipe, generator=g(seed)):
        pass
    return model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def test_three_threads_train_the_same_model():
    alone = trained()
    with ThreadPoolExecutor(3) as pool:
        assert all(same(found, alone) for found in pool.map(trained, [3] * 3))


def test_another_seed_is_another_model():
    assert not same(trained(4), trained())


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run(monkeypatch):
    inner, seen = nn.Dropout.forward, []

    def forward(self: nn.Dropout, x: torch.Tensor) -> torch.Tensor:
        out = inner(self, x)
        if self.training:
            seen.append((out == 0).sum(0).tolist())
        return out

    monkeypatch.setattr(nn.Dropout, "forward", forward)
    trained()
    once = list(seen)
    assert len({tuple(counts) for counts in once}) == len(once) == 20
    seen.clear()
    trained()
    assert seen == once


LAW = td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.Normal(torch.tensor([-1.0, 1.0]), torch.ones(2)))

USES: dict[str, Callable[[ScoreDensity], object]] = {
    "fit": lambda e: ScoreDensity(**QUICK).fit(X),
    "train": lambda e: trained(),
    "sample": lambda e: e.sample(5),
    "log_prob": lambda e: e.log_prob(X[:3]),
    "diagnose": lambda e: e.diagnose(X[:20], n_levels=3),
    "train an energy": lambda e: trained(energy=True),
    "noise of a law": lambda e: kernels.Additive(td.Gamma(3.0, 1.0)).sample(torch.ones(4, 2), generator=g(1)),
    "rows of a law": lambda e: oracles.Quadrature(LAW).sample(4, generator=g(1)),
    "an auditor": lambda e: SmallNetwork(4, 2)(torch.randn(30, 2, generator=g(0)), torch.ones(30, 1), g(0)),
    "a flow": lambda e: CellFlow(2, 3, generator=g(0)),
}


def g(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """No checks of shapes, which take most of the time of a small fit."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def est() -> ScoreDensity:
    return ScoreDensity(**QUICK).fit(X)


@pytest.mark.parametrize("use", USES)
def test_torchs_global_source_is_not_touched(est, use):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    USES[use](est)
    assert torch.equal(torch.get_rng_state(), state)


LAWS = [
    td.Normal(0.0, 1.0),
    td.StudentT(3.0),
    td.Gamma(2.0, 1.0),
    td.Dirichlet(torch.ones(3)),
    LAW,
    td.Cauchy(0.0, 1.0),
]
LAWS += [
    td.Exponential(1.0),
    td.Gumbel(0.0, 1.0),
    td.Poisson(3.0),
    td.Bernoulli(0.4),
    td.Binomial(5, torch.tensor(0.3)),
]
LAWS += [td.MultivariateNormal(torch.zeros(2), torch.eye(2)), td.VonMises(0.0, 1.0), td.Geometric(0.2)]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_a_law_is_drawn_from_the_seed(law):
    """Those that torch's own seed gives, without it."""
    torch.manual_seed(11)
    want = law.sample((6,))
    state = torch.get_rng_state()
    with Seeded(11):
        found = law.sample((6,))
    assert torch.equal(found, want)
    assert torch.equal(torch.get_rng_state(), state)


def test_first_weights_are_those_of_torchs_own_seed():
    torch.manual_seed(11)
    want = nn.Sequential(nn.Linear(3, 4), nn.Conv1d(2, 3, 2))
    with Seeded(11):
        found = nn.Sequential(nn.Linear(3, 4), nn.Conv1d(2, 3, 2))
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), want.parameters(), strict=True))


@pytest.mark.parametrize("layer", [nn.Dropout(0.25), nn.Dropout1d(0.25), nn.Dropout2d(0.25), nn.Dropout3d(0.25)])
def test_seeded_dropout_keeps_the_mean_and_drops_its_share(layer):
    n = {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}[type(layer)]
    with Seeded(1):
        out = layer(torch.ones(200, 100, *(2,) * n))
    whole = out.reshape(200, 100, -1)
    assert bool((whole == whole[:, :, :1]).all())  # a channel is dropped as a whole
    share = (whole[:, :, 0] == 0).double().mean().item()
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 20_000) ** 0.5
    assert torch.equal(out.unique(), torch.tensor([0.0, 1 / 0.75]))


@pytest.mark.parametrize("finish", [("a", "b"), ("b", "a")])
def test_the_number_of_threads_is_put_back_whoever_ends_last(finish):
    """Two calls that overlap, as two threads may make them."""
    before, found = torch.get_num_threads(), {}
    began = {k: threading.Event() for k in "ab"}
    end = {k: threading.Event() for k in "ab"}

    def call(name: str, n: int) -> None:
        with threads(n):
            with threads(n + 1):
                pass
            found[name] = torch.get_num_threads()
            began[name].set()
            end[name].wait(5)

    running = {}
    torch.set_num_threads(4)
    try:
        for name, n in (("a", 2), ("b", 3)):
            running[name] = threading.Thread(target=call, args=(name, n))
            running[name].start()
            assert began[name].wait(5)
        for name in finish:
            end[name].set()
            running[name].join()
        fresh: list[int] = []
        later = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert found == {"a": 2, "b": 3}
        assert (torch.get_num_threads(), fresh) == (4, [4])
    finally:
        torch.set_num_threads(before)
