"""The page of a pre-training run: curves, speed, checkpoints, and how it was made."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mips_dist.data.files import file_sha256
from mips_dist.errors import MipsError
from mips_dist.model.bundle import CONFIG as MODEL_CONFIG
from mips_dist.model.bundle import WEIGHTS
from mips_dist.page import document, escape, section, table
from mips_dist.use.report import origin, plots
from mips_dist.use.report.command import pretraining_command
from mips_dist.use.report.events import Curve, Events, read_events, thinned
from mips_dist.use.report.folder import CONFIG_FILE, read_config
from mips_dist.use.report.origin import duration, scrolling
from mips_dist.use.report.plots import Axes, Line, colour_keys

_MOST_ROWS = 25  # of the table of held-out numbers
_MOST_STARTS = 10


def pretraining_page(run_dir: Path) -> str:
    """Return the page of a run, finished or not.

    Raises
    ------
    MipsError
        A file is damaged; the run made no step.
    """
    config = read_config(run_dir / CONFIG_FILE, ("num_steps", "global_batch_size", "shards"))
    events = read_events(run_dir / "tensorboard")
    steps = events.curves.get("train/loss")
    if not steps:
        raise MipsError(f"{run_dir} has no finished step yet; make the page later")
    done, wanted = int(steps[-1][0]), int(config["num_steps"])
    lead = (
        '<p class="soft">Masked-atom pre-training of a polymer encoder.</p>'
        + _tiles(config, events, done)
        + (_unfinished(done, wanted) if done < wanted else "")
    )
    body = [
        _learning(events),
        _held_out(events),
        _speed(config, events),
        _checkpoints(run_dir),
        _origin(run_dir, config, events),
    ]
    footer = "This page loads nothing and runs no script. Numbers are from the run's events."
    name = escape(run_dir.resolve().name)
    style = plots.STYLE + origin.STYLE
    return document(f"Pre-training run: {name}", style, lead, filter(None, body), footer)


def _unfinished(done: int, wanted: int) -> str:
    return (
        f'<p class="notice"><b>Not finished:</b> {done:,} of {wanted:,} steps. '
        "The same command goes on.</p>"
    )


def _tiles(config: dict[str, Any], events: Events, done: int) -> str:
    tiles = [(f"{done:,}", "steps"), (f"{done * int(config['global_batch_size']):,}", "polymers")]
    for tag, what, digits in (
        ("val/loss", "loss, held out", 4),
        ("val/accuracy", "accuracy, held out", 3),
    ):
        if math.isfinite(events.last(tag)):
            tiles.append((f"{events.last(tag):.{digits}f}", what))
    speed = [y for _, y in events.curves.get("perf/polymers_per_s", [])]
    if speed:
        tiles.append((f"{np.median(speed):,.0f}", "polymers a second"))
    tiles.append((duration(events.seconds), "first to last step"))
    items = "".join(f"<li><b>{value}</b> {what}</li>" for value, what in tiles)
    return f'<ul class="tiles">{items}</ul>'


def _chart(
    title: str, label: str, named: Sequence[tuple[str, Curve, int]], log_y: bool = False
) -> str:
    """Draw curves of one quantity; name, points and colour of each. Empty without points."""
    lines = []
    for name, curve, colour in named:
        points = [(x, y) for x, y in thinned(curve) if y > 0 or not log_y]
        if points:
            lines.append(Line(name, points, colour))
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    axes = Axes((min(xs), max(xs)), (min(ys), max(ys)), ("step", label), log_y=log_y)
    for line in lines:
        axes.draw_curve(line)
        if len(line.points) <= 40:
            tips = [f"{line.name}, step {x:.0f}: {y:.4g}" for x, y in line.points]
            axes.draw_marks(line, tips)
    ends = "; ".join(f"{line.name} {line.points[-1][1]:.4g} at the end" for line in lines)
    keys = colour_keys([(line.name, line.colour) for line in lines]) if len(lines) > 1 else ""
    return f"<div><figure>{axes.svg(f'{title}: {ends}')}</figure>{keys}</div>"


def _learning(events: Events) -> str:
    curves = events.curves
    none: Curve = []
    charts = [
        _chart(
            "Loss by step",
            "loss, nats per masked atom",
            [
                ("training", curves.get("train/loss", none), 0),
                ("held out", curves.get("val/loss", none), 1),
                ("held out, without descriptors", curves.get("val/loss_topology", none), 2),
                ("frequencies of the elements alone", curves.get("val/class_entropy", none), 4),
            ],
            log_y=True,
        ),
        _chart(
            "Accuracy by step",
            "accuracy on masked atoms",
            [
                ("training", curves.get("train/accuracy", none), 0),
                ("held out", curves.get("val/accuracy", none), 1),
            ],
        ),
        _chart(
            "Gradient norm by step",
            "gradient norm before clipping",
            [("gradient norm", curves.get("train/grad_norm", none), 5)],
            log_y=True,
        ),
        _chart(
            "Learning rate by step",
            "learning rate, thousandths",
            [("learning rate", [(x, 1e3 * y) for x, y in curves.get("train/lr", none)], 6)],
        ),
    ]
    note = (
        "<p>Held-out polymers are never trained on. Training numbers have dropout and hidden "
        "descriptors, held-out ones have neither. Curves of many steps are means over "
        "stretches.</p>"
    )
    return section("Learning", note, f'<div class="pair">{"".join(charts)}</div>')


def _held_out(events: Events) -> str:
    loss = events.curves.get("val/loss")
    if not loss:
        return section("Held-out polymers", "<p>The run has not been validated yet.</p>")
    columns = {
        "#loss": "val/loss",
        "#without descriptors": "val/loss_topology",
        "#accuracy": "val/accuracy",
    }
    values = {name: dict(events.curves.get(tag, [])) for name, tag in columns.items()}
    every = -(-len(loss) // _MOST_ROWS)
    chosen = [loss[i][0] for i in range(len(loss)) if i % every == 0 or i == len(loss) - 1]
    rows = [
        (f"{step:.0f}", *(f"{v[step]:.4f}" if step in v else "" for v in values.values()))
        for step in chosen
    ]
    elements = {
        tag.removeprefix("val_element/"): curve[-1][1]
        for tag, curve in events.curves.items()
        if tag.startswith("val_element/") and curve
    }
    ordered = sorted(elements.items(), key=lambda item: (-item[1], item[0]))
    known = [(escape(name), f"{rate:.3f}") for name, rate in ordered if math.isfinite(rate)]
    parts = [scrolling(table("By step", ("step", *columns), rows))]
    if known:
        caption = "Share of the masked atoms of an element that are named, at the end"
        parts.append(scrolling(table(caption, ("element", "#accuracy"), known)))
    return section("Held-out polymers", f'<div class="pair">{"".join(parts)}</div>')


def _speed(config: dict[str, Any], events: Events) -> str:
    curves = events.curves
    none: Curve = []
    rate = [y for _, y in curves.get("perf/polymers_per_s", none) if y > 0]
    if not rate:
        return ""
    seconds = int(config["global_batch_size"]) / np.array(rate)
    wait = np.array([y for _, y in curves.get("perf/data_wait_fraction", none)] or [math.nan])
    low, middle, high = np.quantile(seconds, [0.05, 0.5, 0.95])
    facts = [
        ("time of a step, median", f"{1e3 * middle:,.1f} ms"),
        ("5 % of the steps are below, 5 % above", f"{1e3 * low:,.1f} ms, {1e3 * high:,.1f} ms"),
        ("first step", f"{1e3 * seconds[0]:,.1f} ms"),
        ("waiting for data, mean share of a step", f"{np.nanmean(wait):.2%}"),
        ("of the peak of the processor, median", _share(curves.get("perf/fraction_of_peak", none))),
        ("memory at the end", f"{events.last('perf/memory_gib'):.2f} GiB"),
    ]
    charts = [
        _chart(
            "Polymers a second by step",
            "polymers a second",
            [("speed", curves["perf/polymers_per_s"], 0)],
        ),
        _chart(
            "Data wait by step",
            "data wait, share of a step",
            [("data wait", curves.get("perf/data_wait_fraction", none), 3)],
        ),
    ]
    return section(
        "Speed",
        f'<div class="pair">{"".join(charts)}</div>',
        table("Steps of all ranks together", ("what", "#value"), facts),
    )


def _share(curve: Curve) -> str:
    return f"{np.median([y for _, y in curve]):.1%}" if curve else ""


def _checkpoints(run_dir: Path) -> str:
    rows = []
    for path in sorted((run_dir / "checkpoints").glob("*step-*")):
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        is_damaged = not path.name.startswith("step-")
        state = "damaged, set aside" if is_damaged else "whole when it was written"
        rows.append((f"<code>{escape(path.name)}</code>", state, f"{size / 1e6:,.1f} MB"))
    if not rows:
        return ""
    note = "<p>The newest two are kept; each is checked before it is used.</p>"
    whole = [row for row in rows if row[1].startswith("whole")]
    damaged = [row for row in rows if row not in whole]
    header = ("checkpoint", "state", "#size")
    parts = [table("Kept", header, whole)] if whole else []
    if damaged:
        inner = table("Damaged by a crash, and replaced by an earlier one", header, damaged)
        parts.append(f"<details><summary>{len(damaged)} damaged ones</summary>{inner}</details>")
    return section("Checkpoints", note, *parts)


def _origin(run_dir: Path, config: dict[str, Any], events: Events) -> str:
    hashes = [(f"configuration ({CONFIG_FILE})", file_sha256(run_dir / CONFIG_FILE))]
    model = run_dir / "model"
    if (model / WEIGHTS).is_file():
        hashes.append((f"weights (model/{WEIGHTS})", file_sha256(model / WEIGHTS)))
        hashes += _stored_sha256(model / MODEL_CONFIG)
    facts = [facts for _, facts in events.facts]
    text = origin.origin(
        pretraining_command(config),
        (run_dir / CONFIG_FILE).read_text(encoding="utf-8"),
        [facts[-1]] if facts else [],
        True,
        hashes,
        "the run",
    )
    starts = [step for step, _ in events.facts]
    if len(starts) > 1:
        named = ", ".join(f"{step:,}" for step in starts[-_MOST_STARTS:])
        last = f"the last {_MOST_STARTS} at steps" if len(starts) > _MOST_STARTS else "at steps"
        note = f"<p>The run was started {len(starts)} times, {last} {named}.</p>"
        text = text.replace("</h2>", f"</h2>{note}", 1)
    return text


def _stored_sha256(path: Path) -> list[tuple[str, str]]:
    """Return the sum that the model's own configuration states."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8")).get("weights_sha256")
    except (OSError, ValueError, AttributeError):
        return []
    return [(f"weights, as model/{path.name} states", str(stored))] if stored else []
