"""Modes of p_σ: mean shift on a score, with longer steps where the density is wide."""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy  # whose parts are imported when first used
import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows, as_batch, as_count, as_number, dot, squared_norm
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel, require_model

CURVATURE_UP_TO = 128  # coordinates: the Jacobian takes one backward pass each
_ROUNDING = 16  # times eps·‖x‖/σ, by which rounding of x alone may change ‖ψ‖σ
_APART, _DOUBT = 0.05, 0.02  # the difference that checks autograd, in σ, and by how much it may be off, in 1/σ²
_PAIRS = 2**22  # distances at a time
_SHOWN = 12  # modes in __str__


@dataclass(frozen=True)
class Modes:
    """Where ascents from many starts end, M places in all, the one that most starts lead to first.

    Attributes:
        points: ``(M, *event)``, in the space of x_t: a mode of the clean data is points/alpha.
        shares: the share of all starts that end there, ``(M,)``; what is missing from 1 did not converge.
        stderr: its standard error as the probability of a draw of the starts' law, ``(M,)``.
        labels: the place that each start leads to, ``(B,)``; −1 for starts that did not converge.
        gradient_norm: ‖ψ‖·sigma at the points, ``(M,)``: the numerical error, 0 at a true mode.
        curvature: largest eigenvalue of ½(J + Jᵀ), J = ∇ψ, ``(M,)``, in 1/unit²: negative at a maximum. NaN where
            autograd does not follow the score (by a difference of scores along the eigenvector, to 0.02/sigma²), or
            beyond 128 coordinates.
        sigma: the kernel's.
        n_calls: how often the model was asked for scores, each time of the starts that were still on their way.
        n_scores: of how many points in all.
    """

    points: Tensor
    shares: Tensor
    stderr: Tensor
    labels: Tensor
    gradient_norm: Tensor
    curvature: Tensor
    sigma: float
    n_calls: int
    n_scores: int

    @property
    def is_maximum(self) -> Tensor:
        """Where the curvature is negative beyond rounding, ``(M,)``: not at saddles, on plateaus, or if it is NaN."""
        return self.curvature < -64 * torch.finfo(self.points.dtype).eps / self.sigma**2

    def __str__(self) -> str:
        lost, other = int((self.labels < 0).sum()), int((~self.is_maximum & ~self.curvature.isnan()).sum())
        beside = f" and {other} beside them that are no maxima" if other else ""
        found = f"modes: {len(self.points) - other}{beside}, from {len(self.labels)} starts"
        lines = [f"{found}; {lost} starts did not converge; {self.n_calls} calls"]
        lines += [self._line(m) for m in range(min(len(self.points), _SHOWN))]
        more = len(self.points) - _SHOWN
        return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)

    def _line(self, m: int) -> str:
        point, c = self.points[m].flatten().tolist(), self.curvature[m].item()
        at = ", ".join(f"{v:.4g}" for v in point[:4]) + (", …" if len(point) > 4 else "")
        kind = "" if self.is_maximum[m] or math.isnan(c) else ", not a maximum"
        share = f"{self.shares[m].item():.4g} ± {self.stderr[m].item():.1g}"
        bend = "curvature not known" if math.isnan(c) else f"curvature {c:.3g}"
        return f"  {share} of the starts to ({at}), ‖ψ‖σ = {self.gradient_norm[m].item():.1e}, {bend}{kind}"


