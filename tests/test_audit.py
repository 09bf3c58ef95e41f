"""The report: numbers as measured, a page that stands alone, sentences that follow the numbers, nothing lost."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from scipy import stats

from gradlogp import InputError, audit
from gradlogp.audit import canvas, columns, pictures, words
from gradlogp.audit.measure import _repeats
from gradlogp.audit.result import MARK
from gradlogp.audit.sentences import NAMED, faults_of
from gradlogp.audit.view import View
from gradlogp.diagnostics import Estimate, nearest_neighbours, score_error
from gradlogp.kernels import Gaussian
from gradlogp.models import GaussianReference, ScoreFunction
from gradlogp.oracles import Empirical, GaussianMixture
from gradlogp.training import Record

KERNELS = [Gaussian(s) for s in (0.05, 0.3, 1.0, 4.0)]


def law() -> GaussianMixture:
    means = torch.tensor([[-2.0, 0.0], [2.0, 0.5]])
    return GaussianMixture(torch.tensor([0.5, 0.5]), means, torch.eye(2).expand(2, 2, 2) * 0.25)


def draws(n: int, seed: int) -> torch.Tensor:
    return law().sample(n, generator=torch.Generator().manual_seed(seed)).float()


TRAIN, TEST = draws(300, 1), draws(300, 2)


def record(step: int, loss: float, left: float, best: bool = True) -> Record:
    return Record(step, step / 400, loss, loss, 0.01, best, 1.0, left, 0.01, 0.6 - left, 0.01, loss - left, 0.01)


HISTORY = tuple(record(100 * i, loss, loss - 0.3) for i, loss in enumerate((0.9, 0.6, 0.5, 0.45, 0.44)))


@pytest.fixture(scope="module")
def good() -> audit.Audit:
    """The true score."""
    return audit.measure(law(), TEST, KERNELS, x_train=TRAIN, history=HISTORY, progress=False)


@pytest.fixture(scope="module")
def memorising() -> audit.Audit:
    """The exact score of the training rows."""
    return audit.measure(Empirical(TRAIN[:60]), TEST, KERNELS, x_train=TRAIN[:60], progress=False)


@pytest.fixture(scope="module")
def bad() -> audit.Audit:
    """A score of twice the size, of a model that knows no shape; the training rows are not given."""
    doubled = ScoreFunction(lambda x_t, k: 2 * law().score(x_t, k))
    return audit.measure(doubled, TEST, KERNELS, progress=False)


class Page(HTMLParser):
    """A page's tags, what it links to, and whether all tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.links, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "action", "srcset")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


# -- the numbers


def test_numbers_are_those_of_the_diagnostics():
    g, again = (torch.Generator().manual_seed(5) for _ in range(2))
    found = audit.measure(law(), TEST, KERNELS, x_train=TRAIN, generator=g, progress=False)
    assert found.score_error == score_error(law(), [TRAIN], TEST, KERNELS, n_noise=4, generator=again)
    assert found.neighbours == nearest_neighbours(torch.from_numpy(found.samples).float(), TRAIN, TEST)
    assert found.self_check.holds
    assert found.repeats == audit.Repeats(300, 0, 300, 0)
    np.testing.assert_array_equal(found.data, TEST.double())


def test_report_json_holds_the_numbers_of_the_objects(good, tmp_path):
    good.save(tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())
    for entry, level in zip(told["score_error"], good.score_error.levels, strict=True):
        assert entry["sigma"] == level.sigma
        assert (entry["dsm"], entry["dsm_stderr"]) == (level.dsm.value, level.dsm.stderr)
        for name in ("floor", "error", "size", "r2"):
            bracket = getattr(level, name)
            assert entry[f"{name}_lower"] == bracket.lower.value
            assert entry[f"{name}_upper"] == bracket.upper.value
            assert entry[f"{name}_upper_stderr"] == bracket.upper.stderr
        assert (entry["r2_low"], entry["r2_high"]) == level.r2_interval
        assert entry["verdict"] == level.verdict
        assert entry["weights"] == level.weights
    for name, values in (("calibration", ("slope", "residual")), ("curl", ("value",)), ("memorisation", ("value",))):
        for entry, level in zip(told[name], getattr(good, name).levels, strict=True):
            assert entry["sigma"] == level.sigma
            for value in values:
                assert entry[value] == getattr(level, value).value
                assert entry[f"{value}_stderr"] == getattr(level, value).stderr
    near = good.neighbours
    assert told["nearest_neighbours"]["copies"] == {"value": near.copies.value, "stderr": near.copies.stderr}
    assert told["self_check"]["residual"]["value"] == good.self_check.residual.value
    assert [r["left"] for r in told["history"]] == [r.left for r in HISTORY]
    assert tuple(told["sentences"].values()) == good.sentences
    assert told["held_out_rows"] == 300
    assert told["format"] == "gradlogp report"


