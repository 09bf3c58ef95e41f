"""The exact empirical score at the machine's limit: time, memory, digits, and against KeOps and scikit-learn.

Run: python benchmarks/empirical.py [THREADS] (one thread unless said; about 15 minutes with all peers, most of it
theirs). 256 queries, 50 000 rows, 64, 784 and 3072 coordinates, float32. Everything that is compared is measured in
turns in the same process, and the medians are compared. KeOps is measured where it can be imported.
"""

from __future__ import annotations

import importlib.util
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from common import table, write
from sklearn.neighbors import KernelDensity
from torch import Tensor

from gradlogp.kernels import Gaussian
from gradlogp.oracles import Empirical

N_QUERIES, N_ROWS, SIZES = 256, 50_000, (64, 784, 3072)
LEVELS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
ROUNDS = {64: 15, 784: 5, 3072: 3}


def normal(n: int, d: int, g: torch.Generator) -> Tensor:
    return torch.randn(n, d, generator=g)


def surface(n: int, d: int, g: torch.Generator) -> Tensor:
    """Rows near a surface of 8 dimensions, as images are."""
    return torch.tanh(torch.randn(n, 8, generator=g) @ torch.randn(8, d, generator=g) / 2)


def clusters(n: int, d: int, g: torch.Generator) -> Tensor:
    centres = torch.randn(100, d, generator=g)
    return centres[torch.randint(100, (n,), generator=g)] + 0.05 * torch.randn(n, d, generator=g)


KINDS = {"normal": normal, "surface": surface, "clusters": clusters}


def noisy(data: Tensor, n: int, sigma: float, g: torch.Generator) -> Tensor:
    x = data[torch.randint(len(data), (n,), generator=g)]
    return x + sigma * torch.randn(x.shape, generator=g)


def in_turns(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each job, in ms; one call before, then in turns.

    On one thread it is that thread's own time, which other programs on the machine lengthen less.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            start = clock()
            job()
            if turn:
                times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(t) for name, t in times.items()}


def products(data: Tensor, x: Tensor) -> dict[str, Callable[[], object]]:
    """The yardstick, whole and in blocks of 1024 rows, and torch's fused attention with the same bias."""
    weights = torch.rand(len(x), len(data))
    parts = list(zip(data.split(1024), weights.split(1024, 1), strict=True))
    bias = -data.square().sum(1) / 2

    def fused() -> Tensor:
        q, k = x[None, None], data[None, None]
        return torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=bias[None, None, None], scale=1.0)

    return {
        "whole": lambda: (x @ data.T, weights @ data),
        "in blocks": lambda: [(x @ d.T, w @ d) for d, w in parts],
        "fused": fused,
    }


def speed() -> str:
    rows = []
    for d in SIZES:
        for kind, draw in KINDS.items():
            g = torch.Generator().manual_seed(0)
            data = draw(N_ROWS, d, g)
            model, jobs = Empirical(data), products(data, noisy(data, N_QUERIES, 1.0, g))
            for sigma in LEVELS:
                x, kernel = noisy(data, N_QUERIES, sigma, g), Gaussian(sigma)
                jobs[f"score {sigma}"] = lambda m=model, x=x, k=kernel: m.score(x, k)
            took = in_turns(jobs, ROUNDS[d])
            whole, parts = took["whole"], took["in blocks"]
            times = [took["fused"], *(took[f"score {s}"] for s in LEVELS)]
            cells = [f"{t / whole:.2f} / {t / parts:.2f}" for t in times]
            cells = [f"**{c}**" if t > 1.3 * whole else c for c, t in zip(cells, times, strict=True)]
            rows.append([d, kind, f"{whole:.0f} / {parts:.0f}", *cells])
            print(rows[-1], flush=True)
    head = ["D", "data", "two products (ms)", "fused attention", *(f"σ = {s}" for s in LEVELS)]
    return table(head, rows)


