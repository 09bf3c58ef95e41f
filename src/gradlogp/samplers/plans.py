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
from gradlogp.samplers.starts import MOST_STEPS, ends, event_shape_of, require_within, start

N_ROWS, FEWEST = 256, 64
LARGE = 4096  # coordinates from which on a quarter of that must do
N_NUMBERS = 2**15  # of a pilot's rows together; rows of many coordinates need not be many
BUDGET = 195  # calls a row to spend on a plan; with 256 rows less than 1000 points at 50 steps
NEAR = 2.0  # s_max in standard deviations below which a Gaussian is no model of where rows start
_SEED = 2011  # of the pilot's rows

Key: TypeAlias = tuple[tuple[float, ...], tuple[object, ...]]


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
    fitted step by step so that the rows stay on the pilot's flow; the best is kept. Other rows, followed in 160 steps,
    say how accurate it is. It costs less than to sample 1000 points in 50 steps. With more than 40 steps the rule is
    Adams–Bashforth's of order 4, and nothing is fitted: a little above 40 that is less accurate than 40 fitted steps.

    A plan is found again by the sums of the model's parameters; call this again where something else has changed, as
    inside a function that a model wraps.

    Args:
        model: a score model for Gaussian kernels.
        n_steps: steps, each one call of the model.
        sigma_max: where to start, as in :func:`gradlogp.samplers.sample`.
        sigma_min: where to stop.
        process: t ↦ kernel; the levels are noise ratios sigma/alpha.
        event_shape: shape of one sample, where the model does not know it.
        starts: rows at sigma_max to take the pilot's from, where a Gaussian with the data's moments is not their law;
            in the data's own scale, whatever the process.

    Returns:
        The :class:`Plan`; :func:`gradlogp.samplers.sample` finds it again.

    Raises:
        InputError: as :func:`gradlogp.samplers.sample`.
    """
    n_steps = as_count(n_steps, "n_steps", most=MOST_STEPS)
    require_gaussian(model, "calibrate")
    between, flow = ends(model, sigma_max, sigma_min), Field(model, process)
    require_within(process, *between)
    given = None if starts is None else as_batch(starts, "starts")
    event_shape = event_shape_of(model, event_shape, given)
    y, from_starts = _rows(flow, between[0], event_shape, given)
    _kept(model).pop(_key(flow, n_steps, *between, y, from_starts), None)
    return plan_for(flow, n_steps, between, event_shape, given)


def plan_for(
    flow: Field, n_steps: int, ends: tuple[float, float], event_shape: tuple[int, ...], starts: Batch | None
) -> Plan:
    """The plan that is kept with the model as it is now, or a new one, which is kept from then on."""
    y, from_starts = _rows(flow, ends[0], event_shape, starts)
    plans, key = _kept(flow.model), _key(flow, n_steps, *ends, y, from_starts)
    if key not in plans:
        with torch.no_grad():
            plan = _new_plan(flow, n_steps, *ends, y)
        for old in [old for old in plans if old[0] != key[0]]:
            del plans[old]  # of the model as it was
        plans[key] = plan
    return plans[key]


def kept_plans(model: ScoreModel) -> list[Plan]:
    """The plans that are kept with the model as it is now, for alpha = 1 and a start of the noisy Gaussian."""
    return [plan for key, plan in _kept(model).items() if key == _own_key(model, plan)]


def keep(model: ScoreModel, plan: Plan) -> None:
    """Keep a plan that was made for the model as it is now, for alpha = 1 and a start of the noisy Gaussian."""
    _kept(model)[_own_key(model, plan)] = plan


def _own_key(model: ScoreModel, plan: Plan) -> Key:
    assert model.reference is not None
    flow = Field(model)
    y, _ = _rows(flow, plan.start, model.reference.event_shape, None)
    return _key(flow, len(plan.weights), plan.start, plan.levels[-1].item(), y, False)


def _new_plan(flow: Field, n_steps: int, s_max: float, s_min: float, y: Tensor) -> Plan:
    reference, spent, n_pilot = flow.model.reference, N_ABOVE + N_LEVELS, -(-2 * len(y) // 3)
    y, unseen = y[:n_pilot], y[n_pilot:]
    if reference is None:
        frame, spent = measured_frame(flow, y, s_max, s_min), spent + N_ROUGH
    else:
        frame = Frame.of(reference)
    if n_steps > FITTED:
        return plain_plan(flow, frame, y[: max(FEWEST, len(y) // 4)], s_max, s_min, n_steps)
    return fitted_plan(flow, Pilot.of(flow, frame, y, s_max, s_min), unseen, n_steps, BUDGET - spent)


def _rows(flow: Field, s_max: float, event_shape: tuple[int, ...], starts: Batch | None) -> tuple[Tensor, bool]:
    """Rows at s_max, and whether they are of the starts: of the noisy Gaussian, where that will do.

    Two thirds are the pilot's; the others say how accurate a plan is.
    """
    reference, level, n = flow.model.reference, torch.tensor(s_max, dtype=torch.float64), _n_rows(event_shape)
    n += n // 2
    if starts is not None:
        near = reference is None or s_max < NEAR * reference.eigenvalues.max().sqrt().item()
        if near and len(starts) >= FEWEST:
            return starts[:n].to(torch.promote_types(starts.dtype, torch.float32)), True
    g = torch.Generator(starts.device) if starts is not None else None
    y = start(flow.model, n, level, event_shape, Noise(_SEED), g)
    return (y if starts is None else y.to(starts.device, torch.promote_types(starts.dtype, torch.float32))), False


def _n_rows(event_shape: tuple[int, ...]) -> int:
    """Of a pilot."""
    d = event_size(event_shape)
    return min(N_ROWS, max(FEWEST if d <= LARGE else FEWEST // 4, N_NUMBERS // d))


def _kept(model: ScoreModel) -> dict[Key, Plan]:
    """The plans of a model, an attribute of it that is not part of its state."""
    plans: dict[Key, Plan] = model.__dict__.setdefault("sampling_plans", {})
    return plans


def _key(flow: Field, n_steps: int, high: float, low: float, y: Tensor, from_starts: bool) -> Key:
    """The model's parameters as they are, and what a plan is for."""
    process = type(flow.process).__name__, tuple(sorted(vars(flow.process).items()))
    rows = (tuple(y.shape), str(y.dtype), _summary([y]) if from_starts else ())
    return _summary([*flow.model.parameters(), *flow.model.buffers()]), (n_steps, high, low, process, rows)


def _summary(tensors: list[Tensor]) -> tuple[float, ...]:
    """Numbers that change when the tensors do, whatever changes them."""
    if not tensors:
        return ()
    each = [v for t in tensors for v in (t.detach().double().sum(), t.detach().double().square().sum())]
    return tuple(torch.stack([v.cpu() for v in each]).nan_to_num().tolist())
