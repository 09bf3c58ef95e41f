"""J_ESM = J_DSM + C over 6 kernels × 5 densities × 3 models.

Run: python benchmarks/equivalence.py (about 15 minutes).
"""

from __future__ import annotations

import math
import time

import torch
from common import table, write
from sklearn.datasets import load_digits, make_moons
from torch import distributions as td

from gradlogp import InputError, diagnostics, kernels, models, networks, oracles


def all_kernels() -> dict[str, kernels.Kernel]:
    two = td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.3, 0.7])), td.Normal(torch.tensor([-0.5, 0.3]), torch.tensor([0.3, 0.5]))
    )
    return {
        "Gaussian": kernels.Gaussian(0.5),
        "Laplace": kernels.Additive(td.Laplace(0.0, 0.4)),
        "Student t, 6": kernels.Additive(td.StudentT(6.0, 0.0, 0.4)),
        "logistic": kernels.Additive(kernels.Logistic(0.0, 0.3)),
        "gen. normal, 1.5": kernels.Additive(kernels.GeneralizedNormal(0.0, 0.7, 1.5)),
        "skew mixture": kernels.Additive(two),
    }


def all_densities() -> dict[str, tuple[oracles.Oracle, int]]:
    """Each with how many draws keep the standard errors small."""
    modes = td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.4, 0.6])), td.Normal(torch.tensor([-1.5, 1.0]), torch.tensor([0.3, 0.6]))
    )
    moons = torch.tensor(make_moons(200, noise=0.05, random_state=0)[0], dtype=torch.float32)
    digits = torch.tensor(load_digits().data[:300] / 8 - 1, dtype=torch.float32)
    return {
        "uniform": (oracles.Quadrature(td.Uniform(-1.0, 1.0)), 10_000),
        "gamma": (oracles.Quadrature(td.Gamma(2.0, 1.0)), 10_000),
        "two modes": (oracles.Quadrature(modes), 10_000),
        "200 atoms, D = 2": (oracles.Empirical(moons), 20_000),
        "300 digits, D = 64": (oracles.Empirical(digits), 4_000),
    }


def all_models(oracle: oracles.Oracle, g: torch.Generator) -> dict[str, models.ScoreModel]:
    """The best affine score, a random network, and a spoilt exact score."""
    affine = models.GaussianReference.of_data(oracle.sample(5_000, generator=g))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.ResidualMLP(affine.event_shape, width=64, depth=2)
        torch.nn.init.normal_(network.last.weight, std=0.2)
    spoilt = models.ScoreFunction(lambda x_t, k: 0.4 * oracle.score(x_t, k) + 0.1)
    return {"affine": affine, "network": models.Preconditioned(network, affine), "spoilt": spoilt}


def main() -> None:
    start, rows, worst, widest = time.perf_counter(), [], 0.0, 0.0
    for density, (oracle, n) in all_densities().items():
        g = torch.Generator().manual_seed(0)
        for name, model in all_models(oracle, g).items():
            for kernel, k in all_kernels().items():
                draws = 3 * n if kernel == "skew mixture" else n  # its scores vary most
                e = diagnostics.equivalence(model, oracle, k, draws, generator=g)
                share = max(e.j_esm.stderr, e.j_dsm.stderr, e.constant.stderr, e.residual.stderr) / e.j_dsm.value
                worst, widest = max(worst, abs(e.residual.z)), max(widest, share)
                rows.append(
                    [
                        density,
                        name,
                        kernel,
                        e.j_esm,
                        e.j_dsm,
                        e.constant,
                        e.residual,
                        f"{e.residual.z:.2f}",
                        f"{share:.2%}",
                    ]
                )
                print(*rows[-1], flush=True)
    n = len(rows)
    chance = 1 - math.erf(worst / math.sqrt(2))
    try:
        kernels.Additive(td.Uniform(-1.0, 1.0))
        refused = "NOT refused"
    except InputError as error:
        refused = f"refused: {error}"
    body = (
        f"{n} combinations; largest |residual| {worst:.2f} standard errors (by chance one of {n} exceeds that with "
        f"probability {1 - (1 - chance) ** n:.2f}); largest standard error {widest:.2%} of J_DSM; "
        f"{time.perf_counter() - start:.0f} s.\n\n"
        f"The uniform kernel is {refused}\n\n"
    )
    header = ["density", "model", "kernel", "J_ESM", "J_DSM", "C", "J_ESM − J_DSM − C", "z", "largest s.e. / J_DSM"]
    write("equivalence", "J_ESM = J_DSM + C", "python benchmarks/equivalence.py", body + table(header, rows))


if __name__ == "__main__":
    main()
