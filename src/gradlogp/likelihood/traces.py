"""The trace of a denoiser's Jacobian along the flow: what it is asked for, and the exact one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Rows, as_number
from gradlogp.likelihood.linearised import Linearised, Near, at_levels
from gradlogp.likelihood.path import Path
from gradlogp.likelihood.quadrature import refined
from gradlogp.likelihood.residual import ResidualFlow
from gradlogp.samplers.noise import mixed


@dataclass(frozen=True)
class Integral:
    """∫ div q dw along the path of each row, and what it may be wrong by, ``(B,)``, in nats.

    Attributes:
        value: the integral, with the path's own errors taken out to first order.
        quadrature: estimated error of the rule.
        path: see :func:`path_error`.
        probes: standard error of the probes; 0 of an exact trace.
    """

    value: Rows
    quadrature: Rows
    path: Rows
    probes: Rows


def path_error(slip: Rows, sizes: Rows, path: Path) -> Rows:
    """|∫ slip| + ∫ |slip|/10, and what the shortest steps erred: what errors of the path may have left.

    The slip, which is taken out, is exact where the score is the gradient of the flow's own log-density. Where it is
    not, as of a model with curl, some share of it is not an error of that density.
    """
    return slip.abs() + sizes / 10 + path.excess


class Signs:
    """Random ±1 for rows; a row's depend on the seed, its place and the round alone.

    Args:
        seed: of the run.
        places: of the rows among all rows of the run.
    """

    def __init__(self, seed: int, places: Sequence[int]) -> None:
        self.seed = seed
        self.places = places

    def __call__(self, round_: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """``(B, *shape)``, int8."""
        rows = []
        for place in self.places:
            g = torch.Generator().manual_seed(mixed(self.seed, round_, place))
            rows.append(torch.randint(0, 2, shape, generator=g, dtype=torch.int8))
        return (2 * torch.stack(rows) - 1).to(device)


class Trace(ABC):
    """How the trace is had, and how accurate the log-density is to be.

    Attributes:
        atol: in nats.
    """

    atol: float

    @abstractmethod
    def near(self, point: Linearised, s: Rows, signs: Signs) -> Near:
        """Look at the density where the rows start."""

    @abstractmethod
    def residual(self, flow: ResidualFlow, point: Linearised, s: Rows, signs: Signs) -> Rows:
        """tr ∇(D_G − D) at one level, ``(B,)``, or about that."""

    @abstractmethod
    def integral(self, flow: ResidualFlow, path: Path, ends: tuple[Rows, Rows], near: Near, signs: Signs) -> Integral:
        """The integral of the divergence along the paths between the ends."""


@dataclass(frozen=True)
class Exact(Trace):
    """One product in reverse mode with each unit vector: D a level, at as many levels as it takes.

    Args:
        atol: wanted numerical error, in nats.

    Raises:
        InputError: an atol that is not positive.
    """

    atol: float = 3e-4

    def __post_init__(self) -> None:
        as_number(self.atol, "atol")

    def near(self, point: Linearised, s: Rows, signs: Signs) -> Near:  # noqa: ARG002
        """The curvature, exactly."""
        return Near(point.trace()[1])

    def residual(self, flow: ResidualFlow, point: Linearised, s: Rows, signs: Signs) -> Rows:  # noqa: ARG002
        """As it is."""
        return flow.reference_trace(s) - point.trace()[0]

    def integral(
        self,
        flow: ResidualFlow,
        path: Path,
        ends: tuple[Rows, Rows],
        near: Near,  # noqa: ARG002
        signs: Signs,  # noqa: ARG002
    ) -> Integral:
        """By :func:`gradlogp.likelihood.quadrature.refined`."""

        def along(rows: Tensor, w: Tensor) -> Tensor:
            traces, slip = at_levels(flow, path, rows, w, lambda point, _: point.trace()[0][:, None])
            known = flow.reference_trace(flow.clock.level(w))
            return torch.stack([(known - traces[:, 0]) * flow.clock.rate(w) - slip, slip, slip.abs()], 1)

        values, error = refined(along, *ends, self.atol / 2 * path.scale)
        slipped = path_error(values[:, 1], values[:, 2], path)
        return Integral(values[:, 0], error, slipped, torch.zeros_like(error))
