"""A fitted estimator as tensors and a configuration, and back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import numpy as np
import torch
from torch import Tensor

from gradlogp import checkpoints, samplers
from gradlogp._shapes import InputError, short
from gradlogp.data import Grid, Schema
from gradlogp.diagnostics import Estimate, ScoreError, SelfCheck
from gradlogp.estimators import diagnosis
from gradlogp.estimators.building import FADE, put_together
from gradlogp.estimators.outliers import Unseen
from gradlogp.estimators.summary import summary
from gradlogp.estimators.units import Units
from gradlogp.models import (
    N_GATES,
    GaussianReference,
    MarginalReference,
    Marginals,
    OnReference,
    Reference,
)
from gradlogp.oracles import GaussianMixture
from gradlogp.training import NoiseLevels, Record

if TYPE_CHECKING:
    from gradlogp.estimators.density import DensityEstimator

MOST_PLANS, MOST_STEPS = 100, 10_000  # of the sampler that are saved, and steps of one
NETWORK, MIXTURES = "network.", "model.parts."
ORTHONORMAL = 1e-3  # as far as float32 goes
KINDS: dict[type, dict[str, Any]] = {
    cls: get_type_hints(cls) for cls in (Estimate, NoiseLevels, Record, samplers.Accuracy)
}


@dataclass(frozen=True)
class Fitted:
    """What a fitted estimator consists of."""

    model: OnReference
    network: dict[str, Any] | None
    schema: Schema
    grid: Grid
    units: Units
    levels: NoiseLevels
    history: list[Record]
    check: SelfCheck
    error: ScoreError | None
    n_held_out: int
    unseen: Unseen


def parts_of(estimator: DensityEstimator) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a fitted estimator."""
    parameters = {k: v.item() if isinstance(v, np.generic) else v for k, v in estimator.get_params().items()}
    if not isinstance(parameters["random_state"], int | None):
        parameters["random_state"] = None
    if estimator.device is not None:
        parameters["device"] = str(estimator.device)
    sizes = estimator.network_
    config = {
        "parameters": parameters,
        "network": sizes and {**sizes, "event_shape": list(sizes["event_shape"])},
        "schema": estimator.schema_.to_json(),
        "grid": estimator.grid_.to_json(),
        "levels": {k: float(v) for k, v in asdict(estimator.levels_).items()},
        "self_check": asdict(estimator.self_check_),
        "score_error": diagnosis.to_json(estimator._score_error),
        "held_out_rows": estimator.n_held_out_,
        "history": [asdict(r) for r in estimator.history_],
        checkpoints.SUMMARY: [list(line) for line in summary(estimator)],
        "sampling": [_plan_to_json(plan) for plan in _plans(estimator)],
    }
    units = estimator.units_
    tensors = {"units.offset": torch.from_numpy(units.offset), "units.scale": torch.from_numpy(units.scale)}
    unseen = {"unseen.labels": estimator._unseen.labels, "unseen.log_prob": estimator._unseen.log_prob}
    tensors |= {k: v for k, v in unseen.items() if v is not None}
    return tensors | {f"model.{k}": v for k, v in estimator.model_.state_dict().items()}, config


def _plans(estimator: DensityEstimator) -> list[samplers.Plan]:
    return [plan for plan in samplers.kept_plans(estimator.model_) if plan.fitted][-MOST_PLANS:]


