"""The commands and their options."""

from __future__ import annotations

import argparse
import csv
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from gradlogp import __version__
from gradlogp.cli import commands
from gradlogp.cli.mistakes import UsageError

FILES = "csv, tsv, txt, parquet, npy or npz, or such as .gz"


class _Parser(argparse.ArgumentParser):
    commands: Mapping[str, _Parser] = {}

    def error(self, message: str) -> NoReturn:
        """One line, without the usage, with the nearest command to an unknown one."""
        unknown = re.search(r"invalid choice: '([^']*)'", message)
        hint = nearest(unknown[1], self.commands) if unknown else ""
        raise UsageError(f"{message}{hint} (see {self.prog} --help)")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; what is too short to be one, ``gradlogp`` or ``gradlogp fit``, shows its help too.

    Raises:
        UsageError: what is wrong with it, with the nearest command or option to one that is unknown.
    """
    whole, words = parser(), sys.argv[1:] if argv is None else list(argv)
    named = whole.commands.get(words[0]) if words else whole
    try:
        args, unknown = whole.parse_known_args(words)
    except UsageError as error:
        if named is not None and len(words) <= 1:
            print(named.format_help())
        if {"--columns", "--drop"} & set(words) and "required: DATA" in str(error):
            raise UsageError(f"{error}; put DATA before --columns or --drop, which take all words after them") from None
        raise
    if unknown:
        option = unknown[0].partition("=")[0]
        own = [o for action in (named or whole)._actions for o in action.option_strings]
        hint = nearest(option, own) if option.startswith("-") else ""
        (named or whole).error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return args


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the known words that begin so, or are nearest; or nothing."""
    bare = {name.lstrip("-"): name for name in known}
    start = word.lstrip("-")
    near = [name for name in bare if start and name.startswith(start)] or difflib.get_close_matches(start, bare, 1)
    return f"; did you mean {' or '.join(bare[name] for name in near[:3])}?" if near else ""


