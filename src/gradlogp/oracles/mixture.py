"""A mixture of Gaussians, exact under every Gaussian kernel."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows, as_count, event_size, require_numbers, same_event, short
from gradlogp.kernels import GaussianForm, Kernel
from gradlogp.models import GaussianReference, gaussian_form, tweedie
from gradlogp.models.gaussian import rounding_of_eigenvalues, symmetric_part
from gradlogp.oracles.base import Oracle, by_chunks

_C = "covariances"


@dataclass
class _Noisy:
    """The components of p ∗ q at some rows, in the basis in which each covariance is diagonal.

    Attributes:
        y: V_kᵀ(x_t − alpha·m_k − shift), ``(B, K, D)``.
        variance: eigenvalues of alpha²S_k + K, ``(B or 1, K, D)``.
        vectors: V_k, ``(K, D, D)``, or None for the coordinate axes.
        log_weights: log w_k, ``(K,)``.
    """

    y: Tensor
    variance: Tensor
    vectors: Tensor | None
    log_weights: Tensor

    @cached_property
    def slope(self) -> Tensor:
        """(alpha²S_k + K)⁻¹(x_t − alpha·m_k − shift) in the same basis, ``(B, K, D)``."""
        return self.y / self.variance

    def log_joint(self) -> Tensor:
        """log w_k N(x_t; alpha·m_k + shift, alpha²S_k + K), ``(B, K)``."""
        quadratic = (self.y * self.slope).sum(2) + self.variance.log().sum(2)
        return self.log_weights - 0.5 * (quadratic + self.y.shape[2] * math.log(2 * math.pi))

    def responsibilities(self) -> Tensor:
        """P(k | x_t), ``(B, K)``."""
        return torch.softmax(self.log_joint(), dim=1)

    def average(self, coefficients: Tensor) -> Tensor:
        """Σ_k r_k V_k c_k, ``(B, D)``."""
        c = self.responsibilities()[:, :, None] * coefficients
        return c.sum(1) if self.vectors is None else c.flatten(1) @ self.vectors.mT.flatten(0, 1)


class GaussianMixture(Oracle):
    """p = Σ_k w_k N(m_k, S_k); p ∗ q is the mixture of N(alpha·m_k + shift, alpha²S_k + K) for a kernel N(shift, K).

    Every quantity is a difference from a component's mean in that component's eigenbasis, in float64, so it is right
    far out in the tails and at small noise.

    Args:
        weights: ``(K,)``, positive; normalised to sum to one.
        means: ``(K, *event)``, or a list of K tensors, as for the others.
        covariances: isotropic, a number or ``(K,)`` variances; diagonal, the shape of ``means``; or full,
            ``(K, D, D)``. Positive semi-definite to the rounding of their dtype (a point mass is allowed: the kernel
            gives it a density).

    Raises:
        InputError: shapes that do not fit, weights that are not positive, a covariance that is not symmetric and
            positive semi-definite, or a kernel that is not Gaussian.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    vectors: Tensor | None

    def __init__(
        self,
        weights: Tensor | Sequence[Any],
        means: Tensor | Sequence[Any],
        covariances: Tensor | float | Sequence[Any],
    ) -> None:
        super().__init__()
        weights, covariances = _tensor(weights, "weights", torch.float64), _tensor(covariances, _C, torch.float64)
        means = _tensor(means, "means", torch.get_default_dtype())
        _check_components(weights, means)
        self._dtype = means.dtype
        self.event_shape = tuple(means.shape[1:])
        w = weights.double()
        variances, vectors = _eigen(covariances, means)
        self.register_buffer("log_weights", (w / w.sum()).log())
        self.register_buffer("means", means.double().flatten(1))
        self.register_buffer("variances", variances)
        self.register_buffer("vectors", vectors)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GaussianMixture:  # noqa: ARG002
        """Moved to another device it is the same; its draws take another dtype, its parameters keep all digits."""
        self._dtype = fn(torch.zeros(0, dtype=self._dtype, device=self.means.device)).dtype
        for name, v in self._buffers.items():
            self._buffers[name] = None if v is None else v.to(fn(v).device)
        return self

    @property
    def n_components(self) -> int:
        """K."""
        return len(self.means)

    @property
    def mean(self) -> Tensor:
        """Σ_k w_k m_k."""
        return (self.log_weights.exp() @ self.means).reshape(self.event_shape)

    @property
    def covariance(self) -> Tensor:
        """Σ_k w_k (S_k + (m_k − m)(m_k − m)ᵀ), ``(D, D)``."""
        w, centred = self.log_weights.exp(), self.means - self.mean.flatten()
        between = (w[:, None] * centred).T @ centred
        if self.vectors is None:
            return between + torch.diag(w @ self.variances)
        return between + torch.einsum("k,kij->ij", w, _full(self.variances, self.vectors))

    @property
    def reference(self) -> GaussianReference:
        """The Gaussian with the mixture's mean and covariance."""
        return GaussianReference.of_moments(self.mean, self.covariance).to(self._dtype)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Batch:
        """x = m_k + V_k √λ_k z, k ~ w."""
        device = self.means.device
        n = as_count(n, most=sys.maxsize, each=24 * self.means.shape[1])
        k = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64, device=device)
        y = self.variances[k].sqrt() * z
        if self.vectors is not None:
            rotated = torch.empty_like(y)
            for j, v in enumerate(self.vectors):
                rotated[k == j] = y[k == j] @ v.T
            y = rotated
        return (self.means[k] + y).reshape(n, *self.event_shape).to(self._dtype)

    def log_prob(self, x_t: Batch, kernel: Kernel) -> Rows:
        """Log Σ_k w_k N(x_t; alpha·m_k + shift, alpha²S_k + K), in nats."""
        return self._over_rows(lambda noisy, _: torch.logsumexp(noisy.log_joint(), dim=1), x_t, kernel)

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """−Σ_k r_k(x_t) (alpha²S_k + K)⁻¹(x_t − alpha·m_k − shift)."""
        return self._over_rows(lambda noisy, _: -noisy.average(noisy.slope), x_t, kernel).reshape(x_t.shape)

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """E[x | x_t] = Σ_k r_k [m_k + alpha·S_k(alpha²S_k + K)⁻¹(x_t − alpha·m_k − shift)]."""
        form = gaussian_form(kernel, x_t, "denoise")
        if not self._shares_axes(form):
            return tweedie(x_t.double(), self.score(x_t.double(), kernel), kernel).to(x_t.dtype)

        def f(noisy: _Noisy, form: GaussianForm) -> Tensor:
            alpha = _against_components(form.alpha)
            gain = alpha * self.variances
            return noisy.responsibilities() @ self.means + noisy.average(gain * noisy.slope)

        return self._over_rows(f, x_t, kernel).reshape(x_t.shape)

    def posterior_covariance(self, x_t: Batch, kernel: Kernel) -> Tensor:
        """Cov[x | x_t] = Σ_k r_k (C_k + d_k d_kᵀ), ``(B, D, D)`` over the flattened event.

        C_k = S_k − alpha²S_k(alpha²S_k + K)⁻¹S_k, d_k = E[x | x_t, k] − E[x | x_t].
        """

        def f(noisy: _Noisy, form: GaussianForm) -> Tensor:
            alpha, s = _against_components(form.alpha), _full(self.variances, self.vectors)
            v = torch.eye(s.shape[1], dtype=s.dtype, device=s.device) if noisy.vectors is None else noisy.vectors
            sv = s @ v
            r = noisy.responsibilities()
            each = self.means + alpha * torch.einsum("kij,bkj->bki", sv, noisy.slope)
            d = each - torch.einsum("bk,bki->bi", r, each)[:, None]
            gain = torch.einsum("kia,bka,kja->bkij", sv, (alpha**2 / noisy.variance).expand_as(noisy.y), sv)
            return torch.einsum("bk,bkij->bij", r, s - gain) + torch.einsum("bk,bki,bkj->bij", r, d, d)

        return self._over_rows(f, x_t, kernel, event_size(self.event_shape))

    def _over_rows(self, f, x_t: Batch, kernel: Kernel, factor: int = 1) -> Tensor:  # type: ignore[no-untyped-def]
        same_event(x_t, self.event_shape, "x_t")
        gaussian_form(kernel, x_t, "GaussianMixture")

        def at_rows(x_t: Tensor, kernel: Kernel) -> Tensor:
            form = gaussian_form(kernel, x_t, "GaussianMixture")
            result: Tensor = f(self._noisy(x_t, form), form)
            return result

        return by_chunks(at_rows, x_t, kernel, self.means.numel() * factor)

    def _shares_axes(self, form: GaussianForm) -> bool:
        """Whether the kernel's covariance is diagonal in each component's own eigenbasis."""
        return form.kind == "isotropic" or (form.kind == "diagonal" and self.vectors is None)

    def _noisy(self, x_t: Tensor, form: GaussianForm) -> _Noisy:
        alpha, k = _against_components(form.alpha), form.covariance.double()
        shift = form.shift.double()
        r = x_t.flatten(1)[:, None] - alpha * self.means - (shift if shift.ndim == 0 else shift.flatten())
        if self._shares_axes(form):
            extra = k if form.kind == "diagonal" else _against_components(k)
            variance, vectors = alpha**2 * self.variances + extra, self.vectors
        else:
            s = alpha**2 * _full(self.variances, self.vectors)
            variance, vectors = torch.linalg.eigh(s + (torch.diag(k) if form.kind == "diagonal" else k))
        y = r if vectors is None else (r.transpose(0, 1) @ vectors).transpose(0, 1)
        return _Noisy(y, variance.expand(1, -1, -1) if variance.ndim == 2 else variance, vectors, self.log_weights)


