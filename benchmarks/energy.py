"""Energies beside free-form networks on four densities in the plane. Run: python benchmarks/energy.py.

The same Gaussian part, rows, noise, steps and sizes; what differs is whether the score is a network or the gradient of
a potential. About 15 minutes on one core.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from common import table, write
from torch import Tensor

from gradlogp import diagnostics, likelihood
from gradlogp.diagnostics import Estimate
from gradlogp.kernels import Gaussian
from gradlogp.models import EnergyModel, GaussianReference, OnReference, Preconditioned
from gradlogp.networks import Potential, ResidualMLP
from gradlogp.oracles import GaussianMixture
from gradlogp.training import NoiseLevels, Recipe, train

N_ROWS, N_HELD_OUT, N_TEST, N_STEPS, WIDTH = 20_000, 2_000, 10_000, 2_000, 128
SIGMAS = (0.1, 0.2, 0.5, 1.0)
SEEDS = (0, 1)
BULK = 0.9  # share of the draws, those of the highest density
PAIRS = 200


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid() -> GaussianMixture:
    means = torch.tensor([[2.0 * i, 2.0 * j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    return GaussianMixture(torch.ones(9), means, 0.04)


def ring() -> GaussianMixture:
    a = torch.arange(32) * (2 * math.pi / 32)
    return GaussianMixture(torch.ones(32), 2 * torch.stack([a.cos(), a.sin()], 1), 0.02)


def moons() -> GaussianMixture:
    a = torch.linspace(0, math.pi, 17)
    upper = torch.stack([a.cos(), a.sin()], 1)
    lower = torch.stack([1 - a.cos(), 0.5 - a.sin()], 1)
    return GaussianMixture(torch.ones(34), torch.cat([upper, lower]), 0.01)


def pinwheel() -> GaussianMixture:
    a = torch.arange(5) * (2 * math.pi / 5)
    turn = torch.stack([torch.stack([a.cos(), -a.sin()], 1), torch.stack([a.sin(), a.cos()], 1)], 1)
    covariances = turn @ torch.diag(torch.tensor([0.5, 0.02])) @ turn.mT
    return GaussianMixture(torch.ones(5), 1.5 * torch.stack([a.cos(), a.sin()], 1), covariances)


DENSITIES = {"nine modes": grid, "ring": ring, "two moons": moons, "pinwheel": pinwheel}


def learnt(oracle: GaussianMixture, energy: bool, seed: int) -> tuple[OnReference, float]:
    """A trained model and the seconds that a step took."""
    g = seeded(seed)
    x, held_out = oracle.sample(N_ROWS, generator=g), oracle.sample(N_HELD_OUT, generator=g)
    reference = GaussianReference.of_data(x, fade=1.0)
    torch.manual_seed(seed)
    network = (Potential if energy else ResidualMLP)((2,), width=WIDTH)
    model = EnergyModel(network, reference) if energy else Preconditioned(network, reference)
    levels = NoiseLevels.of_rows(x, GaussianReference.of_data(x))
    recipe = Recipe(n_steps=N_STEPS, batch_size=512, evaluate_every=500)
    start = time.process_time()
    for _ in train(model, x, held_out, levels=levels, recipe=recipe, generator=g):
        pass
    return model, (time.process_time() - start) / N_STEPS


def noisy(oracle: GaussianMixture, kernel: Gaussian, n: int = N_TEST) -> Tensor:
    return kernel.sample(oracle.sample(n, generator=seeded(100)), generator=seeded(101))


def score_error(model: OnReference, oracle: GaussianMixture, kernel: Gaussian) -> Estimate:
    """E‖ψ − ∇log p_σ‖²/E‖∇log p_σ‖²."""
    x_t = noisy(oracle, kernel)
    with torch.no_grad():
        exact = oracle.score(x_t, kernel)
        errors = (model.score(x_t, kernel) - exact).square().sum(1)
    return Estimate.mean_of(errors / exact.square().sum(1).mean())


def log_density_errors(model: EnergyModel, oracle: GaussianMixture, kernel: Gaussian) -> tuple[float, float, float]:
    """Of log p̂ − log p_σ less its mean over the bulk: root mean square, 95 % and 99 % quantile of its size, in nats."""
    x_t = noisy(oracle, kernel)
    exact = oracle.log_prob(x_t, kernel)
    x_t = x_t[exact > exact.quantile(1 - BULK)]
    with torch.no_grad():
        off = model.unnormalised_log_prob(x_t, kernel) - oracle.log_prob(x_t, kernel)
    off = (off - off.mean()).abs()
    return off.square().mean().sqrt().item(), off.quantile(0.95).item(), off.quantile(0.99).item()


def line_integral(model: OnReference, oracle: GaussianMixture, kernel: Gaussian) -> tuple[float, float]:
    """Of differences between random pairs of the bulk, by the score alone: medians of the error and of that stated."""
    x_t = noisy(oracle, kernel)
    exact = oracle.log_prob(x_t, kernel)
    x_t = x_t[exact > exact.quantile(1 - BULK)][: 2 * PAIRS]
    x, y = x_t[:PAIRS], x_t[PAIRS:]
    found = likelihood.log_density_difference(model, x, y, kernel, generator=seeded(0))
    truth = oracle.log_prob(y, kernel) - oracle.log_prob(x, kernel)
    return (found.value - truth).abs().median().item(), found.error.median().item()


def curl(model: OnReference, oracle: GaussianMixture, kernel: Gaussian) -> Estimate:
    x = oracle.sample(192, generator=seeded(5))
    return diagnostics.curl(model, x, kernel, n_projections=4, generator=seeded(6)).levels[0].value


def measured() -> Iterator[tuple[list[str], list[str], float]]:
    """For each density and seed: a line of score errors and curl, one of log-densities, and the ratio of step times."""
    for name, density in DENSITIES.items():
        oracle = density()
        for seed in SEEDS:
            (energy, slow), (free, quick) = learnt(oracle, True, seed), learnt(oracle, False, seed)
            for sigma in SIGMAS:
                k = Gaussian(sigma)
                a, b = score_error(energy, oracle, k), score_error(free, oracle, k)
                rows = [name, str(seed), f"{sigma:g}", str(a), str(b), f"{a.value / b.value:.2f}"]
                curls = [f"{curl(m, oracle, k).value:.1e}" for m in (energy, free)]
                rms, most, nearly_all = log_density_errors(energy, oracle, k)
                lines = [f"{v:.2g}" for v in line_integral(free, oracle, k)]
                log_p = [name, str(seed), f"{sigma:g}", f"{rms:.3f}", f"{most:.3f}", f"{nearly_all:.3f}", *lines]
                yield [*rows, *curls], log_p, slow / quick
            print(f"{name}, seed {seed}: done", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    scores, densities, slower = zip(*measured(), strict=True)
    ratios = sorted(float(row[5]) for row in scores)
    heads = ["density", "seed", "σ", "error, energy", "error, free-form", "ratio", "curl, energy", "curl, free-form"]
    body = f"""{N_ROWS:,} rows, {N_STEPS:,} steps of 512, width {WIDTH}, the Gaussian part the same. Score error:
E‖ψ − ∇log p_σ‖²/E‖∇log p_σ‖² on {N_TEST:,} fresh draws. Curl: the antisymmetric share of the Jacobian's squared norm.

{table(heads, scores)}

Ratio of score errors: median {ratios[len(ratios) // 2]:.2f}, smallest {ratios[0]:.2f}, largest {ratios[-1]:.2f}.
A step of an energy takes {min(slower):.2f} to {max(slower):.2f} times as long (CPU time, looks included).

Log-densities on the bulk, the {BULK:.0%} of draws of the highest density, in nats. Energy: log p̂ − log p_σ less its
mean, root mean square, and the size that 95 % and 99 % of the draws are within. Free-form: the line integral of the
score between {PAIRS} random pairs (`likelihood.log_density_difference`): medians of its true error and of that stated.

{table(["density", "seed", "σ", "energy, rms", "95 %", "99 %", "free-form, error", "stated"], densities)}
"""
    write("energy", "Energies beside free-form networks", "python benchmarks/energy.py", body)


if __name__ == "__main__":
    main()
