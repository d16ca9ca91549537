"""Kill something every N seconds: how much of the time of a run is left for its work, and why.

    python scripts/goodput_drill.py [--kills 10] [--steps 2000] [--rows 2000] [--output FOLDER]
                                    [--no-preprocessing] [--json FILE] [key=value ...]

A pre-training run of two ranks under torchrun, undisturbed; then the same command, killed every N
seconds and started again at once, as a scheduler would: in turns one rank, all processes, the
launcher. N is a start and a part of the undisturbed run's work, so that all kills hit the other
one; the part counts from the first step of each start, as starts take longer when the machine gets
busier. Then the same with preprocessing, its actors and its driver. Every key=value goes to
pre-training; polymers are those of the corpus of MIPS_DATA where it is set, else of the glass
transition table.

Where the time went is read from the run's own record: when its steps and checkpoints ended, and for
how long ranks stood still for a checkpoint. Exit 0 if the curve is that of the undisturbed run, bit
for bit, and the shards are the same, byte for byte.
"""

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import kill_drill
import psutil
from bench_pretrain import make_shards
from pretrain_drill import KINDS, curve, family, start

from mips_dist.train.timeline import Session, read_sessions

# Preprocessing: kills of actors for one kill of the driver.
ACTORS_PER_DRIVER = 4
FULL_ROWS = 800  # rows of its input, with conformers, some 30 s of work
PART = 0.8  # of the undisturbed run's work, until the last kill
BEGUN = "curves: tensorboard"  # the last line that a start prints before its first step
DEFAULTS = ["checkpoint_every=25", "validate_every=1000000"]


@dataclass
class Life:
    """One start of the command: when it was typed, when something was killed, when it ended."""

    typed: float
    killed: float = math.inf
    kind: str = ""


@dataclass
class Account:
    """Seconds of a run by what they went to; together they are its wall time."""

    steps: float = 0.0
    checkpoints: float = 0.0
    repeated: float = 0.0
    noticing: float = 0.0
    starting: float = 0.0
    ending: float = 0.0

    @property
    def wall(self) -> float:
        """All of it."""
        return sum(asdict(self).values())


def account(lives: Sequence[Life], parts: Sequence[Session], ended: float) -> Account:
    """Divide the time from the first command to the end of the last among what it went to.

    What a start did counts as far as its last checkpoint that the next one continued from. A start
    that was killed before it had recorded a step is all start-up.
    """
    spent = Account(starting=parts[0].began - lives[0].typed)
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        kept_until, last = part.began, max(part.checkpoints, default=0)
        if after is not None:
            last = after.first - 1
        if last >= part.first:
            # A kill may have come between a checkpoint and its record: then its step's is there.
            kept_until = part.checkpoints.get(last, (part.done[last],))[0]
        stall = sum(s for step, (_, s) in part.checkpoints.items() if step <= last)
        spent.checkpoints += stall
        spent.steps += kept_until - part.began - stall
        if after is None:
            spent.ending += ended - kept_until
            break
        number = max(n for n, life in enumerate(lives) if life.typed <= part.began)
        killed = lives[number].killed
        repeated = max(0.0, killed - kept_until)
        # Ranks whose launcher was killed save and leave by themselves, while the next start begins.
        noticing = sum(
            max(0.0, again.typed - max(life.killed, kept_until))
            for life, again in zip(lives[number:], lives[number + 1 :], strict=False)
            if again.typed <= after.began
        )
        spent.repeated += repeated
        spent.noticing += noticing
        spent.starting += after.began - kept_until - repeated - noticing
    return spent


def recoveries(lives: Sequence[Life], parts: Sequence[Session]) -> list[float]:
    """Return the seconds from each kill to the end of the first step after it."""
    times = [min(p.done[p.first] for p in parts if p.began > life.killed) for life in lives[:-1]]
    return [done - life.killed for done, life in zip(times, lives[:-1], strict=True)]


def undisturbed(run_dir: Path, overrides: list[str]) -> list[Life]:
    """Run the command once; return its one life, whose kill is its end."""
    life = Life(typed=time.time())
    if start(run_dir, overrides).wait():
        raise SystemExit(run_dir.with_name(f"{run_dir.name}.log").read_text())
    life.killed = time.time()
    return [life]


