"""Held-out log-density of real tables, in nats a row, at 120 s of one processor thread.

    pip install --no-deps zuko                                       # its version: benchmarks/peers.txt
    python benchmarks/tables.py --peers --data FOLDER --cache FOLDER  # baselines; their log-densities go to the cache
    python benchmarks/tables.py --ours --data FOLDER --cache FOLDER   # ours, against them
    python benchmarks/tables.py --data FOLDER --cache FOLDER          # the table of what is in the cache

The UCI tables wine_red, wine_white (the 11 measurements, without the tasters' grade `quality`) and uci_power_plant (all
5), as parquet files in the folder. Nine rows in ten at random are for training, the rest for the test, which nothing is
chosen by. Columns are standardised by the training rows, and nats are in those units, the same for all methods.

The tables hold rounded values and repeated rows, at which a density has no upper bound. So there are three versions:
with uniform noise of each column's rounding step added once to all rows ("dequantised", the main one); so with repeated
rows dropped before the split ("distinct"); and as they are ("as is"), where a Gaussian mixture's or a kernel's width
shrinks onto repeated values and gains nats that say nothing.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import machine, table, write
from tables_peers import Array, Clock, fits

TABLES = {"wine_red": ("quality",), "wine_white": ("quality",), "uci_power_plant": ()}  # name -> columns left out
VERSIONS = ("dequantised", "distinct", "as is")
NOISE_SEED = 0
OURS = "ours"


@dataclass(frozen=True)
class Cell:
    """A table, version and split.

    Attributes:
        name: of the table.
        version: one of ``VERSIONS``.
        seed: of the split, and of every method.
        train: standardised, ``(N, D)``.
        test: standardised, ``(M, D)``.
        repeated: whether the training part holds a test row exactly, before noise, ``(M,)``.
    """

    name: str
    version: str
    seed: int
    train: Array
    test: Array
    repeated: Array

    @property
    def key(self) -> str:
        """File name without its ending."""
        return f"{self.name}-{self.version.replace(' ', '_')}-{self.seed}"


def cell(folder: Path, name: str, version: str, seed: int) -> Cell:
    raw = pd.read_parquet(folder / f"{name}.parquet").drop(columns=list(TABLES[name])).to_numpy(np.float64)
    if version == "distinct":
        raw = raw[np.sort(np.unique(raw, axis=0, return_index=True)[1])]
    x = raw if version == "as is" else dequantised(raw)
    order = np.random.default_rng(seed).permutation(len(x))
    test, train = np.split(order, [round(0.1 * len(x))])
    mean, scale = x[train].mean(0), x[train].std(0)
    known = {tuple(row) for row in raw[train]}
    repeated = np.array([tuple(row) in known for row in raw[test]])
    return Cell(name, version, seed, (x[train] - mean) / scale, (x[test] - mean) / scale, repeated)


def dequantised(x: Array) -> Array:
    """x + u, u uniform on ± half of the column's rounding step."""
    steps = np.array([rounding_step(column) for column in x.T])
    return x + steps * (np.random.default_rng(NOISE_SEED).random(x.shape) - 0.5)


def rounding_step(column: Array) -> float:
    """The largest 1, 2 or 5 times a power of ten of which at least 19 in 20 of the values are multiples."""
    rounding = 1e-9 * np.abs(column).max()
    for exponent, digit in product(range(3, -8, -1), (5, 2, 1)):
        step = digit * 10.0**exponent
        if (np.abs(column - step * np.round(column / step)) < rounding).mean() >= 0.95:
            return step
    raise ValueError("column: got values that are not rounded")


# baselines and ours


def load(cache: Path, key: str) -> tuple[dict[str, Array], dict[str, list]]:
    """Per-row log-densities, and seconds and choices, by method."""
    path = cache / f"{key}.npz"
    if not path.exists():
        return {}, {}
    with np.load(path) as kept:
        return dict(kept), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def save(cache: Path, key: str, method: str, values: Array, seconds: float, chosen: str) -> None:
    rows, notes = load(cache, key)
    rows[method], notes[method] = values, [seconds, chosen, machine()]
    np.savez(cache / f"{key}.npz", **rows)
    (cache / f"{key}.json").write_text(json.dumps(notes, ensure_ascii=False, indent=1), encoding="utf-8")
    print(f"{key}: {method} {values.mean():.3f} nats, {seconds:.0f} s, {chosen}", flush=True)


def run_peers(c: Cell, cache: Path, seconds: float) -> None:
    """Those that are not in the cache yet."""
    kept, _ = load(cache, c.key)
    for name, fit in fits().items():
        if name in kept and len(kept[name]) == len(c.test):
            continue
        clock = Clock()
        log_density, chosen = fit(c.train, seconds, c.seed)
        spent = clock.seconds
        save(cache, c.key, name, log_density(c.test), spent, chosen)


def run_ours(c: Cell, cache: Path, seconds: float) -> None:
    """Ours, always anew; the training's limit is of wall time, so it gets less where the machine is busy."""
    rows, spent, chosen = ours(c.train, c.test, seconds)
    save(cache, c.key, OURS, rows, spent, chosen)


