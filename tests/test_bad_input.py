"""Bad input in some hundred kinds, in Python and on the command line: one line on what is wrong, nothing touched.

In Python it is an ``InputError``, on the command line exit code 2 and one line on stderr; files stay as they were.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import torch
from jaxtyping import config as jaxtyping_config
from sklearn.exceptions import NotFittedError
from tampering import edit_config, seal

from gradlogp import (
    InputError,
    ScoreDensity,
    _memory,
    _shapes,
    diagnostics,
    kernels,
    models,
    oracles,
    processes,
    samplers,
    training,
)
from gradlogp._progress import Bar
from gradlogp.cli import main
from gradlogp.cli.mistakes import mistake
from gradlogp.estimators import DensityEstimator
from gradlogp.estimators.parameters import check_parameters, generator_from

QUICK = {"n_steps": 2, "width": 4, "depth": 1, "device": "cpu", "random_state": 0, "verbose": False}
R = np.random.default_rng(0)
GOOD = R.normal(size=(30, 3))


@pytest.fixture(scope="module", autouse=True)
def as_users_do():
    """No checks but the library's own."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def est() -> ScoreDensity:
    return ScoreDensity(**QUICK).fit(pl.DataFrame(GOOD, schema=["a", "b", "c"]))


@pytest.fixture(scope="module")
def model(est, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    est.save(path)
    return path


@pytest.fixture
def home(model, tmp_path, monkeypatch) -> Path:
    """The working folder, with good.csv and a model."""
    pl.DataFrame(GOOD, schema=["a", "b", "c"]).write_csv(tmp_path / "good.csv")
    shutil.copytree(model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(call, *args, error=InputError, **kwargs) -> str:
    """The message of the error, which is one line that is not too long."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    assert len(text) < 400
    return text


def says(text: str, *words: str) -> None:
    for word in words:
        assert word in text, text


# -- Python: data to fit


def with_cell(value: float) -> np.ndarray:
    x = GOOD.copy()
    x[4, 1] = value
    return x


FIT = {
    "NaN": (with_cell(math.nan), "column 1", "row 4", "want finite"),
    "infinity": (with_cell(math.inf), "column 1", "infinite", "row 4"),
    "missing in a frame": (pl.DataFrame({"a": [1.0, None] * 10, "b": GOOD[:20, 0]}), "'a'", "missing", "row 1"),
    "missing integers in a frame": (pd.DataFrame({"a": pd.array([1, None] * 10, dtype="Int64")}), "'a'", "row 1"),
    "one row": (GOOD[:1], "got 1 row,", "want at least 10"),
    "too few rows": (GOOD[:9], "got 9 rows", "want at least 10"),
    "no rows": (GOOD[:0], "got 0 rows"),
    "no columns": (GOOD[:, :0], "0 columns"),
    "all columns constant": (np.ones((20, 2)), "constant", "want"),
    "1-D array": (GOOD[:, 0], "1-D", "reshape(-1, 1)"),
    "one number": (3.0, "single number"),
    "text column": (pd.DataFrame({"a": GOOD[:, 0], "b": ["x"] * 30}), "'b'", "'x' at row 0", "want numbers"),
    "categories": (pd.DataFrame({"b": pd.Categorical(["x", "y"] * 10)}), "'b'", "categories"),
    "dates": (pd.DataFrame({"d": pd.date_range("2020", periods=20)}), "'d'", "datetime"),
    "text array": (np.array([["1", "x"]] * 20), "'x' at row 0"),
    "object array": (np.array([[1, {}]] * 20, dtype=object), "column 1, row 0", "objects, first {}"),
    "complex": (GOOD + 1j, "complex"),
    "complex tensor": (torch.from_numpy(GOOD + 1j), "complex128"),
    "sparse matrix": (scipy.sparse.csr_matrix((10**8, 10**6)), "sparse", "GB of memory"),
    "sparse tensor": (torch.from_numpy(GOOD).to_sparse(), "sparse", "to_dense"),
    "a list of different lengths": ([[1.0, 2.0], [3.0]] * 10, "different lengths"),
    "duplicate columns": (pd.DataFrame(GOOD, columns=["a", "b", "a"]), "2 columns named 'a'"),
    "one column of a frame": (pl.Series(GOOD[:, 0]), "one column", "to_frame"),
    "a lazy frame": (pl.DataFrame(GOOD).lazy(), "lazy", "collect"),
    "a path": ("data.csv", "text", "load_file"),
    "None": (None, "NoneType"),
    "True": (True, "single number"),
    "a dictionary": ({"a": [1, 2]}, "dict"),
}


@pytest.mark.parametrize("kind", FIT)
def test_data_to_fit(kind):
    X, *words = FIT[kind]
    est = ScoreDensity(**QUICK)
    says(message(est.fit, X), *words)
    message(est.sample, 1, error=NotFittedError)


# -- Python: parameters

LONG = np.ones((30, 30))  # its text has many lines
PARAMETERS: dict[str, tuple] = {
    "sigma_min": (0, -1.0, 1e-308, math.nan, math.inf, "small", True, [1.0]),
    "sigma_max": (0, -1.0, 1e19, 1e308, math.nan, math.inf, "large", False),
    "standardize": ("yes", None, 2, [True], LONG),
    "width": (0, -3, 1.5, "wide", True, 10**10, 10**400),
    "depth": (0, 2.0, None, True, 10**11),
    "n_steps": (0, -1, 1e3, None, "many", 10**10, 10**400),
    "batch_size": (0, 2.5, "many", 10**10),
    "n_jobs": (0, 1.5, "all", 100_000, -(10**400)),
    "learning_rate": (0, -1e-3, math.nan, math.inf, None, "fast", 10**400),
    "dropout": (-0.1, 1.0, math.nan, "some", True, LONG),
    "max_seconds": (0, -5, math.nan, "short", 10**400),
    "patience": (0, 1.5, None, 10**400),
    "energy": ("yes", None, 1),
    "network": ("mlp", "", 3, True, ["auto"]),
    "objective": ("speed", "", None, LONG),
    "contamination": (0.0, 0.7, -0.1, float("nan"), "auto"),
    "validation_fraction": (0, 1, -0.1, math.nan, None, "half"),
    "sampling_steps": (0, -1, 2.5, None, 10**10),
    "device": ("tpu", "", 3.5, "meta", "cpu:x", -1, 10**400),
    "random_state": (-1, 1.5, "lucky", True, 2**64, 10**400, LONG),
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, values in PARAMETERS.items() for v in values])
def test_parameters(name, value):
    text = message(ScoreDensity(**QUICK | {name: value}).fit, GOOD)
    says(text, name, "got", "want")
    assert len(text) < 160


NORMAL, UNIT = oracles.GaussianMixture([1.0], [[0.0, 0.0, 0.0]], 1.0), kernels.Gaussian(1.0)
MEMORY = {
    "width": lambda: ScoreDensity(**QUICK | {"width": 10**6}).fit(GOOD),
    "batch_size": lambda: ScoreDensity(**QUICK | {"batch_size": 10**9}).fit(GOOD),
    "n": lambda: oracles.Empirical(torch.ones(2, 2)).sample(10**14),
    "x_or_n": lambda: samplers.sample(oracles.GaussianMixture([1.0], [[0.0]], 1.0), 10**13),
    "n_noise": lambda: diagnostics.score_error(NORMAL, None, torch.from_numpy(GOOD), [UNIT], n_noise=10**9),
    "n_bootstrap": lambda: diagnostics.stein_test(NORMAL, torch.from_numpy(GOOD), UNIT, n_bootstrap=10**9),
    "n_hidden": lambda: models.DenoisingAutoencoder.of_data(torch.from_numpy(GOOD), 10**9, 1.0),
}


@pytest.mark.parametrize("name", MEMORY)
def test_what_does_not_fit_into_memory(name, monkeypatch):
    """The largest number that is said to fit is not refused for its memory."""
    monkeypatch.setattr(_shapes, "free", lambda device=None: 10**8)
    text = message(MEMORY[name])
    says(
        text, f"{'n' if name == 'x_or_n' else name}: got 10000", "which needs", " for the 100 MB of memory that is free"
    )
    assert re.search(r"want at most [1-9]\d* for", text)


def test_a_number_that_fits_just_works():
    _shapes.require_memory(10**9, "n", lambda n: n)
    with pytest.raises(InputError, match="needs 1e15 GB, want at most 0 for"):
        _shapes.require_memory(10**15, "n", lambda n: 10**9 * n + 10**20)
    assert _memory.largest(lambda n: 3 * n, 1000, 100) == 33
    assert _memory.said(24 * 10**9) == "24 GB"
    assert 10**8 < _memory.free() < 10**14


def test_every_parameter_is_among_them():
    assert set(PARAMETERS) | {"verbose"} == set(ScoreDensity().get_params())


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (1e6, None), (None, 1e-9)])
def test_levels_out_of_order(low, high):
    est = ScoreDensity(**QUICK | {"sigma_min": low, "sigma_max": high})
    says(message(est.fit, GOOD), "sigma_min", "sigma_max", "want sigma_min < sigma_max")


def test_a_learning_rate_that_blows_up():
    est = ScoreDensity(**QUICK | {"n_steps": 200, "learning_rate": 1e30})
    says(message(est.fit, GOOD), "not finite", "learning rate")
    message(est.sample, 1, error=NotFittedError)


META, NESTED = torch.ones(3, 3, device="meta"), torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged)
TENSORS = {"on the meta device": META, "nested": NESTED, "sparse": torch.eye(3).to_sparse()}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_without_numbers_that_can_be_indexed(kind):
    word = kind.removeprefix("on the ")
    says(message(NORMAL.score, TENSORS[kind], UNIT), "x_t: got a", word, "want")
    says(message(kernels.Gaussian, TENSORS[kind]), "sigma: got a", word, "want")


def test_a_long_value_is_cut_and_the_wish_stays():
    text = str(InputError(f"x: got {'very ' * 500}\nlong, want less"))
    assert len(text) <= 390
    assert "\n" not in text
    says(text, "x: got very", " ... ", "long, want less")


def test_what_scikit_learns_users_write():
    """Processors by joblib's counting; sources of draws, asked for a seed each time one is needed."""
    for n_jobs in (-1, -2, np.int64(1)):
        check_parameters(ScoreDensity(n_jobs=n_jobs))
    cpu, numpys = torch.device("cpu"), np.random.default_rng(7)
    first, second = (generator_from(numpys, cpu).initial_seed() for _ in range(2))
    assert first == generator_from(np.random.default_rng(7), cpu).initial_seed() != second
    others = np.random.RandomState(1), torch.Generator().manual_seed(1)
    assert len({generator_from(source, cpu).initial_seed() for source in others}) == 2


def test_a_source_of_draws_fits_and_is_not_saved(tmp_path):
    fitted = [ScoreDensity(**QUICK | {"random_state": np.random.default_rng(3)}).fit(GOOD) for _ in range(2)]
    assert np.array_equal(fitted[0].sample(2), fitted[1].sample(2))
    assert not np.array_equal(fitted[0].sample(2), fitted[0].sample(2))
    fitted[0].save(tmp_path / "m")
    assert ScoreDensity.load(tmp_path / "m").random_state is None


def test_a_bar_starts_no_thread():
    before = threading.active_count()
    with Bar(total=1, disable=True), Bar(total=1, file=io.StringIO()):
        assert threading.active_count() == before


def test_a_process_of_less_noise_than_the_model_says_what_to_pass():
    wide = oracles.GaussianMixture([1.0], [[0.0]], 1e4)
    text = message(samplers.sample, wide, 3, 10, process=processes.VP())
    says(text, "sigma_max, sigma_min: got 1000 and", "VP", "sigma_max=", "grid=")
    assert samplers.sample(wide, 3, 10, process=processes.VP(), sigma_max=100.0, sigma_min=0.2).shape == (3, 1)


def test_mixtures_of_lists_of_tensors():
    eye, mean = torch.eye(3), torch.zeros(3)
    made = oracles.GaussianMixture([1.0, 1.0], [mean, mean + 1], [eye, 2 * eye])
    want = oracles.GaussianMixture(torch.ones(2), torch.stack([mean, mean + 1]), torch.stack([eye, 2 * eye]))
    x = torch.ones(3, 3)
    assert torch.equal(made.log_prob(x, UNIT), want.log_prob(x, UNIT))


# -- Python: use

USES = {
    "sample": lambda e: e.sample(1),
    "grad_log_prob": lambda e: e.grad_log_prob(GOOD),
    "denoise": lambda e: e.denoise(GOOD),
    "save": lambda e: e.save("somewhere"),
}


@pytest.mark.parametrize("use", USES)
def test_not_fitted(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    says(message(USES[use], ScoreDensity(), error=NotFittedError), "not fitted", "fit")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [0, -1, 1.5, "3", None, True, math.nan, [3], 10**400])
def test_numbers_of_samples(est, n):
    says(message(est.sample, n), "n: got", "want")


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True, 2**64])
def test_seeds_of_samples(est, seed):
    says(message(est.sample, 1, random_state=seed), "random_state: got", "want")


