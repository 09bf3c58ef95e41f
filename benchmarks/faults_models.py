"""Saved models under attack: loads beside writers, kills in the middle of saves, flipped bits, other people's parts."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gradlogp import InputError, ScoreDensity, checkpoints

WRITER = """
import sys
from gradlogp import checkpoints
models = [checkpoints.load(p) for p in sys.argv[2:]]
print("ready", flush=True)
for i in range(10**9):
    checkpoints.save(sys.argv[1], *models[i % len(models)])
"""
N_LOADS, N_KILLS, N_FLIPS = 300, 200, 500


def attack(work: Path) -> Iterator[tuple[str, int, int, str]]:
    """Name of the attack, how often it was tried, how often it succeeded, and a word on that."""
    sources = [_model(work / f"source{i}", i) for i in range(2)]
    known = {_text(p) for p in sources}
    yield _loads(work / "shared", sources, known)
    yield _kills(work / "killed", sources, known)
    for name in (checkpoints.WEIGHTS, checkpoints.CONFIG):
        yield _flips(sources[0], work / "flipped", name)
    yield _swaps(sources, work / "swapped")


def _model(place: Path, seed: int) -> Path:
    x = np.random.default_rng(seed).normal(size=(60, 3))
    ScoreDensity(n_steps=20, width=16, depth=2, random_state=seed, verbose=False).fit(x).save(place)
    return place


def _text(place: Path) -> str:
    """What a load gives, tensors by their hash, which is verified."""
    return json.dumps(checkpoints.load(place)[1], sort_keys=True)


def _start(place: Path, sources: list[Path]) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, place, *sources], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _loads(place: Path, sources: list[Path], known: set[str]) -> tuple[str, int, int, str]:
    shutil.copytree(sources[0], place)
    writers = [_start(place, sources), _start(place, sources[::-1])]
    failed, seen = [], set()
    for _ in range(N_LOADS):
        try:
            seen.add(_text(place))
        except InputError as e:
            failed.append(str(e))
        time.sleep(0.01)
    for process in writers:
        _stop(process)
    failed += ["a mixture"] * len(seen - known)
    return "loads beside two writers: no whole model", N_LOADS, len(failed), f"{len(seen)} models seen"


def _kills(place: Path, sources: list[Path], known: set[str]) -> tuple[str, int, int, str]:
    """A writer is killed with no warning; then a model is there, and after the next save nothing else."""
    shutil.copytree(sources[0], place)
    rng, lost, left = random.Random(0), 0, 0
    models = [checkpoints.load(p) for p in sources]
    for _ in range(N_KILLS):
        child = os.fork()
        while child == 0:
            for model in models:
                checkpoints.save(place, *model)
        time.sleep(rng.uniform(0.0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        try:
            lost += _text(place) not in known
        except InputError:
            lost += 1
            shutil.rmtree(place, ignore_errors=True)
        checkpoints.save(place, *models[1])
        left += sorted(os.listdir(place)) != [checkpoints.CONFIG, checkpoints.WEIGHTS]
        left += any(p.name.startswith(".") for p in place.parent.iterdir())
    return "kills in a loop of saves: model lost or files left", N_KILLS, lost + left, f"{lost} lost, {left} left files"


def _flips(source: Path, place: Path, name: str) -> tuple[str, int, int, str]:
    rng, silent = random.Random(1), 0
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place)
    raw, before = (source / name).read_bytes(), _text(source)
    places = [i for i, byte in enumerate(raw) if name == checkpoints.WEIGHTS or not chr(byte).isspace()]
    for _ in range(N_FLIPS):
        bad = bytearray(raw)
        bad[rng.choice(places)] ^= 1 << rng.randrange(8)
        (place / name).write_bytes(bad)
        try:
            ScoreDensity.load(place)
            silent += _text(place) != before  # 1e5 may be 1E5
        except InputError:
            pass
    return f"a bit of {name} flipped: loaded all the same", N_FLIPS, silent, ""


def _swaps(sources: list[Path], place: Path) -> tuple[str, int, int, str]:
    """Weights of one model beside the configuration of another with the same columns."""
    silent = 0
    for i in range(2):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(sources[i], place)
        shutil.copy(sources[1 - i] / checkpoints.WEIGHTS, place)
        try:
            ScoreDensity.load(place)
            silent += 1
        except InputError:
            pass
    return "weights of another model: loaded all the same", 2, silent, ""


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for line in attack(Path(folder)):
            print(line, flush=True)
