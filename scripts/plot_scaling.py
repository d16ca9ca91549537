"""Predicted efficiency of 1 to 1,024 GPUs for three presets: docs/scaling.svg, and its table.

    python scripts/plot_scaling.py [key=value ...] > docs/scaling.svg
    python scripts/plot_scaling.py --table [key=value ...]

Keys are those of `mips plan`. Full lines: the paper's batch of 1,024; dashed: 16 times as large.
"""

import math
import sys

from mips_dist.config import compose
from mips_dist.errors import guarded
from mips_dist.train.plan import model_size, scan
from mips_dist.train.plan_config import PlanConfig
from mips_dist.train.zero import choose_stage

PRESETS = {"base": "#1f77b4", "large": "#d95f02", "xl": "#3a923a"}
BATCHES = {1_024: "", 16_384: "6 4"}  # dashes
WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 90, 16, 44
LAST = 10  # log2 of the most GPUs


def place(num_gpus: int, efficiency: float) -> tuple[float, float]:
    """Return where a point lies, in pixels."""
    x = LEFT + math.log2(num_gpus) / LAST * (WIDTH - LEFT - RIGHT)
    return x, TOP + (1 - efficiency) * (HEIGHT - TOP - BOTTOM)


def axes() -> list[str]:
    """Return the grid and its labels."""
    lines = []
    for power in range(LAST + 1):
        x, y = place(2**power, 0)
        lines.append(f'<path class="grid" d="M{x:.1f} {y:.1f}V{TOP}"/>')
        lines.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{2**power}</text>')
    for percent in range(0, 101, 25):
        x, y = place(1, percent / 100)
        lines.append(f'<path class="grid" d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT}"/>')
        lines.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">GPUs</text>')
    return lines


def predictions(overrides: list[str]) -> dict[tuple[str, int, int], dict[int, tuple[float, float]]]:
    """Return seconds of a step and efficiency by GPUs, for each preset, its stage, and batch."""
    found = {}
    for preset in PRESETS:
        config = compose(PlanConfig, "plan", [f"model={preset}", *overrides])
        size = model_size(config.model)
        stage, _ = choose_stage(config.zero, config.precision, size.parameters)
        for batch in BATCHES:
            rows = scan(config, size, stage, batch)
            found[preset, stage, batch] = {row[0]: (row[2].total, row[3]) for row in rows}
    return found


def table(overrides: list[str]) -> list[str]:
    """Return a table in Markdown: ms of a step, and efficiency."""
    found = predictions(overrides)
    names = [f"{preset}, stage {stage}, batch {batch:,}" for preset, stage, batch in found]
    lines = ["| GPUs | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for num_gpus in (2**power for power in range(LAST + 1)):
        cells = []
        for curve in found.values():
            seconds, efficiency = curve[num_gpus]
            cells.append(f"{1e3 * seconds:,.{1 if seconds < 0.1 else 0}f} ms, {efficiency:.0%}")
        lines.append(f"| {num_gpus} | " + " | ".join(cells) + " |")
    return lines


def curves(overrides: list[str]) -> list[str]:
    """Return a line for each preset and batch, and the legend."""
    lines = []
    found = predictions(overrides)
    for (preset, _, batch), curve in found.items():
        points = [place(num_gpus, efficiency) for num_gpus, (_, efficiency) in curve.items()]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        style = f'stroke="{PRESETS[preset]}" stroke-dasharray="{BATCHES[batch]}"'
        lines.append(f'<path {style} d="M{path}"/>')
    stages = {preset: stage for preset, stage, _ in found}
    for number, (preset, stage) in enumerate(stages.items()):
        x, y = WIDTH - RIGHT + 10, TOP + 14 + 20 * number
        text = f"{preset}, stage {stage}"
        lines.append(f'<text x="{x}" y="{y}" fill="{PRESETS[preset]}">{text}</text>')
    return lines


def main() -> None:
    """Print the picture or the table."""
    if sys.argv[1:2] == ["--table"]:
        print("\n".join(table(sys.argv[2:])))
        return
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">\n'
        "<style>text{font:12px sans-serif}path{fill:none;stroke-width:2}"
        ".grid{stroke:#ccc;stroke-width:1}</style>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    )
    print("\n".join([*axes(), *curves(sys.argv[1:])]))
    print("</svg>")


if __name__ == "__main__":
    sys.exit(guarded(main))
