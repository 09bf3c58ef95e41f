"""The deterministic samplers of k-diffusion, azula and diffusers, each behind one call; those installed, that is.

Of azula and k-diffusion only the samplers are imported: what else their packages import is replaced by empty modules.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

SIGMA_MAX, SIGMA_MIN = 80.0, 0.002
Denoise = Callable[[Tensor, float], Tensor]  # (x at σ, σ) -> E[x₀ | x]
Run = Callable[[Denoise, Tensor, int], Tensor]  # (denoise, starts at σ = 80, calls at most) -> end points


@dataclass(frozen=True)
class Pair:
    """A method on a schedule.

    Attributes:
        library: that it is from.
        method: its name there, with its order.
        schedule: name of the levels.
        run: the whole of it, within a number of network calls.
    """

    library: str
    method: str
    schedule: str
    run: Run

    @property
    def name(self) -> str:
        """All three."""
        return f"{self.library}: {self.method}, {self.schedule}"


def pairs() -> list[Pair]:
    """All pairs of the libraries that are installed."""
    every = {"k_diffusion": k_diffusion, "azula": azula, "diffusers": diffusers}
    return [pair for name, of in every.items() if importlib.util.find_spec(name) for pair in of()]


class _Anything(types.ModuleType):
    """A module in which every name is there, and of no use."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _modules(package: str, names: tuple[str, ...], without: tuple[str, ...]) -> list[Any]:
    """Modules of a package, without running its __init__, and with nothing in those others that are missing."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    if package not in sys.modules:
        sys.modules[package] = importlib.util.module_from_spec(spec)
    missing = []
    for name in without:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
            sys.modules[name] = _Anything(name)
    found = [importlib.import_module(f"{package}.{name}") for name in names]
    for name in missing:
        del sys.modules[name]
    return found


# k-diffusion


def k_sampling() -> Any:
    """Its module of samplers."""
    missing = ("torchvision", "torchvision.transforms", "torchdiffeq", "torchsde")
    return _modules("k_diffusion", ("sampling",), missing)[0]


def k_diffusion() -> Iterator[Pair]:
    """Its deterministic samplers, eta = 0, on its four schedules; each as documented, σ = 0 appended, and without."""
    s = k_sampling()
    still = {"eta": 0.0, "noise_sampler": lambda *_: 0.0}
    one_call: dict[str, tuple[Any, dict[str, Any]]] = {
        "Euler": (s.sample_euler, {}),
        "LMS 2": (s.sample_lms, {"order": 2}),
        "LMS 3": (s.sample_lms, {"order": 3}),
        "LMS 4": (s.sample_lms, {}),
        "DPM++ 2M": (s.sample_dpmpp_2m, {}),
        "DPM++ 2M SDE (Heun), eta 0": (s.sample_dpmpp_2m_sde, {**still, "solver_type": "heun"}),
        "DPM++ 3M SDE, eta 0": (s.sample_dpmpp_3m_sde, still),
    }
    two_calls: dict[str, tuple[Any, dict[str, Any]]] = {
        "Heun": (s.sample_heun, {}),
        "DPM2": (s.sample_dpm_2, {}),
        "DPM++ 2S ancestral, eta 0": (s.sample_dpmpp_2s_ancestral, still),
    }
    for schedule, levels in _k_schedules(s).items():
        for per_step, methods in ((1, one_call), (2, two_calls)):
            for (name, (f, options)), zero in product(methods.items(), (True, False)):
                label = schedule if zero else f"{schedule} without the 0"
                yield Pair("k-diffusion", name, label, _k_run(f, options, levels, per_step, zero))
    yield Pair("k-diffusion", "DPM fast", "exponential", _k_fast(s))


def _k_schedules(s: Any) -> dict[str, Callable[[int], Tensor]]:
    """n -> n levels from 80 to 0.002, and a 0; VP also in its own range below, eps_s = 0.001, σ = 0.01."""
    a, b, low = _vp()
    return {
        "Karras": lambda n: s.get_sigmas_karras(n, SIGMA_MIN, SIGMA_MAX),
        "exponential": lambda n: s.get_sigmas_exponential(n, SIGMA_MIN, SIGMA_MAX),
        "polyexponential 2": lambda n: s.get_sigmas_polyexponential(n, SIGMA_MIN, SIGMA_MAX, rho=2.0),
        "VP": lambda n: s.get_sigmas_vp(n, 2 * b, a),
        "VP to 0.002": lambda n: s.get_sigmas_vp(n, 2 * b, a, eps_s=low),
    }


def _vp() -> tuple[float, float, float]:
    """Of σ² = exp(a t + b t²) − 1: a as is usual, b so that σ = 80 at t = 1, and the t at which σ = 0.002."""
    a = 0.1
    b = math.log1p(SIGMA_MAX**2) - a
    return a, b, (math.sqrt(a**2 + 4 * b * math.log1p(SIGMA_MIN**2)) - a) / (2 * b)


def _k_run(f: Any, options: dict[str, Any], levels: Callable[[int], Tensor], per_step: int, zero: bool) -> Run:
    def run(denoise: Denoise, x: Tensor, calls: int) -> Tensor:
        steps = (calls + per_step - 1) // per_step if zero else calls // per_step  # one call in the step to 0
        sigmas = levels(steps) if zero else levels(steps + 1)[:-1]
        return f(_per_row(denoise), x, sigmas.double(), disable=True, **options)

    return run


def _k_fast(s: Any) -> Run:
    return lambda denoise, x, calls: s.sample_dpm_fast(
        _per_row(denoise), x, SIGMA_MIN, SIGMA_MAX, calls, disable=True, noise_sampler=lambda *_: 0.0
    )


def _per_row(denoise: Denoise) -> Callable[[Tensor, Tensor], Tensor]:
    """The same level in all rows."""
    return lambda x, sigma: denoise(x, sigma[0].item())


# azula


def azula() -> Iterator[Pair]:
    """Its deterministic samplers on its five schedules, set to run from σ/α = 80 to 0.002, and on Karras' levels."""
    d, n, s = _modules("azula", ("denoise", "noise", "sample"), ("gdown",))
    methods: dict[str, tuple[Any, dict[str, Any], int]] = {
        "DDIM": (s.DDIMSampler, {}, 1),
        "Heun": (s.HeunSampler, {}, 2),
    }
    for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
        for order in (2, 3, 4):
            methods[f"{name} {order}"] = (getattr(s, f"{name}Sampler"), {"order": order}, 1)
    for (schedule, levels), (name, (sampler, options, per_step)) in product(_a_schedules(n).items(), methods.items()):
        yield Pair("azula", name, schedule, _a_run(d, sampler, options, levels, per_step))


