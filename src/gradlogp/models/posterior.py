"""The law of the clean datum given the noisy one, to second order: Tweedie's formula and its derivative."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Rows, as_batch, event_size
from gradlogp.kernels import GaussianForm, Kernel
from gradlogp.kernels.base import require_levels
from gradlogp.models.base import ScoreModel, gaussian_form, require_model
from gradlogp.models.jacobian import linearise, matrix

_WORKSPACE = 2**24  # numbers of the matrices of a slice of rows


@dataclass(frozen=True, repr=False)
class Posterior:
    """Mean and spread of the clean datum x given x_t, by a model.

    Attributes:
        mean: E[x | x_t], ``(B, *event)``, in the data's unit.
        std: standard deviation of each coordinate given x_t, like the mean.
        removed: what was negative in the model's own covariance, as a share of the sum of its eigenvalues' sizes,
            ``(B,)``: 0 for a true score.
    """

    mean: Batch
    std: Batch
    removed: Rows

    def __repr__(self) -> str:
        std = self.std.flatten()
        spread = f"std {std.min().item():.3g} to {std.max().item():.3g}, median {std.median().item():.3g}"
        return f"Posterior of {len(self.mean)} rows: {spread}; removed {self.removed.max().item():.1%} at most"


def posterior(model: ScoreModel, x_t: Batch, kernel: Kernel) -> Posterior:
    """E[x | x_t] and the standard deviation of each coordinate: :func:`posterior_covariance`, a few rows at a time.

    Args:
        model: any score model that autograd can follow.
        x_t: noisy rows, ``(B, *event)``, D coordinates. D products with the Jacobian of the denoiser, and the
            eigenvalues of a D × D matrix a row.
        kernel: the noise in them, Gaussian; one level or one a row.

    Raises:
        InputError: noise that is not Gaussian, alpha = 0, or a model that autograd cannot follow.
    """
    require_model(model)
    x_t = as_batch(x_t, "x_t")
    require_levels(kernel, x_t)
    size = max(1, _WORKSPACE // event_size(tuple(x_t.shape[1:])) ** 2)
    parts = [_of_rows(model, x_t[i], kernel.rows(i)) for i in torch.arange(len(x_t), device=x_t.device).split(size)]
    return Posterior(*(torch.cat([getattr(p, name) for p in parts]) for name in ("mean", "std", "removed")))


def posterior_covariance(model: ScoreModel, x_t: Batch, kernel: Kernel) -> tuple[Tensor, Rows]:
    """Cov[x | x_t] over the flattened event, ``(B, D, D)``, in the data's unit squared, and what was removed from it.

        Cov[x | x_t] = (K + K ∇²log p_σ(x_t) K)/alpha² = ∇D(x_t) K/alpha,    D(x_t) = E[x | x_t],    noise N(·, K)

    which is sigma²(I + sigma²∇²log p_σ) for x + sigma·z. That of a true score is symmetric and positive semi-definite;
    a learnt one's need not be, and where little is left unknown its small eigenvalues are noise of either sign. What is
    returned is the nearest covariance in Frobenius norm: symmetric part, eigenvalues below 0 set to 0 (Higham 1988,
    theorem 2.1). The share removed says how far the model was from one.

    Args:
        model: any score model that autograd can follow.
        x_t: noisy rows, ``(B, *event)``.
        kernel: the noise in them, Gaussian; one level or one a row.

    Returns:
        The covariances, ``(B, D, D)``, and Σ|λ_i < 0|/Σ|λ_i| of each row, ``(B,)``.

    Raises:
        InputError: noise that is not Gaussian, alpha = 0, or a model that autograd cannot follow.

    Reference: Efron (2011), "Tweedie's formula and selection bias", section 2; Miyasawa (1961) for the mean.
    """
    require_model(model)
    x_t = as_batch(x_t, "x_t")
    c, removed = _nearest(_covariance(model, x_t, kernel)[1])
    return c.to(x_t.dtype), removed.to(x_t.dtype)


def _of_rows(model: ScoreModel, x_t: Batch, kernel: Kernel) -> Posterior:
    mean, c = _covariance(model, x_t, kernel)
    c, removed = _nearest(c)
    std = c.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt().reshape(x_t.shape)
    return Posterior(mean.detach(), std.to(x_t.dtype), removed.to(x_t.dtype))


def _covariance(model: ScoreModel, x_t: Batch, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """The mean, and ∇D K/alpha made symmetric."""
    form = _form(kernel, x_t)
    mean, products = linearise(model.denoise, x_t, kernel, name=f"{type(model).__name__}.denoise")
    j = matrix(mean, products).double()
    c = _times(j, form) / form.alpha.to(j).reshape(-1, 1, 1)
    return mean, 0.5 * (c + c.mT)


def _times(j: Tensor, form: GaussianForm) -> Tensor:
    """JK of each row."""
    k = form.covariance.to(j)
    if form.kind == "full":
        return j @ k
    return j * (k.flatten() if form.kind == "diagonal" else k.reshape(-1, 1, 1))


def _nearest(c: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest positive semi-definite matrices, and the share of the eigenvalues' sizes that was negative."""
    eigenvalues, vectors = torch.linalg.eigh(c)
    negative = eigenvalues.clamp_max(0)
    removed = negative.abs().sum(1) / eigenvalues.abs().sum(1).clamp_min(torch.finfo(c.dtype).tiny)
    return c - (vectors * negative[:, None]) @ vectors.mT, removed


def _form(kernel: Kernel, x_t: Batch) -> GaussianForm:
    form = gaussian_form(kernel, x_t, "posterior")
    if bool((form.alpha == 0).any()):
        raise InputError("posterior: alpha is 0, so x_t says nothing about x; want alpha > 0")
    return form
