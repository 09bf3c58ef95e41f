"""The data set convolved with a kernel, the optimum of denoising score matching over those data; and its views."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gradlogp._shapes import Batch, InputError, as_batch, as_count, same_event
from gradlogp.models import GaussianReference
from gradlogp.oracles.base import Oracle
from gradlogp.oracles.parzen import Parzen, Sight
from gradlogp.oracles.queries import Seen
from gradlogp.oracles.tables import Table, as_table


class Empirical(Parzen, Oracle):
    """p = (1/N) Σ_i δ(x − x_i): p_σ(x_t) = (1/N) Σ_i k(x_t | x_i), for any kernel (Parzen 1962).

    Its score is the minimiser of J_DSM over the data set; with a Gaussian kernel E[x | x_t] is softmax attention over
    the data, softmax_i(−‖x_t − alpha·x_i‖²/(2 sigma²))·x_i. The rows are streamed, so that a file of any size will do:
    ``Empirical(numpy.load("rows.npy", mmap_mode="r"))`` never holds more than a few MB of it.

    Args:
        data: ``(N, *event)``, finite: a tensor, or a numpy array or memory map of float32 or float64, which is shared
            and not copied (nor kept in ``state_dict``).

    Raises:
        InputError: data of another type or shape, or not finite.
    """

    data: Tensor

    def __init__(self, data: Batch | np.ndarray) -> None:
        super().__init__()
        table = as_table(data)
        self.register_buffer("data", table.data, persistent=isinstance(data, Tensor))
        self._in_file = (table.data.data_ptr(), table.file)
        self.event_shape = tuple(table.data.shape[1:])

    @property
    def table(self) -> Table:
        """The rows, to be streamed."""
        pointer, file = self._in_file
        if file is None or self.data.data_ptr() != pointer:  # elsewhere once it is moved
            return Table(self.data)
        return Table(self.data, file.require(len(self.data)))

    @property
    def reference(self) -> GaussianReference | None:
        """The Gaussian with the data's mean and covariance; None where they do not vary."""
        first = self.data[:1].flatten(1)
        if not any(bool((rows != first).any()) for _, rows in self.table.blocks_of_numbers()):
            return None
        if len(self.data) <= first.numel():
            return GaussianReference.of_data(self.data)
        mean, covariance = _moments(self.table)
        return GaussianReference.of_moments(mean.reshape(self.event_shape), covariance).to(self.data.dtype)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Batch:
        """Rows of the data, drawn with replacement."""
        n, device = as_count(n, most=sys.maxsize, each=8 + self.data[0].nbytes), self.data.device
        return self.data[torch.randint(len(self.data), (n,), generator=generator, device=device)]

    def leave_one_out(self, index: Tensor) -> LeaveOneOut:
        """The model in which query i does not see row ``index[i]`` of the data; ``(B,)`` whole numbers."""
        return LeaveOneOut(self, index)

    def including(self, source: Batch) -> Including:
        """The model in which query i sees its own row ``source[i]`` too, with the weight of any; ``(B, *event)``."""
        return Including(self, source)

    def of_class(self, labels: Tensor, label: int | Tensor) -> OfClass:
        """The model that sees the rows of one class: a label, or one a query, ``(B,)``; ``labels`` are the rows'."""
        return OfClass(self, labels, label)

    def _sights(self, n_queries: int) -> Iterator[Sight]:  # noqa: ARG002
        yield Sight(self.table, Seen())


class LeaveOneOut(Parzen):
    """p_σ of the N − 1 rows other than ``index[i]``, for query i.

    Args:
        empirical: the data.
        index: the row that a query does not see, ``(B,)``, 0 to N − 1.

    Raises:
        InputError: an index that is not whole or not of a row; one row of data only.
    """

    index: Tensor

    def __init__(self, empirical: Empirical, index: Tensor) -> None:
        super().__init__()
        n = len(empirical.data)
        if n < 2:
            raise InputError(f"leave_one_out: got {n} row of data, want at least 2")
        index = _whole_numbers(index, "index").to(empirical.data.device)
        if bool(((index < 0) | (index >= n)).any()):
            raise InputError(f"index: got {index.min().item()} to {index.max().item()}, want 0 to {n - 1}")
        self.empirical, self.event_shape = empirical, empirical.event_shape
        self.register_buffer("index", index)

    def _sights(self, n_queries: int) -> Iterator[Sight]:
        _one_a_query(self.index, n_queries, "index")
        yield Sight(self.empirical.table, Seen(hidden=self.index))


