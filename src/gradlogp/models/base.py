"""What a score model is, and Tweedie's formula between its two faces."""

from __future__ import annotations

import functools
import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gradlogp._shapes import Batch, InputError, Level, Rows, per_row, require_numbers
from gradlogp.kernels import GaussianForm, Kernel
from gradlogp.kernels.base import require_kernel

if TYPE_CHECKING:
    from gradlogp.models.gaussian import GaussianReference


@runtime_checkable
class Density(Protocol):
    """What is exact: it knows the log-density itself."""

    def log_prob(self, x_t: Batch, kernel: Kernel) -> Rows:
        """Log p_σ(x_t), ``(B,)``, in nats."""
        ...


_ASKED = (
    *("score", "denoise", "unnormalised_log_prob", "log_prob", "energy"),
    *("project", "centred", "coloured", "hidden", "reconstruct", "correction"),
)


class ScoreModel(nn.Module, ABC):
    """ψ(x_t; kernel) ≈ ∇log p_σ(x_t), p_σ = p ∗ q, for a batch ``(B, *event)``; its denoiser is the same thing.

    A model computes in the dtype of its own numbers and answers in that of the rows that it is given, so that rows of
    any floating dtype can be given to a model of any: the answer is right to the coarser of the two. Rows on another
    device than the model's are an :class:`InputError`. It is so in every subclass, for whatever takes rows first.

    Attributes:
        noise: scale -> kernel, the family of noise that the model was or is to be trained with; None is Gaussian noise.
        levels: smallest and largest noise level that it was trained at; None if it is good at all.
        keeps_digits: it takes care of dtypes itself, and computes in float64.
    """

    noise: Callable[[float], Kernel] | None = None
    levels: tuple[float, float] | None = None
    keeps_digits: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in _ASKED:
            if inspect.isfunction(method := vars(cls).get(name)):
                setattr(cls, name, _in_own_dtype(method))

    def own_number(self) -> Tensor | None:
        """A number of the model's own, which says its dtype and device; None where it has none."""
        return next((v for v in itertools.chain(self.parameters(), self.buffers()) if v.is_floating_point()), None)

    @abstractmethod
    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """ψ(x_t), in 1/unit of the data, like x_t."""

    @abstractmethod
    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """E[x | x_t] by the model, like x_t (Gaussian kernels)."""

    def unnormalised_log_prob(self, x_t: Batch, kernel: Kernel) -> Rows | None:
        """log p_σ(x_t) + a constant of the kernel's, ``(B,)``, in nats; None where ψ is not known to be a gradient."""
        return self.log_prob(x_t, kernel) if isinstance(self, Density) else None

    @property
    def reference(self) -> GaussianReference | None:
        """The Gaussian that has the data's mean and covariance, where the model knows it."""
        return None


