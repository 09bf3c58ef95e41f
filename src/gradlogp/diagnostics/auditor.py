"""An auditor: a model fitted to what another leaves, ∇log k(x_t | x) − ψ(x_t), on part of the held-out rows.

For any f, J_DSM(ψ) − J_DSM(ψ + f) on rows that f has not seen is a lower bound of the score error of ψ; an f that finds
structure in the residual shows at which noise level, and where in x_t, the model can be improved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from gradlogp._draws import Seeded
from gradlogp._shapes import InputError, as_count
from gradlogp.diagnostics.references import Draws, Rows
from gradlogp.kernels import Kernel
from gradlogp.models import ScoreModel

N_PARTS = 4  # of the rows: one auditor each
MOST_TREES = 64  # coordinates that boosted trees, one model each, are meant for
_LEAST_SHARE = 0.1  # of the draws in a region

Predictor = Callable[[Tensor], Tensor]


@runtime_checkable
class Auditor(Protocol):
    """Fits a function of features to targets, ``(n, F), (n, D)``, and returns it."""

    def __call__(self, features: Tensor, target: Tensor, generator: torch.Generator) -> Predictor:
        """The fitted function, ``(n, F) -> (n, D)``."""
        ...


class BoostedTrees:
    """Gradient-boosted trees, one model a coordinate: for tables.

    Args:
        n_trees: trees of each.
        n_leaves: leaves of a tree.
    """

    def __init__(self, n_trees: int = 40, n_leaves: int = 8) -> None:
        self.n_trees = as_count(n_trees, "n_trees", most=10_000)
        self.n_leaves = as_count(n_leaves, "n_leaves", least=2)

    def __call__(self, features: Tensor, target: Tensor, generator: torch.Generator) -> Predictor:
        """Fit.

        Raises:
            InputError: more than 64 coordinates.
        """
        from sklearn.ensemble import HistGradientBoostingRegressor

        if target.shape[1] > MOST_TREES:
            raise InputError(f"BoostedTrees: got {target.shape[1]} coordinates, want at most {MOST_TREES}")
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        x, several = features.cpu().numpy(), []
        for column in target.cpu().numpy().T:
            trees = HistGradientBoostingRegressor(
                max_iter=self.n_trees, max_leaf_nodes=self.n_leaves, early_stopping=False, random_state=seed
            )
            several.append(trees.fit(x, column))

        def predict(features: Tensor) -> Tensor:
            columns = [t.predict(features.cpu().numpy()) for t in several]
            return torch.from_numpy(np.stack(columns, 1)).to(features)

        return predict


class SmallNetwork:
    """A network of two hidden layers, for images and many columns.

    Args:
        width: hidden units.
        n_steps: steps of Adam.
    """

    def __init__(self, width: int = 64, n_steps: int = 200) -> None:
        self.width = as_count(width, "width", each=8)
        self.n_steps = as_count(n_steps, "n_steps")

    def __call__(self, features: Tensor, target: Tensor, generator: torch.Generator) -> Predictor:
        """Fit."""
        mean, spread = features.mean(0), features.std(0).clamp_min(1e-12)
        x, y = ((features - mean) / spread).float(), target.float()
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        with Seeded(seed):
            hidden = [nn.Linear(x.shape[1], self.width), nn.SiLU(), nn.Linear(self.width, self.width), nn.SiLU()]
            last = nn.Linear(self.width, y.shape[1])
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        network = nn.Sequential(*hidden, last).to(x.device)
        with torch.enable_grad():
            optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
            for _ in range(self.n_steps):
                rows = torch.randint(len(x), (256,), generator=generator, device=generator.device).to(x.device)
                optimiser.zero_grad()
                (network(x[rows]) - y[rows]).square().mean().backward()
                optimiser.step()

        def predict(features: Tensor) -> Tensor:
            with torch.no_grad():
                out: Tensor = network(((features - mean) / spread).float())
            return out.to(features)

        return predict


class Auditors:
    """One auditor for each quarter of the rows, so that each draw has two that saw only the other half of the rows.

    Features are x_t, σψ(x_t) and log σ, the target is σ(t − ψ): one fit serves all levels.
    """

    def __init__(
        self,
        auditor: Auditor,
        model: ScoreModel,
        rows: Rows,
        kernels: Sequence[Kernel],
        n_noise: int,
        generator: torch.Generator,
    ) -> None:
        features, target, part = [], [], []
        for kernel in kernels:
            for d in Draws.of(rows, kernel, model, n_noise, generator):
                features.append(_features(d, kernel))
                target.append(kernel.sigma.item() * (d.target - d.psi))
                part.append(d.block % N_PARTS)
        x, y, p = torch.cat(features), torch.cat(target), torch.cat(part)
        self.fitted = [auditor(x[p == i], y[p == i], generator) for i in range(N_PARTS)]

    def at(self, draws: Draws, kernel: Kernel) -> tuple[Tensor, Tensor]:
        """f(x_t) by the auditor of the other quarter of the draw's half, and the mean of the two of the other half."""
        every = torch.stack([f(_features(draws, kernel)) for f in self.fitted]) / kernel.sigma.item()
        own, each = draws.block % N_PARTS, torch.arange(len(draws.block), device=draws.block.device)
        fit = every[(own + 2) % N_PARTS, each]
        return fit, (every[(own + 1) % N_PARTS, each] + every[(own + 3) % N_PARTS, each]) / 2


def _features(draws: Draws, kernel: Kernel) -> Tensor:
    sigma = kernel.sigma.item()
    level = torch.full_like(draws.psi[:, :1], sigma).log()
    return torch.cat([draws.x_t.flatten(1).double(), sigma * draws.psi, level], 1)


def where(x_t: Tensor, gain: Tensor, half: Tensor) -> str:
    """The region of x_t, by at most two cuts, where a change gains most: found on one half, measured on the other.

    Args:
        x_t: noisy rows, flattened, ``(Q, D)``.
        gain: the fall of the loss at each, ``(Q,)``.
        half: 0 or 1 for each draw.

    Returns:
        For example ``"x[3] > 0.7: 60 % of the gain in 15 % of the draws"``.
    """
    from sklearn.tree import DecisionTreeRegressor

    x, v, first = x_t.float().cpu().numpy(), gain.cpu().numpy(), (half == 0).cpu().numpy()
    tree = DecisionTreeRegressor(max_depth=2, min_samples_leaf=_LEAST_SHARE, random_state=0).fit(x[first], v[first])
    best = int(np.argmax(np.where(tree.tree_.children_left < 0, tree.tree_.value[:, 0, 0], -np.inf)))
    inside = tree.apply(x[~first]) == best
    total = v[~first].sum()
    share = f"{100 * v[~first][inside].sum() / total:.0f} %" if total > 0 else "none"
    return f"{_rule(tree.tree_, best)}: {share} of the gain in {100 * inside.mean():.0f} % of the draws"


def _rule(tree: object, leaf: int) -> str:
    """The cuts that lead to a leaf."""
    left, right = tree.children_left, tree.children_right  # type: ignore[attr-defined]
    cuts: list[str] = []
    while leaf:
        parent = int(np.flatnonzero((left == leaf) | (right == leaf))[0])
        sign = "<=" if left[parent] == leaf else ">"
        cuts.insert(0, f"x[{tree.feature[parent]}] {sign} {tree.threshold[parent]:.3g}")  # type: ignore[attr-defined]
        leaf = parent
    return " and ".join(cuts) or "everywhere"
