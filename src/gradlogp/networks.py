"""Small default networks F(z, c_noise); nothing else knows a layer."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradlogp._shapes import Batch, InputError, Rows, as_count, as_number, event_size, require_memory

MOST_BLOCKS = 1000


class FourierFeatures(nn.Module):
    """c -> (cos 2^j c·π/8, sin 2^j c·π/8): the noise level, seen at ``n`` octaves."""

    frequencies: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi / 8 * 2.0 ** torch.arange(n), persistent=False)

    def forward(self, c: Rows) -> Tensor:
        """``(B,) -> (B, 2n)``."""
        angle = c[:, None] * self.frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class ResidualBlock(nn.Module):
    """h + W₂ dropout(silu(W₁ silu(norm(h)·(1 + a) + b))), with a, b linear in the noise embedding."""

    def __init__(self, width: int, n_embedding: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Linear(n_embedding, 2 * width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """``(B, width), (B, n_embedding) -> (B, width)``."""
        scale, shift = self.condition(embedding).chunk(2, dim=1)
        u = F.silu(self.norm(h) * (1 + scale) + shift)
        out: Tensor = h + self.outer(self.dropout(F.silu(self.inner(u))))
        return out


class _ResidualTrunk(nn.Module):
    """A residual MLP with a noise embedding, an output a coordinate and some more; its last layer starts at zero."""

    n_more: ClassVar[int]

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        width: int = 256,
        depth: int = 3,
        dropout: float = 0.0,
        n_octaves: int = 6,
    ) -> None:
        super().__init__()
        d = event_size(event_shape)
        width, depth = as_count(width, "width"), as_count(depth, "depth", most=MOST_BLOCKS)
        n_octaves = as_count(n_octaves, "n_octaves", most=120)  # 2^127 is the end of float32
        require_memory(width, "width", lambda k: 4 * k * (2 * depth * k + 2 * d))
        dropout = as_number(dropout, "dropout", positive=False)
        if dropout >= 1:
            raise InputError(f"dropout: got {dropout:g}, want a number in [0, 1)")
        self.embedding = nn.Sequential(FourierFeatures(n_octaves), nn.Linear(2 * n_octaves, 64), nn.SiLU())
        self.first = nn.Linear(d, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, 64, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, d + self.n_more)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def outputs(self, z: Batch, c_noise: Rows) -> Tensor:
        """``(B, *event), (B,) -> (B, D + n_more)``."""
        embedding = self.embedding(c_noise)
        h = self.first(z.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        out: Tensor = self.last(F.silu(self.norm(h)))
        return out


class ResidualMLP(_ResidualTrunk):
    """A residual MLP with a noise embedding; its last layer starts at zero, so that a model starts as its reference.

    Args:
        event_shape: shape of one datum.
        width: hidden units.
        depth: residual blocks.
        dropout: share of hidden units dropped in training.
        n_octaves: octaves of the noise embedding.
    """

    n_more = 0

    def forward(self, z: Batch, c_noise: Rows) -> Batch:
        """F(z, c_noise), like z."""
        return self.outputs(z, c_noise).reshape(z.shape)


class Potential(_ResidualTrunk):
    """A scalar, G(z) = ⟨z, N(z)⟩ + n(z), of a residual MLP with outputs N, like z, and n; zero to begin with.

    Args:
        event_shape: shape of one datum.
        width, depth, dropout, n_octaves: as of :class:`ResidualMLP`.
    """

    n_more = 1

    def forward(self, z: Batch, c_noise: Rows) -> Rows:
        """G(z, c_noise), ``(B,)``."""
        out = self.outputs(z, c_noise)
        return (z.flatten(1) * out[:, :-1]).sum(1) + out[:, -1]
