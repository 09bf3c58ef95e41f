"""The value of the ODE's log-density beside the bound on the SDE's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradlogp._shapes import Batch, InputError, Rows
from gradlogp.diagnostics import Estimate
from gradlogp.likelihood.bound import Bound, bound
from gradlogp.likelihood.bound_method import BoundMethod
from gradlogp.likelihood.flow import LogProb, log_prob
from gradlogp.likelihood.traces import Trace
from gradlogp.models import ScoreModel
from gradlogp.processes import Process
from gradlogp.processes.base import Time


@dataclass(frozen=True)
class Gap:
    """Both numbers of each row, ``(B,)``, in nats.

    Attributes:
        ode: log-density of the probability flow's law, at the noise of t_min: a value.
        sde: upper bound on −log-density of the reverse SDE's law, for clean rows.
    """

    ode: LogProb
    sde: Bound

    @property
    def value(self) -> Rows:
        """Bound less value, −log p^SDE's bound + log p^ODE. Not negative by any law: the two densities are different.

        For an exact score both laws are the data's, and it is 0 but for t_min and, in the bound, π.
        """
        return self.sde.value + self.ode.value

    @property
    def stderr(self) -> Rows:
        """Of the bound and of the value's probes; the value's other numerical errors are added."""
        return self.sde.stderr.hypot(self.ode.probes) + self.ode.quadrature + self.ode.path

    @property
    def mean(self) -> Estimate:
        """The mean over rows; its standard error is that of rows drawn from a population (two at least)."""
        return Estimate.mean_of(self.value)


def gap(
    model: ScoreModel,
    x: Batch,
    process: Process,
    *,
    t_min: Time | None = None,
    t_max: Time | None = None,
    method: BoundMethod | None = None,
    trace: Trace | None = None,
    generator: torch.Generator | None = None,
) -> Gap:
    """:func:`log_prob` of the ODE and :func:`bound` of the SDE, over one range of noise and from one Gaussian.

    Args:
        model: a score model for Gaussian noise that knows its Gaussian reference.
        x: clean rows ``(B, *event)``.
        process: gives the range, sigma/alpha from t_min to t_max.
        t_min: where it starts; by default the process's.
        t_max: where it ends; by default the process's.
        method: of the bound.
        trace: of the value.
        generator: source of the draws.

    Raises:
        InputError: a model that knows no reference, and whatever the two raise.
    """
    if model.reference is None:
        raise InputError("model: got one that knows no Gaussian reference, want one, since both are to start from it")
    of_sde = bound(
        model, x, process, t_min=t_min, t_max=t_max, prior=model.reference, method=method, generator=generator
    )
    low, high = (float(process.ratio(t)) for t in (of_sde.times.t_min, of_sde.times.t_max))
    return Gap(log_prob(model, x, sigma_min=low, sigma_max=high, trace=trace, generator=generator), of_sde)
