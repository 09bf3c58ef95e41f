"""The range of noise levels: closed forms, units, and what rows certify."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from gradlogp import InputError
from gradlogp.models import GaussianReference
from gradlogp.training import NoiseLevels
from gradlogp.training.levels import fisher_scale, largest_level


def two_clusters(n: int, g: torch.Generator) -> torch.Tensor:
    centre = torch.randint(0, 2, (n, 1), generator=g) * 4.0 - 2.0
    return torch.cat([centre, -centre], 1) + 0.3 * torch.randn(n, 2, generator=g)


def curved(n: int, g: torch.Generator) -> torch.Tensor:
    """A half circle of width 0.05 in the plane."""
    angle = math.pi * torch.rand(n, 1, generator=g)
    return torch.cat([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(n, 2, generator=g)


def of_rows(x: torch.Tensor, **more) -> NoiseLevels:
    return NoiseLevels.of_rows(x, GaussianReference.of_data(x), **more)


@pytest.mark.parametrize("event", [(4,), (2, 1, 2)], ids=str)
def test_the_range_of_gaussian_data_is_a_closed_form(event, g):
    """ℓ = (tr Σ⁻¹/D)^(−½) within 10 %: a sampling error of √(2/1000)·√5, two of them taken off, in a square root."""
    scale = torch.tensor([0.3, 1.0, 2.0, 0.5])
    root = torch.linalg.qr(torch.randn(4, 4, generator=g)).Q * scale
    x = torch.randn(4000, 4, generator=g) @ root.T + 7.0
    levels = of_rows(x.reshape(-1, *event))
    assert levels.sigma_min == pytest.approx(0.01 / (1 / scale**2).mean().sqrt().item(), rel=0.1)
    assert 2.0 * 0.95 < levels.sigma_max < 2.0 * 2.5  # nothing to learn but what 2048 rows are off


def test_the_range_scales_with_the_data(g):
    x = curved(600, g).double()
    ours, thousand = of_rows(x), of_rows(1000 * x)
    assert thousand.sigma_min == pytest.approx(1000 * ours.sigma_min, rel=1e-9)
    assert thousand.sigma_max == pytest.approx(1000 * ours.sigma_max, rel=1e-9)
    assert of_rows(x) == ours
    steps = torch.full((2,), 0.01, dtype=torch.float64)
    assert of_rows(1000 * x, steps=1000 * steps).sigma_min == pytest.approx(
        1000 * of_rows(x, steps=steps).sigma_min, rel=1e-9
    )


def test_narrow_modes_are_resolved(g):
    """25 modes of standard deviation 0.05, 2 apart, on a grid: ℓ is 0.05, whatever the columns' deviations of 2.8."""
    x = 2.0 * torch.randint(-2, 3, (3000, 2), generator=g) + 0.05 * torch.randn(3000, 2, generator=g)
    assert of_rows(x).sigma_min == pytest.approx(0.01 * 0.05, rel=0.2)


def test_a_thin_curve_that_no_column_shows_is_seen_by_the_rows_themselves(g):
    """Across the curve I = 1/0.05²: ℓ = 0.07, of which 1000 rows certify a part; the columns' are 0.3 and 0.7 wide."""
    x = curved(4000, g)
    ell = 0.05 * math.sqrt(2)
    scale = fisher_scale(x, 2)
    assert ell < scale < 2 * ell


def test_the_certified_information_is_a_lower_bound(g):
    """Two clusters of standard deviation 0.3, far apart: I = 2/0.09, of which many rows certify more than half."""
    for n in (40, 1000):
        scales = [fisher_scale(two_clusters(n, g), 2) for _ in range(10)]
        assert min(scales) > 0.3
    assert np.median(scales) < 0.3 * math.sqrt(2)


def test_the_largest_level_is_where_the_gaussian_is_off_by_a_hundred_thousandth():
    """Atoms ±1: the error is an integral over the line, ½E(φ − s)² with φ = −x/(1 + σ²)."""
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).repeat(1024, 1)
    sigma = largest_level(x, GaussianReference.of_data(x))

    def share(s: float) -> float:
        def f(u: float) -> float:
            p = 0.5 * (stats.norm.pdf(u, 1, s) + stats.norm.pdf(u, -1, s))
            return (-u / (1 + s * s) - (math.tanh(u / s**2) - u) / s**2) ** 2 * p

        return integrate.quad(f, -1 - 9 * s, 1 + 9 * s, limit=200)[0] * (1 + s * s)

    want = optimize.brentq(lambda s: share(s) - 1e-5, 1.0, 9.0)
    assert sigma == pytest.approx(want, rel=0.03)


def test_the_range_of_data_on_a_grid_resolves_its_rounding(g):
    """A quarter of the finest step, where the data's own scale asks for less; constant columns have no grid."""
    x = (8 * torch.rand(500, 3, generator=g)).round() * torch.tensor([0.5, 1.0, 0.0])
    assert of_rows(x, steps=torch.tensor([0.5, 1.0, 0.0])).sigma_min == pytest.approx(0.125)
    fine = torch.randn(500, 3, generator=g)
    assert of_rows(fine, steps=torch.full((3,), 1e-3)).sigma_min == pytest.approx(0.01, rel=0.25)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(12, 3),  # few rows
        torch.randn(40, 60),  # fewer than coordinates
        torch.eye(50)[:, :3],  # all but constant
        torch.cat([torch.randn(300, 1).repeat(1, 2), torch.zeros(300, 1)], 1),  # collinear and constant
        torch.randn(300, 2) * torch.tensor([1.0, 1e-6]),  # of very unlike width
        torch.randint(0, 2, (300, 3)).float(),  # atoms
    ],
    ids=["few", "wide", "rare", "collinear", "unlike", "atoms"],
)
def test_awkward_rows_have_a_range(x):
    levels = of_rows(x)
    spread = x.std(0)
    assert 1e-5 * spread[spread > 0].min() < levels.sigma_min < 0.11 * levels.sigma_max
    assert levels.sigma_max < 4.01 * GaussianReference.of_data(x).eigenvalues.max().sqrt()


def test_given_ends_are_taken(g):
    x = two_clusters(100, g)
    levels = of_rows(x, sigma_min=0.3, sigma_max=1.7)
    assert (levels.sigma_min, levels.sigma_max) == (0.3, 1.7)
    assert of_rows(x, sigma_min=0.3).sigma_min == 0.3
    assert of_rows(x, sigma_max=1.7).sigma_max == 1.7
    with pytest.raises(InputError, match="sigma_min"):
        of_rows(x, sigma_min=3.0, sigma_max=1.0)
    bad = x.clone()
    bad[3, 0] = torch.nan
    with pytest.raises(InputError, match="row 3 holds NaN"):
        NoiseLevels.of_rows(bad, GaussianReference.of_data(x))


def test_a_constant_column_does_not_count():
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(100).round() / 100
    steps = torch.tensor([0.01, 0.01, 0.01, 0.0], dtype=torch.float64)
    alone, beside = x, torch.cat([x, torch.full((400, 1), 7.0, dtype=torch.float64)], 1)
    levels = [
        NoiseLevels.of_rows(rows, GaussianReference.of_data(rows), steps=steps[: rows.shape[1]])
        for rows in (alone, beside)
    ]
    assert levels[1].sigma_min == pytest.approx(levels[0].sigma_min, rel=1e-6)