def test_what_is_not_finite_is_null_in_json(good, tmp_path):
    first = replace(good.score_error.levels[0], r2_interval=(-math.inf, 1.0))
    broken = replace(good, score_error=replace(good.score_error, levels=(first, *good.score_error.levels[1:])))
    broken.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["score_error"][0]["r2_low"] is None
    assert "−∞" in broken.to_html()
    assert "any amount" in str(broken)


def test_the_same_seed_makes_the_same_numbers(good):
    again = audit.measure(law(), TEST, KERNELS, x_train=TRAIN, history=HISTORY, progress=False)
    a, b = (x.to_json() | {"seconds": None} for x in (good, again))
    assert a == b


def test_samples_are_of_the_law(good):
    assert good.samples.shape == (256, 2)
    assert np.abs(good.samples.mean(0) - law().means.mean(0).numpy()).max() < 5 * 2.1 / 16
    assert (np.abs(good.samples[:, 0]) > 0.7).mean() > 0.9  # both modes, little between


def test_values_are_shown_in_the_unit_of_the_data():
    offset, scale = np.array([10.0, 20.0]), np.array([2.0, 5.0])
    view = View(offset, scale, names=("age", "height"), snap=np.round)
    found = audit.measure(law(), TEST[:40], KERNELS, x_train=TRAIN, view=view, progress=False)
    np.testing.assert_allclose(found.data, 10 * np.array([1, 2]) + scale * TEST[:40].double().numpy())
    assert (found.samples == np.round(found.samples)).all()
    back = torch.from_numpy((found.samples - offset) / scale).float()
    assert found.neighbours == nearest_neighbours(back, TRAIN, TEST[:40])


def test_rows_that_repeat_are_counted():
    train = torch.tensor([[0.0], [0.0], [1.0], [2.0], [3.0]])
    test = torch.tensor([[0.0], [0.0], [2.0], [5.0], [6.0]])
    assert _repeats(train, test) == (audit.Repeats(5, 2, 5, 3), True)
    assert _repeats(train[:3], test) == (audit.Repeats(3, 2, 5, 2), False)  # only the row 1 is not in the test


# -- the sentences


def test_a_good_model_is_called_good(good):
    s = good.sentences
    most = words.percent(max(v.relative[1] for v in good.score_error.levels if v.relative[1] <= 0.1))
    assert s.good.startswith("Good: at ")
    assert f"at most {most} of the score's size" in s.good
    assert "no rows look memorised" in s.good
    assert "no fault shows in the size and the symmetry of the score" in s.good
    assert s.not_good.startswith(("No fault", "Not good: at σ"))
    assert "held-out rows" in s.to_try or s.to_try == "To try: nothing has to change."


def test_a_memorising_model_is_found_out(memorising):
    s = memorising.sentences
    level = memorising.memorisation.levels[0]
    assert f"σ = 0.05 it is {words.percent_of(level.value)} of the way from the true score to one that" in s.not_good
    assert f"{words.percent_of(memorising.neighbours.copies)} of the samples are near copies" in s.not_good
    assert "memorised rows" not in s.good
    assert s.to_try == "To try: train on more rows, or with more dropout or fewer steps."


def test_a_bad_model_is_called_bad(bad):
    s = bad.sentences
    worst = max(level.relative[0] for level in bad.score_error.levels)
    assert s.good.startswith("Good: little; at no noise level is the score known to half of its size")
    assert f"the score error is at least {words.percent(worst)} of the score's size" in s.not_good
    slope = min((v.slope for v in bad.calibration.levels), key=lambda v: v.value + 3 * v.stderr)
    assert f"the scores are too large: {words.shown(slope)} times them" in s.not_good
    assert "the training rows were not given: nothing is known of memorisation" in s.not_good
    assert s.to_try == "To try: train on more rows or with a wider network (width)."


