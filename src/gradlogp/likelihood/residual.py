"""What moves a row of data along the probability flow, once the Gaussian reference's flow is taken out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch, Rows
from gradlogp.kernels import Gaussian
from gradlogp.models import ScoreModel
from gradlogp.samplers import Frame


@dataclass(frozen=True)
class Clock:
    """Noise levels as a function of w, on the whole line: s² = (s_min² + e^{2w})/(1 + e^{2w}/s_max²).

    Near s_min, e^w is the standard deviation of the noise on top of it. Whatever is smooth in s² falls as e^{2w} to the
    left and as e^{−2w} to the right in terms of w, so that the trapezoidal rule in w converges exponentially
    (Trefethen and Weideman 2014).
    """

    s_min: float
    s_max: float

    def level(self, w: Tensor) -> Tensor:
        """s(w)."""
        added = torch.exp(2 * w)
        return ((self.s_min**2 + added) / (1 + added / self.s_max**2)).sqrt()

    def rate(self, w: Tensor) -> Tensor:
        """d log s/dw."""
        added, low, high = torch.exp(2 * w), self.s_min**2, self.s_max**2
        return added * (1 - low / high) / ((low + added) * (1 + added / high))


@dataclass(frozen=True)
class ResidualFlow:
    """The probability flow in u = Vᵀ(y − μ)/r, r = √(λ + s²), of which the reference N(μ, VΛVᵀ)'s own part is gone.

    With D the model's denoiser, D_G the reference's and ψ = (D − y)/s² the score,

        du/dw = q = Vᵀ(D_G − D)/r · d log s/dw,    div q = tr ∇(D_G − D) · d log s/dw,    ∇_u log p = r·Vᵀψ,

    q = 0 for Gaussian data. All in float64; the model is called in ``dtype``.

    Attributes:
        model: a score model for Gaussian noise.
        frame: the reference's eigen-coordinates.
        clock: w ↦ s.
        event_shape: of a row.
        dtype: what the model is called in.
    """

    model: ScoreModel
    frame: Frame
    clock: Clock
    event_shape: tuple[int, ...]
    dtype: torch.dtype

    def radius(self, s: Tensor) -> Tensor:
        """r = √(λ + s²), ``(B, D)``."""
        return (self.frame.variance + s[:, None] ** 2).sqrt()

    def place(self, u: Tensor, s: Tensor) -> Batch:
        """y = μ + V r u."""
        return self.frame.back(self.radius(s) * u, self.event_shape)

    def denoise(self, y: Batch, s: Tensor) -> Batch:
        """D(y; s), like y in float64."""
        return self.model.denoise(y.to(self.dtype), Gaussian(s.to(self.dtype))).double()

    def fields(self, u: Tensor, w: Tensor, denoised: Batch | None = None) -> tuple[Tensor, Tensor]:
        """q and ∇_u log p, ``(B, D)`` each. One call of the model, unless its value there is given.

        Args:
            u: coordinates, ``(B, D)``.
            w: where on the clock, ``(B,)``.
            denoised: D at :meth:`place`.
        """
        s = self.clock.level(w)
        r = self.radius(s)
        c = r * u
        if denoised is None:
            denoised = self.denoise(self.frame.back(c, self.event_shape), s)
        d = self.frame.into(denoised)
        q = (self.frame.variance / r**2 * c - d) / r * self.clock.rate(w)[:, None]
        return q, r * (d - c) / s[:, None] ** 2

    def reference_trace(self, s: Tensor) -> Rows:
        """tr ∇D_G = Σ λ/(λ + s²), ``(B,)``."""
        return (self.frame.variance / self.radius(s) ** 2).sum(1)

    def reference_times(self, v: Tensor, s: Tensor) -> Tensor:
        """∇D_G v for flat vectors v ``(B, D)``: V λ/(λ + s²) Vᵀ v."""
        basis = self.frame.basis
        gain = self.frame.variance / self.radius(s) ** 2
        return gain * v if basis is None else (gain * (v @ basis)) @ basis.T
