"""The Stein test: right for the right model? its power, its time. Run: python benchmarks/stein.py (12 minutes)."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from common import table, write
from scipy.stats import kstest
from torch import Tensor

from gradlogp import diagnostics
from gradlogp.kernels import Gaussian
from gradlogp.oracles import GaussianMixture

KERNEL = Gaussian(0.2)
LEVELS = (0.01, 0.05, 0.1)
Z_OF_5_PER_CENT = 1.96
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)  # of the base kernel, in median distances
SEPARATION = (1.0, 2.0, 3.0, 4.0, 6.0)  # half the distance of two modes, in standard deviations of each
Alternative = Callable[[Tensor, torch.Generator], Tensor]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(weights: object, means: object, covariances: object) -> GaussianMixture:
    return GaussianMixture(*(torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covariances)))


def normal(d: int) -> GaussianMixture:
    """A Gaussian that is N(0, I) with the kernel's noise."""
    return mixture([1.0], torch.zeros(1, d), 1 - KERNEL.sigma.item() ** 2)


def two_modes(m: float, share: float) -> GaussianMixture:
    """N(−m, 1) and N(m, 1) with the kernel's noise, and the share of the first."""
    some = [j for j, weight in enumerate((share, 1 - share)) if weight]
    return mixture([(share, 1 - share)[j] for j in some], [[(-m, m)[j]] for j in some], 1 - KERNEL.sigma.item() ** 2)


def densities() -> dict[str, GaussianMixture]:
    root, means = torch.randn(3, 8, 8, generator=seeded(0)), torch.randn(3, 8, generator=seeded(1))
    return {
        "two modes, 14 and 10 standard deviations apart, D = 1": mixture([0.5, 0.5], [[-5.0], [5.0]], [0.5, 1.0]),
        "heavy tails, D = 1": mixture([0.6, 0.3, 0.1], [[0.0], [0.0], [0.0]], [0.2, 2.0, 20.0]),
        "three modes far apart, D = 2": mixture([0.2, 0.3, 0.5], [[-5.0, 0.0], [5.0, 0.0], [0.0, 6.0]], 0.5),
        "Gaussian, correlation 0.9, D = 2": mixture([1.0], [[0.0, 0.0]], [[[1.0, 0.9], [0.9, 1.0]]]),
        "three clusters, D = 8": mixture([0.5, 0.3, 0.2], 2 * means, root @ root.mT / 8),
        "Gaussian, D = 64": normal(64),
    }


def per_cent(hits: np.ndarray, ndigits: int = 1) -> str:
    p = (hits.sum() + 2) / (len(hits) + 4)
    return f"{100 * hits.mean():.{ndigits}f} ± {100 * (p * (1 - p) / (len(hits) + 4)) ** 0.5:.1f}"


def null_row(name: str, oracle: GaussianMixture, n: int, n_seeds: int) -> list[str]:
    """Clean rows of the law, noise by the test."""
    p = []
    for seed in range(n_seeds):
        g = seeded(seed)
        p.append(diagnostics.stein_test(oracle, oracle.sample(n, generator=g), KERNEL, generator=g).p_value.value)
    p = np.array(p)
    return [name, str(n), f"{kstest(p, 'uniform').pvalue:.2f}", *(per_cent(p <= level) for level in LEVELS)]


def power(
    model: GaussianMixture, rows: GaussianMixture, change: Alternative | None, n: int, n_seeds: int, scale: float = 0.0
) -> str:
    """Noisy rows of a law, changed, against a model's score, taken as they are; ℓ in median distances, or 0."""
    found = []
    for seed in range(n_seeds):
        g = seeded(seed)
        x_t = KERNEL.sample(rows.sample(n, generator=g), generator=g)
        x_t = x_t if change is None else change(x_t, g)
        base = diagnostics.InverseMultiquadric(scale * torch.pdist(x_t).median().item()) if scale else None
        found.append(diagnostics.stein_test(model, x_t, KERNEL, base=base, noise=False, generator=g).rejects())
    return per_cent(np.array(found))


def alternatives(oracle: GaussianMixture) -> dict[str, Alternative]:
    """Changes in units of the noisy rows' own mean and standard deviation in each column."""
    mean = oracle.mean
    sd = (oracle.covariance.diagonal() + KERNEL.sigma**2).sqrt()
    first = torch.zeros_like(sd).index_fill(0, torch.tensor([0]), 1.0)

    def heavier(x: Tensor, g: torch.Generator) -> Tensor:
        chi2 = torch.randn(len(x), 5, generator=g, dtype=x.dtype).square().sum(1, keepdim=True)
        return mean + (x - mean) * (3 / chi2).sqrt()

    return {
        "every column shifted by 0.3": lambda x, _: x + 0.3 * sd,
        "one column shifted by 0.3": lambda x, _: x + 0.3 * sd * first,
        "variance × 1.2": lambda x, _: mean + 1.2**0.5 * (x - mean),
        "variance × 1.2, one column": lambda x, _: x + (1.2**0.5 - 1) * (x - mean) * first,
        "heavier tails": heavier,
    }


def power_rows(n: int, n_seeds: int) -> tuple[list[str], list[list[str]]]:
    d = densities()
    names = ("three modes far apart, D = 2", "Gaussian, correlation 0.9, D = 2", "three clusters, D = 8")
    cases = {f"Gaussian, D = {k}": normal(k) for k in (1, 2, 8, 32)} | {name: d[name] for name in names}
    rows, header = [], ["density"]
    for name, oracle in cases.items():
        changes = alternatives(oracle)
        header = ["density", *changes]
        rows.append([name, *(power(oracle, oracle, change, n, n_seeds) for change in changes.values())])
        print(rows[-1], flush=True)
    return header, rows


