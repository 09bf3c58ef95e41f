"""Log-densities with an exact score: error against seconds per 1000 points.

    pip install --no-deps -r benchmarks/peers.txt && python benchmarks/likelihood.py     # peers, then ours
    python benchmarks/likelihood.py --ours                    # ours against an earlier run of the peers
    python benchmarks/likelihood.py --peers                   # peers only

log p_σmin, σ_min = 0.002, of mixtures of 10 anisotropic Gaussians in 2, 8 and 64 dimensions whose score is exact, at
draws of p_σmin itself; the truth is in closed form. Every method gets the same model and rows, in one batch.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from common import RESULTS, machine, table, write
from likelihood_peers import LIBRARIES, SIGMA_MAX, SIGMA_MIN, Peer, paths, peers
from torch import Tensor

from gradlogp._shapes import Batch
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import GaussianReference, ScoreModel
from gradlogp.oracles import GaussianMixture

CACHE = RESULTS / "likelihood_peers.json"
DIMENSIONS = (2, 8, 64)
N_ROWS = 512
FEW_ROWS = 128  # for the whole trace at D = 64, timed once, in float64 only
REPEATS = 3
N_COMPONENTS = 10


@dataclass(frozen=True)
class Problem:
    """A density and rows.

    Attributes:
        model: p, exact.
        moved: p_σmin, exact.
        x: draws of p_σmin, ``(N, D)``, float64.
        truth: log p_σmin(x), ``(N,)``.
    """

    model: GaussianMixture
    moved: GaussianMixture
    x: Tensor
    truth: Tensor

    @property
    def d(self) -> int:
        """Dimensions."""
        return self.x.shape[1]

    @property
    def fingerprint(self) -> list[float]:
        """Numbers that tell problems apart."""
        return [self.x.square().mean().item(), self.truth.mean().item()]


def problem(d: int) -> Problem:
    """10 equal components of random orientation, means N(0, I), variances log-uniform in [0.01, 1]; seed d."""
    g = torch.Generator().manual_seed(d)
    variances = 10.0 ** (-2 + 2 * torch.rand(N_COMPONENTS, d, generator=g, dtype=torch.float64))
    means = torch.randn(N_COMPONENTS, d, generator=g, dtype=torch.float64)
    v = torch.linalg.qr(torch.randn(N_COMPONENTS, d, d, generator=g, dtype=torch.float64)).Q
    model, moved = (
        GaussianMixture(torch.ones(N_COMPONENTS), means, (v * (variances + extra)[:, None]) @ v.mT)
        for extra in (0.0, SIGMA_MIN**2)
    )
    k = torch.randint(N_COMPONENTS, (N_ROWS,), generator=g)
    z = torch.randn(N_ROWS, d, generator=g, dtype=torch.float64)
    x = means[k] + torch.einsum("nij,nj->ni", v[k], (variances[k] + SIGMA_MIN**2).sqrt() * z)
    return Problem(model, moved, x, model.log_prob(x, Gaussian(SIGMA_MIN)))


class Counted(ScoreModel):
    """The same model, with a count of the rows at which it was evaluated."""

    def __init__(self, model: GaussianMixture) -> None:
        super().__init__()
        self.model, self.event_shape, self.rows = model, model.event_shape, 0

    def score(self, x_t: Batch, kernel: Kernel) -> Batch:
        """The model's."""
        self.rows += len(x_t)
        return self.model.score(x_t, kernel)

    def denoise(self, x_t: Batch, kernel: Kernel) -> Batch:
        """The model's."""
        self.rows += len(x_t)
        return self.model.denoise(x_t, kernel)

    @property
    def reference(self) -> GaussianReference | None:
        """The model's: no evaluation."""
        return self.model.reference


