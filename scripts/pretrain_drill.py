"""Kill a two-rank pre-training run again and again; its curve must be that of an undisturbed one.

    python scripts/pretrain_drill.py shards=DIR [--kills 100] [--steps 1500] [--seed 0]
                                     [--output FOLDER] [key=value ...]

Each time the same command is started; after a random part of the time that a start and some steps
take, either both ranks or one of them get SIGKILL. At the end the run is completed, and every
`train/loss` is compared bit for bit with a run that nobody disturbed. One CPU core each is enough.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

PRETRAIN = Path(__file__).resolve().parents[1] / "mips_dist" / "pretrain.py"
DEFAULTS = ["model=debug", "global_batch_size=16", "checkpoint_every=5", "num_threads=1"]
LONGEST_START = 300.0  # seconds


def start(run_dir: Path, overrides: list[str]) -> "subprocess.Popen[bytes]":
    """Start the run under torchrun, in a process group of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with (run_dir.parent / f"{run_dir.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, str(PRETRAIN), *DEFAULTS, *overrides, f"run_dir={run_dir}"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def ranks_of(launcher: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """Return the processes of the ranks that run now."""
    found = []
    for child in psutil.Process(launcher.pid).children(recursive=True):
        try:
            if "RANK" in child.environ():
                found.append(child)
        except psutil.Error:
            continue
    return found


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest checkpoint, 0 for none."""
    return max((int(p.name[5:]) for p in (run_dir / "checkpoints").glob("step-*")), default=0)


def disturb(run_dir: Path, overrides: list[str], chance: random.Random) -> str | None:
    """Start the run and kill it at some moment; return what was done, None when it finished."""
    before = newest_step(run_dir)
    launcher = start(run_dir, overrides)
    try:
        # Half of the kills fall into the start, the others into steps after the next checkpoint.
        is_early = chance.random() < 0.5 and before > 0
        wait = chance.uniform(0.0, 12.0) if is_early else chance.uniform(0.0, 1.0)
        deadline = time.monotonic() + LONGEST_START
        while not is_early and newest_step(run_dir) == before and launcher.poll() is None:
            if time.monotonic() > deadline:
                raise SystemExit(f"no checkpoint within {LONGEST_START:.0f} s, see the log")
            time.sleep(0.01)
        time.sleep(wait)
        if launcher.poll() is not None:
            return None
        ranks = ranks_of(launcher)
        if ranks and chance.random() < 0.5:
            chance.choice(ranks).kill()
            what = "one rank"
        else:
            os.killpg(launcher.pid, signal.SIGKILL)
            what = "all"
        launcher.wait(120)
        return f"{what} killed {wait:.1f} s after {'the start' if is_early else 'a checkpoint'}"
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)


def curve(run_dir: Path) -> dict[int, float]:
    """Return the loss at every step, as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {point.step: point.value for point in events.Scalars("train/loss")}


def main() -> int:
    """Disturb, complete, compare; 0 when the curves are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="keep the two runs and their logs here")
    parser.add_argument("overrides", nargs="+", metavar="key=value", help="shards=DIR and others")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.output or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        overrides = [*arguments.overrides, f"num_steps={arguments.steps}"]
        straight, disturbed = folder / "straight", folder / "disturbed"
        if start(straight, overrides).wait():
            raise SystemExit((folder / "straight.log").read_text())
        num_kills = 0
        while num_kills < arguments.kills:
            what = disturb(disturbed, overrides, chance)
            if what is None:
                break
            num_kills += 1
            print(f"kill {num_kills}: {what}, checkpoint {newest_step(disturbed)}", flush=True)
        if start(disturbed, overrides).wait():
            raise SystemExit((folder / "disturbed.log").read_text())
        expected, found = curve(straight), curve(disturbed)
    steps = range(1, arguments.steps + 1)
    wrong = [step for step in steps if found.get(step) != expected.get(step)]
    is_same = not wrong and list(expected) == list(found) == list(steps)
    print(
        f"{num_kills} kills, {len(expected)} steps: "
        + ("the same curve, bit for bit" if is_same else f"steps that differ: {wrong[:10]}")
    )
    if num_kills < arguments.kills:
        print("the run finished before the last kill; give more --steps")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
