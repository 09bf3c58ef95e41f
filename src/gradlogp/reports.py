"""The demonstration: digits and a density that is known, learnt, drawn, and written up in one page."""

from __future__ import annotations

import html
import math
import os
import platform
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from gradlogp._shapes import InputError
from gradlogp.diagnostics import Estimate
from gradlogp.estimators import ScoreDensity
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import ScoreFunction, ScoreModel
from gradlogp.objectives import ExplicitScoreMatching
from gradlogp.oracles import GaussianMixture
from gradlogp.training import Record

Array = NDArray[np.float64]

INDEX, MODEL = "index.html", "model"
MARK = '<meta name="generator" content="gradlogp demo">'
STAGING = ".gradlogp-demo-"
STRIP_SIGMAS = (0.3, 0.6, 1.0, 1.5)
FIELD_SIGMA = 0.3
FIELD_EXTENT = 3.3
FIELD_DEPTH = 5.0  # nats below the peak of the density down to which arrows are drawn
FIELD_ROWS, FIELD_DRAWS = 10_000, 4_000
N_SHOWN, N_NEAREST = 128, 20
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # told apart with any colour vision (Okabe and Ito)
DPI = 120


# --- what is learnt -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Denoising:
    """Root mean square error of a pixel over the held-out digits, at one noise level.

    Attributes:
        sigma: standard deviation of the noise, in the data's unit (−1 to 1 from paper to ink).
        learnt: error of the learnt denoiser.
        linear: error of the best linear filter, the Gaussian with the data's mean and covariance.
        noisy, denoised: the digits of the strip.
    """

    sigma: float
    learnt: Estimate
    linear: Estimate
    noisy: Array
    denoised: Array


@dataclass(frozen=True)
class Digits:
    """The learnt digits, and what is shown and measured of them.

    Attributes:
        est: the fitted model.
        held_out: rows that it has not seen.
        samples: rows drawn from it.
        nearest: the training rows nearest to the first samples.
        to_samples, to_held_out: mean distance to the nearest training row.
        strip: one held-out digit of each class.
        denoising: their denoising, one a noise level.
    """

    est: ScoreDensity
    held_out: Array
    samples: Array
    nearest: Array
    to_samples: Estimate
    to_held_out: Estimate
    strip: Array
    denoising: tuple[Denoising, ...]

    @property
    def best(self) -> Record:
        """The look with the smallest held-out loss."""
        best: Record = min(self.est.history_, key=lambda r: r.held_out)
        return best


@dataclass(frozen=True)
class Field:
    """A learnt score in two dimensions beside the exact one.

    Attributes:
        est: the fitted model.
        exact: the density that the rows were drawn from.
        error: ½E‖ψ − s‖² / ½E‖s‖² at ``FIELD_SIGMA``, over fresh noisy draws.
    """

    est: ScoreDensity
    exact: GaussianMixture
    error: Estimate


def learn_digits(seed: int, seconds: float, *, verbose: bool = False) -> Digits:
    """Fit four fifths of scikit-learn's digits, scaled to −1 … 1, and measure the fit on the rest."""
    data = load_digits()
    train, held_out, _, label = train_test_split(data.data / 8 - 1, data.target, test_size=0.2, random_state=0)
    est = ScoreDensity(random_state=seed, max_seconds=seconds, verbose=verbose).fit(train)
    samples = est.sample(N_SHOWN)
    near, to_samples = _nearest(samples, train)
    _, to_held_out = _nearest(held_out, train)
    rng = np.random.default_rng(seed)
    strip = np.array([np.flatnonzero(label == c)[0] for c in range(10)])
    denoising = tuple(_denoising(est, held_out, strip, sigma, rng) for sigma in STRIP_SIGMAS)
    return Digits(
        est, held_out, samples, train[near[:N_NEAREST]],
        _mean(to_samples), _mean(to_held_out), held_out[strip], denoising,
    )  # fmt: skip


