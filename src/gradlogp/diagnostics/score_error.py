"""How far a model's score is from the true one, at each noise level."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy  # whose parts are imported when first used
import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, as_batch, as_count, same_event
from gradlogp.diagnostics.auditor import Auditor, Auditors
from gradlogp.diagnostics.bracket import Sides, measure
from gradlogp.diagnostics.comparisons import Comparisons
from gradlogp.diagnostics.dependence import MIN_GROUPS, as_groups
from gradlogp.diagnostics.estimates import Bracket, Estimate, Jackknifed, reach
from gradlogp.diagnostics.floor import floor, knows_floor
from gradlogp.diagnostics.identities import half_fisher_error
from gradlogp.diagnostics.ladder import as_kernels
from gradlogp.diagnostics.levels import BELOW, BRACKETED, CERTIFIED, ESTIMATED, EXACT, LevelError, ScoreError
from gradlogp.diagnostics.references import MIN_ROWS, N_BLOCKS, Draws, Rows, default_noise, mean_of_rows
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel
from gradlogp.oracles import Empirical, Oracle

MAX_ROWS = 10_000  # of more, as many are drawn: time goes with their square
CONFIDENCE = 0.95  # of all intervals of a report together
SMALL = 0.1  # of the score's size: an error known this closely is known
FACTOR = 2.0  # so is one known to this factor
FIRST_ROWS, MOST_ROWS = 2048, 8192  # drawn from a law that is known, until error/size is known
CLOSE, NOTHING = 0.1, 2e-4  # to this share of it, or to so much, both ends together
_SLOWING = 1.2  # least ratio of two falls, with the references doubled, that shows a limit; 2 where all is regular


def score_error(
    model: ScoreModel,
    reference: Any,
    x_test: Batch,
    kernels: Kernel | Sequence[Kernel],
    *,
    auditor: Auditor | None = None,
    groups: Sequence[Any] | np.ndarray | Tensor | None = None,
    n_noise: int | None = None,
    generator: torch.Generator | None = None,
) -> ScoreError:
    """The score error J_ESM(ψ) = ½E‖ψ − ∇log p_σ‖² of a model, from held-out rows.

    Where the law is known (``reference`` an oracle) it is measured against the true score, on rows drawn from it: 2048,
    and twice as many again, up to 8192, until error/size is known to 5 %, or to 0.0001. Otherwise it is bracketed:

        J_DSM(ψ) − J_DSM(φ)  ≤  J_ESM(ψ)  ≤  ½E‖ψ(x_t) − T(x_t)‖²

    for any φ that has not seen the rows, C being the same in both losses, and for T the DSM target averaged over
    held-out references that include the source (the stable target of Xu, Tong and Jaakkola 2023: exactly unbiased, so
    the right side is J_ESM plus the target's remaining variance). φ is a combination of models, fitted on one half of
    the rows and measured on the other. Standard errors are a delete-a-block jackknife, which sees that rows share
    references. An interval is its ends widened by Student's quantile of them, by more where few rows carry the mean
    (Johnson 1978), and by the price of a part of mass 3/N beyond the furthest row, if the tail goes on as it is seen.

    What the rows cannot show. **They are taken as independent draws** of the law that is meant, or their ``groups``
    are. **A part of the law rarer than 3/N may be unseen** (5 % of samples of N rows lack a part of 3/N): the intervals
    hold for the parts that the rows show, and for unseen ones in which the model is no worse than that tail says.
    Nothing is ``certified`` from fewer than 300 rows, which show a part of 1 %. Where the rows are correlated in their
    order (two rank tests, wrong for one in a thousand sets of independent rows) the blocks are runs of consecutive
    rows, nothing is certified, and below 8 runs as long as the correlation the intervals are open; the bounds then
    hold on average still. ``cautions`` of the result say which of this is the case, and name copies.

    Args:
        model: any score model ψ; it must not have seen the rows.
        reference: what is known: None; an :class:`~gradlogp.oracles.Oracle`, which is then the truth, and the rows
            are not used; further rows of the same law, ``(M, *event)``, such as the training rows, independent of
            x_test (of other groups); another model to compare with; or a list of rows and models. ``Empirical(data)``
            is the truth where it holds every row of x_test, and stands for its rows otherwise.
        x_test: clean held-out rows, ``(N, *event)``, at least 8. Where the law is known they only say the event's
            shape, dtype and device.
        kernels: the levels, each with one level for all rows.
        auditor: what to fit to the model's residual on a part of the rows, as a further comparison that shows where the
            model can be improved: :class:`~gradlogp.diagnostics.BoostedTrees` for tables (a few seconds),
            :class:`~gradlogp.diagnostics.SmallNetwork` otherwise.
        groups: one label a row, of any kind: rows of one group may depend on each other, those of different groups do
            not. A group stays in one block, and N above is the number of groups, at least 4. The order of the rows is
            then not looked at: one label for each row says that all are independent, in whatever order.
        n_noise: draws of noise for each row, in pairs n and −n if even and the noise symmetric; by default an even
            number that makes 4096 draws at least; 2 where the law is known.
        generator: source of the draws; None is a fixed seed, so that two calls agree.

    Returns:
        A :class:`ScoreError`: for each kernel the loss, and brackets of the floor, the error and r2.

    Raises:
        InputError: too few rows or groups, rows, groups, kernels or a reference that do not fit, or noise whose Fisher
            information has no finite error.
    """
    levels, x_test = as_kernels(kernels), as_batch(x_test, "x_test")
    for kernel in levels:
        half_fisher_error(kernel, x_test)
    generator = torch.Generator(x_test.device).manual_seed(0) if generator is None else generator
    truth, models = _known(reference, x_test)
    unit = as_groups(groups, len(x_test), least=MIN_GROUPS)
    n = None if n_noise is None else as_count(n_noise, "n_noise", each=8 * len(x_test))
    if truth is not None:
        exact = [_exact(model, truth, x_test, kernel, n or 2, generator, len(levels)) for kernel in levels]
        most = max(n_rows for _, n_rows in exact)
        return ScoreError(tuple(level for level, _ in exact), most, (n or 2) * most)
    if len(x_test) > MAX_ROWS:
        some = torch.randperm(len(x_test), generator=generator, device=generator.device)[:MAX_ROWS].sort().values
        x_test, unit = x_test[some], None if unit is None else as_groups(unit[some.cpu()], MAX_ROWS, least=MIN_GROUPS)
    rows = Rows.dealt(x_test, generator, unit)
    n = n or default_noise(len(x_test))
    auditors = None if auditor is None else Auditors(auditor, model, rows, levels, n, generator)
    comparisons = Comparisons(rows, models, auditors)
    found = [
        _bracketed(measure(model, rows, kernel, comparisons, n, generator), kernel, rows, len(levels))
        for kernel in levels
    ]
    flat = x_test.flatten(1).double()
    apart = torch.arange(len(flat), device=flat.device) if rows.unit is None else rows.unit.to(flat.device)
    repeats = len(torch.cat([flat, apart[:, None]], 1).unique(dim=0)) - len(flat.unique(dim=0))  # in different units
    return ScoreError(tuple(found), len(x_test), n * len(x_test), repeats, rows.n_units, rows.cautions)


def _known(reference: Any, x_test: Tensor) -> tuple[Oracle | None, dict[str, ScoreModel]]:
    """The truth, if it is known, and models to compare with."""
    if isinstance(reference, Empirical):
        inside = int(_among(x_test, reference.data).sum())
        if inside == len(x_test):
            return reference, {}
        reference = reference.data
    if isinstance(reference, Oracle):
        same_event(x_test, reference.event_shape, "x_test")
        return reference, {}
    models: dict[str, ScoreModel] = {}
    parts = _as_list(reference)
    for i, part in enumerate(parts):
        if isinstance(part, Empirical):
            part = part.data
        if isinstance(part, ScoreModel):
            models[f"{type(part).__name__} {i + 1}"] = part
        elif isinstance(part, Tensor):
            which = "the reference" if len(parts) == 1 else f"reference {i + 1}"
            models |= _models_of(as_batch(part, "reference"), x_test, which)
        else:
            raise InputError(
                f"reference: got {type(part).__name__}, want None, an oracle, rows, a model, or a list of these"
            )
    return None, models


def _as_list(reference: Any) -> list[Any]:
    if reference is None:
        return []
    if isinstance(reference, Tensor | ScoreModel) or not isinstance(reference, Iterable):
        return [reference]
    return list(reference)


def _models_of(other: Tensor, x_test: Tensor, which: str) -> dict[str, ScoreModel]:
    """The affine and Parzen scores of further rows, none of which may be a test row."""
    same_event(other, tuple(x_test.shape[1:]), "reference")
    other = other[~_among(other, x_test)]
    if len(other) < 2:
        raise InputError("reference: got the rows of x_test themselves, want other rows of the same law, or None")
    order = torch.randperm(len(other), generator=torch.Generator().manual_seed(0))
    empirical = Empirical(other[order[:MAX_ROWS].to(other.device)])
    models: dict[str, ScoreModel] = {f"Parzen of {which}": empirical}
    if empirical.reference is not None:
        models[f"affine of {which}"] = empirical.reference
    return models


def _among(rows: Tensor, others: Tensor) -> Tensor:
    """Which rows are also among the others, to the digits of float32, ``(N,)``."""
    known = {row.tobytes() for row in _contiguous(others)}
    return torch.tensor([row.tobytes() in known for row in _contiguous(rows)], device=rows.device)


def _contiguous(x: Tensor) -> Any:
    return (x.detach().flatten(1).float() + 0.0).cpu().numpy()  # −0 is 0; a float64 copy of float32 rows is a copy


def _exact(
    model: ScoreModel,
    truth: Oracle,
    like: Tensor,
    kernel: Kernel,
    n_noise: int,
    generator: torch.Generator,
    n_levels: int,
) -> tuple[LevelError, int]:
    """The error against the true score, and how many rows it took: more until it is known closely."""
    columns, n_rows = torch.empty(0, 4, dtype=torch.float64, device=like.device), FIRST_ROWS
    least = floor(truth, kernel) if knows_floor(truth) else None
    while True:
        more = truth.sample(n_rows - len(columns), generator=generator).to(like)
        rows = Rows(more, torch.zeros(len(more), dtype=torch.long, device=more.device), N_BLOCKS)
        columns = torch.cat([columns, _against_truth(model, truth, rows, kernel, n_noise, generator)])
        level = _known_level(columns, least, kernel, n_levels)
        low, high = level.r2_interval
        if high - low <= max(CLOSE * (1 - level.r2.lower.value), NOTHING) or n_rows >= MOST_ROWS:
            return level, n_rows
        n_rows *= 2


def _against_truth(
    model: ScoreModel, truth: Oracle, rows: Rows, kernel: Kernel, n_noise: int, generator: torch.Generator
) -> Tensor:
    """½‖ψ − t‖², ½‖s − t‖², ½‖ψ − s‖² and ½‖s‖² of each row, the mean over its draws, ``(N, 4)``."""
    parts, row = [], []
    for d in Draws.of(rows, kernel, model, n_noise, generator):
        s = truth.score(d.x_t.double(), kernel).flatten(1)
        values = (d.psi - d.target, s - d.target, d.psi - s, s)
        parts.append(torch.stack([0.5 * v.square().sum(1) for v in values], 1))
        row.append(d.row)
    return mean_of_rows(torch.cat(parts), torch.cat(row), len(rows.x))


def _known_level(columns: Tensor, known_floor: Estimate | None, kernel: Kernel, n_levels: int) -> LevelError:
    """What independent rows say, from :func:`_against_truth`."""
    dsm, least, error, size = (Estimate.mean_of(v) for v in columns.unbind(1))
    e, s = columns[:, 2], columns[:, 3]
    relative = (e - s * (error.value / size.value)) / size.value  # of the ratio, to first order, about 0
    r2 = Estimate(1 - error.value / size.value, Estimate.mean_of(relative).stderr)
    tail = (1 - CONFIDENCE) / (2 * n_levels)
    q = -float(scipy.special.stdtrit(len(columns) - 1, tail))
    below, above = reach(error.stderr, e, q)
    r2_above, r2_below = reach(r2.stderr, relative, q)
    return LevelError(
        kernel=kernel,
        dsm=dsm,
        floor=_both(least if known_floor is None else known_floor),
        error=_both(error),
        size=_both(size),
        r2=_both(r2),
        interval=(max(0.0, error.value - below), error.value + above),
        r2_interval=(r2.value - r2_below, min(1.0, r2.value + r2_above)),
        estimate=None,
        verdict=EXACT,
        weights={},
    )


def _bracketed(sides: Sides, kernel: Kernel, rows: Rows, n_levels: int) -> LevelError:
    """The brackets that the two sides give."""
    lower, upper, skill = sides.lower, sides.upper, sides.skill
    if lower.value < 0:  # 0 is a lower bound too
        lower = Jackknifed(torch.zeros_like(lower.value), lower.without)
    ends = [Jackknifed.of(_r2, skill, side) for side in (lower, upper)]
    r2 = Bracket(*sorted((e.estimate for e in ends), key=float))
    error = Bracket(lower.estimate, upper.estimate)
    quantile = _quantile(rows, n_levels)
    below, above = _reaches(sides, quantile)
    interval = _interval(error, (below, above), 0.0)
    r2_low, r2_high = _interval(r2, (above, below), -math.inf, 1.0)
    if rows.n_units < MIN_ROWS:
        interval, r2_low, r2_high = (0.0, math.inf), -math.inf, 1.0
    size = Bracket((skill + lower).estimate, (skill + upper).estimate)
    least = Bracket((sides.dsm - upper).estimate, (sides.dsm - lower).estimate)
    event = tuple(rows.x.shape[1:])
    half_fisher = 0.5 * float(kernel.fisher_information(event))  # which the score's size is at most
    numerical = 0.5 * float(kernel.fisher_information_error(event))
    r2_high = min(r2_high, 1 - interval[0] / half_fisher)
    extrapolated = _extrapolated(upper, *sides.fewer)
    if least.lower.value < least.upper.value / FACTOR:  # the references are too far apart to say how it goes on
        extrapolated = Estimate(extrapolated.value, math.inf)
    return LevelError(
        kernel=kernel,
        dsm=_with(sides.dsm.estimate, numerical),
        floor=Bracket(_with(_at_least_0(least.lower), numerical), _with(_at_least_0(least.upper), numerical)),
        error=error,
        size=Bracket(_with(_at_least_0(size.lower), numerical), _with(_at_least_0(size.upper), numerical)),
        r2=r2,
        interval=interval,
        r2_interval=(min(r2_low, float(_r2(skill.value, torch.tensor(interval[1])))), r2_high),
        estimate=extrapolated if math.isfinite(extrapolated.stderr) else None,
        verdict=_verdict(interval, size, extrapolated, quantile, rows.certifiable),
        weights=sides.weights,
        where=sides.where,
    )


def _quantile(rows: Rows, n_levels: int) -> float:
    """Standard errors on each side so that all intervals of a report hold together at 95 % (Bonferroni)."""
    tail = (1 - CONFIDENCE) / (2 * n_levels)
    return rows.widening * -float(scipy.special.stdtrit(rows.n_blocks - 1, tail))


def _r2(skill: Tensor, error: Tensor) -> Tensor:
    """1 − error/size with size = skill + error; −inf where the size is not positive."""
    size = skill + error
    return torch.where(size > 0, skill / size.clamp_min(torch.finfo(size.dtype).tiny), -torch.inf)


def _with(estimate: Estimate, numerical: float) -> Estimate:
    """The estimate with a numerical error added in quadrature."""
    return Estimate(estimate.value, math.hypot(estimate.stderr, numerical))


def _at_least_0(estimate: Estimate) -> Estimate:
    """What cannot be negative is not shown so."""
    return Estimate(max(0.0, estimate.value), estimate.stderr)


def _both(estimate: Estimate) -> Bracket:
    return Bracket(estimate, estimate)


def _reaches(sides: Sides, quantile: float) -> tuple[float, float]:
    """How many standard errors the lower bound is widened by, and the upper one."""
    q = [quantile, quantile]
    for i, (side, values) in enumerate(zip((sides.lower, sides.upper), sides.units, strict=True)):
        stderr = side.estimate.stderr
        if 0 < stderr < math.inf:
            q[i] = max(quantile, reach(stderr, values, quantile)[i] / stderr)
    return q[0], q[1]


def _interval(bracket: Bracket, q: tuple[float, float], least: float, most: float = math.inf) -> tuple[float, float]:
    """The bracket widened by so many of its standard errors below and above, within what is possible."""
    lower, upper = bracket.lower, bracket.upper
    low = lower.value - q[0] * lower.stderr if math.isfinite(lower.stderr) else -math.inf
    high = upper.value + q[1] * upper.stderr if math.isfinite(upper.stderr) else math.inf
    return max(low, least), min(high, most)


def _extrapolated(all_rows: Jackknifed, half: Jackknifed, quarter: Jackknifed) -> Estimate:
    """The limit of many references m, the excess falling as 1/m: 2J_m − J_{m/2}.

    Its error holds its standard error and its distance from the limit at the rate that is seen, a power of m through
    all three: J_m − e/(r − 1) with e = J_{m/2} − J_m, r = (J_{m/4} − J_{m/2})/e. Where the fall does not slow down
    (r near 1 or below: the references are too far apart), there is no limit to be seen and the error is infinite.
    """
    limit = Jackknifed.of(lambda a, b: 2 * a - b, all_rows, half)
    step = half - all_rows
    e, before = step.value.item(), (quarter - half).value.item()
    if e <= 2 * step.estimate.stderr:
        away = abs(e)
    elif before > _SLOWING * e:
        away = abs(e - e * e / (before - e))
    else:
        away = math.inf
    return Estimate(max(0.0, limit.value.item()), math.hypot(limit.estimate.stderr, away))


def _verdict(
    interval: tuple[float, float], size: Bracket, extrapolated: Estimate, quantile: float, certifiable: bool
) -> str:
    low, high = interval
    small = SMALL * max(size.lower.value, 0.0)
    if high - low <= small or high <= FACTOR * low:
        return CERTIFIED if certifiable else BRACKETED
    away = quantile * extrapolated.stderr
    if 2 * away <= small or away <= extrapolated.value / FACTOR:
        return ESTIMATED
    return BELOW
