"""Training with noise of any law: one kernel, seen at a level of each row's own."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, Level, Rows, as_level, at_rows, event_size, per_row, same_batch
from gradlogp.kernels import Gaussian, GaussianForm, Kernel
from gradlogp.models import isotropic

_PROBES = (1 / 16, 16.0)  # scales at which a family must be a scale family; times a power of two nothing is rounded
_N_PROBES = 64


class Scaled(Kernel):
    """x_t = x + s·n, n ~ q, for a law q and a scale s of each row's own: k(x_t | x) = q((x_t − x)/s)/s^D.

    Its score is ∇log q at (x_t − x)/s, over s; its Fisher information that of q over s².

    Args:
        kernel: x + n at scale 1, with alpha = 1 and one level.
        scale: s > 0, a number or one a row, ``(B,)``.

    Raises:
        InputError: a scale that is not finite and positive.
    """

    def __init__(self, kernel: Kernel, scale: Level) -> None:
        self.kernel, self.scale = kernel, as_level(scale, "scale")
        self.alpha = torch.ones((), dtype=torch.float64)
        self.sigma = self.scale * kernel.sigma.to(self.scale)
        self.symmetric = kernel.symmetric

    def __repr__(self) -> str:
        return f"Scaled({self.kernel!r})"

    def sample(self, x: Batch, *, generator: torch.Generator | None = None) -> Batch:
        """x + s·n."""
        n = self.kernel.sample(torch.zeros_like(x), generator=generator)
        return x + per_row(self.scale, x) * n

    def log_prob(self, x_t: Batch, x: Batch) -> Rows:
        """log q((x_t − x)/s) − D log s, ``(B,)``, in nats."""
        n = self._noise(x_t, x)
        return self.kernel.log_prob(n, torch.zeros_like(n)) - event_size(tuple(x.shape[1:])) * self.scale.log().to(n)

    def score(self, x_t: Batch, x: Batch) -> Batch:
        """∇log q((x_t − x)/s)/s."""
        n = self._noise(x_t, x)
        return self.kernel.score(n, torch.zeros_like(n)) / per_row(self.scale, n)

    def fisher_information(self, event_shape: tuple[int, ...]) -> Level:
        """I(q)/s²."""
        return self.kernel.fisher_information(event_shape).to(self.scale) / self.scale**2

    def fisher_information_error(self, event_shape: tuple[int, ...]) -> Level:
        """That of q, over s²."""
        return self.kernel.fisher_information_error(event_shape).to(self.scale) / self.scale**2

    def rows(self, index: Tensor) -> Scaled:
        """The kernel of some rows of the batch."""
        some = copy.copy(self)
        some.scale, some.sigma = at_rows(self.scale, index), at_rows(self.sigma, index)
        return some

    def gaussian_form(self, event_shape: tuple[int, ...]) -> GaussianForm | None:  # noqa: ARG002
        """None: not used for Gaussian noise."""
        return None

    def _noise(self, x_t: Batch, x: Batch) -> Batch:
        same_batch(x_t, x)
        return (x_t - x) / per_row(self.scale, x)


def at_levels(noise: Callable[[float], Kernel] | None, event_shape: tuple[int, ...]) -> Callable[[Level], Kernel]:
    """sigma -> kernel for a level of each row's own, ``(B,)``, sigma being the kernel's Fisher scale.

    Args:
        noise: scale -> kernel, a scale family: s times the noise of ``noise(1.0)``; None, or isotropic Gaussian noise,
            is :class:`gradlogp.kernels.Gaussian`.
        event_shape: of the data.

    Raises:
        InputError: a family that is not one of kernels x + n, or no scale family.
    """
    if noise is None:
        return Gaussian
    unit = noise(1.0)
    if not isinstance(unit, Kernel) or unit.sigma.ndim or bool((unit.alpha != 1).any()):
        got = " ".join(repr(unit).split())[:80]
        raise InputError(
            f"noise: got {got} at scale 1, want a kernel of one level, alpha = 1, such as kernels.Additive"
        )
    if isotropic(unit, event_shape):
        return Gaussian
    _require_scale_family(noise, unit, event_shape)

    def kernel(sigma: Level) -> Kernel:
        return Scaled(unit, sigma / unit.sigma.to(sigma))

    return kernel


def _require_scale_family(noise: Callable[[float], Kernel], unit: Kernel, event_shape: tuple[int, ...]) -> None:
    """noise(s) must have the density of s·n, n the noise at scale 1, at draws of it."""
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(_N_PROBES, *event_shape, dtype=torch.float64)
    for s in _PROBES:
        want = Scaled(unit, torch.tensor(s, dtype=torch.float64))
        x_t = want.sample(x, generator=g)
        if not torch.allclose(noise(s).log_prob(x_t, x), want.log_prob(x_t, x), rtol=1e-4, atol=1e-4):
            raise InputError(
                f"noise: got {unit!r}, which at scale {s:g} is not {s:g} times that at scale 1; want a scale family"
            )


class PairGroup:
    """Rows that are the references of each other's noisy rows, for any kernel: stable targets, what each has part in.

    With q noisy rows a row, weights w_ij and targets t_ij = ∇log k(x_t,i | x_j), T_i = Σ_j w_ij t_ij.

    Args:
        x: rows, ``(M, *event)``.
        x_t: their noisy rows, ``(qM, *event)``.
        kernel: of the noisy rows.
        weight: λ of the noisy rows.
    """

    def __init__(self, x: Tensor, x_t: Tensor, kernel: Kernel, weight: Tensor) -> None:
        b, m = len(x_t), len(x)
        pair = torch.arange(b, device=x.device).repeat_interleave(m)
        at, of, each = x_t[pair].double(), x.repeat(b, *(1,) * (x.ndim - 1)).double(), kernel.rows(pair)
        self.w = torch.softmax(each.log_prob(at, of).reshape(b, m), dim=1)
        t = each.score(at, of).reshape(b, m, -1)
        mean = (self.w[:, None] @ t).squeeze(1)
        self.deviation, self.weight = t - mean[:, None], weight.double()[:, None]
        self.target = mean.reshape(x_t.shape).to(x_t.dtype)

    def left(self, psi: Tensor) -> tuple[Tensor, Tensor]:
        """λ½‖ψ − T‖² of each noisy row, and −Σ_i w_ij λ_i⟨ψ_i − T_i, t_ij − T_i⟩/q of each row."""
        error = (psi - self.target).flatten(1).double()
        dots = (self.deviation @ error[:, :, None]).squeeze(2)
        return 0.5 * self.weight[:, 0] * error.square().sum(1), -self._gathered(self.weight * dots)

    def floor(self) -> tuple[Tensor, Tensor]:
        """λ½ Σ_j w_ij‖t_ij − T_i‖² of each noisy row, and the part of each row as a reference."""
        squares = self.deviation.square().sum(2)
        each = 0.5 * self.weight * (self.w * squares).sum(1, keepdim=True)
        return each[:, 0], self._gathered(0.5 * self.weight * squares - each)

    def _gathered(self, v: Tensor) -> Tensor:
        """Σ_i w_ij v_ij over the noisy rows, per noisy row a row: ``(qM, M) -> (M,)``."""
        return (self.w * v).sum(0) * (self.w.shape[1] / self.w.shape[0])
