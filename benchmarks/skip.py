"""Which closed-form part should the network learn on top of? Held-out DSM loss per noise level, for five data sets.

Run: python benchmarks/skip.py DATA_FOLDER (about 25 minutes); the folder holds wine_white, uci_power_plant and
california_housing_mixed as parquet files. Digits and breast cancer come with scikit-learn. The loss is
2 J_DSM·σ²(σ² + σ_d²)/(σ_d² D): per coordinate, and 1 for a scalar skip with no network. It is measured on rows that
neither trained the model nor chose when to stop.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import torch
from common import table, write
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor

from gradlogp import kernels, models, networks, objectives, training

STEPS = (0, 50, 300)
N_STEPS = 1500
LEVELS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # in units of the data's scale
SEEDS = (0, 1)

Skip = Callable[[Tensor], models.ScoreModel]

SKIPS: dict[str, Skip] = {
    "scalar": lambda x: models.GaussianReference.of_data(x, fade=math.inf),
    "Gaussian": lambda x: models.GaussianReference.of_data(x),
    "faded": lambda x: models.GaussianReference.of_data(x, fade=1.0),
    "marginal": lambda x: models.MarginalReference.of_data(x),
}


def data_sets(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and rows; tables in standard deviations, digits as pixel/8 − 1."""
    yield "digits", load_digits().data / 8 - 1
    yield "breast cancer", standardised(load_breast_cancer().data)
    for name, file in (
        ("wine white", "wine_white"),
        ("power plant", "uci_power_plant"),
        ("California housing", "california_housing_mixed"),
    ):
        frame = pl.read_parquet(folder / f"{file}.parquet")
        numbers = frame.select(pl.selectors.numeric()).drop_nulls().drop_nans()
        yield name, standardised(numbers.to_numpy().astype(np.float64))


def standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0)


def split(x: np.ndarray, seed: int) -> list[Tensor]:
    """64 % to train, 16 % to stop on, 20 % to measure on."""
    order = np.random.default_rng(seed).permutation(len(x))
    cuts = np.cumsum([int(0.64 * len(x)), int(0.16 * len(x))])
    return [torch.tensor(x[part], dtype=torch.float32) for part in np.split(order, cuts)]


def per_level(model: models.ScoreModel, test: Tensor, scale: float, rank: int) -> np.ndarray:
    """The loss at each level, the same noise for every model."""
    rows = test.repeat(max(1, 2000 // len(test)), 1)
    out = []
    for i, level in enumerate(LEVELS):
        s = level * scale
        g = torch.Generator().manual_seed(100 + i)
        with torch.no_grad():
            loss = objectives.DenoisingScoreMatching()(model, rows, kernels.Gaussian(s), generator=g).mean().item()
        out.append(2 * loss * s**2 * (s**2 + scale**2) / (scale**2 * rank))
    return np.array(out)


def study(x: np.ndarray, make: Skip, seed: int) -> dict[int | str, np.ndarray]:
    """Loss per level after each number of steps, and at the end: the best look, as an estimator would keep it."""
    rows, stop, test = split(x, seed)
    torch.manual_seed(seed)
    skip = make(rows)
    gaussian = skip.reference
    assert gaussian is not None
    scale, d = gaussian.data_scale.item(), rows.shape[1]
    dropout = min(0.4, 0.4 * math.sqrt(50 * d / len(rows)))
    network = networks.ResidualMLP((d,), width=128 if d < 16 else 256, depth=3, dropout=dropout)
    model = models.Preconditioned(network, skip)
    levels = training.NoiseLevels(
        0.02 * scale, 4 * gaussian.eigenvalues.max().sqrt().item(), math.log(0.5 * scale), 1.2
    )
    out: dict[int | str, np.ndarray] = {}
    recipe = training.Recipe(n_steps=N_STEPS, evaluate_every=50)
    g = torch.Generator().manual_seed(seed)
    average = training.Average(model, recipe.ema)
    for record in training.train(model, rows, stop, levels=levels, recipe=recipe, average=average, generator=g):
        if record.step in STEPS:
            out[record.step] = per_level(average.model, test, scale, gaussian.eigenvalues.numel())
    out["end"] = per_level(model, test, scale, gaussian.eigenvalues.numel())
    return out


def main(folder: Path) -> None:
    start, body = time.perf_counter(), []
    summary = []
    for name, x in data_sets(folder):
        found = {skip: [study(x, make, seed) for seed in SEEDS] for skip, make in SKIPS.items()}
        rows = []
        for when in (*STEPS, "end"):
            means = {skip: np.mean([run[when] for run in runs], axis=0) for skip, runs in found.items()}
            rows += [[when, skip, *(f"{v:.4f}" for v in m), f"**{m.mean():.4f}**"] for skip, m in means.items()]
            if when in (50, "end"):
                summary.append([name, when, *(f"{m.mean():.4f}" for m in means.values())])
        header = ["steps", "skip", *(f"σ = {level:g} σ_d" for level in LEVELS), "mean"]
        body.append(f"## {name} ({len(x)} × {x.shape[1]})\n\n" + table(header, rows))
        print(body[-1], flush=True)
    top = table(["data", "steps", *SKIPS], summary)
    note = f"Mean over {len(SEEDS)} splits; {time.perf_counter() - start:.0f} s.\n\n## Mean over levels\n\n{top}\n\n"
    write(
        "skip",
        "Held-out DSM loss for four closed-form skips",
        "python benchmarks/skip.py DATA_FOLDER",
        note + "\n\n".join(body),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
