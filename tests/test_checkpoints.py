"""Saved models: whole or not at all, read without unpickling, refused where they do not fit together."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import shutil
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from jaxtyping import config
from safetensors.torch import load_file
from tampering import edit_config, edit_tensors, seal

from gradlogp import InputError, ScoreDensity, checkpoints, samplers

X = np.random.default_rng(0).normal(size=(40, 3))


@pytest.fixture(scope="module", autouse=True)
def as_users_do():
    """No checks but the library's own."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def fit(seed: int = 0, **more) -> ScoreDensity:
    quick = {"n_steps": 5, "width": 8, "depth": 1, "device": "cpu", "random_state": seed, "verbose": False}
    return ScoreDensity(**quick | more).fit(X)


@pytest.fixture(scope="module")
def est() -> ScoreDensity:
    return fit()


@pytest.fixture
def saved(est, tmp_path) -> Path:
    """A saved model, the only thing in its folder."""
    est.save(tmp_path / "model")
    return tmp_path / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(call, *args) -> str:
    with pytest.raises(InputError) as error:
        call(*args)
    text = str(error.value)
    assert "\n" not in text
    assert "want" in text
    return text


# -- there and back


def test_a_model_comes_back_as_it_was(est, saved):
    other = ScoreDensity.load(saved)
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert other.get_params() == est.get_params()
    assert other.history_ == est.history_
    assert other.levels_ == est.levels_
    assert other.schema_ == est.schema_
    assert other.grid_ == est.grid_
    assert other.self_check_ == est.self_check_
    for name, tensor in est.model_.state_dict().items():
        assert torch.equal(other.model_.state_dict()[name], tensor)
    np.testing.assert_array_equal(other.noise_scale_, est.noise_scale_)
    np.testing.assert_array_equal(other.sample(5), est.sample(5))


SAID = {
    "sample": lambda e: e.sample(3, random_state=1),
    "denoise": lambda e: e.denoise(X[:3], 0.5, return_std=True)[1],
    "grad_log_prob": lambda e: e.grad_log_prob(X[:3], 0.5),
    "log_prob": lambda e: e.log_prob(X[:3]).error,
    "score_samples": lambda e: e.score_samples(X[:3]),
    "score": lambda e: e.score(X[:3]),
    "decision_function": lambda e: e.decision_function(X[:3]),
    "predict": lambda e: e.predict(X[:3]),
    "log_mass": lambda e: e.log_mass(X[:2], n_draws=2).value,
    "to_model": lambda e: e.to_model(X[:3]),
    "from_model": lambda e: e.from_model(torch.ones(1, 3)),
    "diagnose": lambda e: str(e.diagnose(X[:8], n_levels=2, random_state=0)),
    "unnormalised_log_prob": lambda e: refused(e.unnormalised_log_prob, X, 0.5),
}
NOT_OF_A_FIT = {
    "fit", "fit_predict", "fit_steps", "get_metadata_routing", "get_params", "load", "save", "set_fit_request",
    "set_params",
}  # fmt: skip


def test_all_that_is_said_before_saving_is_said_after_loading(est, saved):
    other = ScoreDensity.load(saved)
    fitted = {name for name in vars(est) if name.endswith("_") and name != "model_"}
    properties = {name for name in dir(ScoreDensity) if name.endswith("_") and not name.startswith("_")}
    assert fitted == {name for name in vars(other) if name.endswith("_") and name != "model_"}
    assert {"offset_", "outlier_share_", "kept_step_", "sampling_accuracy_"} <= properties
    for name in fitted | properties:
        assert repr(getattr(other, name)) == repr(getattr(est, name)), name
    assert {n for n in dir(ScoreDensity) if n[-1] != "_" and n[0] != "_"} == NOT_OF_A_FIT | set(SAID)
    for name, call in SAID.items():
        before, after = call(est), call(other)
        assert before == after if isinstance(before, str) else np.array_equal(before, after), name


