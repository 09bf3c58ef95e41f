"""What a sampler costs beside its network: 20 steps against 20 bare calls, and against k-diffusion's DPM++ 2M.

    pip install --no-deps -r benchmarks/peers.txt && python benchmarks/sampling_overhead.py

Without the peers, theirs is left out.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from common import table, write
from empirical import in_turns
from sampling import SIGMA_MAX, SIGMA_MIN, Counted
from sampling_peers import k_sampling
from sklearn.datasets import make_moons
from torch import Tensor, nn

from gradlogp import samplers
from gradlogp.kernels import Gaussian
from gradlogp.models import GaussianReference, Preconditioned, ScoreModel
from gradlogp.networks import ResidualMLP

N_STEPS, BATCH, ROUNDS = 20, 4096, 15
NETWORKS = ((64, 2), (128, 3), (256, 3))  # width, depth


def model(width: int, depth: int) -> Preconditioned:
    """A network in 2-D, not trained, but not zero."""
    torch.manual_seed(0)
    data = torch.from_numpy(make_moons(2000, noise=0.05, random_state=0)[0]).float()
    network = ResidualMLP((2,), width=width, depth=depth)
    nn.init.normal_(network.last.weight, std=0.1 / width**0.5)
    return Preconditioned(network, GaussianReference.of_data(data, fade=1.0)).eval()


def jobs(of: ScoreModel, x: Tensor) -> dict[str, Callable[[], object]]:
    """The bare calls at Karras' levels, ours, and k-diffusion's."""
    levels = torch.linspace(SIGMA_MAX ** (1 / 7), SIGMA_MIN ** (1 / 7), N_STEPS, dtype=torch.float64) ** 7

    def bare() -> None:
        with torch.no_grad():
            for sigma in levels:
                of.denoise(x, Gaussian(sigma))

    def ours() -> Tensor:
        return samplers.sample(of, x, n_steps=N_STEPS, sigma_max=SIGMA_MAX, sigma_min=SIGMA_MIN)

    found: dict[str, Callable[[], object]] = {"bare": bare, "ours": ours}
    if importlib.util.find_spec("k_diffusion"):
        k = k_sampling()
        sigmas = k.get_sigmas_karras(N_STEPS, SIGMA_MIN, SIGMA_MAX)

        def theirs() -> Tensor:
            return k.sample_dpmpp_2m(lambda y, sigma: of.denoise(y, Gaussian(sigma[0])), x, sigmas, disable=True)

        found["theirs"] = theirs
    return found


def first_use(width: int, depth: int, x: Tensor) -> float:
    """Time of the first use of a model, in ms, median of three models."""

    def once() -> float:
        of = model(width, depth)
        start = time.thread_time()
        samplers.sample(of, x, n_steps=N_STEPS, sigma_max=SIGMA_MAX, sigma_min=SIGMA_MIN)
        return 1e3 * (time.thread_time() - start)

    return statistics.median(once() for _ in range(3))


def row(width: int, depth: int) -> list[object]:
    of, x = model(width, depth), SIGMA_MAX * torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(0))
    took, first = in_turns(jobs(of, x), ROUNDS), first_use(width, depth, x)
    bare, own, theirs = took["bare"], took["ours"], took.get("theirs")
    step = [f"{bare / N_STEPS:.2f}", f"{own / N_STEPS:.2f}", "" if theirs is None else f"{theirs / N_STEPS:.2f}"]
    ratios = [f"{own / bare:.3f}", *(["", ""] if theirs is None else [f"{theirs / bare:.3f}", f"{own / theirs:.3f}"])]
    return [f"{width} × {depth}", calls(of, x), *step, *ratios, f"{first / bare:.2f}"]


def calls(of: ScoreModel, x: Tensor) -> int:
    """Made by a use of a model that is not its first."""
    counted = Counted(of)
    for _ in range(2):
        counted.calls = 0
        samplers.sample(counted, x, n_steps=N_STEPS, sigma_max=SIGMA_MAX, sigma_min=SIGMA_MIN)
    return counted.calls


def main() -> None:
    torch.set_num_threads(1)
    head = ["width × depth", "calls", "bare (ms a call)", "ours (ms a step)", "k-diffusion (ms a step)"]
    head += ["ours / bare", "k-diffusion / bare", "ours / k-diffusion", "first use / bare"]
    notes = (
        f"{N_STEPS} steps of {BATCH} rows in 2-D, float32, σ from {SIGMA_MAX:g} to {SIGMA_MIN:g}: `samplers.sample`,\n"
        f"as many bare calls of `model.denoise`, and k-diffusion's `sample_dpmpp_2m` with the same model. Medians of\n"
        f"{ROUNDS} rounds of the thread's own time, measured in turns. Ours is fitted to a model at its first use,\n"
        "which is in the last column alone (median of three models)."
    )
    body = notes + "\n\n" + table(head, [row(*size) for size in NETWORKS])
    title = "The default sampler's cost beside its network"
    write("sampling_overhead", title, "python benchmarks/sampling_overhead.py", body)


if __name__ == "__main__":
    main()
