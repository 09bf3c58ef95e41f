"""Every model that knows log p_σ up to a constant: its score is the gradient of that, under every kernel it takes."""

from __future__ import annotations

import pytest
import torch
from cases import F64
from torch import distributions as td

from gradlogp.kernels import Additive, Gaussian
from gradlogp.models import (
    DenoisingAutoencoder,
    EnergyModel,
    GaussianReference,
    MarginalReference,
    Preconditioned,
    ScoreFunction,
    from_denoiser,
)
from gradlogp.networks import Potential, ResidualMLP
from gradlogp.oracles import Empirical, GaussianMixture, Quadrature

GAUSSIAN = [
    Gaussian(0.4),
    Gaussian(0.2, alpha=0.5),
    Gaussian(torch.full((6,), 0.8, dtype=F64), torch.full((6,), 2.0, dtype=F64)),
]
SHIFTED = Additive(td.Normal(torch.tensor([0.2, -0.1], dtype=F64), torch.tensor([0.4, 0.8], dtype=F64)))


def rows(n, d=2, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def energy() -> EnergyModel:
    torch.manual_seed(0)
    network = Potential((2,), width=12, depth=1).double()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return EnergyModel(network, GaussianReference.of_data(rows(40), fade=0.7))


def autoencoder() -> DenoisingAutoencoder:
    return DenoisingAutoencoder(rows(9), rows(9, 1)[:, 0], rows(1)[0], 0.4)


MODELS = {
    "Gaussian": (lambda: GaussianReference.of_data(rows(40)), [*GAUSSIAN, SHIFTED]),
    "Gaussian, faded": (lambda: GaussianReference.of_data(rows(40), fade=0.5), [*GAUSSIAN, SHIFTED]),
    "Gaussian of rank one": (lambda: GaussianReference.of_data(rows(40) @ rows(2, 1) @ rows(1, 2, seed=3)), GAUSSIAN),
    "energy": (energy, [*GAUSSIAN, SHIFTED]),
    "auto-encoder": (autoencoder, [*GAUSSIAN[:2], Gaussian(torch.full((6,), 0.4, dtype=F64))]),
    "mixture": (lambda: GaussianMixture(torch.ones(3), rows(3), rows(3).square()), [*GAUSSIAN, SHIFTED]),
    "data set": (lambda: Empirical(rows(20)), [*GAUSSIAN, SHIFTED]),
    "quadrature": (
        lambda: Quadrature(td.Gamma(torch.tensor(2.0, dtype=F64), 1.0)),
        [Gaussian(0.4), Gaussian(0.2, 0.5)],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_score_is_the_gradient_by_central_differences(name):
    make, kernels = MODELS[name]
    model = make()
    d = 1 if name == "quadrature" else 2
    x_t, h = rows(6, d, seed=1).abs() if d == 1 else rows(6, seed=1), 1e-5
    for kernel in kernels:
        psi = model.score(x_t, kernel).detach()
        for j in range(d):
            step = torch.zeros(d, dtype=F64)
            step[j] = h
            ends = [model.unnormalised_log_prob(x_t + s * step, kernel).detach() for s in (1, -1)]
            torch.testing.assert_close((ends[0] - ends[1]) / (2 * h), psi[:, j], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MarginalReference.of_data(rows(40)),
        lambda: Preconditioned(ResidualMLP((2,)).double(), GaussianReference.of_data(rows(40))),
        lambda: ScoreFunction(lambda x, k: -x),
        lambda: from_denoiser(lambda x: 0.5 * x, 0.4),
        lambda: DenoisingAutoencoder(rows(9), rows(9, 1)[:, 0], rows(1)[0], 0.4, decoder=rows(2, 9)),
    ],
)
def test_a_score_that_is_not_known_to_be_a_gradient_has_none(make):
    assert make().unnormalised_log_prob(rows(6), Gaussian(0.4)) is None
