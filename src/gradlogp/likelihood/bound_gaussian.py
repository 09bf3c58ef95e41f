"""A Gaussian seen through noise: what the bound of its own score is, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gradlogp._shapes import Batch, Rows, event_size, per_row, squared_norm
from gradlogp.kernels import Gaussian
from gradlogp.models import GaussianReference


class Normal:
    """N(μ, Σ), Σ = VΛVᵀ of any rank, in float64; with r = x − μ and c = Vᵀr.

    V is brought from its own dtype's orthonormality to that of float64 by one step of Newton and Schulz,
    V(3 − VᵀV)/2, so that sums over eigen-directions are exact.

    Args:
        mean: μ, ``(D,)``.
        variance: Λ > 0 of the directions in which it varies, ``(R,)``.
        basis: V, ``(D, R)``.
    """

    def __init__(self, mean: Tensor, variance: Tensor, basis: Tensor) -> None:
        v = basis.double()
        self.mean, self.variance = mean.double(), variance.double()
        self.basis = 1.5 * v - 0.5 * v @ (v.T @ v)

    @classmethod
    def of(cls, reference: GaussianReference, x: Batch) -> Normal:
        """A reference's Gaussian, on the device of x."""
        parts = reference.mean.flatten(), reference.eigenvalues, reference.eigenvectors
        return cls(*(v.detach().to(x.device) for v in parts))

    @classmethod
    def at_origin(cls, x: Batch) -> Normal:
        """All mass at zero: seen through noise, N(0, sigma² I)."""
        d = event_size(tuple(x.shape[1:]))
        return cls(*(torch.zeros(shape, device=x.device) for shape in ((d,), (0,), (d, 0))))

    @property
    def n_still(self) -> int:
        """D − R: how many directions it does not vary in."""
        return len(self.mean) - len(self.variance)

    def cross_entropy(self, x: Batch, ratio: float) -> Rows:
        """E[−log N(y; μ, Σ + s² I)] in nats, y ~ N(x, s² I): ½ Σ_i log 2π(λ_i + s²) + (c_i² + s²)/(λ_i + s²)."""
        u = ratio**2
        return self._over_directions(
            x,
            lambda v: 0.5 / (v + u),
            lambda v: 0.5 * ((2 * math.pi * (v + u)).log() + u / (v + u)),
        )

    def log_prob(self, y: Batch, ratio: float) -> Rows:
        """Log N(y; μ, Σ + s² I), in nats."""
        u = ratio**2
        return -self._over_directions(y, lambda v: 0.5 / (v + u), lambda v: 0.5 * (2 * math.pi * (v + u)).log())

    def integral(self, x: Batch, first: float, last: float) -> Rows:
        """∫ h dλ from log s_0 to log s_1, h = E[‖n‖² + 2 n·z | x] of its own score, in nats.

        h = Σ_i s² (c_i² + s²)/(λ_i + s²)² − 2 s²/(λ_i + s²), so that with w = s² and dλ = dw/2w it is
        ½ Σ_i (c_i² − λ_i)(1/(λ_i + w_0) − 1/(λ_i + w_1)) − log (λ_i + w_1)/(λ_i + w_0).
        """
        low, high = math.exp(2 * first), math.exp(2 * last)

        def fall(v: Tensor) -> Tensor:
            return 0.5 * (high - low) / ((v + low) * (v + high))

        return self._over_directions(x, fall, lambda v: -v * fall(v) - 0.5 * ((v + high) / (v + low)).log())

    def integrand(self, x: Batch, ratio: float) -> Rows:
        """The h of :meth:`integral` at one noise ratio s."""
        u = ratio**2
        return self._over_directions(x, lambda v: u / (v + u) ** 2, lambda v: (u / (v + u)) ** 2 - 2 * u / (v + u))

    def scaled_score(self, x_t: Batch, kernel: Gaussian) -> Tensor:
        """n = sigma ∇log of the law of alpha·y + sigma·z, y ~ N(μ, Σ); ``(N, D)``, alpha and sigma one a row."""
        alpha, sigma = (v.double()[:, None] for v in (kernel.alpha, kernel.sigma))
        r = x_t.flatten(1).double() - alpha * self.mean
        c = r @ self.basis
        n = -sigma * (c / (alpha**2 * self.variance + sigma**2)) @ self.basis.T
        return n if self.n_still == 0 else n - (r - c @ self.basis.T) / sigma

    def scaled_divergence(self, kernel: Gaussian) -> Rows:
        """sigma² tr ∇score = −Σ_i sigma²/(alpha² λ_i + sigma²), ``(N,)``."""
        alpha, sigma = (v.double()[:, None] for v in (kernel.alpha, kernel.sigma))
        return -(sigma**2 / (alpha**2 * self.variance + sigma**2)).sum(1) - self.n_still

    def scaled_curvature(self, v: Batch, kernel: Gaussian) -> Rows:
        """sigma² vᵀ(∇score) v of each row, ``(N,)``."""
        flat = v.flatten(1).double()
        moved = self.scaled_score(per_row(kernel.alpha, flat) * self.mean + flat, kernel)
        return kernel.sigma.double() * (moved * flat).sum(1)

    def _over_directions(
        self, x: Batch, slope: Callable[[Tensor], Tensor], constant: Callable[[Tensor], Tensor]
    ) -> Rows:
        """Σ_i slope(λ_i) c_i² + constant(λ_i) over all D directions."""
        r = x.flatten(1).double() - self.mean
        c, still = r @ self.basis, self.variance.new_zeros(())
        total = c.square() @ slope(self.variance) + constant(self.variance).sum()
        if self.n_still == 0:
            return total
        rest = squared_norm(r - c @ self.basis.T)
        return total + rest * slope(still) + self.n_still * constant(still)
