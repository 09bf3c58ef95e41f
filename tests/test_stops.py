"""Fits that are stopped, or cannot be saved: what is kept, what is said, and that nothing else is left behind."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from gradlogp import InputError, ScoreDensity, checkpoints, estimators
from gradlogp.cli import commands, main
from gradlogp.cli.stops import Stopped, stoppable
from gradlogp.estimators import outliers
from gradlogp.reports.staging import staging
from gradlogp.training.average import Average

TINY = {"n_steps": 300, "width": 8, "depth": 1, "batch_size": 16, "random_state": 0, "verbose": False}
QUICK = ["--steps", "300", "--width", "8", "--depth", "1", "--batch-size", "16", "--quiet"]
X = np.random.default_rng(0).normal(size=(60, 2)) ** 3


@pytest.fixture(autouse=True)
def no_mixtures(monkeypatch):
    """On so few rows they are as good as the network, and no step would be kept."""
    monkeypatch.setattr(estimators.density, "mixtures", lambda *_: [])


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A file of rows; the working folder, the one for results and that for temporary files are three."""
    for name in ("here", "out", "temporary"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "x.npy", X)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "x.npy"


def stop_after(monkeypatch, n: int, stop: BaseException, then=lambda: None) -> None:
    """Interrupt training after n looks."""
    whole = estimators.density.train

    def train(*args, **kwargs):
        for i, record in enumerate(whole(*args, **kwargs)):
            if i == n:
                then()
                raise stop
            yield record

    monkeypatch.setattr(estimators.density, "train", train)


def fit(data: Path, *more: str) -> int:
    return main(["fit", str(data), "--out", str(data.parent / "out" / "m"), *QUICK, *more])


def left(data: Path) -> list[str]:
    """All that is in the folders, but for the digits of new names."""
    names = (
        p.relative_to(data.parent) for p in data.parent.glob("*/*") if "torchinductor" not in p.name
    )  # torch's own
    return sorted(str(p.with_name(p.name.partition("stopped")[0] + "stopped" * ("stopped" in p.name))) for p in names)


# -- in Python


@pytest.mark.parametrize("how", ["interrupt", "break", "close"])
def test_a_fit_that_ends_early_has_the_weights_of_its_best_look(monkeypatch, how):
    whole, seen = estimators.density.train, {}

    def train(model, *args, **kwargs):
        average = Average(model, kwargs["recipe"].ema)
        for record in whole(model, *args, **kwargs, average=average):
            seen[record.step] = copy.deepcopy(average.model.state_dict())
            yield record
            if record.step == 50 and how == "interrupt":
                raise KeyboardInterrupt

    monkeypatch.setattr(estimators.density, "train", train)
    est = ScoreDensity(**TINY)
    if how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            est.fit(X)
    steps = est.fit_steps(X) if how != "interrupt" else iter(())
    for record in steps:
        if record.step == 50:
            break
    if how == "close":
        steps.close()
    del steps
    assert [r.step for r in est.history_] == [0, 25, 50]
    assert est.kept_step_ == 50
    own = est.model_.state_dict()
    assert all(torch.equal(own[k], v) for k, v in seen[50].items() if "gate" not in k)
    assert any(not torch.equal(own[k], v) for k, v in seen[0].items() if "gate" not in k)
    assert not est.model_.training
    assert not bool((est.model_.gate.share == 1).all())  # it was calibrated
    assert est.score_error_ is None
    assert np.isfinite(est.sample(5)).all()
    assert set(est.predict(X[:5])) <= {1, -1}


def test_an_interrupt_before_training_leaves_an_earlier_fit_whole(monkeypatch, tmp_path):
    est = ScoreDensity(**TINY | {"n_steps": 20}).fit(X)
    before = est.score_samples(X[:3])
    stop_after(monkeypatch, 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        est.set_params(width=16).fit(X[:, :1])
    assert (est.score_samples(X[:3]) == before).all()
    est.save(tmp_path / "m")
    assert (ScoreDensity.load(tmp_path / "m").score_samples(X[:3]) == before).all()


# -- on the command line


@pytest.mark.parametrize(
    ("stop", "code", "how"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped(signal.SIGTERM), 143, "stopped"),
    ],
)
def test_the_best_model_of_a_stopped_fit_is_saved(data, monkeypatch, capsys, stop, code, how):
    stop_after(monkeypatch, 2, stop)
    assert fit(data) == code
    *_, line = capsys.readouterr().err.splitlines()
    assert line == (
        f"gradlogp: {how}; the best model so far, of step 25 of 25 done of at most 300, is in "
        f"{data.parent}/out/m: gradlogp info {data.parent}/out/m; the same command trains from the start"
    )
    assert left(data) == ["out/m"]
    assert main(["info", str(data.parent / "out" / "m")]) == 0
    assert "not measured in fit (stopped, " in capsys.readouterr().out


