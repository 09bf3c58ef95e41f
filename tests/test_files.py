"""Files of every form that tables come in: each is read exactly, or refused on one line before it costs anything."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import resource
import subprocess
import sys
import textwrap
import threading
import zipfile
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse

from gradlogp import ScoreDensity
from gradlogp._shapes import InputError
from gradlogp.cli import main
from gradlogp.data import Schema, blocks, load_file, load_labels, memory, read, save_file, source

ROWS = [[1.0, 2.5], [3.0, 4.0], [-7.0, 1e-3]]
CSV = "a,b\n1,2.5\n3,4.0\n-7,1e-3\n"


def message(call, *args, **kwargs) -> str:
    """The message of the InputError, which is one line."""
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    text = str(error.value)
    assert "\n" not in text
    assert "want" in text
    return text


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def savetxt(**options) -> bytes:
    file = io.BytesIO()
    np.savetxt(file, ROWS, **options)
    return file.getvalue()


def parquet(table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


FORMS = {  # name of the file: its bytes
    "tabs.tsv": CSV.replace(",", "\t").encode(),
    "tabs.txt": CSV.replace(",", "\t").encode(),
    "commas.txt": CSV.encode(),
    "bars.txt": CSV.replace(",", "|").encode(),
    "bars and decimal commas.txt": b"a|b\n1|2,5\n3|4,0\n-7|1,0e-3\n",
    "spaces.txt": CSV.replace(",", " ").encode(),
    "runs.txt": b"  a    b\n  1    2.5\n  3    4.0\n -7    1e-3  \n",
    "spaces and tabs.txt": b"a \t b\n1 \t 2.5\n3 4.0\n-7 1e-3\n",
    "quoted, spaces.txt": b'"a"  "b"\n1  "2.5"\n3 4.0\n-7 1e-3\n',
    "row names of R, spaces.txt": b'"a" "b"\n"x 1" 1 2.5\n"x 2" 3 4.0\n"x 3" -7 1e-3\n',
    "decimal commas, spaces.txt": b"a b\n1 2,5\n3 4,0\n-7 1,0e-3\n",
    "decimal commas.tsv": b"a\tb\n1\t2,5\n3\t4,0\n-7\t1,0e-3\n",
    "packed.csv.gz": gzip.compress(CSV.encode()),
    "packed.npy.gz": gzip.compress(npy(np.array(ROWS))),
    "packed.PARQUET.GZ": gzip.compress(parquet(pa.table({"a": [1.0, 3, -7], "b": [2.5, 4, 1e-3]}))),
    "utf-16.csv": CSV.encode("utf-16"),
    "utf-16, no mark.csv": CSV.encode("utf-16-le"),
    "utf-16, other end.csv": CSV.encode("utf-16-be"),
    "utf-32.csv": CSV.encode("utf-32"),
    "latin.csv": CSV.replace("a", "Größe").encode("latin-1"),
    "savetxt.txt": savetxt(),
    "savetxt, names.txt": savetxt(header="a b"),
    "savetxt, commas.csv": savetxt(header="a,b", delimiter=","),
    "savetxt, names with commas.txt": savetxt(header="a,b"),
    "hash on a name.csv": b"#a,b\n1,2.5\n3,4\n-7,1e-3\n",
    "structured.npy": npy(np.array([tuple(row) for row in ROWS], dtype=[("a", "f8"), ("b", "f8")])),
    "fortran.npy": npy(np.asfortranarray(ROWS)),
    "decimals.parquet": parquet(pa.table({"a": [1.0, 3, -7], "b": [Decimal("2.5"), Decimal(4), Decimal("0.001")]})),
    "quotes, windows.csv": b'"a","b"\r\n"1","2.5"\r\n"3","4.0"\r\n"-7","1e-3"\r\n',
    "a quoted line break.csv": b'"a\nx",b\n1,2.5\n3,4\n-7,1e-3\n',
    "true.csv": b"a,b\n1,2.5\n3,4\n-7,0.001\n\n\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_files(tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name])
    table = load_file(tmp_path / name)
    assert table.values.tolist() == ROWS
    nameless = name.startswith(("savetxt.txt", "packed.npy", "fortran"))
    first = {"latin.csv": "Größe", "a quoted line break.csv": "a\nx"}.get(name, "a")
    assert nameless or table.schema.columns == (first, "b")
    out = tmp_path / f"out {name}"
    save_file(out, table.values, Schema.from_json(json.loads(json.dumps(table.schema.to_json()))))
    again = load_file(out)
    assert again.values.tolist() == ROWS
    if not name.lower().endswith((".npy", ".npy.gz")):
        assert nameless or again.schema.columns == table.schema.columns


@pytest.mark.parametrize("name", FORMS)
def test_damaged_files_are_read_or_refused_on_one_line(tmp_path, name):
    r, raw = np.random.default_rng(len(name)), FORMS[name]
    for i in range(4):
        damaged = bytearray(raw)
        if i % 2:
            del damaged[int(r.integers(0, len(raw))) :]
        else:
            damaged[int(r.integers(0, len(raw)))] = r.integers(0, 256)
        (tmp_path / name).write_bytes(damaged)
        said = ""
        try:
            found = load_file(tmp_path / name).values
        except InputError as e:
            found, said = np.zeros(1), str(e)
        assert np.isfinite(found).all()
        assert "\n" not in said


def test_a_file_in_another_encoding_is_said(tmp_path):
    (tmp_path / "t.csv").write_bytes(FORMS["latin.csv"])
    assert load_file(tmp_path / "t.csv").notes == ("read as windows-1252: it is not UTF-8",)
    (tmp_path / "t.csv").write_bytes("a,b\n1,é\n".encode("latin-1"))
    assert "read as windows-1252" in message(load_file, tmp_path / "t.csv")


@pytest.mark.parametrize("size", [1, 3, 10, 1000])
@pytest.mark.parametrize(
    "text",
    [
        CSV,
        '"a","b"\n"1","2.5"\n3,"4.0"\n-7,"0.001"\n',
        ',"a","b"\n"x, ""1""\n",1,2.5\n"y",3,4\n,-7,0.001\n',
        "\n\n# a b\n#c\n\na b\n\n1  2.5 \n3 4\n\n-7 1e-3\n\n\n",
        "a;b\n1;2,5\n3;4\n-7;0,001\n",
        "a,b,\r\n1,2.5,\r\n3,4,\r\n-7,1e-3,\r\n",
    ],
)
def test_blocks_of_any_size_say_the_same(tmp_path, monkeypatch, text, size):
    (tmp_path / "t.csv").write_bytes(text.encode())
    whole = load_file(tmp_path / "t.csv")
    monkeypatch.setattr(blocks, "BLOCK", size)
    cut = load_file(tmp_path / "t.csv")
    assert cut.values.tolist() == whole.values.tolist() == ROWS
    assert (cut.schema, cut.notes) == (whole.schema, whole.notes)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n5,6\n7,8,9\n")
    assert "3 cells in row 3 (line 5), '7,8,9', want 2" in message(load_file, tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n\n5,x\n")
    assert "'x' at row 2" in message(load_file, tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("a,b\n1,2.5\n3,9007199254740993\n")
    assert "column 'b', row 1: got 9007199254740993, which would change" in message(load_file, tmp_path / "t.csv")


def test_text_of_any_length_and_quotes_within_cells(tmp_path):
    path = tmp_path / "t.csv"
    long, inch = "x" * 200_000, '5" pipe'
    path.write_text(f"note,a\n{long},1\nshort,2\n")
    assert load_file(path, drop=["note"]).values.tolist() == [[1], [2]]
    path.write_text(f'note,a\n{inch},1\n"a ""b"", c",2\n6"" pipe,3\n')
    assert load_file(path, drop=["note"]).values.tolist() == [[1], [2], [3]]
    labels = load_labels(path, "note")
    path.write_text('note,a\nx,1\n"y,2\n' + "z,3\n" * 60_000)
    text = message(load_file, path, drop=["note"])
    assert "cannot be parsed" in text
    assert "begins on line 3" in text
    assert labels[1:] == ['a "b", c', '6"" pipe']
    path.write_text('note,a\nx,1\nx "y,z",1\n')
    assert "3 cells in row 1 (line 3)" in message(load_file, path, drop=["note"])
    path.write_text('note,a\n"a ""b"", c",1\n')
    assert load_labels(path, "note") == ['a "b", c']
    path.write_text('note,a\nx,1\n"y"z,2\n')
    assert "line 3" in message(load_file, path, drop=["note"])


def test_a_bad_cell_is_told_by_its_line(tmp_path):
    (tmp_path / "t.csv").write_text("# made by hand\na,b\n1,2\n3,NA\n")
    assert "1 cell missing (NaN or null), first at row 1 (line 4)" in message(load_file, tmp_path / "t.csv")


def test_columns_of_other_kinds_have_labels_of_their_own(tmp_path):
    (tmp_path / "t.csv").write_text("pct,money,rate,city,n\n3%,$5,4%,x,1\n4%,$6,5%,y,2\n")
    text = message(load_file, tmp_path / "t.csv")
    assert "columns 'pct', 'rate': got percentages, first '3%' at row 0 of 'pct'" in text
    assert "and amounts of money in column 'money', and text in column 'city', want numbers; remove the %" in text


# -- parquet


def test_a_row_index_with_a_name_is_left_out(tmp_path):
    path = tmp_path / "t.parquet"
    frame = pd.DataFrame({"id": [5, 9, 2], "k": [1, 1, 2], "a": [1.0, 2.0, 3.0]})
    frame.set_index(["id", "k"]).to_parquet(path)
    table = load_file(path)
    assert table.schema.columns == ("a",)
    assert table.notes == ("left out column 'id': a saved row index", "left out column 'k': a saved row index")
    assert load_file(path, columns=["id", "a"]).values.tolist() == [[1, 5], [2, 9], [3, 2]]
    assert load_file(path, drop=["id", "k"]).values.tolist() == [[1], [2], [3]]
    arrow = pa.Table.from_pandas(frame.set_index("id"))
    assert read(arrow).schema.columns == ("k", "a")
    frame.to_parquet(path)
    assert load_file(path).schema.columns == ("id", "k", "a")


def test_a_folder_of_parquet_is_one_table(tmp_path):
    folder = tmp_path / "t.parquet"
    for year in (2019, 2020):
        (folder / f"year={year}").mkdir(parents=True)
        pl.DataFrame({"a": [1.0, year - 2018.5]}).write_parquet(folder / f"year={year}" / "part-0.parquet")
    (folder / "_SUCCESS").touch()
    (folder / "_old.parquet").write_bytes(b"nothing")
    table = load_file(folder)
    assert table.schema.columns == ("a", "year")
    assert table.values.tolist() == [[1, 2019], [0.5, 2019], [1, 2020], [1.5, 2020]]
    assert load_file(folder, drop=["year"]).values.tolist() == [[1], [0.5], [1], [1.5]]
    (folder / "bad.parquet").write_bytes(b"nothing")
    assert "a folder with a file that is corrupt" in message(load_file, folder)


def test_decimals_and_lists_in_parquet(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    lists = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2, 3, 4, 5, 6]), 2)
    money = pa.array([Decimal("0.1"), Decimal("-12345678901.23"), Decimal("9007199254740992.00")], pa.decimal128(38, 2))
    pq.write_table(pa.table({"e": lists, "money": money, "n": [7, 8, 9]}), path)
    for at_a_time in (2**21, 1):
        monkeypatch.setattr("gradlogp.data.parquet.AT_A_TIME", at_a_time)
        table = load_file(path)
        assert table.schema.columns == ("e_0", "e_1", "money", "n")
        assert table.schema.dtypes == ("float64", "float64", "float64", "int64")
        assert table.values.tolist() == [[1, 2, 0.1, 7], [3, 4, -12345678901.23, 8], [5, 6, 2.0**53, 9]]
    assert table.notes == ("column 'e' of lists is columns 'e_0' to 'e_1'",)
    assert load_file(path, drop=["e"]).schema.columns == ("money", "n")
    assert load_file(path, columns=["e", "n"]).schema.columns == ("e_0", "e_1", "n")
    assert load_file(path, columns=list(table.schema.columns)).values.tolist() == table.values.tolist()
    assert read(pl.read_parquet(path)).values.tolist() == table.values.tolist()
    for cell in ("9007199254740993.00", "9007199254740993.50"):
        pq.write_table(pa.table({"money": pa.array([Decimal("1.00"), Decimal(cell)], pa.decimal128(38, 2))}), path)
        assert f"'money', row 1: got {cell}, which would change" in message(load_file, path)


# -- what holds numbers in Python

HOLD = {
    "objects": (pd.DataFrame({"a": [1, 3], "b": [2.5, Decimal(4)]}, dtype=object), ("int64", "float64")),
    "truths": (pd.DataFrame({"a": [1, 3], "b": [True, False]}, dtype=object), ("int64", "bool")),
    "fractions": (pd.DataFrame({"a": [1, 3], "b": [Fraction(5, 2), 4]}, dtype=object), ("int64", "float64")),
    "categories": (pd.DataFrame({"a": [1, 3], "b": [2.5, 4]}).astype("category"), ("int64", "float64")),
    "sparse frame": (pd.DataFrame({"a": [1, 3], "b": [2.5, 4]}).astype(pd.SparseDtype(float, 0)), ("float64",) * 2),
    "sparse matrix": (scipy.sparse.coo_matrix([[1, 2.5], [3, 4]]), ("float64",)),
    "sparse array": (scipy.sparse.csr_array(np.array([[1, 2.5], [3, 4]])), ("float64",)),
    "object array": (np.array([[1, Decimal("2.5")], [Fraction(3), 4]], dtype=object), ("float64",)),
    "decimals in lists": ([[1, Decimal("2.5")], [3, Fraction(4)]], ("float64",)),
    "records": (np.rec.fromarrays([[1, 3], [2.5, 4]], names="a,b"), ("int64", "float64")),
    "a field of two": (np.array([((1, 2.5),), ((3, 4),)], dtype=[("a", "f4", 2)]), ("float32",) * 2),
}


@pytest.mark.parametrize("kind", HOLD)
def test_what_holds_numbers_is_read(kind):
    x, types = HOLD[kind]
    table = read(x)
    want = [[1, True], [3, False]] if kind == "truths" else [[1, 2.5], [3, 4]]
    assert table.values.tolist() == want
    assert table.schema.dtypes == types
    back = table.schema.restore(table.values, like=x)
    assert np.asarray(read(back).values).tolist() == want


def test_records_come_back_as_records():
    x = HOLD["records"][0]
    back = Schema.from_json(json.loads(json.dumps(read(x).schema.to_json()))).restore(read(x).values)
    assert back.dtype.names == ("a", "b")
    assert back.tolist() == [(1, 2.5), (3, 4.0)]


def test_objects_that_would_change_are_refused():
    odd = 2**53 + 1
    for cell in (odd, Decimal(odd), Fraction(odd), Fraction(2 * odd + 1, 2), Decimal(f"{odd}.5")):
        assert "would change" in message(read, pd.DataFrame({"a": [0.5, cell]}, dtype=object))
    assert "would change" in message(read, pd.DataFrame({"a": pd.Categorical([1, 2**53 + 1])}))
    assert "1 cell missing" in message(read, pd.DataFrame({"a": pd.Categorical([1, None])}))


# -- wide tables


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_wide_frames(frame):
    x = np.arange(6000.0).reshape(3, 2000) - 0.5
    assert (read(frame(x)).values == x).all()
    whole = frame(x.astype(int)) if frame is pl.DataFrame else frame(x.astype(int).astype("int8"))
    assert set(read(whole).schema.dtypes) == {"int64" if frame is pl.DataFrame else "int8"}
    large = np.full((2, 300), 2**53 + 1)
    assert "would change" in message(read, frame(large))


def test_more_columns_than_a_covariance_is_refused_at_once():
    with pytest.raises(InputError, match=r"1,000,000 columns, whose covariance .* GB of memory"):
        ScoreDensity().fit(np.zeros((10, 1_000_000), dtype=np.float32))


# -- devices, pipes, and files that claim more than there is


def test_devices_are_refused(tmp_path):
    for extension in ("csv", "npy", "parquet", "gz"):
        (tmp_path / f"zeros.{extension}").symlink_to("/dev/zero")
        assert "a device" in message(load_file, tmp_path / f"zeros.{extension}")
    assert "a device" in message(load_file, "/dev/null")


@contextlib.contextmanager
def pipe(path: Path, content: bytes, times: int = 1):
    """A pipe into which content is written again and again."""
    os.mkfifo(path)

    def fill() -> None:
        with contextlib.suppress(BrokenPipeError), open(path, "wb") as file:
            file.writelines(content for _ in range(times))

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    yield path
    thread.join()


@pytest.mark.parametrize("name", ["commas.txt", "packed.csv.gz", "structured.npy", "decimals.parquet", "bars.txt"])
def test_a_pipe_is_read_once(tmp_path, name):
    with pipe(tmp_path / "63", FORMS[name]) as path:
        assert load_file(path).values.tolist() == ROWS


def test_a_pipe_that_does_not_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "PIPE_LIMIT", 10_000_000)
    with pipe(tmp_path / "63", b"1,2\n" * 100_000, times=10**6) as path:
        assert "a pipe of more than 0.01 GB" in message(load_file, path)


def test_fit_from_a_pipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = "a,b,g\n" + "".join(f"{i % 7}.5,{i % 5},{i % 10}\n" for i in range(40))
    with pipe(tmp_path / "63", rows.encode()) as path:
        assert main(["fit", str(path), "--out", "m", "--steps", "2", "--width", "4", "--drop", "g"]) == 0
    assert "--out new.csv" in capsys.readouterr().out
    Path("t.csv.gz").write_bytes(gzip.compress(rows.encode()))
    assert main(["grad", "m", "t.csv.gz", "--sigma", "1", "--out", "g.tsv.gz"]) == 0
    assert load_file("g.tsv.gz").values.shape == (40, 2)
    Path("bad.csv").write_text("a,b\n1,x\n2,y\n")
    assert main(["grad", "m", "bad.csv", "--sigma", "1", "--out", "g.csv"]) == 2
    error = capsys.readouterr().err
    assert "bad.csv: column 'b': got text" in error
    assert "--drop" not in error
    os.mkfifo("64")
    thread = threading.Thread(target=lambda: Path("64").write_text(rows), daemon=True)
    thread.start()
    assert main(["fit", "64", "--out", "m", "--groups", "g"]) == 2
    assert "can be read once" in capsys.readouterr().err


def bomb(path: Path, shape: tuple[int, int], packed: int) -> None:
    """An npz file whose array claims a shape, and unpacks to so many zeros."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        file.write(header.getvalue())
        for _ in range(packed // 2**20):
            file.write(bytes(2**20))


def test_arrays_that_claim_more_than_there_is(tmp_path, monkeypatch):
    path = tmp_path / "t.npz"
    bomb(path, (2**30, 2**20), 2**20)
    assert "want the 9,007,199,254,741,120 it claims" in message(load_file, path)
    bomb(path, (2**17, 8), 2**23)
    assert path.stat().st_size < 2**15
    monkeypatch.setattr(memory, "available", lambda: 1e7)
    assert "0.00839 GB unpacked, which needs about 0.0168 GB of memory, want at most" in message(load_file, path)
    raw = bytearray(npy(np.zeros((1000, 2))))
    raw[raw.index(b"1000") : raw.index(b"1000") + 4] = b"9999"
    (tmp_path / "t.npy").write_bytes(raw)
    assert "corrupt" in message(load_file, tmp_path / "t.npy")


def test_files_beyond_memory_are_refused_before_work(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n" * 400_000)
    np.save(tmp_path / "t.npy", np.zeros((400_000, 2)))
    pl.DataFrame({"a": np.arange(800_000)}).write_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(memory, "available", lambda: 1e6)
    for extension in ("csv", "npy", "parquet", "csv.gz"):
        text = message(load_file, tmp_path / f"t.{extension}")
        assert "GB of memory, want at most the 0.001 GB" in text
        assert ("800,00" in text or "400000" in text) == (extension != "csv.gz")


PEAK = """
    import resource, sys, gradlogp.data, polars as pl
    pl.Series(["1"]).cast(pl.Float64)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before = peak()
    values = gradlogp.data.load_file(sys.argv[1]).values
    print((peak() - before) / values.nbytes)
"""


def test_reading_needs_little_more_memory_than_the_numbers(tmp_path):
    values = np.random.default_rng(0).normal(size=(300_000, 8))
    save_file(tmp_path / "t.csv", values, Schema(None, ("float64",), (8,), "numpy"))
    program = [sys.executable, "-c", textwrap.dedent(PEAK), str(tmp_path / "t.csv")]
    assert float(subprocess.run(program, capture_output=True, check=True, text=True).stdout) < 4  # whole it takes 10


# -- writing


@pytest.mark.parametrize("extension", ["csv", "parquet", "npy", "npz", "csv.gz"])
def test_a_full_disk_is_one_line(tmp_path, extension):
    path, schema = tmp_path / f"t.{extension}", Schema(None, ("float64",), (2,), "numpy")
    save_file(path, np.ones((1, 2)), schema)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    values = np.random.default_rng(0).normal(size=(20_000, 2))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        text = message(save_file, path, values, schema)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "error writing it" in text
    assert load_file(path).values.tolist() == [[1, 1]]
    assert len(list(tmp_path.iterdir())) == 1


def test_contents_of_another_format_than_the_name(tmp_path):
    for name, raw, word in (
        ("t.csv", FORMS["decimals.parquet"], "a parquet file by its content"),
        ("t.parquet", FORMS["fortran.npy"], "a npy file by its content"),
        ("t.npz", FORMS["fortran.npy"], "a npy file by its content"),
        ("t.csv", FORMS["packed.csv.gz"], "packed by gzip"),
        ("t.csv.gz", CSV.encode(), "gz file that is corrupt"),
        ("u.csv.gz", FORMS["packed.csv.gz"][:-9], "gz file that is corrupt or cut"),
        ("t.txt", bytes(range(128)), "binary data"),
    ):
        (tmp_path / name).write_bytes(raw)
        assert word in message(load_file, tmp_path / name)
