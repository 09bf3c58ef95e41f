"""When to stop: by the held-out loss, or by what of it is left? Run: python benchmarks/early_stopping.py (10 minutes).

One run a split, of the estimator's default network on the marginals, without mixtures stacked on it and without
patience. Looks come every 25 steps, at the same held-out rows and noise. Two rules choose a look: the smallest
denoising loss (target ∇log k(x_t | x)), and the smallest loss against the stable target over the held-out rows, which
estimates the same curve up to a constant with less noise. What they chose is measured on test rows, with the stable
target too so that the difference is sharp; it is paired in each split.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from common import table, write
from stable_target import data_sets, new_model, recipe, split

from gradlogp import objectives, training

SEEDS = tuple(range(10))
STEPS = {"digits": 1500, "wine": 600}
SHARES = (0.6, 0.1)  # to train on, to stop on; the rest is test


def study(x: np.ndarray, seed: int, n_steps: int) -> np.ndarray:
    """A line a look: step, held-out loss, what is left, test loss, test loss left."""
    rows, stop, test = split(x, seed, SHARES)
    model, levels = new_model(rows, seed)
    how = training.Recipe(**{**vars(recipe(x.shape[1], n_steps)), "evaluate_every": 25})
    average = training.Average(model, how.ema)
    measure = training.HeldOut(
        test, levels, training.WeightedLoss(objectives.DenoisingScoreMatching(), model.reference), 7, 20_000
    )
    g, out = torch.Generator().manual_seed(seed), []
    for r in training.train(model, rows, stop, levels=levels, recipe=how, average=average, generator=g):
        seen = measure(average.model)
        out.append([r.step, r.held_out, r.left, seen.held_out, seen.left])
    return np.array(out)


def summary(name: str, curves: list[np.ndarray]) -> list[str]:
    """Mean steps chosen, excess of the test loss over its least, the difference, and how often each is better."""
    by_loss, by_left = (np.array([c[c[:, i].argmin()] for c in curves]) for i in (1, 2))
    least = np.array([c[:, 4].min() for c in curves])
    gain = by_left[:, 4] - by_loss[:, 4]
    wins, losses = int((gain < 0).sum()), int((gain > 0).sum())
    return [
        name,
        f"{by_loss[:, 0].mean():.0f}, {by_left[:, 0].mean():.0f}",
        f"{by_loss[:, 3].mean():.4f}, {by_left[:, 3].mean():.4f}",
        f"{(by_loss[:, 4] - least).mean():.5f}, {(by_left[:, 4] - least).mean():.5f}",
        f"{gain.mean():+.5f} ± {gain.std(ddof=1) / math.sqrt(len(gain)):.5f}",
        f"{wins}, {len(gain) - wins - losses}, {losses}",
    ]


def noise(curves: list[np.ndarray]) -> str:
    """Variance of how much two looks in succession differ from what the test rows say, of left over loss."""
    spread = [np.concatenate([np.diff(c[:, i]) - np.diff(c[:, 4]) for c in curves]).var() for i in (1, 2)]
    return f"{spread[1] / spread[0]:.2f}"


def main() -> None:
    torch.set_num_threads(1)
    start, lines = time.perf_counter(), []
    for name, n_steps in STEPS.items():
        x = data_sets()[name]
        curves = [study(x, seed, n_steps) for seed in SEEDS]
        lines.append([*summary(f"{name} ({len(x)} × {x.shape[1]})", curves), noise(curves)])
        print(lines[-1], flush=True)
    header = [
        "data",
        "mean step: by loss, by left",
        "test DSM loss: by loss, by left",
        "test loss above the least of the run: by loss, by left",
        "test loss, by left less by loss",
        "splits better, equal, worse",
        "noise of a step's change, variance: left / loss",
    ]
    body = (
        f"{len(SEEDS)} splits, {SHARES[0]:.0%} to train on, {SHARES[1]:.0%} to stop on; ± one standard error over "
        f"splits; {time.perf_counter() - start:.0f} s in all.\n\n" + table(header, lines)
    )
    write("early_stopping", "When to stop training", "python benchmarks/early_stopping.py", body)


if __name__ == "__main__":
    main()
