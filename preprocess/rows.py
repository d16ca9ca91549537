"""Stream the texts of a csv, csv.gz, parquet or txt file, local or remote; never whole in memory.

Rows are numbered from 0: the first row after the header of a csv, the first row of a parquet file,
the first line of a txt file (one P-SMILES a line, no header). An empty line is a row.
"""

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from mips_dist.chem.psmiles import MAX_CHARACTERS
from mips_dist.errors import MipsError, UsageError

SUFFIXES = (".csv", ".txt", ".parquet")
DEFAULT_COLUMNS = ("psmiles", "smiles")

# Memory is bounded whatever the file holds: what is longer is cut, and then rejected as too long.
_MAX_LINE = 1 << 20
_MAX_QUOTED_LINES = 100  # lines that one quoted cell may span


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """What is known of the input before its polymers are looked at."""

    url: str
    name: str  # last part of the path
    sha256: str  # of the file as it is, compressed or not
    column: str  # empty for txt
    num_rows: int

    def texts(self) -> Iterator[str]:
        """Yield the text of every row, in order; empty where the row has none."""
        return _texts(self.url, self.column)


def inspect(url: str, column: str) -> InputFile:
    """Read an input file once: hash it, find its column, count its rows.

    Parameters
    ----------
    url
        Local path, or a URL that fsspec knows.
    column
        Name of the column; empty: psmiles, else smiles, in any case.

    Raises
    ------
    MipsError
        The file is missing, unreadable or empty.
    UsageError
        Unknown file type, or no such column.
    """
    with _opened(url) as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    found = _find_column(url, column)
    num_rows = sum(1 for _ in _texts(url, found))
    if not num_rows:
        raise MipsError(f"{url} has no rows; give a file with one polymer a row")
    return InputFile(url=url, name=_path(url).name, sha256=sha256, column=found, num_rows=num_rows)


def _path(url: str) -> PurePosixPath:
    return PurePosixPath(urlsplit(url).path if "://" in url else url)


def _suffix(url: str) -> str:
    path = _path(url.lower())
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix
    if suffix not in SUFFIXES:
        raise UsageError(f"{url} is of no known type; give one of {', '.join(SUFFIXES)}, or .gz")
    return suffix


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    """Open a file as it is; what is wrong with it while it is open becomes one line."""
    _suffix(url)
    try:
        with fsspec.open(url, "rb") as stream:
            yield stream
    except FileNotFoundError as error:
        raise MipsError(f"no file {url}; check the path of input=") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, pa.ArrowInvalid) as error:
        raise MipsError(f"{url} is damaged or cut short ({error}); fetch it again") from error
    except (OSError, ImportError, ValueError) as error:
        raise MipsError(f"{url} cannot be read ({error}); check the path of input=") from error


@contextmanager
def _lines(url: str) -> Iterator[Iterator[str]]:
    """Open a text file as lines of bounded length, in UTF-8 with or without byte-order mark."""
    with _opened(url) as raw:
        plain: Any = gzip.GzipFile(fileobj=raw) if url.lower().endswith(".gz") else raw
        # Other encodings give replacement characters, and those a rejected row, not a crash.
        text = io.TextIOWrapper(plain, encoding="utf-8-sig", errors="replace", newline="")
        yield _bounded_lines(text)


def _bounded_lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(_MAX_LINE):
        rest = line
        while len(rest) == _MAX_LINE and not rest.endswith(("\n", "\r")):
            rest = text.readline(_MAX_LINE)
        yield line


def _records(lines: Iterator[str]) -> Iterator[list[str]]:
    """Parse csv lines; a quote that is never closed spoils its own line and no other."""
    csv.field_size_limit(_MAX_LINE * (_MAX_QUOTED_LINES + 1))
    waiting: list[str] = []  # lines that were read ahead
    while (line := waiting.pop(0) if waiting else next(lines, None)) is not None:
        group = [line]
        # An odd number of quotes: the cell goes on in the next line.
        is_open = line.count('"') % 2 == 1
        while is_open and len(group) <= _MAX_QUOTED_LINES:
            following = waiting.pop(0) if waiting else next(lines, None)
            if following is None:
                break
            group.append(following)
            is_open = following.count('"') % 2 == 0
        if is_open:
            group, waiting = group[:1], group[1:] + waiting
        yield from csv.reader(group)


def _find_column(url: str, column: str) -> str:
    """Return the name of the column to read; empty for txt."""
    suffix = _suffix(url)
    if suffix == ".txt":
        return ""
    if suffix == ".parquet":
        with _opened(url) as stream:
            names = pq.ParquetFile(stream).schema_arrow.names
    else:
        with _lines(url) as lines:
            header = next(_records(lines), None)
        if not header:
            raise MipsError(f"{url} is empty; give a csv file with a psmiles column")
        names = [name.strip() for name in header]
    wanted = (column,) if column else DEFAULT_COLUMNS
    for name in wanted:
        for existing in names:
            if existing == name or (not column and existing.lower() == name):
                return existing
    shown = ", ".join(repr(name[:40]) for name in names[:20])
    raise UsageError(f"{url} has no column {' or '.join(wanted)}; it has: {shown}; see column=")


def _texts(url: str, column: str) -> Iterator[str]:
    suffix = _suffix(url)
    if suffix == ".parquet":
        with _opened(url) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(columns=[column], batch_size=4096):
                for value in batch.column(0).to_pylist():
                    yield _cell("" if value is None else str(value))
        return
    with _lines(url) as lines:
        if suffix == ".txt":
            yield from (_cell(line) for line in lines)
            return
        records = _records(lines)
        place = [name.strip() for name in next(records)].index(column)
        for record in records:
            yield _cell(record[place] if place < len(record) else "")


def _cell(text: str) -> str:
    return text.strip()[: MAX_CHARACTERS + 1]