@dataclass(frozen=True)
class Point:
    """What a method did.

    Attributes:
        name: of the method with its settings.
        error: mean |error| in nats.
        rms, largest: of the errors.
        seconds: of processor time per 1000 rows, one thread.
        wall: seconds of the clock per 1000 rows.
        evaluations: of the model, a row; a product with its Jacobian is not one.
        n_rows: that it was run on.
        note: dtype, and more.
    """

    name: str
    error: float
    rms: float
    largest: float
    seconds: float
    wall: float
    evaluations: float
    n_rows: int
    note: str


Run = Callable[[], dict[str, Tensor]]  # name -> log-density of each row


def timed(run: Run) -> tuple[dict[str, Tensor], float, float]:
    """What it gives, the processor's seconds and the clock's."""
    torch.manual_seed(0)
    wall, cpu = time.perf_counter(), time.process_time()
    values = run()
    return values, time.process_time() - cpu, time.perf_counter() - wall


def points(values: dict[str, Tensor], times: list[tuple[float, float]], p: Problem, rest: tuple) -> list[Point]:
    """One a name of the values; ``rest`` is their common name, the rows evaluated and the note."""
    name, rows, note = rest
    found = []
    for prior, v in values.items():
        n = len(v)
        e = (v.double() - p.truth[:n]).abs()
        seconds, wall = (statistics.median(of) / n * 1000 for of in zip(*times, strict=True))
        numbers = (e.mean().item(), e.square().mean().sqrt().item(), e.max().item(), seconds, wall, rows / n)
        found.append(Point(f"{name}{prior}", *(float(f"{v:.4g}") for v in numbers), n, note))
    return found


def pace(p: Problem) -> float:
    """Seconds of processor time per 1000 rows of one evaluation of the model: how fast the machine is just then."""
    spent = []
    for _ in range(20):
        start = time.process_time()
        p.model.denoise(p.x, Gaussian(0.5))
        spent.append((time.process_time() - start) / len(p.x) * 1000)
    return float(f"{statistics.median(spent):.3g}")


# peers


def run_peer(peer: Peer, p: Problem) -> list[Point]:
    """In float64 and float32 once, which is the warm-up, and then three times in the one with the smaller error."""
    slow = peer.exact and p.d > 8
    x = p.x[:FEW_ROWS] if slow else p.x
    models = Counted(p.model), Counted(p.moved)

    def run(rows: Tensor) -> dict[str, Tensor]:
        path = paths(models[0], models[1], p.model)[peer.path]
        return peer.log_probs(path, rows)

    def error(dtype: torch.dtype) -> float:
        try:
            values, *_ = timed(lambda: run(x.to(dtype)))
        except RuntimeError as failure:
            print(f"  {peer.library}, {peer.method}, {dtype}: {failure}", flush=True)
            return math.inf
        e = min((v.double() - p.truth[: len(x)]).abs().mean().item() for v in values.values())
        return e if math.isfinite(e) else math.inf

    if slow:
        dtype = torch.float64
        run(x[:4])
    else:
        errors = {dtype: error(dtype) for dtype in (torch.float64, torch.float32)}
        dtype = torch.float32 if errors[torch.float32] < 0.98 * errors[torch.float64] else torch.float64
    times = []
    for _ in range(1 if slow else REPEATS):
        for model in models:
            model.rows = 0
        values, *spent = timed(lambda: run(x.to(dtype)))
        times.append(tuple(spent))
    path = paths(*models, p.model)[peer.path].name
    rest = (f"{peer.library}: {peer.method}; {path}; ", sum(m.rows for m in models), str(dtype).removeprefix("torch."))
    return points(values, times, p, rest)