def parser() -> _Parser:
    """Of the whole command line."""
    whole = _Parser(
        prog="gradlogp",
        description="Learn the score ∇log p of a table's rows by denoising score matching, and use it.",
        epilog="example:\n  gradlogp fit data.csv --out model\n  gradlogp sample model -n 1000 --out new.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"gradlogp {__version__}")
    subparsers = whole.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")

    def command(name: str, run: Callable[[Any], None], summary: str, example: str) -> _Parser:
        made: _Parser = subparsers.add_parser(
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
    _add_chain(command)
    info = command("info", commands.info, "show what a saved model is", "gradlogp info model")
    info.add_argument("model", metavar="MODEL", help="a saved model")
    whole.commands = subparsers.choices
    return whole


_Command = Callable[[str, Callable[[Any], None], str, str], _Parser]


def _add_demo(command: _Command) -> None:
    demo = command(
        "demo", commands.demo, "learn digits and a known density, and write a page about it", "gradlogp demo --out demo"
    )
    demo.add_argument("--out", default="demo", metavar="FOLDER", help="folder to write (default: demo)")
    demo.add_argument("--seconds", type=_number, metavar="S", help="time to train each of its two models")
    demo.add_argument("--seed", type=_whole, default=0, metavar="N", help="seed of all draws (default: 0)")
    _add_quiet(demo)


def _add_fit(command: _Command) -> None:
    fit = command(
        "fit", commands.fit, "learn the score of a table's rows", "gradlogp fit data.csv --out model --max-seconds 60"
    )
    fit.add_argument("data", metavar="DATA", help=f"numbers, one row a datum: {FILES}")
    fit.add_argument("--out", required=True, metavar="MODEL", help="folder to write the model to")
    _add_columns(fit)
    fit.add_argument("--groups", metavar="NAME", help="a column of labels: rows of one label are held out together")
    fit.add_argument("--sigma-min", type=_number, metavar="S", help="smallest noise level (default: from the data)")
    fit.add_argument("--sigma-max", type=_number, metavar="S", help="largest noise level (default: from the data)")
    fit.add_argument(
        "--standardize",
        action=argparse.BooleanOptionalAction,
        help="measure each column in its own standard deviation (default: if their scales are far apart)",
    )
    fit.add_argument(
        "--closed-form", action="store_true", help="no network: the best that is known without training, in seconds"
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
        "--patience",
        type=_whole,
        metavar="N",
        help="looks that bring less than 0.1 %% of the held-out loss before it stops",
    )
    fit.add_argument("--validation-fraction", type=_number, metavar="F", help="share of the rows held out")
    fit.add_argument("--objective", metavar="GOAL", help="score, or likelihood for log-densities (default: score)")
    fit.add_argument(
        "--energy", action="store_true", default=None, help="learn an energy, of which the score is the gradient"
    )
    fit.add_argument("--contamination", type=_number, metavar="F", help="share of outliers, for logprob --outliers")
    fit.add_argument("--device", metavar="D", help="cpu, cuda, … (default: a GPU where there is one)")
    fit.add_argument("--seed", type=_whole, default=0, metavar="N", help="seed of all draws (default: 0)")
    _add_quiet(fit)


def _add_sample(command: _Command) -> None:
    sample = command("sample", commands.sample, "draw new rows", "gradlogp sample model -n 1000 --out new.csv")
    sample.add_argument("model", metavar="MODEL", help="a saved model")
    sample.add_argument("-n", type=_whole, required=True, metavar="N", help="rows to draw")
    sample.add_argument("--out", required=True, metavar="FILE", help=f"file to write: {FILES}")
    sample.add_argument("--steps", type=_whole, metavar="N", help="steps of the sampler (default: as fitted)")
    sample.add_argument("--seed", type=_whole, metavar="N", help="another seed draws other rows (default: as fitted)")
    sample.add_argument("--device", metavar="D", help="cpu, cuda, … (default: as fitted)")
    _add_quiet(sample)


def _add_maps(command: _Command) -> None:
    for name, run, summary in (
        ("grad", commands.grad, "evaluate the score ∇log p_σ at rows"),
        ("denoise", commands.denoise, "evaluate E[x | x_σ], the mean of the clean rows that noise turned into these"),
    ):
        made = command(name, run, summary, f"gradlogp {name} model data.csv --sigma 0.5 --out {name}.csv")
        made.add_argument("model", metavar="MODEL", help="a saved model")
        made.add_argument("data", metavar="DATA", help=f"rows like those fitted: {FILES}")
        made.add_argument("--sigma", type=_number, required=True, metavar="S", help="noise level; info shows the range")
        made.add_argument("--out", required=True, metavar="FILE", help=f"file to write: {FILES}")
        if name == "denoise":
            made.add_argument(
                "--std", metavar="FILE", help=f"file for the standard deviations of the clean cells: {FILES}"
            )
        _add_quiet(made)


def _add_logprob(command: _Command) -> None:
    example = "gradlogp logprob model data.csv --out logprob.csv"
    made = command(
        "logprob", commands.logprob, "evaluate the log-density of rows, in nats, with its numerical error", example
    )
    made.add_argument("model", metavar="MODEL", help="a saved model")
    made.add_argument("data", metavar="DATA", help=f"rows like those fitted: {FILES}")
    made.add_argument("--out", required=True, metavar="FILE", help=f"file to write: {FILES}")
    made.add_argument("--atol", type=_number, metavar="A", help="numerical error wanted, in nats (default: 0.0003)")
    made.add_argument(
        "--unnormalised",
        type=_number,
        metavar="S",
        help="log p_σ at this noise level but for a constant (of a model fitted with --energy)",
    )
    made.add_argument(
        "--outliers",
        action="store_true",
        help="add a column: 1 for an outlier (of a model fitted with --contamination)",
    )
    made.add_argument("--device", metavar="D", help="cpu, cuda, … (default: as fitted)")
    _add_quiet(made)


def _add_diagnose(command: _Command) -> None:
    example = "gradlogp diagnose model new_rows.csv --train data.csv"
    made = command("diagnose", commands.diagnose, "measure how good a model is, and write a page about it", example)
    made.add_argument("model", metavar="MODEL", help="a saved model")
    made.add_argument("data", metavar="DATA", help=f"rows that it was not fitted on, at least 8: {FILES}")
    made.add_argument("--train", metavar="FILE", help="the rows that it was fitted on, to see what it memorised")
    made.add_argument("--groups", metavar="NAME", help="a column of labels: rows of one label may depend on each other")
    made.add_argument("--out", metavar="FOLDER", help="folder for report.html and report.json (default: MODEL)")
    made.add_argument("--levels", type=_whole, metavar="N", help="noise levels (default: 12)")
    made.add_argument("--seed", type=_whole, metavar="N", help="another seed draws other noise (default: as fitted)")
    _add_quiet(made)


def _add_chain(command: _Command) -> None:
    summary = "train a denoising auto-encoder, and show the objectives of score matching that it is in a chain with"
    made = command("chain", commands.chain, summary, "gradlogp chain data.csv --sigma 0.5 --out chain")
    made.add_argument("data", metavar="DATA", help=f"numbers, one row a datum: {FILES}")
    _add_columns(made)
    made.add_argument("--sigma", type=_number, metavar="S", help="noise level (default: the data's scale)")
    made.add_argument("--hidden", type=_whole, metavar="N", help="hidden units (default: 256)")
    made.add_argument("--max-seconds", type=_number, metavar="S", help="time to train (default: 60)")
    made.add_argument("--model", metavar="MODEL", help="a saved model to show in the place of an auto-encoder")
    made.add_argument("--out", metavar="FOLDER", help="folder for the auto-encoder and its pictures")
    made.add_argument("--seed", type=_whole, default=0, metavar="N", help="seed of all draws (default: 0)")
    _add_quiet(made)


def _add_columns(parser: _Parser) -> None:
    either = parser.add_mutually_exclusive_group()
    for option, what in (("--columns", "the columns to learn, by name"), ("--drop", "columns to leave out, by name")):
        either.add_argument(
            option, type=_names, nargs="+", action="extend", metavar="NAME", help=f"{what}: a b, or a,b"
        )


def _names(text: str) -> list[str]:
    """Names with commas between them; one that holds a comma is put into double quotes, as in csv."""
    try:
        return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
    except csv.Error:
        raise argparse.ArgumentTypeError(f"got {text!r}, want names with commas between") from None


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
