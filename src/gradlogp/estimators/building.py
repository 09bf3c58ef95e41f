"""The model that an estimator trains: its closed form, its network, and the two put together."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from gradlogp._draws import Seeded
from gradlogp._shapes import Batch
from gradlogp.models import (
    ClosedForm,
    EnergyModel,
    GaussianReference,
    MarginalReference,
    OnReference,
    Preconditioned,
    Reference,
)
from gradlogp.networks import Potential, ResidualMLP
from gradlogp.objectives import DenoisingScoreMatching
from gradlogp.oracles import GaussianMixture, fit_mixture
from gradlogp.training import WORTH, Goal, HeldOut, WeightedLoss

FEW_COORDINATES = 16  # below, a narrower network and a larger batch do better
FADE = 1.0  # of an energy's Gaussian below the data's scale
FITTED_ROWS, MOST_COMPONENTS, ROWS_A_COMPONENT = 5000, 256, 5  # of a mixture
MOST_MEANS, MOST_COVARIANCES = 2**10, 2**15  # numbers of a mixture: a call is then about as long as the network's


def closed_form(rows: Batch, energy: bool) -> Reference:
    """What the network is put on: for an energy it must be a gradient itself, so the Gaussian without the marginals."""
    return GaussianReference.of_data(rows, fade=FADE) if energy else MarginalReference.of_data(rows)


def mixtures(
    base: Reference,
    rows: Batch,
    held_out: Tensor,
    goal: Goal,
    generator: torch.Generator,
    until: float = math.inf,
) -> list[GaussianMixture]:
    """Fit Gaussian mixtures, of full and of diagonal covariances, and give those that help when stacked on the base.

    Each has the number of components, 2, 4, …, that leaves least of the held-out loss; one more doubling that
    brings less than 0.1 % of that is the last, and none is begun after ``until`` (of time.perf_counter()).
    """
    loss = WeightedLoss(DenoisingScoreMatching(), base.reference, None, goal.weight)
    look = HeldOut(held_out, goal.levels, loss, seed=0)
    fitted, d = rows[:FITTED_ROWS], rows[0].numel()
    floor = goal.levels.sigma_min**2
    found = list[tuple[float, GaussianMixture]]()
    for full in (True, False) if d > 1 else (True,):
        tried = list[tuple[float, GaussianMixture]]()
        most = min(MOST_COMPONENTS, len(fitted) // ROWS_A_COMPONENT, MOST_MEANS // d)
        most = min(most, MOST_COVARIANCES // d**2) if full else most
        for k in (2**i for i in range(1, most.bit_length())):
            if time.perf_counter() > until:
                break
            mixture = fit_mixture(fitted, k, full=full, floor=floor, generator=generator)
            seen = look(mixture)
            tried.append((seen.left, mixture))
            if len(tried) > 1 and tried[-1][0] > tried[-2][0] - WORTH * seen.held_out:
                break
        found += sorted(tried, key=_left)[:1]
    useful, seen = list[GaussianMixture](), look(base)
    for _, mixture in sorted(found, key=_left):
        higher = HeldOut(held_out, goal.levels, loss, seed=0, parts=[*useful, mixture])(base)
        if higher.left < seen.left - WORTH * seen.held_out:
            useful, seen = [*useful, mixture], higher
    return useful


def _left(tried: tuple[float, GaussianMixture]) -> float:
    return tried[0]


def network_sizes(rows: Batch, width: int | None, depth: int, dropout: float | None) -> dict[str, Any]:
    """The network's own arguments: as given, or from the data."""
    n, d = len(rows), rows[0].numel()
    return {
        "event_shape": tuple(rows.shape[1:]),
        "width": width or (128 if d < FEW_COORDINATES else 256),
        "depth": depth,
        "dropout": round(min(0.4, 0.4 * math.sqrt(50 * d / n)), 3) if dropout is None else dropout,
    }


def put_together(network: dict[str, Any] | None, reference: Reference, seed: int = 0) -> OnReference:
    """A model of these sizes on this reference, an energy if that is a Gaussian; weights from the seed.

    Without sizes it is the reference alone.
    """
    if network is None:
        return ClosedForm(reference)
    with Seeded(seed):
        made = new_network(network, reference)
    if isinstance(reference, GaussianReference):
        return EnergyModel(made, reference)
    return Preconditioned(made, reference)


def new_network(network: dict[str, Any], reference: Reference) -> nn.Module:
    """A network of these sizes: a potential for a Gaussian alone, of which the model is then an energy."""
    return Potential(**network) if isinstance(reference, GaussianReference) else ResidualMLP(**network)
