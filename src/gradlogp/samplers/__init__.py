"""Samplers: a step, and the one loop that drives it.

The probability-flow ODE of y = x + s·z is dy/ds = −s ∇log p_s(y) (Song et al. 2021, equation 13; Karras et al. 2022,
equation 1): followed from s_max down to s_min it turns a draw of p_{s_max} into a draw of p_{s_min}.
"""

from gradlogp.samplers.adams_bashforth import ExponentialAdamsBashforth, LinearMultistep
from gradlogp.samplers.added_noise import Churn, EulerMaruyama, PredictorCorrector
from gradlogp.samplers.calibration import Accuracy, Plan
from gradlogp.samplers.dpm import DPMSolverPP2M, DPMSolverPP2S, DPMSolverPP3M
from gradlogp.samplers.field import Field
from gradlogp.samplers.frame import Frame
from gradlogp.samplers.grids import Grid, given, karras, log_uniform, time_uniform
from gradlogp.samplers.langevin import LangevinState, default_ladder, langevin, langevin_trajectory, log_ratio
from gradlogp.samplers.loop import State, sample, trajectory
from gradlogp.samplers.modes import Modes, modes
from gradlogp.samplers.plans import calibrate, keep, kept_plans, plan_for
from gradlogp.samplers.reference import ReferenceExact
from gradlogp.samplers.runge_kutta import AdaptiveRungeKutta, DPMSolver2, Euler, Heun
from gradlogp.samplers.starts import START, STOP
from gradlogp.samplers.step import Evaluation, Memory, Step
from gradlogp.samplers.stochastic import DDIM, ERSDE, Ancestral, SDEDPMSolverPP2M, SDEDPMSolverPP3M
from gradlogp.samplers.unipc import UniPC

euler = Euler()
heun = Heun()

__all__ = [
    "DDIM",
    "ERSDE",
    "START",
    "STOP",
    "Accuracy",
    "AdaptiveRungeKutta",
    "Ancestral",
    "Churn",
    "DPMSolver2",
    "DPMSolverPP2M",
    "DPMSolverPP2S",
    "DPMSolverPP3M",
    "Euler",
    "EulerMaruyama",
    "Evaluation",
    "ExponentialAdamsBashforth",
    "Field",
    "Frame",
    "Grid",
    "Heun",
    "LangevinState",
    "LinearMultistep",
    "Memory",
    "Modes",
    "Plan",
    "PredictorCorrector",
    "ReferenceExact",
    "SDEDPMSolverPP2M",
    "SDEDPMSolverPP3M",
    "State",
    "Step",
    "UniPC",
    "calibrate",
    "default_ladder",
    "euler",
    "given",
    "heun",
    "karras",
    "keep",
    "kept_plans",
    "langevin",
    "langevin_trajectory",
    "log_ratio",
    "log_uniform",
    "modes",
    "plan_for",
    "sample",
    "time_uniform",
    "trajectory",
]
