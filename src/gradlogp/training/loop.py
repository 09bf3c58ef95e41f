"""The loop, as a generator of small records."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from gradlogp._draws import Seeded, dropout_from
from gradlogp._shapes import Batch, InputError, as_batch, same_event
from gradlogp.models import ClosedForm, GaussianReference, ScoreModel, require_model
from gradlogp.objectives import DenoisingScoreMatching, Objective
from gradlogp.training.adamw import AdamW
from gradlogp.training.average import Average
from gradlogp.training.held_out import MIN_DRAWS, HeldOut, repeated
from gradlogp.training.levels import Levels
from gradlogp.training.loss import WeightedLoss
from gradlogp.training.recipe import Goal, Recipe
from gradlogp.training.records import Record, in_vain

_REFERENCES = 128  # of the stable target, at most: with more, held-out losses are no better and a step takes longer
_MANY = 512  # coordinates, from which it is half as many: rows are then far apart, and distances take long
MORE_LOOKS = 4  # than patience asks for, at first, beside parts: the network must catch up with them
_FASTER = 10  # learning rate of what a weight learns, over that of the network: it has a few values only


def train(
    model: ScoreModel,
    x: Batch,
    held_out: Tensor,
    *,
    levels: Levels,
    recipe: Recipe | None = None,
    objective: Objective | None = None,
    average: Average | None = None,
    parts: Sequence[ScoreModel] = (),
    generator: torch.Generator | None = None,
) -> Generator[Record, None, None]:
    """Fit a model in place by denoising score matching; afterwards it holds the averaged weights of the best look.

    It may be ended early: by ``close()``, or an interrupt.

    The best look is the one with the least left to learn: the held-out loss against the stable target, which has the
    same minimum as the loss and less noise. The first record, at step 0, is the model as it came: a model that starts
    as its reference is never left worse. A step is kept only if it leaves less than that, by more than a standard
    error. Looks use the recipe's weight and these levels, or those of ``recipe.look``. A
    :class:`~gradlogp.models.ClosedForm` has nothing to train: the first record is all.

    Args:
        model: the model, such as :class:`~gradlogp.models.Preconditioned`, :class:`~gradlogp.models.EnergyModel` or
            :class:`~gradlogp.models.DenoisingAutoencoder`; its weights are changed. Its ``noise`` is what it is trained
            with: Gaussian unless said. One that is right at one level takes ``levels=OneLevel(model.sigma)``.
        x: training rows, ``(N, *event)``.
        held_out: rows that are never trained on, ``(M, *event)``.
        levels: the law of the noise levels to train on; for noise that is not Gaussian, of its Fisher scales. A goal
            has both: ``levels=goal.levels, recipe=Recipe(weight=goal.weight)``.
        recipe: how to train, and what each level counts.
        objective: loss of a row; by default :class:`~gradlogp.objectives.DenoisingScoreMatching` with the batch as
            references (128 of its rows at a time, or 64), whose target has less noise: ``benchmarks/stable_target.py``.
        average: the running average of the weights, for a caller that wants to see it between records.
        parts: models that will be stacked on this one, by :func:`gradlogp.training.calibrate`: looks are of the stack,
            so that a step is kept, and training goes on, only for what they do not know. It then ends after step 250
            at the earliest, where it ends after 150 without parts.
        generator: source of every draw, and its seed that of dropout layers; what a network draws in other ways comes
            from torch's global source.

    Raises:
        InputError: x or held_out not finite batches, or a loss that is not finite (the best weights so far are kept);
            a noise that is no scale family; a network that gives no finite rows like its input, or no gradient.
    """
    recipe, (x, held_out) = Recipe() if recipe is None else recipe, _checked(model, x, held_out, levels)
    objective = DenoisingScoreMatching(references=references(x, recipe.batch_size)) if objective is None else objective
    reference = GaussianReference.of_data(x) if model.reference is None else model.reference
    loss = WeightedLoss(objective, reference, model.noise, recipe.weight)
    seed = int(
        torch.randint(2**31, (), generator=generator, device=generator.device if generator is not None else None)
    )
    goal = Goal(recipe.weight, levels) if recipe.look is None else recipe.look
    look = HeldOut(held_out, goal.levels, loss.weighted_by(goal.weight), seed, parts=parts)
    average = Average(model, recipe.ema) if average is None else average
    best, best_weights, history = math.inf, copy.deepcopy(average.model.state_dict()), list[Record]()
    nothing = isinstance(model, ClosedForm)
    start = (
        0,
        float(nothing),
        _loss_before(average.model, x[: min(len(held_out), MIN_DRAWS)], loss, levels, seed),
        0.0,
    )
    try:
        for step, progress, mean_loss, seconds in chain(
            [start], () if nothing else _steps(model, x, loss, levels, recipe, average, generator)
        ):
            seen = look(average.model)
            _require_finite(seen.left, step)
            better = seen.left < best and (step == 0 or seen.gain > seen.gain_stderr)
            if better:
                best, best_weights = seen.left, copy.deepcopy(average.model.state_dict())
            values = {**seen._asdict(), "floor": look.floor, "floor_stderr": look.floor_stderr}
            history.append(Record(step=step, progress=progress, loss=mean_loss, best=better, seconds=seconds, **values))
            yield history[-1]
            if in_vain(history) >= recipe.patience and len(history) > recipe.patience + MORE_LOOKS * bool(parts):
                return
    finally:
        model.load_state_dict(best_weights)
        model.eval()


def references(x: Batch, batch_size: int) -> int:
    """How many rows of a batch are the references of each other's stable targets, by default."""
    return min(batch_size, _REFERENCES if x[0].numel() < _MANY else _REFERENCES // 2)


def _checked(model: ScoreModel, x: Batch, held_out: Tensor, levels: object) -> tuple[Tensor, Tensor]:
    """The rows, of one event shape, for a model that has something to train."""
    require_model(model)
    if not isinstance(levels, Levels):
        raise InputError(f"levels: got {levels!r}, want a law of noise levels, e.g. training.OneLevel(0.5)")
    if not isinstance(model, ClosedForm) and not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"model: got a {type(model).__name__} with no parameter to train, want one")
    x = as_batch(x)
    if len(held_out) < 2:
        raise InputError(f"held_out: got {len(held_out)} row, want at least 2: one row shows no standard error")
    return x, as_batch(same_event(held_out, tuple(x.shape[1:]), "held_out"), "held_out")


