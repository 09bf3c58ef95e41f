"""The classes under test, and for each the independent law of SciPy that it must agree with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import distributions as td

from gradlogp.kernels import Additive, GeneralizedNormal, Kernel, Logistic

F64 = torch.float64


def t64(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


class MixtureOfNormals:
    """The frozen-distribution interface of SciPy for a mixture."""

    def __init__(self, w: list[float], loc: list[float], scale: list[float]) -> None:
        self.w = np.array(w)
        self.parts = [stats.norm(m, s) for m, s in zip(loc, scale, strict=True)]

    def _sum(self, name: str, u: Any) -> Any:
        return sum(w * getattr(p, name)(u) for w, p in zip(self.w, self.parts, strict=True))

    def pdf(self, u: Any) -> Any:
        return self._sum("pdf", u)

    def logpdf(self, u: Any) -> Any:
        return np.log(self.pdf(u))

    def cdf(self, u: Any) -> Any:
        return self._sum("cdf", u)

    def mean(self) -> float:
        return float(sum(w * p.mean() for w, p in zip(self.w, self.parts, strict=True)))

    def var(self) -> float:
        return (
            float(sum(w * (p.var() + p.mean() ** 2) for w, p in zip(self.w, self.parts, strict=True)))
            - self.mean() ** 2
        )


@dataclass(frozen=True)
class Law:
    """A noise law on the line: as torch has it, as SciPy has it, and points where its density is not smooth."""

    name: str
    torch: td.Distribution
    scipy: Any
    kinks: tuple[float, ...] = ()
    symmetric: bool = True

    def kernel(self, **options: bool) -> Additive:
        return Additive(self.torch, **options)


def _mixture() -> td.Distribution:
    return td.MixtureSameFamily(td.Categorical(t64([0.3, 0.7])), td.Normal(t64([-0.8, 0.5]), t64([0.3, 0.6])))


LAWS = [
    Law("normal", td.Normal(t64(0.0), t64(0.7)), stats.norm(0, 0.7)),
    Law("normal shifted", td.Normal(t64(0.4), t64(0.7)), stats.norm(0.4, 0.7), symmetric=False),
    Law("laplace", td.Laplace(t64(0.0), t64(0.3)), stats.laplace(0, 0.3), (0.0,)),
    Law("student 5", td.StudentT(t64(5.0), t64(0.0), t64(0.5)), stats.t(5, 0, 0.5)),
    Law("logistic", Logistic(t64(0.0), t64(0.4)), stats.logistic(0, 0.4)),
    Law("gennorm 1.5", GeneralizedNormal(t64(0.0), t64(0.8), t64(1.5)), stats.gennorm(1.5, 0, 0.8), (0.0,)),
    Law("gennorm 0.7", GeneralizedNormal(t64(0.0), t64(0.8), t64(0.7)), stats.gennorm(0.7, 0, 0.8), (0.0,)),
    Law("mixture", _mixture(), MixtureOfNormals([0.3, 0.7], [-0.8, 0.5], [0.3, 0.6]), symmetric=False),
    Law("gumbel", td.Gumbel(t64(0.1), t64(0.5)), stats.gumbel_r(0.1, 0.5), symmetric=False),
    Law("lognormal", td.LogNormal(t64(0.0), t64(0.5)), stats.lognorm(0.5), (0.0,), symmetric=False),
]
BY_NAME = {law.name: law for law in LAWS}

COVARIANCE = np.array([[0.5, 0.2, -0.1], [0.2, 0.4, 0.05], [-0.1, 0.05, 0.3]])
SHIFT = np.array([0.1, -0.2, 0.3])


def mvn() -> Additive:
    return Additive(td.MultivariateNormal(t64(SHIFT), t64(COVARIANCE)))


@dataclass(frozen=True)
class Case:
    """A kernel, an event shape that it takes, and a number of rows."""

    name: str
    kernel: Kernel
    event: tuple[int, ...]
    rows: int = 6


def ids(case: Any) -> str:
    return str(case.name).replace(" ", "-")
