"""What a default fit costs as rows and columns grow: processor time by phase, and memory above the data.

    python benchmarks/scale.py    # about 15 minutes, one thread

Rows are of three Gaussians with four common factors each, bent by a square and a sine, with a folded column; float32.
Memory is the peak of the process less what it held with the data made. Around training is all but that phase.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import table, write

from gradlogp import ScoreDensity
from gradlogp._progress import Phases

SIZES = [(10**3, 12), (10**4, 12), (10**5, 12), (10**6, 12), (10**4, 8), (10**4, 43), (10**4, 256), (10**4, 784)]
PARTS = {"The default": "auto", "The closed form alone": None}
CHUNK = 1000  # rows: what it takes to make them must not hide what the fit takes


def rows(n: int, d: int) -> np.ndarray:
    """As told above."""
    g = np.random.default_rng(0)
    means, factors = 3 * g.normal(size=(3, d)), g.normal(size=(3, 4, d))
    x = np.empty((n, d), np.float32)
    for part in np.split(x, range(CHUNK, n, CHUNK)):
        which, common = g.integers(3, size=len(part)), g.normal(size=(len(part), 4))
        common[:, 1] += common[:, 0] ** 2
        common[:, 3] += np.sin(3 * common[:, 2])
        part[:] = means[which] + np.einsum("nf,nfd->nd", common, factors[which]) + 0.5 * g.normal(size=part.shape)
        part[:, 0] = np.abs(part[:, 0])
    return x


def measure(n: int, d: int, network: str | None) -> dict[str, Any]:
    """One fit, in this process."""
    torch.set_num_threads(1)
    ScoreDensity(n_steps=1, verbose=False).fit(rows(50, 2))  # imports
    x, before = rows(n, d), _peak()
    est, phases = ScoreDensity(random_state=0, verbose=False, network=network), Phases("fit", shown=False)
    est._phases = phases
    with mock.patch("time.perf_counter", time.process_time), phases:
        est.fit(x)
    return {
        "phases": phases.seconds, "memory": _peak() - before, "data": x.nbytes / 1e6,
        "kept": est.kept_step_, "steps": est.history_[-1].step,
    }  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def line(n: int, d: int, title: str) -> list[str]:
    """What a process of its own measures."""
    command = [sys.executable, __file__, str(n), str(d), title]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    seconds = found["phases"]
    total, around = sum(seconds.values()), sum(seconds.values()) - seconds["training"]
    named = sorted(((s, name) for name, s in seconds.items() if name != "training"), reverse=True)
    return [
        f"{n:,} × {d}", f"{total:.1f}", f"{found['kept']} of {found['steps']}", f"{seconds['training']:.1f}",
        f"{around:.1f}", f"{around / total:.0%}", ", ".join(f"{name} {s:.1f}" for s, name in named if s >= 0.1),
        f"{found['memory']:.0f}", f"{found['data']:.0f}",
    ]  # fmt: skip


def main() -> None:
    """Measure each size, and write the tables."""
    if sys.argv[1:]:
        n, d, title = sys.argv[1:]
        print(json.dumps(measure(int(n), int(d), PARTS[title])))
        return
    header = ["rows × columns", "CPU s", "step kept", "training, s", "around it, s", "share", "of which, s"]
    header += ["memory, MB", "data, MB"]
    parts = []
    for title in PARTS:
        lines = []
        for n, d in SIZES:
            lines.append(line(n, d, title))
            print(*lines[-1], flush=True)
        parts.append(f"## {title}\n\n{table(header, lines)}")
    text = __doc__.split("one thread")[1].strip()
    write("scale", "Fits of many rows and columns", "python benchmarks/scale.py", "\n\n".join([text, *parts]))


if __name__ == "__main__":
    main()
