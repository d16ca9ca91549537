"""Kill actors and drivers of preprocessing at random; the shards must not change by a bit.

An undisturbed run first, then the same command into another folder, with kill -9 of its actors and
of its driver at random moments; after the death of a driver the same command is typed again.

    python scripts/kill_drill.py [--actor-kills 50] [--driver-kills 5] input=FILE [key=value ...]

Every key=value goes to ``python -m preprocess``. Exit 0 if all files of both folders but the logs
are equal.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

# Files that tell of the run itself: who worked, how long, by which command.
RUN_FILES = {"log.json", "card.html"}
POLL_SECONDS = 0.1


def start(overrides: list[str], output: Path) -> subprocess.Popen[bytes]:
    """Start the command in a session of its own."""
    command = [sys.executable, "-m", "preprocess", *overrides, f"output={output}"]
    return subprocess.Popen(command, start_new_session=True)


def actors(driver: psutil.Process) -> list[psutil.Process]:
    """Return the processes of the driver's actors."""
    found = []
    for process in driver.children(recursive=True):
        try:
            if process.name().startswith("ray::Worker") or any(
                part.startswith("ray::Worker") for part in process.cmdline()[:1]
            ):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file that must not depend on what happened."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name not in RUN_FILES
    }


def disturbed(
    overrides: list[str], output: Path, kills: list[str], seconds: float, rng: random.Random
) -> int:
    """Run the command to its end, killing what `kills` names about every `seconds`.

    Returns
    -------
    How often the command was typed.
    """
    waiting = list(kills)
    num_starts = 0
    while True:
        num_starts += 1
        process = start(overrides, output)
        driver = psutil.Process(process.pid)
        next_kill = time.monotonic() + rng.uniform(0.5, 1.5) * seconds
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if not waiting or time.monotonic() < next_kill:
                continue
            if waiting[0] == "driver":
                waiting.pop(0)
                process.kill()
                process.wait()
                print(f"drill: killed the driver; {len(waiting)} kills to come", flush=True)
                break
            victims = actors(driver)
            if victims:
                waiting.pop(0)
                rng.choice(victims).kill()
                print(f"drill: killed an actor; {len(waiting)} kills to come", flush=True)
                next_kill = time.monotonic() + rng.uniform(0.5, 1.5) * seconds
        else:
            if process.returncode:
                raise SystemExit(f"drill: the command ended with {process.returncode}")
            if waiting:
                raise SystemExit(
                    f"drill: finished with {len(waiting)} kills to come; raise the number of rows"
                )
            return num_starts


def main() -> int:
    """Run the drill and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="+", metavar="key=value", help="for preprocess")
    parser.add_argument("--actor-kills", type=int, default=50)
    parser.add_argument("--driver-kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    kills = ["actor"] * arguments.actor_kills + ["driver"] * arguments.driver_kills
    rng.shuffle(kills)
    with tempfile.TemporaryDirectory() as folder:
        calm, wild = Path(folder) / "calm", Path(folder) / "wild"
        begin = time.monotonic()
        if start(arguments.overrides, calm).wait():
            raise SystemExit("drill: the undisturbed run failed")
        calm_seconds = time.monotonic() - begin
        begin = time.monotonic()
        num_starts = disturbed(
            arguments.overrides, wild, kills, calm_seconds / (len(kills) + 1), rng
        )
        wild_seconds = time.monotonic() - begin
        expected, found = digests(calm), digests(wild)
    different = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    print(f"undisturbed {calm_seconds:.0f} s, one command, {len(expected)} files")
    print(
        f"disturbed   {wild_seconds:.0f} s, {arguments.actor_kills} actors and "
        f"{arguments.driver_kills} drivers killed, typed {num_starts} times"
    )
    print(f"different files: {', '.join(different) or 'none'}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
