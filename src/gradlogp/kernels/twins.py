"""A law of float32 parameters and its twin in float64: one law, whichever of its parameters is asked for."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions.utils import lazy_property


def in_float64(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """A copy of a law with every parameter in float64 (so that its normaliser is not rounded), unvalidated.

    What a law derives from its parameters, as ``MultivariateNormal`` does a Cholesky factor from a covariance, is
    derived again from what was given: two roundings of one parameter are two laws.
    """
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        return value.detach().double() if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(in_float64(v, memo) for v in value)
    if type(value) is getattr(td, "GeneralizedPareto", None):  # not in torch 2.6; takes float32 only
        same = memo[id(value)] = copy.copy(value)
        same._validate_args = False
        return same
    if isinstance(value, td.Distribution | td.Transform):
        twin = memo[id(value)] = _built_again(value) or _copied(value, memo)
        return twin
    return value


def _copied(value: td.Distribution | td.Transform, memo: dict[int, Any]) -> Any:
    """The same object with its tensors in float64; what it had computed from its parameters and kept is left out."""
    twin = memo[id(value)] = object.__new__(type(value))
    kept = {k: v for k, v in vars(value).items() if not (isinstance(value, td.Distribution) and _derived(value, k))}
    twin.__dict__.update({k: in_float64(v, memo) for k, v in kept.items()})
    if isinstance(twin, td.Distribution):
        twin._validate_args = False
    return twin


def _built_again(law: Any) -> td.Distribution | None:
    """One of torch's own laws from its parameters in float64, None where it has more to it than these."""
    kind = type(law)
    if not isinstance(law, td.Distribution) or getattr(td, kind.__name__, None) is not kind:
        return None
    names = set(inspect.signature(kind).parameters) - {"validate_args"}
    try:
        constraints = set(law.arg_constraints)
    except NotImplementedError:
        return None
    if names != constraints or ("probs" in names and kind is not td.Categorical):
        return None
    given = {n: getattr(law, n) for n in names if _is_given(law, n)}
    in_double = {n: torch.as_tensor(v).detach().double() for n, v in given.items()}
    if "covariance_matrix" in in_double:
        c = in_double["covariance_matrix"]
        in_double["covariance_matrix"] = 0.5 * (c + c.mT)
    try:
        twin: td.Distribution = kind(**in_double, validate_args=False)
    except RuntimeError:  # a matrix that is positive definite to float32 only: the law is what torch made of it
        others = {n: v for n, v in in_double.items() if n not in ("covariance_matrix", "precision_matrix")}
        scale_tril = law.scale_tril.detach().double()  # type: ignore[attr-defined]
        twin = kind(**others, scale_tril=scale_tril, validate_args=False)
    return twin


def _is_given(law: td.Distribution, name: str) -> bool:
    """Whether a parameter was given, not derived from the others."""
    if not _is_lazy(law, name):
        return True
    return name in vars(law) and not _derived(law, name)


def _is_lazy(law: td.Distribution, name: str) -> bool:
    return isinstance(inspect.getattr_static(type(law), name, None), lazy_property)


def _derived(law: td.Distribution, name: str) -> bool:
    """Whether what a law holds under a name was computed when first asked for: it is what that gives now.

    Of ``scale_tril`` and what equals what it gives, the factor was given; else what comes first.
    """
    held = [n for n in vars(law) if _is_lazy(law, n)]
    if name not in held or len(held) == 1:
        return False
    tensors = [n for n in held if isinstance(vars(law)[n], Tensor)]
    computed = [n for n in tensors if torch.equal(vars(law)[n], inspect.getattr_static(type(law), n).wrapped(law))]
    if len(computed) == len(held):
        computed.remove("scale_tril" if "scale_tril" in computed else computed[0])
    return name in computed
