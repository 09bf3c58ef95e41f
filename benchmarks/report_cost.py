"""What a report costs beside the training. Run: python benchmarks/report_cost.py (about 3 minutes, one thread).

Digits (1797 × 64), four fifths fitted with the defaults and seed 0, the report on the other fifth with the training
rows given, written to a folder. Seconds are CPU seconds of one thread, so that a busy machine does not count; the part
of fit that measures its own score error is shown too. The target is a report within 10 % of the training.
"""

from __future__ import annotations

import tempfile
import time
from importlib import import_module
from pathlib import Path

import torch
from common import table, write
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gradlogp import ScoreDensity
from gradlogp.audit import page
from gradlogp.estimators import diagnosis

TARGET = 0.10
PICTURES = ("draw_score_error", "draw_learning", "draw_checks", "draw_samples", "draw_marginals")


class Clock:
    """CPU seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, module: object, name: str, part: str) -> None:
        """Count the time in a function of a module."""
        function = getattr(module, name)

        def watched(*args: object, **more: object) -> object:
            start = time.process_time()
            try:
                return function(*args, **more)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.process_time() - start

        setattr(module, name, watched)


def main() -> None:
    torch.set_num_threads(1)
    train, test = train_test_split(load_digits().data, test_size=0.2, random_state=0)
    clock = Clock()
    clock.watch(diagnosis, "held_out_error", "in fit: score error on its held-out rows")
    start = time.process_time()
    est = ScoreDensity(random_state=0, verbose=False).fit(train)
    fitted = time.process_time() - start
    in_fit = dict(clock.seconds)
    clock.seconds.clear()
    measuring = import_module("gradlogp.audit.measure")  # the function of the same name hides the module
    parts = {
        "score_error": "score error", "self_check": "self-check", "calibration": "calibration", "curl": "symmetry",
        "memorisation": "memorisation", "nearest_neighbours": "nearest neighbours", "_draw": "samples",
    }  # fmt: skip
    for name, part in parts.items():
        clock.watch(measuring, name, part)
    for name in PICTURES:
        clock.watch(page, name, "drawing")
    clock.watch(page, "png", "drawing")
    with tempfile.TemporaryDirectory() as folder:
        start, wall = time.process_time(), time.perf_counter()
        report = est.diagnose(test, train, out=folder)
        whole, wall = time.process_time() - start, time.perf_counter() - wall
        size = (Path(folder) / "report.html").stat().st_size
    shown = clock.seconds | {"the rest": whole - sum(clock.seconds.values())}
    rows = [(part, f"{s:.2f}", f"{100 * s / fitted:.1f} %") for part, s in shown.items()]
    rows += [("**the report**", f"**{whole:.2f}**", f"**{100 * whole / fitted:.1f} %**")]
    rows += [(part, f"{s:.2f}", f"{100 * s / fitted:.1f} %") for part, s in in_fit.items()]
    verdict = "within" if whole <= TARGET * fitted else "**missed**"
    body = (
        f"fit {fitted:.1f} s; the report {whole:.1f} s ({wall:.1f} s on the clock), "
        f"{100 * whole / fitted:.1f} % of it: the target of {100 * TARGET:.0f} % is {verdict}. "
        f"{len(report.score_error.levels)} levels, {report.score_error.n_rows} held-out rows, "
        f"{report.score_error.n_draws} draws a level; a page of {size / 1000:.0f} kB.\n\n"
        + table(("part", "CPU seconds", "of fit"), rows)
        + "\n\nWhat the report says:\n\n"
        + "\n".join(f"> {line}  " for line in str(report).splitlines())
    )
    write("report_cost", "What a report costs", "python benchmarks/report_cost.py", body)


if __name__ == "__main__":
    main()
