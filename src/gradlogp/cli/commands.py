"""What each command does."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from gradlogp.cli.mistakes import OPTIONS, UsageError
from gradlogp.cli.stops import check, keep
from gradlogp.cli.words import (
    apart,
    load,
    load_chosen,
    load_fitted,
    load_groups,
    load_rows,
    next_command,
    print_table,
    say,
    told,
)

if TYPE_CHECKING:
    from gradlogp.data import Table
    from gradlogp.estimators import DensityEstimator


def demo(args: argparse.Namespace) -> None:
    """Learn digits and a known density, and write a page."""
    from gradlogp.reports import demo as make

    check()
    limit = {} if args.seconds is None else {"seconds": args.seconds}
    make(args.out, seed=args.seed, quiet=args.quiet, **limit)


def fit(args: argparse.Namespace) -> None:
    """Learn the score of a file of rows, and save the model."""
    from gradlogp._errors import InputError
    from gradlogp._progress import Phases
    from gradlogp.checkpoints import check_destination

    check_destination(args.out)
    with Phases("fit", not args.quiet) as phases:
        phases("starting")
        from gradlogp.estimators import MIN_ROWS, DensityEstimator
        from gradlogp.estimators.summary import measured, width

        phases("reading")
        table = load_chosen(args, MIN_ROWS)
        given = {name: getattr(args, option[2:].replace("-", "_")) for option, name in OPTIONS.items()}
        given = {k: v for k, v in given.items() if v is not None} | ({"network": None} if args.closed_form else {})
        model = DensityEstimator(verbose=not args.quiet, **given)
        model._phases = phases
        try:
            with closing(model.fit_steps(table, groups=load_groups(args))) as steps:
                for _ in told(steps, args.quiet or sys.stderr.isatty()):
                    pass
            model.save(args.out)
        except (KeyboardInterrupt, InputError, OSError) as stop:  # OSError: of a closed terminal
            keep(model, args.out, stop)
            raise
    if args.quiet:
        return
    print_table(
        [
            ("data", f"{len(table.values):,} rows × {width(model)} of {args.data}"),
            *measured(model),
            ("saved", args.out),
            ("next", next_command(args.out, args.data, len(table.values))),
        ]
    )


def sample(args: argparse.Namespace) -> None:
    """Draw rows into a file."""
    from gradlogp._progress import Phases

    with Phases("sample", not args.quiet) as phases:
        phases("starting")
        from gradlogp.data import check_output, read, save_file
        from gradlogp.estimators.summary import width

        phases("reading")
        model = load(args.model)
        model._phases = phases
        check_output(args.out, model.schema_)
        own = {"sampling_steps": args.steps, "device": args.device}
        model.set_params(**{k: v for k, v in own.items() if v is not None}, verbose=not args.quiet)
        rows = read(model.sample(args.n, random_state=args.seed)).values
        phases("writing")
        save_file(args.out, rows, model.schema_)
    say(args, f"wrote {len(rows):,} rows × {width(model)} to {args.out}")
    told = f"{model.sampling_steps} steps; from the end of the model's exact flow, in units of σ"
    say(args, f"{told}: {model.sampling_accuracy_}")


def grad(args: argparse.Namespace) -> None:
    """The score at rows, into a file."""
    model = load(args.model)
    table = load_rows(args, model)
    _map(args, model, table, model.grad_log_prob, "∇log p_σ")


def denoise(args: argparse.Namespace) -> None:
    """The denoised rows, into a file, with as many decimals as the fitted columns have."""
    from gradlogp.data import check_output, read, save_file

    model = load(args.model)
    table = load_rows(args, model)
    if args.std is not None:
        apart("--std", args.std, args.out, args.data)
        check_output(args.std, table.schema)
    spread: list[Any] = []

    def mean(rows: Table, sigma: float) -> Any:
        found = model.denoise(rows, sigma, return_std=args.std is not None)
        if args.std is not None:
            spread.append(found[1])
            found = found[0]
        decimals = model.grid_.rounded(model.schema_.check(found).values)
        return model.schema_.restore(decimals, like=found, floating=True)

    _map(args, model, table, mean, "E[x | x_σ]")
    if args.std is not None:
        save_file(args.std, read(spread[0], "standard deviations").values, table.schema, floating=True)
        say(args, f"wrote the standard deviations of x given x_σ to {args.std}")


def logprob(args: argparse.Namespace) -> None:
    """The log-density of rows and its numerical error, into a file."""
    import numpy as np

    from gradlogp.data import check_output, save_file
    from gradlogp.diagnostics import Estimate
    from gradlogp.estimators.summary import share
    from gradlogp.likelihood import Exact

    model = load(args.model)
    table = load_rows(args, model)
    if args.unnormalised is not None:
        _unnormalised(args, model, table)
        return
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
    say(args, f"wrote log p_σ at σ = {model.levels_.sigma_min:.3g} of {len(found.value):,} rows in nats to {args.out}")
    say(args, f"{mean}; numerical error at most {found.error.max().item():.1g}")
    if offset is not None:
        say(args, f"outliers, below {offset:.4g} nats: {int(columns[2].sum()):,}; expected {share(model)}")


def _unnormalised(args: argparse.Namespace, model: DensityEstimator, table: Table) -> None:
    from gradlogp.data import check_output, save_file

    if args.outliers or args.atol is not None:
        raise UsageError("--unnormalised: got --outliers or --atol too, want them for normalised log-densities only")
    schema = table.schema.of_columns(("unnormalised_log_prob",))
    check_output(args.out, schema)
    values = model.unnormalised_log_prob(table, args.unnormalised)
    save_file(args.out, values[:, None], schema)
    what = f"log p_σ at σ = {args.unnormalised:g}, but for a constant, of {len(values):,} rows in nats"
    say(args, f"wrote {what} to {args.out}")
    _say_above(args, model, args.unnormalised)


def diagnose(args: argparse.Namespace) -> None:
    """Measure a model on rows it has not seen; a page and JSON."""
    from gradlogp.audit import check_folder

    model, out = load(args.model), args.model if args.out is None else args.out
    check_folder(out)
    test = load_fitted(args, model, args.data)
    train = None if args.train is None else load_fitted(args, model, args.train)
    model.set_params(verbose=not args.quiet)
    given = {} if args.levels is None else {"n_levels": args.levels}
    audit = model.diagnose(test, train, groups=load_groups(args), out=out, random_state=args.seed, **given)
    say(args, f"{audit}\nwrote {os.path.join(out, 'report.html')} and report.json")


def chain(args: argparse.Namespace) -> None:
    """J_DAE, J_DSM, J_ISM and J_ESM of an auto-encoder that is trained, or of a saved model, on a file's rows."""
    from gradlogp.estimators import MIN_ROWS
    from gradlogp.estimators.summary import unit
    from gradlogp.reports import chain_of, check_output, learn_autoencoder, save_autoencoder

    own = {"n_hidden": args.hidden, "max_seconds": args.max_seconds}
    own = {k: v for k, v in own.items() if v is not None}
    if args.model is not None:
        if own or args.out is not None or args.columns or args.drop:
            given = "--hidden, --max-seconds, --out, --columns or --drop"
            raise UsageError(f"--model: got {given} too, want them for an auto-encoder only")
        model = load(args.model)
        say(args, f"{args.model}: σ {unit(model)}")
        print(chain_of(model, load_fitted(args, model, args.data), args.sigma, seed=args.seed))
        return
    if args.out is not None:
        check_output(args.out)
    table = load_chosen(args, MIN_ROWS)
    learnt = learn_autoencoder(table, args.sigma, **own, seed=args.seed, verbose=not args.quiet)
    say(args, repr(learnt))
    print(learnt.chain)
    if args.out is not None:
        say(args, f"wrote {', '.join(map(str, save_autoencoder(learnt, args.out)))}")


