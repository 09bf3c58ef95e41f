"""The Gaussian kernel."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from gradlogp._shapes import (
    Batch,
    InputError,
    Level,
    Rows,
    as_level,
    at_rows,
    event_size,
    per_row,
    require_batch,
    same_batch,
    squared_norm,
)
from gradlogp.kernels.base import GaussianForm, Kernel


class Gaussian(Kernel):
    """x_t = alpha·x + sigma·z, z ~ N(0, I): the kernel k(x_t | x) = N(x_t; alpha·x, sigma² I).

    Args:
        sigma: standard deviation of the noise, in the data's unit; a number or one a row, ``(B,)``; > 0.
        alpha: factor of the clean data; a number or one a row, ``(B,)``; >= 0.

    Raises:
        InputError: a sigma that is not finite and positive, or an alpha that is not finite and non-negative.

    Reference: Vincent (2011), "A connection between score matching and denoising autoencoders", section 4.
    """

    symmetric = True

    def __init__(self, sigma: float | Tensor, alpha: float | Tensor = 1.0) -> None:
        self.sigma = as_level(sigma, "sigma")
        self.alpha = as_level(alpha, "alpha", positive=False)

    def __repr__(self) -> str:
        def show(v: Tensor) -> str:
            return (
                f"{v.item():g}" if v.numel() == 1 else f"<{v.numel()} values, {v.min().item():g} to {v.max().item():g}>"
            )

        alpha = "" if bool((self.alpha == 1).all()) else f", alpha={show(self.alpha)}"
        return f"Gaussian(sigma={show(self.sigma)}{alpha})"

    def sample(self, x: Batch, *, generator: torch.Generator | None = None) -> Batch:
        """x_t = alpha·x + sigma·z."""
        require_batch(x)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return per_row(self.alpha, x) * x + per_row(self.sigma, x) * z

    def log_prob(self, x_t: Batch, x: Batch) -> Rows:
        """log k(x_t | x) = −‖x_t − alpha·x‖²/(2 sigma²) − D log(sigma √(2π)), ``(B,)``, in nats."""
        same_batch(x_t, x)
        r = (x_t - per_row(self.alpha, x) * x) / per_row(self.sigma, x)
        log_z = event_size(tuple(x.shape[1:])) * (self.sigma.log() + 0.5 * math.log(2 * math.pi))
        return -0.5 * squared_norm(r) - log_z.to(x)

    def score(self, x_t: Batch, x: Batch) -> Batch:
        """∇_{x_t} log k(x_t | x) = (alpha·x − x_t)/sigma²."""
        same_batch(x_t, x)
        return (per_row(self.alpha, x) * x - x_t) / per_row(self.sigma**2, x)

    def fisher_information(self, event_shape: tuple[int, ...]) -> Level:
        """I(q) = D/sigma²."""
        return event_size(event_shape) / self.sigma**2

    def fisher_information_error(self, event_shape: tuple[int, ...]) -> Level:  # noqa: ARG002
        """0: the closed form is exact."""
        return torch.zeros_like(self.sigma)

    def rows(self, index: Tensor) -> Gaussian:
        """The kernel of some rows of the batch; of the same class, so that a subclass stays what it is."""
        some = copy.copy(self)
        some.sigma, some.alpha = at_rows(self.sigma, index), at_rows(self.alpha, index)
        return some

    def after(self, other: Gaussian) -> Gaussian:
        """The kernel of ``other`` and then this one: alpha = alpha₂·alpha₁, sigma² = alpha₂² sigma₁² + sigma₂².

        Draws of ``k2.after(k1)`` given x have the law of ``k2.sample(k1.sample(x))``: Gaussians are closed under
        composition (Chapman–Kolmogorov).

        Args:
            other: the kernel that comes first, 1 above; its levels are scalars, or as many as this one's.

        Raises:
            InputError: the other kernel is not Gaussian, or has levels for another number of rows.

        Reference: Särkkä and Solin (2019), "Applied stochastic differential equations", chapter 6.
        """
        if not isinstance(other, Gaussian):
            raise InputError(f"after: got {other!r}, want a Gaussian kernel")
        same_rows("after: noise level", self.alpha, self.sigma, other.alpha, other.sigma)
        return Gaussian(torch.hypot(self.alpha * other.sigma, self.sigma), self.alpha * other.alpha)

    def gaussian_form(self, event_shape: tuple[int, ...]) -> GaussianForm:  # noqa: ARG002
        """alpha, no shift, K = sigma² I."""
        return GaussianForm(self.alpha, torch.zeros(()), self.sigma**2, "isotropic")


def same_rows(name: str, *levels: Level) -> None:
    """Check that levels are scalars, or as many as each other."""
    counts = sorted({len(level) for level in levels if level.ndim})
    if len(counts) > 1:
        raise InputError(f"{name}: got {counts[0]} and {counts[1]} values, want one value or one a row")
