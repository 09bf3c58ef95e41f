"""Sample quality after a budget of CPU time. Run: python benchmarks/time_to_quality.py (about 8 minutes, one thread).

Digits (pixel/8 − 1, 80/20 split with seed 0): 60 s of CPU time to fit, then 1800 samples against the test rows. Two
moons and a checkerboard, 10 000 rows each, every row drawn independently: 20 s, then 10 000 samples against 10 000
fresh rows. All models are the defaults of ``ScoreDensity`` with a limit of time; nothing is chosen on test rows.
Classical models are fitted to the same rows, a mixture's size by BIC, a bandwidth by cross-validation, and rounded in
the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from common import energy_distance, forest_accuracy, nearest, sliced_wasserstein_2, table, write
from sklearn.datasets import load_digits, make_moons
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KernelDensity

from gradlogp import ScoreDensity
from gradlogp.data import detect_grid

SEEDS = (0, 1, 2)


def moons(n: int, seed: int) -> np.ndarray:
    """Two moons, noise 0.05; how many rows fall on which is drawn, as for independent rows."""
    upper = int(np.random.default_rng(seed).binomial(n, 0.5))
    return make_moons((upper, n - upper), noise=0.05, random_state=seed)[0]


def checkerboard(n: int, seed: int) -> np.ndarray:
    """Uniform on the black squares of a 4 × 4 board of side 2."""
    x = np.random.default_rng(seed).uniform(-1, 1, (3 * n + 1000, 2))
    return x[np.floor(2 * x).sum(1) % 2 == 0][:n]


def ours(x: np.ndarray, n: int, seconds: float, seed: int) -> tuple[np.ndarray, float, float]:
    """Samples, and the CPU seconds to fit and to sample."""
    start = time.process_time()
    model = ScoreDensity(
        max_seconds=seconds, n_steps=1_000_000, patience=1_000_000, random_state=seed, verbose=False
    ).fit(x)
    fitted = time.process_time()
    return model.sample(n), fitted - start, time.process_time() - fitted


def mixture(x: np.ndarray, n: int, seed: int) -> np.ndarray:
    """A Gaussian mixture of 5 to 80 components, full or diagonal, by BIC."""
    fits = [
        GaussianMixture(k, covariance_type=kind, reg_covar=1e-4, random_state=seed).fit(x)
        for k in (5, 10, 20, 40, 80)
        for kind in ("full", "diag")
    ]
    return min(fits, key=lambda m: m.bic(x)).sample(n)[0]


def kernel_density(x: np.ndarray, n: int, seed: int) -> np.ndarray:
    """A Gaussian kernel density estimate, bandwidth by cross-validation."""
    grid = {"bandwidth": np.geomspace(0.01, 1.0, 13) * x.std()}
    return GridSearchCV(KernelDensity(), grid, cv=3).fit(x).best_estimator_.sample(n, random_state=seed)


def digits() -> str:
    x = load_digits().data / 8 - 1
    train, test = train_test_split(x, test_size=0.2, random_state=0)
    on_grid = detect_grid(train).snap
    held_out_distance = np.median(nearest(test, train))
    rows = []

    def report(name: str, samples: np.ndarray, cpu: str) -> None:
        far = np.median(nearest(samples, train))
        figures = f"{energy_distance(samples, test):.4f}", f"{forest_accuracy(test, samples):.3f}", f"{far:.3f}"
        rows.append([name, *figures, f"{held_out_distance:.3f}", cpu])
        print(*rows[-1], flush=True)

    for seed in SEEDS:
        samples, fit, draw = ours(train, 1800, 60.0, seed)
        report(f"gradlogp, seed {seed}", samples, f"{fit:.1f} + {draw:.1f}")
    pick = np.random.default_rng(0).integers(len(train), size=1800)
    report("training rows resampled", train[pick], "")
    report("Gaussian mixture, rounded", on_grid(mixture(train, 1800, 0)), "")
    report("kernel density, rounded", on_grid(kernel_density(train, 1800, 0)), "")
    header = [
        "digits, 60 s",
        "energy distance",
        "forest accuracy",
        "median distance to training rows",
        "of test rows",
        "CPU s, fit + sample",
    ]
    return table(header, rows)


def plane(name: str, make: Callable[[int, int], np.ndarray]) -> str:
    train, test = make(10_000, 1), make(10_000, 2)
    rows = []

    def report(what: str, found: list[float], cpu: str) -> None:
        error = np.std(found, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan
        rows.append([what, f"{np.mean(found):.4f} ± {error:.4f}", " ".join(f"{v:.4f}" for v in found), cpu])
        print(name, *rows[-1], flush=True)

    runs = [ours(train, 10_000, 20.0, seed) for seed in SEEDS]
    cpu = f"{np.mean([r[1] for r in runs]):.1f} + {np.mean([r[2] for r in runs]):.1f}"
    report("gradlogp", [sliced_wasserstein_2(r[0], test) for r in runs], cpu)
    report("fresh data", [sliced_wasserstein_2(make(10_000, 10 + seed), test) for seed in range(6)], "")
    report("Gaussian mixture", [sliced_wasserstein_2(mixture(train, 10_000, seed), test) for seed in SEEDS], "")
    report("kernel density", [sliced_wasserstein_2(kernel_density(train, 10_000, seed), test) for seed in SEEDS], "")
    return table([f"{name}, 20 s", "sliced Wasserstein-2, mean ± s.e.", "each", "CPU s, fit + sample"], rows)


def main() -> None:
    torch.set_num_threads(1)
    parts = [digits(), plane("two moons", moons), plane("checkerboard", checkerboard)]
    write(
        "time_to_quality",
        "Quality after a budget of CPU time",
        "python benchmarks/time_to_quality.py",
        "\n\n".join(parts),
    )


if __name__ == "__main__":
    main()
