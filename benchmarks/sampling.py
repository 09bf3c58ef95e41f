"""Samplers' accuracy per network call: error of the end points of the probability-flow ODE, with an exact denoiser.

    pip install --no-deps -r benchmarks/peers.txt && python benchmarks/sampling.py     # peers, then ours
    python benchmarks/sampling.py --ours                      # ours against the peers' errors of an earlier run
    python benchmarks/sampling.py --peers                     # peers only

The flow dx/dσ = (x − D(x; σ))/σ of six Gaussian mixtures, whose D is known, is followed from draws of p_80 at σ = 80 to
σ = 0.002, or to 0 where a peer's schedule ends there. Every method has the same starts, its calls are counted, and its
end points are compared with the exact ones, at whichever of the two levels it is nearer to.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, table, write
from sampling_peers import SIGMA_MAX, SIGMA_MIN, Run, pairs
from scipy.integrate import solve_ivp
from torch import Tensor

from gradlogp import samplers
from gradlogp._shapes import Batch
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import GaussianReference, ScoreModel
from gradlogp.oracles import GaussianMixture

CALLS = (5, 8, 10, 15, 20, 35)
AVERAGED = 5  # the geometric means are over the first five of them
CACHE = RESULTS / "sampling_peers.json"
LIBRARIES = ("azula", "diffusers", "k-diffusion")
USUAL = "k-diffusion: DPM++ 2M, Karras"
MEASURES = ("RMS", "median")
N_STARTS = 1000
_TINY = 1e-5  # a level below which the flow has one term left, σ²/2 times the score
_TOGETHER = 50  # starts that one adaptive integration follows


@dataclass(frozen=True)
class Problem:
    """A density, starts at σ = 80, and where the exact flow takes them.

    Attributes:
        name: of the density.
        about: its components, in words.
        model: the exact density.
        starts: draws of p_80, ``(N, D)``, float64.
        others: as many more draws, for what is fitted before it is measured.
    """

    name: str
    about: str
    model: GaussianMixture
    starts: Tensor
    others: Tensor

    def end(self, sigma: float) -> Tensor:
        """Where the flow takes the starts at a level σ in [0, 80), ``(N, D)``; kept in the temporary folder."""
        return exact_end(self.model, self.starts, sigma)


def problems() -> list[Problem]:
    """The six densities; the same at every call."""
    return [grid(), ring(), anisotropic(16), anisotropic(64), isotropic(), correlated()]


def grid() -> Problem:
    axis = torch.arange(-2.0, 3.0, dtype=torch.float64)
    about = "D = 2: 25 components on {−2, −1, 0, 1, 2}², standard deviation 0.1"
    return _problem("grid", about, torch.cartesian_prod(axis, axis), torch.tensor(0.01))


def ring() -> Problem:
    angle = torch.arange(10, dtype=torch.float64) * 2 * math.pi / 10
    about = "D = 2: 10 components on the circle of radius 2, standard deviation 0.05"
    return _problem("ring", about, 2 * torch.stack([angle.cos(), angle.sin()], 1), torch.tensor(0.0025))


def anisotropic(d: int) -> Problem:
    g = torch.Generator().manual_seed(d)
    variances = 10.0 ** (-2 + 2 * torch.rand(10, d, generator=g, dtype=torch.float64))
    about = f"D = {d}: 10 components of random orientation, means N(0, I), variances log-uniform in [0.01, 1]"
    return _problem(f"anisotropic {d}", about, _normal(g, 10, d), variances, _rotations(g, 10, d))


def isotropic() -> Problem:
    g = torch.Generator().manual_seed(1)
    variances = 0.5 + torch.rand(5, 1, generator=g, dtype=torch.float64)
    about = "D = 8: 5 isotropic components, means N(0, 4I), variances in [0.5, 1.5]"
    return _problem("isotropic", about, 2 * _normal(g, 5, 8), variances)


def correlated() -> Problem:
    g = torch.Generator().manual_seed(2)
    variances = torch.logspace(-3, 0, 8, dtype=torch.float64)
    about = "D = 8: 3 components of random orientation, means N(0, I), variances log-spaced from 0.001 to 1"
    return _problem("correlated", about, _normal(g, 3, 8), variances, _rotations(g, 3, 8))


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _rotations(g: torch.Generator, k: int, d: int) -> Tensor:
    return torch.linalg.qr(_normal(g, k, d, d)).Q


def _problem(name: str, about: str, means: Tensor, variances: Tensor, vectors: Tensor | None = None) -> Problem:
    """Equal weights, covariances V_k diag(variances_k) V_kᵀ.

    The starts are drawn here, not by the model, whose eigenvectors have a sign of the machine's choice.
    """
    variances = variances.double().expand(means.shape)
    v = torch.eye(means.shape[1], dtype=torch.float64).expand(len(means), -1, -1) if vectors is None else vectors
    model = GaussianMixture(
        torch.ones(len(means)), means, variances if vectors is None else (v * variances[:, None]) @ v.mT
    )

    def draw(seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        k = torch.randint(len(means), (N_STARTS,), generator=g)
        z = _normal(g, N_STARTS, means.shape[1])
        x = means[k] + torch.einsum("nij,nj->ni", v[k], variances[k].sqrt() * z)
        return x + SIGMA_MAX * _normal(g, *x.shape)

    return Problem(name, about, model, draw(0), draw(1))


def exact_end(model: GaussianMixture, starts: Tensor, sigma: float, tolerance: float = 1e-10) -> Tensor:
    """The flow's end points at σ, by an adaptive method of order 8 in log σ (Hairer, Nørsett and Wanner 1993, II.5)."""
    path = Path(tempfile.gettempdir()) / "gradlogp-sampling" / f"{_digest(model, starts, sigma, tolerance)}.npy"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        low = max(sigma, _TINY)
        parts = [_integrate(model, x, low, tolerance) for x in starts.split(_TOGETHER)]
        end = torch.cat(parts)
        if sigma < low:
            end = end + (low**2 - sigma**2) / 2 * model.score(end, Gaussian(low))
        np.save(path, end.numpy())
    return torch.from_numpy(np.load(path))


