"""Vincent's denoising auto-encoder: an energy whose score is its residual."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from gradlogp._shapes import (
    Batch,
    InputError,
    Rows,
    as_batch,
    as_count,
    as_number,
    dot,
    per_row,
    same_event,
    squared_norm,
)
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models.base import Denoiser
from gradlogp.models.from_denoiser import require_level


class DenoisingAutoencoder(Denoiser):
    """The denoising auto-encoder with sigmoid hidden units, as an energy-based model at one noise level σ.

        h(x) = sigmoid(Wx + b),    r(x) = Wᵀh(x) + c                               hidden code and reconstruction
        E(x) = −(1/σ²)[⟨c, x⟩ − ½‖x‖² + Σ_j softplus(⟨W_j, x⟩ + b_j)]
        ψ(x) = −∇E(x) = (r(x) − x)/σ²

    so that for x̃ = x + σz, row by row and for all parameters, ‖r(x̃) − x‖² = 2σ⁴·½‖ψ(x̃) − (x − x̃)/σ²‖²: training the
    auto-encoder is denoising score matching. σ is part of the energy: a model is right at that level of noise only.

    Args:
        W: weights, ``(hidden, D)``.
        b: hidden biases, ``(hidden,)``.
        c: visible biases, ``(*event)`` with D coordinates; their shape is that of one datum.
        sigma: σ, standard deviation of the corruption, in the data's unit.
        decoder: V, ``(D, hidden)``, in the place of Wᵀ. ψ is then no gradient: ∇ψ = (V diag(h(1 − h)) W − I)/σ² is not
            symmetric, and there is no energy.
        output: applied to the reconstruction, such as ``torch.sigmoid`` for data in [0, 1]; no energy then either.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or a σ that is not positive.

    Reference: Vincent (2011), "A connection between score matching and denoising autoencoders", sections 3 and 4.
    """

    level: Tensor

    def __init__(
        self,
        W: Tensor,
        b: Tensor,
        c: Tensor,
        sigma: float,
        *,
        decoder: Tensor | None = None,
        output: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        _check(W, b, c, decoder)
        self.register_buffer("level", torch.tensor(as_number(sigma, "sigma"), dtype=torch.float64))
        self.levels = self.sigma, self.sigma
        self.W, self.b, self.c = (nn.Parameter(v.detach().clone()) for v in (W, b, c))
        self.decoder = None if decoder is None else nn.Parameter(decoder.detach().clone())
        self.output = output
        self.event_shape = tuple(c.shape)

    @classmethod
    def of_data(
        cls,
        x: Batch,
        n_hidden: int,
        sigma: float,
        *,
        tied: bool = True,
        output: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> DenoisingAutoencoder:
        """One to be trained on data: W and V uniform within √(6/(hidden + D)), b = 0, and r(mean) = mean if linear.

        Args:
            x: rows, ``(N, *event)``.
            n_hidden: hidden units.
            sigma: the corruption.
            tied: V = Wᵀ.
            output: as of the class.
            generator: source of the weights.

        Raises:
            InputError: x no finite batch, n_hidden < 1, or a sigma that is not positive.
        """
        x = as_batch(x)
        n_hidden = as_count(n_hidden, "n_hidden", each=2 * x[0].nbytes)
        d = x[0].numel()
        bound = math.sqrt(6 / (n_hidden + d))

        def drawn(*shape: int) -> Tensor:
            u = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)
            return bound * (2 * u - 1)

        W = drawn(n_hidden, d)
        decoder = None if tied else drawn(d, n_hidden)
        c = torch.zeros_like(x[0])
        if output is None:
            mean = x.mean(0)
            c = mean - (torch.sigmoid(mean.flatten() @ W.T) @ (W if decoder is None else decoder.T)).reshape(mean.shape)
        return cls(W, x.new_zeros(n_hidden), c, sigma, decoder=decoder, output=output)

    @property
    def sigma(self) -> float:
        """σ, the corruption's standard deviation; part of the state."""
        return self.level.item()

    def extra_repr(self) -> str:
        """Sizes, corruption, and what it is not."""
        kind = "" if self.conservative else ", no energy"
        return f"hidden={len(self.W)}, event_shape={self.event_shape}, sigma={self.sigma:g}{kind}"

    def forward(self, x: Batch) -> Batch:
        """The reconstruction."""
        return self.reconstruct(x)

    @property
    def conservative(self) -> bool:
        """Whether there is an energy: tied weights, and a linear output."""
        return self.decoder is None and self.output is None

    def hidden(self, x: Batch) -> Tensor:
        """The code h(x) = sigmoid(Wx + b), ``(B, hidden)``."""
        return torch.sigmoid(self._before(x))

    def reconstruct(self, x: Batch) -> Batch:
        """r(x) = Vh(x) + c, through the output, like x."""
        same_event(x, self.event_shape)
        v = self.W if self.decoder is None else self.decoder.T
        r = (self.hidden(x) @ v).reshape(x.shape) + self.c
        return r if self.output is None else self.output(r)

    def reconstruction_error(self, x_t: Batch, x: Batch) -> Rows:
        """‖r(x_t) − x‖², ``(B,)``, in the data's unit squared: summed over the event, without ½."""
        return squared_norm(self.reconstruct(x_t) - same_event(x, self.event_shape))

    def energy(self, x: Batch, kernel: Kernel | None = None) -> Rows:
        """E(x) = −(1/σ²)[⟨c, x⟩ − ½‖x‖² + Σ_j softplus(⟨W_j, x⟩ + b_j)], ``(B,)``, in nats: −log p_σ(x) + constant.

        Raises:
            InputError: an auto-encoder without an energy, or a kernel of another level.
        """
        if not self.conservative:
            raise InputError("energy: got untied weights or an output function, want tied ones: there is no energy")
        x = self._clean(x, kernel)
        inside = dot(x, self.c.expand_as(x)) - 0.5 * squared_norm(x) + softplus(self._before(x)).sum(1)
        return -inside / self.sigma**2

    def unnormalised_log_prob(self, x_t: Batch, kernel: Kernel) -> Rows | None:
        """−E(x_t/alpha); None without an energy."""
        return -self.energy(x_t, kernel) if self.conservative else None

    def score(self, x: Batch, kernel: Kernel | None = None) -> Batch:
        """ψ(x) = (r(x) − x)/σ², in 1/unit; ψ(x_t/alpha)/alpha under x_t = alpha·x + sigma·z."""
        if kernel is None:
            return (self.reconstruct(x) - x) / self.sigma**2
        at = self._clean(x, kernel)
        return (self.reconstruct(at) - at) / (self.sigma**2 * per_row(kernel.alpha, x))

    def denoise(self, x_t: Batch, kernel: Kernel | None = None) -> Batch:
        """E[x | x_t] by the model: r(x_t/alpha)."""
        return self.reconstruct(self._clean(x_t, kernel))

    @property
    def kernel(self) -> Gaussian:
        """The corruption, x + σz."""
        return Gaussian(self.sigma)

    def _before(self, x: Batch) -> Tensor:
        flat = same_event(x, self.event_shape).flatten(1)
        return flat @ self.W.T + self.b

    def _clean(self, x_t: Batch, kernel: Kernel | None) -> Batch:
        same_event(x_t, self.event_shape, "x_t")
        if kernel is None:
            return x_t
        require_level(kernel, self.sigma, x_t, "auto-encoder")
        return x_t / per_row(kernel.alpha, x_t)


def softplus(u: Tensor) -> Tensor:
    """log(1 + e^u), whose derivative is sigmoid(u) to the last digit: torch's own is u above 20."""
    return -logsigmoid(-u)


def _check(W: Tensor, b: Tensor, c: Tensor, decoder: Tensor | None) -> None:
    """Refuse shapes that do not fit, and values that are not finite."""
    named = {"W": W, "b": b, "c": c} | ({} if decoder is None else {"decoder": decoder})
    for name, v in named.items():
        if not isinstance(v, Tensor) or not v.is_floating_point() or not bool(torch.isfinite(v).all()):
            raise InputError(f"{name}: got {type(v).__name__}, want a tensor of finite floating numbers")
    if W.ndim != 2 or c.ndim < 1 or W.shape[1] != c.numel() or b.shape != W.shape[:1] or W.numel() == 0:
        got = f"{tuple(W.shape)}, {tuple(b.shape)}, {tuple(c.shape)}"
        raise InputError(f"W, b, c: got shapes {got}, want (hidden, D), (hidden,), (*event) of D numbers")
    if decoder is not None and decoder.shape != W.T.shape:
        raise InputError(f"decoder: got shape {tuple(decoder.shape)}, want {tuple(W.T.shape)}, (D, hidden)")
