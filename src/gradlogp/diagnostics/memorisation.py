"""Has the model memorised its training rows? From its losses, and from its samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, dot, event_size, per_row, same_event, squared_norm
from gradlogp.diagnostics.estimates import Z_THRESHOLD, Estimate
from gradlogp.diagnostics.ladder import as_kernels, as_rows, frame_of, per_datum, repeated, score_at, some_rows
from gradlogp.kernels import Kernel
from gradlogp.models import GaussianReference, ScoreFunction, ScoreModel
from gradlogp.oracles import Empirical
from gradlogp.oracles.base import chunks

_EMPIRICAL_ROWS = 256  # noisy rows at which the empirical score, the dear part, is taken
_FULL_COVARIANCE_UP_TO = 256  # coordinates
_NEAR = 1 / 3  # nearest over second nearest training row, below which a sample counts as a copy


@dataclass(frozen=True)
class MemorisationLevel:
    """Where the score lies at one noise level.

    Attributes:
        kernel: the convolution.
        sigma: its scale.
        value: from 0, the true score, to 1, that of the training rows; 0 ± 1 where these rows cannot tell.
        informative: whether they can: the largest possible gap is 4 of its standard errors above 0.
    """

    kernel: Kernel
    sigma: float
    value: Estimate
    informative: bool

    def __str__(self) -> str:
        return f"{self.value if self.informative else 'cannot tell'} at σ = {self.sigma:.3g}"


@dataclass(frozen=True)
class Memorisation:
    """How much of its training rows a model has memorised, one entry in ``levels`` a kernel."""

    levels: tuple[MemorisationLevel, ...]

    def __str__(self) -> str:
        return "memorisation, 0 to 1: " + ", ".join(str(level) for level in self.levels)

    def to_frame(self) -> Any:
        """A polars frame, one row a level."""
        return frame_of(self.levels)


def memorisation(
    model: ScoreModel,
    x_train: Batch,
    x_test: Tensor,
    kernels: Kernel | Iterable[Kernel],
    *,
    n_noise: int | None = None,
    max_rows: int = 512,
    generator: torch.Generator | None = None,
) -> Memorisation:
    """Where the score lies on the way from the true one, 0, to that of the training rows, 1; it needs no oracle.

        value = 1 − √(1 − v),    v = (J_test(ψ) − J_train(ψ)) / (J_test(ψ) − J_train(s_N))

    J_train and J_test are the denoising losses on noisy training and held-out rows, and s_N, the exact score of the
    noisy training rows, has the smallest training loss there is: v is the share of the largest possible gap that is
    there, and 1 − v = ½E_train‖ψ − s_N‖²/(J_test(ψ) − J_train(s_N)) a squared distance from s_N over what it is for a
    model that does as well on held-out rows; the root makes it a distance. The true score s has 0, since for it both
    losses agree in expectation; s_N has 1. Between them, ψ = s + λ(s_N − s) has, increasing in λ and at least λ,

        1 − (1 − λ)√(B/(B + λ²A)),    A = ½E_test‖s_N − s‖², B = ½E_train‖s_N − s‖².

    A bad model that never saw the training rows has 0 too: this is not a measure of quality. All that is fitted to the
    rows counts, their mean and covariance or a column that is constant in them as well as copies of whole rows, so with
    few rows an honest model is above 0; :func:`nearest_neighbours` looks for copies alone.

    With K(ψ) = E[⟨ψ, t⟩ − ½‖ψ‖²], the loss less a constant of the noise, G = K_train(ψ) − K_test(ψ) and
    R = J_train(ψ) − J_train(s_N) = ½E_train‖ψ − s_N‖² (Pythagoras), v = G/(G + R), and R >= 0 is seen directly.
    From G the same difference for the Gaussian of all rows, training and held out alike, is subtracted: its
    expectation is 0 since it treats both alike, and most of the spread between rows goes with it.

    Training and held-out rows must be independent draws of one law; each row is one observation, however many draws
    of noise it gets. The standard error is the distance from the value to the farther end of the values whose v in
    [0, 1] is within one standard error (Fieller 1954): the delta method's, but right where the gap is small as well.
    Where G + R is within 4 standard errors of 0 the value is 0 ± 1 and not informative: at large σ s_N and s are all
    but equal, and there is nothing to memorise.

    Args:
        model: any score model ψ.
        x_train: the rows that it was trained on, all of them, ``(N, *event)``.
        x_test: rows that it was not trained on, of the same law, ``(M, *event)``.
        kernels: one kernel or several, of any class, each with one level for all rows.
        n_noise: draws of noise for each row; by default enough for 512 noisy rows on each side.
        max_rows: rows of each kind at which the model is evaluated, at most, drawn at random.
        generator: source of the draws; None is a fixed seed, so that two calls agree.

    Raises:
        InputError: x_train or x_test not finite batches of one event shape with 2 rows at least, rows that do not vary,
            or kernels that are none.

    Reference: Fieller (1954), "Some problems in interval estimation", for the interval of a ratio.
    """
    several = as_kernels(kernels)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    x_train = as_rows(x_train, "x_train")
    x_test = same_event(as_rows(x_test, "x_test"), tuple(x_train.shape[1:]), "x_test").to(x_train)
    memory, pooled = Empirical(x_train), _pooled(torch.cat([x_train, x_test]))
    train, test = (repeated(some_rows(x, max_rows, generator), n_noise) for x in (x_train, x_test))
    levels = []
    with torch.no_grad():
        for k in several:
            gain, distance = _on_training_rows(model, pooled, memory, *train, k, generator)
            held_out = _on_held_out_rows(model, pooled, *test, k, generator)
            value, informative = _share(gain, held_out, distance)
            levels.append(MemorisationLevel(k, k.sigma.item(), value, informative))
    return Memorisation(tuple(levels))


def _on_training_rows(
    model: ScoreModel,
    pooled: ScoreModel,
    memory: Empirical,
    x: Batch,
    n: int,
    kernel: Kernel,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """The gain of each training row, and ½‖ψ − s_N‖² of the first of them."""
    x_t = kernel.sample(x, generator=generator)
    psi = score_at(model, x_t, kernel)
    rows = len(x) // n
    few, copies = min(rows, _EMPIRICAL_ROWS), min(n, max(1, _EMPIRICAL_ROWS // rows))
    near = torch.arange(copies * rows, device=x.device).reshape(copies, rows)[:, :few].flatten()
    distance = 0.5 * squared_norm(psi[near] - memory.score(x_t[near], kernel))
    return _gain(pooled, psi, x_t, x, n, kernel), per_datum(distance, copies)


def _on_held_out_rows(
    model: ScoreModel, pooled: ScoreModel, x: Batch, n: int, kernel: Kernel, generator: torch.Generator | None
) -> Tensor:
    """The gain of each held-out row."""
    x_t = kernel.sample(x, generator=generator)
    return _gain(pooled, score_at(model, x_t, kernel), x_t, x, n, kernel)


def _gain(pooled: ScoreModel, psi: Batch, x_t: Batch, x: Batch, n: int, kernel: Kernel) -> Tensor:
    """⟨ψ, t⟩ − ½‖ψ‖², less the same for the pooled score: the difference of their losses, of each row."""
    other = pooled.score(x_t, kernel)
    gain = dot(psi - other, kernel.score(x_t, x)) - 0.5 * (squared_norm(psi) - squared_norm(other))
    return per_datum(gain, n)


def _position(share: float) -> float:
    """1 − √(1 − v)."""
    return 1 - math.sqrt(1 - share)


def _share(train: Tensor, test: Tensor, distance: Tensor) -> tuple[Estimate, bool]:
    """1 − √(1 − v), v = G/(G + R): G = mean train − mean test, R the mean distance of the first training rows.

    The shares v within one standard error have ((1 − v)G − vR)² <= Var((1 − v)G − vR), the interval between the roots
    of av² − 2bv + c. A negative G, which is chance, counts as 0.
    """
    g, r, few = (train.mean() - test.mean()).clamp_min(0).item(), distance.mean().item(), len(distance)
    var_g = (train.var() / len(train) + test.var() / len(test)).item()
    both = torch.cov(torch.stack([train[:few], distance]))[0, 1].item() / len(train)
    total, var_total = g + r, var_g + (distance.var() / few).item() + 2 * both
    if total**2 <= Z_THRESHOLD**2 * var_total:
        return Estimate(0.0, 1.0), False
    value, a, b, c = g / total, total**2 - var_total, g * total - var_g - both, g**2 - var_g
    half = math.sqrt(max(b * b - a * c, 0.0))
    low, high = (_position(min(max((b + sign * half) / a, 0.0), 1.0)) for sign in (-1, 1))
    value = _position(value)
    return Estimate(value, max(high - value, value - low, 0.0)), True


def _pooled(x: Batch) -> ScoreModel:
    """The Gaussian of all rows; of each coordinate apart where there are many."""
    if event_size(tuple(x.shape[1:])) <= _FULL_COVARIANCE_UP_TO:
        return GaussianReference.of_data(x)
    mean, variance = x.mean(0), x.var(0, correction=0)

    def score(x_t: Tensor, kernel: Kernel) -> Tensor:
        alpha, sigma = per_row(kernel.alpha, x_t), per_row(kernel.sigma, x_t)
        return (alpha * mean - x_t) / (alpha**2 * variance + sigma**2)

    return ScoreFunction(score)


@dataclass(frozen=True)
class NearestNeighbours:
    """Samples against the training rows, with held-out rows for comparison.

    Attributes:
        copies: share of the samples less than a third as far from the nearest training row as from the second nearest.
        held_out_copies: the same share of the held-out rows: what a model that memorised nothing would have.
        distance_ratio: median distance to the nearest training row, samples over held-out rows; below 1 the samples
            lie closer to the training rows than new data do.
    """

    copies: Estimate
    held_out_copies: Estimate
    distance_ratio: Estimate

    def __str__(self) -> str:
        return (
            f"copies of training rows: {self.copies} of the samples, {self.held_out_copies} of held-out rows; "
            f"distance to the nearest, samples over held-out rows: {self.distance_ratio}"
        )

    def to_frame(self) -> Any:
        """A polars frame of one row."""
        return frame_of([self])


def nearest_neighbours(samples: Tensor, x_train: Batch, x_test: Tensor) -> NearestNeighbours:
    """Whether samples are copies: distances to the training rows, the same as held-out rows have or shorter.

        copies = share with d₁ < d₂/3,    distance_ratio = median d₁ of samples / median d₁ of held-out rows

    d₁ <= d₂ are the Euclidean distances of a flattened row to the two nearest distinct training rows; training rows
    that are equal count once. The standard error of a share p = k/n is √(p̃(1 − p̃)/(n + 4)), p̃ = (k + 2)/(n + 4)
    (Agresti and Coull 1998), so that 0 of n is not 0 ± 0; that of a median is half the distance between the order
    statistics √n/2 ranks to both sides. All are given the training rows. A held-out median of 0, where held-out rows
    repeat training rows, makes the ratio uncertain without limit.

    Args:
        samples: what the model drew, ``(S, *event)``.
        x_train: the rows that it was trained on, ``(N, *event)``.
        x_test: rows that it was not trained on, ``(M, *event)``.

    Raises:
        InputError: not finite batches of one event shape with 2 rows at least, or fewer than 2 distinct training rows.
    """
    x_train = as_rows(x_train, "x_train")
    event = tuple(x_train.shape[1:])
    distinct = x_train.flatten(1).double().unique(dim=0)
    if len(distinct) < 2:
        raise InputError("x_train: got 1 distinct row, want at least 2")
    samples, x_test = (same_event(as_rows(x, n), event, n) for x, n in ((samples, "samples"), (x_test, "x_test")))
    own, new = (_two_nearest(x.flatten(1).to(distinct), distinct) for x in (samples, x_test))
    closeness = _quotient(_median(own[:, 0]), _median(new[:, 0]))
    return NearestNeighbours(_copies(own), _copies(new), closeness)


def _two_nearest(x: Tensor, data: Tensor) -> Tensor:
    """Distances of each row of x to the two nearest rows of the data, ``(B, 2)``, by differences."""
    parts = [
        torch.cdist(x[rows], data, compute_mode="donot_use_mm_for_euclid_dist").topk(2, largest=False).values
        for rows in chunks(len(x), len(data), x.device)
    ]
    return torch.cat(parts)


def _copies(distances: Tensor) -> Estimate:
    """The share of rows whose nearest training row is a third as far as the next, or nearer."""
    near = distances[:, 0] < _NEAR * distances[:, 1]
    n = len(near)
    smoothed = (near.sum().item() + 2) / (n + 4)
    return Estimate(near.double().mean().item(), math.sqrt(smoothed * (1 - smoothed) / (n + 4)))


def _median(values: Tensor) -> Estimate:
    """The median, and half the distance between the order statistics one standard error of rank to both sides."""
    v, n = values.sort().values, len(values)
    middle, step = (n - 1) / 2, math.sqrt(n) / 2
    at = torch.tensor([middle - step, middle, middle + step]).clamp(0, n - 1)
    low, value, high = torch.lerp(v[at.floor().long()], v[at.ceil().long()], (at % 1).to(v)).tolist()
    return Estimate(value, (high - low) / 2)


def _quotient(a: Estimate, b: Estimate) -> Estimate:
    """a/b of independent estimates, by the delta method; ± infinity where b is 0."""
    if b.value == 0:
        return Estimate(1.0 if a.value == 0 else math.inf, math.inf)
    value = a.value / b.value
    return Estimate(value, math.hypot(a.stderr, value * b.stderr) / b.value)