def fitted_from(tensors: dict[str, Tensor], config: dict[str, Any]) -> Fitted:
    """Back from :func:`parts_of`, with nothing taken on trust.

    Raises:
        InputError: parts that do not fit together (or the KeyError, TypeError … that they cause).
    """
    for name, v in tensors.items():
        _want(v.dtype == _dtype_of(name), f"{name} of {v.dtype}")
        _want(bool(v.isfinite().all()) or name.endswith("log_weights"), f"{name} with NaN or infinity")
    sizes = config["network"]
    network = None if sizes is None else {**sizes, "event_shape": tuple(sizes["event_shape"])}
    model = _model(tensors, network)
    schema, grid = Schema.from_json(config["schema"]), Grid.from_json(config["grid"])
    _want(schema.event_shape == model.event_shape, f"columns of shape {schema.event_shape} for {model.event_shape}")
    _want(len(config["sampling"]) <= MOST_PLANS, f"{len(config['sampling'])} plans")
    for entry in config["sampling"]:
        samplers.keep(model, _plan_from_json(entry, model))
    units = Units(tensors["units.offset"].numpy(), tensors["units.scale"].numpy())
    _want(units.offset.shape == units.scale.shape == schema.event_shape, f"units of shape {units.scale.shape}")
    _want(bool((units.scale > 0).all()), "a unit that is not above 0")
    _want(len(grid.axes) == units.scale.size, f"{len(grid.axes)} grids for {units.scale.size} coordinates")
    check = config["self_check"]
    estimates = {k: _typed(Estimate, check[k]) for k in ("j_dsm", "j_ism", "residual")}
    history = [_typed(Record, r) for r in config["history"]]
    _want(any(r.best for r in history), "a history without a best step")
    n_held_out = config["held_out_rows"]
    _want(type(n_held_out) is int and n_held_out > 0, f"{short(n_held_out)} held-out rows")
    return Fitted(
        model=model,
        network=network,
        schema=schema,
        grid=grid,
        units=units,
        levels=_typed(NoiseLevels, config["levels"]),
        history=history,
        check=SelfCheck(half_fisher=_number(check["half_fisher"], "half_fisher"), **estimates),
        error=diagnosis.from_json(config["score_error"]),
        n_held_out=n_held_out,
        unseen=_unseen(tensors),
    )


T = TypeVar("T")


def _typed(cls: type[T], entry: Any) -> T:
    """A dataclass of numbers and flags from what :func:`dataclasses.asdict` made of it, each entry checked."""
    kinds = KINDS[cls]
    _want(isinstance(entry, dict) and set(entry) == set(kinds), f"{short(entry)} for {cls.__name__}")
    for name, value in entry.items():
        if kinds[name] is float:
            _number(value, name)
        else:
            _want(type(value) is kinds[name], f"{name} {short(value)}")
    return cls(**entry)


def _number(value: Any, name: str) -> float:
    _want(type(value) in (int, float) and math.isfinite(value), f"{name} {short(value)}")
    return float(value)


def _want(right: bool, got: str) -> None:
    if not right:
        raise InputError(f"got {got}")


def _dtype_of(name: str) -> torch.dtype:
    if name.startswith("model."):
        return torch.float64 if name.startswith(MIXTURES) else torch.float32
    return torch.int64 if name == "unseen.labels" else torch.float64


def _unseen(tensors: dict[str, Tensor]) -> Unseen:
    """The log-densities that place the threshold of outliers; a fit that was stopped has none."""
    if "unseen.log_prob" not in tensors:
        return Unseen(None, tensors["unseen.labels"])
    labels, values = tensors["unseen.labels"], tensors["unseen.log_prob"]
    _want(values.ndim == 1 and labels.shape == values.shape, f"{tuple(values.shape)} log-densities of unseen rows")
    return Unseen(None, labels, values)


def _plan_to_json(plan: samplers.Plan) -> dict[str, Any]:
    levels, weights = plan.levels.tolist(), [a.tolist() for a in plan.weights]
    return {"start": plan.start, "levels": levels, "weights": weights, "accuracy": asdict(plan.accuracy)}


def _plan_from_json(entry: dict[str, Any], model: OnReference) -> samplers.Plan:
    frame = samplers.Frame.of(model.reference).like(model.skip.mean[None])
    levels, weights = _doubles(entry["levels"]), tuple(_doubles(a) for a in entry["weights"])
    right = levels.ndim == 1 and len(levels) == len(weights) + 1 > 1 and bool((levels.diff() < 0).all())
    _want(right and bool(levels[-1] > 0), f"a plan of {len(levels)} levels and {len(weights)} steps")
    _want(all(a.ndim == 1 and 0 < len(a) <= k + 1 for k, a in enumerate(weights)), "weights of a plan that do not fit")
    start = _number(entry["start"], "start")
    _want(start >= levels[0].item(), f"a plan that starts at {start:g}")
    return samplers.Plan(frame, start, levels, weights, _typed(samplers.Accuracy, entry["accuracy"]))


