"""Additive noise of any density that has a gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributions as td

from gradlogp._draws import Seeded
from gradlogp._shapes import Batch, InputError, Level, Rows, event_size, require_batch, same_batch
from gradlogp.kernels.base import GaussianForm, Kernel
from gradlogp.kernels.landmarks import landmarks
from gradlogp.kernels.laws import closed_form, coordinates, first_line, log_density, parts, require_density
from gradlogp.kernels.regularity import (
    LogDensity,
    examine,
    fisher_by_quadrature,
    fisher_by_sampling,
    whole_grid,
)
from gradlogp.kernels.twins import in_float64

_N_DRAWS = 4096
_MOST_DRAWS, _NUMBERS = 2**16, 2**22  # of a mean over draws, whose tail must be seen


class Additive(Kernel):
    """x_t = x + n, n ~ q: the kernel k(x_t | x) = q(x_t − x) for any density q of ``torch.distributions``.

    A distribution with an empty event shape is the law of each coordinate, independently (a batch shape, such as one
    scale a coordinate, is broadcast over the event). A distribution over an event, such as ``MultivariateNormal``, is
    the law of the whole event. The score is a closed form where it is known, otherwise autograd of ``log_prob``; both
    are computed in float64 and returned in the dtype of the data.

    J_ESM = J_DSM + C needs q to be weakly differentiable with ∇q integrable, and both losses are finite only if
    I(q) = E‖∇log q‖² is. That is checked here.

    Args:
        distribution: the law of the noise.
        autograd: take the score by autograd even where a closed form is known.

    Raises:
        InputError: the distribution has no density or no gradient; its density jumps (uniform, exponential); its Fisher
            information is infinite (triangle, generalised normal of power 1/2).

    Reference: Vincent (2011), equation 11 for the Gaussian; the argument holds for any kernel with a gradient.
    """

    def __init__(self, distribution: td.Distribution, *, autograd: bool = False) -> None:
        if not isinstance(distribution, td.Distribution):
            raise InputError(f"Additive: got {type(distribution).__name__}, want a torch.distributions.Distribution")
        self.distribution = distribution
        self._name = f"Additive({_describe(distribution)})"
        self._law = in_float64(distribution)
        self._over_event = len(distribution.event_shape) > 0
        if self._over_event and distribution.batch_shape:
            raise InputError(
                f"{self._name}: got batch shape {tuple(distribution.batch_shape)}, want one law over the event"
            )
        self._closed = None if autograd else closed_form(self._law)
        draws = self._require_density()
        try:
            self._fisher, self._fisher_error = self._measure_fisher(draws)
        except (NotImplementedError, RuntimeError, AttributeError) as e:
            raise InputError(
                f"{self._name}: no density beside its own draws ({first_line(e)}); use a continuous law with log_prob"
            ) from None
        self.alpha = torch.ones((), dtype=torch.float64)
        self.sigma = (
            self._fisher.numel() * max(event_size(tuple(distribution.event_shape)), 1) / self._fisher.sum()
        ).sqrt()
        each = coordinates(self._law) or self._law
        self.symmetric = all(_same_at_both_sides(each, u) for _, u in parts(each, self._seeded))

    def __repr__(self) -> str:
        return self._name

    def sample(self, x: Batch, *, generator: torch.Generator | None = None) -> Batch:
        """x_t = x + n."""
        require_batch(x)
        return x + self._aligned(self._draw(self._sample_shape(tuple(x.shape)), generator), x.shape).to(x)

    def log_prob(self, x_t: Batch, x: Batch) -> Rows:
        """log q(x_t − x) of each row, in nats; −inf outside the support."""
        log_q = self._log_q(self._noise(x_t, x))
        return (log_q if self._over_event else log_q.flatten(1).sum(1)).to(x_t.dtype)

    def score(self, x_t: Batch, x: Batch) -> Batch:
        """∇log q at x_t − x; 0 outside the support."""
        return self._score(self._noise(x_t, x)).to(x_t.dtype)

    def fisher_information(self, event_shape: tuple[int, ...]) -> Level:
        """I(q) summed over the event: a closed form, quadrature, or (over an event that is no product) Monte Carlo.

        Quadrature starts from the centers and scales that the law's parts say, and from draws where mass is missing.
        """
        return self._over(event_shape, self._fisher)

    def fisher_information_error(self, event_shape: tuple[int, ...]) -> Level:
        """Numerical error of I(q): 0 for a closed form, one standard error where it is Monte Carlo.

        Infinite where more than a billionth of the density's mass was not found, and where draws of ‖∇log q‖² have so
        heavy a tail that they have no variance.
        """
        return self._over(event_shape, self._fisher_error)

    def rows(self, index: Tensor) -> Additive:  # noqa: ARG002
        """The kernel is the same for every row."""
        return self

    def gaussian_form(self, event_shape: tuple[int, ...]) -> GaussianForm | None:
        """The noise's mean and covariance if its law is Normal, MultivariateNormal or independent Normals."""
        law = self._law
        while type(law) is td.Independent:
            law = law.base_dist
        if type(law) in (td.MultivariateNormal, td.LowRankMultivariateNormal) and not law.batch_shape:
            return GaussianForm(self.alpha, law.loc, law.covariance_matrix, "full")
        if type(law) is not td.Normal:  # a subclass may have another density
            return None
        if law.scale.numel() == 1 and law.loc.numel() == 1:
            return GaussianForm(self.alpha, law.loc.reshape(()), law.variance.reshape(()), "isotropic")
        loc, variance = (v.expand(event_shape) for v in (law.loc, law.variance))
        return GaussianForm(self.alpha, loc, variance.reshape(-1), "diagonal")

    # --- the law of the noise, in float64 -----------------------------------------------------------------------------

    def _sample_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The sample shape that makes draws of a batch's shape, or an error."""
        own = (*self.distribution.batch_shape, *self.distribution.event_shape)
        event = shape[1:]
        fits = event == own if self._over_event else _broadcasts(own, event)
        if not fits:
            want = f"{own}" if self._over_event else f"one that broadcasts with {own}"
            raise InputError(f"{self._name}: got event shape {event}, want {want}")
        if self._over_event:
            return shape[:1]
        return (
            *shape[: len(shape) - len(own)],
            *(n if o == 1 else 1 for n, o in zip(event[len(event) - len(own) :], own, strict=True)),
        )

    def _aligned(self, draws: Tensor, shape: torch.Size) -> Tensor:
        """Draws of shape (B, *repeats, *own) as a batch: each repeat stands beside the dimension that it repeats."""
        k = 0 if self._over_event else len(self.distribution.batch_shape)
        lead = draws.ndim - 2 * k
        beside = [d for i in range(k) for d in (lead + i, lead + k + i)]
        return draws.permute(*range(lead), *beside).reshape(shape) if k else draws.reshape(shape)

    def _draw(self, sample_shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return self._drawn(self._law, sample_shape, generator)

    @staticmethod
    def _drawn(law: td.Distribution, sample_shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Draws of a law. torch.distributions take no generator: it seeds what they draw from."""
        size = torch.Size(sample_shape)
        if generator is None:
            drawn: Tensor = law.sample(size)
            return drawn
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with Seeded(seed):
            seeded: Tensor = law.sample(size)
        return seeded

    def _noise(self, x_t: Batch, x: Batch) -> Batch:
        same_batch(x_t, x)
        self._sample_shape(tuple(x.shape))
        return x_t.double() - x.double()

    def _log_q(self, n: Tensor) -> Tensor:
        return log_density(self._law, n)

    def _score(self, n: Tensor) -> Tensor:
        if self._closed is not None:
            return self._closed.score(n)
        with torch.enable_grad():
            at = n if n.requires_grad else n.detach().requires_grad_()
            log_q = self._log_q(at)
            inside = torch.isfinite(log_q)
            (grad,) = torch.autograd.grad(log_q[inside].sum(), at, create_graph=n.requires_grad)
        return torch.where(inside.reshape(*inside.shape, *(1,) * (n.ndim - inside.ndim)), grad, 0.0)

    # --- checks, once -------------------------------------------------------------------------------------------------

    def _require_density(self) -> Tensor:
        """Draws of the law, after checking that it has a density that is finite there."""
        return require_density(self._law, lambda: self._seeded(self._law), self._name)

    def _seeded(self, law: td.Distribution, n: int = _N_DRAWS) -> Tensor:
        """Draws of a law, the same each time."""
        return self._drawn(law, (n,), torch.Generator().manual_seed(0))

    def _require_gradient(self, draws: Tensor) -> None:
        try:
            score = self._score(draws)
        except (NotImplementedError, RuntimeError, AttributeError) as e:
            raise InputError(
                f"{self._name}: its density has no gradient ({first_line(e)}); use a law with one"
            ) from None
        if not bool(torch.isfinite(score).all()):
            raise InputError(f"{self._name}: its score is not finite at its own draws; use a law with a smooth density")

    def _measure_fisher(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        if self._closed is not None and self._closed.fisher is not None:
            return self._closed.fisher, torch.zeros_like(self._closed.fisher)
        factor = coordinates(self._law) if self._over_event else None
        if factor is not None:
            shape = tuple(self._law.event_shape)
            try:
                base = Additive(factor)
            except InputError as e:
                _, _, reason = str(e).partition(": ")
                raise InputError(f"{self._name}: {reason}") from None
            return base.fisher_information(shape), base.fisher_information_error(shape)
        if self._over_event:
            self._examine_lines(draws)
            self._require_gradient(draws)
            n = max(_N_DRAWS, min(_MOST_DRAWS, _NUMBERS // draws[0].numel()))
            return fisher_by_sampling(self._score, parts(self._law, lambda law: self._seeded(law, n)))
        flat = draws.reshape(_N_DRAWS, -1)
        known, alike = landmarks(self._law).reshape(-1, flat.shape[1]), self._alike(flat)
        lines = {j: (self._at_coordinate(self._log_q, j), self._at_coordinate(self._score, j)) for j in set(alike)}
        grids = {j: whole_grid(f, flat[:, j], self._name, known[:, j]) for j, (f, _) in lines.items()}
        self._require_gradient(draws)
        pairs = {j: fisher_by_quadrature(*lines[j], grid) for j, grid in grids.items()}
        fisher, error = torch.tensor([pairs[j] for j in alike], dtype=torch.float64).T
        return fisher.reshape(self._law.batch_shape), error.reshape(self._law.batch_shape)

    def _alike(self, draws: Tensor) -> list[int]:
        """For each coordinate the first that has its law: the same density at the draws of the first."""
        batch, alike = self._law.batch_shape, list(range(draws.shape[1]))
        for j in alike:
            if alike[j] == j:
                everywhere = draws[:, j].reshape(-1, *(1,) * len(batch)).expand(-1, *batch)
                log_q = self._log_q(everywhere).reshape(len(draws), -1)
                same = (log_q == log_q[:, j : j + 1]).all(0).tolist()
                alike = [j if same[i] and k == i else k for i, k in enumerate(alike)]
        return alike

    def _at_coordinate(self, f: LogDensity, j: int) -> LogDensity:
        """A function of the noise, at points of the line in coordinate j of the batch shape."""
        batch = self._law.batch_shape

        def g(u: Tensor) -> Tensor:
            everywhere = u.reshape(-1, *(1,) * len(batch)).expand(-1, *batch)
            return f(everywhere).reshape(u.numel(), -1)[:, j].reshape(u.shape)

        return g

    def _examine_lines(self, draws: Tensor) -> None:
        """Over an event the density is examined along lines through draws: the axes, then random directions."""
        g = torch.Generator().manual_seed(1)
        event = draws.shape[1:]
        axes = torch.eye(event_size(tuple(event)), dtype=draws.dtype)[:8].reshape(-1, *event)
        directions = torch.cat([axes, torch.randn(8, *event, generator=g, dtype=draws.dtype)])
        for origin, direction in zip(draws, directions, strict=False):
            along = (draws - draws.mean(0)).flatten(1) @ direction.flatten() / direction.square().sum()

            def log_q(u: Tensor, origin: Tensor = origin, direction: Tensor = direction) -> Tensor:
                shape = (-1, *(1,) * len(event))
                return self._log_q(origin + u.reshape(shape) * direction).reshape(u.shape)

            examine(log_q, along, self._name)

    def _over(self, event_shape: tuple[int, ...], value: Tensor) -> Tensor:
        """Sum a per-coordinate value over the event, or take the whole event's."""
        self._sample_shape((1, *event_shape))
        return value if self._over_event else value.expand(event_shape).sum()


def _broadcasts(own: tuple[int, ...], event: tuple[int, ...]) -> bool:
    try:
        return tuple(torch.broadcast_shapes(own, event)) == tuple(event)
    except RuntimeError:
        return False


def _same_at_both_sides(law: td.Distribution, draws: Tensor) -> bool:
    """Whether a density is the same at draws and at their negatives, to rounding."""
    log_q, reflected = log_density(law, draws), log_density(law, -draws)
    same = max(1e-9, 16 * torch.finfo(log_q.dtype).eps)
    return bool(torch.isclose(log_q, reflected, rtol=same, atol=same).all())


def _describe(law: td.Distribution) -> str:
    inner = getattr(law, "base_dist", None)
    return f"{type(law).__name__}({_describe(inner)})" if isinstance(inner, td.Distribution) else type(law).__name__
