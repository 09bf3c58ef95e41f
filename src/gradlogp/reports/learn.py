"""What the demonstration learns: digits, and a density that is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from gradlogp.audit.words import shown as shown
from gradlogp.diagnostics import Estimate
from gradlogp.estimators import ScoreDensity
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import ScoreFunction, ScoreModel
from gradlogp.objectives import ExplicitScoreMatching
from gradlogp.oracles import GaussianMixture
from gradlogp.training import Record

Array = NDArray[np.float64]

STRIP_SIGMAS = (0.3, 0.6, 1.0, 1.5)
FIELD_SIGMA = 0.3
FIELD_ROWS, FIELD_DRAWS = 10_000, 4_000
N_SHOWN, N_NEAREST = 128, 20


@dataclass(frozen=True)
class Denoising:
    """Root mean square error of a pixel over the held-out digits, at one noise level.

    Attributes:
        sigma: standard deviation of the noise, in the data's unit (−1 to 1 from paper to ink).
        learnt: error of the learnt denoiser.
        linear: error of the best linear filter, the Gaussian with the data's mean and covariance.
        noisy, denoised: the digits of the strip.
    """

    sigma: float
    learnt: Estimate
    linear: Estimate
    noisy: Array
    denoised: Array


@dataclass(frozen=True)
class Digits:
    """The learnt digits, and what is shown and measured of them.

    Attributes:
        est: the fitted model.
        held_out: rows that it has not seen.
        samples: rows drawn from it.
        nearest: the training rows nearest to the first samples.
        to_samples, to_held_out: mean distance to the nearest training row.
        strip: one held-out digit of each class.
        denoising: their denoising, one a noise level.
    """

    est: ScoreDensity
    held_out: Array
    samples: Array
    nearest: Array
    to_samples: Estimate
    to_held_out: Estimate
    strip: Array
    denoising: tuple[Denoising, ...]

    @property
    def best(self) -> Record:
        """The look with the smallest held-out loss."""
        best: Record = min(self.est.history_, key=lambda r: r.held_out)
        return best


@dataclass(frozen=True)
class Field:
    """A learnt score in two dimensions beside the exact one.

    Attributes:
        est: the fitted model.
        exact: the density that the rows were drawn from.
        error: ½E‖ψ − s‖² / ½E‖s‖² at ``FIELD_SIGMA``, over fresh noisy draws.
    """

    est: ScoreDensity
    exact: GaussianMixture
    error: Estimate


def learn_digits(seed: int, seconds: float, *, verbose: bool = False) -> Digits:
    """Fit four fifths of scikit-learn's digits, scaled to −1 … 1, and measure the fit on the rest."""
    data = load_digits()
    train, held_out, _, label = train_test_split(data.data / 8 - 1, data.target, test_size=0.2, random_state=0)
    est = ScoreDensity(width=128, random_state=seed, max_seconds=seconds, verbose=verbose).fit(train)
    samples = est.sample(N_SHOWN)
    near, to_samples = nearest(samples, train)
    _, to_held_out = nearest(held_out, train)
    rng = np.random.default_rng(seed)
    strip = np.array([np.flatnonzero(label == c)[0] for c in range(10)])
    denoising = tuple(_denoising(est, held_out, strip, sigma, rng) for sigma in STRIP_SIGMAS)
    return Digits(
        est, held_out, samples, train[near[:N_NEAREST]],
        _mean(to_samples), _mean(to_held_out), held_out[strip], denoising,
    )  # fmt: skip


def nearest(rows: Array, train: Array) -> tuple[NDArray[np.int64], Array]:
    """Index of, and distance to, the nearest training row."""
    distance = torch.cdist(torch.from_numpy(rows), torch.from_numpy(train)).min(1)
    return distance.indices.numpy(), distance.values.numpy()


def _denoising(
    est: ScoreDensity, rows: Array, shown: NDArray[Any], sigma: float, rng: np.random.Generator
) -> Denoising:
    noisy = rows + sigma * rng.standard_normal(rows.shape)
    denoised = est.denoise(noisy, sigma)
    with torch.no_grad():
        linear = est.model_.reference.denoise(est.units_.to_model(noisy), Gaussian(sigma))
    learnt_error, linear_error = (root_mean_square(d - rows) for d in (denoised, est.units_.from_model(linear)))
    return Denoising(sigma, learnt_error, linear_error, noisy[shown], denoised[shown])


def root_mean_square(difference: Array) -> Estimate:
    """√(mean square) with its standard error over rows, by the delta method."""
    mean = _mean((difference**2).mean(1))
    root = math.sqrt(mean.value)
    return Estimate(root, mean.stderr / (2 * root))


def _mean(values: Array) -> Estimate:
    return Estimate.mean_of(torch.from_numpy(values))


def spiral() -> GaussianMixture:
    """Two arms of twelve Gaussians each along a spiral, one arm twice as heavy: its density and score are known."""
    t = np.linspace(0, 1, 12)
    angle, radius = math.pi * (0.6 + 1.5 * t), 0.6 + 1.9 * t
    arm = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    step = np.gradient(arm, axis=0)
    length = np.linalg.norm(step, axis=1)
    along = step / length[:, None]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    covariance = sum(
        np.asarray(s)[..., None, None] ** 2 * v[:, :, None] * v[:, None]
        for s, v in ((0.55 * length, along), (0.12, across))
    )
    weights, means = np.concatenate([2 * length, length]), np.concatenate([arm, -arm])
    covariances = torch.from_numpy(np.concatenate([covariance, covariance]))
    return GaussianMixture(torch.from_numpy(weights), torch.from_numpy(means).float(), covariances)


def learn_field(seed: int, seconds: float, *, verbose: bool = False) -> Field:
    """Fit draws of the spiral and measure the error of the learnt score against the exact one."""
    exact = spiral()
    generator = torch.Generator().manual_seed(seed)
    rows = exact.sample(FIELD_ROWS, generator=generator).numpy()
    est = ScoreDensity(random_state=seed, max_seconds=seconds, standardize=False, verbose=verbose).fit(rows)
    x = exact.sample(FIELD_DRAWS, generator=generator)
    return Field(est, exact, relative_error(as_model(est), exact, x, Gaussian(FIELD_SIGMA), seed))


def relative_error(model: ScoreModel, exact: GaussianMixture, x: Tensor, kernel: Kernel, seed: int) -> Estimate:
    """r = ½E‖ψ − s‖² / ½E‖s‖² on the same draws; standard error of the ratio by the delta method."""
    loss = ExplicitScoreMatching(exact)
    zero = ScoreFunction(lambda x_t, _: torch.zeros_like(x_t))
    error, size = (
        loss(m, x, kernel, generator=torch.Generator().manual_seed(seed + 1)).double() for m in (model, zero)
    )
    ratio = error.mean() / size.mean()
    residual = Estimate.mean_of(error - ratio * size)
    return Estimate(ratio.item(), residual.stderr / size.mean().item())


def as_model(est: ScoreDensity) -> ScoreModel:
    """The estimator's score as a model, in the data's units."""
    return ScoreFunction(lambda x_t, kernel: torch.from_numpy(est.grad_log_prob(x_t.numpy(), kernel.sigma.item())))


def held_out_of(record: Record) -> Estimate:
    """The held-out loss of a record, with its standard error."""
    return Estimate(record.held_out, record.held_out_stderr)
