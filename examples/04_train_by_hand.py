"""Train on tensors of any event shape with the parts: a reference, a network, noise levels, a generator of records."""

import torch
from sklearn.datasets import load_digits

from gradlogp import models, networks, samplers, training

g = torch.Generator().manual_seed(0)
x = torch.tensor(load_digits().images[:, None] / 8 - 1, dtype=torch.float32)  # (N, 1, 8, 8)
train, held_out = x[:1500], x[1500:]

reference = models.MarginalReference.of_data(train)
model = models.Preconditioned(networks.ResidualMLP((1, 8, 8), width=128, depth=2, dropout=0.4), reference)
levels = training.NoiseLevels.of_data(reference.gaussian, smallest=1.0)
recipe = training.Recipe(n_steps=150, evaluate_every=50)
for record in training.train(model, train, held_out, levels=levels, recipe=recipe, generator=g):
    print(f"step {record.step}: held-out loss {record.held_out:.4f} ± {record.held_out_stderr:.4f}")

print(samplers.sample(model, 4, n_steps=16, sigma_max=levels.sigma_max, sigma_min=levels.sigma_min, generator=g).shape)
