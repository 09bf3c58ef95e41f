"""What a kernel is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Level, Rows, per_row


@dataclass(frozen=True)
class GaussianForm:
    """A Gaussian kernel written out: x_t = alpha·x + shift + n, n ~ N(0, K).

    Attributes:
        alpha: scalar, or one value a row where K is isotropic.
        shift: mean of the noise, broadcast over the event.
        covariance: K as a scalar or ``(B,)`` (times the identity), ``(D,)`` (diagonal) or ``(D, D)``; which of
            them is said by ``kind``: ``"isotropic"``, ``"diagonal"`` or ``"full"``.
        kind: the structure of K.
    """

    alpha: Tensor
    shift: Tensor
    covariance: Tensor
    kind: str


def require_kernel(kernel: object) -> None:
    """Check that a kernel is one, not its level."""
    if not isinstance(kernel, Kernel):
        raise InputError(
            f"kernel: got {' '.join(repr(kernel).split())[:80]}, want a kernel, e.g. kernels.Gaussian(0.5)"
        )


def require_levels(kernel: Kernel, x: Batch) -> None:
    """Check that a kernel's levels are scalars, or as many as there are rows."""
    require_kernel(kernel)
    per_row(kernel.alpha, x)
    per_row(kernel.sigma, x)


class Kernel(ABC):
    """One convolution: the law k(x_t | x) of the noisy x_t given clean x, per row of a batch ``(B, *event)``.

    Attributes:
        alpha: the mean of x_t is alpha·x (plus a constant); a scalar or ``(B,)``.
        sigma: the noise scale, a scalar or ``(B,)``: the standard deviation of the Gaussian that has the same
            Fisher information. For a Gaussian kernel it is its standard deviation.
        symmetric: whether the noise n and −n have the same law, so that antithetic pairs are allowed.
    """

    alpha: Level
    sigma: Level
    symmetric: bool

    @abstractmethod
    def sample(self, x: Batch, *, generator: torch.Generator | None = None) -> Batch:
        """Draw x_t ~ k(· | x), one for each row of x."""

    @abstractmethod
    def log_prob(self, x_t: Batch, x: Batch) -> Rows:
        """log k(x_t | x) of each row, in nats, normalised."""

    @abstractmethod
    def score(self, x_t: Batch, x: Batch) -> Batch:
        """∇_{x_t} log k(x_t | x): the target of denoising score matching (Vincent 2011)."""

    @abstractmethod
    def fisher_information(self, event_shape: tuple[int, ...]) -> Level:
        """I(q) = E‖∇_{x_t} log k(x_t | x)‖², summed over the event; a scalar or one value a row."""

    @abstractmethod
    def fisher_information_error(self, event_shape: tuple[int, ...]) -> Level:
        """The numerical error of :meth:`fisher_information`: 0 where it is a closed form."""

    @abstractmethod
    def rows(self, index: Tensor) -> Kernel:
        """The kernel of some rows of the batch, in the order of ``index``."""

    @abstractmethod
    def gaussian_form(self, event_shape: tuple[int, ...]) -> GaussianForm | None:
        """The kernel as x_t = alpha·x + shift + N(0, K), or None if it is not Gaussian."""

    def reflect(self, x_t: Batch, x: Batch) -> Batch:
        """The antithetic draw 2·alpha·x − x_t, that is −n for n.

        Raises:
            InputError: the noise is not symmetric.
        """
        if not self.symmetric:
            raise InputError(
                f"{self!r}: antithetic pairs need noise with n and -n equally likely, and this is not symmetric"
            )
        return 2 * per_row(self.alpha, x) * x - x_t
