"""Outliers: the log-density below which a row is one, and what share of new rows that calls so."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError
from gradlogp.diagnostics import Estimate
from gradlogp.estimators import densities
from gradlogp.estimators.building import closed_form, mixtures, put_together
from gradlogp.estimators.splits import Labels, folds
from gradlogp.training import Goal, Levels, Recipe, calibrate, train

if TYPE_CHECKING:
    from gradlogp.estimators.density import DensityEstimator

DEFAULT = 0.1  # share of outliers where none is asked for
ENOUGH = 20  # held-out rows expected below the threshold: with fewer, further models measure the other rows too
N_FOLDS = 10  # each model then has about as many rows as the one that is kept
FEW_ROWS, MAX_ROWS = 200, 1000  # measured where no share is asked for, and where one is
LEAST_BELOW = 4  # rows expected below a threshold, as long as there are so many


class NoThresholdError(InputError, AttributeError):
    """No threshold of outliers is known: an attribute that is not there."""


@dataclass(frozen=True)
class Unseen:
    """Rows that were not trained on, and their log-densities.

    Attributes:
        rows: in model units, ``(n, *event)``; None once they are no longer needed.
        labels: ``(n,)``; equal for copies of a row and for rows of one group, which count as one.
        log_prob: in nats, ``(n,)``; None until measured.
    """

    rows: Tensor | None
    labels: Tensor
    log_prob: Tensor | None = None

    @property
    def n_independent(self) -> int:
        """How many of the rows are no copies and of no common group."""
        return len(self.labels.unique())

    def threshold(self, share: float) -> float:
        """The log-density that a share of new rows is expected to be below: the conformal quantile.

        A new row is equally likely to be at each rank among n others, so that c(n + 1) of these are below the threshold
        for a share of c (Vovk, Gammerman and Shafer 2005); between two rows it is interpolated. Rows of one label share
        the weight of one row.

        Raises:
            InputError: a share below 1/(n + 1), which n rows cannot show.
        """
        values, n = self._values(), self.n_independent
        if share * (n + 1) < 1:
            raise InputError(
                f"contamination: got {share:g} with {n} unseen rows, want at least {1 / (n + 1):.3g}, or a fit with it"
            )
        order = values.argsort()
        _, index, counts = self.labels.unique(return_inverse=True, return_counts=True)
        rank = (1 / counts.double())[index][order].cumsum(0)
        return float(np.interp(share * (n + 1), rank.numpy(), values[order].numpy()))

    def share(self, asked: float) -> Estimate:
        """The share of new rows below the threshold, and its standard error over the rows that placed it.

        √(c(1 − c)/(n + 2)), as of the order statistic, with n as if rows of one label were all alike.
        """
        self._values()
        return Estimate(asked, math.sqrt(asked * (1 - asked) / (self.n_independent + 2)))

    def _values(self) -> Tensor:
        if self.log_prob is None:
            raise NoThresholdError("this model was saved without a threshold, want it fitted and saved again")
        return self.log_prob


@dataclass(frozen=True)
class Again:
    """What it takes to train again on parts of the rows, for as many steps as were kept."""

    z: Batch
    labels: Labels
    levels: Levels
    recipe: Recipe
    n_steps: int


def check_share(share: float | None, labels: Labels) -> None:
    """Refuse a share of outliers that is below the resolution of the rows: before long work, not after it."""
    n = int(labels.max()) + 1
    if share is not None and share * (n + 1) < 1:
        raise InputError(
            f"contamination: got {share:g} for {n} different rows, want at least {1 / (n + 1):.3g}, 1/(rows + 1)"
        )


def asked(est: DensityEstimator, unseen: Unseen) -> float:
    """The share of outliers: ``contamination``, or 0.1, or the least that the held-out rows can show."""
    if est.contamination is not None:
        return float(est.contamination)
    return max(DEFAULT, 1 / (unseen.n_independent + 1))


def measured(est: DensityEstimator, unseen: Unseen, again: Again | None, generator: torch.Generator) -> Unseen:
    """Log-densities of unseen rows: those held out, or all, each by a model that was trained without it.

    Of rows trained on the density is too large. Those held out place a threshold to √(c/n) for a share c, so where
    fewer than 20 of them are expected below it, ten models are trained, each on nine tenths of the rows.
    """
    share = est.contamination
    most = FEW_ROWS if share is None else max(MAX_ROWS, math.ceil(LEAST_BELOW / float(share)))
    few = share is not None and float(share) * unseen.n_independent < ENOUGH and 2 * unseen.n_independent < most
    if again is not None and few:
        return _cross_fitted(est, again, most, generator)
    if unseen.rows is None:
        return unseen
    rows = unseen.rows[:most]
    return Unseen(None, unseen.labels[:most], densities.log_prob(est, rows, None).value)


def _cross_fitted(est: DensityEstimator, again: Again, most: int, generator: torch.Generator) -> Unseen:
    """Each row's log-density under a model that was trained without its fold, as long as the model that was kept."""
    labels = torch.from_numpy(np.ascontiguousarray(again.labels))
    n_folds = min(N_FOLDS, int(labels.max()) + 1)
    fold = folds(again.labels, n_folds, generator).to(again.z.device)
    recipe = replace(again.recipe, n_steps=max(1, again.n_steps), max_seconds=again.recipe.max_seconds / n_folds)
    parts, seen = [], []
    for f in range(n_folds):
        chosen = (fold == f).nonzero().squeeze(1)
        rest, part = again.z[fold != f], again.z[chosen]
        if len(rest) < len(part):  # one group is most of the rows
            continue
        base, goal = closed_form(rest, est.energy), Goal(recipe.weight, again.levels)
        others = [] if est.energy else mixtures(base, rest, part, goal, generator)
        model = put_together(est.network_, base, f).to(rest).eval()
        if again.n_steps > 0:
            for _ in train(model, rest, part, levels=again.levels, recipe=recipe, generator=generator):
                pass
        calibrate(model, part, est.levels_, parts=others, generator=generator)
        part = part[: math.ceil(most / n_folds)]
        parts.append(densities.log_prob(est, part, None, model=model, what=f"outliers {f + 1}/{n_folds}").value)
        seen.append(labels[chosen.cpu()][: len(part)])
    return Unseen(None, torch.cat(seen), torch.cat(parts))
