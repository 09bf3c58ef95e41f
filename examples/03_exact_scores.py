"""An exact density is a model: sample it with the sampler, and check a loss of your own against it."""

import torch

from gradlogp import diagnostics, kernels, objectives, oracles, samplers

g = torch.Generator().manual_seed(0)
exact = oracles.GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0.1, 0.2])
)

x = samplers.sample(exact, 5_000, n_steps=40, generator=g)
print("mean of the samples", *(diagnostics.Estimate.mean_of(c) for c in x.T), "exact", exact.mean.tolist())

kernel = kernels.Gaussian(0.5)
loss = objectives.DenoisingScoreMatching(n_noise=4, antithetic=True)(
    exact, exact.sample(5_000, generator=g), kernel, generator=g
)
print("J_DSM of the exact score: the floor, which no model can beat:", diagnostics.Estimate.mean_of(loss))
print(diagnostics.self_check(exact, exact.sample(5_000, generator=g), kernel, generator=g))
