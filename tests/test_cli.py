"""The command ``gradlogp``: every subcommand, every file format, what it prints, and what an interrupt leaves."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.datasets import load_wine
from tampering import edit_config

from gradlogp import ScoreDensity, __version__
from gradlogp._progress import Phases
from gradlogp.cli import main
from gradlogp.cli.arguments import parse, parser
from gradlogp.cli.words import load_chosen
from gradlogp.data import load_file
from gradlogp.estimators.summary import NOT_KEPT, in_short
from gradlogp.training import Record

QUICK = ["--steps", "20", "--width", "8", "--depth", "1"]
COMMANDS = ("demo", "fit", "sample", "grad", "denoise", "diagnose", "info")


def table(n: int = 60) -> pl.DataFrame:
    r = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "age": r.integers(18, 80, n),
            "income": r.lognormal(10, 1, n),
            "ratio": r.normal(size=n).astype(np.float32),
            "member": r.integers(0, 2, n).astype(bool),
        }
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a table as parquet and csv, and a model fitted on the parquet file."""
    home = tmp_path_factory.mktemp("cli")
    table().write_parquet(home / "data.parquet")
    table().write_csv(home / "data.csv")
    assert main(["fit", str(home / "data.parquet"), "--out", str(home / "model"), *QUICK, "--quiet"]) == 0
    return home


def run(capsys, *argv: object) -> tuple[str, str]:
    """Run a command that succeeds; what it printed."""
    assert main([str(a) for a in argv]) == 0
    out, err = capsys.readouterr()
    return out, err


# -- help and start-up


