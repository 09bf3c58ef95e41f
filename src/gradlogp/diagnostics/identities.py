"""The theorem J_ESM = J_DSM + C, and an identity that needs no oracle, as tools."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Level, as_batch, as_count, event_size, squared_norm
from gradlogp.diagnostics.estimates import Z_THRESHOLD, Estimate
from gradlogp.kernels import Kernel
from gradlogp.kernels.base import require_levels
from gradlogp.models import ScoreModel
from gradlogp.objectives import (
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    ImplicitScoreMatching,
    Objective,
    SlicedScoreMatching,
)
from gradlogp.oracles import Oracle

_EXACT_DIVERGENCE_UP_TO = 100  # coordinates; above, the divergence is estimated by random projections
_ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Equivalence:
    """The two sides of J_ESM = J_DSM + C, each measured on its own.

    Attributes:
        j_esm: E ½‖ψ − ∇log p_σ‖².
        j_dsm: E ½‖ψ − ∇log k(x_t | x)‖².
        constant: C = ½E‖∇log p_σ‖² − ½ I(q), by this formula.
        residual: J_ESM − J_DSM − C, from the same draws.
    """

    j_esm: Estimate
    j_dsm: Estimate
    constant: Estimate
    residual: Estimate

    @property
    def holds(self) -> bool:
        """Whether the residual is within 4 standard errors of 0."""
        return abs(self.residual.z) <= Z_THRESHOLD

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "FAILS"
        parts = f"J_ESM {self.j_esm}, J_DSM {self.j_dsm}, C {self.constant}"
        return f"J_ESM = J_DSM + C {verdict}: residual {self.residual} (z = {self.residual.z:.2f}); {parts}"


def equivalence(
    model: ScoreModel, oracle: Oracle, kernel: Kernel, n: int = 20_000, *, generator: torch.Generator | None = None
) -> Equivalence:
    """Measure J_ESM, J_DSM and C on n draws from the oracle, and whether J_ESM = J_DSM + C (Vincent 2011, appendix).

    Args:
        model: any score model ψ.
        oracle: the exact density of the data.
        kernel: the convolution; one level for all rows.
        n: draws of (x, x_t).
        generator: source of the draws.

    Raises:
        InputError: fewer than 2 draws, or a kernel with a level for each row.
    """
    if kernel.alpha.ndim or kernel.sigma.ndim:
        raise InputError(f"kernel: got {kernel!r}, want one level for all rows")
    x = oracle.sample(n, generator=generator)
    fisher = half_fisher_of(kernel, x)

    def c(model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG001
        x_t = kernel.sample(x, generator=generator)
        return 0.5 * squared_norm(oracle.score(x_t, kernel)).double() - fisher.to(x_t.device)

    terms: list[Objective] = [ExplicitScoreMatching(oracle), DenoisingScoreMatching(), c]
    esm, dsm, constant = on_the_same_draws(terms, model, x, kernel, generator)
    error = math.hypot(half_fisher_error(kernel, x), rounding_of(x, dsm))
    return Equivalence(
        Estimate.mean_of(esm),
        Estimate.mean_of(dsm),
        Estimate.mean_of(constant, error),
        Estimate.mean_of(esm - dsm - constant, error),
    )


@dataclass(frozen=True)
class SelfCheck:
    """J_DSM − J_ISM − ½ I(q), which is 0 for any data and any model.

    Attributes:
        j_dsm: the denoising loss, in its units (1/data unit²); its error is that of the noise, given these rows.
        j_ism: the implicit loss on the same draws, likewise.
        half_fisher: ½ I(q), the mean over rows.
        residual: the difference and its standard error.
    """

    j_dsm: Estimate
    j_ism: Estimate
    half_fisher: float
    residual: Estimate

    @property
    def z(self) -> float:
        """The residual in standard errors."""
        return self.residual.z

    @property
    def holds(self) -> bool:
        """Whether |z| <= 4."""
        return abs(self.z) <= Z_THRESHOLD

    def __str__(self) -> str:
        verdict = "passes" if self.holds else "FAILS"
        return f"self-check {verdict}: J_DSM − J_ISM − ½I(q) = {self.residual} (z = {self.z:.2f})"


def self_check(
    model: ScoreModel,
    x: Batch,
    kernel: Kernel,
    *,
    objective: Objective | None = None,
    min_draws: int = 4096,
    generator: torch.Generator | None = None,
) -> SelfCheck:
    """Check J_DSM = J_ISM + ½ I(q) on data, with no ground truth: it tests the code, not the model.

    The identity E[∇log k(x_t | x)·ψ(x_t)] = −E div ψ holds for every data set, every differentiable ψ and every valid
    kernel, so a flipped sign, a lost ½, a mean for a sum or a wrong alpha in the loss or the kernel shows. Up to 100
    coordinates the divergence is exact, above it is a random projection. Few rows are repeated with fresh noise.

    Args:
        model: any score model ψ.
        x: clean data, ``(B, *event)``.
        kernel: the convolution, one level or one a row.
        objective: the denoising loss to check; by default :class:`~gradlogp.objectives.DenoisingScoreMatching`.
        min_draws: draws of noise at least; few rows are repeated.
        generator: source of the draws.

    Raises:
        InputError: x is not a finite batch.
    """
    x = as_batch(x)
    require_levels(kernel, x)
    min_draws = as_count(min_draws, "min_draws", each=x[0].nbytes)
    rows = torch.arange(len(x), device=x.device).repeat(math.ceil(min_draws / len(x)))
    x, kernel = x[rows], kernel.rows(rows)
    exact = event_size(tuple(x.shape[1:])) <= _EXACT_DIVERGENCE_UP_TO
    implicit: Objective = ImplicitScoreMatching() if exact else SlicedScoreMatching(n_projections=4)
    checked = DenoisingScoreMatching() if objective is None else objective
    dsm, ism = on_the_same_draws([checked, implicit], model, x, kernel, generator)
    half = half_fisher_of(kernel, x).to(dsm).expand(len(x))
    error = math.hypot(half_fisher_error(kernel, x), rounding_of(x, dsm))
    residual = Estimate.mean_of(dsm - ism - half, error)
    return SelfCheck(Estimate.mean_of(dsm), Estimate.mean_of(ism), half.mean().item(), residual)


def on_the_same_draws(
    terms: list[Objective], model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None
) -> list[Tensor]:
    """Each term's rows, in float64, with x_t the same in all: every term first draws from an equal generator."""
    device = generator.device if generator is not None else x.device
    seeds = torch.randint(2**62, (math.ceil(len(x) / _ROWS_AT_A_TIME),), generator=generator, device=device).tolist()
    parts: list[list[Tensor]] = [[] for _ in terms]
    for rows, seed in zip(torch.arange(len(x), device=x.device).split(_ROWS_AT_A_TIME), seeds, strict=True):
        for term, out in zip(terms, parts, strict=True):
            g = torch.Generator(x.device).manual_seed(seed)
            with torch.no_grad():
                out.append(term(model, x[rows], kernel.rows(rows), generator=g).double())
    return [torch.cat(p) for p in parts]


def half_fisher_of(kernel: Kernel, x: Batch) -> Level:
    """½I(q) for rows like x."""
    return 0.5 * kernel.fisher_information(tuple(x.shape[1:])).double()


def rounding_of(x: Batch, loss: Tensor) -> float:
    """Rounding error of a mean loss, for a loss that does not vary."""
    return float(torch.finfo(x.dtype).eps * loss.abs().mean())


def half_fisher_error(kernel: Kernel, x: Batch) -> float:
    """Its numerical error.

    Raises:
        InputError: an infinite one: nothing can be compared with ½I(q) then.
    """
    error = 0.5 * kernel.fisher_information_error(tuple(x.shape[1:])).double().max().item()
    if not math.isfinite(error):
        raise InputError(f"kernel: got {kernel!r}, whose Fisher information has no finite error, want one that has")
    return error
