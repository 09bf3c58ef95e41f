"""The flow of a Gaussian, solved exactly, and the variables in which only what is not Gaussian moves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradlogp._shapes import Batch
from gradlogp.models import GaussianReference
from gradlogp.samplers.field import Field
from gradlogp.samplers.polynomials import gauss, lagrange

_RULE = gauss(3)  # exact to degree 5
MAX_BASIS = 2048  # coordinates up to which each eigen-direction has its own variance


@dataclass(frozen=True)
class Frame:
    """Eigen-coordinates c = Vᵀ(y − μ) of a Gaussian N(μ, VΛVᵀ), and its probability flow in each of them.

    With r = √(λ + s²) the flow of the Gaussian keeps u = c/r. For any other model, with D the denoiser in
    eigen-coordinates and e = D − λ/(λ + s²)·c its difference from the Gaussian's,

        du/ds = −e/(s·r),    or    du/dx = q,    q = −e·r/s,    dx = ds/r²,    x = atan(s/√λ)/√λ:

    q is zero for Gaussian data, and no stiff part is left. At λ = 0 (a direction in which the data do not vary) x is
    −1/s. Where λ is the same in all directions there is no basis.

    Attributes:
        mean: μ, ``(D,)``.
        variance: λ >= 0, ``(D,)``.
        basis: V, ``(D, D)``, or None for the coordinate axes.
        widest: standard deviation of the data's widest direction, from which levels are counted; more than √λ where
            all directions have the same λ though the data's differ.
    """

    mean: Tensor
    variance: Tensor
    basis: Tensor | None
    widest: float

    @classmethod
    def of(cls, reference: GaussianReference) -> Frame:
        """The frame of a reference; of more than 2048 coordinates, with their mean variance in all directions."""
        mean, d = reference.mean.flatten().double(), reference.mean.numel()
        rank = reference.eigenvalues.numel()
        widest = reference.eigenvalues.max().sqrt().item()
        if d > MAX_BASIS:
            return cls(mean, (reference.eigenvalues.double().sum() / d).expand(d), None, widest)
        basis, variance = reference.eigenvectors.double(), reference.eigenvalues.double()
        if rank < d:
            rest = torch.linalg.qr(basis, mode="complete").Q[:, rank:]
            basis = torch.cat([basis, rest], 1)
            variance = torch.cat([variance, variance.new_zeros(d - rank)])
        return cls(mean, variance, None if bool((variance == variance[0]).all()) else basis, widest)

    def like(self, y: Batch) -> Frame:
        """In the dtype and on the device of a batch."""
        basis = None if self.basis is None else self.basis.to(y)
        return replace(self, mean=self.mean.to(y), variance=self.variance.to(y), basis=basis)

    @property
    def exactly(self) -> Frame:
        """Its variances in float64, for coefficients; no basis."""
        return replace(self, mean=self.mean.double(), variance=self.variance.double(), basis=None)

    def into(self, y: Batch) -> Tensor:
        """C = Vᵀ(y − μ), ``(B, D)``."""
        r = y.flatten(1) - self.mean
        return r if self.basis is None else r @ self.basis

    def back(self, c: Tensor, event_shape: tuple[int, ...]) -> Batch:
        """Y = μ + V c."""
        return (self.mean + (c if self.basis is None else c @ self.basis.T)).reshape(-1, *event_shape)

    def radius(self, s: Tensor) -> Tensor:
        """R = √(λ + s²), ``(D,)``."""
        return (self.variance + s.to(self.variance) ** 2).sqrt()

    def turn(self, s: Tensor, s_next: Tensor) -> Tensor:
        """x(s') − x(s) = ∫ ds/(λ + s²), ``(D,)``, with no difference of large numbers; (s' − s)/(s·s') at λ = 0."""
        a, b, root = s.to(self.variance), s_next.to(self.variance), self.variance.sqrt()
        straight = (b - a) / (self.variance + a * b)
        angle = torch.atan2(root * (b - a), self.variance + a * b) / root
        return torch.where(root * straight.abs() > 1e-4, angle, straight)  # atan(z) = z + O(z³)

    def exact(self, c: Tensor, s: Tensor, s_next: Tensor) -> Tensor:
        """The flow of the Gaussian from s to s': each coordinate scales by √((λ + s'²)/(λ + s²))."""
        return c * (self.radius(s_next) / self.radius(s))

    def velocity(self, flow: Field, y: Batch, c: Tensor, s: Tensor) -> Tensor:
        """Q = −(D − λ/(λ + s²)·c)·r/s, ``(B, D)``, at y with coordinates c. One call of the model."""
        d = self.into(flow.denoise(y, s))
        r = self.radius(s)
        return (self.variance / r**2 * c - d) * (r / s.to(c))

    def advance(self, c: Tensor, s: Tensor, s_next: Tensor, velocities: list[Tensor], weights: Tensor) -> Tensor:
        """c' = r'·(c/r + Δx Σ_k a_k q_k), weights a_k over velocities, the newest first: ``(K,)`` or ``(K, D)``."""
        r_next = self.radius(s_next)
        a = weights.to(c)
        change = sum((a[k] * q for k, q in enumerate(velocities[1:], 1)), a[0] * velocities[0])
        return torch.addcmul(c * (r_next / self.radius(s)), change, r_next * self.turn(s, s_next))


def adams_bashforth(frame: Frame, levels: list[Tensor], s_next: Tensor) -> Tensor:
    """Weights a_k, ``(K, D)``: the mean over (x(s), x(s')) of the Lagrange polynomials through x at past levels.

    Args:
        frame: where.
        levels: the last K levels, the newest, s, first; K <= 6.
        s_next: s'.
    """
    x = torch.stack([frame.turn(levels[0], level) for level in levels])  # (K, D), x[0] = 0
    node, weight = (v.to(x)[:, None] for v in _RULE)
    at = node * frame.turn(levels[0], s_next)  # (3, D)
    return (weight * lagrange(x, at)).sum(1)