def disturbed(
    run_dir: Path, overrides: list[str], num_kills: int, work: float
) -> tuple[list[Life], float]:
    """Run the command, kill something after so many seconds of work, start it again; until it ends.

    Returns the lives, and when the last one ended.
    """
    lives: list[Life] = []
    log = run_dir.with_name(f"{run_dir.name}.log")
    while True:
        mark = f"{run_dir} {len(lives)}"
        life = Life(typed=time.time())
        lives.append(life)
        launcher = start(run_dir, overrides, mark)
        if len(lives) > num_kills:
            if launcher.wait():
                raise SystemExit(log.read_text())
            return lives, time.time()
        deadline = math.inf
        while time.time() < deadline:
            if deadline == math.inf and log.read_text().count(BEGUN) == len(lives):
                deadline = time.time() + work
            if launcher.poll() is not None:
                raise SystemExit(
                    f"the run ended after {len(lives) - 1} of {num_kills} kills; give more --steps"
                    f" (its log: {log})"
                )
            time.sleep(0.02)
        ranks = [process for rank, process in family(mark).items() if rank]
        life.kind = KINDS[len(lives) % len(KINDS)]
        if life.kind == "one rank" and not ranks:
            life.kind = "all processes"
        victims = ranks[:1] if life.kind == "one rank" else [psutil.Process(launcher.pid)]
        victims += ranks if life.kind == "all processes" else []
        life.killed = time.time()
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        launcher.wait(120)
        print(f"kill {len(lives)} of {num_kills}: {life.kind}", flush=True)


def pretraining(folder: Path, overrides: list[str], num_kills: int) -> dict[str, Any]:
    """Do both runs of pre-training and return their figures."""
    batch = next(int(o.split("=")[1]) for o in overrides if o.startswith("global_batch_size="))
    calm, wild = folder / "undisturbed", folder / "disturbed"
    [life] = undisturbed(calm, overrides)
    [whole] = read_sessions(calm, batch)
    before = account([life], [whole], life.killed)
    # Something is left for the last start, also where steps are faster than they were.
    work = PART * (whole.done[whole.last] - whole.began) / num_kills
    lives, ended = disturbed(wild, overrides, num_kills, work)
    every = (lives[-1].typed - lives[0].typed) / num_kills
    parts = read_sessions(wild, batch)
    after = account(lives, parts, ended)
    recovered = recoveries(lives, parts)
    expected, found = curve(calm), curve(wild)
    stalls = [seconds for _, seconds in whole.checkpoints.values()]
    stall, lost_start = statistics.median(stalls), statistics.median(recovered)
    return {
        "kills": {kind: sum(life.kind == kind for life in lives) for kind in KINDS},
        "every_s": every,
        "steps": len(expected),
        "undisturbed": asdict(before) | {"wall": before.wall},
        "disturbed": asdict(after) | {"wall": after.wall},
        "goodput_undisturbed": before.steps / before.wall,
        "goodput": before.steps / after.wall,
        "recovery_median_s": lost_start,
        "recovery_max_s": max(recovered),
        "recoveries_s": recovered,
        "checkpoint_s": stall,
        "checkpoint_ms_per_step": 1e3 * sum(stalls) / len(expected),
        # Young's: half of an interval is lost at a failure, a stall at every checkpoint.
        "best_checkpoint_every": math.sqrt(2 * stall * every) * len(expected) / before.steps,
        "same_curve": expected == found and list(expected) == list(range(1, len(expected) + 1)),
    }


