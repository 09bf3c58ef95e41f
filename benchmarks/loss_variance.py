"""What importance sampling of the times does to the variance of the likelihood loss, predicted exactly and measured.

Run: python benchmarks/loss_variance.py (about five minutes, one thread). Data N(0, I) and their exact score, so that
the loss J given a time t is τχ²_d/2, with τ = E r² = 1/sigma² − 1/(alpha² + sigma²) a coordinate. With κ = sigma²τ =
1/(1 + s²), s = sigma/alpha, and a weight λ(t) on J of x_t, times drawn from p(t), the loss of one draw is Y = λJ/p:

    E Y = (d/2) ∫ λτ dt,        E Y² = (d² + 2d)/4 · ∫ λ²τ²/p dt

For λ = g²: g²τ dt = 2κ d log s, so p uniform in t gives ∫ λ²τ²/p dt = 4 (t_max − t_min) ∫ κ² (d log s/dt) d log s, and
p ∝ g²/sigma² (log s uniform) 4 log(s_max/s_min) ∫ κ² d log s. No p gives less than 4 (∫ κ d log s)², p ∝ λ√E[J²|t].
Of the gradient, the same for one coordinate r ~ N(0, τ) of the noise that is predicted, ε̂ = −sigma·ψ: ∂J/∂ε̂ is
−r/sigma, of mean 0, so its variance is ∫ λ²τ/(sigma² p) dt.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from common import table, write
from scipy.integrate import quad

from gradlogp import objectives, processes
from gradlogp.models import GaussianReference
from gradlogp.training import Goal, TimeLevels, WeightedLoss, weights

N, BATCH = 16_000_000, 500_000
PROCESSES = {"VP": processes.VP(), "sub-VP": processes.SubVP()}
STARTS = (1e-5, 1e-3, 1e-2)


@dataclass
class Law:
    """Moments of the loss for weights w and densities p of t, both functions of d log s/dt."""

    process: processes.VP | processes.SubVP
    t_min: float

    def __post_init__(self) -> None:
        self.length = 1 - self.t_min
        self.span = self.integral(lambda rate, kappa: rate)  # log(s_max/s_min)

    def at(self, t: float) -> tuple[float, float]:
        """d log s/dt = g²/(2 sigma²), and κ."""
        p = self.process
        b = p.beta_min * t + (p.beta_max - p.beta_min) * t**2 / 2
        beta, var = p.beta_min + (p.beta_max - p.beta_min) * t, -math.expm1(-b)
        if isinstance(p, processes.VP):
            return beta / (2 * var), math.exp(-b)
        return beta * (2 - var) / (2 * var), math.exp(-b) / (math.exp(-b) + var**2)

    def integral(self, f: Callable[[float, float], float]) -> float:
        """∫ f(d log s/dt, κ) dt."""
        edges = np.geomspace(self.t_min, 1.0, 24)
        return sum(quad(lambda t: f(*self.at(t)), a, b, epsrel=1e-10)[0] for a, b in itertools.pairwise(edges))

    def moments(self, d: int, weight: Callable[[float], float], density: Callable[[float], float]) -> list[float]:
        """E Y … E Y⁴, Y = w/p·κ·χ²_d/d: the loss per direction."""
        chi = [math.prod((d + 2 * i) / d for i in range(k)) for k in range(1, 5)]
        return [
            c * self.integral(lambda rate, kappa, k=k: (weight(rate) * kappa) ** k / density(rate) ** (k - 1))
            for k, c in enumerate(chi, 1)
        ]

    def likelihood(self, d: int) -> list[float]:
        """g², t uniform."""
        return self.moments(d, lambda rate: rate / self.span, lambda rate: 1 / self.length)

    def sampled(self, d: int) -> list[float]:
        """g², log s uniform."""
        return self.moments(d, lambda rate: rate / self.span, lambda rate: rate / self.span)

    def baseline(self, d: int) -> list[float]:
        """sigma², t uniform: another objective."""
        return self.moments(d, lambda rate: 1 / self.length, lambda rate: 1 / self.length)

    def best(self, d: int) -> float:
        """The least variance that any p gives for the weight g²."""
        mean = self.integral(lambda rate, kappa: rate * kappa) / self.span
        return (1 + 2 / d) * mean**2 - mean**2

    def gradient_factor(self) -> float:
        """Variance of ∂/∂ε̂ with t uniform over that with log s uniform."""
        uniform = self.length * self.integral(lambda rate, kappa: rate**2 * kappa)
        return uniform / (self.span * self.integral(lambda rate, kappa: rate * kappa))


def variance(m: list[float]) -> tuple[float, float]:
    """The variance, and the standard error of its estimate from one draw."""
    a, b, c, d = m
    var = b - a**2
    return var, math.sqrt(d - 4 * a * c + 6 * a**2 * b - 3 * a**4 - var**2)


def measured(goal: Goal, d: int, g: torch.Generator) -> float:
    """The variance over N draws of a row, a level and noise, by the library's own weight, levels and loss."""
    exact = GaussianReference.of_moments(torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    loss = WeightedLoss(objectives.DenoisingScoreMatching(), exact, weight=goal.weight)
    total = torch.zeros(2, dtype=torch.float64)
    for _ in range(N // BATCH):
        x = torch.randn(BATCH, d, generator=g, dtype=torch.float64)
        each = loss(exact, x, goal.levels.quantile(torch.rand(BATCH, generator=g, dtype=torch.float64)), g)
        total += torch.stack([each.sum(), each.square().sum()])
    mean, square = (total / N).tolist()
    return square - mean**2


def row(name: str, t_min: float, d: int, g: torch.Generator) -> list[str]:
    law = Law(PROCESSES[name], t_min)
    times = TimeLevels(PROCESSES[name], t_min=t_min)
    goals = [
        Goal(weights.Likelihood(times), times),
        Goal.likelihood(times),
        Goal(weights.SigmaSquared(), times),
    ]
    told = [f(d) for f in (law.likelihood, law.sampled, law.baseline)]
    exact = [variance(m) for m in told]
    seen = [measured(goal, d, g) for goal in goals]
    factor, share = exact[0][0] / exact[1][0], math.hypot(*(e / v for v, e in exact[:2])) / math.sqrt(N)
    relative = [f"{v / m[0] ** 2:.4g}" for (v, _), m in zip(exact, told, strict=True)]
    z = [f"{(s - v) / (e / math.sqrt(N)):+.1f}" for s, (v, e) in zip(seen, exact, strict=True)]
    return [
        name, f"{t_min:g}", str(d), *relative, f"{factor:.4g}", f"{seen[0] / seen[1]:.4g} ± {factor * share:.2g}",
        " ".join(z), f"{exact[1][0] / law.best(d):.3g}", f"{law.gradient_factor():.4g}",
    ]  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    rows = [
        row(name, t_min, d, g) for name in PROCESSES for t_min in STARTS for d in (1, 16) if d == 1 or t_min == 1e-5
    ]
    head = [
        "process", "t_min", "d", "g², t uniform", "g², sampled", "sigma², t uniform", "factor, exact",
        "factor, measured", "z", "sampled / least", "factor of the gradient",
    ]  # fmt: skip
    body = f"""Data N(0, I) in d dimensions, their exact score, {N:,} independent draws of row, level, noise for each.

* Columns 4 to 6: Var Y/(E Y)² of the loss Y of one draw, exact, by quadrature: the likelihood weight g² with t uniform;
  the same objective with p(t) ∝ g²/sigma², levels uniform in log s = log(sigma/alpha); and the usual baseline, weight
  sigma² with t uniform, which is another objective.
* Factor: Var Y of g² with t uniform over that with importance sampling, exact, and measured with its exact standard
  error.
* z: how many standard errors the three measured variances are from the exact ones.
* Sampled / least: Var Y with importance sampling over the least that any law of t can have.
* Factor of the gradient: the same as the factor, for the gradient by the noise that is predicted; exact.

{table(head, rows)}
"""
    write("loss_variance", "The variance of the likelihood loss", "python benchmarks/loss_variance.py", body)


if __name__ == "__main__":
    main()
