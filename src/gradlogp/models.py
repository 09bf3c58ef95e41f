"""What a score model is, the Gaussian reference that is exact, and the network that learns what it leaves.

A model takes a kernel, not a time: ``model.score(x_t, kernel)`` is ψ(x_t) for that convolution, so the noise of
training and of sampling are decoupled. Exact densities (``gradlogp.oracles``) are models too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradlogp._shapes import Batch, InputError, Level, as_batch, as_count, per_row, same_event
from gradlogp.kernels import GaussianForm, Kernel

_LARGE = 1e30
NULL_TOLERANCE = 1e-10  # an eigenvalue below this share of the largest is a direction in which the data do not vary


class ScoreModel(nn.Module, ABC):
    """ψ(x_t; kernel) ≈ ∇log p_σ(x_t), p_σ = p ∗ q, for a batch ``(B, *event)``; its denoiser is the same thing."""

    @abstractmethod
    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """ψ(x_t), in 1/unit of the data, like x_t."""

    @abstractmethod
    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """E[x | x_t] by the model, like x_t (Gaussian kernels)."""

    @property
    def reference(self) -> GaussianReference | None:
        """The Gaussian that has the data's mean and covariance, where the model knows it."""
        return None


class Denoiser(ScoreModel):
    """A model given by its denoiser; the score follows by Tweedie's formula."""

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """ψ = K⁻¹(alpha·D(x_t) + shift − x_t), which is (alpha·D − x_t)/sigma² for isotropic noise."""
        return score_from_denoised(x_t, self.denoise(x_t, kernel), kernel)


class ScoreFunction(ScoreModel):
    """A model from a function (x_t, kernel) -> score.

    Args:
        function: any callable; a ``torch.nn.Module`` is registered, so that its parameters are the model's.
    """

    def __init__(self, function: Callable[[Tensor, Kernel], Tensor]) -> None:
        super().__init__()
        self.function = function

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """The function's value."""
        return self.function(x_t, kernel)

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """Tweedie's formula."""
        return tweedie(x_t, self.score(x_t, kernel), kernel)


def gaussian_form(kernel: Kernel, x_t: Batch, what: str) -> GaussianForm:
    """The kernel's Gaussian form, or an error that names what needs it."""
    form = kernel.gaussian_form(tuple(x_t.shape[1:]))
    if form is None:
        raise InputError(f"{what}: needs a Gaussian kernel, got {kernel!r}")
    return form


def tweedie(x_t: Batch, score: Batch, kernel: Kernel) -> Batch:
    """E[x | x_t] = (x_t − shift + K ∇log p_σ(x_t))/alpha for noise N(shift, K) (Robbins 1956; Miyasawa 1961).

    Raises:
        InputError: the kernel is not Gaussian, or alpha is 0.
    """
    form = gaussian_form(kernel, x_t, "denoise")
    if bool((form.alpha == 0).any()):
        raise InputError("denoise: alpha is 0, so x_t says nothing about x; want alpha > 0")
    return (x_t - form.shift.to(x_t) + _times(form, score)) / per_row(form.alpha, x_t)


def score_from_denoised(x_t: Batch, denoised: Batch, kernel: Kernel) -> Batch:
    """∇log p_σ(x_t) = K⁻¹(alpha·E[x | x_t] + shift − x_t): Tweedie's formula, solved for the score."""
    form = gaussian_form(kernel, x_t, "score of a denoiser")
    v = per_row(form.alpha, x_t) * denoised + form.shift.to(x_t) - x_t
    if form.kind == "isotropic":
        return v / per_row(form.covariance, x_t)
    flat = v.flatten(1)
    k = form.covariance.to(v)
    return (flat / k if form.kind == "diagonal" else torch.linalg.solve(k, flat.T).T).reshape(v.shape)


def _times(form: GaussianForm, v: Batch) -> Batch:
    """K v."""
    if form.kind == "isotropic":
        return per_row(form.covariance, v) * v
    k, flat = form.covariance.to(v), v.flatten(1)
    return (flat * k if form.kind == "diagonal" else flat @ k).reshape(v.shape)


