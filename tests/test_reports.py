"""The demonstration: what it writes, that the page stands alone, that numbers are right, what it refuses."""

from __future__ import annotations

import math
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import config
from matplotlib.image import imread

from gradlogp import InputError, ScoreDensity, reports
from gradlogp.audit import canvas
from gradlogp.diagnostics import Estimate
from gradlogp.kernels import Gaussian
from gradlogp.models import ScoreFunction
from gradlogp.reports import learn, pictures

PICTURES = ("samples.png", "denoising.png", "learning.png", "field.png")


def _once(function):
    learnt = cache(lambda seed, seconds: function(seed, seconds, verbose=False))
    return lambda seed, seconds, verbose=False: learnt(seed, seconds)


@pytest.fixture(scope="module", autouse=True)
def as_a_user():
    """The library as it is outside the tests, for the whole module."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", autouse=True)
def learnt_once(as_a_user):
    """Each model is learnt once, however often the page is written."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("learn_digits", "learn_field"):
            patch.setattr(f"gradlogp.reports.demonstration.{name}", _once(getattr(learn, name)))
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "demo"
    assert reports.demo(out, quiet=True, seconds=2.0) == out / "index.html"
    return out


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.tags, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def text(out):
    return (out / "index.html").read_text(encoding="utf-8")


def test_the_folder_holds_the_page_the_pictures_and_the_model_only(out):
    assert {p.name for p in out.iterdir()} == {"index.html", "model", *PICTURES}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_not_blank(out, name):
    pixels = imread(out / name)[..., :3]
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 800
    dark = (pixels.mean(2) < 0.5).mean()
    assert 0.005 < dark < 0.5
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edge > 0.7).all()  # nothing is cut off


def test_the_page_is_sound_and_needs_no_network(text, out):
    page = _Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "//" not in text
    assert set(PICTURES) <= set(page.links)
    assert all((out / link).is_file() for link in page.links)


def test_numbers_of_the_page_have_errors_and_units(text):
    cells = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", text)
    assert len(cells) == 13
    for _, value, unit in cells:
        assert re.fullmatch(r"\d+\.\d+ ± \d+\.\d+", value)
        assert unit
    for part in ("Learning handwritten digits", "Drawing", "together"):
        assert re.search(rf"<td>{part}.*?</td><td>\d+\.\d s</td>", text)
    assert re.search(r"torch \d.*Python 3", text)


def test_the_model_is_that_of_the_page(out, text):
    est = ScoreDensity.load(out / "model")
    best = min(est.history_, key=lambda r: r.held_out)
    assert learn.shown(Estimate(best.held_out, best.held_out_stderr)) in text
    assert np.asarray(est.sample(2)).shape == (2, 64)


def test_a_second_run_replaces_the_first_and_nothing_else(out, capsys):
    (out / "mine.csv").write_text("kept")
    (out / "samples.png").write_bytes(b"old")
    (out / "model" / "config.json").write_text("old")
    reports.demo(out, seed=0, seconds=2.0)
    assert "gradlogp sample" in capsys.readouterr().out
    assert (out / "mine.csv").read_text() == "kept"
    assert imread(out / "samples.png").ndim == 3
    ScoreDensity.load(out / "model")
    (out / "mine.csv").unlink()
    assert {p.name for p in out.iterdir()} == {"index.html", "model", *PICTURES}


def test_quiet_is_silent_and_the_number_of_threads_is_restored(tmp_path, out, capfd):
    n = torch.get_num_threads()
    reports.demo(tmp_path / "again", quiet=True, seconds=2.0)
    assert capfd.readouterr() == ("", "")
    assert torch.get_num_threads() == n


def test_a_failed_run_leaves_no_trace(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise InputError("no luck")

    monkeypatch.setattr("gradlogp.reports.demonstration.learn_digits", fail)
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(InputError, match="no luck"):
            reports.demo(tmp_path / name, quiet=True)
    assert [p.name for p in tmp_path.rglob("*")] == ["empty"]


def test_refusals_come_first_and_on_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<p>mine</p>")
    refused = {"file": "is a file", "no/demo": "does not exist", "site": "something other than a demo"}
    for place, reason in refused.items():
        with pytest.raises(InputError, match=reason) as e:
            reports.demo(tmp_path / place, quiet=True)
        assert "\n" not in str(e.value)
    assert (tmp_path / "site" / "index.html").read_text() == "<p>mine</p>"


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf, True, "5"])
def test_seconds_must_be_positive(tmp_path, seconds):
    with pytest.raises(InputError, match=r"^seconds: got"):
        reports.demo(tmp_path / "demo", quiet=True, seconds=seconds)


