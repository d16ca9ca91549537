"""A csv of polymers in, the same rows with more columns out."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
from mips_dist.data.files import table
from mips_dist.data.records import find_column, read_csv
from mips_dist.errors import UsageError


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
        Rows after the header; a blank line is one.
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
            No column of P-SMILES, or no rows.
        """
        header, records = read_csv(path)
        column = find_column(str(path), header)
        num_rows = sum(1 for _ in records)
        if num_rows == 0:
            raise UsageError(f"{path} has a header and no rows; add polymers")
        return cls(path, header, column, num_rows)

    def rows(self, description: str) -> Iterator[tuple[list[str], str, str]]:
        """Yield each row with its canonical P-SMILES, and show the progress on a terminal.

        Parameters
        ----------
        description
            What is being done, as the progress bar says it.

        Yields
        ------
        The values of the row, as many as the header has; its canonical P-SMILES, empty where it is
        rejected; the reason of the rejection, empty where there is none.
        """
        _, records = read_csv(self.path)
        width = len(self.header)
        for record in track(
            records,
            description=description,
            total=self.num_rows,
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        ):
            row = record.values[:width] + [""] * (width - len(record.values))
            try:
                yield row, canonicalize(record.text(self.psmiles_column, width)), ""
            except InvalidPolymer as error:
                yield row, "", str(error)

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

        Raises
        ------
        UsageError
            Before the first row is asked for: the output cannot be written, or the input has one of
            the added columns.
        """
        if output.is_dir():
            raise UsageError(f"{output} is a folder; give the name of a csv file with -o")
        if output.exists() and output.samefile(self.path):
            raise UsageError(f"{output} is the input; give another name with -o")
        if not output.parent.is_dir():
            raise UsageError(f"{output.parent} is no folder; make it, or give another name with -o")
        for name in columns:
            if name in (existing.strip() for existing in self.header):
                raise UsageError(
                    f"{self.path} has a column {name} already, which would be added; rename it"
                )
        with table(output, [*self.header, *columns]) as writer:
            writer.writerows(rows)
