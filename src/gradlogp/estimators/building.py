"""The model that an estimator trains: its closed form, its network, and the two put together."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from gradlogp._draws import Seeded
from gradlogp._shapes import Batch
from gradlogp.models import EnergyModel, GaussianReference, MarginalReference, OnReference, Preconditioned, Reference
from gradlogp.networks import Potential, ResidualMLP

FEW_COORDINATES = 16  # below, a narrower network and a larger batch do better
FADE = 1.0  # of an energy's Gaussian below the data's scale


def closed_form(rows: Batch, energy: bool) -> Reference:
    """What the network is put on: for an energy it must be a gradient itself, so the Gaussian without the marginals."""
    return GaussianReference.of_data(rows, fade=FADE) if energy else MarginalReference.of_data(rows)


def network_sizes(rows: Batch, width: int | None, depth: int, dropout: float | None) -> dict[str, Any]:
    """The network's own arguments: as given, or from the data."""
    n, d = len(rows), rows[0].numel()
    return {
        "event_shape": tuple(rows.shape[1:]),
        "width": width or (128 if d < FEW_COORDINATES else 256),
        "depth": depth,
        "dropout": round(min(0.4, 0.4 * math.sqrt(50 * d / n)), 3) if dropout is None else dropout,
    }


def put_together(network: dict[str, Any], reference: Reference, seed: int = 0) -> OnReference:
    """A model of these sizes on this reference, an energy if that is a Gaussian; weights from the seed."""
    with Seeded(seed):
        made = new_network(network, reference)
    if isinstance(reference, GaussianReference):
        return EnergyModel(made, reference)
    return Preconditioned(made, reference)


def new_network(network: dict[str, Any], reference: Reference) -> nn.Module:
    """A network of these sizes: a potential for a Gaussian alone, of which the model is then an energy."""
    return Potential(**network) if isinstance(reference, GaussianReference) else ResidualMLP(**network)
