"""How far is a score from the true one? A bracket from held-out rows alone, and the truth beside it."""

import torch

from gradlogp import diagnostics, kernels, models, oracles

generator = torch.Generator().manual_seed(0)
data = oracles.GaussianMixture([0.5, 0.5], torch.tensor([[-1.5, 0.0], [1.5, 0.5]]), 0.3)
train, test = data.sample(1000, generator=generator), data.sample(1000, generator=generator)
levels = [kernels.Gaussian(sigma) for sigma in (0.1, 0.3, 1.0, 3.0)]

affine = models.GaussianReference.of_data(train)  # the best affine score: wrong wherever the data are not Gaussian
bracket = diagnostics.score_error(affine, train, test, levels)  # no truth needed: held-out rows, and the training rows
truth = diagnostics.score_error(affine, data, test, levels)  # with the law known

print(bracket)
for known, exact in zip(bracket.levels, truth.levels, strict=True):
    low, high = known.interval
    error = exact.error.lower
    print(f"σ = {known.sigma:<4g} error {low:.3g} to {high:.3g} ({known.verdict}); in truth {error}")

print(diagnostics.compare(affine, data, test, levels))  # which model is better, and where
print(diagnostics.memorisation(oracles.Empirical(train), train, test, levels[:2]))  # the rows' own score: 1
