"""Denoising errors integrated over noise levels: what log-densities, entropies and divergences have in common.

With x_s = x + s·z and any density q, p_s and q_s seen through that noise, L_q(x; s) = E_z[−log q_s(x_s)] obeys, for
every single point x,

    dL_q/ds = D/s − s⁻³ E_z‖x − E_q[x | x_s]‖²

(heat equation for q_s, and Stein's lemma for z). In the difference of two densities D/s cancels:

    L_a(x; s₀) − L_b(x; s₀) = L_a(x; s₁) − L_b(x; s₁) + ∫_{s₀}^{s₁} s⁻³ E_z[‖x − D_a(x_s)‖² − ‖x − D_b(x_s)‖²] ds.

The integral is estimated here, without bias: both denoisers on the same x_s, at stratified levels from a density that
a short pilot fits.

Reference: Guo, Shamai and Verdú (2005), "Mutual information and minimum mean-square error in Gaussian channels";
Kong, Brekelmans and Ver Steeg (2023), "Information-theoretic diffusion".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Level, Rows, dot, per_row, same_event, squared_norm
from gradlogp.kernels import Gaussian
from gradlogp.models import GaussianReference, ScoreModel, event_of, require_gaussian
from gradlogp.samplers.starts import START, ends

Denoise: TypeAlias = Callable[[Batch, Level], Tensor]  # (x_s, s) -> D(x_s) in float64

N_BINS = 24  # of log s, in each of which the density of levels is constant
N_PILOT = 64  # draws a bin that the density is fitted to
DEFENSIVE = (
    0.2  # share of levels drawn evenly in log s, whatever the pilot says: no weight is above 5 times the even one
)
DRAWS_AT_A_TIME = 2**15  # rows a call of a model


def denoiser(model: ScoreModel, x: Batch, what: str) -> Denoise:
    """D(x_s; s) of a model that is called in the dtype of x, in float64.

    Raises:
        InputError: the model is for other noise or another event shape, or (when called) answers NaN or infinity.
    """
    require_gaussian(model, what)
    shape = event_of(model)
    if shape is not None:
        same_event(x, shape)

    def denoise(x_s: Batch, s: Level) -> Tensor:
        with torch.no_grad():
            d = model.denoise(x_s, Gaussian(s)).double()
        if not bool(torch.isfinite(d).all()):
            bad = (~torch.isfinite(d)).flatten(1).any(1)
            raise InputError(
                f"{what}: got NaN or infinity from the model at sigma = {s[bad][0]:g}, want finite numbers"
            )
        return d

    return denoise


def exactly(reference: GaussianReference) -> GaussianReference:
    """A reference in float64."""
    g = reference.reference
    return GaussianReference(g.mean.double(), g.eigenvalues.double(), g.eigenvectors.double())


def gaussian_denoiser(reference: GaussianReference) -> Denoise:
    """D_G of a Gaussian, in float64."""
    g = exactly(reference)
    return lambda x_s, s: g.denoise(x_s.double(), Gaussian(s.double()))


def gaussian_log_loss(reference: GaussianReference, x: Batch, s: float) -> Rows:
    """L_G(x; s) = E_z[−log N(x + s·z; μ, Σ + s²I)], ``(B,)``, in nats and float64.

    With λ the eigenvalues of Σ and y the coordinates of x − μ in its eigenvectors:
    ½ Σ_i [log 2π(λ_i + s²) + (y_i² + s²)/(λ_i + s²)].
    """
    g = exactly(reference)
    r = (x.double() - g.mean).flatten(1)
    y, variance = r @ g.eigenvectors, g.eigenvalues + s**2
    rest, n_rest = (squared_norm(r) - squared_norm(y)).clamp_min(0), r.shape[1] - y.shape[1]
    quadratic = ((y.square() + s**2) / variance).sum(1) + rest / s**2 + n_rest
    log_det = (2 * math.pi * variance).log().sum() + n_rest * math.log(2 * math.pi * s**2)
    return 0.5 * (quadratic + log_det)


def reference_of(model: ScoreModel, x: Batch) -> GaussianReference:
    """The Gaussian of the model, or of the rows where it knows none: the difference shows at sigma_max only."""
    return GaussianReference.of_data(x) if model.reference is None else model.reference


def levels_for(
    references: tuple[GaussianReference, ...], x: Batch, sigma_min: float | None, sigma_max: float | None
) -> tuple[float, float]:
    """(sigma_max, sigma_min): as given, otherwise from the smallest data scale and the widest spread about a mean.

    The spread is that of the rows about each Gaussian's mean too, so that rows far from a model start far above both.
    """
    if sigma_max is None:
        sigma_max = START * max(max(_spread(x, g), g.eigenvalues.max().sqrt().item()) for g in references)
    narrowest = min(references, key=lambda g: g.data_scale.item())
    return ends(narrowest, sigma_max, sigma_min)


def _spread(x: Batch, reference: GaussianReference) -> float:
    """√ of the largest eigenvalue of the rows' second moment about the Gaussian's mean."""
    r = (x.double() - reference.mean.double()).flatten(1)
    second = r.T @ r if r.shape[1] <= r.shape[0] else r @ r.T
    return math.sqrt(max(torch.linalg.eigvalsh(second)[-1].item(), 0.0) / len(r))


@dataclass(frozen=True)
class Levels:
    """A density of levels that is constant in log s within each of M equal bins.

    Attributes:
        low: log s₀.
        width: of a bin, in log s.
        mass: probability of each bin, ``(M,)``.
    """

    low: float
    width: float
    mass: Tensor

    def quantile(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """S and 1/density in log s at probabilities v in [0, 1), like v."""
        top = self.mass.cumsum(0)
        b = torch.searchsorted(top, v, right=True).clamp_max(len(top) - 1)
        within = ((v - (top - self.mass)[b]) / self.mass[b]).clamp(0, 1)
        return (self.low + (b + within) * self.width).exp(), self.width / self.mass[b]


@dataclass(frozen=True)
class Pair:
    """Two denoisers on the same noisy rows."""

    a: Denoise
    b: Denoise

    def excess(self, x: Batch, s: Rows, generator: torch.Generator) -> Rows:
        """s⁻²(‖x − D_a‖² − ‖x − D_b‖²) = s⁻²⟨D_a − D_b, D_a + D_b − 2x⟩ at x_s = x + s·z, ``(B,)``.

        Its mean is the integrand in log s. As D_a − D_b = s²(ψ_a − ψ_b) it is O(s) at small s, where each of the two
        terms has the variance of ‖z‖².
        """
        x_s = x + per_row(s, x) * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        a, b = self.a(x_s, s), self.b(x_s, s)
        return dot(a - b, a + b - 2 * x.double()) / s.double() ** 2

    def pilot(self, x: Batch, sigma_min: float, sigma_max: float, generator: torch.Generator) -> Levels:
        """Levels with density ∝ the root mean square of the integrand, mixed with some that are even in log s."""
        low, width = math.log(sigma_min), math.log(sigma_max / sigma_min) / N_BINS
        even = torch.full((N_BINS,), 1 / N_BINS, dtype=torch.float64, device=x.device)
        which = torch.randint(len(x), (N_BINS * N_PILOT,), generator=generator, device=x.device)
        u = _uniform((N_BINS, N_PILOT), x, generator) + torch.arange(N_BINS, device=x.device)[:, None]
        s = (low + u.flatten() * width).exp().to(x.dtype)
        size = self.excess(x[which], s, generator).reshape(N_BINS, N_PILOT).square().mean(1).sqrt()
        total = size.sum()
        mass = even if total <= 0 else DEFENSIVE * even + (1 - DEFENSIVE) * size / total
        return Levels(low, width, mass)

    def integral(self, x: Batch, levels: Levels, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """∫ s⁻³ E_z[‖x − D_a‖² − ‖x − D_b‖²] ds of each row, ``(B, R)``: R independent unbiased replicates.

        Args:
            x: rows.
            levels: where to draw s from.
            shape: (R, K): replicates, and levels in each, one in each of K equally probable strata.
            generator: source of the draws.
        """
        n, k = shape
        size = max(1, DRAWS_AT_A_TIME // (n * k))
        return torch.cat([self._rows(rows, levels, shape, generator) for rows in x.split(size)])

    def _rows(self, x: Batch, levels: Levels, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        n, k = shape
        offset = _uniform((len(x), n, 1), x, generator)
        s, weight = levels.quantile((torch.arange(k, device=x.device) + offset) / k)
        excess = self.excess(x.repeat_interleave(n * k, 0), s.flatten().to(x.dtype), generator)
        return (excess.reshape(weight.shape) * weight).mean(2)

    def above(self, x: Batch, sigma_max: float, n: int, generator: torch.Generator) -> Tensor:
        """Half of the integrand in log s at sigma_max, ``(B, n)``: the size of what is neglected above.

        The integrand in log s falls as s⁻² where two means differ, s⁻⁴ where covariances do, s⁻⁶ where the moments
        agree, so that its integral from an s₁ above the data's scale on is at most half of its value there.
        """

        def one(rows: Batch) -> Tensor:
            s = torch.full((len(rows) * n,), sigma_max, dtype=x.dtype, device=x.device)
            return 0.5 * self.excess(rows.repeat_interleave(n, 0), s, generator).reshape(-1, n)

        return torch.cat([one(rows) for rows in x.split(max(1, DRAWS_AT_A_TIME // n))])


def _uniform(shape: tuple[int, ...], x: Batch, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=x.device)
