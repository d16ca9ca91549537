"""A csv of polymers in, the same rows with more columns out."""

import csv
import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from mips_dist.errors import MipsError, UsageError

PSMILES_COLUMNS = ("psmiles", "smiles")


@dataclass(frozen=True, slots=True)
class PolymerTable:
    """A csv or csv.gz with a header and a column of P-SMILES, checked once and read row by row.

    Attributes
    ----------
    header
        Column names as they stand; names may be empty or repeat.
    psmiles_column
        Index of the column of P-SMILES.
    num_rows
        Rows after the header; blank lines are none.
    """

    path: Path
    header: list[str]
    psmiles_column: int
    num_rows: int

    @classmethod
    def open(cls, path: Path) -> "PolymerTable":
        """Read a file through once and check its shape.

        Raises
        ------
        MipsError
            The file is missing or cannot be read.
        UsageError
            No column of P-SMILES, no rows, or a row longer than the header.
        """
        if not path.is_file():
            raise MipsError(f"{path} does not exist; give a csv or csv.gz file")
        rows = _read(path)
        header = next(rows, None)
        if header is None:
            raise UsageError(f"{path} is empty; it needs a header with a column psmiles")
        column = find_psmiles(path, header)
        num_rows = 0
        for row in rows:
            num_rows += 1
            if len(row) > len(header):
                raise UsageError(
                    f"{path}: row {num_rows} has {len(row)} values, the header {len(header)}; "
                    "quote values that contain a comma"
                )
        if num_rows == 0:
            raise UsageError(f"{path} has a header and no rows; add polymers")
        return cls(path, header, column, num_rows)

    def rows(self) -> Iterator[tuple[list[str], str]]:
        """Yield each row, filled up to the length of the header, and its P-SMILES."""
        rows = _read(self.path)
        next(rows)
        for row in rows:
            row += [""] * (len(self.header) - len(row))
            yield row, row[self.psmiles_column].strip()

    def write(self, output: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write the table with more columns; the output appears when it is complete.

        Parameters
        ----------
        output
            A csv or csv.gz file; replaced if it exists.
        columns
            Names of the added columns.
        rows
            Whole rows: the values of `rows` and the added ones.
        """
        if output.exists() and output.samefile(self.path):
            raise UsageError(f"{output} is the input; give another name with -o")
        if not output.parent.is_dir():
            raise UsageError(f"{output.parent} is no folder; make it, or give another name with -o")
        with _replacing(output) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*self.header, *columns])
            writer.writerows(rows)


def find_psmiles(path: Path, header: Sequence[str]) -> int:
    """Return the index of the column of P-SMILES; the case of its name does not matter."""
    names = [name.strip().lower() for name in header]
    for wanted in PSMILES_COLUMNS:
        if wanted in names:
            return names.index(wanted)
    found = ", ".join(name for name in header if name.strip()) or "none"
    raise UsageError(f"{path} has no column psmiles; its columns are: {found}")


def _read(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a csv, blank lines left out."""
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield from (row for row in csv.reader(file) if row)
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise MipsError(f"{path} is no readable csv ({error}); save it as UTF-8 csv") from error


@contextmanager
def _replacing(output: Path) -> Iterator[IO[str]]:
    """Open a file that takes the place of `output` at the end, or vanishes on an error."""
    partial = output.with_name(f".{output.name}.partial")
    try:
        with partial.open("wb") as raw:
            # No name and no time in the gzip header: equal rows give equal bytes.
            is_gzip = output.suffix == ".gz"
            packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if is_gzip else raw
            with TextIOWrapper(packed, encoding="utf-8", newline="") as file:
                yield file
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
