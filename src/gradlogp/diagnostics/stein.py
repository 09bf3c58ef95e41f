"""Do rows have the law whose score this is? Goodness of fit by the kernel Stein discrepancy."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from gradlogp._shapes import Batch, InputError, as_count, as_level, as_part, same_batch, same_event
from gradlogp.diagnostics.estimates import Estimate
from gradlogp.diagnostics.ladder import as_kernels, as_rows, score_at, some_rows
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel
from gradlogp.objectives import rademacher

_LEAST = 8  # rows
_MEDIAN_ROWS = 1000  # whose distances give the base kernel its scale
_OF_MEDIAN = 0.5  # ℓ in median distances: more power than 1 against wider spreads and heavier tails
_PAIRS = 2**18  # entries of the Stein matrix at a time: 2 MB, which stays in the cache
_TIE = 1e-10  # of the statistic: what the same sum taken in another order may differ by

Matrix = Float[Tensor, "N M"]


class SteinBase(ABC):
    """A positive definite base kernel k(x, y) = φ(‖x − y‖²)."""

    @abstractmethod
    def derivatives(self, r2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """φ, φ' and φ'' at r² = ‖x − y‖², the derivatives in r²; each of the shape of r²."""


@final
@dataclass(frozen=True)
class InverseMultiquadric(SteinBase):
    """φ(r²) = (1 + r²/ℓ²)^β, whose slow decay sees rows that wander off to infinity.

    Args:
        scale: ℓ > 0, in the data's unit.
        exponent: β < 0; for β in (−1, 0) a discrepancy that falls to 0 means convergence in law, in any dimension, if
            the model's score is Lipschitz and its density strongly log-concave far out.

    Raises:
        InputError: a scale that is not finite and positive, or an exponent that is not finite and negative.

    Reference: Gorham and Mackey (2017), "Measuring sample quality with kernels", theorem 8.
    """

    scale: float
    exponent: float = -0.5

    def __post_init__(self) -> None:
        _require_one(self.scale)
        if not -math.inf < self.exponent < 0:
            raise InputError(f"exponent: got {self.exponent:g}, want a finite number < 0, e.g. -0.5")

    def derivatives(self, r2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """b^β, βb^(β−1)/ℓ² and β(β − 1)b^(β−2)/ℓ⁴ with b = 1 + r²/ℓ²."""
        b, unit = 1 + r2 / self.scale**2, self.scale**2
        phi = b**self.exponent
        first = self.exponent / unit * phi / b
        return phi, first, (self.exponent - 1) / unit * first / b


@final
@dataclass(frozen=True)
class GaussianRBF(SteinBase):
    """φ(r²) = exp(−r²/(2ℓ²)); local, so that in many dimensions rows far from all others go unseen.

    Args:
        scale: ℓ > 0, in the data's unit.

    Raises:
        InputError: a scale that is not finite and positive.

    Reference: Gorham and Mackey (2017), "Measuring sample quality with kernels", theorem 6.
    """

    scale: float

    def __post_init__(self) -> None:
        _require_one(self.scale)

    def derivatives(self, r2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """φ, −φ/(2ℓ²) and φ/(4ℓ⁴)."""
        rate = -0.5 / self.scale**2
        phi = (rate * r2).exp()
        return phi, rate * phi, rate**2 * phi


@dataclass(frozen=True)
class SteinTest:
    """Whether rows have the law that a score belongs to.

    Attributes:
        statistic: the squared discrepancy KSD², without bias, so that it may be negative; ± its standard error, which
            is right away from the null hypothesis; at it the law is not Gaussian, and the error too large by up to a
            third. For a test use the p-value.
        p_value: ± the Monte Carlo error of the bootstrap.
        n_rows: rows used.
        base: the base kernel used.
    """

    statistic: Estimate
    p_value: Estimate
    n_rows: int
    base: SteinBase

    def __str__(self) -> str:
        return f"Stein test of {self.n_rows} rows: p = {self.p_value}, KSD² = {self.statistic}"

    def rejects(self, level: float = 0.05) -> bool:
        """Whether p <= level; never with fewer than 1/level − 1 bootstrap draws.

        Raises:
            InputError: a level that is not between 0 and 1.
        """
        return self.p_value.value <= as_part(level, "level")


def stein_test(
    model: ScoreModel,
    x: Batch,
    kernel: Kernel,
    *,
    base: SteinBase | None = None,
    noise: bool = True,
    n_bootstrap: int = 1000,
    max_rows: int = 5000,
    generator: torch.Generator | None = None,
) -> SteinTest:
    """Test whether x_t ~ k(· | x) has the density p_σ whose score is ψ; it needs the score alone, no normaliser.

        KSD² = E u(x_t, x_t'),    statistic = Σ_{i≠j} u(x_i, x_j)/(n(n − 1)),    u as in :func:`stein_kernel`

    KSD² is 0 for rows of p_σ, and otherwise the squared norm of E[(ψ − ∇log q)(x_t)k(x_t, ·)], q the density that the
    rows have. Under the null hypothesis the statistic is degenerate; its law is nearly that of

        Σ_{i≠j} ε_i ε_j u(x_i, x_j)/(n(n − 1)),    ε signs, ±1 with probability ½ each,

    and the p-value is (1 + the number of draws of it that are not below the statistic)/(``n_bootstrap`` + 1). For exact
    scores p-values were uniform, to 500 seeds, from 20 rows on (benchmarks/results/stein.md).

    The rows must be independent: of a Markov chain, take draws that are far apart, or one from each chain.
    A rejection says that model and rows differ, not which of them is wrong; that it does not reject is no proof.
    A score does not show how much weight lies in each of several modes that are far apart, so neither does the test: a
    mode that no row comes from is found no more often than by chance where the modes are six of their standard
    deviations apart. Nor does it see well what happens along directions in which the rows vary much more than along
    others, or a variance that is wrong by a factor in many dimensions, which
    :func:`~gradlogp.diagnostics.calibration` finds. Distances count all columns alike, so their units should be
    comparable.

    The time is that of a product of the n × n matrix with n × ``n_bootstrap`` signs, the memory that of the signs.

    Args:
        model: any score model ψ.
        x: rows, ``(B, *event)``, that the model was not trained on: clean ones, or what is tested itself.
        kernel: of any class, with one level for all rows.
        base: the base kernel; by default an inverse multiquadric, β = −½, ℓ half the median distance of two rows.
        noise: whether noise of the kernel is added to the rows; False for rows that are claimed to have the density
            p_σ already, such as those that a sampler ended with.
        n_bootstrap: draws of signs.
        max_rows: rows used at most, drawn at random.
        generator: source of the draws.

    Raises:
        InputError: x not a finite batch of 8 rows at least, a kernel that is not one or has a level for each row, a
            score that is not finite or of another shape, a base that is none, rows whose median distance is 0 where
            none is given, or numbers so large that the statistic overflows.

    Reference: Liu, Lee and Jordan (2016), "A kernelized Stein discrepancy for goodness-of-fit tests", theorem 3.6 and
    section 4; the signs: Chwialkowski, Strathmann and Gretton (2016), "A kernel test of goodness of fit".
    """
    kernel = _one_kernel(kernel)
    rows = some_rows(as_rows(x, "x", _LEAST), max_rows, generator)
    if len(rows) < _LEAST:
        raise InputError(f"max_rows: got {max_rows}, want at least {_LEAST}")
    n_bootstrap = as_count(n_bootstrap, "n_bootstrap", each=8 * len(rows))
    with torch.no_grad():
        x_t = kernel.sample(rows, generator=generator) if noise else rows
        scored = _Scored.of(x_t, score_at(model, x_t, kernel))
        base = _by_median(scored.y) if base is None else _as_base(base)
        signs = rademacher(scored.y.new_empty(len(x_t), n_bootstrap), generator)
        statistic, replicates = _statistics(base, scored, signs)
    least = statistic.value - _TIE * abs(statistic.value)
    return SteinTest(statistic, _p_value(replicates >= least), len(x_t), base)


def stein_kernel(base: SteinBase, x: Batch, y: Tensor, score_x: Tensor, score_y: Tensor) -> Matrix:
    """The Stein kernel u(x_i, y_j) of a score s, whose expectation over x ~ p is 0 for every y if s = ∇log p.

        u(x, y) = s(x)ᵀs(y) k + s(x)ᵀ∇_y k + s(y)ᵀ∇_x k + tr ∇_x∇_yᵀ k
                = s(x)ᵀs(y) φ + 2φ'·[(s(y) − s(x))ᵀ(x − y) − D] − 4r²φ'',        k(x, y) = φ(r²), r² = ‖x − y‖²

    It is positive semi-definite. Inner products and squares are taken from the median of y, in float64, so that rows
    far from 0 keep their digits.

    Args:
        base: the base kernel k.
        x: ``(N, *event)``.
        y: ``(M, *event)``.
        score_x: s(x), like x.
        score_y: s(y), like y.

    Returns:
        ``(N, M)``, float64, in 1/unit² of the data.

    Raises:
        InputError: batches of shapes that do not fit, or a base that is none.

    Reference: Oates, Girolami and Chopin (2017), "Control functionals for Monte Carlo integration", theorem 1; Liu,
    Lee and Jordan (2016), theorem 3.6.
    """
    same_batch(score_x, x)
    same_batch(score_y, same_event(y, tuple(x.shape[1:]), "y"))
    base, centre = _as_base(base), _centre(y)
    return _stein(base, _Scored.of(x, score_x, centre), _Scored.of(y, score_y, centre))


@dataclass(frozen=True)
class _Scored:
    """Rows y from a centre and their scores s, ``(N, D)``, with ⟨y, s⟩ and ‖y‖² of each."""

    y: Tensor
    s: Tensor
    ys: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Batch, score: Batch, centre: Tensor | None = None) -> _Scored:
        y, s = x.flatten(1).double() - (_centre(x) if centre is None else centre), score.flatten(1).double()
        return cls(y, s, (y * s).sum(1), (y * y).sum(1))

    def rows(self, start: int, stop: int | None = None) -> _Scored:
        return _Scored(*(v[start:stop] for v in (self.y, self.s, self.ys, self.yy)))


def _centre(x: Batch) -> Tensor:
    """A median for each coordinate: one row far out does not move it."""
    return x.flatten(1).double().median(0).values


def _stein(base: SteinBase, a: _Scored, b: _Scored) -> Matrix:
    r2 = (a.yy[:, None] + b.yy - 2 * a.y @ b.y.T).clamp_min_(0)
    phi, first, second = base.derivatives(r2)
    between = a.y @ b.s.T + a.s @ b.y.T - a.ys[:, None] - b.ys
    return phi * (a.s @ b.s.T) + 2 * first * (between - a.y.shape[1]) - 4 * r2 * second


def _statistics(base: SteinBase, scored: _Scored, signs: Tensor) -> tuple[Estimate, Tensor]:
    """The U-statistic, and its replicates under each column of signs: sums over pairs i < j, block by block of i."""
    n = len(signs)
    sums, squares = torch.zeros_like(scored.yy), torch.zeros_like(scored.yy[0])
    replicates = torch.zeros_like(signs[0])
    size = max(1, _PAIRS // n)
    for start in range(0, n, size):
        stop = min(start + size, n)
        u = _stein(base, scored.rows(start, stop), scored.rows(start)).triu_(1)
        sums[start:stop] += u.sum(1)
        sums[start:] += u.sum(0)
        squares += u.square().sum()
        replicates += (signs[start:stop] * (u @ signs[start:])).sum(0)
    if not bool(torch.isfinite(squares)):
        raise InputError("stein_test: the statistic overflows, want a smaller score or rows in another unit")
    return _estimate(sums / (n - 1), 2 * squares.item() / (n * (n - 1))), 2 * replicates / (n * (n - 1))


def _estimate(means: Tensor, square: float) -> Estimate:
    """U and √Var U from the means over the other rows, ``(n,)``, and the mean square over pairs.

    Var U = 2(2(n − 2)ζ₁ + ζ₂)/(n(n − 1)) (Hoeffding 1948, section 5), ζ₂ = Var u(x, x') and ζ₁ = Var E[u | x], for
    which the variance of the means over rows has expectation (n − 2)((n − 4)ζ₁ + ζ₂)/(n − 1)².
    """
    n, value = len(means), means.mean().item()
    zeta_2 = max(square - value**2, 0.0)
    zeta_1 = max((means.var().item() * (n - 1) ** 2 / (n - 2) - zeta_2) / (n - 4), 0.0)
    return Estimate(value, math.sqrt(2 * (2 * (n - 2) * zeta_1 + zeta_2) / (n * (n - 1))))


def _p_value(reached: Tensor) -> Estimate:
    """(1 + k)/(B + 1), and the standard error of a share k of B that is not 0 for k = 0 (Agresti and Coull 1998)."""
    k, n = int(reached.sum()), len(reached)
    smoothed = (k + 2) / (n + 4)
    return Estimate((1 + k) / (n + 1), math.sqrt(smoothed * (1 - smoothed) / (n + 4)))


def _by_median(y: Tensor) -> SteinBase:
    """The inverse multiquadric of half the median distance; the rows are in random order."""
    scale = torch.pdist(y[:_MEDIAN_ROWS]).median().item()
    if not 0 < scale < math.inf:
        raise InputError(f"x: the median distance of two rows is {scale:g}, want rows that differ, or give a base")
    return InverseMultiquadric(_OF_MEDIAN * scale)


def _one_kernel(kernel: Kernel) -> Kernel:
    several = as_kernels(kernel)
    if len(several) > 1:
        raise InputError(f"kernel: got {len(several)}, want one")
    return several[0]


def _as_base(base: object) -> SteinBase:
    if not isinstance(base, SteinBase):
        raise InputError(f"base: got {base!r}, want a base kernel such as InverseMultiquadric(1.0)")
    return base


def _require_one(scale: float) -> None:
    if as_level(scale, "scale").ndim:
        raise InputError(f"scale: got {scale!r}, want one number")
