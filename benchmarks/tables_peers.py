"""Densities that tables.py compares with: each fits rows within seconds of processor time, and scores others."""

from __future__ import annotations

import copy
import itertools
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

Array = np.ndarray
LogDensity = Callable[[Array], Array]
Fit = Callable[[Array, float, int], tuple[LogDensity, str]]  # (rows, seconds, seed) -> log-density, what was chosen

VALIDATION = 0.1  # share of the training rows


def fits() -> dict[str, Fit]:
    """Name -> method."""
    return {
        "Gaussian": gaussian,
        "Gaussian mixture": mixture,
        "kernel density": kernel_density,
        "neural spline flow": spline_flow,
    }


class Clock:
    """Seconds of processor time since it was made."""

    def __init__(self) -> None:
        self._start = time.process_time()

    @property
    def seconds(self) -> float:
        """So far."""
        return time.process_time() - self._start


def split(x: Array, share: float, seed: int) -> tuple[Array, Array]:
    """Rows at random: the rest, and a share of them."""
    order = np.random.default_rng(seed).permutation(len(x))
    n = round(share * len(x))
    return x[order[n:]], x[order[:n]]


# Gaussian


def gaussian(x: Array, seconds: float, seed: int) -> tuple[LogDensity, str]:  # noqa: ARG001
    """Maximum likelihood, full covariance."""
    mean, covariance = x.mean(0), np.cov(x.T, bias=True)
    root = np.linalg.cholesky(covariance)
    constant = -0.5 * x.shape[1] * math.log(2 * math.pi) - np.log(np.diag(root)).sum()
    return lambda y: constant - 0.5 * np.square(np.linalg.solve(root, (y - mean).T)).sum(0), "full covariance"


# Gaussian mixture

COMPONENTS = (1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 90, 128, 180, 256)
FLOORS = (1e-6, 1e-4, 1e-3, 1e-2, 3e-2)
KINDS = ("full", "diag")


def mixture(x: Array, seconds: float, seed: int) -> tuple[LogDensity, str]:
    """sklearn's; components, reg_covar and covariance type by a fifth of the rows, then fitted on all of them."""
    clock, (fitting, held_out) = Clock(), split(x, 2 * VALIDATION, seed)
    best: tuple[float, dict[str, Any]] = (-math.inf, {})
    tried, complete = 0, True
    for k, kind, floor in itertools.product(COMPONENTS, KINDS, FLOORS):
        if clock.seconds > 0.75 * seconds:
            complete = False
            break
        if 2 * k > len(fitting):
            continue
        options = {"n_components": k, "covariance_type": kind, "reg_covar": floor}
        value = _fitted(fitting, options, seed).score(held_out)
        tried += 1
        best = max(best, (value, options), key=lambda pair: pair[0])
    final = _fitted(x, best[1], seed)
    chosen = ", ".join(f"{name} {value}" for name, value in best[1].items())
    return final.score_samples, f"{chosen}; {tried} tried{'' if complete else ', time over'}"


def _fitted(x: Array, options: dict[str, Any], seed: int) -> GaussianMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianMixture(**options, max_iter=300, random_state=seed).fit(x)


# kernel density

BANDWIDTHS = np.geomspace(1.28, 0.01, 15)  # wide ones first: narrow ones are chosen by repeated rows alone


def kernel_density(x: Array, seconds: float, seed: int) -> tuple[LogDensity, str]:  # noqa: ARG001
    """Gaussian kernels, isotropic or with the rows' covariance; bandwidth and kind by leave-one-out likelihood."""
    clock, n = Clock(), len(x)
    best, complete = (-math.inf, 0.0, ""), True
    for kind, (y, constant) in _kinds(x).items():
        best_of_kind = (-math.inf, 1.0, kind)
        for near in (BANDWIDTHS, np.geomspace(0.5, 2.0, 9)[1:-1]):  # then between its neighbours
            if clock.seconds > 0.6 * seconds:
                complete = False
                break
            tried = best_of_kind[1] * near
            values = (_log_kernel_sums(y, y, tried, skip_itself=True) - math.log(n - 1)).mean(1) + constant
            best_of_kind = max(best_of_kind, *((float(v), float(h), kind) for v, h in zip(values, tried, strict=True)))
        best = max(best, best_of_kind)
    _, h, kind = best
    y, constant = _kinds(x)[kind]
    to_y = np.linalg.lstsq(x - x.mean(0), y, rcond=None)[0]

    def log_density(rows: Array) -> Array:
        return _log_kernel_sums((rows - x.mean(0)) @ to_y, y, np.array([h]))[0] - math.log(n) + constant

    return log_density, f"{kind}, bandwidth {h:.3g}{'' if complete else ', time over'}"


