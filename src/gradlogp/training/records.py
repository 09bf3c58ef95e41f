"""What training tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WORTH = 1e-3  # of the held-out loss: by how much less must be left for training to go on


@dataclass(frozen=True)
class Record:
    """What one look at the training shows. Losses are per coordinate and weighted so that 1 is about no skill.

    In expectation held_out = left + floor, weighted score error <= left, floor <= held-out loss of the true score: see
    :class:`gradlogp.training.HeldOut`.

    Attributes:
        step: steps done.
        progress: share of the budget used, 0 to 1.
        loss: mean training loss since the last record; at step 0 that of the model as it came, on training rows.
        held_out: loss of the averaged weights on the held-out rows, the same noise at every look.
        held_out_stderr: its standard error over rows.
        best: whether it is the best so far: whether less is left than at any look before, and than before training by
            more than a standard error.
        seconds: time since the start.
        left: what of the loss a better model could still take away, at most: an upper bound, in expectation, on the
            weighted score error.
        left_stderr: its standard error.
        gain: how much less is left than before training.
        gain_stderr: its standard error, of the difference row by row.
        floor: what of the loss no model takes away, at least; the same at every look.
        floor_stderr: its standard error.
    """

    step: int
    progress: float
    loss: float
    held_out: float
    held_out_stderr: float
    best: bool
    seconds: float
    left: float
    left_stderr: float
    gain: float
    gain_stderr: float
    floor: float
    floor_stderr: float


def kept(history: Sequence[Record]) -> Record:
    """The look whose weights were kept: the last that was the best so far."""
    return [record for record in history if record.best][-1]


def in_vain(history: Sequence[Record]) -> int:
    """How many looks at the end together brought less than 0.1 % of the held-out loss, or half a standard error."""
    mark, n = math.inf, 0
    for record in history:
        n += 1
        if record.left < mark - max(WORTH * record.held_out, 0.5 * record.gain_stderr):
            mark, n = record.left, 0
    return n
