"""Shapes and the checks of input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlogp import InputError
from gradlogp._shapes import (
    as_batch,
    as_count,
    as_level,
    at_rows,
    dot,
    event_size,
    per_row,
    same_batch,
    same_event,
    squared_norm,
    sum_event,
)

pytestmark = pytest.mark.usefixtures("as_a_user")

NAN, INF = math.nan, math.inf


@settings(max_examples=40, deadline=None)
@given(b=st.integers(1, 4), event=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_sums_over_the_event_are_numpys(b: int, event: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, c, level = rng.normal(size=(b, *event)), rng.normal(size=(b, *event)), rng.normal(size=b)
    x, y = torch.from_numpy(a), torch.from_numpy(c)
    np.testing.assert_allclose(sum_event(x), [row.sum() for row in a])
    np.testing.assert_allclose(dot(x, y), [np.vdot(u, v) for u, v in zip(a, c, strict=True)])
    np.testing.assert_allclose(squared_norm(x), [np.linalg.norm(u) ** 2 for u in a])
    np.testing.assert_allclose(per_row(torch.from_numpy(level), x) * x, [s * u for s, u in zip(level, a, strict=True)])
    np.testing.assert_allclose(per_row(torch.tensor(0.3), x) * x, np.float32(0.3) * a)
    assert event_size(tuple(event)) == a[0].size


def test_a_level_takes_the_dtype_of_the_batch() -> None:
    assert per_row(torch.tensor(0.1, dtype=torch.float64), torch.zeros(2, 3)).dtype == torch.float32


def test_rows_of_a_level() -> None:
    assert at_rows(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0])).tolist() == [3.0, 1.0]
    assert at_rows(torch.tensor(2.0), torch.tensor([2, 0])).item() == 2.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: per_row(torch.ones(3), torch.ones(2, 3)), "noise level: got (3,) values for 2 rows, want one value"),
        (lambda: as_level(0.0, "sigma"), "sigma: got 0, want a finite number > 0"),
        (lambda: as_level(-1, "sigma"), "sigma: got -1, want a finite number > 0"),
        (lambda: as_level(NAN, "sigma"), "sigma: got nan, want a finite number > 0"),
        (lambda: as_level(INF, "sigma"), "sigma: got inf, want a finite number > 0"),
        (lambda: as_level(torch.tensor([1.0, -2.0]), "sigma"), "sigma: got -2, want a finite number > 0"),
        (lambda: as_level(-0.5, "alpha", positive=False), "alpha: got -0.5, want a finite number >= 0"),
        (lambda: as_level("a", "sigma"), "sigma: got 'a', want a number or one number a row"),
        (lambda: as_level(None, "sigma"), "sigma: got None, want a number or one number a row"),
        (lambda: as_level(torch.ones(2, 1), "sigma"), "sigma: got shape (2, 1), want a number or one number a row"),
        (lambda: as_level(torch.ones(0), "sigma"), "sigma: got shape (0,), want a number or one number a row"),
        (lambda: as_batch(np.ones((3, 2))), "x: got ndarray, want a torch.Tensor of shape (B, *event)"),
        (lambda: as_batch(torch.ones(3, 2).int()), "x: got dtype torch.int32, want a floating dtype"),
        (lambda: as_batch(torch.ones(3)), "x: got shape (3,), want (B, *event) with B >= 1"),
        (lambda: as_batch(torch.ones(0, 3)), "x: got shape (0, 3), want (B, *event) with B >= 1"),
        (lambda: as_batch(torch.tensor([[1.0], [NAN], [INF]]), "data"), "data: row 1 holds NaN or infinity"),
        (lambda: as_batch(torch.tensor([[1.0], [2.0], [-INF]])), "x: row 2 holds NaN or infinity"),
        (lambda: same_event(torch.ones(2, 3), (4,)), "x: got event shape (3,), want (4,)"),
        (lambda: same_event([1.0], (4,), "x_t"), "x_t: got list, want a torch.Tensor"),
        (lambda: same_batch(torch.ones(2, 3), torch.ones(2, 1)), "x_t and x: got shapes (2, 3) and (2, 1), want the"),
        (lambda: as_count(0), "n: got 0, want at least 1"),
        (lambda: as_count(2.5), "n: got 2.5, want a whole number >= 1"),
        (lambda: as_count("3", "order"), "order: got '3', want a whole number >= 1"),
    ],
)
def test_bad_input_is_named_on_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as e:
        call()
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_good_input_passes_unchanged() -> None:
    x = torch.randn(3, 2, 2)
    assert as_batch(x) is x
    assert same_event(x, (2, 2)) is x
    assert as_level(0.0, "alpha", positive=False).item() == 0.0
    assert as_level(2, "sigma").dtype == torch.float64
    assert as_level(torch.tensor([1, 2]), "sigma").tolist() == [1.0, 2.0]
    assert as_count(np.int64(4)) == 4
