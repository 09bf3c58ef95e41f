"""The scikit-learn face: a table or array in, a learnt score out, in the data's own units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradlogp.estimators.density import MIN_ROWS, DensityEstimator
from gradlogp.estimators.splits import deal, row_labels
from gradlogp.estimators.units import Units

if TYPE_CHECKING:
    from gradlogp.estimators.scikit import ScoreDensity as ScoreDensity

__all__ = ["MIN_ROWS", "DensityEstimator", "ScoreDensity", "Units", "deal", "row_labels"]


def __getattr__(name: str) -> Any:
    """Import scikit-learn when it is first needed: the command does without."""
    if name == "ScoreDensity":
        from gradlogp.estimators.scikit import ScoreDensity

        return ScoreDensity
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
