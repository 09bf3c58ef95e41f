"""What can be trusted, measured: writes the table of the README. Run: python benchmarks/trust.py (about 2 minutes)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from common import table, write
from scipy import integrate, stats
from torch import distributions as td
from trust_energies import relative, rows_of_energies

from gradlogp import diagnostics, kernels, likelihood, models, networks, objectives, oracles, processes, samplers

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- trust: made by benchmarks/trust.py -->", "<!-- /trust -->"

Row = list[str]


def mixture_rows() -> list[Row]:
    """Three full covariances in 4 dimensions under N(0, 0.3² I), modes to 30 standard deviations, against SciPy."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(3, 4, 4, generator=g, dtype=torch.float64)
    w, m, s = torch.tensor([0.2, 0.3, 0.5]).double(), torch.randn(3, 4, generator=g).double() * 2, a @ a.mT / 4
    x = torch.cat([torch.randn(200, 4, generator=g).double() * scale for scale in (1, 10, 30)])
    k, noise = kernels.Gaussian(0.3), 0.09 * np.eye(4)
    parts = [stats.multivariate_normal(m[i].numpy(), s[i].numpy() + noise) for i in range(3)]
    joint = np.stack([math.log(w[i]) + parts[i].logpdf(x.numpy()) for i in range(3)], 1)
    log_p = torch.from_numpy(np.logaddexp.reduce(joint, 1))
    r = np.exp(joint - log_p.numpy()[:, None])
    each = [np.linalg.solve(s[i].numpy() + noise, (m[i] - x).numpy().T).T for i in range(3)]
    score = torch.from_numpy(sum(r[:, i : i + 1] * each[i] for i in range(3)))
    exact = oracles.GaussianMixture(w, m, s)
    return [
        ["mixture log-density against SciPy, to 30 σ", *errors(lambda x: relative(exact.log_prob(x, k), log_p), x)],
        ["mixture score against SciPy, to 30 σ", *errors(lambda x: relative(exact.score(x, k), score), x)],
    ]


def errors(f, x: torch.Tensor) -> list[str]:  # type: ignore[no-untyped-def]
    return [f"{f(x):.0e}", f"{f(x.float()):.0e}"]


def quadrature_rows() -> list[Row]:
    """Laplace data under Laplace noise, whose convolution is known."""
    b0, b = 1.0, 0.3
    x = torch.linspace(-20, 20, 400, dtype=torch.float64)[:, None]
    log_p = ((b0 * (-x.abs() / b0).exp() - b * (-x.abs() / b).exp()) / (2 * (b0**2 - b**2))).log().squeeze(1)
    oracle, noise = oracles.Quadrature(td.Laplace(0.0, b0)), td.Laplace(0.0, torch.tensor(b, dtype=torch.float64))
    k = kernels.Additive(noise)
    return [["quadrature log-density, Laplace ∗ Laplace", *errors(lambda x: relative(oracle.log_prob(x, k), log_p), x)]]