def _integrate(model: GaussianMixture, x: Tensor, sigma: float, tolerance: float) -> Tensor:
    def slope(t: float, y: np.ndarray) -> np.ndarray:  # dx/d log σ = x − D
        x_t = torch.from_numpy(y).reshape(x.shape)
        return (x_t - model.denoise(x_t, Gaussian(math.exp(t)))).flatten().numpy()

    span = (math.log(SIGMA_MAX), math.log(sigma))
    solution = solve_ivp(slope, span, x.flatten().numpy(), "DOP853", rtol=tolerance, atol=tolerance, t_eval=span[1:])
    return torch.from_numpy(solution.y[:, -1].copy()).reshape(x.shape)


def fingerprint(problem: Problem) -> list[float]:
    """Numbers that tell problems apart, and are the same on all machines but for rounding."""
    x = problem.starts
    log_prob = problem.model.log_prob(problem.model.means, Gaussian(0.1))
    return [x.square().mean().item(), (x[0] - x[-1]).norm().item(), log_prob.square().sum().item()]


def _digest(model: GaussianMixture, starts: Tensor, *numbers: float) -> str:
    tensors = [t for t in (model.log_weights, model.means, model.variances, model.vectors, starts) if t is not None]
    data = b"".join(t.contiguous().numpy().tobytes() for t in tensors) + repr(numbers).encode()
    return hashlib.sha256(data).hexdigest()[:24]


class Counted(ScoreModel):
    """The same model, with a count of its network calls and of the rows in them."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model, self.calls, self.rows = model, 0, 0

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """The model's."""
        self._count(x_t)
        return self.model.score(x_t, kernel)

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """The model's."""
        self._count(x_t)
        return self.model.denoise(x_t, kernel)

    @property
    def reference(self) -> GaussianReference | None:
        """The model's: no call."""
        return self.model.reference

    def _count(self, x_t: Batch) -> None:
        self.calls += 1
        self.rows += len(x_t)