def modes(
    model: ScoreModel,
    x: Batch,
    kernel: Kernel,
    *,
    n_steps: int = 1000,
    rtol: float = 1e-6,
    merge: float = 0.1,
    reach: float = 0.5,
) -> Modes:
    """The modes of p_σ that starts lead to uphill, and which start leads to which: clustering by a score.

        y = x + h·ψ(x),    h = sigma²:  y = alpha·E[x₀ | x_t = x] under Gaussian noise: mean shift.

    A step of sigma² never lowers p_σ under Gaussian noise, being a step of EM; for an ``Empirical`` model it is mean
    shift on the data. Where components are s wide it takes some (s/sigma)² steps. Here h is Barzilai and Borwein's
    ⟨Δx, −Δψ⟩/‖Δψ‖² of the row's last step, never below sigma², and without limit where ⟨Δx, Δψ⟩ >= 0, but no step is
    longer than reach·sigma unless mean shift's own is: p_σ has little finer structure, so leaps over a hill are rare;
    without the limit, starts on a wide hill passed over the narrow ones on it. And y is accepted only if
    ⟨ψ(x) + ψ(y), y − x⟩ >= 0: by the trapezoidal rule log p_σ has not fallen. Otherwise h goes to where a straight line
    through the slopes at both ends vanishes; under other noise than Gaussian, or for a learnt score, that may be below
    sigma². Rows with ‖ψ‖·sigma <= rtol, to rounding, leave the batch; where the curvature is c a mode is about ‖ψ‖/|c|
    away.

    Starts within about merge·sigma of each other at their ends, or linked by others that are, share a mode; so a ridge
    of equal height is one mode where ends lie densely along it. A start from which ψ = 0 stays there: at a saddle, for
    which see :attr:`Modes.is_maximum`. Laplace noise: p_σ has its modes smooth where p is smooth; atoms make cusps, at
    which ψ jumps and never vanishes, and starts that lead there do not converge.

    Args:
        model: a score model; only its scores are used, without autograd, but for the curvature.
        x: starts, ``(B, *event)``, as points of the noisy space: alpha·x for clean x.
        kernel: the level, one for all rows.
        n_steps: steps at most.
        rtol: largest ‖ψ‖·sigma that counts as 0.
        merge: largest distance of ends of one mode, in units of sigma.
        reach: longest step, in units of sigma, where it is longer than mean shift's: larger is quicker, and may pass
            over more of the small modes.

    Raises:
        InputError: starts or their scores that are not finite, a kernel with a level a row, numbers out of range.

    Reference: Comaniciu and Meer (2002), "Mean shift: a robust approach toward feature space analysis";
    Carreira-Perpiñán (2007), "Gaussian mean-shift is an EM algorithm"; Barzilai and Borwein (1988),
    "Two-point step size gradient methods".
    """
    require_model(model)
    x = as_batch(x, "x").detach()
    if not isinstance(kernel, Kernel) or kernel.sigma.ndim or kernel.alpha.ndim:
        raise InputError(f"kernel: got {' '.join(repr(kernel).split())[:80]}, want a kernel of one level for all rows")
    limits = [as_number(v, name) for v, name in ((rtol, "rtol"), (reach, "reach"), (merge, "merge"))]
    climb = _Climb(model, kernel, tuple(x.shape[1:]), *limits[:2])
    ends, converged = climb.run(x.flatten(1), as_count(n_steps, "n_steps"))
    labels = torch.full((len(x),), -1, device=x.device)
    labels[converged] = _ordered(_linked(ends.x[converged], limits[2] * climb.sigma))
    first = [_best(labels == m, ends.psi) for m in range(int(labels.max()) + 1)]
    at = torch.tensor(first, dtype=torch.long, device=x.device)
    counts = labels[converged].bincount(minlength=len(at))[: len(at)].double()
    points, slope = ends.x[at].reshape(-1, *x.shape[1:]), _norm(ends.psi[at]) * climb.sigma
    return Modes(
        points, counts / len(x), _binomial_error(counts, len(x)), labels, slope, _curvature(model, points, kernel),
        climb.sigma, climb.n_calls, climb.n_scores,
    )  # fmt: skip


@dataclass(frozen=True)
class _Places:
    """Points, ``(B, D)``, their scores, and the next step's h, ``(B,)``."""

    x: Tensor
    psi: Tensor
    h: Rows

    def __getitem__(self, rows: Tensor) -> _Places:
        return _Places(self.x[rows], self.psi[rows], self.h[rows])

    def slope(self, d: Tensor) -> Rows:
        """⟨ψ, d⟩, in float64."""
        return dot(self.psi.double(), d.double())


