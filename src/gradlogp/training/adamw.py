"""AdamW without the second that ``torch.optim`` takes to import its compiler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): torch's own step, fused, with no class around it.

    ``torch.optim.Optimizer`` imports ``torch._dynamo`` when the first is made, which takes longer than to fit a small
    table. This one is used as those are: groups of parameters with an ``lr`` and a ``weight_decay`` each.

    Args:
        groups: dictionaries with ``params``, ``weight_decay`` and what else the caller keeps there.
        lr: the rate of groups that tell none.
        betas, eps: as Adam's.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.param_groups = [{"lr": lr, **group} for group in groups]
        self.betas, self.eps = betas, eps
        self._state: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters that have a gradient."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            states = [self._of(p) for p in moved]
            means, squares, steps = ([state[i] for state in states] for i in range(3))
            adamw(
                moved, [p.grad for p in moved], means, squares, [], steps, fused=True, amsgrad=False, maximize=False,
                beta1=self.betas[0], beta2=self.betas[1], eps=self.eps, lr=group["lr"],
                weight_decay=group["weight_decay"],
            )  # fmt: skip

    def _of(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if p not in self._state:
            count = torch.zeros((), dtype=torch.float32, device=p.device)
            self._state[p] = torch.zeros_like(p), torch.zeros_like(p), count
        return self._state[p]
