"""What a job takes on this machine: a small part of it is done, and the rest follows from that.

The real commands run in a temporary folder: preprocessing of some rows of the real input, spread
over it, and some steps of the real pre-training. Start-up, time for a polymer, time for a step, a
checkpoint and bytes are measured; only the numbers of polymers, steps and checkpoints are those of
the job.
"""

import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from mips_dist.errors import MipsError
from mips_dist.train.plan_config import PlanConfig
from mips_dist.train.timeline import read_sessions

# Rows that take some seconds to preprocess.
_ROWS = {"topology": 8_000, "descriptors": 1_500, "full": 400, "xtb": 60}
_STEPS, _CHECKPOINT_EVERY, _SETTLED = 24, 8, 3
_KEPT = 2  # checkpoints
# As the loader has them, see `data.loader` and `data.order`: polymers of two windows in memory,
# polymers to validate on, and bytes of one in memory (docs/gpu.md).
_IN_MEMORY, _MOST_HELD_OUT, _POLYMER_BYTES = 2 * 65_536, 20_000, 2_200
_HELD_OUT = 0.05
_POLL_SECONDS = 0.2
_PRETRAIN = Path(__file__).resolve().parents[1] / "pretrain.py"
_AS_IN_PRETRAINING = (
    "model", "zero", "precision", "global_batch_size", "micro_batch_size",
    "activation_checkpointing",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a command takes: seconds by the clock and of processors, bytes on disk and in memory."""

    wall_seconds: float
    cpu_seconds: float
    disk_bytes: float
    memory_bytes: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """Measured on a part of the job.

    Attributes
    ----------
    rows, actors
        Of the rehearsal of preprocessing.
    preprocessing, pretraining
        Costs of the two rehearsals.
    polymer_cpu_seconds, shard_bytes
        Of one polymer.
    start_seconds, step_seconds, checkpoint_seconds, end_seconds
        Of pre-training: until its first step begins, of a step, of a checkpoint, after the last.
    start_cpu_seconds, step_cpu_seconds
        Of all its processes.
    growth_bytes
        What a rank comes to hold more while its steps become e times as many: the longer it goes
        on, the larger the largest batch that it has met.
    """

    rows: int
    actors: int
    preprocessing: Cost
    pretraining: Cost
    polymer_cpu_seconds: float
    shard_bytes: float
    start_seconds: float
    step_seconds: float
    checkpoint_seconds: float
    end_seconds: float
    start_cpu_seconds: float
    step_cpu_seconds: float
    growth_bytes: float


def pretrain_command(config: PlanConfig, *overrides: str) -> list[str]:
    """Return the command that pre-trains as a plan says, on as many ranks."""
    values = asdict(config)
    settings = [
        text for name in _AS_IN_PRETRAINING for text in _overrides(name, values[name]) if text
    ]
    launcher = [sys.executable]
    if config.num_gpus > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc_per_node={config.num_gpus}"]
    return [*launcher, str(_PRETRAIN), *settings, *overrides]


def preprocess_command(config: PlanConfig, source: Path, output: Path) -> list[str]:
    """Return the command that makes the shards."""
    command = [sys.executable, "-m", "preprocess", f"input={source}", f"output={output}"]
    return [*command, f"content={config.content}"]


def rehearse(config: PlanConfig, texts: list[str]) -> Rehearsal:
    """Do a part of the job and measure it.

    Parameters
    ----------
    config
        What is planned; ``num_gpus`` ranks on this machine.
    texts
        P-SMILES of the input, all of them.
    """
    every = max(1, len(texts) // _ROWS[config.content])
    sample = texts[::every][: _ROWS[config.content]]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source, shards, run_dir = folder / "rows.csv", folder / "shards", folder / "run"
        with source.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([["psmiles"], *([text] for text in sample)])
        began = time.time()
        _run(preprocess_command(config, source, shards))
        prepared = preprocessing_cost(shards, time.time() - began)
        log = _log(shards)
        began = time.time()
        watched = _run(
            pretrain_command(
                config,
                f"shards={shards}",
                f"run_dir={run_dir}",
                f"num_steps={_STEPS}",
                f"checkpoint_every={_CHECKPOINT_EVERY}",
                f"validate_every={_STEPS}",
            )
        )
        ended = time.time()
        trained = pretraining_cost(config, run_dir, ended - began, watched[-1][1])
        [session] = read_sessions(run_dir, config.global_batch_size)
    stalls = [seconds for _, seconds in session.checkpoints.values()]
    first, last = (_cpu_at(watched, session.done[n]) for n in (session.first, session.last))
    actor_cpu = sum(share["cpu_seconds"] for share in log["actors"].values())
    return Rehearsal(
        rows=len(sample),
        actors=len(os.sched_getaffinity(0)),
        preprocessing=prepared,
        pretraining=trained,
        polymer_cpu_seconds=actor_cpu / len(sample),
        shard_bytes=prepared.disk_bytes / len(sample),
        start_seconds=session.began - began,
        step_seconds=session.seconds_per_step(),
        checkpoint_seconds=sum(stalls) / len(stalls),
        end_seconds=ended - session.checkpoints[_STEPS][0],
        start_cpu_seconds=first,
        step_cpu_seconds=max(0.0, last - first) / (session.last - session.first),
        growth_bytes=_growth(session.memory),
    )


def forecast(config: PlanConfig, rehearsal: Rehearsal) -> dict[str, Cost]:
    """Return the cost of preprocessing and of pre-training, by name."""
    prepared, trained = rehearsal.preprocessing, rehearsal.pretraining
    more = config.polymers - rehearsal.rows
    work = rehearsal.polymer_cpu_seconds * more
    preprocessing = Cost(
        wall_seconds=prepared.wall_seconds + work / rehearsal.actors,
        cpu_seconds=prepared.cpu_seconds + work,
        disk_bytes=rehearsal.shard_bytes * config.polymers,
        memory_bytes=prepared.memory_bytes,
    )
    # A forward pass is a third of a step, and validation makes two where there are descriptors.
    held_out = min(_MOST_HELD_OUT, _HELD_OUT * config.polymers)
    passes = 1 if config.content == "topology" else 2
    validation = passes * held_out / config.global_batch_size / 3  # in steps
    steps = config.num_steps + validation * -(-config.num_steps // config.validate_every)
    checkpoints = -(-config.num_steps // config.checkpoint_every)
    more_steps = max(1.0, config.num_steps / _STEPS)
    grown = config.num_gpus * rehearsal.growth_bytes * math.log(more_steps)
    held = min(config.polymers, _IN_MEMORY) * _POLYMER_BYTES * config.num_gpus
    pretraining = Cost(
        wall_seconds=rehearsal.start_seconds
        + steps * rehearsal.step_seconds
        + checkpoints * rehearsal.checkpoint_seconds
        + rehearsal.end_seconds,
        cpu_seconds=rehearsal.start_cpu_seconds + steps * rehearsal.step_cpu_seconds,
        disk_bytes=trained.disk_bytes,
        memory_bytes=trained.memory_bytes + held + grown,
    )
    return {"preprocessing": preprocessing, "pre-training": pretraining}


def preprocessing_cost(shards: Path, wall_seconds: float) -> Cost:
    """Return what the last run of preprocessing took, from its own log."""
    log = _log(shards)
    shares = log["actors"].values()
    return Cost(
        wall_seconds=wall_seconds,
        cpu_seconds=log["driver"]["cpu_seconds"] + sum(share["cpu_seconds"] for share in shares),
        disk_bytes=_bytes(shards),
        memory_bytes=log["driver"]["max_rss_bytes"] + sum(s["max_rss_bytes"] for s in shares),
    )


def pretraining_cost(
    config: PlanConfig, run_dir: Path, wall_seconds: float, cpu_seconds: float
) -> Cost:
    """Return what a finished run took; memory of all ranks, each taken to be like rank 0."""
    sessions = read_sessions(run_dir, config.global_batch_size)
    return Cost(
        wall_seconds=wall_seconds,
        cpu_seconds=cpu_seconds,
        disk_bytes=_bytes(run_dir),
        memory_bytes=config.num_gpus * max(session.memory_bytes for session in sessions),
    )


def describe(config: PlanConfig, rehearsal: Rehearsal) -> list[str]:
    """Return the lines of a plan for this machine."""
    r = rehearsal
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    lines = [
        f"this machine: {cores} cores, {config.num_gpus} ranks; measured on {r.rows:,} rows of the "
        f"input and {_STEPS} steps",
        "",
        f"{'':16}{'wall time':>12}{'CPU time':>12}{'disk':>12}{'memory':>12}",
    ]
    for name, cost in forecast(config, rehearsal).items():
        lines.append(
            f"{name:16}{_seconds(cost.wall_seconds):>12}{_seconds(cost.cpu_seconds):>12}"
            f"{cost.disk_bytes / 1e9:>9.3g} GB{cost.memory_bytes / 1e9:>9.3g} GB"
        )
    lines += [
        "",
        "Measured here:",
        f"- a polymer: {1e3 * r.polymer_cpu_seconds:.3g} ms of CPU time, {r.shard_bytes:,.0f} "
        f"bytes, content={config.content}; {r.actors} actors",
        f"- pre-training: {r.start_seconds:.1f} s to its first step, {1e3 * r.step_seconds:.4g} "
        f"ms a step ({1e3 * r.step_cpu_seconds:.4g} ms of CPU time), "
        f"{1e3 * r.checkpoint_seconds:.3g} ms a checkpoint, {r.end_seconds:.1f} s at the end",
        "Assumed:",
        f"- the job: {config.polymers:,} polymers like those, {config.num_steps:,} steps of "
        f"{config.global_batch_size:,}, a checkpoint every {config.checkpoint_every} steps, a "
        f"validation every {config.validate_every}",
        "- validation: a third of a step's time for each held-out polymer, twice with descriptors",
        f"- memory: two windows of polymers a rank, {_POLYMER_BYTES:,} bytes each; "
        f"{r.growth_bytes / 1e6:.0f} MB more a rank whenever its steps are e times as many",
    ]
    if load > cores / 2:
        lines.append(
            f"Other work keeps this machine busy (load {load:.1f} on {cores} cores): CPU times "
            "hold, wall times change with it"
        )
    return lines


def _overrides(name: str, value: Any) -> list[str]:
    """Return a value, or the values of a section, as texts of the command line."""
    if isinstance(value, dict):
        return [text for key, v in value.items() for text in _overrides(f"{name}.{key}", v)]
    if value is None or isinstance(value, bool):
        value = json.dumps(value)
    if isinstance(value, list):
        value = f"[{','.join(map(str, value))}]"
    return [f"{name}={value}"]


def _run(command: list[str]) -> list[tuple[float, float]]:
    """Run a command; return moments and the CPU seconds of all its processes until then."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        watched = watch(process)
        if process.returncode:
            log.seek(0)
            lines = [line for line in log.read().splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("error: ")] or lines[-1:]
            raise MipsError(f"the rehearsal failed: {' '.join(errors).removeprefix('error: ')}")
    return watched


def watch(process: "subprocess.Popen[Any]") -> list[tuple[float, float]]:
    """Wait for a process; return moments and the CPU seconds of its family until then."""
    watched = [(time.time(), 0.0)]
    root = psutil.Process(process.pid)
    spent: dict[int, float] = {}
    while process.poll() is None:
        try:
            for member in [root, *root.children(recursive=True)]:
                times = member.cpu_times()
                spent[member.pid] = times.user + times.system
        except psutil.NoSuchProcess:
            pass  # one that has just ended keeps what was seen of it
        watched.append((time.time(), sum(spent.values())))
        time.sleep(_POLL_SECONDS)
    return watched


def _growth(memory: dict[int, float]) -> float:
    """Return what was held more while the steps became e times as many; step -> the most held."""
    # What the first steps take once, such as the state of the optimizer, is no growth.
    first, last = min(step for step in memory if step >= _SETTLED), max(memory)
    return (memory[last] - memory[first]) / math.log(last / first)


def _cpu_at(watched: list[tuple[float, float]], when: float) -> float:
    """Return the CPU seconds at a moment, between the two that were looked at around it."""
    for (t0, c0), (t1, c1) in pairwise(watched):
        if t0 <= when <= t1:
            return c0 + (c1 - c0) * (when - t0) / (t1 - t0)
    return watched[-1][1]


def _log(shards: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads((shards / "log.json").read_text(encoding="utf-8"))["runs"][-1]
    return run


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
