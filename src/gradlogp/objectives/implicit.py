"""Score matching by integration by parts: implicit, sliced, and by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradlogp._shapes import Batch, Rows, as_count, as_positive, dot, per_row, squared_norm
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel, linearise
from gradlogp.models.jacobian import units
from gradlogp.objectives.projections import Projection, rademacher


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
        self.step = as_positive(step, "step")
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
    for j, unit in units(psi):
        total = total + jacobian_transposed_times(unit).flatten(1)[:, j]
    return total


def _linearise(model: ScoreModel, x_t: Batch, kernel: Kernel) -> tuple[Batch, Callable[[Tensor], Tensor]]:
    """ψ(x_t) and v -> (∇ψ)ᵀv, differentiable again where gradients are on."""
    name = f"{type(model).__name__}.score"
    return linearise(model.score, x_t, kernel, again=torch.is_grad_enabled(), name=name)
