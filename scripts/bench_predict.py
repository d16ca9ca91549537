"""Measure `mips predict`: polymers per second and peak memory, rows accounted for.

    python scripts/bench_predict.py corpus=FILE work_dir=DIR [distinct=300] [rows=100000]
        [properties=egc,nc] [workers=2]

Three runs of the command itself: `distinct` polymers of the corpus once each, for the rate; then a
tenth of `rows`, and `rows`, made of the same polymers in turn with 5 % of rows that are no polymer,
for memory and for the accounting. A polymer that comes again is looked up, so the last two say
nothing of the rate. The rate of the first has the start of the processes taken out: it is measured
by a run of one row.
"""

import csv
import gzip
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

from mips_dist.config import guarded
from mips_dist.errors import MipsError, UsageError

DEFAULTS = {"distinct": "300", "rows": "100000", "properties": "egc,nc", "workers": "2"}
BAD = ("nonsense", "*CC", "", "=1+1", "*C.C*")


def bench(options: dict[str, str]) -> None:
    """Run the three files through the command and print what they took."""
    folder = Path(options["work_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(options["corpus"], "rt", encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        good = [row[0] for row in islice(rows, int(options["distinct"]))]
    start, _, _ = predicted(folder, good[:1], options)
    seconds, memory, _ = predicted(folder, good, options)
    rate = len(good) / (seconds - start)
    print(
        f"{len(good)} distinct polymers, {options['workers']} processes, {options['properties']}:"
    )
    print(f"  start {start:.1f} s; {rate:.1f} polymers a second; peak {memory:.0f} MiB")
    total = int(options["rows"])
    for number in (total // 10, total):
        texts = [
            BAD[i // 20 % len(BAD)] if i % 20 == 7 else good[i % len(good)] for i in range(number)
        ]
        seconds, memory, statuses = predicted(folder, texts, options)
        expected = ["rejected" if text in BAD else "ok" for text in texts]
        wrong = sum(a != b for a, b in zip(statuses, expected, strict=True))
        if wrong:
            raise MipsError(f"{wrong} of {number} rows have another status than they should")
        bad = expected.count("rejected")
        print(
            f"{number:,} rows, {bad:,} of them bad: all accounted for; {seconds:.0f} s; "
            f"peak {memory:.0f} MiB"
        )


def predicted(
    folder: Path, texts: list[str], options: dict[str, str]
) -> tuple[float, float, list[str]]:
    """Return seconds, MiB at the peak of the largest of the processes, and each status."""
    source, output = folder / "in.csv", folder / "out.csv"
    with source.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "psmiles"])
        writer.writerows(enumerate(texts))
    command = [sys.executable, "-m", "mips_dist.cli", "predict", str(source), "-o", str(output)]
    for name in options["properties"].split(","):
        command += ["-p", name]
    command += ["--workers", options["workers"]]
    started = time.monotonic()
    with subprocess.Popen(command) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise MipsError(f"mips predict ended with exit code {process.returncode}")
    seconds = time.monotonic() - started
    with output.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if [row["row"] for row in rows] != [str(i) for i in range(len(texts))]:
        raise MipsError("rows are missing or out of order")
    return seconds, usage.ru_maxrss / 1024, [row["status"] for row in rows]


def main() -> None:
    """Read the arguments."""
    given = dict(text.partition("=")[::2] for text in sys.argv[1:])
    needed = {"corpus", "work_dir"}
    if not needed <= set(given) <= needed | set(DEFAULTS):
        raise UsageError(str(__doc__).split("\n\n")[1].strip())
    bench(DEFAULTS | given)


if __name__ == "__main__":
    sys.exit(guarded(main))
