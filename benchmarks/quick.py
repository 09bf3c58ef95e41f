"""Is a default fit quick, and no worse for it? Seconds, held-out loss and log-density on twelve data sets.

    pip install --no-deps zuko                                       # its version: benchmarks/peers.txt
    python benchmarks/quick.py --data FOLDER --save before.json      # with an earlier version on the path
    python benchmarks/quick.py --data FOLDER --against before.json   # with this one: the tables

Half of the rows of small sets, and at most 5000, are fitted; up to 1000 others are the test. Columns on a grid get
uniform noise of a step's width first, as for a density they must. Both versions see the same rows with the same seeds.
The loss is the mean of seven levels from 0.05 to 3.2 of the data's scale, where 1 is no skill; the log-density is that
of 200 test rows (60 of digits), in nats a row. Rows are split anew for each seed. Differences are paired by row; their
standard errors count a row that several seeds test as one. Peers have as many seconds as the default fit, at least 1.
The second table is of the closed form alone, ``network=None``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from common import table, write
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine, make_moons
from tables_peers import kernel_density, mixture, spline_flow

from gradlogp import ScoreDensity, kernels
from gradlogp.data import detect_grid

SEEDS = 3
PEERS = {"mixture": mixture, "kernel density": kernel_density, "spline flow": spline_flow}
HEADER = ["loss, now / before", "log-density gained", *(f"ahead of a {name}" for name in PEERS)]
LEVELS = 0.05 * 2.0 ** np.arange(7)
N_FITTED, N_TEST, N_LOG_PROB = 5000, 1000, 200
Array = NDArray[np.float64]


def checkerboard(n: int, g: np.random.Generator) -> Array:
    """Uniform on every other square of four by four."""
    x = g.uniform(-2, 2, (4 * n, 2))
    return x[(np.floor(x).sum(1) % 2) == 0][:n]


def ring_with_a_line(n: int, g: np.random.Generator) -> Array:
    """A noisy circle of radius 2, and a segment through it."""
    a, line = g.uniform(0, 2 * np.pi, n), g.random(n) < 0.3
    x = np.where(line[:, None], np.c_[g.uniform(-3, 3, n), np.zeros(n)], 2 * np.c_[np.cos(a), np.sin(a)])
    return x + 0.05 * g.normal(size=(n, 2))


def sets(folder: Path) -> Iterator[tuple[str, Array]]:
    """Name and rows."""
    g = np.random.default_rng(0)
    yield "wine", load_wine().data
    yield "breast cancer", load_breast_cancer().data
    yield "diabetes", load_diabetes(scaled=False).data
    yield "digits", load_digits().data
    yield "two moons", make_moons(6000, noise=0.1, random_state=0)[0]
    yield "checkerboard", checkerboard(6000, g)
    yield "ring with a line", ring_with_a_line(6000, g)
    for name in ("wine_red", "wine_white", "uci_power_plant"):
        yield name, pl.read_parquet(folder / f"{name}.parquet").to_numpy().astype(float)
    for name in ("california_housing_mixed", "adult_train"):
        frame = pl.read_parquet(folder / f"{name}.parquet").select(pl.selectors.numeric()).drop_nulls()
        yield name, frame.to_numpy().astype(float)


def split(x: Array, seed: int) -> tuple[Array, Array, Array]:
    """Rows to fit and to test, distinct, off their grid; and which the latter are."""
    g = np.random.default_rng(seed)
    x = np.unique(x, axis=0)
    order = g.permutation(len(x))
    x = x[order][:, x.std(0) > 0]
    x = x + (g.random(x.shape) - 0.5) * [axis.step for axis in detect_grid(x).axes]
    n = min(N_FITTED, max(len(x) // 2, len(x) - N_TEST))
    return x[:n], x[n : n + N_TEST], order[n : n + N_TEST]


def losses(est: ScoreDensity, x: Array) -> Array:
    """The loss of each row, the mean of the levels; the same noise for every model."""
    z, g = est.to_model(x), torch.Generator().manual_seed(0)
    scale = est.model_.skip.data_scale.item()
    parts = []
    for sigma in LEVELS * scale:
        x_t = z + sigma * torch.randn((8, *z.shape), generator=g)
        with torch.no_grad():
            denoised = est.model_.denoise(x_t.flatten(0, 1), kernels.Gaussian(sigma)).reshape(x_t.shape)
        weight = (sigma**2 + scale**2) / (sigma * scale) ** 2
        parts.append(weight * (denoised - z).square().mean((0, 2)).double())
    return torch.stack(parts).mean(0).numpy()


def measure(name: str, x: Array, seed: int, beside: bool) -> dict[str, Any]:
    """One fit; and beside it one without a network, and the peers."""
    torch.set_num_threads(1)
    fitted, test, which = split(x, seed)
    found = {**measure_one(name, fitted, test, seed), "which": which.tolist()}
    if beside:
        found["closed"] = measure_one(name, fitted, test, seed, network=None)
        found["peers"] = peers(found, fitted, test)
    print(name, seed, f"{found['seconds']:.1f} s, step {found['kept']} of {found['steps']}", flush=True)
    return found


def measure_one(name: str, fitted: Array, test: Array, seed: int, **options: Any) -> dict[str, Any]:
    """Seconds, loss and log-densities of a fit."""
    begin = time.process_time()
    est = ScoreDensity(random_state=seed, verbose=False, **options).fit(fitted)
    seconds = time.process_time() - begin
    rows = test[: 60 if name == "digits" else N_LOG_PROB]
    return {
        "name": name, "seed": seed, "rows": fitted.shape, "seconds": seconds, "kept": est.kept_step_,
        "steps": est.history_[-1].step,
        "loss": losses(est, test).tolist(), "log_prob": est.score_samples(rows).tolist(),
    }  # fmt: skip


def peers(found: dict[str, Any], fitted: Array, test: Array) -> dict[str, list[float]]:
    """Log-densities of the same rows by peers that have as many seconds."""
    test, mean, scale = test[: len(found["log_prob"])], fitted.mean(0), fitted.std(0)
    values = {}
    for name, fit in PEERS.items():
        density, _ = fit((fitted - mean) / scale, max(1.0, found["seconds"]), found["seed"])
        values[name] = (density((test - mean) / scale) - np.log(scale).sum()).tolist()
    return values


def gain(of: list[Any], over: list[Any], which: list[Any]) -> tuple[float, float]:
    """Mean and standard error of differences, a list a seed; those of one row count together."""
    found = np.concatenate([np.subtract(a, b) for a, b in zip(of, over, strict=True)])
    rows = np.concatenate([rows[: len(a)] for rows, a in zip(which, of, strict=True)])
    return found.mean(), float(np.linalg.norm(np.bincount(rows, found - found.mean()))) / len(found)


def main() -> None:
    """Measure, and save or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--against", type=Path)
    args = parser.parse_args()
    data = dict(sets(args.data))
    tasks = [(name, x, seed, args.against is not None) for name, x in data.items() for seed in range(args.seeds)]
    with ProcessPoolExecutor(args.jobs) as pool:
        now = list(pool.map(measure, *zip(*tasks, strict=True)))
    if args.save is not None:
        args.save.write_text(json.dumps(now), encoding="utf-8")
    if args.against is not None:
        compare(json.loads(args.against.read_text(encoding="utf-8")), now, data)


