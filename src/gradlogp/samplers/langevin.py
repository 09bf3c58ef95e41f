"""Annealed Langevin sampling: with scores learnt under any kernel, Gaussian or not."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gradlogp._shapes import (
    Batch,
    InputError,
    Rows,
    as_batch,
    as_count,
    as_number,
    as_part,
    dot,
    same_batch,
    squared_norm,
)
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import Density, GaussianReference, ScoreModel, require_gaussian, require_model
from gradlogp.samplers.grids import log_uniform
from gradlogp.samplers.noise import Noise
from gradlogp.samplers.starts import event_shape_of, seed_from, start

COARSEST = 2.0  # default first level, in standard deviations of the data's widest direction
FINEST = 0.02  # default last level, in units of the data's scale
RATIO = 1.3  # default ratio of neighbouring levels, about
PILOTS = 256  # rows that the step size is adapted to: the first ones of a run
MAX_STEP = 0.1  # default largest h of a learnt score, in units of sigma²
REACH = 3.0  # how far from the data's mean a learnt score is trusted; see _Level.outside
TOLERANCE = 0.1  # nats that two rules for a line integral may differ by
_GAIN, _DECAY = 2.0, 0.6  # log h moves by 2 t^−0.6 times what the acceptance is off


@dataclass(frozen=True)
class LangevinState:
    """The end of a level of an annealed run.

    Attributes:
        level: its place in the ladder, from 0.
        kernel: the level; x is, for as many steps as it takes, a draw of p ∗ q for this q.
        x: the chains, ``(n, *event)``.
        step_size: h, in the data's unit squared, after adaptation.
        acceptance: mean probability of acceptance over the steps at that h; 1 without a Metropolis test.
    """

    level: int
    kernel: Kernel
    x: Batch
    step_size: float
    acceptance: float


def langevin(
    model: ScoreModel,
    x_or_n: Batch | int,
    ladder: Iterable[Kernel] | None = None,
    n_steps: int = 60,
    *,
    adjusted: bool = True,
    target_acceptance: float = 0.574,
    step: float | None = None,
    max_step: float | None = None,
    nodes: int = 5,
    event_shape: tuple[int, ...] | None = None,
    generator: torch.Generator | None = None,
) -> Batch:
    """Draws of p ∗ q for the last kernel q of a ladder, by Langevin steps at each of its kernels in turn.

    They are x_t of that kernel: with an alpha other than 1, the data are x_t/alpha.

        y = x + h·ψ(x) + √(2h) z,    z ~ N(0, I),    accepted with probability min(1, e^{R + C})
        R = log p_σ(y)/p_σ(x),    C = (‖y − x − hψ(x)‖² − ‖x − y − hψ(y)‖²)/(4h)

    R is the model's own where it has a density or an energy, otherwise the line integral of its score,
    :func:`log_ratio`. The target at each level is then p_σ itself, at any h; without the test (``adjusted=False``) it
    is p_σ as h → 0: on N(m, v) the variance is v/(1 − h/2v). A ladder is needed because chains cross from mode to mode
    at wide levels only. Chains that start from data need none: give noisy rows, and the one kernel of their noise.

    A proposal is also rejected, in both directions alike, so that the law stays the same, where two rules for the line
    integral differ by more than 0.1 nats: without that, errors at long steps shift mass between modes (a mixture of two
    on the line: a share of 0.31 came out as 0.24). And h is at most 0.1 sigma² for a learnt score: at fine levels its
    error between modes, where there are no data, would otherwise set their shares, which the coarse levels know better.

    Far from the data nothing was learnt, under heavy-tailed noise least, and chains there ran away: for a learnt score
    that knows the data's moments, a proposal farther from the mean than √tr(C) + 3√λ_max(C), C the covariance of p_σ
    with sigma² for the noise's, is rejected too, and chains shrink to the next level's C before they go on. What p has
    beyond (for N(m, v) on the line, beyond 4√v) is not drawn.

    In the first half of a level's steps h is adapted to the target acceptance, by Robbins and Monro's recursion on the
    first 256 chains; it is then frozen, so that the second half has p_σ as its law. Chains of a count are rows of one
    run whose first 256 always exist: a row is the same whatever the count. h starts from that of the level before, in
    units of sigma². Chains start from the Gaussian with the data's moments, seen through the first kernel's scale, also
    where the noise has heavy tails: in these a chain diffuses, and would not come back in time.

    Args:
        model: any score model; its scores at the ladder's kernels are used and nothing else.
        x_or_n: a start, ``(n, *event)``, x_t of the first kernel, or a number of chains. A start of one batch or of
            two is not the same: h is adapted to the first 256 rows given.
        ladder: kernels of decreasing sigma/alpha, one level each; by default :func:`default_ladder`.
        n_steps: steps at each level. ``nodes`` − 1 score evaluations each, one where the model has a density.
        adjusted: make the Metropolis test.
        target_acceptance: in (0, 1); 0.574 is best for many coordinates (Roberts and Rosenthal 1998). With
            ``adjusted=False`` the adaptation still tests, and a higher target means less bias.
        step: h in units of sigma², fixed, in place of adaptation.
        max_step: the largest h in units of sigma²; by default 0.1, and no limit for a model with ``log_prob`` if
            adjusted. The acceptance is above its target where the limit is reached.
        nodes: of the line integral, at least 2; see :func:`log_ratio`.
        event_shape: where the model does not know it.
        generator: source of the seed.

    Raises:
        InputError: a ladder that is not as above, or Gaussian for a model that was trained with other noise; numbers
            out of range; a start or an event shape that is missing or wrong; chains that are not finite: says where.

    Reference: Roberts and Tweedie (1996), "Exponential convergence of Langevin distributions and their discrete
    approximations", section 1.4.1; Song and Ermon (2019), "Generative modeling by estimating gradients of the data
    distribution", algorithm 1.
    """
    *_, last = langevin_trajectory(
        model, x_or_n, ladder, n_steps, adjusted=adjusted, target_acceptance=target_acceptance, step=step,
        max_step=max_step, nodes=nodes, event_shape=event_shape, generator=generator,
    )  # fmt: skip
    return last.x


def langevin_trajectory(
    model: ScoreModel,
    x_or_n: Batch | int,
    ladder: Iterable[Kernel] | None = None,
    n_steps: int = 60,
    *,
    adjusted: bool = True,
    target_acceptance: float = 0.574,
    step: float | None = None,
    max_step: float | None = None,
    nodes: int = 5,
    event_shape: tuple[int, ...] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[LangevinState]:
    """Follow :func:`langevin`, yielding the chains, step size and acceptance of each level; same arguments, errors."""
    require_model(model)
    levels = default_ladder(model) if ladder is None else _as_ladder(model, ladder)
    n_steps, nodes = as_count(n_steps, "n_steps"), _as_nodes(nodes)
    h = 1.0 if step is None else as_number(step, "step")
    target_acceptance = as_part(target_acceptance, "target_acceptance")
    noise = Noise(seed_from(generator))
    n, x = _chains(model, x_or_n, levels[0], event_shape, noise, generator)
    cap = _max_step(model, max_step, adjusted)
    n_warm = 0 if step is not None else max(1, n_steps // 2)
    alphas = [1.0, *(k.alpha.item() for k in levels)]
    for i, (kernel, (before, alpha)) in enumerate(zip(levels, pairwise(alphas), strict=True)):
        unit = kernel.sigma.item() ** 2
        at = _Level(model, kernel, nodes, f"at level {i + 1} of {len(levels)}, {kernel!r}, sigma = {unit**0.5:.4g}")
        point = at.point(_carried(model, x, levels[i - 1], kernel, alpha / before) if i else x)
        if n_warm:
            point, h = _adapt(at, point, min(h, cap) * unit, n_warm, target_acceptance, noise, cap * unit)
            h = h / unit
        point, acceptance = _run(at, point, h * unit, max(1, n_steps - n_warm), noise, adjusted)
        x = point.x
        yield LangevinState(i, kernel, x[:n], h * unit, acceptance)


def default_ladder(model: ScoreModel) -> list[Kernel]:
    """Kernels of the noise that a model was trained with, in geometric steps of about 1.3.

    From twice the standard deviation of the data's widest direction, where modes merge, to 1/50 of the data's scale.

    Raises:
        InputError: the model does not know the data's scale.
    """
    reference, noise = model.reference, Gaussian if model.noise is None else model.noise
    if reference is None:
        raise InputError("ladder: this model does not know the data's scale, want a sequence of kernels")
    high, low = COARSEST * reference.eigenvalues.max().sqrt().item(), FINEST * reference.data_scale.item()
    unit = noise(1.0).sigma.item()
    n = math.ceil(math.log(high / low) / math.log(RATIO))
    return [noise(s / unit) for s in log_uniform(high, low, n).tolist()]


def log_ratio(model: ScoreModel, x: Batch, y: Batch, kernel: Kernel, nodes: int = 5) -> Rows:
    """log p_σ(y) − log p_σ(x) = ∫₀¹ f(t) dt, f(t) = ⟨ψ(x + t(y − x)), y − x⟩: what a score knows of its density.

    By Gauss and Lobatto's rule, whose nodes include the ends: 2 nodes are the trapezoid, 3 Simpson's rule. With n nodes
    it is exact where f is a polynomial of degree 2n − 3, so for affine scores always; otherwise it errs by

        n(n − 1)³ [(n − 2)!]⁴/((2n − 1)[(2n − 2)!]³) · f^{(2n−2)}(τ)    at some τ in [0, 1];    n = 3: f⁗(τ)/2880.

    It is antisymmetric in x and y to rounding. For a conservative ψ = ∇log p̂ it tends to log p̂(y) − log p̂(x) as n
    grows; a ψ that is not conservative has no density, and the ratio then depends on the path, a straight line. Where ψ
    jumps (Laplace noise at each datum) the error falls only as the jump times the distance of two nodes.

    Args:
        model: a score model.
        x: where from, ``(B, *event)``.
        y: where to, like x.
        kernel: the level.
        nodes: n >= 2; costs n scores of a batch.

    Returns:
        ``(B,)``, in nats, float64.

    Raises:
        InputError: fewer than 2 nodes, or batches of two shapes.

    Reference: Abramowitz and Stegun (1964), equation 25.4.32.
    """
    same_batch(x, y)
    level = _Level(model, kernel, _as_nodes(nodes), "in log_ratio")
    return level.line_integral(_Point(x, model.score(x, kernel)), _Point(y, model.score(y, kernel)))[0]


@dataclass(frozen=True)
class _Point:
    """Where chains are, the score there, and log p_σ where the model knows it."""

    x: Batch
    psi: Batch
    log_p: Tensor | None = None

    def moved(self, to: _Point, accepted: Tensor) -> _Point:
        """The other point for the chains that accept it."""
        mask = accepted.reshape(-1, *(1,) * (self.x.ndim - 1))
        x, psi = (torch.where(mask, a, b) for a, b in ((to.x, self.x), (to.psi, self.psi)))
        if self.log_p is None or to.log_p is None:
            return _Point(x, psi)
        return _Point(x, psi, torch.where(accepted, to.log_p, self.log_p))


@dataclass(frozen=True)
class _Level:
    """One level's target p_σ."""

    model: ScoreModel
    kernel: Kernel
    nodes: int
    where: str

    def point(self, x: Batch, *, tested: bool = True) -> _Point:
        """The score at x, and the log-density where it is known and wanted."""
        with torch.no_grad():
            psi = self.model.score(x, self.kernel)
            log_p = self.model.unnormalised_log_prob(x, self.kernel) if tested else None
        return _Point(x, psi, None if log_p is None else log_p.double())

    def require_finite(self, *values: Tensor) -> None:
        if not all(bool(torch.isfinite(v).all()) for v in values):
            raise InputError(f"langevin: not finite {self.where}; check the model, or want a smaller step")

    def log_ratio(self, a: _Point, b: _Point) -> Rows:
        """log p_σ(b)/p_σ(a); −inf, both ways, where nothing was learnt or the line integral is not known well."""
        if a.log_p is not None and b.log_p is not None:
            ratio, refused = b.log_p - a.log_p, torch.zeros(len(b.x), dtype=torch.bool, device=b.x.device)
        else:
            ratio, coarse = self.line_integral(a, b)
            refused = (ratio - coarse).abs() > TOLERANCE
        if not isinstance(self.model, Density):
            refused = refused | self.outside(b.x)
        return torch.where(refused, -math.inf, ratio)

    def outside(self, x: Batch) -> Tensor:
        """Where nothing was learnt: beyond √tr(C) + REACH·√λ_max(C) from the mean, C the noisy data's covariance."""
        reference = self.model.reference
        if reference is None:
            return torch.zeros(len(x), dtype=torch.bool, device=x.device)
        noise, data = _covariance(self.kernel, reference), self.kernel.alpha**2 * reference.eigenvalues.double()
        r = squared_norm(reference.centred(x, self.kernel).double()).sqrt()
        return r > (data.sum() + noise.sum()).sqrt() + REACH * (data.max() + noise.max()).sqrt()

    def line_integral(self, a: _Point, b: _Point) -> tuple[Rows, Rows]:
        """Σ_j w_j ⟨ψ(a + t_j(b − a)), b − a⟩, and the same by the coarse rule on some of its nodes."""
        t, fine, coarse = _lobatto(self.nodes)
        d = b.x - a.x
        psi = [a.psi, b.psi]
        if self.nodes > 2:
            with torch.no_grad():
                between = self.model.score(torch.cat([a.x + s * d for s in t[1:-1]]), self.kernel)
            psi[1:1] = between.split(len(d))
        f = torch.stack([dot(v.double(), d.double()) for v in psi])
        return f.T @ f.new_tensor(fine), f.T @ f.new_tensor(coarse)

    def proposal(self, a: _Point, h: float, noise: Noise) -> Batch:
        """x + hψ(x) + √(2h) z."""
        y = a.x + h * a.psi + math.sqrt(2 * h) * noise(a.x)
        self.require_finite(y)
        return y

    def test(self, a: _Point, b: _Point, h: float) -> Rows:
        """The logarithm of the probability of acceptance; −inf where p_σ is 0."""
        forth, back = (squared_norm((v.x - u.x - h * u.psi).double()) for u, v in ((a, b), (b, a)))
        ratio = self.log_ratio(a, b)
        log_a = torch.where(ratio == -math.inf, ratio, ratio + (forth - back) / (4 * h)).clamp(max=0.0)
        if bool(torch.isnan(log_a).any()):
            self.require_finite(log_a)
        return log_a

    def step(self, a: _Point, h: float, noise: Noise) -> tuple[_Point, Rows]:
        """One step with the Metropolis test, and each chain's probability of acceptance."""
        b = self.point(self.proposal(a, h, noise))
        log_a = self.test(a, b, h)
        log_u = torch.special.log_ndtr(noise(a.x.flatten(1)[:, :1]).double().squeeze(1))
        return a.moved(b, log_u < log_a), log_a.exp()