def test_a_closed_terminal_loses_no_model(data, monkeypatch):
    def told(records, _):
        yield next(records)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(commands, "told", told)
    assert fit(data) == 2
    assert left(data) == ["out/m"]


def test_an_interrupt_before_training_writes_nothing(data, monkeypatch, capsys):
    stop_after(monkeypatch, 0, KeyboardInterrupt())
    assert fit(data) == 130
    assert capsys.readouterr().err == "gradlogp: interrupted\n"
    assert left(data) == []


def test_a_stopped_fit_leaves_the_model_that_was_there(data, monkeypatch):
    assert fit(data, "--steps", "1") == 0
    before = (data.parent / "out/m/model.safetensors").read_bytes()
    stop_after(monkeypatch, 1, KeyboardInterrupt())
    assert fit(data) == 130
    assert left(data) == ["out/m", "out/m-stopped"]
    assert (data.parent / "out/m/model.safetensors").read_bytes() == before


def test_an_interrupt_while_the_threshold_is_measured_keeps_the_model(data, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outliers, "measured", interrupted)
        assert fit(data, "--contamination", "0.1", "--steps", "1") == 130
    est = ScoreDensity.load(data.parent / "out" / "m")
    with pytest.raises(InputError, match="without a threshold"):
        est.predict(X)


def test_a_model_that_cannot_be_saved_goes_elsewhere(data, monkeypatch, capsys):
    out, whole = data.parent / "out", estimators.density.train

    def train(*args, **kwargs):
        yield from whole(*args, **kwargs)
        shutil.rmtree(out)

    monkeypatch.setattr(estimators.density, "train", train)
    assert fit(data, "--steps", "3") == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert (
        "does not exist, want one that does: make it first; the best model so far, of step 3" in line
        or "step 0" in line
    )
    assert left(data) == ["here/m-stopped"]
    place = line.partition("gradlogp info ")[2].partition(";")[0]
    assert ScoreDensity.load(place).n_features_in_ == 2


def test_a_full_disk_leaves_no_half_of_a_model(data, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write_through", full)
    assert fit(data, "--steps", "1") == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert "could not be written anywhere" in line
    assert left(data) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_a_real_process(data, number, code):
    """Sent while it trains, as the second line shows: what the first step imports has been imported.

    Run as the installed command is: with ``-m``, Python ends itself by the signal, though it was caught and answered,
    if it came while an import ran code from a string, as every dataclass does.
    """
    argv = ["fit", str(data), "--out", "m", "--patience", "1000000", "--steps", "5000", *QUICK[2:-1]]
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from gradlogp.cli import main; sys.exit(main())", *argv],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        lines = [next(line for line in process.stderr if line.startswith("fit: step ")) for _ in range(2)]
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert len(lines) == 2
    assert process.returncode == code
    assert "Traceback" not in err
    assert "is in m: gradlogp info m" in err.splitlines()[-1]
    assert left(data) == ["here/m"]
    ScoreDensity.load("m")


def test_a_signal_that_was_swallowed_is_answered_at_the_next_look(data, monkeypatch):
    whole = estimators.density.train

    def train(*args, **kwargs):
        for record in whole(*args, **kwargs):
            if record.step == 50:
                with suppress(KeyboardInterrupt):  # as an import or a destructor may do
                    os.kill(os.getpid(), signal.SIGTERM)
            yield record

    monkeypatch.setattr(estimators.density, "train", train)
    assert fit(data) == 143
    assert ScoreDensity.load(data.parent / "out" / "m").history_[-1].step == 50


def test_signals_are_handled_while_a_command_runs_only():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before == signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup does SIGHUP
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_command_runs_in_a_thread_too(capsys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["--version"])))
    thread.start()
    thread.join()
    assert codes == [0]


# -- folders of several files


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device"), SafetensorError("full")]
)
def test_files_written_together_are_all_there_or_none(tmp_path, error):
    def write():
        with staging(tmp_path / "out") as fresh:
            (fresh / "a").write_text("new")
            raise error

    with pytest.raises((KeyboardInterrupt, InputError)):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [1, 2])
def test_a_folder_that_is_replaced_is_put_back_on_an_interrupt(tmp_path, monkeypatch, n):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    replace, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == n:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)

    def write():
        with staging(tmp_path) as fresh:
            (fresh / "model").mkdir()
            (fresh / "model" / "new").touch()

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["model", "model/old"]
