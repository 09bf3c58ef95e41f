"""Arrays in npy and npz files."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlogp._shapes import InputError, short
from gradlogp.data.choice import Choice
from gradlogp.data.containers import Parts, choose, unpack
from gradlogp.data.memory import check_room
from gradlogp.data.schema import Dialect
from gradlogp.data.source import Source


def read_npy(source: Source, choice: Choice) -> tuple[Parts, Dialect]:
    """Read the only array of an npy file; the fields of a structured one are columns.

    Raises:
        InputError: for a file that is corrupt, cut or too large, and as :func:`gradlogp.data.containers.unpack` does.
    """
    if source.packed or source.held is not None:
        raw = source.whole()
        array = _array(lambda: np.load(io.BytesIO(raw), allow_pickle=False), source.what)
    else:  # mapped, a header that claims more than there is fails before memory is taken
        array = _array(lambda: np.load(source.path, mmap_mode="r", allow_pickle=False), source.what)
    return _parts(array, source.what, choice)


def read_npz(source: Source, choice: Choice) -> tuple[Parts, Dialect]:
    """Read the only array of an npz file, or the one called x, X or data.

    Raises:
        InputError: as :func:`read_npy`, and for several arrays.
    """
    what = source.what
    file: Any = io.BytesIO(source.whole()) if source.packed or source.held is not None else source.path
    try:
        archive = np.load(file, allow_pickle=False)
        names = archive.files
    except Exception:
        raise InputError(f"{what}: got a corrupt npz file, want arrays saved by numpy.savez") from None
    with archive:
        name = _choose(names, what)
        which = f"{what}: array {short(name)}"
        _check_member(archive.zip, name, which)
        return _parts(_array(lambda: archive[name], which), which, choice)


def _parts(array: NDArray[Any], what: str, choice: Choice) -> tuple[Parts, Dialect]:
    if choice.made and array.dtype.names is None:
        raise InputError(
            f"{what}: got an array, whose columns have no names, want csv or parquet to choose columns by name"
        )
    check_room(8 * array.size, what, f"an array of shape {array.shape}")
    return choose(unpack(array, what), choice, what), Dialect()


def _choose(names: list[str], what: str) -> str:
    """The only array, or the one with a name for data."""
    known = names if len(names) == 1 else [name for name in ("x", "X", "data") if name in names]
    if not known:
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        shown = (", ".join(map(short, names[:10])) or "none") + more
        raise InputError(f"{what}: got {len(names)} arrays ({shown}), want one, or one called x, X or data")
    return known[0]


def _check_member(archive: zipfile.ZipFile, name: str, what: str) -> None:
    """Refuse an array that is too large, or whose header claims more than is packed, before it is unpacked."""
    try:
        info = archive.getinfo(name if name in archive.namelist() else f"{name}.npy")
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
            claimed = math.prod(shape) * dtype.itemsize + member.tell()
    except Exception:
        raise InputError(f"{what}: got a corrupt array, want one saved whole by numpy") from None
    if not dtype.hasobject and claimed != info.file_size:
        raise InputError(f"{what}: got a corrupt array of {info.file_size:,} bytes, want the {claimed:,} it claims")
    check_room(2 * info.file_size, what, f"{info.file_size / 1e9:.3g} GB unpacked")


def _array(load: Callable[[], Any], what: str) -> NDArray[Any]:
    try:
        array = load()
    except Exception as error:  # a corrupt file fails in any way: bad zip, bad header, no memory for its shape
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise InputError(f"{what}: got an array of pickled objects, want an array of numbers") from None
        raise InputError(f"{what}: got a corrupt array, want one saved whole by numpy") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{what}: got something that is no array, want an array of numbers")
    return array
