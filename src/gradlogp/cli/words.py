"""Models and rows from files, and what is printed about them."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlogp.cli.mistakes import plain
from gradlogp.cli.stops import check

if TYPE_CHECKING:
    from gradlogp.data import Table
    from gradlogp.estimators import ScoreDensity
    from gradlogp.training import Record

SHOWN_COLUMNS = 20  # columns that info lists


def load(path: str) -> ScoreDensity:
    """A saved model."""
    from gradlogp.estimators import ScoreDensity

    check()
    return ScoreDensity.load(path)


def load_table(args: argparse.Namespace, path: str, **choice: Any) -> Table:
    """A file's rows; what was left out is said."""
    from gradlogp.data import load_file

    check()
    table = load_file(path, **choice)
    for note in table.notes:
        say(args, f"{path}: {note}")
    return table


def load_chosen(args: argparse.Namespace, min_rows: int) -> Table:
    """The columns of DATA that --columns or --drop leave."""
    columns, drop = (
        None if names is None else [n for part in names for n in part] for names in (args.columns, args.drop)
    )
    if getattr(args, "groups", None) is not None and columns is None:
        drop = [*(drop or ()), args.groups]
    return load_table(args, args.data, columns=columns, drop=drop or (), min_rows=min_rows)


def load_groups(args: argparse.Namespace) -> list[Any] | None:
    """The labels of DATA's rows, if --groups names their column."""
    from gradlogp.data import load_labels

    return None if args.groups is None else load_labels(args.data, args.groups)


def load_fitted(args: argparse.Namespace, model: ScoreDensity, path: str) -> Table:
    """The columns of a file that the model was fitted on, by name where both have names; others are left out, and said.

    A file that the model was fitted on without some columns is thus read without them.
    """
    from gradlogp.data import has_names

    columns = model.schema_.columns
    named = has_names(path) and columns is not None
    return load_table(args, path, columns=[str(c) for c in columns or ()] if named else None)


def load_rows(args: argparse.Namespace, model: ScoreDensity) -> Table:
    """The rows of DATA, which FILE must not replace."""
    from gradlogp._shapes import InputError

    if os.path.exists(args.data) and os.path.exists(args.out) and os.path.samefile(args.data, args.out):
        raise InputError(f"--out: got {args.out}, the input itself, want another file")
    return load_fitted(args, model, args.data)


def apart(option: str, path: str, *others: str) -> None:
    """Refuse a file to write that is another one of the command's."""
    from gradlogp._shapes import InputError

    if os.path.realpath(path) in map(os.path.realpath, others):
        raise InputError(f"{option}: got {path}, which the command reads or writes already, want another file")


def told(records: Iterable[Record], silent: bool) -> Iterator[Record]:
    """The records, with a line on stderr each time the steps have doubled where there is no bar."""
    due = 0
    for record in records:
        check()
        if not silent and (record.step >= due or record.progress == 1):
            due = 2 * record.step
            loss = f"loss {record.loss:.4f}, held out {record.held_out:.4f} ± {record.held_out_stderr:.1g}"
            loss += f", left {record.left:.4f} ± {record.left_stderr:.1g}"
            print(f"fit: step {record.step}, {loss}, {record.seconds:.0f} s", file=sys.stderr)
        yield record


def say(args: argparse.Namespace, line: str) -> None:
    """Print a line, unless it is to be quiet."""
    if not args.quiet:
        print(plain(line))


def print_table(rows: Iterable[tuple[str, str]]) -> None:
    """Lines of a name and what it is."""
    for name, text in rows:
        print(plain(f"{name:<14}{text}"))


def measured(model: ScoreDensity, told: bool = False) -> Iterator[tuple[str, str]]:
    """Lines on the noise range, the training and the checks; what the fit has told is not repeated."""
    from gradlogp.estimators.density import NOT_KEPT

    levels, history = model.levels_, model.history_
    yield "noise levels", f"{levels.sigma_min:.4g} to {levels.sigma_max:.4g}, {unit(model)}"
    if history:
        from gradlogp.training import kept

        best, last, first = kept(history), history[-1], history[0]
        yield "training", f"{last.step:,} steps in {last.seconds:.1f} s, the best after {best.step:,}"
        loss = f"{best.held_out:.4f} ± {best.held_out_stderr:.1g} (1 is about no skill)"
        if first.step == 0:
            loss += f"; before training, the closed form alone: {first.held_out:.4f} ± {first.held_out_stderr:.1g}"
        yield "held-out loss", loss
        left = f"at most {best.left:.4f} ± {best.left_stderr:.1g} of it (upper bound on the weighted score error)"
        yield "left to learn", f"{left}; no model gets below {best.floor:.4f} ± {best.floor_stderr:.1g}"
    if model.network_ is None:
        pass
    elif model.kept_step_ == 0 and not told:
        yield "", NOT_KEPT
    elif model.kept_step_ > 0:
        yield "in short", _in_short(model)
    if model.contamination is not None:
        yield "outliers", f"log-density below {model.offset_:.4g} nats, {share(model)}"
    if model.energy:
        yield "energy", "the score is a gradient; gradlogp logprob --unnormalised has its potential"
    yield "score error", _score_error(model)
    yield "self-check", str(model.self_check_).removeprefix("self-check ")


