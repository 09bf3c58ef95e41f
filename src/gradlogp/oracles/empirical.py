"""The data set convolved with a kernel: the optimum of denoising score matching over those data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradlogp._shapes import Batch, Rows, as_batch, as_count, event_size, per_row, same_event
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import GaussianReference
from gradlogp.oracles.base import Oracle, WeightedPoints, by_chunks


class Empirical(Oracle):
    """p = (1/N) Σ_i δ(x − x_i): p_σ(x_t) = (1/N) Σ_i k(x_t | x_i), for any kernel (Parzen 1962).

    Its score is the minimiser of J_DSM over the data set; with a Gaussian kernel E[x | x_t] is softmax attention over
    the data, softmax_i(−‖x_t − alpha·x_i‖²/(2 sigma²))·x_i. Squared distances are differences squared, never expanded,
    so digits are kept at small sigma.

    Args:
        data: ``(N, *event)``, finite.
    """

    data: Tensor

    def __init__(self, data: Batch) -> None:
        super().__init__()
        self.register_buffer("data", as_batch(data, "data"))
        self.event_shape = tuple(data.shape[1:])

    @property
    def reference(self) -> GaussianReference | None:
        """The Gaussian with the data's mean and covariance; None where they do not vary."""
        varies = len(self.data) > 1 and bool((self.data != self.data[:1]).any())
        return GaussianReference.of_data(self.data) if varies else None

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Batch:
        """Rows of the data, drawn with replacement."""
        device = self.data.device
        return self.data[torch.randint(len(self.data), (as_count(n),), generator=generator, device=device)]

    def log_prob(self, x_t: Batch, kernel: Kernel) -> Rows:
        """Log p_σ(x_t) = logsumexp_i log k(x_t | x_i) − log N."""

        def f(x_t: Tensor, kernel: Kernel) -> Tensor:
            if not isinstance(kernel, Gaussian):
                return self._points(x_t, kernel).log_prob()
            log_z = 0.5 * math.log(2 * math.pi) + kernel.sigma.double().log()
            return torch.logsumexp(self._logits(x_t, kernel), 1) - math.log(len(self.data)) - x_t[0].numel() * log_z

        return self._over_rows(f, x_t, kernel)

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """∇log p_σ(x_t) = Σ_i w_i ∇log k(x_t | x_i), w the posterior of the rows."""

        def f(x_t: Tensor, kernel: Kernel) -> Tensor:
            if not isinstance(kernel, Gaussian):
                return self._points(x_t, kernel).score().reshape(x_t.shape)
            return (per_row(kernel.alpha, x_t) * self._mean(x_t, kernel) - x_t) / per_row(kernel.sigma, x_t) ** 2

        return self._over_rows(f, x_t, kernel)

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """E[x | x_t] = Σ_i w_i x_i, for any kernel."""

        def f(x_t: Tensor, kernel: Kernel) -> Tensor:
            if not isinstance(kernel, Gaussian):
                return self._points(x_t, kernel).mean().reshape(x_t.shape)
            return self._mean(x_t, kernel)

        return self._over_rows(f, x_t, kernel)

    def _over_rows(self, f, x_t: Batch, kernel: Kernel) -> Tensor:  # type: ignore[no-untyped-def]
        same_event(x_t, self.event_shape, "x_t")
        numbers = len(self.data) * (2 if isinstance(kernel, Gaussian) else event_size(self.event_shape))
        return by_chunks(f, x_t, kernel, numbers)

    def _points(self, x_t: Tensor, kernel: Kernel) -> WeightedPoints:
        log_weights = torch.full((len(self.data),), -math.log(len(self.data)), dtype=x_t.dtype, device=x_t.device)
        return WeightedPoints(x_t, self.data.double(), log_weights, kernel)

    def _logits(self, x_t: Tensor, kernel: Gaussian) -> Tensor:
        """−‖x_t − alpha·x_i‖²/(2 sigma²), ``(B, N)``."""
        alpha, sigma = (v.double().reshape(-1, 1) for v in (kernel.alpha, kernel.sigma))
        rows, data = x_t.flatten(1), self.data.flatten(1).double()
        if bool((alpha == alpha[0]).all()):
            squared = _squared_distances(rows, alpha[0] * data)
        else:
            squared = torch.cat([_squared_distances(r[None], a * data) for r, a in zip(rows, alpha, strict=True)])
        return -squared / (2 * sigma**2)

    def _mean(self, x_t: Tensor, kernel: Gaussian) -> Tensor:
        weights = torch.softmax(self._logits(x_t, kernel), dim=1)
        return (weights @ self.data.flatten(1).double()).reshape(x_t.shape)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖² by differences; differentiable at zero distance."""
    if a.requires_grad:
        return torch.stack([(a - row).square().sum(1) for row in b], dim=1)
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