def test_the_headline_is_wide_and_small(tmp_path, out):
    reports.headline(tmp_path / "demo.png", seconds=2.0)
    assert imread(tmp_path / "demo.png").shape[1] == 1600
    assert (tmp_path / "demo.png").stat().st_size < 300_000


def test_relative_error_of_models_whose_error_is_known():
    exact, kernel = learn.spiral(), Gaussian(0.3)
    x = exact.sample(500, generator=torch.Generator().manual_seed(1))
    for factor, want in ((1.0, 0.0), (0.0, 1.0), (0.7, 0.09), (-1.0, 4.0)):
        scaled = ScoreFunction(lambda x_t, k, factor=factor: factor * exact.score(x_t, k))
        error = learn.relative_error(scaled, exact, x, kernel, 0)
        assert error.value == pytest.approx(want, abs=1e-6)
        assert error.stderr < 1e-6  # a ratio that is the same on any draws


def test_relative_errors_spread_as_their_standard_error_says():
    exact, kernel = learn.spiral(), Gaussian(0.3)
    shifted = ScoreFunction(lambda x_t, k: exact.score(x_t, k) + 1.0)
    draws = exact.sample(20_000, generator=torch.Generator().manual_seed(2)).split(100)
    errors = [learn.relative_error(shifted, exact, x, kernel, i) for i, x in enumerate(draws)]
    spread = np.std([e.value for e in errors], ddof=1)
    assert np.mean([e.stderr for e in errors]) == pytest.approx(spread, rel=0.2)


def test_the_spiral_is_one_arm_twice_as_heavy_as_its_mirror_image():
    exact = learn.spiral()
    x = torch.tensor([[0.3, -1.2], [2.0, 0.5]])
    w = exact.log_weights.exp()
    assert w[:12].sum().item() == pytest.approx(2 / 3)
    mirrored = exact.means[:12]
    assert torch.equal(exact.means[12:], -mirrored)
    assert torch.isfinite(exact.score(x, Gaussian(0.1))).all()


def test_distances_to_the_nearest_training_row():
    train = np.array([[0.0, 0.0], [3.0, 4.0]])
    index, distance = learn.nearest(np.array([[3.0, 0.0], [3.0, 4.0]]), train)
    assert index.tolist() == [0, 1]
    assert distance.tolist() == [3.0, 0.0]


def test_root_mean_square_error_by_the_delta_method():
    noise = 0.3 * np.random.default_rng(0).standard_normal((400, 25, 64))
    each = [learn.root_mean_square(n) for n in noise]
    assert np.mean([e.value for e in each]) == pytest.approx(0.3, rel=0.01)
    assert np.mean([e.stderr for e in each]) == pytest.approx(np.std([e.value for e in each]), rel=0.15)


def test_mosaic_puts_digits_in_reading_order():
    rows = np.repeat(np.arange(6.0)[:, None], 64, axis=1)
    image = pictures.mosaic(rows, 3)
    assert image.shape == (19, 28)
    assert [image[1 + 9 * i, 1 + 9 * j] for i in range(2) for j in range(3)] == [0, 1, 2, 3, 4, 5]
    assert np.isnan(image[:, [0, 9, 18, 27]]).all()


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [(0.11664, 0.0042, "0.117 ± 0.004"), (12.34, 2.0, "12 ± 2"), (0.5, 0.1, "0.5 ± 0.1"), (1.0, math.inf, "1 ± inf")],
)
def test_numbers_are_shown_to_the_first_digit_of_their_error(value, stderr, text):
    assert learn.shown(Estimate(value, stderr)) == text


def test_the_same_numbers_make_the_same_picture(out, tmp_path):
    digits = learn.learn_digits(0, 2.0)
    for name in ("a.png", "b.png"):
        canvas.write(pictures.draw_samples(digits), Path(tmp_path / name))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
