"""The scikit-learn face: a table or array in, a learnt score out, in the data's own units."""

from gradlogp.estimators.density import MIN_ROWS, ScoreDensity
from gradlogp.estimators.splits import deal, row_labels
from gradlogp.estimators.units import Units

__all__ = ["MIN_ROWS", "ScoreDensity", "Units", "deal", "row_labels"]
