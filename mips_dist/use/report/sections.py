"""The tables of a report: scores, cost, ablations, respellings, and how a study was made."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mips_dist.data.properties import Reject
from mips_dist.page import escape, section, table
from mips_dist.train.results import ENSEMBLE, NETWORK
from mips_dist.train.tables import ALL_SETS, CAPTION, INCOMPLETE, PUBLISHED, Summary
from mips_dist.use.report.charts import label_of, with_unit
from mips_dist.use.report.folder import Series, StudyFolder
from mips_dist.use.report.origin import duration, scrolling
from mips_dist.use.report.plots import Axes, Line, keys

MAX_REASONS = 10


def scores(folder: StudyFolder) -> str:
    """Write the matrices of R2 and RMSE, every row with its protocol, and the scores by fold."""
    names = [prop.name for prop in folder.properties]
    r2 = [f"#{escape(name)}" for name in names]
    if len(names) > 1:
        r2.append("#mean")
        names.append(ALL_SETS)
    rmse = [f"#{escape(with_unit(prop.name, prop.unit))}" for prop in folder.properties]
    matrices = (
        _matrix(folder, "R2 by model and property", r2, names, lambda s: (s.r2, s.r2_sd)),
        _matrix(
            folder,
            "RMSE by model and property, in the unit of each",
            rmse,
            names[: len(rmse)],
            lambda s: (s.rmse, s.rmse_sd),
        ),
    )
    return section(
        "Scores",
        f"<p>{escape(CAPTION)} Bold: the best of our models under that protocol.</p>",
        *(scrolling(matrix) for matrix in matrices),
        "<h3>By property</h3>",
        scrolling(_by_property(folder)),
        "<details><summary>Scores of every fold</summary>",
        scrolling(_by_fold(folder)),
        "</details>",
    )


def _matrix(
    folder: StudyFolder,
    caption: str,
    header: Sequence[str],
    names: Sequence[str],
    score: Callable[[Summary], tuple[float, float]],
) -> str:
    of = {(s.property, s.model, s.protocol): s for s in folder.summaries}
    rows = []
    is_r2 = caption.startswith("R2")
    for model, protocol in dict.fromkeys((s.model, s.protocol) for s in folder.summaries):
        cells = []
        published = False
        for name in names:
            summary = of.get((name, model, protocol))
            if summary is None:
                cells.append("–")
                continue
            published |= summary.note == PUBLISHED
            text = number(*score(summary)).replace(" ±", ' <span class="sd">±')
            text += "</span>" if "<span" in text else ""
            if summary.note == INCOMPLETE:
                text += f" ({summary.num_cells} cells)"
            elif _is_best(summary, folder.summaries, is_r2):
                text = f"<b>{text}</b>"
            cells.append(text)
        title = f"published: {model}" if published else model
        rows.append((escape(title), escape(protocol), *cells))
    return table(caption, ("model", "protocol", *header), rows)


def _is_best(summary: Summary, summaries: Iterable[Summary], is_r2: bool) -> bool:
    """Tell whether a summary leads its property among our complete rows of its protocol."""
    rivals = [
        s
        for s in summaries
        if (s.property, s.protocol) == (summary.property, summary.protocol)
        and s.note not in (PUBLISHED, INCOMPLETE)
    ]
    if summary.note in (PUBLISHED, INCOMPLETE) or len(rivals) < 2:
        return False
    values = [s.r2 if is_r2 else -s.rmse for s in rivals]
    own = summary.r2 if is_r2 else -summary.rmse
    return own == max((v for v in values if not math.isnan(v)), default=math.nan)


def _by_property(folder: StudyFolder) -> str:
    rows = []
    for s in folder.summaries:
        polymers = folder.num_polymers.get(s.property)
        title = escape(s.property) + (f" ({polymers:,} polymers)" if polymers else "")
        rows.append(
            (
                title,
                escape(s.model),
                escape(s.protocol),
                number(s.r2, s.r2_sd),
                f"{number(s.rmse, s.rmse_sd)} {escape(s.unit) if s.unit != '1' else ''}".strip(),
                f"{s.num_cells}" if s.num_cells else "",
                escape(s.note),
            )
        )
    header = ("property", "model", "protocol", "#R2", "#RMSE", "#cells", "note")
    caption = "Mean and SD over the cells (folds and seeds) of each row"
    return table(caption, header, rows)


def _by_fold(folder: StudyFolder) -> str:
    rows = [
        (
            escape(r.property),
            escape(r.model),
            escape(r.protocol),
            *(f"{r.fold}", f"{r.seed}"),
            *(f"{value:.4f}" for value in (r.r2, r.rmse, r.mae)),
            escape(r.unit if r.unit != "1" else ""),
            f"{r.epoch or ''}",
        )
        for r in folder.rows
    ]
    header = ["property", "model", "protocol", "#fold", "#seed", "#R2", "#RMSE", "#MAE"]
    return table(
        "One row for each cell; results.csv has all digits", [*header, "unit", "#epoch"], rows
    )


def number(mean: float, sd: float = math.nan) -> str:
    """Write a number with its SD as the printed tables do; empty if there is none."""
    if math.isnan(mean):
        return ""
    return f"{mean:.3f}" if math.isnan(sd) else f"{mean:.3f} ± {sd:.3f}"


def cost(folder: StudyFolder) -> str:
    """Write the time that every model took, by property, on one core each."""
    names = [prop.name for prop in folder.properties]

    def total(series: Series | None, name: str | None) -> float:
        return sum(
            r.seconds
            for r in folder.results
            if (series is None or (r.model, r.protocol) == series)
            and (name is None or r.property == name)
        )

    order = [series for series in folder.series() if series.model != ENSEMBLE]
    rows = [
        (
            escape(label_of(series)),
            *(duration(total(series, name)) for name in names),
            duration(total(series, None)),
        )
        for series in order
    ]
    rows.append(
        ("all models", *(duration(total(None, n)) for n in names), duration(total(None, None)))
    )
    header = ("model", *(f"#{escape(name)}" for name in names), "#all properties")
    gpu = float(folder.config.get("gpus_per_trial") or 0.0)
    note = f" Each had {gpu:g} of a GPU beside its core." if gpu else ""
    return section(
        "Cost",
        f"<p>Core time of training and scoring all cells: {total(None, None) / 3600:.3g} CPU "
        f"hours. A cell runs on one core.{note} Preprocessing and final models are not in it.</p>",
        scrolling(table("Core time, summed over folds and seeds", header, rows)),
    )


def _float(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def _published(value: Any) -> str:
    """Write what another study found: a number, a row with r2, or words."""
    if isinstance(value, dict):
        value = value.get("r2")
    if value is None:
        return ""
    found = _float(value)
    return escape(value) if math.isnan(found) else number(found)


def ablations(rows: Sequence[dict[str, Any]]) -> str:
    """Write and draw what each variant of a component scores; empty without rows."""
    if not rows:
        return ""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row.get("component", "")), []).append(row)
    blocks = [_ablation(component, own) for component, own in groups.items()]
    note = (
        "<p>The same training with one component changed, on the folds of each row's protocol. "
        "Published numbers stand beside where there are some.</p>"
    )
    return section("Ablations", note, *blocks)


def _ablation(component: str, rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        (
            escape(row.get("variant", "")),
            escape(row.get("property", "")),
            escape(row.get("protocol", "")),
            number(_float(row.get("r2")), _float(row.get("r2_sd"))),
            number(_float(row.get("rmse"))),
            escape(row.get("num_cells", "")),
            _published(row.get("published")),
        )
        for row in rows
    ]
    header = ("variant", "property", "protocol", "#R2", "#RMSE", "#cells", "#published R2")
    written = scrolling(table(f"Variants of {escape(component)}", header, lines))
    variants = list(dict.fromkeys(str(row.get("variant", "")) for row in rows))
    figures = []
    for name in dict.fromkeys(str(row.get("property", "")) for row in rows):
        own = [row for row in rows if str(row.get("property", "")) == name]
        own = [row for row in own if math.isfinite(_float(row.get("r2")))]
        if own:
            figures.append(_ablation_chart(component, name, own, variants))
    # A scale for each property: what a variant changes is small beside what tells sets apart.
    return (
        f"<h3>{escape(component)}</h3>"
        f'<div class="pair">{"".join(figures)}</div>'
        f"{keys([(variant, k) for k, variant in enumerate(variants)])}{written}"
    )


def _ablation_chart(
    component: str, name: str, rows: Sequence[dict[str, Any]], variants: Sequence[str]
) -> str:
    points = [(variants.index(str(row.get("variant", ""))), _float(row["r2"])) for row in rows]
    spread = [max(0.0, np.nan_to_num(_float(row.get("r2_sd")))) for row in rows]
    ends = [y + sign * sd for (_, y), sd in zip(points, spread, strict=True) for sign in (-1, 1)]
    axes = Axes(
        (-0.5, len(variants) - 0.5),
        (min(ends), max(ends)),
        ("", f"R2 of {name}"),
        size=(400, 230),
        categories=variants,
    )
    for (x, y), sd in zip(points, spread, strict=True):
        axes.draw_marks(Line(variants[x], [(x, y)], x, [sd]), [f"{variants[x]}: {y:.3f}"])
    title = f"R2 of {name} by variant of {component}: " + ", ".join(
        f"{variants[x]} {y:.3f}" for x, y in points
    )
    return f"<figure>{axes.svg(title)}</figure>"


def respellings(rows: Sequence[dict[str, Any]]) -> str:
    """Write the repeat and shift invariance test; empty without rows."""
    if not rows:
        return ""
    lines = [
        (
            escape(row.get("strategy", "")),
            escape(row.get("model", "")),
            number(_float(row.get("original"))),
            number(_float(row.get("respelled"))),
            _gap(row.get("gap")),
            _gap(row.get("max_abs_difference")),
            escape(row.get("num_polymers", "")),
        )
        for row in rows
    ]
    header = (
        *("strategy", "model", "#R2 as written", "#R2 respelled", "#gap"),
        *("#largest difference", "#polymers"),
    )
    return section(
        "Repeat and shift invariance",
        "<p>The same polymers spelled anew (another cut of the backbone, the unit repeated, the "
        "other direction) must get the same predictions. A largest difference of 0 means: equal "
        "bit for bit.</p>",
        scrolling(table("RSIT: predictions of respelled polymers", header, lines)),
    )


def _gap(value: Any) -> str:
    found = _float(value)
    return "" if math.isnan(found) else "0" if found == 0 else f"{found:.3g}"


def rejected(rejects: Sequence[Reject]) -> str:
    """Count the rows that could not be used, by reason; empty without any."""
    if not rejects:
        return ""
    counts: dict[str, int] = {}
    for reject in rejects:
        counts[reject.reason] = counts.get(reject.reason, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [(escape(reason), f"{count:,}") for reason, count in ordered[:MAX_REASONS]]
    left = len(ordered) - len(rows)
    more = f"; {left} further reasons are in it" if left else ""
    return section(
        "Rows that could not be used",
        f"<p>{len(rejects):,} rows; rejects.csv names each one{more}.</p>",
        table("Reasons", ("reason", "#rows"), rows),
    )


def summary_tiles(folder: StudyFolder) -> str:
    """Write the few numbers that come first."""
    own = [s for s in folder.summaries if s.property == ALL_SETS and s.num_cells]
    if len(folder.properties) == 1:
        own = [s for s in folder.summaries if s.num_cells and s.note != INCOMPLETE]
    best = max((s for s in own if s.protocol == "strict"), key=lambda s: s.r2, default=None)
    tiles = [
        (f"{len(folder.properties)}", "properties" if len(folder.properties) > 1 else "property"),
        (f"{len({s.model for s in folder.series()})}", "models"),
        (f"{len(folder.results):,}", f"cells, {folder.config['num_folds']} folds"),
        (duration(sum(r.seconds for r in folder.results)), "core time"),
    ]
    if best is not None:
        tiles.append((f"{best.r2:.3f}", f"mean R2, strict: {escape(best.model)}"))
    network = next((s for s in own if (s.model, s.protocol) == (NETWORK, "strict")), None)
    if network is not None and best is not None and network != best:
        tiles.append((f"{network.r2:.3f}", f"mean R2, strict: {NETWORK}"))
    items = "".join(f"<li><b>{value}</b> {what}</li>" for value, what in tiles)
    return f'<ul class="tiles">{items}</ul>'
