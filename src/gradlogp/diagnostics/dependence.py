"""Whether rows look like independent draws: correlation in their order, rows that nearly repeat others, groups."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # whose parts are imported when first used
import torch
from torch import Tensor

from gradlogp._shapes import InputError

MIN_GROUPS = 4
FALSE_ALARM = 1e-3  # of all columns together, on independent rows
_MOST_COLUMNS = 64  # looked at
_N_RUNS = 20
_FEW = 20  # rows in which an order can hardly be seen
_NEAR = 1 / 30  # of the distance to the second nearest row
_MOST_ROWS = 1000  # whose neighbors are looked for
_MOST_NUMBERS = 10**9  # differences of numbers that it may take
_COPIES = 5  # of a row that are looked for
_MOST_KURTOSIS = 5.0  # of ranks: a column with few rows of another value shows no order


def independent_units(x: Tensor, groups: Tensor | None) -> tuple[Tensor | None, tuple[str, ...]]:
    """Which independent unit each row belongs to, ``(N,)``, and what speaks against independent rows, in words.

    A unit is a group; without groups None, each row being one, or where rows are correlated in their order a run of
    consecutive rows as long as the correlation.
    """
    if groups is not None:
        return groups, ()
    unit, several, length = None, [], correlation_length(x)
    if length > 1:
        unit = runs(len(x), length)
        several.append(
            f"the rows are correlated in their order: {len(x):,} of them count as {int(unit.max()) + 1} runs of rows; "
            "shuffle them if they were only sorted"
        )
    found, n = near_repeats(x, torch.Generator(x.device).manual_seed(0))
    if found:
        several.append(f"{found:,} of {n:,} rows nearly repeat others: this holds only if they are draws, not copies")
    return unit, tuple(several)


def correlation_length(x: Tensor) -> float:
    """How many consecutive rows count as one: 1 where the order of rows shows nothing, ``(N, *event) -> L``.

    Two rank tests of each column, and of the distance from the middle: the correlation r of neighbors in the order
    (Wald and Wolfowitz 1943), √N·r being normal for independent rows of any law, and the spread of the means of 20
    runs of rows, H (Kruskal and Wallis 1952), with its χ². All together they are wrong for one in a thousand data sets.
    L is the larger of (1 + r)/(1 − r), r corrected for its bias (1 + 4r)/N (Kendall 1954), and H over its degrees of
    freedom. Rows that were sorted look the same as rows that depend on each other.
    """
    n = len(x)
    if n < _FEW:
        return 1.0
    ranks = _ranks(x)
    if ranks.shape[1] == 0:
        return 1.0
    r = (ranks[1:] * ranks[:-1]).sum(0) / ranks.square().sum(0) + 1 / n
    runs = min(_N_RUNS, n // 5)
    which = torch.arange(n) * runs // n
    sums, sizes = torch.zeros(runs, ranks.shape[1], dtype=ranks.dtype).index_add_(0, which, ranks), which.bincount()
    h = (sums.square() / sizes[:, None]).sum(0) / ranks.square().mean(0) * (n - 1) / n
    level = FALSE_ALARM / (2 * ranks.shape[1])
    length = 1.0
    if r.max() * math.sqrt(n) > -scipy.special.ndtri(level):
        known = min(r.max().item() + (1 + 4 * r.max().item()) / n, 1 - 1 / n)
        length = (1 + known) / (1 - known)
    if h.max() > scipy.special.chdtri(runs - 1, level):
        length = max(length, h.max().item() / (runs - 1))
    return length


def _ranks(x: Tensor) -> Tensor:
    """Ranks about 0 of columns that vary, at most 64, and of the distance from their medians, ``(N, K)``, on the CPU.

    Equal values have their mean rank.
    """
    flat = x.detach().flatten(1)
    varying = (flat != flat[:1]).any(0).nonzero()[:, 0]
    if len(varying) > _MOST_COLUMNS:
        varying = varying[torch.linspace(0, len(varying) - 1, _MOST_COLUMNS).long()]
    v = flat[:, varying].double().cpu()
    if not v.numel():
        return v
    distance = (v - v.median(0).values).div(v.std(0)).square().sum(1, keepdim=True)
    columns = torch.cat([v, distance], 1).T.contiguous()
    ordered = columns.sort().values
    below, upto = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    ranks = (below + upto).T.double() / 2  # from ½ on
    ranks = ranks - ranks.mean(0)
    kurtosis = (ranks**4).mean(0) / ranks.square().mean(0).square()  # NaN for a constant
    return ranks[:, kurtosis <= _MOST_KURTOSIS]


def near_repeats(x: Tensor, generator: torch.Generator) -> tuple[int, int]:
    """How many rows nearly repeat others, of how many that were looked at; 0 where no more do than by chance.

    A row nearly repeats j others, j up to 5, that are 30 times nearer than the next one. Among draws of a density in d
    dimensions (d_j/d_{j+1})^(jd) is uniform, whatever the density, where the rows are dense: 30^−d of the rows look so
    by chance, d being ln 2/ln median(d₂/d₁) less two standard errors, at least 1 (Facco, d'Errico, Rodriguez and Laio
    2017), and their pairs are nearly a Poisson number. Equal rows count once; at most 1000 are looked at, among as many
    as a second or two allows.
    """
    width = max(1, math.prod(x.shape[1:]))
    looked = min(_MOST_ROWS, max(_FEW, math.isqrt(_MOST_NUMBERS // width)))
    some = torch.randperm(len(x), generator=generator, device=generator.device)[: _MOST_NUMBERS // (looked * width)]
    distinct = x.detach()[some.to(x.device)].flatten(1).double().unique(dim=0)
    if len(distinct) < _FEW:
        return 0, len(distinct)
    order = torch.randperm(len(distinct), generator=generator, device=generator.device)[:looked]
    some = distinct[order.to(x.device)]
    near = torch.cat([_nearest(part, distinct) for part in some.split(100)])[:, 1:]
    ratio = near[:, :-1] / near[:, 1:]
    n = len(some)
    dimension = math.log(2) / max(-math.log(ratio[:, 0].median().item()), 1e-9) / (1 + 2 / math.sqrt(n))
    found, chance = int((ratio < _NEAR).any(1).sum()), n * _NEAR ** max(1.0, dimension)
    by_chance = found <= 2 or scipy.special.pdtrc(math.ceil(found / 2) - 2, chance / 2) > FALSE_ALARM
    return 0 if by_chance else found, n


def _nearest(x: Tensor, data: Tensor) -> Tensor:
    """Distances of each row to the nearest of the data, itself first, by differences: ``(B, 7)``."""
    distance = torch.cdist(x, data, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.topk(_COPIES + 2, largest=False).values


def as_groups(groups: Sequence[Any] | np.ndarray | Tensor | None, n_rows: int, least: int = 2) -> Tensor | None:
    """Labels of any kind, one a row, as whole numbers from 0 on, ``(N,)``; None stays None.

    Raises:
        InputError: not one label a row, or fewer than ``least`` different ones.
    """
    if groups is None:
        return None
    labels = np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups)
    if labels.ndim != 1 or len(labels) != n_rows:
        raise InputError(f"groups: got shape {labels.shape}, want one label for each of {n_rows} rows")
    missing = [v is None or v != v for v in labels.tolist()]
    if any(missing):
        raise InputError(f"groups: got no label at row {missing.index(True)}, want one for each row")
    if labels.dtype == object:
        labels = labels.astype(str)
    found = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    if int(found.max()) + 1 < least:
        raise InputError(f"groups: got {int(found.max()) + 1} different labels, want at least {least}")
    return found


def runs(n_rows: int, length: float) -> Tensor:
    """Consecutive runs of about so many rows, numbered, ``(N,)``."""
    n_runs = max(1, round(n_rows / length))
    return torch.arange(n_rows) * n_runs // n_rows


def consecutive_blocks(n_rows: int, n_blocks: int) -> Tensor:
    """Runs of rows as blocks, ``(N,)``; even blocks in the first half of the rows, b mod 4 by quarters."""
    place = torch.arange(n_rows) * n_blocks // n_rows
    quarter, within = place // (n_blocks // 4), place % (n_blocks // 4)
    return 4 * within + torch.tensor([0, 2, 1, 3])[quarter]


def blocks_of_units(order: Tensor, unit: Tensor | None, n_blocks: int) -> Tensor:
    """Deal units, in this order but the largest first, each to the block that has the fewest rows, ``(N,)``."""
    if unit is None:
        block = torch.empty_like(order)
        block[order] = torch.arange(len(order)) % n_blocks
        return block
    unit = unit.cpu()
    sizes = unit.bincount()
    block, full = torch.empty_like(sizes), [(0, b) for b in range(n_blocks)]
    for u in order[sizes[order].argsort(descending=True, stable=True)].tolist():
        rows, b = heapq.heappop(full)
        block[u] = b
        heapq.heappush(full, (rows + int(sizes[u]), b))
    return block[unit]


def of_units(values: Tensor, unit: Tensor | None) -> Tensor:
    """What each independent unit contributes to the mean of rows, ``(N,) -> (U,)``, with the same mean.

    m + (U/N) Σ_{i in u} (v_i − m): U independent values even where units differ in size; the rows' own for None.
    """
    if unit is None:
        return values
    n_units, mean = int(unit.max()) + 1, values.mean()
    total = values.new_zeros(n_units).index_add_(0, unit.to(values.device), values - mean)
    return mean + total * (n_units / len(values))
