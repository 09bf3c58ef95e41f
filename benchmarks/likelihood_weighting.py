"""What weighting for likelihood is worth in held-out nats: the weights and laws of the levels at equal training time.

    python benchmarks/likelihood_weighting.py --data FOLDER    # of the tables; about 20 min

The tables of tables.py, dequantised, first split. The same network, reference, held-out rows and time for each; all
keep the weights of the best look at the likelihood-weighted loss on the held-out rows.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from common import table, write
from tables import TABLES, Cell, cell

from gradlogp import likelihood, models, networks, processes
from gradlogp.training import Goal, Levels, NoiseLevels, Recipe, TimeLevels, calibrate, train
from gradlogp.training.weights import EDM, Drawn, SigmaSquared

HEAD = [
    "table",
    "trained for",
    "steps",
    "nats a row",
    "less σ², t uniform (± standard error)",
    "variance of the loss / mean²",
]
BASE = "σ², t uniform"


def goals(levels: NoiseLevels) -> dict[str, Goal]:
    """Name -> weight and law of the levels."""
    uniform_t: Levels = TimeLevels(processes.VP(), t_min=_time(levels.sigma_min), t_max=_time(levels.sigma_max))
    bound = Goal.likelihood(levels)
    return {
        BASE: Goal(SigmaSquared(), uniform_t),
        "likelihood (g²), t uniform": Goal(Drawn(SigmaSquared(), bound.levels, uniform_t), uniform_t),
        "likelihood (g²), importance sampling": bound,
        "EDM, the default": Goal(EDM(), levels),
    }


def _time(ratio: float) -> float:
    return float(processes.VP().time(ratio))


def fitted(c: Cell, goal: str, seconds: float) -> tuple[np.ndarray, int, float]:
    """Log-density of the test rows, steps taken, and the variance of the training loss in units of its mean squared."""
    g = torch.Generator().manual_seed(0)
    rows = torch.from_numpy(c.train).float()
    rows = rows[torch.randperm(len(rows), generator=g)]
    held_out, rows = rows[: len(rows) // 10], rows[len(rows) // 10 :]
    reference = models.MarginalReference.of_data(rows)
    levels = NoiseLevels.of_rows(rows, reference.gaussian)
    n, d = rows.shape
    torch.manual_seed(0)
    network = networks.ResidualMLP((d,), width=128, dropout=min(0.4, 0.4 * math.sqrt(50 * d / n)))
    model = models.Preconditioned(network, reference)
    chosen = goals(levels)[goal]
    recipe = Recipe(
        n_steps=10**6,
        batch_size=512,
        patience=10**6,
        max_seconds=seconds,
        weight=chosen.weight,
        look=Goal.likelihood(levels),
    )
    for record in train(model, rows, held_out, levels=chosen.levels, recipe=recipe, generator=g):
        steps = record.step
    calibrate(model, held_out, levels, generator=g)
    ends = {"sigma_min": levels.sigma_min, "sigma_max": levels.sigma_max}
    value = likelihood.log_prob(model, torch.from_numpy(c.test).float(), **ends).value.double().numpy()
    return value, steps, _variance(model, held_out, chosen)


def _variance(model: models.Preconditioned, rows: torch.Tensor, goal: Goal, n: int = 100_000) -> float:
    """Of the loss of one draw, for the trained model."""
    from gradlogp.objectives import DenoisingScoreMatching
    from gradlogp.training import WeightedLoss

    g = torch.Generator().manual_seed(1)
    x = rows[torch.randint(len(rows), (n,), generator=g)]
    sigma = goal.levels.quantile(torch.rand(n, generator=g))
    loss = WeightedLoss(DenoisingScoreMatching(), model.skip.reference, weight=goal.weight)
    with torch.no_grad():
        each = loss(model, x, sigma, g).double()
    return (each.var() / each.mean() ** 2).item()


def lines(c: Cell, seconds: float) -> list[list[str]]:
    """One a goal."""
    out, base = [], None
    for name in goals(NoiseLevels(0.01, 5.0)):
        value, steps, variance = fitted(c, name, seconds)
        base = value if name == BASE else base
        less = value - base
        stderr = less.std(ddof=1) / math.sqrt(len(less)) if name != BASE else 0.0
        told = "" if name == BASE else f"{less.mean():+.3f} ± {stderr:.3f}"
        out.append(
            [
                c.name,
                name,
                f"{steps:,}",
                f"{value.mean():.3f} ± {value.std(ddof=1) / math.sqrt(len(value)):.3f}",
                told,
                f"{variance:.3g}",
            ]
        )
        print(out[-1], flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the parquet files")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training each, by the clock")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = [line for name in TABLES for line in lines(cell(chosen.data, name, "dequantised", 0), chosen.seconds)]
    body = (
        f"{chosen.seconds:g} s of training each; log-density of unseen rows at the same σ_min; one split, one seed.\n\n"
    )
    write(
        "likelihood_weighting",
        "Weighting for likelihood",
        "python benchmarks/likelihood_weighting.py --data …",
        body + table(HEAD, rows),
    )


if __name__ == "__main__":
    main()
