"""Plans: fitted once for a model and a number of steps, and kept with the model."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from gradlogp._shapes import Batch, as_batch, as_count, event_size
from gradlogp.models import ScoreModel, require_gaussian
from gradlogp.processes import Process
from gradlogp.samplers.calibration import FITTED, Plan, fitted_plan, plain_plan
from gradlogp.samplers.field import Field
from gradlogp.samplers.frame import Frame
from gradlogp.samplers.noise import Noise
from gradlogp.samplers.pilot import N_ABOVE, N_LEVELS, N_ROUGH, Pilot, measured_frame
from gradlogp.samplers.starts import ends, event_shape_of, start

N_ROWS, FEWEST = 256, 64
N_NUMBERS = 2**15  # of a pilot's rows together; rows of many coordinates need not be many
BUDGET = 195  # calls a row to spend on a plan; with 256 rows less than 1000 points at 50 steps
NEAR = 2.0  # s_max in standard deviations below which a Gaussian is no model of where rows start
_SEED = 2011  # of the pilot's rows

Key: TypeAlias = tuple[int, float, float, str, int]


def calibrate(
    model: ScoreModel,
    n_steps: int = 20,
    *,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    process: Process | None = None,
    event_shape: tuple[int, ...] | None = None,
    starts: Batch | None = None,
) -> Plan:
    """Place the steps of the default sampler, fit their weights, measure its error, and keep all that with the model.

    A pilot of at most 256 rows is followed along the flow in 80 fine steps. Several grids of n_steps levels (the least
    sum of local errors, and Karras' from three landings) are tried on it, each with weights of the last 6 velocities
    fitted step by step so that the rows stay on the pilot's flow; the best is kept. It costs less than to sample 1000
    points in 50 steps. With more than 40 steps the rule is Adams–Bashforth's of order 4, and nothing is fitted.

    Args:
        model: a score model for Gaussian kernels.
        n_steps: steps, each one call of the model.
        sigma_max: where to start, as in :func:`gradlogp.samplers.sample`.
        sigma_min: where to stop.
        process: t ↦ kernel; the levels are noise ratios sigma/alpha.
        event_shape: shape of one sample, where the model does not know it.
        starts: rows at sigma_max to take the pilot's from, where a Gaussian with the data's moments is not their law.

    Returns:
        The :class:`Plan`; :func:`gradlogp.samplers.sample` finds it again.

    Raises:
        InputError: as :func:`gradlogp.samplers.sample`.
    """
    n_steps = as_count(n_steps, "n_steps")
    require_gaussian(model, "calibrate")
    between, flow = ends(model, sigma_max, sigma_min), Field(model, process)
    given = None if starts is None else as_batch(starts, "starts")
    event_shape = event_shape_of(model, event_shape) if given is None else tuple(given.shape[1:])
    _kept(model).pop(_key(flow, n_steps, *between), None)
    return plan_for(flow, n_steps, between, event_shape, given)


def plan_for(
    flow: Field, n_steps: int, ends: tuple[float, float], event_shape: tuple[int, ...], starts: Batch | None
) -> Plan:
    """The plan that is kept with the model as it is now, or a new one, which is kept from then on."""
    key = _key(flow, n_steps, *ends)
    known = _kept(flow.model).get(key)
    if known is None:
        with torch.no_grad():
            known = _new_plan(flow, n_steps, *ends, _pilot_rows(flow, ends[0], event_shape, starts))
        _kept(flow.model)[key] = known
    return known


def kept_plans(model: ScoreModel) -> list[Plan]:
    """The plans that are kept with the model as it is now, for alpha = 1."""
    keys = {key: _key(Field(model), *key[:3]) for key in _kept(model)}
    return [plan for key, plan in _kept(model).items() if keys[key] == key]


def keep(model: ScoreModel, plan: Plan) -> None:
    """Keep a plan that was made for the model as it is now, for alpha = 1."""
    _kept(model)[_key(Field(model), len(plan.weights), plan.start, plan.levels[-1].item())] = plan


def _new_plan(flow: Field, n_steps: int, s_max: float, s_min: float, y: Tensor) -> Plan:
    reference, spent = flow.model.reference, N_ABOVE + N_LEVELS
    if reference is None:
        frame, spent = measured_frame(flow, y, s_max, s_min), spent + N_ROUGH
    else:
        frame = Frame.of(reference)
    if n_steps > FITTED:
        return plain_plan(flow, frame, y[: max(FEWEST, len(y) // 4)], s_max, s_min, n_steps)
    return fitted_plan(flow, Pilot.of(flow, frame, y, s_max, s_min), n_steps, BUDGET - spent)


def _pilot_rows(flow: Field, s_max: float, event_shape: tuple[int, ...], starts: Batch | None) -> Tensor:
    """Rows at s_max: of the noisy Gaussian, or of the starts where that would not do."""
    reference, level, n = flow.model.reference, torch.tensor(s_max, dtype=torch.float64), _n_rows(event_shape)
    if starts is not None:
        near = reference is None or s_max < NEAR * reference.eigenvalues.max().sqrt().item()
        if near and len(starts) >= FEWEST:
            return flow.clean(starts[:n], level).to(torch.promote_types(starts.dtype, torch.float32))
    g = torch.Generator(starts.device) if starts is not None else None
    y = start(flow, n, level, event_shape, Noise(_SEED), g)
    return y if starts is None else y.to(starts.device, torch.promote_types(starts.dtype, torch.float32))


def _n_rows(event_shape: tuple[int, ...]) -> int:
    return min(N_ROWS, max(FEWEST, N_NUMBERS // event_size(event_shape)))


def _kept(model: ScoreModel) -> dict[Key, Plan]:
    """The plans of a model, an attribute of it that is not part of its state."""
    plans: dict[Key, Plan] = model.__dict__.setdefault("sampling_plans", {})
    return plans


def _key(flow: Field, n_steps: int, high: float, low: float) -> Key:
    """What a plan is for; training changes the versions of the parameters, and so the key."""
    tensors: list[Tensor] = [*flow.model.parameters(), *flow.model.buffers()]
    return n_steps, high, low, repr(flow.process), sum(t._version for t in tensors)