def test_saving_again_gives_the_same_bytes(est, saved, tmp_path):
    ScoreDensity.load(saved).save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(saved)
    fit().save(tmp_path / "third")
    first, third = (load_file(p / "model.safetensors") for p in (saved, tmp_path / "third"))
    assert all(torch.equal(first[k], third[k]) for k in first)


def test_the_configuration_is_json_without_nan(saved):
    def never(constant):
        raise AssertionError(constant)

    entry = json.loads((saved / "config.json").read_text(encoding="utf-8"), parse_constant=never)
    assert entry["format"] == "gradlogp model"
    assert entry["format_version"] == 2


def test_parameters_of_numpy_and_torch_types_are_saved(tmp_path):
    own = {"n_steps": np.int64(5), "sigma_min": np.float32(0.1), "device": torch.device("cpu")}
    fit(np.int32(3), **own).save(tmp_path / "m")
    got = ScoreDensity.load(tmp_path / "m").get_params()
    assert (got["n_steps"], got["device"], got["random_state"]) == (5, "cpu", 3)
    assert got["sigma_min"] == pytest.approx(0.1)


def test_a_random_state_that_is_no_number_is_not_saved(tmp_path):
    fit(np.random.RandomState(0)).save(tmp_path / "m")
    assert ScoreDensity.load(tmp_path / "m").random_state is None


@pytest.mark.skipif(sys.platform == "win32", reason="modes of files")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_modes_are_those_of_the_umask(est, tmp_path, umask):
    before = os.umask(umask)
    try:
        est.save(tmp_path / "m")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o777 & ~umask
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "m").iterdir()} == {0o666 & ~umask}


def test_a_link_to_a_model_stays_a_link(saved, tmp_path):
    (tmp_path / "link").symlink_to(saved)
    fit(1).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert ScoreDensity.load(saved).random_state == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "model"]


