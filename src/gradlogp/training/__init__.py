"""Training: denoising score matching over a range of noise levels, as a generator of small records."""

from gradlogp.training import weights
from gradlogp.training.average import Average
from gradlogp.training.gate import best_shares, calibrate
from gradlogp.training.held_out import HeldOut
from gradlogp.training.levels import Levels, NoiseLevels, OneLevel, TimeLevels
from gradlogp.training.loop import train
from gradlogp.training.loss import WeightedLoss
from gradlogp.training.recipe import Goal, Recipe
from gradlogp.training.records import WORTH, Record, in_vain, kept

__all__ = [
    "WORTH",
    "Average",
    "Goal",
    "HeldOut",
    "Levels",
    "NoiseLevels",
    "OneLevel",
    "Recipe",
    "Record",
    "TimeLevels",
    "WeightedLoss",
    "best_shares",
    "calibrate",
    "in_vain",
    "kept",
    "train",
    "weights",
]
