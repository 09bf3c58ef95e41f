"""The estimator: fit, sample, score and denoise, in the data's own units."""

from __future__ import annotations

import inspect
import math
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradlogp import checkpoints, likelihood, samplers
from gradlogp._progress import Bar, Phases
from gradlogp._shapes import Batch, InputError, as_count, as_level, short
from gradlogp.audit import Audit
from gradlogp.data import detect_grid, read
from gradlogp.data.memory import check_room
from gradlogp.diagnostics import Estimate, ScoreError, SelfCheck, correlation_length, self_check
from gradlogp.estimators import densities, diagnosis, outliers, saved
from gradlogp.estimators.building import FEW_COORDINATES, closed_form, mixtures, network_sizes, put_together
from gradlogp.estimators.outliers import Again
from gradlogp.estimators.parameters import check_memory, check_parameters, device_from, generator_from
from gradlogp.estimators.splits import Labels, deal, row_labels
from gradlogp.estimators.summary import in_short
from gradlogp.estimators.threads import threads
from gradlogp.estimators.units import Array, Units, grid_steps
from gradlogp.kernels import Gaussian, Kernel
from gradlogp.models import EnergyModel, OnReference, Reference, ScoreModel, posterior
from gradlogp.training import Goal, NoiseLevels, Recipe, Record, calibrate, kept, train
from gradlogp.training.weights import Weight

MIN_ROWS = 10
ROWS_AT_A_TIME = 4096
ROW_BYTES = 20  # of a number that is drawn: as the model's, twice, and as the data's
FEW_ROWS_AT_A_TIME = 64  # where a row takes long
CHECK_DRAWS = 128, 1024  # of the self-check before training; a broken loss is tens of standard errors off
ORDER_ROWS = 10**5  # whose order is looked at
FOR_MIXTURES = 0.25  # of max_seconds, at most, until the last mixture is begun
CHECK_NUMBERS = 2**15  # fewer draws of many coordinates


E = TypeVar("E", bound="DensityEstimator")


