"""Objectives of score matching: ``objective(model, x, kernel, generator=g) -> (B,)``, a loss for each clean row x.

Each draws x_t ~ k(· | x) itself; each carries the ½ and sums over the event, so that for every model ψ

    J_DSM = J_ESM − C = J_ISM + ½ I(q),      J_ISM = J_SSM in expectation.

Sources: ESM and ISM, Hyvärinen (2005); DSM, Vincent (2011); sliced, Song, Garg, Shi and Ermon (2019);
finite-difference, Pang et al. (2020).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows, as_count, dot, event_size, per_row, require_batch, squared_norm
from gradlogp.kernels import Kernel
from gradlogp.kernels.base import require_levels
from gradlogp.models import ScoreModel

Projection = Callable[[Batch, torch.Generator | None], Batch]


@runtime_checkable
class Objective(Protocol):
    """A loss for each row."""

    def __call__(self, model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None = None) -> Rows:
        """Loss of each clean row, ``(B,)``."""
        ...


def rademacher(x: Batch, generator: torch.Generator | None = None) -> Batch:
    """Coordinates ±1: E[v vᵀ] = I. No variance from the diagonal of the Jacobian."""
    return torch.randint(0, 2, x.shape, generator=generator, device=x.device).to(x) * 2 - 1


def gaussian(x: Batch, generator: torch.Generator | None = None) -> Batch:
    """v ~ N(0, I)."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def sphere(x: Batch, generator: torch.Generator | None = None) -> Batch:
    """v uniform on the sphere of radius √d, so that E[v vᵀ] = I (a unit sphere would give J_ISM/d)."""
    v = gaussian(x, generator)
    return v * per_row((event_size(tuple(x.shape[1:])) / squared_norm(v)).sqrt(), v)


class ExplicitScoreMatching:
    """½‖ψ(x_t) − ∇log p_σ(x_t)‖² against an oracle's score (Hyvärinen 2005, equation 2).

    Args:
        oracle: the exact model of the data.
    """

    def __init__(self, oracle: ScoreModel) -> None:
        self.oracle = oracle

    def __call__(self, model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None = None) -> Rows:
        """The loss of each row, ``(B,)``."""
        x_t = kernel.sample(x, generator=generator)
        return 0.5 * squared_norm(model.score(x_t, kernel) - self.oracle.score(x_t, kernel))


