"""Which rows must stay on one side of a split: copies of each other, and rows of one group."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gradlogp._shapes import InputError
from gradlogp.data import Grid
from gradlogp.diagnostics import MIN_GROUPS, as_groups
from gradlogp.estimators.units import Array

Labels = NDArray[np.intp]

ATOM = 0.05  # a value or a row that comes more often than this share belongs to the law, as zeros of rainfall do,
MANY = 20  # if it comes more often than this
BY_CHANCE = 10.0  # times as many ties as independent columns would give: more are copies


def row_labels(values: Array, grid: Grid, groups: Any = None) -> Labels:
    """Label the rows that must not be split: one label for copies of a row, and for all rows of a group.

    Rows of few possible values, as of counts and grades, tie by chance. Ties are called copies where there are more
    than 10 times as many as columns with these values would give if they were independent.

    Args:
        values: ``(N, *event)``.
        grid: tells columns of repeating values from continuous ones.
        groups: one label a row, of any kind, or None.

    Raises:
        InputError: not one label a row, or one group only.
    """
    labels = _copies(values.reshape(len(values), -1), grid)
    named = as_groups(groups, len(values))
    if named is None:
        return labels
    ones = np.ones(len(labels), dtype=bool)
    size = labels.max() + 1
    links = coo_array((ones, (labels, size + named.numpy())), shape=(size + int(named.max()) + 1,) * 2)
    return np.unique(connected_components(links, directed=False)[1][labels], return_inverse=True)[1]


def _copies(rows: Array, grid: Grid) -> Labels:
    """One label for all copies of a row; a label of its own for each row where ties are no copies."""
    n = len(rows)
    own = np.arange(n)
    _, labels, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    labels, atom = labels.reshape(-1), counts > max(MANY, ATOM * n)
    labels = np.where(atom[labels], len(counts) + own, labels)
    tied = float((counts[~atom] * (counts[~atom] - 1.0)).sum())
    if tied == 0 or tied <= BY_CHANCE * n * (n - 1) * _tie_by_chance(rows, grid):
        return own
    return np.unique(labels, return_inverse=True)[1]


def _tie_by_chance(rows: Array, grid: Grid) -> float:
    """The probability that two rows agree if columns are independent; only atoms of continuous columns repeat."""
    probability = 1.0
    for column, step in zip(rows.T, grid.step, strict=True):
        counts = np.unique(column, return_counts=True)[1]
        natural = (counts > max(MANY, ATOM * len(rows))) | (step > 0)
        probability *= float(((counts[natural] / len(rows)) ** 2).sum())
    return probability


def deal(labels: Labels, first: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Shuffle rows so that equal labels stay together: an order of the rows, and where to cut it.

    Args:
        labels: whole numbers from 0 on, one a row.
        first: rows wanted before the cut; more, up to the last of their label, and for four labels where there are 12.
        generator: source of the shuffle.

    Raises:
        InputError: one label only.
    """
    device = generator.device
    counts = torch.from_numpy(np.bincount(labels))
    if len(counts) < 2:
        raise InputError("X: got copies of one row, or one group, want at least 2 to hold one out")
    shuffled = torch.randperm(len(counts), generator=generator, device=device).cpu()
    rank = torch.empty_like(shuffled)
    rank[shuffled] = torch.arange(len(shuffled))
    order = torch.argsort(rank[torch.from_numpy(labels)], stable=True)
    ends = counts[shuffled].cumsum(0)[:-1]
    least = min(MIN_GROUPS, len(counts) // 3) - 1 if len(counts) < len(labels) else 0
    return order.to(device), int(ends[min(max(int(torch.searchsorted(ends, first)), least), len(ends) - 1)])


def folds(labels: Labels, n_folds: int, generator: torch.Generator) -> Tensor:
    """Deal rows into folds of about equal size, equal labels into one: the fold of each row, ``(N,)``."""
    order, _ = deal(labels, 1, generator)
    label = torch.from_numpy(labels)[order.cpu()]
    position = torch.arange(len(label))
    first = torch.cat([torch.ones(1, dtype=torch.bool), label[1:] != label[:-1]])
    start = torch.cummax(torch.where(first, position, 0), 0).values
    fold = torch.empty_like(label)
    fold[order.cpu()] = (start * n_folds) // len(label)
    return fold
