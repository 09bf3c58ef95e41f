"""Is the score a gradient? The part of its Jacobian that is not symmetric."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradlogp._shapes import Batch, as_count, squared_norm
from gradlogp.diagnostics.estimates import Estimate
from gradlogp.diagnostics.ladder import as_kernels, as_rows, frame_of, linearise, ratio, some_rows
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel
from gradlogp.models.jacobian import gradient_of
from gradlogp.objectives import rademacher


@dataclass(frozen=True)
class CurlLevel:
    """The share at one noise level.

    Attributes:
        kernel: the convolution.
        sigma: its scale.
        value: the share of the Jacobian's squared norm that is antisymmetric, in [0, 1].
    """

    kernel: Kernel
    sigma: float
    value: Estimate


@dataclass(frozen=True)
class Curl:
    """How far a score is from a gradient field, one entry in ``levels`` a kernel."""

    levels: tuple[CurlLevel, ...]

    def __str__(self) -> str:
        return "curl: " + ", ".join(f"{level.value} at σ = {level.sigma:.3g}" for level in self.levels)

    def to_frame(self) -> Any:
        """A polars frame, one row a level."""
        return frame_of(self.levels)


def curl(
    model: ScoreModel,
    x: Batch,
    kernels: Kernel | Iterable[Kernel],
    *,
    n_projections: int = 1,
    max_rows: int = 192,
    generator: torch.Generator | None = None,
) -> Curl:
    """The share of the Jacobian J = ∇ψ that is antisymmetric, in squared norm; 0 for a gradient field.

        value = E‖½(J − Jᵀ)‖² / E‖J‖² = E_v‖(J − Jᵀ)v‖² / (2 E_v‖Jv‖² + 2 E_v‖Jᵀv‖²),    E[v vᵀ] = I

    over x_t ~ k(· | x) and signs v, ‖·‖ the Frobenius norm. A true score is the gradient of log p_σ, so its Jacobian is
    symmetric; a rotation field has 1. At small σ the Jacobian of any good score is near −I/σ², which is symmetric: the
    share is then small whatever the rest is. Jv is the derivative of Jᵀu in u, so no forward mode is needed. The
    standard error is over rows, which are taken as independent draws.

    Args:
        model: any score model ψ that autograd can follow.
        x: clean rows, ``(B, *event)``, best held out.
        kernels: one kernel or several, of any class, each with one level for all rows.
        n_projections: directions v for each row.
        max_rows: rows used at most, drawn at random.
        generator: source of the draws.

    Raises:
        InputError: x not a finite batch of 2 rows at least, kernels that are none, or a score with no gradient.
    """
    several, n = as_kernels(kernels), as_count(n_projections, "n_projections")
    rows = some_rows(as_rows(x, "x"), max_rows, generator)
    return Curl(tuple(CurlLevel(k, k.sigma.item(), _share(model, rows, k, n, generator)) for k in several))


def _share(model: ScoreModel, x: Batch, kernel: Kernel, n: int, generator: torch.Generator | None) -> Estimate:
    psi, transposed_times = linearise(model, kernel.sample(x, generator=generator), kernel, twice=True)
    odd, whole = torch.zeros(2, len(x), dtype=torch.float64, device=x.device)
    for _ in range(n):
        v = rademacher(psi, generator)
        jv, jtv = _times(psi, transposed_times, v), transposed_times(v).detach().double()
        odd = odd + squared_norm(jv - jtv)
        whole = whole + 2 * (squared_norm(jv) + squared_norm(jtv))
    return ratio(odd, whole) if bool(whole.any()) else Estimate(0.0, 0.0)


def _times(psi: Batch, transposed_times: Callable[[Tensor], Tensor], v: Batch) -> Tensor:
    """Jv, the derivative of u -> ⟨Jᵀu, v⟩, in float64."""
    with torch.enable_grad():
        u = torch.zeros_like(psi, requires_grad=True)
        pulled = transposed_times(u)
    if not pulled.requires_grad:
        return torch.zeros_like(pulled).double()
    return gradient_of(pulled, v, u).double()
