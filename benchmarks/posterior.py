"""How often the band of `models.posterior` covers the clean datum. Run: python benchmarks/posterior.py.

Exact models, for which only the shape of the posterior is in doubt, and models learnt from digits; about 8 minutes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from common import table, write
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor

from gradlogp import ScoreDensity
from gradlogp.diagnostics import Estimate
from gradlogp.kernels import Gaussian
from gradlogp.models import ScoreModel, posterior
from gradlogp.oracles import GaussianMixture
from gradlogp.training import kept

N, LEVEL, SEED = 4000, 0.90, 0
HALF = stats.norm.ppf(0.5 + LEVEL / 2)
RELATIVE = (0.1, 0.3, 1.0, 3.0)  # of the data's scale


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(k: int, d: int, apart: float) -> GaussianMixture:
    """k components of full covariance, their means so many standard deviations apart."""
    g = seeded(SEED)
    root = torch.randn(k, d, d, generator=g, dtype=torch.float64) / d**0.5
    return GaussianMixture(
        torch.rand(k, generator=g) + 0.5, apart * torch.randn(k, d, generator=g).double(), root @ root.mT
    )


EXACT = {
    "Gaussian, D = 8": mixture(1, 8, 0.0),
    "3 components, D = 2, 1 apart": mixture(3, 2, 1.0),
    "3 components, D = 8, 1 apart": mixture(3, 8, 1.0),
    "3 components, D = 8, 4 apart": mixture(3, 8, 4.0),
    "10 components, D = 64, 2 apart": mixture(10, 64, 2.0),
    "8 modes on the line, 4 apart": GaussianMixture(torch.ones(8), 4.0 * torch.arange(8.0)[:, None].double(), 1.0),
}


def covered(
    model: ScoreModel, x: Tensor, sigma: float, vary: Tensor | None = None
) -> tuple[Estimate, Estimate, Estimate]:
    """Share of the coordinates of x inside the band, (x − mean)² over the stated variance, and what was removed."""
    kernel = Gaussian(sigma)
    found = posterior(model, kernel.sample(x, generator=seeded(1)), kernel)
    vary = torch.ones_like(x[0], dtype=torch.bool) if vary is None else vary
    off, std = ((v.flatten(1)[:, vary.flatten()]) for v in ((x - found.mean).abs(), found.std))
    inside = (off <= HALF * std).double().mean(1)
    variance = std.square().mean()
    return Estimate.mean_of(inside), Estimate.mean_of(off.square().mean(1) / variance), Estimate.mean_of(found.removed)


def exact_rows() -> Iterator[list[str]]:
    for name, oracle in EXACT.items():
        x = oracle.sample(N, generator=seeded(2))
        for relative in RELATIVE:
            sigma = relative * oracle.reference.data_scale.item()
            inside, ratio, _ = covered(oracle, x, sigma)
            yield [name, f"{sigma:.3g}", percent(inside), str(ratio)]
        print(name, flush=True)


def digits_rows() -> Iterator[list[str]]:
    rows = load_digits().data[np.random.default_rng(SEED).permutation(1797)]
    train, test = rows[:1437], rows[1437:]
    for energy in (False, True):
        est = ScoreDensity(random_state=SEED, energy=energy, verbose=False).fit(train)
        x, vary = est.units_.to_model(test), torch.from_numpy(train.std(0) > 0)
        for sigma in np.geomspace(est.levels_.sigma_min, est.levels_.sigma_max, 6):
            inside, ratio, removed = covered(est.model_, x, float(sigma), vary)
            best = kept(est.history_)
            loss = f"{best.held_out:.4f} ± {best.held_out_stderr:.1g}"
            kind = f"{'energy' if energy else 'free-form'}, held-out loss {loss}"
            yield [kind, f"{sigma:.3g}", percent(inside), str(ratio), percent(removed)]
        print(f"digits, energy={energy}", flush=True)


def percent(share: Estimate) -> str:
    return f"{100 * share.value:.1f} ± {100 * share.stderr:.1g}"


def main() -> None:
    torch.set_num_threads(1)
    exact, digits = list(exact_rows()), list(digits_rows())
    off = [abs(float(row[2].split()[0]) - 100 * LEVEL) for row in exact]
    heads = ["σ", f"covered by ±{HALF:.3f} standard deviations, %", "(x − mean)² over the variance"]
    body = f"""{N:,} draws each; standard errors over rows. The variance is right for all; the band for a Gaussian
posterior: of a flat one, as with eight modes on the line under wide noise, ±{HALF:.3f} standard deviations hold 95 %.

{table(["exact model", *heads], exact)}

The largest distance from {LEVEL:.0%} is {max(off):.1f} points.

Digits (8 × 8 pixels, 0 to 16), {1797 - 1437} held-out rows, pixels that vary; default fits on 1437 rows. Removed:
negative eigenvalues of the model's own covariance, as a share of all its eigenvalues' sizes.

{table(["model", *heads, "removed, %"], digits)}
"""
    write("posterior", "Standard deviations of the clean datum", "python benchmarks/posterior.py", body)


if __name__ == "__main__":
    main()
