"""A model seen as a denoiser in the coordinates in which every Gaussian process is the same flow."""

from __future__ import annotations

import torch
from torch import Tensor

from gradlogp._shapes import Batch, Level, per_row
from gradlogp.kernels import Gaussian
from gradlogp.models import ScoreModel
from gradlogp.processes import EDM, Process


class Field:
    """D(y; s) = E[x | y] for y = x_t/alpha = x + s·z, s = sigma/alpha.

    In y every process x_t = alpha(t)·x + sigma(t)·z has the same probability flow,

        dy/ds = −s ∇log p_s(y) = (y − D(y; s))/s,

    so that a step is written once, in (y, s); the process says which kernel the model is shown.

    Args:
        model: a score model for Gaussian kernels.
        process: t ↦ kernel; by default alpha = 1, sigma = s.
        dtype: what the model is called in; by default as y is.

    Reference: Karras et al. (2022), "Elucidating the design space of diffusion-based generative models", section 2.
    """

    def __init__(self, model: ScoreModel, process: Process | None = None, dtype: torch.dtype | None = None) -> None:
        self.model = model
        self.process = EDM() if process is None else process
        self.dtype = dtype
        self._last: tuple[Level, Gaussian] | None = None

    def kernel(self, s: Level) -> Gaussian:
        """The kernel that the model is shown at noise ratio s, a scalar or ``(B,)``."""
        if self._last is None or self._last[0] is not s:
            self._last = s, self.process.at_ratio(s)
        return self._last[1]

    def denoise(self, y: Batch, s: Level) -> Batch:
        """D(y; s), like y. One call of the model."""
        kernel = self.kernel(s)
        x_t = y * per_row(kernel.alpha, y)
        return self.model.denoise(x_t if self.dtype is None else x_t.to(self.dtype), kernel).to(y.dtype)

    def slope(self, y: Batch, s: Level) -> Batch:
        """dy/ds = (y − D(y; s))/s. One call of the model."""
        return (y - self.denoise(y, s)) / per_row(s, y)

    def noisy(self, y: Batch, s: Level) -> Batch:
        """x_t = alpha·y."""
        return y * per_row(self.kernel(s).alpha, y)

    def clean(self, x_t: Batch, s: Level) -> Batch:
        """y = x_t/alpha."""
        return x_t / per_row(self.kernel(s).alpha, x_t)

    def time(self, s: Tensor) -> Tensor:
        """The process's time at noise ratio s."""
        return self.process.time(s)
