"""What the studies share: where and with what they ran, a table in Markdown, and distances between samples."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Processor, threads, date and versions, in one line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    versions = ", ".join(f"{name} {version(name)}" for name in ("gradlogp", "torch", "numpy", "scikit-learn"))
    return (
        f"{model}, {torch.get_num_threads()} thread(s), Python {platform.python_version()}, {versions}, {date.today()}"
    )


def write(name: str, title: str, command: str, body: str) -> Path:
    """Write ``results/NAME.md`` and print it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.md"
    path.write_text(f"# {title}\n\nCommand: `{command}`  \nMachine: {machine()}\n\n{body.rstrip()}\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased 2E|a − b| − E|a − a'| − E|b − b'|; may be negative where the laws agree (Székely and Rizzo 2013)."""
    n, m = len(a), len(b)
    return float(2 * cdist(a, b).mean() - cdist(a, a).sum() / (n * (n - 1)) - cdist(b, b).sum() / (m * (m - 1)))


def forest_accuracy(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """Two-sample accuracy of a random forest: 100 trees, balanced classes, 5 folds; 0.5 where it cannot tell."""
    n = min(len(a), len(b))
    x, y = np.r_[a[:n], b[:n]], np.r_[np.zeros(n), np.ones(n)]
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(RandomForestClassifier(100, random_state=seed), x, y, cv=folds).mean())


def nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of each row of a to the nearest row of b."""
    return cdist(a, b).min(1)


def sliced_wasserstein_2(a: np.ndarray, b: np.ndarray, n_projections: int = 256, seed: int = 0) -> float:
    """√ of the mean over random directions of the squared 2-Wasserstein distance; equally many rows."""
    v = np.random.default_rng(seed).normal(size=(a.shape[1], n_projections))
    v /= np.linalg.norm(v, axis=0)
    return float(np.sqrt(((np.sort(a @ v, axis=0) - np.sort(b @ v, axis=0)) ** 2).mean()))
