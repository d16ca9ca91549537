"""Predict properties of every polymer of a table: rows in = rows out, in order, as they come.

Each distinct polymer is computed once, by itself, on one thread: the predictions are the same bits
for any order of rows, any spelling and any number of processes. Memory does not grow with the rows:
what was predicted is kept in a temporary file (about 200 bytes a polymer and property).
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mips_dist.data.records import Record
from mips_dist.errors import MipsError, UsageError
from mips_dist.use.known import Cells, KnownPolymers
from mips_dist.use.prediction import REJECTED, Prediction, columns_of, kinds_of, with_note
from mips_dist.use.sinks import sink
from mips_dist.use.table import Chunk, PolymerTable, is_psmiles
from mips_dist.use.workers import Failed, Workers

# A process takes seconds to start: a second one has to be worth it.
MIN_ROWS_PER_WORKER = 100
_SPELLED_AT_A_TIME = 32
_PREDICTED_AT_A_TIME = 4


def predict_given(
    given: str, models: Sequence[str | Path], output: Path | None, num_workers: int | None
) -> None:
    """Predict for what stands on the command line: a table, or one P-SMILES.

    Parameters
    ----------
    given
        A text with a star that is no file is a P-SMILES; all else as `input` of `predict_file`.
    output
        As of `predict_file`; None: what is predicted for one P-SMILES is shown.
    """
    if not models:
        raise UsageError("nothing to predict; give a property (-p) or a model directory (-m)")
    if not is_psmiles(given):
        if output is None:
            raise UsageError("no output; give a file with -o, or -o - for standard output")
        predict_file(Path(given), models, output, num_workers)
    elif output is None:
        _show(given, models)
    else:
        row = iter([Record([given], is_long=False)])
        table = PolymerTable(Path("the command line"), ["psmiles"], 0, 1, row)
        _predict_table(table, models, output, num_workers)


def _show(psmiles: str, models: Sequence[str | Path]) -> None:
    from mips_dist.use.predictor import Predictor  # torch: not for the parent of workers

    row = Predictor.open(models).predict([psmiles])[0]
    if row.status == REJECTED:
        raise MipsError(f"{psmiles}: {row.reason}")
    table = Table(title=row.canonical, caption=row.reason or None)
    table.add_column("property")
    for name in ("value", "90 % interval", "distance"):
        table.add_column(name, justify="right")
    table.add_column("in domain")
    for name, own in row.values.items():
        unit = "" if own.unit == "1" else own.unit
        table.add_row(
            name,
            f"{own.value:.4g} {unit}",
            "" if own.lower is None else f"{own.lower:.4g} to {own.upper:.4g}",
            "" if own.distance is None else f"{own.distance:.2f}",
            "" if own.in_domain is None else ("yes" if own.in_domain else "no"),
        )
    Console().print(table)


def predict_file(
    input: Path, models: Sequence[str | Path], output: Path, num_workers: int | None = None
) -> None:
    """Predict for every row of a table and write the rows with the predictions added.

    Parameters
    ----------
    input
        csv, csv.gz or parquet with a column psmiles (or smiles); ``-``: a csv on standard input.
    models
        Of different properties, see `mips_dist.use.predictor.Predictor.open`.
    output
        csv, csv.gz or parquet, which appears when it is complete; ``-``: csv on standard output.
    num_workers
        Processes; None: the cores at hand, fewer for few rows.

    Raises
    ------
    MipsError, UsageError
        Input, output or a model cannot be used; no row costs more than itself.
    """
    _predict_table(PolymerTable.open(input), models, output, num_workers)


def _predict_table(
    table: PolymerTable, models: Sequence[str | Path], output: Path, num_workers: int | None
) -> None:
    table.check_output(output, ())
    with Workers(models, num_workers or _number_of_workers(table.num_rows)) as workers:
        columns = columns_of(workers.properties)
        table.check_output(output, columns)
        for name in workers.uncalibrated:
            print(
                f"{name}: its model has no calibration, so {name}_lower, {name}_upper, "
                f"{name}_distance and {name}_in_domain stay empty",
                file=sys.stderr,
            )
        known = KnownPolymers()
        num_rows = 0
        with sink(output, table, columns, kinds_of(workers.properties)) as out:
            for chunk in table.chunks("predicting"):
                out.write(chunk, _predicted(chunk, num_rows, workers, known))
                num_rows += len(chunk.texts)
        known.close()


def _number_of_workers(num_rows: int | None) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    worth = cores if num_rows is None else num_rows // MIN_ROWS_PER_WORKER
    return max(1, min(cores or 1, worth or 1))


def _predicted(chunk: Chunk, first_row: int, workers: Workers, known: KnownPolymers) -> list[Cells]:
    """Return the added cells of each row of a chunk."""
    asked = list(
        dict.fromkeys(t for t, fault in zip(chunk.texts, chunk.faults, strict=True) if not fault)
    )
    spelled = dict(zip(asked, workers.map("spell", asked, _SPELLED_AT_A_TIME), strict=True))
    rows: list[tuple[str, str]] = []  # canonical, reason
    for text, fault in zip(chunk.texts, chunk.faults, strict=True):
        found = ("", fault) if fault else spelled[text]
        rows.append(("", str(found)) if isinstance(found, Failed) else found)
    met = {canonical: known.get(canonical) for canonical, reason in rows if not reason}
    new = [canonical for canonical, before in met.items() if before is None]
    results = dict(zip(new, workers.map("predict", new, _PREDICTED_AT_A_TIME), strict=True))
    added = []
    for row, (canonical, reason) in enumerate(rows, start=first_row):
        if reason:
            found = Prediction("", "", REJECTED, reason)
            added.append(found.cells(workers.properties))
            continue
        before = met[canonical]
        if before is None:
            result = results[canonical]
            if isinstance(result, Failed):
                result = Prediction("", canonical, REJECTED, str(result))
            before = row, result.cells(workers.properties)
            met[canonical] = before
            known.add(canonical, *before)
            added.append(before[1])
        else:
            first, cells = before
            added.append([*cells[:2], with_note(str(cells[2] or ""), first), *cells[3:]])
    return added
