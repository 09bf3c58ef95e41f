"""What the stable target costs and gains. Run: python benchmarks/stable_target.py (about 20 minutes, one thread).

Training as the estimator's (marginal reference, residual network, weighted loss over all noise levels, early stopping)
with three targets: plain denoising score matching; the stable target with the batch as references; and with all
training rows. Reported are the time of a step, the variance of the gradient by noise level, and the denoising loss of
rows that neither trained the model nor chose when to stop, of the weights kept: after equally many steps, and with the
steps cut so that the time is equal. The same seeds, splits and test noise for all, so differences are paired.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from common import table, write
from sklearn.datasets import load_breast_cancer, load_digits, load_wine, make_moons
from torch import Tensor

from gradlogp import kernels, models, networks, objectives, training

SEEDS = (0, 1, 2)
N_STEPS = 800
VARIANCE_AT = (0.1, 0.3, 1.0, 3.0)  # in units of the data's scale
N_GRADIENTS = 40

Make = Callable[[Tensor], objectives.Objective]

TARGETS: dict[str, Make] = {
    "plain": lambda rows: objectives.DenoisingScoreMatching(),
    "batch": lambda rows: objectives.DenoisingScoreMatching(references=10**9),
    "all rows": lambda rows: objectives.DenoisingScoreMatching(references=rows),
}


def checkerboard(n: int) -> np.ndarray:
    """Uniform on the black squares of a 4 × 4 board of side 2."""
    x = np.random.default_rng(0).uniform(-1, 1, (3 * n, 2))
    return x[np.floor(2 * x).sum(1) % 2 == 0][:n]


def standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0)


def data_sets() -> dict[str, np.ndarray]:
    """Name and rows; tables in standard deviations, digits as pixel/8 − 1."""
    return {
        "digits": load_digits().data / 8 - 1,
        "wine": standardised(load_wine().data),
        "breast cancer": standardised(load_breast_cancer().data),
        "two moons": make_moons(3000, noise=0.05, random_state=0)[0],
        "checkerboard": checkerboard(3000),
    }


def split(x: np.ndarray, seed: int, shares: tuple[float, float] = (0.64, 0.16)) -> list[Tensor]:
    """Rows to train on, to stop on, and the rest to measure on."""
    order = np.random.default_rng(seed).permutation(len(x))
    cuts = np.cumsum([int(share * len(x)) for share in shares])
    return [torch.tensor(x[part], dtype=torch.float32) for part in np.split(order, cuts)]


def new_model(rows: Tensor, seed: int) -> tuple[models.Preconditioned, training.NoiseLevels]:
    """The estimator's default model of these rows, and its noise levels."""
    skip = models.MarginalReference.of_data(rows)
    d = rows.shape[1]
    torch.manual_seed(seed)
    dropout = min(0.4, 0.4 * math.sqrt(50 * d / len(rows)))
    network = networks.ResidualMLP((d,), width=128 if d < 16 else 256, depth=3, dropout=dropout)
    scale, widest = skip.gaussian.data_scale.item(), skip.gaussian.eigenvalues.max().sqrt().item()
    levels = training.NoiseLevels(0.01 * scale, 4 * widest, math.log(0.5 * scale), 1.2)
    return models.Preconditioned(network, skip).eval(), levels


def recipe(d: int, n_steps: int) -> training.Recipe:
    """The estimator's, with looks often enough to find the best."""
    return training.Recipe(n_steps=n_steps, batch_size=512 if d < 16 else 256, evaluate_every=50, patience=10**6)


def trained(rows: Tensor, stop: Tensor, make: Make, seed: int, n_steps: int) -> models.Preconditioned:
    model, levels = new_model(rows, seed)
    g = torch.Generator().manual_seed(seed)
    how = recipe(rows.shape[1], n_steps)
    list(training.train(model, rows, stop, levels=levels, recipe=how, objective=make(rows), generator=g))
    return model


