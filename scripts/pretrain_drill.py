"""Kill a two-rank pre-training run again and again; its curve must be that of an undisturbed one.

    python scripts/pretrain_drill.py shards=DIR [--kills 100] [--steps 1500] [--seed 0]
                                     [--output FOLDER] [key=value ...]

Each time the same command is typed; after a random part of the time that a start and some steps
take, all processes, one rank, or torchrun alone get SIGKILL. Now and then the newest checkpoint is
damaged before the next start. At the end the run is completed, and every `train/loss` is compared
bit for bit with a run that nobody disturbed. A cycle takes about 10 s of CPU time, nearly all of it
imports.
"""

import argparse
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

PRETRAIN = Path(__file__).resolve().parents[1] / "mips_dist" / "pretrain.py"
DEFAULTS = [
    "model=debug",
    "global_batch_size=16",
    "checkpoint_every=5",
    "num_threads=1",
    "timeout_minutes=0.5",
]
KINDS = ("all processes", "one rank", "the launcher")
MARK = "MIPS_DRILL"  # in the environment of every process of one start

LONGEST_START = 300.0  # seconds
# Seconds that ranks may outlive their launcher, on a crowded machine, where imports take long.
LONGEST_END = 180.0
LATEST = 0.5  # seconds after a checkpoint within which a late kill falls
DAMAGED = 0.2  # fraction of the kills


