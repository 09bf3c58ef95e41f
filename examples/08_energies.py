"""Energies and what a score is good for elsewhere: ratios of densities, a test of fit, modes, standard deviations."""

import torch
from sklearn.neural_network import MLPRegressor

from gradlogp import diagnostics, kernels, likelihood, models, networks, oracles, samplers, training

g = torch.Generator().manual_seed(0)
torch.manual_seed(0)
truth = oracles.GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[-2.0, 0.0], [2.0, 0.5], [0.0, 3.0]]), 0.3)
x, held_out, test = (truth.sample(n, generator=g) for n in (8000, 1000, 500))
kernel = kernels.Gaussian(0.5)

# An energy: a potential whose gradient is the score.
energy = models.EnergyModel(networks.Potential((2,), width=64, depth=2), models.GaussianReference.of_data(x))
for record in training.train(
    energy, x, held_out, levels=training.NoiseLevels(0.1, 6.0), recipe=training.Recipe(n_steps=500), generator=g
):
    print(f"step {record.step}: held-out loss {record.held_out:.4f} ± {record.held_out_stderr:.1g}")
x_t = kernel.sample(test, generator=g)
print(diagnostics.curl(energy, test, kernel, generator=g))
ratio = energy.energy(x_t[:250], kernel) - energy.energy(x_t[250:], kernel)
exact = truth.log_prob(x_t[250:], kernel) - truth.log_prob(x_t[:250], kernel)
print(f"log-density ratios of 250 pairs: median error {(ratio - exact).abs().median().item():.2g} nats")

# The same from a score alone: line integrals, and by how much a second path disagrees, which of an energy is nothing.
found = likelihood.log_density_difference(energy, x_t[:250], x_t[250:], kernel, generator=g)
error = (found.value - exact).abs().median().item()
print(f"by line integrals: {error:.2g}; quadrature and second path: {found.error.median().item():.1g}")

# Somebody else's denoiser is a score too: here a regressor of scikit-learn, trained from noisy to clean rows.
noisy = kernel.sample(x, generator=g)
regressor = MLPRegressor(hidden_layer_sizes=(64,), early_stopping=True, random_state=0).fit(noisy.numpy(), x.numpy())
other = models.from_denoiser(regressor.predict, kernel.sigma.item(), arrays=True)
for name, model in (("energy", energy), ("regressor", other)):
    print(f"{name}: {diagnostics.score_error(model, truth, test, [kernel], generator=g)}")
    print(f"    {diagnostics.stein_test(model, test, kernel, generator=g)}")

# Modes, and which row leads to which; chains started from data; the spread of the clean rows given the noisy ones.
print(samplers.modes(energy, x_t, kernel))
moved = samplers.langevin(energy, x_t, [kernel], 40, generator=g)
left = [f"{(v[:, 0] < -1).float().mean().item():.3f}" for v in (x_t, moved)]
print(f"chains from data: in the leftmost mode {left[0]} at the start, {left[1]} at the end")
posterior = models.posterior(energy, x_t, kernel)
inside = ((test - posterior.mean).abs() <= 1.645 * posterior.std).float().mean()
print(f"clean rows within ±1.645 standard deviations of their posterior mean: {inside:.3f}, nominally 0.9")