@dataclass(frozen=True)
class Errors:
    """Of one method at each of CALLS: calls made, the errors; rows evaluated to fit it, the RMS's standard error."""

    calls: list[int]
    rms: list[float]
    median: list[float]
    fit: tuple[int, ...] = ()
    stderr: tuple[float, ...] = ()

    def of(self, measure: str) -> np.ndarray:
        """One of the two."""
        return np.array(self.rms if measure == "RMS" else self.median)


def error(problem: Problem, x: Tensor) -> tuple[float, float, float]:
    """RMS, median and the RMS's standard error, against the exact end at 0.002 or at 0, whichever is nearer."""
    squares = [(x.double() - problem.end(sigma)).square().mean(1) for sigma in (SIGMA_MIN, 0.0)]
    rms = min(d.mean().sqrt().item() for d in squares)
    median = min(d.median().sqrt().item() for d in squares)
    stderr = min(d.std().item() for d in squares) / (2 * rms * math.sqrt(len(x)))
    return (rms, median, stderr) if math.isfinite(rms) else (math.inf, math.inf, math.inf)


def ours(problem: Problem, dtype: torch.dtype = torch.float64) -> Errors:
    """The first use of a model, when something may be fitted to it, is with other starts; the second is measured."""
    calls, found, fit = [], [], []
    for n in CALLS:
        model, rows_of = Counted(problem.model), []
        for x in (problem.others, problem.starts):
            model.calls = model.rows = 0
            end = samplers.sample(model, x.to(dtype), n_steps=n, sigma_max=SIGMA_MAX, sigma_min=SIGMA_MIN)
            rows_of.append(model.rows)
        calls.append(model.calls)
        found.append(error(problem, end))
        fit.append(rows_of[0] - rows_of[1])
    rms, median, stderr = zip(*found, strict=True)
    return Errors(calls, list(rms), list(median), tuple(fit), stderr)


def peer(problem: Problem, run: Run) -> Errors:
    """A peer at each number of calls."""
    calls, found = [], []
    for n in CALLS:
        model = Counted(problem.model)
        with torch.no_grad():
            x = run(lambda y, sigma, m=model: m.denoise(y, Gaussian(sigma)), problem.starts, n)
        calls.append(model.calls)
        found.append(error(problem, x))
    return Errors(calls, [e[0] for e in found], [e[1] for e in found])


def measure_peers() -> None:
    """Run all pairs on all problems, and keep their errors."""
    every = pairs()
    missing = set(LIBRARIES) - {pair.library for pair in every}
    if missing:
        raise SystemExit(f"missing {', '.join(sorted(missing))}: pip install --no-deps -r benchmarks/peers.txt")
    found: dict[str, object] = {"versions": {name: version(name) for name in LIBRARIES}, "calls": list(CALLS)}
    for problem in problems():
        start, of = time.perf_counter(), {}
        for pair in every:
            e = peer(problem, pair.run)
            if max(m - n for m, n in zip(e.calls, CALLS, strict=True)) > 0:
                raise RuntimeError(f"{pair.name}: made {e.calls} calls, want at most {CALLS}")
            of[pair.name] = [e.calls, [_short(v) for v in e.rms], [_short(v) for v in e.median]]
        found[problem.name] = {"fingerprint": fingerprint(problem), "pairs": of}
        print(f"{problem.name}: {len(of)} pairs, {time.perf_counter() - start:.0f} s", flush=True)
    CACHE.write_text(json.dumps(found, ensure_ascii=False).replace(']], "', ']],\n"') + "\n", encoding="utf-8")


def cached(problem: Problem) -> dict[str, Errors]:
    """The peers' errors, or an error where the problem is not the one that they were run on."""
    kept = json.loads(CACHE.read_text(encoding="utf-8"))[problem.name]
    if not np.allclose(kept["fingerprint"], fingerprint(problem), rtol=1e-6):
        raise SystemExit(f"{problem.name}: has changed since the peers were run on it; run them again")
    return {name: Errors(*e) for name, e in kept["pairs"].items()}


