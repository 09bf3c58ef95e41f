"""The divergence between two learnt laws, from denoising errors."""

from __future__ import annotations

import torch

from gradlogp._shapes import Batch, InputError, Rows, as_batch, as_count, same_event
from gradlogp.diagnostics.estimates import Estimate
from gradlogp.likelihood.entropy import N_DRAWS, mean_of_rows
from gradlogp.likelihood.information import Denoise, Pair, denoiser, gaussian_denoiser, gaussian_log_loss, levels_for
from gradlogp.models import GaussianReference, ScoreModel
from gradlogp.samplers.starts import seed_from


def kl_divergence(
    model_p: ScoreModel,
    model_q: ScoreModel,
    x_p: Batch,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    n_draws: int = N_DRAWS,
    generator: torch.Generator | None = None,
) -> Estimate:
    """KL(p_{s₀} ‖ q_{s₀}) = E_p log(p_{s₀}/q_{s₀}), in nats, of two laws seen through noise s₀, from rows of p.

    With D_p, D_q the denoisers and G_p, G_q the references of the models,

        ∫_{s₀}^{s₁} s⁻³ E_p[‖x − D_q(x_s)‖² − ‖x − D_p(x_s)‖²] ds + E_p log(G_p/G_q) at s₁,

    both denoisers on the same x_s: the constant of the denoising loss cancels, and with it most of the variance. The
    last term is closed-form at each row; its mean is KL(G_p ‖ G_q) where G_p has p's moments. What is neglected, the
    difference from Gaussians above s₁, is O(s₁⁻⁶); its size goes into the standard error. With models that are not
    exact the value is KL plus the error of D_q, a cross term if q is not exact, less the error of D_p: no bound.

    Args:
        model_p: a score model for Gaussian noise, of the law of the rows.
        model_q: another, of the law to compare with.
        x_p: independent clean rows of p that neither model was trained on, ``(N, *event)``, at least 2.
        sigma_min: s₀, in the data's unit; by default 0.002 of the smaller of the two data scales. KL(p_s ‖ q_s) falls
            with s, so that this is at most KL(p ‖ q).
        sigma_max: s₁; by default 10 times the largest spread, of either reference or of the rows about its mean.
        n_draws: levels a row, one call of each model for each.
        generator: source of the draws; None is torch's own.

    Raises:
        InputError: rows, counts or levels that cannot be used, a model for other noise or rows, or one that knows no
            reference.

    Reference: Guo, Shamai and Verdú (2005); Verdú (2010), "Mismatched estimation and relative entropy".
    """
    x = as_batch(x_p, "x_p")
    g_p, g_q = known_reference(model_p, "model_p"), known_reference(model_q, "model_q")
    for reference in (g_p, g_q):
        same_event(x, reference.event_shape, "x_p")
    high, low = levels_for((g_p, g_q), x, sigma_min, sigma_max)
    d_p, d_q = denoiser(model_p, x, "model_p"), denoiser(model_q, x, "model_q")
    n = as_count(n_draws, "n_draws", each=8)
    g = torch.Generator(x.device).manual_seed(seed_from(generator))
    pair = Pair(d_q, d_p)
    integral = pair.integral(x, pair.pilot(x, low, high, g), (1, n), g)[:, 0]
    at_top = gaussian_log_loss(g_q, x, high) - gaussian_log_loss(g_p, x, high)
    return mean_of_rows(integral + at_top, _neglected((d_p, d_q), (g_p, g_q), x, high, g))


def _neglected(
    models: tuple[Denoise, Denoise],
    references: tuple[GaussianReference, GaussianReference],
    x: Batch,
    sigma_max: float,
    generator: torch.Generator,
) -> Rows:
    """What the two models differ by from their Gaussians at sigma_max, on the same noise, one for the other."""
    state, each = generator.get_state(), []
    for d, reference in zip(models, references, strict=True):
        generator.set_state(state)
        each.append(Pair(d, gaussian_denoiser(reference)).above(x, sigma_max, 1, generator)[:, 0])
    return each[1] - each[0]


def known_reference(model: ScoreModel, name: str) -> GaussianReference:
    """The model's reference, or an error."""
    if model.reference is None:
        raise InputError(f"{name}: got a model that knows no mean and covariance, want one with a reference")
    return model.reference