def _a_schedules(n: Any) -> dict[str, Any]:
    lowest = math.sqrt((1 + SIGMA_MIN**2) / (1 + SIGMA_MAX**2))  # an alpha for which √(1 − α² + σ_min²)/α = 80

    class Karras(n.Schedule):  # type: ignore[misc]
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            a, b = SIGMA_MIN ** (1 / 7), SIGMA_MAX ** (1 / 7)
            return torch.ones_like(t), (a + t * (b - a)) ** 7

    return {
        "VE": n.VESchedule(SIGMA_MIN, SIGMA_MAX),
        "VP": n.VPSchedule(lowest, SIGMA_MIN),
        "cosine": n.CosineSchedule(lowest, SIGMA_MIN),
        "rectified": n.RectifiedSchedule(1 / SIGMA_MAX, SIGMA_MIN),
        "decay": n.DecaySchedule(1 / SIGMA_MAX, SIGMA_MIN),
        "Karras": Karras(),
    }


def _a_run(d: Any, sampler: Any, options: dict[str, Any], schedule: Any, per_step: int) -> Run:
    def run(denoise: Denoise, x: Tensor, calls: int) -> Tensor:
        class Exact(d.Denoiser):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.schedule = schedule

            def forward(self, x_t: Tensor, t: Tensor) -> Any:
                alpha, sigma = schedule(t)
                return d.DiracPosterior(denoise(x_t / alpha, (sigma / alpha).item()))

        steps = sampler(Exact(), steps=calls // per_step, silent=True, dtype=torch.float64, **options)
        alpha, _ = schedule(steps.timesteps[0])
        return steps(alpha * x)  # alpha is 1 at the end

    return run


# diffusers


def diffusers() -> Iterator[Pair]:
    """Its deterministic schedulers whose levels can be set to run from 80 to 0.002, on each of their schedules.

    Those whose levels come from betas get 1000 of a linear beta's, from σ = 0.002 to 80 ("VP"). Left out are those
    whose range cannot be set (IPNDM), that must start elsewhere (PNDM, flow matching), that are Euler's method again
    (DDIM, Euler), that are stochastic, UniPC's "bh1", not finite at σ = 0, and "lu" levels, the exponential ones.
    """
    d = importlib.import_module("diffusers")
    d.utils.logging.set_verbosity_error()
    for schedule in ("karras", "exponential"):
        for name, scheduler, options in (
            ("EDM Euler", d.EDMEulerScheduler, {}),
            ("EDM DPM++ 2M", d.EDMDPMSolverMultistepScheduler, {}),
            ("EDM DPM++ 3M", d.EDMDPMSolverMultistepScheduler, {"solver_order": 3}),
        ):
            make = partial(scheduler, SIGMA_MIN, SIGMA_MAX, sigma_data=1.0, sigma_schedule=schedule, **options)
            yield Pair("diffusers", name, schedule.replace("k", "K"), _d_run(make, _edm, False))
    betas = _linear_beta(1000)
    for schedule, chosen in _D_SCHEDULES.items():
        for name, (scheduler, options, preserving) in _d_methods(d).items():
            make = partial(scheduler, trained_betas=betas, **options, **chosen)
            yield Pair("diffusers", name, schedule, _d_run(make, _epsilon, preserving))


_D_SCHEDULES = {
    "VP": {},
    "Karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}


def _d_methods(d: Any) -> dict[str, tuple[Any, dict[str, Any], bool]]:
    """Name -> scheduler, options, and whether its states are scaled to keep their variance."""
    return {
        "DPM++ 2M": (d.DPMSolverMultistepScheduler, {}, True),
        "DPM++ 2M Heun": (d.DPMSolverMultistepScheduler, {"solver_type": "heun"}, True),
        "DPM++ 3M": (d.DPMSolverMultistepScheduler, {"solver_order": 3}, True),
        "DPM++ 2S": (d.DPMSolverSinglestepScheduler, {}, True),
        "DPM++ 3S": (d.DPMSolverSinglestepScheduler, {"solver_order": 3}, True),
        "UniPC 2": (d.UniPCMultistepScheduler, {}, True),
        "UniPC 3": (d.UniPCMultistepScheduler, {"solver_order": 3}, True),
        "DEIS 2": (d.DEISMultistepScheduler, {}, True),
        "DEIS 3": (d.DEISMultistepScheduler, {"solver_order": 3}, True),
        "SA-Solver, tau 0": (d.SASolverScheduler, {"tau_func": lambda _: 0.0}, True),
        "LMS": (d.LMSDiscreteScheduler, {}, False),
        "Heun": (d.HeunDiscreteScheduler, {}, False),
        "DPM2": (d.KDPM2DiscreteScheduler, {}, False),
    }


def _linear_beta(n: int) -> list[float]:
    """Betas of n levels of which the first has σ = 0.002 and the last 80."""
    a, b, first = _vp()
    t = torch.linspace(first, 1, n, dtype=torch.float64)
    log_alphas = -(a * t + b * t**2)  # of the product of all 1 − beta up to t
    return [float(v) for v in -torch.expm1(torch.diff(log_alphas, prepend=torch.zeros(1, dtype=torch.float64)))]


def _epsilon(scheduler: Any, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:  # noqa: ARG001
    """The noise."""
    return (x - denoised) / sigma


def _edm(scheduler: Any, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """The output that its preconditioning turns into the denoised."""
    s = scheduler.config.sigma_data
    root = math.sqrt(sigma**2 + s**2)
    return (denoised - s**2 / root**2 * x) * root / (sigma * s)


def _d_run(make: Callable[[], Any], output: Callable[..., Tensor], preserving: bool) -> Run:
    def run(denoise: Denoise, x: Tensor, calls: int) -> Tensor:
        scheduler = _d_scheduler(make, calls)
        sigmas = [float(v) for v in scheduler.sigmas]
        size = [math.sqrt(1 + v**2) if preserving else 1.0 for v in sigmas]
        y = x / size[0]
        for i, t in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(y, t)
            between = i % 2 == 1 and hasattr(scheduler, "sigmas_interpol")
            sigma = float(scheduler.sigmas_interpol[i]) if between else sigmas[i]
            x_t = y * size[i]
            y = scheduler.step(output(scheduler, x_t, denoise(x_t, sigma), sigma), t, y).prev_sample
        return y * size[-1]

    return run


def _d_scheduler(make: Callable[[], Any], calls: int) -> Any:
    """With as many steps as fit."""
    for steps in range(calls, 0, -1):
        scheduler = make()
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) <= calls:
            scheduler.set_begin_index(0)
            return scheduler
    raise ValueError(f"calls: got {calls}, want more")
