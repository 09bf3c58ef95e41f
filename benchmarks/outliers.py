"""Is the share of new rows that is called outliers the share that was asked for, within the error that is stated?

    python benchmarks/outliers.py --data FOLDER

Twelve data sets: six laws that rows are drawn from, three tables of scikit-learn, and three in the folder
(wine_red.parquet, wine_white.parquet, uci_power_plant.parquet). Of each a few rows at random are fitted, with repeated
rows dropped, and the others, or 1000 new draws, are the new rows. z is the share found less that asked, in standard
errors: the stated one and the binomial one of the new rows together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
from common import table, write
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine, make_moons, make_s_curve

from gradlogp import ScoreDensity

N_NEW = 1000
Array = NDArray[np.float64]


def cases(folder: Path) -> Iterator[tuple[str, Array, int, float]]:
    """Name, all rows in random order, rows to fit, share asked for."""
    g = np.random.default_rng(0)
    scale = np.exp(g.normal(size=8))
    yield "Gaussian, D = 3", g.normal(size=(300 + N_NEW, 3)) @ g.normal(size=(3, 3)), 300, 0.05
    yield "Student t (3), D = 2", g.standard_t(3, size=(400 + N_NEW, 2)), 400, 0.1
    yield "two moons", make_moons(200 + N_NEW, noise=0.1, random_state=0)[0], 200, 0.1
    yield "s curve", make_s_curve(400 + N_NEW, noise=0.1, random_state=0)[0], 400, 0.05
    yield "log-normal, D = 8", np.exp(0.5 * g.normal(size=(400 + N_NEW, 8))) * scale, 400, 0.1
    yield "counts, D = 4", g.poisson([1.0, 3.0, 10.0, 30.0], size=(1000 + N_NEW, 4)).astype(float), 1000, 0.1
    yield "wine", load_wine().data, 89, 0.05
    yield "breast cancer", load_breast_cancer().data, 285, 0.1
    yield "diabetes", load_diabetes().data, 221, 0.1
    for name, n, share in (("wine_red", 400, 0.1), ("wine_white", 1000, 0.02), ("uci_power_plant", 3000, 0.05)):
        yield name, pl.read_parquet(folder / f"{name}.parquet").to_numpy().astype(float), n, share


def measure(i: int, name: str, x: Array, n: int, share: float) -> tuple[list[object], float]:
    """A line of the table, and z."""
    x = np.random.default_rng(i).permutation(x if name.startswith("counts") else np.unique(x, axis=0))
    begin = time.process_time()
    est = ScoreDensity(random_state=i, contamination=share, verbose=False).fit(x[:n])
    seconds, stated = time.process_time() - begin, est.outlier_share_
    new = x[n : n + N_NEW]
    found = float((est.predict(new) == -1).mean())
    z = float((found - share) / np.hypot(stated.stderr, np.sqrt(share * (1 - share) / len(new))))
    line = [name, n, len(new), f"{share:.0%} ± {stated.stderr:.1%}", f"{found:.1%}", f"{z:+.1f}", est.kept_step_]
    print(line, flush=True)
    return [*line, f"{seconds:.0f}"], z


def main() -> None:
    """Fit, count, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    with ProcessPoolExecutor(args.jobs) as pool:
        found = list(pool.map(measure, *zip(*((i, *case) for i, case in enumerate(cases(args.data))), strict=True)))
    lines, z = zip(*found, strict=True)
    header = ["data", "rows fitted", "new rows", "asked ± stated error", "found", "z", "step kept", "CPU s of the fit"]
    inside = f"Within 2 standard errors: {sum(abs(v) <= 2 for v in z)} of {len(z)}."
    write("outliers", "Share of new rows called outliers", "python benchmarks/outliers.py --data FOLDER",
          f"{table(header, lines)}\n\n{inside}")  # fmt: skip


if __name__ == "__main__":
    main()
