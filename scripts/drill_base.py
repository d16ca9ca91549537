"""What drills over hosts share: their table, and commands on a host with a log of each."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hosts import Hosts

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 300.0  # seconds of one command; a start takes minutes on a crowded machine

Row = tuple[str, str, Callable[[], str]]  # name, what is expected, a drill that says what it saw


class Table:
    """Rows, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._began = time.monotonic()

    def row(self, name: str, expected: str, seen: str) -> None:
        """Add a row; its time is that since the last one."""
        now = time.monotonic()
        row = {"name": name, "ok": expected == seen, "expected": expected, "seen": seen}
        self.rows.append(row | {"seconds": round(now - self._began, 1)})
        self._began = now
        mark = "ok  " if row["ok"] else "FAIL"
        print(f"{mark} {self.rows[-1]['seconds']:6.1f} s  {name}: {seen}", flush=True)
        if not row["ok"]:
            print(f"     expected: {expected}", flush=True)

    def drill(self, name: str, expected: str, see: Callable[[], str]) -> None:
        """Run a drill; one that breaks off is a row that is not as expected."""
        try:
            seen = see()
        except (Exception, SystemExit) as error:
            seen = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        self.row(name, expected, seen)

    def finish(self, json_file: Path | None) -> int:
        """Print the last line, write the rows to a file if one is given; return the exit code."""
        if json_file:
            json_file.write_text(json.dumps(self.rows, indent=1) + "\n")
        failed = sum(not row["ok"] for row in self.rows)
        print(f"{len(self.rows)} rows, {failed} not as expected")
        return 1 if failed else 0


class HostsDrill:
    """Commands on hosts.

    Parameters
    ----------
    hosts
        They are up.
    folder
        For all that is written; on all hosts.
    """

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        # Neither the cluster of the shell nor its token; a GPU, which hosts would share, rests.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MASTER_"))}
        self.environment = kept | {
            "PATH": f"{ROOT}/.venv/bin:{kept.get('PATH', '')}:/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "-1",
            "DS_ACCELERATOR": "cpu",
        }

    def begin(self, name: str, words: list[str], log: str) -> "subprocess.Popen[str]":
        """Begin a command on a host; LOG.log gets what it says."""
        with (self.folder / f"{log}.log").open("w") as said:
            return self.hosts.start(
                name,
                words,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def run(self, name: str, words: list[str], log: str, seconds: float = LONGEST) -> int:
        """Run a command on a host to its end; return its exit code."""
        return self.begin(name, words, log).wait(seconds)

    def said(self, log: str) -> str:
        """Return what a command said."""
        return (self.folder / f"{log}.log").read_text()


def wait_until(is_done: Callable[[], bool], seconds: float, what: str) -> None:
    """Look again and again; give up with a line after so many seconds."""
    deadline = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > deadline:
            raise SystemExit(f"error: waited {seconds:.0f} s for {what}")
        time.sleep(0.2)


def wait_during(
    job: "subprocess.Popen[str]", is_done: Callable[[], bool], seconds: float, what: str
) -> None:
    """Wait for something that happens while a command is at work."""

    def is_there() -> bool:
        if is_done():
            return True
        if job.poll() is not None:
            raise SystemExit(f"error: before {what} it ended, with {job.returncode}")
        return False

    wait_until(is_there, seconds, what)
