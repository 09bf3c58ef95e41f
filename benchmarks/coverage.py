"""Does the bracket of the score error hold the truth as often as it says, and how wide is it?

Five densities whose score is known, five models whose error is known, two numbers of held-out rows, many seeds. For
each level: the share of seeds whose 95 % interval holds the true J_ESM (the intervals of all levels of a report hold
together at 95 %, so each alone should do better), the median width, and whether the better of two models is found.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from unittest import mock

import common
import numpy as np
import torch
from torch import Tensor

from gradlogp import diagnostics, models, networks, oracles
from gradlogp.diagnostics import references
from gradlogp.kernels import Gaussian
from gradlogp.training import NoiseLevels, Recipe, train

SIGMAS = {500: (0.1, 0.3, 1.0, 3.0), 5000: (0.1, 0.5, 2.0)}  # in units of the data's scale
TRUTH_DRAWS = 200_000


def densities() -> dict[str, oracles.GaussianMixture]:
    """Mixtures: two modes, heavy tails (on the line), a ring of eight, skewed clusters, two sheets in 32-D."""
    g = torch.Generator().manual_seed(0)
    angle = torch.arange(8) * torch.pi / 4
    root = torch.randn(3, 8, 8, generator=g)
    sheet = torch.randn(2, 32, 4, generator=g)
    return {
        "two modes, D = 1": _mixture([0.3, 0.7], [[-2.0], [1.0]], [0.25, 0.5]),
        "heavy tails, D = 1": _mixture([0.6, 0.3, 0.1], [[0.0], [0.0], [0.0]], [0.2, 2.0, 20.0]),
        "ring of 8, D = 2": _mixture([1.0] * 8, torch.stack([angle.cos(), angle.sin()], 1) * 2, 0.05),
        "3 clusters, D = 8": _mixture([0.5, 0.3, 0.2], torch.randn(3, 8, generator=g) * 2, root @ root.mT / 8),
        "2 sheets, D = 32": _mixture([0.5, 0.5], sheet[:, :, 0], sheet @ sheet.mT + 0.05 * torch.eye(32)),
    }


def _mixture(weights: object, means: object, covariances: object) -> oracles.GaussianMixture:
    w, m, c = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covariances))
    return oracles.GaussianMixture(w, m, c)


def five(oracle: oracles.GaussianMixture) -> dict[str, models.ScoreModel]:
    """The true score, scaled, shifted, the best affine one, and a network trained for a short while on 500 rows."""
    scale = oracle.reference.data_scale.item()
    shift = torch.full((oracle.means.shape[1],), 0.2).double()
    return {
        "exact": oracle,
        "scaled": models.ScoreFunction(lambda x_t, k: 1.2 * oracle.score(x_t, k)),
        "shifted": models.ScoreFunction(lambda x_t, k: oracle.score(x_t, k) + shift / (k.sigma + 0.3 * scale)),
        "affine": oracle.reference,
        "network": _network(oracle),
    }


def _network(oracle: oracles.GaussianMixture) -> models.ScoreModel:
    x = oracle.sample(600, generator=torch.Generator().manual_seed(77))
    torch.manual_seed(0)
    d = oracle.means.shape[1]
    reference = models.GaussianReference.of_data(x)
    model = models.Preconditioned(networks.ResidualMLP((d,), width=64, depth=2).double(), reference)
    scale = reference.data_scale.item()
    g = torch.Generator().manual_seed(1)
    for _ in train(
        model, x[:500], x[500:], levels=NoiseLevels(0.03 * scale, 5 * scale), recipe=Recipe(n_steps=400), generator=g
    ):
        pass
    return model


def true_error(
    model: models.ScoreModel, oracle: oracles.GaussianMixture, kernel: Gaussian
) -> tuple[float, float, float]:
    """J_ESM with its standard error, and ½E‖∇log p_σ‖²."""
    g = torch.Generator().manual_seed(5)
    error, size = [], []
    for _ in range(TRUTH_DRAWS // 20_000):
        x_t = kernel.sample(oracle.sample(20_000, generator=g), generator=g)
        with torch.no_grad():
            s = oracle.score(x_t, kernel)
            error.append(0.5 * (model.score(x_t, kernel) - s).square().sum(1))
        size.append(0.5 * s.square().sum(1))
    e = torch.cat(error)
    return e.mean().item(), (e.std() / len(e) ** 0.5).item(), torch.cat(size).mean().item()


def sharing(function):  # type: ignore[no-untyped-def]
    """The same references and draws for all five models: their own scores are computed once."""
    known: dict[tuple[float, ...], tuple[Tensor, Tensor]] = {}

    def cached(x_t, rows, kernel):  # type: ignore[no-untyped-def]
        several = kernel if isinstance(kernel, list) else [kernel]
        key = (*{k.sigma.item() for k in several}, x_t[0, 0].item(), x_t[-1, 0].item(), float(len(x_t)))
        if key not in known:
            known[key] = function(x_t, rows, kernel)
        return known[key]

    return cached


def study(n_rows: int, n_seeds: int) -> tuple[list[list[str]], list[list[str]]]:
    """The two tables at one number of rows."""
    rows, pairs = [], []
    for name, oracle in densities().items():
        found, right = one_density(oracle, n_rows, n_seeds)
        rows += [[name, *row] for row in found]
        pairs.append([name, str(n_rows), *right])
        print(name, n_rows, "pairs right, %:", right[0], flush=True)
    return rows, pairs


def one_density(oracle: oracles.GaussianMixture, n_rows: int, n_seeds: int) -> tuple[list[list[str]], list[str]]:
    scale = oracle.reference.data_scale.item()
    levels = [Gaussian(s * scale) for s in SIGMAS[n_rows]]
    several = five(oracle)
    truth = {(m, i): true_error(model, oracle, k) for m, model in several.items() for i, k in enumerate(levels)}
    results = defaultdict(list)
    for seed in range(n_seeds):
        x = oracle.sample(n_rows, generator=torch.Generator().manual_seed(1000 + seed))
        with mock.patch.object(references, "block_scores", sharing(references.block_scores)):
            for m, model in several.items():
                g = torch.Generator().manual_seed(seed)
                report = diagnostics.score_error(model, None, x, levels, generator=g)
                for i, level in enumerate(report.levels):
                    results[m, i].append(level)
    table = [_row(m, levels[i].sigma.item() / scale, n_rows, results[m, i], truth[m, i]) for m, i in results]
    return table, _ranking(results, truth, len(levels))


def _row(model: str, sigma: float, n_rows: int, levels: list, truth: tuple[float, float, float]) -> list[str]:
    true, stderr, size = truth
    slack = 2 * stderr
    too_high = np.array([level.interval[0] > true + slack for level in levels])
    too_low = np.array([level.interval[1] < true - slack for level in levels])
    width = np.median([level.interval[1] - level.interval[0] for level in levels]) / size
    middle = [np.median([getattr(level.error, side).value for level in levels]) / size for side in ("lower", "upper")]
    verdicts = [level.verdict for level in levels]
    return [
        model,
        str(n_rows),
        f"{sigma:g}",
        f"{100 * true / size:.3g}",
        f"{100 * (1 - (too_high | too_low).mean()):.1f}",
        f"{too_high.sum()}, {too_low.sum()}",
        " to ".join(f"{100 * v:.3g}" for v in middle),
        f"{100 * width:.3g}",
        f"{100 * np.mean([v == 'certified' for v in verdicts]):.0f}",
    ]


def _ranking(results: dict, truth: dict, n_levels: int) -> list[str]:
    """Of pairs of models whose errors differ by a tenth of the smaller or more: is the lower upper bound the better's?

    The upper bounds of two models on the same draws differ by the difference of their errors, in expectation.
    """
    names = sorted({m for m, _ in results})
    right, n = 0, 0
    for (a, b), i in itertools.product(itertools.combinations(names, 2), range(n_levels)):
        true_a, true_b = truth[a, i][0], truth[b, i][0]
        if abs(true_a - true_b) < 0.1 * min(true_a, true_b):
            continue
        for one, two in zip(results[a, i], results[b, i], strict=True):
            right += (one.error.upper.value < two.error.upper.value) == (true_a < true_b)
            n += 1
    return [f"{100 * right / n:.1f}", str(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500, choices=tuple(SIGMAS), help="held-out rows")
    parser.add_argument("--seeds", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, pairs = study(args.rows, args.seeds)
    coverage = np.array([float(r[5]) for r in rows])
    body = [
        f"{args.seeds} seeds, {args.rows} held-out rows. σ in units of the data's scale; error, bounds and width in "
        "per cent of ½E‖∇log p_σ‖². Misses: seeds whose interval lies above and below the truth.",
        f"Smallest coverage of any line: {coverage.min():.1f} %; mean {coverage.mean():.2f} %. Lines below 95 %: "
        f"{int((coverage < 95).sum())} of {len(rows)}.",
        common.table(
            [
                "density",
                "model",
                "rows",
                "σ",
                "true error",
                "covered %",
                "misses",
                "median bounds",
                "median width",
                "certified %",
            ],
            rows,
        ),
        "Of two models, the one with the lower upper bound on the same draws is the better one:",
        common.table(["density", "rows", "right, % of pairs", "pairs"], pairs),
    ]
    command = f"python benchmarks/coverage.py --rows {args.rows} --seeds {args.seeds}"
    title = f"Coverage of the bracket of the score error, {args.rows} held-out rows"
    common.write(f"coverage_{args.rows}", title, command, "\n\n".join(body))


if __name__ == "__main__":
    main()
