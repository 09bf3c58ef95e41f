"""How far a model's score is from the true one, at each noise level."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from scipy.stats import t as student_t
from torch import Tensor

from gradlogp._shapes import Batch, InputError, as_batch, as_count, same_event
from gradlogp.diagnostics.auditor import Auditor, Auditors
from gradlogp.diagnostics.bracket import Sides, measure
from gradlogp.diagnostics.comparisons import Comparisons
from gradlogp.diagnostics.estimates import Bracket, Estimate, Jackknifed
from gradlogp.diagnostics.floor import floor, knows_floor
from gradlogp.diagnostics.identities import half_fisher_error
from gradlogp.diagnostics.ladder import as_kernels
from gradlogp.diagnostics.levels import BELOW, CERTIFIED, ESTIMATED, EXACT, LevelError, ScoreError
from gradlogp.diagnostics.references import Draws, Rows, default_noise
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel
from gradlogp.oracles import Empirical, Oracle

MAX_ROWS = 10_000  # of more, as many are drawn: time goes with their square
CONFIDENCE = 0.95  # of all intervals of a report together
SMALL = 0.1  # of the score's size: an error known this closely is known
FACTOR = 2.0  # so is one known to this factor
_SLOWING = 1.2  # least ratio of two falls, with the references doubled, that shows a limit; 2 where all is regular


def score_error(
    model: ScoreModel,
    reference: Any,
    x_test: Batch,
    kernels: Kernel | Sequence[Kernel],
    *,
    auditor: Auditor | None = None,
    n_noise: int | None = None,
    generator: torch.Generator | None = None,
) -> ScoreError:
    """The score error J_ESM(ψ) = ½E‖ψ − ∇log p_σ‖² of a model, from held-out rows.

    Where the law is known (``reference`` an oracle) it is measured against the true score. Otherwise it is bracketed:

        J_DSM(ψ) − J_DSM(φ)  ≤  J_ESM(ψ)  ≤  ½E‖ψ(x_t) − T(x_t)‖²

    for any φ that has not seen the rows, C being the same in both losses, and for T the DSM target averaged over
    held-out references that include the source (the stable target of Xu, Tong and Jaakkola 2023: exactly unbiased, so
    the right side is J_ESM plus the target's remaining variance). φ is a combination of models, fitted on one half of
    the rows and measured on the other. Standard errors are a delete-a-block jackknife, which sees that rows share
    references.

    Args:
        model: any score model ψ; it must not have seen the rows.
        reference: what is known: None; an :class:`~gradlogp.oracles.Oracle`, which is then the truth, and the rows
            draws from it; further rows of the same law, ``(M, *event)``, such as the training rows; another model to
            compare with; or a list of rows and models. ``Empirical(data)`` is the truth where it holds every row of
            x_test, and stands for its rows otherwise.
        x_test: clean held-out rows, ``(N, *event)``, at least 8.
        kernels: the levels, each with one level for all rows.
        auditor: what to fit to the model's residual on a part of the rows, as a further comparison that shows where the
            model can be improved: :class:`~gradlogp.diagnostics.BoostedTrees` for tables (a few seconds),
            :class:`~gradlogp.diagnostics.SmallNetwork` otherwise.
        n_noise: draws of noise for each row, in pairs n and −n if even and the noise symmetric; by default an even
            number that makes 4096 draws at least.
        generator: source of the draws; None is a fixed seed, so that two calls agree.

    Returns:
        A :class:`ScoreError`: for each kernel the loss, and brackets of the floor, the error and r2.

    Raises:
        InputError: too few rows, rows, kernels or a reference that do not fit, or noise whose Fisher information has no
            finite error.
    """
    levels, x_test = as_kernels(kernels), as_batch(x_test, "x_test")
    for kernel in levels:
        half_fisher_error(kernel, x_test)
    generator = generator or torch.Generator(x_test.device).manual_seed(0)
    truth, models = _known(reference, x_test)
    if len(x_test) > MAX_ROWS:
        x_test = x_test[torch.randperm(len(x_test), generator=generator, device=generator.device)[:MAX_ROWS]]
    rows = Rows.dealt(x_test, generator)
    n = as_count(n_noise, "n_noise") if n_noise is not None else default_noise(len(x_test))
    auditors = None if auditor is None or truth is not None else Auditors(auditor, model, rows, levels, n, generator)
    found: list[LevelError] = []
    if truth is not None:
        found.extend(_exact(model, truth, rows, kernel, n, generator, len(levels)) for kernel in levels)
    else:
        comparisons = Comparisons(rows, models, auditors)
        for kernel in levels:
            sides = measure(model, rows, kernel, comparisons, n, generator)
            found.append(_bracketed(sides, kernel, rows, len(levels)))
    repeats = len(x_test) - len(torch.unique(x_test.flatten(1), dim=0))
    return ScoreError(tuple(found), len(x_test), n * len(x_test), repeats)


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
    rows: Rows,
    kernel: Kernel,
    n_noise: int,
    generator: torch.Generator,
    n_levels: int,
) -> LevelError:
    """The error against the true score, draw by draw."""
    parts = []
    for d in Draws.of(rows, kernel, model, n_noise, generator):
        s = truth.score(d.x_t.double(), kernel).flatten(1)
        values = (d.psi - d.target, s - d.target, d.psi - s, s)
        parts.append(torch.stack([0.5 * v.square().sum(1) for v in values] + [d.block.double()], 1))
    columns = torch.cat(parts).unbind(1)
    dsm, least, error, size = (Jackknifed.mean_of(v, columns[4].long(), rows.n_blocks) for v in columns[:4])
    r2 = Jackknifed.of(lambda e, s: 1 - e / s, error, size)
    quantile = _quantile(rows, n_levels)
    return LevelError(
        kernel=kernel,
        dsm=dsm.estimate,
        floor=_both(floor(truth, kernel) if knows_floor(truth) else least.estimate),
        error=_both(error.estimate),
        size=_both(size.estimate),
        r2=_both(r2.estimate),
        interval=_interval(_both(error.estimate), quantile, 0.0),
        r2_interval=_interval(_both(r2.estimate), quantile, -math.inf, 1.0),
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
    skewed = _for_skew(quantile, sides.skewness)
    interval = _interval(error, quantile, 0.0, q_high=skewed)
    r2_low, r2_high = _interval(r2, quantile, -math.inf, 1.0, q_low=skewed)
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
        verdict=_verdict(interval, size, extrapolated, quantile),
        weights=sides.weights,
        where=sides.where,
    )


def _quantile(rows: Rows, n_levels: int) -> float:
    """Standard errors on each side so that all intervals of a report hold together at 95 % (Bonferroni)."""
    tail = (1 - CONFIDENCE) / (2 * n_levels)
    return float(student_t.ppf(1 - tail, rows.n_blocks - 1))


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


def _interval(
    bracket: Bracket, q: float, least: float, most: float = math.inf, *, q_low: float = 0.0, q_high: float = 0.0
) -> tuple[float, float]:
    """The bracket widened by q of its standard errors, or q_low, q_high if they are more, within what is possible."""
    lower, upper = bracket.lower, bracket.upper
    low = lower.value - max(q, q_low) * lower.stderr if math.isfinite(lower.stderr) else -math.inf
    high = upper.value + max(q, q_high) * upper.stderr if math.isfinite(upper.stderr) else math.inf
    return max(low, least), min(high, most)


def _for_skew(q: float, skewness: float) -> float:
    """q + (skewness/6)(1 + 2q²) standard errors: a mean of few large values is more often too low (Johnson 1978)."""
    return q + max(skewness, 0.0) / 6 * (1 + 2 * q**2)


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


def _verdict(interval: tuple[float, float], size: Bracket, extrapolated: Estimate, quantile: float) -> str:
    low, high = interval
    small = SMALL * max(size.lower.value, 0.0)
    if high - low <= small or high <= FACTOR * low:
        return CERTIFIED
    reach = quantile * extrapolated.stderr
    if 2 * reach <= small or reach <= extrapolated.value / FACTOR:
        return ESTIMATED
    return BELOW
