"""The integrand of the bound, by denoising or by a divergence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch, Rows, as_count, dot, event_size, per_row
from gradlogp.kernels import Gaussian
from gradlogp.likelihood.bound_gaussian import Normal
from gradlogp.models import ScoreModel, linearise


@dataclass(frozen=True)
class Draw:
    """Noisy rows at which the integrand is taken.

    Attributes:
        x_t: alpha·x + sigma·z in the model's dtype, ``(N, *event)``.
        z: (x_t − alpha·x)/sigma in float64, for the x_t that the model is shown.
        kernel: float64 levels, ``(N,)``.
        control: the Gaussian whose integrand is subtracted, or None.
        normals: more standard normal numbers like x_t, each time it is called.
    """

    x_t: Batch
    z: Batch
    kernel: Gaussian
    control: Normal | None
    normals: Callable[[], Batch]

    def controlled(self) -> Tensor:
        """n of the control, ``(N, D)``; 0 without one."""
        if self.control is None:
            return torch.zeros_like(self.z.flatten(1))
        return self.control.scaled_score(self.x_t, self.kernel)


class BoundForm(ABC):
    """An integrand per unit of λ = log(sigma/alpha) whose mean over x_t | x is h = E[‖n‖² + 2 sigma² div s].

    With a control, the same integrand of the control's own score is subtracted, so that Gaussian scores give 0.
    """

    @abstractmethod
    def __call__(self, model: ScoreModel, draw: Draw) -> Rows:
        """The integrand at each noisy row, ``(N,)`` in float64."""


class DenoisingForm(BoundForm):
    """‖n‖² + 2 n·z, n = sigma s(x_t): ‖n + z‖² − ‖z‖² with no difference of large numbers; minus the control,

        (n − n_G)·(n + n_G + 2 z).

    Reference: Song, Durkan, Murray and Ermon (2021), theorem 3, L^DSM.
    """

    def __call__(self, model: ScoreModel, draw: Draw) -> Rows:
        """One call of the model."""
        with torch.no_grad():
            n = _scaled(model.score(draw.x_t, draw.kernel), draw.kernel)
        control = draw.controlled()
        return dot(n - control, n + control + 2 * draw.z.flatten(1))


class DivergenceForm(BoundForm):
    """‖n‖² + 2 sigma² div s, the divergence exact by one backward pass a coordinate; minus that of the control.

    Reference: Song, Durkan, Murray and Ermon (2021), theorem 3, L^SM.
    """

    def __call__(self, model: ScoreModel, draw: Draw) -> Rows:
        """One call of the model, and a product with its Jacobian for each coordinate."""
        n, curvature = _linearise(model, draw)
        d = event_size(tuple(draw.x_t.shape[1:]))
        unit = torch.eye(d, dtype=draw.x_t.dtype, device=draw.x_t.device)
        trace = sum((curvature(e.reshape(draw.x_t.shape[1:]).expand_as(draw.x_t)) for e in unit), n.new_zeros(len(n)))
        if draw.control is not None:
            trace = trace - draw.control.scaled_divergence(draw.kernel)
        control = draw.controlled()
        return dot(n - control, n + control) + 2 * trace


class HutchinsonForm(BoundForm):
    """‖n‖² + 2 sigma² vᵀ(∇s)v with random signs v: the mean is that of :class:`DivergenceForm`.

    The control's curvature is taken along the same v.

    Args:
        n_projections: signs drawn for each noisy row.

    Raises:
        InputError: ``n_projections`` < 1.

    Reference: Hutchinson (1990); Song et al. (2021), "Score-based generative modeling through stochastic differential
    equations", equation 40.
    """

    def __init__(self, n_projections: int = 1) -> None:
        self.n_projections = as_count(n_projections, "n_projections")

    def __call__(self, model: ScoreModel, draw: Draw) -> Rows:
        """One call of the model, and a product with its Jacobian for each projection."""
        n, curvature = _linearise(model, draw)
        trace = n.new_zeros(len(n))
        for _ in range(self.n_projections):
            v = torch.where(draw.normals() < 0, -1.0, 1.0).to(draw.x_t)
            trace = trace + curvature(v)
            if draw.control is not None:
                trace = trace - draw.control.scaled_curvature(v, draw.kernel)
        control = draw.controlled()
        return dot(n - control, n + control) + 2 * trace / self.n_projections


def _scaled(score: Batch, kernel: Gaussian) -> Tensor:
    """N = sigma s, flattened, in float64."""
    flat = score.flatten(1).double()
    return per_row(kernel.sigma, flat) * flat


def _linearise(model: ScoreModel, draw: Draw) -> tuple[Tensor, Callable[[Batch], Rows]]:
    """N, and v -> sigma² vᵀ(∇s)v."""
    s, transposed_times = linearise(model.score, draw.x_t, draw.kernel, name=f"{type(model).__name__}.score")

    def curvature(v: Batch) -> Rows:
        return draw.kernel.sigma.double().square() * dot(transposed_times(v), v).double()

    return _scaled(s.detach(), draw.kernel), curvature
