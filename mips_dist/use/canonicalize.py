"""Write the one canonical spelling beside every P-SMILES of a csv: rows in = rows out."""

from collections.abc import Iterator
from pathlib import Path

from mips_dist.use.table import PolymerTable

COLUMNS = ("canonical", "status", "reason")


def canonicalize_file(input: Path, output: Path) -> None:
    """Copy a csv and add the columns canonical, status (ok or rejected) and reason.

    Parameters
    ----------
    input
        csv or csv.gz with a column psmiles (or smiles).
    output
        csv or csv.gz; appears when it is complete.
    """
    table = PolymerTable.open(input)
    table.write(output, COLUMNS, _rows(table))


def _rows(table: PolymerTable) -> Iterator[list[str]]:
    for row, canonical, reason in table.rows("canonical spelling"):
        yield [*row, canonical, "rejected" if reason else "ok", reason]
