"""Tables in and out: every kind and format there and back, every error on one line, grids found and not invented."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections import deque
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.datasets import load_digits, load_wine
from torch.utils.data import DataLoader, Subset, TensorDataset

from gradlogp._shapes import InputError
from gradlogp.data import Axis, Grid, Schema, Table, detect_grid, load_file, read, save_file
from gradlogp.data.schema import Dialect

RNG = np.random.default_rng(0)
COLUMNS = {
    "age": np.array([-3, 41, 7, 7], dtype=np.int8),
    "income": np.array([0.1, 1e300, -2.5, 1e-7]),
    "ratio": np.array([0.1, 0.25, 3.0, -1e-3], dtype=np.float32),
    "member": np.array([True, False, True, True]),
}


def message(call, *args, **kwargs) -> str:
    """The message of the InputError, which is one line."""
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    text = str(error.value)
    assert text
    assert "\n" not in text
    assert "want" in text
    return text


# -- in memory, there and back


FRAMES = {
    "pandas": lambda: pd.DataFrame(COLUMNS),
    "pandas, own types": lambda: pd.DataFrame(COLUMNS).convert_dtypes(),
    "pandas, arrow": lambda: pd.DataFrame(COLUMNS).convert_dtypes(dtype_backend="pyarrow"),
    "pandas, whole names": lambda: pd.DataFrame(RNG.normal(size=(4, 3))),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "pyarrow": lambda: pa.table(COLUMNS),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_come_back_as_they_came(kind):
    frame = FRAMES[kind]()
    table = read(frame)
    assert table.values.dtype == np.float64
    assert table.values.shape == (4, len(table.schema.columns))
    back = Schema.from_json(json.loads(json.dumps(table.schema.to_json()))).restore(table.values)
    assert type(back) is type(frame)
    if isinstance(frame, pd.DataFrame):
        pd.testing.assert_frame_equal(back, frame, check_column_type=False)
    else:
        assert back.equals(frame)
        assert back.schema == frame.schema


@pytest.mark.parametrize(
    "dtype",
    ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"],
)
@pytest.mark.parametrize("shape", [(3, 1), (3, 2), (3, 2, 4)])
def test_arrays_and_tensors_come_back_as_they_came(dtype, shape):
    array = RNG.integers(0, 2, shape).astype(dtype)
    for x in (array, torch.from_numpy(array)):
        table = read(x)
        assert table.schema.event_shape == shape[1:]
        back = table.schema.restore(table.values)
        assert type(back) is type(x)
        assert back.dtype == x.dtype
        assert (back == x).all()


def test_other_containers():
    assert read([[1, 2], [3, 4]]).schema == Schema(None, ("int64",), (2,), "numpy")
    half = torch.tensor([[0.1, 0.2]], dtype=torch.bfloat16, requires_grad=True)
    table = read(half)
    back = table.schema.restore(table.values)
    assert back.dtype == torch.bfloat16
    assert torch.equal(back, half)
    assert read(table).values is table.values


def test_reading_copies():
    for x in (np.zeros((2, 2)), torch.zeros(2, 2, dtype=torch.float64), pd.DataFrame(np.zeros((2, 2)))):
        read(x).values[0, 0] = 1
        assert float(np.asarray(x)[0, 0]) == 0


def test_restore_rounds_clips_and_decides():
    schema = Schema(("i", "u", "big", "b"), ("int8", "uint8", "int64", "bool"), (4,), "polars")
    back = schema.restore(np.array([[1.6, -3.0, 1e30, 0.7], [-300.0, 300.0, -1e30, 0.2], [2.4, 2.5, 7.0, 0.5]]))
    assert back["i"].to_list() == [2, -128, 2]
    assert back["u"].to_list() == [0, 255, 2]
    assert back["big"].to_list() == [2**63 - 1, -(2**63), 7]
    assert back["b"].to_list() == [True, False, True]


def test_restore_gradients_as_floating():
    table = read(pd.DataFrame(COLUMNS))
    back = table.schema.restore(table.values + 0.5, floating=True)
    assert [str(t) for t in back.dtypes] == ["float64", "float64", "float32", "float64"]
    assert list(back.columns) == list(COLUMNS)
    assert back["age"].tolist() == [-2.5, 41.5, 7.5, 7.5]


def test_restore_like_other_data():
    schema = read(pd.DataFrame({"a": [1, 2], "b": [3.5, 4.5]})).schema
    like = pd.DataFrame({"b": [0.0, 0.0], "a": [0.0, 0.0]}, index=["x", "y"], dtype="float32")
    back = schema.restore(np.array([[1.25, 2.0], [3.0, 4.0]]), like=like)
    pd.testing.assert_frame_equal(
        back, pd.DataFrame({"b": [2.0, 4.0], "a": [1.25, 3.0]}, index=["x", "y"], dtype="float32")
    )
    assert isinstance(schema.restore(np.zeros((2, 2)), like=torch.zeros(5, 2)), torch.Tensor)
    assert isinstance(schema.restore(np.zeros((2, 2)), like=np.zeros((2, 2))), np.ndarray)
    assert isinstance(schema.restore(np.zeros((2, 2)), like=pl.DataFrame({"a": [1], "b": [2]})), pl.DataFrame)


def test_check_matches_columns_by_name():
    schema = read(pl.DataFrame({"a": [1, 2], "b": [3, 4]})).schema
    table = schema.check(pd.DataFrame({"b": [30.0], "a": [10.0]}))
    assert table.values.tolist() == [[10, 30]]
    assert table.schema == Schema(("a", "b"), ("float64", "float64"), (2,), "pandas")
    assert schema.check(np.array([[10, 30]])).values.tolist() == [[10, 30]]
    assert schema.check(table).values.tolist() == [[10, 30]]


def test_check_refuses_other_columns():
    schema = read(pl.DataFrame({"a": [1, 2], "b": [3, 4]})).schema
    assert "no column 'b'" in message(schema.check, pd.DataFrame({"a": [1]}))
    assert "extra column 'c'" in message(schema.check, pd.DataFrame({"a": [1], "b": [1], "c": [1]}))
    assert "3 columns" in message(schema.check, np.zeros((1, 3)))
    assert "(2, 2)" in message(schema.check, np.zeros((1, 2, 2)))
    assert "1-D" in message(schema.check, np.zeros(2))
    assert "want (n, 2, 2)" in message(read(np.zeros((2, 2, 2))).schema.restore, np.zeros((3, 4)))


def test_missing_values_can_be_let_through():
    frame = pl.DataFrame({"a": [1, None, 3], "b": [1.0, float("nan"), 2.0]})
    values = read(frame, allow_missing=True).values
    assert np.isnan(values).tolist() == [[False, False], [True, True], [False, False]]
    assert "infinite" in message(read, np.array([[np.inf]]), allow_missing=True)
    nullable = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": pd.array([None, True], dtype="boolean")})
    assert np.isnan(read(nullable, allow_missing=True).values).sum() == 2
    assert np.isnan(read(np.ma.masked_equal([[1, 2], [3, 4]], 4), allow_missing=True).values).sum() == 1


IDS = [9007199254740993 + 2 * i for i in range(3)]  # each changes as float64: to ...992, ...996, ...996
POWERS = [2**40, 2**53, 3 * 2**60, -(2**62)]  # each is a float64
NULLABLE = pd.DataFrame({"id": pd.array([7, None, *IDS], dtype="Int64")})
LARGE = {
    "numpy": (np.array(IDS)[:, None], "column 0, row 0"),
    "numpy, unsigned": (np.array([[1, 2**64 - 1]], dtype=np.uint64), "column 1, row 0"),
    "numpy, image": (np.array([[[1, 2], [3, 2**63 - 1]]]), "cell (1, 1), row 0"),
    "numpy, masked": (np.ma.masked_equal([[1], [IDS[0]]], 1), "column 0, row 1"),
    "numpy, objects": (np.array([[1.5, 10**30]], dtype=object), "column 1, row 0"),
    "lists": ([[0.5, 1], [0.5, IDS[0]]], "column 1, row 1"),  # of which numpy makes floats
    "lists beyond int64": ([[2**63 + 1, -1]], "column 0, row 0"),
    "lists beyond float64": ([[10**400, -1]], "column 0, row 0"),
    "torch": (torch.tensor([[1], *[[i] for i in IDS]]), "column 0, row 1"),
    "torch, unsigned": (torch.tensor(IDS).to(torch.uint64)[:, None], "column 0, row 0"),
    "list of tensors": ([torch.tensor([i]) for i in IDS], "column 0, row 0"),
    "pandas": (pd.DataFrame({"x": [0.5] * 3, "id": IDS}), "column 'id', row 0"),
    "pandas, objects": (pd.DataFrame({"id": [10**30 + i for i in range(3)]}), "column 'id', row 0"),
    "pandas, nullable": (NULLABLE, "column 'id', row 2"),
    "pandas, arrow": (pd.DataFrame({"id": pd.array(IDS, dtype="int64[pyarrow]")}), "column 'id', row 0"),
    "polars": (pl.DataFrame({"id": [None, *IDS]}), "column 'id', row 1"),
    "polars, unsigned": (pl.DataFrame({"id": pl.Series(IDS, dtype=pl.UInt64)}), "column 'id', row 0"),
    "polars, 128 bits": (pl.DataFrame({"id": pl.Series([10**30 + 1], dtype=pl.Int128)}), "column 'id', row 0"),
    "polars, decimals": (pl.DataFrame({"id": [Decimal(10**30 + 1)]}), "column 'id', row 0"),
    "pyarrow": (pa.table({"id": IDS}), "column 'id', row 0"),
    "pyarrow, decimals": (pa.table({"id": [Decimal(10**20 + 1)]}), "column 'id', row 0"),
}


@pytest.mark.parametrize("case", LARGE)
def test_whole_numbers_that_would_change_are_refused(case):
    x, where = LARGE[case]
    text = message(read, x, "data", allow_missing=True)
    assert text.startswith(f"data: {where}: got ")
    assert "would change to" in text
    assert "drop the column" in text


LARGE_BUT_HELD = {
    "numpy": np.array(POWERS)[:, None],
    "numpy, objects": np.array([[2**70], [0.5]], dtype=object),
    "lists": [[2**70, 1], [1e30, 1e300]],
    "lists of float32": [np.float32([1e30, 0.1]), np.float32([0.1, 1e20])],
    "torch": torch.tensor(POWERS)[:, None],
    "pandas": pd.DataFrame({"id": POWERS}),
    "pandas, nullable": pd.DataFrame({"id": pd.array(POWERS, dtype="Int64")}),
    "polars": pl.DataFrame({"id": POWERS}),
    "polars, 128 bits": pl.DataFrame({"id": pl.Series([2**100, 5], dtype=pl.Int128)}),
    "polars, decimals": pl.DataFrame({"id": [Decimal("19.47"), Decimal("0.123456789012345678"), Decimal(2**60)]}),
    "pyarrow": pa.table({"id": POWERS}),
    "floats": np.array([[1e30], [9007199254740993.0], [1.5e308]]),
}


@pytest.mark.parametrize("case", LARGE_BUT_HELD)
def test_large_numbers_that_float64_holds_are_read(case):
    x = LARGE_BUT_HELD[case]
    want = x["id"].to_pylist() if isinstance(x, pa.Table) else x["id"].to_list() if hasattr(x, "columns") else x
    assert read(x).values.ravel().tolist() == np.asarray(want, dtype=np.float64).ravel().tolist()


ROWS = torch.arange(6.0).reshape(3, 2)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(ROWS)

    def __getitem__(self, i):
        return ROWS[i]


AS_ROWS = {
    "dataset of one tensor": TensorDataset(ROWS),
    "list of tensors": list(ROWS),
    "tuple of tensors": tuple(ROWS),
    "list of arrays": list(ROWS.numpy()),
    "lists": ROWS.tolist(),
    "tuples": tuple(map(tuple, ROWS.tolist())),
    "deque": deque(ROWS.tolist()),
    "memory": memoryview(ROWS.numpy()),
    "list of columns' rows": [pd.Series(row) for row in ROWS.tolist()],
}


@pytest.mark.parametrize("case", AS_ROWS)
def test_what_holds_rows_is_read_as_rows(case):
    x = AS_ROWS[case]
    table = read(x)
    assert table.values.tolist() == ROWS.tolist()
    back = table.schema.restore(table.values, like=x)
    assert type(back) is (torch.Tensor if case.endswith(("tensor", "tensors")) else np.ndarray)
    assert back.tolist() == ROWS.tolist()


NO_ROWS = {
    "dataset of two tensors": (TensorDataset(ROWS, ROWS[:, 0]), ["2 tensors", "dataset.tensors[0]"]),
    "subset": (Subset(TensorDataset(ROWS), [0, 1]), ["Subset", "torch.stack"]),
    "dataset": (Rows(), ["got a Rows", "torch.stack"]),
    "loader": (DataLoader(TensorDataset(ROWS)), ["DataLoader", "torch.cat"]),
    "list of a dataset": (list(TensorDataset(ROWS)), ["tuples of tensors", "torch.stack"]),
    "tensors of two shapes": ([ROWS[0], ROWS], ["(2,)", "(3, 2)"]),
    "list of dictionaries": ([{"a": 1}, {"a": 2}], ["list of dictionaries", "DataFrame"]),
    "list of frames": ([pd.DataFrame({"a": [1, 2]})] * 2, ["2 data frames", "concat"]),
    "generator": ((row for row in ROWS), ["generator", "list"]),
    "map": (map(list, ROWS.tolist()), ["map", "list"]),
    "zip": (zip([1, 2], [3, 4], strict=True), ["zip", "list"]),
    "set": ({(1, 2), (3, 4)}, ["set", "list"]),
    "values of a dictionary": ({"a": [1, 2]}.values(), ["dict_values", "list"]),
    "module": (torch.nn.Linear(1, 1), ["Linear"]),
}


@pytest.mark.parametrize("case", NO_ROWS)
def test_what_holds_no_rows_is_refused(case):
    x, words = NO_ROWS[case]
    text = message(read, x)
    for word in words:
        assert word in text


BAD = {
    "text": (pd.DataFrame({"a": [1, 2], "city": ["Paris", "Rome"]}), ["'city'", "text", "'Paris'", "row 0"]),
    "text, polars": (pl.DataFrame({"city": ["Paris\nNord", "Rome"]}), ["'city'", "text", "row 0"]),
    "category": (pd.DataFrame({"c": pd.Categorical(["u", "v"])}), ["'c'", "categories"]),
    "category, polars": (pl.DataFrame({"c": ["u", "v"]}, schema={"c": pl.Categorical}), ["'c'", "categories"]),
    "date": (pd.DataFrame({"when": pd.to_datetime(["2020-01-01", "2020-01-02"])}), ["'when'", "datetime64"]),
    "object": (pd.DataFrame({"o": [1, [2]]}, dtype=object), ["'o'", "[2]", "row 1"]),
    "list": (pl.DataFrame({"l": [[1], [2]]}), ["'l'", "List"]),
    "nan": (pd.DataFrame({"a": [1, 2, 3], "b": [1, np.nan, np.nan]}), ["'b'", "2 cells", "row 1", "drop or fill"]),
    "null": (pl.DataFrame({"a": [None, 1, 2]}), ["'a'", "1 cell ", "row 0", "drop or fill"]),
    "nan, array": (np.array([[1, 2], [3, np.nan]]), ["column 1", "row 1"]),
    "nan, image": (np.where(np.arange(8).reshape(2, 2, 2) == 7, np.nan, 0), ["cell (1, 1)", "row 1"]),
    "inf": (torch.tensor([[1.0], [-torch.inf]]), ["column 0", "infinite", "row 1"]),
    "nulls only": (pl.DataFrame({"a": [None, None]}), ["'a'", "2 cells missing"]),
    "nulls only, pandas": (pd.DataFrame({"a": [None, None]}, dtype=object), ["'a'", "2 cells missing"]),
    "objects, one missing": (pd.DataFrame({"o": [1, None]}, dtype=object), ["'o'", "1 cell missing", "row 1"]),
    "empty": (np.zeros((0,)), ["1-D"]),
    "no rows": (np.zeros((0, 3)), ["0 rows"]),
    "no rows, frame": (pl.DataFrame({"a": []}, schema={"a": pl.Int64}), ["0 rows"]),
    "no columns": (np.zeros((3, 0)), ["0 columns"]),
    "no columns, frame": (pd.DataFrame(index=[1, 2]), ["0 columns"]),
    "same name twice": (pd.DataFrame([[1, 2]], columns=["a", "a"]), ["2 columns named 'a'"]),
    "name of no text": (pd.DataFrame([[1, 2]], columns=["a", 1.5]), ["1.5"]),
    "complex": (np.ones((2, 2), complex), ["complex"]),
    "complex tensor": (torch.ones(2, 2, dtype=torch.complex64), ["complex64"]),
    "ragged": ([[1, 2], [3]], ["different lengths"]),
    "objects": (np.array([[1, [2]]], dtype=object), ["column 1, row 0", "objects", "[2]"]),
    "objects, missing": (np.array([[1, None]], dtype=object), ["column 1", "1 cell missing"]),
    "text array": (np.array([["1", "b"]]), ["'b'", "row 0, column 1"]),
    "numbers as text": (np.array([["1", "2"]]), ["text"]),
    "long double": (np.ones((2, 2), np.longdouble), [str(np.dtype(np.longdouble))]),
    "sparse, too large": (scipy.sparse.csr_matrix((10**9, 10**6)), ["sparse", "GB of memory"]),
    "rows and labels": (load_wine(return_X_y=True), ["(178, 13) and (178,)", "the rows alone"]),
    "a bunch": (load_wine(), ["Bunch", "x.data"]),
    "sparse tensor": (torch.eye(3).to_sparse(), ["sparse", "to_dense"]),
    "1-D": (np.zeros(3), ["1-D", "reshape(-1, 1)"]),
    "0-D": (3.0, ["single number"]),
    "series": (pd.Series([1, 2]), ["one column", "to_frame"]),
    "lazy": (pl.LazyFrame({"a": [1]}), ["lazy", "collect"]),
    "path": ("data.csv", ["data.csv", "load_file"]),
    "none": (None, ["NoneType"]),
    "dict": ({"a": [1]}, ["dict"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data(case):
    x, words = BAD[case]
    text = message(read, x, "the data")
    assert text.startswith("the data: ")
    for word in words:
        assert word in text


def test_one_row_is_too_few_to_fit():
    assert "1 row, want at least 2" in message(read, np.zeros((1, 2)), min_rows=2)
    assert read(np.zeros((1, 2))).values.shape == (1, 2)


def test_restore_refuses_nan_in_integers():
    schema = Schema(("n",), ("int64",), (1,), "pandas")
    assert "'n'" in message(schema.restore, np.array([[np.nan]]))
    assert np.isnan(Schema(None, ("float32",), (1,), "numpy").restore(np.array([[np.nan]]))).all()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "table"},
        {"kind": "numpy"},
        {"columns": None},
        {"columns": ["a", "a"]},
        {"columns": ["a", True]},
        {"columns": "ab"},
        {"dtypes": ["int64", "text"]},
        {"dtypes": ["int64"]},
        {"event_shape": [0]},
        {"event_shape": [3]},
        {"event_shape": 2},
        {"event_shape": []},
        {"dialect": None},
        {"dialect": {"separator": "x", "header": True, "decimal_comma": False}},
        {"more": 1},
    ],
)
def test_schema_from_bad_json(change):
    entry = read(pl.DataFrame({"a": [1], "b": [2.0]})).schema.to_json()
    assert Schema.from_json(entry).to_json() == entry
    assert message(Schema.from_json, entry | change).startswith("schema: ")


def test_schema_from_json_of_no_object():
    message(Schema.from_json, [1])
    message(Schema.from_json, {})


# -- files


@pytest.mark.parametrize("extension", [".csv", ".parquet", ".CSV"])
def test_frame_files_come_back_as_they_were(tmp_path, extension):
    path, frame = tmp_path / f"in{extension}", pl.DataFrame(COLUMNS)
    frame.write_parquet(path) if extension == ".parquet" else frame.write_csv(path)
    table = load_file(path)
    save_file(tmp_path / f"out{extension}", table.values, table.schema)
    assert (tmp_path / f"out{extension}").read_bytes() == path.read_bytes() or extension == ".parquet"
    again = load_file(tmp_path / f"out{extension}")
    assert again.schema == table.schema
    assert (again.values == table.values).all()


@pytest.mark.parametrize("extension", [".npy", ".npz"])
@pytest.mark.parametrize("dtype", ["float32", "int16", "bool"])
def test_array_files_come_back_as_they_were(tmp_path, extension, dtype):
    array = RNG.integers(0, 2, (5, 2, 3)).astype(dtype)
    np.save(tmp_path / "in.npy", array) if extension == ".npy" else np.savez(tmp_path / "in.npz", a=array)
    table = load_file(tmp_path / f"in{extension}")
    save_file(tmp_path / f"out{extension}", table.values, table.schema)
    again = load_file(tmp_path / f"out{extension}")
    assert again.schema == table.schema == Schema(None, (dtype,), (2, 3), "numpy")
    assert (again.values == array).all()


@pytest.mark.parametrize("source", ["pandas", "polars", "torch", "numpy", "pyarrow"])
@pytest.mark.parametrize("extension", [".csv", ".parquet", ".npy", ".npz"])
@pytest.mark.parametrize("floating", [False, True])
def test_every_kind_to_every_format(tmp_path, source, extension, floating):
    array = np.array([[1, -2], [3, 4]], dtype="int32")
    makers = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "torch": torch.from_numpy, "numpy": np.asarray}
    frame = {"a": array[:, 0], "b": array[:, 1]}
    x = pa.table(frame) if source == "pyarrow" else makers[source](frame if source in ("pandas", "polars") else array)
    table = read(x)
    save_file(tmp_path / f"t{extension}", table.values, table.schema, floating=floating)
    back = load_file(tmp_path / f"t{extension}")
    assert (back.values == array).all()
    held = "int64" if extension == ".csv" else "int32"
    assert set(back.schema.dtypes) == {"float64" if floating else held}
    if extension in (".csv", ".parquet"):
        names = ("column_0", "column_1") if table.schema.columns is None else ("a", "b")
        assert back.schema.columns == names


def test_npy_of_a_table_has_a_common_type(tmp_path):
    table = read(pl.DataFrame({"a": np.array([1, 2], "int32"), "b": np.array([0.5, 1], "float32")}))
    save_file(tmp_path / "t.npy", table.values, table.schema)
    assert np.load(tmp_path / "t.npy").dtype == np.float64


def test_half_precision_to_parquet(tmp_path):
    table = read(torch.tensor([[0.1, 0.2]], dtype=torch.bfloat16))
    for name in ("t.parquet", "t.npy"):
        save_file(tmp_path / name, table.values, table.schema)
        assert (load_file(tmp_path / name).values == table.values).all()


@given(hnp.arrays(np.float64, (4, 2), elements=st.floats(allow_nan=False, allow_infinity=False)))
def test_csv_keeps_every_bit(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("bits") / "t.csv"
    save_file(path, values, Schema(("a", "b"), ("float64", "float64"), (2,), "polars"))
    assert (load_file(path).values == values).all()


CSV = {
    "comma": ("a,b\n1,2.5\n3,4\n", ("a", "b"), ("int64", "float64")),
    "semicolon": ("a;b\n1;2.5\n3;4.0\n", ("a", "b"), ("int64", "float64")),
    "tab": ("a\tb\n1\t2.5\n3\t4.0\n", ("a", "b"), ("int64", "float64")),
    "decimal comma": ("a;b\n1;2,5\n3;4,0\n", ("a", "b"), ("int64", "float64")),
    "spaces": ("a, b\n1, 2.5\n3, +4\n", ("a", "b"), ("int64", "float64")),
    "windows": ("\ufeffa,b\r\n1,2.5\r\n3,4\r\n", ("a", "b"), ("int64", "float64")),
    "no header": ("1,2.5\n3,4.0\n", ("column_0", "column_1"), ("int64", "float64")),
    "no header, decimal comma": ("1;2,5\n3;4,0\n", ("column_0", "column_1"), ("int64", "float64")),
    "signs and bare points": ("a,b\n+1,+2.5\n3.,4\n", ("a", "b"), ("float64", "float64")),
    "old mac": ("a,b\r1,2.5\r3,4\r", ("a", "b"), ("int64", "float64")),
    "one row of text longer than the look-ahead": (
        "a;b" + "x" * 70_000 + "\n1;2.5\n3;4\n",
        ("a", "b" + "x" * 70_000),
        ("int64", "float64"),
    ),
    "quotes": ('"a","b"\n"1","2.5"\n"3",4\n', ("a", "b"), ("int64", "float64")),
    "separator in a name": ('"a;x,y",b\n1,2.5\n3,4\n', ("a;x,y", "b"), ("int64", "float64")),
    "newline in a name": ('"a\nx",b\n1,2.5\n3,4\n', ("a\nx", "b"), ("int64", "float64")),
    "blank lines at the end": ("a,b\n1,2.5\n3,4\n\n\n", ("a", "b"), ("int64", "float64")),
    "a late decimal": ("a,b\n" + "1,2.5\n" + "3,4\n" * 3000, ("a", "b"), ("int64", "float64")),
    "no end of line": ("a,b\n1,2.5\n3,4", ("a", "b"), ("int64", "float64")),
}


for _name, _text in {
    "quoted decimal commas": 'a,b\n1,"2,5"\n3,"4,0"\n',
    "decimal commas, tab": "a\tb\n1\t2,5\n3\t4,0\n",
    "separators at the ends": "a;b;\n1;2,5;\n3;4,0;\n",
    "separators at the ends of rows": "a;b\n1;2.5;\n3;4.0;\n",
    "separators at the end of the header": "a;b;\n1;2.5\n3;4.0\n",
    "empty columns": "a,,b,,\n1,,2.5,,\n3,,4.0,,\n",
    "index of pandas": ",a,b\n0,1,2.5\n1,3,4.0\n",
    "index of text": ",a,b\nu,1,2.5\nv,3,4.0\n",
    "two levels of index": ",,a,b\nu,0,1,2.5\nv,0,3,4.0\n",
    "index saved twice": ",Unnamed: 0,a,b\n0,5,1,2.5\n1,7,3,4.0\n",
    "row names of R": '"a","b"\n"1",1,2.5\n"2",3,4.0\n',
    "row names of R, unquoted": "a\tb\n1\t1\t2.5\n2\t3\t4.0\n",
    "comment": "# made by hand, with care\na,b\n1,2.5\n3,4.0\n",
    "names in a comment": "# made by hand\n# a,b\n1,2.5\n3,4.0\n",
    "stated separator": "sep=;\na;b\n1;2.5\n3;4.0\n",
    "blank lines": "a,b\n\n1,2.5\n\n3,4.0\n",
}.items():
    CSV[_name] = (_text, ("a", "b"), ("int64", "float64"))


@pytest.mark.parametrize("case", CSV)
def test_csv_as_people_write_it(tmp_path, case):
    text, columns, types = CSV[case]
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    table = load_file(path)
    assert table.schema.columns == columns
    assert table.schema.dtypes == types
    assert table.values[:2].tolist() == [[1, 2.5], [3, 4]]
    assert any("saved row index" in note for note in table.notes) == ("index" in case or "row names" in case)


MARKS = {  # one file has one decimal mark: what a cell is may only be told by another column
    "thousands points": ("n;share\n2.155;19,47\n1.030;7,20\n", [[2155, 19.47], [1030, 7.2]], True),
    "and in one column": ("n;share\n1;2.019,47\n2;7,20\n", [[1, 2019.47], [2, 7.2]], True),
    "no comma, so decimal points": ("a;b\n2.155;1.030\n1.030;2.155\n", [[2.155, 1.03], [1.03, 2.155]], False),
    "points that can only be thousands": ("a;b\n1.234.567;1\n2.155;2\n", [[1234567, 1], [2155, 2]], True),
    "points and three digits after commas": ("a;b\n2.155;1,250\n1.030;0,125\n", [[2155, 1.25], [1030, 0.125]], True),
    "commas in threes beside ;": ("a;b\n1,243;2\n2,155;3\n", [[1.243, 2], [2.155, 3]], True),
    "quoted thousands": ('a,b\n"1,243.56",2\n57.8,3\n', [[1243.56, 2], [57.8, 3]], False),
    "quoted thousands, no decimals": ('a,b\n"1,243",2\n57,3\n', [[1243, 2], [57, 3]], False),
    "thousands beside decimal points": ("a;b\n1,243;0.5\n2,155;1.25\n", [[1243, 0.5], [2155, 1.25]], False),
    "thousands, tab": ("a\tb\n1,243\t0.5\n2,155\t1.25\n", [[1243, 0.5], [2155, 1.25]], False),
    "narrow spaces": ("a;b\n1\u202f243,5;2\n57;3\n", [[1243.5, 2], [57, 3]], True),
    "spaces": ("a;b\n1 243 567;2\n57;3\n", [[1243567, 2], [57, 3]], False),
    "apostrophes": ("a,b\n1'243.5,2\n57,3\n", [[1243.5, 2], [57, 3]], False),
    "no header": ("2.155;19,47\n1.030;7,20\n", [[2155, 19.47], [1030, 7.2]], True),
    "one column of decimal commas": ("a\n19,47\n7,20\n", [[19.47], [7.2]], True),
    "exponents": ("a;b\n1,5e3;2\n2E-1;3\n", [[1500, 2], [0.2, 3]], True),
    "negative": ("a;b\n-2.155,5;\u22122\n+1;3\n", [[-2155.5, -2], [1, 3]], True),
}


@pytest.mark.parametrize("case", MARKS)
def test_a_file_has_one_decimal_mark(tmp_path, case):
    text, want, comma = MARKS[case]
    (tmp_path / "t.csv").write_text(text)
    table = load_file(tmp_path / "t.csv")
    assert table.values.tolist() == want
    assert table.schema.dialect.decimal_comma == comma
    save_file(tmp_path / "out.csv", table.values, table.schema)
    again = load_file(tmp_path / "out.csv")
    assert again.values.tolist() == want
    assert again.schema.columns == table.schema.columns


def test_thousands_marks_are_said(tmp_path):
    (tmp_path / "t.csv").write_text(MARKS["thousands points"][0])
    assert load_file(tmp_path / "t.csv").notes == ("points mark thousands: 2.155 in column 'n' is 2155",)
    (tmp_path / "t.csv").write_text(MARKS["quoted thousands"][0])
    assert load_file(tmp_path / "t.csv").notes == ("commas mark thousands: 1,243.56 in column 'a' is 1243.56",)


def test_the_comma_of_an_only_column_is_said(tmp_path):
    (tmp_path / "t.csv").write_text("a\n1,2\n2,4\n1,5\n")
    table = load_file(tmp_path / "t.csv")
    assert table.values.tolist() == [[1.2], [2.4], [1.5]]
    assert table.notes == ("commas are decimal marks: 1,2 in column 'a' is 1.2",)


@pytest.mark.parametrize("header", [True, False])
def test_an_only_column_of_decimal_commas_comes_back(tmp_path, header):
    values = np.array([[1.5], [2.5], [3.5]])  # unquoted, the first of two columns would count the rows
    schema = Schema(("a",), ("float64",), (1,), "polars", Dialect(";", header, True))
    save_file(tmp_path / "t.csv", values, schema)
    assert load_file(tmp_path / "t.csv").values.tolist() == values.tolist()


def test_a_column_left_out_still_tells_the_decimal_mark(tmp_path):
    (tmp_path / "t.csv").write_text(MARKS["thousands points"][0])
    table = load_file(tmp_path / "t.csv", drop=["share"])
    assert table.values.tolist() == [[2155], [1030]]
    (tmp_path / "t.csv").write_text("a;b;c\n1;2,5;0.5\n2;3;1.25\n")  # and has no veto
    assert load_file(tmp_path / "t.csv", drop=["c"]).values.tolist() == [[1, 2.5], [2, 3]]


@pytest.mark.parametrize("extension", [".csv", ".parquet"])
def test_columns_are_chosen_by_name(tmp_path, extension):
    path, frame = tmp_path / f"t{extension}", pl.DataFrame({"city": ["u", "v"], "a": [1, 2], "b": [3, 4], "c": [5, 6]})
    frame.write_csv(path) if extension == ".csv" else frame.write_parquet(path)
    table = load_file(path, columns=["c", "a"])
    assert table.schema.columns == ("a", "c")  # in the file's order
    assert table.values.tolist() == [[1, 5], [2, 6]]
    assert table.notes == ("left out columns 'city', 'b'",)
    table = load_file(path, drop=["city"])
    assert table.schema.columns == ("a", "b", "c")
    assert table.notes == ("left out column 'city'",)
    assert "did you mean 'city'?" in message(load_file, path, drop=["cty"])
    assert "no column 'd', 'e'" in message(load_file, path, columns=["a", "d", "e"])
    assert "all 4 columns left out" in message(load_file, path, drop=["city", "a", "b", "c"])
    assert "'city'" in message(load_file, path)
    np.save(tmp_path / "t.npy", np.zeros((2, 2)))
    assert "no names" in message(load_file, tmp_path / "t.npy", drop=["a"])


def test_what_a_column_left_out_holds_does_not_matter(tmp_path):
    (tmp_path / "t.csv").write_text(f"id,when,a,b\n{10**30 + 1},2020-01-01,1,true\n{10**30 + 2},12:30,2,false\n")
    table = load_file(tmp_path / "t.csv", drop=["id", "when"])
    assert table.values.tolist() == [[1, 1], [2, 0]]
    assert table.schema.dtypes == ("int64", "bool")
    (tmp_path / "t.csv").write_text("id;a;b\n9007199254740993;1,5;true\n9007199254740995;2;false\n")
    assert load_file(tmp_path / "t.csv", drop=["id"]).values.tolist() == [[1.5, 1], [2, 0]]


def test_marks_of_columns_left_out_do_not_matter(tmp_path):
    (tmp_path / "t.csv").write_text("n\ta\tb\tc\n1\t2,155\t2,5\t0.5\n2\t1,030\t3,5\t1.5\n")
    assert load_file(tmp_path / "t.csv", columns=["n"]).values.tolist() == [[1], [2]]
    assert load_file(tmp_path / "t.csv", drop=["b"]).values.tolist() == [[1, 2155, 0.5], [2, 1030, 1.5]]
    assert load_file(tmp_path / "t.csv", drop=["c"]).values.tolist() == [[1, 2.155, 2.5], [2, 1.03, 3.5]]
    assert "decimal comma or thousands" in message(load_file, tmp_path / "t.csv", columns=["n", "a"])


def test_an_index_column_that_is_asked_for_is_kept(tmp_path):
    (tmp_path / "t.csv").write_text("Unnamed: 0,a\n3,1\n5,2\n")
    assert load_file(tmp_path / "t.csv", columns=["Unnamed: 0", "a"]).values.tolist() == [[3, 1], [5, 2]]
    assert load_file(tmp_path / "t.csv", drop=["Unnamed: 0"]).values.tolist() == [[1], [2]]
    assert load_file(tmp_path / "t.csv").notes == ("left out column 'Unnamed: 0': a saved row index",)


MISSING_WORDS = ("", "NA", "n/a", "NaN", "NULL", "None", "missing", "?", "-", ".", "*", "#DIV/0!", "<NA>", "\\N")


@pytest.mark.parametrize("word", MISSING_WORDS)
def test_words_and_signs_for_missing(tmp_path, word):
    (tmp_path / "t.csv").write_text(f"a,b\n1,2.5\n{word},{word}\n3,4\n")
    values = load_file(tmp_path / "t.csv", allow_missing=True).values
    np.testing.assert_array_equal(values, [[1, 2.5], [np.nan, np.nan], [3, 4]])
    assert "1 cell missing" in message(load_file, tmp_path / "t.csv")


# -- random tables in random dialects


def written(value: float, places: int, decimal: str, thousands: str) -> str:
    """A number as a spreadsheet would show it."""
    whole, _, rest = f"{abs(value):,.{places}f}".partition(".")
    return "-" * int(value < 0) + whole.replace(",", thousands) + (decimal + rest if places else "")


def random_table(r: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """Numbers and how many decimals each column has; the first tells the decimal mark."""
    n, places = int(r.integers(2, 8)), [2, *r.choice([0, 0, 1, 3], int(r.integers(1, 4))).tolist()]
    values = np.column_stack([np.round(r.normal(0, 10.0 ** r.integers(0, 7), n), p) for p in places]) + 0.0
    values[0, 0] = 7.25
    return values, places


def random_file(r: np.random.Generator, values: np.ndarray, places: list[int]) -> tuple[str, list[str], np.ndarray]:
    """The table as text in a random dialect, the names it has then, and what is in it with NaN for missing."""
    separator, decimal = r.choice([",", ";", "\t"]), r.choice([".", ","])
    thousands = str(r.choice(["", "," if decimal == "." else ".", " ", "\u00a0", "'"]))
    header, word = bool(r.random() < 0.7), str(r.choice(MISSING_WORDS))
    index = str(r.choice(["no", "", "Unnamed: 0"])) if header else "no"
    missing = (r.random(values.shape) < 0.2 * r.integers(0, 2)) & (np.arange(len(values)) > 0)[:, None]
    names = [str(r.choice(["c", "a name", "x,y", "x;y"])) + str(j) for j in range(len(places))]
    rows = [
        [word if gone else written(v, p, decimal, thousands) for v, p, gone in zip(row, places, lost, strict=True)]
        for row, lost in zip(values, missing, strict=True)
    ]
    out = io.StringIO()
    quoting = csv.QUOTE_ALL if r.random() < 0.5 else csv.QUOTE_MINIMAL
    writer = csv.writer(out, delimiter=str(separator), quoting=quoting, lineterminator="\n")
    writer.writerows([[index, *names][index == "no" :]] * header)
    writer.writerows([[str(i), *row][index == "no" :] for i, row in enumerate(rows)])
    end = str(separator) * int(r.integers(0, 2))
    comments = "# of nothing, really; no name\n" * int(r.integers(0, 3))
    text = comments + "".join(f"{line}{end}\n" for line in out.getvalue().splitlines())
    own = names if header else [f"column_{j}" for j in range(len(places))]
    return text.replace("\n", str(r.choice(["\n", "\r\n"]))), own, np.where(missing, np.nan, values)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_table_in_any_dialect_comes_back(tmp_path_factory, seed):
    r = np.random.default_rng(seed)
    text, names, want = random_file(r, *random_table(r))
    path = tmp_path_factory.mktemp("dialect") / "t.csv"
    path.write_bytes(text.encode())
    table = load_file(path, allow_missing=True)
    assert table.schema.columns == tuple(names)
    np.testing.assert_array_equal(table.values, want)
    save_file(path, np.nan_to_num(want), table.schema)
    again = load_file(path)
    assert again.schema.columns == tuple(names)
    np.testing.assert_array_equal(again.values, np.nan_to_num(want))


@pytest.mark.parametrize(
    "text", ["1,2.5\n3,4.0\n", "a;b\n1;2,5\n3;4,0\n", "a\tb\n1\t2.5\n3\t4.0\n", "a\ntrue\nfalse\n"]
)
def test_csv_is_written_as_it_was_read(tmp_path, text):
    (tmp_path / "in.csv").write_text(text)
    table = load_file(tmp_path / "in.csv")
    save_file(tmp_path / "out.csv", table.values, Schema.from_json(table.schema.to_json()))
    assert (tmp_path / "out.csv").read_text() == text


def test_csv_header_of_counts_is_a_header(tmp_path):
    pd.DataFrame(RNG.normal(size=(4, 3))).to_csv(tmp_path / "t.csv", index=False)
    table = load_file(tmp_path / "t.csv")
    assert table.schema.columns == ("0", "1", "2")
    assert len(table.values) == 4


def test_csv_separator_is_told_by_the_rows_too(tmp_path):
    (tmp_path / "t.csv").write_text("a\tb;c\n1\t1\t2.5\n2\t3\t4.0\n")
    table = load_file(tmp_path / "t.csv")
    assert table.schema.columns == ("a", "b;c")
    assert table.values.tolist() == [[1, 2.5], [3, 4]]


def test_csv_header_of_years_beside_an_index_is_a_header(tmp_path):
    pd.DataFrame({"2019": [1, 3], "2020": [2.5, 4]}).to_csv(tmp_path / "t.csv")
    table = load_file(tmp_path / "t.csv")
    assert table.schema.columns == ("2019", "2020")
    assert table.values.tolist() == [[1, 2.5], [3, 4]]


def test_csv_late_decimal_and_missing_words(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,NA\n,2\nnan,3.5\n")
    values = load_file(tmp_path / "t.csv", allow_missing=True).values
    np.testing.assert_array_equal(values, [[1, np.nan], [np.nan, 2], [np.nan, 3.5]])


BAD_FILES = {
    "empty.csv": (b"", ["0 bytes"]),
    "blank.csv": (b"\n\n", ["empty"]),
    "header.csv": (b"a,b\n", ["header and no rows"]),
    "neither.csv": (b"a,b\n1,\x81\n", ["neither UTF-8 nor windows-1252"]),
    "utf16.csv": ("a,b\n1,2\n".encode("utf-16")[:-1], ["not the utf-16 it says"]),
    "zeros.csv": (bytes(100_000), ["binary data"]),
    "short.csv": (b"a,b\n1,2\n3\n", ["1 cell ", "row 1", "line 3"]),
    "long.csv": (b"a,b\n1,2\n3,4,5\n", ["3 cells", "row 1"]),
    "quoted.csv": (b'"a",b\n1,2\n"3"\n', ["1 cell ", "row 1"]),
    "text.csv": (b"a,city\n1,7\n2,Paris\n", ["'city'", "'Paris'", "row 1"]),
    "date.csv": (b"a,day\n1,2020-01-01\n2,2020-01-02\n", ["'day'", "2020-01-01"]),
    "gap.csv": (b"a,b\n1,2\n,4\n", ["'a'", "missing", "row 1"]),
    "gap1.csv": (b"a\n1\n\n2\n", ["'a'", "missing", "row 1"]),
    "na.csv": (b"a,b\n1,2\nNA,4\n", ["'a'", "missing", "row 1"]),
    "marks.csv": (
        b"a;b;c\n1;2,5;0.5\n2;3;1.25\n",
        ["points in column 'c' ('0.5')", "commas in column 'b' ('2,5')", "one"],
    ),
    "marks2.csv": (b"a;b\n1;2,5\n2;3.5\n", ["'b'", "decimal points and decimal commas", "one decimal mark"]),
    "marks3.csv": (b"a;b\n0.250;19,47\n1.030;7,20\n", ["points in column 'a' ('0.250')", "'b' ('19,47')"]),
    "thousands.csv": (b"a\tb\n1\t2,155\n2\t1,030\n", ["'b'", "'2,155'", "decimal comma or thousands"]),
    "large.csv": (b"a,id\n1,7\n2,9007199254740993\n", ["'id', row 1: got 9007199254740993", "740992", "drop"]),
    "larger.csv": (b"a,id\n1,7\n2,1000000000000000000000000000001\n", ["'id', row 1", "0000001", "drop the column"]),
    "larger2.csv": (b'a;id\n1,5;"9.007.199.254.740.993"\n2,5;"1.000"\n', ["'id'", "row 0", "9007199254740993"]),
    "percent.csv": (b"a,b\n1,37.8%\n2,1 %\n", ["'b'", "percentages", "'37.8%'", "row 0", "remove the %"]),
    "money.csv": (b"a,b\n1,$57.86\n2,\xe2\x82\xac1\n", ["'b'", "amounts of money", "'$57.86'", "remove the currency"]),
    "unit.csv": (b"a,b\n1,57 kg\n2,61.5kg\n", ["'b'", "a unit", "'57 kg'", "remove the unit"]),
    "texts.csv": (b"a,b,c,d\n1,x,y,2\n2,u,v,3\n", ["columns 'b', 'c'", "'x' at row 0 of 'b'", "drop the columns"]),
    "nine.csv": (b",".join(b"c%d" % i for i in range(13)) + b"\n" + b",".join([b"x"] * 13), ["and 3 more"]),
    "marked.csv": (b"a,b\n1,2\n?,4\n", ["'a'", "1 cell missing", "row 1"]),
    "excel.csv": (b"a,b\n1,2\n3,#DIV/0!\n", ["'b'", "1 cell missing", "row 1"]),
    "hashes.csv": (b"#1,5\n#2,6\n", ["'#1'", "text", "'#2' at row 0"]),
    "name.csv": (b"a,,c\n1,2,3\n", ["no name", "column 1"]),
    "nameless.csv": (b",,\n1,x,3\n", ["no column with a name"]),
    "missing first.csv": (b",2.5\n1,3.5\n", ["'column_0'", "missing", "row 0"]),
    "unquoted.csv": (b"a,b\n1,2,5\n7,3,5\n", ["3 cells in row 0 (line 2)", "'1,2,5'", "quote a cell"]),
    "commented.csv": (b"# one\n# two\n\na,b\n1,2\n3\n", ["1 cell in row 1 (line 6)", "'3'"]),
    "late comment.csv": (b"a,b\n1,2\n# end\n", ["'# end'", "line 3"]),
    "mixed.csv": (b"a,b\n1,2\n2,true\n", ["'b'", "'true'", "row 1"]),
    "quote.csv": (b'a,b\n1,"2\n', ["cannot be parsed"]),
    "long quote.csv": (b'a,b\n1,"2\n' + b"3,4\n" * 40_000, ["cannot be parsed"]),
    "two.csv": (b"a;b,c\n1;2,3\n4,5\n", ["text", "'1;2'"]),
    "inf.csv": (b"a,b\n1,2\ninf,4\n", ["'a'", "infinite", "row 1"]),
    "twice.csv": (b"a,a\n1,2\n", ["2 columns named 'a'"]),
    "spaced.csv": (b"1 234\n5 678\n", ["one column of thousands or several"]),
    "corrupt.parquet": (b"PAR1 and more", ["corrupt"]),
    "corrupt.npy": (b"nothing", ["corrupt"]),
    "cut.npy": (b"\x93NUMPY\x01\x00v\x00{'descr'", ["corrupt"]),
    "corrupt.npz": (b"PK and more", ["corrupt"]),
    "other.npz": (b"nothing", ["corrupt"]),
    "t.xlsx": (b"x", ["'.xlsx'", ".csv, .parquet, .npy, .npz"]),
    "noext": (b"x", ["no extension", ".csv, .parquet, .npy, .npz"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    raw, words = BAD_FILES[name]
    (tmp_path / name).write_bytes(raw)
    text = message(load_file, tmp_path / name)
    for word in [str(tmp_path / name), *words]:
        assert word in text


def test_bad_paths(tmp_path):
    (tmp_path / "d.csv").mkdir()
    assert "directory" in message(load_file, tmp_path / "d.csv")
    assert "no such file" in message(load_file, tmp_path / "none.csv")
    assert "no such file" in message(load_file, str(tmp_path / "two\nlines.csv"))
    for call in (load_file, lambda path: save_file(path, np.zeros((1, 1)), Schema(None, ("bool",), (1,), "numpy"))):
        assert "null character" in message(call, "a\0.npy")


def test_permission_denied(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("a\n1\n")

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    assert "Permission denied" in message(load_file, path)


def test_numpy_files_that_are_no_arrays_of_numbers(tmp_path):
    np.save(tmp_path / "o.npy", np.array([[1, None]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "o.npz", np.array([[1, None]], dtype=object))
    np.save(tmp_path / "s.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "v.npy", np.zeros(3))
    assert "pickled" in message(load_file, tmp_path / "o.npy")
    assert "pickled" in message(load_file, tmp_path / "o.npz")
    assert "'a'" in message(load_file, tmp_path / "s.npy")
    assert "reshape" in message(load_file, tmp_path / "v.npy")
    whole = (tmp_path / "v.npy").read_bytes()
    (tmp_path / "v.npy").write_bytes(whole[:-4])
    assert "corrupt" in message(load_file, tmp_path / "v.npy")


def test_npz_of_several_arrays(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.ones((2, 1)), y=np.zeros((2, 1)))
    assert load_file(tmp_path / "t.npz").values.tolist() == [[1], [1]]
    np.savez(tmp_path / "t.npz", train=np.ones((2, 1)), test=np.zeros((2, 1)))
    text = message(load_file, tmp_path / "t.npz")
    assert "'train'" in text
    assert "'test'" in text
    np.savez(tmp_path / "t.npz")
    assert "0 arrays" in message(load_file, tmp_path / "t.npz")


@pytest.mark.parametrize("extension", [".npy", ".npz"])
def test_any_changed_byte_is_harmless(tmp_path, extension):
    path, rng = tmp_path / f"t{extension}", np.random.default_rng(1)
    save_file(path, rng.normal(size=(20, 2)), Schema(None, ("float64",), (2,), "numpy"))
    whole = path.read_bytes()
    for _ in range(200):
        changed = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 128), 3):
            changed[place] = rng.integers(0, 256)
        path.write_bytes(changed)
        try:
            load_file(path)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_parquet_with_text_or_a_saved_index(tmp_path):
    pl.DataFrame({"a": [1, 2], "s": ["u", "v"]}).write_parquet(tmp_path / "t.parquet")
    assert "'s'" in message(load_file, tmp_path / "t.parquet")
    pl.DataFrame({"a": [1, 2], "s": ["u", "v"], "t": ["u", "v"]}).write_parquet(tmp_path / "t.parquet")
    assert "'t' hold no numbers either" in message(load_file, tmp_path / "t.parquet")
    filtered = pd.DataFrame({"a": [1, 2, 3, 4], "b": [0.5, 1.5, 2.5, 3.5]}).query("a != 2")
    filtered.to_parquet(tmp_path / "t.parquet")
    arrow = pa.Table.from_pandas(filtered)
    assert "__index_level_0__" in arrow.column_names
    for table in (load_file(tmp_path / "t.parquet"), read(arrow), read(pl.read_parquet(tmp_path / "t.parquet"))):
        assert table.values.tolist() == [[1, 0.5], [3, 2.5], [4, 3.5]]
        assert table.schema.columns == ("a", "b")
        assert table.notes == ("left out column '__index_level_0__': a saved row index",)
    back = read(arrow).schema.restore(np.zeros((3, 2)), like=arrow)
    assert back.column_names == ["a", "b"]


def test_saving_is_refused_early(tmp_path):
    image, table = Schema(None, ("float64",), (2, 2), "numpy"), Schema(None, ("float64",), (2,), "numpy")
    assert ".npy" in message(save_file, tmp_path / "t.csv", np.zeros((1, 2, 2)), image)
    assert "no folder" in message(save_file, tmp_path / "none" / "t.csv", np.zeros((1, 2)), table)
    assert ".doc" in message(save_file, tmp_path / "t.doc", np.zeros((1, 2)), table)
    (tmp_path / "d.csv").mkdir()
    assert "directory" in message(save_file, tmp_path / "d.csv", np.zeros((1, 2)), table)
    assert "(1, 3)" in message(save_file, tmp_path / "t.npy", np.zeros((1, 3)), table)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.csv"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path, schema = tmp_path / "t.npy", Schema(None, ("float64",), (2,), "numpy")
    save_file(path, np.ones((1, 2)), schema)
    mode = path.stat().st_mode

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        assert "No space left" in message(save_file, path, np.zeros((1, 2)), schema)
    assert load_file(path).values.tolist() == [[1, 1]]
    assert [p.name for p in tmp_path.iterdir()] == ["t.npy"]
    path.chmod(0o600)
    save_file(path, np.zeros((1, 2)), schema)
    assert path.stat().st_mode & 0o777 == 0o600
    assert mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link.npy").symlink_to(tmp_path / "real.npy")
    save_file(tmp_path / "link.npy", np.ones((1, 1)), Schema(None, ("float64",), (1,), "numpy"))
    assert (tmp_path / "link.npy").is_symlink()
    assert load_file(tmp_path / "real.npy").values.tolist() == [[1]]


# -- grids


def grey(n: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, 1)).astype(float)


ON_A_GRID = {
    "two decimals": (np.round(RNG.uniform(0, 100, (200, 1)), 2), 0.01),
    "prices of 20 rows": (np.round(RNG.uniform(0, 100, (20, 1)), 2), 0.01),
    "integers": (RNG.integers(-50, 50, (300, 1)), 1),
    "20 integers": (RNG.permutation(60)[:20, None] - 30, 1),
    "thousands": (RNG.permutation(60)[:20, None] * 1000, 1000),
    "large integers": (RNG.integers(0, 2**40, (50, 1)), 1),
    "few integers": (np.array([[2], [4], [8]]), 1),
    "binary": (RNG.integers(0, 2, (50, 1)), 1),
    "signs": (RNG.choice([-1, 1], (50, 1)), 2),
    "two odd values": (RNG.choice([np.pi, np.e], (50, 1)), np.pi - np.e),
    "tenths": (RNG.integers(-30, 30, (500, 1)) / 10, 0.1),
    "tenths, float32": ((RNG.integers(-30, 30, (500, 1)) / 10).astype("float32"), 0.1),
    "hundredths of 100000": (RNG.integers(0, 10**7, (400, 1)) / 100, 0.01),
    "grey": (grey(1000) / 255, 1 / 255),
    "grey, float32": ((grey(1000) / 255).astype("float32"), 1 / 255),
    "grey, centred": (grey(1000) / 127.5 - 1, 2 / 255),
    "standardised": ((grey(1000) - 117.3) / 72.1, 1 / 72.1),
    "standardised, float32": (((grey(1000) - 117.3) / 72.1).astype("float32"), 1 / 72.1),
    "thirds with holes": (RNG.choice([0, 1, 5, 6, 20], (200, 1)) / 3, 1 / 3),
}


@pytest.mark.parametrize("case", ON_A_GRID)
def test_grids_are_found(case):
    values, step = ON_A_GRID[case]
    values = np.asarray(values, dtype=np.float64)
    grid = detect_grid(values)
    assert grid.step[0] == pytest.approx(step, rel=1e-6)
    assert (grid.low[0], grid.high[0]) == (values.min(), values.max())
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid
    shaken = values + RNG.uniform(-0.45, 0.45, values.shape) * step
    for x in (values, shaken):
        assert grid.snap(x).tobytes() == values.tobytes()
    assert grid.snap(np.array([[-1e20], [1e20], [np.inf]])).ravel().tolist() == [
        values.min(),
        values.max(),
        values.max(),
    ]
    assert np.isnan(grid.snap(np.array([[np.nan]]))).all()
    between = (grid.snap(RNG.uniform(values.min(), values.max(), (100, 1))) - grid.offset) / step
    np.testing.assert_allclose(between, np.rint(between), atol=1e-2)


NORMAL = RNG.normal(size=(3000, 1))
CONTINUOUS = {
    "normal": NORMAL,
    "float32": NORMAL.astype("float32"),
    "float16": NORMAL.astype("float16"),
    "uniform float32": RNG.random((3000, 1), dtype="float32"),
    "many float32": RNG.normal(size=(200_000, 1)).astype("float32"),
    "large": NORMAL * 1e18,
    "large float32": (NORMAL * 1e9).astype("float32"),
    "small": NORMAL * 1e-12,
    "six decimals": np.round(NORMAL, 6),
    "half zeros": np.where(NORMAL > 0, NORMAL, 0),
    "mostly zeros, float32": np.where(NORMAL > 1, NORMAL, 0).astype("float32"),
    "three odd values": RNG.choice([np.pi, np.e, 1.1], (200, 1)),
    "three odd values, float32": RNG.choice([np.pi, np.e, 1.1], (200, 1)).astype("float32"),
    "five rows": NORMAL[:5],
    "two rows": NORMAL[:2].astype("float32"),
}


@pytest.mark.parametrize("case", CONTINUOUS)
def test_continuous_data_are_on_no_grid(case):
    grid = detect_grid(CONTINUOUS[case])
    assert grid.step.tolist() == [0]
    assert grid.snap(np.array([[1e30], [0.123]])).ravel().tolist() == [1e30, 0.123]


LARGEST = 1.7976931348623157e308
EXTREME = {  # the values, and the step where they repeat; 0 where there is none, or none that is a number
    "largest": ([1e308, -1e308, 0.0, 1.0], 0),
    "three in the largest span": ([-1e308, 0.0, 1e308], 1e308),
    "a step too large": ([-LARGEST, LARGEST], 0),
    "small": ([1e-300, 2e-300, 3e-300, 7e-300], 1e-300),
    "smallest": ([5e-324, 1e-323, 2e-323, 0.0], 5e-324),
    "the smallest of all": ([0.0, 5e-324], 5e-324),
    "smallest and largest": ([5e-324, 1e308, 3.0], 0),
    "largest normal": ((RNG.normal(size=40) * 4e307).tolist(), 0),
    "smallest normal": ((RNG.normal(size=40) * 1e-300).tolist(), 0),
}


@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize("case", EXTREME)
def test_grids_of_the_largest_and_smallest_numbers(case, repeats):
    values, step = EXTREME[case]
    column = np.array(values * repeats)[:, None]
    grid = detect_grid(column)
    assert grid.step[0] == pytest.approx(step if repeats > 1 else 0, rel=1e-12, abs=0)
    assert (grid.snap(column) == column).all()
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid
    if grid.step[0]:
        out = grid.snap(np.array([[-np.inf], [np.inf], [LARGEST], [np.nan]])).ravel().tolist()
        assert out[:3] == [min(values), max(values), max(values)]
        assert np.isnan(out[3])


@pytest.mark.parametrize("power", [-1000, -300, 40, 900])
def test_a_grid_in_another_unit_is_the_same_grid(power):
    """A power of two changes no digit of a number, so that all of the grid is multiplied by it."""
    values = RNG.integers(0, 40, (300, 1)) * np.pi - 17.3
    axis, other = detect_grid(values).axes[0], detect_grid(np.ldexp(values, power)).axes[0]
    assert axis.step == pytest.approx(np.pi, rel=1e-12)
    assert (other.step, other.low, other.high) == tuple(np.ldexp([axis.step, axis.low, axis.high], power))
    assert other.points == tuple(np.ldexp(axis.points, power))


def test_decimals_without_a_grid_are_kept():
    values = np.round(RNG.normal(size=(3000, 1)) * 50, 5)
    grid = detect_grid(np.hstack([values, NORMAL, np.rint(NORMAL * 3)]))
    assert grid.step.tolist() == [0, 0, 1]
    new = np.array([[10.984324597462228, 10.984324597462228, 1.4], [1e300, 1e300, 0.6], [np.nan, np.nan, 0.0]])
    out = [[10.98432, 10.984324597462228, 1], [1e300, 1e300, 1]]
    assert grid.snap(new)[:2].tolist() == out
    assert np.isnan(grid.snap(new)[2, :2]).all()
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid
    rounded = grid.rounded(new)
    assert rounded[:2, :2].tolist() == [row[:2] for row in out]
    assert rounded[:, 2].tolist() == [1.4, 0.6, 0]  # the mean of whole numbers is none


def test_rounding_to_the_decimals_of_wine():
    grid = detect_grid(load_wine().data)
    rows = grid.rounded(load_wine().data[:3] + 0.0043245974622)
    assert rows[:, 0].tolist() == [14.23, 13.2, 13.16]  # two decimals
    assert rows[:, 3].tolist() == [15.6, 11.2, 18.6]  # one
    assert (rows[:, 4] - load_wine().data[:3, 4]).tolist() == pytest.approx([0.0043245974622] * 3)


def test_constants_come_back_exactly():
    grid = detect_grid(np.full((5, 1), 0.1))
    assert grid.step[0] == 0
    assert grid.axes[0].gridded
    assert grid.snap(np.array([[7.0], [-3.0]])).ravel().tolist() == [0.1, 0.1]
    assert Grid.from_json(grid.to_json()) == grid


def test_digits_and_wine():
    digits = (load_digits().images / 8 - 1)[:, None]
    grid = detect_grid(digits)
    assert set(grid.step) == {0, 0.125}
    assert (grid.snap(digits) == digits).all()
    assert grid.snap(digits).shape == digits.shape
    wine = load_wine().data
    grid = detect_grid(wine)
    assert grid.step[[0, 3, 12]].tolist() == [0.01, 0.1, 1]
    assert (grid.snap(wine) == wine).all()


def test_a_decimal_stays_a_decimal():
    tenths = np.arange(20)[:, None] / 10
    grid = detect_grid(tenths)
    assert grid.snap(np.array([[0.1 + 0.2]]))[0, 0] == 0.3
    assert grid.snap(np.array([[0.7000001]]))[0, 0] == 0.7


def test_mixed_columns_are_snapped_one_by_one():
    values = np.column_stack([NORMAL[:100, 0], RNG.integers(0, 3, 100), np.full(100, 2.5)])
    out = detect_grid(values).snap(np.array([[0.123, 1.4, 0.0], [9.0, 7.0, 3.0]]))
    assert out.tolist() == [[0.123, 1, 2.5], [9, 2, 2.5]]


def test_grid_refuses():
    grid = detect_grid(np.zeros((3, 2)))
    assert "2 coordinates" in message(grid.snap, np.zeros((3, 3)))
    assert "finite" in message(detect_grid, np.array([[np.nan]]))
    assert "(0, 2)" in message(detect_grid, np.zeros((0, 2)))


@pytest.mark.parametrize(
    "entries",
    [
        None,
        [3],
        [{"step": 1}],
        [{"step": "x", "offset": 0, "low": 0, "high": 1}],
        [{"step": 1, "offset": 0, "low": 0, "high": 1}],
        [{"step": -1, "offset": 0, "low": 0, "high": 1, "scale": 1}],
        [{"step": 1, "offset": 0, "low": 0, "high": float("inf"), "scale": 1}],
        [{"step": 0, "offset": 0, "low": 0, "high": 1, "scale": 255}],
        [{"step": 1, "offset": 0, "low": 0, "high": 2, "points": [0, 1]}],
        [{"step": 1, "offset": 0, "low": 0, "high": 2, "scale": 1, "code": "x"}],
    ],
)
def test_grid_from_bad_json(entries):
    assert message(Grid.from_json, entries).startswith("grid: ")


def test_axis_is_continuous_by_default():
    assert not Axis(0.0, 0.0, 0.0, 1.0).gridded


# -- speed (limits are several times what it takes)


def test_speed_of_detection():
    values = np.column_stack([RNG.normal(size=(100_000, 32)), RNG.integers(0, 256, (100_000, 32)) / 255])
    start = time.perf_counter()
    detect_grid(values)
    assert time.perf_counter() - start < 2


def test_speed_of_csv(tmp_path):
    values = RNG.normal(size=(100_000, 8))
    schema = Schema(None, ("float64",), (8,), "numpy")
    start = time.perf_counter()
    save_file(tmp_path / "t.csv", values, schema)
    table = load_file(tmp_path / "t.csv")
    assert time.perf_counter() - start < 4
    assert isinstance(table, Table)
    assert (table.values == values).all()
