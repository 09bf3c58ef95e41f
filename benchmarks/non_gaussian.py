"""Sampling with scores learnt under Laplace and Student-t noise. Run: python benchmarks/non_gaussian.py (15 minutes).

Two mixtures of Gaussians in the plane, 4000 rows to train on and 1000 held out. One network, one recipe, one range of
Fisher scales for all; only the noise differs. Each is sampled by annealed Langevin steps with the Metropolis test down
to the same Fisher scale, and the Gaussian one by Heun's method also. Distances are to fresh rows of p, not of p ∗ q, so
what the last level's noise adds counts too: rows of p ∗ q show how much that is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from common import energy_distance, sliced_wasserstein_2, table, write
from torch import distributions as td

from gradlogp import kernels, models, networks, oracles, samplers, training

N, N_SAMPLES, SEEDS = 4000, 6000, range(5)
N_STEPS, LEVELS = 40, 16
LAWS: dict[str, Callable[[float], td.Distribution] | None] = {
    "Gaussian": None,
    "Laplace": lambda s: td.Laplace(0.0, s),
    "Student-t, 5 degrees": lambda s: td.StudentT(5.0, 0.0, s),
}


def mixture() -> oracles.GaussianMixture:
    """Five components of standard deviations from 0.15 to 0.6, some narrow and tilted."""
    means = torch.tensor([[-2.0, -1.0], [2.0, -1.5], [0.0, 2.0], [1.5, 1.5], [-1.5, 1.0]])
    spread = torch.tensor([[0.5, 0.2], [0.3, 0.3], [0.6, 0.15], [0.2, 0.4], [0.2, 0.2]])
    angle = torch.tensor([0.5, 0.0, -0.4, 0.8, 0.0])
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
    return oracles.GaussianMixture(
        torch.tensor([0.3, 0.2, 0.2, 0.15, 0.15]), means, turn @ torch.diag_embed(spread**2) @ turn.mT
    )


def ring() -> oracles.GaussianMixture:
    """Eight components on a circle, of unequal weights and standard deviations."""
    angle = torch.arange(8) * math.pi / 4
    weights, spread = torch.linspace(1.0, 3.0, 8), torch.linspace(0.3, 0.12, 8)
    return oracles.GaussianMixture(weights, 2 * torch.stack([angle.cos(), angle.sin()], 1), spread**2)


def family(law: Callable[[float], td.Distribution] | None) -> Callable[[float], kernels.Kernel] | None:
    return None if law is None else lambda s: kernels.Additive(law(s))


def learnt(
    x: torch.Tensor, noise: Callable[[float], kernels.Kernel] | None, levels: training.NoiseLevels
) -> tuple[models.Preconditioned, training.Record, float]:
    """The model, the look whose weights were kept, and the seconds."""
    torch.manual_seed(0)
    network = networks.ResidualMLP((2,), width=64, depth=2)
    model = models.Preconditioned(network, models.GaussianReference.of_data(x[:N], fade=1.0), noise)
    start = time.perf_counter()
    steps = training.train(
        model, x[:N], x[N:], levels=levels, recipe=training.Recipe(n_steps=3000, patience=1000),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return model, training.kept(list(steps)), time.perf_counter() - start


def ladder(noise: Callable[[float], kernels.Kernel] | None, sigma_max: float, sigma_min: float) -> list[kernels.Kernel]:
    """Kernels at the same Fisher scales, whatever the noise."""
    make = noise or kernels.Gaussian
    unit = make(1.0).sigma.item()
    return [make(s / unit) for s in samplers.log_uniform(sigma_max, sigma_min, LEVELS - 1).tolist()]


def mean_and_error(values: list[float]) -> str:
    """In thousandths."""
    v = 1e3 * np.array(values)
    return f"{v.mean():.2f} ± {v.std(ddof=1) / math.sqrt(len(v)):.2f}"


def measured(
    name: str, how: str, draw: Callable[[torch.Generator], torch.Tensor], exact: oracles.GaussianMixture
) -> list[str]:
    """A row of the table: over seeds of the samples and of the fresh rows, mean and standard error."""
    start = time.perf_counter()
    samples = [draw(torch.Generator().manual_seed(seed)).double().numpy() for seed in SEEDS]
    seconds = (time.perf_counter() - start) / len(SEEDS)
    rows = [exact.sample(N_SAMPLES, generator=torch.Generator().manual_seed(1000 + seed)) for seed in SEEDS]
    fresh = [b.double().numpy() for b in rows]
    energy = [energy_distance(a, b) for a, b in zip(samples, fresh, strict=True)]
    sliced = [sliced_wasserstein_2(a, b) for a, b in zip(samples, fresh, strict=True)]
    row = [name, how, mean_and_error(energy), mean_and_error(sliced), f"{seconds:.1f}"]
    print(*row, flush=True)
    return row


def section(name: str, exact: oracles.GaussianMixture) -> str:
    x = exact.sample(N + 1000, generator=torch.Generator().manual_seed(1))
    scale = x.std(0).mean().item()
    levels = training.NoiseLevels(0.01 * scale, 4 * scale, math.log(0.5 * scale), 1.2)
    sigma_max, sigma_min = 2 * scale, 0.03 * scale
    rows, fits = [], []
    for noise_name, law in LAWS.items():
        noise = family(law)
        model, record, seconds = learnt(x, noise, levels)
        left = (f"{v:.4f}" for v in (record.held_out, record.floor, record.left))
        fits.append([noise_name, *left, f"{seconds:.0f}"])
        steps = ladder(noise, sigma_max, sigma_min)

        def langevin(g: torch.Generator, model=model, steps=steps) -> torch.Tensor:
            return samplers.langevin(model, N_SAMPLES, steps, N_STEPS, nodes=3, generator=g)

        def heun(g: torch.Generator, model=model) -> torch.Tensor:
            ends = {"sigma_max": 10 * scale, "sigma_min": sigma_min}
            return samplers.sample(model, N_SAMPLES, 40, step=samplers.heun, generator=g, **ends)

        def noisy(g: torch.Generator, last=steps[-1]) -> torch.Tensor:
            return last.sample(exact.sample(N_SAMPLES, generator=g), generator=g)

        rows.append(measured(noise_name, "annealed Langevin", langevin, exact))
        if law is None:
            rows.append(measured(noise_name, "Heun, 40 steps", heun, exact))
        rows.append(measured(noise_name, "rows of p ∗ q at the last level", noisy, exact))
    rows.append(measured("", "rows of p", lambda g: exact.sample(N_SAMPLES, generator=g), exact))
    head = ["noise", "samples", "energy distance, 10⁻³", "sliced Wasserstein-2, 10⁻³", "seconds"]
    fit = table(["noise", "held-out loss", "floor, at least", "left, at most", "seconds to fit"], fits)
    about = f"Fisher scales from {sigma_max:.3g} to {sigma_min:.3g}."
    return f"## {name}\n\n{about}\n\n{table(head, rows)}\n\n{fit}"


def main() -> None:
    torch.set_num_threads(1)
    parts = [
        section("Five components, on which the settings of `samplers.langevin` were chosen", mixture()),
        section("Eight components on a ring, which were not looked at before", ring()),
    ]
    notes = (
        f"{LEVELS} Fisher scales in geometric steps from 2 to 0.03 standard deviations of the data, {N_STEPS} steps\n"
        f"each, half of them adapting. {N_SAMPLES} samples against as many fresh rows; mean ± standard error over\n"
        f"{len(SEEDS)} seeds of samples and rows, one fit each. The energy distance is squared, unbiased, and may be\n"
        "negative where laws agree; `rows of p` is what two samples of one law show."
    )
    title = "Sampling with scores learnt under noise that is not Gaussian"
    write("non_gaussian", title, "python benchmarks/non_gaussian.py", "\n\n".join([notes, *parts]))


if __name__ == "__main__":
    main()