def preprocessing(folder: Path, num_kills: int) -> dict[str, Any]:
    """Preprocess undisturbed and with kills, and return the figures."""
    make_shards(folder, FULL_ROWS, "content=topology")  # for its table of polymers
    overrides = [f"input={folder / 'polymers.csv'}", "num_actors=2"]
    kills = ["actor"] * num_kills
    kills[ACTORS_PER_DRIVER :: ACTORS_PER_DRIVER + 1] = ["driver"] * len(
        kills[ACTORS_PER_DRIVER :: ACTORS_PER_DRIVER + 1]
    )
    calm, wild = folder / "calm", folder / "wild"
    begin = time.monotonic()
    if kill_drill.start(overrides, calm).wait():
        raise SystemExit("the undisturbed preprocessing failed")
    calm_seconds = time.monotonic() - begin
    begin = time.monotonic()
    every = calm_seconds / (num_kills + 1)
    num_starts = kill_drill.disturbed(overrides, wild, kills, every, random.Random(0))
    wild_seconds = time.monotonic() - begin
    return {
        "rows": FULL_ROWS,
        "kills": {"actor": kills.count("actor"), "driver": kills.count("driver")},
        "every_s": every,
        "starts": num_starts,
        "undisturbed_s": calm_seconds,
        "disturbed_s": wild_seconds,
        "goodput": calm_seconds / wild_seconds,
        "same_bytes": kill_drill.digests(calm) == kill_drill.digests(wild),
    }


def report_pretraining(figures: dict[str, Any]) -> None:
    """Print the table of pre-training."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in figures["kills"].items())
    print(f"pre-training, {figures['steps']:,} steps, a kill every {figures['every_s']:.1f} s")
    print(f"killed: {kinds}")
    print(f"{'seconds':40}{'undisturbed':>12}{'disturbed':>12}")
    words = {
        "steps": "steps that count",
        "checkpoints": "standing still for checkpoints",
        "repeated": "steps lost and done again",
        "noticing": "kill to the command typed again",
        "starting": "command to its first step",
        "ending": "last checkpoint to the end",
        "wall": "wall time",
    }
    for key, text in words.items():
        values = (figures[run][key] for run in ("undisturbed", "disturbed"))
        print(f"{text:40}" + "".join(f"{value:>12.2f}" for value in values))
    print(
        f"goodput {figures['goodput']:.1%} (undisturbed {figures['goodput_undisturbed']:.1%}): "
        "seconds of the undisturbed steps / wall time"
    )
    print(
        f"kill to the end of the next step: median {figures['recovery_median_s']:.1f} s, "
        f"longest {figures['recovery_max_s']:.1f} s"
    )
    print(
        f"a checkpoint: {1e3 * figures['checkpoint_s']:.0f} ms, "
        f"{figures['checkpoint_ms_per_step']:.2f} ms a step; at this rate of failures best every "
        f"{figures['best_checkpoint_every']:.0f} steps"
    )
    print(f"the same curve, bit for bit: {figures['same_curve']}")


def report_preprocessing(figures: dict[str, Any]) -> None:
    """Print the lines of preprocessing."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in figures["kills"].items())
    print(
        f"preprocessing, {figures['rows']} rows, a kill every {figures['every_s']:.1f} s: {kinds}, "
        f"typed {figures['starts']} times"
    )
    print(
        f"undisturbed {figures['undisturbed_s']:.1f} s, disturbed {figures['disturbed_s']:.1f} s, "
        f"goodput {figures['goodput']:.1%}; the same bytes: {figures['same_bytes']}"
    )


def main() -> int:
    """Run the drills and print what they cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=2000, help="polymers to train on, about")
    parser.add_argument("--no-preprocessing", action="store_true", help="pre-training alone")
    parser.add_argument("--output", type=Path, help="keep runs and logs in this folder")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of pre-training")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.output or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        overrides = [*DEFAULTS, "global_batch_size=16", *arguments.overrides]
        overrides.append(f"num_steps={arguments.steps}")
        if not any(override.startswith("shards=") for override in overrides):
            shards = make_shards(folder, arguments.rows, "content=topology")
            overrides.append(f"shards={shards}")
        figures = {"pretraining": pretraining(folder, overrides, arguments.kills)}
        report_pretraining(figures["pretraining"])
        is_same = figures["pretraining"]["same_curve"]
        if not arguments.no_preprocessing:
            inner = folder / "preprocessing"
            inner.mkdir(exist_ok=True)
            figures["preprocessing"] = preprocessing(inner, arguments.kills)
            report_preprocessing(figures["preprocessing"])
            is_same = is_same and figures["preprocessing"]["same_bytes"]
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
