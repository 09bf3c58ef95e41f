"""Attack the parameters: absurd values of each, which must work or be an ``InputError`` of one line, within 10 s.

Each case runs in a process of its own, with 10 s and 6 GB more than it starts with.

Run: python benchmarks/faults_parameters.py
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gradlogp import (
    InputError,
    ScoreDensity,
    diagnostics,
    kernels,
    likelihood,
    models,
    networks,
    objectives,
    oracles,
    processes,
    samplers,
    training,
)
from gradlogp.estimators.parameters import check_parameters

SECONDS, MEMORY, LONGEST = 10, 6 * 10**9, 400

Use = Callable[[Any], object]


class Wordy:
    """An object whose text is long and has many lines."""

    def __repr__(self) -> str:
        return "a very wordy object\n" * 1000


META, NESTED = torch.ones(3, 2, device="meta"), torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
COUNTS: tuple[Any, ...] = (
    *(0, -1, 1.5, math.nan, math.inf, "many", [3], np.arange(3), torch.arange(3), Wordy(), META, NESTED),
    *(10**10, 10**14, 10**400, -(10**400)),
)
REALS: tuple[Any, ...] = (
    *(0, -1.0, math.nan, math.inf, 1e308, 1e-320, 10**400, "some", [1.0, 2.0], 1j, np.ones(30), Wordy(), META, NESTED),
)
CHOICES: tuple[Any, ...] = (0, math.nan, "other", [True], np.ones(300), np.ones((3, 3)), Wordy(), META, NESTED, 10**400)


def g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = np.random.default_rng(0).normal(size=(60, 3))
ROWS = torch.from_numpy(X).float()
LEVEL = kernels.Gaussian(0.5)
MIXTURE = oracles.GaussianMixture(torch.ones(2), torch.tensor([[0.0, 0.0, 0.0], [2.0, 1.0, 0.0]]), 0.3)
EMPIRICAL = oracles.Empirical(ROWS)
REFERENCE = models.GaussianReference.of_data(ROWS)
QUICK = {"n_steps": 2, "width": 4, "depth": 1, "device": "cpu", "random_state": 0, "verbose": False}


def fit(name: str) -> Use:
    return lambda v: ScoreDensity(**QUICK | {name: v}).fit(X)


def recipe(name: str) -> Use:
    def use(value: Any) -> None:
        model = models.Preconditioned(networks.ResidualMLP((3,), width=4, depth=1), REFERENCE)
        made = training.Recipe(**{"n_steps": 2, "batch_size": 8, "evaluate_every": 1} | {name: value})
        list(training.train(model, ROWS, ROWS, levels=training.NoiseLevels(0.1, 1.0), recipe=made, generator=g()))

    return use


def sample(name: str, **more: Any) -> Use:
    return lambda v: samplers.sample(MIXTURE, 2, **{"n_steps": 3, "generator": g()} | more | {name: v})


def counts(est: ScoreDensity) -> dict[str, Use]:
    """What takes whole numbers."""
    d = diagnostics
    uniform = likelihood.UniformDequantisation(1.0)

    def log_p(y: torch.Tensor) -> torch.Tensor:
        return MIXTURE.log_prob(y, LEVEL)

    return {
        **{
            f"ScoreDensity({name}=…)": fit(name)
            for name in ("width", "depth", "n_steps", "batch_size", "patience", "sampling_steps")
        },
        **{f"Recipe({n}=…)": recipe(n) for n in ("n_steps", "batch_size", "warm_up", "evaluate_every", "patience")},
        # threads of a fork hang, so without a fit
        "ScoreDensity(n_jobs=…)": lambda v: check_parameters(ScoreDensity(n_jobs=v)),
        "est.sample(…)": est.sample,
        "est.diagnose(n_levels=…)": lambda v: est.diagnose(X, n_levels=v),
        "est.log_mass(n_draws=…)": lambda v: est.log_mass(X[:3], n_draws=v),
        "samplers.sample(model, …)": lambda v: samplers.sample(MIXTURE, v, 3, generator=g()),
        "samplers.sample(n_steps=…)": sample("n_steps"),
        "samplers.sample(n_steps=…, step=heun)": sample("n_steps", step=samplers.heun),
        "samplers.sample(batch_size=…)": sample("batch_size"),
        "samplers.calibrate(n_steps=…)": lambda v: samplers.calibrate(MIXTURE, n_steps=v),
        "samplers.karras(…)": lambda v: samplers.karras(1.0, 0.1, v),
        "samplers.langevin(model, …)": lambda v: samplers.langevin(MIXTURE, v, [LEVEL], n_steps=1, generator=g()),
        "samplers.langevin(nodes=…)": lambda v: samplers.langevin(
            MIXTURE, ROWS, [LEVEL], n_steps=1, nodes=v, generator=g()
        ),
        "GaussianMixture.sample": lambda v: MIXTURE.sample(v, generator=g()),
        "Empirical.sample": lambda v: EMPIRICAL.sample(v, generator=g()),
        "Quadrature(order=…)": lambda v: oracles.Quadrature(torch.distributions.Normal(0.0, 1.0), order=v),
        "ResidualMLP(width=…)": lambda v: networks.ResidualMLP((3,), width=v, depth=1),
        "ResidualMLP(depth=…)": lambda v: networks.ResidualMLP((3,), width=4, depth=v),
        "DenoisingAutoencoder.of_data(n_hidden)": lambda v: models.DenoisingAutoencoder.of_data(ROWS, v, 0.5),
        "DenoisingScoreMatching(n_noise)": lambda v: objectives.DenoisingScoreMatching(v),
        "DenoisingScoreMatching(references)": lambda v: objectives.DenoisingScoreMatching(references=v)(
            MIXTURE, ROWS, LEVEL, g()
        ),
        "diagnostics.score_error(n_noise)": lambda v: d.score_error(MIXTURE, None, ROWS, [LEVEL], n_noise=v),
        "diagnostics.compare(n_noise)": lambda v: d.compare(MIXTURE, REFERENCE, ROWS, [LEVEL], n_noise=v),
        "diagnostics.memorisation(n_noise)": lambda v: d.memorisation(MIXTURE, ROWS, ROWS + 1, [LEVEL], n_noise=v),
        "diagnostics.stein_test(n_bootstrap)": lambda v: d.stein_test(MIXTURE, ROWS, LEVEL, n_bootstrap=v),
        "diagnostics.curl(max_rows)": lambda v: d.curl(MIXTURE, ROWS, LEVEL, max_rows=v),
        "diagnostics.equivalence(n)": lambda v: d.equivalence(REFERENCE, MIXTURE, LEVEL, v, generator=g()),
        "diagnostics.self_check(min_draws)": lambda v: d.self_check(MIXTURE, ROWS, LEVEL, min_draws=v, generator=g()),
        "likelihood.log_mass(n_draws)": lambda v: likelihood.log_mass(log_p, ROWS, uniform, n_draws=v, generator=g()),
        "likelihood.entropy(n_draws)": lambda v: likelihood.entropy(MIXTURE, ROWS, sigma_min=0.1, n_draws=v),
        "likelihood.kl_bound(n)": lambda v: likelihood.kl_bound(
            REFERENCE, MIXTURE, processes.EDM(), v, t_min=0.1, t_max=10.0, prior=REFERENCE, generator=g()
        ),
    }


def reals(est: ScoreDensity) -> dict[str, Use]:
    """What takes numbers that need not be whole."""
    return {
        **{
            f"ScoreDensity({name}=…)": fit(name)
            for name in ("sigma_min", "sigma_max", "learning_rate", "dropout", "max_seconds", "validation_fraction")
        },
        "ScoreDensity(contamination=…)": fit("contamination"),
        "Recipe(learning_rate=…)": recipe("learning_rate"),
        "est.grad_log_prob(sigma)": lambda v: est.grad_log_prob(X[:2], v),
        "est.denoise(sigma)": lambda v: est.denoise(X[:2], v),
        "samplers.sample(sigma_max=…)": sample("sigma_max"),
        "samplers.sample(sigma_min=…)": sample("sigma_min"),
        "likelihood.log_prob(sigma_min=…)": lambda v: likelihood.log_prob(MIXTURE, ROWS[:2], sigma_min=v),
        "likelihood.Exact(atol)": lambda v: likelihood.log_prob(
            MIXTURE, ROWS[:2], sigma_min=0.1, trace=likelihood.Exact(v)
        ),
        "kernels.Gaussian(sigma)": lambda v: kernels.Gaussian(v).sample(ROWS, generator=g()),
        "kernels.Gaussian(alpha)": lambda v: kernels.Gaussian(0.5, v).sample(ROWS, generator=g()),
        "GaussianMixture(covariances)": lambda v: oracles.GaussianMixture(torch.ones(2), torch.eye(2), v),
        "processes.VP(beta_max)": lambda v: processes.VP(0.1, v)(0.5),
        "training.NoiseLevels(sigma_min)": lambda v: training.NoiseLevels(v, 2.0),
        "models.from_denoiser(sigma)": lambda v: models.from_denoiser(lambda x: x, v),
        "FiniteDifference(step)": lambda v: objectives.FiniteDifferenceScoreMatching(v)(MIXTURE, ROWS, LEVEL, g()),
    }


def choices(est: ScoreDensity) -> dict[str, Use]:
    """What takes one of a few things."""
    return {
        **{
            f"ScoreDensity({name}=…)": fit(name)
            for name in ("standardize", "device", "objective", "energy", "random_state")
        },
        "est.sample(random_state=…)": lambda v: est.sample(1, random_state=v),
        "samplers.sample(process=…)": sample("process"),
        "samplers.sample(step=…)": sample("step"),
        "samplers.sample(grid=…)": sample("grid"),
        "samplers.sample(event_shape=…)": sample("event_shape"),
        "model.score(x)": lambda v: MIXTURE.score(v, LEVEL),
        "likelihood.log_prob(x)": lambda v: likelihood.log_prob(MIXTURE, v, sigma_min=0.1),
        "diagnostics.score_error(kernels)": lambda v: diagnostics.score_error(MIXTURE, None, ROWS, v),
        "diagnostics.score_error(x)": lambda v: diagnostics.score_error(MIXTURE, None, v, [LEVEL]),
    }


class Network(nn.Module):
    """A user's network that gives what this function makes of its output."""

    def __init__(self, change: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(3, 3), change

    def forward(self, z: torch.Tensor, c: torch.Tensor) -> Any:  # noqa: ARG002
        """The changed output."""
        return self.change(self.linear(z))


CHANGES: tuple[Callable[[torch.Tensor], Any], ...] = (
    *(lambda v: None, lambda v: 3, lambda v: v.detach().numpy(), lambda v: v.detach(), lambda v: v[:, :1]),
    *(lambda v: v[:, :, None], lambda v: v.double(), lambda v: v * math.nan, lambda v: v[:1], lambda v: (v, v)),
    *(lambda v: v.long(), lambda v: v.sum(), lambda v: v / 0, lambda v: v.to(torch.complex64), lambda v: v.sum(1)),
)


def trained(model: models.ScoreModel) -> None:
    made = training.Recipe(n_steps=2, batch_size=8)
    list(training.train(model, ROWS, ROWS, levels=training.NoiseLevels(0.1, 1.0), recipe=made, generator=g()))


def user_networks() -> dict[str, Use]:
    """What takes a network or a function of a user's, which must be refused."""

    def function(change: Any) -> models.ScoreModel:
        return models.ScoreFunction(lambda x, kernel: change(-x))

    return {
        "Preconditioned(network)": lambda v: trained(models.Preconditioned(Network(v), REFERENCE)),
        "EnergyModel(network)": lambda v: trained(models.EnergyModel(Network(lambda u: v(u)), REFERENCE)),
        "ScoreFunction(function)": lambda v: samplers.sample(
            function(v), 4, 3, step=samplers.heun, sigma_max=2.0, sigma_min=0.1, event_shape=(3,), generator=g()
        ),
        "from_denoiser(f)": lambda v: samplers.sample(
            models.from_denoiser(lambda x, s: v(x)), 4, 3, step=samplers.heun, sigma_max=2.0, sigma_min=0.1,
            event_shape=(3,), generator=g(),
        ),
    }  # fmt: skip


def outcome(use: Use, value: Any) -> str:
    """What comes of a case: nothing, or what is wrong with it."""
    try:
        use(value)
    except InputError as error:
        text = str(error)
        if "\n" in text or len(text) >= LONGEST or not text:
            return f"a message of {len(text)} characters and {text.count(chr(10)) + 1} lines"
    except BaseException as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return ""


def _in_child(use: Use, value: Any, end: Connection) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY,) * 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    end.send(outcome(use, value))


