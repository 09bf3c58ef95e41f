"""Log-densities: the flow's value, the SDE's bound, entropy and outliers, beside exact answers."""

import numpy as np
import torch

from gradlogp import ScoreDensity, kernels, likelihood, oracles, processes

g = torch.Generator().manual_seed(0)
means = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.0, -2.0]]).double()
data = oracles.GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), means, 0.2)  # an exact score, as a model
x = kernels.Gaussian(0.01).sample(data.sample(500, generator=g), generator=g)
exact = data.log_prob(x, kernels.Gaussian(0.01))

found = likelihood.log_prob(data, x, sigma_min=0.01)
print(f"flow: largest error {(found.value - exact).abs().max():.1e} nats, stated {found.error.max():.1e}")

bound = likelihood.bound(data, x, processes.VP(), prior=data.reference, generator=g)
print(f"bound on the SDE's −log p: {bound.mean}, its exact value {-exact.mean():.4g}")
entropy = likelihood.entropy(data, x, sigma_min=0.01, generator=g)
print(f"entropy from denoising errors: {entropy} nats")

rows = data.sample(4000, generator=g).numpy()
est = ScoreDensity(n_steps=300, contamination=0.01, random_state=0, verbose=False).fit(rows)
unseen = data.sample(500, generator=g).numpy()
print(f"learnt: mean log-density of unseen rows {est.score(unseen):.3f}, exact {exact.mean():.3f}")
print("outliers are −1:", est.predict(np.array([[2.0, 1.0], [8.0, 8.0]])))
