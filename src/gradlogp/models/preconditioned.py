"""A network that learns what a closed-form reference leaves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradlogp._shapes import Batch, InputError, Rows, per_row
from gradlogp.kernels import Kernel
from gradlogp.models.base import Reference, ScoreModel, event_of, gaussian_form, require_like, tweedie
from gradlogp.models.gate import Gate, noise_condition
from gradlogp.models.gaussian import GaussianReference

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

    On top of that, other models that know the data, such as fitted mixtures, may be stacked (Wolpert 1992):

        D⁽⁰⁾ = D,    D⁽ⁱ⁾ = D⁽ⁱ⁻¹⁾ + β_i·P(D_i − D⁽ⁱ⁻¹⁾),    β_i in [0, 1] a function of c_noise

    under isotropic Gaussian noise, and the same for the scores, as Tweedie's formula is affine in D.

    F is multiplied by a gate in [0, 1], a function of c_noise that is 1 unless :meth:`set_gate` closes it where F has
    been measured not to help.

    Args:
        reference: the closed-form part.
        noise: scale -> kernel, where it is to be trained with noise that is not Gaussian, e.g.
            ``lambda s: kernels.Additive(torch.distributions.Laplace(0.0, s))``.

    Attributes:
        network: what is trained.
        skip: the reference.
        gate: the :class:`~gradlogp.models.gate.Gate` of F.
        parts, gates: what is stacked on top, D_i, and β_i.
    """

    network: nn.Module
    skip: Reference

    def __init__(self, reference: Reference, noise: Callable[[float], Kernel] | None = None) -> None:
        super().__init__()
        self.noise = noise
        self.skip = reference
        self.gate = Gate()
        self.parts, self.gates = nn.ModuleList(), nn.ModuleList()

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
        """ψ_ref + (alpha·c_out/sigma²) P F, and the stack; no difference of large numbers at small sigma."""
        alpha, sigma = per_row(kernel.alpha, x_t), per_row(kernel.sigma, x_t)
        c_in = self._c_in(alpha, sigma)
        factor = alpha * self.skip.data_scale * c_in / sigma
        own = self.skip.score(x_t, kernel) + self._residual(x_t, kernel, c_in, factor)
        return self._stacked(own, lambda part: part.score(x_t, kernel), x_t, kernel)

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """D_ref + c_out P F, and the stack; by Tweedie's formula where the noise is Gaussian but not isotropic."""
        if gaussian_form(kernel, x_t, "denoise").kind != "isotropic":
            return tweedie(x_t, self.score(x_t, kernel), kernel)
        own = self.skip.denoise(x_t, kernel) + self.correction(x_t, kernel)
        return self._stacked(own, lambda part: part.denoise(x_t, kernel), x_t, kernel)

    def stack(self, part: ScoreModel, sigma: Tensor, shares: Tensor) -> None:
        """Put another model on top, with shares β in [0, 1] at increasing noise levels (alpha = 1).

        Raises:
            InputError: a part of another event shape.
        """
        if event_of(part) != self.event_shape:
            raise InputError(f"stack: got a part of event shape {event_of(part)}, want {self.event_shape}")
        self.parts.append(part)
        self.gates.append(Gate().set(sigma, shares, self.skip.data_scale).to(self.gate.at))

    def unstack(self) -> None:
        """Take away all that was put on top."""
        self.parts, self.gates = nn.ModuleList(), nn.ModuleList()

    def _stacked(self, own: Batch, value: Callable[[ScoreModel], Batch], x_t: Batch, kernel: Kernel) -> Batch:
        """A score or denoiser, moved towards those of the parts; both are affine in each other."""
        form = kernel.gaussian_form(self.event_shape) if len(self.parts) else None
        if form is None or form.kind != "isotropic":
            return own
        c_noise, known = self._within(noise_condition(kernel, x_t, self.skip.data_scale))
        for part, gate in zip(self.parts, self.gates, strict=True):
            assert isinstance(part, ScoreModel)
            own = own + per_row(gate(c_noise) * known, x_t) * self.skip.project(value(part) - own)
        return own

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
        c_noise, known = self._within(noise_condition(kernel, x_t, self.skip.data_scale))
        return z, c_noise, self.gate(c_noise) * known

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
        self.gate.set(sigma, gate, self.skip.data_scale)


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


class ClosedForm(OnReference):
    """A closed-form reference alone, in the place of a model that has learned something on top of it."""

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        self.network = nn.Identity()  # without parameters, and not called

    def learnt(self, z: Batch, c_noise: Rows) -> Batch:  # noqa: ARG002
        """0."""
        return torch.zeros_like(z)