def test_sentences_are_single_lines_that_end_once(good, memorising, bad):
    for found in (good, memorising, bad):
        for sentence in found.sentences:
            assert re.fullmatch(r"[A-Z][^\n]*[^.\n]\.", sentence)
        assert str(found).splitlines() == [str(found.score_error), *found.sentences]


def test_a_broken_self_check_comes_before_all_else(bad):
    check = replace(bad.self_check, residual=Estimate(5.0, 0.1))
    s = replace(bad, self_check=check).sentences
    assert s.good == "Good: nothing can be said, since the self-check fails."
    assert s.not_good.startswith("Not good: the self-check fails, 5 ± 0.1 where 0 is right; at σ")
    assert "gradient" in s.to_try


@pytest.mark.parametrize(
    ("repeats", "told"),
    [((300, 0, 600, 300), True), ((300, 0, 600, 1), False), ((300, 150, 600, 300), False), ((9, 2, 9, 9), True)],
)
def test_held_out_rows_that_are_training_rows_are_told_unless_rows_repeat_anyhow(good, repeats, told):
    s = replace(good, repeats=audit.Repeats(*repeats)).sentences
    assert (f"{repeats[3]} of the {repeats[2]} held-out rows are training rows" in s.not_good) == told


def test_rows_that_depend_on_each_other_are_told(good):
    told = "the rows are correlated in their order"
    error = replace(good.score_error, cautions=(told,), n_independent=20)
    s = replace(good, score_error=error).sentences
    assert told in s.not_good
    assert s.to_try.startswith("To try: shuffle rows that were only sorted; give groups")
    assert "draws, in what these" in replace(good, score_error=error).to_html()
    assert "a part rarer than 15 % may be unseen" in error.seen
    assert replace(good, score_error=error).to_json()["cautions"] == [told]


def test_memorising_what_does_not_matter_is_no_fault(memorising):
    """At a level where the score error is known to be small, memorising has done no harm."""
    levels = tuple(replace(v, r2_interval=(0.95, 1.0)) for v in memorising.score_error.levels)
    harmless = replace(memorising, score_error=replace(memorising.score_error, levels=levels))
    assert "of the way" not in harmless.sentences.not_good
    assert "near copies" in harmless.sentences.not_good


@pytest.mark.parametrize(("value", "told"), [((0.22, 0.03), True), ((0.18, 0.03), False), ((0.05, 0.001), False)])
def test_memorising_is_told_where_it_is_clear(memorising, value, told):
    levels = tuple(replace(v, value=Estimate(*value)) for v in memorising.memorisation.levels)
    s = replace(memorising, memorisation=replace(memorising.memorisation, levels=levels)).sentences
    assert ("of the way from the true score" in s.not_good) == told


@pytest.mark.parametrize(
    ("ratio", "text"),
    [((1.3, 0.03), "samples lie 1.30 ± 0.03 times"), ((0.7, 0.03), "samples lie 0.70 ± 0.03"), ((1.3, 0.1), "")],
)
def test_samples_too_far_or_too_close(good, ratio, text):
    s = replace(good, neighbours=replace(good.neighbours, distance_ratio=Estimate(*ratio))).sentences
    assert ("samples lie" in s.not_good) == bool(text)
    assert text in s.not_good


def test_a_rotating_score_is_told():
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    reference = GaussianReference.of_data(TRAIN)
    turning = ScoreFunction(lambda x_t, k: reference.score(x_t, k) + x_t @ turn)
    found = audit.measure(turning, TEST[:100], KERNELS[1:], progress=False)
    assert any("antisymmetric" in fault.text for fault in audit.sentences.faults_of(found))


@pytest.mark.parametrize(
    ("left", "advice"),
    [((0.6, 0.3, 0.2, 0.15, 0.14), "train longer"), ((0.6, 0.2, 0.14, 0.14, 0.14), "wider network"), ((), "wider")],
)
def test_what_to_try_follows_the_learning_curve(bad, left, advice):
    history = tuple(record(100 * i, v + 0.3, v) for i, v in enumerate(left))
    assert advice in replace(bad, history=history).sentences.to_try


def test_training_that_never_helped_is_told(good):
    history = (record(0, 0.5, 0.2), record(100, 0.6, 0.3, best=False))
    s = replace(good, history=history).sentences
    assert "no step of training was better than the closed form alone" in s.not_good
    assert s.to_try.startswith("To try: train on more rows: on these")
    assert "no fault" not in s.good


# -- words


