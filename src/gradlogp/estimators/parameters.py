"""Checks of the constructor's arguments, which scikit-learn wants made when fitting."""

from __future__ import annotations

import math
import secrets
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from gradlogp._shapes import InputError


def check_parameters(estimator: BaseEstimator) -> None:
    """Refuse a constructor argument that cannot be used."""
    for name in ("width", "depth", "n_steps", "batch_size", "patience", "sampling_steps", "n_jobs"):
        value = getattr(estimator, name)
        if value is None and name in ("width", "batch_size", "n_jobs"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"{name}: got {value!r}, want a whole number >= 1")
    for name in ("sigma_min", "sigma_max", "learning_rate", "max_seconds"):
        value = getattr(estimator, name)
        if value is not None or name == "learning_rate":
            _positive(value, name)
    for name, value in (("validation_fraction", estimator.validation_fraction), ("dropout", estimator.dropout)):
        if value is not None and not (isinstance(value, int | float) and 0 <= value < 1):
            raise InputError(f"{name}: got {value!r}, want a number in [0, 1)")
    if not estimator.validation_fraction:
        got = estimator.validation_fraction
        raise InputError(f"validation_fraction: got {got!r}, want > 0: training stops by the held-out loss")
    share = estimator.contamination
    if share is not None and not (isinstance(share, int | float | np.number) and 0 < share <= 0.5):
        raise InputError(f"contamination: got {share!r}, want a number in (0, 0.5], or None")
    if not isinstance(estimator.energy, bool | np.bool_):
        raise InputError(f"energy: got {estimator.energy!r}, want True or False")
    if not isinstance(estimator.objective, str) or estimator.objective not in ("score", "likelihood"):
        raise InputError(f"objective: got {estimator.objective!r}, want 'score' or 'likelihood'")
    standardize = estimator.standardize
    if not isinstance(standardize, int | np.bool_ | str) or standardize not in (True, False, "auto"):
        raise InputError(f"standardize: got {standardize!r}, want True, False or 'auto'")


def generator_from(random_state: Any, device: torch.device) -> torch.Generator:
    """A seeded source of draws on a device."""
    if isinstance(random_state, np.random.RandomState):
        seed = int(random_state.randint(2**31))
    elif random_state is None:
        seed = secrets.randbits(62)
    elif isinstance(random_state, int | np.integer) and not isinstance(random_state, bool):
        seed = int(random_state)
    else:
        seed = -1
    if not 0 <= seed < 2**64:
        raise InputError(f"random_state: got {random_state!r}, want a whole number from 0 to 2**64 - 1, or None")
    return torch.Generator(device).manual_seed(seed)


def device_from(device: Any) -> torch.device:
    """The device asked for, or a GPU where there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.Generator(torch.empty(0, device=device).device).device
    except (RuntimeError, AssertionError, TypeError):
        raise InputError(f"device: got {device!r}, want one that is here, such as 'cpu'") from None


def _positive(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
        raise InputError(f"{name}: got {value!r}, want a finite number > 0")
