"""Log-densities by the probability flow of k-diffusion, torchdiffeq, zuko and flow_matching, each behind one call."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sampling_peers import k_sampling
from torch import Tensor

from gradlogp.kernels import Gaussian
from gradlogp.models import ScoreModel
from gradlogp.oracles import GaussianMixture

SIGMA_MAX, SIGMA_MIN = 80.0, 0.002
LIBRARIES = ("flow_matching", "k-diffusion", "torchdiffeq", "zuko")
LogProb = Callable[[Tensor], Tensor]


class Path(ABC):
    """A flow dx/dt = u(x, t) from a prior at t = 0 to the density p_σmin at t = 1.

    Attributes:
        name: of the path and its time.
        priors: name -> log-density at t = 0.
    """

    name: str
    priors: dict[str, LogProb]

    @abstractmethod
    def velocity(self, x: Tensor, t: float) -> Tensor:
        """u, like x, in one evaluation of the model."""


class Exploding(Path):
    """dx/dσ = (x − D(x; σ))/σ, with σ linear in t, from 80 to 0.002."""

    name = "VE, σ"

    def __init__(self, model: ScoreModel, mean: Tensor, variance: Tensor) -> None:
        self.model, self._rate = model, SIGMA_MIN - SIGMA_MAX
        self.priors = {
            "N(0, 80²)": partial(_normal, mean=torch.zeros_like(mean), variance=torch.full_like(mean, SIGMA_MAX**2)),
            "diagonal moments": partial(_normal, mean=mean, variance=variance + SIGMA_MAX**2),
        }

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """The rate times (x − D)/σ."""
        sigma = SIGMA_MIN + (t - 1) * self._rate
        return self._rate / sigma * (x - self.model.denoise(x, Gaussian(sigma)))


class Straight(Path):
    """x_t = t·x₁ + (1 − t)·z, u = E[x₁ − z | x_t]: flow matching's usual path, whose prior is N(0, I) exactly.

    Args:
        model: of p_σmin, so that the path ends there and not at the data.
        mean: gives the size.
    """

    name = "straight"

    def __init__(self, model: ScoreModel, mean: Tensor) -> None:
        self.model = model
        self.priors = {"N(0, I), exact": partial(_normal, mean=torch.zeros_like(mean), variance=torch.ones_like(mean))}

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """(E[x₁ | x] − x)/(1 − t), or the same from the score where t is large.

        torchdiffeq steps past t = 0 and interpolates: x_t = −|t|·x₁ + (1 − t)·z has the law of −(|t|·x₁ + (1 − t)·z).
        """
        if t < 0.5:
            return (self.model.denoise(math.copysign(1.0, t) * x, Gaussian(1 - t, abs(t))) - x) / (1 - t)
        return (x + (1 - t) * self.model.score(x, Gaussian(max(1 - t, 1e-12), t))) / t


def _normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((x - mean).square() / variance + (2 * math.pi * variance).log()).sum(1)


@dataclass(frozen=True)
class Peer:
    """A method with its settings.

    Attributes:
        library: that it is from.
        method: its name and settings.
        path: "VE" or "straight".
        exact: whether it takes the whole trace, not one random direction's.
        run: (path, rows) -> the rows at t = 0 and what is to be added to the prior's log-density there, or, where it
            has its own prior, None and the log-density.
    """

    library: str
    method: str
    path: str
    exact: bool
    run: Callable[[Path, Tensor], tuple[Tensor | None, Tensor]]

    def log_probs(self, path: Path, x: Tensor) -> dict[str, Tensor]:
        """Name of the prior -> log-density of each row."""
        end, more = self.run(path, x)
        if end is None:
            return {"N(0, 80²)": more}
        return {name: log_prob(end) + more for name, log_prob in path.priors.items()}


def paths(model: ScoreModel, moved: ScoreModel, oracle: GaussianMixture) -> dict[str, Path]:
    """Both, of a model of p and one of p_σmin."""
    variance = oracle.covariance.diagonal()
    return {"VE": Exploding(model, oracle.mean, variance), "straight": Straight(moved, oracle.mean)}


def peers() -> list[Peer]:
    """All of them."""
    return [*k_diffusion(), *torch_diffeq(), *zuko(), *flow_matching()]


# k-diffusion


def k_diffusion() -> Iterator[Peer]:
    """Its log_likelihood as it is: σ as time, one random direction, its own prior."""
    log_likelihood = k_sampling().log_likelihood

    def run(path: Path, x: Tensor) -> tuple[None, Tensor]:
        assert isinstance(path, Exploding)
        value, _ = log_likelihood(lambda y, s: path.model.denoise(y, Gaussian(s[0].item())), x, SIGMA_MIN, SIGMA_MAX)
        return None, value

    yield Peer("k-diffusion", "log_likelihood, one probe, 1e-4", "VE", False, run)


# torchdiffeq


def torch_diffeq() -> Iterator[Peer]:
    """Dormand and Prince's method of order 5, and of order 8 at the tightest; the trace by autograd."""
    odeint = importlib.import_module("torchdiffeq").odeint

    def run(path: Path, x: Tensor, method: str, tolerance: float, exact: bool) -> tuple[Tensor, Tensor]:
        v = (torch.randint_like(x, 2) * 2 - 1)[None]
        directions = torch.eye(x.shape[1], dtype=x.dtype)[:, None].expand(-1, len(x), -1) if exact else v

        def f(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return _with_divergence(path, state[0], t.item(), directions)

        times = x.new_tensor([1.0, 0.0])
        end, more = odeint(f, (x, x.new_zeros(len(x))), times, rtol=tolerance, atol=tolerance, method=method)
        return end[-1], more[-1]

    settings = [("VE", "dopri5", t) for t in (1e-3, 1e-4, 1e-5)]
    settings += [("straight", "dopri5", t) for t in (1e-3, 1e-4, 1e-5, 1e-6)]
    settings += [("straight", "dopri8", t) for t in (1e-4, 1e-6)]
    for path, method, t in settings:
        one = partial(run, method=method, tolerance=t, exact=True)
        yield Peer("torchdiffeq", f"{method}, exact, {t:g}", path, True, one)
    for path in ("VE", "straight"):
        one = partial(run, method="dopri5", tolerance=1e-4, exact=False)
        yield Peer("torchdiffeq", "dopri5, one probe, 0.0001", path, False, one)


def _with_divergence(path: Path, x: Tensor, t: float, directions: Tensor) -> tuple[Tensor, Tensor]:
    """u and Σ_j v_jᵀ(∂u/∂x)v_j; of the directions ``(K, B, D)`` eight at a time go through a backward pass."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        u = path.velocity(x, t)
        trace = x.new_zeros(len(x))
        for v in directions.split(8):
            (g,) = torch.autograd.grad(u, x, v, is_grads_batched=True, retain_graph=True)
            trace += (g * v).sum((0, 2))
    return u.detach(), trace


# zuko


def zuko() -> Iterator[Peer]:
    """FreeFormJacobianTransform, at the tolerances that it comes with and at looser ones."""
    transform = importlib.import_module("zuko.transforms").FreeFormJacobianTransform

    def run(path: Path, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return transform(lambda t, y: path.velocity(y, t.item()), 1.0, 0.0, **options).call_and_ladj(x)

    for path in ("VE", "straight"):
        for name, exact, options in (
            ("exact, 1e-4, 1e-3", True, {"atol": 1e-4, "rtol": 1e-3}),
            ("exact, its own 1e-6, 1e-5", True, {}),
            ("one probe, its own 1e-6, 1e-5", False, {}),
        ):
            yield Peer("zuko", f"free-form, {name}", path, exact, partial(run, exact=exact, **options))


# flow_matching


def flow_matching() -> Iterator[Peer]:
    """ODESolver.compute_likelihood, dopri5, at the tolerance that it comes with; float32 times as it has them."""
    solver = importlib.import_module("flow_matching.solver").ODESolver

    def run(path: Path, x: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
        return solver(lambda x, t: path.velocity(x, t.item())).compute_likelihood(
            x.clone(),
            log_p0=lambda y: y.new_zeros(len(y)),
            step_size=None,
            method="dopri5",
            time_grid=x.new_tensor([1.0, 0.0]),
            exact_divergence=exact,
        )

    for path in ("VE", "straight"):
        for exact, name in ((True, "exact"), (False, "one probe")):
            label = f"compute_likelihood, {name}, its own 1e-5"
            yield Peer("flow_matching", label, path, exact, partial(run, exact=exact))
