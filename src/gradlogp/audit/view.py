"""How rows in the model's units are shown: in the data's units, with names, as a table or as images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

_LEAST_SIDE = 4  # pixels of an image


def flat(rows: Floats) -> Floats:
    """Rows of coordinates, ``(N, D)``."""
    return rows.reshape(len(rows), -1)


@dataclass(frozen=True)
class View:
    """Between the model's units and what is shown: value = offset + scale·z.

    Attributes:
        offset, scale: one a coordinate, or one for all.
        names: of the columns, for tables.
        sigma_unit: what σ counts.
        snap: puts drawn values where the data's lie, such as on whole numbers.
        pixels: whether the coordinates are pixels of one scale: a row whose length is a square is then an image.
    """

    offset: Floats | float = 0.0
    scale: Floats | float = 1.0
    names: tuple[str, ...] | None = None
    sigma_unit: str = "data unit"
    snap: Callable[[Floats], Floats] | None = None
    pixels: bool = False

    def to_data(self, z: Tensor) -> Floats:
        """Model units ``(N, *event)`` as the data's."""
        values: Floats = self.offset + self.scale * z.detach().double().cpu().numpy()
        return values

    def drawn(self, z: Tensor) -> tuple[Floats, Tensor]:
        """Drawn rows as a user gets them, in the data's units and back in the model's."""
        values = self.to_data(z)
        if self.snap is not None:
            values = self.snap(values)
        return values, torch.from_numpy((values - self.offset) / self.scale).to(z)

    def name(self, i: int) -> str:
        """The name of coordinate i of the flattened row."""
        return self.names[i] if self.names is not None and i < len(self.names) else f"coordinate {i}"

    def image_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """``(H, W)`` or ``(H, W, 3)`` if rows of this shape look like images, else None."""
        if len(event_shape) == 1:
            side = math.isqrt(event_shape[0])
            return (side, side) if self.pixels and side**2 == event_shape[0] and side >= _LEAST_SIDE else None
        if len(event_shape) == 3 and 1 in (event_shape[0], event_shape[-1]):
            event_shape = event_shape[1:] if event_shape[0] == 1 else event_shape[:-1]
        if len(event_shape) == 2:
            return event_shape if min(event_shape) >= _LEAST_SIDE else None
        if len(event_shape) != 3 or 3 not in (event_shape[0], event_shape[-1]):
            return None
        h, w = event_shape[1:] if event_shape[0] == 3 else event_shape[:2]
        return (h, w, 3) if min(h, w) >= _LEAST_SIDE else None

    def images(self, values: Floats) -> Floats | None:
        """Rows as images, ``(N, H, W)`` or ``(N, H, W, 3)``; None where they look like none."""
        shape = self.image_shape(values.shape[1:])
        if shape is None:
            return None
        if len(shape) == 3 and values.shape[-1] != 3:
            values = np.moveaxis(values, 1, -1)
        return values.reshape(len(values), *shape)
