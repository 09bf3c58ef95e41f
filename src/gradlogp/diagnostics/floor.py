"""The floor −C = min_ψ J_DSM(ψ): the denoising loss of a perfect model."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy  # whose parts are imported when first used
import torch

from gradlogp._shapes import InputError, as_count, squared_norm
from gradlogp.diagnostics.estimates import Estimate
from gradlogp.diagnostics.ladder import as_kernels
from gradlogp.kernels import Kernel
from gradlogp.models import GaussianReference, gaussian_form
from gradlogp.oracles import Empirical, GaussianMixture, Oracle, Quadrature

_RTOL = 1e-10
_REACH = 12.0  # standard deviations of a component that are integrated over: 1e-32 of it is left out
_MAX_SUBDIVISIONS = 2000
_N_DRAWS = 8193


def floor(oracle: Oracle, kernel: Kernel, *, n: int = 20_000, generator: torch.Generator | None = None) -> Estimate:
    """The floor −C = ½E tr Cov(t | x_t) = ½I(q) − ½E‖∇log p_σ‖², the loss of a perfect model.

    A Gaussian's is the closed form ½ tr[K⁻¹ − (alpha²Σ + K)⁻¹]; that of a mixture in one or two dimensions, and of a
    density on the line, is an adaptive cubature with its error; any other is the mean over n draws, with its standard
    error: of the posterior variance of the target for a data set, otherwise of ½‖t − ∇log p_σ‖².

    Args:
        oracle: the law of the data.
        kernel: the convolution; one level.
        n: draws, where there is no quadrature.
        generator: source of the draws; None is a fixed seed.

    Returns:
        The floor in 1/(data unit)², the unit of the loss; its ``stderr`` is the numerical error of a closed form or a
        quadrature.

    Raises:
        InputError: a kernel with a level for each row.
    """
    if not isinstance(oracle, Oracle):
        raise InputError(f"floor: got {type(oracle).__name__}, want an oracle; rows become one by oracles.Empirical")
    (kernel,) = as_kernels([kernel])
    if isinstance(oracle, GaussianMixture) and len(oracle.means) == 1:
        if not bool(oracle.variances.any()):  # a point mass
            return Estimate(0.0, 0.0)
        value = gaussian_floor(GaussianReference.of_moments(oracle.mean, oracle.covariance), kernel)
        return Estimate(value, 1e-14 * value)
    if _has_cubature(oracle):
        return _by_cubature(oracle, kernel)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return _by_draws(oracle, kernel, as_count(n), generator)


def knows_floor(oracle: Oracle) -> bool:
    """Whether the floor is a closed form or an integral over the line: quick, and exact."""
    single = isinstance(oracle, GaussianMixture) and len(oracle.means) == 1
    return single or (_has_cubature(oracle) and oracle.event_shape == (1,))


def gaussian_floor(reference: GaussianReference, kernel: Kernel) -> float:
    """½ tr[K⁻¹ − (alpha²Σ + K)⁻¹] = ½ tr[K⁻¹ alpha²Σ (alpha²Σ + K)⁻¹], with no cancellation.

    For any data with covariance Σ it is an upper bound of the floor, the loss of the best affine score.

    Raises:
        InputError: a kernel that is not Gaussian.
    """
    form = gaussian_form(kernel, reference.mean[None], "gaussian_floor")
    alpha2, values = form.alpha.double() ** 2, reference.eigenvalues.double()
    if form.kind == "isotropic":
        k = form.covariance.double()
        return float(0.5 * (alpha2 * values / (k * (alpha2 * values + k))).sum())
    v, k = reference.eigenvectors.double(), form.covariance.double()
    k = torch.diag(k) if form.kind == "diagonal" else k
    signal = alpha2 * (v * values) @ v.T
    return float(0.5 * torch.linalg.solve(k, signal @ torch.linalg.inv(signal + k)).trace())


def _has_cubature(oracle: Oracle) -> bool:
    """Whether an integral over the noisy data is quick: a mixture in one or two dimensions, or a law on the line."""
    return isinstance(oracle, Quadrature) or (isinstance(oracle, GaussianMixture) and oracle.means.shape[1] <= 2)


def _by_cubature(oracle: Oracle, kernel: Kernel) -> Estimate:
    event = oracle.event_shape
    half = 0.5 * float(kernel.fisher_information(event))
    half_error = 0.5 * float(kernel.fisher_information_error(event))

    centre, unit = _on_the_line(oracle, kernel) if isinstance(oracle, Quadrature) else (0.0, 1.0)

    def integrand(u: np.ndarray) -> np.ndarray:
        x_t = torch.from_numpy(centre + unit * u).reshape(-1, *event)
        density, score = oracle.log_prob(x_t, kernel).exp(), oracle.score(x_t, kernel)
        values: torch.Tensor = unit * density * squared_norm(score)
        return np.asarray(values.nan_to_num(0.0, 0.0, 0.0))

    total, error = _integral(integrand, *_limits(oracle, kernel))
    return Estimate(max(0.0, half - 0.5 * total), math.hypot(0.5 * error, half_error))


def _on_the_line(oracle: Quadrature, kernel: Kernel) -> tuple[float, float]:
    """The median and half the distance of the quartiles of noisy draws: where to integrate, and in what unit."""
    generator = torch.Generator().manual_seed(0)
    x_t = kernel.sample(oracle.sample(_N_DRAWS, generator=generator).double(), generator=generator)
    low, middle, high = x_t.flatten().quantile(torch.tensor([0.25, 0.5, 0.75]).to(x_t)).tolist()
    return middle, (high - low) / 2


def _limits(oracle: Oracle, kernel: Kernel) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The box to integrate over, and where to look first."""
    if not isinstance(oracle, GaussianMixture):
        return np.array([-np.inf]), np.array([np.inf]), []
    form = gaussian_form(kernel, oracle.means[:1].reshape(1, *oracle.event_shape), "floor")
    alpha, k = float(form.alpha), form.covariance.double()
    spread = (k.max() if form.kind != "full" else torch.linalg.eigvalsh(k)[-1]) + alpha**2 * oracle.variances.max(
        1
    ).values
    centres = (alpha * oracle.means + form.shift.double().reshape(-1)).numpy()
    reach = _REACH * spread.sqrt().numpy()[:, None]
    return (centres - reach).min(0), (centres + reach).max(0), list(centres)


def _integral(
    f: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, points: list[np.ndarray]
) -> tuple[float, float]:
    sizes = {"rtol": _RTOL, "atol": 0.0, "max_subdivisions": _MAX_SUBDIVISIONS}
    found = scipy.integrate.cubature(f, low, high, points=points or None, **sizes)
    return float(found.estimate), float(found.error)


def _by_draws(oracle: Oracle, kernel: Kernel, n: int, generator: torch.Generator) -> Estimate:
    x = oracle.sample(n, generator=generator).double()
    x_t = kernel.sample(x, generator=generator)
    if isinstance(oracle, Empirical):
        return Estimate.mean_of(oracle.half_target_variance(x_t, kernel))
    target = kernel.score(x_t, x)
    return Estimate.mean_of(0.5 * squared_norm(target - oracle.score(x_t, kernel)))