def ours(train: Array, test: Array, seconds: float) -> tuple[Array, float, str]:
    """Log-density of each test row, seconds of the fit, and what to say of it.

    As it is by default, but for the limits: training ends by the time, of which a tenth is left for the checks after
    it, or when 100 looks at its own held-out rows showed nothing better.
    """
    from gradlogp import ScoreDensity

    clock = Clock()
    limits = {"n_steps": 10**6, "max_seconds": 0.9 * seconds, "patience": 100}
    density = ScoreDensity(**limits, random_state=0, verbose=False).fit(train)
    spent = clock.seconds
    rows = np.asarray(density.score_samples(test), dtype=np.float64)
    low = f"σ_min {float(density.levels_.sigma_min):.3g}" if hasattr(density.levels_, "sigma_min") else ""
    return rows, spent, f"{low}; {clock.seconds - spent:.0f} s to score"


# report


def difference(d: Array) -> str:
    """Mean with its standard error over the test rows."""
    return f"{d.mean():+.3f} ± {d.std(ddof=1) / np.sqrt(len(d)):.3f}"


def lines(cells: list[Cell], cache: Path) -> list[list[str]]:
    """Of one table and version, all splits: a method a line."""
    loaded = [(*load(cache, c.key), ~c.repeated) for c in cells]
    methods = [m for m in (*fits(), OURS) if any(m in rows for rows, *_ in loaded)]
    found = []
    for m in methods:
        having = [kept for kept in loaded if m in kept[0]]
        both = [] if m == OURS else [rows[OURS] - rows[m] for rows, *_ in having if OURS in rows]
        found.append(
            [
                m,
                f"{np.mean([rows[m].mean() for rows, *_ in having]):.3f}",
                ", ".join(f"{rows[m].mean():.3f}" for rows, *_ in having),
                f"{np.mean([rows[m][others].mean() for rows, _, others in having]):.3f}",
                difference(np.concatenate(both)) if both else "",
                "; ".join(difference(d) for d in both),
                f"{np.mean([notes[m][0] for _, notes, _ in having]):.0f}",
            ]
        )
    return found


HEAD = ["method", "nats a row", "each split", "others", "ours − it, ± standard error", "each split", "seconds"]


def section(cells: list[Cell], cache: Path) -> str:
    c = cells[0]
    repeated = ", ".join(str(c.repeated.sum()) for c in cells)
    about = f"{len(c.train)} training and {len(c.test)} test rows, D = {c.train.shape[1]}; of the test rows {repeated} "
    about += "are also in the training part (by split, before any noise)."
    return f"### {c.name}, {c.version}\n\n{about}\n\n{table(HEAD, lines(cells, cache))}"


NOTES = """Log-density of held-out rows, mean in nats a row, more is better; columns standardised by the training rows.
`quality` is left out of the wines. Dequantised, the main one: uniform noise of each column's rounding step (the
largest 1, 2 or 5 times a power of ten of which 19 in 20 of its values are multiples) added once to all rows, seed 0.
Rows of the test that the training part holds too help, even with noise, those methods most that put a kernel on every
row: `others` is the mean over the rest, and `distinct` drops repeated rows before the split, then adds the noise. As
is, the rounded values are spikes, which a mixture, a kernel density or a flow may shrink onto: such a gain says nothing
of the data.

Gaussian: full covariance. Mixture: sklearn's; 1 to 256 components, full or diagonal, five floors, chosen on a fifth of
the training rows, then fitted on all. Kernel density: isotropic or with the full covariance, by leave-one-out. Spline
flow: zuko's NSF, three sizes, Adam, the rate cut and training stopped by a tenth of the training rows. At most 120 s of
processor time each, one thread. Standard errors over test rows, paired; those of all splits together count rows that
are in two test parts twice."""


def report(groups: list[list[Cell]], cache: Path, save_it: bool) -> None:
    body = "\n\n".join([NOTES, *(section(cells, cache) for cells in groups)])
    if save_it:
        write("tables", "Tables: held-out log-density", "python benchmarks/tables.py --ours --data … --cache …", body)
    else:
        print(body)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the parquet files")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the log-densities")
    parser.add_argument("--seconds", type=float, default=120.0, help="of processor time a method and split")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--peers", action="store_true", help="run the baselines that are not in the cache")
    only.add_argument("--ours", action="store_true", help="run ours, and write results/tables.md")
    return parser.parse_args()


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", RuntimeWarning)
    chosen = arguments()
    chosen.cache.mkdir(parents=True, exist_ok=True)
    groups = [
        [cell(chosen.data, name, version, seed) for seed in chosen.seeds]
        for version in chosen.versions
        for name in chosen.tables
    ]
    for seed in range(len(chosen.seeds)):  # all tables at the first split before any at the second
        for cells in groups:
            if chosen.peers:
                run_peers(cells[seed], chosen.cache, chosen.seconds)
            elif chosen.ours:
                run_ours(cells[seed], chosen.cache, chosen.seconds)
    report(groups, chosen.cache, save_it=chosen.ours)


if __name__ == "__main__":
    main()
