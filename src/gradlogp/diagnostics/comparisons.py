"""What a model is compared with where no truth is known: a lower bound of its score error.

For any f that has not seen the rows it is measured on, C cancels in

    J_DSM(ψ) − J_DSM(ψ + f) = E[⟨f, T − ψ⟩ − ½‖f‖²] ≤ J_ESM(ψ),

with T the target, or its mean over references that include the source. The best f is ∇log p_σ − ψ. Here it is
f = Σ_k β_k d_k: each direction d_k leads from ψ to another model, or changes ψ's size or place, and the β_k are fitted
by least squares on one half of the rows and measured on the other, both ways, so nothing is measured on rows that
chose it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlogp._shapes import InputError
from gradlogp.diagnostics.auditor import Auditors
from gradlogp.diagnostics.ladder import score_at
from gradlogp.diagnostics.references import Draws, Posterior, Rows
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import GaussianReference, ScoreModel

_TINY = 1e-6  # a direction shorter than this share of the longest is left out
_RIDGE = 1e-9
MOST_DIRECTIONS = 8  # of which all subsets are tried
_CLEARLY = 3.0  # standard errors


@dataclass(frozen=True)
class Directions:
    """The directions at some draws, twice: for fitting the weights, and for use on the other half's weights.

    Attributes:
        fit: from models of the draw's own half without its own block, ``(Q, K, D)``.
        use: from models of the other half, ``(Q, K, D)``.
    """

    fit: Tensor
    use: Tensor


class Comparisons:
    """The directions from a model to others that the held-out rows themselves, or the user, provide.

    From the rows of one half: the best affine score, the Parzen score at the kernel (leave-one-out on its own rows) and
    smoothed by Scott's bandwidth. From the model: its size, its mean error. From the user: any models.

    Args:
        rows: held-out rows.
        models: models that have not seen the rows.
        auditors: models of what the model leaves, each fitted on a quarter of the rows.
    """

    def __init__(self, rows: Rows, models: dict[str, ScoreModel], auditors: Auditors | None = None) -> None:
        self.rows = rows
        self.models = models
        self.auditors = auditors
        self.affine = [_affine(rows.of_blocks(rows.half == h)) for h in (0, 1)]
        self.bandwidth = [_bandwidth(rows.of_blocks(rows.half == h)) for h in (0, 1)]

    def names(self, kernel: Kernel) -> list[str]:
        """What each direction is."""
        own = ["size", "mean", "Parzen"]
        own += ["smoothed Parzen"] if isinstance(kernel, Gaussian) else []
        own += ["affine"] if all(a is not None for a in self.affine) else []
        return own + list(self.models) + ["auditor"] * (self.auditors is not None)

    def at(self, draws: Draws, posterior: Posterior, kernel: Kernel, residual: Tensor) -> Directions:
        """The directions at some draws, in the order of :meth:`names`.

        Args:
            draws: noisy draws.
            posterior: the blocks there.
            kernel: the convolution.
            residual: mean of t − ψ over each block, ``(G, D)``.
        """
        own, other = self._masks(draws)
        fit, use = [draws.psi, _mean_of_blocks(residual, own)], [draws.psi, _mean_of_blocks(residual, other)]
        for p in self._posteriors(draws, posterior, kernel):
            fit.append(p.mean(own)[1])
            use.append(p.mean(other)[1])
        if all(a is not None for a in self.affine):
            both = torch.stack([self._from(a, draws, kernel) for a in self.affine if a is not None])
            half, each = self.rows.half[draws.block], torch.arange(len(draws.x_t), device=draws.x_t.device)
            fit.append(both[half, each])
            use.append(both[1 - half, each])
        given = [self._from(m, draws, kernel) for m in self.models.values()]
        fit, use = fit + given, use + given
        if self.auditors is not None:
            own_side, other_side = self.auditors.at(draws, kernel)
            fit.append(own_side)
            use.append(other_side)
        return Directions(torch.stack(fit, 1), torch.stack(use, 1))

    def _masks(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Blocks of the own half but the own block, and of the other half, ``(Q, G)`` each."""
        same = self.rows.half == self.rows.half[draws.block][:, None]
        own_block = torch.arange(self.rows.n_blocks, device=same.device) == draws.block[:, None]
        return same & ~own_block, ~same

    def _posteriors(self, draws: Draws, posterior: Posterior, kernel: Kernel) -> list[Posterior]:
        if not isinstance(kernel, Gaussian):
            return [posterior]
        wider = [Gaussian((kernel.sigma**2 + (kernel.alpha * h) ** 2).sqrt(), kernel.alpha) for h in self.bandwidth]
        return [posterior, Posterior.at(draws, self.rows, [wider[h] for h in self.rows.half.tolist()])]

    @staticmethod
    def _from(model: ScoreModel, draws: Draws, kernel: Kernel) -> Tensor:
        with torch.no_grad():
            return score_at(model, draws.x_t, kernel).flatten(1).double() - draws.psi