def step_times(rows: Tensor, n: int = 30) -> dict[str, float]:
    """CPU milliseconds of a step (loss and its gradient), the targets taking turns; the median of n."""
    model, levels = new_model(rows, 0)
    loss = {name: training.WeightedLoss(make(rows), model.reference) for name, make in TARGETS.items()}
    x = rows[torch.randint(len(rows), (512 if rows.shape[1] < 16 else 256,))]
    times: dict[str, list[float]] = {name: [] for name in TARGETS}
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    for _ in range(n + 3):
        for name in TARGETS:
            start = time.process_time()
            sigma = levels.draw(len(x), like=x)
            optimiser.zero_grad()
            loss[name](model, x, sigma, None).mean().backward()
            optimiser.step()
            times[name].append(time.process_time() - start)
    return {name: 1e3 * float(np.median(v[3:])) for name, v in times.items()}


def gradient_variances(model: models.Preconditioned, rows: Tensor) -> dict[str, list[float]]:
    """The total variance of the gradient over batches of 256 rows, as a share of plain denoising's, by noise level."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    scale, out = model.skip.data_scale.item(), {name: [] for name in TARGETS if name != "plain"}
    for level in VARIANCE_AT:
        found = {}
        for name, make in TARGETS.items():
            objective, gradients = make(rows), []
            for seed in range(N_GRADIENTS):
                g = torch.Generator().manual_seed(seed)
                x = rows[torch.randint(len(rows), (256,), generator=g)]
                loss = objective(model, x, kernels.Gaussian(level * scale), generator=g).mean()
                gradients.append(torch.cat([v.flatten() for v in torch.autograd.grad(loss, parameters)]))
            found[name] = torch.stack(gradients).var(0).sum().item()
        for name in out:
            out[name].append(found[name] / found["plain"])
    return out


def study(x: np.ndarray) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the table of losses, and of the table of variances."""
    ms = step_times(split(x, 0)[0])
    losses: dict[tuple[str, str], list[float]] = {}
    variances = []
    for seed in SEEDS:
        rows, stop, test = split(x, seed)
        model, levels = new_model(rows, seed)
        measure = training.HeldOut(
            test, levels, training.WeightedLoss(objectives.DenoisingScoreMatching(), model.reference), 7, 20_000
        )
        for name, make in TARGETS.items():
            fitted = trained(rows, stop, make, seed, N_STEPS)
            losses.setdefault((name, "steps"), []).append(measure(fitted).held_out)
            if name == "plain":
                losses.setdefault((name, "time"), []).append(losses[name, "steps"][-1])
                variances.append(gradient_variances(fitted, rows))
            else:
                cut = trained(rows, stop, make, seed, round(N_STEPS * ms["plain"] / ms[name]))
                losses.setdefault((name, "time"), []).append(measure(cut).held_out)
    table_rows = [[name, f"{ms[name]:.1f}", f"{ms[name] / ms['plain']:.2f}"] for name in TARGETS]
    for line, name in zip(table_rows, TARGETS, strict=True):
        line.append(f"{np.mean(losses[name, 'steps']):.4f}")
        for equal in ("steps", "time"):
            d = np.array(losses[name, equal]) - np.array(losses["plain", equal])
            line.append("" if name == "plain" else f"{d.mean():+.4f} ± {d.std(ddof=1) / math.sqrt(len(d)):.4f}")
    spread = [
        [name, *(f"{np.mean([v[name][i] for v in variances]):.2f}" for i in range(len(VARIANCE_AT)))]
        for name in variances[0]
    ]
    return table_rows, spread


def main() -> None:
    torch.set_num_threads(1)
    start, top, below = time.perf_counter(), [], []
    for name, x in data_sets().items():
        losses, spread = study(x)
        top += [[f"{name} ({len(x)} × {x.shape[1]})", *line] for line in losses]
        below += [[name, *line] for line in spread]
        print(name, losses, spread, flush=True)
    header = ["data", "target", "ms a step", "ratio", "test loss", "less plain, equal steps", "less plain, equal time"]
    body = (
        f"Mean over {len(SEEDS)} splits, differences paired, ± their standard error over splits; {N_STEPS} steps of "
        f"plain denoising; {time.perf_counter() - start:.0f} s in all. The loss is weighted, 1 is about no skill; less "
        "is better.\n\n" + table(header, top) + "\n\n## Variance of the gradient, as a share of plain denoising's\n\n"
    )
    body += table(["data", "target", *(f"σ = {v:g} σ_d" for v in VARIANCE_AT)], below)
    write("stable_target", "The stable target: cost and gain", "python benchmarks/stable_target.py", body)


if __name__ == "__main__":
    main()
