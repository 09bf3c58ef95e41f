"""J_ESM = J_DSM + C for a kernel that is not Gaussian, and a kernel for which it fails."""

import torch

from gradlogp import InputError, diagnostics, kernels, models, oracles

g = torch.Generator().manual_seed(0)
data = oracles.Quadrature(torch.distributions.Gamma(2.0, 1.0))  # any density on the line
model = models.GaussianReference.of_data(data.sample(5_000, generator=g))  # any score model
kernel = kernels.Additive(torch.distributions.Laplace(0.0, 0.4))  # any noise with a density gradient

print(diagnostics.equivalence(model, data, kernel, 4_000, generator=g))
try:
    kernels.Additive(torch.distributions.Uniform(-1.0, 1.0))
except InputError as error:
    print(error)
