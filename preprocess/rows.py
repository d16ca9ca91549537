"""Stream the texts of a csv, csv.gz, parquet or txt file, local or remote; never whole in memory.

Rows are numbered from 0: the first row after the header of a csv, the first row of a parquet file,
the first line of a txt file (one P-SMILES a line, no header). An empty line is a row.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from mips_dist.chem.psmiles import MAX_CHARACTERS, InvalidPolymer
from mips_dist.data.records import DAMAGED, find_column, parse, read_header, read_lines
from mips_dist.errors import MipsError, UsageError

SUFFIXES = (".csv", ".txt", ".parquet")


class Refused(NamedTuple):
    """A row that has no text to canonicalize, and why (``code: words``)."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """What is known of the input before its polymers are looked at."""

    url: str
    name: str  # last part of the path
    sha256: str  # of the file as it is, compressed or not
    column: str  # empty for txt
    num_rows: int

    def texts(self) -> Iterator[str | Refused]:
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
        The file is missing or unreadable, or has no rows.
    UsageError
        Unknown file type, an empty csv, or no such column.
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
    except (*DAMAGED, pa.ArrowInvalid) as error:
        raise MipsError(f"{url} is damaged or cut short ({error}); fetch it again") from error
    except (OSError, ImportError, ValueError) as error:
        raise MipsError(f"{url} cannot be read ({error}); check the path of input=") from error


@contextmanager
def _lines(url: str) -> Iterator[Iterator[str]]:
    """Open a text file as lines of bounded length."""
    with _opened(url) as raw:
        yield read_lines(raw, url, is_cut=True)


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
            names = [name.strip() for name in read_header(url, parse(lines))]
    return names[find_column(url, names, column)]


def _texts(url: str, column: str) -> Iterator[str | Refused]:
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
        records = parse(lines)
        header = read_header(url, records)
        place = find_column(url, header, column)
        for record in records:
            try:
                yield _cell(record.text(place, len(header)))
            except InvalidPolymer as error:
                yield Refused(str(error))


def _cell(text: str) -> str:
    return text.strip()[: MAX_CHARACTERS + 1]
