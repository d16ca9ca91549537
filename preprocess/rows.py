"""Stream the texts of a csv, csv.gz, parquet or txt file, local or remote; never whole in memory.

Rows are numbered from 0: the first row after the header of a csv, the first row of a parquet file,
the first line of a txt file (one P-SMILES a line, no header). An empty line is a row.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mips_dist.chem.psmiles import MAX_CHARACTERS, InvalidPolymer
from mips_dist.data.files import DECODING_ERRORS
from mips_dist.data.records import (
    DAMAGED,
    find_column,
    parse,
    read_header,
    read_lines,
)
from mips_dist.errors import MipsError, UsageError
from preprocess.remote import Source, opened, shown

SUFFIXES = (".csv", ".txt", ".parquet")

_HEAD_ROWS = 512
# Cells may be large and one text may stand for many of them, so few are unpacked at a time.
_PARQUET_ROWS = 64
_PARQUET_BUFFER = 1 << 20


class Refused(NamedTuple):
    """A row that has no text to canonicalize, and why (``code: words``)."""

    reason: str


Text = str | Refused


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """What is known of the input before its polymers are looked at."""

    url: str
    name: str  # last part of the path
    sha256: str  # of the file as it is, compressed or not
    column: str  # empty for txt
    num_rows: int
    head: list[Text]  # texts of the first few hundred rows

    def texts(self) -> Iterator[Text]:
        """Yield the text of every row, in order; empty where the row has none.

        Raises
        ------
        MipsError
            At the end of a text file, at the beginning of a parquet file: it is no longer what
            `inspect` saw. Or a transfer breaks off.
        """
        with _reading(self.url) as source:
            if _suffix(self.url) == ".parquet":
                self._check(source)
                yield from _parquet_texts(source, self.column)
            else:
                yield from _Lines(self.url, self.column, source)
                self._check(source)

    def _check(self, source: Source) -> None:
        if source.sha256() != self.sha256:
            raise MipsError(
                f"{shown(self.url)} has changed while it was read; leave it as it is, and give "
                "another output folder"
            )


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
    with _reading(url) as source:
        if _suffix(url) == ".parquet":
            sha256 = source.sha256()
            file = pq.ParquetFile(source.at_random())
            names = file.schema_arrow.names
            column = names[find_column(shown(url), names, column)]
            num_rows = file.metadata.num_rows
            head = list(islice(_parquet_texts(source, column), _HEAD_ROWS))
        else:
            lines = _Lines(url, column, source)
            column, texts = lines.column, iter(lines)
            head = list(islice(texts, _HEAD_ROWS))
            num_rows = len(head) + sum(1 for _ in texts)
            sha256 = source.sha256()
    if not num_rows:
        raise MipsError(f"{shown(url)} has no rows; give a file with one polymer a row")
    return InputFile(
        url=url,
        name=_path(url).name,
        sha256=sha256,
        column=column,
        num_rows=num_rows,
        head=head,
    )


def _path(url: str) -> PurePosixPath:
    return PurePosixPath(urlsplit(url).path if "://" in url else url)


def _suffix(url: str) -> str:
    path = _path(url.lower())
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix
    if suffix not in SUFFIXES or (suffix, path.suffix) == (".parquet", ".gz"):
        raise UsageError(
            f"{shown(url)} is of no known type; give .csv, .txt, .csv.gz, .txt.gz or .parquet"
        )
    return suffix


@contextmanager
def _reading(url: str) -> Iterator[Source]:
    """Open a file as it is; what is wrong with its contents becomes one line."""
    with opened(url, is_whole=_suffix(url) != ".parquet") as source:
        try:
            yield source
        except (*DAMAGED, pa.ArrowException, OSError) as error:
            words = " ".join(str(error).split())[:200]
            raise MipsError(
                f"{shown(url)} is damaged or cut short ({words}); fetch it again"
            ) from error


class _Lines:
    """The rows of a csv or txt file.

    Attributes
    ----------
    column
        Name of the column that is read; empty for txt.
    """

    def __init__(self, url: str, column: str, source: Source) -> None:
        buffered = cast(IO[bytes], io.BufferedReader(source, 1 << 16))
        # Lines of bounded length.
        self._lines = read_lines(buffered, _path(url).name, is_cut=True)
        self.column = ""
        if _suffix(url) == ".csv":
            self._records = parse(self._lines)
            self._header = read_header(shown(url), self._records)
            names = [name.strip() for name in self._header]
            self._place = find_column(shown(url), names, column)
            self.column = names[self._place]

    def __iter__(self) -> Iterator[Text]:
        if not self.column:
            yield from (_cell(line) for line in self._lines)
            return
        width = len(self._header)
        for record in self._records:
            try:
                yield _cell(record.text(self._place, width))
            except InvalidPolymer as error:
                yield Refused(str(error))


def _parquet_texts(source: Source, column: str) -> Iterator[Text]:
    file = pq.ParquetFile(source.at_random(), buffer_size=_PARQUET_BUFFER)
    for batch in file.iter_batches(columns=[column], batch_size=_PARQUET_ROWS):
        values = batch.column(0)
        if _holds_text(values.type):
            # As bytes: a column of texts may hold what is no UTF-8.
            values = pc.binary_slice(values.cast(pa.large_binary()), 0, 4 * MAX_CHARACTERS + 4)
        for value in values.to_pylist():
            yield _cell("" if value is None else _as_text(value))


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind).removeprefix("large_").removesuffix("_view") in ("string", "binary")


def _as_text(value: Any) -> str:
    return value.decode(errors=DECODING_ERRORS) if isinstance(value, bytes) else str(value)


def _cell(text: str) -> str:
    return text.strip()[: MAX_CHARACTERS + 1]
