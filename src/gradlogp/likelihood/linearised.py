"""A denoiser's Jacobian where it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows
from gradlogp.likelihood.path import Path
from gradlogp.likelihood.residual import ResidualFlow
from gradlogp.models.jacobian import gradient_of

_WORKSPACE = 2**20  # points times coordinates of a slice


@dataclass(frozen=True)
class Linearised:
    """A denoiser at some points, and products with its Jacobian's transpose.

    Attributes:
        y: the points, tracked by autograd.
        denoised: D(y) in float64, on y's graph.
    """

    y: Batch
    denoised: Batch

    @classmethod
    def at(cls, flow: ResidualFlow, y: Batch, s: Tensor) -> Linearised:
        """One call of the model."""
        with torch.enable_grad():
            y = y.detach().to(flow.dtype).requires_grad_()
            denoised = flow.denoise(y, s)
        if not denoised.requires_grad and not torch.equal(flow.denoise(y.detach() + s.max(), s), denoised):
            raise InputError("log-density: got a denoiser without a gradient, want one that autograd can follow")
        return cls(y, denoised)

    def transposed_times(self, v: Tensor) -> Tensor:
        """(∇D)ᵀ v for flat v ``(B, D)``, in float64: one product in reverse mode."""
        if not self.denoised.requires_grad:
            return torch.zeros_like(v)
        return gradient_of(self.denoised, v.reshape(self.y.shape), self.y).flatten(1).double()

    def trace(self) -> tuple[Rows, Rows]:
        """tr ∇D and ‖I − ∇D‖_F², by one product with each unit vector."""
        n, d = len(self.y), self.y[0].numel()
        trace = square = torch.zeros(n, dtype=torch.float64, device=self.y.device)
        for j in range(d):
            unit = torch.zeros(n, d, dtype=torch.float64, device=self.y.device)
            unit[:, j] = 1
            row = self.transposed_times(unit)
            trace, square = trace + row[:, j], square + (unit - row).square().sum(1)
        return trace, square

    def jacobian(self) -> Tensor:
        """∇D, ``(B, D, D)``."""
        d = self.y[0].numel()
        units = torch.eye(d, dtype=torch.float64, device=self.y.device)
        return torch.stack([self.transposed_times(e.repeat(len(self.y), 1)) for e in units], 1)

    def probed(self, v: Tensor) -> tuple[Rows, Rows]:
        """vᵀ∇D v and ‖v − (∇D)ᵀv‖², whose means over v are those of :meth:`trace`."""
        out = self.transposed_times(v)
        return (v * out).sum(1), (v - out).square().sum(1)


@dataclass(frozen=True)
class Near:
    """What the density is like where rows start.

    Attributes:
        curvature: ‖I − ∇D‖_F², ``(B,)``, or about that; over s⁴ it is that of ∇² log p_s.
        variance, basis: eigenvalues ``(B, D)`` and eigenvectors ``(B, D, D)`` of the Gaussian that has this ∇D, where
            they were looked for: Λ(Λ + s²)⁻¹ = ∇D.
    """

    curvature: Rows
    variance: Tensor | None = None
    basis: Tensor | None = None

    @classmethod
    def of_jacobian(cls, jacobian: Tensor, s: Rows) -> Near:
        """From ∇D, ``(B, D, D)``."""
        rest = torch.eye(jacobian.shape[1], dtype=jacobian.dtype, device=jacobian.device) - jacobian
        gain, basis = torch.linalg.eigh((jacobian + jacobian.mT) / 2)
        gain = gain.clamp(0.0, 1 - 1e-9)
        return cls(rest.square().sum((1, 2)), s[:, None] ** 2 * gain / (1 - gain), basis)


def at_levels(
    flow: ResidualFlow, path: Path, rows: Tensor, w: Tensor, products: Callable[[Linearised, slice], Tensor]
) -> tuple[Tensor, Rows]:
    """Products with the Jacobian at places of the paths, and what the path slips there.

    A path that is not quite the flow, du/dw = q + δ, passes points whose log-density changes by ∇log p·δ dw besides:
    the slip, which is taken out.
    """
    parts = []
    for some in _slices(len(rows), path.first.shape[1]):
        u, moved = path.at(rows[some], w[some])
        s = flow.clock.level(w[some])
        point = Linearised.at(flow, flow.place(u, s), s)
        q, score = flow.fields(u, w[some], point.denoised.detach())
        parts.append((products(point, some), (score * (moved - q)).sum(1)))
    first, second = zip(*parts, strict=True)
    return torch.cat(first), torch.cat(second)


def _slices(n: int, d: int) -> Iterator[slice]:
    """Consecutive points, so many at a time that the workspace stays small."""
    size = max(64, _WORKSPACE // max(d, 16))
    return (slice(i, min(i + size, n)) for i in range(0, n, size))