class DenoisingScoreMatching:
    """½‖ψ(x_t) − ∇log k(x_t | x)‖², x_t ~ k(· | x) (Vincent 2011, equation 9): needs samples only.

    Args:
        n_noise: draws of noise for each datum; the loss of a row is their mean.
        antithetic: draw n and −n in pairs; ``n_noise`` is then even, and the noise symmetric.

    Raises:
        InputError: ``n_noise`` < 1, or odd with ``antithetic``.
    """

    def __init__(self, n_noise: int = 1, *, antithetic: bool = False) -> None:
        self.n_noise = as_count(n_noise, "n_noise")
        if antithetic and n_noise % 2:
            raise InputError(f"n_noise: got {n_noise}, want an even number >= 2 for antithetic pairs")
        self.antithetic = antithetic

    def __call__(self, model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None = None) -> Rows:
        """The loss of each row, ``(B,)``."""
        x, kernel = _repeat(x, kernel, self.n_noise // 2 if self.antithetic else self.n_noise)
        x_t = kernel.sample(x, generator=generator)
        loss = self._loss(model, x_t, x, kernel)
        if self.antithetic:
            loss = (loss + self._loss(model, kernel.reflect(x_t, x), x, kernel)) / 2
        draws = self.n_noise // 2 if self.antithetic else self.n_noise
        return loss.reshape(-1, draws).mean(1)

    @staticmethod
    def _loss(model: ScoreModel, x_t: Batch, x: Batch, kernel: Kernel) -> Rows:
        return 0.5 * squared_norm(model.score(x_t, kernel) - kernel.score(x_t, x))


class ImplicitScoreMatching:
    """½‖ψ(x_t)‖² + div ψ(x_t), the divergence exact (Hyvärinen 2005, theorem 1, at the noise level of the kernel)."""

    def __call__(self, model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None = None) -> Rows:
        """The loss of each row, ``(B,)``."""
        psi, jacobian_transposed_times = _linearise(model, kernel.sample(x, generator=generator), kernel)
        return 0.5 * squared_norm(psi) + divergence(psi, jacobian_transposed_times)


class SlicedScoreMatching:
    """½(vᵀψ)² + vᵀ∇ψ v over random directions v with E[v vᵀ] = I (Song et al. 2019, equations 7 and 8).

    Args:
        projection: the law of v: :func:`rademacher`, :func:`gaussian` or :func:`sphere`.
        variance_reduced: take ½‖ψ‖² for ½(vᵀψ)²; same expectation, less variance.
        n_projections: directions for each draw.

    Raises:
        InputError: ``n_projections`` < 1.
    """

    def __init__(
        self, projection: Projection = rademacher, *, variance_reduced: bool = True, n_projections: int = 1
    ) -> None:
        self.projection = projection
        self.variance_reduced = variance_reduced
        self.n_projections = as_count(n_projections, "n_projections")

    def __call__(self, model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None = None) -> Rows:
        """The loss of each row, ``(B,)``."""
        psi, jacobian_transposed_times = _linearise(model, kernel.sample(x, generator=generator), kernel)
        total = torch.zeros_like(psi.flatten(1)[:, 0])
        for _ in range(self.n_projections):
            v = self.projection(psi, generator)
            norm = squared_norm(psi) if self.variance_reduced else dot(v, psi) ** 2
            total = total + 0.5 * norm + dot(jacobian_transposed_times(v), v)
        return total / self.n_projections


class FiniteDifferenceScoreMatching:
    """Sliced score matching with no derivative of ψ, to O(ε²) (Pang et al. 2020, in its score form).

        ⅛(v·ψ₊ + v·ψ₋)² + (v·ψ₊ − v·ψ₋)/(2ε),    ψ± = ψ(x_t ± ε v),    E[v vᵀ] = I

    Args:
        step: ε in units of the kernel's sigma; rounding in float32 grows below about 1e-3.
        projection: the law of v.

    Raises:
        InputError: a step that is not positive.
    """

    def __init__(self, step: float = 0.02, projection: Projection = rademacher) -> None:
        if not step > 0:
            raise InputError(f"step: got {step}, want > 0")
        self.step = step
        self.projection = projection

    def __call__(self, model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None = None) -> Rows:
        """The loss of each row, ``(B,)``."""
        x_t = kernel.sample(x, generator=generator)
        v = self.projection(x_t, generator)
        eps = self.step * kernel.sigma.to(x_t)
        move = per_row(eps, x_t) * v
        plus, minus = (dot(v, model.score(x_t + s * move, kernel)) for s in (1, -1))
        return (plus + minus) ** 2 / 8 + (plus - minus) / (2 * eps)


def divergence(psi: Batch, jacobian_transposed_times: Callable[[Tensor], Tensor]) -> Rows:
    """tr ∇ψ of each row, by one product with each unit vector."""
    total = torch.zeros_like(psi.flatten(1)[:, 0])
    for j in range(psi[0].numel()):
        unit = torch.zeros_like(psi).flatten(1)
        unit[:, j] = 1
        total = total + jacobian_transposed_times(unit.reshape(psi.shape)).flatten(1)[:, j]
    return total


def _linearise(model: ScoreModel, x_t: Batch, kernel: Kernel) -> tuple[Batch, Callable[[Tensor], Tensor]]:
    """ψ(x_t) and v -> (∇ψ)ᵀv, differentiable again where gradients are on."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        psi = model.score(x_t, kernel)

    def jacobian_transposed_times(v: Tensor) -> Tensor:
        if not psi.requires_grad:
            return torch.zeros_like(psi)
        (out,) = torch.autograd.grad(
            psi, x_t, v, create_graph=create_graph, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return out

    return psi, jacobian_transposed_times


def _repeat(x: Batch, kernel: Kernel, n: int) -> tuple[Tensor, Kernel]:
    """Each row, and the kernel's level of it, n times in succession."""
    x = require_batch(x)
    require_levels(kernel, x)
    if n == 1:
        return x, kernel
    rows = torch.arange(len(x), device=x.device).repeat_interleave(n)
    return x[rows], kernel.rows(rows)
