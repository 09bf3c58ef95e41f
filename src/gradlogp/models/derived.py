"""What follows from a module's buffers, computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Derived(Generic[T]):
    """A function of tensors that keeps its last value, until one of them is another or was changed in place.

    A change through ``.data`` is not seen. Copies and pickles hold the function alone.

    Args:
        function: of tensors; defined in a module, so that it can be pickled.
    """

    def __init__(self, function: Callable[..., T]) -> None:
        self.function = function
        self._kept: tuple[tuple[Tensor, ...], list[int], T] | None = None

    def __call__(self, *tensors: Tensor) -> T:
        """The value; in inference mode it is not kept, as autograd could not use it later."""
        if torch.is_inference_mode_enabled():
            return self.function(*tensors)
        kept, versions = self._kept, [0 if v.is_inference() else v._version for v in tensors]
        if kept is None or kept[1] != versions or any(a is not b for a, b in zip(kept[0], tensors, strict=True)):
            kept = self._kept = tensors, versions, self.function(*tensors)
        return kept[2]

    def __reduce__(self) -> tuple[type[Derived[T]], tuple[Callable[..., T]]]:
        return Derived, (self.function,)
