"""Checks of the constructor's arguments, which scikit-learn wants made when fitting."""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradlogp._shapes import MOST, InputError, as_count, as_positive, require_memory, short
from gradlogp.networks import MOST_BLOCKS
from gradlogp.samplers.starts import MOST_STEPS

if TYPE_CHECKING:
    from gradlogp.estimators.density import DensityEstimator

MOST_THREADS = 1024
# whole numbers >= 1, and the largest; memory may say less
_COUNTS = {
    "width": MOST,
    "depth": MOST_BLOCKS,
    "n_steps": MOST,
    "batch_size": MOST,
    "patience": sys.maxsize,  # which means never
    "sampling_steps": MOST_STEPS,
}
SIGMAS = 1e-25, 1e15  # noise levels whose squares, and those of their ratios, are numbers in float32
_MAY_BE_NONE = ("width", "batch_size", "sigma_min", "sigma_max", "max_seconds")
_BYTES, _COPIES, _PER_BLOCK = 4, 6, 8  # of a number; of the weights in training; of the units that a block keeps


def check_parameters(estimator: DensityEstimator) -> None:
    """Refuse a constructor argument that cannot be used."""
    values: dict[str, Any] = estimator.get_params(deep=False)
    given = {name: value for name, value in values.items() if value is not None or name not in _MAY_BE_NONE}
    for name in _COUNTS.keys() & given.keys():
        as_count(given[name] if isinstance(given[name], int | np.integer) else None, name, most=_COUNTS[name])
    for name in ("sigma_min", "sigma_max", "learning_rate", "max_seconds"):
        if name in given:
            size = as_positive(given[name], name)
            if name.startswith("sigma") and not SIGMAS[0] <= size <= SIGMAS[1]:
                raise InputError(f"{name}: got {size:g}, want {SIGMAS[0]:g} to {SIGMAS[1]:g}, as float32 allows")
    _check_threads(estimator.n_jobs)
    for name, value in (("validation_fraction", estimator.validation_fraction), ("dropout", estimator.dropout)):
        if value is not None and not (_is_number(value) and 0 <= value < 1):
            raise InputError(f"{name}: got {short(value)}, want a number in [0, 1)")
    if not estimator.validation_fraction:
        got = estimator.validation_fraction
        raise InputError(f"validation_fraction: got {got!r}, want > 0: training stops by the held-out loss")
    share = estimator.contamination
    if share is not None and not (_is_number(share) and 0 < share <= 0.5):
        raise InputError(f"contamination: got {short(share)}, want a number in (0, 0.5], or None")
    if estimator.network is not None and not (isinstance(estimator.network, str) and estimator.network == "auto"):
        raise InputError(f"network: got {short(estimator.network)}, want 'auto', or None for the closed form alone")
    if estimator.network is None and estimator.energy:
        raise InputError("energy: got True without a network, want a network, which learns it")
    if not isinstance(estimator.energy, bool | np.bool_):
        raise InputError(f"energy: got {short(estimator.energy)}, want True or False")
    if not isinstance(estimator.objective, str) or estimator.objective not in ("score", "likelihood"):
        raise InputError(f"objective: got {short(estimator.objective)}, want 'score' or 'likelihood'")
    standardize = estimator.standardize
    if not isinstance(standardize, int | np.bool_ | str) or standardize not in (True, False, "auto"):
        raise InputError(f"standardize: got {short(standardize)}, want True, False or 'auto'")


def check_memory(n_coordinates: int, width: int, depth: int, batch_size: int, device: torch.device) -> None:
    """Refuse sizes that training has no memory for; the message names the one to change.

    Raises:
        InputError: says what it needs, and what fits.
    """

    def needed(width: int = 1, depth: int = 1, batch_size: int = 1) -> int:
        weights = width * (2 * n_coordinates + depth * (2 * width + 128))
        rows = batch_size * (3 * n_coordinates + 4 + depth * _PER_BLOCK * width)
        return _BYTES * (_COPIES * weights + rows)

    require_memory(width, "width", needed, device)
    require_memory(depth, "depth", lambda n: needed(width, n), device)
    require_memory(batch_size, "batch_size", lambda n: needed(width, depth, n), device)


def generator_from(random_state: Any, device: torch.device) -> torch.Generator:
    """A seeded source of draws on a device; a source of draws is asked for the seed, the next one each time."""
    if isinstance(random_state, np.random.RandomState):
        seed = int(random_state.randint(2**31))
    elif isinstance(random_state, np.random.Generator):
        seed = int(random_state.integers(2**62))
    elif isinstance(random_state, torch.Generator):
        seed = int(torch.randint(2**62, (), generator=random_state, device=random_state.device))
    elif random_state is None:
        seed = secrets.randbits(62)
    elif isinstance(random_state, int | np.integer) and not isinstance(random_state, bool):
        seed = int(random_state)
    else:
        seed = -1
    if not 0 <= seed < 2**64:
        raise InputError(f"random_state: got {short(random_state)}, want a whole number from 0 to 2**64 - 1, or None")
    return torch.Generator(device).manual_seed(seed)


def device_from(device: Any) -> torch.device:
    """The device asked for, or a GPU where there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.Generator(torch.empty(0, device=device).device).device
    except (RuntimeError, AssertionError, TypeError, ValueError, OverflowError):
        raise InputError(f"device: got {short(device)}, want one that is here, such as 'cpu'") from None


def _check_threads(n: Any) -> None:
    whole = n is None or (isinstance(n, int | np.integer) and not isinstance(n, bool))
    if not whole or (n is not None and (n == 0 or abs(n) > MOST_THREADS)):
        raise InputError(f"n_jobs: got {short(n)}, want a whole number from 1 to {MOST_THREADS}, or -1 for all")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, np.complexfloating)
