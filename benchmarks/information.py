"""Entropy, KL and mutual information of Gaussian data from trained models, on rows that no model has seen.

Run: OMP_NUM_THREADS=1 python benchmarks/information.py (about 10 minutes).
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from common import table, write

from gradlogp import ScoreDensity, oracles
from gradlogp._shapes import Batch
from gradlogp.diagnostics import Estimate
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.likelihood.divergence_between import kl_divergence
from gradlogp.likelihood.entropy import entropy
from gradlogp.likelihood.mutual import mutual_information
from gradlogp.models import GaussianReference, ScoreModel

N_TRAIN, N_FRESH, N_FEW = 10_000, 50_000, 300
HEADER = ["D", "quantity", "rows measured on", "exact at σ = 0", "exact at σ_min", "measured", "error", "z"]


class Moved(ScoreModel):
    """A fitted estimator's model, which works on x − offset, in the data's own coordinates."""

    def __init__(self, estimator: ScoreDensity) -> None:
        super().__init__()
        self.model = estimator.model_
        self.register_buffer("offset", torch.from_numpy(estimator.units_.offset).float())

    @property
    def reference(self) -> GaussianReference:
        """The Gaussian in the data's coordinates."""
        g = self.model.reference
        return GaussianReference(g.mean + self.offset, g.eigenvalues, g.eigenvectors)

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """The score at x − offset."""
        return self.model.score(x_t - self.offset, kernel)

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """The denoiser at x − offset, moved back."""
        return self.model.denoise(x_t - self.offset, kernel) + self.offset


class Law:
    """A Gaussian, and what is known of it."""

    def __init__(self, mean: np.ndarray, covariance: np.ndarray) -> None:
        self.mean, self.covariance = mean, covariance

    def draw(self, n: int, seed: int) -> np.ndarray:
        """Rows of it."""
        return np.random.default_rng(seed).multivariate_normal(self.mean, self.covariance, n)

    def noisy(self, s: float) -> np.ndarray:
        """Its covariance under noise s."""
        return self.covariance + s**2 * np.eye(len(self.mean))

    def entropy(self, s: float) -> float:
        """In nats, under noise s."""
        return 0.5 * float(np.linalg.slogdet(2 * math.pi * math.e * self.noisy(s))[1])

    def kl(self, q: Law, s: float) -> float:
        """KL to another Gaussian, both under noise s."""
        a, b, m = self.noisy(s), q.noisy(s), self.mean - q.mean
        trace = np.trace(np.linalg.solve(b, a)) + m @ np.linalg.solve(b, m) - len(m)
        return 0.5 * float(trace + np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1])


def gaussian(d: int, seed: int, mean: float) -> Law:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(d, 2 * d)) / math.sqrt(2 * d)
    return Law(mean * rng.normal(size=d), a @ a.T + 0.1 * np.eye(d))


def fit(rows: np.ndarray) -> tuple[ScoreDensity, float]:
    start = time.perf_counter()
    model = ScoreDensity(random_state=0, standardize=False, max_seconds=30, n_jobs=1, verbose=False).fit(rows)
    return model, time.perf_counter() - start


def line(d: int, name: str, rows: str, exact: tuple[float, float], found: Estimate) -> list[object]:
    clean, noisy = exact
    error = found.value / clean - 1
    z = (found.value - noisy) / found.stderr
    return [
        d,
        name,
        rows,
        f"{clean:.4f}",
        f"{noisy:.4f}",
        f"{found.value:.4f} ± {found.stderr:.4f}",
        f"{error:+.2%}",
        f"{z:+.1f}",
    ]


