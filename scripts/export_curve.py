"""Write the curve of a pre-training run as a csv, thinned, and as a drawing.

    python scripts/export_curve.py run_dir=RUN csv=FILE svg=FILE

The csv has the training loss of every 20th step (mean over these steps) and every validation, the
drawing both, on logarithmic losses.
"""

import csv
import math
import statistics
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mips_dist.errors import MipsError, UsageError, guarded

EVERY = 20
TRAIN = "train_loss"
# Tag of the run -> column, label and colour of the drawing.
CURVES = {
    "train/loss": (TRAIN, "training", "#9aa5b1"),
    "val/loss": ("held_out_loss", "held out", "#1f5fa8"),
    "val/loss_topology": ("held_out_loss_topology", "held out, no descriptors", "#c4562f"),
    "val/class_entropy": ("class_entropy", "class entropy", "#5b8c3a"),
}
COLUMNS = ["step", *(column for column, _, _ in CURVES.values())]
WIDTH, HEIGHT = 650, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 26, 14, 40
TICKS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

Points = list[tuple[int, float]]


def read(run_dir: Path) -> dict[str, Points]:
    """Return the points of each column."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    if "train/loss" not in events.Tags()["scalars"]:
        raise MipsError(f"{run_dir} has no curve; give the run_dir of a pre-training run")
    found = {}
    for tag, (column, _, _) in CURVES.items():
        has = tag in events.Tags()["scalars"]
        found[column] = [(p.step, p.value) for p in events.Scalars(tag)] if has else []
    train = found[TRAIN]
    groups = [train[first : first + EVERY] for first in range(0, len(train), EVERY)]
    found[TRAIN] = [(group[-1][0], statistics.mean(v for _, v in group)) for group in groups]
    return found


def write_csv(points: dict[str, Points], path: Path) -> None:
    """Write one row for each step that has a number."""
    rows: dict[int, dict[str, str]] = {}
    for column, curve in points.items():
        for step, value in curve:
            rows.setdefault(step, {})[column] = f"{value:.5f}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": step, **rows[step]} for step in sorted(rows))


def draw(points: dict[str, Points]) -> str:
    """Return the drawing."""
    values = [value for curve in points.values() for _, value in curve]
    last = max(step for curve in points.values() for step, _ in curve)
    low, high = math.log(0.9 * min(values)), math.log(1.1 * max(values))

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log(value)) / (high - low)
        return round(x, 1), round(y, 1)

    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        "<title>Masked-atom loss of a pre-training run</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for tick in TICKS:
        if low <= math.log(tick) <= high:
            _, y = place(0, tick)
            parts.append(f'<path d="M{LEFT} {y}H{right}" stroke="#e3e6ea"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for quarter in range(5):
        x, _ = place(last * quarter / 4, values[0])
        parts.append(
            f'<text x="{x}" y="{floor + 16}" text-anchor="middle">{last * quarter // 4:,}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>'
    )
    parts.append(
        f'<text transform="translate(14 {(TOP + floor) / 2}) rotate(-90)" text-anchor="middle">'
        "nats per masked atom</text>"
    )
    shown = [(points[column], label, colour) for column, label, colour in CURVES.values()]
    for number, (curve, label, colour) in enumerate(shown):
        if not curve:
            continue
        line = " ".join(f"{x},{y}" for x, y in (place(*point) for point in curve))
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        y = TOP + 16 * (number + 1)
        parts.append(f'<path d="M{right - 176} {y}h20" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{right - 150}" y="{y + 4}">{label}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Read the arguments."""
    arguments = dict(text.partition("=")[::2] for text in sys.argv[1:])
    if set(arguments) != {"run_dir", "csv", "svg"}:
        raise UsageError("usage: python scripts/export_curve.py run_dir=RUN csv=FILE svg=FILE")
    points = read(Path(arguments["run_dir"]))
    write_csv(points, Path(arguments["csv"]))
    Path(arguments["svg"]).write_text(draw(points), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(guarded(main))
