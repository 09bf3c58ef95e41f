"""Where a sampler steps: decreasing noise ratios from s_max to s_min, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradlogp._shapes import InputError, as_count, as_level, short
from gradlogp.processes import Process
from gradlogp.samplers.starts import MOST_STEPS

Grid: TypeAlias = Callable[[float, float, int], Tensor]
Levels: TypeAlias = Sequence[float] | NDArray[Any] | Tensor


def karras(sigma_max: float, sigma_min: float, n_steps: int, rho: float = 7.0) -> Tensor:
    """Levels s_i = (s_max^{1/ρ} + i/n (s_min^{1/ρ} − s_max^{1/ρ}))^ρ, i = 0 … n (Karras et al. 2022, equation 5)."""
    ramp = torch.linspace(0, 1, as_count(n_steps, "n_steps", most=MOST_STEPS) + 1, dtype=torch.float64)
    levels: Tensor = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return _between(sigma_max, sigma_min, levels)


def log_uniform(sigma_max: float, sigma_min: float, n_steps: int) -> Tensor:
    """Levels uniform in log s: s_i = s_max (s_min/s_max)^{i/n}."""
    ramp = torch.linspace(0, 1, as_count(n_steps, "n_steps", most=MOST_STEPS) + 1, dtype=torch.float64)
    return _between(sigma_max, sigma_min, sigma_max * (sigma_min / sigma_max) ** ramp)


def time_uniform(process: Process) -> Grid:
    """Levels uniform in the process's time: s_i = ratio(t_max + i/n (t_min − t_max)), ratio(t_max) = s_max."""

    def grid(sigma_max: float, sigma_min: float, n_steps: int) -> Tensor:
        ends = process.time(torch.tensor([sigma_max, sigma_min], dtype=torch.float64))
        levels = process.ratio(torch.linspace(ends[0].item(), ends[1].item(), n_steps + 1, dtype=torch.float64))
        return _between(sigma_max, sigma_min, levels)

    return grid


def levels_of(grid: Grid, sigma_max: float, sigma_min: float, n_steps: int) -> Tensor:
    """The levels of a grid, checked.

    Raises:
        InputError: not n_steps + 1 levels that decrease and are positive, but for a last one of 0.
    """
    levels = _as_levels(grid(sigma_max, sigma_min, n_steps), "grid")
    if levels.shape != (n_steps + 1,):
        raise InputError(f"grid: got {len(levels)} levels, want {n_steps + 1} decreasing levels for {n_steps} steps")
    return levels


def given(levels: Levels) -> Grid:
    """These levels, whatever is asked for: the ends and the number of steps are theirs, and need not be said.

    Raises:
        InputError: levels that are not positive and decreasing, or ends or a number of steps that are not theirs.
    """
    return _Given(_as_levels(levels, "levels"))


def as_grid(
    grid: Grid | Levels | None, n_steps: int | None, ends: tuple[float | None, float | None]
) -> tuple[Grid | None, int | None, tuple[float | None, float | None]]:
    """A grid, the number of steps and the ends; those of given levels, where they are not said.

    Raises:
        InputError: neither a grid nor levels.
    """
    if grid is not None and not callable(grid):
        grid = _Given(_as_levels(grid, "grid"))
    if isinstance(grid, _Given):
        steps, (high, low) = len(grid.levels) - 1, ends
        n_steps, high = steps if n_steps is None else n_steps, grid.first if high is None else high
        ends = high, grid.last if low is None else low
    return grid, n_steps, ends


@dataclass(frozen=True)
class _Given:
    """Levels that were given."""

    levels: Tensor

    @property
    def first(self) -> float:
        return self.levels[0].item()

    @property
    def last(self) -> float:
        """The smallest that is not 0."""
        return self.levels[self.levels > 0][-1].item()

    def __call__(self, sigma_max: float, sigma_min: float, n_steps: int) -> Tensor:
        asked, own = ((torch.tensor(v, dtype=torch.float64)) for v in ((sigma_max, sigma_min), (self.first, self.last)))
        if n_steps + 1 != len(self.levels) or not torch.allclose(own, asked, rtol=1e-6, atol=0):
            got = f"{n_steps} steps from {sigma_max:g} to {sigma_min:g}"
            raise InputError(f"grid: got {got}, want {len(self.levels) - 1} steps from {self.first:g} to {self.last:g}")
        return self.levels


def _as_levels(levels: object, name: str) -> Tensor:
    """Two levels or more that decrease and are positive, but for a last one of 0; float64, on the processor."""
    try:
        values = levels if isinstance(levels, Tensor) else np.array(levels, dtype=np.float64)
        found = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        want = "decreasing levels, or a function such as samplers.karras"
        raise InputError(f"{name}: got {short(levels)}, want {want}") from None
    found = as_level(found, name, positive=False)
    decrease = found.ndim > 0 and bool((found.diff() < 0).all())
    if int((found > 0).sum()) < 2 or not decrease:
        got = f"{found.numel()} levels" + ("" if decrease else " that do not decrease")
        raise InputError(f"{name}: got {got}, want at least two that are > 0, each smaller than the one before")
    return found


def _between(sigma_max: float, sigma_min: float, levels: Tensor) -> Tensor:
    """The levels, with no rounding at the ends."""
    levels[0], levels[-1] = sigma_max, sigma_min
    return levels
