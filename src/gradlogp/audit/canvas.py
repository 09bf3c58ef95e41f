"""What every picture shares: paper, colours, and images side by side."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gradlogp.audit.view import Floats

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # told apart with any colour vision (Okabe and Ito)
DPI = 120


def new_figure(width: float, height: float) -> Figure:
    """A white figure whose parts keep out of each other's way; inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained", wspace=0.03, hspace=0.03, h_pad=0.1)
    return figure


def write(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    path.write_bytes(png(figure))


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def mosaic(images: Floats, n_columns: int) -> Floats:
    """Images ``(N, H, W)`` or ``(N, H, W, 3)`` as one, n_columns a line, a pixel of NaN around each."""
    colours = [(0, 0)] * (images.ndim - 3)
    images = images[: len(images) // n_columns * n_columns or len(images)]
    tiles = np.pad(images, [(0, 0), (0, 1), (0, 1), *colours], constant_values=np.nan)
    lines = [np.hstack(list(tiles[i : i + n_columns])) for i in range(0, len(tiles), n_columns)]
    return np.pad(np.vstack(lines), [(1, 0), (1, 0), *colours], constant_values=np.nan)


def bare(axes: Any) -> None:
    """No ticks and no frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
