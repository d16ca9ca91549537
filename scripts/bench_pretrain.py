"""Speed of a whole pre-training step against the machine's own matrix products.

One process for each precision, one thread, CPU time. Floor: the median rate of a 2048^3 product in
the same process and precision (on a GPU 8192^3, as a smaller one does not fill it). Work: three
times the forward of the real tokens (once forward, twice backward); padding, softmax, norms and
dropout are no work. Step: the one of training, with loader, masks, forward, backward, clipping and
optimizer, dropout on. Polymers: the corpus of MIPS_DATA where it is set, else the glass transition
table. On a GPU the same steps are timed by the wall clock.

    python scripts/bench_pretrain.py [--json FILE] [--preset base] [--steps 8] [--batch 128]
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from bench_preprocess import corpus

from mips_dist.config import compose
from mips_dist.train import pretraining
from mips_dist.train.flops import forward_flops, own_clock
from mips_dist.train.flops import matmul_rate as floor_rate
from mips_dist.train.pretrain_config import PretrainConfig
from mips_dist.train.signals import StopSignal

WARM_UP_STEPS = {"cpu": 2, "cuda": 20}  # Adam makes its moments; a GPU's layers are compiled
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True)
class Row:
    """One line of the report; rates are medians over steps."""

    preset: str
    precision: str
    device: str
    polymers_per_cpu_s: float  # on a GPU: per second
    fraction_of_floor: float
    floor_gflop_per_s: float
    gflop_per_polymer: float
    data_wait_fraction: float
    peak_memory_bytes: int


def measure(shards: str, run_dir: str, preset: str, precision: str, steps: int, batch: int) -> Row:
    """Take real training steps in this process."""
    overrides = [f"model={preset}", f"precision={precision}", f"global_batch_size={batch}"]
    overrides += [f"shards={shards}", f"run_dir={run_dir}", "num_threads=1", "num_steps=100000"]
    config = compose(PretrainConfig, "pretrain", overrides)
    ranks = pretraining.engine.start(precision, 1, Path(run_dir) / ".build")
    on_gpu = ranks.device.type == "cuda"

    clock = own_clock(ranks.device)
    run = pretraining.prepare(config, ranks)
    trainer = pretraining.build_engine(run)
    loader = pretraining.build_loader(run)
    feed = pretraining.open_feed(run, loader, 0)
    replay = pretraining.build_replay(run, trainer)
    state = pretraining.TrainState()
    seconds, waits, work, floors = [], [], [], []
    pending: pretraining.PendingReport | None = None

    def settle() -> None:
        # As in training: a GPU has its next step before it is asked about the last.
        if pending is not None:
            pending.read()

    group = 1 if not on_gpu else max(1, steps // 5)  # steps between two looks at the clock
    with StopSignal() as stop:
        for _ in range(WARM_UP_STEPS[ranks.device.type]):
            pending = pretraining.train_step(run, trainer, feed, state, stop, settle, replay)
        for _ in range(steps // group):
            floors.append(floor_rate(DTYPES[precision], clock, ranks.device))
            flops, wait = 0.0, 0.0
            start = clock()
            for _ in range(group):
                pending = pretraining.train_step(run, trainer, feed, state, stop, settle, replay)
                flops += 3 * sum(forward_flops(run.model, batch) for batch in pending.batches)
                wait += pending.data_wait / pending.seconds
            seconds.append((clock() - start) / group)
            waits.append(wait / group)
            work.append(flops / group)
    floor = statistics.median(floors)
    memory = (
        torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return Row(
        preset=preset,
        precision=precision,
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        polymers_per_cpu_s=batch / statistics.median(seconds),
        fraction_of_floor=statistics.median(w / s for w, s in zip(work, seconds, strict=True))
        / floor,
        floor_gflop_per_s=floor / 1e9,
        gflop_per_polymer=statistics.mean(work) / batch / 1e9,
        data_wait_fraction=statistics.median(waits),
        peak_memory_bytes=memory,
    )


def main() -> int:
    """Make shards, measure each precision in a process of its own, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128, help="polymers of a step")
    parser.add_argument("--polymers", type=int, default=1024, help="polymers of the data set")
    parser.add_argument("--shards", default="", help="use these shards instead of making some")
    parser.add_argument("--measure", nargs=2, metavar=("PRECISION", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.measure:
            precision, file = arguments.measure
            row = measure(
                arguments.shards,
                folder,
                arguments.preset,
                precision,
                arguments.steps,
                arguments.batch,
            )
            Path(file).write_text(json.dumps(asdict(row)), encoding="utf-8")
            return 0
        shards = arguments.shards or make_shards(Path(folder), arguments.polymers)
        rows = []
        for precision in ("fp32", "bf16"):
            file = Path(folder) / f"{precision}.json"
            command = [sys.executable, __file__, "--measure", precision, str(file)]
            command += ["--preset", arguments.preset, "--steps", str(arguments.steps)]
            command += ["--batch", str(arguments.batch), "--shards", shards]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            rows.append(json.loads(file.read_text(encoding="utf-8")))
    for row in rows:
        print(
            f"{row['preset']} {row['precision']} {row['device']}: "
            f"{row['polymers_per_cpu_s']:.1f} polymers/s, {row['fraction_of_floor']:.0%} of "
            f"{row['floor_gflop_per_s']:.0f} GFLOP/s, data wait {row['data_wait_fraction']:.1%}, "
            f"peak memory {row['peak_memory_bytes'] / 2**20:.0f} MiB"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def make_shards(folder: Path, num_polymers: int, *overrides: str) -> str:
    """Preprocess polymers, with everything that the model reads where nothing else is said."""
    source = folder / "polymers.csv"
    with source.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["psmiles"])
        writer.writerows([text] for text in corpus(num_polymers))
    output = str(folder / "shards")
    command = [sys.executable, "-m", "preprocess", f"input={source}", f"output={output}"]
    subprocess.run([*command, *overrides], check=True)
    return output


if __name__ == "__main__":
    sys.exit(main())
