"""Attacks on runs: fits that are killed at any moment, and saves that find no place. Prints a line an attack.

    python benchmarks/faults_runs.py

A killed fit must answer with one line and 130 or 143, leave no temporary file, and, once training has begun, a model
that loads at --out. A save onto a disk that is full, or into a folder that has gone, must keep the model elsewhere and
say where. A run that is over before the signal comes is not counted.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gradlogp import InputError, ScoreDensity

N_KILLS = 15  # of each signal
BEGUN = "fit: "  # what the first line on training begins with
COMMAND = "import sys; from gradlogp.cli import main; print('up', flush=True); sys.exit(main())"
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); " + COMMAND
TINY = ["--width", "8", "--depth", "1", "--batch-size", "16", "--patience", "1000000"]

Result = tuple[str, int, int, str]


def attack(work: Path) -> Iterator[Result]:
    """Each attack: its name, how often it was tried and failed, and a line about failures."""
    rng = random.Random(0)
    np.save(work / "x.npy", np.random.default_rng(0).normal(size=(60, 2)) ** 3)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        kills = [(work / f"kill-{number}-{i}", number, code, rng.random()) for i in range(N_KILLS)]
        yield _summary(f"fit killed by {number.name} at a random moment", _two_by_two(_killed, kills))
    yield _summary("fit whose folder goes while it trains", [_gone(work / f"gone-{i}") for i in range(3)])
    yield _summary("fit onto a full disk", [_full(work / f"full-{i}") for i in range(3)])
    x = np.load(work / "x.npy")
    ScoreDensity(n_steps=20, width=8, depth=1, random_state=0, verbose=False).fit(x).save(work / "model")
    for command in ("sample", "diagnose", "demo"):
        kills = [(work / f"{command}-{i}", command, rng.random()) for i in range(5)]
        yield _summary(f"{command} killed by SIGTERM at a random moment", _two_by_two(_other, kills))


def _two_by_two(run: Callable[..., str | None], kills: list[tuple[Any, ...]]) -> list[str | None]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda kill: run(*kill), kills))


def _summary(name: str, found: list[str | None]) -> Result:
    """None is a run that was over before its signal came, "" one that held."""
    tried = [fault for fault in found if fault is not None]
    faults = [fault for fault in tried if fault]
    return name, len(tried), len(faults), "; ".join(sorted(set(faults)))[:300]


def _start(folder: Path, *argv: str, code: str = COMMAND) -> subprocess.Popen[str]:
    """A command in a folder of its own, which is also that of its temporary files."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()  # signals before this find no command that could answer
    return process


def _killed(folder: Path, number: signal.Signals, code: int, moment: float) -> str | None:
    """One fit: from its start to well into training, which begins after some seconds."""
    process = _start(folder, "fit", "../x.npy", "--out", "m", "--steps", "1000000", *TINY)
    time.sleep(12 * moment)
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        return "went on for a minute"
    lines = [line for line in err.splitlines() if not line.startswith(BEGUN)]
    if fault := _answer(process.returncode, code, lines):
        return fault
    begun = len(lines) < len(err.splitlines())
    return _left(folder, ["m"] if begun or (folder / "m").exists() else [])


def _answer(got: int, want: int, lines: list[str]) -> str:
    if got != want:
        return f"exit code {got}, want {want}: {(lines or [''])[-1][:80]}"
    return "" if len(lines) == 1 and lines[0].startswith("gradlogp: ") else f"{len(lines)} lines: {lines[:1]}"[:120]


def _left(folder: Path, want: list[str]) -> str:
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("torchinductor"))  # torch's own
    if names != want:
        return f"left {names}, want {want}"
    return _loads(folder / "m") if want == ["m"] else ""


def _loads(place: Path) -> str:
    try:
        found = ScoreDensity.load(place).sample(2)
    except InputError as e:
        return str(e)
    return "" if np.isfinite(found).all() else "draws that are not finite"


def _gone(folder: Path) -> str:
    """The folder for the model goes while it trains: the model must be in the working folder."""
    (folder / "out").mkdir(parents=True)
    process = _start(folder, "fit", "../x.npy", "--out", "out/m", "--steps", "300", *TINY)
    assert process.stderr is not None
    process.stderr.readline()
    shutil.rmtree(folder / "out")
    _, err = process.communicate(timeout=120)
    return _elsewhere(folder, process.returncode, err)


def _elsewhere(folder: Path, code: int, err: str) -> str:
    lines = [line for line in err.splitlines() if not line.startswith(BEGUN)]
    if fault := _answer(code, 2, lines):
        return fault
    places = list(folder.glob("m-stopped-*"))
    if len(places) != 1 or places[0].name not in lines[0]:
        return f"kept at {places}, said {lines[0][:80]}"
    return _loads(places[0])


def _full(folder: Path) -> str:
    """No file above 4 kB can be written: nothing half written may be left."""
    process = _start(folder, "fit", "../x.npy", "--out", "m", "--steps", "50", *TINY, code=FULL)
    _, err = process.communicate(timeout=120)
    lines = [line for line in err.splitlines() if not line.startswith(BEGUN)]
    if fault := _answer(process.returncode, 2, lines):
        return fault
    if "could not be written anywhere" not in lines[0]:
        return f"said {lines[0][:80]}"
    return _left(folder, [])


def _other(folder: Path, command: str, moment: float) -> str | None:
    """Another command: no temporary file, and the file it writes is whole or not there."""
    argv = {
        "sample": ("sample", "../model", "-n", "200000", "--out", "new.csv"),
        "diagnose": ("diagnose", "../model", "../x.npy", "--out", "report"),
        "demo": ("demo", "--seconds", "3"),
    }[command]
    process = _start(folder, *argv, "--quiet")
    time.sleep(10 * moment)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    over = process.returncode == -signal.SIGTERM and (folder / "new.csv").exists()  # the interpreter was ending
    if process.returncode == 0 or over:
        return None
    lines = err.splitlines()
    return _answer(process.returncode, 143, lines) or _left(folder, [])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, tried, failed, about in attack(Path(folder)):
            print(f"{name}: {failed} of {tried} failed{': ' * bool(about)}{about}", flush=True)


if __name__ == "__main__":
    main()
