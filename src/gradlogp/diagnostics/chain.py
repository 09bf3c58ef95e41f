"""Vincent's chain of objectives: implicit, explicit, denoising, reconstruction, and the constants between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows, as_count, event_size
from gradlogp.diagnostics.estimates import Z_THRESHOLD, Estimate
from gradlogp.diagnostics.identities import half_fisher_of, on_the_same_draws, rounding_of
from gradlogp.diagnostics.ladder import as_kernels, as_rows, score_at
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel, gaussian_form, require_model
from gradlogp.objectives import (
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    ImplicitScoreMatching,
    Objective,
    ReconstructionError,
    SlicedScoreMatching,
)
from gradlogp.oracles import Empirical, Oracle

_KNOWN = 1e-4  # −C as a share of ½I(q), below which draws are known to be of one row
_TINY, _ROUNDING = 1e-300, 256  # digits that differences of D, x and x_t may lose, in units of the last
_EXACT_DIVERGENCE_UP_TO = 100  # coordinates; above, by random projections


@dataclass(frozen=True)
class Chain:
    """Four objectives at one level, all on the same draws, which differ by constants that no model changes.

        J_DAE/(2sigma⁴/alpha²) = J_DSM = J_ISM + ½I(q) = J_ESM − C

    Attributes:
        kernel: the convolution.
        n_rows: rows given.
        exact: whether p_σ is an oracle's; otherwise it is the rows' own Parzen density.
        n_draws: noisy rows.
        j_ism: E[½‖ψ‖² + div ψ], 1/unit².
        j_esm: E ½‖ψ − ∇log p_σ‖², 1/unit².
        j_dsm: E ½‖ψ − ∇log k(x_t | x)‖², 1/unit².
        j_dae: E ‖D(x_t) − x‖², unit².
        half_fisher: ½I(q) = D/(2sigma²).
        constant: C = −E ½‖∇log p_σ − ∇log k(x_t | x)‖² <= 0: minus the floor, the true score's own J_DSM.
        factor: 2sigma⁴/alpha².
        ism_residual: J_DSM − J_ISM − ½I(q).
        esm_residual: J_ESM − J_DSM − C.
        dae_residual: the largest |J_DAE/factor − J_DSM| of a draw, as a share of the mean J_DSM: what D and ψ of the
            model differ by.
        dae_rounding: how much of it may be rounding.
    """

    kernel: Kernel
    n_rows: int
    exact: bool
    n_draws: int
    j_ism: Estimate
    j_esm: Estimate
    j_dsm: Estimate
    j_dae: Estimate
    half_fisher: float
    constant: Estimate
    factor: float
    ism_residual: Estimate
    esm_residual: Estimate
    dae_residual: float
    dae_rounding: float

    @property
    def holds(self) -> bool:
        """Whether two residuals are within 4 standard errors of 0, and the third is rounding."""
        z = max(abs(self.ism_residual.z), abs(self.esm_residual.z))
        return z <= Z_THRESHOLD and self.dae_residual <= self.dae_rounding

    def __str__(self) -> str:
        rows = [
            ("J_DAE", f"{self.j_dae}", "E‖D(x_t) − x‖², the reconstruction error, in unit²"),
            ("J_DSM", f"{self.j_dsm}", f"J_DAE / {self.factor:.4g}, to {self.dae_residual:.1g} for each draw; 1/unit²"),
            ("J_ISM", f"{self.j_ism}", f"J_DSM − ½I(q), ½I(q) = {self.half_fisher:.6g}; {_found(self.ism_residual)}"),
            ("J_ESM", f"{self.j_esm}", f"J_DSM + C, C = {self.constant}; {_found(self.esm_residual)}"),
        ]
        wide = max(len(value) for _, value, _ in rows)
        verdict = "holds" if self.holds else "FAILS"
        law = "the exact law" if self.exact else f"the Parzen density of these {self.n_rows:,} rows"
        head = f"the chain of objectives {verdict} at {self.kernel!r}, on {self.n_draws:,} draws, against {law}:"
        lines = [head, *(f"  {name}  {value:<{wide}}  {text}" for name, value, text in rows)]
        if -self.constant.value < _KNOWN * self.half_fisher and not self.exact:
            lines.append("  C is all but 0: each draw shows its own row, and J_ESM is against a score that knows it")
        return "\n".join(lines)


def _found(residual: Estimate) -> str:
    return f"off by {residual} (z = {residual.z:.2f})"


def chain(
    model: ScoreModel,
    x: Batch,
    kernel: Kernel,
    *,
    oracle: Oracle | None = None,
    n_draws: int = 4096,
    generator: torch.Generator | None = None,
) -> Chain:
    """Evaluate J_ISM, J_ESM, J_DSM and J_DAE of a model at one level, and the constants between them.

    The law is that of the rows, as in the paper: p_σ is their Parzen density, and C and J_ESM are against its score.
    They hold for every model, trained or not. Up to 100 coordinates the divergence in J_ISM is exact, above it is by
    four random projections, whose variance is in the standard errors.

    Args:
        model: any score model ψ that autograd can follow.
        x: rows, ``(B, *event)``, all that the law consists of.
        kernel: the convolution, Gaussian, with one level.
        oracle: the exact law that the rows are draws of, in the place of their own.
        n_draws: noisy rows; fewer rows are repeated, of more a random part is drawn.
        generator: source of the draws.

    Raises:
        InputError: x not a finite batch of 2 rows at least, a kernel that is not isotropic Gaussian with alpha > 0 or
            has a level a row, or a score that is not finite or has no gradient.

    Reference: Vincent (2011), "A connection between score matching and denoising autoencoders", section 4.3.
    """
    require_model(model)
    x, (kernel,) = as_rows(x, "x"), as_kernels(kernel)
    if gaussian_form(kernel, x, "chain").kind != "isotropic" or not bool(kernel.alpha > 0):
        raise InputError(f"kernel: got {kernel!r}, want isotropic Gaussian noise with alpha > 0")
    exact = oracle is not None
    oracle = Empirical(x) if oracle is None else oracle
    rows = _drawn(x, as_count(n_draws, "n_draws", each=x[0].nbytes), generator)
    score_at(model, rows[:2] * kernel.alpha.to(rows), kernel)
    half = half_fisher_of(kernel, rows).item()
    few = event_size(tuple(x.shape[1:])) <= _EXACT_DIVERGENCE_UP_TO
    ism: Objective = ImplicitScoreMatching() if few else SlicedScoreMatching(n_projections=4)
    terms: list[Objective] = [
        ism, ExplicitScoreMatching(oracle), DenoisingScoreMatching(), ReconstructionError(), _floor_of(oracle)
    ]  # fmt: skip
    draws = on_the_same_draws(terms, model, rows, kernel, generator)
    if exact:  # draws of one row are not independent draws of the law
        draws = [v.reshape(-1, len(x)).mean(0) if len(v) > len(x) else v for v in draws]
    j_ism, j_esm, j_dsm, j_dae, floor = draws
    factor, error = 2 * (kernel.sigma**4 / kernel.alpha**2).item(), rounding_of(rows, j_dsm)
    return Chain(
        kernel=kernel,
        n_rows=len(x),
        exact=exact,
        n_draws=len(rows),
        **{name: Estimate.mean_of(v) for name, v in (("j_ism", j_ism), ("j_esm", j_esm), ("j_dsm", j_dsm))},
        j_dae=Estimate.mean_of(j_dae),
        half_fisher=half,
        constant=Estimate.mean_of(-floor),
        factor=factor,
        ism_residual=Estimate.mean_of(j_dsm - j_ism - half, error),
        esm_residual=Estimate.mean_of(j_esm - j_dsm + floor, error),
        dae_residual=((j_dae / factor - j_dsm).abs().max() / j_dsm.mean().clamp_min(_TINY)).item(),
        dae_rounding=_ROUNDING * torch.finfo(rows.dtype).eps * (1 + (rows.abs().max() / kernel.sigma).item()),
    )


def _floor_of(oracle: ScoreModel) -> Objective:
    """The denoising loss of the oracle, whatever the model: the floor, whose mean is −C."""

    def floor(model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None = None) -> Rows:  # noqa: ARG001
        return DenoisingScoreMatching()(oracle, x, kernel, generator)

    return floor


def _drawn(x: Batch, n: int, generator: torch.Generator | None) -> Tensor:
    """So many rows: each as often as any other, or a random part of them."""
    device = x.device if generator is None else generator.device
    order = torch.randperm(len(x), generator=generator, device=device).to(x.device)
    return x[order[:n]] if n < len(x) else x[order.repeat(math.ceil(n / len(x)))]