SIGMAS = {
    "zero": (0, "got 0", "> 0", "data without noise have no score", "denoise"),
    "negative": (-1.0, "got -1", "> 0"),
    "NaN": (math.nan, "got nan"),
    "infinite": (math.inf, "got inf"),
    "text": ("half", "'half'"),
    "complex": (1j, "1j"),
    "a dictionary": ({}, "{}"),
    "below the trained range": (1e-9, "smallest trained", "sigma_min"),
    "wrong number": ([1.0, 2.0], "2 levels for 30 rows"),
    "no levels": ([], "shape (0,)"),
    "two dimensions": (np.ones((30, 1)), "shape (30, 1)"),
    "ragged": ([[1.0], [1.0, 2.0]], "want a number"),
    "one bad among good": ([1.0] * 29 + [math.nan], "got nan"),
}


@pytest.mark.parametrize("use", ["grad_log_prob", "denoise"])
@pytest.mark.parametrize("kind", SIGMAS)
def test_levels(est, use, kind):
    sigma, *words = SIGMAS[kind]
    text = message(getattr(est, use), GOOD, sigma)
    assert text.startswith("sigma: got")
    says(text, "want", *words)


ZERO_LEVELS = {
    "kernel": lambda: kernels.Gaussian(0),
    "kernels": lambda: kernels.Gaussian(torch.tensor([1.0, 0.0])),
    "range": lambda: training.NoiseLevels(0.0, 1.0),
}


