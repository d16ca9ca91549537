"""A table of polymers in, the same rows with more columns out; csv or parquet, never whole."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
from mips_dist.data.files import table
from mips_dist.data.records import Record, find_column, parse, read_csv, read_header, read_lines
from mips_dist.errors import MipsError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

STANDARD = Path("-")  # standard input or output
CHUNK_ROWS = 512


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive rows.

    Attributes
    ----------
    texts, faults
        Of each row its P-SMILES, and why it cannot be read (one of the two is empty).
    cells
        Of each row its values as text, as many as the header has.
    batch
        The same values with their types, where the table is parquet.
    """

    texts: list[str]
    faults: list[str]
    cells: list[list[str]]
    batch: "pa.RecordBatch | None" = None


def is_psmiles(given: str) -> bool:
    """Tell whether a text on the command line is a P-SMILES: it has a star and names no file."""
    return "*" in given and not Path(given).exists()


@dataclass(frozen=True, slots=True)
class PolymerTable:
    """A csv, csv.gz or parquet table with a column of P-SMILES, read piece by piece.

    Attributes
    ----------
    path
        `STANDARD`: the csv that comes on standard input.
    header
        Column names as they stand; names may be empty or repeat.
    psmiles_column
        Index of the column of P-SMILES.
    num_rows
        Rows after the header, a blank line is one; None where only reading to the end would tell.
    """

    path: Path
    header: list[str]
    psmiles_column: int
    num_rows: int | None
    _records: Iterator[Record] | None = None  # of standard input, which can be read once

    @classmethod
    def open(cls, path: Path) -> "PolymerTable":
        """Check the shape of a table; a file is read through once for that.

        Raises
        ------
        MipsError
            The file is missing or cannot be read.
        UsageError
            No column of P-SMILES, or no rows.
        """
        if path == STANDARD:
            records = parse(read_lines(sys.stdin.buffer, "standard input"))
            header = read_header("standard input", records)
            return cls(path, header, find_column("standard input", header), None, records)
        if is_parquet(path):
            with _opened_parquet(path) as file:
                header, num_rows = file.schema_arrow.names, file.metadata.num_rows
            column = find_column(str(path), header)
        else:
            header, rows = read_csv(path)
            column = find_column(str(path), header)
            num_rows = sum(1 for _ in rows)
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
        for chunk in self.chunks(description):
            for row, text, fault in zip(chunk.cells, chunk.texts, chunk.faults, strict=True):
                try:
                    yield row, "" if fault else canonicalize(text), fault
                except InvalidPolymer as error:
                    yield row, "", str(error)

    def chunks(self, description: str) -> Iterator[Chunk]:
        """Yield the rows, `CHUNK_ROWS` at a time, and show the progress on a terminal.

        Raises
        ------
        UsageError
            At the end of standard input: there were no rows.
        """
        chunks = self._parquet_chunks() if is_parquet(self.path) else self._csv_chunks()
        num_rows = 0
        # The total is in chunks: the bar moves with them.
        total = None if self.num_rows is None else -(-self.num_rows // CHUNK_ROWS)
        for chunk in track(
            chunks,
            description=description,
            total=total,
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        ):
            num_rows += len(chunk.texts)
            yield chunk
        if num_rows == 0:
            raise UsageError("standard input has a header and no rows; add polymers")

    def _csv_chunks(self) -> Iterator[Chunk]:
        records = self._records or read_csv(self.path)[1]
        width = len(self.header)
        while some := list(islice(records, CHUNK_ROWS)):
            texts, faults, cells = [], [], []
            for record in some:
                text = fault = ""
                try:
                    text = record.text(self.psmiles_column, width)
                except InvalidPolymer as error:
                    fault = str(error)
                texts.append(text)
                faults.append(fault)
                cells.append(record.values[:width] + [""] * (width - len(record.values)))
            yield Chunk(texts, faults, cells)

    def _parquet_chunks(self) -> Iterator[Chunk]:
        import pyarrow as pa

        with _opened_parquet(self.path) as file:
            try:
                for batch in file.iter_batches(CHUNK_ROWS):
                    columns = [[_as_text(v) for v in column.to_pylist()] for column in batch]
                    texts = [text.strip() for text in columns[self.psmiles_column]]
                    cells = [list(row) for row in zip(*columns, strict=True)]
                    yield Chunk(texts, [""] * len(texts), cells, batch)
            except (pa.ArrowException, OSError) as error:
                raise _damaged(self.path) from error

    def check_output(self, output: Path, columns: Sequence[str]) -> None:
        """Refuse an output that cannot be written, or columns that the table has already.

        Raises
        ------
        UsageError
            Before anything is done.
        """
        if output != STANDARD:
            if output.is_dir():
                raise UsageError(f"{output} is a folder; give the name of a csv file with -o")
            if self.path != STANDARD and output.exists() and output.samefile(self.path):
                raise UsageError(f"{output} is the input; give another name with -o")
            if not output.parent.is_dir():
                raise UsageError(
                    f"{output.parent} is no folder; make it, or give another name with -o"
                )
        for name in columns:
            if name in (existing.strip() for existing in self.header):
                raise UsageError(
                    f"{self.path} has a column {name} already, which would be added; rename it"
                )

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
            Before the first row is asked for, see `check_output`.
        """
        self.check_output(output, columns)
        with table(output, [*self.header, *columns]) as writer:
            writer.writerows(rows)


def is_parquet(path: Path) -> bool:
    """Tell whether a file is parquet, by its name."""
    return path.suffix.lower() == ".parquet"


def _opened_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise MipsError(f"no file {path}; give the path of a csv, csv.gz or parquet file")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> MipsError:
    return MipsError(f"{path} is damaged, or is no parquet file; fetch it again")


def _as_text(value: Any) -> str:
    return "" if value is None else str(value)