class GaussianReference(ScoreModel):
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
        c, d = covariance.double(), mean.numel()
        if c.shape != (d, d):
            raise InputError(f"covariance: got shape {tuple(c.shape)}, want ({d}, {d})")
        if not bool(torch.isfinite(c).all()) or not torch.allclose(c, c.T, rtol=1e-6, atol=1e-6 * c.abs().max().item()):
            raise InputError("covariance: got one that is not finite or not symmetric")
        eigenvalues, v = torch.linalg.eigh(c)
        if bool(eigenvalues[0] < -1e-6 * eigenvalues.abs().max()):
            raise InputError(f"covariance: got an eigenvalue {eigenvalues[0].item():.3g}, want positive semi-definite")
        vary = eigenvalues > NULL_TOLERANCE * eigenvalues[-1].clamp_min(0)
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
        return ((v.flatten(1) @ self.eigenvectors) @ self.eigenvectors.T).reshape(v.shape)

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """−V h Vᵀ r − (r − VVᵀr)/sigma², r = x_t − alpha·μ − shift."""
        r = self.centred(x_t, kernel).flatten(1)
        form = kernel.gaussian_form(self.event_shape)
        if form is not None and form.kind != "isotropic":
            return -self._anisotropic_precision_times(r, kernel, form).reshape(x_t.shape)
        y = r @ self.eigenvectors
        alpha, sigma = _columns(kernel, x_t)
        out = -(y * self._precision(alpha, sigma)) @ self.eigenvectors.T
        if self.eigenvalues.numel() < self.mean.numel():
            out = out - (r - y @ self.eigenvectors.T) / sigma**2
        return out.reshape(x_t.shape)

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """μ + V g Vᵀ r: g_i is alpha·λ_i/(alpha²λ_i + sigma²) for the Gaussian, faded as the score is."""
        if gaussian_form(kernel, x_t, "denoise").kind != "isotropic":
            return tweedie(x_t, self.score(x_t, kernel), kernel)
        alpha, sigma = _columns(kernel, x_t)
        y = self.centred(x_t, kernel).flatten(1) @ self.eigenvectors
        g = self._blend(alpha, sigma, lambda variance: alpha * variance / (alpha**2 * variance + sigma**2))
        return self.mean + ((y * g) @ self.eigenvectors.T).reshape(x_t.shape)

    def centred(self, x_t: Batch, kernel: Kernel) -> Batch:
        """x_t − alpha·μ − shift, the shift being the mean of Gaussian noise."""
        same_event(x_t, self.event_shape, "x_t")
        form = kernel.gaussian_form(self.event_shape)
        r: Tensor = x_t - per_row(kernel.alpha, x_t) * self.mean
        return r if form is None else r - form.shift.to(x_t)

    def sample_noisy(self, n: int, kernel: Kernel, *, generator: torch.Generator | None = None) -> Batch:
        """Draws from N(alpha·μ, alpha²Σ + sigma² I), the Gaussian seen through isotropic noise."""
        z = torch.randn(
            as_count(n), self.mean.numel(), generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )
        alpha, sigma = _columns(kernel, z)
        y = z @ self.eigenvectors
        x = sigma * z + (y * ((alpha**2 * self.eigenvalues + sigma**2).sqrt() - sigma)) @ self.eigenvectors.T
        return (alpha * self.mean.flatten() + x).reshape(n, *self.event_shape)

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
        w = self._weight(*_columns(kernel, r))
        return w * own + (1 - w) * precision_times_r(self.data_scale**2)


class Preconditioned(ScoreModel):
    """A network on top of a closed-form reference: it learns only what the reference leaves.

        D(x_t) = D_ref(x_t) + c_out · P F(c_in · P(x_t − alpha·μ − shift), c_noise)
        ψ(x_t) = ψ_ref(x_t) + (alpha·c_out/sigma²) · P F(…)

    c_in = 1/√(alpha²σ_d² + sigma²), c_out = sigma·σ_d·c_in, c_noise = log(sigma/(alpha·σ_d)), and P the projection on
    the directions in which the data vary (Karras et al. 2022, table 1, with the skip replaced by the reference). A
    network that starts at zero starts as the reference. Under a kernel that is not Gaussian the same formula is a
    parametrisation of the score, with sigma the kernel's scale.

    Args:
        network: (z of the event's shape, c_noise ``(B,)``) -> like z.
        reference: the closed-form part.
    """

    def __init__(self, network: nn.Module, reference: GaussianReference) -> None:
        super().__init__()
        self.network = network
        self.skip = reference

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
        return self.skip.score(x_t, kernel) + (alpha * self.skip.data_scale * c_in / sigma) * self._residual(
            x_t, kernel, c_in
        )

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """D_ref + c_out P F; by Tweedie's formula where the noise is Gaussian but not isotropic."""
        if gaussian_form(kernel, x_t, "denoise").kind != "isotropic":
            return tweedie(x_t, self.score(x_t, kernel), kernel)
        sigma = per_row(kernel.sigma, x_t)
        c_in = self._c_in(per_row(kernel.alpha, x_t), sigma)
        return self.skip.denoise(x_t, kernel) + (sigma * self.skip.data_scale * c_in) * self._residual(
            x_t, kernel, c_in
        )

    def _c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 1 / torch.sqrt((alpha * self.skip.data_scale) ** 2 + sigma**2)

    def _residual(self, x_t: Batch, kernel: Kernel, c_in: Tensor) -> Batch:
        """P F(c_in · P(x_t − alpha·μ − shift), c_noise)."""
        z = c_in * self.skip.project(self.skip.centred(x_t, kernel))
        return self.skip.project(self.network(z, self._c_noise(kernel, x_t)))

    def _c_noise(self, kernel: Kernel, x_t: Batch) -> Tensor:
        alpha, sigma = _columns(kernel, x_t)
        ratio = (sigma / (alpha * self.skip.data_scale).clamp_min(torch.finfo(x_t.dtype).tiny)).clamp(1e-6, 1e6)
        return ratio.log().reshape(-1).expand(len(x_t))


def _columns(kernel: Kernel, x: Batch) -> tuple[Level, Level]:
    """Alpha and sigma against a flattened batch: scalars or ``(B, 1)``."""
    flat = x.flatten(1)
    return per_row(kernel.alpha, flat), per_row(kernel.sigma, flat)


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


def count_parameters(model: nn.Module) -> int:
    """Number of trained numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def event_of(model: ScoreModel) -> tuple[int, ...] | None:
    """The event shape a model is bound to, or None where any will do."""
    shape: tuple[int, ...] | None = getattr(model, "event_shape", None)
    return shape


__all__ = [
    "Denoiser",
    "GaussianReference",
    "Preconditioned",
    "ScoreFunction",
    "ScoreModel",
    "count_parameters",
    "event_of",
    "score_from_denoised",
    "tweedie",
]