def test_relative_places_and_text(est, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    est.save("a")
    est.save("./b/")
    est.save("a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


# -- what may be replaced


def test_a_model_is_replaced_whole(saved, tmp_path):
    (saved / "report.html").write_text("of the old model")
    (saved / "report.json").write_text("{}")
    fit(1).save(saved)
    assert ScoreDensity.load(saved).random_state == 1
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_empty_folder_is_taken(est, tmp_path):
    (tmp_path / "m").mkdir()
    est.save(tmp_path / "m")
    ScoreDensity.load(tmp_path / "m")


OCCUPIED = {
    "a file": lambda m: m.write_text("mine"),
    "a folder of other things": lambda m: (m.mkdir(), (m / "thesis.tex").write_text("mine")),
    "a folder of folders": lambda m: (m / "deep" / "er").mkdir(parents=True),
    "a model of another library": lambda m: (
        m.mkdir(),
        (m / "config.json").write_text('{"model_type": "bert"}'),
        (m / "model.safetensors").write_bytes(b"mine"),
    ),
    "a model with notes": lambda m: (
        m.mkdir(),
        (m / "config.json").write_text('{"format": "gradlogp model"}'),
        (m / "notes.txt").write_text("mine"),
    ),
    "a configuration that is not JSON": lambda m: (m.mkdir(), (m / "config.json").write_text("mine")),
}


@pytest.mark.parametrize("kind", OCCUPIED)
def test_nothing_else_is_ever_replaced(est, tmp_path, kind):
    OCCUPIED[kind](tmp_path / "m")
    before = contents(tmp_path)
    assert str(tmp_path / "m") in refused(est.save, tmp_path / "m")
    assert contents(tmp_path) == before


def test_no_folder_to_be_in(est, tmp_path):
    assert "does not exist" in refused(est.save, tmp_path / "no" / "m")
    (tmp_path / "file").write_text("mine")
    assert "does not exist" in refused(est.save, tmp_path / "file" / "m")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_no_permission(est, tmp_path):
    tmp_path.chmod(0o555)
    assert "must not be written in" in refused(est.save, tmp_path / "m")
    tmp_path.chmod(0o755)


def test_no_permission_as_the_system_says(est, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *a, **k: False)
    assert "must not be written in" in refused(est.save, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


# -- a save that fails leaves the old model whole


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fails_after(n: int, error: BaseException):
    """os.replace that fails at its n-th call, and works again after."""
    calls, real = [], os.replace

    def replace(*args, **kwargs):
        calls.append(args)
        if len(calls) == n:
            raise error
        return real(*args, **kwargs)

    return replace


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FAILURES = {
    "weights": (checkpoints, "_write_through", full_disk),
    "to the disk": (os, "fsync", full_disk),
    "weights beside": (os, "replace", fails_after(1, NO_SPACE)),
    "configuration in place": (os, "replace", fails_after(2, NO_SPACE)),
    "interrupted": (os, "replace", fails_after(2, KeyboardInterrupt())),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_save_leaves_the_old_model(saved, tmp_path, monkeypatch, failure):
    other, before = fit(1), contents(saved)
    with monkeypatch.context() as patch:
        patch.setattr(*FAILURES[failure])
        with pytest.raises((InputError, KeyboardInterrupt)) as error:
            other.save(saved)
    assert failure == "interrupted" or "No space left on device" in str(error.value)
    assert contents(saved) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    other.save(saved)
    assert ScoreDensity.load(saved).random_state == 1


@pytest.mark.parametrize("error", [NO_SPACE, KeyboardInterrupt()])
def test_a_model_whose_weights_have_not_got_their_name_is_whole_and_put_right_by_the_next_save(
    saved, monkeypatch, error
):
    (saved / "report.html").write_text("of the old model")
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(os, "replace", fails_after(3, error))
        fit(1).save(saved)
    assert len(list(saved.glob(".gradlogp-*"))) == 1
    assert ScoreDensity.load(saved).random_state == 1
    fit(2).save(saved)
    assert sorted(os.listdir(saved)) == ["config.json", "model.safetensors"]
    assert ScoreDensity.load(saved).random_state == 2


def test_a_failed_first_save_leaves_nothing(est, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_write_through", full_disk)
    refused(est.save, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
def test_a_disk_that_is_really_full(saved, tmp_path):
    """Files of this process are limited to 4 kB, less than the weights."""
    before = contents(saved)
    code = (
        "import resource, signal, sys\n"
        "from gradlogp import ScoreDensity, InputError\n"
        f"est = ScoreDensity.load({str(saved)!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        f"    est.save({str(saved)!r})\n"
        "except InputError as e:\n"
        "    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout
    assert contents(saved) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


WRITER = """
import sys
from gradlogp import checkpoints
models = [checkpoints.load(p) for p in sys.argv[2:]]
print("ready", flush=True)
for i in range(100_000):
    checkpoints.save(sys.argv[1], *models[i % len(models)])
"""


def writer(place: Path, models: list[Path]) -> subprocess.Popen:
    """A process that saves models to one place, in turn, until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, place, *models], stdout=subprocess.PIPE, text=True
    )  # a process reads as slowly as it imports torch
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_is_loaded_beside_two_writers_and_after_a_kill_is_a_whole_model(saved, tmp_path):
    """The short form of benchmarks/faults.py."""
    fit(1).save(tmp_path / "other")
    known = {
        json.dumps(config, sort_keys=True) for config in (checkpoints.load(p)[1] for p in (saved, tmp_path / "other"))
    }
    place = tmp_path / "place"
    writers = [writer(place, [saved, tmp_path / "other"]) for _ in range(2)]
    seen = set()
    try:
        while not (place / "config.json").exists():
            pass
        loads, end = 0, time.monotonic() + 60
        while loads < 60 or (seen != known and time.monotonic() < end):
            tensors, config = checkpoints.load(place)
            seen.add(json.dumps(config, sort_keys=True))
            assert seen <= known
            assert bool(tensors["units.scale"].isfinite().all())
            loads += 1
    finally:
        for process in writers:
            process.kill()
            process.communicate()
    assert seen == known
    ScoreDensity.load(place)
    fit(2).save(place)
    assert sorted(os.listdir(place)) == ["config.json", "model.safetensors"]
    assert sorted(os.listdir(tmp_path)) == ["model", "other", "place"]


# -- loading never unpickles


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_in_the_place_of_the_weights_is_not_unpickled(saved, tmp_path, how):
    trap = tmp_path / "sprung"
    weights = saved / "model.safetensors"
    weights.write_bytes(pickle.dumps(Trap(trap))) if how == "pickle" else torch.save(Trap(trap), weights)
    seal(saved)
    assert "model.safetensors: cannot be read" in refused(ScoreDensity.load, saved)
    assert not trap.exists()
    if how == "pickle":  # and the trap works
        pickle.loads(weights.read_bytes()).close()
        assert trap.exists()


def test_loading_calls_no_unpickler(saved, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("unpickling")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, never)
    assert ScoreDensity.load(saved).sample(2).shape == (2, 3)


# -- nothing that is read is believed


def equal_as_json(a, b):
    """Whether they say the same: the last digit of a number may change and leave it the same."""
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_is_found(saved, name):
    raw = (saved / name).read_bytes()
    places = [i for i, byte in enumerate(raw) if not chr(byte).isspace()]  # what is between tells nothing
    for byte in np.random.default_rng(0).choice(places, 25):
        bad = bytearray(raw)
        bad[byte] ^= 1 << int(byte % 7)
        if equal_as_json(raw, bytes(bad)):
            continue
        (saved / name).write_bytes(bad)
        refused(ScoreDensity.load, saved)


def test_weights_and_units_of_another_model_are_found(est, saved, tmp_path):
    """Of the same columns, so that all else fits."""
    fit(1).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", saved)
    assert "SHA-256 differs" in refused(ScoreDensity.load, saved)
    shutil.copy(tmp_path / "other" / "config.json", saved)
    assert ScoreDensity.load(saved).random_state == 1
    edit_config(saved, lambda c: c["levels"].update(sigma_min=c["levels"]["sigma_min"] * 1.01), sealed=False)
    assert "config.json: was changed" in refused(ScoreDensity.load, saved)


LAST, V = "model.network.last.weight", "model.skip.gaussian.eigenvectors"
SHARES = "model.skip.marginals.log_weights"


def put(name: str, change):
    return lambda t: t.update({name: change(t[name])})


TENSORS = {
    "missing": lambda t: t.pop(LAST),
    "one more": lambda t: t.update({"model.network.more": torch.zeros(2)}),
    "of another shape": lambda t: t.update({LAST: torch.zeros(3, 9)}),
    "NaN": lambda t: t[LAST].view(-1)[:1].fill_(torch.nan),
    "infinite": lambda t: t[LAST].view(-1)[:1].fill_(torch.inf),
    "whole numbers": put(LAST, torch.Tensor.int),
    "half as many digits": put(LAST, torch.Tensor.bfloat16),
    "doubles": put(LAST, torch.Tensor.double),
    "no unit": lambda t: t.pop("units.scale"),
    "more units": lambda t: t.update({"units.scale": torch.ones(4, dtype=torch.float64)}),
    "a unit of 0": lambda t: t["units.scale"][:1].fill_(0.0),
    "a negative unit, which mirrors the data": lambda t: t["units.scale"].neg_(),
    "an infinite unit": lambda t: t["units.scale"][:1].fill_(torch.inf),
    "units in float32": put("units.scale", torch.Tensor.float),
    "eigenvectors of 0": lambda t: t[V].zero_(),
    "eigenvectors that are not orthonormal": lambda t: t[V].mul_(1.01),
    "eigenvectors that are no matrix": put(V, torch.Tensor.flatten),
    "a negative eigenvalue": lambda t: t["model.skip.gaussian.eigenvalues"][:1].neg_(),
    "a negative variance": lambda t: t["model.skip.marginals.variances"].neg_(),
    "a marginal of mass 2": put(SHARES, lambda v: v + math.log(2)),
    "a marginal of no mass": put(SHARES, lambda v: torch.full_like(v, -torch.inf)),
    "log-densities that do not fit their labels": put("unseen.labels", lambda v: v[:-1]),
}


if torch.complex64 in safetensors.torch._SIZE:  # not in earlier versions
    TENSORS["complex"] = put(LAST, lambda v: v.to(torch.complex64))


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_cannot_be(saved, what):
    edit_tensors(saved, TENSORS[what])
    assert "does not fit together" in refused(ScoreDensity.load, saved)


def of_plan(**entries):
    plan = {"start": 9.0, "levels": [2.0, 1.0], "weights": [[1.0]]}
    numbers = ("median", "stderr", "ninety", "ninety_stderr", "rms", "rms_stderr")
    plan["accuracy"] = dict.fromkeys(numbers, 0.1) | {"n_rows": 9}
    return lambda c: c.update(sampling=[plan | entries])


CONFIGS = {
    "a wide network": lambda c: c["network"].update(width=30_000),
    "a network that is wider than any memory": lambda c: c["network"].update(width=10**12),
    "a deep network": lambda c: c["network"].update(depth=200_000),
    "a network of many octaves": lambda c: c["network"].update(n_octaves=10**7),
    "half a depth": lambda c: c["network"].update(depth=1.0),
    "rows of another shape": lambda c: c["network"].update(event_shape=[10**9]),
    "a plan of no steps": of_plan(levels=[1.0], weights=[]),
    "a plan without levels": of_plan(levels=[], weights=[]),
    "a plan that rises": of_plan(levels=[1.0, 2.0]),
    "a plan to no noise": of_plan(levels=[2.0, 0.0]),
    "a plan of empty steps": of_plan(weights=[[]]),
    "a plan of steps that know the future": of_plan(weights=[[1.0, 0.5]]),
    "a plan of words": of_plan(levels=["2", "1"]),
    "a plan that starts below": of_plan(start=1.0),
    "a plan that is as accurate as a word": of_plan(accuracy={"median": "good"}),
    "plans without end": lambda c: (of_plan()(c), c.update(sampling=c["sampling"] * 1000)),
    "no history": lambda c: c.update(history=[]),
    "a history without a best step": lambda c: [r.update(best=False) for r in c["history"]],
    "a step that is a word": lambda c: c["history"][0].update(step="0"),
    "a loss that is a flag": lambda c: c["history"][0].update(loss=True),
    "a check that is a word": lambda c: c["self_check"]["j_dsm"].update(value="1.0"),
    "a check with one more entry": lambda c: c["self_check"]["j_dsm"].update(more=1.0),
    "half of a row held out": lambda c: c.update(held_out_rows=0.5),
    "levels that are flags": lambda c: c["levels"].update(centre=True),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_configurations_that_cannot_be(saved, what):
    edit_config(saved, CONFIGS[what])
    began = time.perf_counter()
    refused(ScoreDensity.load, saved)
    assert time.perf_counter() - began < 2  # nothing of such a size was made


def test_a_plan_that_can_be_is_loaded(saved):
    edit_config(saved, of_plan())
    assert len(samplers.kept_plans(ScoreDensity.load(saved).model_)) == 1


def test_a_long_history_is_loaded_quickly(saved):
    edit_config(saved, lambda c: c.update(history=c["history"] * 2_000))
    began = time.perf_counter()
    assert len(ScoreDensity.load(saved).history_) >= 2_000
    assert time.perf_counter() - began < 10


def test_a_folder_moved_elsewhere_still_loads(saved, tmp_path):
    shutil.move(saved, tmp_path / "elsewhere")
    assert ScoreDensity.load(tmp_path / "elsewhere").sample(2).shape == (2, 3)
