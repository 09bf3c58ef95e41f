"""Shapes and checks: the only broadcasting helper, sums over the event, and the error for bad input.

A batch is ``(B, *event)`` for any event shape. A noise level is a scalar or one value a row, ``(B,)``; it is
shaped against a batch once, by :func:`per_row`, and nowhere else.
"""

from __future__ import annotations

import math
import operator
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Batch: TypeAlias = Float[Tensor, "B *event"]
Rows: TypeAlias = Float[Tensor, "B"]
Level: TypeAlias = Float[Tensor, "..."]  # () or (B,)


_AT_ZERO = ": data without noise have no score; take the smallest level, and denoise from there to the data"


class InputError(ValueError):
    """Input that cannot be used; the message says on one line what it is, what was got, and what is wanted."""


def per_row(level: Level, x: Batch) -> Tensor:
    """Shape a level, scalar or ``(B,)``, so that it multiplies a batch ``(B, *event)``, in the batch's dtype."""
    level = level.to(require_batch(x, "x_t"))
    if level.ndim == 0:
        return level
    if level.shape != x.shape[:1]:
        raise InputError(
            f"noise level: got {tuple(level.shape)} values for {x.shape[0]} rows, want one value or one a row"
        )
    return level.reshape(-1, *(1,) * (x.ndim - 1))


def sum_event(x: Batch) -> Rows:
    """Sum over all coordinates of the event, ``(B, *event) -> (B,)``."""
    return x.flatten(1).sum(1)


def dot(a: Batch, b: Batch) -> Rows:
    """Inner product of each row, ``(B, *event), (B, *event) -> (B,)``."""
    return sum_event(a * b)


def squared_norm(x: Batch) -> Rows:
    """Squared Euclidean norm of each row, summed over the event."""
    return sum_event(x * x)


def at_rows(level: Level, index: Tensor) -> Level:
    """The level of some rows; a scalar level is the same for all."""
    return level if level.ndim == 0 else level[index.to(level.device)]


def event_size(event_shape: tuple[int, ...]) -> int:
    """Number of coordinates of an event."""
    return math.prod(event_shape)


def same_batch(x_t: object, x: object) -> None:
    """Check that noisy and clean rows are batches of one shape."""
    x_t, x = require_batch(x_t, "x_t"), require_batch(x, "x")
    if x_t.shape != x.shape:
        raise InputError(f"x_t and x: got shapes {tuple(x_t.shape)} and {tuple(x.shape)}, want the same")


def as_count(n: object, name: str = "n") -> int:
    """Check a number of draws: a whole number >= 1."""
    try:
        count = operator.index(n)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{name}: got {n!r}, want a whole number >= 1") from None
    if count < 1:
        raise InputError(f"{name}: got {count}, want at least 1")
    return count


def as_level(value: object, name: str, *, positive: bool = True) -> Tensor:
    """Check a noise level: a number or ``(B,)`` numbers, finite, positive (or non-negative)."""
    try:
        level = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name}: got {value!r}, want a number or one number a row") from None
    if not level.is_floating_point():
        level = level.to(torch.get_default_dtype())
    if level.ndim > 1 or level.numel() == 0:
        raise InputError(f"{name}: got shape {tuple(level.shape)}, want a number or one number a row, (B,)")
    bad = ~torch.isfinite(level) | (level <= 0 if positive else level < 0)
    if bool(bad.any()):
        first = level.reshape(-1)[bad.reshape(-1)][0].item()
        without_noise = first == 0 and ("sigma" in name or name in ("levels", "grid"))
        want = f"a finite number {'> 0' if positive else '>= 0'}" + (_AT_ZERO if without_noise else "")
        raise InputError(f"{name}: got {first:g}, want {want}")
    return level


def require_batch(x: object, name: str = "x") -> Batch:
    """Check that x is a floating tensor ``(B, *event)`` with an event dimension; its values are not looked at."""
    if not isinstance(x, Tensor):
        raise InputError(
            f"{name}: got {type(x).__name__}, want a torch.Tensor of shape (B, *event), as torch.as_tensor makes"
        )
    if not x.is_floating_point():
        raise InputError(f"{name}: got dtype {x.dtype}, want a floating dtype such as float32")
    if x.ndim < 2 or x.numel() == 0:
        raise InputError(f"{name}: got shape {tuple(x.shape)}, want (B, *event) with B >= 1, e.g. (100, 2)")
    return x


def as_batch(x: object, name: str = "x") -> Batch:
    """Check a batch: a floating tensor ``(B, *event)`` with at least one event dimension, finite.

    Rows of two bytes a number are made float32, in which everything can be computed.
    """
    x = require_batch(x, name)
    if x.is_meta:
        raise InputError(f"{name}: got a tensor on the meta device, which holds no numbers, want one that does")
    if torch.finfo(x.dtype).bits < 32:
        x = x.float()
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        row = int((~finite).flatten(1).any(1).nonzero()[0, 0])
        raise InputError(f"{name}: row {row} holds NaN or infinity, want finite numbers")
    return x


def same_event(x: object, event_shape: tuple[int, ...], name: str = "x") -> Batch:
    """Check that a batch has the event shape that is expected of it."""
    x = require_batch(x, name)
    if tuple(x.shape[1:]) != tuple(event_shape):
        raise InputError(f"{name}: got event shape {tuple(x.shape[1:])}, want {tuple(event_shape)}")
    return x
