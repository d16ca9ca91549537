"""Start processes as a user would: plain python, torchrun, the DeepSpeed launcher."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.shard_folder import write_shards

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = ROOT / "mips_dist" / "pretrain.py"
WORKERS = Path(__file__).with_name("workers.py")

# A run that takes seconds: model=debug on 120 polymers, ten steps, dropout on.
TINY = (
    "model=debug",
    "num_steps=10",
    "global_batch_size=16",
    "micro_batch_size=4",
    "checkpoint_every=4",
    "validate_every=5",
    "held_out_fraction=0.1",
    "num_threads=1",
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """The caller's environment without what a launcher would set."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")
    kept = {k: v for k, v in os.environ.items() if k not in launcher}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def command(script: Path, *arguments: str, ranks: int = 1) -> list[str]:
    """One rank: plain python. More: torchrun on a port of its own."""
    if ranks == 1:
        return [sys.executable, str(script), *arguments]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*run, f"--nproc_per_node={ranks}", str(script), *arguments]


def execute(argv: list[str], timeout: float = 240) -> Outcome:
    done = subprocess.run(
        argv, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def pretrain(*arguments: str, ranks: int = 1) -> Outcome:
    return execute(command(PRETRAIN, *TINY, *arguments, ranks=ranks))


def work(tasks: str, folder: Path, ranks: int) -> dict[str, Any]:
    """Run tasks ("a+b") of workers.py on some ranks; return what rank 0 wrote of each."""
    outcome = execute(command(WORKERS, tasks, str(folder), ranks=ranks))
    assert outcome.code == 0, outcome.out + outcome.err
    return {task: json.loads((folder / f"{task}.json").read_text()) for task in tasks.split("+")}


def curve(run_dir: Path, tag: str = "train/loss") -> dict[int, float]:
    """Read a scalar as TensorBoard shows it: step -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    points = events.Scalars(tag)
    assert len({p.step for p in points}) == len(points), "a step is drawn twice"
    return {point.step: point.value for point in points}


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards without descriptors."""
    return write_shards(tmp_path_factory.mktemp("shards") / "topology")


@pytest.fixture(scope="session")
def full_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with (invented) descriptors."""
    return write_shards(tmp_path_factory.mktemp("shards") / "full", content="full")
