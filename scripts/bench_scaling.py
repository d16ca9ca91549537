"""Real training steps on 1 and 2 CPU ranks: time, bytes on the wire, and the model's error.

    python scripts/bench_scaling.py [--json FILE] [--presets debug small] [--bytes-of base]

Every ZeRO stage, fp32 and bf16, one thread a rank; launches of 1 and 2 ranks take turns over
--rounds. Seconds are CPU time of a rank, the mean over ranks; of all steps the lower quartile, for
neighbours on a shared machine make steps longer and never shorter. Where they hold the cores, the
clock says little; its shortest step is given beside.

Bytes are counted twice in the same step: the collectives that torch starts, turned into bytes that
a rank sends in a ring, and what the kernel says that its TCP sockets sent. gloo, the library of CPU
ranks, runs a reduce-scatter as an all-reduce, which the second count shows.

The predicted step of 2 ranks is `mips_dist.train.scaling`'s, fed with steps of 1 rank on the whole
and on half of the batch and with what collectives alone cost in the same process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from bench_pretrain import make_shards

from mips_dist.config import compose
from mips_dist.data.order import split
from mips_dist.data.reader import ShardReader
from mips_dist.data.shards import read_manifest
from mips_dist.train import pretraining, scaling
from mips_dist.train.plan import model_size, polymer_flops
from mips_dist.train.pretrain_config import PretrainConfig
from mips_dist.train.ranks import Ranks
from mips_dist.train.signals import StopSignal
from mips_dist.train.traffic import CollectiveCounter, sent_bytes, sent_since

SETUPS = [("fp32", stage) for stage in range(4)] + [("bf16", stage) for stage in (1, 2, 3)]
WARM_UP_STEPS = 2  # Adam makes its moments in the first, stage 3 knows its order after it
IMBALANCE_RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
IMBALANCE_BATCH = 1024


@dataclass
class Clocks:
    """CPU seconds of this process and seconds of the clock, started together."""

    cpu: float
    wall: float

    @classmethod
    def now(cls) -> "Clocks":
        """Read both."""
        return cls(time.process_time(), time.perf_counter())

    def since(self, start: "Clocks") -> tuple[float, float]:
        """Return CPU and clock seconds since ``start``."""
        return self.cpu - start.cpu, self.wall - start.wall


# ---- one launch


def measure(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Take steps with every setup, on one of the ranks of a launch."""
    ranks = pretraining.engine.start("fp32", 1, Path(folder) / ".build")
    rows = []
    batches = (
        [arguments.batch, arguments.batch // 2] if ranks.world_size == 1 else [arguments.batch]
    )
    for precision, stage in SETUPS:
        for batch in batches:
            overrides = [f"model={arguments.preset}", f"precision={precision}"]
            overrides += [f"zero.stage={stage}", f"global_batch_size={batch}", "num_steps=100"]
            overrides += [f"shards={arguments.shards}", f"run_dir={folder}", "num_threads=1"]
            row = steps_of(overrides, ranks, arguments.steps)
            rows.append({"precision": precision, "stage": stage, "batch": batch, **row})
    links = {}
    if ranks.world_size > 1:
        elements = rows[0]["parameters"]
        tensor, part = torch.zeros(elements * 2), torch.zeros(elements)
        links = {
            "nothing": collective(lambda: dist.all_reduce(torch.zeros(1))),
            "all_reduce": collective(lambda: dist.all_reduce(part)),
            "all_gather": collective(lambda: dist.all_gather_into_tensor(tensor, part)),
            "bytes": 4 * elements,  # that a rank sends in each of the two
        }
    return {"rows": rows, "links": links, "load": os.getloadavg()[0]}


def steps_of(overrides: list[str], ranks: Ranks, steps: int) -> dict[str, Any]:
    """Time some steps, then count the bytes of one more."""
    config = compose(PretrainConfig, "pretrain", overrides)
    run = pretraining.prepare(config, ranks)
    trainer = pretraining.build_engine(run)
    loader = pretraining.build_loader(run)
    feed = pretraining.open_feed(run, loader, 0)
    state = pretraining.TrainState()
    update_cpu: list[float] = []
    apply = trainer.step

    def timed(lr: float) -> Any:
        start = time.process_time()
        result = apply(lr)
        update_cpu.append(time.process_time() - start)
        return result

    trainer.step = timed  # type: ignore[method-assign]
    times = []
    with StopSignal() as stop:

        def step() -> None:
            pretraining.train_step(run, trainer, feed, state, stop, lambda: None)

        for number in range(WARM_UP_STEPS + steps):
            start = Clocks.now()
            step()
            if number >= WARM_UP_STEPS:
                times.append(Clocks.now().since(start))
        ranks.sum(0.0)  # an answer over the same sockets: what was sent before it has gone
        before = sent_bytes()
        with CollectiveCounter() as counted:
            step()
        ranks.sum(0.0)
        sent = sent_since(before)
    cpu, wall = zip(*times, strict=True)
    own = [*cpu, *wall, *update_cpu[WARM_UP_STEPS:-1], counted.wire_bytes(ranks.world_size), sent]
    mean = [total / ranks.world_size for total in ranks.sum(*own)]
    trainer.close()
    return {
        "parameters": model_size(run.model).parameters,
        "cpu": mean[:steps],
        "wall": mean[steps : 2 * steps],
        "update_cpu": mean[2 * steps : 3 * steps],
        "ring_bytes": mean[-2],
        "socket_bytes": mean[-1],
        "count": dict(counted.count),
        "num_bytes": dict(counted.num_bytes),
    }


def collective(run: Callable[[], Any]) -> tuple[float, float]:
    """Return CPU seconds (lower quartile) and the least clock seconds of a collective."""
    times = []
    for _ in range(20):
        start = Clocks.now()
        run()
        times.append(Clocks.now().since(start))
    return lower_quartile([cpu for cpu, _ in times]), min(wall for _, wall in times)


def lower_quartile(values: list[float]) -> float:
    """Return what a quarter of the values stays below."""
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def launch(arguments: list[str], num_ranks: int, folder: Path) -> dict[str, Any]:
    """Run this script on some ranks and return what rank 0 wrote."""
    file = folder / "measured.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={num_ranks}", __file__, "--measure", str(file), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    return json.loads(file.read_text(encoding="utf-8"))


# ---- all launches of a preset


def rows_of(launches: list[dict[str, Any]]) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Join the steps of all rounds: lower quartile of CPU time, the least of the clock."""
    joined = {}
    for row in launches[0]["rows"]:
        key = (row["precision"], row["stage"], row["batch"])
        same = [
            other
            for found in launches
            for other in found["rows"]
            if (other["precision"], other["stage"], other["batch"]) == key
        ]
        joined[key] = {
            **row,
            "cpu": lower_quartile([value for other in same for value in other["cpu"]]),
            "update_cpu": lower_quartile([v for other in same for v in other["update_cpu"]]),
            "wall": min(value for other in same for value in other["wall"]),
        }
    return joined


def predicted(
    preset: str, whole: dict[str, Any], half: dict[str, Any], launches: list[dict[str, Any]]
) -> dict[str, float]:
    """Return CPU and clock seconds of a step of 2 ranks, from 1 rank and bare collectives."""
    model = compose(PretrainConfig, "pretrain", [f"model={preset}"]).model
    size, flops = model_size(model), polymer_flops(model)
    precision, stage, batch = whole["precision"], whole["stage"], whole["batch"]
    bucket = compose(PretrainConfig, "pretrain", []).zero.bucket_elements
    traffic = [
        replace(part, kind="all_reduce") if part.kind == "reduce_scatter" else part  # gloo
        for part in scaling.collectives(size, stage, precision, 1, bucket)
    ]
    seconds = {}
    for clock, place in (("cpu", 0), ("wall", 1)):
        join = statistics.median if clock == "cpu" else min
        cost = {
            kind: join(found["links"][kind][place] for found in launches)
            for kind in ("nothing", "all_reduce", "all_gather")
        }
        sent = launches[0]["links"]["bytes"]
        rate = 2 * sent / (cost["all_reduce"] + cost["all_gather"] - 2 * cost["nothing"])
        polymer = max(1e-9, (whole[clock] - half[clock]) / (batch / 2))
        fixed = max(0.0, half[clock] - polymer * batch / 2 - whole["update_cpu"])
        step = scaling.step_time(
            flops,
            size,
            traffic,
            scaling.Device(
                flops_per_s=flops / polymer,
                overhead=fixed,
                memory_bytes_per_s=size.parameters * scaling.ADAM_BYTES / whole["update_cpu"],
                polymers_per_s=float("inf"),  # the loader's time is in the products' here
                overlaps=False,
            ),
            scaling.Links(ranks_per_node=2, inside=rate, between=rate, latency=cost["nothing"]),
            stage=stage,
            num_ranks=2,
            grad_accum_steps=1,
            micro_batch_size=batch // 2,
        )
        seconds[clock] = step.total
        seconds[f"{clock}_communication"] = step.communication
        seconds[f"{clock}_rate"] = rate
        seconds[f"{clock}_latency"] = cost["nothing"]
    return seconds


def report(preset: str, one: list[dict[str, Any]], two: list[dict[str, Any]]) -> list[dict]:
    """Print the table of a preset and return its rows."""
    alone, both = rows_of(one), rows_of(two)
    loads = [found["load"] for found in (*one, *two)]
    rows = []
    for (precision, stage, batch), row in both.items():
        whole, half = alone[precision, stage, batch], alone[precision, stage, batch // 2]
        expected = predicted(preset, whole, half, two)
        rows.append(
            {
                "preset": preset,
                **row,
                "cpu_1": whole["cpu"],
                "wall_1": whole["wall"],
                "cpu_half": half["cpu"],
                "wall_half": half["wall"],
                "predicted": expected,
                "load": [min(loads), max(loads)],
            }
        )
    first = rows[0]
    print(
        f"\n{preset}: {first['parameters']:,} parameters, {first['batch']} polymers a step, load "
        f"{min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores\n"
        f"all-reduce and all-gather: {first['predicted']['cpu_rate'] / 1e9:.2f} GB a CPU-second, "
        f"{first['predicted']['wall_rate'] / 1e9:.2f} GB/s by the clock; "
        f"{1e3 * first['predicted']['cpu_latency']:.2f} CPU-ms and "
        f"{1e3 * first['predicted']['wall_latency']:.2f} ms each\n"
        "CPU-ms of a rank and step     1 rank  2 ranks  model  error |  clock, least:  1 rank  "
        "2 ranks   model   error"
    )
    for row in rows:
        model = row["predicted"]
        print(
            f"{row['precision']} stage {row['stage']}            "
            f"{1e3 * row['cpu_1']:>12.1f}{1e3 * row['cpu']:>9.1f}{1e3 * model['cpu']:>7.1f}"
            f"{model['cpu'] / row['cpu'] - 1:>7.0%} |"
            f"{1e3 * row['wall_1']:>23.1f}{1e3 * row['wall']:>9.1f}{1e3 * model['wall']:>8.1f}"
            f"{model['wall'] / row['wall'] - 1:>8.0%}"
        )
    print_bytes(preset, rows)
    return rows


def print_bytes(preset: str, rows: list[dict[str, Any]]) -> None:
    """Print what a rank sends in a step: model, collectives, sockets."""
    model = compose(PretrainConfig, "pretrain", [f"model={preset}"])
    size = model_size(model.model)
    print("MB sent by a rank and step    model    ring  sockets  collectives (MB of whole tensors)")
    for row in rows:
        traffic = scaling.collectives(
            size, row["stage"], row["precision"], 1, model.zero.bucket_elements
        )
        kinds = ", ".join(
            f"{row['count'][kind]} {kind} ({row['num_bytes'][kind] / 1e6:.2f})"
            for kind in row["count"]
        )
        print(
            f"{row['precision']} stage {row['stage']}           "
            f"{sum(part.wire_bytes(2) for part in traffic) / 1e6:>12.2f}"
            f"{row['ring_bytes'] / 1e6:>8.2f}{row['socket_bytes'] / 1e6:>9.2f}  {kinds}"
        )


def imbalance(shards: str) -> list[dict[str, float]]:
    """Return by how much the slowest rank's atoms exceed the mean, over ten steps of a batch."""
    sizes = ShardReader(shards, read_manifest(shards).shards, groups=[]).num_atoms
    rng = np.random.default_rng(0)
    batch = min(IMBALANCE_BATCH, len(sizes))
    rows = []
    for num_ranks in IMBALANCE_RANKS:
        if batch % num_ranks:
            continue
        excess = []
        for _ in range(10):
            step = rng.choice(sizes, batch, replace=False)
            parts = [split(np.arange(batch), step, num_ranks, 1, r)[0] for r in range(num_ranks)]
            atoms = np.array([step[part].sum() for part in parts])
            excess.append(atoms.max() / atoms.mean() - 1)
        rows.append(
            {
                "ranks": num_ranks,
                "polymers_per_rank": batch // num_ranks,
                "excess": float(np.mean(excess)),
                "model": scaling.imbalance(batch // num_ranks),
            }
        )
    print(f"\nslowest rank over the mean, in atoms, {batch} polymers a step")
    for row in rows:
        print(f"{row['ranks']:>6} ranks: {row['excess']:>8.2%}, model {row['model']:>8.2%}")
    return rows


def main() -> int:
    """Measure, print, and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--presets", nargs="*", default=["debug", "small"], help="timed")
    parser.add_argument("--bytes-of", nargs="*", default=["base"], help="counted only")
    parser.add_argument("--batch", type=int, default=128, help="polymers of a step")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a setup and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", default="", help="use these shards instead of making some")
    parser.add_argument("--preset", default="", help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if arguments.measure:
            found = measure(arguments, name)
            if dist.get_rank() == 0:
                arguments.measure.write_text(json.dumps(found), encoding="utf-8")
            pretraining.engine.leave(0)
        folder = Path(name)
        shards = arguments.shards or make_shards(folder, IMBALANCE_BATCH)
        result: dict[str, Any] = {"rows": [], "bytes": []}
        for preset in arguments.presets:
            given = ["--preset", preset, "--shards", shards, "--batch", str(arguments.batch)]
            given += ["--steps", str(arguments.steps)]
            launches: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
            for _ in range(arguments.rounds):
                for num_ranks, found in launches.items():
                    found.append(launch(given, num_ranks, folder))
            result["rows"] += report(preset, launches[1], launches[2])
        for preset in arguments.bytes_of:
            given = ["--preset", preset, "--shards", shards, "--batch", "4", "--steps", "2"]
            rows = launch(given, 2, folder)["rows"]
            print(f"\n{preset}: {rows[0]['parameters']:,} parameters")
            print_bytes(preset, rows)
            result["bytes"] += [{"preset": preset, **row} for row in rows]
        result["imbalance"] = imbalance(shards)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
