"""The demonstration as a whole: learn, draw, write up, put in its place."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gradlogp._shapes import InputError, as_positive
from gradlogp.audit.canvas import write
from gradlogp.estimators.threads import threads
from gradlogp.reports.learn import held_out_of, learn_digits, learn_field, shown
from gradlogp.reports.page import MARK, MODEL, numbers, page, sections
from gradlogp.reports.pictures import draw_headline
from gradlogp.reports.staging import STAGING, staging

INDEX = "index.html"


def headline(path: str | Path, *, seed: int = 0, seconds: float = 45.0) -> None:
    """Learn digits and spiral and write the README's picture, a PNG 1600 pixels wide; arguments as of :func:`demo`."""
    with threads(1):
        write(draw_headline(learn_digits(seed, seconds), learn_field(seed, seconds)), Path(path))


@dataclass
class _Log:
    """Says what is done, and keeps how long each part took."""

    quiet: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        self.say(f"{what} ...")
        start = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - start
        self.say(f"    {self.seconds[what]:.1f} s")


def demo(out: str | Path, *, seed: int = 0, quiet: bool = False, seconds: float = 45.0) -> Path:
    """Learn digits and a known density, and write pictures, the digits' model and a page about them into a folder.

    The folder is made; an earlier demo in it is replaced, with other files left as they are, and only once all is done.

    Args:
        out: the folder.
        seed: of every draw.
        quiet: print nothing.
        seconds: time to train each of the two models, at most.

    Returns:
        The page, ``out/index.html``.

    Raises:
        InputError: ``out`` is a file or holds something other than a demo, its parent is missing, it cannot be written,
            or ``seconds`` is not a finite number > 0.
    """
    out, log = Path(out), _Log(quiet)
    _check(out, seconds)
    with staging(out, last=INDEX) as fresh, threads(1):
        with log.part(f"Learning handwritten digits, {seconds:g} s of training at most"):
            digits = learn_digits(seed, seconds, verbose=not quiet)
        log.say(f"    held-out loss {shown(held_out_of(digits.best))} (1 = no skill)")
        with log.part(f"Learning a spiral whose score is known, {seconds:g} s at most"):
            learnt = learn_field(seed, seconds, verbose=not quiet)
        log.say(f"    relative score error {shown(learnt.error)}")
        with log.part("Drawing"):
            parts = sections(digits, learnt)
            for s in parts:
                write(s.picture, fresh / s.name)
            digits.est.save(fresh / MODEL)
        text = page(parts, numbers(digits, learnt), log.seconds, seed)
        (fresh / INDEX).write_text(text, encoding="utf-8")
    log.say(_what_next(out, sum(log.seconds.values())))
    return out / INDEX


def _what_next(out: Path, seconds: float) -> str:
    sample = f"gradlogp sample {shlex.quote(str(out / MODEL))} -n 16 --out digits.csv"
    return f"Done in {seconds:.0f} s. Next:\n    open {out / INDEX} in a browser\n    {sample}"


def _check(out: Path, seconds: float) -> None:
    """Refuse what cannot work before the long work."""
    as_positive(seconds, "seconds")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, want a folder for the demo")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: the folder {out.parent} does not exist, want one that does: make it first")
    if out.is_dir() and any(not p.name.startswith(STAGING) for p in out.iterdir()) and not _is_demo(out / INDEX):
        raise InputError(f"{out}: is a folder that holds something other than a demo, want a new name")


def _is_demo(page: Path) -> bool:
    return page.is_file() and MARK.encode() in page.read_bytes()
