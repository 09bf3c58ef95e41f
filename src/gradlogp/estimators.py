"""The scikit-learn face: a table or array in, a learnt score out, in the data's own units."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor
from tqdm.auto import tqdm

from gradlogp import checkpoints, samplers
from gradlogp._shapes import Batch, InputError, as_level
from gradlogp.data import Grid, Schema, detect_grid, read
from gradlogp.data.containers import short
from gradlogp.diagnostics import Estimate, SelfCheck, self_check
from gradlogp.kernels import Gaussian
from gradlogp.models import GaussianReference, MarginalReference, Marginals, Preconditioned
from gradlogp.networks import ResidualMLP
from gradlogp.training import NoiseLevels, Recipe, Record, train

Array = NDArray[np.float64]

MIN_ROWS = 10
FEW_COORDINATES = 16  # below, a narrower network and a larger batch do better
SCALES_APART = 10.0  # columns whose standard deviations differ by more than this factor are given a unit each
ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Units:
    """z = (x − offset)/scale, coordinate by coordinate: between the data's units and the model's.

    ``scale`` is 1 where all columns share a unit; sigma is then in that unit. Otherwise it is each column's standard
    deviation, and noise of level sigma has standard deviation sigma·scale_j in column j.
    """

    offset: Array
    scale: Array

    @classmethod
    def of_data(cls, values: Array, standardize: bool | str, grid: Grid) -> Units:
        """The mean, and the columns' standard deviations if they do not share a unit."""
        offset, spread = values.mean(0), values.std(0)
        if standardize == "auto":
            standardize = values.ndim == 2 and not _share_a_unit(spread, grid)
        return cls(offset, np.where(spread > 0, spread, 1.0) if standardize else np.ones_like(spread))

    def to_model(self, values: Array) -> Tensor:
        """float32 model units; the difference is taken in float64."""
        return torch.from_numpy((values - self.offset) / self.scale).float()

    def from_model(self, z: Tensor) -> Array:
        """Back to the data's units."""
        values: Array = self.offset + self.scale * z.double().numpy()
        return values


def _share_a_unit(spread: Array, grid: Grid) -> bool:
    """Columns share a unit if they lie on one grid, or if their standard deviations are within a factor of 10."""
    varying = spread[spread > 0]
    steps = np.unique(np.round(grid.step.reshape(-1)[spread.reshape(-1) > 0], 12))
    if varying.size == 0 or (len(steps) == 1 and steps[0] > 0 and varying.size > 1):
        return True
    return bool(varying.max() <= SCALES_APART * varying.min())