def _short(v: float) -> float:
    return float(f"{v:.4g}")


def mean(e: np.ndarray) -> float:
    """Geometric mean over 5 to 20 calls."""
    return float(np.exp(np.log(e[:AVERAGED]).mean()))


def best_single(peers: dict[str, Errors], measure: str) -> str:
    return min(peers, key=lambda name: mean(peers[name].of(measure)))


Own = tuple[Errors, Errors] | None  # ours with states in float64 and in float32
_STDERR = "its standard error"
_SHORT = ("best of all peers", "best single", "DPM++ 2M, Karras")


def rows(peers: dict[str, Errors], own: Own, measure: str) -> list[list[str]]:
    """One measure's rows of a problem's table, and the pairs that they name."""
    every = np.array([e.of(measure) for e in peers.values()])
    single = best_single(peers, measure)
    lines = {
        "best of all peers": every.min(0),
        f"best single: {single}": peers[single].of(measure),
        USUAL: peers[USUAL].of(measure),
    }
    if own is not None:
        e, single_precision = own[0].of(measure), own[1]
        ratios = {f"ours / {name}": e / v for name, v in zip(_SHORT, lines.values(), strict=True)}
        spread = {_STDERR: np.array(own[0].stderr)} if measure == "RMS" else {}
        lines = {**lines, "**ours**": e, **spread, "ours, float32": single_precision.of(measure), **ratios}
    means = ["" if name == _STDERR else f"{mean(e):.3g}" for name, e in lines.items()]
    return [[measure, name, *(f"{v:.3g}" for v in e), m] for (name, e), m in zip(lines.items(), means, strict=True)]


def section(problem: Problem, own: Own) -> str:
    peers = cached(problem)
    head = ["error", "method", *(f"{n} calls" for n in CALLS), "mean of 5 to 20"]
    text = table(head, [row for measure in MEASURES for row in rows(peers, own, measure)])
    names = list(peers)
    best = [names[int(i)] for i in np.array([e.rms for e in peers.values()]).argmin(0)]
    note = "; ".join(f"{n}: {name}" for n, name in zip(CALLS, best, strict=True))
    more = (
        ""
        if own is None or own[0].calls == list(CALLS)
        else f"\n\nOurs made {own[0].calls} calls, not as many as named."
    )
    return f"## {problem.name}\n\n{problem.about}.\n\n{text}\n\nBest in RMS at each number of calls: {note}.{more}"


def summary(of: dict[str, tuple[dict[str, Errors], Own]]) -> str:
    """Geometric means over 5 to 20 calls, a problem a column: peers, and the ratios of ours."""
    lines = []
    for measure in MEASURES:
        everywhere = {
            name: math.prod(mean(peers[name].of(measure)) for peers, _ in of.values())
            for name in next(iter(of.values()))[0]
        }
        one = min(everywhere, key=lambda name: everywhere[name])
        against = {
            "best of all peers": lambda peers, m=measure: np.array([e.of(m) for e in peers.values()]).min(0),
            "best single pair there": lambda peers, m=measure: peers[best_single(peers, m)].of(m),
            f"best single pair over all problems: {one}": lambda peers, m=measure, name=one: peers[name].of(m),
            USUAL: lambda peers, m=measure: peers[USUAL].of(m),
        }
        for name, f in against.items():
            errors_of = [mean(f(peers)) for peers, _ in of.values()]
            lines.append([measure, name, *(f"{v:.3g}" for v in errors_of)])
            owns = [mean(own[0].of(measure)) for _, own in of.values() if own is not None]
            if owns:
                ratios = (f"{own / v:.3g}" for own, v in zip(owns, errors_of, strict=True))
                lines.append([measure, "ours / that", *ratios])
    return table(["error", "mean of 5 to 20 calls", *of], lines)


