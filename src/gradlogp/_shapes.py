"""Shapes and checks: the only broadcasting helper, sums over the event, and the error for bad input.

A batch is ``(B, *event)`` for any event shape. A noise level is a scalar or one value a row, ``(B,)``; it is
shaped against a batch once, by :func:`per_row`, and nowhere else.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from gradlogp._errors import InputError as InputError
from gradlogp._errors import short as short
from gradlogp._memory import free, largest, said

Batch: TypeAlias = Float[Tensor, "B *event"]
Rows: TypeAlias = Float[Tensor, "B"]
Level: TypeAlias = Float[Tensor, "..."]  # () or (B,)


MOST = 10**9  # of what is counted and takes no memory: nobody waits for the end of more
_SMALL = 2**24  # bytes that are there

_AT_ZERO = ": data without noise have no score; take the smallest level, and denoise from there to the data"


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


def row_keys(rows: Batch) -> Tensor:
    """A number for each row, equal for equal rows: the digits of its coordinates times random odd numbers, mod 2⁶⁴."""
    digits = (rows.detach().flatten(1).double() + 0.0).view(torch.int64)  # −0 is 0
    g = torch.Generator().manual_seed(0)
    factors = 2 * torch.randint(2**62, (digits.shape[1],), generator=g) + 1
    mixed = digits ^ (digits >> 32)  # the digits of whole numbers stand at the top
    return (mixed * factors.to(rows.device)).sum(1)


def event_size(event_shape: tuple[int, ...]) -> int:
    """Number of coordinates of an event."""
    return math.prod(event_shape)


def same_batch(x_t: object, x: object) -> None:
    """Check that noisy and clean rows are batches of one shape."""
    x_t, x = require_batch(x_t, "x_t"), require_batch(x, "x")
    if x_t.shape != x.shape:
        raise InputError(f"x_t and x: got shapes {tuple(x_t.shape)} and {tuple(x.shape)}, want the same")


def as_count(n: object, name: str = "n", *, least: int = 1, most: int = MOST, each: int = 0) -> int:
    """Check a number of draws: a whole number from ``least`` to ``most``, and ``each`` bytes for each of them.

    Raises:
        InputError: something else, or more than fits into the memory that there is.
    """
    try:
        count = operator.index(n)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        count = None
    if count is None or isinstance(n, bool):
        raise InputError(f"{name}: got {short(n)}, want a whole number >= {least}")
    if count < least:
        raise InputError(f"{name}: got {short(count)}, want at least {least}")
    require_memory(count, name, lambda k: k * each)
    if count > most:
        raise InputError(f"{name}: got {short(count)}, want at most {most}")
    return count


def require_memory(n: int, name: str, needed: Callable[[int], int], device: torch.device | None = None) -> None:
    """Refuse a number whose need of bytes, as estimated from below, is more than there are.

    Args:
        n: the number.
        name: of it, for an error.
        needed: bytes of a number; grows with it.
        device: where they are wanted.

    Raises:
        InputError: says what it needs, and the largest number that fits.
    """
    if (wanted := needed(n)) < _SMALL or wanted <= (there := free(device)):
        return
    fits = f"at most {largest(needed, n, there)} for the {said(there)} of memory that is free"
    raise InputError(f"{name}: got {short(n)}, which needs {said(wanted)}, want {fits}")


def as_number(value: object, name: str, *, positive: bool = True) -> float:
    """Check one finite number > 0 (or >= 0); a tensor of one number is one."""
    with torch.device("cpu"):  # also where the default is a device that holds no numbers
        level = as_level(value, name, positive=positive)
    if level.numel() != 1:
        raise InputError(f"{name}: got {level.numel()} numbers, want one")
    return level.item()


def as_part(value: object, name: str) -> float:
    """Check one number between 0 and 1, the ends not among them."""
    part = as_number(value, name)
    if part >= 1:
        raise InputError(f"{name}: got {part:g}, want a number between 0 and 1")
    return part


def as_positive(value: object, name: str) -> float:
    """Check a finite number > 0, not an array of one.

    Raises:
        InputError: something else.
    """
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not 0 < number < math.inf or getattr(value, "ndim", 0) != 0:
        raise InputError(f"{name}: got {short(value)}, want a finite number > 0")
    return number


def as_level(value: object, name: str, *, positive: bool = True) -> Tensor:
    """Check a noise level: a number or ``(B,)`` numbers, finite, positive (or non-negative)."""
    try:
        level = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{name}: got {short(value)}, want a number or one number a row") from None
    require_numbers(level, name)
    if not level.is_floating_point():
        level = level.to(torch.get_default_dtype())
    if level.ndim > 1 or level.numel() == 0:
        raise InputError(f"{name}: got shape {tuple(level.shape)}, want a number or one number a row, (B,)")
    good = (level < torch.inf) & (level > 0 if positive else level >= 0)
    if not bool(good.all()):
        bad = ~good
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
    require_numbers(x, name)
    if not x.is_floating_point():
        raise InputError(f"{name}: got dtype {x.dtype}, want a floating dtype such as float32")
    if x.ndim < 2 or x.numel() == 0:
        raise InputError(f"{name}: got shape {tuple(x.shape)}, want (B, *event) with B >= 1, e.g. (100, 2)")
    return x


def require_numbers(x: Tensor, name: str) -> Tensor:
    """Refuse a tensor that holds no numbers, or none that can be indexed: of the meta device, nested, sparse."""
    if x.is_meta:
        raise InputError(f"{name}: got a tensor on the meta device, which holds no numbers, want one that does")
    if x.is_nested or x.layout != torch.strided:
        kind = "nested" if x.is_nested else "sparse"
        raise InputError(f"{name}: got a {kind} tensor, want a dense one, e.g. of to_dense() or to_padded_tensor(0.0)")
    return x


def as_batch(x: object, name: str = "x") -> Batch:
    """Check a batch: a floating tensor ``(B, *event)`` with at least one event dimension, finite.

    Rows of two bytes a number are made float32, in which everything can be computed.
    """
    x = require_batch(x, name)
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
