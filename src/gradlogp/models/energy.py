"""A score that is a gradient by construction: that of a scalar potential."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradlogp._shapes import Batch, InputError, Rows, per_row
from gradlogp.kernels import Kernel
from gradlogp.models.base import require_like
from gradlogp.models.gaussian import GaussianReference
from gradlogp.models.preconditioned import OnReference


class EnergyModel(OnReference):
    """A scalar potential whose gradient is the score: ψ = −∇E exactly, so that ∇ψ is symmetric and there is a density.

        −E(x_t) = ½⟨ψ_ref(x_t), r⟩ + (alpha·σ_d/sigma)·G(z, c_noise),    z = c_in·Pr,    r = x_t − alpha·μ − shift

    The gradient of this is :class:`OnReference`'s score with F = ∇_z G: the potential is preconditioned as a denoiser
    is, and one that starts at zero starts as the Gaussian. E is −log p_σ up to a constant of its own at each kernel, so
    differences at one kernel are log-density ratios: :meth:`energy`. The score is computed by automatic
    differentiation, differentiable again in training (double backward), and where gradients are off as well.

    Args:
        network: G, (z of the event's shape, c_noise ``(B,)``) -> ``(B,)``, differentiable twice, e.g.
            :class:`gradlogp.networks.Potential`.
        reference: the Gaussian part, whose score is linear with a symmetric matrix: the gradient of a potential.
        noise: scale -> kernel, where it is to be trained with noise that is not Gaussian.

    Raises:
        InputError: another reference than a Gaussian; when called, a potential that is not one number a row, or that
            autograd does not follow.

    Reference: Salimans and Ho (2021), "Should EBMs model the energy or the score?"; Vincent (2011), section 4.
    """

    def __init__(
        self, network: nn.Module, reference: GaussianReference, noise: Callable[[float], Kernel] | None = None
    ) -> None:
        if not isinstance(reference, GaussianReference):
            raise InputError(
                f"EnergyModel: got a {type(reference).__name__}, want a GaussianReference: its score is a gradient"
            )
        super().__init__(reference, noise)
        self.network = network

    def energy(self, x_t: Batch, kernel: Kernel) -> Rows:
        """E(x_t) = −log p_σ(x_t) + constant, ``(B,)``, in nats; differences at one kernel are log-density ratios."""
        alpha, sigma = per_row(kernel.alpha, x_t), per_row(kernel.sigma, x_t)
        z, c_noise, gate = self._inside(x_t, kernel, self._c_in(alpha, sigma))
        factor = (alpha * self.skip.data_scale / sigma).reshape(-1)
        return self._gaussian.energy(x_t, kernel) - factor * gate * self._potential(z, c_noise)

    def unnormalised_log_prob(self, x_t: Batch, kernel: Kernel) -> Rows:
        """−E."""
        return -self.energy(x_t, kernel)

    def learnt(self, z: Batch, c_noise: Rows) -> Batch:
        """F = ∇_z G, with its graph where gradients are on."""
        return gradient(self._potential, z, c_noise)

    @property
    def _gaussian(self) -> GaussianReference:
        assert isinstance(self.skip, GaussianReference)
        return self.skip

    def _potential(self, z: Batch, c_noise: Rows) -> Rows:
        g, what = self.network(z, c_noise), f"EnergyModel: the network {type(self.network).__name__}"
        if isinstance(g, Tensor) and g.shape != z.shape[:1]:
            raise InputError(f"{what} gave shape {tuple(g.shape)}, want ({len(z)},), a number a row")
        return require_like(g, z.flatten(1)[:, 0], what)


def gradient(f: Callable[[Tensor, Tensor], Tensor], x: Batch, c: Rows) -> Batch:
    """∇f(x, c) of each row in x, f: ``(B, *event), (B,) -> (B,)`` row by row; differentiable where gradients are on.

    Works where gradients are off, and in inference mode, too.

    Raises:
        InputError: an f that autograd does not follow.
    """
    again = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        inside, c = (v.clone() if v.is_inference() else v for v in (x, c))
        at = inside if again and inside.requires_grad else inside.detach().requires_grad_()
        value = f(at, c)
        if not value.requires_grad:
            raise InputError("energy: got no gradient in x, want a function that autograd can follow")
        (slope,) = torch.autograd.grad(value.sum(), at, create_graph=again, materialize_grads=True)
    return slope if again else slope.detach()
