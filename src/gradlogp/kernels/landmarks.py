"""Where the density of a law may be narrow or not smooth: points that a grid must have among its edges."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch import distributions as td

from gradlogp.kernels.laws import support_of

_STEPS = 2.0 ** torch.arange(-1.0, 4.0, dtype=torch.float64)
AROUND = torch.cat([-_STEPS, _STEPS.new_zeros(1), _STEPS])  # a center, in scales
CENTER = _STEPS.new_zeros(1)
_GRADE = 4.0  # how much longer an interval may be than its neighbor


def landmarks(law: td.Distribution, steps: Tensor = AROUND) -> Tensor:
    """Centers of a law's parts with steps of their scales to both sides, and ends of supports, ``(P, *batch_shape)``.

    The parts of a mixture are its components, those of a transformed law are mapped with it. A law over an event, and
    one whose class says neither location nor mean, have none. What is not a finite number is NaN.

    Args:
        law: in float64.
        steps: in units of a part's scale.
    """
    none = torch.zeros(0, *law.batch_shape, dtype=torch.float64)
    found = [] if law.event_shape else [_over(law.batch_shape, p) for p in _points(law, steps)]
    points = torch.cat([none, *(p for p in found if p is not None)])
    return torch.where(torch.isfinite(points), points, torch.nan)


def _points(law: td.Distribution, steps: Tensor) -> Iterator[Tensor]:
    """Points of a law of one number, each ``(P, *)`` with a rest that broadcasts with the batch shape."""
    if isinstance(law, td.MixtureSameFamily):
        yield landmarks(law.component_distribution, steps).movedim(-1, 0).flatten(0, 1)
        return
    if isinstance(law, td.Independent):
        yield landmarks(law.base_dist, steps)
        return
    if isinstance(law, td.TransformedDistribution):
        at = landmarks(law.base_dist, steps)
        for transform in law.transforms:
            at = transform(at)
        yield at
    for center, scale in (("loc", "scale"), ("mean", "stddev")):
        c, s = (_attribute(law, name) for name in (center, scale))
        if c is not None:
            s = torch.zeros_like(c) if s is None else s.nan_to_num(0.0, 0.0, 0.0)
            c, s = torch.broadcast_tensors(c, s)
            yield c + s * steps.reshape(-1, *(1,) * c.ndim)
    support = support_of(law)
    yield from (v[None] for v in (_attribute(support, n) for n in ("lower_bound", "upper_bound")) if v is not None)


def graded(edges: Tensor) -> Tensor:
    """Edges in order, with others between them, so that no interval is more than four times as long as a neighbor.

    A mesh is then fine enough for the flank of what is narrow, however far off the next edge is.
    """
    edges = edges[torch.isfinite(edges)].unique()
    apart = edges.diff() > 1e-15 * edges[1:].abs()
    edges = torch.cat([edges[:1], edges[1:][apart]])
    while True:
        h = edges.diff()
        least = h.clone()
        least[1:] = torch.minimum(least[1:], h[:-1])
        least[:-1] = torch.minimum(least[:-1], h[1:])
        long = h > _GRADE * least
        if not bool(long.any()):
            return edges
        edges = torch.cat([edges, ((edges[:-1] + edges[1:]) / 2)[long]]).sort().values


def _attribute(owner: object, name: str) -> Tensor | None:
    """A number or tensor of numbers that an object may have."""
    try:
        value = getattr(owner, name, None)
    except (NotImplementedError, RuntimeError, AttributeError):
        value = None
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else _number(value)


def _number(value: object) -> Tensor | None:
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, int | float) else None


def _over(shape: torch.Size, points: Tensor) -> Tensor | None:
    """Points ``(P, *)`` as ``(P, *shape)``, None for those of something else."""
    lead = (1,) * (len(shape) + 1 - points.ndim)
    try:
        return points.reshape(len(points), *lead, *points.shape[1:]).expand(-1, *shape)
    except RuntimeError:
        return None
