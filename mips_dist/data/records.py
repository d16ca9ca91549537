"""Stream the records of a csv: one reader for every command, so that all agree on the rows.

Rows are numbered from 0, the first row after the header. A blank line is a row. Whatever a row
holds, it spoils no other: bytes that are no UTF-8 and NUL are kept as they are (and refused where a
P-SMILES holds them), and a quote that is never closed ends with its line.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from mips_dist.chem.psmiles import InvalidPolymer
from mips_dist.data.files import DECODING_ERRORS
from mips_dist.errors import MipsError, UsageError

PSMILES_COLUMNS = ("psmiles", "smiles")
# What a damaged or truncated compressed file raises.
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)

MAX_LINE = 1 << 20  # characters; a row with a longer line is refused as too long
_MAX_QUOTED_LINES = 100  # lines that one quoted cell may span
_MAX_QUOTED = 4 * MAX_LINE  # characters of them, so that a few such lines do not fill the memory
_MAX_CELL = (1 << 31) - 1  # characters; the lines bound a cell already


@dataclass(frozen=True, slots=True)
class Record:
    """One row: its values as they stand, and whether one of its lines exceeds `MAX_LINE`."""

    values: list[str]
    is_long: bool

    def text(self, column: int, num_columns: int) -> str:
        """Return the stripped text of a column; empty where the row is too short to have it.

        Raises
        ------
        InvalidPolymer
            ``too_long``: a line exceeds `MAX_LINE`. ``columns``: more values than the header.
        """
        if self.is_long:
            raise InvalidPolymer("too_long", f"a line of more than {MAX_LINE} characters")
        if len(self.values) > num_columns:
            raise InvalidPolymer(
                "columns",
                f"row has {len(self.values)} values, the header {num_columns}; "
                "quote values that contain a comma",
            )
        return self.values[column].strip() if column < len(self.values) else ""


def read_csv(path: Path) -> tuple[list[str], Iterator[Record]]:
    """Open a local csv or csv.gz; its lines are kept whole.

    Returns
    -------
    The header, and the rows, which are read as they are asked for.

    Raises
    ------
    MipsError
        The file is missing or, once its rows are read, damaged.
    UsageError
        The file is empty.
    """
    if not path.is_file():
        raise MipsError(f"no file {path}; give the path of a csv or csv.gz")
    records = _read_file(path)
    return read_header(str(path), records), records


def _read_file(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as stream:
            yield from parse(read_lines(stream, path.name))
    except (*DAMAGED, csv.Error) as error:
        raise MipsError(f"{path} is damaged or cut short ({error}); fetch it again") from error


def read_header(name: str, records: Iterator[Record]) -> list[str]:
    """Take the header off the records of a file."""
    header = next(records, None)
    if header is None:
        raise UsageError(f"{name} is empty; it needs a header with a column psmiles")
    return header.values


def find_column(name: str, header: Sequence[str], column: str = "") -> int:
    """Return the index of a column; the exact name is preferred, else its case does not matter.

    Parameters
    ----------
    name
        The file, as an error names it.
    column
        Name of the column; empty: psmiles, else smiles.
    """
    names = [text.strip() for text in header]
    lower = [text.lower() for text in names]
    wanted = (column,) if column else PSMILES_COLUMNS
    for text in wanted:
        if text in names:
            return names.index(text)
        if text.lower() in lower:
            return lower.index(text.lower())
    found = ", ".join(text[:40] for text in names[:20] if text) or "none"
    raise UsageError(f"{name} has no column {' or '.join(wanted)}; its columns are: {found}")


def read_lines(stream: IO[bytes], name: str, *, is_cut: bool = False) -> Iterator[str]:
    """Yield the lines of a text file, with their ends, in UTF-8 with or without byte-order mark.

    Parameters
    ----------
    stream
        The file as it is; unpacked if its name ends in .gz.
    is_cut
        Cut lines that exceed `MAX_LINE`: memory is bounded whatever the file holds. They are parsed
        into as many rows as whole ones, and are still known to be too long.
    """
    plain = gzip.GzipFile(fileobj=stream) if name.lower().endswith(".gz") else stream
    text = io.TextIOWrapper(
        cast(IO[bytes], plain), encoding="utf-8-sig", errors=DECODING_ERRORS, newline=""
    )
    return _cut_lines(text) if is_cut else iter(text)


def _cut_lines(text: io.TextIOWrapper) -> Iterator[str]:
    limit = MAX_LINE + 1
    following = ""
    while line := following or text.readline(limit):
        rest, num_quotes, following = line, 0, ""
        while len(rest) == limit and not rest.endswith("\n"):
            has_ended = rest.endswith("\r")
            rest = text.readline(limit)
            if has_ended and rest != "\n":
                following = rest  # a carriage return alone ended the line just where it is cut
                break
            num_quotes += rest.count('"')
        if num_quotes % 2:
            # Quotes stay paired as they were: the lost part closed a cell, or opened one.
            line = line.rstrip("\r") + ('"' if line.count('"') % 2 else ',"')
        yield line


def parse(lines: Iterable[str]) -> Iterator[Record]:
    """Parse csv lines; a quote that is never closed spoils its own line and no other."""
    csv.field_size_limit(_MAX_CELL)
    source = iter(lines)
    waiting: list[str] = []  # lines that were read ahead
    while (line := waiting.pop(0) if waiting else next(source, None)) is not None:
        group = [line]
        # An odd number of quotes: the cell goes on in the next line.
        is_open = line.count('"') % 2 == 1
        size = _bounded(line) if is_open else 0
        while is_open and len(group) <= _MAX_QUOTED_LINES and size <= _MAX_QUOTED:
            following = waiting.pop(0) if waiting else next(source, None)
            if following is None:
                break
            group.append(following)
            size += _bounded(following)
            is_open = following.count('"') % 2 == 0
        if is_open or not _is_well_formed(group):
            group, waiting = [line.rstrip("\r\n")], group[1:] + waiting
        yield from _parse_group(group)


def _bounded(line: str) -> int:
    """Return the length of a line, the same whether it was cut or not."""
    return min(len(line), MAX_LINE)


def _is_well_formed(group: list[str]) -> bool:
    """Tell whether the quotes that span lines belong together: a comma or an end follows each."""
    if len(group) == 1:
        return True
    try:
        return bool(list(csv.reader(group, strict=True)))
    except csv.Error:
        return False


def _parse_group(group: list[str]) -> Iterator[Record]:
    reader = csv.reader(group)
    start = 0
    for values in reader:
        lines = group[start : reader.line_num]
        start = reader.line_num
        yield Record(values, any(len(line.rstrip("\r\n")) > MAX_LINE for line in lines))