def _in_own_dtype(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a model and rows, that computes in the model's dtype and answers in that of the rows."""
    name = next(itertools.islice(inspect.signature(method).parameters, 1, None), "x_t")

    @functools.wraps(method)
    def asked(self: ScoreModel, *args: Any, **options: Any) -> Any:
        if not args and name not in options:
            return method(self, **options)  # Python's own error for an argument that is missing
        x_t, args = (args[0], args[1:]) if args else (options.pop(name), args)
        own = self.own_number()
        if not isinstance(x_t, Tensor) or not x_t.is_floating_point():
            return method(self, x_t, *args, **options)
        require_numbers(x_t, name)
        if own is not None and x_t.device != own.device:
            raise InputError(f"x_t: got rows on {x_t.device}, want them on {own.device}, where the model is")
        like_rows, same = method.__name__ in ("score", "denoise"), own is None or self.keeps_digits
        out = method(self, x_t if same or own is None else x_t.to(own.dtype), *args, **options)
        if isinstance(out, Tensor) and (like_rows or not same) and out.is_floating_point():
            out = out.to(x_t.dtype)
        return require_like(out, x_t, f"{type(self).__name__}: {method.__name__}") if like_rows else out

    return asked


def require_like(out: object, like: Tensor, what: str) -> Tensor:
    """Check what a network or a function of a user's gave: a tensor of its input's shape and dtype.

    Under autocast a dtype of fewer digits is what was asked for; it is made that of the input.

    Raises:
        InputError: something else, which torch might broadcast or promote in silence.
    """
    if not isinstance(out, Tensor):
        raise InputError(f"{what} gave a {type(out).__name__}, want a tensor like its input")
    if out.shape != like.shape:
        raise InputError(f"{what} gave shape {tuple(out.shape)}, want that of its input, {tuple(like.shape)}")
    if out.dtype == like.dtype:
        return out
    if out.is_floating_point() and torch.is_autocast_enabled(like.device.type):
        return out.to(like.dtype)
    raise InputError(f"{what} gave {out.dtype}, want {like.dtype}, that of its input, e.g. by .to(x.dtype)")


class Reference(ScoreModel):
    """A closed-form score that a network can be put on top of; it knows the data's moments."""

    if TYPE_CHECKING:  # buffers of one, properties of another

        @property
        def mean(self) -> Tensor:
            """μ, ``(*event)``."""

        @property
        def data_scale(self) -> Tensor:
            """σ_d, the root mean square standard deviation over the directions in which the data vary."""

        @property
        def event_shape(self) -> tuple[int, ...]:
            """Shape of one datum."""

    @property
    @abstractmethod
    def reference(self) -> GaussianReference:
        """The Gaussian with the data's mean and covariance."""

    @abstractmethod
    def project(self, v: Batch) -> Batch:
        """The part of v in the directions in which the data vary."""

    @abstractmethod
    def centred(self, x_t: Batch, kernel: Kernel) -> Batch:
        """x_t − alpha·μ − shift, the shift being the mean of Gaussian noise."""


class Denoiser(ScoreModel):
    """A model given by its denoiser; the score follows by Tweedie's formula."""

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """ψ = K⁻¹(alpha·D(x_t) + shift − x_t), which is (alpha·D − x_t)/sigma² for isotropic noise."""
        return score_from_denoised(x_t, self.denoise(x_t, kernel), kernel)


class ScoreFunction(ScoreModel):
    """A model from a function (x_t, kernel) -> score.

    Args:
        function: any callable; a ``torch.nn.Module`` is registered, so that its parameters are the model's.
    """

    def __init__(self, function: Callable[[Tensor, Kernel], Tensor]) -> None:
        super().__init__()
        self.function = function

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """The function's value."""
        return self.function(x_t, kernel)

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """Tweedie's formula.

        Raises:
            InputError: noise that is not Gaussian; a gradient is wanted, but the function lets none through.
        """
        score = self.score(x_t, kernel)
        if torch.is_grad_enabled() and x_t.requires_grad and not score.requires_grad and bool(score.any()):
            raise InputError("denoise: got a score with no gradient in x_t, want one that autograd can follow")
        return tweedie(x_t, score, kernel)


def isotropic(kernel: Kernel, event_shape: tuple[int, ...]) -> bool:
    """Whether a kernel is x + N(0, sigma² I)."""
    form = kernel.gaussian_form(event_shape)
    if form is None or form.kind != "isotropic":
        return False
    return not bool((form.shift != 0).any()) and bool((form.alpha == 1).all())


def require_model(model: object) -> None:
    """Refuse what is not a score model, an estimator for one.

    Raises:
        InputError: something else.
    """
    if not isinstance(model, ScoreModel):
        want = "a score model, such as est.model_ of a fitted ScoreDensity, or models.ScoreFunction(function)"
        raise InputError(f"model: got {type(model).__name__}, want {want}")


def require_gaussian(model: ScoreModel, what: str) -> None:
    """Refuse a model that was trained with other noise than Gaussian, for what is right for Gaussian noise only.

    Args:
        model: any; an exact density has no training noise and passes.
        what: needs Gaussian noise; the message begins with it.

    Raises:
        InputError: the model's :attr:`ScoreModel.noise` is not isotropic Gaussian.
    """
    kernel = None if model.noise is None else model.noise(1.0)
    if kernel is not None and not isotropic(kernel, event_of(model) or (1,)):
        raise InputError(
            f"{what}: got a model trained with {kernel!r} noise, want Gaussian noise; "
            "to sample with any noise use samplers.langevin"
        )


def gaussian_form(kernel: Kernel, x_t: Batch, what: str) -> GaussianForm:
    """The kernel's Gaussian form, or an error that names what needs it."""
    require_kernel(kernel)
    form = kernel.gaussian_form(tuple(x_t.shape[1:]))
    if form is None:
        raise InputError(f"{what}: needs a Gaussian kernel, got {kernel!r}")
    return form


def tweedie(x_t: Batch, score: Batch, kernel: Kernel) -> Batch:
    """E[x | x_t] = (x_t − shift + K ∇log p_σ(x_t))/alpha for noise N(shift, K) (Robbins 1956; Miyasawa 1961).

    Raises:
        InputError: the kernel is not Gaussian, or alpha is 0.
    """
    form = gaussian_form(kernel, x_t, "denoise")
    if bool((form.alpha == 0).any()):
        raise InputError("denoise: alpha is 0, so x_t says nothing about x; want alpha > 0")
    return (x_t - form.shift.to(x_t) + _times(form, score)) / per_row(form.alpha, x_t)


def score_from_denoised(x_t: Batch, denoised: Batch, kernel: Kernel) -> Batch:
    """∇log p_σ(x_t) = K⁻¹(alpha·E[x | x_t] + shift − x_t): Tweedie's formula, solved for the score."""
    form = gaussian_form(kernel, x_t, "score of a denoiser")
    v = per_row(form.alpha, x_t) * denoised + form.shift.to(x_t) - x_t
    if form.kind == "isotropic":
        return v / per_row(form.covariance, x_t)
    flat = v.flatten(1)
    k = form.covariance.to(v)
    return (flat / k if form.kind == "diagonal" else torch.linalg.solve(k, flat.T).T).reshape(v.shape)


def _times(form: GaussianForm, v: Batch) -> Batch:
    """K v."""
    if form.kind == "isotropic":
        return per_row(form.covariance, v) * v
    k, flat = form.covariance.to(v), v.flatten(1)
    return (flat * k if form.kind == "diagonal" else flat @ k).reshape(v.shape)


def columns(kernel: Kernel, x: Batch) -> tuple[Level, Level]:
    """Alpha and sigma against a flattened batch: scalars or ``(B, 1)``."""
    flat = x.flatten(1)
    return per_row(kernel.alpha, flat), per_row(kernel.sigma, flat)


def count_parameters(model: nn.Module) -> int:
    """Number of trained numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def event_of(model: ScoreModel) -> tuple[int, ...] | None:
    """The event shape a model is bound to, or None where any will do."""
    shape: tuple[int, ...] | None = getattr(model, "event_shape", None)
    return shape
