"""How long until a default fit is as good as the best peer after a minute? Log-densities of tables, and digits.

    pip install --no-deps zuko                        # its version: benchmarks/peers.txt
    python benchmarks/time_to_peer.py --data FOLDER   # about 20 minutes, one thread

Rows are those of quick.py; the log-density is the mean of the test rows, in nats. A mixture, a kernel density and a
spline flow have 60 s of processor time each, and the best on the test rows is the one to reach. On digits it is the
energy distance of 1800 samples to the test rows; there the first two are those of time_to_quality.py, and the flow
sees pixels with noise of a step's width. Ours is the default with growing limits of time, and without one: what the
first fit took whose mean is no worse. The closed form alone, ``network=None``, is beside it. One seed each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import energy_distance, table, write
from quick import PEERS, Array, sets, split
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tables_peers import trained_flow
from time_to_quality import kernel_density, mixture

from gradlogp import ScoreDensity

SECONDS, LIMITS, SAMPLES = 60.0, (1.0, 2.0, 5.0, 10.0, 20.0, None), 1800
TABLES = ("wine_red", "wine_white", "uci_power_plant")
Judge = Callable[[ScoreDensity], tuple[float, str]]  # how far ahead it is, and in words


def line(name: str, x: Array, peer: str, value: str, judge: Judge) -> list[str]:
    """Ours until it is as good."""
    reached = ""
    for limit in LIMITS:
        seconds, ahead, told = fitted(x, judge, max_seconds=limit)
        reached = reached or (f"{seconds:.1f}" if ahead >= 0 else "")
        print(name, peer, value, limit, f"{seconds:.1f} s", told, flush=True)
    alone = fitted(x, judge, network=None)
    return [name, peer, value, reached or "never", f"{seconds:.1f}", told, f"{alone[0]:.1f}", alone[2]]


def fitted(x: Array, judge: Judge, **options: Any) -> tuple[float, float, str]:
    """Seconds of a fit, and what it is worth."""
    begin = time.process_time()
    est = ScoreDensity(random_state=0, verbose=False, **options).fit(x)
    return time.process_time() - begin, *judge(est)


def of_table(name: str, x: Array) -> list[str]:
    """A line on log-densities."""
    x, test, _ = split(x, 0)
    mean, scale, values = x.mean(0), x.std(0), dict[str, Array]()
    for peer, fit in PEERS.items():
        density, _ = fit((x - mean) / scale, SECONDS, 0)
        values[peer] = density((test - mean) / scale) - np.log(scale).sum()
    best = max(values, key=lambda peer: values[peer].mean())

    def judge(est: ScoreDensity) -> tuple[float, str]:
        gain = est.score_samples(test) - values[best]
        return gain.mean(), f"{gain.mean():+.3f} ± {gain.std() / len(gain) ** 0.5:.3f}"

    return line(name, x, best, f"{values[best].mean():.3f}", judge)


def of_digits() -> list[str]:
    """A line on the energy distance."""
    x, test = train_test_split(load_digits().data / 8 - 1, test_size=0.2, random_state=0)
    drawn = {"mixture": mixture(x, SAMPLES, 0), "kernel density": kernel_density(x, SAMPLES, 0)}
    drawn["spline flow"] = flow(x)
    far = {peer: energy_distance((8 * rows).round().clip(-8, 8) / 8, test) for peer, rows in drawn.items()}
    best = min(far, key=far.__getitem__)

    def judge(est: ScoreDensity) -> tuple[float, str]:
        ahead = far[best] - energy_distance(est.sample(SAMPLES), test)
        return ahead, f"{ahead:+.4f}"

    return line("digits, energy distance", x, best, f"{far[best]:.4f}", judge)


def flow(x: Array) -> Array:
    """Samples of a spline flow; constant pixels stay."""
    g, varies = np.random.default_rng(0), x.std(0) > 0
    noisy = (x + g.uniform(-1 / 16, 1 / 16, x.shape))[:, varies]
    mean, scale, rows = noisy.mean(0), noisy.std(0), np.tile(x[0], (SAMPLES, 1))
    trained = trained_flow((noisy - mean) / scale, SECONDS, 0)
    with torch.no_grad():
        drawn = trained.flow().sample((SAMPLES,))
    rows[:, varies] = mean + scale * drawn.double().numpy()
    return rows


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    torch.set_num_threads(1)
    data = dict(sets(parser.parse_args().data))
    lines = [of_digits(), *(of_table(name, data[name]) for name in TABLES)]
    header = ["data", "best peer at 60 s", "its value", "CPU s until ours is there", "default, CPU s", "ahead"]
    header += ["closed form, CPU s", "ahead"]
    text = f"{__doc__.split('one thread')[1].strip()}\n\n{table(header, lines)}"
    command = "python benchmarks/time_to_peer.py --data FOLDER"
    write("time_to_peer", "Time to the best peer's quality after a minute", command, text)


if __name__ == "__main__":
    main()