class DensityEstimator:
    """Learn the score ∇log p_σ of data at every noise level by denoising score matching, and use it.

    p_σ = p ∗ N(0, σ²): the density of the data with Gaussian noise of standard deviation σ added. Where the columns
    share a unit (their standard deviations are within a factor of 10, or they lie on one grid as pixels do) σ is in
    that unit. Otherwise each column is measured in its own standard deviation, ``noise_scale_``, and σ counts those.

    Args:
        network: "auto" trains a residual network on what the closed form leaves; None keeps the closed form alone,
            which takes a second or two: marginals on a Gaussian, and Gaussian mixtures where they help.
        sigma_min, sigma_max: smallest and largest noise level, chosen from the data if None: see
            :meth:`gradlogp.training.NoiseLevels.of_rows`.
        standardize: measure each column in its own standard deviation: True, False or "auto".
        width, depth: hidden units (None: 128 below 16 coordinates, else 256) and residual blocks of the network.
        n_steps, learning_rate: the training's, which stops when it has learnt what it can: ``n_steps`` is a limit; see
            :class:`gradlogp.training.Recipe`.
        batch_size: rows a step (None: 512 below 16 coordinates, else 256).
        dropout: share of hidden units dropped in training; None: more, the fewer rows there are a coordinate.
        max_seconds: end the training so long after the start of ``fit`` at the latest (None: no limit). A limit makes
            results depend on the machine's speed.
        patience: looks at the held-out rows that bring less than 0.1 % of the loss, or than half a standard error,
            before training stops; looks come every 25 steps, from 400 on every eighth of the steps so far.
        validation_fraction: share of the rows held out.
        sampling_steps: steps of the sampler, one call of the network each, and one more to denoise.
        device: "cpu", "cuda", …; None takes a GPU where there is one.
        n_jobs: processor threads to use, put back afterwards; −1 is all processors, −2 all but one, None leaves torch's
            setting. With networks this small more than one gains little, and on a busy machine they wait for each
            other.
        objective: "score" weighs the noise levels for samples, as EDM does; "likelihood" for log-densities, by g², as
            Song et al. (2021) do: see :meth:`gradlogp.training.Goal.likelihood`.
        energy: learn a scalar potential of which the score is the gradient (:class:`gradlogp.models.EnergyModel`): no
            curl, and :meth:`unnormalised_log_prob`; a step takes about twice as long, and the closed form is the
            Gaussian alone.
        contamination: share of new rows that :meth:`predict` is to call outliers, in (0, 0.5], at least 1/(N + 1) for N
            different rows. ``fit`` then measures :attr:`outlier_share_`; where fewer than 20 held-out rows are expected
            below the threshold it trains ten further models, each on nine tenths of the rows, for as many steps as
            were kept. None is 0.1, or the least that the held-out rows show, measured when first asked for.
        random_state: an int makes fit and sample bit-identical from run to run (at one ``n_jobs``); None draws afresh.
            A numpy ``Generator`` or ``RandomState``, or a ``torch.Generator``, gives a seed whenever one is needed; it
            is not saved with the model.
        verbose: name the phases of ``fit`` and ``save`` on stderr, with a bar on a terminal, and say at the end of a
            fit what it was worth.

    Attributes:
        model_: the trained :class:`gradlogp.models.Preconditioned`, or :class:`gradlogp.models.EnergyModel`, or
            without a network :class:`gradlogp.models.ClosedForm`.
        levels_: the noise levels trained on.
        noise_scale_: standard deviation of noise of level 1 in each coordinate, shape of one row.
        history_: the training's records, one a look: loss, held-out loss and what of it is left to learn, with their
            standard errors; see :class:`gradlogp.training.Record`.
        self_check_: the check of the losses before the first step.
        n_held_out_: rows held out in training.
        kept_step_: the step of training whose weights were kept; 0 is the closed form before training.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Reference: Vincent (2011) for the loss; Karras et al. (2022) for the preconditioning.
    """

    _unseen: outliers.Unseen
    _score_error: ScoreError | None
    _to_measure: tuple[outliers.Unseen, bool] | None  # rows held out, and whether all were correlated in their order

    _phases: Phases | None = None  # of the call under way

    def __init__(
        self,
        *,
        network: str | None = "auto",
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
        patience: int = 6,
        validation_fraction: float = 0.1,
        sampling_steps: int = 20,
        device: str | None = None,
        n_jobs: int | None = 1,
        objective: str = "score",
        energy: bool = False,
        contamination: float | None = None,
        random_state: int | np.random.Generator | np.random.RandomState | torch.Generator | None = None,
        verbose: bool = True,
    ) -> None:
        self.network = network
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
        self.n_jobs = n_jobs
        self.objective = objective
        self.energy = energy
        self.contamination = contamination
        self.random_state = random_state
        self.verbose = verbose

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """Return the parameters by name, as in scikit-learn."""
        names = list(inspect.signature(DensityEstimator.__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}

    def set_params(self: E, **params: Any) -> E:
        """Set parameters by name, as in scikit-learn."""
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def fit(self: E, X: Any, y: Any = None, *, groups: Any = None) -> E:  # noqa: ARG002
        """Learn the score of the rows of X.

        Stopped by Ctrl-C it raises ``KeyboardInterrupt``; once training has begun the estimator is fitted all the same,
        with the best weights so far.

        Args:
            X: numpy array or tensor ``(N, *event)``, or a pandas or polars frame of numbers; at least 10 rows.
            y: ignored.
            groups: one label a row, as of the patient or the day it is from: rows of one group are held out together,
                so that what is measured on held-out rows holds for new groups. Without groups copies of a row are,
                and rows that are correlated in their order are told of in :attr:`score_error_`.

        Raises:
            InputError: parameters or data that cannot be used, or a self-check that fails.
        """
        for _ in self.fit_steps(X, groups=groups):
            pass
        return self

    def fit_steps(self, X: Any, *, groups: Any = None) -> Generator[Record, None, None]:
        """Fit, yielding a record at each look; the estimator is fitted when the iteration ends.

        It may be ended early, by ``break`` or ``close()``: the best weights so far are then kept, as in :meth:`fit`.
        """
        check_parameters(self)
        steps, own = self._fit_steps(X, groups), self._phases is None
        with self._told("fit"):
            try:
                while True:
                    with threads(self.n_jobs):
                        record = next(steps, None)
                    if record is None:
                        break
                    yield record
            finally:
                with threads(self.n_jobs):
                    steps.close()
        if own and self.verbose:
            with suppress(OSError, ValueError, AttributeError):  # a terminal that has gone
                Bar.write(f"fit: {in_short(self, 'n_steps=')}", file=sys.stderr)

    def _fit_steps(self, X: Any, groups: Any) -> Generator[Record, None, None]:
        begin = time.perf_counter()
        self._phase("reading")
        table = read(X, min_rows=MIN_ROWS)
        width = table.values[0].size
        check_room(4 * 8 * width**2, "X", f"{width:,} columns, whose covariance the closed form takes apart")
        generator = generator_from(self.random_state, device_from(self.device))
        grid = detect_grid(table.values)
        units = Units.of_data(table.values, self.standardize, grid, table.schema)
        labels = row_labels(table.values, grid, groups)
        outliers.check_share(self.contamination, labels)
        z = units.to_model(table.values).to(generator.device)
        order, cut = deal(labels, max(2, round(self.validation_fraction * len(z))), generator)
        rows, held_out = z[order[cut:]], z[order[:cut]]
        self._phase("closed form")
        reference = closed_form(rows, self.energy)
        self._phase("noise levels")
        ends = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        levels = NoiseLevels.of_rows(rows, reference.reference, steps=grid_steps(grid, units), **ends)
        goal = Goal.likelihood(levels) if self.objective == "likelihood" else Goal.score(levels)
        recipe = self._recipe(rows[0].numel(), goal.weight)
        network = None
        if self.network is not None:
            network = network_sizes(rows, self.width, self.depth, self.dropout)
            check_memory(rows[0].numel(), int(network["width"]), int(self.depth), recipe.batch_size, generator.device)
        self._phase("mixtures")
        until = begin + FOR_MIXTURES * recipe.max_seconds
        parts = [] if self.energy else mixtures(reference, rows, held_out, goal, generator, until)
        self._phase("self-check")
        model = _new_model(network, reference, rows, generator)
        check = _checked(model, rows, generator)
        unseen = outliers.Unseen(held_out.cpu(), torch.from_numpy(labels)[order[:cut].cpu()])
        fitted = saved.Fitted(model, network, table.schema, grid, units, levels, [], check, None, len(held_out), unseen)
        to_measure = unseen, groups is None and _ordered(z, labels)
        recipe = replace(recipe, max_seconds=max(1e-3, begin + recipe.max_seconds - time.perf_counter()))
        steps = train(model, rows, held_out, levels=goal.levels, recipe=recipe, parts=parts, generator=generator)
        self._phase("training")
        try:
            for record in self._progress(steps):
                fitted.history.append(record)
                yield record
            self._phase("gates")
            calibrate(model, held_out, levels, parts=parts, generator=generator)
        except (KeyboardInterrupt, GeneratorExit):
            steps.close()
            if fitted.history:
                try:
                    calibrate(model, held_out, levels, parts=parts, generator=generator)
                finally:  # if that is interrupted too
                    self._set_fitted(fitted, to_measure)
            raise
        self._set_fitted(fitted, to_measure)
        if self.contamination is not None:
            self._phase("outliers")
            again = Again(z, labels, goal.levels, recipe, self.kept_step_)
            self._unseen = outliers.measured(self, self._unseen, again, generator)

    def _recipe(self, n_coordinates: int, weight: Weight) -> Recipe:
        return Recipe(
            n_steps=int(self.n_steps),
            batch_size=int(self.batch_size or (512 if n_coordinates < FEW_COORDINATES else 256)),
            learning_rate=float(self.learning_rate),
            patience=int(self.patience),
            max_seconds=math.inf if self.max_seconds is None else float(self.max_seconds),
            weight=weight,
        )

    def _progress(self, records: Iterator[Record]) -> Iterator[Record]:
        """The records, with a bar on a terminal: loss, held-out loss, what of it is left to learn, time left."""
        form = "{desc} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}{postfix}"
        with self._bar("fit", 1.0, bar_format=form) as bar:
            for record in records:
                held_out = f"held out {record.held_out:.4f}, of it left {record.left:.4f}"
                bar.set_postfix_str(f"step {record.step}, loss {record.loss:.4f}, {held_out}", refresh=False)
                bar.update(record.progress - bar.n)
                yield record

    def _bar(self, what: str, total: float | int, bar_format: str | None = None, *, hidden: bool = False) -> Any:
        """A progress bar on a terminal, unless it is hidden; a fit's stays there."""
        off = None if self.verbose and not hidden else True
        return Bar(total=total, miniters=0, desc=what, bar_format=bar_format, disable=off, leave=what == "fit")

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Tell the phases of a call and their shares of its time; inside of another call they are part of that."""
        if self._phases is not None:
            yield
            return
        try:
            with Phases(what, self.verbose) as self._phases:
                yield
        finally:
            self.__dict__.pop("_phases", None)

    def _phase(self, name: str) -> None:
        """Name what begins now."""
        if self._phases is not None:
            self._phases(name)

    def _set_fitted(self, parts: saved.Fitted, to_measure: tuple[outliers.Unseen, bool] | None = None) -> None:
        """Take over all that a fit found, at once."""
        model, levels, schema, units = parts.model.cpu(), parts.levels, parts.schema, parts.units
        model.levels = float(levels.sigma_min), float(levels.sigma_max)
        self.model_, self.network_, self.schema_, self.grid_ = model, parts.network, schema, parts.grid
        self.units_, self.levels_, self.history_ = units, levels, parts.history
        self.self_check_, self._score_error, self._unseen = parts.check, parts.error, parts.unseen
        self._to_measure = to_measure
        self.n_held_out_ = parts.n_held_out
        self.noise_scale_ = units.scale
        self.n_features_in_ = math.prod(schema.event_shape)
        self.__dict__.pop("feature_names_in_", None)  # of an earlier fit
        if schema.columns is not None and all(isinstance(c, str) for c in schema.columns):
            self.feature_names_in_ = np.array(schema.columns, dtype=object)

    def sample(self, n: int = 1, *, random_state: Any = None) -> Any:
        """Draw n new rows, of the kind, names and types that were fitted; values on a grid come back on it.

        Columns of few decimals come back with as many.

        The probability flow is followed from ``levels_.sigma_max`` to ``levels_.sigma_min`` in ``sampling_steps`` calls
        of the network, then E[x | x_t] is taken; :attr:`sampling_accuracy_` says how accurately.
        As in scikit-learn the same random state draws the same rows again: give each call its own to collect more.

        Args:
            n: rows to draw.
            random_state: an int for draws of its own; None takes the estimator's.

        Raises:
            InputError: n is not a whole number >= 1, or the model is not fitted (``NotFittedError``).
        """
        model = self._fitted()
        n = as_count(n if isinstance(n, int | np.integer) else None, each=ROW_BYTES * self.n_features_in_)
        state = self.random_state if random_state is None else random_state
        generator = generator_from(state, device_from(self.device))
        model = model.to(generator.device)
        with threads(self.n_jobs):
            rows = self._sample(model, n, generator)
        model.cpu()
        return self.schema_.restore(rows)

    def _sample(self, model: OnReference, n: int, generator: torch.Generator) -> Array:
        low, n_steps = self.levels_.sigma_min, as_count(self.sampling_steps, "sampling_steps")
        self._phase("fitting the sampler")  # where it was not before

        def advance(state: samplers.State) -> None:
            self._phase("drawing")
            bar.update(int(state.step > 0))

        with self._bar("sample", math.ceil(n / ROWS_AT_A_TIME) * n_steps) as bar:
            z = samplers.sample(
                model, n, n_steps, sigma_max=self.levels_.sigma_max, sigma_min=low, generator=generator,
                batch_size=ROWS_AT_A_TIME, callback=advance,
            )  # fmt: skip
        with torch.no_grad():
            parts = [model.denoise(z[rows], Gaussian(low)).cpu() for rows in _slices(n)]
        return self.grid_.snap(self.units_.from_model(torch.cat(parts)))

    @property
    def sampling_accuracy_(self) -> samplers.Accuracy:
        """How near samples come to where the model's own flow ends, in units of σ; the model's error is not in it.

        Of the sampler with ``sampling_steps`` calls of the network, measured on a pilot of up to 256 rows.
        """
        return self._plan(self._fitted()).accuracy

    def _plan(self, model: OnReference) -> samplers.Plan:
        """The sampler fitted to the model; new only if there is none yet for so many steps."""
        low, high = float(self.levels_.sigma_min), float(self.levels_.sigma_max)
        n_steps = as_count(self.sampling_steps, "sampling_steps")
        return samplers.plan_for(samplers.Field(model), n_steps, (high, low), model.event_shape, None)

    def grad_log_prob(self, X: Any, sigma: Any = None) -> Any:
        """∇log p_σ at the rows of X, one number a coordinate, in 1/unit of that coordinate; X is not made noisy.

        p_σ is the density of the data with N(0, σ²·diag(noise_scale_²)) added. Above the largest level trained the
        score is the closed-form reference's, which tends to the truth as σ grows.

        Args:
            X: rows as fitted.
            sigma: a level or one a row; None takes the smallest trained.

        Raises:
            InputError: rows that do not fit, or a level below the smallest trained.
        """
        units = self._units()
        return self._apply(X, sigma, lambda model, z, kernel: model.score(z, kernel), lambda v: v / units.scale)

    def to_model(self, X: Any) -> Tensor:
        """Rows as :attr:`model_` takes them, (x − mean)/``noise_scale_``, ``(n, *event)``, float32, on the processor.

        For all that takes a model: ``samplers.modes(est.model_, est.to_model(X), kernels.Gaussian(0.5))``.

        Raises:
            InputError: rows that do not fit.
        """
        self._fitted()
        return self.units_.checked(self.schema_.check(X).values, self.schema_)

    def from_model(self, z: Tensor) -> Any:
        """Rows of the model's as data of the kind that was fitted, not put on the columns' grid: the other way.

        Raises:
            InputError: rows of another shape.
        """
        self._fitted()
        return self.schema_.restore(self.units_.from_model(z.detach().cpu()), floating=True)

    def denoise(self, X: Any, sigma: Any = None, *, return_std: bool = False) -> Any:
        """E[x | x_σ = X]: the mean of the clean rows that, with noise of level sigma added, give X.

        Above the largest level trained it is the closed-form reference's, as in :meth:`grad_log_prob`.

        Args:
            X: noisy rows as fitted.
            sigma: the level of their noise or one a row; None takes the smallest trained.
            return_std: give the standard deviation of the clean value in each cell as well, in the column's unit, by
                the second-order formula of Tweedie, made a covariance: :func:`gradlogp.models.posterior`. One product
                with the Jacobian a column and the eigenvalues of a D × D matrix a row, for D columns: some 0.2 s a row
                for 28 × 28 pixels on one core.

        Returns:
            Rows like X, or two such: the means and their standard deviations.

        Raises:
            InputError: rows that do not fit, or a level below the smallest trained.
        """
        u = self._units()
        mean = self._apply(
            X, sigma, lambda model, z, kernel: model.denoise(z, kernel), lambda v: u.offset + u.scale * v
        )
        if not return_std:
            return mean
        return mean, self._apply(
            X, sigma, lambda model, z, kernel: posterior(model, z, kernel).std, lambda v: u.scale * v, "spread"
        )

    def unnormalised_log_prob(self, X: Any, sigma: Any) -> Array:
        """log p_σ of each row but for a constant that is the same for all rows of a level, ``(n,)``, in nats.

        The negative energy, of which :meth:`grad_log_prob` is the gradient exactly: differences are log-density ratios,
        at the cost of one call of the network. An error of the score counts with the distance of two rows: take a level
        that is not far below their distance. :meth:`score_samples` is normalised, of the probability flow, and for
        small levels.

        Args:
            X: rows as fitted; not made noisy.
            sigma: a level or one a row; rows of different levels do not compare.

        Raises:
            InputError: a model that was not fitted with ``energy=True``, rows that do not fit, or a level below the
                smallest trained.
        """
        model = self._fitted()
        if sigma is None:
            raise InputError("sigma: got None, want a noise level, not far below the distance of the rows compared")
        if not isinstance(model, EnergyModel):
            raise InputError("unnormalised_log_prob: got a free-form model, want one fitted with energy=True")
        values = self.schema_.check(X).values
        level, z = self._level(sigma, len(values)), self.units_.checked(values, self.schema_)

        def f(model: ScoreModel, z: Tensor, kernel: Kernel) -> Tensor:
            values = model.unnormalised_log_prob(z, kernel)
            assert values is not None  # an energy's, or its Gaussian's
            return values

        return np.concatenate(
            [self._inside_and_above(f, model, z[rows], _at(level, rows)) for rows in _slices(len(z), ROWS_AT_A_TIME)]
        )

    def _apply(
        self,
        X: Any,
        sigma: Any,
        f: Callable[[ScoreModel, Tensor, Kernel], Tensor],
        back: Callable[[Array], Array],
        bar: str | None = None,
    ) -> Any:
        """back(f(model, rows in model units, kernel)) for all rows, of the kind of X, floating; with a bar if slow."""
        model = self._fitted()
        table = self.schema_.check(X)
        level = self._level(sigma, len(table.values))
        z, parts = self.units_.checked(table.values, self.schema_), []
        with self._bar(bar or "", len(z), hidden=bar is None) as progress:
            for rows in _slices(len(z), ROWS_AT_A_TIME if bar is None else FEW_ROWS_AT_A_TIME):
                parts.append(self._inside_and_above(f, model, z[rows], _at(level, rows)))
                progress.update(len(rows))
        return self.schema_.restore(back(np.concatenate(parts)), like=X, floating=True)

    def _inside_and_above(
        self, f: Callable[[ScoreModel, Tensor, Kernel], Tensor], model: OnReference, z: Tensor, at: Tensor
    ) -> Array:
        """f of the model; above the largest level trained, of its closed form."""
        high = self.levels_.sigma_max
        above = at > high
        with torch.no_grad(), threads(self.n_jobs):
            if bool(above.all()):
                return f(model.skip, z, Gaussian(at)).double().numpy()
            out = f(model, z, Gaussian(at.clamp(max=high)))
            if bool(above.any()):
                above = above.reshape(-1, *(1,) * (out.ndim - 1))
                out = torch.where(above, f(model.skip, z, Gaussian(at)), out)
        return out.double().numpy()

    def _level(self, sigma: Any, n: int) -> Tensor:
        low = self.levels_.sigma_min
        try:
            level = as_level(torch.as_tensor(np.asarray(low if sigma is None else sigma, dtype=np.float64)), "sigma")
        except (TypeError, ValueError, RuntimeError, OverflowError) as e:
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

    def log_prob(
        self, X: Any, *, trace: likelihood.Trace | None = None, random_state: Any = None
    ) -> likelihood.LogProb:
        """log p_σ of each row at σ = ``levels_.sigma_min``, with its numerical error, in nats; float64.

        A density per the data's own units, constant columns left out: of what the probability flow samples from,
        normalised by construction. How far the model is from the data is another matter: :attr:`score_error_`.

        Args:
            X: rows as fitted.
            trace: how accurate it is to be: ``likelihood.Exact(atol)``, the default up to 128 coordinates, or
                ``likelihood.Hutchinson(atol)``.
            random_state: an int for probes of its own; None takes the estimator's.

        Raises:
            InputError: rows that do not fit.
        """
        self._fitted()
        z = self.to_model(X)
        with threads(self.n_jobs):
            return densities.log_prob(self, z, trace, random_state)

    def score_samples(self, X: Any) -> Array:
        """The log-density of each row, in nats: the value of :meth:`log_prob`."""
        return self.log_prob(X).value.numpy()

    def score(self, X: Any, y: Any = None) -> float:  # noqa: ARG002
        """The mean of :meth:`score_samples`, in nats a row: larger is better."""
        return float(self.score_samples(X).mean())

    def log_mass(self, X: Any, *, n_draws: int = 16, random_state: Any = None) -> likelihood.LogMass:
        """The log-probability of each row where columns are on a grid (counts, grades, rounded numbers), in nats.

        A density has no upper bound on such columns; the probability of a row's cell has: half a step to each side in
        each column on a grid, times the density in the others. From below, by ``n_draws`` uniform draws from the
        cell: see :func:`gradlogp.likelihood.log_mass`, and :func:`gradlogp.likelihood.bits_per_dim` for its unit.

        Args:
            X: rows as fitted.
            n_draws: draws a row, at least 2; the bound rises with them.
            random_state: an int for draws of its own; None takes the estimator's.

        Raises:
            InputError: rows that do not fit, or fewer than 2 draws.
        """
        self._fitted()
        values = self.schema_.check(X).values
        self.units_.checked(values, self.schema_)  # or far rows would be found in the draws around them
        with threads(self.n_jobs):
            return densities.log_mass(self, values, n_draws, random_state)

    def decision_function(self, X: Any) -> Array:
        """:meth:`score_samples` less :attr:`offset_`: negative for outliers, as in scikit-learn."""
        offset = self.offset_
        return self.score_samples(X) - offset

    def predict(self, X: Any) -> NDArray[np.int64]:
        """1 for a row like those fitted, −1 for an outlier: less dense than all but a share of unseen rows.

        A row that is too far away for a log-density is an outlier too.
        """
        self._fitted()
        values = self.schema_.check(X).values
        near = ~self.units_.far(values).reshape(len(values), -1).any(1)
        labels = np.full(len(values), -1)
        if near.any():
            with threads(self.n_jobs):
                found = densities.log_prob(self, self.units_.to_model(values[near]), None).value.numpy()
            labels[near] = np.where(found < self.offset_, -1, 1)
        return labels

    def fit_predict(self, X: Any, y: Any = None) -> NDArray[np.int64]:  # noqa: ARG002
        """Fit X, and :meth:`predict` it."""
        return self.fit(X).predict(X)

    @property
    def offset_(self) -> float:
        """The log-density, in nats, below which a row is an outlier.

        A quantile over rows that were not trained on, since the density is larger at rows trained on: see
        :attr:`outlier_share_`. Computed when first asked for, or saved, if ``contamination`` is None.

        Raises:
            InputError: a share that is below the resolution of these rows.
        """
        unseen = self._measured()
        return unseen.threshold(outliers.asked(self, unseen))

    @property
    def outlier_share_(self) -> Estimate:
        """The share of new rows that :meth:`predict` calls outliers: that asked for, and its standard error.

        New rows are those that the fitted ones are a random sample of. The error is that of the rows that placed the
        threshold: some √(c(1 − c)/n) for a share c and n rows; copies of a row, and rows of one group, count as one.

        Raises:
            InputError: as :attr:`offset_`.
        """
        unseen = self._measured()
        return unseen.share(outliers.asked(self, unseen))

    def _measured(self) -> outliers.Unseen:
        """Rows that were not trained on, with their log-densities."""
        self._fitted()
        if self._unseen.log_prob is None:
            self._phase("held-out log-densities")
            generator = generator_from(self.random_state, device_from(self.device))
            with threads(self.n_jobs):
                self._unseen = outliers.measured(self, self._unseen, None, generator)
        return self._unseen

    @property
    def score_error_(self) -> ScoreError | None:
        """How far the score is from the true one at 12 levels; measured when first asked for, or saved.

        On up to 2000 of the rows held out in training, which also chose when to stop: :meth:`diagnose` measures it on
        others. None if they were fewer than 8.
        """
        self._fitted()
        if self._to_measure is not None:
            self._phase("score error")
            generator = generator_from(self.random_state, device_from(self.device))
            rows, ordered = self._to_measure
            with threads(self.n_jobs):
                model = self.model_.to(generator.device)
                self._score_error = diagnosis.held_out_error(model, rows, self.levels_, generator, ordered=ordered)
                model.cpu()
            self._to_measure = None
        return self._score_error

    @property
    def kept_step_(self) -> int:
        """The step of training whose weights were kept; 0 is the closed form that training starts from."""
        self._fitted()
        return kept(self.history_).step

    def diagnose(
        self,
        X_test: Any,
        X_train: Any = None,
        *,
        groups: Any = None,
        out: str | Path | None = None,
        n_levels: int = diagnosis.N_LEVELS,
        random_state: Any = None,
    ) -> Audit:
        """Measure what the model is worth on rows that it was not trained on.

        Args:
            X_test: rows as fitted, at least 8, that were not among those fitted.
            X_train: the rows that were fitted; without them memorisation is not measured, and the lower bound of the
                score error is not as sharp.
            groups: one label a row of X_test: rows of one group may depend on each other; see
                :func:`gradlogp.diagnostics.score_error`.
            out: folder to write ``report.html``, one file that needs no network, and ``report.json`` into.
            n_levels: noise levels, from the smallest trained to the largest.
            random_state: an int for draws of its own; None takes the estimator's.

        Returns:
            An :class:`gradlogp.audit.Audit`; printing it gives the score error and three sentences.

        Raises:
            InputError: rows that do not fit, are too few or are all among the training rows, or a folder that cannot
                be written.
        """
        self._fitted()
        state = self.random_state if random_state is None else random_state
        with threads(self.n_jobs):
            return diagnosis.diagnose(self, X_test, X_train, groups, out, n_levels, state)

    def _fitted(self) -> OnReference:
        if not hasattr(self, "model_"):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("ScoreDensity: not fitted yet, call fit first")
        model: OnReference = self.model_
        return model

    def _units(self) -> Units:
        self._fitted()
        return self.units_

    def save(self, path: str | Path) -> None:
        """Write a folder of ``model.safetensors`` and ``config.json``, atomically; a model that is there is replaced.

        All that the estimator says it says after :meth:`load` too: :attr:`score_error_`, and the log-densities of up to
        200 held-out rows, which place the threshold of outliers, are computed first if they were not asked for before.

        Raises:
            InputError: the place holds something other than a model, or cannot be written.
        """
        self._fitted()
        checkpoints.check_destination(path)
        with self._told("save"):
            self._measured()
            _ = self.score_error_
            self._phase("saving")
            checkpoints.save(path, *saved.parts_of(self))

    @classmethod
    def load(cls: type[E], path: str | Path) -> E:
        """Read a saved model. Nothing is unpickled.

        Raises:
            InputError: no model there, or one that is corrupt or does not fit together.
        """
        tensors, config = checkpoints.load(path)
        try:
            estimator = cls(**config["parameters"])
            check_parameters(estimator)
            estimator._set_fitted(saved.fitted_from(tensors, config))
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as e:
            reason = " ".join(str(e).split())[:200]
            raise InputError(
                f"{path}: the saved model does not fit together ({type(e).__name__}: {reason}), want it as it was saved"
            ) from None
        return estimator


def _new_model(
    network: dict[str, Any] | None, reference: Reference, rows: Batch, generator: torch.Generator
) -> OnReference:
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return put_together(network, reference, seed).to(rows).eval()


def _ordered(z: Batch, labels: Labels) -> bool:
    """Whether rows, the first of each label, are correlated in their order; of very many, 20 runs of them."""
    first = np.sort(np.unique(labels, return_index=True)[1])
    if len(first) > ORDER_ROWS:
        runs = np.array_split(np.arange(ORDER_ROWS), 20)
        starts = np.linspace(0, len(first) - len(runs[0]), 20).astype(int)
        first = np.concatenate([first[s : s + len(run)] for s, run in zip(starts, runs, strict=True)])
    return correlation_length(z[torch.from_numpy(first)]) > 1


def _at(level: Tensor, rows: range) -> Tensor:
    """The level of some rows."""
    return level if level.ndim == 0 else level[rows]


def _slices(n: int, size: int = ROWS_AT_A_TIME) -> Iterator[range]:
    return (range(start, min(start + size, n)) for start in range(0, n, size))


def _checked(model: OnReference, rows: Batch, generator: torch.Generator) -> SelfCheck:
    """The self-check at the data's scale, or an error that says that the losses are wrong."""
    kernel, (least, most) = Gaussian(model.skip.data_scale.item()), CHECK_DRAWS
    n = max(least, min(most, CHECK_NUMBERS // rows[0].numel()))
    check = self_check(model, rows[:n], kernel, min_draws=n, generator=generator)
    if not check.holds:
        raise InputError(f"{check}; the loss, its target or the model's gradient is wrong, so training would be too")
    return check
