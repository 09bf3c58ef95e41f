"""Attack the command line: lines that must end with code 0, or with code 2 and one line on stderr, files as they were.

Run: python benchmarks/faults_commands.py
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gradlogp.cli import main

SECONDS, LONGEST = 20, 400
COUNTS = ("0", "-1", "1.5", "nan", "1e14", "10000000000", "100000000000000", "9" * 400, "9" * 5000, "many", "", "１２x")
NUMBERS = ("0", "-1", "nan", "inf", "-inf", "1e308", "1e-320", "1e400", "0x10", "half", "", "1,5", "9" * 400)
SEEDS = ("-1", "1.5", "x", "9" * 400, "18446744073709551616")
WORDS = ("", " ", "-", "--", "\n", "a\nb", "x" * 5000, "../..", "/", "/dev/null/x", "no/such/file.csv", "naïve\u2028")

FIT = "fit data.csv --out new --steps 1 --width 4 --depth 1 --quiet"
BASES: dict[str, str] = {
    "fit": FIT,
    "sample": "sample model -n 2 --out new.csv --quiet",
    "grad": "grad model data.csv --sigma 1 --out new.csv --quiet",
    "denoise": "denoise model data.csv --sigma 1 --out new.csv --quiet",
    "logprob": "logprob model data.csv --out new.csv --quiet",
    "diagnose": "diagnose model data.csv --levels 2 --out new --quiet",
    "chain": "chain data.csv --hidden 4 --max-seconds 0.2 --quiet",
    "info": "info model",
}
OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "fit": {
        **dict.fromkeys(("--width", "--depth", "--steps", "--batch-size", "--patience"), COUNTS),
        **dict.fromkeys(("--sigma-min", "--sigma-max", "--learning-rate", "--dropout", "--max-seconds"), NUMBERS),
        **dict.fromkeys(("--validation-fraction", "--contamination"), NUMBERS),
        **dict.fromkeys(("--device", "--objective", "--groups", "--columns", "--drop", "--out"), WORDS),
        "--seed": SEEDS,
    },
    "sample": {"-n": COUNTS, "--steps": COUNTS, "--seed": SEEDS, "--device": WORDS, "--out": WORDS},
    "grad": {"--sigma": NUMBERS, "--out": WORDS},
    "denoise": {"--sigma": NUMBERS, "--std": WORDS},
    "logprob": {"--atol": NUMBERS, "--unnormalised": NUMBERS, "--out": WORDS},
    "diagnose": {"--levels": COUNTS, "--seed": SEEDS, "--train": WORDS, "--out": WORDS, "--groups": WORDS},
    "chain": {"--sigma": NUMBERS, "--hidden": COUNTS, "--max-seconds": NUMBERS, "--seed": SEEDS, "--out": WORDS},
}
PLACES = [word for word in WORDS if word]  # DATA or MODEL


def lines(n: int, seed: int = 0) -> list[list[str]]:
    """Command lines, of each command and option some."""
    given: list[list[str]] = []
    for command, options in OPTIONS.items():
        for option, values in options.items():
            given += [[*BASES[command].split(), option, value] for value in values]
    for command, base in BASES.items():
        words = base.split()
        given += [[command, place, *words[2:]] for place in PLACES]
        given += [words[:i] for i in range(2 if command == "chain" else 4)]  # not those that train for long
        given += [[*words, extra] for extra in ("--epochs", "extra", "\N{SNOWMAN}", "--no-" + "x" * 3000)]
    chosen = random.Random(seed).sample(given, min(n, len(given)))
    return [*chosen, [], ["--nonsense"], ["fitt"], ["fit"] * 50]


def digest(folder: Path) -> dict[str, str]:
    """Every file below a folder, by its hash."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def outcome(line: list[str]) -> str:
    """What comes of a line, run in the working folder: nothing, or what is wrong with it."""
    before, out, err = digest(Path()), io.StringIO(), io.StringIO()
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(line)
    except BaseException as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:160]
    finally:
        signal.alarm(0)
    after, text = digest(Path()), err.getvalue()
    if any(after.get(name) != hashed for name, hashed in before.items()):
        return "a file was changed"
    if code == 2 and (after != before or text.count("\n") != 1 or not text.startswith("gradlogp: error: ")):
        return f"code 2 with {text.count(chr(10))} lines and {len(after) - len(before)} new files"
    if code not in (0, 2):
        return f"code {code}"
    return f"a line of {len(text)} characters" if code == 2 and len(text) > LONGEST + 20 else ""


class _Late(BaseException):
    """No error that a command may take for one of its own."""


def _late(*_: object) -> None:
    raise _Late(f"longer than {SECONDS} s")


def prepared(folder: Path) -> None:
    """Rows and a small model in the folder, which becomes the working one."""
    x = np.random.default_rng(0).normal(size=(40, 3))
    np.savetxt(folder / "data.csv", x, delimiter=",", header="a,b,c", comments="")
    os.chdir(folder)
    assert (
        main(["fit", "data.csv", "--out", "model", *["--steps", "2", "--width", "4", "--depth", "1", "--quiet"]]) == 0
    )


def attack(work: Path, n: int = 250) -> Iterator[tuple[str, int, int, str]]:
    """The commands: (name, tried, failed, the failures on one line)."""
    here = Path.cwd()
    work.mkdir(exist_ok=True)
    prepared(work)
    try:
        of_command = sorted(lines(n), key=lambda line: (line or [""])[0])
        for command, several in itertools.groupby(of_command, key=lambda line: (line or [""])[0]):
            found = [(line, _fresh(line)) for line in several]
            failures = [f"{' '.join(line[1:])[-60:]!r}: {wrong}" for line, wrong in found if wrong]
            yield f"gradlogp {command}"[:40], len(found), len(failures), "; ".join(failures)
    finally:
        os.chdir(here)


def _fresh(line: list[str]) -> str:
    """The outcome of a line; what it wrote is gone afterwards."""
    before = set(Path().iterdir())
    try:
        return outcome(line)
    finally:
        for made in set(Path().iterdir()) - before:
            _remove(made)


def _remove(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _remove(child)
        path.rmdir()
    else:
        path.unlink()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for row in attack(Path(folder)):
            print(*row[:3], row[3].replace("; ", "\n    "), sep="  ")
