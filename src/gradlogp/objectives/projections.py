"""Random directions v with E[v vᵀ] = I."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gradlogp._shapes import Batch, event_size, per_row, squared_norm

Projection = Callable[[Batch, torch.Generator | None], Batch]


def rademacher(x: Batch, generator: torch.Generator | None = None) -> Batch:
    """Coordinates ±1: E[v vᵀ] = I. No variance from the diagonal of the Jacobian."""
    return torch.randint(0, 2, x.shape, generator=generator, device=x.device).to(x) * 2 - 1


def gaussian(x: Batch, generator: torch.Generator | None = None) -> Batch:
    """v ~ N(0, I)."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def sphere(x: Batch, generator: torch.Generator | None = None) -> Batch:
    """v uniform on the sphere of radius √d, so that E[v vᵀ] = I (a unit sphere would give J_ISM/d)."""
    v = gaussian(x, generator)
    return v * per_row((event_size(tuple(x.shape[1:])) / squared_norm(v)).sqrt(), v)
