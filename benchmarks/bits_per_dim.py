"""Bits per dimension of digits: uniform against variational dequantisation, the flow's density against the SDE's bound.

Run: python benchmarks/bits_per_dim.py (about 7 minutes of one core). One model is trained on uniformly dequantised
digits; everything else is measured on other digits.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from common import table, write
from sklearn.datasets import load_digits
from torch import Tensor

from gradlogp import likelihood, models, networks, processes, training
from gradlogp.diagnostics import Estimate
from gradlogp.likelihood.dequantise import (
    DenoisingSurrogate,
    Dequantisation,
    DequantiserFit,
    UniformDequantisation,
    VariationalDequantisation,
    fit_dequantiser,
)
from gradlogp.likelihood.discrete import LogMass, MassBound, bits_per_dim, log_mass, mass_bound

N_TEST = 200
N_DRAWS = 4
SECONDS = 60.0
COPIES = 16  # of each training digit, each with noise of its own
SIGMA_MIN, SIGMA_MAX = 0.02, 80.0  # in grey levels
FIT_STEPS = 1500
D = 64


def split() -> tuple[Tensor, Tensor, Tensor]:
    """64 % to train, 16 % to stop on, and 200 of the remaining 20 % to measure on; shuffled, seed 0."""
    x = load_digits().data
    train, stop, test = np.split(x[np.random.default_rng(0).permutation(len(x))], [1150, 1437])
    return tuple(torch.tensor(part, dtype=torch.float32) for part in (train, stop, test[:N_TEST]))


def trained(train: Tensor, stop: Tensor) -> tuple[models.Preconditioned, training.Record]:
    """A residual MLP on the marginal reference, by the likelihood's weight."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    noisy, held_out = (
        UniformDequantisation(1.0).sample(v.repeat(n, 1), generator=g)[0] for v, n in ((train, COPIES), (stop, 2))
    )
    network = networks.ResidualMLP((D,), width=256, depth=3, dropout=0.1)
    model = models.Preconditioned(network, models.MarginalReference.of_data(noisy))
    goal = training.Goal.likelihood(training.NoiseLevels(SIGMA_MIN, SIGMA_MAX))
    recipe = training.Recipe(max_seconds=SECONDS, weight=goal.weight, evaluate_every=250)
    history = list(training.train(model, noisy, held_out, levels=goal.levels, recipe=recipe, generator=g))
    return model, training.kept(history)


def measured(model: models.ScoreModel, law: Dequantisation, test: Tensor) -> tuple[LogMass, MassBound]:
    """The flow's log-mass and the bound; the same seeds for every law, so that their draws are related."""
    g, noise = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    trace = likelihood.Hutchinson(atol=0.05)

    def density(y: Tensor) -> Tensor:
        return likelihood.log_prob(
            model, y, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, trace=trace, generator=noise
        ).value

    value = log_mass(density, test, law, n_draws=N_DRAWS, generator=g)
    g, noise = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)

    def nll(y: Tensor) -> Tensor:
        options = {"t_min": SIGMA_MIN, "t_max": SIGMA_MAX, "prior": model.reference}
        method = likelihood.BoundMethod(n_draws=1024)
        return likelihood.bound(model, y, processes.EDM(), method=method, generator=noise, **options).value

    return value, mass_bound(nll, test, law, n_draws=N_DRAWS, generator=g)


def bits(nats: Tensor) -> str:
    """Of a log-mass of rows, with the standard error over rows."""
    return shown(bits_per_dim(Estimate.mean_of(nats), D))


def shown(e: Estimate) -> str:
    return f"{e.value:.4f} ± {e.stderr:.4f}"


def rms(v: Tensor) -> str:
    return f"{v.double().square().mean().sqrt().item():.2f}"


def less(a: Tensor, b: Tensor) -> str:
    """How many bits a dimension of b's are more than a's, row by row; both are log-masses."""
    e = Estimate.mean_of(a.double() - b.double())
    unit = D * np.log(2)
    return shown(Estimate(e.value / unit, e.stderr / unit))