def compare(before: list[dict[str, Any]], now: list[dict[str, Any]], data: dict[str, Array]) -> None:
    """Write the tables."""
    parts = []
    for alone in (False, True):
        lines, ratios, worst = [], [], 0.0
        for name in data:
            a, b = ([r for r in runs if r["name"] == name] for runs in (before, now))
            which, beside = [r["which"] for r in b], [r["peers"] for r in b]
            b = [r["closed"] for r in b] if alone else b
            seconds = [float(np.median([r["seconds"] for r in runs])) for runs in (a, b)]
            level = np.mean([r["loss"] for r in a])
            loss, error = np.array(gain([r["loss"] for r in b], [r["loss"] for r in a], which)) / level
            ours = [r["log_prob"] for r in b]
            gains = [[r["log_prob"] for r in a], *([p[peer] for p in beside] for peer in PEERS)]
            ratios.append(seconds[1] / seconds[0])
            worst = max(worst, 1 + loss)
            lines.append([
                name, " × ".join(map(str, b[0]["rows"])), f"{seconds[0]:.1f}", f"{seconds[1]:.1f}",
                *(() if alone else (", ".join(str(r["kept"]) for r in b),)), f"{1 + loss:.4f} ± {error:.4f}",
                *("{:+.3f} ± {:.3f}".format(*gain(ours, theirs, which)) for theirs in gains),
            ])  # fmt: skip
        header = ["data", "fitted", "CPU s before", "CPU s now", *(() if alone else ("steps kept",)), *HEADER]
        said = f"Seconds, now / before: median {np.median(ratios):.2f}. Largest ratio of losses: {worst:.4f}."
        what = "The closed form alone" if alone else "The default"
        parts.append(f"## {what}\n\n{table(header, lines)}\n\n{said}")
    command = f"python benchmarks/quick.py --data FOLDER --seeds {len(now) // len(data)} --against before.json"
    write("quick", "Default fits, before and now", command, "\n\n".join(parts))


if __name__ == "__main__":
    main()