def gaussians(d: int) -> tuple[list[list[object]], str]:
    p, q, g = gaussian(d, 1, 0.0), gaussian(d, 2, 0.7), torch.Generator().manual_seed(0)
    half = list(range(0, d, 2))
    rest = [j for j in range(d) if j not in half]
    train, fresh = p.draw(N_TRAIN, 3), torch.from_numpy(p.draw(N_FRESH, 4)).float()
    fits = [fit(rows) for rows in (train, q.draw(N_TRAIN, 5), train[:, half], train[:, rest])]
    joint, other, first, second = (Moved(e) for e, _ in fits)
    s = max(e.levels_.sigma_min for e, _ in fits)
    product = Law(np.zeros(d), np.zeros((d, d)))
    product.covariance[np.ix_(half, half)] = p.covariance[np.ix_(half, half)]
    product.covariance[np.ix_(rest, rest)] = p.covariance[np.ix_(rest, rest)]
    product.mean = p.mean
    seen = torch.from_numpy(train).float()
    measured = time.perf_counter()
    h = (p.entropy(0), p.entropy(s))
    rows = [
        line(d, "entropy", "fresh", h, entropy(joint, fresh, sigma_min=s, generator=g)),
        line(d, "entropy", "trained on", h, entropy(joint, seen, sigma_min=s, generator=g)),
        line(
            d,
            "KL(p ‖ q)",
            "fresh",
            (p.kl(q, 0), p.kl(q, s)),
            kl_divergence(joint, other, fresh, sigma_min=s, generator=g),
        ),
        line(
            d,
            f"MI, {len(half)} and {len(rest)} columns",
            "fresh",
            (p.kl(product, 0), p.kl(product, s)),
            mutual_information(joint, first, second, fresh, half, sigma_min=s, generator=g),
        ),
    ]
    spent = time.perf_counter() - measured
    times = ", ".join(f"{t:.0f}" for _, t in fits)
    return rows, f"D = {d}: fits {times} s, the four measurements {spent:.0f} s, σ_min = {s:.4f}."


def memorised(d: int) -> tuple[list[list[object]], str]:
    """A model of few rows, trained with neither early stopping nor dropout: too good on its own rows."""
    p, g = gaussian(d, 1, 0.0), torch.Generator().manual_seed(0)
    train = p.draw(N_FEW, 6)
    start = time.perf_counter()
    e = ScoreDensity(
        random_state=0, standardize=False, max_seconds=60, n_jobs=1, verbose=False, dropout=0.0, patience=10_000
    ).fit(train)
    s = e.levels_.sigma_min
    h = (p.entropy(0), p.entropy(s))
    rows = [
        line(d, f"entropy, {N_FEW} rows", which, h, entropy(Moved(e), x, sigma_min=s, generator=g))
        for which, x in (
            ("fresh", torch.from_numpy(p.draw(N_FRESH, 4)).float()),
            ("trained on", torch.from_numpy(train).float()),
        )
    ]
    return rows, f"{N_FEW} rows, D = {d}: fit {time.perf_counter() - start:.0f} s."


def mixture(d: int) -> tuple[list[list[object]], str]:
    """Four components: what the Gaussian reference does not know. The exact value is a mean of −log p over draws."""
    g = torch.Generator().manual_seed(0)
    means = 1.5 * torch.randn(4, d, generator=g, dtype=torch.float64)
    oracle = oracles.GaussianMixture(torch.tensor([0.1, 0.2, 0.3, 0.4]), means, 0.25)
    train = oracle.sample(N_TRAIN, generator=g)
    e, seconds = fit(train.numpy())
    s = e.levels_.sigma_min
    wide = oracle.sample(400_000, generator=g)
    exact = [wide + level * torch.randn(wide.shape, generator=g, dtype=wide.dtype) for level in (1e-6, s)]
    return _mixture_rows(d, oracle, e, exact, s, g), f"Mixture, D = {d}: fit {seconds:.0f} s."


def _mixture_rows(
    d: int, oracle: oracles.GaussianMixture, e: ScoreDensity, draws: list[torch.Tensor], s: float, g: torch.Generator
) -> list[list[object]]:
    h = tuple(-oracle.log_prob(x, Gaussian(level)).mean().item() for x, level in zip(draws, (1e-6, s), strict=True))
    x = oracle.sample(N_FRESH, generator=g).float()
    return [
        line(d, "entropy, mixture, trained model", "fresh", h, entropy(Moved(e), x, sigma_min=s, generator=g)),
        line(d, "entropy, mixture, exact model", "fresh", h, entropy(oracle, x.double(), sigma_min=s, generator=g)),
    ]


def main() -> None:
    torch.set_num_threads(1)
    parts = [gaussians(4), gaussians(16), mixture(4), memorised(16)]
    rows = [row for some, _ in parts for row in some]
    body = (
        f"Models: `ScoreDensity(random_state=0, standardize=False, max_seconds=30, n_jobs=1)` on {N_TRAIN} rows; "
        f"measured on {N_FRESH} fresh rows, or on the rows that the model was trained on. `error` is against the exact "
        "value without noise, `z` against that at σ_min in standard errors; the standard error is that of the rows and "
        "draws measured on, not of the training.\n\n"
        + table(HEADER, rows)
        + "\n\n"
        + "  \n".join(note for _, note in parts)
    )
    write(
        "information",
        "Entropy, KL and mutual information from denoising errors",
        "OMP_NUM_THREADS=1 python benchmarks/information.py",
        body,
    )


if __name__ == "__main__":
    main()