def _against_components(level: Tensor) -> Tensor:
    """A scalar, or ``(B,)`` shaped to ``(B, 1, 1)``."""
    return level.double() if level.ndim == 0 else level.double()[:, None, None]


def _full(variances: Tensor, vectors: Tensor | None) -> Tensor:
    """V diag(λ) Vᵀ of each component, ``(K, D, D)``."""
    if vectors is None:
        return torch.diag_embed(variances)
    return (vectors * variances[:, None, :]) @ vectors.mT


def _tensor(values: Tensor | float | Sequence[Any], name: str, dtype: torch.dtype) -> Tensor:
    """The values as they are if they have a dtype, otherwise in the given one; a list of tensors is their stack."""
    try:
        if isinstance(values, list | tuple) and any(isinstance(v, Tensor) for v in values):
            found = torch.stack([torch.as_tensor(v) for v in values])
        else:
            found = torch.as_tensor(values, dtype=None if hasattr(values, "dtype") else dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{name}: got {short(values)}, want numbers, as many in each component") from None
    return require_numbers(found, name)


def _check_components(weights: Tensor, means: Tensor) -> None:
    if means.ndim < 2 or not means.is_floating_point() or not bool(torch.isfinite(means).all()):
        raise InputError(f"means: got shape {tuple(means.shape)}, {means.dtype}, want finite floats (K, *event)")
    if weights.shape != means.shape[:1]:
        raise InputError(f"weights: got shape {tuple(weights.shape)}, want ({len(means)},), one a component")
    if not bool((torch.isfinite(weights) & (weights > 0)).all()):
        raise InputError("weights: got one that is not positive, want finite weights > 0")


def _eigen(covariances: Tensor, means: Tensor) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues ``(K, D)`` and eigenvectors ``(K, D, D)``, None for the axes, of covariances of any kind."""
    k, d = len(means), event_size(tuple(means.shape[1:]))
    c = covariances.double()
    if not bool(torch.isfinite(c).all()):
        raise InputError("covariances: got NaN or infinity, want finite numbers")
    if c.ndim == 0 or c.shape == (k,):
        variances, vectors = c.reshape(-1, 1).expand(k, d).clone(), None
    elif c.shape == means.shape:
        variances, vectors = c.flatten(1), None
    elif c.shape == (k, d, d):
        c = symmetric_part(covariances, _C)
        if bool((c == torch.diag_embed(c.diagonal(dim1=1, dim2=2))).all()):
            return _eigen(covariances.diagonal(dim1=1, dim2=2).reshape(means.shape), means)
        variances, vectors = torch.linalg.eigh(c)
        rounding = rounding_of_eigenvalues(covariances) * variances.amax(1, keepdim=True)
        variances = torch.where((variances <= rounding) & (variances >= -4 * rounding), 0.0, variances)
    else:
        want = f"a number, ({k},), {tuple(means.shape)} or ({k}, {d}, {d})"
        raise InputError(f"covariances: got shape {tuple(c.shape)}, want {want}")
    if bool((variances < 0).any()):
        raise InputError(
            f"covariances: got a negative variance {variances.min().item():.3g}, want positive semi-definite"
        )
    return variances, vectors
