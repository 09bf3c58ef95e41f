"""The Gaussian reference, corrected by each coordinate's own marginal: still closed form, no training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradlogp._shapes import Batch, InputError, as_batch, per_row
from gradlogp.kernels import Kernel
from gradlogp.models.base import Reference, gaussian_form
from gradlogp.models.gaussian import GaussianReference

MAX_COMPONENTS = 32
PSEUDO_COUNT = 0.1  # rows that each unseen point between the smallest and the largest of a discrete column counts for
_MAX_ROWS = 50_000


class Marginals(nn.Module):
    """The law of each coordinate as a mixture Σ_v w_v N(m_v, s_v) on the line.

    A coordinate with few distinct values has its values as atoms (s = 0); any other has the means and variances of
    equally filled bins.

    Args:
        means, variances: m and s >= 0, ``(D, V)``.
        log_weights: log w, ``(D, V)``; −inf pads.
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor

    def __init__(self, means: Tensor, variances: Tensor, log_weights: Tensor) -> None:
        super().__init__()
        if means.ndim != 2 or variances.shape != means.shape or log_weights.shape != means.shape:
            got = f"{tuple(means.shape)}, {tuple(variances.shape)}, {tuple(log_weights.shape)}"
            raise InputError(f"Marginals: got shapes {got}, want (D, V) three times")
        self.register_buffer("means", means)
        self.register_buffer("variances", variances)
        self.register_buffer("log_weights", torch.log_softmax(log_weights, dim=1))

    @classmethod
    def of_data(cls, rows: Tensor, max_components: int = MAX_COMPONENTS) -> Marginals:
        """The marginals of rows ``(N, D)``, with their means and variances."""
        columns = rows[:_MAX_ROWS].double().T
        parts = [_atoms(c, max_components) or _bins(c, max_components) for c in columns]
        v = max(len(m) for m, _, _ in parts)
        m, s, log_w = (
            torch.stack([_padded(p[i], v, fill) for p in parts]) for i, fill in enumerate((0.0, 0.0, -torch.inf))
        )
        return cls(m, s, _with_moments(m, s, log_w, columns.mean(1), columns.var(1, correction=0)))

    def denoise(self, y: Tensor, noise: Tensor) -> Tensor:
        """E[x_j | y_j] for y_j = x_j + N(0, noise_j), each coordinate on its own; ``(B, D)``."""
        r, variance = y[:, :, None] - self.means, self.variances + noise[:, :, None]
        w = torch.softmax(self.log_weights - 0.5 * (r * r / variance + variance.log()), dim=2)
        return (w * (self.means + self.variances / variance * r)).sum(2)


class MarginalReference(Reference):
    """A closed-form denoiser that is exact for Gaussian data, and exact for independent coordinates of any law.

    For the Gaussian with the data's mean μ and covariance Σ, E[x | x_t] = m and Cov[x | x_t] has the diagonal c. What
    that says of x_j alone, beyond its prior N(μ_j, Σ_jj), is one observation y_j of x_j with noise variance ν_j,

        1/ν_j = 1/c_j − 1/Σ_jj,    y_j/ν_j = m_j/c_j − μ_j/Σ_jj,

    and the reference is each coordinate's posterior mean given y_j under its own marginal, D_j = E_{p_j}[x_j | y_j], and
    then the projection on the directions in which the data vary. If p_j is Gaussian that is m_j; if Σ is diagonal,
    y = x_t/alpha and ν = sigma²/alpha². It is one sweep of expectation propagation (Minka 2001) with the marginals as
    sites. Under noise that is not isotropic and Gaussian it is the Gaussian reference.

    Args:
        gaussian: the Gaussian with the data's moments; ``fade`` 0.
        marginals: the law of each coordinate.
    """

    def __init__(self, gaussian: GaussianReference, marginals: Marginals) -> None:
        super().__init__()
        if marginals.means.shape[0] != gaussian.mean.numel() or gaussian.fade != 0:
            got = f"{marginals.means.shape[0]} marginals, fade {gaussian.fade:g}"
            raise InputError(
                f"MarginalReference: got {got}, want one a coordinate, {gaussian.mean.numel()}, and fade 0"
            )
        self.gaussian = gaussian
        self.marginals = marginals

    @classmethod
    def of_data(cls, x: Batch) -> MarginalReference:
        """The reference of a data set ``(N, *event)``.

        Raises:
            InputError: fewer than two rows, or data that do not vary at all.
        """
        x = as_batch(x)
        marginals = Marginals.of_data(x.detach().flatten(1).cpu()).to(x)
        return cls(GaussianReference.of_data(x), marginals)

    @property
    def reference(self) -> GaussianReference:
        """The Gaussian with the data's moments."""
        return self.gaussian

    @property
    def mean(self) -> Tensor:
        """μ, ``(*event)``."""
        return self.gaussian.mean

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.gaussian.event_shape

    @property
    def data_scale(self) -> Tensor:
        """σ_d of the Gaussian."""
        return self.gaussian.data_scale

    def project(self, v: Batch) -> Batch:
        """The part of v in the directions in which the data vary."""
        return self.gaussian.project(v)

    def centred(self, x_t: Batch, kernel: Kernel) -> Batch:
        """x_t − alpha·μ − shift."""
        return self.gaussian.centred(x_t, kernel)

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """(alpha·D + shift − x_t)/sigma², as alpha·(D − μ) − (x_t − alpha·μ − shift)."""
        form = kernel.gaussian_form(self.event_shape)
        if form is None or form.kind != "isotropic":
            return self.gaussian.score(x_t, kernel)
        r = self.centred(x_t, kernel)
        return (per_row(form.alpha, x_t) * self._deviation(r, kernel) - r) / per_row(form.covariance, x_t)

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """D(x_t)."""
        if gaussian_form(kernel, x_t, "denoise").kind != "isotropic":
            return self.gaussian.denoise(x_t, kernel)
        return self.mean + self._deviation(self.centred(x_t, kernel), kernel)

    def _deviation(self, r: Batch, kernel: Kernel) -> Batch:
        """D − μ from r = x_t − alpha·μ − shift."""
        flat, g = r.flatten(1), self.gaussian
        alpha, sigma = per_row(kernel.alpha, flat), per_row(kernel.sigma, flat)
        lam, v = g.eigenvalues, g.eigenvectors
        gain = lam / (alpha**2 * lam + sigma**2)
        squares = (v**2).T
        shift = ((flat @ v) * (alpha * gain)) @ v.T
        prior = lam @ squares
        c = (gain * sigma**2) @ squares
        known = (alpha**2 * lam * gain) @ squares  # Σ_jj − c_j, with no difference taken
        prior, known, c = (u.clamp_min(_tiny(flat)) for u in (prior, known, c))  # a constant coordinate has none
        mu = self.mean.flatten()
        d = self.marginals.denoise(mu + shift * (prior / known), (c * (prior / known)).expand_as(flat)) - mu
        return g.project(d.reshape(r.shape))


