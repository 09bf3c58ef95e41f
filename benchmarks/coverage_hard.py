"""Does the score error hold where rows are few, heavy-tailed, lack a part of the law, or depend on each other?

Laws and models whose error is known, 200 sets of rows each (about 8 minutes on an idle core). A law of which N rows
lack a part in one case of 20 or more cannot be covered from the rows alone: for those the sets that hold a row of each
part are counted apart. The same for ``compare``, ``calibration`` and ``entropy``, and how often the tests of the rows
give a false alarm on independent ones.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import common
import numpy as np
import torch
from coverage import sharing
from scipy.stats import t as student_t
from torch import Tensor
from torch import distributions as td

from gradlogp import diagnostics, likelihood, models, oracles
from gradlogp.diagnostics import dependence, references
from gradlogp.diagnostics.references import default_noise
from gradlogp.kernels import Gaussian

K = Gaussian(1.0)
F64 = torch.float64
DRAWS = 400  # noisy draws of a set of rows, at least
Sampler = Callable[[int, torch.Generator], Tensor]


def linear(a: float, c: float = 0.0) -> models.ScoreModel:
    return models.ScoreFunction(lambda x_t, k: a * x_t + c)


def gaussian(d: int) -> oracles.GaussianMixture:
    return oracles.GaussianMixture(torch.ones(1), torch.zeros(1, d, dtype=F64), torch.eye(d, dtype=F64)[None])


def cluster() -> oracles.GaussianMixture:
    """0.98 N(0, I) + 0.02 N((8, 0), 0.01 I)."""
    means = torch.tensor([[0.0, 0.0], [8.0, 0.0]], dtype=F64)
    covariances = torch.stack([torch.eye(2, dtype=F64), 0.01 * torch.eye(2, dtype=F64)])
    return oracles.GaussianMixture(torch.tensor([0.98, 0.02]), means, covariances)


def atoms() -> oracles.Empirical:
    """0 with probability 0.99, 8 with 0.01."""
    return oracles.Empirical(torch.cat([torch.zeros(99, 1, dtype=F64), torch.full((1, 1), 8.0, dtype=F64)]))


STUDENT = oracles.Quadrature(td.StudentT(torch.tensor(3.0, dtype=F64)))


def student(n: int, g: torch.Generator) -> Tensor:
    z = torch.randn(n, 4, generator=g, dtype=F64)
    return z[:, :1] / (z[:, 1:].square().mean(1, keepdim=True)).sqrt()


def student_error(a: float) -> float:
    """½E(a·x_t − s)² for Student's t with 3 degrees of freedom at σ = 1, by quadrature; s ≈ −4/x far out."""
    x = torch.linspace(-60, 60, 24_001, dtype=F64)[:, None]
    near = 0.5 * (STUDENT.score(x, K) - a * x).square() * STUDENT.log_prob(x, K).exp()[:, None]
    u = np.geomspace(60, 1e7, 200_001)
    far = np.trapezoid((a * u + 4 / u) ** 2 * 6 * math.sqrt(3) / math.pi / (3 + u**2) ** 2, u)
    return torch.trapezoid(near[:, 0], x[:, 0]).item() + far


def autoregressive(rho: float) -> Sampler:
    """x_i = ρ·x_{i−1} + √(1 − ρ²)·z_i: rows of N(0, 1)."""

    def draw(n: int, g: torch.Generator) -> Tensor:
        z = torch.randn(n, generator=g, dtype=F64).tolist()
        x = [z[0]]
        for v in z[1:]:
            x.append(rho * x[-1] + math.sqrt(1 - rho**2) * v)
        return torch.tensor(x, dtype=F64)[:, None]

    return draw


