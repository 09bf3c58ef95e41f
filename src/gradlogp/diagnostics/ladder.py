"""What the diagnostics over several noise levels share: their kernels, their rows, ratios of means, and a table."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from gradlogp import models
from gradlogp._shapes import Batch, InputError, Rows, as_batch, as_count
from gradlogp.diagnostics.estimates import Estimate
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel

_DRAWS = 512  # noisy rows a level at least, where the number of draws is not given


def as_kernels(kernels: Kernel | Iterable[Kernel]) -> tuple[Kernel, ...]:
    """Check one kernel or several, each with one level for all rows."""
    several: tuple[Any, ...] = (kernels,) if isinstance(kernels, Kernel) else ()
    if isinstance(kernels, Iterable) and not isinstance(kernels, Kernel | Tensor):
        several = tuple(kernels)
    if not several or not all(isinstance(k, Kernel) for k in several):
        got = "none" if isinstance(kernels, Sequence) and not kernels else " ".join(repr(kernels).split())[:80]
        raise InputError(f"kernels: got {got}, want a kernel or a sequence of kernels, e.g. kernels.Gaussian(0.1)")
    for k in several:
        if k.alpha.ndim or k.sigma.ndim:
            raise InputError(f"kernels: got {k!r}, want one level for all rows")
    return several


def as_rows(x: object, name: str, least: int = 2) -> Batch:
    """Check a finite batch with rows enough for a standard error."""
    x = as_batch(x, name)
    if len(x) < least:
        raise InputError(f"{name}: got {len(x)} row{'s' * (len(x) > 1)}, want at least {least}")
    return x


def some_rows(x: Batch, most: int, generator: torch.Generator | None) -> Tensor:
    """All rows, or so many of them drawn without replacement, in random order."""
    return x[some_of(x, most, generator)]


def some_of(x: Batch, most: int, generator: torch.Generator | None) -> Tensor:
    """The indices of :func:`some_rows`."""
    device = x.device if generator is None else generator.device
    most = as_count(most, "max_rows", most=sys.maxsize)
    return torch.randperm(len(x), generator=generator, device=device)[:most].to(x.device)


def repeated(x: Batch, n_noise: int | None) -> tuple[Tensor, int]:
    """The rows so many times, one copy after the other, and that number: by default for 512 rows in all, or 1."""
    n = max(1, math.ceil(_DRAWS / len(x))) if n_noise is None else as_count(n_noise, "n_noise", each=2 * x.nbytes)
    return x.repeat(n, *(1,) * (x.ndim - 1)), n


def per_datum(values: Rows, n: int) -> Tensor:
    """Mean over the n copies of each row, in float64: rows are independent, draws of one row are not."""
    return values.double().reshape(n, -1).mean(0)


def per_unit(values: Rows, unit: Tensor | None) -> Tensor:
    """The sums of rows over independent units, over the mean number of rows of one, ``(N,) -> (U,)``."""
    if unit is None:
        return values
    which, n_units = torch.unique(unit, return_inverse=True)[1], len(torch.unique(unit))
    total = values.new_zeros(n_units).index_add_(0, which.to(values.device), values)
    return total * (n_units / len(values))


def ratio(numerator: Rows, denominator: Rows) -> Estimate:
    """E numerator / E denominator over independent rows, standard error by the delta method; 0 ± inf for 0/0."""
    total = denominator.mean()
    if not bool(total.abs() > 0):
        return Estimate(0.0, math.inf)
    value = (numerator.mean() / total).item()
    return Estimate(value, Estimate.mean_of((numerator - value * denominator) / total.abs()).stderr)


def score_at(model: ScoreModel, x_t: Batch, kernel: Kernel) -> Batch:
    """ψ(x_t), checked.

    Raises:
        InputError: a score that is not finite.
    """
    models.require_model(model)
    psi = model.score(x_t, kernel)
    if not bool(torch.isfinite(psi).all()):
        raise InputError(f"model: its score holds NaN or infinity under {kernel!r}, want finite numbers")
    return psi


def linearise(
    model: ScoreModel, x_t: Batch, kernel: Kernel, *, twice: bool = False
) -> tuple[Batch, Callable[[Tensor], Tensor]]:
    """ψ(x_t) and u -> (∇ψ)ᵀu, which is itself differentiable in u with ``twice``.

    Raises:
        InputError: a score that varies with x_t but lets no gradient through.
    """
    name = f"{type(model).__name__}.score"
    return models.linearise(lambda at, k: score_at(model, at, k), x_t, kernel, again=twice, name=name)


def frame_of(levels: Sequence[Any]) -> Any:
    """A polars frame, one row a level: an estimate becomes two columns, its value and its standard error."""
    import polars as pl

    return pl.DataFrame([_flat(level) for level in levels])


def _flat(level: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for field in fields(level):
        value = getattr(level, field.name)
        if isinstance(value, Estimate):
            row |= {field.name: value.value, f"{field.name}_stderr": value.stderr}
        else:
            row[field.name] = repr(value) if isinstance(value, Kernel) else value
    return row
