"""Objectives of score matching: ``objective(model, x, kernel, generator=g) -> (B,)``, a loss for each clean row x.

Each draws x_t ~ k(· | x) itself; each carries the ½ and sums over the event, so that for every model ψ

    J_DSM = J_ESM − C = J_ISM + ½ I(q),      J_ISM = J_SSM in expectation.

Sources: ESM and ISM, Hyvärinen (2005); DSM, Vincent (2011); the stable target, Xu, Tong and Jaakkola (2023); sliced,
Song, Garg, Shi and Ermon (2019); finite-difference, Pang et al. (2020).
"""

from gradlogp.objectives.base import Objective
from gradlogp.objectives.denoising import DenoisingScoreMatching
from gradlogp.objectives.explicit import ExplicitScoreMatching
from gradlogp.objectives.implicit import (
    FiniteDifferenceScoreMatching,
    ImplicitScoreMatching,
    SlicedScoreMatching,
    divergence,
)
from gradlogp.objectives.implicit import (
    _linearise as _linearise,
)
from gradlogp.objectives.projections import Projection, gaussian, rademacher, sphere
from gradlogp.objectives.reconstruction import CrossEntropy, ReconstructionError
from gradlogp.objectives.stable import posterior_score, posterior_weights

__all__ = [
    "CrossEntropy",
    "DenoisingScoreMatching",
    "ExplicitScoreMatching",
    "FiniteDifferenceScoreMatching",
    "ImplicitScoreMatching",
    "Objective",
    "Projection",
    "ReconstructionError",
    "SlicedScoreMatching",
    "divergence",
    "gaussian",
    "posterior_score",
    "posterior_weights",
    "rademacher",
    "sphere",
]