@pytest.mark.parametrize("kind", ZERO_LEVELS)
def test_level_zero_points_to_denoising(kind):
    says(message(ZERO_LEVELS[kind]), "got 0, want a finite number > 0", "data without noise have no score", "denoise")


ROWS = {
    "too many columns": (np.ones((5, 4)), "4 columns", "want 3 columns"),
    "too few columns": (np.ones((5, 2)), "2 columns", "want 3 columns"),
    "another name": (pl.DataFrame(GOOD, schema=["a", "b", "d"]), "no column 'c'", "extra column 'd'"),
    "a missing column": (pl.DataFrame(GOOD[:, :2], schema=["a", "b"]), "no column 'c'"),
    "an extra column": (pd.DataFrame(np.ones((5, 4)), columns=list("abcd")), "extra column 'd'"),
    "1-D": (GOOD[0], "1-D"),
    "images": (np.ones((5, 3, 1)), "shape (3, 1)"),
    "no rows": (GOOD[:0], "0 rows"),
    "NaN": (with_cell(math.nan), "row 4"),
    "text": (pl.DataFrame({"a": ["x"], "b": [1.0], "c": [1.0]}), "'a'", "'x'"),
    "complex": (GOOD + 1j, "complex"),
    "None": (None, "NoneType"),
}


