"""Tables of a study: a csv row per cell; mean and SD over folds and seeds, as JSON and printed."""

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mips_dist.data.files import write_atomically
from mips_dist.data.properties import Property
from mips_dist.train.results import NETWORK, FoldResult

RESULTS_FILE = "results.csv"  # of a study, from `write_csv`
CSV_COLUMNS = ("model", "property", "fold", "seed", "protocol", "r2", "rmse", "mae", "unit")
ALL_SETS = "mean of all sets"
PUBLISHED = "published"
BELOW_BOOSTING = "below boosting"
INCOMPLETE = "incomplete"
CAPTION = (
    "mean ± sample SD over folds and seeds. strict: the epoch was chosen on an inner split of the "
    "training folds, the test fold scored once. paper: the epoch was chosen on the test fold, "
    "which is optimistic and for comparison only."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Scores of one model on one property: mean and sample SD over folds and seeds.

    Attributes
    ----------
    rmse, rmse_sd
        In `unit`; NaN in the mean over sets, whose units differ.
    num_cells
        Folds x seeds behind the numbers; 0 for a published row.
    note
        What a reader must know of this row, else empty.
    """

    property: str
    model: str
    protocol: str
    unit: str
    r2: float
    r2_sd: float
    rmse: float
    rmse_sd: float
    num_cells: int
    note: str = ""


def summarize(
    results: Iterable[FoldResult], properties: list[Property], num_folds: int, num_seeds: int = 1
) -> list[Summary]:
    """Average the cells of every model on every property, in the order of `properties`.

    The published row of a property follows the rows of our models. After all properties comes the
    mean over sets of every row that all of them have with all folds, and the network's with all
    seeds.
    """
    groups: dict[tuple[str, str, str], list[FoldResult]] = {}
    for result in sorted(results, key=lambda r: (r.model != NETWORK, r.cell())):
        groups.setdefault((result.property, result.model, result.protocol), []).append(result)
    summaries: list[Summary] = []
    for prop in properties:
        own = [(key, cells) for key, cells in groups.items() if key[0] == prop.name]
        boosting = [_mean([c.r2 for c in cells]) for key, cells in own if key[1] == "boosting"]
        for (name, model, protocol), cells in own:
            r2, rmse = [c.r2 for c in cells], [c.rmse for c in cells]
            note = ""
            if len(cells) != num_folds * (num_seeds if model == NETWORK else 1):
                note = INCOMPLETE
            elif model == NETWORK and boosting and _mean(r2) < boosting[0]:
                note = BELOW_BOOSTING
            summaries.append(
                Summary(
                    property=name,
                    model=model,
                    protocol=protocol,
                    unit=prop.unit,
                    r2=_mean(r2),
                    r2_sd=_sd(r2),
                    rmse=_mean(rmse),
                    rmse_sd=_sd(rmse),
                    num_cells=len(cells),
                    note=note,
                )
            )
        if prop.published is not None:
            summaries.append(_published(prop))
    return summaries + _means_over_sets(summaries, len(properties))


def _published(prop: Property) -> Summary:
    assert prop.published is not None
    row = prop.published
    return Summary(
        property=prop.name,
        model=row.model,
        protocol=row.protocol,
        unit=prop.unit,
        r2=row.r2,
        r2_sd=row.r2_sd,
        rmse=row.rmse,
        rmse_sd=row.rmse_sd,
        num_cells=0,
        note=PUBLISHED,
    )


def _means_over_sets(summaries: list[Summary], num_sets: int) -> list[Summary]:
    if num_sets < 2:
        return []
    groups: dict[tuple[str, str], list[Summary]] = {}
    for summary in summaries:
        if summary.note != INCOMPLETE:
            groups.setdefault((summary.model, summary.protocol), []).append(summary)
    return [
        Summary(
            property=ALL_SETS,
            model=model,
            protocol=protocol,
            unit="",
            r2=_mean([s.r2 for s in rows]),
            r2_sd=math.nan,
            rmse=math.nan,
            rmse_sd=math.nan,
            num_cells=sum(s.num_cells for s in rows),
            note=rows[0].note if rows[0].note == PUBLISHED else "",
        )
        for (model, protocol), rows in groups.items()
        if len(rows) == num_sets
    ]


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _sd(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def write_csv(results: Iterable[FoldResult], path: Path) -> None:
    """Write the scores, one line a cell, sorted by cell; floats at full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for result in sorted(results, key=lambda r: r.cell()):
        writer.writerow([getattr(result, column) for column in CSV_COLUMNS])
    write_atomically(path, text.getvalue())


def write_json(summaries: list[Summary], about: dict[str, Any], path: Path) -> None:
    """Write the summaries and what they are about; a number that does not exist is null."""
    content = about | {
        "caption": CAPTION,
        "summary": [
            {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in asdict(summary).items()
            }
            for summary in summaries
        ],
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def render(summaries: list[Summary], num_polymers: dict[str, int]) -> Table:
    """Lay the summaries out for a terminal, one section a property.

    Parameters
    ----------
    num_polymers
        Distinct polymers of each property.
    """
    caption = CAPTION
    if any(summary.note == BELOW_BOOSTING for summary in summaries):
        caption += " *: below the boosting baseline."
    sources = {summary.model for summary in summaries if summary.note == PUBLISHED}
    if sources:
        caption += f" published: {', '.join(sorted(sources))}; its folds are not known."
    table = Table(caption=caption, caption_justify="left")
    for header in ("property", "model", "protocol"):
        table.add_column(header, overflow="fold")
    for header in ("R2", "RMSE"):
        table.add_column(header, justify="right", no_wrap=True)
    shown = ""
    for summary in summaries:
        heading = ""
        if summary.property != shown:
            table.add_section()
            shown = heading = summary.property
            if shown in num_polymers:
                unit = f", {summary.unit}" if summary.unit not in ("", "1") else ""
                heading = f"{shown}{unit}\n({num_polymers[shown]} polymers)"
        table.add_row(
            heading,
            _model_name(summary),
            summary.protocol,
            _number(summary.r2, summary.r2_sd),
            _number(summary.rmse, summary.rmse_sd),
        )
    return table


def _model_name(summary: Summary) -> str:
    if summary.note == PUBLISHED:
        return PUBLISHED
    if summary.note == INCOMPLETE:
        return f"{summary.model}\n({summary.num_cells} cells only)"
    return summary.model + " *" * (summary.note == BELOW_BOOSTING)


def _number(mean: float, sd: float) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.3f}" if math.isnan(sd) else f"{mean:.3f} ± {sd:.3f}"
