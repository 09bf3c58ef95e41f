"""Numbers in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradlogp.diagnostics import Estimate


def shown(estimate: Estimate) -> str:
    """Value ± standard error, both to the first digit of the standard error."""
    if not 0 < estimate.stderr < math.inf:
        return str(estimate)
    digits = -math.floor(math.log10(estimate.stderr))
    if digits > 5 or estimate.stderr >= 1e4:
        return str(estimate)
    return f"{estimate.value:.{max(0, digits)}f} ± {estimate.stderr:.{max(0, digits)}f}"


def percent(share: float) -> str:
    """A share in per cent, to two digits; in so many times above 1000 %."""
    if not math.isfinite(share):
        return "any amount"
    if abs(share) >= 10:
        return f"{share:.2g} times" if abs(share) < 99.5 else f"{share:.0f} times"
    return f"{100 * share:.2g} %" if abs(100 * share) < 99.5 else f"{100 * share:.0f} %"


def percent_of(estimate: Estimate) -> str:
    """A share and its standard error in per cent."""
    return f"{shown(Estimate(100 * estimate.value, 100 * estimate.stderr))} %"


def where(some: Sequence[float], every: Sequence[float]) -> str:
    """Which of the levels are meant: ``at σ ≥ 2``, ``at σ ≤ 0.5``, ``at σ = 1`` or ``at 3 of 12 levels, …``."""
    chosen, ordered = sorted(some), sorted(every)
    n = len(chosen)
    low, high = f"{chosen[0]:.2g}", f"{chosen[-1]:.2g}"
    if n == len(ordered):
        return "at every noise level"
    if n == 1:
        return f"at σ = {low}"
    if chosen == ordered[-n:]:
        return f"at σ ≥ {low}"
    if chosen == ordered[:n]:
        return f"at σ ≤ {high}"
    start = ordered.index(chosen[0])
    if chosen == ordered[start : start + n]:
        return f"at σ from {low} to {high}"
    return f"at {n} of {len(ordered)} levels, σ from {low} to {high}"
