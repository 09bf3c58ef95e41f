"""A fitted estimator as tensors and a configuration, and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gradlogp import samplers
from gradlogp._shapes import InputError
from gradlogp.data import Grid, Schema
from gradlogp.diagnostics import Estimate, ScoreError, SelfCheck
from gradlogp.estimators import diagnosis
from gradlogp.estimators.building import FADE, put_together
from gradlogp.estimators.outliers import Unseen
from gradlogp.estimators.units import Units
from gradlogp.models import GaussianReference, MarginalReference, Marginals, OnReference, Reference
from gradlogp.training import NoiseLevels, Record

if TYPE_CHECKING:
    from gradlogp.estimators.density import ScoreDensity


@dataclass(frozen=True)
class Fitted:
    """What a fitted estimator consists of."""

    model: OnReference
    network: dict[str, Any]
    schema: Schema
    grid: Grid
    units: Units
    levels: NoiseLevels
    history: list[Record]
    check: SelfCheck
    error: ScoreError | None
    n_held_out: int | None
    unseen: Unseen


def parts_of(estimator: ScoreDensity) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a fitted estimator."""
    parameters = {k: v.item() if isinstance(v, np.generic) else v for k, v in estimator.get_params().items()}
    if not isinstance(parameters["random_state"], int | None):
        parameters["random_state"] = None
    if estimator.device is not None:
        parameters["device"] = str(estimator.device)
    config = {
        "parameters": parameters,
        "network": {**estimator.network_, "event_shape": list(estimator.network_["event_shape"])},
        "schema": estimator.schema_.to_json(),
        "grid": estimator.grid_.to_json(),
        "levels": {k: float(v) for k, v in asdict(estimator.levels_).items()},
        "self_check": asdict(estimator.self_check_),
        "score_error": diagnosis.to_json(estimator.score_error_),
        "held_out_rows": estimator.n_held_out_,
        "history": [asdict(r) for r in estimator.history_],
        "sampling": [_plan_to_json(plan) for plan in samplers.kept_plans(estimator.model_) if plan.fitted],
    }
    units = estimator.units_
    tensors = {"units.offset": torch.from_numpy(units.offset), "units.scale": torch.from_numpy(units.scale)}
    unseen = {"unseen.labels": estimator._unseen.labels, "unseen.log_prob": estimator._unseen.log_prob}
    tensors |= {k: v for k, v in unseen.items() if v is not None}
    return tensors | {f"model.{k}": v for k, v in estimator.model_.state_dict().items()}, config


def fitted_from(tensors: dict[str, Tensor], config: dict[str, Any]) -> Fitted:
    """Back from :func:`parts_of`.

    Raises:
        InputError: parts that do not fit together (or the KeyError, TypeError … that they cause).
    """
    if any(bool(torch.isnan(v).any()) for v in tensors.values()):
        raise InputError("weights that are NaN")
    network = {**config["network"], "event_shape": tuple(config["network"]["event_shape"])}
    model = _model(tensors, network)
    schema, grid = Schema.from_json(config["schema"]), Grid.from_json(config["grid"])
    if schema.event_shape != model.event_shape:
        raise InputError(f"columns of shape {schema.event_shape} for a model of shape {model.event_shape}")
    for entry in config.get("sampling", []):
        if "rms_stderr" in entry["accuracy"]:  # an earlier version's is fitted anew when it is needed
            samplers.keep(model, _plan_from_json(entry, model))
    units = Units(tensors["units.offset"].numpy(), tensors["units.scale"].numpy())
    if not units.offset.shape == units.scale.shape == schema.event_shape or len(grid.axes) != units.scale.size:
        raise InputError(f"units or grid of another shape than {schema.event_shape}")
    entry = config["self_check"]
    estimates = {k: Estimate(**entry[k]) for k in ("j_dsm", "j_ism", "residual")}
    return Fitted(
        model=model,
        network=network,
        schema=schema,
        grid=grid,
        units=units,
        levels=NoiseLevels(**config["levels"]),
        history=[_record(r) for r in config["history"]],
        check=SelfCheck(half_fisher=entry["half_fisher"], **estimates),
        error=diagnosis.from_json(config.get("score_error")),  # these are not in every configuration
        n_held_out=config.get("held_out_rows"),
        unseen=_unseen(tensors),
    )


def _unseen(tensors: dict[str, Tensor]) -> Unseen:
    """The log-densities that place the threshold of outliers; earlier versions saved none."""
    if "unseen.log_prob" not in tensors:
        return Unseen(None, torch.zeros(0, dtype=torch.long))
    labels, values = tensors["unseen.labels"], tensors["unseen.log_prob"]
    if values.ndim != 1 or labels.shape != values.shape or not bool(values.isfinite().all()):
        raise InputError(f"log-densities of unseen rows of shape {tuple(values.shape)}")
    return Unseen(None, labels, values)


def _record(entry: dict[str, Any]) -> Record:
    """A record; one that does not tell what is left bounds it by the loss, over a floor of 0, as with one reference."""
    told = {"left": entry["held_out"], "left_stderr": entry["held_out_stderr"], "floor": 0.0, "floor_stderr": 0.0}
    return Record(**(told | entry))


def _plan_to_json(plan: samplers.Plan) -> dict[str, Any]:
    levels, weights = plan.levels.tolist(), [a.tolist() for a in plan.weights]
    return {"start": plan.start, "levels": levels, "weights": weights, "accuracy": asdict(plan.accuracy)}


def _plan_from_json(entry: dict[str, Any], model: OnReference) -> samplers.Plan:
    frame = samplers.Frame.of(model.reference).like(model.skip.mean[None])
    levels, weights = _doubles(entry["levels"]), tuple(_doubles(a) for a in entry["weights"])
    if len(levels) != len(weights) + 1 or not bool((levels.diff() < 0).all() and levels[-1] > 0):
        raise InputError(f"a plan of {len(levels)} levels and {len(weights)} steps")
    return samplers.Plan(frame, entry["start"], levels, weights, samplers.Accuracy(**entry["accuracy"]))


def _model(tensors: dict[str, Tensor], network: dict[str, Any]) -> OnReference:
    state = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    model = put_together(network, _closed_form(state)).float()
    model.load_state_dict(state)
    return model.eval()


def _closed_form(state: dict[str, Tensor]) -> Reference:
    """That of an energy, whose Gaussian stands alone, or the Gaussian with marginals."""
    alone = "skip.mean" in state
    name = "skip." if alone else "skip.gaussian."
    mean, eigenvalues, eigenvectors = (state[name + k] for k in ("mean", "eigenvalues", "eigenvectors"))
    if alone:
        return GaussianReference(mean, eigenvalues, eigenvectors, FADE)
    marginals = Marginals(*(state[f"skip.marginals.{k}"] for k in ("means", "variances", "log_weights")))
    return MarginalReference(GaussianReference(mean, eigenvalues, eigenvectors), marginals)


def _doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
