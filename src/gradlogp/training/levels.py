"""The noise levels to train on: from where the data's information is resolved to where a Gaussian is all but exact."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows, as_batch, as_level, as_number, dot, squared_norm
from gradlogp.kernels import Gaussian
from gradlogp.models import GaussianReference, MarginalReference
from gradlogp.objectives import posterior_score
from gradlogp.processes import Process

SMALLEST = 0.01  # default sigma_min, in units of the smallest scale of the data
LARGEST = 4.0  # sigma_max at most, in standard deviations of the widest direction of the data
LEFT = 1e-5  # share of ½E‖∇log p_σ‖² that the Gaussian may get wrong at sigma_max
OF_A_STEP = 0.25  # sigma_min at least, in steps of the finest grid: rounding then errs once in 22 times
LEAST = 1e-4  # sigma_min at least, in standard deviations of the narrowest column: float32 has 7 digits
MIN_ROWS = 32  # with fewer, nothing is certified
_QUERIES, _REFERENCES = 1024, 2048


class Levels(ABC):
    """A law of noise levels σ (at alpha = 1) between two ends.

    Attributes:
        sigma_min, sigma_max: the ends, in the data's unit.
    """

    sigma_min: float
    sigma_max: float

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """σ at probability u in (0, 1)."""

    @abstractmethod
    def log_density(self, sigma: Tensor) -> Tensor:
        """The log of the density of log σ, at levels between the ends."""

    def draw(self, n: int, *, generator: torch.Generator | None = None, like: Tensor) -> Rows:
        """n levels, stratified: one in each of n equally probable strata, so that a batch covers the range evenly."""
        u0 = torch.rand(n, generator=generator, dtype=like.dtype, device=like.device)
        u = (torch.arange(n, dtype=like.dtype, device=like.device) + u0) / n
        return self.quantile(u)[torch.randperm(n, generator=generator, device=like.device)]


@dataclass(frozen=True)
class OneLevel(Levels):
    """One noise level, as Vincent (2011) has it: for a model that is right at one level only.

    Attributes:
        sigma: the level, in the data's unit.

    Raises:
        InputError: a level that is not finite and positive.
    """

    sigma: float

    def __post_init__(self) -> None:
        if as_level(self.sigma, "sigma").numel() != 1:
            raise InputError(f"sigma: got {self.sigma!r}, want one level")

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        """The level."""
        return self.sigma

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        """The level."""
        return self.sigma

    def quantile(self, u: Tensor) -> Tensor:
        """The level."""
        return torch.full_like(u, self.sigma)

    def log_density(self, sigma: Tensor) -> Tensor:
        """0, as the log of the probability of the one level."""
        return torch.zeros_like(sigma)


@dataclass(frozen=True)
class NoiseLevels(Levels):
    """The noise levels to train on: log σ uniform between two ends, or more densely around the data's scale.

    Attributes:
        sigma_min, sigma_max: the ends, in the data's unit.
        centre, spread: log σ is normal with this mean and standard deviation, cut at the ends; ``spread = inf`` is
            uniform.
    """

    sigma_min: float
    sigma_max: float
    centre: float = 0.0
    spread: float = math.inf

    def __post_init__(self) -> None:
        low, high = as_number(self.sigma_min, "sigma_min"), as_number(self.sigma_max, "sigma_max")
        if low >= high:
            raise InputError(f"sigma_min, sigma_max: got {low:g} and {high:g}, want sigma_min < sigma_max")

    @classmethod
    def of_data(
        cls,
        reference: GaussianReference,
        smallest: float,
        *,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> NoiseLevels:
        """Levels from the data: from 1/100 of their smallest scale to 4 standard deviations of their widest direction.

        Above that the Gaussian with the data's moments is all but exact. Most levels are drawn around half the data's
        scale σ_d, where the structure is learnt: log σ is normal around log(σ_d/2), as in EDM, with a standard
        deviation of 1.2.

        Args:
            reference: the Gaussian with the data's moments.
            smallest: the smallest scale worth resolving, in the data's unit.
            sigma_min: take this smallest level instead.
            sigma_max: take this largest level instead.

        Raises:
            InputError: an end that is not positive and finite, or ends that are not in order.
        """
        low = SMALLEST * smallest if sigma_min is None else sigma_min
        high = LARGEST * reference.eigenvalues.max().sqrt().item() if sigma_max is None else sigma_max
        return cls(low, high, math.log(0.5 * reference.data_scale.item()), 1.2)

    @classmethod
    def of_rows(
        cls,
        rows: Batch,
        reference: GaussianReference,
        *,
        steps: Tensor | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> NoiseLevels:
        """Levels from the data, as far as the rows certify that something is to be learnt there.

        **sigma_max** is the least level at which the score of the Gaussian with the data's moments, which samples start
        from, errs by less than 10⁻⁵ of its square (:func:`largest_level`). **sigma_min** is 1/100 of the data's Fisher
        scale ℓ (:func:`fisher_scale`), where ½I(p_σ) ≈ R/(2ℓ²) is 10⁻⁴ of the noise's own ½I(q) = R/(2σ²), but at least
        a quarter of the finest grid's step. In between they are drawn as by :meth:`of_data`. All scales with the data.

        Args:
            rows: training rows, ``(N, *event)``; the first are looked at.
            reference: the Gaussian with their moments.
            steps: distance of neighbours on each coordinate's grid, ``(*event)``; 0 for a continuous one.
            sigma_min: take this smallest level instead.
            sigma_max: take this largest level instead.

        Raises:
            InputError: rows that are no finite batch, an end that is not positive and finite, or ends not in order.
        """
        rows = as_batch(rows).detach()
        high = largest_level(rows, reference) if sigma_max is None else sigma_max
        low = smallest_level(rows, reference, steps) if sigma_min is None else sigma_min
        if sigma_min is None and sigma_max is None:
            low = min(low, 0.1 * high)  # a step far wider than the data
        return cls(low, high, math.log(0.5 * reference.data_scale.item()), 1.2)

    def quantile(self, u: Tensor) -> Tensor:
        """σ at probability u in (0, 1)."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        if math.isinf(self.spread):
            return torch.exp(low + u * (high - low))
        z = torch.tensor([(low - self.centre) / self.spread, (high - self.centre) / self.spread], dtype=torch.float64)
        p_low, p_high = torch.special.ndtr(z).tolist()
        p = (p_low + u.double() * (p_high - p_low)).clamp(1e-12, 1 - 1e-12)
        log_sigma: Tensor = self.centre + self.spread * torch.special.ndtri(p)
        return log_sigma.clamp(low, high).exp().to(u.dtype)

    def log_density(self, sigma: Tensor) -> Tensor:
        """log p(log σ): −log log(σ_max/σ_min) if uniform, else that of the normal, cut at the ends."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        if math.isinf(self.spread):
            return torch.full_like(sigma, -math.log(high - low))
        z = torch.tensor([(low - self.centre) / self.spread, (high - self.centre) / self.spread], dtype=torch.float64)
        inside = torch.special.ndtr(z).diff().item()
        constant = math.log(inside * self.spread * math.sqrt(2 * math.pi))
        return -0.5 * ((sigma.log() - self.centre) / self.spread) ** 2 - constant


@dataclass(frozen=True)
class TimeLevels(Levels):
    """The levels sigma/alpha of a process at times drawn uniformly: unit·ratio(t), t_min <= t <= t_max.

    Models are trained at alpha = 1: x_t = alpha·x + sigma·z says of x what x_t/alpha = x + (sigma/alpha)·z says.

    Args:
        process: gives sigma/alpha.
        t_min: the first time; the process's own unless said.
        t_max: the last; the process's own unless said.
        unit: the process runs on x/unit: the data's scale, for a process made for data of scale 1.

    Raises:
        InputError: times that are not in order or not in the process's domain; a unit that is not finite and positive.

    Reference: Song et al. (2021), "Score-based generative modeling through stochastic differential equations".
    """

    process: Process
    t_min: float
    t_max: float
    unit: float

    def __init__(
        self, process: Process, *, t_min: float | None = None, t_max: float | None = None, unit: float = 1.0
    ) -> None:
        low, high = process.t_min if t_min is None else t_min, process.t_max if t_max is None else t_max
        if not low < high:
            raise InputError(f"t_min, t_max: got {low:g} and {high:g}, want t_min < t_max")
        for name, value in (("process", process), ("t_min", low), ("t_max", high)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "unit", as_number(unit, "unit"))
        object.__setattr__(self, "sigma_min", self.unit * process.ratio(low).item())
        object.__setattr__(self, "sigma_max", self.unit * process.ratio(high).item())

    def quantile(self, u: Tensor) -> Tensor:
        """σ at the time t_min + u·(t_max − t_min)."""
        t = self.t_min + u.double() * (self.t_max - self.t_min)
        return (self.unit * self.process.ratio(t.clamp(self.t_min, self.t_max))).to(u.dtype)

    def log_density(self, sigma: Tensor) -> Tensor:
        """log p(log σ) = −log((t_max − t_min)·d log(sigma/alpha)/dt), with d log(sigma/alpha)/dt = g²/(2 sigma²)."""
        t = self.process.time(sigma / self.unit)
        rate = 0.5 * (self.process.diffusion(t) / self.process.sigma(t)) ** 2
        return -((self.t_max - self.t_min) * rate).log()


def largest_level(rows: Batch, gaussian: GaussianReference) -> float:
    """The least σ from which on a Gaussian's score φ is all but exact for these rows, between 1 and 4 times √λ_max.

    The rows, seen through noise, have the score T that averages over all of them, and so E ½‖φ − T‖² is the error of φ:
    exactly for the rows, and an upper bound in expectation for the law that they are drawn from. The least level is
    where it is 10⁻⁵ of ½ tr(Σ + σ²)⁻¹, the Gaussian's ½E‖φ‖². The share falls about as σ⁻⁵·⁵, so what a start from the
    Gaussian misses of p_σ is KL = ∫ σ E‖s − φ‖² dσ ≈ 10⁻⁵ R/5.5 nats, or a shift by some √(2·10⁻⁵/5.5) = 0.2 % of a
    standard deviation in each direction. At 10⁻³ there is nothing left for a network to learn either, but the start is
    2 % off, which shows: two moons and a checkerboard, sampled from there, came out a tenth farther from the truth.
    """
    x, references = rows[:_QUERIES].double(), rows[:_REFERENCES].double()
    same = len(references) == len(rows)  # or else the moments of those looked at
    phi = copy.deepcopy(gaussian).double() if same else GaussianReference.of_data(references)
    z, widest = _noise_like(x), phi.eigenvalues.max().sqrt().item()

    def share(sigma: float) -> float:
        x_t, kernel = x + sigma * z, Gaussian(sigma)
        error = 0.5 * squared_norm(phi.score(x_t, kernel) - posterior_score(x_t, kernel, references)).mean().item()
        return 2 * error / (1 / (phi.eigenvalues + sigma**2)).sum().item()

    sigma, above = LARGEST * widest, 0.0
    while sigma > widest * 1.001:
        here = share(sigma)
        if here >= LEFT:
            part = math.log(here / LEFT) / math.log(here / above) if 0 < above < here else 0.0
            return sigma * 2 ** (part / 4)
        sigma, above = sigma / 2 ** (1 / 4), here
    return widest


def smallest_level(rows: Batch, gaussian: GaussianReference, steps: Tensor | None = None) -> float:
    """1/100 of the Fisher scale of the rows; at least what rounding to the finest grid, or to float32, wipes out."""
    spread = rows.flatten(1).double().std(0)
    varies = spread > 0  # a constant has no end of information
    rows, narrowest = rows.flatten(1)[:, varies], spread[varies].min().item()
    steps = None if steps is None else steps.flatten()[varies.to(steps.device)]
    least = LEAST * narrowest
    if steps is not None and bool((steps > 0).any()):
        least = max(least, OF_A_STEP * steps[steps > 0].min().item())
        g = torch.Generator(rows.device).manual_seed(0)
        within = torch.rand(rows.shape, generator=g, dtype=torch.float64, device=rows.device) - 0.5
        rows = rows.double() + within * steps.to(rows.device)
    scale = fisher_scale(rows, gaussian.eigenvalues.numel(), at_least=least / SMALLEST)
    return max(SMALLEST * (narrowest if scale is None else scale), least)


def fisher_scale(rows: Batch, n_directions: int, at_least: float = 0.0) -> float | None:
    """ℓ = √(R/I) for the largest Fisher information I of the data that the rows certify; None if they certify none.

    For N(μ, Σ) it is (tr Σ⁻¹/R)^(−½). For any φ and σ,  E[⟨φ, t⟩ − ½‖φ‖²] = ½I(q) − J_DSM(φ) ≤ ½I(p_σ) ≤ ½I(p)  is a
    lower bound on the data's information. It is taken, less two standard errors, at levels from the data's largest
    scale down, of three φ known in closed form, fitted on every other row and measured on the rest with ±noise: the
    Gaussian's, the marginal reference's and the rows' own (Parzen's).

    Copies of a row count once, since a row and its copy would be on both sides.

    Args:
        rows: ``(N, *event)``, off their grid.
        n_directions: R, in how many directions they vary.
        at_least: a scale below which it does not matter.
    """
    rows = _distinct(rows[: 2 * _REFERENCES])
    fit, x = rows[0::2].double(), rows[1 : 2 * _QUERIES : 2].double()
    if len(rows) < MIN_ROWS or not bool((fit != fit[:1]).any()):
        return None
    gaussian = GaussianReference.of_data(fit)
    top = gaussian.eigenvalues.max().sqrt().item()
    lowest = max(SMALLEST * at_least, LEAST * top)
    best = _certified(lambda x_t, kernel: gaussian.score(x_t, kernel), x, top, n_directions, lowest, 0.0)
    if best <= 0 or math.sqrt(n_directions / best) > at_least:
        marginal = MarginalReference.of_data(fit)
        best = _certified(lambda x_t, kernel: marginal.score(x_t, kernel), x, top, n_directions, lowest, best)
        best = _certified(lambda x_t, kernel: posterior_score(x_t, kernel, fit), x, top, n_directions, lowest, best)
    return math.sqrt(n_directions / best) if best > 0 else None


def _distinct(rows: Tensor) -> Tensor:
    """The rows without copies, each at its first place."""
    _, index = torch.unique(rows.flatten(1), dim=0, return_inverse=True)
    first = torch.full((len(rows),), len(rows), device=rows.device)
    first.scatter_reduce_(0, index, torch.arange(len(rows), device=rows.device), "amin")
    return rows[first[first < len(rows)].sort().values]


def _certified(
    phi: Callable[[Tensor, Gaussian], Tensor], x: Tensor, top: float, n_directions: int, lowest: float, best: float
) -> float:
    """The largest 2E[⟨φ, t⟩ − ½‖φ‖²] less two standard errors, at levels from ``top`` down, or ``best``.

    Levels below a tenth of the scale found are not looked at (I(p_σ) is within about 1 % of I(p) there), nor those
    where φ has got worse than nothing.
    """
    z, sigma = _noise_like(x), top
    while sigma > lowest and (best <= 0 or sigma > 0.1 * math.sqrt(n_directions / best)):
        kernel = Gaussian(sigma)
        plus, minus = phi(x + sigma * z, kernel), phi(x - sigma * z, kernel)
        each = -dot(plus - minus, z) / sigma - 0.5 * (squared_norm(plus) + squared_norm(minus))
        certain = (each.mean() - 2 * each.std() / math.sqrt(len(each))).item()
        best = max(best, certain)
        if certain < 0:
            break
        sigma /= math.sqrt(2)
    return best


def _noise_like(x: Tensor) -> Tensor:
    """The same z ~ N(0, I) every time."""
    g = torch.Generator(x.device).manual_seed(0)
    return torch.randn(x.shape, generator=g, dtype=x.dtype, device=x.device)
