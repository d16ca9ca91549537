"""Files that are there whole or not at all, whatever happens to the process or the machine."""

import csv
import gzip
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

# Bytes that are no UTF-8 become lone surrogates, which the same handler writes back unchanged.
DECODING_ERRORS = "surrogateescape"
_GZIP_LEVEL = 6


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` at the end, or vanishes on an error.

    Contents reach the disk before the name does, and the name before this returns: after a power
    cut `path` is the old file or the new one. Only a kill leaves the hidden partial file behind;
    the next writer of `path` replaces it.

    Parameters
    ----------
    path
        Replaced if it exists; its folder must exist.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:  # Ctrl-C and a full disk too
        partial.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


@contextmanager
def table(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Open a csv file, packed where its name ends in .gz, that appears when it is whole.

    Parameters
    ----------
    path
        See `replacing`. Equal rows give equal bytes.
    columns
        The header.

    Yields
    ------
    A writer of the module `csv`.
    """
    with replacing(path) as raw:
        is_gzip = path.suffix.lower() == ".gz"
        # No name and no time in the gzip header.
        packed = gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) if is_gzip else raw
        file = TextIOWrapper(
            cast(IO[bytes], packed), encoding="utf-8", errors=DECODING_ERRORS, newline=""
        )
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        yield writer
        file.detach()  # writes what is left, and leaves the file open
        if is_gzip:
            packed.close()


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file in one go (see `replacing`); text in UTF-8."""
    with replacing(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
