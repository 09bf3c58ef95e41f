"""The rows of the README's table on auto-encoders, energies, the Stein test, modes and posteriors; see trust.py."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor

from gradlogp import diagnostics, models, networks, objectives, oracles, samplers
from gradlogp.kernels import Gaussian

F64 = torch.float64
N_AUTOENCODERS, N_TESTS = 200, 500

Row = list[str]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relative(got: Tensor, want: Tensor) -> float:
    """Largest difference, in units of the largest value."""
    return ((got.double() - want).abs().max() / want.abs().max()).item()


def rows_of_energies() -> list[Row]:
    return [*autoencoder_rows(), *energy_rows(), posterior_row(), modes_row(), *stein_rows()]


def _autoencoder(seed: int, dtype: torch.dtype) -> tuple[models.DenoisingAutoencoder, Tensor]:
    """Of random parameters, size and σ from 0.05 to 20, and rows."""
    g = seeded(seed)
    hidden, d = (int(torch.randint(1, 40, (), generator=g)) for _ in range(2))
    sigma = 0.05 * 400 ** torch.rand((), generator=g).item()
    W, b, c = (torch.randn(s, generator=g, dtype=F64).to(dtype) for s in ((hidden, d), (hidden,), (d,)))
    return models.DenoisingAutoencoder(W, b, c, sigma), torch.randn(20, d, generator=g, dtype=F64).to(dtype)


def autoencoder_rows() -> list[Row]:
    identity, slope = ([0.0, 0.0] for _ in range(2))
    for i, dtype in enumerate((F64, torch.float32)):
        for seed in range(N_AUTOENCODERS):
            m, x = _autoencoder(seed, dtype)
            with torch.no_grad():
                dsm = objectives.DenoisingScoreMatching()(m, x, m.kernel, seeded(seed))
                dae = objectives.ReconstructionError()(m, x, m.kernel, seeded(seed))
            identity[i] = max(identity[i], (dae / (2 * m.sigma**4 * dsm) - 1).abs().max().item())
            at = x.clone().requires_grad_()
            (autograd,) = torch.autograd.grad(-m.energy(at).sum(), at)
            slope[i] = max(slope[i], relative(m.score(x).detach(), autograd.double()))
    count = f"{N_AUTOENCODERS} random auto-encoders"
    return [
        [f"J_DAE = 2σ⁴·J_DSM, row by row, {count}", *(f"{v:.0e}" for v in identity)],
        ["their scores against autograd of their energies", *(f"{v:.0e}" for v in slope)],
    ]


def energy_rows() -> list[Row]:
    """A potential of random weights on a Gaussian, in 8 dimensions at levels from 0.1 to 10."""
    found, curls = [], []
    for dtype in (F64, torch.float32):
        torch.manual_seed(0)
        network = networks.Potential((8,), width=32, depth=2).to(dtype)
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.3)
        x = torch.randn(200, 8, generator=seeded(0), dtype=F64).to(dtype)
        m = models.EnergyModel(network, models.GaussianReference.of_data(x)).to(dtype)
        worst = 0.0
        for sigma in (0.1, 1.0, 10.0):
            at = (x + sigma).requires_grad_()
            (autograd,) = torch.autograd.grad(-m.energy(at, Gaussian(sigma)).sum(), at)
            worst = max(worst, relative(m.score(at.detach(), Gaussian(sigma)).detach(), autograd.double()))
        found.append(worst)
        levels = diagnostics.curl(m, x, [Gaussian(s) for s in (0.1, 1.0, 10.0)], generator=seeded(1)).levels
        curls.append(max(level.value.value for level in levels))
    return [
        ["score of an energy model against autograd of its energy", *(f"{v:.0e}" for v in found)],
        ["its curl: antisymmetric share of the Jacobian's squared norm", *(f"{v:.0e}" for v in curls)],
    ]


def _mixture() -> oracles.GaussianMixture:
    g = seeded(3)
    root = torch.randn(4, 3, 3, generator=g, dtype=F64) / 2
    means = 2.5 * torch.randn(4, 3, generator=g, dtype=F64)
    return oracles.GaussianMixture(torch.rand(4, generator=g) + 0.5, means, root @ root.mT + 0.05 * torch.eye(3))


def posterior_row() -> Row:
    """From the score alone, by Tweedie's formulas, against the closed form over components."""
    oracle, k = _mixture(), Gaussian(0.6, alpha=0.8)
    x_t = k.sample(oracle.sample(300, generator=seeded(4)), generator=seeded(5))
    exact = oracle.posterior_covariance(x_t, k)
    errors = [
        relative(models.posterior_covariance(models.ScoreFunction(oracle.score), x, k)[0], exact)
        for x in (x_t, x_t.float())
    ]
    return ["posterior covariance of a mixture from its score, against the closed form", *(f"{v:.0e}" for v in errors)]


def modes_row() -> Row:
    """Modes of a mixture against SciPy's optimiser on SciPy's density, in units of σ."""
    oracle, sigma = _mixture(), 0.4
    weights = oracle.log_weights.exp().numpy()
    covariances = [
        (v * s) @ v.T + sigma**2 * np.eye(3)
        for v, s in zip(oracle.vectors.numpy(), oracle.variances.numpy(), strict=True)
    ]
    parts = [stats.multivariate_normal(m, c) for m, c in zip(oracle.means.numpy(), covariances, strict=True)]

    def energy(x: np.ndarray) -> float:
        return -np.logaddexp.reduce([math.log(w) + p.logpdf(x) for w, p in zip(weights, parts, strict=True)])

    options = {"xatol": 1e-11, "fatol": 1e-15, "maxiter": 10_000}
    found = samplers.modes(oracle, oracle.sample(500, generator=seeded(6)), Gaussian(sigma))
    ends = [optimize.minimize(energy, m, method="Nelder-Mead", options=options).x for m in found.points.numpy()]
    worst = max(np.linalg.norm(found.points[i].numpy() - end) for i, end in enumerate(ends)) / sigma
    return [f"{len(ends)} modes of a mixture against SciPy's optimiser, in units of σ", f"{worst:.0e}", ""]


def stein_rows() -> list[Row]:
    """P-values under the null over seeds, and against a shift of 0.3 standard deviations."""
    oracle, k = _mixture(), Gaussian(0.2)
    shift = 0.3 * torch.from_numpy(np.sqrt(np.diag(oracle.covariance.numpy())))
    null, moved = [], []
    for seed in range(N_TESTS):
        x = oracle.sample(500, generator=seeded(10_000 + seed))
        null.append(diagnostics.stein_test(oracle, x, k, generator=seeded(seed)).p_value.value)
        if seed < 100:
            moved.append(diagnostics.stein_test(oracle, x + shift, k, generator=seeded(seed)).p_value.value < 0.05)
    uniform = stats.kstest(null, "uniform").pvalue
    return [
        [
            f"Stein test, right score, {N_TESTS} samples of 500: Kolmogorov–Smirnov p of its p-values",
            f"{uniform:.2f}",
            "",
        ],
        ["the same samples shifted by 0.3 standard deviations: found at 5 % in", f"{np.mean(moved):.0%} of 100", ""],
    ]
