"""Log-density, entropy and cross-entropy from denoising errors against a Gaussian's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch, Rows, as_batch, as_count, same_event
from gradlogp.diagnostics.estimates import Estimate
from gradlogp.likelihood.information import (
    Levels,
    Pair,
    denoiser,
    gaussian_denoiser,
    gaussian_log_loss,
    levels_for,
    reference_of,
)
from gradlogp.models import GaussianReference, ScoreModel
from gradlogp.samplers.starts import ends, seed_from

N_DRAWS = 16  # levels a row where rows are averaged
N_REPLICATES = 16  # of levels a row where each row has a standard error


@dataclass(frozen=True)
class DenoisingLogProb:
    """A log-density of each row from denoising errors.

    Attributes:
        value: in nats, ``(B,)``.
        stderr: its standard error from the draws and from what is neglected above sigma_max, ``(B,)``.
    """

    value: Rows
    stderr: Rows


def denoising_log_prob(
    model: ScoreModel,
    x: Batch,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    n_draws: int = 32,
    n_replicates: int = N_REPLICATES,
    generator: torch.Generator | None = None,
) -> DenoisingLogProb:
    """The log-density of each clean row from the model's denoising errors on noisy copies of it.

    With G = N(μ, Σ) the model's reference, D_G its denoiser, x_s = x + s·z, s₀ and s₁ the smallest and largest level:

        value(x) = E_z[log N(x_{s₀}; μ, Σ + s₀²I)] + ∫_{s₀}^{s₁} s⁻³ E_z[‖x − D_G(x_s)‖² − ‖x − D(x_s)‖²] ds.

    * D exact for a density q: value(x) = E_z[log q_{s₀}(x + s₀·z)], q_s = q ∗ N(0, s²I), but for
      E_z[log q_{s₁}/G_{s₁}], which is neglected and estimated in ``stderr``. As s₀ → 0 that is log q(x); at any s₀ it
      is at most log q_{√2·s₀}(x) (Jensen).
    * Any D: value(x) ≤ E_z[log r_{s₀}(x + s₀·z)], where r is the density at s₀ of the reverse SDE that has the model's
      score and starts from G at s₁. It is a lower bound of a proper log-density (of the SDE's, not of the probability
      flow's), and its mean over rows is that of :func:`cross_entropy`.

    Args:
        model: a score model for Gaussian noise.
        x: clean rows, ``(B, *event)``; the model is called in their dtype.
        sigma_min: s₀, in the data's unit; by default 0.002 of the data's scale. A trained model is only good down to
            the smallest level that it was trained on.
        sigma_max: s₁; by default 10 standard deviations of the data's widest direction.
        n_draws: levels a replicate, one call of the model each.
        n_replicates: independent replicates that the standard error is measured on, at least 2.
        generator: source of the draws; None is torch's own.

    Raises:
        InputError: rows, counts or levels that cannot be used, or a model for other noise or rows.

    Reference: Kong, Brekelmans and Ver Steeg (2023), "Information-theoretic diffusion"; for the bound Song,
    Durkan, Murray and Ermon (2021), "Maximum likelihood training of score-based diffusion models", theorem 3.
    """
    x = as_batch(x)
    n = as_count(n_replicates, "n_replicates", least=2, each=8 * len(x))  # for a standard error
    reference = reference_of(model, x)
    high, low = ends(reference, sigma_max, sigma_min)
    path, levels, g = _prepared(model, reference, x, (low, high), generator)
    replicates = path.integral(x, levels, (n, as_count(n_draws, "n_draws", each=8)), g)
    above = path.above(x, high, n, g)
    value = -gaussian_log_loss(reference, x, low) - replicates.mean(1)
    parts = (_stderr(replicates), above.mean(1), _stderr(above))
    stderr = torch.stack(parts).square().sum(0).sqrt()
    return DenoisingLogProb(value.to(x.dtype), stderr.to(x.dtype))


def cross_entropy(
    model: ScoreModel,
    x: Batch,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    n_draws: int = N_DRAWS,
    generator: torch.Generator | None = None,
) -> Estimate:
    """−E_p log q_{s₀}, in nats, from rows x ~ p and the denoiser D of a model of q; both seen through noise s₀.

    With G = N(μ, Σ) the model's reference and D_G its denoiser,

        E_p[−log G_{s₀}] − ∫_{s₀}^{s₁} s⁻³ E[‖x − D_G(x_s)‖² − ‖x − D(x_s)‖²] ds,

    the first term being the Gaussian's exact cross-entropy, ½ Σ_i [log 2π(λ_i + s₀²) + (y_i² + s₀²)/(λ_i + s₀²)] of
    each row. For an exact D it is the cross-entropy, but for E_p[log G_{s₁}/q_{s₁}], which is O(s₁⁻⁶) where G has q's
    moments; it is neglected, and its size, half of the integrand in log s at s₁, goes into the standard error.
    For **any** D it is an upper bound of −E_p log r_{s₀}, r the density of the reverse SDE that has the model's score
    and starts from G at s₁; and so of the entropy of p_{s₀}.

    Rows' draws are averaged first: the standard error is that of independent rows; 1.96 of them cover 95 % from about
    200 rows on, less of fewer: see :class:`~gradlogp.diagnostics.Estimate`. Give rows that the model was not
    trained on: on its own a model that has memorised is too good, and the value too low.

    Args:
        model: a score model for Gaussian noise; if it knows no reference, G is the Gaussian of the rows.
        x: independent clean rows, ``(N, *event)``, at least 2; the model is called in their dtype.
        sigma_min: s₀, in the data's unit; by default 0.002 of the data's scale. A trained model is only good down to
            the smallest level that it was trained on.
        sigma_max: s₁; by default 10 times the spread of the reference or of the rows about its mean, the larger.
        n_draws: levels a row, one call of the model each.
        generator: source of the draws; None is torch's own.

    Raises:
        InputError: rows, counts or levels that cannot be used, or a model for other noise or rows.

    Reference: as :func:`denoising_log_prob`.
    """
    x = as_batch(x)
    reference = reference_of(model, x)
    same_event(x, reference.event_shape)
    high, low = levels_for((reference,), x, sigma_min, sigma_max)
    path, levels, g = _prepared(model, reference, x, (low, high), generator)
    rows = (
        gaussian_log_loss(reference, x, low)
        + path.integral(x, levels, (1, as_count(n_draws, "n_draws", each=8)), g)[:, 0]
    )
    return mean_of_rows(rows, path.above(x, high, 1, g)[:, 0])


def entropy(
    model: ScoreModel,
    x: Batch,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    n_draws: int = N_DRAWS,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The differential entropy h(p_{s₀}) = −E log p_{s₀}, in nats, of the law of x + s₀·z, from a model of that law.

    It is :func:`cross_entropy` of the rows with the model of their own law. For any model it is at least h(p_{s₀}), and

        entropy − h(p_{s₀}) = ∫_{s₀}^{s₁} s⁻³ E‖D(x_s) − E[x | x_s]‖² ds + KL(p_{s₁} ‖ G_{s₁}) ≥ 0:

    the model's error, and what is neglected above s₁. h(p_{s₀}) is itself ½s₀²·I(p) above h(p), to first order.

    Args:
        model: a score model for Gaussian noise, of the law of the rows.
        x: independent clean rows that the model was not trained on, ``(N, *event)``, at least 2.
        sigma_min: s₀; see :func:`cross_entropy`.
        sigma_max: s₁; see :func:`cross_entropy`.
        n_draws: levels a row, one call of the model each.
        generator: source of the draws; None is torch's own.

    Raises:
        InputError: as :func:`cross_entropy`.

    Reference: Guo, Shamai and Verdú (2005), "Mutual information and minimum mean-square error in Gaussian channels".
    """
    return cross_entropy(model, x, sigma_min=sigma_min, sigma_max=sigma_max, n_draws=n_draws, generator=generator)


def mean_of_rows(rows: Rows, above: Rows) -> Estimate:
    """The mean of rows, with what is neglected above sigma_max in the standard error."""
    tail = Estimate.mean_of(above)
    return Estimate.mean_of(rows, math.hypot(tail.value, tail.stderr))


def _prepared(
    model: ScoreModel,
    reference: GaussianReference,
    x: Batch,
    between: tuple[float, float],
    generator: torch.Generator | None,
) -> tuple[Pair, Levels, torch.Generator]:
    """The model against its reference, where to draw levels, and a source of draws where the rows are."""
    pair = Pair(denoiser(model, x, "model"), gaussian_denoiser(reference))
    g = torch.Generator(x.device).manual_seed(seed_from(generator))
    return pair, pair.pilot(x, *between, g), g


def _stderr(replicates: Tensor) -> Rows:
    return replicates.std(1) / math.sqrt(replicates.shape[1])