COST = (
    "Peers fit nothing. Here they get as many calls a draw as ours take in all, the fit's shared among so many draws\n"
    "(in brackets, the largest of the problems): our error over the best of all peers' at that cost, theirs\n"
    f"interpolated between the numbers of calls above and held constant beyond {CALLS[-1]}, which favours ours.\n"
    "Geometric means over the problems; above 1 a peer is the better choice for so few draws."
)


def fit_notes(of: dict[str, tuple[dict[str, Errors], Own]]) -> str:
    most = [max(own[0].fit[i] for _, own in of.values() if own is not None) for i in range(len(CALLS))]
    counts = ", ".join(f"{rows} at {n}" for n, rows in zip(CALLS, most, strict=True))
    return (
        "Ours is `samplers.sample(model, x, n_steps=n)`: n calls a draw **once it is fitted to the model**, at the\n"
        "first use of a model and a number of steps. The fit is not in the numbers of calls: it evaluates the model\n"
        f"on at most this many rows: {counts}.\n"
        "It was made with draws other than those measured. The standard error of its RMS is by the delta method, and\n"
        "large where a few starts that end in a wrong mode make the RMS."
    )


def whole_cost(of: dict[str, tuple[dict[str, Errors], Own]]) -> str:
    """Ours against the best of all peers where these get the calls of our fit too, shared among a number of draws."""
    lines = []
    for measure, n_draws in product(MEASURES, (1000, 10_000, 100_000)):
        ratios, cost = [], []
        for i, n in enumerate(CALLS):
            logs = []
            for peers, own in of.values():
                assert own is not None
                best = np.array([e.of(measure) for e in peers.values()]).min(0)
                spent = n + own[0].fit[i] / n_draws
                theirs = np.interp(math.log(spent), np.log(CALLS), np.log(best))
                logs.append(math.log(own[0].of(measure)[i]) - theirs)
                cost.append(spent)
            ratios.append(f"{math.exp(np.mean(logs)):.3g} ({max(cost[-len(of) :]):.3g})")
        lines.append([measure, n_draws, *ratios])
    return table(["error", "draws", *(f"{n} calls" for n in CALLS)], lines)


def report(own: dict[str, tuple[Errors, Errors]]) -> None:
    kept = json.loads(CACHE.read_text(encoding="utf-8"))
    of = {p.name: (cached(p), own.get(p.name)) for p in problems()}
    versions = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
    n_pairs = len(next(iter(of.values()))[0])
    notes = (
        f"The same {N_STARTS} draws of p_80 for all, float64, followed from σ = 80 to 0.002 (or 0) with the exact\n"
        "denoiser; each method's calls of it are counted, and those of two calls a step take as many steps as fit.\n"
        "The error is the distance from the exact end (at 0.002 or at 0, whichever is nearer) over √D: its root mean\n"
        "square (RMS), which those that end in a wrong mode dominate, and its median. `Best of all` is the smallest\n"
        "of all pairs at that number of calls, `best single` the pair with the smallest geometric mean of that error\n"
        f"over 5 to 20 calls. Peers: {versions};\n"
        f"{n_pairs} pairs of a deterministic method and a schedule, those of k-diffusion both as documented, with\n"
        "σ = 0 appended, and without it (`benchmarks/sampling_peers.py` says how each is set). Exact ends are good to\n"
        "2e-8."
    )
    if own:
        notes += "\n\n" + fit_notes(of)
    cost = ["## With the cost of the fit", COST, whole_cost(of)] if own else []
    parts = [notes, "## All problems", summary(of), *cost, *(section(p, own.get(p.name)) for p in problems())]
    title = "Samplers: error per network call, with an exact denoiser"
    write("sampling", title, "python benchmarks/sampling.py", "\n\n".join(parts))


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--ours", action="store_true", help="not the peers: take their errors of an earlier run")
    only.add_argument("--peers", action="store_true", help="not ours")
    chosen = parser.parse_args()
    if not chosen.ours:
        measure_peers()
    report({} if chosen.peers else {p.name: (ours(p), ours(p, torch.float32)) for p in problems()})


if __name__ == "__main__":
    main()