def _loss_before(model: ScoreModel, x: Batch, loss: WeightedLoss, levels: Levels, seed: int) -> float:
    """The mean training loss of the model as it came."""
    g = torch.Generator(x.device).manual_seed(seed)
    rows = repeated(x, MIN_DRAWS)
    sigma = levels.draw(len(rows), generator=g, like=rows)
    with torch.no_grad():
        mean = loss(model, rows, sigma, g).mean().item()
    if not math.isfinite(mean):
        raise InputError(f"model: got a loss of {mean} before the first step, want a network that gives finite numbers")
    return mean


def _steps(
    model: ScoreModel,
    x: Batch,
    loss: WeightedLoss,
    levels: Levels,
    recipe: Recipe,
    average: Average,
    generator: torch.Generator | None,
) -> Iterator[tuple[int, float, float, float]]:
    """The loop: yields (steps, progress, mean loss, seconds) each time a look is due."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = _optimiser(parameters, recipe)
    batches = _batches(x, recipe.batch_size, generator)
    dropout = _dropout(model, generator)
    total, since, start = torch.zeros((), device=x.device), 0, time.perf_counter()
    due = recipe.evaluate_every
    model.train()
    for step in range(recipe.n_steps):
        progress = max(step / recipe.n_steps, (time.perf_counter() - start) / recipe.max_seconds)
        for group in optimiser.param_groups:
            group["lr"] = group["times"] * recipe.rate(step, progress)
        rows = next(batches)
        sigma = levels.draw(len(rows), generator=generator, like=rows)
        dropout(True)
        try:
            each = loss(model, rows, sigma, generator)
        finally:
            dropout(False)
        if not each.requires_grad:
            raise InputError("model: got a loss without a gradient in its parameters, want a network without detach()")
        optimiser.zero_grad()
        recipe.weight.minimised(each, sigma).mean().backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimiser.step()
        average.update(step)
        total, since = total + each.detach().mean(), since + 1
        done = step + 1 == recipe.n_steps or progress >= 1
        if done or step + 1 == due:
            due = recipe.next_look(due)
            mean = (total / since).item()
            _require_finite(mean, step + 1)
            yield step + 1, min(progress, 1.0) if not done else 1.0, mean, time.perf_counter() - start
            total, since = torch.zeros_like(total), 0
        if done:
            return


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise InputError(f"training: the loss is not finite at step {step}; want a smaller learning rate or sane data")


def _optimiser(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer | AdamW:
    """The recipe's, of the model's parameters, and, without decay, of what the weight learns."""
    groups = [{"params": parameters, "weight_decay": recipe.weight_decay, "times": 1}]
    if learnt := recipe.weight.parameters():
        groups.append({"params": learnt, "weight_decay": 0.0, "times": _FASTER})
    return recipe.optimiser(groups, lr=recipe.learning_rate)


def _dropout(model: ScoreModel, generator: torch.Generator | None) -> Callable[[bool], None]:
    """A switch that has dropout draw from the generator's seed; from torch's global source where there is none."""
    return (lambda _: None) if generator is None else dropout_from(model, Seeded(generator.initial_seed()))


def _batches(x: Batch, size: int, generator: torch.Generator | None) -> Iterator[Batch]:
    """Endless batches of one size, by shuffled passes over the rows, several a batch if they are few."""
    order = torch.empty(0, dtype=torch.long, device=x.device)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(x), generator=generator, device=x.device)])
        yield x[order[:size]]
        order = order[size:]
