"""Draws of what takes no generator: first weights of layers, dropout, torch's distributions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_T = torch.Tensor
_DRAWS: frozenset[Callable[..., Any]] = frozenset(
    [
        *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli, torch.multinomial),
        *(torch.poisson, torch.binomial, torch._standard_gamma, torch._sample_dirichlet),
        *(_T.bernoulli, _T.multinomial, _T.bernoulli_, _T.cauchy_, _T.exponential_, _T.geometric_, _T.log_normal_),
        *(_T.normal_, _T.random_, _T.uniform_),
        *(nn.init.uniform_, nn.init.normal_, nn.init.trunc_normal_, nn.init.orthogonal_, nn.init.sparse_),
        *(nn.init.xavier_uniform_, nn.init.xavier_normal_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_),
    ]
)
_LIKE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}  # they take no generator in every torch
_DROPOUT = {F.dropout: 0, F.dropout1d: 1, F.dropout2d: 2, F.dropout3d: 3}  # dimensions that are dropped together


class Seeded(TorchFunctionMode):
    """Inside ``with Seeded(seed):`` torch's draws come from this seed, and torch's global source is not touched.

    It holds in the thread that entered it, so that fits in several threads do not share a source. Entered again, it
    goes on where it stopped.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self._sources: dict[torch.device, torch.Generator] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function's value, its draws from the seed."""
        kwargs = {} if kwargs is None else kwargs
        if func in _DROPOUT:
            return self._dropped(_DROPOUT[func], *args, **kwargs)
        if func in _LIKE:
            func, args, kwargs = _LIKE[func], (args[0].shape,), {"dtype": args[0].dtype, "device": args[0].device}
        if func in _DRAWS and kwargs.get("generator") is None:
            kwargs = {**kwargs, "generator": self._source([*args, *kwargs.values()], kwargs.get("device"))}
        return func(*args, **kwargs)

    def _source(self, given: Iterable[object], device: torch.device | str | None = None) -> torch.Generator:
        """The generator of the device that is drawn on."""
        own = next((v.device for v in given if isinstance(v, Tensor)), None)
        at = own or torch.empty(0, device=device).device
        return self._sources.setdefault(at, torch.Generator(at).manual_seed(self.seed))

    def _dropped(
        self, together: int, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        """x·mask/(1 − p), as of :func:`torch.nn.functional.dropout` and its kin."""
        if not training or p == 0:
            return input
        shape = input.shape[: input.ndim - together]
        keep = input.new_empty(shape).bernoulli_(1 - p, generator=self._source([input]))
        keep = keep.div_(1 - p) if p < 1 else keep
        keep = keep.reshape(*shape, *(1,) * together)
        return input.mul_(keep) if inplace else input * keep


def dropout_from(network: nn.Module, source: Seeded) -> Callable[[bool], None]:
    """A switch: True has the dropout layers of a network draw from this source, False as they did before.

    What a network draws in other ways stays with torch's global source, which ``torch.manual_seed`` seeds.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]

    def drawing(layer: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            with source:
                return type(layer).forward(layer, x)  # type: ignore[no-any-return]

        return forward

    forwards = [drawing(layer) for layer in layers]

    def switch(on: bool) -> None:
        for layer, forward in zip(layers, forwards, strict=True):
            if on:
                layer.__dict__["forward"] = forward
            else:
                layer.__dict__.pop("forward", None)

    return switch
