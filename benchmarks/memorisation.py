"""How much a network memorises, trained too long or stopped in time. Run: python benchmarks/memorisation.py.

Handwritten digits (8 × 8 pixels), 100 or 1000 to train on, the others held out; about 10 minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from common import table, write
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture as FittedMixture
from torch import Tensor

from gradlogp import diagnostics, samplers
from gradlogp.kernels import Gaussian
from gradlogp.models import GaussianReference, MarginalReference, Preconditioned, ScoreModel
from gradlogp.networks import ResidualMLP
from gradlogp.oracles import Empirical, GaussianMixture
from gradlogp.training import NoiseLevels, Recipe, calibrate, train

FEW, MANY = 100, 1000  # rows to train on
N_FIT = 300  # rows for the mixture that never sees the others
RELATIVE = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # noise levels in units of the data's scale
LONG = (1000, 10_000)  # steps without early stopping
SEED = 0

Row = list[str]


def seeded(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def new_model(x: Tensor, dropout: float) -> Preconditioned:
    torch.manual_seed(SEED)
    network = ResidualMLP((x.shape[1],), width=256, depth=3, dropout=dropout)
    return Preconditioned(network, MarginalReference.of_data(x)).to(x).eval()


def stopped_in_time(x: Tensor, dropout: float) -> tuple[Tensor, Preconditioned, int]:
    """The defaults: dropout, a tenth of the rows held out for early stopping, a gate at levels where it is no help.

    Returns:
        The rows trained on, the model and the step whose weights it holds.
    """
    stop, x = x[: len(x) // 10], x[len(x) // 10 :]
    model = new_model(x, dropout)
    levels = NoiseLevels.of_data(GaussianReference.of_data(x), 1.0)
    records = list(train(model, x, stop, levels=levels, recipe=Recipe(n_steps=2000), generator=seeded()))
    calibrate(model, stop, levels, generator=seeded())
    return x, model, [r.step for r in records if r.best][-1]


def trained_too_long(x: Tensor, n_steps: int) -> Preconditioned:
    """No dropout, no weight decay, and no held-out rows: the training rows take their place."""
    model = new_model(x, 0.0)
    levels = NoiseLevels.of_data(GaussianReference.of_data(x), 1.0)
    recipe = Recipe(n_steps=n_steps, weight_decay=0.0, patience=n_steps)
    for _ in train(model, x, x, levels=levels, recipe=recipe, generator=seeded()):
        pass
    return model


def row(name: str, model: ScoreModel, x_train: Tensor, x_test: Tensor, kernels: Sequence[Gaussian]) -> Row:
    found = diagnostics.memorisation(
        model, x_train, x_test, kernels, n_noise=20, max_rows=len(x_test), generator=seeded(1)
    )
    return [name, *(str(level.value) if level.informative else "cannot tell" for level in found.levels)]


def models_of(data: dict[str, Tensor]) -> Iterator[tuple[str, ScoreModel, Tensor]]:
    """Models with the rows that each was trained on."""
    few, many = data["train"][:FEW], data["train"]
    yield "a mixture fitted to other rows", mixture_of(data["fit"]), few
    yield "the rows' own score", Empirical(few), few
    yield "their Gaussian", GaussianReference.of_data(few), few
    yield "their marginals (the network's start)", MarginalReference.of_data(few), few
    for x, dropout in ((few, 0.4), (many, 0.4)):
        used, model, step = stopped_in_time(x, dropout)
        yield f"network, {len(x)} rows, stopped at step {step}", model, used
    for n in LONG:
        yield f"network, {FEW} rows, {n} steps", trained_too_long(few, n), few


def digits_rows(kernels: Sequence[Gaussian], data: dict[str, Tensor]) -> Iterator[tuple[Row, Row]]:
    """For each model the shares, and its samples against the training rows."""
    test = data["test"]
    for name, model, x in models_of(data):
        start = GaussianReference.of_data(x).sample_noisy(300, Gaussian(20.0), generator=seeded(2))
        with torch.no_grad():
            samples = samplers.sample(model, start, 40, sigma_max=20.0, sigma_min=0.02, generator=seeded(3))
            samples = model.denoise(samples, Gaussian(0.02))
        near = diagnostics.nearest_neighbours(samples, x, test)
        yield row(name, model, x, test, kernels), [name, str(near.copies), str(near.distance_ratio)]
    held_out = diagnostics.nearest_neighbours(test, data["train"][:FEW], test)
    yield [], [f"held-out rows, {FEW} rows", str(held_out.held_out_copies), "1"]


def mixture_of(x: Tensor) -> GaussianMixture:
    """Ten full covariances, regularised, fitted to rows."""
    fitted = FittedMixture(10, reg_covar=0.1, random_state=SEED).fit(x.double().numpy())
    return GaussianMixture(*(torch.from_numpy(v) for v in (fitted.weights_, fitted.means_, fitted.covariances_)))


def oracle_rows(kernels: Sequence[Gaussian], truth: GaussianMixture) -> list[Row]:
    """Rows drawn from a known density: the true score, the rows' own score."""
    x, test = (truth.sample(n, generator=seeded(n)) for n in (FEW, 500))
    models = {"the true score": truth, "the rows' own score": Empirical(x)}
    return [row(name, model, x, test, kernels) for name, model in models.items()]


def split() -> dict[str, Tensor]:
    x = torch.from_numpy(load_digits().data).float()
    x = x[torch.randperm(len(x), generator=seeded())]
    sizes = (MANY, N_FIT, len(x) - MANY - N_FIT)
    return dict(zip(("train", "fit", "test"), x.split(sizes), strict=True))


def main() -> None:
    torch.set_num_threads(1)
    begin, data = time.perf_counter(), split()
    scale = GaussianReference.of_data(data["train"][:FEW]).data_scale.item()
    kernels = [Gaussian(r * scale) for r in RELATIVE]
    header = ["model", *(f"σ = {r:g} σ_d" for r in RELATIVE)]
    rows, samples = zip(*digits_rows(kernels, data), strict=True)
    oracle = oracle_rows(kernels, mixture_of(data["fit"]))
    body = f"""scikit-learn's digits (64 pixels, 0 to 16), {FEW} or {MANY} rows to train on,
{len(data["test"])} held out; σ_d = {scale:.3g}, the scale of {FEW} rows. {time.perf_counter() - begin:.0f} s in all.

## Memorisation, digits

{table(header, [r for r in rows if r])}

A network that is stopped has the defaults: dropout 0.4, a tenth of the rows for early stopping, a gate. The others have
none of them. The mixture and the rows' own score are the ends of the scale: a model that never saw the rows, and one
that is nothing but the rows. "Cannot tell" is where the largest possible gap is within 4 standard errors of 0.

The value counts all that was fitted to the training rows, not only copies of whole rows.
Their Gaussian and their marginals are above 0 as well: a pixel that is constant, or takes few values, in {FEW} rows is
believed to do so always, which at small σ is most of what there is to get wrong.

## Samples, digits

300 samples of 40 steps, against the rows trained on.

{table(["model", "copies of training rows", "distance to the nearest, over that of held-out rows"], samples)}

## Memorisation, {FEW} rows drawn from a mixture that is known

{table(header, oracle)}
"""
    write(
        "memorisation",
        "Memorisation: from the true score, 0, to the training rows' own, 1",
        "python benchmarks/memorisation.py",
        body,
    )


if __name__ == "__main__":
    main()
