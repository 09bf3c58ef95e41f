"""Mutual information between two groups of columns, from denoising errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, as_batch, same_event
from gradlogp.diagnostics.estimates import Estimate
from gradlogp.kernels import Kernel
from gradlogp.likelihood.divergence_between import kl_divergence, known_reference
from gradlogp.likelihood.entropy import N_DRAWS
from gradlogp.models import GaussianReference, ScoreModel


class IndependentGroups(ScoreModel):
    """The model of p_A(x_A)·p_B(x_B): two groups of columns, each denoised by its own model from its own columns.

    Args:
        first: model of x_A, the columns in the order given.
        second: model of x_B, the other columns in ascending order.
        columns: the indices of A in a row ``(D,)``.

    Raises:
        InputError: a model that knows no reference or is not of flat rows, or columns that are not one group of two.
    """

    columns: Tensor
    others: Tensor

    def __init__(self, first: ScoreModel, second: ScoreModel, columns: Sequence[int]) -> None:
        super().__init__()
        self.first, self.second = first, second
        sizes = _size(first, "first"), _size(second, "second")
        self.event_shape = (sum(sizes),)
        chosen = _as_columns(columns, *sizes)
        self.register_buffer("columns", torch.tensor(chosen))
        self.register_buffer("others", torch.tensor([j for j in range(sum(sizes)) if j not in set(chosen)]))

    @property
    def reference(self) -> GaussianReference:
        """N(μ, Σ) with the means of both groups, and a Σ that is block-diagonal in them."""
        a, b = known_reference(self.first, "first"), known_reference(self.second, "second")
        mean = self._joined(a.mean[None], b.mean[None])[0]
        vectors = torch.block_diag(a.eigenvectors, b.eigenvectors.to(a.eigenvectors))
        split = len(a.mean)
        rows = self._joined(vectors[:split].T, vectors[split:].T).T
        return GaussianReference(mean, torch.cat([a.eigenvalues, b.eigenvalues.to(a.eigenvalues)]), rows.contiguous())

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """(ψ_A(x_A), ψ_B(x_B))."""
        x_t = same_event(x_t, self.event_shape, "x_t")
        return self._joined(
            self.first.score(x_t[:, self.columns], kernel), self.second.score(x_t[:, self.others], kernel)
        )

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """(D_A(x_A), D_B(x_B))."""
        x_t = same_event(x_t, self.event_shape, "x_t")
        return self._joined(
            self.first.denoise(x_t[:, self.columns], kernel), self.second.denoise(x_t[:, self.others], kernel)
        )

    def _joined(self, a: Tensor, b: Tensor) -> Tensor:
        """Columns of both groups, each in its place."""
        both = a.new_empty(len(a), *self.event_shape)
        both[:, self.columns], both[:, self.others] = a, b.to(a)
        return both


def mutual_information(
    joint: ScoreModel,
    first: ScoreModel,
    second: ScoreModel,
    x: Batch,
    columns: Sequence[int],
    *,
    sigma_min: float | None = None,
    n_draws: int = N_DRAWS,
    generator: torch.Generator | None = None,
) -> Estimate:
    """I(A; B) = KL(p_AB ‖ p_A × p_B), in nats, between two groups of the columns of x, seen through noise s₀.

    :func:`kl_divergence` of the joint model and :class:`IndependentGroups` of the two: with D_A, D_B and D_AB the
    denoisers,  ∫_{s₀}^{s₁} s⁻³ E[‖x_A − D_A‖² + ‖x_B − D_B‖² − ‖x − D_AB‖²] ds  and the Gaussians' log-ratio at s₁.
    Noise only loses information: the exact value is at most I(A; B) without noise, and tends to it as s₀ → 0. With
    models that are not exact it is no bound: the errors of D_A and D_B raise it, that of D_AB lowers it.

    Args:
        joint: a score model for Gaussian noise, of rows (A, B).
        first: of A alone, its columns in the order of ``columns``.
        second: of B alone, the other columns in ascending order.
        x: independent clean rows that no model was trained on, ``(N, D)``, at least 2.
        columns: the indices of A.
        sigma_min: s₀; see :func:`kl_divergence`. To choose s₁ too, call that with an :class:`IndependentGroups`.
        n_draws: levels a row, one call of each model for each.
        generator: source of the draws; None is torch's own.

    Raises:
        InputError: rows, columns, counts or levels that cannot be used, or a model for other noise or rows, or one that
            knows no reference.

    Reference: Franzese, Bounoua and Michiardi (2024), "MINDE: Mutual information neural diffusion estimation".
    """
    x = as_batch(x)
    groups = IndependentGroups(first, second, columns)
    same_event(x, groups.event_shape)
    same_event(x, known_reference(joint, "joint").event_shape)
    return kl_divergence(joint, groups, x, sigma_min=sigma_min, n_draws=n_draws, generator=generator)


def _size(model: ScoreModel, name: str) -> int:
    """The number of columns of a model of flat rows."""
    shape = known_reference(model, name).event_shape
    if len(shape) != 1:
        raise InputError(f"{name}: got a model of rows {shape}, want one of flat rows (D,)")
    return shape[0]


def _as_columns(columns: Sequence[int], n_first: int, n_second: int) -> list[int]:
    """Indices of the first group, which leave as many columns as the second model has."""
    try:
        chosen = [int(c) for c in torch.as_tensor(columns).tolist()]
        whole = chosen == torch.as_tensor(columns).tolist()
    except (TypeError, ValueError, RuntimeError):
        whole = False
    d = n_first + n_second
    if not whole or len(chosen) != n_first or len(set(chosen)) != n_first or not all(0 <= c < d for c in chosen):
        raise InputError(f"columns: got {columns!r}, want {n_first} different whole numbers from 0 to {d - 1}")
    return chosen