def _tiny(x: Tensor) -> float:
    return float(torch.finfo(x.dtype).tiny ** 0.5)


def _atoms(column: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """The values of a discrete coordinate, with every point of their grid between them; None if they are too many."""
    values, counts = column.unique(return_counts=True)
    if len(values) > limit:
        return None
    points, weights = values, counts.double()
    if len(values) > 1:
        step = values.diff().min()
        k = ((values - values[0]) / step).round().long()
        on_grid = bool(((values - values[0]) / step - k).abs().max() < 1e-3)
        if on_grid and int(k[-1]) < limit:
            points = values[0] + step * torch.arange(int(k[-1]) + 1, dtype=values.dtype)
            points[k] = values
            weights = torch.full_like(points, PSEUDO_COUNT)
            weights[k] = counts.double()
    return points, torch.zeros_like(points), weights.log()


def _bins(column: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Equally filled bins: their means, and variances of at least the square of half the gap to the neighbours."""
    parts = column.sort().values.tensor_split(min(n, max(2, len(column) // 4)))
    means = torch.stack([p.mean() for p in parts])
    gap = torch.cat([means.diff()[:1], (means[2:] - means[:-2]) / 2, means.diff()[-1:]])
    variances = torch.maximum(torch.stack([p.var(correction=0) for p in parts]), (gap / 2) ** 2)
    return means, variances, torch.tensor([float(len(p)) for p in parts], dtype=means.dtype).log()


def _padded(v: Tensor, n: int, fill: float) -> Tensor:
    return torch.cat([v, torch.full((n - len(v),), fill, dtype=v.dtype)])


def _with_moments(m: Tensor, s: Tensor, log_w: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Weights ∝ w·exp(a·m + b·(m² + s)), with a, b such that each mixture has the given mean and variance.

    Newton's method on the convex dual, in standard units; the weights stay where none have these moments.
    """
    scale = variance.sqrt().clamp_min(torch.finfo(m.dtype).tiny ** 0.25)[:, None]
    t = (m - mean[:, None]) / scale
    features = torch.stack([t, t**2 + s / scale**2 - 1], dim=2)
    tilt = torch.zeros(len(m), 2, 1, dtype=m.dtype)
    for _ in range(30):
        w = torch.softmax(log_w + (features @ tilt).squeeze(2), dim=1)[:, :, None]
        gradient = (w * features).sum(1)
        centred = features - gradient[:, None]
        hessian = (w * centred).mT @ centred + 1e-9 * torch.eye(2, dtype=m.dtype)
        tilt = tilt - torch.linalg.solve(hessian, gradient[:, :, None]).clamp(-0.5, 0.5)
    tilted = log_w + (features @ tilt).squeeze(2)
    right = gradient.abs().amax(1) < 1e-6
    return torch.where(right[:, None], tilted, log_w)