def grouped(n: int, g: torch.Generator) -> Tensor:
    """Groups of five rows with correlation 0.8, in no order: row i is of group i mod n/5."""
    own = torch.randn(n // 5, 1, generator=g, dtype=F64).repeat(5, 1)
    return math.sqrt(0.8) * own + math.sqrt(0.2) * torch.randn(n, 1, generator=g, dtype=F64)


@dataclass(frozen=True)
class Case:
    """A law, models and their errors, and what is given of the law and the rows."""

    name: str
    draw: Sampler
    models: dict[str, tuple[models.ScoreModel, float]]
    n: int
    reference: oracles.Oracle | None = None
    seen: Callable[[Tensor], bool] | None = None
    groups: list[int] | None = None


def by_draws(model: models.ScoreModel, law: oracles.Oracle, n: int = 500_000) -> float:
    g = torch.Generator().manual_seed(5)
    total = 0.0
    for _ in range(n // 50_000):
        x_t = K.sample(law.sample(50_000, generator=g), generator=g)
        total += 0.5 * (model.score(x_t, K) - law.score(x_t, K)).square().sum().item()
    return total / n


def cases() -> list[Case]:
    rare, two, one, zero = cluster(), atoms(), gaussian(2), oracles.Empirical(torch.zeros(1, 1, dtype=F64))
    error, of_two, heavy = by_draws(one, rare), by_draws(zero, two), student_error(-1 / 1.3)

    def of(law: oracles.Oracle) -> Sampler:
        return lambda n, g: law.sample(n, generator=g)

    def far(x: Tensor) -> bool:
        return bool((x[:, 0] > 5).any())

    gap, gap_atoms, student_gap = {"": (one, error)}, {"": (zero, of_two)}, {"": (linear(-1 / 1.3), heavy)}
    two_models = {", scaled": (linear(-0.7), 0.04), ", shifted": (linear(-0.5, 0.3), 0.045)}
    return [
        Case("known law: 2 % cluster", of(rare), gap, 100, reference=rare),
        *(Case("2 % cluster", of(rare), gap, n, seen=far) for n in (100, 150, 300)),
        *(Case("atoms 0.99 and 0.01", of(two), gap_atoms, n, seen=far) for n in (100, 300)),
        *(Case("Student t(3)", student, student_gap, n) for n in (100, 300)),
        Case("AR(1), ρ = 0.9", autoregressive(0.9), two_models, 200),
        Case("AR(1), ρ = 0.99", autoregressive(0.99), two_models, 1000),
        Case("groups of 5", grouped, two_models, 200, groups=list(range(40)) * 5),
        Case("independent rows", of(gaussian(1)), two_models, 300),
    ]


def run(case: Case, n_runs: int) -> list[list[str]]:
    """The lines of the table of each model; those of one case share rows and draws, and the references' scores."""
    found: dict[str, list[list[bool]]] = {name: [] for name in case.models}
    noise = None if case.reference is not None else default_noise(case.n, DRAWS)
    for seed in range(n_runs):
        x = case.draw(case.n, torch.Generator().manual_seed(10_000 + seed))
        seen = case.seen is None or case.seen(x)
        with mock.patch.object(references, "block_scores", sharing(references.block_scores)):
            for name, (model, truth) in case.models.items():
                report = diagnostics.score_error(model, case.reference, x, K, groups=case.groups, n_noise=noise)
                (low, high), verdict = report.levels[0].interval, report.levels[0].verdict
                found[name].append([low > truth, high < truth, seen, not math.isfinite(high), verdict == "certified"])
    return [_line(case, name, np.array(values)) for name, values in found.items()]


def _line(case: Case, name: str, values: np.ndarray) -> list[str]:
    high, low, seen, opened, certified = values.T
    ok = ~(high | low)
    line = [
        case.name + name,
        str(case.n),
        f"{case.models[name][1]:.4g}",
        f"{100 * ok.mean():.1f}",
        f"{high.sum()}, {low.sum()}",
        "" if case.seen is None else f"{100 * ok[seen].mean():.1f} of {seen.sum()}",
        f"{100 * opened.mean():.0f}",
        f"{100 * certified.mean():.0f}",
        f"{100 * (certified & ~ok).mean():.1f}",
    ]
    print(*line, sep=" | ", flush=True)
    return line


def others(n_runs: int) -> list[list[str]]:
    """compare, calibration and entropy: value ± 1.96 standard errors, and with Student's quantile for compare."""
    law = oracles.GaussianMixture(
        torch.tensor([0.3, 0.7]), torch.tensor([[2.0, 0.0], [-1.0, 0.5]], dtype=F64), torch.tensor([0.25, 0.5]).to(F64)
    )
    lines = []
    for n in (20, 50, 200):
        hits = []
        for seed in range(n_runs):
            g = torch.Generator().manual_seed(20_000 + seed)
            (level,) = diagnostics.calibration(law, law.sample(n, generator=g), K, generator=g).levels
            hits.append([abs(v.value - 1) <= 1.96 * v.stderr for v in (level.residual, level.slope)])
        lines.append(
            ["calibration, independent rows", str(n), " and ".join(f"{100 * v:.1f}" for v in np.mean(hits, 0))]
        )
    for n in (50, 200):
        hits = []
        for seed in range(n_runs):
            g = torch.Generator().manual_seed(30_000 + seed)
            found = likelihood.entropy(law, law.sample(n, generator=g), sigma_min=0.05, generator=g)
            hits.append(abs(found.value - entropy_of(law, 0.05)) <= 1.96 * found.stderr)
        lines.append(["entropy, independent rows", str(n), f"{100 * np.mean(hits):.1f}"])
    for rho, n in ((0.9, 200),):
        hits = []
        for seed in range(n_runs):
            x = autoregressive(rho)(n, torch.Generator().manual_seed(10_000 + seed))
            found = diagnostics.compare(linear(-0.7), linear(-0.4), x, K, n_noise=default_noise(n, DRAWS))
            reach = student_t.isf(0.025, found.n_blocks - 1) * found.total.stderr
            (level,) = diagnostics.calibration(linear(-0.5), x, K, max_rows=n).levels
            hits.append(
                [abs(found.total.value - 0.03) <= reach, abs(level.slope.value - 1) <= 1.96 * level.slope.stderr]
            )
        compared, sized = 100 * np.mean(hits, 0)
        lines.append([f"compare, AR(1), ρ = {rho}", str(n), f"{compared:.1f}"])
        lines.append([f"slope of calibration, AR(1), ρ = {rho}", str(n), f"{sized:.1f}"])
    print(*lines, sep="\n", flush=True)
    return lines


_ENTROPY: dict[float, float] = {}


def entropy_of(law: oracles.GaussianMixture, sigma: float) -> float:
    if sigma not in _ENTROPY:
        g, k = torch.Generator().manual_seed(5), Gaussian(sigma)
        x_t = k.sample(law.sample(1_000_000, generator=g), generator=g)
        _ENTROPY[sigma] = -law.log_prob(x_t, k).mean().item()
    return _ENTROPY[sigma]


def alarms(n_runs: int) -> list[list[str]]:
    """False alarms on independent rows, and how often dependence is seen."""
    g = torch.Generator().manual_seed(7)
    laws = {
        "normal": lambda n, d: torch.randn(n, d, generator=g, dtype=F64),
        "Cauchy": lambda n, d: torch.randn(n, d, generator=g, dtype=F64) / torch.randn(n, d, generator=g, dtype=F64),
        "lognormal": lambda n, d: (3 * torch.randn(n, d, generator=g, dtype=F64)).exp(),
        "0 or 1, 3 %": lambda n, d: (torch.rand(n, d, generator=g, dtype=F64) < 0.03).double(),
        "3 clusters": lambda n, d: (
            torch.randn(n, d, generator=g, dtype=F64) + 20 * torch.randint(3, (n, 1), generator=g)
        ),
    }
    lines, total = [], np.zeros(3, dtype=int)
    for law in laws.values():
        for n, d in ((20, 2), (100, 8), (500, 2)):
            for _ in range(n_runs):
                x = law(n, d)
                order = dependence.correlation_length(x) > 1
                total += [1, order, dependence.near_repeats(x, g)[0] > 0]
    lines.append(["independent rows of 5 laws", f"{total[1]} of {total[0]}", f"{total[2]} of {total[0]}"])
    for rho in (0.3, 0.5, 0.9):
        seen = sum(dependence.correlation_length(autoregressive(rho)(200, g)) > 1 for _ in range(n_runs))
        lines.append([f"AR(1), ρ = {rho}, 200 rows", f"{seen} of {n_runs}", ""])
    for n, d in ((200, 2), (500, 8)):
        seen = 0
        for _ in range(n_runs):
            x = torch.randn(n, d, generator=g, dtype=F64)
            copies = x[: n // 20] + 1e-3 * torch.randn(n // 20, d, generator=g, dtype=F64)
            seen += dependence.near_repeats(torch.cat([x, copies]), g)[0] > 0
        lines.append([f"{n} rows of {d}, 5 % copied with noise 0.001", "", f"{seen} of {n_runs}"])
    print(*lines, sep="\n", flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [line for case in cases() for line in run(case, args.runs)]
    header = ["law", "rows", "true error", "covered %", "misses", "covered % with each part seen", "open %"]
    body = [
        f"{args.runs} sets of rows each, σ = 1. Misses: sets whose interval lies above and below the truth. Open: rows "
        "that count as fewer than 8 independent ones, of which no upper end is told. A part of 2 % is not among 100 "
        "rows in 13 % of the sets, one of 1 % in 37 %: no rows show what they lack; nothing is certified from so few.",
        common.table([*header, "certified %", "certified and wrong %"], rows),
        "The true value in value ± 1.96 standard errors; for `compare` Student's quantile with its blocks less one:",
        common.table(["function", "rows", "covered %"], others(args.runs)),
        "Tests of the rows that say so:",
        common.table(["rows", "correlated in their order", "nearly repeat others"], alarms(args.runs)),
    ]
    title = "Coverage where rows are few, heavy-tailed, or depend on each other"
    common.write("coverage_hard", title, f"python benchmarks/coverage_hard.py --runs {args.runs}", "\n\n".join(body))


if __name__ == "__main__":
    main()