def measure_peers() -> None:
    """Run them all, and keep what they did."""
    try:
        versions = {name: version(name) for name in LIBRARIES}
    except PackageNotFoundError as missing:
        raise SystemExit(f"missing {missing.name}: pip install --no-deps -r benchmarks/peers.txt") from None
    found: dict[str, object] = {"machine": machine(), "versions": versions}
    for d in DIMENSIONS:
        p, done = problem(d), []
        paces = [pace(p)]
        for peer in peers():
            of_peer = run_peer(peer, p)
            done += of_peer
            for q in of_peer:
                print(f"D = {d}: {q.name}: {q.error:.2g} nats, {q.seconds:.3g} s, {q.note}", flush=True)
            paces.append(pace(p))
            kept = [asdict(q) for q in done]
            found[f"D = {d}"] = {"fingerprint": p.fingerprint, "pace": statistics.median(paces), "points": kept}
            text = json.dumps(found, ensure_ascii=False).replace('}, {"name"', '},\n{"name"')
            CACHE.write_text(text + "\n", encoding="utf-8")


def cached(p: Problem) -> list[Point]:
    """The peers' points, or an error where the problem is not the one that they were run on."""
    kept = json.loads(CACHE.read_text(encoding="utf-8"))[f"D = {p.d}"]
    if not np.allclose(kept["fingerprint"], p.fingerprint, rtol=1e-6):
        raise SystemExit(f"D = {p.d}: has changed since the peers were run on it; run them again")
    return [Point(**q) for q in kept["points"]]


# ours


def settings(d: int) -> dict[str, dict[str, object]]:
    """Name -> arguments of ``likelihood.log_prob`` beside the levels."""
    from gradlogp.likelihood import Exact, Hutchinson

    exact = {f"Exact(atol={t:g})": {"trace": Exact(atol=t)} for t in (1e-1, 1e-2, 1e-4, 1e-6)[: 4 if d <= 8 else 3]}
    probes = {f"Hutchinson(atol={t:g})": {"trace": Hutchinson(atol=t)} for t in (1e-1, 1e-2)} if d > 8 else {}
    return {"default": {}, **exact, **probes}


def ours(p: Problem) -> list[Point]:
    """Each setting, after a warm-up, three times; the exact trace at D = 64 on as few rows as the peers', once."""
    return [q for name, options in settings(p.d).items() for q in our_points(p, name, options)]