def _map(
    args: argparse.Namespace, model: DensityEstimator, table: Table, function: Callable[..., Any], what: str
) -> None:
    from gradlogp.data import check_output, read, save_file
    from gradlogp.estimators.summary import width

    check_output(args.out, table.schema)
    values = read(function(table, args.sigma), what).values
    save_file(args.out, values, table.schema, floating=True)
    say(args, f"wrote {what} at σ = {args.sigma:g}, {len(values):,} rows × {width(model)}, to {args.out}")
    _say_above(args, model, args.sigma)


def _say_above(args: argparse.Namespace, model: DensityEstimator, sigma: float) -> None:
    """Say where a level is beyond those trained, and what is taken there."""
    high = model.levels_.sigma_max
    if sigma > high:
        there = "there the closed form that the network starts from is taken, without the network"
        say(args, f"note: σ = {sigma:g} is above the largest level trained, {high:.4g}; {there}")


def info(args: argparse.Namespace) -> None:
    """Print what a saved model is."""
    from gradlogp import checkpoints

    check()
    lines = checkpoints.summary(args.model)
    if lines is None:  # saved by an earlier version
        from gradlogp.estimators.summary import summary

        lines = summary(load(args.model))
    form = f"{checkpoints.FORMAT}, version {checkpoints.FORMAT_VERSION}"
    print_table([("model", args.model), ("format", form), *lines])
