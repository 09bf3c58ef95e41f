"""What a fitted estimator says of itself: lines of a name and a text, and two sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from gradlogp._shapes import InputError
from gradlogp.training import in_vain, kept

if TYPE_CHECKING:
    from gradlogp.estimators.density import DensityEstimator

SHOWN_COLUMNS = 20
LITTLE = 0.1  # of what the closed form leaves to learn
NOT_KEPT = (
    "No step of training was kept: on held-out rows none was better than the closed form by a standard error, "
    "so the model is that closed form. More rows may change that, more steps hardly."
)


def summary(est: DensityEstimator) -> list[tuple[str, str]]:
    """All lines, as they are saved with a model."""
    return [*columns(est), *measured(est), ("closed form", closed_form(est)), ("network", network(est))]


def measured(est: DensityEstimator) -> Iterator[tuple[str, str]]:
    """Lines on the noise range, the training and the checks."""
    levels, history = est.levels_, est.history_
    yield "noise levels", f"{levels.sigma_min:.4g} to {levels.sigma_max:.4g}, {unit(est)}"
    if history:
        best, last, first = kept(history), history[-1], history[0]
        loss = f"{best.held_out:.4f} ± {best.held_out_stderr:.1g} (1 is about no skill)"
        if est.network_ is not None:
            yield "training", f"{last.step:,} steps in {last.seconds:.1f} s, the best after {best.step:,}"
            loss += f"; before training, the closed form alone: {first.held_out:.4f} ± {first.held_out_stderr:.1g}"
        yield "held-out loss", loss
        left = f"at most {best.left:.4f} ± {best.left_stderr:.1g} of it (upper bound on the weighted score error)"
        yield "left to learn", f"{left}; no model gets below {best.floor:.4f} ± {best.floor_stderr:.1g}"
        yield "in short", in_short(est)
    with suppress(InputError):  # a share that these rows cannot show
        if est.contamination is not None and est._unseen.log_prob is not None:
            yield "outliers", f"log-density below {est.offset_:.4g} nats, {share(est)}"
    if est.energy:
        yield "energy", "the score is a gradient; gradlogp logprob --unnormalised has its potential"
    yield "score error", _score_error(est)
    yield "self-check", str(est.self_check_).removeprefix("self-check ")


def in_short(est: DensityEstimator, steps: str = "--steps ") -> str:
    """Say in at most two sentences whether the network is worth it, and what it costs to make it better.

    Args:
        est: a fitted estimator.
        steps: how the caller sets the number of steps.
    """
    history = est.history_
    best, last, first = kept(history), history[-1], history[0]
    ended = in_vain(history) >= est.patience
    if est.network_ is None:
        return f"This is {closed_form(est)}. A network may learn what that leaves."
    if best.step == 0:
        return NOT_KEPT if ended else f"{NOT_KEPT.partition('. ')[0]}. More steps or rows may change that."
    part, stderr = best.gain / first.left, best.gain_stderr / first.left
    much = "little" if part < LITTLE else "much"
    worth = f"The network learned {much}: at least {part:.0%} ± {stderr:.0%} of what the closed form leaves to learn."
    if ended:
        return f"{worth} More steps would hardly help; more rows may."
    if last.progress < 1 or best.step < 0.8 * last.step:
        return worth
    more = f"{steps}{4 * last.step} may do better, in about {4 * last.seconds:.0f} s"
    return f"{worth} It was still learning: {more}."


def _score_error(est: DensityEstimator) -> str:
    """How far the score is from the true one, on which rows."""
    error, n = est._score_error, est.n_held_out_
    if error is not None:
        chose = "the mixtures" if est.network_ is None else "when to stop"
        rows = f"{error.n_rows:,} held-out rows, which also chose {chose}"
        return f"{str(error).removeprefix('score error ')} (all levels together; {rows})"
    few = f"(stopped, or too few of its {n} held-out rows, or groups of them)"
    return f"not measured in fit {few}: see gradlogp diagnose"


def share(est: DensityEstimator) -> str:
    """What share of new rows are called outliers."""
    found = est.outlier_share_
    return f"{found.value:.2g} ± {found.stderr:.1g} of new rows"


def unit(est: DensityEstimator) -> str:
    """What σ is counted in."""
    return f"in {est.units_.in_words}"


def closed_form(est: DensityEstimator) -> str:
    """What the model knows without training."""
    if est.energy:
        return "a Gaussian"
    mixtures = [
        f"a mixture of {part.n_components} {'diagonal ' if part.vectors is None else ''}Gaussians"
        for part in est.model_.parts
    ]
    return ", ".join(["a Gaussian with the columns' marginals", *mixtures])


def network(est: DensityEstimator) -> str:
    """What is learned on top of it."""
    sizes = est.network_
    if sizes is None:
        return "none"
    size = sum(p.numel() for p in est.model_.parameters())
    return f"{size:,} parameters, width {sizes['width']}, depth {sizes['depth']}{', an energy' if est.energy else ''}"


def width(est: DensityEstimator) -> str:
    """How many columns, or which shape, a row has."""
    shape = est.schema_.event_shape
    return f"{shape[0]} column{'s' * (shape[0] != 1)}" if len(shape) == 1 else f"shape {shape}"


def columns(est: DensityEstimator) -> Iterator[tuple[str, str]]:
    """Lines on the columns: name, type, the grid that samples come back on, the standard deviation of unit noise."""
    schema, axes = est.schema_, est.grid_.axes
    yield "rows", f"{width(est)}, as {schema.kind}"
    if len(schema.event_shape) > 1:
        gridded = sum(axis.gridded for axis in axes)
        yield "cells", f"{schema.dtypes[0]}, {gridded:,} of {len(axes):,} constant or on a grid"
        return
    names = schema.columns or tuple(range(len(axes)))
    types = schema.dtypes if schema.columns is not None else schema.dtypes * len(axes)
    widest = max(len(str(name)) for name in names[:SHOWN_COLUMNS])
    for name, dtype, axis, unit in list(zip(names, types, axes, est.noise_scale_, strict=True))[:SHOWN_COLUMNS]:
        decimals = f", {len(str(axis.scale)) - 1} decimals" if axis.scale else ""
        grid = (
            f"in steps of {axis.step:g}" if axis.step > 0 else "constant" if axis.gridded else f"continuous{decimals}"
        )
        noise = "" if unit == 1 else f", σ = 1 is {unit:.4g}"
        yield "  column", f"{name!s:<{widest}}  {dtype}, {axis.low:g} to {axis.high:g}, {grid}{noise}"
    if len(axes) > SHOWN_COLUMNS:
        yield "", f"and {len(axes) - SHOWN_COLUMNS:,} more"
