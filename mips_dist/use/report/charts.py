"""The charts of a study: parity, error against distance, learning curves."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mips_dist.page import escape, section, table
from mips_dist.train.results import FoldResult, regression_scores
from mips_dist.use.report.folder import Labels, Series, StudyFolder
from mips_dist.use.report.origin import scrolling
from mips_dist.use.report.plots import Axes, Line, colour_keys, keys

_NUM_BINS = 5
_MIN_BIN = 10  # polymers; a mean over fewer says little
MAX_CHOICES = 12

# A choice of panes without script: the radio button that is on shows the pane of its number.
STYLE = (
    """
.choice{border:0;margin:0;padding:0;min-width:0;position:relative}
.choice legend{font-size:.9rem;color:var(--soft);padding:0}
.choice>input{position:absolute;opacity:0}
.choice>label{display:inline-block;font-size:.9rem;line-height:1.3;padding:.1rem .6rem;
margin:.15rem .1rem;border:1px solid var(--line);border-radius:1rem;cursor:pointer}
.choice>input:checked+label{background:var(--bar);border-color:var(--bar);color:var(--paper)}
.choice>input:focus-visible+label{outline:2px solid var(--ink);outline-offset:2px}
.choice>.pane{display:none;margin-top:.4rem}
"""
    + ",".join(
        f".choice>input:nth-of-type({k}):checked~.pane:nth-of-type({k})"
        for k in range(1, MAX_CHOICES + 1)
    )
    + "{display:block}\n"
)


def label_of(series: Series) -> str:
    """Return a short name; the protocol is named where it is not the default."""
    return series.model if series.protocol == "strict" else f"{series.model} ({series.protocol})"


def with_unit(what: str, unit: str) -> str:
    """Return a quantity with its unit, if it has one."""
    return f"{what}, {unit}" if unit not in ("", "1") else what


class _Points(NamedTuple):
    """Predictions of one seed of a series: row, fold, label, prediction, all (R,)."""

    seed: int
    row: np.ndarray
    fold: np.ndarray
    value: np.ndarray
    prediction: np.ndarray


def _first_seed(cells: Sequence[FoldResult], labels: Labels) -> _Points:
    seed = min(cell.seed for cell in cells)
    own = [cell for cell in cells if cell.seed == seed]
    row = np.concatenate([np.array(cell.row, np.int64) for cell in own])
    return _Points(
        seed,
        row,
        np.concatenate([np.full(len(cell.row), cell.fold) for cell in own]),
        np.array([labels.value[r] for r in row.tolist()]),
        np.concatenate([np.array(cell.prediction) for cell in own]),
    )


def parity(folder: StudyFolder, labels: dict[str, Labels]) -> str:
    """Draw prediction against label, every fold in its colour; the model is chosen by buttons."""
    blocks = []
    for number, prop in enumerate(folder.properties):
        best = folder.best(prop.name)
        choices: list[str] = []
        panes: list[str] = []
        for series in folder.series()[:MAX_CHOICES]:
            cells = folder.cells(prop.name, series)
            if not cells:
                continue
            points = _first_seed(cells, labels[prop.name])
            mark = f"p{number}-{len(panes)}"
            checked = " checked" if series == best else ""
            choices.append(
                f'<input type="radio" name="p{number}" id="{mark}"{checked}>'
                f'<label for="{mark}">{escape(label_of(series))}</label>'
            )
            panes.append(_parity_pane(prop.name, prop.unit, series, points))
        if panes:
            blocks.append(
                f"<div><h3>{escape(prop.name)}</h3>"
                f'<fieldset class="choice"><legend>model</legend>{" ".join(choices)}'
                f"{''.join(panes)}</fieldset></div>"
            )
    note = (
        "<p>Every labelled row, predicted by the model that did not train on its fold. The best "
        "model of a property is shown first. On the dashed line prediction and label are equal. "
        "Where a model has several seeds, its first is drawn.</p>"
    )
    return section("Parity", note, f'<div class="pair">{"".join(blocks)}</div>')


def _parity_pane(name: str, unit: str, series: Series, points: _Points) -> str:
    both = np.concatenate([points.value, points.prediction])
    limits = float(both.min()), float(both.max())
    axes = Axes(
        limits,
        limits,
        (with_unit("label", unit), with_unit("prediction", unit)),
        size=(400, 380),
    )
    axes.draw_diagonal()
    folds = np.unique(points.fold).tolist()
    for fold in folds:
        at = points.fold == fold
        pairs = list(zip(points.value[at].tolist(), points.prediction[at].tolist(), strict=True))
        axes.draw_dots(Line(f"fold {fold}", pairs, fold))
    scores = regression_scores(points.value, points.prediction)
    title = (
        f"{name}: prediction of {label_of(series)} against label, {len(points.row)} rows in "
        f"{len(folds)} folds, MAE {scores.mae:.3g} {unit}"
    )
    caption = (
        f"{escape(label_of(series))}, seed {points.seed}: {len(points.row):,} rows; over all "
        f"of them R2 {scores.r2:.3f}, RMSE {scores.rmse:.3g}, MAE {scores.mae:.3g} "
        f"{escape(unit if unit != '1' else '')}"
    )
    return (
        f'<div class="pane"><figure>{axes.svg(title)}<figcaption>{caption}</figcaption></figure>'
        f"{colour_keys([(f'fold {fold}', fold) for fold in folds])}</div>"
    )


class _Bin(NamedTuple):
    """One bin of distances: its rows, mean distance, mean absolute error and standard error."""

    low: float
    high: float
    rows: int
    distance: float
    error: float
    standard_error: float


def _bins(points: _Points, labels: Labels, edges: np.ndarray) -> list[_Bin]:
    distance = np.array([labels.distance[row] for row in points.row.tolist()])
    error = np.abs(points.prediction - points.value)
    where = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, len(edges) - 2)
    found = []
    for k in range(len(edges) - 1):
        at = where == k
        if at.any():
            spread = float(error[at].std(ddof=1)) / math.sqrt(at.sum()) if at.sum() > 1 else 0.0
            found.append(
                _Bin(
                    float(edges[k]),
                    float(edges[k + 1]),
                    int(at.sum()),
                    float(distance[at].mean()),
                    float(error[at].mean()),
                    spread,
                )
            )
    return found


def bin_edges(distance: np.ndarray) -> np.ndarray:
    """Return edges of bins that hold about as many values each: (B + 1,), increasing."""
    num_bins = max(1, min(_NUM_BINS, len(distance) // _MIN_BIN))
    edges = np.unique(np.quantile(distance, np.linspace(0.0, 1.0, num_bins + 1)))
    return edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1e-9])


def distance(folder: StudyFolder, labels: dict[str, Labels]) -> str:
    """Draw the mean absolute error against the distance to the nearest training polymer."""
    order = folder.series()
    blocks = []
    for prop in folder.properties:
        own = labels[prop.name]
        edges = bin_edges(np.array(list(own.distance.values())))
        found = {
            series: _bins(_first_seed(cells, own), own, edges)
            for series in order
            if (cells := folder.cells(prop.name, series))
        }
        if found:
            blocks.append(_distance_block(prop.name, prop.unit, found, order))
    note = (
        "<p>Distance is 1 - the largest Tanimoto similarity to a polymer of the other folds, on "
        "counts of Morgan environments (radius 2) of the infinite chain; 0 means the same "
        "environments. Each point is a fifth of the rows, nearest first, with the standard error "
        "of its mean. A model that only looks up its neighbours rises steeply.</p>"
    )
    return section(
        "Error against distance to the training set",
        note,
        f'<div class="pair">{"".join(blocks)}</div>',
    )


def _distance_block(
    name: str, unit: str, found: dict[Series, list[_Bin]], order: list[Series]
) -> str:
    every = [b for bins in found.values() for b in bins]
    top = max(b.error + b.standard_error for b in every)
    axes = Axes(
        (min(b.distance for b in every), max(b.distance for b in every)),
        (0.0, top),
        ("distance to the nearest training polymer", with_unit("mean absolute error", unit)),
    )
    for series, bins in found.items():
        line = Line(
            label_of(series),
            [(b.distance, b.error) for b in bins],
            order.index(series),
            [b.standard_error for b in bins],
        )
        axes.draw_curve(line)
        axes.draw_marks(line, [f"{line.name}: {b.error:.3g} {unit}, {b.rows} rows" for b in bins])
    columns = next(iter(found.values()))
    rows = [
        (escape(label_of(series)), *(f"{b.error:.3g}" for b in bins))
        for series, bins in found.items()
        if len(bins) == len(columns)
    ]
    header = ["model", *(f"#{b.low:.2f} to {b.high:.2f}<br>({b.rows} rows)" for b in columns)]
    caption = escape(with_unit(f"Mean absolute error of {name}", unit)) + ", by distance"
    title = f"{name}: mean absolute error against distance to the nearest training polymer"
    return (
        f"<div><h3>{escape(name)}</h3><figure>{axes.svg(title)}</figure>"
        f"{keys([(label_of(series), order.index(series)) for series in found])}"
        f"<details><summary>Numbers</summary>{scrolling(table(caption, header, rows))}</details>"
        "</div>"
    )


def learning_curves(folder: StudyFolder) -> str:
    """Draw the training loss and the watched error of every cell that has epochs."""
    blocks = []
    for prop in folder.properties:
        for series in folder.series():
            cells = [cell for cell in folder.cells(prop.name, series) if cell.curve]
            if cells:
                blocks.append(_curves_block(prop.name, prop.unit, series, cells))
    if not blocks:
        return ""
    note = (
        "<p>One line for each fold and seed; the mark is the epoch whose weights were kept. "
        "Under strict it is chosen on an inner split of the training folds, whose error is drawn; "
        "under paper on the test fold.</p>"
    )
    return section("Learning curves", note, *blocks)


def _curves_block(name: str, unit: str, series: Series, cells: list[FoldResult]) -> str:
    watched = "inner split" if series.protocol == "strict" else "test fold"
    charts = []
    for key, what, is_log in (
        ("train_loss", "training loss (MSE of z-scores)", True),
        ("watched_rmse", with_unit(f"RMSE on the {watched}", unit), False),
    ):
        lines = []
        for cell in cells:
            points = [(e["epoch"], e[key]) for e in cell.curve if key in e]
            points = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not is_log)]
            if points:
                lines.append((cell, points))
        if not lines:
            continue
        values = [y for _, points in lines for _, y in points]
        last = max(x for _, points in lines for x, _ in points)
        axes = Axes((1.0, last), (min(values), max(values)), ("epoch", what), log_y=is_log)
        for cell, points in lines:
            line = Line(f"fold {cell.fold}", points, cell.fold)
            axes.draw_curve(line)
            kept = [point for point in points if point[0] == cell.epoch]
            tip = f"fold {cell.fold}, seed {cell.seed}, epoch {cell.epoch}"
            axes.draw_marks(Line(line.name, kept, cell.fold), [tip] * len(kept))
        title = f"{name}, {label_of(series)}: {what} by epoch, {len(lines)} trainings"
        charts.append(f"<figure>{axes.svg(title)}</figure>")
    folds = sorted({cell.fold for cell in cells})
    heading = f"{escape(name)}: {escape(label_of(series))}"
    return (
        f'<h3>{heading}</h3><div class="pair">{"".join(charts)}</div>'
        f"{keys([(f'fold {fold}', fold) for fold in folds])}"
    )
