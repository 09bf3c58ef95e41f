"""Measure all that a report says of one model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gradlogp import samplers
from gradlogp._progress import Bar
from gradlogp._shapes import Batch, InputError, as_batch, same_event
from gradlogp.audit.result import Audit, Repeats
from gradlogp.audit.view import Floats, View
from gradlogp.diagnostics import calibration, curl, memorisation, nearest_neighbours, score_error, self_check
from gradlogp.diagnostics.references import default_noise
from gradlogp.kernels import Gaussian
from gradlogp.models import ScoreModel
from gradlogp.training import Record

MIN_ROWS = 8  # held-out rows, at least
MIN_DRAWS = 700  # noisy draws a level, at least: rows, not draws, are what is scarce
N_SAMPLES = 256
SAMPLING_STEPS = 20
_CHECK_DRAWS = 128  # of the self-check; a broken loss is tens of standard errors off

T = TypeVar("T")


def measure(
    model: ScoreModel,
    x_test: Batch,
    kernels: Sequence[Gaussian],
    *,
    x_train: Tensor | None = None,
    comparisons: Iterable[Any] = (),
    view: View | None = None,
    history: Sequence[Record] = (),
    groups: Sequence[Any] | np.ndarray | Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Audit:
    """Measure one model on rows that it was not trained on.

    The score error at each level with its bracket, the size of the scores, their symmetry, the self-check of the loss,
    some samples; and, against the training rows, what was memorised and whether samples are copies. All in the model's
    units but what is shown of rows.

    Args:
        model: any score model ψ that autograd can follow.
        x_test: held-out rows, ``(N, *event)``, at least 8.
        kernels: isotropic Gaussian levels, at least two; samples go from the largest σ to the smallest.
        x_train: the rows that the model was trained on; without them memorisation is not measured.
        comparisons: other models, or further rows of the same law, to compare with; such as a closed form that the
            model builds on.
        view: how rows are shown.
        history: the training's records.
        groups: one label a held-out row: rows of one group may depend on each other; for the score error and the
            calibration.
        generator: source of the draws; None is a fixed seed.
        progress: show a bar on a terminal.

    Raises:
        InputError: fewer than 8 rows, rows that are all among the training rows though rows hardly repeat there, or as
            the diagnostics raise.
    """
    x_test, view = _enough(as_batch(x_test, "x_test")), View() if view is None else view
    if len(kernels) < 2:
        raise InputError(f"kernels: got {len(kernels)}, want at least 2 levels")
    g = torch.Generator(x_test.device).manual_seed(0) if generator is None else generator
    repeats, known = None, list(comparisons)
    if x_train is not None:
        repeats, others = _repeats(x_train, x_test)
        known += [x_train] if others else []
    clock = _Clock(progress)
    with clock.bar:
        noise = default_noise(len(x_test), MIN_DRAWS)
        error = clock(
            "score error", score_error, model, known, x_test, kernels, groups=groups, n_noise=noise, generator=g
        )
        check = clock(
            "self-check", self_check, model, x_test[:_CHECK_DRAWS], _middle(model, kernels),
            min_draws=_CHECK_DRAWS, generator=g,
        )  # fmt: skip
        sizes = clock("calibration", calibration, model, x_test, kernels, groups=groups, generator=g)
        rotation = clock("symmetry", curl, model, x_test, kernels, generator=g)
        shown, samples = clock("samples", _draw, model, kernels, tuple(x_test.shape[1:]), view, g)
        memory = near = None
        if x_train is not None:
            memory = clock("memorisation", memorisation, model, x_train, x_test, kernels, generator=g)
            near = clock("nearest neighbours", nearest_neighbours, samples, x_train, x_test)
    return Audit(
        score_error=error,
        self_check=check,
        calibration=sizes,
        curl=rotation,
        memorisation=memory,
        neighbours=near,
        repeats=repeats,
        data=view.to_data(x_test),
        samples=shown,
        view=view,
        history=tuple(history),
        seconds=clock.seconds,
    )


class _Clock:
    """Runs the parts with a bar, and keeps how long each took."""

    def __init__(self, progress: bool) -> None:
        self.seconds: dict[str, float] = {}
        form, off = "{desc} {percentage:3.0f}% |{bar}| {elapsed}{postfix}", None if progress else True
        self.bar = Bar(total=7, miniters=0, desc="diagnose", bar_format=form, leave=False, disable=off)

    def __call__(self, part: str, f: Callable[..., T], *args: Any, **more: Any) -> T:
        self.bar.set_postfix_str(part)
        start = time.perf_counter()
        result = f(*args, **more)
        self.seconds[part] = time.perf_counter() - start
        self.bar.update()
        return result


def _enough(x_test: Tensor) -> Tensor:
    if len(x_test) < MIN_ROWS:
        raise InputError(f"held-out rows: got {len(x_test)}, want at least {MIN_ROWS}")
    return x_test


def _middle(model: ScoreModel, kernels: Sequence[Gaussian]) -> Gaussian:
    """The data's scale, or the middle of the levels."""
    if model.reference is not None:
        return Gaussian(model.reference.data_scale.item())
    return sorted(kernels, key=lambda k: k.sigma.item())[len(kernels) // 2]


def _draw(
    model: ScoreModel, kernels: Sequence[Gaussian], event_shape: tuple[int, ...], view: View, g: torch.Generator
) -> tuple[Floats, Tensor]:
    """Some samples as a user gets them: in the data's units, and in the model's."""
    low, *_, high = sorted(k.sigma.item() for k in kernels)
    with torch.no_grad():
        z = samplers.sample(
            model, N_SAMPLES, SAMPLING_STEPS, sigma_max=high, sigma_min=low, event_shape=event_shape, generator=g
        )
        return view.drawn(model.denoise(z, Gaussian(low)))


def _repeats(x_train: Tensor, x_test: Tensor) -> tuple[Repeats, bool]:
    """Held-out rows that equal a training row, and training rows that equal another; whether 2 others are left.

    Raises:
        InputError: every held-out row is a training row, and it is not usual for rows to come twice.
    """
    x_train = same_event(as_batch(x_train, "x_train"), tuple(x_test.shape[1:]), "x_train")
    both = torch.cat([x_train.flatten(1), x_test.flatten(1).to(x_train)])
    groups, n = both.unique(dim=0, return_inverse=True)[1].split([len(x_train), len(x_test)]), len(both)
    train, test = (torch.bincount(group, minlength=n) for group in groups)
    found = Repeats(len(x_train), int(train[train > 1].sum()), len(x_test), int(test[train > 0].sum()))
    if found.test == len(x_test) and found.suspicious:
        raise InputError(f"held-out rows: got {found.test} that are all among the training rows, want others")
    return found, int(train[test == 0].sum()) >= 2
