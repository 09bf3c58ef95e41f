"""A network that learns what a closed-form reference leaves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradlogp._shapes import Batch, Rows, per_row
from gradlogp.kernels import Kernel
from gradlogp.models.base import Reference, ScoreModel, columns, gaussian_form, require_like, tweedie
from gradlogp.models.gaussian import GaussianReference

N_GATES = 16
_SLACK = 1e-4  # of log sigma, for rounding at the largest level


class OnReference(ScoreModel):
    """Something learnt on top of a closed-form reference: it learns only what the reference leaves.

        D(x_t) = D_ref(x_t) + c_out · P F(c_in · P(x_t − alpha·μ − shift), c_noise)
        ψ(x_t) = ψ_ref(x_t) + (alpha·c_out/sigma²) · P F(…)

    c_in = 1/√(alpha²σ_d² + sigma²), c_out = sigma·σ_d·c_in, c_noise = log(sigma/(alpha·σ_d)), and P the projection on
    the directions in which the data vary (Karras et al. 2022, table 1, with the skip replaced by the reference). An
    F that starts at zero starts as the reference. Under a kernel that is not Gaussian the same formula is a
    parametrisation of the score, with sigma the kernel's scale.

    Where ``levels`` says at which noise it was trained, F is left out above them, where the reference is all
    but exact, and shown the smallest of them below.

    F is multiplied by a gate in [0, 1], a function of c_noise that is 1 unless :meth:`set_gate` closes it where F has
    been measured not to help.

    Args:
        reference: the closed-form part.
        noise: scale -> kernel, where it is to be trained with noise that is not Gaussian, e.g.
            ``lambda s: kernels.Additive(torch.distributions.Laplace(0.0, s))``.

    Attributes:
        network: what is trained.
        skip: the reference.
    """

    network: nn.Module
    skip: Reference
    gate_at: Tensor
    gate: Tensor

    def __init__(self, reference: Reference, noise: Callable[[float], Kernel] | None = None) -> None:
        super().__init__()
        self.noise = noise
        self.skip = reference
        self.register_buffer("gate_at", torch.linspace(-1.0, 1.0, N_GATES))
        self.register_buffer("gate", torch.ones(N_GATES))

    def own_number(self) -> Tensor | None:
        """One of the network's, else of the reference's: the gate is no measure of either."""
        return next((v for v in self.network.parameters() if v.is_floating_point()), self.skip.own_number())

    @abstractmethod
    def learnt(self, z: Batch, c_noise: Rows) -> Batch:
        """F(z, c_noise), like z."""

    @property
    def reference(self) -> GaussianReference:
        """The Gaussian with the data's moments, at every noise level."""
        return self.skip.reference

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.skip.event_shape

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """ψ_ref + (alpha·c_out/sigma²) P F; no difference of large numbers at small sigma."""
        alpha, sigma = per_row(kernel.alpha, x_t), per_row(kernel.sigma, x_t)
        c_in = self._c_in(alpha, sigma)
        factor = alpha * self.skip.data_scale * c_in / sigma
        return self.skip.score(x_t, kernel) + self._residual(x_t, kernel, c_in, factor)

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """D_ref + c_out P F; by Tweedie's formula where the noise is Gaussian but not isotropic."""
        if gaussian_form(kernel, x_t, "denoise").kind != "isotropic":
            return tweedie(x_t, self.score(x_t, kernel), kernel)
        return self.skip.denoise(x_t, kernel) + self.correction(x_t, kernel)

    def correction(self, x_t: Batch, kernel: Kernel) -> Batch:
        """c_out P F, what is learnt of the denoiser under isotropic Gaussian noise."""
        sigma = per_row(kernel.sigma, x_t)
        c_in = self._c_in(per_row(kernel.alpha, x_t), sigma)
        return self._residual(x_t, kernel, c_in, sigma * self.skip.data_scale * c_in)

    def _c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 1 / torch.sqrt((alpha * self.skip.data_scale) ** 2 + sigma**2)

    def _residual(self, x_t: Batch, kernel: Kernel, c_in: Tensor, factor: Tensor) -> Batch:
        """P F(c_in · P(x_t − alpha·μ − shift), c_noise), times the gate and a factor of each row's."""
        z, c_noise, gate = self._inside(x_t, kernel, c_in)
        return self.skip.project(self.learnt(z, c_noise)) * (factor * per_row(gate, x_t))

    def _inside(self, x_t: Batch, kernel: Kernel, c_in: Tensor) -> tuple[Batch, Rows, Rows]:
        """What F is shown, z and c_noise, and what it is multiplied by."""
        z = c_in * self.skip.project(self.skip.centred(x_t, kernel))
        c_noise, known = self._within(self._c_noise(kernel, x_t))
        return z, c_noise, self._gate(c_noise) * known

    def _within(self, c_noise: Tensor) -> tuple[Tensor, Tensor]:
        """c_noise within the range trained on, and whether it is not above it."""
        if self.levels is None:
            return c_noise, torch.ones_like(c_noise)
        unit = self.skip.data_scale.to(c_noise)
        low, high = ((level / unit).log() for level in self.levels)
        return torch.clamp(c_noise, low, high), (c_noise <= high + _SLACK).to(c_noise)

    def set_gate(self, sigma: Tensor, gate: Tensor) -> None:
        """Close F where it does not help: gates in [0, 1] at increasing noise levels (alpha = 1).

        Between the levels the gate is linear in log sigma, beyond them constant.
        """
        self.gate_at = (sigma.to(self.gate_at) / self.skip.data_scale).log()
        self.gate = gate.to(self.gate)

    def _gate(self, c_noise: Tensor) -> Tensor:
        right = torch.searchsorted(self.gate_at, c_noise.contiguous()).clamp(1, N_GATES - 1)
        low, high = self.gate_at[right - 1], self.gate_at[right]
        share = ((c_noise - low) / (high - low)).clamp(0, 1)
        return self.gate[right - 1] * (1 - share) + self.gate[right] * share

    def _c_noise(self, kernel: Kernel, x_t: Batch) -> Tensor:
        wide = x_t.to(torch.promote_types(x_t.dtype, torch.float32))  # half precision does not hold 10^±6
        alpha, sigma = columns(kernel, wide)
        ratio = (sigma / (alpha * self.skip.data_scale).clamp_min(torch.finfo(wide.dtype).tiny)).clamp(1e-6, 1e6)
        return ratio.log().to(x_t.dtype).reshape(-1).expand(len(x_t))


class Preconditioned(OnReference):
    """A network on top of a closed-form reference: :class:`OnReference` with F the network itself.

    Args:
        network: F, (z of the event's shape, c_noise ``(B,)``) -> like z.
        reference: the closed-form part.
        noise: scale -> kernel, where it is to be trained with noise that is not Gaussian.
    """

    def __init__(
        self, network: nn.Module, reference: Reference, noise: Callable[[float], Kernel] | None = None
    ) -> None:
        super().__init__(reference, noise)
        self.network = network

    def learnt(self, z: Batch, c_noise: Rows) -> Batch:
        """F(z, c_noise), the network's output."""
        return require_like(self.network(z, c_noise), z, f"Preconditioned: the network {type(self.network).__name__}")
