"""Where to place few steps among a pilot's many levels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gradlogp.samplers.grids import karras
from gradlogp.samplers.pilot import Pilot

LANDINGS = ((2.0, 5.0), (4.0, 5.0), (2.0, 7.0))  # standard deviations of the widest direction, and Karras' ρ
N_GROUPS = 16  # of directions, in which the turn of the frame is taken as the same
MAX_COORDINATES = 1024  # of those evenly spaced, from which levels are chosen
_RIDGE = 1e-3


def candidates(pilot: Pilot, n_steps: int) -> Iterator[list[int]]:
    """Indices of n_steps + 1 levels, the last one s_min: the cheapest, then Karras' from several landings."""
    yield cheapest(pilot, n_steps)
    widest, last = pilot.frame.widest, len(pilot.levels) - 1
    for landing, rho in LANDINGS:
        high = min(landing * widest, pilot.levels[0].item())
        nodes = _nearest(pilot.levels, karras(high, pilot.levels[-1].item(), n_steps, rho))
        if nodes[-1] == last and high > pilot.levels[-1]:
            yield nodes


def cheapest(pilot: Pilot, n_steps: int) -> list[int]:
    """The levels of least sum of local errors, by dynamic programming.

    The local error of a step from level i to j, with level p before it, is what two values of q leave of the exact
    change of u = c/r on the pilot's rows, by least squares,

        min_a E Σ_d r_end² (u_j − u_i − Δx_ij (a_1 q_i + a_2 q_p))²,

    and of a first step to i, what is left of the landing too. All of it comes from inner products, with no call of the
    model.
    """
    first, then = _local_errors(pilot)
    m = len(pilot.levels)
    best, back = first, []
    for _ in range(n_steps - 1):
        best, before = (best[:, :, None] + then).min(0)
        back.append(before)
    path = [m - 1, int(best[:, m - 1].argmin())]
    for before in reversed(back):
        path.append(int(before[path[-1], path[-2]]))
    return path[::-1]


def _local_errors(pilot: Pilot) -> tuple[Tensor, Tensor]:
    """Of first steps i → j, ``(M, M)``, and of steps i → j after p, ``(M, M, M)``; infinite unless levels fall."""
    some = slice(None, None, max(1, len(pilot.frame.variance) // MAX_COORDINATES))
    s, all_variance = pilot.levels, pilot.frame.variance[some].double().cpu()
    m, n = len(s), pilot.states.shape[1]
    group = torch.linspace(0, N_GROUPS - 1e-9, len(all_variance)).long()[all_variance.argsort().argsort()]
    variance = torch.stack([all_variance[group == g].mean() for g in group.unique()])
    r = (all_variance + s[:, None] ** 2).sqrt()[:, None]  # (M, 1, D)
    u, landed = pilot.states[:, :, some].double().cpu() / r, pilot.landed(0)[:, some].double().cpu() / r[0]
    q = pilot.velocities[:, :, some].double().cpu()
    q = torch.cat([q, q[-1:]])  # the last is never used
    end, h = r[-1] ** 2 / n, u - landed
    uu, uq, qq, hh, hq = (_by_group(a * end, b, group) for a, b in ((u, u), (u, q), (q, q), (h, h), (h, q)))
    root = variance.sqrt()[:, None, None]
    dx = torch.where(  # (G, M, M): x_j − x_i
        root > 1e-6 * s[-1],
        (torch.atan2(s[None, None], root) - torch.atan2(s[None, :, None], root).expand(-1, -1, m)) / root,
        1 / s[None, :, None] - 1 / s[None, None],
    )
    diagonal = torch.diagonal(uu, dim1=1, dim2=2)
    whole = (diagonal[:, :, None] + diagonal[:, None, :] - 2 * uu).sum(0)
    b1 = (dx * (uq.mT - torch.diagonal(uq, dim1=1, dim2=2)[:, :, None])).sum(0)
    b2 = torch.einsum("gij,gjp->pij", dx, uq) - torch.einsum("gij,gip->pij", dx, uq)
    square = torch.diagonal(qq, dim1=1, dim2=2)
    a11 = (dx**2 * square[:, :, None]).sum(0)
    a22, a12 = torch.einsum("gij,gp->pij", dx**2, square), torch.einsum("gij,gpi->pij", dx**2, qq)
    tiny = torch.finfo(torch.float64).tiny
    ridge = _RIDGE * a11 + tiny
    a11, a22 = a11 + ridge, a22 + ridge
    then = whole - (b1**2 * a22 - 2 * b1 * b2 * a12 + b2**2 * a11) / (a11 * a22 - a12**2).clamp_min(tiny)
    k = torch.arange(m)
    falls = k[:, None] < k[None, :]
    first = torch.diagonal(hh, dim1=1, dim2=2).sum(0)[None] - (dx * hq.mT).sum(0) ** 2 / a11
    then = then.clamp_min(0).masked_fill(~(falls[:, :, None] & falls[None]), torch.inf)
    return first.clamp_min(0).masked_fill(~falls, torch.inf), then


def _by_group(a: Tensor, b: Tensor, group: Tensor) -> Tensor:
    """Inner products over rows and the directions of each group, ``(G, M, M)``."""
    parts = []
    for g in group.unique():
        of = group == g
        parts.append(a[:, :, of].flatten(1) @ b[:, :, of].flatten(1).T)
    return torch.stack(parts)


def _nearest(levels: Tensor, wanted: Tensor) -> list[int]:
    """Indices of the levels nearest to those wanted, each after the one before."""
    nodes: list[int] = []
    for level in wanted:
        i = int((levels.log() - level.log()).abs().argmin())
        nodes.append(i if not nodes else max(i, nodes[-1] + 1))
    return nodes
