"""Is it right, and how far off is it: the theorem as a tool, and measured numbers with their errors."""

from gradlogp.diagnostics.auditor import BoostedTrees, SmallNetwork
from gradlogp.diagnostics.calibration import Calibration, CalibrationLevel, calibration
from gradlogp.diagnostics.chain import Chain, chain
from gradlogp.diagnostics.compare import (
    Comparison,
    Disagreement,
    LevelDifference,
    LevelDisagreement,
    compare,
    split_half,
)
from gradlogp.diagnostics.curl import Curl, CurlLevel, curl
from gradlogp.diagnostics.dependence import MIN_GROUPS, as_groups, blocks_of_units, correlation_length
from gradlogp.diagnostics.estimates import Z_THRESHOLD, Bracket, Estimate
from gradlogp.diagnostics.floor import floor, gaussian_floor
from gradlogp.diagnostics.identities import Equivalence, SelfCheck, equivalence, self_check
from gradlogp.diagnostics.levels import LevelError, ScoreError
from gradlogp.diagnostics.memorisation import (
    Memorisation,
    MemorisationLevel,
    NearestNeighbours,
    memorisation,
    nearest_neighbours,
)
from gradlogp.diagnostics.score_error import score_error
from gradlogp.diagnostics.stein import (
    GaussianRBF,
    InverseMultiquadric,
    SteinBase,
    SteinTest,
    stein_kernel,
    stein_test,
)

__all__ = [
    "MIN_GROUPS",
    "Z_THRESHOLD",
    "BoostedTrees",
    "Bracket",
    "Calibration",
    "CalibrationLevel",
    "Chain",
    "Comparison",
    "Curl",
    "CurlLevel",
    "Disagreement",
    "Equivalence",
    "Estimate",
    "GaussianRBF",
    "InverseMultiquadric",
    "LevelDifference",
    "LevelDisagreement",
    "LevelError",
    "Memorisation",
    "MemorisationLevel",
    "NearestNeighbours",
    "ScoreError",
    "SelfCheck",
    "SmallNetwork",
    "SteinBase",
    "SteinTest",
    "as_groups",
    "blocks_of_units",
    "calibration",
    "chain",
    "compare",
    "correlation_length",
    "curl",
    "equivalence",
    "floor",
    "gaussian_floor",
    "memorisation",
    "nearest_neighbours",
    "score_error",
    "self_check",
    "split_half",
    "stein_kernel",
    "stein_test",
]
