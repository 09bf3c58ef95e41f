"""A small normalising flow on the unit cube, conditional on a datum."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradlogp._shapes import Rows

STEEPEST = 3.0  # |a| at most: a layer scales logits by e^a


class Coupling(nn.Module):
    """One layer: coordinates that are kept tell, with c, how the others are scaled and shifted,

        w = m·z + (1 − m)·(e^a z + b),    log|∂w/∂z| = Σ (1 − m)·a,    (a, b) = net(c, m·(σ(z) − ½)),

    m in {0, 1}^K. The net ends at zero, so that the layer starts as the identity.

    Args:
        keep: m.
        n_condition: length of c.
        width: hidden units of the net.
        generator: source of the first weights.
    """

    keep: Tensor

    def __init__(self, keep: Tensor, n_condition: int, width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("keep", keep)
        sizes = (n_condition + len(keep), width), (width, width), (width, 2 * len(keep))
        self.first, self.inner, self.last = (nn.utils.skip_init(nn.Linear, *size) for size in sizes)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        for linear in (self.first, self.inner):
            edge = 1 / math.sqrt(linear.in_features)
            nn.init.uniform_(linear.weight, -edge, edge, generator=generator)
            nn.init.uniform_(linear.bias, -edge, edge, generator=generator)

    def forward(self, z: Tensor, c: Tensor) -> tuple[Tensor, Rows]:
        """w, ``(B, K)``, and log|∂w/∂z|, ``(B,)``."""
        a, b = self._affine(z, c)
        return a.exp() * z + b, a.sum(1)

    def inverse(self, w: Tensor, c: Tensor) -> tuple[Tensor, Rows]:
        """z, and the same log|∂w/∂z|: the kept coordinates of w are those of z."""
        a, b = self._affine(w, c)
        return (w - b) * (-a).exp(), a.sum(1)

    def _affine(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """a and b, 0 where kept."""
        h = torch.cat([c, self.keep * (z.sigmoid() - 0.5)], 1)
        a, b = self.last(F.silu(self.inner(F.silu(self.first(h))))).chunk(2, 1)
        return (1 - self.keep) * STEEPEST * (a / STEEPEST).tanh(), (1 - self.keep) * b


class CellFlow(nn.Module):
    """A density q(u | c) of u in the unit cube (0, 1)^K: couplings between two logits,

        z = logit(v), v uniform,    w = f_L(… f_1(z; c) …; c),    u = σ(w),
        log q(u | c) = Σ log σ'(z) − Σ log σ'(w) − Σ_l log|∂f_l|,    σ' = σ(1 − σ).

    The first layer keeps nothing: each coordinate is scaled and shifted by what c alone says. The others keep every
    second coordinate, in turn; there are none if K = 1. It starts as the uniform law. All is in float64.

    Args:
        n_cell: K.
        n_condition: length of c.
        n_layers: L.
        width: hidden units of each layer.
        generator: source of the first weights.

    Reference: Dinh, Sohl-Dickstein and Bengio (2017), "Density estimation using Real NVP", section 3.
    """

    def __init__(
        self,
        n_cell: int,
        n_condition: int,
        *,
        n_layers: int = 5,
        width: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        order = torch.arange(n_cell)
        keeps = [torch.zeros(n_cell), *((order + i) % 2.0 for i in range(n_layers - 1))][
            : n_layers if n_cell > 1 else 1
        ]
        self.layers = nn.ModuleList(Coupling(keep.double(), n_condition, width, generator).double() for keep in keeps)

    def forward(self, v: Tensor, c: Tensor) -> tuple[Tensor, Rows]:
        """u and log q(u | c) for uniform v, ``(B, K)``."""
        z = w = v.clamp(2.0**-54, 1 - 2.0**-53).logit()
        total = w.new_zeros(len(w))
        for layer in self.layers:
            w, change = layer(w, c)
            total = total + change
        return w.sigmoid(), _log_slope(z) - _log_slope(w) - total

    def log_prob(self, u: Tensor, c: Tensor) -> Rows:
        """log q(u | c) of any u inside of the cube, ``(B, K)``: by the inverse."""
        w = z = u.logit()
        total = w.new_zeros(len(w))
        for layer in reversed(self.layers):
            assert isinstance(layer, Coupling)
            z, change = layer.inverse(z, c)
            total = total + change
        return _log_slope(z) - _log_slope(w) - total


def _log_slope(w: Tensor) -> Rows:
    """Σ log σ'(w), right for large |w|."""
    return (F.logsigmoid(w) + F.logsigmoid(-w)).sum(1)
