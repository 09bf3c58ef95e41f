"""Where a run starts and stops."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, as_batch, as_count, as_number, same_event
from gradlogp.kernels import Gaussian
from gradlogp.models import ScoreModel, event_of
from gradlogp.processes import Process
from gradlogp.samplers.noise import Noise

START = 10.0  # default sigma_max, in standard deviations of the widest direction of the data
STOP = 0.002  # default sigma_min, in units of the data's scale
MOST_STEPS = 10**6
LOW_PRECISION = (torch.float16, torch.bfloat16)


def ends(model: ScoreModel, sigma_max: float | None, sigma_min: float | None) -> tuple[float, float]:
    """Where to start and to stop: as given, otherwise from the data's scale."""
    reference = model.reference
    if model.levels is not None and model.levels[0] == model.levels[1]:
        want = "one of all levels; at one level samplers.langevin(model, x_t, [kernel]) samples"
        raise InputError(f"model: got one that was trained at sigma = {model.levels[0]:g} alone, want {want}")
    if reference is None and (sigma_max is None or sigma_min is None):
        raise InputError("sigma_max, sigma_min: this model does not know the data's scale, want both given")
    if reference is not None:
        sigma_max = START * reference.eigenvalues.max().sqrt().item() if sigma_max is None else sigma_max
        sigma_min = STOP * reference.data_scale.item() if sigma_min is None else sigma_min
    high, low = as_number(sigma_max, "sigma_max"), as_number(sigma_min, "sigma_min")
    if high <= low:
        raise InputError(f"sigma_max, sigma_min: got {high:g} and {low:g}, want sigma_max > sigma_min")
    return high, low


def require_within(process: Process | None, high: float, low: float) -> None:
    """Refuse ends that are no noise ratio of a process.

    Raises:
        InputError: says which of its own there are.
    """
    if process is None:
        return
    try:
        process.time(torch.tensor([high, low], dtype=torch.float64))
    except InputError:
        most, least = (process.ratio(t).item() for t in (process.t_max, process.t_min))
        got, want = f"got {high:g} and {low:g}", f"want within {least:.3g} and {most:.3g}, the noise of {process!r}"
        raise InputError(f"sigma_max, sigma_min: {got}, {want}: pass sigma_max= and sigma_min=, or grid=") from None


def seed_from(generator: torch.Generator | None) -> int:
    """A seed for a run, drawn from the caller's generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(f"generator: got {type(generator).__name__}, want a torch.Generator")
    device = generator.device if generator is not None else None
    return int(torch.randint(2**62, (), generator=generator, device=device))


def start(
    model: ScoreModel,
    x_or_n: Batch | int,
    s: Tensor,
    event_shape: tuple[int, ...] | None,
    noise: Noise,
    generator: torch.Generator | None,
) -> Batch:
    """The given start y = x + s·z, or draws of the Gaussian of the data's moments seen at s, or of N(0, s² I)."""
    if isinstance(x_or_n, Tensor):
        return as_batch(x_or_n, "x")
    n, reference = as_count(x_or_n, most=sys.maxsize), model.reference
    if reference is not None:
        return reference.coloured(noise(reference.mean.expand(n, *reference.event_shape)), Gaussian(s))
    assert event_shape is not None
    device = generator.device if generator is not None else None
    return s.to(torch.get_default_dtype()) * noise(torch.empty((), device=device).expand(n, *event_shape))


def event_shape_of(model: ScoreModel, given: tuple[int, ...] | None, x: Batch | None = None) -> tuple[int, ...]:
    """The shape of one sample: that of the start x, the model's, or the one given where the model does not know it.

    Raises:
        InputError: none of them, or two that differ.
    """
    known = model.reference.event_shape if model.reference is not None else event_of(model)
    if x is not None:
        return tuple(x.shape[1:]) if known is None else tuple(same_event(x, known, "x").shape[1:])
    if known is None and given is None:
        raise InputError("event_shape: the model does not know it, want the shape of one sample, e.g. (2,)")
    if given is not None:
        whole = isinstance(given, tuple | list) and all(isinstance(n, int) and n > 0 for n in given) and len(given) > 0
        if not whole or (known is not None and tuple(given) != tuple(known)):
            raise InputError(f"event_shape: got {given!r}, want {known or 'whole numbers > 0, e.g. (2,)'}")
    return tuple(known if known is not None else given or ())