class _Climb:
    """Ascents on one level's score."""

    def __init__(self, model: ScoreModel, kernel: Kernel, event: tuple[int, ...], rtol: float, reach: float) -> None:
        self.model, self.kernel, self.event = model, kernel, event
        self.sigma: float = kernel.sigma.item()
        self.unit = self.sigma**2
        self.rtol, self.reach = rtol, reach
        self.n_calls = self.n_scores = 0

    def run(self, x: Tensor, n_steps: int) -> tuple[_Places, Tensor]:
        """Where all rows end, ``(B, D)``, and which of them have arrived, ``(B,)``."""
        here = self._start(x)
        ends = _Places(x.clone(), here.psi.clone(), here.h)
        rows, converged = torch.arange(len(x), device=x.device), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for step in range(n_steps + 1):
            ends.x[rows], ends.psi[rows] = here.x, here.psi
            done = self._arrived(here, measured=step > 0)
            converged[rows[done]] = True
            going = ~done & here.psi.isfinite().all(1)
            rows, here = rows[going], here[going]
            if step == n_steps or not len(rows):
                break
            here = self._step(here)
        return ends, converged

    def _score(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            psi = self.model.score(x.reshape(-1, *self.event), self.kernel)
        if tuple(psi.shape) != (len(x), *self.event):
            want = (len(x), *self.event)
            raise InputError(f"model: its score has shape {tuple(psi.shape)}, want that of x, {want}")
        self.n_calls, self.n_scores = self.n_calls + 1, self.n_scores + len(x)
        return psi.flatten(1)

    def _start(self, x: Tensor) -> _Places:
        psi = self._score(x)
        if not bool(psi.isfinite().all()):
            row = int((~psi.isfinite()).any(1).nonzero()[0, 0])
            raise InputError(f"model: its score at start {row} holds NaN or infinity, want finite numbers")
        return _Places(x, psi, torch.full((len(x),), self.unit, dtype=torch.float64, device=x.device))

    def _arrived(self, at: _Places, *, measured: bool) -> Tensor:
        """‖ψ‖σ <= rtol, and what rounding of x makes of it where the curvature is 1/h, if a step has measured it."""
        rounding = _ROUNDING * torch.finfo(at.x.dtype).eps * _norm(at.x) * self.sigma / at.h.clamp_min(self.unit)
        return _norm(at.psi) * self.sigma <= self.rtol + (rounding if measured else 0.0)

    def _step(self, a: _Places) -> _Places:
        """The next place, where log p_σ has not fallen by the trapezoidal rule; else the same, with a shorter h."""
        longest = (self.reach * self.sigma / _norm(a.psi)).clamp_min(self.unit)
        h = torch.minimum(a.h, longest)
        y = a.x + h[:, None].to(a.x) * a.psi
        b = _Places(y, self._score(y), h)
        d = y - a.x
        before, after = a.slope(d), b.slope(d)
        fell = after < -before
        shorter = h * before / (before - after)
        longer = self._barzilai_borwein(before - after, b.psi - a.psi)
        stay = fell[:, None]
        return _Places(
            torch.where(stay, a.x, y), torch.where(stay, a.psi, b.psi), torch.where(fell, shorter, longer)
        )  # fmt: skip

    def _barzilai_borwein(self, bend: Rows, change: Tensor) -> Rows:
        """⟨Δx, −Δψ⟩/‖Δψ‖², at least σ², infinite where log p_σ is convex along the step."""
        h: Tensor = torch.where(bend > 0, bend / squared_norm(change.double()), math.inf)
        return h.clamp_min(self.unit)


def _norm(v: Tensor) -> Rows:
    """‖v‖ of each row, in float64."""
    return squared_norm(v.double()).sqrt()


def _linked(x: Tensor, distance: float) -> Tensor:
    """The component of each row, ``(N,)``, where rows nearer than a distance are linked; to a tenth of it.

    Rows in one cell of a grid, a tenth of the distance in diagonal, count as one, since most rows end in few places.
    """
    if not len(x):
        return torch.zeros(0, dtype=torch.long, device=x.device)
    cells = torch.round(x.double() * (10 * math.sqrt(x.shape[1]) / distance))
    _, cell = cells.unique(dim=0, return_inverse=True)
    n = int(cell.max()) + 1
    one = x.new_empty(n, x.shape[1], dtype=torch.float64)
    one[cell] = x.double()
    near = [
        torch.stack([i[0] + begin, i[1]])
        for begin, part in zip(range(0, n, max(1, _PAIRS // n)), one.split(max(1, _PAIRS // n)), strict=True)
        for i in [(_distances(part, one) <= distance).nonzero(as_tuple=True)]
    ]
    i, j = torch.cat(near, 1).cpu().numpy()
    pairs = scipy.sparse.coo_array((i >= 0, (i, j)), shape=(n, n))
    _, component = scipy.sparse.csgraph.connected_components(pairs, directed=False)
    return torch.as_tensor(component, dtype=torch.long, device=x.device)[cell]


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _ordered(component: Tensor) -> Tensor:
    """The same components, numbered from the largest; equal ones in the order that they had."""
    order = component.bincount().argsort(descending=True, stable=True)
    return order.argsort()[component]


def _best(rows: Tensor, psi: Tensor) -> int:
    """The row, of those, with the smallest score."""
    return int(torch.where(rows, _norm(psi), math.inf).argmin())


def _binomial_error(counts: Tensor, n: int) -> Tensor:
    """√(p̃(1 − p̃)/(n + 4)), p̃ = (k + 2)/(n + 4), so that n of n is not 1 ± 0 (Agresti and Coull 1998)."""
    p = (counts + 2) / (n + 4)
    return (p * (1 - p) / (n + 4)).sqrt()


def _curvature(model: ScoreModel, points: Batch, kernel: Kernel) -> Tensor:
    """The largest eigenvalue of the symmetric part of ∇ψ, ``(M,)``; NaN where autograd does not know it."""
    d = points[:1].numel()
    jacobian = _jacobian(model, points, kernel, d) if 0 < d <= CURVATURE_UP_TO else None
    if jacobian is None:
        return torch.full((len(points),), math.nan, dtype=torch.float64, device=points.device)
    values, vectors = torch.linalg.eigh((jacobian + jacobian.mT) / 2)
    seen = _bend(model, points, vectors[:, :, -1], kernel)
    rounding = _ROUNDING * torch.finfo(points.dtype).eps * _norm(points) / kernel.sigma
    allowed = (_DOUBT + rounding / _APART) / kernel.sigma**2
    return torch.where((seen - values[:, -1]).abs() <= allowed, values[:, -1], math.nan)


def _jacobian(model: ScoreModel, points: Batch, kernel: Kernel, d: int) -> Tensor | None:
    """∇ψ by autograd, ``(M, D, D)``, in float64."""
    with torch.enable_grad():
        at = points.detach().requires_grad_()
        try:
            psi = model.score(at, kernel).flatten(1)
        except (RuntimeError, InputError):  # of a score that leaves torch, or says that it lets no gradient through
            return None
        if not psi.requires_grad:
            return None
        rows = [
            torch.autograd.grad(psi[:, i].sum(), at, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for i in range(d)
        ]
    return torch.stack([r.flatten(1) for r in rows], 1).double()


def _bend(model: ScoreModel, points: Batch, v: Tensor, kernel: Kernel) -> Tensor:
    """⟨v, ψ(x + εv) − ψ(x − εv)⟩/2ε for unit vectors v, ε a small part of sigma."""
    step = (_APART * kernel.sigma * v).reshape(points.shape).to(points)
    with torch.no_grad():
        ahead, behind = (model.score(points + s * step, kernel).flatten(1).double() for s in (1, -1))
    return (v * (ahead - behind)).sum(1) / (2 * _APART * kernel.sigma)
