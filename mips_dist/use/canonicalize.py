"""Write the one canonical spelling beside every P-SMILES of a csv: rows in = rows out."""

import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track

from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
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
    rows = track(
        table.rows(),
        description="canonical spelling",
        total=table.num_rows,
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    for row, psmiles in rows:
        try:
            yield [*row, canonicalize(psmiles), "ok", ""]
        except InvalidPolymer as error:
            yield [*row, "", "rejected", str(error)]
