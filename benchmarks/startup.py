"""How long it takes to start: wall time of whole processes, median of 7, beside ``import torch``.

Processes of all kinds alternate. The model has 13 columns, and is fitted first; what sampling takes beyond starting is
in its line too: it fits the sampler, and draws 10 rows.

    python benchmarks/startup.py  # or --src BEFORE/src src, to compare two versions
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import table, write
from sklearn.datasets import load_wine

ROUNDS = 7
RUN = "import sys; from gradlogp.cli import main; sys.exit(main())"
COMMANDS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import gradlogp": ["-c", "import gradlogp"],
    "from gradlogp import ScoreDensity": ["-c", "from gradlogp import ScoreDensity"],
    "gradlogp --help": ["-c", RUN, "--help"],
    "gradlogp --version": ["-c", RUN, "--version"],
    "gradlogp ftt (a mistake)": ["-c", RUN, "ftt"],
    "gradlogp info model": ["-c", RUN, "info", "model"],
    "gradlogp sample model -n 10": ["-c", RUN, "sample", "model", "-n", "10", "--out", "new.csv"],
}


def seconds(argv: list[str], folder: str, src: Path) -> float:
    """Of one process."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(src), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *argv], cwd=folder, env=environment, capture_output=True, check=False)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    own = Path(__file__).parents[1] / "src"
    parser.add_argument("--src", type=Path, nargs="+", default=[own], help="folders of gradlogp to compare")
    sources = [src.resolve() for src in parser.parse_args().src]
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / str(i) for i in range(len(sources))]
        for folder, src in zip(folders, sources, strict=True):
            folder.mkdir()
            load_wine(as_frame=True).data.to_csv(folder / "wine.csv", index=False)
            seconds(["-c", RUN, "fit", "wine.csv", "--out", "model", "--steps", "50"], str(folder), src)
        for _ in range(ROUNDS):
            for name, argv in COMMANDS.items():
                for i, (folder, src) in enumerate(zip(folders, sources, strict=True)):
                    found.setdefault((name, i), []).append(seconds(argv, str(folder), src))
    which = ["s"] if len(sources) == 1 else ["before, s", "after, s"]
    rows = [
        [f"`{name}`", *(f"{statistics.median(found[name, i]):.2f}" for i in range(len(sources)))] for name in COMMANDS
    ]
    command = "python benchmarks/startup.py" + (" --src BEFORE/src src" if len(sources) > 1 else "")
    write("startup", "Start-up", command, f"Wall time, median of {ROUNDS}.\n\n{table(['process', *which], rows)}")


if __name__ == "__main__":
    main()
