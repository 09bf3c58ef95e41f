"""Training: denoising score matching over a range of noise levels, as a generator of small records."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from gradlogp._shapes import Batch, InputError, Rows, as_batch, as_level, dot, squared_norm
from gradlogp.kernels import Gaussian
from gradlogp.models import N_GATES, GaussianReference, Preconditioned
from gradlogp.objectives import DenoisingScoreMatching, Objective

SMALLEST = 0.01  # default sigma_min, in units of the smallest scale of the data
LARGEST = 4.0  # default sigma_max, in standard deviations of the widest direction of the data


@dataclass(frozen=True)
class NoiseLevels:
    """The noise levels to train on: log σ uniform between two ends, or more densely around the data's scale.

    Attributes:
        sigma_min, sigma_max: the ends, in the data's unit.
        centre, spread: log σ is normal with this mean and standard deviation, cut at the ends; ``spread = inf`` is
            uniform.
    """

    sigma_min: float
    sigma_max: float
    centre: float = 0.0
    spread: float = math.inf

    def __post_init__(self) -> None:
        low, high = as_level(self.sigma_min, "sigma_min").item(), as_level(self.sigma_max, "sigma_max").item()
        if low >= high:
            raise InputError(f"sigma_min, sigma_max: got {low:g} and {high:g}, want sigma_min < sigma_max")

    @classmethod
    def of_data(
        cls,
        reference: GaussianReference,
        smallest: float,
        *,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> NoiseLevels:
        """Levels from the data: from 1/100 of their smallest scale to 4 standard deviations of their widest direction.

        Above that the Gaussian with the data's moments is all but exact. Most levels are drawn around half the data's
        scale σ_d, where the structure is learnt: log σ is normal around log(σ_d/2), as in EDM, with a standard
        deviation of 1.2.

        Args:
            reference: the Gaussian with the data's moments.
            smallest: the smallest scale worth resolving, in the data's unit.
            sigma_min: take this smallest level instead.
            sigma_max: take this largest level instead.

        Raises:
            InputError: an end that is not positive and finite, or ends that are not in order.
        """
        low = SMALLEST * smallest if sigma_min is None else sigma_min
        high = LARGEST * reference.eigenvalues.max().sqrt().item() if sigma_max is None else sigma_max
        return cls(low, high, math.log(0.5 * reference.data_scale.item()), 1.2)

    def quantile(self, u: Tensor) -> Tensor:
        """σ at probability u in (0, 1)."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        if math.isinf(self.spread):
            return torch.exp(low + u * (high - low))
        z = torch.tensor([(low - self.centre) / self.spread, (high - self.centre) / self.spread], dtype=torch.float64)
        p_low, p_high = torch.special.ndtr(z).tolist()
        p = (p_low + u.double() * (p_high - p_low)).clamp(1e-12, 1 - 1e-12)
        log_sigma: Tensor = self.centre + self.spread * torch.special.ndtri(p)
        return log_sigma.clamp(low, high).exp().to(u.dtype)

    def draw(self, n: int, *, generator: torch.Generator | None = None, like: Tensor) -> Rows:
        """n levels, stratified: one in each of n equally probable strata, so that a batch covers the range evenly."""
        u0 = torch.rand(n, generator=generator, dtype=like.dtype, device=like.device)
        u = (torch.arange(n, dtype=like.dtype, device=like.device) + u0) / n
        return self.quantile(u)[torch.randperm(n, generator=generator, device=like.device)]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        n_steps: steps at most.
        batch_size: rows a step.
        learning_rate: the peak of AdamW's.
        weight_decay: AdamW's.
        warm_up: steps over which the rate rises; it then falls to 0 as a cosine.
        clip: largest norm of a gradient.
        ema: decay of the average of the weights, once warmed up.
        evaluate_every: steps between two looks at the held-out loss.
        patience: looks without a better one before it stops.
        max_seconds: stop by then at the latest, the cosine squeezed to fit.
    """

    n_steps: int = 10_000
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warm_up: int = 100
    clip: float = 1.0
    ema: float = 0.999
    evaluate_every: int = 100
    patience: int = 20
    max_seconds: float = math.inf

    def rate(self, step: int, progress: float) -> float:
        """The learning rate, warm-up times cosine."""
        return (
            self.learning_rate
            * min(1.0, (step + 1) / self.warm_up)
            * 0.5
            * (1 + math.cos(math.pi * min(progress, 1.0)))
        )


@dataclass(frozen=True)
class Record:
    """What one look at the training shows. Losses are per coordinate and weighted so that 1 is about no skill.

    Attributes:
        step: steps done.
        progress: share of the budget used, 0 to 1.
        loss: mean training loss since the last record; at step 0 that of the model as it came, on training rows.
        held_out: loss of the averaged weights on the held-out rows, the same noise at every look.
        held_out_stderr: its standard error over rows.
        best: whether it is the best so far.
        seconds: time since the start.
    """

    step: int
    progress: float
    loss: float
    held_out: float
    held_out_stderr: float
    best: bool
    seconds: float


class WeightedLoss:
    """The loss of each row at its level: λ(σ)·J_DSM with λ = 2σ²(σ² + σ_d²)/(σ_d² R), R directions in which data vary.

    2σ⁴ J_DSM is the denoiser's square error and c_out² = σ²σ_d²/(σ² + σ_d²), so λ·J_DSM is the mean square error of the
    network's output per direction: the weighting of EDM (Karras et al. 2022, table 1), and 1 for a scalar skip alone.
    """

    def __init__(self, objective: Objective, reference: GaussianReference) -> None:
        self.objective = objective
        self.variance = reference.data_scale.item() ** 2
        self.n_coordinates = reference.eigenvalues.numel()

    def __call__(self, model: Preconditioned, x: Batch, sigma: Rows, generator: torch.Generator | None) -> Rows:
        """Loss of each row, ``(B,)``."""
        weight = 2 * (sigma**2 / self.variance) * (sigma**2 + self.variance) / self.n_coordinates
        return weight * self.objective(model, x, Gaussian(sigma), generator=generator)


class HeldOut:
    """The loss on fixed rows with fixed noise, so that two looks differ by the model only."""

    def __init__(self, x: Batch, levels: NoiseLevels, loss: WeightedLoss, seed: int, min_rows: int = 2048) -> None:
        repeats = max(1, math.ceil(min_rows / len(x)))
        self.rows = x.repeat(repeats, *(1,) * (x.ndim - 1))
        self.n = len(x)
        self.loss = loss
        self.seed = seed
        g = torch.Generator(x.device).manual_seed(seed)
        self.sigma = levels.draw(len(self.rows), generator=g, like=x)

    def __call__(self, model: Preconditioned) -> tuple[float, float]:
        """The loss and its standard error over rows."""
        g = torch.Generator(self.rows.device).manual_seed(self.seed + 1)
        with torch.no_grad():
            each = self.loss(model, self.rows, self.sigma, g).double().reshape(-1, self.n).mean(0)
        return each.mean().item(), (each.std() / math.sqrt(self.n)).item() if self.n > 1 else math.inf


class Average:
    """Exponential moving average of a model's weights, with a warm-up: decay min(ema, (1 + t)/(10 + t))."""

    def __init__(self, model: Preconditioned, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._own: list[Tensor] = list(self.model.parameters())
        self._followed = list(model.parameters())
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the model's weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._own, [p.detach() for p in self._followed], 1 - decay)


def train(
    model: Preconditioned,
    x: Batch,
    held_out: Tensor,
    *,
    levels: NoiseLevels,
    recipe: Recipe | None = None,
    objective: Objective | None = None,
    average: Average | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Record]:
    """Fit a model in place by denoising score matching; afterwards it holds the averaged weights of the best look.

    The first record, at step 0, is the model as it came: a model that starts as its reference is never left worse.

    Args:
        model: the model; its weights are changed.
        x: training rows, ``(N, *event)``.
        held_out: rows that are never trained on, ``(M, *event)``.
        levels: noise levels to train on.
        recipe: how to train.
        objective: loss of a row; by default :class:`~gradlogp.objectives.DenoisingScoreMatching`.
        average: the running average of the weights, for a caller that wants to see it between records.
        generator: source of every draw.

    Raises:
        InputError: x or held_out not finite batches, or a loss that is not finite (the best weights so far are kept).
    """
    recipe, (x, held_out) = recipe or Recipe(), (as_batch(x), as_batch(held_out, "held_out"))
    loss = WeightedLoss(objective or DenoisingScoreMatching(), model.skip.reference)
    seed = int(
        torch.randint(2**31, (), generator=generator, device=generator.device if generator is not None else None)
    )
    look = HeldOut(held_out, levels, loss, seed)
    average = average or Average(model, recipe.ema)
    best, best_weights, since = math.inf, copy.deepcopy(average.model.state_dict()), 0
    start = (0, 0.0, HeldOut(x[: len(held_out)], levels, loss, seed)(average.model)[0], 0.0)
    try:
        for step, progress, mean_loss, seconds in chain(
            [start], _steps(model, x, loss, levels, recipe, average, generator)
        ):
            value, stderr = look(average.model)
            better = value < best
            since = 0 if better else since + 1
            if better:
                best, best_weights = value, copy.deepcopy(average.model.state_dict())
            yield Record(step, progress, mean_loss, value, stderr, better, seconds)
            if since >= recipe.patience:
                return
    finally:
        model.load_state_dict(best_weights)
        model.eval()


def calibrate(
    model: Preconditioned,
    held_out: Batch,
    levels: NoiseLevels,
    *,
    n_draws: int = 4096,
    generator: torch.Generator | None = None,
) -> None:
    """Close the network's gate at the noise levels where held-out rows do not show that it helps.

    The loss weighs an error of the score by σ², so at small σ it cannot see a network that is wrong. At each of 16
    levels, with D = D_ref + β·N, the best β is E⟨x − D_ref, N⟩/E‖N‖²; the gate is that β less one standard error (over
    rows), cut to [0, 1].

    Args:
        model: the trained model; its gate is set.
        held_out: rows that it was not trained on.
        levels: the levels that it was trained on.
        n_draws: draws of noise a level, about; fewer rows are repeated, of more the first are taken.
        generator: source of the draws.
    """
    sigma = torch.logspace(math.log10(levels.sigma_min), math.log10(levels.sigma_max), N_GATES, dtype=torch.float64)
    model.set_gate(sigma, torch.ones(N_GATES))
    x = held_out[:n_draws]
    n, rows = len(x), x.repeat(math.ceil(n_draws / len(x)), *(1,) * (x.ndim - 1))
    gates = []
    for s in sigma:
        x_t = Gaussian(s).sample(rows, generator=generator)
        with torch.no_grad():
            reference = model.skip.denoise(x_t, Gaussian(s))
            part = model.denoise(x_t, Gaussian(s)) - reference
        xy, xx = (v.double().reshape(-1, n).sum(0) for v in (dot(rows - reference, part), squared_norm(part)))
        gates.append(_shrunk_slope(xy, xx))
    model.set_gate(sigma, torch.stack(gates))


def _shrunk_slope(xy: Rows, xx: Rows) -> Tensor:
    """Σxy/Σxx less its standard error over rows, cut to [0, 1]; 0 where there is nothing to scale."""
    total = xx.sum().clamp_min(torch.finfo(xx.dtype).tiny)
    slope = xy.sum() / total
    return (slope - (xy - slope * xx).square().sum().sqrt() / total).clamp(0, 1)


def _steps(
    model: Preconditioned,
    x: Batch,
    loss: WeightedLoss,
    levels: NoiseLevels,
    recipe: Recipe,
    average: Average,
    generator: torch.Generator | None,
) -> Iterator[tuple[int, float, float, float]]:
    """The loop: yields (steps, progress, mean loss, seconds) each time a look is due."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    batches = _batches(x, recipe.batch_size, generator)
    total, since, start = torch.zeros((), device=x.device), 0, time.perf_counter()
    model.train()
    for step in range(recipe.n_steps):
        progress = max(step / recipe.n_steps, (time.perf_counter() - start) / recipe.max_seconds)
        optimiser.param_groups[0]["lr"] = recipe.rate(step, progress)
        rows = next(batches)
        sigma = levels.draw(len(rows), generator=generator, like=rows)
        with _dropout_from(generator, step):
            value = loss(model, rows, sigma, generator).mean()
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimiser.step()
        average.update(step)
        total, since = total + value.detach(), since + 1
        done = step + 1 == recipe.n_steps or progress >= 1
        if done or (step + 1) % recipe.evaluate_every == 0:
            mean = (total / since).item()
            if not math.isfinite(mean):
                raise InputError(
                    f"training: the loss is not finite at step {step + 1}; want a smaller learning rate or sane data"
                )
            yield step + 1, min(progress, 1.0) if not done else 1.0, mean, time.perf_counter() - start
            total, since = torch.zeros_like(total), 0
        if done:
            return


@contextmanager
def _dropout_from(generator: torch.Generator | None, step: int) -> Iterator[None]:
    """Dropout draws from torch's global source: seed it by the generator's seed and the step, and put it back after."""
    if generator is None:
        yield
        return
    on_gpu = generator.device.type == "cuda"
    source = torch.cuda.default_generators[generator.device.index or 0] if on_gpu else torch.default_generator
    state = source.get_state()
    source.manual_seed((generator.initial_seed() + step) % 2**63)
    try:
        yield
    finally:
        source.set_state(state)


def _batches(x: Batch, size: int, generator: torch.Generator | None) -> Iterator[Batch]:
    """Endless batches of one size, by shuffled passes over the rows, several a batch if they are few."""
    order = torch.empty(0, dtype=torch.long, device=x.device)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(x), generator=generator, device=x.device)])
        yield x[order[:size]]
        order = order[size:]