def scale_rows(n: int, n_seeds: int) -> list[list[str]]:
    """What the scale of the base kernel does."""
    correlated = "Gaussian, correlation 0.9, D = 2"
    rows = []
    cases = {f"Gaussian, D = {k}": normal(k) for k in (2, 8)} | {correlated: densities()[correlated]}
    for name, oracle in cases.items():
        for change in ("variance × 1.2", "heavier tails"):
            f = alternatives(oracle)[change]
            rows.append([name, change, *(power(oracle, oracle, f, n, n_seeds, scale) for scale in SCALES)])
            print(rows[-1], flush=True)
    return rows


def spread_rows(n: int, n_seeds: int) -> list[list[str]]:
    """Clean rows of too large a variance: this test beside the slope of the calibration."""
    rows = []
    for d in (1, 2, 8, 32):
        model, tested, z = normal(d), [], []
        for seed in range(n_seeds):
            g = seeded(seed)
            x = 1.2**0.5 * model.sample(n, generator=g)
            tested.append(diagnostics.stein_test(model, x, KERNEL, generator=g).rejects())
            slope = diagnostics.calibration(model, x, KERNEL, n_noise=20, generator=g).levels[0].slope
            z.append(abs(slope.value - 1) / slope.stderr)
        rows.append([str(d), per_cent(np.array(tested)), per_cent(np.array(z) > Z_OF_5_PER_CENT)])
        print(rows[-1], flush=True)
    return rows


def lost_rows(n_seeds: int) -> list[list[str]]:
    """A model with two equal modes, and rows with other shares."""
    rows = []
    for share, n in ((0.4, 500), (0.2, 500), (0.0, 500), (0.0, 2000)):
        seeds = n_seeds if n < 1000 else n_seeds // 4
        found = [power(two_modes(m, 0.5), two_modes(m, share), None, n, seeds) for m in SEPARATION]
        rows.append([f"{100 * share:g} %", str(n), *found])
        print(rows[-1], flush=True)
    return rows


def seconds_rows() -> list[list[str]]:
    rows = []
    for d in (2, 64):
        oracle, took = normal(d), []
        for n in (500, 2000, 5000, 10_000):
            x = oracle.sample(n, generator=seeded(0))
            start = time.process_time()
            diagnostics.stein_test(oracle, x, KERNEL, max_rows=n, generator=seeded(0))
            took.append(f"{time.process_time() - start:.2f}")
        rows.append([str(d), *took])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="of each line under the null hypothesis")
    parser.add_argument("--power-seeds", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    begin, null = time.perf_counter(), []
    for n in (20, 50, 500):
        for name, oracle in densities().items():
            null.append(null_row(name, oracle, n, args.seeds))
            print(null[-1], flush=True)
    header, powers = power_rows(500, args.power_seeds)
    spreads, scales = (f(500, args.power_seeds // 2) for f in (spread_rows, scale_rows))
    lost, took = lost_rows(args.power_seeds), seconds_rows()
    worst = min(float(row[2]) for row in null)
    body = f"""Defaults: inverse multiquadric with β = −½ and half the median distance, 1000 bootstrap draws.
Noise: {KERNEL!r}. Rates in per cent ± standard error. {time.perf_counter() - begin:.0f} s in all.

## The model is right

Exact scores, {args.seeds} seeds a line: Kolmogorov and Smirnov's p-value of the p-values against the uniform law
(smallest of the {len(null)} lines: {worst:.2f}), and how often the test rejects.

{table(["density", "rows", "uniform?", *(f"rejects at {100 * level:g} %" for level in LEVELS)], null)}

## Power at the level of 5 %, 500 rows

{args.power_seeds} seeds. Shifts in standard deviations of the whole column, which for modes far apart is much more than
that of a mode. Heavier tails: Student's t with 5 degrees of freedom in place of a Gaussian, same covariance.

{table(header, powers)}

The discrepancy weighs differences of scores. A shift or a wider spread along a direction in which the rows vary much
makes a small one, and is seen badly.

A variance that is wrong by a factor is found by `diagnostics.calibration`, here of {args.power_seeds // 2} sets of
500 clean rows × √1.2, 20 draws of noise each, at |slope − 1| > {Z_OF_5_PER_CENT} standard errors:

{table(["D", "this test", "calibration"], spreads)}

## The scale of the base kernel

ℓ in median distances; half of one is the default. {args.power_seeds // 2} seeds, 500 rows, level 5 %.

{table(["density", "change", *(f"{scale:g}" for scale in SCALES)], scales)}

## Modes with wrong shares

The model has two modes N(±m, 1) of equal weight; the rows have another share of the first, down to none.
Rejected, in per cent, {args.power_seeds} seeds (a quarter of them with 2000 rows).

{table(["share in the rows, of 50 %", "rows", *(f"m = {m:g}" for m in SEPARATION)], lost)}

The score near one mode does not know how heavy the other is, so the further apart they are, the less the test sees.

## CPU seconds

Of one thread, 1000 bootstrap draws.

{table(["D", *(f"{n} rows" for n in (500, 2000, 5000, 10_000))], took)}
"""
    command = f"python benchmarks/stein.py --seeds {args.seeds} --power-seeds {args.power_seeds}"
    write("stein", "The Stein test: calibration, power, time", command, body)


if __name__ == "__main__":
    main()
