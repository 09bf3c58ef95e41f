"""The command ``gradlogp``: files in, files out, by way of :class:`gradlogp.ScoreDensity`.

Exit code 0; 2 for a mistake of the user's, with one line on stderr; 130 on Ctrl-C; 1 for a bug, with its traceback.
Nothing heavy is imported before a command runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gradlogp import __version__

if TYPE_CHECKING:
    from gradlogp.data import Table
    from gradlogp.estimators import ScoreDensity
    from gradlogp.training import Record

FILES = "csv, parquet, npy or npz"
SHOWN_COLUMNS = 20  # columns that info lists

# option: the estimator's parameter that it sets
OPTIONS = {
    "--sigma-min": "sigma_min",
    "--sigma-max": "sigma_max",
    "--standardize": "standardize",
    "--width": "width",
    "--depth": "depth",
    "--steps": "n_steps",
    "--max-seconds": "max_seconds",
    "--batch-size": "batch_size",
    "--learning-rate": "learning_rate",
    "--dropout": "dropout",
    "--patience": "patience",
    "--validation-fraction": "validation_fraction",
    "--objective": "objective",
    "--contamination": "contamination",
    "--device": "device",
    "--seed": "random_state",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code is returned."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without σ or × shows ? instead
    try:
        args = _parser().parse_args(argv)
        args.run(args)
        sys.stdout.flush()
    except SystemExit as end:  # --help, --version
        return int(end.code or 0)
    except KeyboardInterrupt:
        print("gradlogp: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = _mistake(error)
        if message is None:
            raise
        print(f"gradlogp: error: {message}", file=sys.stderr)
        return 2
    return 0


class _UsageError(Exception):
    """A command line that cannot be understood."""


def _mistake(error: Exception) -> str | None:
    """What to tell a user about a mistake, on one line; None for a bug."""
    if isinstance(error, _UsageError):
        message = str(error)
    elif isinstance(error, OSError):
        where = "" if error.filename is None else f"{error.filename}: "
        message = f"{where}{error.strerror or error}"
    else:
        from gradlogp._shapes import InputError

        if not isinstance(error, InputError):
            return None
        message = _in_words_of_the_command(str(error))
    return " ".join(message.split())


def _in_words_of_the_command(message: str) -> str:
    """A message about a parameter, with the option that sets it."""
    options = {parameter: option for option, parameter in OPTIONS.items()}
    options |= {"sampling_steps": "--steps", "n": "-n", "sigma": "--sigma", "seconds": "--seconds"}
    options |= {"n_levels": "--levels", "X_test": "DATA", "X_train": "--train"}
    names, separator, rest = message.partition(": ")
    return ", ".join(options.get(name, name) for name in names.split(", ")) + separator + rest


# --- the command line -----------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        raise _UsageError(f"{message} (see {self.prog} --help)")


def _parser() -> _Parser:
    parser = _Parser(
        prog="gradlogp",
        description="Learn the score ∇log p of a table's rows by denoising score matching, and use it.",
        epilog="example:\n  gradlogp fit data.csv --out model\n  gradlogp sample model -n 1000 --out new.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gradlogp {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")

    def command(name: str, run: Callable[[Any], None], summary: str, example: str) -> _Parser:
        made: _Parser = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.set_defaults(run=run)
        return made

    _add_demo(command)
    _add_fit(command)
    _add_sample(command)
    _add_maps(command)
    _add_logprob(command)
    _add_diagnose(command)
    info = command("info", _info, "show what a saved model is", "gradlogp info model")
    info.add_argument("model", metavar="MODEL", help="a saved model")
    return parser


_Command = Callable[[str, Callable[[Any], None], str, str], _Parser]


def _add_demo(command: _Command) -> None:
    demo = command(
        "demo", _demo, "learn digits and a known density, and write a page about it", "gradlogp demo --out demo"
    )
    demo.add_argument("--out", default="demo", metavar="FOLDER", help="folder to write (default: demo)")
    demo.add_argument("--seconds", type=_number, metavar="S", help="time to train each of its two models")
    demo.add_argument("--seed", type=_whole, default=0, metavar="N", help="seed of all draws (default: 0)")
    _add_quiet(demo)


def _add_fit(command: _Command) -> None:
    fit = command(
        "fit", _fit, "learn the score of a table's rows", "gradlogp fit data.csv --out model --max-seconds 60"
    )
    fit.add_argument("data", metavar="DATA", help=f"numbers, one row a datum: {FILES}")
    fit.add_argument("--out", required=True, metavar="MODEL", help="folder to write the model to")
    fit.add_argument("--sigma-min", type=_number, metavar="S", help="smallest noise level (default: from the data)")
    fit.add_argument("--sigma-max", type=_number, metavar="S", help="largest noise level (default: from the data)")
    fit.add_argument(
        "--standardize",
        action=argparse.BooleanOptionalAction,
        help="measure each column in its own standard deviation (default: if their scales are far apart)",
    )
    fit.add_argument("--width", type=_whole, metavar="N", help="hidden units (default: from the columns)")
    fit.add_argument("--depth", type=_whole, metavar="N", help="residual blocks")
    fit.add_argument("--steps", type=_whole, metavar="N", help="training steps at most")
    fit.add_argument("--max-seconds", type=_number, metavar="S", help="end the training by then (default: no limit)")
    fit.add_argument("--batch-size", type=_whole, metavar="N", help="rows a step")
    fit.add_argument("--learning-rate", type=_number, metavar="R", help="peak learning rate")
    fit.add_argument(
        "--dropout", type=_number, metavar="P", help="share of hidden units dropped (default: from the rows)"
    )
    fit.add_argument(
        "--patience", type=_whole, metavar="N", help="looks without a better held-out loss before it stops"
    )
    fit.add_argument("--validation-fraction", type=_number, metavar="F", help="share of the rows held out")
    fit.add_argument("--objective", metavar="GOAL", help="score, or likelihood for log-densities (default: score)")
    fit.add_argument("--contamination", type=_number, metavar="F", help="share of outliers, for logprob --outliers")
    fit.add_argument("--device", metavar="D", help="cpu, cuda, … (default: a GPU where there is one)")
    fit.add_argument("--seed", type=_whole, default=0, metavar="N", help="seed of all draws (default: 0)")
    _add_quiet(fit)


def _add_sample(command: _Command) -> None:
    sample = command("sample", _sample, "draw new rows", "gradlogp sample model -n 1000 --out new.csv")
    sample.add_argument("model", metavar="MODEL", help="a saved model")
    sample.add_argument("-n", type=_whole, required=True, metavar="N", help="rows to draw")
    sample.add_argument("--out", required=True, metavar="FILE", help=f"file to write: {FILES}")
    sample.add_argument("--steps", type=_whole, metavar="N", help="steps of the sampler (default: as fitted)")
    sample.add_argument("--seed", type=_whole, metavar="N", help="another seed draws other rows (default: as fitted)")
    sample.add_argument("--device", metavar="D", help="cpu, cuda, … (default: as fitted)")
    _add_quiet(sample)


def _add_maps(command: _Command) -> None:
    for name, run, summary in (
        ("grad", _grad, "evaluate the score ∇log p_σ at rows"),
        ("denoise", _denoise, "evaluate E[x | x_σ], the mean of the clean rows that noise turned into these"),
    ):
        made = command(name, run, summary, f"gradlogp {name} model data.csv --sigma 0.5 --out {name}.csv")
        made.add_argument("model", metavar="MODEL", help="a saved model")
        made.add_argument("data", metavar="DATA", help=f"rows like those fitted: {FILES}")
        made.add_argument("--sigma", type=_number, required=True, metavar="S", help="noise level; info shows the range")
        made.add_argument("--out", required=True, metavar="FILE", help=f"file to write: {FILES}")
        _add_quiet(made)


def _add_logprob(command: _Command) -> None:
    example = "gradlogp logprob model data.csv --out logprob.csv"
    made = command("logprob", _logprob, "evaluate the log-density of rows, in nats, with its numerical error", example)
    made.add_argument("model", metavar="MODEL", help="a saved model")
    made.add_argument("data", metavar="DATA", help=f"rows like those fitted: {FILES}")
    made.add_argument("--out", required=True, metavar="FILE", help=f"file to write: {FILES}")
    made.add_argument("--atol", type=_number, metavar="A", help="numerical error wanted, in nats (default: 0.0003)")
    made.add_argument(
        "--outliers",
        action="store_true",
        help="add a column: 1 for an outlier (of a model fitted with --contamination)",
    )
    made.add_argument("--device", metavar="D", help="cpu, cuda, … (default: as fitted)")
    _add_quiet(made)


def _add_diagnose(command: _Command) -> None:
    example = "gradlogp diagnose model new_rows.csv --train data.csv"
    made = command("diagnose", _diagnose, "measure how good a model is, and write a page about it", example)
    made.add_argument("model", metavar="MODEL", help="a saved model")
    made.add_argument("data", metavar="DATA", help=f"rows that it was not fitted on, at least 8: {FILES}")
    made.add_argument("--train", metavar="FILE", help="the rows that it was fitted on, to see what it memorised")
    made.add_argument("--out", metavar="FOLDER", help="folder for report.html and report.json (default: MODEL)")
    made.add_argument("--levels", type=_whole, metavar="N", help="noise levels (default: 12)")
    made.add_argument("--seed", type=_whole, metavar="N", help="another seed draws other noise (default: as fitted)")
    _add_quiet(made)


def _add_quiet(parser: _Parser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, want a number") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, want a whole number") from None


# --- the commands ---------------------------------------------------------------------------------------------------


def _demo(args: argparse.Namespace) -> None:
    from gradlogp.reports import demo

    limit = {} if args.seconds is None else {"seconds": args.seconds}
    demo(args.out, seed=args.seed, quiet=args.quiet, **limit)


def _fit(args: argparse.Namespace) -> None:
    from gradlogp.checkpoints import check_destination
    from gradlogp.data import load_file
    from gradlogp.estimators import MIN_ROWS, ScoreDensity

    check_destination(args.out)
    table = load_file(args.data, min_rows=MIN_ROWS)
    given = {name: getattr(args, option[2:].replace("-", "_")) for option, name in OPTIONS.items()}
    model = ScoreDensity(verbose=not args.quiet, **{k: v for k, v in given.items() if v is not None})
    for _ in _told(model.fit_steps(table), args.quiet or sys.stderr.isatty()):
        pass
    model.save(args.out)
    if args.quiet:
        return
    _print_table(
        [
            ("data", f"{len(table.values):,} rows × {_width(model)} of {args.data}"),
            *_measured(model),
            ("saved", args.out),
            ("next", _next_command(args.out, args.data, len(table.values))),
        ]
    )


def _sample(args: argparse.Namespace) -> None:
    from gradlogp.data import check_output, read, save_file

    model = _load(args.model)
    check_output(args.out, model.schema_)
    own = {"sampling_steps": args.steps, "device": args.device}
    model.set_params(**{k: v for k, v in own.items() if v is not None})
    rows = read(model.sample(args.n, random_state=args.seed)).values
    save_file(args.out, rows, model.schema_)
    _say(args, f"wrote {len(rows):,} rows × {_width(model)} to {args.out}")
    told = f"{model.sampling_steps} steps; from the end of the model's exact flow, in units of σ"
    _say(args, f"{told}: {model.sampling_accuracy_}")


def _grad(args: argparse.Namespace) -> None:
    model, table = _load(args.model), _load_rows(args)
    _map(args, model, table, model.grad_log_prob, "∇log p_σ")


def _denoise(args: argparse.Namespace) -> None:
    model, table = _load(args.model), _load_rows(args)
    _map(args, model, table, model.denoise, "E[x | x_σ]")


def _logprob(args: argparse.Namespace) -> None:
    import numpy as np

    from gradlogp.data import check_output, save_file
    from gradlogp.diagnostics import Estimate
    from gradlogp.likelihood import Exact

    model, table = _load(args.model), _load_rows(args)
    model.set_params(verbose=not args.quiet, **({} if args.device is None else {"device": args.device}))
    names = ("log_prob", "error", "outlier")[: 2 + args.outliers]
    schema = table.schema.of_columns(names)
    check_output(args.out, schema)
    offset = model.offset_ if args.outliers else None
    found = model.log_prob(table, trace=None if args.atol is None else Exact(args.atol))
    columns = [found.value.numpy(), found.error.numpy()]
    if offset is not None:
        columns.append((columns[0] < offset).astype(np.float64))
    save_file(args.out, np.stack(columns, 1), schema)
    mean = f"mean {Estimate.mean_of(found.value)}" if len(found.value) > 1 else f"{found.value.item():.4g}"
    _say(
        args, f"wrote log p_σ at σ = {model.levels_.sigma_min:.3g} of {len(found.value):,} rows, in nats, to {args.out}"
    )
    _say(args, f"{mean}; numerical error at most {found.error.max().item():.1g}")
    if offset is not None:
        _say(args, f"outliers, below {offset:.4g}: {int(columns[2].sum()):,}")


def _diagnose(args: argparse.Namespace) -> None:
    from gradlogp.audit import check_folder
    from gradlogp.data import load_file

    model, out = _load(args.model), args.out or args.model
    check_folder(out)
    test = load_file(args.data)
    train = None if args.train is None else load_file(args.train)
    model.set_params(verbose=not args.quiet)
    given = {} if args.levels is None else {"n_levels": args.levels}
    audit = model.diagnose(test, train, out=out, random_state=args.seed, **given)
    _say(args, f"{audit}\nwrote {os.path.join(out, 'report.html')} and report.json")


def _map(args: argparse.Namespace, model: ScoreDensity, table: Table, function: Callable[..., Any], what: str) -> None:
    from gradlogp.data import check_output, read, save_file

    check_output(args.out, table.schema)
    values = read(function(table, args.sigma), what).values
    save_file(args.out, values, table.schema, floating=True)
    _say(args, f"wrote {what} at σ = {args.sigma:g}, {len(values):,} rows × {_width(model)}, to {args.out}")


def _info(args: argparse.Namespace) -> None:
    from gradlogp.checkpoints import FORMAT, FORMAT_VERSION

    model = _load(args.model)
    network = model.network_
    size = sum(p.numel() for p in model.model_.parameters())
    _print_table(
        [
            ("model", args.model),
            ("format", f"{FORMAT}, version {FORMAT_VERSION}"),
            *_columns(model),
            *_measured(model),
            ("network", f"{size:,} parameters, width {network['width']}, depth {network['depth']}"),
        ]
    )


# --- in and out -----------------------------------------------------------------------------------------------------


def _load(path: str) -> ScoreDensity:
    from gradlogp.estimators import ScoreDensity

    return ScoreDensity.load(path)


def _load_rows(args: argparse.Namespace) -> Table:
    """The rows of DATA, which FILE must not replace."""
    from gradlogp._shapes import InputError
    from gradlogp.data import load_file

    if os.path.exists(args.data) and os.path.exists(args.out) and os.path.samefile(args.data, args.out):
        raise InputError(f"--out: got {args.out}, the input itself, want another file")
    return load_file(args.data)


def _told(records: Iterable[Record], silent: bool) -> Iterator[Record]:
    """The records, with a line on stderr about every tenth of the way where there is no bar."""
    told = -1
    for record in records:
        if not silent and int(10 * record.progress) > told:
            told = int(10 * record.progress)
            loss = f"loss {record.loss:.4f}, held out {record.held_out:.4f} ± {record.held_out_stderr:.1g}"
            loss += f", left {record.left:.4f} ± {record.left_stderr:.1g}"
            print(f"fit {record.progress:4.0%}: step {record.step}, {loss}, {record.seconds:.0f} s", file=sys.stderr)
        yield record


def _say(args: argparse.Namespace, line: str) -> None:
    if not args.quiet:
        print(line)


def _print_table(rows: Iterable[tuple[str, str]]) -> None:
    """Lines of a name and what it is."""
    for name, text in rows:
        print(f"{name:<14}{text}")


def _measured(model: ScoreDensity) -> Iterator[tuple[str, str]]:
    """Lines on the noise range, the training and the checks."""
    levels, history = model.levels_, model.history_
    yield "noise levels", f"{levels.sigma_min:.4g} to {levels.sigma_max:.4g}, {_unit(model)}"
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
    yield "score error", _score_error(model)
    yield "self-check", str(model.self_check_).removeprefix("self-check ")


def _score_error(model: ScoreDensity) -> str:
    """How far the score is from the true one, on which rows."""
    error, n = model.score_error_, model.n_held_out_
    if error is not None:
        rows = f"{error.n_rows:,} held-out rows, which also chose when to stop"
        return f"{str(error).removeprefix('score error ')} (95 %, all levels together; {rows})"
    return "not measured in fit: see gradlogp diagnose" if n is None else f"too few held-out rows ({n}) to measure"


def _unit(model: ScoreDensity) -> str:
    if (model.noise_scale_ == 1).all():
        return "in the columns' shared unit"
    return "in standard deviations of each column"


def _width(model: ScoreDensity) -> str:
    shape = model.schema_.event_shape
    return f"{shape[0]} column{'s' * (shape[0] != 1)}" if len(shape) == 1 else f"shape {shape}"


def _columns(model: ScoreDensity) -> Iterator[tuple[str, str]]:
    """Lines on the columns: name, type, the grid that samples come back on, the standard deviation of unit noise."""
    schema, axes = model.schema_, model.grid_.axes
    yield "rows", f"{_width(model)}, as {schema.kind}"
    if len(schema.event_shape) > 1:
        gridded = sum(axis.gridded for axis in axes)
        yield "cells", f"{schema.dtypes[0]}, {gridded:,} of {len(axes):,} constant or on a grid"
        return
    names = schema.columns or tuple(range(len(axes)))
    types = schema.dtypes if schema.columns is not None else schema.dtypes * len(axes)
    widest = max(len(str(name)) for name in names[:SHOWN_COLUMNS])
    for name, dtype, axis, unit in list(zip(names, types, axes, model.noise_scale_, strict=True))[:SHOWN_COLUMNS]:
        grid = f"in steps of {axis.step:g}" if axis.step > 0 else "constant" if axis.gridded else "continuous"
        noise = "" if unit == 1 else f", σ = 1 is {unit:.4g}"
        yield "  column", f"{name!s:<{widest}}  {dtype}, {axis.low:g} to {axis.high:g}, {grid}{noise}"
    if len(axes) > SHOWN_COLUMNS:
        yield "", f"and {len(axes) - SHOWN_COLUMNS:,} more"


def _next_command(model: str, data: str, n: int) -> str:
    """The command to type next."""
    new = f"new{Path(data).suffix.lower()}"
    return f"gradlogp sample {shlex.quote(model)} -n {n} --out {new}"


if __name__ == "__main__":
    sys.exit(main())
