"""Which columns of samples differ most from those of the data, and which two go together most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are imported when first used
from numpy.typing import NDArray

from gradlogp.audit.view import Floats
from gradlogp.diagnostics import Estimate

_AT_A_TIME = 512  # columns


@dataclass(frozen=True)
class Marginal:
    """How one column of samples differs from that of held-out rows, by Kolmogorov and Smirnov's two-sample test.

    Attributes:
        index: of the coordinate in the flattened row.
        name: of the column.
        distance: the largest difference of the two distribution functions, 0 to 1.
        p_value: how often two sets of rows of one law differ as much, for many rows; less often where values repeat.
    """

    index: int
    name: str
    distance: float
    p_value: float


class Pair(NamedTuple):
    """Two columns, and their correlation in held-out rows and in samples."""

    first: int
    second: int
    data: Estimate
    samples: Estimate


def distances(data: Floats, samples: Floats) -> tuple[Floats, Floats]:
    """max_t |F(t) − G(t)| of each column, F and G the shares of rows at or below t, and its p-value; ``(D,)`` each.

    Args:
        data: ``(N, D)``.
        samples: ``(M, D)``.

    Reference: Smirnov (1939); the p-value is Kolmogorov's limit, at D·√(NM/(N + M)).
    """
    n, m = len(data), len(samples)
    found = [
        _distances(data[:, at : at + _AT_A_TIME], samples[:, at : at + _AT_A_TIME])
        for at in range(0, data.shape[1], _AT_A_TIME)
    ]
    distance = np.concatenate(found)
    return distance, scipy.special.kolmogorov(distance * np.sqrt(n * m / (n + m)))


def _distances(data: Floats, samples: Floats) -> Floats:
    both = np.concatenate([data, samples])
    order = np.argsort(both, axis=0, kind="stable")
    steps = np.cumsum(np.where(order < len(data), 1 / len(data), -1 / len(samples)), axis=0)
    values = np.take_along_axis(both, order, 0)
    last = np.ones(values.shape, dtype=bool)
    last[:-1] = values[1:] != values[:-1]  # of equal values: a distribution function jumps over them at once
    found: Floats = np.abs(np.where(last, steps, 0.0)).max(0)
    return found


def limit(n: int, m: int, share: float = 0.05) -> float:
    """The distance that two sets of rows of one law exceed in this share of cases, for many rows."""
    return float(scipy.special.kolmogi(share) * np.sqrt((n + m) / (n * m)))


def closest_pair(data: Floats, samples: Floats) -> Pair | None:
    """The two columns of largest correlation in the data, of either sign; None if fewer than two vary."""
    z, varies = _standardised(data)
    best = -1.0, 0, 0
    for at in range(0, z.shape[1], _AT_A_TIME):
        r = np.abs(z[:, at : at + _AT_A_TIME].T @ z)
        r[:, ~varies] = -1.0
        r[~varies[at : at + _AT_A_TIME]] = -1.0
        np.fill_diagonal(r[:, at:], -1.0)
        i, j = np.unravel_index(np.argmax(r), r.shape)
        best = max(best, (float(r[i, j]), -(at + int(i)), -int(j)))
    if best[0] < 0:
        return None
    first, second = sorted((-best[1], -best[2]))
    return Pair(first, second, *(_correlation(rows[:, [first, second]]) for rows in (data, samples)))


def _standardised(rows: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Columns of mean 0 and length 1, and which of them vary."""
    z = rows - rows.mean(0)
    length = np.linalg.norm(z, axis=0)
    varies = length > 1e-12 * np.abs(rows).max(0) * np.sqrt(len(rows))
    return z / np.where(varies, length, 1.0), varies


def _correlation(rows: Floats) -> Estimate:
    """Of two columns, with its standard error (1 − r²)/√(n − 3)."""
    z, _ = _standardised(rows)
    r = float(z[:, 0] @ z[:, 1])
    return Estimate(r, (1 - r**2) / max(1, len(rows) - 3) ** 0.5)
