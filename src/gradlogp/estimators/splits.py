"""Which rows must stay on one side of a split: copies of each other, and rows of one group."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradlogp._shapes import InputError, row_keys
from gradlogp.data import Grid
from gradlogp.diagnostics import MIN_GROUPS, as_groups, blocks_of_units
from gradlogp.estimators.units import Array

Labels = NDArray[np.intp]

ATOM = 0.05  # a value or a row that comes more often than this share belongs to the law, as zeros of rainfall do,
MANY = 20  # if it comes more often than this
BY_CHANCE = 10.0  # times as many ties as independent columns would give: more are copies


def row_labels(values: Array, grid: Grid, groups: Any = None) -> Labels:
    """Label the rows that must not be split: those of one group if groups are given, else copies of a row.

    Rows of few possible values, as of counts and grades, tie by chance. Ties are called copies where some column has
    more than 20 values and there are more than 10 times as many ties as columns with these values would give if they
    were independent.

    Args:
        values: ``(N, *event)``.
        grid: tells columns of repeating values from continuous ones.
        groups: one label a row, of any kind, or None.

    Raises:
        InputError: not one label a row, or one group only.
    """
    named = as_groups(groups, len(values))
    return _copies(values.reshape(len(values), -1), grid) if named is None else named.numpy()


def _copies(rows: Array, grid: Grid) -> Labels:
    """One label for all copies of a row; a label of its own for each row where ties are no copies."""
    n = len(rows)
    own = np.arange(n)
    if len(row_keys(torch.from_numpy(rows)).unique()) == n:  # sorting numbers takes a tenth of the time of sorting rows
        return own
    _, labels, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    labels, atom = labels.reshape(-1), counts > max(MANY, ATOM * n)
    labels = np.where(atom[labels], len(counts) + own, labels)
    tied = float((counts[~atom] * (counts[~atom] - 1.0)).sum())
    if tied == 0 or _few_values(rows, grid) or tied <= BY_CHANCE * n * (n - 1) * _tie_by_chance(rows, grid):
        return own
    return np.unique(labels, return_inverse=True)[1]


def _few_values(rows: Array, grid: Grid) -> bool:
    """Whether every column is constant or on a grid with 20 values at most: such rows tie however they depend."""
    return all(axis.gridded and len(np.unique(column)) <= MANY for column, axis in zip(rows.T, grid.axes, strict=True))


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
        first: rows wanted before the cut. Labels that would make it more than twice as many are passed over; where
            labels are groups, four are wanted if there are 12.
        generator: source of the shuffle.

    Raises:
        InputError: one label only.
    """
    device = generator.device
    counts = torch.from_numpy(np.bincount(labels))
    if len(counts) < 2:
        raise InputError("X: got copies of one row, or one group, want at least 2 to hold one out")
    shuffled = torch.randperm(len(counts), generator=generator, device=device).cpu()
    least = min(MIN_GROUPS, len(counts) // 3) if len(counts) < len(labels) else 1
    most = max(2 * first, math.ceil(least * len(labels) / len(counts)))
    sizes, n = counts.tolist(), 0
    chosen: list[int] = []
    for label in shuffled.tolist():
        if n >= first and len(chosen) >= least:
            break
        if n + sizes[label] <= most:
            chosen.append(label)
            n += sizes[label]
    if n == 0:
        chosen, n = [int(counts.argmin())], int(counts.min())
    taken = torch.zeros(len(counts), dtype=torch.bool)
    taken[chosen] = True
    rank = torch.empty_like(shuffled)
    rank[shuffled] = torch.arange(len(shuffled))
    rank = torch.where(taken, rank, rank + len(rank))
    return torch.argsort(rank[torch.from_numpy(labels)], stable=True).to(device), n


def folds(labels: Labels, n_folds: int, generator: torch.Generator) -> Tensor:
    """Deal rows into folds of about equal size, equal labels into one: the fold of each row, ``(N,)``."""
    n_labels = int(labels.max()) + 1
    order = torch.randperm(n_labels, generator=generator, device=generator.device).cpu()
    return blocks_of_units(order, torch.from_numpy(labels), min(n_folds, n_labels))
