"""Plots of what is measured; matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlogp.diagnostics.levels import ScoreError

_LEAST = -0.25  # of the R² axis; what lies below is cut


def plot_score_error(result: ScoreError, ax: Any = None) -> Any:
    """R² against σ: the band is where it lies at 95 %, the bars the two bounds with their standard errors."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(6.0, 3.6), layout="constrained").subplots() if ax is None else ax
    levels = sorted(result.levels, key=lambda level: level.sigma)
    sigma = [level.sigma for level in levels]
    low, high = ([_shown(level.r2_interval[i]) for level in levels] for i in (0, 1))
    axes.fill_between(sigma, low, high, alpha=0.2, color="C0", linewidth=0, label="95 %, all levels together")
    for side, marker, colour, name in (("lower", "^", "C0", "at least"), ("upper", "v", "C1", "at most")):
        values = [getattr(level.r2, side) for level in levels]
        bars = [v.stderr if math.isfinite(v.stderr) else 0.0 for v in values]
        axes.errorbar(sigma, [_shown(v.value) for v in values], bars, fmt=marker + "-", color=colour, ms=4, label=name)
    axes.set(xscale="log", xlabel="noise level σ (data unit)", ylabel="R² of the score", ylim=(_LEAST, 1.05))
    axes.axhline(1.0, color="0.7", linewidth=0.8, zorder=0)
    axes.legend(frameon=False)
    return axes


def _shown(value: float) -> float:
    return max(value, _LEAST) if math.isfinite(value) else _LEAST