def fisher_rows() -> list[Row]:
    """Fisher information of the noise against SciPy's quadrature."""
    laws = {
        "Student t": (td.StudentT(torch.tensor(3.0).double(), 0.0, 0.5), stats.t(3.0, 0, 0.5)),
        "logistic": (kernels.Logistic(0.0, torch.tensor(0.4, dtype=torch.float64)), stats.logistic(0, 0.4)),
        "generalised normal": (
            kernels.GeneralizedNormal(0.0, torch.tensor(0.7, dtype=torch.float64), 1.5),
            stats.gennorm(1.5, 0, 0.7),
        ),
    }
    worst, worst_autograd = 0.0, 0.0
    for law, reference in laws.values():

        def integrand(u: float, reference=reference) -> float:  # type: ignore[no-untyped-def]
            h = 1e-5
            return ((reference.logpdf(u + h) - reference.logpdf(u - h)) / (2 * h)) ** 2 * reference.pdf(u)

        want = 2 * integrate.quad(integrand, 1e-4, 60, limit=500, points=[0.1, 1, 5])[0]
        want += 2 * integrate.quad(integrand, 1e-9 + 2e-5, 1e-4, limit=200)[0]
        got = float(kernels.Additive(law).fisher_information((1,)))
        worst = max(worst, abs(got / want - 1))
        u = torch.randn(500, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        closed, autograd = (kernels.Additive(law, autograd=on).score(u, torch.zeros_like(u)) for on in (False, True))
        worst_autograd = max(worst_autograd, relative(closed, autograd))
    return [
        ["Fisher information of three kernels against SciPy (finite differences)", f"{worst:.0e}", ""],
        ["their closed-form scores against autograd", f"{worst_autograd:.0e}", ""],
    ]


def objective_rows() -> list[Row]:
    """Each objective at an affine score, against its closed form, in standard errors."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 3, generator=g, dtype=torch.float64) ** 3
    a, c = torch.randn(3, 3, generator=g, dtype=torch.float64) / 3, torch.randn(3, generator=g, dtype=torch.float64)
    model = models.ScoreFunction(lambda x_t, _: x_t @ a.T + c)
    k = kernels.Additive(td.Laplace(0.0, torch.tensor(0.5).double()))
    rows = x.repeat(200, 1)
    m, s = x.mean(0), torch.cov(x.T, correction=0) + 0.5 * torch.eye(3)
    ism = (0.5 * ((a @ m + c).square().sum() + (a @ s @ a.T).trace()) + a.trace()).item()
    wanted = {
        "denoising (antithetic)": (objectives.DenoisingScoreMatching(2, antithetic=True), ism + 0.5 * 3 / 0.25),
        "implicit": (objectives.ImplicitScoreMatching(), ism),
        "sliced": (objectives.SlicedScoreMatching(objectives.sphere, variance_reduced=False), ism),
        "finite-difference": (objectives.FiniteDifferenceScoreMatching(), ism),
    }
    out = []
    for name, (objective, want) in wanted.items():
        e = diagnostics.Estimate.mean_of(objective(model, rows, k, generator=g).reshape(200, -1).mean(1))
        out.append(
            [f"{name} loss of an affine score under Laplace noise", f"z = {(e.value - want) / e.stderr:.1f}", ""]
        )
    return out


def sampler_rows() -> list[Row]:
    """Order of convergence of the samplers on a mixture, from far above the data, against a run of 4096 steps."""
    g = torch.Generator().manual_seed(0)
    exact = oracles.GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 1.0]]).double(), 0.04)
    x = exact.sample(100, generator=g)
    start = x + 1000 * torch.randn(x.shape, generator=g, dtype=torch.float64)

    def end(step: samplers.Step, n: int) -> torch.Tensor:
        return samplers.sample(exact, start, n, sigma_max=1000.0, sigma_min=0.05, step=step, grid=samplers.log_uniform)

    truth, out = end(samplers.ReferenceExact(exact.reference, 4), 4096), []
    for name, step in STEPS.items():
        step = samplers.ReferenceExact(exact.reference, 4) if step is None else step
        rms = [(end(step, n) - truth).square().mean().sqrt().item() for n in (256, 512)]
        out.append([f"order of {name}, stated {step.order}", f"{math.log2(rms[0] / rms[1]):.2f}", ""])
    return [*out, *default_rows()]


STEPS: dict[str, samplers.Step | None] = {
    "Euler (DDIM)": samplers.Euler(),
    "Heun": samplers.Heun(),
    "DPM-Solver-2": samplers.DPMSolver2(),
    "DPM-Solver++ 2M": samplers.DPMSolverPP2M(),
    "DPM-Solver++ 3M": samplers.DPMSolverPP3M(),
    "DPM-Solver++ 3M as published": samplers.DPMSolverPP3M(published=True),
    "UniPC 2 with its corrector": samplers.UniPC(2),
    "exponential Adams–Bashforth 4": samplers.ExponentialAdamsBashforth(4),
    "linear multistep 4": samplers.LinearMultistep(4),
    "the reference-exact step 4": None,
}


def default_rows() -> list[Row]:
    """The default sampler's error on 25 modes, measured and as it says itself."""
    g, axis = torch.Generator().manual_seed(1), torch.arange(-2.0, 3.0, dtype=torch.float64)
    exact = oracles.GaussianMixture(torch.ones(25), torch.cartesian_prod(axis, axis), 0.01)
    x, ends = exact.sample(1000, generator=g), {"sigma_max": 80.0, "sigma_min": 0.002}
    start, out = x + 80 * torch.randn(x.shape, generator=g, dtype=torch.float64), []
    truth = samplers.sample(exact, start, 800, **ends)
    for n in (10, 20):
        d = (samplers.sample(exact, start, n, **ends) - truth).square().mean(1)
        e = diagnostics.Estimate(d.mean().sqrt().item(), (d.std() / d.mean().sqrt()).item() / (2 * len(d) ** 0.5))
        told = samplers.calibrate(exact, n, **ends).accuracy
        name = f"default sampler, {n} calls, 25 modes of standard deviation 0.1: distance to the exact flow"
        out.append([f"{name}, median (it says {told.median:.1e} ± {told.stderr:.0e})", f"{d.median().sqrt():.1e}", ""])
        most, rms = (f"{v:.1e} ± {s:.0e}" for v, s in ((told.ninety, told.ninety_stderr), (told.rms, told.rms_stderr)))
        out.append([f"the same, nine in ten (it says {most})", f"{d.sqrt().quantile(0.9):.1e}", ""])
        out.append([f"the same, root mean square (it says {rms})", str(e), ""])
    return out


def self_check_rows() -> list[Row]:
    """The self-check: z of four broken losses, and how often a right one alarms."""
    torch.manual_seed(0)
    x = torch.randn(4096, 5) * 1.5 + 0.3
    network = networks.ResidualMLP((5,), width=32, depth=1)
    torch.nn.init.normal_(network.last.weight, std=0.3)
    model, k = models.Preconditioned(network, models.GaussianReference.of_data(x)), kernels.Gaussian(0.8, alpha=0.7)
    dsm = objectives.DenoisingScoreMatching()

    def broken(change):  # type: ignore[no-untyped-def]
        def loss(model, x, kernel, generator=None):  # type: ignore[no-untyped-def]
            x_t = kernel.sample(x, generator=generator)
            return change(model.score(x_t, kernel), kernel.score(x_t, x), x_t, x)

        return loss

    mutants = {
        "a flipped sign": broken(lambda psi, t, x_t, x: 0.5 * (psi + t).square().sum(1)),
        "a lost ½": broken(lambda psi, t, x_t, x: (psi - t).square().sum(1)),
        "a mean for a sum": broken(lambda psi, t, x_t, x: 0.5 * (psi - t).square().mean(1)),
        "a wrong alpha": broken(lambda psi, t, x_t, x: 0.5 * (psi - (x - x_t) / 0.64).square().sum(1)),
    }
    g = torch.Generator().manual_seed(0)
    out = []
    for name, loss in mutants.items():
        check = diagnostics.self_check(model, x, k, objective=loss, generator=g)
        out.append([f"self-check finds {name}", f"z = {check.z:.0f}", ""])
    z = [
        diagnostics.self_check(model, x, k, objective=dsm, generator=torch.Generator().manual_seed(s)).z
        for s in range(200)
    ]
    beyond = sum(abs(v) > 1.96 for v in z)
    out.append(
        [
            "a right loss, 200 seeds: alarms beyond 4 standard errors (expected 0.01)",
            str(sum(abs(v) > 4 for v in z)),
            "",
        ]
    )
    out.append(["a right loss, 200 seeds: beyond 1.96 standard errors (expected 10 ± 3)", str(beyond), ""])
    return out


def floor_rows() -> list[Row]:
    """The floor of Gaussian data, of a mixture on the line and of a data set, each computed another way."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(6, 6, generator=g, dtype=torch.float64)
    gaussian = oracles.GaussianMixture(torch.ones(1).double(), torch.zeros(1, 6).double(), (a @ a.T)[None])
    closed = 0.5 * (6 / 0.25 - np.trace(np.linalg.inv((a @ a.T).numpy() + 0.25 * np.eye(6))))
    line = oracles.GaussianMixture(torch.tensor([0.3, 0.7]), torch.tensor([[-2.0], [1.0]]), torch.tensor([0.25, 0.5]))
    parts = [(0.3, stats.norm(-2, math.sqrt(0.25 + 0.04))), (0.7, stats.norm(1, math.sqrt(0.5 + 0.04)))]

    def slope(u: float) -> float:
        p = sum(w * n.pdf(u) for w, n in parts)
        dp = sum(-w * n.pdf(u) * (u - n.mean()) / n.var() for w, n in parts)
        return dp**2 / p

    fisher = integrate.quad(slope, -12, 12, points=[-2, 1], epsabs=1e-12, epsrel=1e-12, limit=200)[0]
    x = torch.randn(50, 3, generator=g, dtype=torch.float64)
    x_t = x + 0.5 * torch.randn(50, 3, generator=g, dtype=torch.float64)
    t = (x.numpy()[None] - x_t.numpy()[:, None]) / 0.25
    w = np.exp(-0.125 * (t**2).sum(2))
    w /= w.sum(1, keepdims=True)
    spread = t - (w[:, :, None] * t).sum(1, keepdims=True)
    brute = torch.from_numpy(0.5 * (w * (spread**2).sum(2)).sum(1))
    found = oracles.Empirical(x).half_target_variance(x_t, kernels.Gaussian(0.5))
    floors = [diagnostics.floor(o, kernels.Gaussian(s)).value for o, s in ((gaussian, 0.5), (line, 0.2))]
    return [
        ["floor −C of Gaussian data against the closed form", f"{abs(floors[0] / closed - 1):.0e}", ""],
        ["floor of a mixture against SciPy's quadrature", f"{abs(floors[1] / (0.5 * (25 - fisher)) - 1):.0e}", ""],
        ["floor of a data set against brute force", f"{relative(found, brute):.0e}", ""],
    ]


def likelihood_rows() -> list[Row]:
    """The flow's log-density of mixtures, the bound of a Gaussian, and information, against exact values."""
    rows = []
    for d, n in ((2, 1000), (8, 500), (64, 50)):
        g = torch.Generator().manual_seed(d)
        factors = torch.randn(5, d, d, generator=g, dtype=torch.float64) / math.sqrt(d)
        covariances = factors @ factors.mT / 2 + 0.05 * torch.eye(d, dtype=torch.float64)
        means = 2 * torch.randn(5, d, generator=g, dtype=torch.float64)
        data = oracles.GaussianMixture(torch.ones(5), means, covariances)
        k = kernels.Gaussian(0.01)
        x = k.sample(data.sample(n, generator=g), generator=g)
        found = likelihood.log_prob(data, x, sigma_min=0.01)
        error = (found.value - data.log_prob(x, k)).abs()
        held = (error <= found.error).double().mean().item()
        named = f"log-density of a mixture by the flow, D = {d}: largest error in nats"
        rows.append([f"{named} (within the error it states for {held:.1%} of rows)", f"{error.max():.0e}", ""])
    return rows + information_rows()


def information_rows() -> list[Row]:
    g = torch.Generator().manual_seed(0)
    factor = torch.randn(6, 6, generator=g, dtype=torch.float64)
    covariance = factor @ factor.T / 6 + 0.1 * torch.eye(6, dtype=torch.float64)
    data = oracles.GaussianMixture(torch.ones(1), torch.zeros(1, 6).double(), covariance[None])
    x = data.sample(200, generator=g)
    plain = likelihood.BoundMethod(control=False, n_draws=4096)  # without the closed form, which leaves nothing to draw
    found = likelihood.bound(data, x, processes.VP(), prior=data.reference, method=plain, generator=g)
    off = found.value + data.log_prob(x, kernels.Gaussian(1e-9))
    z = (off.mean() / (found.stderr.square().mean() / len(x)).sqrt()).item()
    halves = [
        oracles.GaussianMixture(torch.ones(1), torch.zeros(1, 3).double(), covariance[None, i, i])
        for i in (slice(0, 3), slice(3, 6))
    ]
    x = data.sample(20_000, generator=g)
    information = likelihood.mutual_information(data, *halves, x, [0, 1, 2], sigma_min=1e-3, generator=g)
    true = 0.5 * (covariance[:3, :3].logdet() + covariance[3:, 3:].logdet() - covariance.logdet()).item()
    return [
        ["Song et al.'s bound of Gaussian data against the closed form", f"z = {z:.1f}", ""],
        [f"mutual information of 3 + 3 columns, exact {true:.3f} nats", f"{information}", ""],
    ]


def main() -> None:
    exact = mixture_rows() + quadrature_rows() + fisher_rows() + floor_rows()
    rows = exact + objective_rows() + sampler_rows() + likelihood_rows() + rows_of_energies() + self_check_rows()
    body = table(["measured", "float64", "float32"], rows)
    write("trust", "What can be trusted", "python benchmarks/trust.py", body)
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    README.write_text(before + BEGIN + "\n" + body + "\n" + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
