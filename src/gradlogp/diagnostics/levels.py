"""What is known of the score error, level by level."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gradlogp.diagnostics.estimates import UNSEEN, Bracket, Estimate
from gradlogp.kernels import Kernel

if TYPE_CHECKING:
    import polars as pl

EXACT, CERTIFIED, BRACKETED = "exact", "certified", "bracketed"
ESTIMATED, BELOW = "estimated", "only bounded below"


@dataclass(frozen=True)
class LevelError:
    """The score error at one level, in the loss's unit, 1/(data unit)².

    Attributes:
        kernel: the level.
        dsm: J_DSM(ψ).
        floor: min J_DSM = −C, the loss of a perfect model.
        error: J_ESM(ψ) = ½E‖ψ − ∇log p_σ‖² = J_DSM(ψ) − floor.
        size: ½E‖∇log p_σ‖², the score's own size.
        r2: 1 − error/size: 1 for the true score, 0 for a score of zero; below 0 where zero would do better.
        interval: where the error lies; with the intervals of all other levels of the report, at 95 %.
        r2_interval: the same for r2.
        estimate: the error extrapolated in the number of references, its error covering the extrapolation; None
            where the truth is known, or the references are too few to see a limit.
        verdict: ``exact`` (the law is known), ``certified`` (two-sided: known to a tenth of the size, or to a factor of
            2, from 300 independent rows or more), ``bracketed`` (as closely, but from fewer rows, or rows correlated in
            their order, see the report's cautions), ``estimated`` (only the extrapolation is that sharp), or ``only
            bounded below``.
        weights: what the lower bound compares with: the share of each direction.
        where: the region of x_t, in coordinates of the flattened row, where the model can be improved most; None where
            nothing is sure, or above 64 coordinates.
    """

    kernel: Kernel
    dsm: Estimate
    floor: Bracket
    error: Bracket
    size: Bracket
    r2: Bracket
    interval: tuple[float, float]
    r2_interval: tuple[float, float]
    estimate: Estimate | None
    verdict: str
    weights: dict[str, float]
    where: str | None = None

    @property
    def sigma(self) -> float:
        """The kernel's noise scale, in the data's unit."""
        return self.kernel.sigma.item()

    @property
    def relative(self) -> tuple[float, float]:
        """Where error/size lies, at 95 % with all other levels; the upper end may be infinite."""
        low, high = self.r2_interval
        return max(0.0, 1 - high), 1 - low

    def __str__(self) -> str:
        return f"σ = {self.sigma:.3g}: score error {_between(*self.relative)} of the score's size ({self.verdict})"


@dataclass(frozen=True)
class ScoreError:
    """The score error of a model at each level, from the smallest σ to the largest.

    Attributes:
        levels: one for each kernel.
        n_rows: held-out rows used; of a law that is known, the most that were drawn from it at a level.
        n_draws: noisy draws a level.
        n_repeats: rows that repeat an earlier one.
        n_independent: rows that count as independent: all, or groups, or runs of rows that are correlated in their
            order; None where the law is known.
        cautions: what in the rows speaks against independent draws, in words.
    """

    levels: tuple[LevelError, ...]
    n_rows: int
    n_draws: int
    n_repeats: int = 0
    n_independent: int | None = None
    cautions: tuple[str, ...] = ()

    def __str__(self) -> str:
        known = self._from(EXACT, CERTIFIED, BRACKETED)
        ordered = sorted(self.levels, key=lambda level: level.sigma)
        top = [level for level in ordered if level.sigma >= known]
        rest = [level for level in ordered if level.sigma < known]
        parts = []
        if top:
            at_worst = " at worst" if len(top) > 1 else ""
            seen = f", {self.seen}" if BRACKETED in {v.verdict for v in top} else ""
            parts.append(f"at σ ≥ {known:.2g}: {_between(*_worst(top))} of the score's size{at_worst}{seen}")
        if rest:
            where = "below" if top else "at every level"
            estimated = [level.sigma for level in rest if level.verdict == ESTIMATED]
            guess = f" (estimated at σ = {', '.join(f'{s:.2g}' for s in estimated)})" if estimated else ""
            worst = max(rest, key=lambda level: level.relative[0])
            least = worst.relative[0]
            said = (
                f"at worst at least {_percent(least)} (σ = {worst.sigma:.2g})" if least else "not known from these rows"
            )
            parts.append(f"{where}: {said}{guess}")
        return "score error (95 %) " + "; ".join([*parts, *self._repeats(), *self.cautions])

    @property
    def seen(self) -> str:
        """For how much of the law the intervals hold, in words."""
        n = self.n_independent or self.n_rows
        part = f": a part rarer than {_percent(UNSEEN / n)} may be unseen" if n > UNSEEN else ""
        return f"in what these {self.n_rows:,} rows show{part}"

    def with_caution(self, caution: str) -> ScoreError:
        """The same with a further caution, and so nothing certified."""
        levels = tuple(replace(v, verdict=BRACKETED) if v.verdict == CERTIFIED else v for v in self.levels)
        return replace(self, levels=levels, cautions=(*self.cautions, caution))

    def _repeats(self) -> list[str]:
        """A caution where rows repeat: it is right if they are draws of a discrete law, wrong if they are copies."""
        if not self.n_repeats:
            return []
        return [f"{self.n_repeats} of {self.n_rows} rows repeat others: this holds only if they are draws, not copies"]

    @property
    def known_from(self) -> float:
        """The smallest level from which on every level's error is exact or certified; inf if there is none."""
        return self._from(EXACT, CERTIFIED)

    def _from(self, *verdicts: str) -> float:
        """The smallest level from which on every level has one of the verdicts."""
        known = math.inf
        for level in sorted(self.levels, key=lambda level: -level.sigma):
            if level.verdict not in verdicts:
                return known
            known = level.sigma
        return known

    def to_frame(self) -> pl.DataFrame:
        """A polars frame, a row a level: each number and its standard error."""
        import polars as pl

        return pl.DataFrame([_record(level) for level in self.levels])

    def plot(self, ax: Any = None) -> Any:
        """R² against σ with its bracket, on matplotlib axes (new ones if None), which are returned."""
        from gradlogp.diagnostics.plots import plot_score_error

        return plot_score_error(self, ax)


def _record(level: LevelError) -> dict[str, Any]:
    """One row of the frame."""
    record: dict[str, Any] = {"sigma": level.sigma, "dsm": level.dsm.value, "dsm_stderr": level.dsm.stderr}
    for name in ("floor", "error", "size", "r2"):
        bracket: Bracket = getattr(level, name)
        for side in ("lower", "upper"):
            estimate: Estimate = getattr(bracket, side)
            record |= {f"{name}_{side}": estimate.value, f"{name}_{side}_stderr": estimate.stderr}
    record["error_low"], record["error_high"] = level.interval
    record["r2_low"], record["r2_high"] = level.r2_interval
    record["estimate"] = None if level.estimate is None else level.estimate.value
    record["estimate_stderr"] = None if level.estimate is None else level.estimate.stderr
    record["verdict"] = level.verdict
    record["where"] = level.where
    return record


def _worst(levels: list[LevelError]) -> tuple[float, float]:
    """Where the largest relative error of several levels lies."""
    low, high = zip(*(level.relative for level in levels), strict=True)
    return max(low), max(high)


def _between(low: float, high: float) -> str:
    return f"{_percent(low)} to {_percent(high)}" if math.isfinite(high) else f"at least {_percent(low)}"


def _percent(share: float) -> str:
    """A share in per cent, to two digits."""
    return f"{100 * share:.2g} %" if 100 * share < 99.5 else f"{100 * share:.0f} %"
