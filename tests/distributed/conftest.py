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


def events(folder: Path, is_page: bool = False) -> Any:
    """Read event files; ``is_page``: as TensorBoard does, which finds texts among the tensors."""
    from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator

    module = plugin_event_accumulator if is_page else event_accumulator
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return module.EventAccumulator(str(folder), size_guidance=everything).Reload()


def curve(run_dir: Path, tag: str = "train/loss", folder: str = "tensorboard") -> dict[int, float]:
    """Read a scalar as TensorBoard shows it: step -> value."""
    points = events(run_dir / folder).Scalars(tag)
    steps = [point.step for point in points]
    assert steps == sorted(set(steps)), f"{tag} goes back, or a step is drawn twice: {steps}"
    return {point.step: point.value for point in points}


def tags(run_dir: Path) -> list[str]:
    """List the scalars."""
    return sorted(events(run_dir / "tensorboard").Tags()["scalars"])


def texts(run_dir: Path) -> list[Any]:
    """Read what the page of texts shows of the run."""
    return events(run_dir / "tensorboard", is_page=True).Tensors("run/text_summary")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards without descriptors."""
    return write_shards(tmp_path_factory.mktemp("shards") / "topology")


@pytest.fixture(scope="session")
def full_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with (invented) descriptors."""
    return write_shards(tmp_path_factory.mktemp("shards") / "full", content="full")