def report(found: dict[str, tuple[LogMass, MassBound]], fit: DequantiserFit, kept: training.Record, rest: str) -> str:
    """Four numbers, and what they differ by."""
    (u, u_bound), (v, v_bound) = found["uniform"], found["variational"]
    rows = [[name, bits(m.elbo), bits(-b.value), bits(m.value)] for name, (m, b) in found.items()]
    gains = less(v.elbo, u.elbo), less(-v_bound.value, -u_bound.value), less(v.value, u.value)
    rows.append(["uniform − variational, paired", *gains])
    gaps = [[name, less(m.elbo, -b.value)] for name, (m, b) in found.items()]
    g = bits_per_dim(Estimate(-fit.gain.value, fit.gain.stderr), D)
    noise = "; ".join(f"{n}: flow {rms(m.elbo_stderr)}, bound {rms(b.stderr)}" for n, (m, b) in found.items())
    parts = [
        NOTES,
        table(["dequantisation", "flow's density, ELBO", "SDE's bound, Theorem 3", f"flow's, {N_DRAWS} weights"], rows),
        "The bound minus the flow's ELBO, row by row (two densities: it may have either sign):",
        table(["dequantisation", "bits per dimension"], gaps),
        f"The fit's own estimate of the gain, on the digits it was stopped on: {shown(g)} bits per dimension.",
        f"Standard error of one row over its {N_DRAWS} draws, in nats (root mean square): {noise}.",
        f"Training: best look at step {kept.step}, {kept.seconds:.0f} s. {rest}",
    ]
    return "\n\n".join(parts)


NOTES = f"""Digits of scikit-learn, 8 × 8 pixels, levels 0 to 16, cells [x, x + 1): 1150 digits to train, 287 to stop
on, {N_TEST} others to measure on. One model for all: Preconditioned(ResidualMLP(width 256, depth 3),
MarginalReference), {SECONDS:.0f} s of one core on uniformly dequantised digits, noise {SIGMA_MIN} to {SIGMA_MAX:g} grey
levels. The variational law ({FIT_STEPS} steps) is trained afterwards against Theorem 3's bound of that model, which
does not change. Bits per dimension of the cells' mass, {N_DRAWS} draws a digit, the same seeds for both laws; standard
errors are over digits. The flow's density is at noise {SIGMA_MIN}, trace by Hutchinson to 0.05 nats; with that noise
its weights' mean is at most 0.002 nats too high. The bound is for clean data (EDM, 1024 draws, the reference as
prior)."""


def main() -> None:
    torch.set_num_threads(1)
    train, stop, test = split()
    clock = [time.perf_counter()]
    model, kept = trained(train, stop)
    clock.append(time.perf_counter())
    surrogate = DenoisingSurrogate(model, processes.EDM(), t_min=SIGMA_MIN, t_max=SIGMA_MAX, prior=model.reference)
    g = torch.Generator().manual_seed(3)
    variational = VariationalDequantisation(1.0, train, width=128, generator=g)
    fit = fit_dequantiser(variational, surrogate, train, held_out=stop, n_steps=FIT_STEPS, generator=g)
    for look in fit.looks:
        print(look, flush=True)
    clock.append(time.perf_counter())
    laws = {"uniform": UniformDequantisation(1.0), "variational": variational}
    found = {name: measured(model, law, test) for name, law in laws.items()}
    clock.append(time.perf_counter())
    training_, fitting, measuring = np.diff(clock)
    rest = f"Seconds: training {training_:.0f}, fit of the law {fitting:.0f}, measuring {measuring:.0f}."
    write(
        "bits_per_dim",
        "Bits per dimension of digits",
        "python benchmarks/bits_per_dim.py",
        report(found, fit, kept, rest),
    )


if __name__ == "__main__":
    main()
