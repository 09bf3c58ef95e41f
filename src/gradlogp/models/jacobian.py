"""Products with the Jacobian of what a model says at a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, per_row
from gradlogp.kernels import Kernel

Products = Callable[[Tensor], Tensor]


def linearise(
    f: Callable[[Batch, Kernel], Batch], x_t: Batch, kernel: Kernel, *, again: bool = False, name: str = "score"
) -> tuple[Batch, Products]:
    """f(x_t) and v -> (∇f)ᵀv, row by row, f a model's ``score`` or ``denoise``; works where gradients are off, too.

    Args:
        f: (x_t, kernel) -> like x_t.
        x_t: ``(B, *event)``.
        kernel: the convolution.
        again: keep the graph of both, so that they are differentiable themselves.
        name: of f, for an error.

    Raises:
        InputError: an f that varies with x_t but lets no gradient through.
    """
    with torch.inference_mode(False), torch.enable_grad():
        at = x_t.detach().clone().requires_grad_()
        value = f(at, kernel)
    if not value.requires_grad:
        _require_constant(f, x_t.detach(), value, kernel, name)
        return value, torch.zeros_like

    def transposed_times(v: Tensor) -> Tensor:
        return gradient_of(value, v, at, again=again)

    return value, transposed_times


def gradient_of(value: Tensor, v: Tensor, at: Tensor, *, again: bool = False) -> Tensor:
    """∇⟨v, value⟩ in ``at``, 0 where it does not depend on it; the graph is kept.

    Given v as ``grad_outputs`` torch would import sympy first, which takes longer than to fit a small table.
    """
    with torch.inference_mode(False), torch.enable_grad():
        product = (value * (v.clone() if v.is_inference() else v)).sum()
    (out,) = torch.autograd.grad(
        product, at, create_graph=again, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return out


def matrix(value: Batch, transposed_times: Products) -> Tensor:
    """∇f of each row over the flattened event, ``(B, D, D)``: entry (j, k) is ∂f_j/∂x_k; D products."""
    return torch.stack([transposed_times(v).flatten(1) for _, v in units(value)], 1)


def units(like: Batch) -> Iterator[tuple[int, Tensor]]:
    """Each coordinate j of the flattened event, and the unit vector along it in the shape of ``like``."""
    for j in range(like[0].numel()):
        unit = torch.zeros_like(like).flatten(1)
        unit[:, j] = 1
        yield j, unit.reshape(like.shape)


def _require_constant(f: Callable[[Batch, Kernel], Batch], x_t: Batch, value: Batch, kernel: Kernel, name: str) -> None:
    """What autograd does not see must be something that does not vary."""
    if not torch.equal(f(x_t + per_row(kernel.sigma, x_t), kernel), value):
        raise InputError(f"{name}: got no gradient in x_t, want one that autograd can follow")
