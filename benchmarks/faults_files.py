"""Files, right and wrong: each is read exactly or refused on one line, with no traceback and no other numbers.

    python benchmarks/faults_files.py

Seeded tables are written in random dialects, encodings and formats, whole, and then cut, with bytes changed, with a
stray quote, a huge cell or another name. A whole file must come back bit by bit. A damaged one must come back so, or
be refused; where the damage makes another table (a digit of text changed) only tracebacks count.
"""

from __future__ import annotations

import gzip
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from gradlogp._shapes import InputError
from gradlogp.data import load_file

Table = np.ndarray
NAMES = ("age", "pay", "Größe", "a,b", "x y")


def table(r: np.random.Generator) -> Table:
    """Some rows of numbers of two decimals; the first column has fractions, so that its mark tells the decimal one."""
    values = np.round(r.normal(0, 10.0 ** r.integers(0, 5), (int(r.integers(3, 60)), int(r.integers(2, 6)))), 2) + 0.0
    values[0, 0] = 7.25
    return values


def as_text(r: np.random.Generator, values: Table) -> bytes:
    """The table in a random dialect and encoding."""
    separator, decimal = str(r.choice([",", ";", "\t", "|", "  "])), str(r.choice([".", ","]))
    thousands = str(r.choice(["", "", "," if decimal == "." else ".", "'"])) if separator != "  " else ""
    quote = decimal == separator or thousands == separator or r.random() < 0.3

    def cell(value: float) -> str:
        text = f"{value:,.2f}".replace(",", "_").replace(".", decimal).replace("_", thousands)
        return f'"{text}"' if quote else text

    names = [f'"{name}"' for name in NAMES[: values.shape[1]]]
    lines = [separator.join(names)] if r.random() < 0.8 or separator == "  " else []
    lines += [separator.join(map(cell, row)) for row in values]
    lines = ["# made by hand"] * int(r.integers(0, 2)) + lines
    text = str(r.choice(["\n", "\r\n"])).join(lines) + "\n" * int(r.integers(0, 3))
    return text.encode(str(r.choice(["utf-8", "utf-8-sig", "utf-16", "latin-1"])))


def as_npy(r: np.random.Generator, values: Table) -> bytes:
    """The table as an array, or a structured one."""
    file = io.BytesIO()
    records = np.rec.fromarrays(list(values.T), names=[f"c{i}" for i in range(values.shape[1])])
    np.save(file, records if r.random() < 0.3 else np.asfortranarray(values) if r.random() < 0.3 else values)
    return file.getvalue()


def as_npz(r: np.random.Generator, values: Table) -> bytes:
    """The table as a packed archive."""
    file = io.BytesIO()
    (np.savez if r.random() < 0.5 else np.savez_compressed)(file, x=values)
    return file.getvalue()


def as_parquet(r: np.random.Generator, values: Table) -> bytes:
    """The table in parquet, as numbers, decimals, lists, or with a named index of pandas."""
    file, kind = io.BytesIO(), r.integers(0, 4)
    columns = {f"c{i}": column for i, column in enumerate(values.T)}
    if kind == 0:
        cells = {n: pa.array([Decimal(f"{v:.2f}") for v in c], pa.decimal128(20, 2)) for n, c in columns.items()}
        pq.write_table(pa.table(cells), file)
    elif kind == 1:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        pq.write_table(pa.table({"e": lists}), file)
    elif kind == 2:
        pd.DataFrame(columns, index=pd.Index(r.permutation(len(values)), name="id")).to_parquet(file)
    else:
        pl.DataFrame(columns).write_parquet(file)
    return file.getvalue()


FORMS: dict[str, Callable[[np.random.Generator, Table], bytes]] = {
    "csv": as_text, "npy": as_npy, "npz": as_npz, "parquet": as_parquet,
}  # fmt: skip


def outcome(path: Path, want: Table | None) -> str:
    """Nothing if the file is read as it should be or refused on one line; else what is wrong."""
    try:
        got = load_file(path).values
    except InputError as error:
        return "" if "\n" not in str(error) and "want" in str(error) else f"not one line: {error}"
    except Exception as error:  # what a user would see as a traceback
        return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
    return "" if want is None or np.array_equal(got, want) else f"other numbers: {got.shape}"


def _count(name: str, faults: list[str]) -> tuple[str, int, int, str]:
    wrong = [fault for fault in faults if fault]
    return name, len(faults), len(wrong), wrong[0] if wrong else ""


