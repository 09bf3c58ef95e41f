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
    from gradlogp.estimators import DensityEstimator
    from gradlogp.training import Record


def load(path: str) -> DensityEstimator:
    """A saved model."""
    from gradlogp.estimators import DensityEstimator

    check()
    return DensityEstimator.load(path)


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


def load_fitted(args: argparse.Namespace, model: DensityEstimator, path: str) -> Table:
    """The columns of a file that the model was fitted on, by name where both have names; others are left out, and said.

    A file that the model was fitted on without some columns is thus read without them.
    """
    from gradlogp.data import has_names

    columns = model.schema_.columns
    named = has_names(path) and columns is not None
    return load_table(args, path, columns=[str(c) for c in columns or ()] if named else None)


def load_rows(args: argparse.Namespace, model: DensityEstimator) -> Table:
    """The rows of DATA, which FILE must not replace."""
    from gradlogp._errors import InputError

    if os.path.exists(args.data) and os.path.exists(args.out) and os.path.samefile(args.data, args.out):
        raise InputError(f"--out: got {args.out}, the input itself, want another file")
    return load_fitted(args, model, args.data)


def apart(option: str, path: str, *others: str) -> None:
    """Refuse a file to write that is another one of the command's."""
    from gradlogp._errors import InputError

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


def next_command(model: str, data: str, n: int) -> str:
    """The command to type next."""
    from gradlogp.data import EXTENSIONS

    packed = ".gz" * (Path(data).suffix.lower() == ".gz")
    extension = Path(data.removesuffix(packed)).suffix.lower()
    new = f"new{extension + packed if extension in EXTENSIONS else '.csv'}"
    return f"gradlogp sample {shlex.quote(model)} -n {n} --out {new}"