def brute_force(x: Tensor, data: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """log p_σ and its score by differences in float64."""
    log_prob, score = [], []
    for row in x.double():
        r = data.double() - row
        logits = -r.square().sum(1) / (2 * sigma**2)
        log_prob.append(torch.logsumexp(logits, 0))
        score.append(torch.softmax(logits, 0) @ r / sigma**2)
    log_z = math.log(len(data)) + x.shape[1] * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    return torch.stack(log_prob) - log_z, torch.stack(score)


def expanded(x: Tensor, data: Tensor, sigma: float) -> Tensor:
    """The score as it is usually written: softmax of the expanded square."""
    logits = (x @ data.T - data.square().sum(1) / 2) / sigma**2
    return (torch.softmax(logits, 1) @ data - x) / sigma**2


def largest(got: Tensor, want: Tensor) -> str:
    """The largest error of a row, relative to that row's size."""
    return f"{((got.double() - want).norm(dim=1) / want.norm(dim=1)).max().item():.1e}"


def digits() -> str:
    kinds = {**KINDS, "normal + 1000": lambda n, d, g: 1000 + torch.randn(n, d, generator=g)}
    rows = []
    for d in (2, 64, 784):
        for kind, draw in kinds.items():
            for sigma in (1e-3, 0.01, 0.1, 1.0, 10.0):
                g = torch.Generator().manual_seed(1)
                data = draw(5000, d, g)
                x = noisy(data, 32, sigma, g)
                log_prob, score = brute_force(x, data, sigma)
                got = Empirical(data).log_prob_and_score(x, Gaussian(sigma))
                double = Empirical(data.double()).score(x.double(), Gaussian(sigma))
                off = ((got[0].double() - log_prob).abs() / (log_prob.abs() + d)).max().item()
                plain = largest(expanded(x, data, sigma), score)
                rows.append([d, kind, sigma, largest(got[1], score), plain, f"{off:.1e}", largest(double, score)])
    head = ["D", "data", "σ", "score, float32", "plain softmax, float32", "log p, float32", "score, float64"]
    return table(head, rows)


MEMORY = """
import sys
import numpy as np, torch
from gradlogp.kernels import Gaussian
from gradlogp.oracles import Empirical
torch.set_num_threads(int(sys.argv[3]))
def peak():  # kB; not ru_maxrss, in which the parent's peak lives on
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
rows = np.load(sys.argv[1], mmap_mode="r")
if sys.argv[2] == "tensor":
    rows = torch.from_numpy(np.fromfile(sys.argv[1], np.float32, offset=128).reshape(-1, 64))
x = torch.randn(256, 64)
torch.mm(x, x.T)
before = peak()
model = Empirical(rows)
model.score(x, Gaussian(float(sys.argv[4])))
print((peak() - before) / 1024)
"""


def memory() -> str:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        block = np.random.default_rng(0).normal(size=(10_000, 64)).astype(np.float32)
        file = np.lib.format.open_memmap(path, "w+", np.float32, (1_000_000, 64))
        for i in range(100):
            file[i * 10_000 : (i + 1) * 10_000] = np.roll(block, i, 1) + 0.01 * i
        file.flush()
        del file
        for kind in ("tensor", "file"):
            for sigma in (0.1, 1.0, 10.0):
                command = [sys.executable, "-c", MEMORY, str(path), kind, str(torch.get_num_threads()), str(sigma)]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                rows.append([kind, sigma, f"{float(out):.1f}"])
    return table(["rows are in a", "σ", "peak memory more than before (MB)"], rows)


def keops(data: Tensor, x: Tensor, sigma: float) -> dict[str, Callable[[], object]]:
    """Squared distances of symbolic matrices, reduced by softmax and by log-sum-exp; nothing where it is missing."""
    if importlib.util.find_spec("pykeops") is None:
        return {}
    from pykeops.torch import LazyTensor

    x_i, x_j = LazyTensor(x[:, None, :]), LazyTensor(data[None])

    def logits() -> LazyTensor:
        return -x_i.sqdist(x_j) / (2 * sigma**2)

    return {
        "KeOps, score": lambda: (logits().sumsoftmaxweight(x_j, dim=1) - x) / sigma**2,
        "KeOps, log p": lambda: logits().logsumexp(dim=1),
    }


def peers(sigma: float = 1.0) -> str:
    rows, missing = [], importlib.util.find_spec("pykeops") is None
    for d in SIZES:
        g = torch.Generator().manual_seed(0)
        data = normal(N_ROWS, d, g)
        x, kernel, model = noisy(data, N_QUERIES, sigma, g), Gaussian(sigma), Empirical(data)
        forest = KernelDensity(bandwidth=sigma).fit(data.numpy())
        ours = {
            "score": lambda m=model, x=x, k=kernel: m.score(x, k),
            "log p": lambda m=model, x=x, k=kernel: m.log_prob(x, k),
        }
        theirs = {**keops(data, x, sigma), "scikit-learn, log p": lambda f=forest, x=x: f.score_samples(x.numpy())}
        took = in_turns({**ours, **theirs}, 3 if d == 64 else 1)
        for name in theirs:
            own = took[name.split(", ")[1]]
            rows.append([d, name, f"{took[name]:.0f}", f"{own:.0f}", f"{took[name] / own:.1f}"])
            print(rows[-1], flush=True)
    note = "KeOps is not installed here, so it was not measured." if missing else f"KeOps {version('pykeops')}."
    return table(["D", "peer", "ms", "gradlogp (ms)", "times as long"], rows) + f"\n\n{note}"


def main() -> None:
    threads = sys.argv[1] if len(sys.argv) > 1 else "1"
    os.environ["OMP_NUM_THREADS"] = threads
    torch.set_num_threads(int(threads))
    start = time.perf_counter()
    load = os.getloadavg()[0]
    sections = {
        "Time of a score, in units of the two matrix products": speed(),
        "Memory at 1 000 000 × 64, 256 queries": memory(),
        "Largest relative error of a score, and of log p against |log p| + D": digits(),
        "Peers, normal data, σ = 1": peers(),
    }
    notes = (
        f"{N_QUERIES} queries of {N_ROWS} rows, float32; medians of the time of a thread, measured in turns. The\n"
        "yardstick is the two products x Xᵀ and w X, taken whole / in blocks of 1024 rows that stay in the cache.\n"
        "Above 1.3 of the whole ones is **bold**. Where few rows count only the first product is needed; where\n"
        "rounding could show, pairs are computed again from their differences: dear where hundreds of rows lie about\n"
        "as near as the nearest and σ is small beside the data's scale (clusters). Fused attention is torch's, at\n"
        "σ = 1; it gives neither log p nor digits at small σ.\n\n"
        f"Load of the machine at the start: {load:.1f}; in all {time.perf_counter() - start:.0f} s."
    )
    body = notes + "".join(f"\n\n## {title}\n\n{text}" for title, text in sections.items())
    write(
        "empirical",
        "The exact empirical score: time, memory, digits",
        f"python benchmarks/empirical.py {threads}",
        body,
    )


if __name__ == "__main__":
    main()
