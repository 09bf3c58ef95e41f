"""What a step of training costs beside the bare loop that does the same work: CPU time, one thread.

The bare loop draws rows, levels and noise, preconditions as EDM does, and takes a clipped step of fused AdamW and of
the running average. Ours are the same network on the Gaussian with the plain target, and the default: on the
marginals, with the stable target. Contenders alternate; what is told is the median over rounds.

The second table is of the default: the share of a step in each part, the rest being what is around them.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from common import table, write
from torch import Tensor, nn

from gradlogp.estimators.building import FEW_COORDINATES
from gradlogp.kernels import Gaussian
from gradlogp.models import GaussianReference, MarginalReference, Preconditioned, Reference
from gradlogp.networks import ResidualMLP
from gradlogp.objectives import DenoisingScoreMatching
from gradlogp.training import Average, NoiseLevels, Recipe, WeightedLoss, loop
from gradlogp.training.adamw import AdamW

ROUNDS, N_STEPS, N_ROWS = 15, 5, 5000
Step = Callable[[], object]
PARTS = {
    "levels and noise": [(NoiseLevels, "draw"), (Gaussian, "sample")],
    "reference": [(MarginalReference, "score")],
    "network": [(ResidualMLP, "forward")],
    "target": [(DenoisingScoreMatching, "_target")],
    "backward": [(Tensor, "backward")],
    "clip, optimizer, average": [(nn.utils, "clip_grad_norm_"), (AdamW, "step"), (Average, "update")],
}


class EachStep(Recipe):
    """A recipe of which the loop stops after each step."""

    def next_look(self, step: int) -> int:
        """The next one."""
        return step + 1


def rows(d: int, kind: str) -> Tensor:
    """Normal columns, one of them folded; or grey levels, −1 to 1 in steps of 1/8, with eight directions in common."""
    g = torch.Generator().manual_seed(0)
    if kind == "pixels":
        common = torch.randn(N_ROWS, 8, generator=g) @ torch.randn(8, d, generator=g)
        return (8 + 2 * common + torch.randn(N_ROWS, d, generator=g)).round().clamp(0, 16) / 8 - 1
    x = torch.randn(N_ROWS, d, generator=g)
    x[:, 0] = x[:, 0].abs()
    return x


def network(d: int) -> ResidualMLP:
    """The default one."""
    return ResidualMLP((d,), width=128 if d < FEW_COORDINATES else 256, depth=3)


def bare(x: Tensor, b: int) -> Step:
    """The loop as one would write it for this network alone."""
    net, g = network(x.shape[1]), torch.Generator().manual_seed(0)
    params = list(net.parameters())
    average = [p.detach().clone() for p in params]
    optimiser = torch.optim.AdamW(params, lr=1e-3, fused=True)

    def step() -> None:
        clean = x[torch.randint(len(x), (b,), generator=g)]
        sigma = torch.exp(torch.randn(b, 1, generator=g) * 1.2 - 0.7)
        x_t = clean + sigma * torch.randn(clean.shape, generator=g)
        c_in = 1 / (1 + sigma**2).sqrt()
        denoised = c_in**2 * x_t + sigma * c_in * net(c_in * x_t, sigma.log().squeeze(1))
        loss = ((denoised - clean) ** 2).sum(1) * ((1 + sigma**2) / sigma**2).squeeze(1)
        optimiser.zero_grad(set_to_none=True)
        loss.mean().backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        torch._foreach_lerp_(average, [p.detach() for p in params], 0.001)

    return step


def ours(x: Tensor, b: int, reference: Reference, references: int) -> Step:
    """A step of :func:`gradlogp.training.train`, without looks."""
    model, g = Preconditioned(network(x.shape[1]), reference), torch.Generator().manual_seed(0)
    recipe = EachStep(batch_size=b, evaluate_every=1)
    loss = WeightedLoss(DenoisingScoreMatching(references=references), model.reference)
    levels = NoiseLevels(0.02, 8.0, -0.7, 1.2)
    steps = loop._steps(model, x, loss, levels, recipe, Average(model, recipe.ema), g)
    return lambda: next(steps)


def measured(contenders: list[Step]) -> list[float]:
    """Milliseconds a step of each."""
    for step in contenders:
        for _ in range(3):
            step()
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(ROUNDS):
        for step, seen in zip(contenders, times, strict=True):
            start = time.process_time()
            for _ in range(N_STEPS):
                step()
            seen.append(1e3 * (time.process_time() - start) / N_STEPS)
    return [statistics.median(seen) for seen in times]


def shares(step: Step) -> list[str]:
    """The share of each of PARTS in a step, and of the rest, in percent."""
    spent: Counter[str] = Counter()

    def timed(name: str, f: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            out = f(*args, **options)
            spent[name] += time.process_time() - start
            return out

        return call

    with ExitStack() as patches:
        for name, places in PARTS.items():
            for owner, attribute in places:
                patches.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        start = time.process_time()
        for _ in range(ROUNDS * N_STEPS):
            step()
        total = time.process_time() - start
    each = [spent[name] / total for name in PARTS]
    return [f"{100 * share:.0f}" for share in (*each, 1 - sum(each))]


def main() -> None:
    """Time all sizes and write the tables."""
    torch.set_num_threads(1)
    out, parts = [], []
    for d, kind in [(2, "normal"), (13, "normal"), (43, "normal"), (43, "pixels"), (256, "pixels"), (784, "pixels")]:
        x, b = rows(d, kind), 512 if d < FEW_COORDINATES else 256
        marginal, gaussian = MarginalReference.of_data(x), GaussianReference.of_data(x, fade=1.0)
        default = ours(x, b, marginal, loop.references(x, b))
        ms = measured([bare(x, b), ours(x, b, gaussian, 1), ours(x, b, marginal, 1), default])
        parts.append([d, kind, *shares(default)])
        ratios = [f"{a / c:.2f}" for a, c in ((ms[1], ms[0]), (ms[3], ms[0]), (ms[2], ms[1]), (ms[3], ms[1]))]
        out.append([d, kind, b, *(f"{t:.1f}" for t in ms), *ratios])
    header = ["columns", "kind", "rows a step", "bare, ms", "(a) Gaussian, plain target", "marginals, plain target"]
    header += ["(b) marginals, stable target", "(a) / bare", "(b) / bare", "marginals / Gaussian", "(b) / (a)"]
    text = f"{__doc__}\nMedians of {ROUNDS} rounds of {N_STEPS} steps.\n\n{table(header, out)}\n\n"
    text += f"Percent of a step:\n\n{table(['columns', 'kind', *PARTS, 'rest'], parts)}"
    write("step", "A step of training beside the bare loop", "python benchmarks/step.py", text)


if __name__ == "__main__":
    main()
