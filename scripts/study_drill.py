"""Kill trials and drivers of a fine-tuning study at random; its results must not change by a byte.

An undisturbed study first, then the same command into another folder, with kill -9 of processes of
trials and of its driver at random moments; after the death of a driver the same command is typed
again.

    python scripts/study_drill.py [--trial-kills 10] [--driver-kills 2] [--seed 0] [key=value ...]

Every key=value goes to ``mips_dist/finetune.py``; by default three of the eight sets and the debug
model for a few epochs. Exit 0 if results.csv of both folders is equal byte for byte.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

FINETUNE = Path(__file__).resolve().parents[1] / "mips_dist" / "finetune.py"
DEFAULTS = [
    "properties=[egb,eea,xc]",
    "model=debug",
    "model.descriptors=[rdkit_2d]",
    "num_epochs=40",
    "patience=40",
    "baselines=[]",
    "fold_seed=20",
    "save_model=false",
    "num_workers=2",
]
TRIAL = "ray::ImplicitFunc"  # the title that Ray gives to the process of a trial
POLL_SECONDS = 0.05
MOST_SECONDS_AFTER_PROGRESS = 2.0
MAX_STARTS = 20


def start(overrides: list[str], run_dir: Path) -> subprocess.Popen[bytes]:
    """Start the command in a session of its own."""
    command = [sys.executable, str(FINETUNE), *overrides, f"run_dir={run_dir}"]
    return subprocess.Popen(command, start_new_session=True)


def trials(driver: psutil.Process) -> list[psutil.Process]:
    """Return the processes of the driver's trials."""
    found = []
    try:
        for process in driver.children(recursive=True):
            try:
                if any(part.startswith(TRIAL) for part in process.cmdline()[:1]):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return []
    return found


def num_finished(run_dir: Path) -> int:
    """Return the number of cells in the ledger."""
    ledger = run_dir / "ledger.jsonl"
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


def disturbed(
    overrides: list[str], run_dir: Path, kills: list[tuple[int, str]], rng: random.Random
) -> int:
    """Run the command to its end; return how often it was typed.

    Parameters
    ----------
    kills
        After how many finished cells what is killed ("trial", "driver"), in order.
    """
    waiting = list(kills)
    for num_starts in range(1, MAX_STARTS + 1):
        process = start(overrides, run_dir)
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if not waiting or num_finished(run_dir) < waiting[0][0]:
                continue
            victims = trials(driver)
            if not victims:
                continue
            time.sleep(rng.uniform(0.0, MOST_SECONDS_AFTER_PROGRESS))
            _, kind = waiting.pop(0)
            victim = driver if kind == "driver" else rng.choice(trials(driver) or victims)
            try:
                victim.kill()
            except psutil.NoSuchProcess:  # ended in these seconds: another one
                waiting.insert(0, (num_finished(run_dir), kind))
                continue
            if kind == "driver":
                process.wait()
            print(
                f"drill: killed a {kind} after {num_finished(run_dir)} cells; "
                f"{len(waiting)} kills to come",
                flush=True,
            )
        if process.returncode == 0:
            if waiting:
                raise SystemExit(f"drill: finished with {len(waiting)} kills to come; more epochs")
            return num_starts
    raise SystemExit(f"drill: not finished after {MAX_STARTS} starts")


def main() -> int:
    """Run the drill and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for finetune.py")
    parser.add_argument("--trial-kills", type=int, default=10)
    parser.add_argument("--driver-kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    overrides = DEFAULTS + arguments.overrides
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        calm, wild = Path(folder) / "calm", Path(folder) / "wild"
        begin = time.monotonic()
        if start(overrides, calm).wait():
            raise SystemExit("drill: the undisturbed study failed")
        calm_seconds = time.monotonic() - begin
        cells = num_finished(calm)
        kinds = ["trial"] * arguments.trial_kills + ["driver"] * arguments.driver_kills
        rng.shuffle(kinds)
        # Not in the last cells, where the study may end before the kill.
        moments = sorted(rng.randrange(max(1, cells - 3)) for _ in kinds)
        begin = time.monotonic()
        num_starts = disturbed(overrides, wild, list(zip(moments, kinds, strict=True)), rng)
        wild_seconds = time.monotonic() - begin
        tables = [(run_dir / "results.csv").read_bytes() for run_dir in (calm, wild)]
        lines = num_finished(wild)
    print(f"{'':<12}{'seconds':>8}{'typed':>7}{'cells':>7}{'trials killed':>15}{'drivers':>9}")
    print(f"{'undisturbed':<12}{calm_seconds:>8.0f}{1:>7}{cells:>7}{0:>15}{0:>9}")
    print(
        f"{'disturbed':<12}{wild_seconds:>8.0f}{num_starts:>7}{lines:>7}"
        f"{arguments.trial_kills:>15}{arguments.driver_kills:>9}"
    )
    is_equal = tables[0] == tables[1]
    print(f"results.csv: {'equal byte for byte' if is_equal else 'DIFFERENT'}")
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