def whole(work: Path, r: np.random.Generator, form: str, n: int) -> list[str]:
    """Whole files, some packed by gzip: refused is wrong too."""
    faults = []
    for i in range(n):
        values = table(r)
        raw, packed = FORMS[form](r, values), r.random() < 0.2
        path = work / f"whole{i}.{form}{'.gz' * packed}"
        path.write_bytes(gzip.compress(raw) if packed else raw)
        try:
            same = np.array_equal(load_file(path).values, values)
            faults.append("" if same else f"{path.name}: other numbers")
        except Exception as error:
            faults.append(f"{path.name}: {' '.join(str(error).split())[-120:]}")
    return faults


def damaged(work: Path, r: np.random.Generator, form: str, n: int) -> list[str]:
    """Files that are cut, or have some bytes changed."""
    faults = []
    for i in range(n):
        values = table(r)
        raw = bytearray(FORMS[form](r, values))
        cut = r.random() < 0.5
        if cut:
            del raw[int(r.integers(0, len(raw))) :]
        else:
            for place in r.integers(0, len(raw), int(r.integers(1, 4))):
                raw[place] = r.integers(0, 256)
        path = work / f"damaged{i}.{form}"
        path.write_bytes(raw)
        exact = form == "npz" or (cut and form in ("npy", "parquet"))  # elsewhere numbers themselves are changed
        faults.append(outcome(path, values if exact else None))
    return faults


def strays(work: Path, r: np.random.Generator, n: int) -> list[str]:
    """Large csv files with one stray quote, or a huge cell."""
    faults = []
    for i in range(n):
        values = np.round(r.normal(size=(20_000, 3)), 2)
        lines = [",".join(f"{v:.2f}" for v in row) for row in values]
        at = int(r.integers(0, len(lines)))
        place = int(r.integers(0, len(lines[at]) + 1))
        stray = '"' if i % 2 else "x" * int(r.integers(131_073, 300_000))
        lines[at] = lines[at][:place] + stray + lines[at][place:]
        path = work / f"stray{i}.csv"
        path.write_text("a,b,c\n" + "\n".join(lines))
        faults.append(outcome(path, values))
    return faults


def absurd(work: Path) -> list[str]:
    """Devices, empties, names of another format, and numbers that float64 does not hold beside fractions."""
    (work / "zeros.csv").symlink_to("/dev/zero")
    (work / "folder.csv").mkdir()
    rows, packed = b"1,2\n3,4\n", gzip.compress(b"1,2\n" * 99)
    held = {
        "empty.csv": b"", "empty.parquet": b"", "empty.npy": b"", "blank.csv": b"\n \n", "comma.csv": b",",
        "nul.csv": bytes(9), "quote.csv": b'"', "gzip.csv": packed, "parquet.csv": b"PAR1" * 9,
        "half.csv.gz": packed[:-5], "text.parquet": rows, "text.npy": rows, "text.npz": rows, "text.csv.gz": rows,
        "one.csv": b"5", "only.gz": packed,
        "mixed.csv": b"a,b\n0.5,1\n9007199254740993,2\n", "comment.csv": b"# a\n# b\n", "hash.csv": b"#\n#\n1,2\n",
        "cut16.csv": "a,b\n1,2\n".encode("utf-16")[:-1], "sep.csv": b"sep=;\n", "sep.txt": b"sep=|\n1|x\n",
    }  # fmt: skip
    for name, raw in held.items():
        (work / name).write_bytes(raw)
    files = [path for path in sorted(work.iterdir()) if path.name in held or path.name in ("zeros.csv", "folder.csv")]
    allowed = {"one.csv", "hash.csv", "only.gz"}
    return [outcome(path, None if path.name in allowed else np.empty(0)) for path in files]


def attack(work: Path) -> Iterator[tuple[str, int, int, str]]:
    """Name of the attack, files tried, files failed, and what went wrong first."""
    r = np.random.default_rng(0)
    for form in FORMS:
        yield _count(f"{form}: whole", whole(work, r, form, 40 if form == "csv" else 15))
    for form in FORMS:
        yield _count(f"{form}: cut, or bytes changed", damaged(work, r, form, 30))
    yield _count("csv: a stray quote, or a cell of 131,073 letters and more", strays(work, r, 10))
    yield _count("devices, empties, wrong names", absurd(work))


if __name__ == "__main__":
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        for name, tried, failed, first in attack(Path(folder)):
            print(f"{name:<60}{tried:>5}{failed:>5}  {first}")
