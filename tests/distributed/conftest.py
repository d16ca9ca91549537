"""Start processes as a user would: plain python, torchrun, the DeepSpeed launcher."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
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


def deepspeed(*arguments: str, port: int | None = None) -> list[str]:
    """The launcher's command for two ranks, on a port of its own."""
    launcher = Path(sys.executable).with_name("deepspeed")
    where = f"--master_port={port or free_port()}"
    return [str(launcher), "--num_gpus", "2", where, str(PRETRAIN), *TINY, *arguments]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def execute(argv: list[str], timeout: float = 480, cwd: Path | None = None) -> Outcome:
    done = subprocess.run(
        argv,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def pretrain(*arguments: str, ranks: int = 1) -> Outcome:
    return execute(command(PRETRAIN, *TINY, *arguments, ranks=ranks))


@dataclass(frozen=True)
class Stopped:
    """A run that got a signal: its exit code, where it wrote to, and its processes."""

    code: int
    log: Path
    family: list[psutil.Process]

    @property
    def out(self) -> str:
        return self.log.read_text()


def stop(
    run_dir: Path,
    argv: list[str],
    number: signal.Signals,
    whom: str,
    is_time: Callable[[], bool] | None = None,
) -> Stopped:
    """Start a run and send a signal: at its time, or as soon as there is a checkpoint more.

    ``whom``: "all" processes, or the "launcher" alone. The ranks of torchrun are in sessions of
    their own and would outlive it.
    """
    log = run_dir.with_name(f"{run_dir.name}-{time.monotonic_ns()}.log")
    with log.open("w") as stream:
        process = subprocess.Popen(
            argv, env=environment(), start_new_session=True, stdout=stream, stderr=stream
        )

    def wait_for(what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 200
        while not what():
            assert process.poll() is None, "the run ended too early"
            assert time.monotonic() < deadline, "the time never came"
            time.sleep(0.002)

    # Until then ranks of an earlier start may still write one.
    wait_for(lambda: "polymers to train on" in log.read_text())
    before = set((run_dir / "checkpoints").glob("step-*"))
    wait_for(is_time or (lambda: not set((run_dir / "checkpoints").glob("step-*")) <= before))
    launcher = psutil.Process(process.pid)
    family = [launcher, *launcher.children(recursive=True)]
    for member in family if whom == "all" else family[:1]:
        with suppress(psutil.NoSuchProcess):
            member.send_signal(number)
    code = process.wait(60)
    if whom == "all":
        psutil.wait_procs(family, timeout=60)
    assert not (run_dir / "model").exists(), "the run was finished before the signal"
    return Stopped(code, log, family)


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