def _model(tensors: dict[str, Tensor], network: dict[str, Any] | None) -> OnReference:
    """The model; the sizes that the configuration tells are those of the weights, or nothing is made of them."""
    state = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    for name in (k for k in state if k.endswith(".at")):
        at, share = state[name], state[name.removesuffix("at") + "share"]
        right = at.shape == share.shape == (N_GATES,) and bool((at.diff() > 0).all())
        _want(right and bool(((share >= 0) & (share <= 1)).all()), f"{name}, or its shares, out of order or range")
    reference = _closed_form(state)
    if network is not None:
        depth, width = network["depth"], network["width"]
        _want(type(depth) is int and 0 < depth <= len(state), f"depth {short(depth)} for {len(state)} tensors")
        n, coordinates = sum(v.numel() for v in state.values()), reference.reference.mean.numel()
        right = type(width) is int and math.prod(network["event_shape"]) == coordinates
        _want(right and 0 < width * max(depth * width, coordinates) <= n, f"width {short(width)} for {n:,} weights")
    model = put_together(network, reference).float()
    while f"parts.{(i := len(model.parts))}.means" in state:
        part = _mixture(state, f"parts.{i}.", model.event_shape)
        model.stack(part, model.gate.at.exp(), model.gate.share)
    for name, v in model.state_dict().items():
        there = state[name].shape if name in state else ()
        _want(there == v.shape, f"{name.removeprefix(NETWORK)} of shape {tuple(there)} for {tuple(v.shape)}")
    model.load_state_dict(state)
    return model.eval()


def _mixture(state: dict[str, Tensor], name: str, event_shape: tuple[int, ...]) -> GaussianMixture:
    """A mixture as its components are, in the basis in which each covariance is diagonal."""
    log_weights, means, variances = (state[name + k] for k in ("log_weights", "means", "variances"))
    k, d = len(log_weights), math.prod(event_shape)
    _want(
        means.shape == variances.shape == (k, d), f"a mixture of shapes {tuple(means.shape)}, {tuple(variances.shape)}"
    )
    _want(abs(log_weights.exp().sum().item() - 1) < ORTHONORMAL, "weights of a mixture that do not add up to 1")
    _want(bool((variances >= 0).all()), "a negative variance of a mixture")
    covariances = variances.reshape(k, *event_shape)
    if (v := state.get(name + "vectors")) is not None:
        _want(v.shape == (k, d, d), f"eigenvectors of a mixture of shape {tuple(v.shape)}")
        _orthonormal(v)
        covariances = (v * variances[:, None, :]) @ v.mT
        covariances = (covariances + covariances.mT) / 2
    return GaussianMixture(log_weights.exp(), means.float().reshape(k, *event_shape), covariances)


def _closed_form(state: dict[str, Tensor]) -> Reference:
    """That of an energy, whose Gaussian stands alone, or the Gaussian with marginals."""
    alone = "skip.mean" in state
    name = "skip." if alone else "skip.gaussian."
    mean, eigenvalues, v = (state[name + k] for k in ("mean", "eigenvalues", "eigenvectors"))
    if v.ndim == 2:
        _orthonormal(v)
    if alone:
        return GaussianReference(mean, eigenvalues, v, FADE)
    means, variances, log_weights = (state[f"skip.marginals.{k}"] for k in ("means", "variances", "log_weights"))
    _want(bool((variances >= 0).all()), "a negative variance of a marginal")
    mass = log_weights.exp().sum(-1)
    _want(bool(((mass - 1).abs() < ORTHONORMAL).all()), "weights of a marginal that do not add up to 1")
    return MarginalReference(GaussianReference(mean, eigenvalues, v), Marginals(means, variances, log_weights))


def _orthonormal(v: Tensor) -> None:
    off = (v.mT @ v - torch.eye(v.shape[-1], dtype=v.dtype)).abs().max().item()
    _want(off < ORTHONORMAL, f"eigenvectors that are {off:.2g} from orthonormal")


def _doubles(values: Any) -> Tensor:
    """Finite numbers of a list."""
    _want(isinstance(values, list) and len(values) <= MOST_STEPS, f"{short(values)} for a list of numbers")
    return torch.tensor([_number(v, "a number") for v in values], dtype=torch.float64)
