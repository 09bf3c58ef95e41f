"""Three sentences in plain words, by stated rules: what is good, what is not, what to try.

A fault is named where a number is clearly beyond a limit, by three of its standard errors (for the score error: by its
95 % interval, which holds for all levels together if the rows are independent draws, and for the parts of the law that
they show: one rarer than 3/N may be unseen). The limits:

* the score error may be a tenth of the score's size;
* a tenth of the way to memorising, at levels where the score error is not known to be below a tenth of the size;
* a share of copies as among held-out rows; samples 0.9 to 1.1 times as far from the training rows as held-out rows;
* scores 5 % too large or too small, a posterior variance 20 %;
* a tenth of the Jacobian not symmetric;
* no step of training better than the closed form;
* rows that are correlated in their order or nearly repeat others, more than by chance in one case of a thousand.

The two gravest faults are named, and what the rows leave open; what to try is that for the gravest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gradlogp.audit.words import percent, percent_of, shown, where
from gradlogp.diagnostics import Estimate, LevelError, MemorisationLevel
from gradlogp.diagnostics.levels import CERTIFIED, EXACT
from gradlogp.training import Record, kept

if TYPE_CHECKING:
    from gradlogp.audit.result import Audit

CLEARLY = 3.0  # standard errors
ERROR = 0.1  # of the score's size
MEMORISED = 0.1
DISTANCE = 0.1
SLOPE, RESIDUAL = 0.05, 0.2
ROTATION = 0.1
NAMED = 2  # faults in the second sentence
SHARE_LEFT = 0.01  # fall of what is left over the last quarter of the looks, above which training was still going on

Say = Callable[["Audit"], Iterator["Fault"]]


class Sentences(NamedTuple):
    """What is good, what is not, what to try."""

    good: str
    not_good: str
    to_try: str


class Fault(NamedTuple):
    """Something that is not good, and what helps."""

    text: str
    advice: str


def sentences_of(audit: Audit) -> Sentences:
    """The three sentences."""
    faults = faults_of(audit)
    unknown = _unknown(audit)
    more = len(faults) - NAMED
    beside = [f"{more} more fault{'s' * (more > 1)}, told in report.json"] if more > 0 else []
    worst = [fault.text for fault in faults[:NAMED]] + beside + [fault.text for fault in unknown]
    bad = "Not good: " + "; ".join(worst) if worst else "No fault was found at any level"
    if audit.memorisation is None:
        bad += (
            "; the training rows were not given: nothing is known of memorisation, and all holds only if none is here"
        )
    return Sentences(_good(audit, faults), bad + ".", _to_try(audit, [*faults, *unknown]) + ".")


def faults_of(audit: Audit) -> list[Fault]:
    """All faults, the gravest first."""
    return [fault for rule in _RULES for fault in rule(audit)]


# --- what is good ---------------------------------------------------------------------------------------------------


def _good(audit: Audit, faults: Sequence[Fault]) -> str:
    if not audit.self_check.holds:
        return "Good: nothing can be said, since the self-check fails."
    parts = [_close(audit, ERROR) or _close(audit, 0.5) or "at no noise level is the score known to half of its size"]
    memory, near = audit.memorisation, audit.neighbours
    if memory is not None and near is not None and not [*_memorised(audit), *_copies(audit)]:
        copies = f"{percent_of(near.copies)} of the samples against {percent_of(near.held_out_copies)} of new rows"
        parts.append(f"where the score error may exceed a tenth, no rows look memorised (near copies: {copies})")
    if not faults:
        parts.append("no fault shows in the size and the symmetry of the score")
    start = "Good: " if _close(audit, 0.5) or len(parts) > 1 else "Good: little; "
    return start + "; ".join(parts) + "."


def _close(audit: Audit, limit: float) -> str:
    """The levels where the score error is below a limit for sure."""
    levels = audit.score_error.levels
    close = [level for level in levels if level.relative[1] <= limit]
    if not close:
        return ""
    most = percent(max(level.relative[1] for level in close))
    seen = ""
    if any(level.verdict not in (EXACT, CERTIFIED) for level in close):
        seen = f"; {audit.score_error.seen}"
    return (
        f"{_at(close, audit)} the score error is at most {most} of the score's size (95 %, all levels together{seen})"
    )


def _at(some: Sequence[LevelError], audit: Audit) -> str:
    return where([level.sigma for level in some], [level.sigma for level in audit.score_error.levels])


# --- what is not ----------------------------------------------------------------------------------------------------


def _broken(audit: Audit) -> Iterator[Fault]:
    check = audit.self_check
    if not check.holds:
        text = f"the self-check fails, {check.residual} where 0 is right"
        yield Fault(text, "find what is wrong in the model's score or its gradient before trusting any number here")


def _leaked(audit: Audit) -> Iterator[Fault]:
    r = audit.repeats
    if r is not None and r.suspicious:
        text = f"{r.test} of the {r.n_test} held-out rows are training rows, so all numbers are too good"
        yield Fault(text, "measure on rows that were not used in training")


def _dependent(audit: Audit) -> Iterator[Fault]:
    for caution in audit.score_error.cautions:
        yield Fault(
            caution, "shuffle rows that were only sorted; give groups, one label a row, of rows that belong together"
        )


def _memorised(audit: Audit) -> Iterator[Fault]:
    if audit.memorisation is None:
        return
    matters = {level.sigma for level in audit.score_error.levels if level.relative[1] > ERROR}
    found = [
        level
        for level in audit.memorisation.levels
        if level.informative and level.sigma in matters and _surely(level) > MEMORISED
    ]
    if found:
        worst = max(found, key=_surely)
        share = percent_of(worst.value)
        text = (
            f"at σ = {worst.sigma:.2g} it is {share} of the way from the true score to one that repeats training rows"
        )
        yield Fault(text, "train on more rows, or with more dropout or fewer steps")


def _surely(level: MemorisationLevel) -> float:
    return level.value.value - CLEARLY * level.value.stderr


def _copies(audit: Audit) -> Iterator[Fault]:
    near = audit.neighbours
    if near is not None and _difference(near.copies, near.held_out_copies).z > CLEARLY:
        text = f"{percent_of(near.copies)} of the samples are near copies of training rows"
        text += f", against {percent_of(near.held_out_copies)} of new rows"
        yield Fault(text, "train on more rows, or with more dropout or fewer steps")


def _difference(a: Estimate, b: Estimate) -> Estimate:
    return Estimate(a.value - b.value, (a.stderr**2 + b.stderr**2) ** 0.5)


def _wrong(audit: Audit) -> Iterator[Fault]:
    levels = [level for level in audit.score_error.levels if level.relative[0] > ERROR]
    if levels:
        worst = max(levels, key=lambda level: level.relative[0])
        least = worst.relative[0]
        text = f"at σ = {worst.sigma:.2g} the score error is at least {percent(least)} of the score's size"
        yield Fault(text + (", worse than a score of zero" if least >= 1 else ""), _more_training(audit.history))


def _far(audit: Audit) -> Iterator[Fault]:
    near = audit.neighbours
    if near is None:
        return
    ratio = near.distance_ratio
    off = abs(ratio.value - 1) - CLEARLY * ratio.stderr
    if off > DISTANCE:
        text = f"samples lie {shown(ratio)} times as far from the training rows as new rows do"
        closer = ratio.value < 1
        yield Fault(text, "train on more rows, or with more dropout" if closer else _more_training(audit.history))


def _miscalibrated(audit: Audit) -> Iterator[Fault]:
    levels = audit.calibration.levels
    for name, limit in (("slope", SLOPE), ("residual", RESIDUAL)):
        worst = max(levels, key=lambda level: _beyond(getattr(level, name)))
        value = getattr(worst, name)
        if _beyond(value) <= limit:
            continue
        at = f"at σ = {worst.sigma:.2g}"
        if name == "residual":
            text = f"{at} the denoiser's squared error is {shown(value)} times what the score itself implies"
        else:
            size = "large" if value.value < 1 else "small"
            text = f"{at} the scores are too {size}: {shown(value)} times them would be best"
        over = (value.value < 1) == (name == "slope")
        yield Fault(text, "train with more dropout or fewer steps" if over else _more_training(audit.history))
        return


def _beyond(value: Estimate) -> float:
    """How far from 1, for sure."""
    return abs(value.value - 1) - CLEARLY * value.stderr


def _rotating(audit: Audit) -> Iterator[Fault]:
    worst = max(audit.curl.levels, key=lambda level: level.value.value - CLEARLY * level.value.stderr)
    if worst.value.value - CLEARLY * worst.value.stderr > ROTATION:
        text = f"at σ = {worst.sigma:.2g} {percent_of(worst.value)} of the score's Jacobian is antisymmetric"
        yield Fault(text + ", which no gradient's is", _more_training(audit.history))


def _untrained(audit: Audit) -> Iterator[Fault]:
    if len(audit.history) > 1 and kept(audit.history).step == 0:
        text = "no step of training was better than the closed form alone, which was kept"
        yield Fault(text, "train on more rows: on these a network learns nothing that holds for new ones")


_RULES: tuple[Say, ...] = (
    _broken, _leaked, _dependent, _untrained, _memorised, _copies, _wrong, _far, _miscalibrated, _rotating,
)  # fmt: skip


def _unknown(audit: Audit) -> list[Fault]:
    """What the rows leave open."""
    levels = [level for level in audit.score_error.levels if level.relative[1] > ERROR >= level.relative[0]]
    if not levels:
        return []
    low, high = (percent(f(level.relative[i] for level in levels)) for i, f in ((0, min), (1, max)))
    n = audit.score_error.n_rows
    text = f"{_at(levels, audit)} these {n:,} rows leave the score error open, between {low} and {high} of the size"
    return [Fault(text, f"measure on more held-out rows than {n:,}: the upper bound then comes down")]


# --- what to try ----------------------------------------------------------------------------------------------------


def _more_training(history: Sequence[Record]) -> str:
    """Longer training if what is left was still falling, otherwise more rows or a larger network."""
    looks = [record.left for record in history]
    if len(looks) >= 4 and min(looks) < (1 - SHARE_LEFT) * min(looks[: -(len(looks) // 4)]):
        return "train longer (n_steps): what is left to learn was still falling at the end"
    return "train on more rows or with a wider network (width)"


def _to_try(audit: Audit, faults: Sequence[Fault]) -> str:
    if faults:
        return "To try: " + faults[0].advice
    if audit.memorisation is None:
        return "To try: give the training rows too, to see what was memorised"
    return "To try: nothing has to change"