def _nearest(rows: Array, train: Array) -> tuple[NDArray[np.int64], Array]:
    """Index of, and distance to, the nearest training row."""
    distance = torch.cdist(torch.from_numpy(rows), torch.from_numpy(train)).min(1)
    return distance.indices.numpy(), distance.values.numpy()


def _denoising(
    est: ScoreDensity, rows: Array, shown: NDArray[Any], sigma: float, rng: np.random.Generator
) -> Denoising:
    noisy = rows + sigma * rng.standard_normal(rows.shape)
    denoised = est.denoise(noisy, sigma)
    with torch.no_grad():
        linear = est.model_.reference.denoise(est.units_.to_model(noisy), Gaussian(sigma))
    learnt_error, linear_error = (_root_mean_square(d - rows) for d in (denoised, est.units_.from_model(linear)))
    return Denoising(sigma, learnt_error, linear_error, noisy[shown], denoised[shown])


def _root_mean_square(difference: Array) -> Estimate:
    """√(mean square) with its standard error over rows, by the delta method."""
    mean = _mean((difference**2).mean(1))
    root = math.sqrt(mean.value)
    return Estimate(root, mean.stderr / (2 * root))


def _mean(values: Array) -> Estimate:
    return Estimate.mean_of(torch.from_numpy(values))


def spiral() -> GaussianMixture:
    """Two arms of twelve Gaussians each along a spiral, one arm twice as heavy: its density and score are known."""
    t = np.linspace(0, 1, 12)
    angle, radius = math.pi * (0.6 + 1.5 * t), 0.6 + 1.9 * t
    arm = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    step = np.gradient(arm, axis=0)
    length = np.linalg.norm(step, axis=1)
    along = step / length[:, None]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    covariance = sum(
        np.asarray(s)[..., None, None] ** 2 * v[:, :, None] * v[:, None]
        for s, v in ((0.55 * length, along), (0.12, across))
    )
    weights, means = np.concatenate([2 * length, length]), np.concatenate([arm, -arm])
    covariances = torch.from_numpy(np.concatenate([covariance, covariance]))
    return GaussianMixture(torch.from_numpy(weights), torch.from_numpy(means).float(), covariances)


def learn_field(seed: int, seconds: float, *, verbose: bool = False) -> Field:
    """Fit draws of the spiral and measure the error of the learnt score against the exact one."""
    exact = spiral()
    generator = torch.Generator().manual_seed(seed)
    rows = exact.sample(FIELD_ROWS, generator=generator).numpy()
    est = ScoreDensity(random_state=seed, max_seconds=seconds, standardize=False, verbose=verbose).fit(rows)
    x = exact.sample(FIELD_DRAWS, generator=generator)
    return Field(est, exact, relative_error(_as_model(est), exact, x, Gaussian(FIELD_SIGMA), seed))


def relative_error(model: ScoreModel, exact: GaussianMixture, x: Tensor, kernel: Kernel, seed: int) -> Estimate:
    """r = ½E‖ψ − s‖² / ½E‖s‖² on the same draws; standard error of the ratio by the delta method."""
    loss = ExplicitScoreMatching(exact)
    zero = ScoreFunction(lambda x_t, _: torch.zeros_like(x_t))
    error, size = (
        loss(m, x, kernel, generator=torch.Generator().manual_seed(seed + 1)).double() for m in (model, zero)
    )
    ratio = error.mean() / size.mean()
    residual = Estimate.mean_of(error - ratio * size)
    return Estimate(ratio.item(), residual.stderr / size.mean().item())


def _as_model(est: ScoreDensity) -> ScoreModel:
    """The estimator's score as a model, in the data's units."""
    return ScoreFunction(lambda x_t, kernel: torch.from_numpy(est.grad_log_prob(x_t.numpy(), kernel.sigma.item())))


