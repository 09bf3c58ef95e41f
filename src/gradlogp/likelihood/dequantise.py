"""Laws on the cell of a datum that lies on a grid, and how the best of them is found."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from gradlogp._shapes import (
    Batch,
    InputError,
    Rows,
    as_batch,
    as_count,
    as_number,
    dot,
    event_size,
    require_memory,
    same_event,
)
from gradlogp.diagnostics import Estimate
from gradlogp.likelihood.bound import end_of, require_score_model
from gradlogp.likelihood.bound_gaussian import Normal
from gradlogp.likelihood.bound_method import BoundMethod
from gradlogp.likelihood.bound_sampling import AT_CLEAN, Levels
from gradlogp.likelihood.coupling import CellFlow
from gradlogp.likelihood.times import ImportanceTimes
from gradlogp.models import Reference, ScoreModel
from gradlogp.processes import Process
from gradlogp.processes.base import Time
from gradlogp.samplers.starts import seed_from

_RESOLVED = 256  # roundings of x that a cell has at least
_LOOKS = 10
_DRAWS = 4  # draws a row of a look
_CLIP = 10.0
_CHUNK = 4096  # rows at a time

Surrogate: TypeAlias = Callable[[Tensor, torch.Generator | None], Tensor]


class Dequantisation(nn.Module, ABC):
    """A density q(y | x) on the cell of x, for x on a grid with its own width h_i in each coordinate,

        y = x + h·(u − below),    u in the unit cube,    log q(y | x) = log q(u | x) − Σ_{h_i > 0} log h_i.

    The cell reaches from x − below·h to x + (1 − below)·h. A continuous coordinate has h_i = 0: y_i = x_i, and it
    counts for nothing in q. Only the widths are known, not the grid: x may be anywhere, the cell is the one at x.

    Args:
        widths: h >= 0, in the data's unit: one for all coordinates, or one each, of the event's shape.
        below: share of a cell that lies below x: 0 for counts and pixels, x + u; 0.5 for rounded numbers.

    Raises:
        InputError: widths that are negative or not finite, or a share that is not in [0, 1].
    """

    widths: Tensor

    def __init__(self, widths: Tensor | float, *, below: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("widths", _widths(widths))
        self.below = as_number(below, "below", positive=False)
        if self.below > 1:
            raise InputError(f"below: got {self.below:g}, want a share from 0 to 1")

    @abstractmethod
    def _draw(self, x: Batch, v: Tensor) -> tuple[Tensor, Rows]:
        """u, ``(B, D)``, and log q(u | x), from uniform numbers v ``(B, D)``; all in float64."""

    @abstractmethod
    def _log_prob(self, u: Tensor, x: Batch) -> Rows:
        """log q(u | x) of u in the unit cube, ``(B, D)``."""

    def sample(self, x: Batch, *, generator: torch.Generator | None = None) -> tuple[Batch, Rows]:
        """A draw y for each row, like x, and log q(y | x) in nats, ``(B,)``; differentiable in the law's parameters.

        Raises:
            InputError: x is no finite batch or of another event shape, or so large that a cell is near its rounding.
        """
        x, h = self._checked(x)
        v = torch.rand(len(x), len(h), generator=generator, dtype=torch.float64, device=x.device)
        u, log_q = self._draw(x, v)
        y = x.flatten(1).double() + h * (u - self.below)
        return y.reshape(x.shape).to(x.dtype), (log_q - _log_volume(h)).to(x.dtype)

    def log_prob(self, y: Batch, x: Batch) -> Rows:
        """log q(y | x) in nats, ``(B,)``; −inf outside of the cell. Continuous coordinates of y are not looked at.

        Raises:
            InputError: as :meth:`sample`, or y and x of different shapes.
        """
        x, h = self._checked(x)
        y = same_event(as_batch(y, "y"), tuple(x.shape[1:]), "y")
        if len(y) != len(x):
            raise InputError(f"y: got {len(y)} rows, want {len(x)}, one for each of x")
        u = (y.flatten(1).double() - x.flatten(1).double()) / torch.where(h > 0, h, 1.0) + self.below
        u = torch.where(h > 0, u, 0.5)
        inside = ((u > 0) & (u < 1)).all(1)
        log_q = self._log_prob(torch.where(inside[:, None], u, 0.5), x) - _log_volume(h)
        return torch.where(inside, log_q, -math.inf).to(x.dtype)

    def _checked(self, x: Batch) -> tuple[Batch, Tensor]:
        """Rows, and the width of each coordinate, ``(D,)`` in float64."""
        x = as_batch(x)
        if self.widths.ndim:
            x = same_event(x, tuple(self.widths.shape))
        h = self.widths.to(x.device).expand(x.shape[1:]).flatten()
        fine = (h > 0) & (h < _RESOLVED * torch.finfo(x.dtype).eps * x.detach().flatten(1).abs().amax(0).double())
        if bool(fine.any()):
            raise InputError(
                f"widths: got {h[fine][0].item():g}, near the rounding of x in {x.dtype}; want x in float64"
            )
        return x, h


class UniformDequantisation(Dequantisation):
    """The uniform law on the cell: log q(y | x) = −Σ log h.

    Reference: Theis, van den Oord and Bethge (2016), "A note on the evaluation of generative models", section 3.1.
    """

    def _draw(self, x: Batch, v: Tensor) -> tuple[Tensor, Rows]:  # noqa: ARG002
        return v, v.new_zeros(len(v))

    def _log_prob(self, u: Tensor, x: Batch) -> Rows:  # noqa: ARG002
        return u.new_zeros(len(u))


class VariationalDequantisation(Dequantisation):
    """A learnt law on the cell: u ~ q(u | x) is a small flow on the unit cube, see :class:`CellFlow`.

    It starts as the uniform law, and is trained by :func:`fit_dequantiser`. From the same uniform numbers it and
    :class:`UniformDequantisation` draw related y, so that differences between the two have little noise.

    Args:
        widths: h >= 0, of the event's shape, or one for all coordinates.
        x: rows of the data, ``(N, *event)``: the event's shape, and the location and scale in which the flow sees x.
        below: share of a cell that lies below x.
        n_layers: couplings.
        width: hidden units of each.
        generator: source of the first weights.

    Raises:
        InputError: as :class:`Dequantisation`; x no batch, or of another shape; widths that are all 0.

    Reference: Ho et al. (2019), "Flow++: improving flow-based generative models with variational dequantization and
    architecture design", section 3.1.
    """

    centre: Tensor
    spread: Tensor
    discrete: Tensor

    def __init__(
        self,
        widths: Tensor | float,
        x: Batch,
        *,
        below: float = 0.0,
        n_layers: int = 5,
        width: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        event = tuple(as_batch(x).shape[1:])
        widths = _widths(widths)
        super().__init__(widths.expand(event).clone() if widths.ndim == 0 else widths, below=below)
        _, h = self._checked(x)
        if not bool((h > 0).any()):
            raise InputError("widths: got 0 for all coordinates, want one > 0: there is nothing to dequantise")
        flat = x.detach().flatten(1).double()
        spread = flat.std(0, correction=0)
        self.register_buffer("discrete", (h > 0).nonzero()[:, 0])
        self.register_buffer("centre", flat.mean(0))
        self.register_buffer("spread", torch.where(spread > 0, spread, 1.0))
        layers, units = as_count(n_layers, "n_layers", most=1000), as_count(width, "width")
        require_memory(units, "width", lambda k: 8 * layers * k * (k + len(h) + 3 * len(self.discrete)))
        self.flow = CellFlow(len(self.discrete), len(h), n_layers=layers, width=units, generator=generator)

    def _draw(self, x: Batch, v: Tensor) -> tuple[Tensor, Rows]:
        u, log_q = self.flow(v[:, self.discrete], self._condition(x))
        return torch.zeros_like(v).index_copy(1, self.discrete, u), log_q

    def _log_prob(self, u: Tensor, x: Batch) -> Rows:
        return self.flow.log_prob(u[:, self.discrete], self._condition(x))

    def _condition(self, x: Batch) -> Tensor:
        return (x.flatten(1).double() - self.centre) / self.spread


class DenoisingSurrogate:
    """One draw of Theorem 3's bound L(y) on −log p_θ^SDE(y), differentiable in y, for rows ``(B, *event)``:

        L(y) = E[known(y) + (n − n_G)·(n + n_G + 2z)/p(λ)],    y_t = alpha·y + sigma·z,    n = sigma s_θ(y_t),

    with one (λ, z) a row, λ in the strata of a batch; n_G is of the Gaussian reference, whose part is in closed form.
    It is the number that :func:`~gradlogp.likelihood.bound` estimates, with the model's weights left alone.

    Args:
        model: a score model for Gaussian kernels.
        process: t ↦ kernel.
        t_min, t_max, prior: as for :func:`~gradlogp.likelihood.bound`.

    Raises:
        InputError: parts of another type, or times out of order.

    Reference: Song, Durkan, Murray and Ermon (2021), "Maximum likelihood training of score-based diffusion models",
    theorem 3.
    """

    def __init__(
        self,
        model: ScoreModel,
        process: Process,
        *,
        t_min: Time | None = None,
        t_max: Time | None = None,
        prior: Reference | None = None,
    ) -> None:
        require_score_model(model, "DenoisingSurrogate")
        self.model, self.prior = model, prior
        self.times = ImportanceTimes(process, t_min, t_max)

    def __call__(self, y: Batch, generator: torch.Generator | None = None) -> Rows:
        """One estimate a row, ``(B,)`` in float64. One call of the model."""
        y64, n_rows = y.double(), len(y)
        known = self.prior if self.model.reference is None else self.model.reference
        control = Normal.of(known.reference, y) if known is not None else None
        order = torch.randperm(n_rows, generator=generator, device=y.device)
        inside = torch.rand(n_rows, generator=generator, dtype=torch.float64, device=y.device)
        level, weight = Levels.of(self.times, control, BoundMethod()).at((order + inside) / n_rows)
        kernel = self.times.process.at_ratio(level.exp())
        z = torch.randn(y.shape, generator=generator, dtype=torch.float64, device=y.device)
        alpha, sigma = (v.double()[:, None] for v in (kernel.alpha, kernel.sigma))
        centre = alpha * y64.flatten(1)
        y_t = (centre + sigma * z.flatten(1)).to(y.dtype)
        z = ((y_t.double() - centre) / sigma).detach()
        n = sigma * self.model.score(y_t.reshape(y.shape), kernel).flatten(1).double()
        n_G = torch.zeros_like(n) if control is None else control.scaled_score(y_t.double(), kernel)
        return self._known(y64, control) + weight * dot(n - n_G, n + n_G + 2 * z)

    def _known(self, y: Batch, control: Normal | None) -> Rows:
        """What :func:`~gradlogp.likelihood.bound` has in closed form."""
        times = self.times
        log_alpha = times.process.log_alpha(times.t_min).item()
        total = (
            end_of(self.prior, y).cross_entropy(y, math.exp(times.last)) + event_size(tuple(y.shape[1:])) * log_alpha
        )
        if control is None:
            return total
        at_clean = AT_CLEAN * control.integrand(y, math.exp(times.first))
        return total + control.integral(y, times.first, times.last) + at_clean


@dataclass(frozen=True)
class Look:
    """What the fit had gained when it was looked at.

    Attributes:
        step: steps done.
        loss: mean of surrogate + log q over the draws since the last look, in nats a row.
        gain: over uniform dequantisation on the rows looked at, in nats a row; the same draws at every look.
    """

    step: int
    loss: float
    gain: Estimate


@dataclass(frozen=True)
class DequantiserFit:
    """What a fitted dequantiser is worth.

    Attributes:
        gain: E[log p(y) − log q(y | x)] minus that of uniform dequantisation, in nats a row, by the surrogate; from
            draws that chose nothing. Its standard error is over rows.
        looks: the looks, the first before the first step.
    """

    gain: Estimate
    looks: tuple[Look, ...]


def fit_dequantiser(
    dequantiser: VariationalDequantisation,
    surrogate: Surrogate,
    x: Batch,
    *,
    held_out: Tensor | None = None,
    n_steps: int = 1000,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    generator: torch.Generator | None = None,
) -> DequantiserFit:
    """Fit the law on the cell, in place: maximise the ELBO of the cell's mass with the density left as it is,

        E_x E_{y ~ q(y|x)} [log p(y) − log q(y | x)],

    by Adam, the rate falling to 0 as a cosine. The weights kept are those of the look with the largest gain on the
    held-out rows; the first look is the law as it came. So it is not left worse than it came, but for the looks' noise.

    Args:
        dequantiser: the law; its weights are changed.
        surrogate: (y, generator) -> ``(B,)``, −log p(y) in nats or an unbiased estimate of a bound on it, with a
            gradient in y: :class:`DenoisingSurrogate`, or minus the log-density of an oracle.
        x: rows on the grid.
        held_out: rows to look at; by default x itself.
        n_steps: steps.
        batch_size: rows a step.
        learning_rate: the first.
        generator: source of every draw.

    Raises:
        InputError: another kind of dequantiser, rows that do not fit it, counts below 1, a rate that is not positive,
            or a surrogate that is not finite or has no gradient in y.

    Reference: Ho et al. (2019), equation 11.
    """
    if not isinstance(dequantiser, VariationalDequantisation):
        raise InputError(f"dequantiser: got {type(dequantiser).__name__}, want a VariationalDequantisation")
    x, _ = dequantiser._checked(x)
    seen = x if held_out is None else as_batch(held_out, "held_out")
    batch_size = as_count(batch_size, "batch_size", each=x[0].nbytes)
    n_steps, rate = as_count(n_steps, "n_steps"), as_number(learning_rate, "learning_rate")
    seeds = seed_from(generator), seed_from(generator)
    gain = _gain(dequantiser, surrogate, seen, seeds[0])
    looks, best = [Look(0, math.nan, gain)], copy.deepcopy(dequantiser.state_dict())
    for step, loss in _steps(dequantiser, surrogate, x, (n_steps, batch_size, rate), generator):
        gain = _gain(dequantiser, surrogate, seen, seeds[0])
        if gain.value > max(look.gain.value for look in looks):
            best = copy.deepcopy(dequantiser.state_dict())
        looks.append(Look(step, loss, gain))
    dequantiser.load_state_dict(best)
    return DequantiserFit(_gain(dequantiser, surrogate, seen, seeds[1]), tuple(looks))


def _steps(
    dequantiser: VariationalDequantisation,
    surrogate: Surrogate,
    x: Batch,
    sizes: tuple[int, int, float],
    generator: torch.Generator | None,
) -> Iterator[tuple[int, float]]:
    """Yields (steps, mean loss) each time a look is due. Gradients are of the dequantiser's weights only."""
    n_steps, batch_size, rate = sizes
    weights, every = list(dequantiser.parameters()), -(-n_steps // _LOOKS)
    optimiser = torch.optim.Adam(weights, lr=rate)
    losses: list[float] = []
    for step in range(1, n_steps + 1):
        rows = x[torch.randint(len(x), (batch_size,), generator=generator, device=x.device)]
        loss = _loss(dequantiser, surrogate, rows, generator).mean()
        for weight, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = grad
        nn.utils.clip_grad_norm_(weights, _CLIP)
        optimiser.param_groups[0]["lr"] = 0.5 * rate * (1 + math.cos(math.pi * (step - 1) / n_steps))
        optimiser.step()
        losses.append(loss.item())
        if step % every == 0 or step == n_steps:
            yield step, sum(losses) / len(losses)
            losses = []
    optimiser.zero_grad()


def _loss(dequantiser: Dequantisation, surrogate: Surrogate, x: Batch, generator: torch.Generator | None) -> Rows:
    """−log p(y) + log q(y | x) of one draw a row, by the surrogate."""
    y, log_q = dequantiser.sample(x, generator=generator)
    value = surrogate(y, generator)
    if not bool(value.isfinite().all()):
        raise InputError("surrogate: got values that are not finite, want −log p(y) of every y in the cells")
    if log_q.requires_grad and not value.requires_grad:
        raise InputError("surrogate: got values without a gradient in y, want a function that autograd sees through")
    return value.double() + log_q.double()


def _gain(dequantiser: VariationalDequantisation, surrogate: Surrogate, x: Batch, seed: int) -> Estimate:
    """What it gains over the uniform law: a mean over rows, both laws from the same draws."""
    uniform = UniformDequantisation(dequantiser.widths, below=dequantiser.below)
    gains = []
    for i, rows in enumerate(x.split(_CHUNK)):
        total = torch.zeros(len(rows), dtype=torch.float64, device=x.device)
        for draw in range(_DRAWS):
            with torch.no_grad():
                either = [
                    _loss(
                        law, surrogate, rows, torch.Generator(x.device).manual_seed((seed + i * _DRAWS + draw) % 2**62)
                    )
                    for law in (uniform, dequantiser)
                ]
            total += either[0] - either[1]
        gains.append(total / _DRAWS)
    return Estimate.mean_of(torch.cat(gains))


def _log_volume(h: Tensor) -> float:
    """Σ log h over the coordinates that are on a grid."""
    return h[h > 0].log().sum().item()


def _widths(widths: object) -> Tensor:
    try:
        h = torch.as_tensor(widths, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"widths: got {widths!r}, want a number >= 0 or one for each coordinate") from None
    bad = ~(h.isfinite() & (h >= 0))
    if h.numel() == 0 or bool(bad.any()):
        first = h[bad].reshape(-1)[0].item() if h.numel() else "none"
        raise InputError(f"widths: got {first}, want finite numbers >= 0, 0 for a continuous coordinate")
    return h
