"""Where a sampler steps: decreasing noise ratios from s_max to s_min, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradlogp._shapes import InputError, as_level
from gradlogp.processes import Process

Grid = Callable[[float, float, int], Tensor]


def karras(sigma_max: float, sigma_min: float, n_steps: int, rho: float = 7.0) -> Tensor:
    """Levels s_i = (s_max^{1/ρ} + i/n (s_min^{1/ρ} − s_max^{1/ρ}))^ρ, i = 0 … n (Karras et al. 2022, equation 5)."""
    ramp = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    levels: Tensor = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return _between(sigma_max, sigma_min, levels)


def log_uniform(sigma_max: float, sigma_min: float, n_steps: int) -> Tensor:
    """Levels uniform in log s: s_i = s_max (s_min/s_max)^{i/n}."""
    ramp = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
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
        InputError: not n_steps + 1 levels that are positive and decrease.
    """
    if not callable(grid):
        raise InputError(f"grid: got {grid!r}, want a function such as samplers.karras, or samplers.given(levels)")
    levels = as_level(torch.as_tensor(grid(sigma_max, sigma_min, n_steps), dtype=torch.float64), "grid")
    if levels.shape != (n_steps + 1,) or not bool((levels.diff() < 0).all()):
        got = f"{levels.numel()} levels" + ("" if levels.numel() != n_steps + 1 else " that do not decrease")
        raise InputError(f"grid: got {got}, want {n_steps + 1} decreasing levels for {n_steps} steps")
    return levels


def given(levels: Sequence[float] | Tensor) -> Grid:
    """These levels, whatever is asked for; the ends and the number of steps must be theirs.

    Raises:
        InputError: levels that are not positive and decreasing, or ends or a number of steps that are not theirs.
    """
    fixed = as_level(torch.as_tensor(levels, dtype=torch.float64), "levels")
    if fixed.numel() < 2 or not bool((fixed.diff() < 0).all()):
        raise InputError("levels: want at least two, each smaller than the one before")

    def grid(sigma_max: float, sigma_min: float, n_steps: int) -> Tensor:
        asked = torch.tensor([sigma_max, sigma_min], dtype=torch.float64)
        if n_steps + 1 != len(fixed) or not torch.allclose(fixed[[0, -1]], asked, rtol=1e-6, atol=0):
            got = f"{n_steps} steps from {sigma_max:g} to {sigma_min:g}"
            raise InputError(
                f"grid: got {got}, want {len(fixed) - 1} steps from {fixed[0].item():g} to {fixed[-1].item():g}"
            )
        return fixed

    return grid


def _between(sigma_max: float, sigma_min: float, levels: Tensor) -> Tensor:
    """The levels, with no rounding at the ends."""
    levels[0], levels[-1] = sigma_max, sigma_min
    return levels
