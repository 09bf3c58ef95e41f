"""Samplers' accuracy per network call on learnt models: digits and two moons.

    pip install --no-deps -r benchmarks/peers.txt && python benchmarks/sampling_learnt.py

Each method follows the probability flow of a trained network from the largest noise level of its training to the
smallest; its end points are compared with those of the network's own flow, followed in many small steps, and, by the
energy distance, with data that the network has not seen.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import sampling_peers
import torch
from common import energy_distance, table, write
from sampling import AVERAGED, CALLS, USUAL, Counted, mean
from sklearn.datasets import load_digits, make_moons
from torch import Tensor

from gradlogp import ScoreDensity, samplers
from gradlogp.kernels import Gaussian
from gradlogp.models import Preconditioned

N_STARTS, FINE = 1000, 640


@dataclass(frozen=True)
class Learnt:
    """A trained model, starts at its largest level, where its flow takes them, and data that it has not seen."""

    name: str
    model: Preconditioned
    sigma_max: float
    sigma_min: float
    starts: Tensor
    data: np.ndarray

    def denoised(self, x: Tensor) -> np.ndarray:
        """E[x | x_t] at the smallest level, as a user gets it."""
        with torch.no_grad():
            return self.model.denoise(x.float(), Gaussian(self.sigma_min)).double().numpy()


def learn(name: str, x: np.ndarray, x_test: np.ndarray) -> Learnt:
    est = ScoreDensity(random_state=0, verbose=False).fit(x)
    high, low = est.levels_.sigma_max, est.levels_.sigma_min
    g = torch.Generator().manual_seed(1)
    starts = est.model_.reference.sample_noisy(N_STARTS, Gaussian(high), generator=g)
    return Learnt(name, est.model_, high, low, starts, (x_test - est.units_.offset) / est.units_.scale)


def exact_end(of: Learnt) -> tuple[Tensor, float]:
    """The flow's end in float64 by Heun's method with 640 steps, and its distance from that with half as many."""
    model, x = copy.deepcopy(of.model).double(), of.starts.double()
    ends = [
        samplers.sample(model, x, n, sigma_max=of.sigma_max, sigma_min=of.sigma_min, step=samplers.heun)
        for n in (FINE, FINE // 2)
    ]
    return ends[0] + (ends[0] - ends[1]) / 3, (ends[0] - ends[1]).square().mean().sqrt().item()


def measured(of: Learnt, x: Tensor, end: Tensor) -> tuple[float, float, float]:
    """RMS and median distance a coordinate, and the energy distance of what is denoised to the data."""
    squares = (x.double() - end).square().mean(1)
    rms, median = squares.mean().sqrt().item(), squares.median().sqrt().item()
    if not math.isfinite(rms):
        return math.inf, math.inf, math.inf
    return rms, median, energy_distance(of.denoised(x), of.data)


def theirs(of: Learnt, run: sampling_peers.Run, ends: tuple[Tensor, Tensor]) -> np.ndarray:
    """Of a peer at each number of calls, ``(3, calls)``, by the nearer of the ends at σ_min and, denoised, at 0."""
    found = []
    for n in CALLS:
        model = Counted(of.model)
        with torch.no_grad():
            x = run(lambda y, sigma, m=model: m.denoise(y.float(), Gaussian(sigma)).to(y), of.starts, n)
        assert model.calls <= n, (model.calls, n)
        found.append(np.array([measured(of, x, end) for end in ends]).min(0))
    return np.array(found).T


def ours(of: Learnt, end: Tensor) -> np.ndarray:
    """The default at each number of calls, and what it says of its error."""
    found = []
    for n in CALLS:
        plan = samplers.calibrate(of.model, n, sigma_max=of.sigma_max, sigma_min=of.sigma_min)
        x = samplers.sample(of.model, of.starts, n, sigma_max=of.sigma_max, sigma_min=of.sigma_min)
        found.append([*measured(of, x, end), plan.accuracy.rms])
    return np.array(found).T


def section(of: Learnt) -> str:
    sampling_peers.SIGMA_MAX, sampling_peers.SIGMA_MIN = of.sigma_max, of.sigma_min
    end, error = exact_end(of)
    ends = (end, torch.from_numpy(of.denoised(end)))
    peers = {pair.name: theirs(of, pair.run, ends) for pair in sampling_peers.pairs()}
    own = ours(of, end)
    lines = []
    for i, measure in enumerate(("RMS", "median")):
        every = np.array([e[i] for e in peers.values()])
        single = min(peers, key=lambda name, i=i: mean(peers[name][i]))
        rows = {
            "best of all peers": every.min(0),
            f"best single: {single}": peers[single][i],
            USUAL: peers[USUAL][i],
            "**ours**": own[i],
            "ours / best of all peers": own[i] / every.min(0),
            "ours / best single": own[i] / peers[single][i],
            "ours / DPM++ 2M, Karras": own[i] / peers[USUAL][i],
        }
        lines += [[measure, name, *(f"{v:.3g}" for v in e), f"{mean(e):.3g}"] for name, e in rows.items()]
    lines.append(["RMS", "ours, as said by its plan", *(f"{v:.3g}" for v in own[3]), f"{mean(own[3]):.3g}"])
    for name, e in (("best of all peers", np.array([e[2] for e in peers.values()]).min(0)), (USUAL, peers[USUAL][2])):
        lines.append(["energy", name, *(f"{v:.4f}" for v in e), f"{e[:AVERAGED].mean():.4f}"])
    flow = energy_distance(of.denoised(end), of.data)
    lines.append(["energy", "**ours**", *(f"{v:.4f}" for v in own[2]), f"{own[2][:AVERAGED].mean():.4f}"])
    head = ["error", "method", *(f"{n} calls" for n in CALLS), "mean of 5 to 20"]
    about = (
        f"σ from {of.sigma_max:.4g} to {of.sigma_min:.4g}; {of.starts.shape[1]} columns; {len(of.data)} unseen rows."
        f" The flow's own ends are good to {error:.1g} (Heun, {FINE} steps against half as many, then extrapolated);"
        f" their energy distance to the unseen rows is {flow:.4f}. {len(peers)} pairs of peers."
    )
    return f"## {of.name}\n\n{about}\n\n{table(head, lines)}"


def main() -> None:
    torch.set_num_threads(1)
    x = load_digits().data / 8 - 1
    order = np.random.default_rng(0).permutation(len(x))
    digits = learn("digits", x[order[:1400]], x[order[1400:]])
    moons = learn("two moons", *(make_moons(4000, noise=0.05, random_state=s)[0] for s in (0, 1)))
    notes = (
        f"{N_STARTS} draws of the noisy Gaussian with the data's moments, float32, the same for all; `ScoreDensity`\n"
        "by default, random_state 0. Means over 5 to 20 calls are geometric for distances, plain for energy\n"
        "distances (squared, unbiased, of samples denoised at the smallest level, to unseen rows; lower is better,\n"
        "the flow's own is the aim). Peers as in `benchmarks/sampling.py`, with the range of the model's levels."
    )
    body = "\n\n".join([notes, section(digits), section(moons)])
    title = "Samplers: error per network call, with learnt models"
    write("sampling_learnt", title, "python benchmarks/sampling_learnt.py", body)


if __name__ == "__main__":
    main()
