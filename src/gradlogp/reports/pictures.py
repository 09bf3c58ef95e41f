"""The pictures of the demonstration."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gradlogp.audit import canvas
from gradlogp.audit.canvas import BLUE, DPI, GREY, ORANGE, bare, new_figure
from gradlogp.kernels import Gaussian
from gradlogp.oracles import GaussianMixture
from gradlogp.reports.learn import (
    FIELD_DRAWS,
    FIELD_SIGMA,
    N_NEAREST,
    N_SHOWN,
    Array,
    Digits,
    Field,
    as_model,
    held_out_of,
    shown,
)

FIELD_EXTENT = 3.3
FIELD_DEPTH = 5.0  # nats below the peak of the density down to which arrows are drawn


def mosaic(rows: Array, n_columns: int) -> Array:
    """Digits ``(N, 64)`` as one image, n_columns a line, a pixel of NaN around each."""
    return canvas.mosaic(rows.reshape(-1, 8, 8), n_columns)


def _show_digits(axes: Any, rows: Array, n_columns: int, title: str) -> None:
    axes.set_facecolor("0.8")  # shows where the image is NaN
    axes.imshow(mosaic(rows, n_columns), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=11)
    bare(axes)


def draw_samples(digits: Digits) -> Figure:
    """Held-out digits, samples, and the training rows nearest to some samples."""
    figure = new_figure(11.0, 4.6)
    grid = figure.add_gridspec(2, 2, height_ratios=[2.65, 1.1])
    _show_digits(figure.add_subplot(grid[0, 0]), digits.held_out[:N_SHOWN], 16, "held-out data")
    _show_digits(figure.add_subplot(grid[0, 1]), digits.samples, 16, "samples of the learnt density")
    pairs = np.concatenate([digits.samples[:N_NEAREST], digits.nearest])
    title = f"the first {N_NEAREST} samples (top) and the training row nearest to each (bottom)"
    _show_digits(figure.add_subplot(grid[1, :]), pairs, N_NEAREST, title)
    return figure


def draw_denoising(digits: Digits) -> Figure:
    """One held-out digit of each class: clean, and noisy and denoised at each level."""
    figure = new_figure(7.6, 8.7)
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
    figure = new_figure(8.6, 4.6)
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
    at_best = f"best look, kept: {shown(held_out_of(best))}, step {best.step}"
    axes.plot(best.step, best.held_out, "o", ms=9, mfc="white", mec=ORANGE, mew=2, ls="none", label=at_best)
    if step[0] == 0:
        before = f"closed form, before training: {shown(held_out_of(records[0]))}"
        axes.axhline(held_out[0], color=GREY, ls=":", label=before)
    axes.set(xlabel="training steps", ylabel="loss per coordinate\n(1 = scalar skip, no skill)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False, fontsize=9.5)
    return figure


def draw_field(learnt: Field) -> Figure:
    """The learnt score, the exact one and the difference, over the exact density."""
    figure = new_figure(11.0, 4.1)
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
    psi, s = (m.score(points, kernel).numpy() * FIELD_SIGMA**2 for m in (as_model(learnt.est), learnt.exact))
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
    bare(axes)


def draw_headline(digits: Digits, learnt: Field) -> Figure:
    """The README's picture: data beside samples, learnt score beside the exact one."""
    figure = new_figure(1600 / DPI, 410 / DPI)
    axes = figure.subplots(1, 4)
    _show_digits(axes[0], digits.held_out[:90], 10, "held-out digits")
    _show_digits(axes[1], digits.samples[:90], 10, "samples of the learnt density")
    learnt_arrows, exact_arrows, _ = _arrows(learnt, 20)
    _show_field(axes[2], learnt.exact, learnt_arrows, f"learnt score (relative error {shown(learnt.error)})")
    _show_field(axes[3], learnt.exact, exact_arrows, "exact score")
    return figure
