"""Every sampler with any model and process: a step, a grid and one loop; the default is fitted to the model."""

import torch

from gradlogp import kernels, oracles, processes, samplers

g = torch.Generator().manual_seed(0)
angle = torch.arange(8) * torch.pi / 4
data = oracles.GaussianMixture(torch.ones(8), 2 * torch.stack([angle.cos(), angle.sin()], 1), 0.01)
start = kernels.Gaussian(80.0).sample(data.sample(1000, generator=g), generator=g)  # the same start for all

ends = {"sigma_max": 80.0, "sigma_min": 0.002}
exact = samplers.sample(data, start, 400, **ends)
print("what the default says of itself:", samplers.calibrate(data, 10, **ends))
for name, step, n_steps in (
    ("default", None, 10),
    ("reference-exact, order 2", samplers.ReferenceExact(data.reference, order=2), 10),
    ("DPM-Solver++ 2M", samplers.DPMSolverPP2M(), 10),
    ("Heun", samplers.heun, 5),
):
    grid = None if step is None else samplers.karras
    x = samplers.sample(data, start, n_steps, step=step, grid=grid, **ends)
    print(f"{name}: 10 calls, root mean square distance to the exact flow {(x - exact).square().mean().sqrt():.4f}")

vp = processes.VP(beta_min=0.1, beta_max=20.0)  # the same flow seen through another process: x_t = alpha·x + sigma·z
high = vp.ratio(1.0).item()
x = samplers.sample(data, 1000, 50, step=samplers.Ancestral(), grid=samplers.time_uniform(vp), process=vp,
                    sigma_max=high, sigma_min=0.01, generator=g)  # fmt: skip
print("ancestral sampling of a VP process: mean distance from the centre", x.norm(dim=1).mean().item())
