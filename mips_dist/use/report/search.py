"""The page of a sweep: every point that was tried, the best of each property, and how far it is."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from mips_dist.data.files import file_sha256
from mips_dist.errors import MipsError
from mips_dist.page import document, escape, section, table
from mips_dist.train.environment import environment, read_environments
from mips_dist.train.search_space import LEDGER, Tried, read_tried
from mips_dist.use.report import charts, origin, plots
from mips_dist.use.report.command import study_command
from mips_dist.use.report.folder import CONFIG_FILE, read_config
from mips_dist.use.report.origin import scrolling
from mips_dist.use.report.plots import Axes, Line, keys

_MOST_ROWS = 20
_WIDE = 30.0  # ratio of the largest to the smallest value, from which on logarithms are drawn
_STATES = ("complete", "stopped", "failed")


def search_page(run_dir: Path) -> str:
    """Return the page of a sweep, finished or not.

    Raises
    ------
    MipsError
        A file is damaged; no point was tried yet.
    """
    config = read_config(run_dir / CONFIG_FILE, ("search", "num_folds", "seeds"))
    content = (run_dir / LEDGER).read_bytes()
    tried = list(read_tried(content, run_dir / LEDGER).values())
    if not tried:
        raise MipsError(f"{run_dir} has no finished point yet; make the page later")
    num_folds = int(config["num_folds"])
    states = [point.state(num_folds) for point in tried]
    names = list(dict.fromkeys(point.property for point in tried))
    tiles = [
        (f"{len(names)}", "properties" if len(names) > 1 else "property"),
        (f"{len(tried)}", "points"),
        *((f"{states.count(state)}", state) for state in _STATES if state in states),
    ]
    items = "".join(f"<li><b>{value}</b> {what}</li>" for value, what in tiles)
    lead = (
        f'<p class="soft">Search for hyperparameters ({escape(config["search"])}) on the inner '
        f"splits of {num_folds} training folds; the test folds were not scored.</p>"
        f'<ul class="tiles">{items}</ul>'
    )
    body = [_property(name, [t for t in tried if t.property == name], num_folds) for name in names]
    recorded = read_environments(run_dir)
    hashes = [
        (f"points ({LEDGER})", file_sha256(run_dir / LEDGER)),
        (f"configuration ({CONFIG_FILE})", file_sha256(run_dir / CONFIG_FILE)),
    ]
    body.append(
        origin.origin(
            study_command(config),
            (run_dir / CONFIG_FILE).read_text(encoding="utf-8"),
            recorded or [environment()],
            bool(recorded),
            hashes,
            "the sweep",
        )
    )
    footer = "This page loads nothing and runs no script. Numbers are from the sweep's ledger."
    style = plots.STYLE + charts.STYLE + origin.STYLE
    name = escape(run_dir.resolve().name)
    return document(f"Sweep: {name}", style, lead, body, footer)


def _property(name: str, tried: list[Tried], num_folds: int) -> str:
    scored = [point for point in tried if point.scores]
    columns = list(dict.fromkeys(key for point in tried for key in point.values))
    figures = [_progress(name, scored, num_folds)] if scored else []
    figures += [chart for key in columns if (chart := _by_value(name, key, scored, num_folds))]
    ordered = sorted(tried, key=lambda t: (t.state(num_folds) != "complete", -_score(t)))
    rows = [
        (
            f"{place + 1}",
            *(escape(point.values.get(key, "")) for key in columns),
            f"{point.mean():.4f}" if point.scores else "",
            f"{len(point.scores)}",
            escape(point.failure or point.state(num_folds)),
        )
        for place, point in enumerate(ordered[:_MOST_ROWS])
    ]
    left = len(ordered) - len(rows)
    caption = "Complete points first, best first" + (f"; {left} more in search.csv" if left else "")
    header = ("rank", *(f"#{escape(key)}" for key in columns), "#inner R2", "#folds", "state")
    shown = [("complete", 0), ("stopped early", 1)]
    return section(
        escape(name),
        f'<div class="pair">{"".join(figures)}</div>{keys(shown)}',
        scrolling(table(caption, header, rows)),
    )


def _score(point: Tried) -> float:
    return point.mean() if point.scores else -math.inf


def _colour(point: Tried, num_folds: int) -> int:
    return 0 if point.state(num_folds) == "complete" else 1


def _tip(point: Tried) -> str:
    values = ", ".join(f"{key}={value}" for key, value in point.values.items())
    return f"{values}: inner R2 {point.mean():.4f}, {len(point.scores)} folds"


def _draw(axes: Axes, points: list[tuple[float, Tried]], num_folds: int) -> None:
    for x, point in points:
        line = Line("", [(x, point.mean())], _colour(point, num_folds))
        axes.draw_marks(line, [_tip(point)])


def _limits(points: list[Tried]) -> tuple[float, float]:
    """Return the range that is drawn: far outliers below would hide what differs above."""
    scores = np.array([point.mean() for point in points])
    middle, high = float(np.median(scores)), float(scores.max())
    shown = scores[scores >= middle - 5 * (high - middle) - 0.05]
    return float(shown.min()), high


def _progress(name: str, scored: list[Tried], num_folds: int) -> str:
    low, high = _limits(scored)
    axes = Axes((1.0, float(max(2, len(scored)))), (low, high), ("point, in order", "inner R2"))
    shown = [(i + 1.0, point) for i, point in enumerate(scored) if point.mean() >= low]
    best, line = -math.inf, []
    for place, point in enumerate(scored):
        if point.state(num_folds) == "complete":
            best = max(best, point.mean())
        if math.isfinite(best) and best >= low:
            line.append((place + 1.0, best))
    if len(line) > 1:
        axes.draw_curve(Line("best so far", line, 2))
    _draw(axes, shown, num_folds)
    title = f"{name}: inner R2 of {len(scored)} points in order, and the best so far"
    hidden = len(scored) - len(shown)
    caption = "The line is the best complete point so far." + (
        f" {hidden} far lower are not drawn." if hidden else ""
    )
    return f"<figure>{axes.svg(title)}<figcaption>{caption}</figcaption></figure>"


def _by_value(name: str, key: str, scored: list[Tried], num_folds: int) -> str:
    """Draw the score against one hyperparameter; empty where it does not vary or is no number."""
    values: list[Any] = [point.values.get(key) for point in scored]
    numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in values]
    if len(set(map(str, values))) < 2:
        return ""
    low, high = _limits(scored)
    label = key
    if all(numbers):
        x = np.array(values, float)
        if x.min() > 0 and x.max() / x.min() > _WIDE:
            x, label = np.log10(x), f"log10 of {key}"
        axes = Axes((float(x.min()), float(x.max())), (low, high), (label, "inner R2"))
    else:
        kinds = sorted({str(v) for v in values})
        x = np.array([float(kinds.index(str(v))) for v in values])
        axes = Axes((-0.5, len(kinds) - 0.5), (low, high), (label, "inner R2"), categories=kinds)
    shown = [(float(a), p) for a, p in zip(x, scored, strict=True) if p.mean() >= low]
    _draw(axes, shown, num_folds)
    return f"<figure>{axes.svg(f'{name}: inner R2 by {label}')}</figure>"