def start(run_dir: Path, overrides: list[str], mark: str = "") -> "subprocess.Popen[bytes]":
    """Start the run under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with (run_dir.parent / f"{run_dir.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, str(PRETRAIN), *DEFAULTS, *overrides, f"run_dir={run_dir}"],
            env=os.environ | {MARK: mark},
            stdout=log,
            stderr=log,
        )


def family(mark: str) -> dict[str, psutil.Process]:
    """Return the processes of a start by rank, the launcher as ``""``.

    Known by their environment: the ranks have sessions of their own, and a launcher's death makes
    orphans of them.
    """
    found = {}
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if environment.get(MARK) == mark:
            found[environment.get("RANK", "")] = process
    return found


def checkpoints(run_dir: Path) -> dict[str, int]:
    """Return when each checkpoint was written, by name."""
    found = {}
    for folder in (run_dir / "checkpoints").glob("step-*"):
        try:
            found[folder.name] = folder.stat().st_mtime_ns
        except FileNotFoundError:  # dropped meanwhile
            continue
    return found


def damage(run_dir: Path, chance: random.Random) -> str | None:
    """Cut, alter or remove a file of the newest checkpoint, unless it is the only one."""
    names = sorted(checkpoints(run_dir))
    if len(names) < 2:
        return None
    file = chance.choice(sorted((run_dir / "checkpoints" / names[-1]).iterdir()))
    data = bytearray(file.read_bytes())
    how = chance.choice(("cut short", "altered by a bit", "removed"))
    if how == "removed":
        file.unlink()
    elif how == "cut short":
        file.write_bytes(data[: chance.randrange(len(data))])
    else:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
    return f"{names[-1]}/{file.name} {how}"


class Drill:
    """Starts and kills of one run."""

    def __init__(
        self, run_dir: Path, overrides: list[str], seed: int, start_seconds: float
    ) -> None:
        self.run_dir = run_dir
        self.start_seconds = start_seconds
        self.overrides = overrides
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.num_starts = 0
        self.longest_end = 0.0
        # Starts of which processes may still live, and when they were killed.
        self.ending: dict[str, float] = {}

    def disturb(self) -> str | None:
        """Start the run and kill it at some moment; say what was done, None if it finished."""
        before = checkpoints(self.run_dir)
        self.num_starts += 1
        mark = f"{self.run_dir} {self.num_starts}"
        launcher = start(self.run_dir, self.overrides, mark)
        # Half of the kills fall into the start, the others into steps after the next checkpoint.
        is_early = bool(before) and self.chance.random() < 0.5
        wait = self.chance.uniform(0.0, self.start_seconds if is_early else LATEST)
        begin = time.monotonic()
        while not checkpoints(self.run_dir).items() - before.items():
            passed = time.monotonic() - begin
            if is_early and passed > wait:
                break
            if launcher.poll() is not None or passed > LONGEST_START:
                launcher.kill()
                raise SystemExit(f"no checkpoint came, see {self.run_dir}.log")
            time.sleep(0.01)
        else:
            # As long as it takes now: other work on the machine comes and goes.
            self.start_seconds = time.monotonic() - begin
        if not is_early:
            time.sleep(wait)
        if launcher.poll() is not None:
            return None
        self._check_ends()
        members = family(mark)
        ranks = [process for rank, process in members.items() if rank]
        kind = self.chance.choice(KINDS)
        if kind == "one rank" and not ranks:
            kind = "all processes"
        if kind != "one rank":
            launcher.kill()
        victims = {
            "all processes": ranks,
            "one rank": ranks and [self.chance.choice(ranks)],
            "the launcher": [],
        }
        for victim in victims[kind]:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        self.ending[mark] = time.monotonic()
        launcher.wait(120)
        self.counts[kind] += 1
        when = "the start" if is_early else "a checkpoint"
        return f"{kind} killed {wait:.1f} s after {when}"

    def damage(self) -> str | None:
        """Damage the newest checkpoint now and then, when nobody writes any more."""
        if self.chance.random() >= DAMAGED:
            return None
        self.wait_for_ends()
        done = damage(self.run_dir, self.chance)
        self.counts["checkpoints damaged"] += done is not None
        return done

    def wait_for_ends(self) -> None:
        """Wait until no process of an earlier start lives."""
        while self.ending:
            self._check_ends()
            time.sleep(0.1)

    def _check_ends(self) -> None:
        """See which starts have no process left; a rank that lives on is an error."""
        for mark, since in list(self.ending.items()):
            seconds = time.monotonic() - since
            if not family(mark):
                self.longest_end = max(self.longest_end, seconds)
                del self.ending[mark]
            elif seconds > LONGEST_END:
                raise SystemExit(
                    f"processes live on {seconds:.0f} s after the kill: {family(mark)}"
                )


def curve(run_dir: Path) -> dict[int, float]:
    """Return the loss at every step, as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Steps that a resumed run makes again are no news here.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
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
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.output or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        overrides = [*arguments.overrides, f"num_steps={arguments.steps}"]
        straight, disturbed = folder / "straight", folder / "disturbed"
        begin = time.monotonic()
        process = start(straight, overrides)
        while process.poll() is None and not checkpoints(straight):
            time.sleep(0.1)
        start_seconds = time.monotonic() - begin
        if process.wait():
            raise SystemExit((folder / "straight.log").read_text())
        drill = Drill(disturbed, overrides, arguments.seed, start_seconds)
        num_kills = 0
        while num_kills < arguments.kills:
            what = drill.disturb()
            if what is None:
                break
            num_kills += 1
            newest = max(checkpoints(disturbed), default="none")
            print(f"kill {num_kills}: {what}, newest checkpoint {newest}", flush=True)
            if (harm := drill.damage()) is not None:
                print(f"  {harm}", flush=True)
        if start(disturbed, overrides).wait():
            raise SystemExit((folder / "disturbed.log").read_text())
        drill.wait_for_ends()
        expected, found = curve(straight), curve(disturbed)
    steps = range(1, arguments.steps + 1)
    wrong = [step for step in steps if found.get(step) != expected.get(step)]
    is_same = not wrong and list(expected) == list(found) == list(steps)
    print(", ".join(f"{kind}: {count}" for kind, count in sorted(drill.counts.items())))
    print(
        f"longest time from a kill until no process was left, as noticed: {drill.longest_end:.1f} s"
    )
    print(
        f"{num_kills} kills, {len(expected)} steps: "
        + ("the same curve, bit for bit" if is_same else f"steps that differ: {wrong[:10]}")
    )
    if num_kills < arguments.kills:
        print("the run finished before the last kill; give more --steps")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
