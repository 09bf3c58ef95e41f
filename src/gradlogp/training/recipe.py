"""How to train."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from gradlogp._shapes import MOST, as_count, as_positive
from gradlogp.training.adamw import AdamW
from gradlogp.training.levels import Levels, NoiseLevels
from gradlogp.training.weights import EDM, SigmaSquared, Weight

if TYPE_CHECKING:
    import torch

    Optimizer: TypeAlias = torch.optim.Optimizer | AdamW

FALL = 0.3  # of the steps or seconds allowed, over which the rate falls


@dataclass(frozen=True)
class Goal:
    """What is minimised: ∫ λ(σ)p(σ)·J_DSM(σ) dσ, a weight and the law that the levels are drawn from.

    Attributes:
        weight: λ.
        levels: p.
    """

    weight: Weight
    levels: Levels

    @classmethod
    def score(cls, levels: Levels) -> Goal:
        """The score at all levels alike: EDM's weight, with levels as given. The default."""
        return cls(EDM(), levels)

    @classmethod
    def likelihood(cls, levels: Levels) -> Goal:
        """The bound on −log p between the ends of the levels: weight g², importance-sampled, for every process at once.

        In nats the part of the bound is ½∫ g² E‖ψ_t − t‖² dt = R·log(sigma_max/sigma_min) times the loss, which is
        that of noise prediction at levels that are uniform in log σ: see :mod:`gradlogp.training.weights`.

        Reference: Song, Durkan, Murray and Ermon (2021), theorem 1.
        """
        return cls(SigmaSquared(), NoiseLevels(levels.sigma_min, levels.sigma_max))


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        n_steps: steps at most; the limit of a training that stops when it has learnt what it can.
        batch_size: rows a step.
        learning_rate: the peak of the optimiser's.
        weight_decay: the optimiser's.
        warm_up: steps over which the rate rises. It is constant from then on, so that training may end at any step,
            and falls to 0 over the last 30 % of the steps or seconds allowed.
        clip: largest norm of a gradient.
        ema: decay of the average of the weights, once warmed up.
        evaluate_every: steps to the first look at the held-out loss, and between looks; from 16 times that on an eighth
            of the steps so far.
        patience: looks that bring less than 0.1 % of the held-out loss, or than half a standard error, before it stops:
            with 6, when half of the steps so far, and at least 150, brought no more.
        max_seconds: stop by then at the latest.
        weight: λ(σ), what each noise level counts; see :mod:`gradlogp.training.weights`.
        look: what held-out rows are looked at for, by which the best weights are kept; None: what is trained for, with
            the fixed part of a weight that learns. Where it is the likelihood that counts, this is
            :meth:`Goal.likelihood`, whatever is trained for.
        optimiser: (groups of parameters, lr=rate) -> optimiser, such as ``partial(torch.optim.SGD, momentum=0.9)``.

    Raises:
        InputError: a count that is not whole and positive, or a rate, clip or time that is not positive.
    """

    n_steps: int = 10_000
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warm_up: int = 100
    clip: float = 1.0
    ema: float = 0.999
    evaluate_every: int = 25
    patience: int = 6
    max_seconds: float = math.inf
    weight: Weight = field(default_factory=EDM)
    look: Goal | None = None
    optimiser: Callable[..., Optimizer] = AdamW

    def __post_init__(self) -> None:
        for name, least in (("n_steps", 1), ("batch_size", 1), ("warm_up", 0), ("evaluate_every", 1), ("patience", 1)):
            as_count(getattr(self, name), name, least=least, most=sys.maxsize if name == "patience" else MOST)
        for name in ("learning_rate", "clip", "max_seconds"):
            value = getattr(self, name)
            if not isinstance(value, float) or value != math.inf:
                as_positive(value, name)

    def rate(self, step: int, progress: float) -> float:
        """The learning rate at a step, and a share of what is allowed: up, level, and down at the end."""
        return self.learning_rate * min(1.0, (step + 1) / max(self.warm_up, 1), max(0.0, 1 - progress) / FALL)

    def next_look(self, step: int) -> int:
        """The step of the look after one at this step."""
        return step + max(1, step // (8 * self.evaluate_every)) * self.evaluate_every
