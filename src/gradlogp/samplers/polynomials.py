"""Polynomials through past values, and Gauss and Legendre's rule for their means."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def lagrange(nodes: Tensor, points: Tensor) -> Tensor:
    """ℓ_j(points) = Π_{i≠j} (u − u_i)/(u_j − u_i), ``(K, *...)``, ``(P, *...)`` → ``(K, P, *...)``."""
    k = len(nodes)
    basis = [torch.ones_like(points) for _ in range(k)]
    for j in range(k):
        for i in range(k):
            if i != j:
                basis[j] = basis[j] * ((points - nodes[i]) / (nodes[j] - nodes[i]))
    return torch.stack(basis)


def gauss(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], ``(n,)``: exact for polynomials of degree 2n − 1."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(n))
    return (nodes + 1) / 2, weights / 2