@pytest.mark.parametrize(
    ("some", "text"),
    [
        ((1.0, 2.0, 3.0, 4.0), "at every noise level"),
        ((3.0, 4.0), "at σ ≥ 3"),
        ((1.0, 2.0), "at σ ≤ 2"),
        ((2.0,), "at σ = 2"),
        ((2.0, 3.0), "at σ from 2 to 3"),
        ((1.0, 3.0), "at 2 of 4 levels, σ from 1 to 3"),
    ],
)
def test_which_levels_are_meant(some, text):
    assert words.where(some[::-1], (4.0, 1.0, 3.0, 2.0)) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"), (0.0123, "1.2 %"), (0.5, "50 %"), (0.999, "100 %"), (2.5, "250 %"),
        (25.0, "25 times"), (1234.0, "1234 times"), (math.inf, "any amount"),
    ],
)  # fmt: skip
def test_shares_in_words(share, text):
    assert words.percent(share) == text


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        ((0.1234, 0.02), "0.12 ± 0.02"),
        ((153.6, 4.0), "154 ± 4"),
        ((1.0, 0.0), "1 ± 0"),
        ((3e-9, 1e-9), "3e-09 ± 1e-09"),
    ],
)
def test_estimates_in_words(estimate, text):
    assert words.shown(Estimate(*estimate)) == text


# -- the page


@pytest.mark.parametrize("kind", ["good", "memorising", "bad"])
def test_the_page_is_sound_and_needs_no_network(kind, request):
    text = request.getfixturevalue(kind).to_html()
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "a"} & set(page.tags)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in re.sub("base64,[A-Za-z0-9+/=]*", "", text)  # where it may stand by chance
    assert "@import" not in text
    assert "url(" not in text
    assert text.count("<img") == 5 - (kind != "good")  # no learning curve where there is no history


def test_the_page_tells_all(good):
    text = good.to_html()
    for sentence in good.sentences:
        assert sentence.split(": ", 1)[-1].replace("'", "&#x27;") in text
    assert text.index(good.sentences.good[6:30]) < text.index("<img")
    for level in good.score_error.levels:
        assert f"<td>{level.verdict}</td>" in text
        assert f"<td>{words.shown(level.dsm)}</td>" in text
    for verdict in ("certified", "estimated", "only bounded below", "exact"):
        assert f"<tr><td>{verdict}</td>" in text
    assert words.shown(good.neighbours.distance_ratio) in text
    assert "Kept: step 400" in text


def test_the_page_says_what_was_not_measured(bad):
    text = bad.to_html()
    assert "Not measured: the training rows were not given." in text
    assert "Not recorded." in text


def test_names_of_columns_are_text(good):
    names = ("<b>&</b>", "$x^2$ costs $5")
    text = replace(good, view=View(names=names, sigma_unit="<i>unit</i>")).to_html()
    assert "<b>&</b>" not in text
    assert "<i>unit" not in text


def test_a_notebook_shows_a_summary(good):
    text = good._repr_html_()
    assert text.count("<img") == 1
    assert Page(text).open == []
    assert good.sentences.to_try.removeprefix("To try: ") in text


@pytest.mark.parametrize(
    ("shape", "pixels", "image"),
    [
        ((64,), True, (8, 8)), ((64,), False, None), ((60,), True, None), ((4,), True, None), ((8, 6), False, (8, 6)),
        ((1, 8, 6), False, (8, 6)), ((8, 6, 1), False, (8, 6)), ((3, 8, 6), False, (8, 6, 3)),
        ((8, 6, 3), False, (8, 6, 3)), ((2, 8, 6), False, None), ((3, 2), False, None),
    ],
)  # fmt: skip
def test_what_looks_like_an_image(shape, pixels, image):
    view = View(pixels=pixels)
    values = np.arange(2.0 * math.prod(shape)).reshape(2, *shape)
    assert view.image_shape(shape) == image
    images = view.images(values)
    assert (images is None) == (image is None)
    if images is not None:
        assert images.shape == (2, *image)
        first = values[1][:, 0, 1] if shape[0] == 3 and len(shape) == 3 else values[1].reshape(*image)[0, 1]
        np.testing.assert_array_equal(images[1, 0, 1], first)


