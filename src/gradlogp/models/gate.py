"""How much of a part counts at each noise level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradlogp._shapes import Batch, Rows
from gradlogp.kernels import Kernel
from gradlogp.models.base import columns

N_GATES = 16


class Gate(nn.Module):
    """A share in [0, 1] at each noise level: linear in c_noise between its knots, constant beyond them.

    Attributes:
        at: c_noise = log(sigma/(alpha·σ_d)) of the knots, increasing, ``(16,)``.
        share: the share there, ``(16,)``; 1 unless set.
    """

    at: Tensor
    share: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("at", torch.linspace(-1.0, 1.0, N_GATES))
        self.register_buffer("share", torch.ones(N_GATES))

    def set(self, sigma: Tensor, share: Tensor, data_scale: Tensor) -> Gate:
        """Take shares in [0, 1] at increasing noise levels (alpha = 1)."""
        self.at = (sigma.to(self.at) / data_scale.to(self.at)).log()
        self.share = share.to(self.share, copy=True)
        return self

    def forward(self, c_noise: Rows) -> Rows:
        """The share of each row."""
        right = torch.searchsorted(self.at, c_noise.contiguous()).clamp(1, N_GATES - 1)
        low, high = self.at[right - 1], self.at[right]
        place = ((c_noise - low) / (high - low)).clamp(0, 1)
        return self.share[right - 1] * (1 - place) + self.share[right] * place


def noise_condition(kernel: Kernel, x_t: Batch, data_scale: Tensor) -> Rows:
    """c_noise = log(sigma/(alpha·σ_d)) of each row, within ±log 10⁶."""
    wide = x_t.to(torch.promote_types(x_t.dtype, torch.float32))  # half precision does not hold 10^±6
    alpha, sigma = columns(kernel, wide)
    ratio = (sigma / (alpha * data_scale).clamp_min(torch.finfo(wide.dtype).tiny)).clamp(1e-6, 1e6)
    return ratio.log().to(x_t.dtype).reshape(-1).expand(len(x_t))
