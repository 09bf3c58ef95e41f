"""The Gaussian reference, corrected by each coordinate's own marginal: still closed form, no training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gradlogp._shapes import Batch, InputError, as_batch, per_row
from gradlogp.kernels import Kernel
from gradlogp.models.base import Reference, columns, gaussian_form
from gradlogp.models.derived import Derived
from gradlogp.models.gaussian import GaussianReference

MAX_COMPONENTS = 32
PSEUDO_COUNT = 0.1  # rows that each unseen point between the smallest and the largest of a discrete column counts for
MOST_UNSEEN = 0.02  # of new rows, whose value is none of a discrete column's
_MAX_ROWS = 50_000
_N_GROUPS, _N_ITERATIONS, _COLUMNS = 256, 40, 32
_LEAST = 1e-12  # least variance taken in a quotient, in units of the largest
_SPREAD = 2**17  # numbers that a few columns and their components are spread over
_KNOTS_APART = 0.2  # in log λ, of eigenvalues that are summed over
_NARROWEST = 2e-5  # the least standard deviation of a component, in units of its column's: a peak may be narrow

Component = tuple[Tensor, Tensor, Tensor]  # means, variances, log weights of one mixture, (V,) each


class Marginals(nn.Module):
    """The law of each coordinate as a mixture Σ_v w_v N(m_v, s_v) on the line.

    A coordinate with few distinct values has its values as atoms (s = 0); any other a Gaussian mixture by maximum
    likelihood, its size by Schwarz's criterion.

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
        self._kinds = Derived(_kinds)

    @classmethod
    def of_data(cls, rows: Tensor, max_components: int = MAX_COMPONENTS) -> Marginals:
        """The marginals of rows ``(N, D)``, with their means and variances."""
        columns = rows.double().T
        mean, variance = columns.mean(1), columns.var(1, correction=0)
        columns = columns[:, :: math.ceil(columns.shape[1] / _MAX_ROWS)]  # evenly spaced, in case they are sorted
        parts = [_atoms(c, max_components) for c in columns]
        continuous = [j for j, part in enumerate(parts) if part is None]
        if continuous:
            for j, part in zip(continuous, _mixtures(columns[continuous], max_components), strict=True):
                parts[j] = part
        known = [part for part in parts if part is not None]
        v = max(len(part[0]) for part in known)
        m, s, log_w = (
            torch.stack([_padded(part[i], v, 0.0 if i < 2 else -torch.inf) for part in known]) for i in range(3)
        )
        return cls(m, s, _with_moments(m, s, log_w, mean, variance))

    def denoise(self, y: Tensor, noise: Tensor) -> Tensor:
        """E[x_j | y_j] for y_j = x_j + N(0, noise_j), each coordinate on its own; ``(B, D)``.

        A few columns at a time, so that what is spread over their components stays in the processor's cache.
        """
        y, noise = y.T.contiguous(), noise.T.contiguous()
        used, spread = self._kinds(self.log_weights, self.variances)
        size = max(1, _SPREAD // (y.shape[1] * self.means.shape[1]))
        out = []
        for k in range(0, len(y), size):
            some = slice(k, k + size)
            part = (b[some, : max(used[some]), None] for b in self.buffers())
            out.append(_posterior_means(y[some], noise[some], *part, atoms=not any(spread[some])))
        return torch.cat(out).T.contiguous()


def _kinds(log_weights: Tensor, variances: Tensor) -> tuple[list[int], list[bool]]:
    """Of each coordinate, how many components it has, and whether one of them is no atom."""
    place = torch.arange(1, log_weights.shape[1] + 1, device=log_weights.device)
    return (place * (log_weights > -torch.inf)).amax(1).tolist(), (variances > 0).any(1).tolist()


def _posterior_means(y: Tensor, noise: Tensor, m: Tensor, s: Tensor, log_w: Tensor, *, atoms: bool) -> Tensor:
    """E[x | y] for ``(d, B)`` y and noise, under d mixtures ``(d, V, 1)``; rows last, of which there are many."""
    if atoms:
        scale = (0.5 / noise).sqrt()
        r = torch.addcmul((scale * y)[:, None], m, scale[:, None], value=-1)
        return (m.mT @ _softmax(torch.addcmul(log_w, r, r, value=-1))).squeeze(1)
    r = y[:, None] - m
    variance = s + noise[:, None]
    share = r / variance
    w = _softmax(log_w - 0.5 * (r * share + variance.log()))
    return (w * (m + s * share)).sum(1)


def _softmax(log_w: Tensor) -> Tensor:
    """w over dimension 1, none below e^−60 of the largest: processors are slow where float32 all but underflows."""
    return torch.softmax(torch.maximum(log_w, log_w.detach().amax(1, keepdim=True) - 60), dim=1)


class MarginalReference(Reference):
    """A closed-form denoiser that is exact for Gaussian data, and exact for independent coordinates of any law.

    For the Gaussian with the data's mean μ and covariance Σ, E[x | x_t] = m and Cov[x | x_t] has the diagonal c. What
    that says of x_j alone, beyond its prior N(μ_j, Σ_jj), is one observation y_j of x_j with noise variance ν_j,

        1/ν_j = 1/c_j − 1/Σ_jj,    y_j/ν_j = m_j/c_j − μ_j/Σ_jj,

    and the reference is each coordinate's posterior mean given y_j under its own marginal, D_j = E_{p_j}[x_j | y_j],
    and then the projection on the directions in which the data vary. If p_j is Gaussian that is m_j; if Σ is diagonal,
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
        self._spectrum = Derived(_spectrum)

    def own_number(self) -> Tensor:
        """The mean."""
        return self.mean

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
        alpha, sigma = (level.reshape(-1, 1) for level in columns(kernel, flat))
        lam, v = g.eigenvalues, g.eigenvectors
        knots, shares, prior, least = self._spectrum(lam, v)
        shift = v @ ((flat @ v) * (alpha * lam / (alpha**2 * lam + sigma**2))).T
        c = torch.maximum(shares @ (knots / (alpha**2 * knots + sigma**2) * sigma**2).T, least)  # of the prior
        gain = (1 - c).clamp_min(torch.finfo(c.dtype).eps)  # at least its rounding
        y, noise = self.mean.reshape(-1, 1) + shift / gain, prior * (c / gain)
        d = self.marginals.denoise(y.T, noise.expand_as(y).T) - self.mean.flatten()
        return g.project(d.reshape(r.shape))


def _spectrum(eigenvalues: Tensor, eigenvectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Knots ℓ ``(K,)`` and shares W ``(D, K)``: Σ_i v_ji² f(λ_i) = Σ_jj Σ_k W_jk f(ℓ_k), f = λσ²/(λ + σ²), any σ.

    With them the prior variances Σ_jj, and the least share of them that a variance is taken to be, both ``(D, 1)``.

    They are the eigenvalues and v²; but where there are many, in float32, equidistant knots in log λ, v² being
    spread over eight of them by Lagrange's interpolation. f is analytic within ±iπ of real log λ, so that with knots
    h apart it is right to a share of 43·(h/π)⁸ = 1e-8: less than rounding.
    """
    squares = eigenvectors**2
    least = _LEAST * eigenvalues.max()  # a constant coordinate has no variance
    prior = torch.maximum(squares @ eigenvalues[:, None], least)
    log = eigenvalues.double().log()
    place = (log - log.min()) / _KNOTS_APART
    n = int(place.max()) + 8
    if squares.dtype == torch.float64 or 4 * n > len(log):
        return eigenvalues, squares / prior, prior, least / prior
    near = torch.arange(8, device=log.device, dtype=log.dtype)
    at = place.floor()
    t = (place - at + 3)[:, None, None]
    others = ~torch.eye(8, dtype=torch.bool, device=log.device)
    factors = torch.where(others, (t - near) / torch.where(others, near[:, None] - near, 1.0), 1.0)
    spread = torch.zeros(len(log), n, dtype=log.dtype, device=log.device)
    spread.scatter_(1, (at[:, None] + near).long(), factors.prod(2))
    knots = (log.min() + _KNOTS_APART * (torch.arange(n, device=log.device) - 3)).exp()
    return knots.to(squares), (squares.double() @ spread / prior).to(squares), prior, least / prior


def _atoms(column: Tensor, limit: int) -> Component | None:
    """The values of a discrete coordinate, with every point of their grid between them; None if it is not discrete.

    Values are atoms only where they repeat: few rows of a continuous column are no atoms. Nor are values of which new
    rows will show others, unless all points of their grid are atoms: a new row has an unseen value with a probability
    of about the share of rows whose value no other has (Good 1953), and no density there.
    """
    values, counts = column.unique(return_counts=True)
    if len(values) > limit or 2 * len(values) > len(column):
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
    if int((counts == 1).sum()) > MOST_UNSEEN * len(column):
        return None
    return points, torch.zeros_like(points), weights.log()


def _mixtures(columns: Tensor, limit: int) -> list[Component]:
    """A Gaussian mixture for each column ``(D, N)``, of 1, 2, 4, … components, as many as Schwarz's criterion wants.

    Few components where few will do keep the score smooth: one for a Gaussian column. Expectation maximisation runs on
    the means and variances of at most 256 equally filled groups of sorted rows, which stand for their rows.
    """
    if len(columns) > _COLUMNS:  # of more the numbers at work leave the processor's cache
        return [found for part in columns.split(_COLUMNS) for found in _mixtures(part, limit)]
    n = columns.shape[1]
    groups = columns.sort(dim=1).values.tensor_split(min(n, _N_GROUPS), dim=1)
    mean = torch.stack([g.mean(1) for g in groups], 1)
    variance = torch.stack([g.var(1, correction=0) for g in groups], 1)
    share = torch.tensor([g.shape[1] / n for g in groups], dtype=columns.dtype)
    floor = (_NARROWEST * columns.std(1, correction=0))[:, None] ** 2
    fits = []
    for k in (2**i for i in range(int(math.log2(min(limit, max(1, n // 8)))) + 1)):
        m, s, w, log_likelihood = _expectation_maximisation(mean, variance, share, floor, k)
        fits.append((-2 * n * log_likelihood + (3 * k - 1) * math.log(n), m, s, w.log()))
    best = torch.stack([fit[0] for fit in fits]).argmin(0).tolist()
    return [(fits[i][1][j], fits[i][2][j], fits[i][3][j]) for j, i in enumerate(best)]


def _expectation_maximisation(
    mean: Tensor, variance: Tensor, share: Tensor, floor: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, variances, weights ``(D, k)`` of a mixture for groups of rows, and the mean log-likelihood ``(D,)``."""
    parts = [(mean[:, i], variance[:, i], share[i]) for i in torch.arange(len(share)).tensor_split(k)]
    w = torch.stack([q.sum() for _, _, q in parts]).expand(len(mean), k)
    m = torch.stack([(u * q).sum(1) / q.sum() for u, _, q in parts], 1)
    s = torch.stack([((u - m[:, i : i + 1]) ** 2 * q + v * q).sum(1) / q.sum() for i, (u, v, q) in enumerate(parts)], 1)
    s = torch.maximum(s, floor)
    for _ in range(_N_ITERATIONS):
        squared = (mean[:, :, None] - m[:, None]) ** 2 + variance[:, :, None]
        log_joint = w.log()[:, None] - 0.5 * (squared / s[:, None] + (2 * math.pi * s).log()[:, None])
        log_likelihood = torch.logsumexp(log_joint, 2) @ share
        r = torch.softmax(log_joint, 2) * share[:, None]
        w = r.sum(1).clamp_min(1e-12)
        m = (r * mean[:, :, None]).sum(1) / w
        squared = (mean[:, :, None] - m[:, None]) ** 2 + variance[:, :, None]
        s = torch.maximum((r * squared).sum(1) / w, floor)
    return m, s, w / w.sum(1, keepdim=True), log_likelihood


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