@pytest.mark.parametrize("shape", [(1,), (2,), (20,), (6, 6), (3, 4, 4), (2, 3)])
def test_every_shape_of_rows_has_a_page(shape):
    x = torch.randn(40, *shape, generator=torch.Generator().manual_seed(3))
    found = audit.measure(GaussianReference.of_data(x[:20]), x[20:28], KERNELS[1:3], x_train=x[:20], progress=False)
    assert found.to_html().count("<img") == 4


@pytest.mark.parametrize("n", [1, 8, 13])
def test_mosaics_show_whole_lines(n):
    images = np.arange(float(n))[:, None, None] * np.ones((1, 4, 5))
    whole = canvas.mosaic(images, 8)
    assert whole.shape == (6, 1 + 6 * min(n, 8))
    assert [whole[1, 1 + 6 * i] for i in range(min(n, 8))] == list(range(min(n, 8)))
    assert np.isnan(whole[0]).all()


# -- kept whole


def contents(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_saving_replaces_an_earlier_report_and_nothing_else(good, bad, tmp_path):
    assert good.save(tmp_path / "new") == tmp_path / "new" / "report.html"
    (tmp_path / "new" / "mine.txt").write_text("kept")
    bad.save(tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["mine.txt", "report.html", "report.json"]
    assert "Not recorded" in (tmp_path / "new" / "report.html").read_text()


@pytest.mark.parametrize("which", [1, 2, 3, 4])
def test_a_failure_at_any_move_leaves_what_was_there(good, bad, tmp_path, monkeypatch, which):
    monkeypatch.setattr(audit.Audit, "to_html", lambda self: f"{MARK} {self.sentences}")
    good.save(tmp_path)
    before, real, moves = contents(tmp_path), os.replace, []

    def fail(a, b):
        moves.append(a)
        if len(moves) == which:
            raise OSError(28, "No space left on device")
        real(a, b)

    monkeypatch.setattr("gradlogp.audit.result.os.replace", fail)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        bad.save(tmp_path)
    assert contents(tmp_path) == before


def test_a_failed_first_report_leaves_no_half_of_it(good, tmp_path, monkeypatch):
    real, moves = os.replace, []

    def fail(a, b):
        moves.append(a)
        if len(moves) == 2:
            raise OSError(28, "No space left on device")
        real(a, b)

    monkeypatch.setattr(audit.Audit, "to_html", lambda self: MARK)
    monkeypatch.setattr("gradlogp.audit.result.os.replace", fail)
    with pytest.raises(InputError):
        good.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_in_writing_leaves_no_trace(good, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("gradlogp.audit.result.Path.write_text", fail)
    with pytest.raises((InputError, KeyboardInterrupt)):
        good.save(tmp_path / "new")
    assert not [p for p in tmp_path.rglob("*") if p.name != "new"]


def test_a_failure_in_drawing_comes_before_writing(good, tmp_path, monkeypatch):
    monkeypatch.setattr("gradlogp.audit.page.png", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        good.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_places_that_are_refused(good, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("report.html", "report.json"):
        (tmp_path / name[-4:]).mkdir()
        (tmp_path / name[-4:] / name).write_text("mine")
    refused = {
        "file": "is a file",
        "no/where": "does not exist",
        "html": r"holds a report\.html",
        "json": "holds a rep",
    }
    for place, reason in refused.items():
        with pytest.raises(InputError, match=reason) as e:
            good.save(tmp_path / place)
        assert "\n" not in str(e.value)
        assert "want" in str(e.value)
    assert (tmp_path / "html" / "report.html").read_text() == "mine"


# -- bad input


@pytest.mark.parametrize(
    ("x_test", "more", "message"),
    [
        (TEST[:7], {}, "held-out rows: got 7, want at least 8"),
        (TRAIN[:50], {"x_train": TRAIN}, "held-out rows: got 50 that are all among the training rows"),
        (TEST[:50], {"x_train": TRAIN[:, :1]}, "x_train: got event shape"),
        (TEST[:50], {"x_train": TRAIN * math.nan}, "x_train: row 0 holds NaN"),
        (TEST[:50] / 0, {}, "x_test: row 0 holds NaN"),
        (TEST[:50], {"kernels": KERNELS[:1]}, "kernels: got 1, want at least 2"),
    ],
)
def test_bad_input_is_refused(x_test, more, message, as_a_user):
    given = {"kernels": KERNELS, "progress": False} | more
    with pytest.raises(InputError, match=message) as e:
        audit.measure(law(), x_test, given.pop("kernels"), **given)
    assert "\n" not in str(e.value)


# --- columns --------------------------------------------------------------------------------------------------------


def wide(n_columns: int = 13) -> audit.Audit:
    """A Gaussian whose last column the model has wrong, and whose columns 3 and 7 go together."""
    right = torch.eye(n_columns, dtype=torch.float64)
    right[3, 7] = right[7, 3] = -0.9
    wrong = right.clone()
    wrong[-1, -1] = 9.0
    g = torch.Generator().manual_seed(3)
    zero = torch.zeros(n_columns, dtype=torch.float64)
    data = GaussianReference.of_moments(zero, right).sample_noisy(300, Gaussian(1e-3), generator=g)
    view = View(names=tuple(f"c{i}" for i in range(n_columns)))
    return audit.measure(GaussianReference.of_moments(zero, wrong), data, KERNELS[:2], view=view, progress=False)


@pytest.fixture(scope="module")
def thirteen() -> audit.Audit:
    return wide()


def test_distances_of_columns_are_those_of_scipy(g):
    """Ties included: in one column all values are whole numbers."""
    data, samples = (torch.randn(n, 3, generator=g).double().numpy() for n in (80, 45))
    samples = samples + 0.2
    data[:, 1], samples[:, 1] = data[:, 1].round(), samples[:, 1].round()
    distance, p = columns.distances(data, samples)
    for i in range(3):
        want = stats.ks_2samp(data[:, i], samples[:, i], method="asymp")
        assert distance[i] == pytest.approx(want.statistic, rel=1e-12)
        assert p[i] == pytest.approx(stats.kstwobign.sf(want.statistic * math.sqrt(80 * 45 / 125)), rel=1e-9)
    assert columns.limit(80, 45) == pytest.approx(1.358 * math.sqrt(125 / (80 * 45)), rel=1e-3)


def test_a_column_left_out_is_never_the_worst_one(thirteen):
    """All of thirteen are in JSON; twelve are drawn, the wrong one first, and the page says that one is not."""
    assert [m["name"] for m in thirteen.to_json()["marginals"]] == [f"c{i}" for i in range(13)]
    drawn = pictures.shown_marginals(thirteen)
    assert drawn[0].name == "c12"
    assert [m.distance for m in drawn] == sorted((m.distance for m in thirteen.marginals), reverse=True)[:12]
    assert thirteen.marginals[12].p_value < 1e-6
    text = thirteen.to_html()
    assert "the 12 of 13 that differ most, the worst first" in text
    assert "All 13 are in report.json" in text
    assert "The first 256 of 300 held-out rows and all 256 samples: " in text


def test_columns_are_all_there_in_their_order_where_they_fit(good):
    assert [m.index for m in pictures.shown_marginals(good)] == [0, 1]
    assert "all 2" in good.to_html()


def test_the_pair_that_is_drawn_goes_together_most(thirteen):
    pair = thirteen.pair
    assert pair[:2] == (3, 7)
    r = np.corrcoef(thirteen.data[:, 3], thirteen.data[:, 7])[0, 1]
    assert pair.data.value == pytest.approx(r, rel=1e-9)
    assert pair.data.stderr == pytest.approx((1 - r**2) / math.sqrt(297), rel=1e-9)
    assert abs(pair.samples.value + 0.9) < 5 * pair.samples.stderr
    told = thirteen.to_json()["most_correlated"]
    assert told["columns"] == ["c3", "c7"]
    assert "c3 and c7, the two columns of largest correlation" in thirteen.to_html()


def test_the_closest_pair_is_found_across_blocks_and_constant_columns_are_none(g, monkeypatch):
    monkeypatch.setattr(columns, "_AT_A_TIME", 2)
    rows = torch.randn(50, 7, generator=g).double().numpy()
    rows[:, 6] = -2 * rows[:, 1] + 5
    rows[:, 3] = 1e6
    pair = columns.closest_pair(rows, rows)
    assert pair[:2] == (1, 6)
    assert pair.data.value == pytest.approx(-1.0)
    assert columns.closest_pair(rows[:, 3:5], rows[:, 3:5]) is None


def test_faults_beyond_those_named_are_counted_and_kept(bad):
    faults = bad.to_json()["faults"]
    assert [f["text"] for f in faults] == [f.text for f in faults_of(bad)]
    more = len(faults) - NAMED
    assert (f"{more} more fault" in bad.sentences.not_good) == (more > 0)
