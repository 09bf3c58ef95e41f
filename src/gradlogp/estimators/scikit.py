"""The estimator as scikit-learn's: the only module that imports it, which takes longer than all else but torch."""

from __future__ import annotations

from sklearn.base import BaseEstimator

from gradlogp.estimators.density import DensityEstimator


class ScoreDensity(BaseEstimator, DensityEstimator):  # type: ignore[misc]  # noqa: D101
    __doc__ = DensityEstimator.__doc__
