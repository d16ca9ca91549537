"""Plan a job for this machine by `mips plan --rehearse`, do it, and compare.

    python scripts/plan_check.py [--polymers 3000] [--json FILE] [key=value ...]

Keys are those of `mips plan`. Polymers: the corpus of MIPS_DATA where it is set, else the glass
transition table. Wall times mean something on a quiet machine only; the load is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from bench_preprocess import corpus

from mips_dist.config import compose
from mips_dist.errors import guarded
from mips_dist.train import rehearsal
from mips_dist.train.plan_config import PlanConfig

DEFAULTS = ["model=small", "precision=fp32", "num_gpus=2", "global_batch_size=64"]
DEFAULTS += ["content=descriptors", "num_steps=300", "checkpoint_every=50", "validate_every=100"]
ROWS = {
    "wall_seconds": ("s by the clock", 1.0),
    "cpu_seconds": ("s of CPU time", 1.0),
    "disk_bytes": ("MB on disk", 1e6),
    "memory_bytes": ("MB of memory", 1e6),
}


def carry_out(config: PlanConfig, folder: Path, texts: list[str]) -> dict[str, rehearsal.Cost]:
    """Do the whole job and return what it took."""
    source, shards, run_dir = folder / "polymers.csv", folder / "shards", folder / "run"
    source.write_text("\n".join(["psmiles", *texts]) + "\n", encoding="utf-8")
    began = time.time()
    subprocess.run(rehearsal.preprocess_command(config, source, shards), check=True)
    prepared = rehearsal.preprocessing_cost(shards, time.time() - began)
    command = rehearsal.pretrain_command(
        config,
        f"shards={shards}",
        f"run_dir={run_dir}",
        f"num_steps={config.num_steps}",
        f"checkpoint_every={config.checkpoint_every}",
        f"validate_every={config.validate_every}",
    )
    began = time.time()
    process = subprocess.Popen(command)
    watched = rehearsal.watch(process)
    if process.returncode:
        raise SystemExit("pre-training failed")
    seconds = time.time() - began
    trained = rehearsal.pretraining_cost(config, run_dir, seconds, watched[-1][1])
    return {"preprocessing": prepared, "pre-training": trained}


def main() -> int:
    """Print predicted, seen and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--polymers", type=int, default=3000)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for mips plan")
    arguments = parser.parse_args()
    overrides = [*DEFAULTS, *arguments.overrides, f"polymers={arguments.polymers}"]
    config = compose(PlanConfig, "plan", overrides)
    texts = corpus(arguments.polymers)
    load = [os.getloadavg()[0]]
    rehearsed = rehearsal.rehearse(config, texts)
    load.append(os.getloadavg()[0])
    print("\n".join(rehearsal.describe(config, rehearsed)), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        seen = carry_out(config, Path(folder), texts)
    load.append(os.getloadavg()[0])
    planned = rehearsal.forecast(config, rehearsed)
    figures = []
    print(f"\n{'':32}{'predicted':>12}{'seen':>12}{'seen / predicted':>18}")
    for name, cost in planned.items():
        for key, (unit, size) in ROWS.items():
            expected, found = asdict(cost)[key] / size, asdict(seen[name])[key] / size
            row = {"what": f"{name}, {unit}", "predicted": expected, "seen": found}
            figures.append(row | {"ratio": found / expected})
            print(f"{row['what']:32}{expected:>12.1f}{found:>12.1f}{found / expected:>18.2f}")
    print(f"load of the machine before, between and after: {', '.join(f'{x:.1f}' for x in load)}")
    if arguments.json:
        text = json.dumps({"load": load, "rows": figures}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