def best_weights(gram: Tensor, rhs: Tensor) -> tuple[Tensor, float]:
    """β for the subset S of directions whose gain on other rows promises to be most clearly above 0.

    With G and r the means of the Gram matrix and of ⟨d_k, T − ψ⟩, and Ω the variance of r, β = G⁻¹r on S. Its gain on
    its own rows, ½rᵀG⁻¹r, is too large by ½tr(G⁻¹Ω), and that on others is lower than the best one's by as much
    (Takeuchi's criterion). All subsets are tried; the one with the largest ½rᵀG⁻¹r − tr(G⁻¹Ω), less three standard
    errors, is taken.

    Args:
        gram: ⟨d_k, d_l⟩ at each row, ``(N, K, K)``.
        rhs: ⟨d_k, T − ψ⟩ at each row, ``(N, K)``.

    Returns:
        β, ``(K,)``, 0 outside S; and what it promises.
    """
    if rhs.shape[1] > MOST_DIRECTIONS:
        return _of_the_most_promising(gram, rhs)
    n, k = rhs.shape
    size = gram.mean(0).diagonal().sqrt()
    scale = torch.where(size > _TINY * size.max(), 1 / size, 0.0)
    gram, rhs = gram * scale[:, None] * scale, rhs * scale
    r, omega = rhs.mean(0), torch.cov(rhs.T).reshape(k, k) / n
    subsets = _subsets(k).to(gram)
    both = subsets[:, :, None] * subsets[:, None, :]
    inverse = torch.linalg.inv(both * gram.mean(0) + torch.diag_embed(1 - subsets + _RIDGE)) * both
    beta = inverse @ r
    squares = (beta[:, :, None] * beta[:, None, :]).flatten(1)
    gain = beta @ rhs.T - 0.5 * squares @ gram.flatten(1).T
    promise = gain.mean(1) - (inverse * omega).sum((1, 2)) - _CLEARLY * gain.std(1) / math.sqrt(n)
    best = int(promise.argmax())
    return scale * beta[best], promise[best].item()


def _of_the_most_promising(gram: Tensor, rhs: Tensor) -> tuple[Tensor, float]:
    """The same with only the directions that promise most each on its own: there are too many subsets of all."""
    alone = [best_weights(gram[:, [[i]], [i]], rhs[:, [i]])[1] for i in range(rhs.shape[1])]
    some = torch.tensor(alone).argsort(descending=True, stable=True)[:MOST_DIRECTIONS].to(rhs.device)
    weights, promise = best_weights(gram[:, some[:, None], some], rhs[:, some])
    return torch.zeros_like(rhs[0]).index_copy(0, some, weights), promise


def _subsets(n: int) -> Tensor:
    """All subsets of n things as rows of 0 and 1, the empty one first."""
    return torch.arange(2**n)[:, None] >> torch.arange(n) & 1


def _mean_of_blocks(values: Tensor, allowed: Tensor) -> Tensor:
    """The mean over the allowed blocks, ``(G, D), (Q, G) -> (Q, D)``."""
    w = allowed.to(values)
    return (w @ values) / w.sum(1, keepdim=True).clamp_min(1.0)


def _affine(x: Tensor) -> GaussianReference | None:
    """The best affine score of rows; None where they do not vary."""
    try:
        return GaussianReference.of_data(x)
    except InputError:
        return None


def _bandwidth(x: Tensor) -> float:
    """Scott's bandwidth σ_d·N^(−1/(D + 4)), σ_d the root mean square standard deviation (Scott 1992, page 152)."""
    flat = x.flatten(1).double()
    spread = flat.var(0, correction=0).mean().sqrt().item()
    return max(spread, torch.finfo(x.dtype).tiny) * math.pow(len(x), -1 / (flat.shape[1] + 4))
