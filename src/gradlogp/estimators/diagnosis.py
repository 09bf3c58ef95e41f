"""What an estimator knows of its own error: measured after training, saved and restored, or measured on new rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gradlogp._shapes import as_count
from gradlogp.audit import MIN_DRAWS, MIN_ROWS, Audit, View, check_folder, measure
from gradlogp.diagnostics import MIN_GROUPS, Bracket, Estimate, LevelError, ScoreError, score_error
from gradlogp.diagnostics.references import default_noise
from gradlogp.estimators.outliers import Unseen
from gradlogp.estimators.parameters import device_from, generator_from
from gradlogp.estimators.units import are_pixels
from gradlogp.kernels import Gaussian
from gradlogp.models import ClosedForm, OnReference, Reference
from gradlogp.training import NoiseLevels

if TYPE_CHECKING:
    from gradlogp.estimators.density import DensityEstimator

N_LEVELS = 12
MOST_LEVELS = 10_000
MOST_ROWS = 2000  # held out, that the score error is measured on when fitting
DRAWN_NUMBERS, LEAST_DRAWS = 2**18, 256  # of many coordinates fewer noisy rows are drawn: the error is over clean rows
ORDERED = (
    "the fitted rows are correlated in their order: this holds only if they were sorted, not if they depend on each "
    "other; then fit with groups"
)

_BRACKETS, _INTERVALS = ("floor", "error", "size", "r2"), ("interval", "r2_interval")


def ladder(levels: NoiseLevels, n_levels: object = N_LEVELS) -> list[Gaussian]:
    """Kernels at n levels from the smallest σ trained to the largest, evenly in log σ.

    Raises:
        InputError: n is not a whole number >= 2.
    """
    n = as_count(n_levels, "n_levels", least=2, most=MOST_LEVELS)
    return [Gaussian(float(s)) for s in np.geomspace(levels.sigma_min, levels.sigma_max, n)]


def held_out_error(
    model: OnReference, held_out: Unseen, levels: NoiseLevels, generator: torch.Generator, *, ordered: bool
) -> ScoreError | None:
    """The score error on the rows held out in training; None where they, or their groups, are too few.

    Args:
        model: the trained model.
        held_out: the rows, in random order, and which of them belong together.
        levels: the noise levels trained at.
        generator: source of the draws.
        ordered: whether the fitted rows were correlated in their order, which these no longer show.
    """
    rows, n = held_out.rows, held_out.n_independent
    if rows is None or len(rows) < MIN_ROWS or n < MIN_GROUPS:
        return None
    groups = None if n == len(rows) else held_out.labels[:MOST_ROWS]
    rows = rows[:MOST_ROWS]
    noise = default_noise(len(rows), min(MIN_DRAWS, max(LEAST_DRAWS, DRAWN_NUMBERS // rows[0].numel())))
    rows = rows.to(generator.device)
    error = score_error(model, [_rival(model)], rows, ladder(levels), groups=groups, n_noise=noise, generator=generator)
    return error.with_caution(ORDERED) if ordered else error


def diagnose(
    est: DensityEstimator, x_test: Any, x_train: Any, groups: Any, out: str | Path | None, n_levels: object, state: Any
) -> Audit:
    """:meth:`gradlogp.ScoreDensity.diagnose`, with the state of its draws."""
    if out is not None:
        check_folder(out)
    kernels = ladder(est.levels_, n_levels)
    generator = generator_from(state, device_from(est.device))
    test = _rows(est, x_test, "X_test", MIN_ROWS).to(generator.device)
    train = None if x_train is None else _rows(est, x_train, "X_train", 2).to(test)
    model = est.model_.to(generator.device)
    try:
        audit = measure(
            model, test, kernels, x_train=train, comparisons=[_rival(model)], view=_view(est), history=est.history_,
            groups=groups, generator=generator, progress=est.verbose,
        )  # fmt: skip
    finally:
        model.cpu()
    if out is not None:
        audit.save(out)
    return audit


def _rival(model: OnReference) -> Reference:
    """What the lower bound of the score error compares with: the closed form below the network, or below the stack."""
    return model.reference if isinstance(model, ClosedForm) else model.skip


def _rows(est: DensityEstimator, x: Any, name: str, least: int) -> Tensor:
    """Rows in the model's units."""
    return est.units_.checked(est.schema_.check(x, name, min_rows=least).values, est.schema_, name)


def _view(est: DensityEstimator) -> View:
    units, columns = est.units_, est.schema_.columns
    return View(
        offset=units.offset,
        scale=units.scale,
        names=None if columns is None else tuple(map(str, columns)),
        sigma_unit="data unit" if (units.scale == 1).all() else units.in_words,
        snap=est.grid_.snap,
        pixels=units.shared and are_pixels(est.grid_),
    )


def to_json(error: ScoreError | None) -> dict[str, Any] | None:
    """As a dictionary of JSON types; what is not finite is a string."""
    if error is None:
        return None
    return {
        "n_rows": error.n_rows,
        "n_draws": error.n_draws,
        "n_repeats": error.n_repeats,
        "n_independent": error.n_independent,
        "cautions": list(error.cautions),
        "levels": [_level_to_json(v) for v in error.levels],
    }


def from_json(entry: Any) -> ScoreError | None:
    """Back from :func:`to_json`.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: for anything that :func:`to_json` does not write.
    """
    if entry is None:
        return None
    return ScoreError(
        levels=tuple(_level(v) for v in entry["levels"]),
        n_rows=int(entry["n_rows"]),
        n_draws=int(entry["n_draws"]),
        n_repeats=int(entry["n_repeats"]),
        n_independent=None if entry["n_independent"] is None else int(entry["n_independent"]),
        cautions=tuple(str(v) for v in entry["cautions"]),
    )


def _level_to_json(level: LevelError) -> dict[str, Any]:
    told: dict[str, Any] = {
        "sigma": level.sigma,
        "dsm": _pair(level.dsm),
        "verdict": level.verdict,
        "where": level.where,
    }
    told |= {k: [_pair(v.lower), _pair(v.upper)] for k in _BRACKETS for v in (getattr(level, k),)}
    told |= {name: [_number(v) for v in getattr(level, name)] for name in _INTERVALS}
    told["estimate"] = None if level.estimate is None else _pair(level.estimate)
    return told | {"weights": {k: _number(v) for k, v in level.weights.items()}}


def _level(entry: dict[str, Any]) -> LevelError:
    floor, error, size, r2 = (Bracket(*(_estimate(v) for v in entry[name])) for name in _BRACKETS)
    (low, high), (r2_low, r2_high) = ([float(v) for v in entry[name]] for name in _INTERVALS)
    return LevelError(
        kernel=Gaussian(float(entry["sigma"])),
        dsm=_estimate(entry["dsm"]),
        floor=floor,
        error=error,
        size=size,
        r2=r2,
        interval=(low, high),
        r2_interval=(r2_low, r2_high),
        estimate=None if entry["estimate"] is None else _estimate(entry["estimate"]),
        verdict=str(entry["verdict"]),
        weights={str(k): float(v) for k, v in entry["weights"].items()},
        where=None if entry["where"] is None else str(entry["where"]),
    )


def _pair(estimate: Estimate) -> list[float | str]:
    return [_number(estimate.value), _number(estimate.stderr)]


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _estimate(pair: Any) -> Estimate:
    value, stderr = pair
    return Estimate(float(value), float(stderr))
