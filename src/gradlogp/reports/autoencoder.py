"""Vincent's auto-encoder of any data: learnt, its chain of objectives, and its filters as pictures."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradlogp._progress import Bar
from gradlogp._shapes import Batch, InputError, as_count, as_number, as_positive
from gradlogp.audit import View, check_folder
from gradlogp.audit.canvas import BLUE, ORANGE, bare, mosaic, new_figure, write
from gradlogp.data import detect_grid, read
from gradlogp.diagnostics import Chain, chain
from gradlogp.estimators import MIN_ROWS, DensityEstimator, Units, deal, row_labels
from gradlogp.estimators.parameters import generator_from
from gradlogp.estimators.units import are_pixels
from gradlogp.kernels import Gaussian
from gradlogp.models import DenoisingAutoencoder, FromDenoiser, GaussianReference, from_denoiser
from gradlogp.objectives import ReconstructionError
from gradlogp.reports.staging import STAGING, staging
from gradlogp.training import OneLevel, Recipe, Record, train
from gradlogp.training.weights import Plain

HELD_OUT = 0.1  # share of the rows that stop the training
MOST_HELD_OUT = 2000
SHOWN = 100  # filters
LOSSES, FILTERS, TENSORS = "losses.png", "filters.png", "autoencoder.safetensors"
_BATCH, _RATE, _LOOK, _PATIENCE = 256, 0.01, 100, 20


@dataclass(frozen=True, repr=False)
class LearntAutoencoder:
    """An auto-encoder that was learnt, and its objectives on the rows that it was learnt from.

    Attributes:
        model: takes rows in units of the corruption, (x − offset)/(scale·σ), where its own σ is 1: see :meth:`hidden`.
        sigma: σ, in the data's unit, or in standard deviations of each column where they share none.
        units: offset and scale.
        history: a record a look: ``loss`` is J_DAE/σ² of the training rows since the last, ``held_out`` J_DSM·σ².
        chain: J_DAE, J_DSM, J_ISM and J_ESM, against the training rows' Parzen density, in σ's unit.
        view: how rows are shown.
    """

    model: DenoisingAutoencoder
    sigma: float
    units: Units
    history: tuple[Record, ...]
    chain: Chain
    view: View

    def __repr__(self) -> str:
        last = self.history[-1]
        size = f"{len(self.model.W)} hidden units, σ = {self.sigma:.4g} {self.sigma_unit}"
        return f"auto-encoder of {size}: {last.step:,} steps in {last.seconds:.1f} s"

    @property
    def sigma_unit(self) -> str:
        """What σ counts."""
        return f"in {self.units.in_words}"

    def hidden(self, X: Any) -> NDArray[np.float64]:
        """The hidden code of rows of the data, ``(n, n_hidden)``."""
        with torch.no_grad():
            return self.model.hidden(self._rows(X)).double().numpy()

    def reconstruct(self, X: Any) -> NDArray[np.float64]:
        """r of rows of the data, in their own units, ``(n, *event)``."""
        with torch.no_grad():
            return self.units.from_model(self.sigma * self.model.reconstruct(self._rows(X)))

    def _rows(self, X: Any) -> Tensor:
        table = read(X)
        return self.units.checked(table.values, table.schema) / self.sigma

    @property
    def score_model(self) -> FromDenoiser:
        """The same as a model of rows (x − offset)/scale at noise σ."""
        return _in_data_units(self.model, self.sigma)


def learn_autoencoder(
    X: Any,
    sigma: float | None = None,
    *,
    n_hidden: int = 256,
    standardize: bool | str = "auto",
    max_seconds: float = 60.0,
    seed: int = 0,
    verbose: bool = True,
) -> LearntAutoencoder:
    """Train a denoising auto-encoder on rows by its reconstruction error; its chain of objectives on them.

    Tied weights tie the unit of the rows to that of the noise: e^{−E} is, at σ = 1, a mixture of 2^hidden Gaussians of
    unit variance. So rows are measured in units of σ.

    Args:
        X: rows, as :class:`gradlogp.ScoreDensity` takes them; columns of scales far apart are standardised.
        sigma: the corruption, in the data's unit or in standard deviations; None takes the data's scale.
        n_hidden: hidden units.
        standardize: measure each column in its own standard deviation: True, False or "auto".
        max_seconds: time to train, at most; it ends earlier when held-out rows gain no more.
        seed: of every draw.
        verbose: show a progress bar on a terminal.

    Raises:
        InputError: data that cannot be used, sigma or max_seconds that are not positive, or n_hidden < 1.
    """
    limit = as_positive(max_seconds, "max_seconds")
    table, g = read(X, min_rows=MIN_ROWS), generator_from(seed, torch.device("cpu"))
    n_hidden = as_count(n_hidden, "n_hidden", each=24 * table.values[0].size)  # weights, their average, Adam's
    grid = detect_grid(table.values)
    units = Units.of_data(table.values, standardize, grid, table.schema)
    z = units.to_model(table.values)
    order, n = deal(row_labels(table.values, grid), min(max(2, round(HELD_OUT * len(z))), MOST_HELD_OUT), g)
    z = z[order]
    level = GaussianReference.of_data(z).data_scale.item() if sigma is None else as_number(sigma, "sigma")
    model = DenoisingAutoencoder.of_data(z[n:] / level, n_hidden, 1.0, generator=g)
    history = tuple(_trained(model, z[n:] / level, z[:n] / level, limit, g, verbose))
    found = chain(
        _in_data_units(model, level), z[n:], Gaussian(level), generator=generator_from(seed, torch.device("cpu"))
    )
    pixels = units.shared and are_pixels(grid)
    return LearntAutoencoder(model, level, units, history, found, View(units.offset, units.scale, pixels=pixels))


def draw_filters(
    model: DenoisingAutoencoder | LearntAutoencoder, image_shape: tuple[int, ...] | None = None, n: int = SHOWN
) -> Figure:
    """The rows of W with the largest norms as images, each in its own scale: white and black are ±its largest weight.

    Args:
        model: an auto-encoder of images.
        image_shape: ``(H, W)`` of a row; None takes the model's event shape, or the square of as many pixels.
        n: filters shown.

    Raises:
        InputError: rows that are no grey images of that shape.
    """
    model = model.model if isinstance(model, LearntAutoencoder) else model
    shape = View(pixels=True).image_shape(model.event_shape) if image_shape is None else tuple(image_shape)
    if shape is None or len(shape) != 2 or math.prod(shape) != model.W.shape[1]:
        raise InputError(f"image_shape: got {shape} for rows of {model.W.shape[1]} numbers, want (H, W) of as many")
    W = model.W.detach().double().cpu()
    W = W[W.norm(dim=1).argsort(descending=True)[: as_count(n, "n")]]
    images = (W / W.abs().amax(1, keepdim=True).clamp_min(1e-30)).reshape(-1, *shape).numpy()
    columns = math.ceil(math.sqrt(len(images)))
    figure = new_figure(6.0, 6.0)
    axes = figure.subplots()
    axes.imshow(mosaic(images, columns), cmap="gray", vmin=-1, vmax=1)
    bare(axes)
    axes.set_title(f"the {len(images)} largest of {len(model.W)} filters, each in its own scale", fontsize=10)
    return figure


def draw_losses(learnt: LearntAutoencoder) -> Figure:
    """Reconstruction error of the training rows and 2σ⁴ times the denoising loss of held-out rows, along the run."""
    records = learnt.history
    step = np.array([r.step for r in records])
    factor = learnt.sigma**2
    figure = new_figure(5.4, 3.4)
    axes = figure.subplots()
    held_out, error = (2 * factor * np.array([getattr(r, k) for r in records]) for k in ("held_out", "held_out_stderr"))
    axes.errorbar(step, held_out, error, color=ORANGE, elinewidth=0.7, label="2σ⁴·J_DSM, held-out rows ± 1 s.e.")
    axes.plot(step, factor * np.array([r.loss for r in records]), color=BLUE, ls="--", label="J_DAE, training rows")
    axes.set(xlabel="training steps", ylabel="‖r(x̃) − x‖², unit²", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _in_data_units(model: DenoisingAutoencoder, sigma: float) -> FromDenoiser:
    """x ↦ σ·r(x/σ), at noise σ."""

    def f(x: Tensor) -> Tensor:
        return sigma * model.reconstruct(x / sigma)

    return from_denoiser(f, sigma)


def _trained(
    model: DenoisingAutoencoder, x: Batch, held_out: Tensor, seconds: float, g: torch.Generator, verbose: bool
) -> list[Record]:
    recipe = Recipe(
        n_steps=10**9, batch_size=_BATCH, learning_rate=_RATE, weight_decay=0.0, clip=math.inf, evaluate_every=_LOOK,
        patience=_PATIENCE, max_seconds=seconds, weight=Plain(),
    )  # fmt: skip
    steps = train(model, x, held_out, levels=OneLevel(1.0), recipe=recipe, objective=ReconstructionError(), generator=g)
    records, form = [], "{desc} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}{postfix}"
    with Bar(total=1.0, miniters=0, desc="fit", disable=None if verbose else True, bar_format=form) as bar:
        for record in steps:
            records.append(record)
            bar.set_postfix_str(f"step {record.step}, J_DAE/σ² {record.loss:.4g}, held-out {2 * record.held_out:.4g}")
            bar.update(record.progress - bar.n)
    return records


def chain_of(est: DensityEstimator, X: Any, sigma: float | None = None, *, seed: int = 0) -> Chain:
    """The chain of objectives of a fitted estimator on rows, against their own Parzen density, in the model's units.

    Args:
        est: fitted.
        X: rows as fitted.
        sigma: the noise; None takes the data's scale.
        seed: of every draw.

    Raises:
        InputError: rows that do not fit, or a sigma that is not one of the levels trained.
    """
    low, high = float(est.levels_.sigma_min), float(est.levels_.sigma_max)
    level = est.model_.skip.data_scale.item() if sigma is None else as_number(sigma, "sigma")
    if not low * (1 - 1e-6) <= level <= high * (1 + 1e-6):
        raise InputError(f"sigma: got {level:g}, want one of the levels trained, {low:.4g} to {high:.4g}")
    z = est.units_.to_model(est.schema_.check(X, min_rows=2).values)
    return chain(est.model_, z, Gaussian(level), generator=generator_from(seed, torch.device("cpu")))


def check_output(folder: str | Path) -> None:
    """Refuse a folder that an auto-encoder cannot be written into: before long work, not after it.

    Raises:
        InputError: it is a file, holds anything else, its parent is missing, or must not be written in.
    """
    place = Path(os.path.realpath(folder))
    check_folder(folder)
    names = sorted(p.name for p in place.iterdir()) if place.exists() else []
    others = [n for n in names if n not in (TENSORS, LOSSES, FILTERS) and not n.startswith(STAGING)]
    if others:
        raise InputError(f"{folder}: holds {others[0]!r}, want a new folder")


def save_autoencoder(learnt: LearntAutoencoder, folder: str | Path) -> list[Path]:
    """Write ``autoencoder.safetensors``, ``losses.png`` and, of images, ``filters.png``; the paths are returned.

    The tensors are W, b, c, sigma, offset and scale: for rows (x − offset)/(scale·sigma), at noise 1.

    Raises:
        InputError: as :func:`check_output`, or a folder that cannot be written.
    """
    check_output(folder)
    place = Path(folder)
    tensors = {k: v.detach() for k, v in learnt.model.named_parameters()}
    tensors |= {k: torch.from_numpy(getattr(learnt.units, k)) for k in ("offset", "scale")}
    tensors["sigma"] = torch.tensor(learnt.sigma)
    figures = {LOSSES: draw_losses(learnt)}
    shape = learnt.view.image_shape(learnt.model.event_shape)
    if shape is not None and len(shape) == 2:
        figures[FILTERS] = draw_filters(learnt, shape)
    with staging(place) as fresh:
        save_file({k: v.contiguous() for k, v in tensors.items()}, fresh / TENSORS)
        for name, figure in figures.items():
            write(figure, fresh / name)
    return [place / name for name in (TENSORS, *figures)]


def load_autoencoder(folder: str | Path) -> DenoisingAutoencoder:
    """The auto-encoder that :func:`save_autoencoder` wrote, of rows (x − offset)/(scale·sigma), at noise 1.

    Raises:
        InputError: no such file, or one that is corrupt.
    """
    path = Path(folder) / TENSORS
    try:
        tensors = load_file(path)
        return DenoisingAutoencoder(tensors["W"], tensors["b"], tensors["c"], 1.0)
    except (OSError, SafetensorError, KeyError) as e:
        raise InputError(f"{path}: cannot be read ({' '.join(str(e).split())[:80]}), want it as it was saved") from None