def shown(estimate: Estimate) -> str:
    """Value ± standard error, both to the first digit of the standard error."""
    if not 0 < estimate.stderr < math.inf:
        return str(estimate)
    digits = max(0, -math.floor(math.log10(estimate.stderr)))
    return f"{estimate.value:.{digits}f} ± {estimate.stderr:.{digits}f}"


def _held_out(record: Record) -> Estimate:
    return Estimate(record.held_out, record.held_out_stderr)


# --- pictures -----------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained", wspace=0.03, hspace=0.03, h_pad=0.1)
    return figure


def _write(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def mosaic(rows: Array, n_columns: int) -> Array:
    """Digits ``(N, 64)`` as one image, n_columns a line, a pixel of NaN around each."""
    tiles = np.pad(rows.reshape(-1, 8, 8), ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    lines = [np.hstack(list(tiles[i : i + n_columns])) for i in range(0, len(tiles), n_columns)]
    return np.pad(np.vstack(lines), ((1, 0), (1, 0)), constant_values=np.nan)


def _show_digits(axes: Any, rows: Array, n_columns: int, title: str) -> None:
    axes.set_facecolor("0.8")  # shows where the image is NaN
    axes.imshow(mosaic(rows, n_columns), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=11)
    _bare(axes)


def _bare(axes: Any) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_samples(digits: Digits) -> Figure:
    """Held-out digits, samples, and the training rows nearest to some samples."""
    figure = _figure(11.0, 4.6)
    grid = figure.add_gridspec(2, 2, height_ratios=[2.65, 1.1])
    _show_digits(figure.add_subplot(grid[0, 0]), digits.held_out[:N_SHOWN], 16, "held-out data")
    _show_digits(figure.add_subplot(grid[0, 1]), digits.samples, 16, "samples of the learnt density")
    pairs = np.concatenate([digits.samples[:N_NEAREST], digits.nearest])
    title = f"the first {N_NEAREST} samples (top) and the training row nearest to each (bottom)"
    _show_digits(figure.add_subplot(grid[1, :]), pairs, N_NEAREST, title)
    return figure


def draw_denoising(digits: Digits) -> Figure:
    """One held-out digit of each class: clean, and noisy and denoised at each level."""
    figure = _figure(7.6, 8.7)
    n_digits, n_levels = len(digits.strip), len(digits.denoising)
    axes = figure.subplots(1, 1 + n_levels, width_ratios=[1] + [1.9] * n_levels)
    _show_digits(axes[0], digits.strip, 1, "clean")
    for at, level in zip(axes[1:], digits.denoising, strict=True):
        pairs = np.stack([level.noisy, level.denoised], axis=1).reshape(2 * n_digits, -1)
        _show_digits(at, pairs, 2, f"σ = {level.sigma:g}\nnoisy, denoised")
        at.set_xlabel(f"RMS error per pixel\n{shown(level.learnt)}", fontsize=9)
    return figure


def draw_learning(digits: Digits) -> Figure:
    """Training and held-out loss against steps."""
    figure = _figure(8.6, 4.6)
    axes = figure.subplots()
    records, best = digits.est.history_, digits.best
    step, loss, held_out, stderr = (
        np.array([getattr(r, k) for r in records]) for k in ("step", "loss", "held_out", "held_out_stderr")
    )
    marker = "o" if len(records) < 3 else None
    axes.fill_between(step, held_out - stderr, held_out + stderr, color=ORANGE, alpha=0.18, lw=0)
    axes.plot(step, held_out, color=ORANGE, marker=marker, label="held-out rows, ± 1 standard error")
    after = step > 0  # before the first step there is no training loss
    axes.plot(step[after], loss[after], color=BLUE, ls="--", marker=marker, label="training rows (with dropout)")
    at_best = f"best look, kept: {shown(_held_out(best))}, step {best.step}"
    axes.plot(best.step, best.held_out, "o", ms=9, mfc="white", mec=ORANGE, mew=2, ls="none", label=at_best)
    if step[0] == 0:
        before = f"closed form, before training: {shown(_held_out(records[0]))}"
        axes.axhline(held_out[0], color=GREY, ls=":", label=before)
    axes.set(xlabel="training steps", ylabel="loss per coordinate\n(1 = scalar skip, no skill)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False, fontsize=9.5)
    return figure


def draw_field(learnt: Field) -> Figure:
    """The learnt score, the exact one and the difference, over the exact density."""
    figure = _figure(11.0, 4.1)
    axes = figure.subplots(1, 3)
    titles = ("learnt from samples", "exact", "learnt − exact")
    for at, arrows, title in zip(axes, _arrows(learnt), titles, strict=True):
        _show_field(at, learnt.exact, arrows, title)
    text = f"relative score error at σ = {FIELD_SIGMA:g}:  ½E‖ψ − s‖² / ½E‖s‖² = {shown(learnt.error)}"
    figure.supxlabel(f"{text}   ({FIELD_DRAWS} fresh noisy draws)", fontsize=10.5)
    return figure


def _arrows(learnt: Field, n: int = 22) -> tuple[Array, Array, Array]:
    """σ²∇log p_σ at grid points: learnt, exact and their difference; where the density is not negligible."""
    points = _grid(n)
    kernel = Gaussian(FIELD_SIGMA)
    log_p = learnt.exact.log_prob(points, kernel)
    points = points[log_p > log_p.max() - FIELD_DEPTH]
    psi, s = (m.score(points, kernel).numpy() * FIELD_SIGMA**2 for m in (_as_model(learnt.est), learnt.exact))
    at = points.numpy()
    return np.hstack([at, psi]), np.hstack([at, s]), np.hstack([at, psi - s])


def _grid(n: int) -> Tensor:
    """Centres of n × n cells over the picture."""
    edge = FIELD_EXTENT * (1 - 1 / n)
    line = torch.linspace(-edge, edge, n, dtype=torch.float64)
    return torch.cartesian_prod(line, line).flip(1)


def _show_field(axes: Any, exact: GaussianMixture, arrows: Array, title: str) -> None:
    """Arrows at true length over filled contours of the exact p_σ."""
    n = 140
    points = _grid(n)
    density = exact.log_prob(points, Gaussian(FIELD_SIGMA)).exp().numpy().reshape(n, n)
    line = points[:n, 0].numpy()
    levels = np.linspace(0.02, 1, 11) * density.max()
    axes.contourf(line, line, density, levels=levels, cmap="Blues", vmax=1.25 * density.max())
    axes.quiver(*arrows.T, angles="xy", scale_units="xy", scale=1, color="0.1", width=0.0042, headwidth=4)
    axes.set(xlim=(-FIELD_EXTENT, FIELD_EXTENT), ylim=(-0.9 * FIELD_EXTENT, 0.9 * FIELD_EXTENT), aspect="equal")
    axes.set_title(title, fontsize=11)
    _bare(axes)


def draw_headline(digits: Digits, learnt: Field) -> Figure:
    """The README's picture: data beside samples, learnt score beside the exact one."""
    figure = _figure(1600 / DPI, 410 / DPI)
    axes = figure.subplots(1, 4)
    _show_digits(axes[0], digits.held_out[:90], 10, "held-out digits")
    _show_digits(axes[1], digits.samples[:90], 10, "samples of the learnt density")
    learnt_arrows, exact_arrows, _ = _arrows(learnt, 20)
    _show_field(axes[2], learnt.exact, learnt_arrows, f"learnt score (relative error {shown(learnt.error)})")
    _show_field(axes[3], learnt.exact, exact_arrows, "exact score")
    return figure


def headline(path: str | Path, *, seed: int = 0, seconds: float = 45.0) -> None:
    """Learn digits and spiral and write the README's picture, a PNG 1600 pixels wide; arguments as of :func:`demo`."""
    with _one_thread():
        _write(draw_headline(learn_digits(seed, seconds), learn_field(seed, seconds)), Path(path))


# --- the page -----------------------------------------------------------------------------------------------------

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{mark}
<title>gradlogp demo</title>
<style>
body {{ max-width: 58rem; margin: 0 auto; padding: 1rem; background: #fcfcfa; color: #222;
  font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.6rem; }}
h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
figure {{ margin: 0; }}
img {{ display: block; max-width: 100%; height: auto; margin: 0 auto; background: #fff; border: 1px solid #ddd; }}
figcaption {{ margin-top: .5rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ddd; text-align: left; }}
code {{ background: #f0f0ec; padding: .1rem .3rem; }}
footer {{ margin-top: 2.5rem; color: #555; font-size: .9rem; }}
</style>
</head>
<body>
<h1>gradlogp demo</h1>
<p>The score ∇log p of two data sets, learnt from samples by denoising score matching on this machine: handwritten
digits, and a density that is known, so that the error can be measured. Numbers are value ± one standard error.</p>
{sections}
<h2>Numbers</h2>
<div class="wide"><table>
<tr><th>what</th><th>value</th><th>unit</th></tr>
{numbers}
</table></div>
<h2>Time</h2>
<div class="wide"><table>
{times}
</table></div>
<footer>Seed {seed}. Training ends by the clock, so another run is a little different. {versions}.<br>
The digits are <code>sklearn.datasets.load_digits</code>, the learnt model is the folder
<a href="{model}/config.json"><code>{model}</code></a>.</footer>
</body>
</html>
"""

_SECTION = """<h2>{title}</h2>
<figure><img src="{name}" alt="{alt}">
<figcaption>{text}</figcaption></figure>"""


@dataclass(frozen=True)
class _Section:
    name: str
    title: str
    alt: str
    text: str
    picture: Figure


def _sections(digits: Digits, learnt: Field) -> list[_Section]:
    return [
        _Section("samples.png", "Samples", *_about_samples(digits), draw_samples(digits)),
        _Section("denoising.png", "Denoising", *_about_denoising(digits), draw_denoising(digits)),
        _Section("learning.png", "Learning", *_about_learning(digits), draw_learning(digits)),
        _Section("field.png", "Learnt and exact score", *_about_field(), draw_field(learnt)),
    ]


def _about_samples(digits: Digits) -> tuple[str, str]:
    """What the picture shows, for those who cannot see it; and the text below it. So all of these."""
    return "Two grids of digits, data and samples, and some samples above training rows", (
        "Left: digits that the model has not seen. Right: what it draws. Below: samples beside the nearest row it was "
        f"trained on, at a mean distance of {shown(digits.to_samples)}; held-out digits are at "
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


def _numbers(digits: Digits, learnt: Field) -> list[tuple[str, Estimate, str]]:
    """What was measured, its value and its unit."""
    best, first = digits.best, digits.est.history_[0]
    rows = [("digits: held-out loss", _held_out(best), "1 = scalar skip, no skill")]
    if first.step == 0:
        rows += [("— closed form, before training", _held_out(first), "the same")]
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


def _table(rows: list[tuple[Any, ...]]) -> str:
    cells = ("".join(f"<td>{html.escape(str(c))}</td>" for c in row) for row in rows)
    return "\n".join(f"<tr>{row}</tr>" for row in cells)


def _page(
    sections: list[_Section], numbers: list[tuple[str, Estimate, str]], seconds: dict[str, float], seed: int
) -> str:
    times = [(what, f"{t:.1f} s") for what, t in seconds.items()]
    words = [{k: html.escape(getattr(s, k)) for k in ("name", "title", "alt", "text")} for s in sections]
    return _PAGE.format(
        mark=MARK,
        sections="\n".join(_SECTION.format(**w) for w in words),
        numbers=_table([(what, shown(value), unit) for what, value, unit in numbers]),
        times=_table([*times, ("together", f"{sum(seconds.values()):.1f} s")]),
        seed=seed,
        versions=html.escape(_versions()),
        model=MODEL,
    )


# --- the command --------------------------------------------------------------------------------------------------


@dataclass
class _Log:
    """Says what is done, and keeps how long each part took."""

    quiet: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        self.say(f"{what} ...")
        start = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - start
        self.say(f"    {self.seconds[what]:.1f} s")


def demo(out: str | Path, *, seed: int = 0, quiet: bool = False, seconds: float = 45.0) -> Path:
    """Learn digits and a known density, and write pictures, the digits' model and a page about them into a folder.

    The folder is made; an earlier demo in it is replaced, with other files left as they are, and only once all is done.

    Args:
        out: the folder.
        seed: of every draw.
        quiet: print nothing.
        seconds: time to train each of the two models, at most.

    Returns:
        The page, ``out/index.html``.

    Raises:
        InputError: ``out`` is a file or holds something other than a demo, its parent is missing, it cannot be written,
            or ``seconds`` is not a finite number > 0.
    """
    out, log = Path(out), _Log(quiet)
    _check(out, seconds)
    with _staging(out) as fresh, _one_thread():
        with log.part(f"Learning handwritten digits, {seconds:g} s of training at most"):
            digits = learn_digits(seed, seconds, verbose=not quiet)
        log.say(f"    held-out loss {shown(_held_out(digits.best))} (1 = no skill)")
        with log.part(f"Learning a spiral whose score is known, {seconds:g} s at most"):
            learnt = learn_field(seed, seconds, verbose=not quiet)
        log.say(f"    relative score error {shown(learnt.error)}")
        with log.part("Drawing"):
            sections = _sections(digits, learnt)
            for s in sections:
                _write(s.picture, fresh / s.name)
            digits.est.save(fresh / MODEL)
        page = _page(sections, _numbers(digits, learnt), log.seconds, seed)
        (fresh / INDEX).write_text(page, encoding="utf-8")
        _move(fresh, out)
    log.say(_what_next(out, sum(log.seconds.values())))
    return out / INDEX


def _what_next(out: Path, seconds: float) -> str:
    sample = f"gradlogp sample {shlex.quote(str(out / MODEL))} -n 16 --out digits.csv"
    return f"Done in {seconds:.0f} s. Next:\n    open {out / INDEX} in a browser\n    {sample}"


def _check(out: Path, seconds: float) -> None:
    """Refuse what cannot work before the long work."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise InputError(f"seconds: got {seconds!r}, want a finite number > 0")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, want a folder for the demo")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: the folder {out.parent} does not exist, want one that does: make it first")
    if out.is_dir() and any(not p.name.startswith(STAGING) for p in out.iterdir()) and not _is_demo(out / INDEX):
        raise InputError(f"{out}: is a folder that holds something other than a demo, want a new name")


def _is_demo(page: Path) -> bool:
    return page.is_file() and MARK.encode() in page.read_bytes()


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder in ``out`` to write to, gone afterwards, as is an ``out`` that was made for nothing."""
    made = not out.exists()
    try:
        out.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=STAGING, dir=out))
        try:
            yield fresh
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            if made and not any(out.iterdir()):
                out.rmdir()
    except BrokenPipeError:  # of the terminal, not of the folder
        raise
    except OSError as e:
        raise InputError(f"{out}: cannot be written ({e.strerror or e}), want a folder that can") from None


def _move(fresh: Path, out: Path) -> None:
    """Move all that was written to its place, the page last; a model's folder is replaced."""
    for item in sorted(fresh.iterdir(), key=lambda p: p.name == INDEX):
        place = out / item.name
        if item.is_dir() and place.exists():
            os.replace(place, fresh / f".old-{item.name}")
        os.replace(item, place)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for these small networks: on busy cores, threads that wait for each other are many times slower."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n)