class Including(Parzen):
    """p_σ of the N rows and ``source[i]``, N + 1 in all, for query i.

    Args:
        empirical: the data.
        source: the query's own row, ``(B, *event)``.

    Raises:
        InputError: another event shape, or rows that are not finite.
    """

    source: Tensor

    def __init__(self, empirical: Empirical, source: Batch) -> None:
        super().__init__()
        self.empirical, self.event_shape = empirical, empirical.event_shape
        self.register_buffer("source", as_batch(same_event(source, self.event_shape, "source"), "source"))

    def _sights(self, n_queries: int) -> Iterator[Sight]:
        _one_a_query(self.source, n_queries, "source")
        yield Sight(self.empirical.table, Seen(source=self.source.flatten(1)))


class OfClass(Parzen):
    """p_σ of the rows of one class; the classes of several queries are met one after the other.

    Args:
        empirical: the data.
        labels: the class of each row, ``(N,)`` whole numbers.
        label: the class that all queries see, or each query's, ``(B,)``.

    Raises:
        InputError: not one label a row, or a class without rows.
    """

    labels: Tensor
    label: Tensor

    def __init__(self, empirical: Empirical, labels: Tensor, label: int | Tensor) -> None:
        super().__init__()
        self.empirical, self.event_shape = empirical, empirical.event_shape
        labels = _whole_numbers(labels, "labels")
        if len(labels) != len(empirical.data):
            raise InputError(f"labels: got {len(labels)} for {len(empirical.data)} rows of data, want one a row")
        per_query = isinstance(label, Tensor) and label.ndim > 0
        label = _whole_numbers(label if per_query else torch.as_tensor(label).reshape(1), "label")
        missing = label[~torch.isin(label, labels)]
        if len(missing):
            raise InputError(f"label: got {missing[0].item()}, want the class of at least one row of data")
        device = empirical.data.device
        self.register_buffer("labels", labels.to(device))
        self.register_buffer("label", label.to(device) if per_query else label.reshape(()).to(device))

    def _sights(self, n_queries: int) -> Iterator[Sight]:
        if self.label.ndim == 1:
            _one_a_query(self.label, n_queries, "label")
        label = self.label.expand(n_queries)
        for one in label.unique():
            table = replace(self.empirical.table, subset=(self.labels == one).nonzero()[:, 0])
            yield Sight(table, Seen(), (label == one).nonzero()[:, 0])


def _whole_numbers(values: object, name: str) -> Tensor:
    """Check ``(B,)`` whole numbers."""
    if not isinstance(values, Tensor) or values.is_floating_point() or values.is_complex() or values.ndim != 1:
        got = f"shape {tuple(values.shape)}, {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"{name}: got {got}, want a tensor of whole numbers, (B,)")
    return values.long()


def _one_a_query(values: Tensor, n_queries: int, name: str) -> None:
    if len(values) != n_queries:
        raise InputError(f"{name}: got {len(values)} for {n_queries} queries, want one a query")


def _moments(table: Table) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the rows, ``(D,)`` and ``(D, D)``, in float64: two passes, the second about the mean."""
    mean = table.some().double().mean(0)
    mean = mean + sum((rows - mean).sum(0) for _, rows in table.blocks_of_numbers()) / len(table)
    products = ((rows - mean).T @ (rows - mean) for _, rows in table.blocks_of_numbers())
    return mean, sum(products, torch.zeros(len(mean), len(mean)).to(mean)) / len(table)
