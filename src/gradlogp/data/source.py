"""Where bytes come from: a file, a packed file, or a pipe."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradlogp._shapes import InputError, short
from gradlogp.data.memory import available

TEXT = (".csv", ".tsv", ".txt")
EXTENSIONS = (".csv", ".parquet", ".npy", ".npz", ".tsv", ".txt")
PIPE_LIMIT = 4 * 2**30  # bytes that are taken from a pipe, which does not say how many there are
_MAGIC = {b"PAR1": ".parquet", b"\x93NUMPY": ".npy", b"PK\x03\x04": ".npz", b"PK\x05\x06": ".npz"}
_GZIP = b"\x1f\x8b"
_STEP = 2**20


@dataclass(frozen=True)
class Source:
    """A file of data: its path, name in messages and format, whether it is packed, and its bytes if from a pipe."""

    path: Path
    what: str
    extension: str
    packed: bool = False
    held: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes, as they are stored."""
        return len(self.held) if self.held is not None else self.path.stat().st_size

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """The bytes from the start, unpacked.

        Raises:
            InputError: for what cannot be read or unpacked.
        """
        try:
            with io.BytesIO(self.held) if self.held is not None else open(self.path, "rb") as file:
                yield gzip.GzipFile(fileobj=file) if self.packed else file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{self.what}: got a gz file that is corrupt or cut ({error}), want a whole one") from None
        except OSError as error:
            raise _unreadable(self.what, error) from None

    def whole(self) -> bytes:
        """All bytes, unpacked.

        Raises:
            InputError: as :meth:`open`, and for more than there is memory for.
        """
        with self.open() as file:
            return _take(file, self.what, "file", available() / 3)


def source(path: str | os.PathLike[str]) -> Source:
    """What a path leads to; a pipe, which can be read once, is read.

    Raises:
        InputError: for no such file, a folder without parquet files, a device, an empty file, an unknown extension, and
            contents of another format than the extension says.
    """
    what, place = shown(path), Path(path)
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{what}: got no such file, want a file of {', '.join(EXTENSIONS)}") from None
    except OSError as error:
        raise _unreadable(what, error) from None
    if stat.S_ISDIR(mode):
        if not parts(place):
            raise InputError(
                f"{what}: got a directory, want a file of {', '.join(EXTENSIONS)}, or a folder of .parquet"
            )
        return Source(place, what, ".parquet")
    if stat.S_ISFIFO(mode):
        return _pipe(place, what)
    if not stat.S_ISREG(mode):
        raise InputError(f"{what}: got a device or a socket, want a file of {', '.join(EXTENSIONS)}, or a pipe")
    extension, packed = extension_of(path)
    found = Source(place, what, extension, packed)
    if not found.size:
        raise InputError(f"{what}: got an empty file of 0 bytes, want rows of numbers")
    with found.open() as file:
        _check_magic(file.read(8), found)
    return found


def parts(folder: Path) -> list[Path]:
    """The parquet files in a folder and those below, but for hidden ones and those that begin with an underscore."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() == ".parquet" and path.is_file())
    return sorted(p for p in files if not any(name[0] in "._" for name in p.relative_to(folder).parts))


def extension_of(path: str | os.PathLike[str]) -> tuple[str, bool]:
    """The format that a name says, and whether it is packed.

    Raises:
        InputError: for another one than those known.
    """
    name = Path(path)
    packed = name.suffix.lower() == ".gz"
    extension = (name.with_suffix("") if packed else name).suffix.lower()
    if extension not in EXTENSIONS:
        got = f"the extension {short(name.suffix)}" if name.suffix else "no extension"
        raise InputError(f"{shown(path)}: got {got}, want one of {', '.join(EXTENSIONS)}, or one of these and .gz")
    return extension, packed


def has_names(path: str | os.PathLike[str]) -> bool:
    """Whether files of such a name hold columns with names, as all but arrays do."""
    name = Path(path)
    return (name.with_suffix("") if name.suffix.lower() == ".gz" else name).suffix.lower() not in (".npy", ".npz")


def shown(path: str | os.PathLike[str]) -> str:
    """A path as a message shows it, on one line."""
    text = os.fspath(path)
    if "\0" in text:
        raise InputError(f"path: got {short(text)}, want one without a null character")
    return text if text.isprintable() else repr(text)


def _pipe(path: Path, what: str) -> Source:
    """What comes out of a pipe: csv, unless its first bytes say another format."""
    try:
        with open(path, "rb") as file:
            held = _take(file, what, "pipe", min(PIPE_LIMIT, available() / 3))
    except OSError as error:
        raise _unreadable(what, error) from None
    if not held:
        raise InputError(f"{what}: got an empty pipe of 0 bytes, want rows of numbers")
    packed = held.startswith(_GZIP)
    piped = Source(path, what, ".csv", packed, held)
    with piped.open() as file:
        return Source(path, what, _magic(file.read(8)) or ".csv", packed, held)


def _take(file: Any, what: str, kind: str, limit: float | int) -> bytes:
    """All bytes of a file, if they are not more than a limit."""
    taken = io.BytesIO()
    while block := file.read(_STEP):
        if taken.tell() + len(block) > limit:
            raise InputError(
                f"{what}: got a {kind} of more than {limit / 1e9:.3g} GB, want one that ends before: memory is limited"
            )
        taken.write(block)
    return taken.getvalue()


def _magic(start: bytes) -> str | None:
    return next((extension for sign, extension in _MAGIC.items() if start.startswith(sign)), None)


def _check_magic(start: bytes, found: Source) -> None:
    """Refuse contents of another format than the name says."""
    held = _magic(start)
    if start.startswith(_GZIP):
        raise InputError(f"{found.what}: got a file packed by gzip, want its name to end in .gz")
    if held is not None and held != found.extension:
        raise InputError(f"{found.what}: got a {held[1:]} file by its content, want it named {held}")
    if held is None and found.extension in (".npy", ".parquet"):
        kind = found.extension[1:]
        raise InputError(f"{found.what}: got a file that is corrupt or not {kind}, want a {kind} file")


def _unreadable(what: str, error: OSError) -> InputError:
    return InputError(f"{what}: got an error reading it ({error.strerror or error}), want a readable file")
