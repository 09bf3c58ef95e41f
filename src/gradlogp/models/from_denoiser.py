"""Any denoiser is a score: somebody's trained denoiser or auto-encoder as a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlogp._shapes import Batch, InputError, as_number, per_row
from gradlogp.kernels import Kernel
from gradlogp.models.base import Denoiser, gaussian_form, require_like
from gradlogp.models.gaussian import GaussianReference

_SAME = 1e-4  # relative difference of two noise levels that are meant to be one


def from_denoiser(
    f: Callable[..., Any],
    sigma: float | None = None,
    *,
    arrays: bool = False,
    reference: GaussianReference | None = None,
) -> FromDenoiser:
    """A trained denoiser or auto-encoder as a score model.

        ψ(x̃) = (f(x̃) − x̃)/σ²,    f(x̃) ≈ E[x | x̃],    x̃ = x + σz

    The minimiser of E‖f(x̃) − x‖² is E[x | x̃], so whatever was trained to denoise under Gaussian noise estimates the
    score by Tweedie's formula (Vincent 2011, section 4). Under x_t = alpha·x + sigma·z it is asked at x̃ = x_t/alpha and
    σ = sigma/alpha.

    Args:
        f: x̃ -> x̂ at the one level ``sigma``, or, without one, (x̃, σ) -> x̂ with σ ``(B,)``; x̃ and x̂ are
            ``(B, *event)``. A ``torch.nn.Module`` is registered, so that its parameters are the model's.
        sigma: the level that f was trained at, in the data's unit; None for an f that is told the level.
        arrays: f takes and gives numpy arrays, such as ``MLPRegressor.predict``; no gradient then passes through, so
            what needs ∇ψ refuses it: curl, calibration, implicit score matching (and so the self-check and the chain),
            posteriors, normalised log-densities.
        reference: the Gaussian with the data's moments, for samplers, which then know the data's shape and scale.

    Raises:
        InputError: a sigma that is not finite and positive; when called, noise of another level or kind, or an f that
            does not answer with rows like x̃.
    """
    return FromDenoiser(f, sigma, arrays=arrays, reference=reference)


class FromDenoiser(Denoiser):
    """What :func:`from_denoiser` makes.

    Attributes:
        sigma: the one level, or None.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        sigma: float | None = None,
        *,
        arrays: bool = False,
        reference: GaussianReference | None = None,
    ) -> None:
        super().__init__()
        if not callable(f):
            raise InputError(f"f: got {type(f).__name__}, want a function from noisy to clean rows")
        _require_arguments(f, 1 if sigma is not None else 2)
        self.f, self.arrays = f, arrays
        self.sigma = None if sigma is None else as_number(sigma, "sigma")
        self.levels = None if self.sigma is None else (self.sigma, self.sigma)
        self._reference = reference

    @property
    def reference(self) -> GaussianReference | None:
        """The Gaussian with the data's moments, as given."""
        return self._reference

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        """Shape of one datum, where the reference tells it."""
        return None if self._reference is None else self._reference.event_shape

    def own_number(self) -> Tensor | None:
        """That of f, if it is a module; a function of arrays or of anything takes the rows' dtype."""
        return (
            next((v for v in self.f.parameters() if v.is_floating_point()), None)
            if isinstance(self.f, nn.Module)
            else None
        )

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """f(x_t/alpha), or f(x_t/alpha, sigma/alpha)."""
        if self.sigma is not None:
            require_level(kernel, self.sigma, x_t, "denoiser")
            return self._called(x_t, x_t / per_row(kernel.alpha, x_t))
        if gaussian_form(kernel, x_t, "denoiser").kind != "isotropic":
            raise InputError(f"denoiser: got {kernel!r}, want isotropic Gaussian noise")
        level = (kernel.sigma / kernel.alpha).to(x_t).expand(len(x_t))
        return self._called(x_t, x_t / per_row(kernel.alpha, x_t), level)

    def _called(self, like: Batch, *inputs: Tensor) -> Batch:
        given = [v.detach().cpu().numpy() for v in inputs] if self.arrays else list(inputs)
        out = self.f(*given)
        if self.arrays and isinstance(out, np.ndarray):
            out = torch.from_numpy(np.ascontiguousarray(out)).to(like)
            if out.shape == like.shape[:1] and like.shape[1:] == (1,):  # as scikit-learn has one column
                out = out[:, None]
        if isinstance(out, np.ndarray):
            raise InputError(
                "denoiser: f gave an ndarray, want a tensor like its input, "
                "or arrays=True for a function of numpy arrays"
            )
        floats = isinstance(out, Tensor) and out.is_floating_point()
        out = require_like(out.to(like.dtype) if floats else out, like, "denoiser: f")
        if torch.is_grad_enabled() and like.requires_grad and not out.requires_grad:
            raise InputError("denoiser: got no gradient in x_t, want an f that autograd can follow")
        return out


def _require_arguments(f: Callable[..., Any], n: int) -> None:
    """Refuse a function that cannot be called with so many arguments, as far as it says."""
    try:
        inspect.signature(f.forward if isinstance(f, nn.Module) else f).bind(*[None] * n)
    except ValueError:  # of a function that has no signature to show
        return
    except TypeError as e:
        want = "(x̃, σ) -> x̂, or a sigma for a function of x̃ alone" if n == 2 else "x̃ -> x̂ at the one sigma"
        raise InputError(f"f: {e}, want {want}") from None


def require_level(kernel: Kernel, sigma: float, x_t: Batch, what: str) -> None:
    """Refuse a kernel that is not x + sigma·z, or alpha times that, for what is right at one level only.

    Raises:
        InputError: another level, or noise that is not isotropic Gaussian.
    """
    form = gaussian_form(kernel, x_t, what)
    if form.kind != "isotropic" or bool((form.shift != 0).any()):
        raise InputError(f"{what}: got {kernel!r}, want isotropic Gaussian noise of sigma = {sigma:g}")
    ratio = kernel.sigma.double() / kernel.alpha.double()
    rounding = 2 * max(torch.finfo(v.dtype).eps for v in (kernel.sigma, kernel.alpha))
    if bool(((ratio / sigma - 1).abs() > max(_SAME, rounding)).any()):
        raise InputError(f"{what}: got {kernel!r}, want sigma = {sigma:g}, the one level that it was trained at")