class ScoreDensity(BaseEstimator):  # type: ignore[misc]
    """Learn the score ∇log p_σ of data at every noise level by denoising score matching, and use it.

    p_σ = p ∗ N(0, σ²): the density of the data with Gaussian noise of standard deviation σ added. Where the columns share a unit
    (their standard deviations are within a factor of 10, or they lie on one grid as pixels do) σ is in that unit. Otherwise each
    column is measured in its own standard deviation, ``noise_scale_``, and σ counts those.

    Args:
        sigma_min, sigma_max: smallest and largest noise level, chosen from the data if None.
        standardize: measure each column in its own standard deviation: True, False or "auto".
        width, depth: hidden units (None: 128 below 16 coordinates, else 256) and residual blocks of the network.
        n_steps, learning_rate: the training's; see :class:`gradlogp.training.Recipe`.
        batch_size: rows a step (None: 512 below 16 coordinates, else 256).
        dropout: share of hidden units dropped in training; None: more, the fewer rows there are a coordinate.
        max_seconds: end the training by then at the latest (None: no limit). A limit makes results depend on the machine's speed.
        patience: looks at the held-out loss without a better one before training stops.
        validation_fraction: share of the rows held out.
        sampling_steps: steps of the sampler, two network calls each.
        device: "cpu", "cuda", …; None takes a GPU where there is one.
        random_state: an int makes fit and sample bit-identical from run to run; None draws afresh.
        verbose: show a progress bar on a terminal.

    Attributes:
        model_: the trained :class:`gradlogp.models.Preconditioned`.
        levels_: the noise levels trained on.
        noise_scale_: standard deviation of noise of level 1 in each coordinate, shape of one row.
        history_: the training's records, one a look: loss, held-out loss with its standard error.
        self_check_: the check of the losses before the first step.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Reference: Vincent (2011) for the loss; Karras et al. (2022) for the preconditioning.
    """

    def __init__(
        self,
        *,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        standardize: bool | str = "auto",
        width: int | None = None,
        depth: int = 3,
        n_steps: int = 2000,
        batch_size: int | None = None,
        learning_rate: float = 2e-3,
        dropout: float | None = None,
        max_seconds: float | None = None,
        patience: int = 20,
        validation_fraction: float = 0.1,
        sampling_steps: int = 32,
        device: str | None = None,
        random_state: int | None = None,
        verbose: bool = True,
    ) -> None:
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.standardize = standardize
        self.width = width
        self.depth = depth
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.dropout = dropout
        self.max_seconds = max_seconds
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.sampling_steps = sampling_steps
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # --- fitting --------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None) -> ScoreDensity:  # noqa: ARG002
        """Learn the score of the rows of X.

        Args:
            X: numpy array or tensor ``(N, *event)``, or a pandas or polars frame of numbers; at least 10 rows.
            y: ignored.

        Raises:
            InputError: parameters or data that cannot be used, or a self-check that fails.
        """
        for _ in self.fit_steps(X):
            pass
        return self

    def fit_steps(self, X: Any) -> Iterator[Record]:
        """Fit, yielding a record at each look; the estimator is fitted when the iteration ends."""
        self._check_parameters()
        table = read(X, min_rows=MIN_ROWS)
        generator = self._generator(self.random_state)
        grid = detect_grid(table.values)
        units = Units.of_data(table.values, self.standardize, grid)
        rows, held_out = self._split(units.to_model(table.values), generator)
        reference = MarginalReference.of_data(rows)
        smallest = _smallest_scale(rows, grid, units)
        levels = NoiseLevels.of_data(reference.gaussian, smallest, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        model = self._new_model(reference, rows, generator)
        check = _checked(model, rows, generator)
        history: list[Record] = []
        steps = train(model, rows, held_out, levels=levels, recipe=self._recipe(rows[0].numel()), generator=generator)
        for record in self._progress(steps):
            history.append(record)
            yield record
        self._set_fitted(model.cpu(), table.schema, grid, units, levels, history)
        self.self_check_ = check

    def _check_parameters(self) -> None:
        for name in ("width", "depth", "n_steps", "batch_size", "patience", "sampling_steps"):
            value = getattr(self, name)
            if value is None and name in ("width", "batch_size"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise InputError(f"{name}: got {value!r}, want a whole number >= 1")
        for name in ("sigma_min", "sigma_max", "learning_rate", "max_seconds"):
            value = getattr(self, name)
            if value is not None or name == "learning_rate":
                _positive(value, name)
        for name, value in (("validation_fraction", self.validation_fraction), ("dropout", self.dropout)):
            if value is not None and not (isinstance(value, int | float) and 0 <= value < 1):
                raise InputError(f"{name}: got {value!r}, want a number in [0, 1)")
        if not self.validation_fraction:
            got = self.validation_fraction
            raise InputError(f"validation_fraction: got {got!r}, want > 0: training stops by the held-out loss")
        if self.standardize not in (True, False, "auto"):
            raise InputError(f"standardize: got {self.standardize!r}, want True, False or 'auto'")

    def _generator(self, random_state: Any) -> torch.Generator:
        if isinstance(random_state, np.random.RandomState):
            seed = int(random_state.randint(2**31))
        elif random_state is None:
            seed = secrets.randbits(62)
        elif isinstance(random_state, int | np.integer) and not isinstance(random_state, bool):
            seed = int(random_state)
        else:
            seed = -1
        if not 0 <= seed < 2**64:
            raise InputError(f"random_state: got {random_state!r}, want a whole number from 0 to 2**64 - 1, or None")
        return torch.Generator(self._device()).manual_seed(seed)

    def _device(self) -> torch.device:
        if self.device is None:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.Generator(torch.empty(0, device=self.device).device).device
        except (RuntimeError, AssertionError, TypeError):
            raise InputError(f"device: got {self.device!r}, want one that is here, such as 'cpu'") from None

    def _split(self, z: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training and held-out rows."""
        z = z.to(generator.device)
        order = torch.randperm(len(z), generator=generator, device=z.device)
        n_held_out = min(max(2, round(self.validation_fraction * len(z))), len(z) - 2)
        return z[order[n_held_out:]], z[order[:n_held_out]]

    def _new_model(self, reference: MarginalReference, rows: Batch, generator: torch.Generator) -> Preconditioned:
        n, d = len(rows), rows[0].numel()
        shape = {
            "event_shape": reference.event_shape,
            "width": self.width or (128 if d < FEW_COORDINATES else 256),
            "depth": self.depth,
            "dropout": round(min(0.4, 0.4 * math.sqrt(50 * d / n)), 3) if self.dropout is None else self.dropout,
        }
        self.network_ = shape
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = ResidualMLP(**shape)
        return Preconditioned(network, reference).to(rows).eval()

    def _recipe(self, n_coordinates: int) -> Recipe:
        return Recipe(
            n_steps=int(self.n_steps),
            batch_size=int(self.batch_size or (512 if n_coordinates < FEW_COORDINATES else 256)),
            learning_rate=float(self.learning_rate),
            patience=int(self.patience),
            max_seconds=math.inf if self.max_seconds is None else float(self.max_seconds),
        )

    def _progress(self, records: Iterator[Record]) -> Iterator[Record]:
        """The records, with a bar on a terminal: loss, held-out loss, time left."""
        form = "{desc} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}{postfix}"
        with tqdm(total=1.0, desc="fit", bar_format=form, disable=None if self.verbose else True) as bar:
            for record in records:
                bar.set_postfix_str(
                    f"step {record.step}, loss {record.loss:.4f}, held out {record.held_out:.4f}", refresh=False
                )
                bar.update(record.progress - bar.n)
                yield record

    def _set_fitted(
        self,
        model: Preconditioned,
        schema: Schema,
        grid: Grid,
        units: Units,
        levels: NoiseLevels,
        history: list[Record],
    ) -> None:
        self.model_, self.schema_, self.grid_, self.units_, self.levels_ = model, schema, grid, units, levels
        self.history_ = history
        self.noise_scale_ = units.scale
        self.n_features_in_ = math.prod(schema.event_shape)
        self.__dict__.pop("feature_names_in_", None)  # of an earlier fit
        if schema.columns is not None and all(isinstance(c, str) for c in schema.columns):
            self.feature_names_in_ = np.array(schema.columns, dtype=object)

    # --- use ------------------------------------------------------------------------------------------------------------

    def sample(self, n: int = 1, *, random_state: Any = None) -> Any:
        """Draw n new rows, of the kind, names and types that were fitted; values on a grid come back on it.

        The probability flow is followed from ``levels_.sigma_max`` to ``levels_.sigma_min``, then E[x | x_t] is taken.

        Args:
            n: rows to draw.
            random_state: an int for draws of its own; None takes the estimator's.

        Raises:
            InputError: n is not a whole number >= 1, or the model is not fitted (``NotFittedError``).
        """
        model = self._fitted()
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise InputError(f"n: got {n!r}, want a whole number >= 1")
        generator = self._generator(self.random_state if random_state is None else random_state)
        model = model.to(generator.device)
        parts = [self._sample(model, len(rows), generator) for rows in _slices(int(n))]
        model.cpu()
        return self.schema_.restore(np.concatenate(parts))

    def _sample(self, model: Preconditioned, n: int, generator: torch.Generator) -> Array:
        low, high = self.levels_.sigma_min, self.levels_.sigma_max
        z = samplers.sample(model, n, int(self.sampling_steps), sigma_max=high, sigma_min=low, generator=generator)
        with torch.no_grad():
            z = model.denoise(z, Gaussian(low))
        return self.grid_.snap(self.units_.from_model(z.cpu()))

    def grad_log_prob(self, X: Any, sigma: Any = None) -> Any:
        """∇log p_σ at the rows of X, one number a coordinate, in 1/unit of that coordinate; X is not made noisy.

        p_σ is the density of the data with N(0, σ²·diag(noise_scale_²)) added. Above the largest level trained the score is
        that of the Gaussian with the data's mean and covariance.

        Args:
            X: rows as fitted.
            sigma: a level or one a row; None takes the smallest trained.

        Raises:
            InputError: rows that do not fit, or a level below the smallest trained.
        """
        return self._apply(X, sigma, lambda model, z, kernel: model.score(z, kernel), lambda v: v / self.units_.scale)

    def denoise(self, X: Any, sigma: Any = None) -> Any:
        """E[x | x_σ = X]: the mean of the clean rows that, with noise of level sigma added, give X.

        Args:
            X: noisy rows as fitted.
            sigma: the level of their noise or one a row; None takes the smallest trained.

        Raises:
            InputError: rows that do not fit, or a level below the smallest trained.
        """
        scale, offset = self._units().scale, self._units().offset
        return self._apply(X, sigma, lambda model, z, kernel: model.denoise(z, kernel), lambda v: offset + scale * v)

    def _apply(self, X: Any, sigma: Any, f: Any, back: Any) -> Any:
        """back(f(model, rows in model units, kernel)) for all rows, of the kind of X, floating."""
        model = self._fitted()
        table = self.schema_.check(X)
        level = self._level(sigma, len(table.values))
        z, parts = self.units_.to_model(table.values), []
        for rows in _slices(len(z)):
            at = level if level.ndim == 0 else level[rows]
            with torch.no_grad():
                inside = f(model, z[rows], Gaussian(at.clamp(max=self.levels_.sigma_max)))
                outside = f(model.reference, z[rows], Gaussian(at))
            above = (at > self.levels_.sigma_max).reshape(-1, *(1,) * (z.ndim - 1))
            parts.append(torch.where(above, outside, inside).double().numpy())
        return self.schema_.restore(back(np.concatenate(parts)), like=X, floating=True)

    def _level(self, sigma: Any, n: int) -> Tensor:
        low = self.levels_.sigma_min
        try:
            level = as_level(torch.as_tensor(np.asarray(low if sigma is None else sigma, dtype=np.float64)), "sigma")
        except (TypeError, ValueError, RuntimeError) as e:
            if isinstance(e, InputError):
                raise
            raise InputError(f"sigma: got {short(sigma)}, want a number or one number a row") from None
        if level.ndim and len(level) != n:
            raise InputError(f"sigma: got {len(level)} levels for {n} rows, want one or one a row")
        if bool((level < low * (1 - 1e-6)).any()):
            least = level.min().item()
            raise InputError(
                f"sigma: got {least:g}, want >= {low:g}, the smallest trained (fit with a smaller sigma_min)"
            )
        return level

    def _fitted(self) -> Preconditioned:
        if not hasattr(self, "model_"):
            raise NotFittedError("ScoreDensity: not fitted yet, call fit first")
        model: Preconditioned = self.model_
        return model

    def _units(self) -> Units:
        self._fitted()
        return self.units_

    # --- saved ----------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a folder with ``model.safetensors`` and ``config.json``, atomically; a model that is there is replaced.

        Raises:
            InputError: the place holds something other than a model, or cannot be written.
        """
        model = self._fitted()
        parameters = {k: v.item() if isinstance(v, np.generic) else v for k, v in self.get_params().items()}
        if not isinstance(parameters["random_state"], int | None):
            parameters["random_state"] = None
        if self.device is not None:
            parameters["device"] = str(self.device)
        config = {
            "parameters": parameters,
            "network": {**self.network_, "event_shape": list(self.network_["event_shape"])},
            "schema": self.schema_.to_json(),
            "grid": self.grid_.to_json(),
            "levels": {k: float(v) for k, v in asdict(self.levels_).items()},
            "self_check": asdict(self.self_check_),
            "history": [asdict(r) for r in self.history_],
        }
        units = {
            "units.offset": torch.from_numpy(self.units_.offset),
            "units.scale": torch.from_numpy(self.units_.scale),
        }
        checkpoints.save(path, {**units, **{f"model.{k}": v for k, v in model.state_dict().items()}}, config)

    @classmethod
    def load(cls, path: str | Path) -> ScoreDensity:
        """Read a saved model. Nothing is unpickled.

        Raises:
            InputError: no model there, or one that is corrupt or does not fit together.
        """
        tensors, config = checkpoints.load(path)
        try:
            return cls(**config["parameters"])._restore(tensors, config)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as e:
            reason = " ".join(str(e).split())[:200]
            raise InputError(
                f"{path}: the saved model does not fit together ({type(e).__name__}: {reason}), want it as it was saved"
            ) from None

    def _restore(self, tensors: dict[str, Tensor], config: dict[str, Any]) -> ScoreDensity:
        self._check_parameters()
        state = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        if any(bool(torch.isnan(v).any()) for v in tensors.values()):
            raise InputError("weights that are NaN")
        mean, eigenvalues, eigenvectors = (state[f"skip.gaussian.{k}"] for k in ("mean", "eigenvalues", "eigenvectors"))
        marginals = Marginals(*(state[f"skip.marginals.{k}"] for k in ("means", "variances", "log_weights")))
        skip = MarginalReference(GaussianReference(mean, eigenvalues, eigenvectors), marginals)
        self.network_ = {**config["network"], "event_shape": tuple(config["network"]["event_shape"])}
        with torch.random.fork_rng(devices=[]):
            model = Preconditioned(ResidualMLP(**self.network_), skip).float()
        model.load_state_dict(state)
        schema, levels = Schema.from_json(config["schema"]), NoiseLevels(**config["levels"])
        if schema.event_shape != model.event_shape:
            raise InputError(f"columns of shape {schema.event_shape} for a model of shape {model.event_shape}")
        units = Units(tensors["units.offset"].numpy(), tensors["units.scale"].numpy())
        grid = Grid.from_json(config["grid"])
        if not units.offset.shape == units.scale.shape == schema.event_shape or len(grid.axes) != units.scale.size:
            raise InputError(f"units or grid of another shape than {schema.event_shape}")
        history = [Record(**r) for r in config["history"]]
        self._set_fitted(model.eval(), schema, grid, units, levels, history)
        self.self_check_ = _self_check_from(config["self_check"])
        return self


def _positive(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
        raise InputError(f"{name}: got {value!r}, want a finite number > 0")


def _slices(n: int) -> Iterator[range]:
    return (range(start, min(start + ROWS_AT_A_TIME, n)) for start in range(0, n, ROWS_AT_A_TIME))


def _smallest_scale(rows: Batch, grid: Grid, units: Units) -> float:
    """The smallest scale worth resolving, in model units: of the narrowest column, or what rounding to a grid wipes out."""
    spread = rows.flatten(1).double().std(0)
    narrowest = spread[spread > 0].min().item() if bool((spread > 0).any()) else 1.0
    steps = (grid.step.reshape(-1) / units.scale.reshape(-1))[grid.low.reshape(-1) < grid.high.reshape(-1)]
    return max(narrowest, 25 * float(steps.min())) if len(steps) and steps.min() > 0 else narrowest


def _checked(model: Preconditioned, rows: Batch, generator: torch.Generator) -> SelfCheck:
    """The self-check at the data's scale, or an error that says that the losses are wrong."""
    check = self_check(model, rows[:4096], Gaussian(model.skip.data_scale.item()), generator=generator)
    if not check.holds:
        raise InputError(f"{check}; the loss, its target or the model's gradient is wrong, so training would be too")
    return check


def _self_check_from(entry: dict[str, Any]) -> SelfCheck:
    estimates = {k: Estimate(**entry[k]) for k in ("j_dsm", "j_ism", "residual")}
    return SelfCheck(half_fisher=entry["half_fisher"], **estimates)
