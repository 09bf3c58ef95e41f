"""The Gaussian reference: the closed form that is exact for Gaussian data, and at large noise for all."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows, as_batch, as_count, dot, per_row, same_event
from gradlogp.kernels import Gaussian, GaussianForm, Kernel
from gradlogp.models.base import Reference, columns, gaussian_form, tweedie
from gradlogp.models.derived import Derived

_LARGE = 1e30
NULL_TOLERANCE = 1e-10  # an eigenvalue below this share of the largest is a direction in which the data do not vary


class GaussianReference(Reference):
    """The closed-form part of a score: that of the Gaussian with the data's mean μ and covariance Σ = VΛVᵀ.

    Under isotropic Gaussian noise the score in eigen-direction i is −h_i·vᵢᵀ(x_t − alpha·μ − shift), with

        h_i = w/(alpha²λ_i + sigma²) + (1 − w)/(alpha²σ_d² + sigma²),    w = sigma²/(sigma² + (fade·alpha·σ_d)²),

    σ_d² the mean of the λ_i > 0. ``fade = 0`` is the Gaussian's own score, the best affine one at every noise level;
    ``fade = inf`` is the scalar skip of EDM (Karras et al. 2022, table 1), centred; in between, the Gaussian fades out
    below ``fade`` times the data's scale, where data are not Gaussian. Directions in which the data do not vary
    (λ_i = 0: constant or collinear columns) are exact at any ``fade``: h = 1/sigma². Under noise N(shift, K) that is
    not isotropic, 1/(alpha²λ + sigma²) is (alpha²Σ + K)⁻¹; under noise that is not Gaussian, sigma is its scale.

    Args:
        mean: μ, ``(*event)``.
        eigenvalues: λ > 0 of the directions in which the data vary, ``(R,)``.
        eigenvectors: V, orthonormal columns, ``(D, R)``.
        fade: where the Gaussian fades out, in units of σ_d; >= 0.

    Raises:
        InputError: shapes that do not fit, or an eigenvalue <= 0.
    """

    mean: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor

    def __init__(self, mean: Tensor, eigenvalues: Tensor, eigenvectors: Tensor, fade: float = 0.0) -> None:
        super().__init__()
        if eigenvectors.shape != (mean.numel(), eigenvalues.numel()) or eigenvalues.numel() == 0:
            got = f"{tuple(mean.shape)}, {tuple(eigenvalues.shape)}, {tuple(eigenvectors.shape)}"
            raise InputError(f"GaussianReference: got shapes {got}, want (*event), (R,), (D, R) with R >= 1")
        if not bool(torch.isfinite(mean).all() & torch.isfinite(eigenvectors).all()):
            raise InputError("GaussianReference: got NaN or infinity in the mean or eigenvectors, want finite numbers")
        if not bool((torch.isfinite(eigenvalues) & (eigenvalues > 0)).all()) or not fade >= 0:
            raise InputError(
                "GaussianReference: got an eigenvalue or fade that is negative or NaN, want eigenvalues > 0, fade >= 0"
            )
        self.register_buffer("mean", mean)
        self.register_buffer("eigenvalues", eigenvalues)
        self.register_buffer("eigenvectors", eigenvectors)
        self.fade = fade
        self._coordinates = Derived(_varying_coordinates)

    def own_number(self) -> Tensor:
        """The mean."""
        return self.mean

    @classmethod
    def of_data(cls, x: Batch, fade: float = 0.0) -> GaussianReference:
        """The reference of a data set; with fewer rows than coordinates, Σ is shrunk (Ledoit and Wolf 2004).

        Raises:
            InputError: fewer than two rows, or data that do not vary at all.
        """
        x = as_batch(x)
        if len(x) < 2:
            raise InputError(f"x: got {len(x)} row, want at least 2")
        flat = x.detach().flatten(1).double()
        mean = flat.mean(0)
        return cls.of_moments(mean.reshape(x.shape[1:]), _covariance(flat - mean), fade).to(
            dtype=x.dtype, device=x.device
        )

    @classmethod
    def of_moments(cls, mean: Tensor, covariance: Tensor, fade: float = 0.0) -> GaussianReference:
        """The reference with a given mean ``(*event)`` and covariance ``(D, D)``.

        Raises:
            InputError: shapes that do not fit, or a covariance that is not symmetric and positive semi-definite.
        """
        d = mean.numel()
        if covariance.shape != (d, d):
            raise InputError(f"covariance: got shape {tuple(covariance.shape)}, want ({d}, {d})")
        eigenvalues, v = torch.linalg.eigh(symmetric_part(covariance, "covariance"))
        rounding = rounding_of_eigenvalues(covariance)
        if bool(eigenvalues[0] < -max(1e-6, 4 * rounding) * eigenvalues.abs().max()):
            raise InputError(f"covariance: got an eigenvalue {eigenvalues[0].item():.3g}, want positive semi-definite")
        vary = eigenvalues > max(NULL_TOLERANCE, rounding) * eigenvalues[-1].clamp_min(0)
        if not bool(vary.any()):
            raise InputError("x: every column is constant, want data that vary")
        return cls(mean, eigenvalues[vary].to(mean), v[:, vary].to(mean).contiguous(), fade)

    @property
    def reference(self) -> GaussianReference:
        """The Gaussian at every noise level: itself, if it does not fade out."""
        return self if self.fade == 0 else GaussianReference(self.mean, self.eigenvalues, self.eigenvectors)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.mean.shape)

    @property
    def data_scale(self) -> Tensor:
        """σ_d, the root mean square standard deviation over the directions in which the data vary."""
        return self.eigenvalues.mean().sqrt()

    def project(self, v: Batch) -> Batch:
        """The part of v in the directions in which the data vary."""
        if self.eigenvalues.numel() == self.mean.numel():
            return v
        if (varies := self._coordinates(self.eigenvectors)) is not None:
            return (v.flatten(1) * varies.to(v)).reshape(v.shape)
        return ((v.flatten(1) @ self.eigenvectors) @ self.eigenvectors.T).reshape(v.shape)

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """−V h Vᵀ r − (r − VVᵀr)/sigma², r = x_t − alpha·μ − shift."""
        r = self.centred(x_t, kernel).flatten(1)
        form = kernel.gaussian_form(self.event_shape)
        if form is not None and form.kind != "isotropic":
            return -self._anisotropic_precision_times(r, kernel, form).reshape(x_t.shape)
        y = r @ self.eigenvectors
        alpha, sigma = columns(kernel, x_t)
        out = -(y * self._precision(alpha, sigma)) @ self.eigenvectors.T
        if self.eigenvalues.numel() < self.mean.numel():
            out = out - (r - self.project(r)) / sigma**2
        return out.reshape(x_t.shape)

    def energy(self, x_t: Batch, kernel: Kernel) -> Rows:
        """E = ½ Σ_i h_i y_i² + ½‖r − VVᵀr‖²/sigma², y = Vᵀr, ψ = −∇E: −log of the Gaussian's density + constant."""
        form = kernel.gaussian_form(self.event_shape)
        if form is not None and form.kind != "isotropic":
            return -0.5 * dot(self.score(x_t, kernel), self.centred(x_t, kernel))
        r = self.centred(x_t, kernel).flatten(1)
        y = r @ self.eigenvectors
        alpha, sigma = columns(kernel, x_t)
        quadratic: Tensor = (y**2 * self._precision(alpha, sigma)).sum(1)
        if self.eigenvalues.numel() < self.mean.numel():
            quadratic = quadratic + ((r - self.project(r)) / sigma).square().sum(1)
        return 0.5 * quadratic

    def unnormalised_log_prob(self, x_t: Batch, kernel: Kernel) -> Rows:
        """−E."""
        return -self.energy(x_t, kernel)

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """μ + V g Vᵀ r: g_i is alpha·λ_i/(alpha²λ_i + sigma²) for the Gaussian, faded as the score is."""
        if gaussian_form(kernel, x_t, "denoise").kind != "isotropic":
            return tweedie(x_t, self.score(x_t, kernel), kernel)
        alpha, sigma = columns(kernel, x_t)
        y = self.centred(x_t, kernel).flatten(1) @ self.eigenvectors
        g = self._blend(alpha, sigma, lambda variance: alpha * variance / (alpha**2 * variance + sigma**2))
        return self.mean + ((y * g) @ self.eigenvectors.T).reshape(x_t.shape)

    def centred(self, x_t: Batch, kernel: Kernel) -> Batch:
        """x_t − alpha·μ − shift, the shift being the mean of Gaussian noise."""
        same_event(x_t, self.event_shape, "x_t")
        r: Tensor = x_t - per_row(kernel.alpha, x_t) * self.mean
        if type(kernel) is Gaussian or (form := kernel.gaussian_form(self.event_shape)) is None:
            return r
        return r - form.shift.to(x_t)

    def sample_noisy(self, n: int, kernel: Kernel, *, generator: torch.Generator | None = None) -> Batch:
        """Draws from N(alpha·μ, alpha²Σ + sigma² I), the Gaussian seen through isotropic noise."""
        n = as_count(n, most=sys.maxsize, each=2 * self.mean.nbytes)
        z = torch.randn(n, *self.event_shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.coloured(z, kernel)

    def coloured(self, z: Batch, kernel: Kernel) -> Batch:
        """alpha·μ + (alpha²Σ + sigma² I)^{1/2} z: standard normal numbers made into draws of the noisy Gaussian."""
        flat = z.flatten(1)
        alpha, sigma = columns(kernel, z)
        y = flat @ self.eigenvectors
        x = sigma * flat + (y * ((alpha**2 * self.eigenvalues + sigma**2).sqrt() - sigma)) @ self.eigenvectors.T
        return (alpha * self.mean.flatten() + x).reshape(z.shape)

    def _precision(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._blend(alpha, sigma, lambda variance: 1 / (alpha**2 * variance + sigma**2))

    def _blend(self, alpha: Tensor, sigma: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        if self.fade == 0:
            return f(self.eigenvalues)
        w = self._weight(alpha, sigma)
        return w * f(self.eigenvalues) + (1 - w) * f(self.data_scale**2)

    def _weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The Gaussian's share, sigma²/(sigma² + (fade·alpha·σ_d)²); 1 at alpha = 0 even where fade is infinite."""
        w: Tensor = 1 / (1 + (min(self.fade, _LARGE) * alpha * self.data_scale / sigma) ** 2)
        return w

    def _anisotropic_precision_times(self, r: Tensor, kernel: Kernel, form: GaussianForm) -> Tensor:
        """w(alpha²Σ + K)⁻¹r + (1 − w)(alpha²σ_d²VVᵀ + K)⁻¹r, in float64."""
        v, k, alpha = (u.to(r.device).double() for u in (self.eigenvectors, form.covariance, form.alpha))
        k = torch.diag(k) if form.kind == "diagonal" else k

        def precision_times_r(variance: Tensor) -> Tensor:
            columns: Tensor = torch.linalg.solve(alpha**2 * (v * variance.double()) @ v.T + k, r.double().T)
            return columns.T.to(r)

        own = precision_times_r(self.eigenvalues)
        if self.fade == 0:
            return own
        w = self._weight(*columns(kernel, r))
        return w * own + (1 - w) * precision_times_r(self.data_scale**2)


def _varying_coordinates(eigenvectors: Tensor) -> Tensor | None:
    """Which coordinates vary, ``(D,)``, where the data vary in all directions of these; None where they do not."""
    varies = eigenvectors.square().sum(1) > torch.finfo(eigenvectors.dtype).eps ** 2
    return varies if int(varies.sum()) == eigenvectors.shape[1] else None


def symmetric_part(covariance: Tensor, name: str) -> Tensor:
    """Covariances ``(*, D, D)`` in float64, symmetric; asymmetry within the rounding of their dtype is taken for that.

    Raises:
        InputError: NaN or infinity, or more asymmetry than rounding makes.
    """
    c = covariance.double()
    if not bool(torch.isfinite(c).all()):
        raise InputError(f"{name}: got NaN or infinity, want finite numbers")
    scale = c.diagonal(dim1=-2, dim2=-1).abs().sqrt()
    slack = max(1e-6, 32 * _eps(covariance)) * scale[..., :, None] * scale[..., None, :]
    if bool(((c - c.mT).abs() > slack + 1e-15 * c.abs().max()).any()):
        raise InputError(f"{name}: got a matrix that is not symmetric, want a symmetric one")
    return 0.5 * (c + c.mT)


def rounding_of_eigenvalues(covariance: Tensor) -> float:
    """Twice what rounding its entries may add to an eigenvalue of a matrix ``(*, D, D)``, in units of the largest."""
    return _eps(covariance) * math.sqrt(covariance.shape[-1])


def _eps(v: Tensor) -> float:
    return float(torch.finfo(v.dtype if v.is_floating_point() else torch.float64).eps)


def _covariance(centred: Tensor) -> Tensor:
    """Sample covariance of centred rows ``(N, D)``; shrunk towards a multiple of the identity where N <= D."""
    n, d = centred.shape
    covariance = centred.T @ centred / n
    if n > d:
        return covariance
    vary = (centred != centred[:1]).any(0)
    if not bool(vary.any()):
        return covariance
    scale = covariance.diagonal()[vary].mean()
    target = torch.diag(vary * scale).to(covariance)
    spread = (covariance - target).square().sum()
    noise = (centred.square().sum(1).square().sum() / n - covariance.square().sum()) / n
    shrinkage = (noise / spread.clamp_min(torch.finfo(torch.float64).tiny)).clamp(0.0, 1.0)
    return (1 - shrinkage) * covariance + shrinkage * target
