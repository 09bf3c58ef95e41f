"""The law of the clean datum given the noisy one, to second order: Tweedie's formula and its derivative."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradlogp._shapes import Batch, InputError, per_row
from gradlogp.kernels import GaussianForm, Kernel
from gradlogp.models.base import ScoreModel, gaussian_form
from gradlogp.models.jacobian import diagonal, linearise, matrix


@dataclass(frozen=True)
class Posterior:
    """Mean and variance of x given x_t, by a model.

    Attributes:
        mean: E[x | x_t], ``(B, *event)``.
        variance: Var[x_j | x_t] of each coordinate, like the mean, in the data's unit squared. That of a true score is
            never negative; where a learnt one's is, the model is wrong there.
    """

    mean: Batch
    variance: Batch

    @property
    def std(self) -> Batch:
        """Standard deviations, in the data's unit; NaN where the variance is negative, and so not known."""
        return self.variance.sqrt()


def posterior(model: ScoreModel, x_t: Batch, kernel: Kernel) -> Posterior:
    """E[x | x_t] and the variance of each coordinate, the diagonal of :func:`posterior_covariance`; memory B·D.

    Args:
        model: any score model that autograd can follow.
        x_t: noisy rows, ``(B, *event)``.
        kernel: the noise in them, Gaussian; one level or one a row. D products with the Jacobian of the denoiser.

    Raises:
        InputError: noise that is not Gaussian, alpha = 0, or a model that autograd cannot follow.
    """
    form = _form(kernel, x_t)
    if form.kind == "full":
        mean, covariance = posterior_covariance(model, x_t, kernel)
        return Posterior(mean, covariance.diagonal(dim1=1, dim2=2).reshape(x_t.shape))
    mean, products = linearise(model.denoise, x_t, kernel, name=f"{type(model).__name__}.denoise")
    k = per_row(form.covariance, x_t) if form.kind == "isotropic" else form.covariance.to(x_t).reshape(x_t.shape[1:])
    return Posterior(mean.detach(), diagonal(mean, products) * k / per_row(form.alpha, x_t))


def posterior_covariance(model: ScoreModel, x_t: Batch, kernel: Kernel) -> tuple[Batch, Tensor]:
    """E[x | x_t], like x_t, and Cov[x | x_t] over the flattened event, ``(B, D, D)``, in the data's unit squared.

        Cov[x | x_t] = (K + K ∇²log p_σ(x_t) K)/alpha² = ∇D(x_t) K/alpha,    D(x_t) = E[x | x_t],    noise N(·, K)

    which is sigma²(I + sigma²∇²log p_σ) for x + sigma·z. That of a true score is symmetric and positive semi-definite;
    a free-form network's is made symmetric, (C + Cᵀ)/2, and may have eigenvalues below 0 where it is wrong.

    Args:
        model: any score model that autograd can follow.
        x_t: noisy rows, ``(B, *event)``.
        kernel: the noise in them, Gaussian; one level or one a row.

    Raises:
        InputError: noise that is not Gaussian, alpha = 0, or a model that autograd cannot follow.

    Reference: Efron (2011), "Tweedie's formula and selection bias", equation 2.8; Miyasawa (1961) for the mean.
    """
    form = _form(kernel, x_t)
    mean, products = linearise(model.denoise, x_t, kernel, name=f"{type(model).__name__}.denoise")
    j = matrix(mean, products)
    if form.kind == "isotropic":
        c = j * form.covariance.to(j).reshape(-1, 1, 1)
    else:
        k = form.covariance.to(j)
        c = j * k.flatten() if form.kind == "diagonal" else j @ k
    c = c / form.alpha.to(j).reshape(-1, 1, 1)
    return mean.detach(), 0.5 * (c + c.mT)


def _form(kernel: Kernel, x_t: Batch) -> GaussianForm:
    form = gaussian_form(kernel, x_t, "posterior")
    if bool((form.alpha == 0).any()):
        raise InputError("posterior: alpha is 0, so x_t says nothing about x; want alpha > 0")
    return form