@pytest.mark.parametrize("argv", [[], *([c] for c in COMMANDS)], ids=["all", *COMMANDS])
def test_help_has_an_example(argv, capsys):
    out, err = run(capsys, *argv, "--help")
    assert "example:\n  gradlogp " in out
    assert err == ""
    assert all(len(line) <= 100 for line in out.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_can_be_parsed(command, capsys):
    out, _ = run(capsys, command, "--help")
    words = out.split("example:\n  gradlogp ")[1].split()
    assert parser().parse_args(words).command == command


def test_version(capsys):
    assert run(capsys, "--version")[0].strip() == f"gradlogp {__version__}"


SLOW = {"sklearn", "scipy.stats", "scipy.optimize", "pandas", "pyarrow", "matplotlib", "sympy", "torch._dynamo"}
LIGHT = {"torch", "numpy", "polars", "scipy", "tqdm"} | SLOW


@pytest.mark.parametrize(
    ("argv", "code", "never"),
    [
        (["fit", "--help"], 0, LIGHT),
        (["--version"], 0, LIGHT),
        (["nonsense"], 2, LIGHT),
        (["fit", "data.csv", "--ouch", "m"], 2, LIGHT),
        (["fit", "data.csv", "--out", "no/where"], 2, LIGHT - {"tqdm"}),
        (["info", "model"], 0, LIGHT),
        (["info", "nowhere"], 2, LIGHT),
        (["sample", "model", "-n", "3", "--out", "s.csv"], 0, SLOW),
        (["grad", "model", "data.csv", "--sigma", "1", "--out", "g.csv"], 0, SLOW),
        (["fit", "data.csv", "--out", "m", *QUICK], 0, SLOW),
    ],
    ids=lambda v: " ".join(v[:3]) if isinstance(v, list) else "",
)
def test_a_command_imports_what_it_needs(home, tmp_path, argv, code, never):
    """Each of these takes a tenth of a second to a second, and torch one."""
    shutil.copy(home / "data.csv", tmp_path)
    shutil.copytree(home / "model", tmp_path / "model")
    run = f"from gradlogp.cli import main; code = main({argv})"
    run = f"import sys; {run}; print(code, sorted(sys.modules.keys() & {never}))"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == f"{code} []"


def test_info_of_a_model_without_a_summary_is_the_same(home, tmp_path, capsys):
    """What was written when the model was saved, and what the loaded model says."""
    model = shutil.copytree(home / "model", tmp_path / "m")
    first, _ = run(capsys, "info", model)
    edit_config(model, lambda c: c.pop("summary"))
    assert run(capsys, "info", model)[0] == first
    edit_config(model, lambda c: c.update(summary="none"))
    assert run(capsys, "info", model)[0] == first


# -- fit


def test_fit_says_what_it_did(home, tmp_path, capsys):
    out, err = run(capsys, "fit", home / "data.csv", "--out", tmp_path / "m", *QUICK)
    for line in (
        r"data +60 rows × 4 columns of .*data\.csv",
        r"noise levels +[\d.e+-]+ to [\d.e+-]+, in standard deviations of each column",
        r"training +20 steps in [\d.]+ s, the best after \d+",
        r"held-out loss [\d.]+ ± [\d.e-]+ ",
        r"score error +not measured in fit \(stopped, or too few .* 6 held-out rows, .*\): see gradlogp diagnose$",
        r"self-check +passes: ",
        rf"saved +{re.escape(str(tmp_path / 'm'))}",
        r"next +gradlogp sample .* -n 60 --out new\.csv",
    ):
        assert re.search(f"^{line}", out, re.MULTILINE), line
    assert re.search(r"^fit: step 20, loss [\d.]+, held out [\d.]+ ± ", err, re.MULTILINE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


PHASES = ["reading", "closed form", "noise levels", "mixtures", "self-check", "training", "gates"]
SAVING = ["held-out log-densities", "score error", "saving"]


def test_phases_are_told_by_name_as_plain_lines(home, tmp_path, capsys):
    _, err = run(capsys, "fit", home / "data.csv", "--out", tmp_path / "m", *QUICK)
    told = [line for line in err.splitlines() if not line.startswith("fit: step ")]
    assert told[:-1] == [f"fit: {name}" for name in ["starting", *PHASES, *SAVING]]
    shares = re.fullmatch(r"fit [\d.]+ s: (.*)", told[-1])[1].split(", ")
    assert {"training", "score error"} & {share.rsplit(" ", 2)[0] for share in shares}
    assert 97 <= sum(int(share.split()[-2]) for share in shares) <= 103
    assert "\r" not in err
    _, err = run(capsys, "sample", tmp_path / "m", "-n", 3, "--out", tmp_path / "s.csv")
    told = err.splitlines()
    assert told[:5] == [f"sample: {n}" for n in ("starting", "reading", "fitting the sampler", "drawing", "writing")]
    assert told[5].startswith("sample ")


def test_python_tells_phases_and_what_a_fit_was_worth(tmp_path, capsys):
    quick = {"n_steps": 20, "width": 8, "depth": 1, "random_state": 0}
    est = ScoreDensity(**quick).fit(table())
    told = capsys.readouterr().err.splitlines()
    assert told[: len(PHASES)] == [f"fit: {name}" for name in PHASES]
    assert told[-1] == f"fit: {in_short(est, 'n_steps=')}"
    assert len(told) <= len(PHASES) + 2
    est.save(tmp_path / "m")
    told = capsys.readouterr().err.splitlines()
    assert told[: len(SAVING)] == [f"save: {name}" for name in SAVING]
    est.save(tmp_path / "m")  # all is measured
    assert capsys.readouterr().err.splitlines() == ["save: saving"]
    assert "_phases" not in vars(est)
    ScoreDensity(**quick, verbose=False).fit(table()).save(tmp_path / "n")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_the_shares_of_phases(monkeypatch, capsys, terminal):
    """Of 8 s, by a clock of ours: 2 and 1 of one name, 5 of another, and nearly none of a third."""
    clock = iter([0.0, 0.0, 2.0, 7.0, 8.0, 8.001])
    monkeypatch.setattr("gradlogp._progress.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with Phases("fit", shown=True) as phases:
        for name in ("reading", "training", "training", "reading", "x"):
            phases(name)
    err = capsys.readouterr().err
    last = "fit 8.0 s: reading 37 %, training 62 %\n"
    if terminal:  # each name in the place of the one before, and none left
        assert err == "fit: reading\rfit: training\rfit: reading \rfit: x      \r      \r" + last
    else:
        assert err == "fit: reading\nfit: training\nfit: reading\nfit: x\n" + last


def test_a_closed_terminal_ends_no_phase(monkeypatch):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with Phases("fit", shown=True) as phases:
        phases("reading")
    assert phases.seconds.keys() == {"reading"}


def test_a_terminal_that_has_gone_ends_no_fit(monkeypatch):
    class Gone(io.StringIO):
        def write(self, *_):
            raise OSError("gone")

    monkeypatch.setattr(sys, "stderr", Gone())
    est = ScoreDensity(n_steps=2, width=8, depth=1, random_state=0, verbose=True).fit(
        np.random.default_rng(0).normal(size=(60, 2))
    )
    assert est.history_[-1].step == 2


def test_a_mistake_stands_on_a_line_of_its_own(home, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["fit", str(home / "nowhere.csv"), "--out", str(home / "new")]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"fit: starting\rfit: reading \r +\rgradlogp: error: [^\r\n]*nowhere[^\r\n]*\n", err)


def test_fit_compares_with_the_model_before_training(home, tmp_path, capsys):
    out, _ = run(capsys, "fit", home / "data.csv", "--out", tmp_path / "m", *QUICK)
    first = ScoreDensity.load(tmp_path / "m").history_[0]
    if first.step == 0:
        assert f"closed form alone: {first.held_out:.4f}" in out


def test_the_next_command_works_as_printed(home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, _ = run(capsys, "fit", home / "data.csv", "--out", "a model", *QUICK)
    program, *words = shlex.split(re.search(r"^next +(.*)$", out, re.MULTILINE)[1])
    assert program == "gradlogp"
    assert main(words) == 0
    assert len(pl.read_csv("new.csv")) == 60


def test_fit_shows_a_bar_on_a_terminal(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, err = run(capsys, "fit", home / "data.csv", "--out", tmp_path / "m", *QUICK)
    assert "\r" in err
    assert "100% |" in err
    assert "fit 100%:" not in err


def test_quiet_prints_nothing(home, tmp_path, capsys):
    for argv in (
        ["fit", home / "data.csv", "--out", tmp_path / "m", *QUICK],
        ["sample", tmp_path / "m", "-n", 3, "--out", tmp_path / "s.csv"],
        ["grad", tmp_path / "m", home / "data.csv", "--sigma", 1, "--out", tmp_path / "g.csv"],
        ["denoise", tmp_path / "m", home / "data.csv", "--sigma", 1, "--out", tmp_path / "d.csv"],
    ):
        assert run(capsys, *argv, "--quiet") == ("", "")


def test_fit_hands_its_options_to_the_estimator(home, tmp_path):
    given = {
        "sigma_min": 0.1, "sigma_max": 3.0, "standardize": True, "width": 8, "depth": 1, "n_steps": 5, "batch_size": 32,
        "learning_rate": 0.01, "dropout": 0.1, "max_seconds": 100.0, "patience": 3, "validation_fraction": 0.2,
        "random_state": 7, "device": "cpu",
    }  # fmt: skip
    options = {"n_steps": "--steps", "random_state": "--seed"}
    argv = [w for k, v in given.items() if v is not True for w in (options.get(k, "--" + k.replace("_", "-")), str(v))]
    assert main(["fit", str(home / "data.csv"), "--out", str(tmp_path / "m"), "--standardize", "--quiet", *argv]) == 0
    model = ScoreDensity.load(tmp_path / "m")
    got = model.get_params()
    assert {k: got[k] for k in given} == given
    assert (model.levels_.sigma_min, model.levels_.sigma_max) == (0.1, 3.0)
    assert (
        main(["fit", str(home / "data.csv"), "--out", str(tmp_path / "n"), "--no-standardize", "--quiet", *argv]) == 0
    )
    assert (ScoreDensity.load(tmp_path / "n").noise_scale_ == 1).all()


def test_fit_is_the_same_every_time_and_replaces_a_model(home, tmp_path):
    model, out = tmp_path / "m", tmp_path / "s.parquet"
    drawn = []
    for seed in (0, 0, 1):
        assert main(["fit", str(home / "data.csv"), "--out", str(model), *QUICK, "--quiet", "--seed", str(seed)]) == 0
        assert main(["sample", str(model), "-n", "5", "--out", str(out), "--quiet"]) == 0
        drawn.append(pl.read_parquet(out))
    assert drawn[0].equals(drawn[1])
    assert not drawn[0].equals(drawn[2])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "s.parquet"]


# -- columns left out, and decimals


@pytest.fixture(scope="module")
def wine(tmp_path_factory) -> Path:
    """A folder with wine.csv as pandas saves it, with an index and a column of text, and a model fitted on it."""
    home = tmp_path_factory.mktemp("wine")
    frame = pd.DataFrame(load_wine().data[:, [0, 3, 12]], columns=["alcohol", "ash", "proline"])
    frame["proline"] = frame["proline"].astype(int)
    frame.insert(1, "origin", "Piedmont")
    frame.insert(2, "a,b", 1.5)
    frame.to_csv(home / "wine.csv")
    argv = ["fit", home / "wine.csv", "--out", home / "model", "--drop", "origin", '"a,b"', *QUICK]
    with pytest.MonkeyPatch.context() as patch:
        printed = io.StringIO()
        patch.setattr(sys, "stdout", printed)
        assert main([str(a) for a in argv]) == 0
    (home / "printed").write_text(printed.getvalue())
    return home


def decimals(column: pl.Series) -> int:
    """The most decimals that a column of text has."""
    return max(len(cell.partition(".")[2]) for cell in column)


def test_what_fit_left_out_is_said(wine):
    lines = (wine / "printed").read_text().splitlines()
    assert lines[0] == f"{wine / 'wine.csv'}: left out the first column, which has no name: a saved row index"
    assert lines[1] == f"{wine / 'wine.csv'}: left out columns 'origin', 'a,b'"
    assert ScoreDensity.load(wine / "model").schema_.columns == ("alcohol", "ash", "proline")


CHOICES = {
    "ash,alcohol": ["--columns", "ash,alcohol"],
    "ash alcohol": ["--columns", "ash", "alcohol"],
    "twice": ["--columns", "ash", "--columns", "alcohol"],
    "drop": ["--drop", "origin, proline", '"a,b"'],
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("command", [["fit", "--out", "m"], ["chain"]])
def test_columns_are_named_with_spaces_or_commas_between(wine, command, choice, capsys):
    args = parse([*command, str(wine / "wine.csv"), *CHOICES[choice]])
    assert load_chosen(args, 10).schema.columns == ("alcohol", "ash")
    assert "left out columns 'origin', 'a,b', 'proline'" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["grad", "denoise"])
def test_a_file_with_columns_that_were_left_out_can_be_used(wine, tmp_path, capsys, command):
    out, _ = run(capsys, command, wine / "model", wine / "wine.csv", "--sigma", 0.5, "--out", tmp_path / "o.csv")
    assert out.splitlines()[1] == f"{wine / 'wine.csv'}: left out columns 'origin', 'a,b'"
    got = load_file(tmp_path / "o.csv")
    assert got.schema.columns == ("alcohol", "ash", "proline")
    model, rows = ScoreDensity.load(wine / "model"), load_file(wine / "wine.csv", drop=["origin", "a,b"])
    if command == "grad":  # in full
        assert (got.values == model.grad_log_prob(rows, 0.5).to_numpy()).all()
    else:
        want = model.denoise(rows, 0.5).to_numpy()
        assert (got.values == np.column_stack([want[:, 0].round(2), want[:, 1].round(1), want[:, 2]])).all()


def test_other_commands_read_the_fitted_columns(wine, tmp_path, capsys):
    run(capsys, "logprob", wine / "model", wine / "wine.csv", "--out", tmp_path / "l.csv", "--atol", 0.1, "--quiet")
    out, _ = run(capsys, "chain", wine / "wine.csv", "--model", wine / "model", "--sigma", 0.5)
    assert "left out columns 'origin', 'a,b'" in out
    text = pl.read_csv(wine / "wine.csv").drop("")
    text.select("proline", "origin", "ash", "alcohol").write_parquet(tmp_path / "w.parquet")
    out, _ = run(capsys, "grad", wine / "model", tmp_path / "w.parquet", "--sigma", 1, "--out", tmp_path / "g.parquet")
    assert out.startswith(f"{tmp_path / 'w.parquet'}: left out column 'origin'\n")
    assert pl.read_parquet(tmp_path / "g.parquet").columns == ["proline", "ash", "alcohol"]


def test_decimals_come_back_as_they_were(wine, tmp_path, capsys):
    run(capsys, "sample", wine / "model", "-n", 50, "--out", tmp_path / "s.csv")
    run(
        capsys, "denoise", wine / "model", wine / "wine.csv", "--sigma", 0.5,
        "--out", tmp_path / "d.csv", "--std", tmp_path / "std.csv",
    )  # fmt: skip
    sampled, denoised, spread = (pl.read_csv(tmp_path / f"{n}.csv", infer_schema=False) for n in ("s", "d", "std"))
    assert [decimals(sampled[c]) for c in ("alcohol", "ash", "proline")] == [2, 1, 0]
    assert [decimals(denoised[c]) for c in ("alcohol", "ash")] == [2, 1]
    assert decimals(denoised["proline"]) > 3  # the mean of whole numbers is none
    assert decimals(spread["alcohol"]) > 3


# -- sample, grad, denoise: every format, with names and types


@pytest.mark.parametrize("extension", [".csv", ".parquet", ".npy", ".npz"])
def test_sample_writes_every_format(home, tmp_path, extension, capsys):
    path = tmp_path / f"new{extension}"
    out, _ = run(capsys, "sample", home / "model", "-n", 7, "--out", path)
    first, accuracy = out.splitlines()
    assert first == f"wrote 7 rows × 4 columns to {path}"
    assert re.fullmatch(r"20 steps; from the end of .*: half of the rows within [\d.e-]+ ± [\d.e-]+, .*", accuracy)
    got = load_file(path)
    assert got.values.shape == (7, 4)
    if extension in (".csv", ".parquet"):
        assert got.schema.columns == ("age", "income", "ratio", "member")
    if extension == ".parquet":
        assert got.schema.dtypes == ("int64", "float64", "float32", "bool")
    ages = got.values[:, 0]
    assert (ages == np.rint(ages)).all()
    assert ages.min() >= 18


@pytest.mark.parametrize("extension", [".csv", ".parquet", ".npy", ".npz"])
def test_fit_reads_every_format(tmp_path, extension):
    x = np.random.default_rng(0).normal(size=(40, 2))
    path = tmp_path / f"data{extension}"
    {
        ".csv": lambda: pl.DataFrame(x, schema=["a", "b"]).write_csv(path),
        ".parquet": lambda: pl.DataFrame(x, schema=["a", "b"]).write_parquet(path),
        ".npy": lambda: np.save(path, x),
        ".npz": lambda: np.savez(path, x=x),
    }[extension]()
    assert main(["fit", str(path), "--out", str(tmp_path / "m"), *QUICK, "--quiet"]) == 0
    assert main(["grad", str(tmp_path / "m"), str(path), "--sigma", "1", "--out", str(tmp_path / f"g{extension}")]) == 0
    got = load_file(tmp_path / f"g{extension}")
    want = ScoreDensity.load(tmp_path / "m").grad_log_prob(x, 1.0)
    np.testing.assert_allclose(got.values, want, rtol=1e-6, atol=1e-9)
    assert got.schema.columns == load_file(path).schema.columns


@pytest.mark.parametrize("command", ["grad", "denoise"])
def test_a_level_above_those_trained_is_told_and_is_the_closed_forms(home, tmp_path, command, capsys):
    """The score tends to −(x − mean)/σ², in units of each column's noise, and the denoised to the mean."""
    path, model = tmp_path / "out.csv", ScoreDensity.load(home / "model")
    out, _ = run(capsys, command, home / "model", home / "data.csv", "--sigma", 1e6, "--out", path)
    told = f"note: σ = 1e+06 is above the largest level trained, {model.levels_.sigma_max:.4g}; there the closed form"
    assert told in out.splitlines()[1]
    got, x = load_file(path).values, load_file(home / "data.csv").values
    u = model.units_
    mean = u.offset + u.scale * model.model_.reference.mean.double().numpy()
    want = {"grad": -(x - mean) / (1e6 * u.scale) ** 2, "denoise": mean + 0 * x}[command]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())
    out, _ = run(capsys, command, home / "model", home / "data.csv", "--sigma", model.levels_.sigma_max, "--out", path)
    assert "note" not in out


@pytest.mark.parametrize("command", ["grad", "denoise"])
def test_maps_keep_names_and_order_and_are_floating(home, tmp_path, command, capsys):
    table().select("member", "ratio", "age", "income").head(9).write_parquet(tmp_path / "other.parquet")
    path = tmp_path / "out.parquet"
    out, _ = run(capsys, command, home / "model", tmp_path / "other.parquet", "--sigma", 0.5, "--out", path)
    assert out.startswith("wrote ")
    assert out.endswith(f" at σ = 0.5, 9 rows × 4 columns, to {path}\n")
    got = pl.read_parquet(path)
    assert got.columns == ["member", "ratio", "age", "income"]
    assert got.dtypes == [pl.Float64, pl.Float32, pl.Float64, pl.Float64]
    model = ScoreDensity.load(home / "model")
    want = {"grad": model.grad_log_prob, "denoise": model.denoise}[command](table().head(9), 0.5)
    for name in got.columns:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6)


def test_sample_is_the_same_until_another_seed_is_given(home, tmp_path):
    drawn = []
    for more in ([], [], ["--seed", "5"], ["--seed", "5"], ["--steps", "3"]):
        path = tmp_path / "s.parquet"
        assert main(["sample", str(home / "model"), "-n", "6", "--out", str(path), "--quiet", *more]) == 0
        drawn.append(pl.read_parquet(path))
    assert drawn[0].equals(drawn[1])
    assert drawn[2].equals(drawn[3])
    assert not drawn[0].equals(drawn[2])
    assert not drawn[0].equals(drawn[4])


def test_images_go_through_npy(tmp_path, capsys):
    x = np.random.default_rng(0).integers(0, 17, size=(40, 3, 4)).astype(np.uint8)
    np.save(tmp_path / "x.npy", x)
    out, _ = run(capsys, "fit", tmp_path / "x.npy", "--out", tmp_path / "m", *QUICK)
    assert "40 rows × shape (3, 4)" in out
    run(capsys, "sample", tmp_path / "m", "-n", 5, "--out", tmp_path / "s.npy")
    drawn = np.load(tmp_path / "s.npy")
    assert drawn.shape == (5, 3, 4)
    assert drawn.dtype == np.uint8
    out, _ = run(capsys, "info", tmp_path / "m")
    assert re.search(r"^cells +uint8, 12 of 12 constant or on a grid$", out, re.MULTILINE)


# -- info and demo


def test_info_is_a_table(home, capsys):
    out, err = run(capsys, "info", home / "model")
    assert err == ""
    for line in (
        r"format +gradlogp model, version 2$",
        r"rows +4 columns, as polars$",
        r"  column +age +int64, 18 to 79, in steps of 1, σ = 1 is [\d.]+$",
        r"  column +income +float64, .* continuous, ",
        r"  column +member +bool, 0 to 1, in steps of 1, ",
        r"noise levels +.*, in standard deviations of each column$",
        r"training +20 steps in ",
        r"held-out loss [\d.]+ ± [\d.e-]+ ",
        r"self-check +passes: ",
        r"network +[\d,]+ parameters, width 8, depth 1$",
    ):
        assert re.search(f"^{line}", out, re.MULTILINE), line


def look(step, held_out, progress):
    """Floor 0.5, so that a start at 1 leaves 0.5 to learn."""
    return Record(
        step, progress, 1.0, held_out, 0.01, False, step / 100, held_out - 0.5, 0.01, 1 - held_out, 0.01, 0.5, 0.01
    )


@pytest.mark.parametrize(
    ("steps", "patience", "words"),
    [
        ([1.0, 0.8, 0.9, 0.9], 2, "much: at least 40% ± 2% of .* to learn. More steps would hardly .*"),
        ([1.0, 0.9, 0.8, 0.6], 2, "much: at least 80% ± 2% .* learning: --steps 1200 may do better, in about 12 s."),
        ([1.0, 0.7, 0.9, 0.9], 6, "much: at least 60% ± 2% of what the closed form leaves to learn."),
        ([1.0, 0.99, 1.0, 1.0], 2, "little: at least 2% ± 2% of .* to learn. More steps would hardly .*"),
        ([1.0, 1.1, 1.2, 1.3], 2, NOT_KEPT),
        ([1.0, 1.1, 1.2, 1.3], 6, "No step of training was kept: .* is that closed form. More steps or rows may .*"),
    ],
)
def test_what_a_fit_was_worth_and_what_more_would_cost(steps, patience, words):
    """Stopped by itself, by its limit while it was learning, and by its limit when it was not."""
    history = [look(100 * i, loss, i / (len(steps) - 1)) for i, loss in enumerate(steps)]
    best = min(history, key=lambda r: r.held_out)
    history = [dataclasses.replace(r, best=r.step in (0, best.step)) for r in history]
    model = types.SimpleNamespace(history_=history, patience=patience, kept_step_=best.step, network_={})
    told = in_short(model)
    assert re.fullmatch(f"(The network learned )?{words}", told)
    assert told.count(". ") <= 1


def test_no_other_output_goes_into_the_folder_of_a_model(home, tmp_path, capsys):
    """It could not be replaced by the next fit."""
    model = shutil.copytree(home / "model", tmp_path / "m")
    for argv in (["sample", model, "-n", "3", "--out", model / "s.csv"], ["demo", "--out", model]):
        assert main([str(a) for a in argv]) == 2
        assert "want" in capsys.readouterr().err
    assert sorted(os.listdir(model)) == ["config.json", "model.safetensors"]


def test_names_do_not_talk_to_the_terminal(home, tmp_path, capsys):
    """A column called "bell, clear the screen"."""
    model = shutil.copytree(home / "model", tmp_path / "m")
    edit_config(model, lambda c: c["schema"].update(columns=["a\x07\x1b[2J", *c["schema"]["columns"][1:]]))
    edit_config(model, lambda c: c["summary"].append(["a\x07\x1b[2J", "b"]))
    out, _ = run(capsys, "info", model)
    assert "a\\x07\\x1b[2J" in out
    assert "\x1b" not in out
    (tmp_path / "rows.csv").write_text("q\x1b[2J\n1\n")
    assert main(["logprob", str(model), str(tmp_path / "rows.csv"), "--out", str(tmp_path / "o.csv")]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert err.count("\n") == 1


def test_info_shows_the_first_of_many_columns_and_a_shared_unit(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(30, 25)))
    run(capsys, "fit", tmp_path / "x.npy", "--out", tmp_path / "m", *QUICK)
    out, _ = run(capsys, "info", tmp_path / "m")
    assert out.count("\n  column") == 20
    assert "and 5 more\n" in out
    assert "in the columns' shared unit" in out
    assert "σ = 1 is" not in out


def test_demo_is_handed_its_options(monkeypatch):
    calls = []
    reports = types.ModuleType("gradlogp.reports")
    reports.demo = lambda out, **more: calls.append((out, more))
    monkeypatch.setitem(sys.modules, "gradlogp.reports", reports)
    assert main(["demo"]) == 0
    assert main(["demo", "--out", "d", "--seconds", "5", "--seed", "3", "--quiet"]) == 0
    assert calls == [
        ("demo", {"seed": 0, "quiet": False}),
        ("d", {"seed": 3, "quiet": True, "seconds": 5.0}),
    ]


# -- interrupts, pipes and bugs


def test_an_interrupt_while_the_model_is_moved_leaves_the_old_one(home, tmp_path, monkeypatch):
    argv = ["fit", str(home / "data.csv"), "--out", str(tmp_path / "m"), *QUICK, "--quiet"]
    assert main(argv) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}
    replace = os.replace

    def interrupted(source, target):
        if Path(target) == tmp_path / "m" / "config.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    assert main([*argv, "--seed", "1"]) == 130
    assert {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()} == before
    assert [p.name[:10] for p in sorted(tmp_path.iterdir())] == ["m", "m-stopped-"]


def test_a_bug_shows_its_traceback_and_exits_with_1(home):
    code = (
        "import sys; from gradlogp import cli\nfrom gradlogp.cli import commands\n"
        "def broken(): raise ZeroDivisionError('a bug')\n"
        "commands.check = broken\n"
        f"sys.exit(cli.main(['info', {str(home / 'model')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: a bug" in done.stderr


def test_output_that_nobody_reads_is_no_error(home):
    command = f"{sys.executable} -m gradlogp.cli info {home / 'model'} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_terminal_without_the_letters_shows_question_marks(home):
    done = subprocess.run(
        [sys.executable, "-m", "gradlogp.cli", "info", str(home / "model")],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0
    assert b"held-out loss" in done.stdout


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_groups_are_a_column_of_labels(tmp_path, capsys, extension):
    x, path = np.random.default_rng(0).normal(size=(80, 2)), tmp_path / f"x.{extension}"
    frame = pl.DataFrame({"a": x[:, 0], "day": [f"p;{i // 4}" for i in range(80)], "b": x[:, 1]})
    frame.write_csv(path) if extension == "csv" else frame.write_parquet(path)
    model, quick = str(tmp_path / "m"), ["--steps", "2", "--width", "8", "--depth", "1"]
    assert main(["fit", str(path), "--out", model, "--groups", "day", *quick]) == 0
    assert "left out column 'day'" in capsys.readouterr().out
    est = ScoreDensity.load(model)
    assert est.n_held_out_ == 16  # four labels of four rows
    assert est.score_error_.n_independent == 4
    assert main(["fit", str(path), "--out", model, "--groups", "dya"]) == 2
    assert "did you mean 'day'?" in capsys.readouterr().err


def test_the_closed_form_alone(home, tmp_path, capsys):
    out, err = run(capsys, "fit", home / "data.csv", "--out", tmp_path / "m", "--closed-form")
    assert "training" not in out
    assert re.search("^in short +This is a Gaussian with the columns' marginals", out, re.MULTILINE)
    assert "No step of training was kept" not in out + err
    out, _ = run(capsys, "info", tmp_path / "m")
    assert re.search("^network +none$", out, re.MULTILINE)
    run(capsys, "sample", tmp_path / "m", "-n", 3, "--out", tmp_path / "s.csv")
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 4
    assert main(["fit", str(home / "data.csv"), "--out", str(tmp_path / "n"), "--closed-form", "--energy"]) == 2
    assert "--energy: got True without a network, want a network" in capsys.readouterr().err