def _adapt(
    level: _Level, point: _Point, h: float, n_steps: int, target: float, noise: Noise, cap: float
) -> tuple[_Point, float]:
    """Steps with log h ← log h + 2t^−0.6 (acceptance − target), at most a cap; returns e to their mean, last half.

    Reference: Robbins and Monro (1951); the average: Polyak and Juditsky (1992).
    """
    log_h, seen = math.log(h), []
    for t in range(1, n_steps + 1):
        point, acceptance = level.step(point, math.exp(log_h), noise)
        log_h = min(log_h + _GAIN * t**-_DECAY * (acceptance[:PILOTS].mean().item() - target), math.log(cap))
        seen.append(log_h)
    half = seen[len(seen) // 2 :]
    return point, math.exp(sum(half) / len(half))


def _run(level: _Level, point: _Point, h: float, n_steps: int, noise: Noise, adjusted: bool) -> tuple[_Point, float]:
    """Steps of one size, and the mean acceptance."""
    total = 0.0
    for _ in range(n_steps):
        if adjusted:
            point, acceptance = level.step(point, h, noise)
            total += acceptance.mean().item()
        else:
            point = level.point(level.proposal(point, h, noise), tested=False)
            total += 1.0
    level.require_finite(point.x, point.psi)
    return point, total / n_steps


def _chains(
    model: ScoreModel,
    x_or_n: Batch | int,
    kernel: Kernel,
    event_shape: tuple[int, ...] | None,
    noise: Noise,
    generator: torch.Generator | None,
) -> tuple[int, Batch]:
    """How many chains are asked for, and where they start; at least the pilots, where a count is given."""
    if isinstance(x_or_n, Tensor):
        return len(as_batch(x_or_n, "x")), x_or_n.detach()
    alpha, event = kernel.alpha.item(), event_shape_of(model, event_shape)
    n = as_count(x_or_n, most=sys.maxsize, each=8 * math.prod(event))
    y = start(model, max(n, PILOTS), kernel.sigma / alpha, event, noise, generator)
    return n, y * alpha + _shift(kernel, event).to(y)


def _carried(model: ScoreModel, x: Batch, before: Kernel, kernel: Kernel, alpha: float) -> Batch:
    """Where chains start at the next level: shrunk as the Gaussian with the data's moments is, where it is known."""
    reference, event = model.reference, tuple(x.shape[1:])
    old, new = (_shift(k, event).to(x) for k in (before, kernel))
    if reference is None:
        return new + (x - old) * alpha
    v = reference.eigenvalues.double().mean()
    narrow, wide = ((v * k.alpha**2 + k.sigma**2).sqrt() for k in (kernel, before))
    return new + reference.mean * kernel.alpha.to(x) + reference.centred(x, before) * (narrow / wide).to(x)


def _shift(kernel: Kernel, event: tuple[int, ...]) -> Tensor:
    """The mean of Gaussian noise; 0 for other."""
    form = kernel.gaussian_form(event)
    return torch.zeros(()) if form is None else form.shift


def _covariance(kernel: Kernel, reference: GaussianReference) -> Tensor:
    """Eigenvalues of the noise's covariance, ``(D,)``, in float64; sigma² for noise that is not Gaussian."""
    form, d = kernel.gaussian_form(reference.event_shape), reference.mean.numel()
    if form is None or form.kind == "isotropic":
        return (kernel.sigma**2).double().expand(d).to(reference.mean.device)
    k = form.covariance.double().to(reference.mean.device)
    return k.flatten() if form.kind == "diagonal" else torch.linalg.eigvalsh(k)


def _as_ladder(model: ScoreModel, ladder: Iterable[Kernel]) -> list[Kernel]:
    """Check a ladder: kernels of one level each, sigma/alpha decreasing, and of the model's noise."""
    levels = list(ladder) if isinstance(ladder, Iterable) else None
    if not levels or not all(isinstance(k, Kernel) for k in levels):
        got = "none" if levels == [] else " ".join(repr(ladder).split())[:80]
        raise InputError(f"ladder: got {got}, want a sequence of kernels, e.g. [Gaussian(1.0), Gaussian(0.1)]")
    for k in levels:
        if k.sigma.numel() != 1 or k.alpha.numel() != 1 or k.alpha.item() <= 0:
            raise InputError(f"ladder: got {k!r}, want kernels of one level for all rows, alpha > 0")
        if isinstance(k, Gaussian):
            require_gaussian(model, "ladder of Gaussian kernels")
    ratios = [(k.sigma / k.alpha).item() for k in levels]
    for i, (a, b) in enumerate(pairwise(ratios)):
        if not b < a:
            raise InputError(f"ladder: got sigma = {b:g} after {a:g} at level {i + 2}, want decreasing levels")
    return levels


def _max_step(model: object, max_step: float | None, adjusted: bool) -> float:
    """As given, otherwise no limit for a model that knows its density, if proposals are tested."""
    if max_step is None:
        return math.inf if adjusted and isinstance(model, Density) else MAX_STEP
    return math.inf if isinstance(max_step, float) and max_step == math.inf else as_number(max_step, "max_step")


def _as_nodes(nodes: int) -> int:
    """A number of nodes, two of which are the ends."""
    return as_count(nodes, "nodes", least=2, most=200)


@lru_cache
def _lobatto(n: int) -> tuple[list[float], list[float], list[float]]:
    """Nodes and weights on [0, 1]: the ends and the roots of P'_{n−1}, w = 1/(n(n − 1)P_{n−1}²).

    And the weights of Simpson's rule where the middle is one of 5 nodes or more, otherwise of the trapezoid.
    """
    p = np.polynomial.legendre.Legendre.basis(n - 1)
    u = np.concatenate([[-1.0], np.sort(p.deriv().roots().real), [1.0]])
    coarse, middle = np.zeros(n), n % 2 and n > 3
    coarse[[0, -1]] = 1 / 6 if middle else 1 / 2
    if middle:
        coarse[n // 2] = 4 / 6
    return list((u + 1) / 2), list(1 / (n * (n - 1) * p(u) ** 2)), list(coarse)