def our_points(p: Problem, name: str, options: dict[str, object]) -> list[Point]:
    from gradlogp import likelihood

    reported: list[Tensor] = []
    slow = p.d > 8 and not name.startswith("Hutchinson")
    x = p.x[:FEW_ROWS] if slow else p.x

    def run(rows: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        r = likelihood.log_prob(model, rows, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, generator=generator, **options)
        reported.append(r.error)
        return {"": r.value}

    times = []
    for rows in [x[:4], x] if slow else [x] * (REPEATS + 1):
        model = Counted(p.model)  # what is fitted to a model is fitted again
        values, *spent = timed(lambda rows=rows: run(rows))
        times.append(tuple(spent))
    within = ((values[""] - p.truth[: len(x)]).abs() <= reported[-1]).double().mean().item()
    note = f"own error {reported[-1].mean().item():.2g}, holds in {100 * within:.1f} %"
    return points(values, times[1:], p, (f"**ours**: {name}", model.rows, note))


# report

HEAD = ["method", "mean abs. error", "RMS", "largest", "s per 1000", "evaluations a row", "rows", "note"]


def line(q: Point) -> list[str]:
    numbers = (f"{v:.2g}" for v in (q.error, q.rms, q.largest))
    return [q.name, *numbers, f"{q.seconds:.3g}", f"{q.evaluations:.0f}", str(q.n_rows), q.note]


def front(found: list[Point]) -> list[Point]:
    """Those that no other beats in both error and time."""
    return [q for q in found if not any(o.error <= q.error and o.seconds <= q.seconds and o is not q for o in found)]


def between(error: float, found: list[Point]) -> float:
    """Seconds at an error, log-linear between those that no other beats; NaN below the least error."""
    best = sorted(front(found), key=lambda q: q.error)
    if error < best[0].error:
        return math.nan
    logs = np.log([[q.error, q.seconds] for q in best])
    return math.exp(np.interp(math.log(error), logs[:, 0], logs[:, 1]))


def equal_error(own: list[Point], others: list[Point]) -> str:
    """For each of ours: the fastest peer with an error as small, and between them; on either path, and on VE."""
    rows = []
    for q in own:
        row = [q.name, f"{q.error:.2g}", f"{q.seconds:.3g}"]
        for allowed in (others, [o for o in others if "; VE" in o.name]):
            enough = [o for o in allowed if o.error <= q.error]
            if enough:
                best = min(enough, key=_seconds)
                times = (best.seconds, between(q.error, allowed))
                row += [best.name, *(f"{v:.3g} ({v / q.seconds:.2g})" for v in times)]
            else:
                best = min(allowed, key=lambda o: o.error)
                row += [f"none; nearest {best.name}, {best.error:.2g} nats, {best.seconds:.3g} s", "", ""]
        rows.append(row)
    cost = ["its s (over ours)", "s between peers (over ours)"]
    return table(["ours", "error", "s", "fastest peer as good", *cost, "fastest on VE as good", *cost], rows)


def section(p: Problem, own: list[Point]) -> str:
    others = cached(p)
    then = json.loads(CACHE.read_text(encoding="utf-8"))[f"D = {p.d}"].get("pace")
    paces = f"One evaluation of the model took {pace(p):.3g} s per 1000 rows"
    paces += f", and {then:.3g} when the peers were run." if then else "."
    parts = [f"## D = {p.d}", paces, table(HEAD, [line(q) for q in sorted([*others, *own], key=lambda q: q.error)])]
    best = ", then ".join(f"{q.name} ({q.error:.2g}, {q.seconds:.3g} s)" for q in sorted(front(others), key=_seconds))
    parts.append(f"Peers that no other peer beats in both: {best}.")
    if own:
        parts += ["At equal mean absolute error:", equal_error(own, others)]
    return "\n\n".join(parts)


def _seconds(q: Point) -> float:
    return q.seconds


NOTES = f"""Mixtures of {N_COMPONENTS} Gaussians of random orientation, means N(0, I), variances log-uniform in
[0.01, 1]; {N_ROWS} draws of p_σmin in one batch, σ_min = {SIGMA_MIN}, σ_max = {SIGMA_MAX:g}. Errors of log p_σmin in
nats. Seconds are of processor time, one thread, per 1000 rows: the median of {REPEATS} after a warm-up. Those that take
the whole trace at D = 64 have {FEW_ROWS} rows, timed once. Each peer is in float64 or float32, whichever errs less; the
model computes in float64 within. All get the trace from autograd, as they do it themselves (torchdiffeq, which leaves
it to the user: a backward pass vectorised over eight directions).

VE is dx/dσ = (x − D)/σ in σ, which takes peers fewer calls than log σ at the same error; its prior at σ = 80 is
N(0, 80²), as k-diffusion and score_sde have it, or the Gaussian with the data's means and variances. Straight is flow
matching's path x_t = t·x₁ + (1 − t)·z with the exact velocity, whose prior N(0, I) is exact; no network trained up to
σ = 80 reaches it, for its σ/α goes to infinity, but an exact score does, and it is the better path for all of them."""


def report(own: dict[int, list[Point]]) -> None:
    kept = json.loads(CACHE.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
    of_peers = f"Peers: {versions}; run on {kept['machine']}."
    body = "\n\n".join([NOTES, of_peers, *(section(p, own.get(p.d, [])) for p in map(problem, DIMENSIONS))])
    write("likelihood", "Log-densities with an exact score", "python benchmarks/likelihood.py", body)


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--ours", action="store_true", help="not the peers: take an earlier run of theirs")
    only.add_argument("--peers", action="store_true", help="not ours")
    chosen = parser.parse_args()
    if not chosen.ours:
        measure_peers()
    report({} if chosen.peers else {d: ours(problem(d)) for d in DIMENSIONS})


if __name__ == "__main__":
    main()
