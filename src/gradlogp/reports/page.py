"""The page that shows the pictures and says what they show."""

from __future__ import annotations

import html
import platform
from dataclasses import dataclass
from importlib.metadata import version

from matplotlib.figure import Figure

from gradlogp.audit.page import document, table
from gradlogp.diagnostics import Estimate
from gradlogp.reports.learn import (
    FIELD_DRAWS,
    FIELD_ROWS,
    FIELD_SIGMA,
    N_SHOWN,
    Digits,
    Field,
    held_out_of,
    shown,
)
from gradlogp.reports.pictures import draw_denoising, draw_field, draw_learning, draw_samples

MODEL = "model"
MARK = '<meta name="generator" content="gradlogp demo">'

_BODY = """<p>The score ∇log p of two data sets, learnt from samples by denoising score matching on this machine:
handwritten digits, and a density that is known, so that the error can be measured. Numbers are value ± one standard
error.</p>
{sections}
<h2>Numbers</h2>
{numbers}
<h2>Time</h2>
{times}
<footer>Seed {seed}. Training ends by the clock, so another run is a little different. {versions}.<br>
The digits are <code>sklearn.datasets.load_digits</code>, the learnt model is the folder
<a href="{model}/config.json"><code>{model}</code></a>.</footer>"""

_SECTION = """<h2>{title}</h2>
<figure><img src="{name}" alt="{alt}">
<figcaption>{text}</figcaption></figure>"""


@dataclass(frozen=True)
class Section:
    """One picture, and the words under it."""

    name: str
    title: str
    alt: str
    text: str
    picture: Figure


def sections(digits: Digits, learnt: Field) -> list[Section]:
    """The pictures and what is said of them."""
    return [
        Section("samples.png", "Samples", *_about_samples(digits), draw_samples(digits)),
        Section("denoising.png", "Denoising", *_about_denoising(digits), draw_denoising(digits)),
        Section("learning.png", "Learning", *_about_learning(digits), draw_learning(digits)),
        Section("field.png", "Learnt and exact score", *_about_field(), draw_field(learnt)),
    ]


def _about_samples(digits: Digits) -> tuple[str, str]:
    """What the picture shows, for those who cannot see it; and the text below it. So all of these."""
    return "Two grids of digits, data and samples, and some samples above training rows", (
        f"Left: {min(N_SHOWN, len(digits.held_out))} of {len(digits.held_out)} digits that the model has not seen. "
        "Right: what it draws. Below: samples beside the nearest row it was trained on, at a mean distance of "
        f"{shown(digits.to_samples)}; held-out digits are at "
        f"{shown(digits.to_held_out)}, copies would be at 0."
    )


def _about_denoising(digits: Digits) -> tuple[str, str]:
    last = digits.denoising[-1]
    return "Held-out digits with noise of four strengths, each beside its denoised image", (
        "Held-out digits with Gaussian noise of standard deviation σ (paper is −1, ink 1), and E[clean | noisy] by the "
        f"model. Under much noise that is a mean of all digits it may be; at σ = {last.sigma:g} the error is "
        f"{shown(last.learnt)} a pixel, and {shown(last.linear)} by the best linear filter."
    )


def _about_learning(digits: Digits) -> tuple[str, str]:
    return "Training and held-out loss against training steps", (
        f"Denoising loss at {len(digits.est.history_)} looks, held-out rows and their noise the same at each; the "
        "weights of the best look are kept. The band is the error from having few held-out rows: it moves all looks "
        "together, so differences between looks are surer than it is wide."
    )


def _about_field() -> tuple[str, str]:
    return "Three fields of arrows over a spiral: learnt, exact, and their difference", (
        f"Blue: the exact density with noise of σ = {FIELD_SIGMA:g} added. Arrows: σ² × score, which leads from a "
        f"noisy point to the mean of where it came from. Learnt from {FIELD_ROWS} samples; the error is measured on "
        f"{FIELD_DRAWS} fresh ones."
    )


def numbers(digits: Digits, learnt: Field) -> list[tuple[str, Estimate, str]]:
    """What was measured, its value and its unit."""
    best, first = digits.best, digits.est.history_[0]
    rows = [("digits: held-out loss", held_out_of(best), "1 = scalar skip, no skill")]
    if first.step == 0:
        rows += [("— closed form, before training", held_out_of(first), "the same")]
    for d in digits.denoising:
        rows += [
            (f"digits: denoising error at σ = {d.sigma:g}", d.learnt, "RMS per pixel, paper −1, ink 1"),
            ("— of the best linear filter", d.linear, "the same"),
        ]
    return [
        *rows,
        ("digits: samples to nearest training row", digits.to_samples, "Euclidean distance of 64 pixels, mean"),
        ("— held-out rows to nearest training row", digits.to_held_out, "the same"),
        (f"spiral: score error at σ = {FIELD_SIGMA:g}", learnt.error, "relative to ½E‖s‖²"),
    ]


def _versions() -> str:
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("gradlogp", "torch", "numpy", "scikit-learn", "matplotlib")
    )
    return f"{packages}, Python {platform.python_version()}"


def page(
    sections: list[Section], numbers: list[tuple[str, Estimate, str]], seconds: dict[str, float], seed: int
) -> str:
    """The whole page."""
    times = [(what, f"{t:.1f} s") for what, t in seconds.items()]
    words = [{k: html.escape(getattr(s, k)) for k in ("name", "title", "alt", "text")} for s in sections]
    body = _BODY.format(
        sections="\n".join(_SECTION.format(**w) for w in words),
        numbers=table([(what, shown(value), unit) for what, value, unit in numbers], ("what", "value", "unit")),
        times=table([*times, ("together", f"{sum(seconds.values()):.1f} s")]),
        seed=seed,
        versions=html.escape(_versions()),
        model=MODEL,
    )
    return document("gradlogp demo", body, MARK)
