"""Predict properties of every polymer of a table: rows in = rows out."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mips_dist.threads import one_thread
from mips_dist.use.predictor import REJECTED, Prediction, Predictor, with_note
from mips_dist.use.table import PolymerTable


def predict_file(input: Path, models: Sequence[str | Path], output: Path) -> None:
    """Predict for every row of a csv and write the rows with the predictions added.

    Parameters
    ----------
    input
        csv or csv.gz with a column psmiles (or smiles).
    models
        Of different properties, see `Predictor.open`.
    output
        csv or csv.gz; appears when it is complete.
    """
    predictor = Predictor.open(models)
    table = PolymerTable.open(input)
    with one_thread():
        table.write(output, predictor.columns, _rows(table, predictor))


def _rows(table: PolymerTable, predictor: Predictor) -> Iterator[list[str]]:
    first: dict[str, tuple[int, Prediction]] = {}
    for number, (row, canonical, reason) in enumerate(table.rows("predicting")):
        if reason:
            found = Prediction("", "", REJECTED, reason)
        else:
            if canonical not in first:
                first[canonical] = number, predictor.predict_canonical(canonical)
            known, found = first[canonical]
            if known != number:
                found = replace(found, reason=with_note(found, known))
        cells = found.cells(predictor.properties)
        yield [*row, *map(_text, cells)]


def _text(cell: str | float | bool | None) -> str:
    """Write a cell: the nine digits that a float32 has; false or true."""
    if isinstance(cell, bool):
        return str(cell).lower()
    return format(cell, ".9g") if isinstance(cell, float) else cell or ""