def _in_short(model: ScoreDensity) -> str:
    """What the training was worth, and what more of it would cost."""
    from gradlogp.training import in_vain, kept

    best, last, first = kept(model.history_), model.history_[-1], model.history_[0]
    part = (first.held_out - best.held_out) / (first.held_out - best.floor)
    worth = f"the network takes away at least {max(0.0, part):.0%} of what the closed form leaves to learn"
    if in_vain(model.history_) >= model.patience:
        return f"{worth}; more steps would hardly help, more rows may"
    if last.progress < 1 or best.step < 0.8 * last.step:
        return worth
    return f"{worth}, and was still learning: --steps {4 * last.step} may do better, in about {4 * last.seconds:.0f} s"


def _score_error(model: ScoreDensity) -> str:
    """How far the score is from the true one, on which rows."""
    error, n = model.score_error_, model.n_held_out_
    if error is not None:
        rows = f"{error.n_rows:,} held-out rows, which also chose when to stop"
        return f"{str(error).removeprefix('score error ')} (all levels together; {rows})"
    few = f"(stopped, or too few of its {n} held-out rows, or groups of them)"
    return f"not measured in fit {few}: see gradlogp diagnose"


def share(model: ScoreDensity) -> str:
    """What share of new rows are called outliers."""
    found = model.outlier_share_
    return f"{found.value:.2g} ± {found.stderr:.1g} of new rows"


def unit(model: ScoreDensity) -> str:
    """What σ is counted in."""
    return f"in {model.units_.in_words}"


def closed_form(model: ScoreDensity) -> str:
    """What the model knows without training."""
    if model.energy:
        return "a Gaussian"
    mixtures = [
        f"a mixture of {part.n_components} {'diagonal ' if part.vectors is None else ''}Gaussians"
        for part in model.model_.parts
    ]
    return ", ".join(["a Gaussian with the columns' marginals", *mixtures])


def network(model: ScoreDensity) -> str:
    """What is learnt on top of it."""
    sizes = model.network_
    if sizes is None:
        return "none"
    size = sum(p.numel() for p in model.model_.parameters())
    return f"{size:,} parameters, width {sizes['width']}, depth {sizes['depth']}{', an energy' if model.energy else ''}"


def width(model: ScoreDensity) -> str:
    """How many columns, or which shape, a row has."""
    shape = model.schema_.event_shape
    return f"{shape[0]} column{'s' * (shape[0] != 1)}" if len(shape) == 1 else f"shape {shape}"


def columns(model: ScoreDensity) -> Iterator[tuple[str, str]]:
    """Lines on the columns: name, type, the grid that samples come back on, the standard deviation of unit noise."""
    schema, axes = model.schema_, model.grid_.axes
    yield "rows", f"{width(model)}, as {schema.kind}"
    if len(schema.event_shape) > 1:
        gridded = sum(axis.gridded for axis in axes)
        yield "cells", f"{schema.dtypes[0]}, {gridded:,} of {len(axes):,} constant or on a grid"
        return
    names = schema.columns or tuple(range(len(axes)))
    types = schema.dtypes if schema.columns is not None else schema.dtypes * len(axes)
    widest = max(len(str(name)) for name in names[:SHOWN_COLUMNS])
    for name, dtype, axis, unit in list(zip(names, types, axes, model.noise_scale_, strict=True))[:SHOWN_COLUMNS]:
        decimals = f", {len(str(axis.scale)) - 1} decimals" if axis.scale else ""
        grid = (
            f"in steps of {axis.step:g}" if axis.step > 0 else "constant" if axis.gridded else f"continuous{decimals}"
        )
        noise = "" if unit == 1 else f", σ = 1 is {unit:.4g}"
        yield "  column", f"{name!s:<{widest}}  {dtype}, {axis.low:g} to {axis.high:g}, {grid}{noise}"
    if len(axes) > SHOWN_COLUMNS:
        yield "", f"and {len(axes) - SHOWN_COLUMNS:,} more"


def next_command(model: str, data: str, n: int) -> str:
    """The command to type next."""
    from gradlogp.data import EXTENSIONS

    packed = ".gz" * (Path(data).suffix.lower() == ".gz")
    extension = Path(data.removesuffix(packed)).suffix.lower()
    new = f"new{extension + packed if extension in EXTENSIONS else '.csv'}"
    return f"gradlogp sample {shlex.quote(model)} -n {n} --out {new}"
