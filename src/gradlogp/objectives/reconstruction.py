"""Reconstruction losses of a denoiser: the auto-encoder's side of denoising score matching."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gradlogp._shapes import Batch, InputError, Rows, squared_norm, sum_event
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel


class ReconstructionError:
    """J_DAE = ‖D(x_t) − x‖², x_t ~ k(· | x), D the model's denoiser: summed over the event, without ½.

    For every model, row by row, it is 2 sigma⁴/alpha² times the loss of :class:`DenoisingScoreMatching`:

        D = (x_t + sigma²ψ)/alpha,    D − x = (sigma²/alpha)(ψ − (alpha·x − x_t)/sigma²)

    Reference: Vincent (2011), "A connection between score matching and denoising autoencoders", section 4.
    """

    def __call__(self, model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None = None) -> Rows:
        """The loss of each row, ``(B,)``, in the data's unit squared."""
        return squared_norm(model.denoise(kernel.sample(x, generator=generator), kernel) - x)


class CrossEntropy:
    """−Σ_j [x_j log D_j(x_t) + (1 − x_j) log(1 − D_j(x_t))] for data and denoisers in [0, 1], x_t ~ k(· | x).

    Its minimiser is E[x | x_t] too, as that of every proper loss for a mean, so (alpha·D − x_t)/sigma² is a score in
    the end; its values are not those of score matching. Logarithms are cut at −100.

    Raises:
        InputError: when called, rows or a denoiser outside [0, 1].

    Reference: Vincent et al. (2010), "Stacked denoising autoencoders", section 2.2; Banerjee, Guo and Wang (2005), "On
    the optimality of conditional expectation as a Bregman predictor".
    """

    def __call__(self, model: ScoreModel, x: Batch, kernel: Kernel, generator: torch.Generator | None = None) -> Rows:
        """The loss of each row, ``(B,)``, in nats."""
        denoised = model.denoise(kernel.sample(x, generator=generator), kernel)
        for name, v in (("x", x), ("denoiser", denoised)):
            if bool(((v < 0) | (v > 1)).any()):
                raise InputError(f"cross-entropy: got {name} outside [0, 1], want data and a denoiser within")
        return sum_event(F.binary_cross_entropy(denoised, x, reduction="none"))
