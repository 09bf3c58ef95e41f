"""What ends a command early: Ctrl-C, ``kill``, a closed terminal, a place that cannot be written; and what is kept."""

from __future__ import annotations

import shlex
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradlogp.estimators import DensityEstimator

SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]  # no SIGHUP on Windows
_asked: list[int] = []  # the signals that came


class Stopped(KeyboardInterrupt):
    """A signal that asks the process to end; it unwinds as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise :class:`Stopped` where Ctrl-C, ``kill`` or a closed terminal would end the process at once.

    A signal that is ignored, as ``nohup`` sets it, or that the caller handles stays so.
    """

    def stop(number: int, _: FrameType | None) -> None:
        _asked.append(number)
        raise Stopped(number)

    _asked.clear()
    before = {n: signal.getsignal(n) for n in SIGNALS}
    own = {n: h for n, h in before.items() if h in (signal.SIG_DFL, signal.default_int_handler)}
    if threading.current_thread() is not threading.main_thread():
        own = {}  # where handlers cannot be set
    for number in own:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)


def check() -> None:
    """Raise for a signal that was swallowed: what is raised in the middle of an import or a destructor may be."""
    if _asked:
        raise Stopped(_asked[-1])


def exit_code(stop: KeyboardInterrupt) -> int:
    """What a shell says of a process that a signal ended."""
    return 128 + getattr(stop, "number", signal.SIGINT)


def told(stop: KeyboardInterrupt) -> str:
    """How a command ended, on one line, with what was kept."""
    how = "interrupted" if exit_code(stop) == 128 + signal.SIGINT else "stopped"
    return "; ".join([how, *notes(stop)])


def notes(error: BaseException) -> list[str]:
    """What was added to an error on its way."""
    return list(getattr(error, "__notes__", ()))


def keep(model: DensityEstimator, out: str, stop: BaseException) -> None:
    """Save the best model so far of a fit that was stopped, or could not be saved; a note on ``stop`` says where.

    It goes to ``out`` unless a model is there already. Else, and if ``out`` cannot be written, it goes to a new folder
    beside it, in the working folder, or in that for temporary files: the first that can be written. Held-out
    log-densities, which take long for rows of many columns, are not measured.
    """
    if not hasattr(model, "model_"):
        return
    step, last = model.kept_step_, model.history_[-1].step
    place = _saved(model, Path(out))
    best = f"the best model so far, of step {step:,} of {last:,} done of at most {model.n_steps:,},"
    if place is None:
        stop.add_note(f"{best} could not be written anywhere")
    else:
        stop.add_note(f"{best} is in {place}: gradlogp info {shlex.quote(str(place))}")
    stop.add_note("the same command trains from the start")


def _saved(model: DensityEstimator, out: Path) -> Path | None:
    """The first place that the model could be written to; where there is none, None."""
    from gradlogp import checkpoints
    from gradlogp._errors import InputError
    from gradlogp.estimators.saved import parts_of

    parts = parts_of(model)
    if not (out / checkpoints.CONFIG).exists():
        with suppress(InputError):
            checkpoints.save(out, *parts)
            return out
    for folder in (out.parent, Path.cwd(), Path(tempfile.gettempdir())):
        with suppress(InputError, OSError):
            place = Path(tempfile.mkdtemp(prefix=f"{out.name}-stopped-", dir=folder))
            place.rmdir()  # a name that is free; the model's folder has the modes of any other
            checkpoints.save(place, *parts)
            return place
    return None
