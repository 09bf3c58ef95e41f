"""Attack files, models, parameters, command lines and runs, and count what is lost, wrong without a word or no message.

    python benchmarks/faults.py

All counts of failures should be 0.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

from common import table, write

PARTS = ("models", "files", "parameters", "commands", "runs")


def main() -> None:
    """Run all attacks, and write the table."""
    lines = []
    for part in PARTS:
        with tempfile.TemporaryDirectory() as folder:
            for name, tried, failed, note in importlib.import_module(f"faults_{part}").attack(Path(folder)):
                lines.append([part, name, tried, failed, note])
                print(lines[-1], flush=True)
    write("faults", "What attacks succeed", "python benchmarks/faults.py",
          table(["part", "attack", "tried", "failed", "note"], lines))  # fmt: skip


if __name__ == "__main__":
    main()