def _kinds(x: Array) -> dict[str, tuple[Array, float]]:
    """Rows in the coordinates in which the kernel is isotropic, and log |det| of the map to them."""
    centred = x - x.mean(0)
    inverse = np.linalg.inv(np.linalg.cholesky(np.cov(x.T, bias=True)))
    return {
        "isotropic": (centred, 0.0),
        "with the covariance": (centred @ inverse.T, float(np.log(np.diag(inverse)).sum())),
    }


def _log_kernel_sums(a: Array, b: Array, bandwidths: Array, *, skip_itself: bool = False) -> Array:
    """Log Σ_j N(a_i; b_j, h²), a row a bandwidth h."""
    parts, b = [], torch.from_numpy(b)
    for i, rows in enumerate(torch.from_numpy(a).split(256)):
        squares = torch.cdist(rows, b, compute_mode="donot_use_mm_for_euclid_dist").square_()
        if skip_itself:
            squares[torch.arange(len(rows)), 256 * i + torch.arange(len(rows))] = math.inf
        nearest = squares.amin(1, keepdim=True)  # of the exponents the largest, for every h
        beyond = squares - nearest
        sums = [torch.exp(beyond * (-0.5 / h**2)).sum(1).log() - 0.5 / h**2 * nearest[:, 0] for h in bandwidths]
        parts.append(torch.stack(sums))
    scales = np.log(bandwidths) + 0.5 * math.log(2 * math.pi)
    return torch.cat(parts, 1).numpy() - b.shape[1] * scales[:, None]


# neural spline flow

SIZES: tuple[dict[str, Any], ...] = (
    {"transforms": 2, "hidden_features": (32, 32)},
    {"transforms": 3, "hidden_features": (64, 64)},
    {"transforms": 5, "hidden_features": (128, 128)},
)


def spline_flow(x: Array, seconds: float, seed: int) -> tuple[LogDensity, str]:
    """The density of :func:`trained_flow`."""
    best = trained_flow(x, seconds, seed)

    def log_density(rows: Array) -> Array:
        with torch.no_grad():
            return best.flow().log_prob(torch.from_numpy(rows).float()).double().numpy()

    end = "stopped early" if best.done else "time over"
    return log_density, f"{best.size}, {best.epochs} epochs, {end}, held out {-best.best:.3f}"


def trained_flow(x: Array, seconds: float, seed: int) -> _Run:
    """zuko's, 8 bins, Adam from 1e-3; three sizes get a sixth of the time each, and the best the rest of it."""
    clock, (fitting, held_out) = Clock(), split(x, VALIDATION, seed)
    tensors = [torch.from_numpy(rows).float() for rows in (fitting, held_out)]
    runs = [_Run(size, *tensors, seed) for size in SIZES]
    for i, run in enumerate(runs):
        run.train(clock, (i + 1) * seconds / 6)
    best = min(runs, key=lambda run: run.best)
    best.train(clock, 0.97 * seconds)
    best.flow.load_state_dict(best.state)
    return best


class _Run:
    """Adam; after 12 epochs without a better held-out loss, back to the best and on at a third of the rate; 4 times."""

    def __init__(self, size: dict[str, Any], rows: torch.Tensor, held_out: torch.Tensor, seed: int) -> None:
        import zuko

        torch.manual_seed(seed)
        self.size, self.rows, self.held_out = size, rows, held_out
        self.flow = zuko.flows.NSF(rows.shape[1], **size)
        self.optimizer = torch.optim.Adam(self.flow.parameters(), lr=1e-3)
        self.best, self.state, self.epochs, self.since = math.inf, copy.deepcopy(self.flow.state_dict()), 0, 0

    @property
    def done(self) -> bool:
        return self.optimizer.param_groups[0]["lr"] < 1e-3 / 3**4.5

    def train(self, clock: Clock, until: float) -> None:
        while clock.seconds < until and not self.done:
            self._epoch()

    def _epoch(self) -> None:
        for batch in self.rows[torch.randperm(len(self.rows))].split(256):
            self.optimizer.zero_grad()
            loss = -self.flow().log_prob(batch).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.flow.parameters(), 5.0)
            self.optimizer.step()
        with torch.no_grad():
            loss = -self.flow().log_prob(self.held_out).mean().item()
        self.epochs, self.since = self.epochs + 1, self.since + 1
        if loss < self.best:
            self.best, self.since, self.state = loss, 0, copy.deepcopy(self.flow.state_dict())
        elif self.since >= 12:
            self.flow.load_state_dict(self.state)
            self.optimizer.param_groups[0]["lr"] /= 3
            self.since = 0
