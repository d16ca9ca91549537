"""Write a table of polymers with added columns, chunk by chunk: csv, csv.gz, parquet or a pipe."""

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, Protocol

from mips_dist.data.files import DECODING_ERRORS, replacing, table
from mips_dist.errors import UsageError
from mips_dist.use.prediction import Kind
from mips_dist.use.table import STANDARD, Chunk, PolymerTable, is_parquet

Cells = Sequence[str | float | bool | None]


class Sink(Protocol):
    """Takes the rows of a chunk and the added cells of each."""

    def write(self, chunk: Chunk, added: Sequence[Cells]) -> None:
        """Write one chunk."""


@contextmanager
def sink(
    output: Path, source: PolymerTable, columns: Sequence[str], kinds: Sequence[Kind]
) -> Iterator[Sink]:
    """Open the output, which appears when it is complete; what goes to a pipe goes at once.

    Parameters
    ----------
    output
        csv, csv.gz or parquet by its name; `STANDARD` is csv on standard output.
    source
        The table whose columns come first.
    columns, kinds
        Names of the added columns, and what each holds.
    """
    header = [*source.header, *columns]
    if output == STANDARD:
        text = TextIOWrapper(
            sys.stdout.buffer, encoding="utf-8", errors=DECODING_ERRORS, newline=""
        )
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        yield _CsvSink(writer, text)
        text.detach()  # writes what is left, and leaves standard output open
    elif is_parquet(output):
        if len(set(header)) < len(header):
            raise UsageError(
                f"{source.path} names two columns alike, which parquet cannot; use csv"
            )
        with replacing(output) as raw:
            parquet = _ParquetSink(raw, source, columns, kinds)
            yield parquet
            parquet.close()
    else:
        with table(output, header) as writer:
            yield _CsvSink(writer, None)


class _CsvSink:
    def __init__(self, writer: Any, pipe: TextIOWrapper | None) -> None:
        self._writer = writer
        self._pipe = pipe

    def write(self, chunk: Chunk, added: Sequence[Cells]) -> None:
        for cells, new in zip(chunk.cells, added, strict=True):
            self._writer.writerow([*cells, *map(text_of, new)])
        if self._pipe is not None:
            self._pipe.flush()


def text_of(cell: str | float | bool | None) -> str:
    """Write a cell as text: numbers with the nine digits that a float32 has; true or false."""
    if isinstance(cell, bool):
        return str(cell).lower()
    return format(cell, ".9g") if isinstance(cell, float) else cell or ""


class _ParquetSink:
    """Columns of a parquet input keep their types, those of a csv are text."""

    def __init__(
        self, raw: IO[bytes], source: PolymerTable, columns: Sequence[str], kinds: Sequence[Kind]
    ) -> None:
        import pyarrow as pa

        types = {"text": pa.string(), "float": pa.float64(), "bool": pa.bool_()}
        self._added = [
            pa.field(name, types[kind]) for name, kind in zip(columns, kinds, strict=True)
        ]
        self._header = source.header
        self._raw = raw
        self._writer: Any = None

    def write(self, chunk: Chunk, added: Sequence[Cells]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if chunk.batch is None:
            own = [pa.array(map(_clean, column)) for column in zip(*chunk.cells, strict=True)]
            fields = [pa.field(name, pa.string()) for name in self._header]
        else:
            own, fields = chunk.batch.columns, list(chunk.batch.schema)
        new = [
            pa.array(column, field.type)
            for column, field in zip(zip(*added, strict=True), self._added, strict=True)
        ]
        schema = pa.schema([*fields, *self._added])
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._raw, schema)
        self._writer.write_batch(pa.RecordBatch.from_arrays([*own, *new], schema=schema))

    def close(self) -> None:
        """Write the end of the file."""
        self._writer.close()


def _clean(text: str) -> str:
    """Replace bytes that are no UTF-8, which parquet cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
