"""The whole job simulated, 1 M to 1 B polymers on 1 to 1,024 GPUs: docs/cluster_scaling.svg.

    python scripts/plot_cluster.py [key=value ...] > docs/cluster_scaling.svg
    python scripts/plot_cluster.py --table [key=value ...]

Keys are those of `mips plan`, which prints what all of it rests on. Twenty epochs, as in the paper,
in batches of 16,384. Full lines: pre-training; dashed: preprocessing on the machines of the GPUs.
"""

import math
import sys
from dataclasses import replace

from plot_scaling import HEIGHT, LEFT, RIGHT, TOP, WIDTH

from mips_dist.config import compose
from mips_dist.errors import guarded
from mips_dist.train import cluster
from mips_dist.train.batch_plan import plan_batches
from mips_dist.train.plan import largest_micro_batch, model_size, predict
from mips_dist.train.plan_config import PlanConfig
from mips_dist.train.scaling import ModelSize
from mips_dist.train.zero import choose_stage

EPOCHS = 20
BATCH = 16_384
CORPORA = {10**6: "#1f77b4", 10**7: "#3a923a", 10**8: "#d95f02", 10**9: "#7b3294"}
GPUS = [2**power for power in range(11)]
MOST, LEAST = 4, -3  # log10 of hours
BOTTOM = HEIGHT - 44


def job(
    base: PlanConfig, size: ModelSize, polymers: int, num_gpus: int
) -> tuple[PlanConfig, float]:
    """Return the plan of twenty epochs, and the seconds of its step."""
    steps = math.ceil(EPOCHS * polymers / BATCH)
    config = replace(base, polymers=polymers, num_gpus=num_gpus, num_steps=steps)
    stage, _ = choose_stage(config.zero, config.precision, size.parameters)
    batches = plan_batches(BATCH, 0, num_gpus, largest_micro_batch(config))
    return config, predict(config, size, stage, batches).total


def table(base: PlanConfig, size: ModelSize) -> list[str]:
    """Return a table in Markdown: hours of preprocessing and of pre-training."""
    lines = [
        "| GPUs | " + " | ".join(f"{polymers:,} polymers" for polymers in CORPORA) + " |",
        "|---" * (len(CORPORA) + 1) + "|",
    ]
    for num_gpus in GPUS[::2]:
        cells = []
        for polymers in CORPORA:
            config, seconds = job(base, size, polymers, num_gpus)
            _, prepared = cluster.preprocessing_hours(config)
            trained = cluster.run_hours(config, size, seconds)
            cells.append(f"{prepared:.2g} + {trained:.3g} h")
        lines.append(f"| {num_gpus:,} | " + " | ".join(cells) + " |")
    return lines


def place(num_gpus: int, hours: float) -> str:
    """Return where a point lies, in pixels."""
    x = LEFT + math.log2(num_gpus) / (len(GPUS) - 1) * (WIDTH - LEFT - RIGHT)
    y = BOTTOM - (math.log10(hours) - LEAST) / (MOST - LEAST) * (BOTTOM - TOP)
    return f"{x:.1f} {y:.1f}"


def picture(base: PlanConfig, size: ModelSize) -> list[str]:
    """Return grid, lines and legend."""
    lines = []
    for num_gpus in GPUS:
        x, y = place(num_gpus, 10.0**LEAST).split()
        lines.append(f'<path class="grid" d="M{x} {y}V{TOP}"/>')
        lines.append(f'<text x="{x}" y="{BOTTOM + 16}" text-anchor="middle">{num_gpus}</text>')
    for power in range(LEAST, MOST + 1):
        x, y = place(1, 10.0**power).split()
        lines.append(f'<path class="grid" d="M{x} {y}H{WIDTH - RIGHT}"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y}" text-anchor="end">{10.0**power:g} h</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">GPUs</text>')
    for number, (polymers, color) in enumerate(CORPORA.items()):
        jobs = {num_gpus: job(base, size, polymers, num_gpus) for num_gpus in GPUS}
        trained = [place(n, cluster.run_hours(c, size, s)) for n, (c, s) in jobs.items()]
        prepared = [place(n, cluster.preprocessing_hours(c)[1]) for n, (c, _) in jobs.items()]
        for points, dashes in ((trained, ""), (prepared, "6 4")):
            path = "L".join(points)
            lines.append(f'<path stroke="{color}" stroke-dasharray="{dashes}" d="M{path}"/>')
        text = f"{polymers // 10**6:,} M"
        y = TOP + 14 + 20 * number
        lines.append(f'<text x="{WIDTH - RIGHT + 10}" y="{y}" fill="{color}">{text}</text>')
    return lines


def main() -> None:
    """Print the picture or the table."""
    is_table = sys.argv[1:2] == ["--table"]
    overrides = sys.argv[2:] if is_table else sys.argv[1:]
    defaults = ["model=base", f"global_batch_size={BATCH}", "content=descriptors"]
    base = compose(PlanConfig, "plan", [*defaults, *overrides])
    size = model_size(base.model)
    if is_table:
        print("\n".join(table(base, size)))
        return
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">\n'
        "<style>text{font:12px sans-serif}path{fill:none;stroke-width:2}"
        ".grid{stroke:#ccc;stroke-width:1}</style>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    )
    print("\n".join(picture(base, size)))
    print("</svg>")


if __name__ == "__main__":
    sys.exit(guarded(main))
