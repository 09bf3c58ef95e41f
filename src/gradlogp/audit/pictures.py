"""The pictures of a report, sized to be read on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gradlogp.audit.canvas import BLUE, DPI, GREY, ORANGE, bare, mosaic, new_figure
from gradlogp.audit.columns import Marginal
from gradlogp.audit.result import Audit
from gradlogp.audit.view import Floats, flat
from gradlogp.diagnostics import Estimate
from gradlogp.training import kept

WIDTH = 5.4  # inches
MARGINALS = 12
BINS = 30
_IMAGE_COLUMNS = 8
IMAGES = 5 * _IMAGE_COLUMNS
POINTS = 256  # as many held-out rows as samples


def draw_score_error(audit: Audit) -> Figure:
    """R² of the score against σ, with its bracket."""
    figure = new_figure(WIDTH, 3.4)
    axes = audit.score_error.plot(figure.subplots())
    axes.set_xlabel(_sigma(audit))
    return _tidy(figure)


def draw_learning(audit: Audit) -> Figure:
    """Loss, floor and what is left between them, against training steps."""
    figure = new_figure(WIDTH, 3.4)
    axes = figure.subplots()
    records, best = audit.history, kept(audit.history)
    names = ("step", "loss", "held_out", "held_out_stderr", "floor")
    step, loss, held_out, stderr, floor = (np.array([getattr(r, k) for r in records]) for k in names)
    marker = "o" if len(records) < 3 else None
    axes.fill_between(step, floor, held_out, color=GREY, alpha=0.15, lw=0, label="left to learn, at most")
    axes.errorbar(step, held_out, stderr, color=ORANGE, marker=marker, elinewidth=0.7, label="held-out rows ± 1 s.e.")
    after = step > 0  # before the first step there is no training loss
    axes.plot(step[after], loss[after], color=BLUE, ls="--", marker=marker, label="training rows (with dropout)")
    axes.plot(step, floor, color=GREY, ls=":", marker=marker, label="floor, at least")
    axes.plot(best.step, best.held_out, "o", ms=8, mfc="white", mec=ORANGE, mew=2, ls="none", label="kept")
    axes.set(xlabel="training steps", ylabel="weighted loss per coordinate\n(1 is about no skill)", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    return _tidy(figure)


def draw_checks(audit: Audit) -> Figure:
    """Calibration, antisymmetric share and memorised share against σ."""
    memory = audit.memorisation
    n = 2 if memory is None else 3
    figure = new_figure(WIDTH, 1.9 * n)
    axes = figure.subplots(n, 1, sharex=True)
    sizes = audit.calibration.levels
    sigma = [level.sigma for level in sizes]
    _errorbars(axes[0], sigma, [level.slope for level in sizes], BLUE, "best factor on the score")
    _errorbars(axes[0], sigma, [level.residual for level in sizes], ORANGE, "error over that implied")
    axes[0].axhline(1.0, color="0.7", lw=0.8, zorder=0)
    axes[0].set_ylabel("calibration\n(1 is right)")
    axes[0].legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
    _errorbars(axes[1], sigma, [level.value for level in audit.curl.levels], BLUE, "")
    axes[1].set(ylabel="antisymmetric\nshare (0 is right)", ylim=(0, None))
    if memory is not None:
        told = [level for level in memory.levels if level.informative]
        _errorbars(axes[2], [level.sigma for level in told], [level.value for level in told], BLUE, "")
        axes[2].set(ylabel="memorised\nshare (0 is right)", ylim=(0, 1.05))
    axes[-1].set(xscale="log", xlabel=_sigma(audit))
    for at in axes:
        at.tick_params(labelsize=8)
        at.yaxis.label.set_size(9)
    return _tidy(figure)


def draw_samples(audit: Audit) -> Figure:
    """Held-out rows beside samples: as images, or in the two widest columns."""
    images = audit.view.images(audit.data), audit.view.images(audit.samples)
    if images[0] is not None and images[1] is not None:
        return _draw_images(images[0], images[1])
    data, samples = flat(audit.data), flat(audit.samples)
    if audit.pair is None:
        return _draw_histograms(audit, audit.marginals[:1])
    i, j = audit.pair[:2]
    figure = new_figure(WIDTH, 2.9)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for at, rows, title in zip(axes, (data, samples), ("held-out rows", "samples"), strict=True):
        at.plot(rows[:POINTS, i], rows[:POINTS, j], "o", ms=3, alpha=0.5, mew=0, color=BLUE)
        at.set_title(title, fontsize=10)
    axes[0].set(xlabel=_short(audit.view.name(i)), ylabel=_short(audit.view.name(j)))
    axes[1].set_xlabel(_short(audit.view.name(i)))
    return _tidy(figure)


def draw_marginals(audit: Audit) -> Figure:
    """Histograms of columns, held-out rows against samples: of more than twelve, the worst."""
    return _draw_histograms(audit, shown_marginals(audit))


def shown_marginals(audit: Audit) -> tuple[Marginal, ...]:
    """All columns in their order; of more than twelve, the twelve that differ most, the worst first."""
    worst = sorted(audit.marginals, key=lambda m: -m.distance)
    return audit.marginals if len(worst) <= MARGINALS else tuple(worst[:MARGINALS])


def _draw_images(data: Floats, samples: Floats) -> Figure:
    figure = new_figure(WIDTH, 2.2)
    axes = figure.subplots(1, 2)
    low, high = np.percentile(data, [0.5, 99.5])
    for at, images, title in zip(axes, (data, samples), ("held-out rows", "samples"), strict=True):
        whole = mosaic(images[:IMAGES], _IMAGE_COLUMNS)
        scaled = np.clip((whole - low) / max(high - low, np.finfo(float).tiny), 0, 1)
        at.imshow(np.nan_to_num(scaled, nan=0.75), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        at.set_title(title, fontsize=10)
        bare(at)
    return figure


def _draw_histograms(audit: Audit, chosen: Sequence[Marginal]) -> Figure:
    data, samples = flat(audit.data), flat(audit.samples)
    n_columns = min(3, len(chosen))
    n_lines = -(-len(chosen) // n_columns)
    height = 1.15 * n_lines + 0.55
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")  # laid out by hand: 12 axes take long
    figure.subplots_adjust(0.03, 0.55 / height, 0.97, 1 - 0.25 / height, wspace=0.12, hspace=0.6)
    axes = figure.subplots(n_lines, n_columns, squeeze=False).ravel()
    for at, marginal in zip(axes, chosen, strict=False):
        i = marginal.index
        edges = _edges(data[:, i], samples[:, i])
        for rows, colour, fill in ((data, BLUE, True), (samples, ORANGE, False)):
            shares = np.histogram(rows[:, i], edges)[0] / len(rows)
            at.stairs(shares, edges, color=colour, fill=fill, alpha=0.4 if fill else 1.0)
        at.set_title(f"{_short(marginal.name)}: {marginal.distance:.2f}", fontsize=8, pad=2)
        at.tick_params(labelsize=7, labelleft=False, left=False)
        at.locator_params(axis="x", nbins=3)
    for at in axes[len(chosen) :]:
        at.set_visible(False)
    figure.legend(["held-out rows", "samples"], loc="lower center", ncols=2, frameon=False, fontsize=8)
    return _tidy(figure, grid=False)


def _edges(data: Floats, samples: Floats) -> Floats:
    """Bins over both, far outliers of the samples left out; one bin a value where there are few values."""
    values = np.unique(data)
    if 1 < len(values) <= BINS and np.ptp(np.diff(values)) <= 1e-6 * np.ptp(values):
        step = (values[-1] - values[0]) / (len(values) - 1)
        return np.linspace(values[0] - step / 2, values[-1] + step / 2, len(values) + 1)
    low, high = values[0], values[-1]
    spare = 0.1 * (high - low) or abs(low) or 1.0
    low, high = max(low - spare, min(low, samples.min())), min(high + spare, max(high, samples.max()))
    return np.linspace(low, high if high > low else low + spare, BINS + 1)


def _errorbars(axes: Any, sigma: Sequence[float], values: Sequence[Estimate], colour: str, label: str) -> None:
    y, bars = ([getattr(v, k) for v in values] for k in ("value", "stderr"))
    axes.errorbar(sigma, y, np.nan_to_num(bars, posinf=0.0), fmt="o-", ms=3, lw=1, color=colour, label=label)


def _sigma(audit: Audit) -> str:
    return f"noise level σ ({audit.view.sigma_unit})"


def _short(name: str) -> str:
    """A name that fits, with nothing in it that is read as a formula."""
    name = name if len(name) <= 22 else name[:21] + "…"
    return name.replace("$", r"\$")


def _tidy(figure: Figure, grid: bool = True) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        if grid:
            axes.grid(color="0.93")
            axes.set_axisbelow(True)
    return figure