def tried(use: Use, value: Any) -> str:
    """The same in a process of its own."""
    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(use, value, there))
    child.start()
    there.close()
    try:
        found: str = here.recv()
    except EOFError:
        found = "died"
    child.join()
    return f"killed after {SECONDS} s" if child.exitcode == -signal.SIGALRM else found


def attack(work: Path) -> Iterator[tuple[str, int, int, str]]:  # noqa: ARG001
    """The kinds of parameters: (name, tried, failed, the first failures on one line)."""
    torch.set_num_threads(1)
    est = ScoreDensity(**QUICK).fit(X)
    kinds: tuple[tuple[str, dict[str, Use], tuple[Any, ...]], ...] = (
        ("whole numbers", counts(est), COUNTS),
        ("real numbers", reals(est), REALS),
        ("choices", choices(est), CHOICES),
        ("networks of users", user_networks(), CHANGES),
    )
    for kind, uses, values in kinds:
        failures = []
        for name, use in uses.items():
            for i, value in enumerate(values):
                if wrong := tried(use, value):
                    shown = f"output {i}" if kind == "networks of users" else " ".join(f"{value!r:.30}".split())
                    failures.append(f"{name} at {shown}: {wrong}")
        yield kind, len(uses) * len(values), len(failures), "; ".join(failures)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for line in attack(Path(folder)):
            print(*line[:3], line[3].replace("; ", "\n    "), sep="  ")