@pytest.mark.parametrize("use", ["grad_log_prob", "denoise"])
@pytest.mark.parametrize("kind", ROWS)
def test_rows(est, use, kind):
    X, *words = ROWS[kind]
    text = message(getattr(est, use), X, 1.0)
    assert text.startswith("X: ")
    says(text, "want", *words)


# -- saved models, in Python and on the command line


def edit(change):
    """Change the configuration, and make its hash right."""
    return lambda folder: edit_config(folder, change)


def weights(change):
    """Change the bytes of the weights."""

    def make(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))
        seal(folder)

    return make


def config_text(text: str | bytes):
    def make(folder: Path) -> None:
        (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def scrambled(raw: bytes) -> bytes:
    return bytes(b ^ 0x5A for b in raw)


MODELS = {
    "no folder": (shutil.rmtree, "no such folder"),
    "a file": (lambda m: (shutil.rmtree(m), m.write_text("x")), "no such folder"),
    "an empty folder": (lambda m: (shutil.rmtree(m), m.mkdir()), "has no config.json"),
    "no configuration": (lambda m: (m / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "has no model.safetensors"),
    "weights that are a folder": (
        lambda m: ((m / "model.safetensors").unlink(), (m / "model.safetensors").mkdir()),
        "has no model.safetensors",
    ),
    "scrambled weights": (weights(scrambled), "model.safetensors: cannot be read"),
    "truncated weights": (weights(lambda raw: raw[: len(raw) // 2]), "model.safetensors: cannot be read"),
    "empty weights": (weights(lambda raw: b""), "model.safetensors: cannot be read"),
    "weights with a broken header": (weights(lambda raw: raw[:8] + b"}" + raw[9:]), "cannot be read"),
    "pickled weights": (weights(lambda raw: pickle.dumps({"a": 1})), "model.safetensors: cannot be read"),
    "empty configuration": (config_text(""), "config.json: cannot be read"),
    "not JSON": (config_text("{'a': 1}"), "config.json: cannot be read"),
    "half a configuration": (config_text('{"format": "gradlogp model",'), "config.json: cannot be read"),
    "not UTF-8": (config_text(b'{"format": "\xff"}'), "config.json: cannot be read"),
    "nested too deep": (config_text("[" * 100_000), "config.json: cannot be read"),
    "a list": (config_text("[1, 2]"), "not the configuration"),
    "another library's": (config_text('{"model_type": "bert"}'), "not the configuration"),
    "another format": (edit(lambda c: c.update(format="pickle")), "not the configuration"),
    "a later version": (edit(lambda c: c.update(format_version=3)), "format version 3, want 2"),
    "no version": (edit(lambda c: c.pop("format_version")), "format version None, want 2"),
    "width changed": (edit(lambda c: c["network"].update(width=5)), "does not fit together", "first.weight"),
    "width no number": (edit(lambda c: c["network"].update(width="5")), "does not fit together"),
    "depth changed": (edit(lambda c: c["network"].update(depth=2)), "does not fit together"),
    "network unknown": (edit(lambda c: c["network"].update(layers=2)), "does not fit together"),
    "event shape changed": (edit(lambda c: c["network"].update(event_shape=[4])), "does not fit together"),
    "event shape no list": (edit(lambda c: c["network"].update(event_shape=3)), "does not fit together"),
    "columns removed": (edit(lambda c: c["schema"].update(columns=["a", "b"])), "columns"),
    "columns twice": (edit(lambda c: c["schema"].update(columns=["a", "b", "a"])), "columns"),
    "schema of another shape": (
        edit(lambda c: c["schema"].update(columns=["a"], dtypes=["float64"], event_shape=[1])),
        "columns of shape (1,)",
    ),
    "no schema": (edit(lambda c: c.pop("schema")), "schema"),
    "unknown types": (edit(lambda c: c["schema"].update(dtypes=["text"] * 3)), "dtypes"),
    "levels reversed": (edit(lambda c: c["levels"].update(sigma_min=9.0, sigma_max=1.0)), "sigma_min < sigma_max"),
    "levels NaN": (edit(lambda c: c["levels"].update(sigma_min=math.nan)), "NaN"),
    "levels infinite": (edit(lambda c: c["levels"].update(sigma_max=math.inf)), "Infinity"),
    "levels text": (edit(lambda c: c["levels"].update(sigma_min="x")), "sigma_min 'x'"),
    "no levels": (edit(lambda c: c.pop("levels")), "levels"),
    "grid of fewer columns": (edit(lambda c: c["grid"].pop()), "grid"),
    "grid reversed": (edit(lambda c: c["grid"][0].update(low=1, high=0, offset=0)), "grid"),
    "grid no list": (edit(lambda c: c.update(grid=3)), "grid"),
    "history no list": (edit(lambda c: c.update(history=3)), "does not fit together"),
    "history of other entries": (edit(lambda c: c.update(history=[{"a": 1}])), "does not fit together"),
    "self-check missing": (edit(lambda c: c.pop("self_check")), "self_check"),
    "unknown parameters": (edit(lambda c: c["parameters"].update(magic=1)), "magic"),
    "bad parameters": (edit(lambda c: c["parameters"].update(sampling_steps=-1)), "sampling_steps: got -1"),
    "parameters no object": (edit(lambda c: c.update(parameters=[1])), "does not fit together"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_saved_models(home, kind, capsys):
    make, *words = MODELS[kind]
    make(home / "model")
    text = message(ScoreDensity.load, home / "model")
    says(text, str(home / "model"), *words)
    refused(capsys, home, ["sample", "model", "-n", "2", "--out", "s.csv"], *words)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_info_reads_no_flipped_bit(home, file, capsys):
    """It reads lines of the configuration only, once the hashes of both files are right."""
    content = bytearray((home / "model" / file).read_bytes())
    content[len(content) // 2] ^= 1
    (home / "model" / file).write_bytes(content)
    refused(capsys, home, ["info", "model"], file, "want")


# -- the command line


def digest(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, by its hash."""
    files = sorted(Path(root) / name for root, _, names in os.walk(folder) for name in names)
    hashes = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    return hashes | {str(p.relative_to(folder)): "" for p in folder.rglob("*") if p.is_dir()}


def refused(capsys, home: Path, argv: list[str], *words: str) -> str:
    """Exit code 2, one line on stderr after those of phases, none on stdout, and every file as it was."""
    before = digest(home)
    capsys.readouterr()
    code = main(argv)
    out, err = capsys.readouterr()
    err = re.sub(r"(?m)^(fit|sample): [a-z -]+\n", "", err)
    assert code == 2, err
    assert out == ""
    assert err.startswith("gradlogp: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    says(err, *words)
    assert digest(home) == before
    return err


def save(name: str, content: bytes | str | pl.DataFrame | np.ndarray | dict):
    """A file to make in the working folder."""

    def make(home: Path) -> None:
        path = home / name
        if isinstance(content, pl.DataFrame):
            content.write_parquet(path) if name.endswith("parquet") else content.write_csv(path)
        elif isinstance(content, np.ndarray):
            np.save(path, content)
        elif isinstance(content, dict):
            np.savez(path, **content)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


ROW = "1,2,3\n"
DATA_FILES = {
    "missing file": ("no.csv", lambda home: None, "no such file"),
    "a directory": ("dir.csv", lambda home: (home / "dir.csv").mkdir(), "directory"),
    "unknown extension": ("data.xlsx", save("data.xlsx", "x"), "'.xlsx'", ".csv, .parquet"),
    "no extension": ("data", save("data", "x"), "no extension"),
    "empty file": ("e.csv", save("e.csv", ""), "empty file"),
    "blank file": ("e.csv", save("e.csv", "\n \n"), "empty file"),
    "header only": ("h.csv", save("h.csv", "a,b,c\n"), "header and no rows"),
    "one row": ("o.csv", save("o.csv", "a,b,c\n" + ROW), "1 row,", "at least 10"),
    "too few rows": ("f.csv", save("f.csv", "a,b,c\n" + 9 * ROW), "9 rows", "at least 10"),
    "all constant": ("c.csv", save("c.csv", "a,b,c\n" + 20 * ROW), "constant"),
    "text column": ("t.csv", save("t.csv", "a,b\n" + 20 * "1,x\n"), "'b'", "'x' at row 0"),
    "missing values": ("m.csv", save("m.csv", "a,b\n1,2\n" + 20 * "1,\n"), "'b'", "20 cells missing", "row 1"),
    "infinity": ("i.csv", save("i.csv", "a,b\n1,2\n" + 20 * "1,inf\n"), "'b'"),
    "ragged": ("r.csv", save("r.csv", "a,b\n1,2\n1,2,3\n"), "3 cells in row 1 (line 3), '1,2,3', want 2"),
    "duplicate columns": ("d.csv", save("d.csv", "a,a\n" + 20 * "1,2\n"), "2 columns named 'a'"),
    "not UTF-8": ("u.csv", save("u.csv", b"a,b\n\xff\xfe,1\n"), "not UTF-8"),
    "corrupt parquet": ("p.parquet", save("p.parquet", "PAR1 not really"), "corrupt or not parquet"),
    "missing in parquet": (
        "p.parquet",
        save("p.parquet", pl.DataFrame({"a": [1.0, None] * 10, "b": GOOD[:20, 0]})),
        "'a'",
        "missing",
    ),
    "corrupt npy": ("x.npy", save("x.npy", b"\x93NUMPY\x01\x00"), "corrupt"),
    "another file as npy": ("x.npy", save("x.npy", "1,2,3"), "not npy"),
    "corrupt npz": ("x.npz", save("x.npz", b"PK not really"), "corrupt npz"),
    "npz of many arrays": ("x.npz", save("x.npz", {"p": GOOD, "q": GOOD}), "2 arrays", "want one"),
    "pickled objects": (
        "x.npy",
        save("x.npy", pickle.dumps(GOOD)),
        "not npy",
    ),
    "object array": ("x.npy", save("x.npy", np.array([[1, None]] * 20, dtype=object)), "pickled objects"),
    "1-D array": ("x.npy", save("x.npy", GOOD[:, 0]), "1-D"),
    "complex array": ("x.npy", save("x.npy", GOOD + 1j), "complex"),
    "NaN in an array": ("x.npy", save("x.npy", with_cell(math.nan)), "column 1", "row 4"),
}


@pytest.mark.parametrize("kind", DATA_FILES)
def test_files_to_fit(home, kind, capsys):
    name, make, *words = DATA_FILES[kind]
    make(home)
    refused(capsys, home, ["fit", name, "--out", "new", "--steps", "2"], *words)


@pytest.mark.parametrize("command", ["grad", "denoise"])
@pytest.mark.parametrize("kind", [k for k in DATA_FILES if k not in ("one row", "too few rows", "all constant")])
def test_files_to_use(home, kind, command, capsys):
    name, make, *_ = DATA_FILES[kind]
    make(home)
    refused(capsys, home, [command, "model", name, "--sigma", "1", "--out", "out.csv"])


TABLES = {
    "too few columns": ("a,b\n1,2\n", "no column 'c'"),
    "other names": ("x,y,z\n1,2,3\n", "no column 'a', 'b', 'c'"),
}


@pytest.mark.parametrize("command", ["grad", "denoise"])
@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_other_columns(home, kind, command, capsys):
    text, word = TABLES[kind]
    save("other.csv", text)(home)
    refused(
        capsys, home, [command, "model", "other.csv", "--sigma", "1", "--out", "out.csv"], word, "want the 3 columns"
    )


LINES = {
    "an unknown command": ("train good.csv", "'train'", "choose from"),
    "a mistyped command": ("smaple model -n 3", "'smaple'", "did you mean sample?"),
    "a mistyped command alone": ("fitt", "did you mean fit?"),
    "an unknown option": ("fit good.csv --out new --epochs 3", "unrecognized arguments: --epochs 3 (see gradlogp fit"),
    "a mistyped option": ("fit good.csv --out new --stesp 3", "--stesp", "did you mean --steps?"),
    "a mistyped option with =": ("fit good.csv --out new --pateince=3", "did you mean --patience?"),
    "a shortened option": ("fit good.csv --out new --sig 3", "--sig", "did you mean --sigma-min or --sigma-max?"),
    "width of a million": (
        "fit good.csv --out new --width 1000000",
        "--width: got 1000000, which needs",
        "GB of memory",
    ),
    "a very large width": ("fit good.csv --out new --width " + 400 * "9", "--width: got a whole number of 400 digits"),
    "more digits than a number may have": ("fit good.csv --out new --width " + 5000 * "9", "--width", "whole number"),
    "depth of a million": ("fit good.csv --out new --depth 1000000", "--depth: got 1000000, want at most 1000"),
    "batch of all the world": ("fit good.csv --out new --batch-size 999999999", "--batch-size: got 999999999, which"),
    "steps without end": ("fit good.csv --out new --steps 10000000000", "--steps: got 10000000000, want at most"),
    "a huge learning rate": (
        "fit good.csv --out new --steps 1 --quiet --learning-rate 1e308",
        "not finite",
        "learning rate",
    ),
    "sample more than fits": ("sample model -n 100000000000000 --out s.csv", "-n: got 100000000000000, which needs"),
    "sample with steps without end": ("sample model -n 2 --steps 10000000000 --out s.csv", "--steps: got 10000000000"),
    "levels without end": ("diagnose model good.csv --levels 10000000000", "--levels: got 10000000000, want at most"),
    "hidden without end": ("chain good.csv --hidden 1000000000000", "--hidden: got 1000000000000, which needs"),
    "a very long word": ("fit good.csv --out new --" + 3000 * "x", "unrecognized arguments", "fit --help"),
    "columns and drop": ("fit good.csv --out new --columns a --drop b", "--drop", "not allowed with", "--columns"),
    "data after drop": ("fit --out new --drop a good.csv", "required: DATA", "put DATA before --columns or --drop"),
    "columns without one": ("fit good.csv --out new --columns", "--columns", "expected at least one"),
    "a column that is not there": ("fit good.csv --out new --columns a,d", "no column 'd'", "'a', 'b', 'c'"),
    "a mistyped column": ("chain long.csv --drop lenght", "no column 'lenght'", "did you mean 'length'?"),
    "all columns dropped": ("fit good.csv --out new --drop a b c", "all 3 columns left out"),
    "columns of an array": ("fit good.npy --out new --columns a", "no names", "want csv or parquet"),
    "columns of a model's chain": ("chain good.csv --model model --drop a", "--model: got", "--columns or --drop"),
    "a text column": ("fit text.csv --out new", "columns 'city', 'kind'", "or leave out with --drop"),
    "a large identifier": (
        "fit ids.csv --out new",
        "'id', row 0: got 9007199254740993",
        "leave the column out with --drop",
    ),
    "no data": ("fit --out new", "DATA"),
    "no out": ("fit good.csv", "--out"),
    "out without a value": ("fit good.csv --out", "expected one argument"),
    "two files": ("fit good.csv good.csv --out new", "unrecognized"),
    "steps no number": ("fit good.csv --out new --steps many", "--steps", "'many'", "want a whole number"),
    "steps a fraction": ("fit good.csv --out new --steps 1.5", "--steps", "'1.5'"),
    "steps zero": ("fit good.csv --out new --steps 0", "--steps: got 0", "want"),
    "width zero": ("fit good.csv --out new --width 0", "--width: got 0"),
    "depth negative": ("fit good.csv --out new --depth -1", "--depth: got -1"),
    "seconds negative": ("fit good.csv --out new --max-seconds -1", "--max-seconds: got -1"),
    "sigma-min negative": ("fit good.csv --out new --sigma-min -1", "--sigma-min: got -1"),
    "sigma-min NaN": ("fit good.csv --out new --sigma-min nan", "--sigma-min: got nan"),
    "levels out of order": (
        "fit good.csv --out new --sigma-min 2 --sigma-max 1",
        "--sigma-min, --sigma-max: got 2 and 1",
    ),
    "learning rate": ("fit good.csv --out new --learning-rate 0", "--learning-rate: got 0"),
    "dropout": ("fit good.csv --out new --dropout 1", "--dropout: got 1"),
    "batch size": ("fit good.csv --out new --batch-size 0", "--batch-size: got 0"),
    "patience": ("fit good.csv --out new --patience 0", "--patience: got 0"),
    "validation": ("fit good.csv --out new --validation-fraction 0", "--validation-fraction: got 0"),
    "contamination": ("fit good.csv --out new --contamination 0.7", "--contamination: got 0.7", "(0, 0.5]"),
    "objective": ("fit good.csv --out new --objective speed", "--objective: got 'speed'"),
    "chain's seed": ("chain good.csv --seed 99999999999999999999999", "--seed: got 999", "2**64 - 1"),
    "chain's sigma": ("chain good.csv --sigma 0", "--sigma: got 0"),
    "chain's hidden": ("chain good.csv --hidden 0", "--hidden: got 0"),
    "no energy": ("logprob model good.csv --out l.csv --unnormalised 1", "--unnormalised: got", "fitted with --energy"),
    "atol": ("logprob model good.csv --out l.csv --atol -1", "--atol: got -1"),
    "levels of a diagnosis": ("diagnose model good.csv --levels 1", "--levels: got 1"),
    "few rows to diagnose": ("diagnose model few.csv", "few.csv: got 2 rows, want at least 8"),
    "device": ("fit good.csv --out new --device tpu", "--device: got 'tpu'"),
    "seed negative": ("fit good.csv --out new --seed -1", "--seed: got -1"),
    "seed no number": ("fit good.csv --out new --seed x", "--seed", "'x'"),
    "no folder for the model": ("fit good.csv --out no/new", "does not exist"),
    "out a file": ("fit good.csv --out good.csv", "is a file"),
    "out no model": ("fit good.csv --out other", "other", "want a new name"),
    "out here": ("fit good.csv --out .", "want a new name"),
    "out with a name too long": (f"fit good.csv --out {'x' * 300} --steps 1", "name too long"),
    "sample nothing": ("sample model -n 0 --out s.csv", "-n: got 0", "want at least 1"),
    "sample fewer": ("sample model -n -3 --out s.csv", "-n: got -3"),
    "sample a fraction": ("sample model -n 2.5 --out s.csv", "-n", "'2.5'"),
    "sample without n": ("sample model --out s.csv", "-n"),
    "sample with no steps": ("sample model -n 2 --steps 0 --out s.csv", "--steps: got 0"),
    "sample from no model": ("sample other -n 2 --out s.csv", "has no config.json"),
    "sample to an unknown format": ("sample model -n 2 --out s.doc", "'.doc'"),
    "sample to a folder": ("sample model -n 2 --out dir.csv", "directory"),
    "sample to no folder": ("sample model -n 2 --out no/s.csv", "no folder"),
    "sample on no device": ("sample model -n 2 --out s.csv --device tpu", "--device: got 'tpu'"),
    "sample with a bad seed": ("sample model -n 2 --out s.csv --seed -1", "--seed: got -1"),
    "sigma zero": ("grad model good.csv --sigma 0 --out g.csv", "--sigma: got 0", "> 0", "and denoise"),
    "sigma negative": ("denoise model good.csv --sigma -2 --out g.csv", "--sigma: got -2"),
    "sigma NaN": ("grad model good.csv --sigma nan --out g.csv", "--sigma: got nan"),
    "sigma too small": ("grad model good.csv --sigma 1e-9 --out g.csv", "smallest trained"),
    "sigma no number": ("grad model good.csv --sigma half --out g.csv", "--sigma", "'half'"),
    "sigma missing": ("grad model good.csv --out g.csv", "--sigma"),
    "out is the input": ("grad model good.csv --sigma 1 --out good.csv", "the input itself"),
    "out is the input in other words": (
        "denoise model good.csv --sigma 1 --out ./other/../good.csv",
        "the input itself",
    ),
    "grad to an unknown format": ("grad model good.csv --sigma 1 --out g.xlsx", "'.xlsx'"),
    "grad to no folder": ("grad model good.csv --sigma 1 --out no/g.csv", "no folder"),
    "info on a file": ("info good.csv", "no such folder"),
    "info on two": ("info model model", "unrecognized"),
    "demo's seconds": ("demo --seconds soon", "--seconds", "'soon'"),
    "demo's seconds negative": ("demo --seconds -1", "--seconds: got -1"),
    "demo to a file": ("demo --out good.csv --seconds 1", "good.csv"),
    "demo to a folder of other things": ("demo --out other --seconds 1", "other"),
    "demo to no folder": ("demo --out no/demo --seconds 1", "no"),
}


@pytest.mark.parametrize("kind", LINES)
def test_command_lines(home, kind, capsys):
    line, *words = LINES[kind]
    (home / "other").mkdir()
    (home / "other" / "thesis.tex").write_text("mine")
    (home / "dir.csv").mkdir()
    (home / "text.csv").write_text("a,city,kind\n" + 20 * "1,x,y\n")
    (home / "long.csv").write_text("a,length\n" + 20 * "1,2\n")
    (home / "few.csv").write_text("a,b,c\n1,2,3\n4,5,6\n")
    (home / "ids.csv").write_text("a,id\n" + 20 * "1,9007199254740993\n")
    np.save("good.npy", GOOD)
    text = refused(capsys, home, line.split(), *words)
    for word in ("=True", "None", "sigma_min", "max_seconds", "X:", "random_state"):  # of Python
        assert word not in text


@pytest.mark.parametrize(
    ("line", "usage", "lacks"), [("", "COMMAND", "COMMAND"), ("fit", "--out MODEL", "DATA, --out")]
)
def test_a_bare_command_shows_its_help_too(home, capsys, line, usage, lacks):
    before = digest(home)
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: gradlogp {line}".rstrip())
    assert usage in out
    assert "example:" in out
    assert err.startswith(f"gradlogp: error: the following arguments are required: {lacks}")
    assert err.count("\n") == 1
    assert digest(home) == before


@pytest.mark.parametrize("make", [lambda: torch.empty(10**15), lambda: np.empty(10**15), lambda: bytearray(10**15)])
def test_no_memory_left(home, capsys, monkeypatch, make):
    """numpy's and Python's MemoryError, and torch's RuntimeError."""
    monkeypatch.setattr(DensityEstimator, "sample", lambda *args, **more: make())
    refused(capsys, home, ["sample", "model", "-n", "2", "--out", "s.csv"], "memory: got a request", "want smaller")


def test_no_memory_left_of_a_gpu():
    assert "20.00 GiB" in str(mistake(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")))
    assert mistake(RuntimeError("size mismatch")) is None


def test_images_do_not_fit_in_csv(home, capsys):
    np.save("x.npy", R.normal(size=(20, 2, 2)))
    assert main(["fit", "x.npy", "--out", "images", "--steps", "2", "--quiet"]) == 0
    refused(capsys, home, ["sample", "images", "-n", "2", "--out", "s.csv"], "want a table", ".npy")
    refused(capsys, home, ["grad", "images", "x.npy", "--sigma", "1", "--out", "s.csv"], "want a table", ".npy")


def test_the_destination_is_checked_before_training(home, capsys, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("trained")

    monkeypatch.setattr(DensityEstimator, "fit_steps", never)
    (home / "other").mkdir()
    (home / "other" / "thesis.tex").write_text("mine")
    for out in ("other", "good.csv", "no/new", "."):
        refused(capsys, home, ["fit", "good.csv", "--out", out])
    monkeypatch.setattr(os, "access", lambda *a, **k: False)
    refused(capsys, home, ["fit", "good.csv", "--out", "new"], "must not be written in")
    refused(capsys, home, ["sample", "model", "-n", "2", "--out", "s.csv"], "must not be written in")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_no_permission_to_write(home, capsys):
    (home / "closed").mkdir(mode=0o555)
    refused(capsys, home, ["fit", "good.csv", "--out", "closed/new"], "must not be written in")
    refused(capsys, home, ["sample", "model", "-n", "2", "--out", "closed/s.csv"], "must not be written in")


@pytest.mark.parametrize("line", ["grad model good.csv --sigma 1 --out out.csv", "sample model -n 3 --out out.csv"])
def test_a_file_is_replaced_whole_or_not_at_all(home, capsys, monkeypatch, line):
    (home / "out.csv").write_text("of before")

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        refused(capsys, home, line.split(), "No space left on device")
    assert main(line.split()) == 0
    assert (home / "out.csv").read_text().startswith("a,b,c\n")


# -- real processes

REAL = {
    "usage": ("fit good.csv", "--out"),
    "data": ("fit no.csv --out new", "no such file"),
    "model": ("sample other -n 1 --out s.csv", "no such folder"),
    "level": ("grad model good.csv --sigma -1 --out g.csv", "--sigma: got -1"),
}


@pytest.mark.parametrize("kind", REAL)
def test_real_processes(home, kind):
    line, word = REAL[kind]
    before = digest(home)
    done = subprocess.run([sys.executable, "-m", "gradlogp.cli", *line.split()], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    *phases, line = done.stderr.splitlines()
    assert all(re.fullmatch("(fit|sample): (starting|reading)", phase) for phase in phases)
    says(line, "gradlogp: error: ", word)
    assert digest(home) == before
