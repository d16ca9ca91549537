"""Look at the processes of a command that is at work."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def wait_for(
    condition: Callable[[], bool], driver: "subprocess.Popen[bytes] | None" = None
) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        assert driver is None or driver.poll() is None, "the driver ended too early"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(root: int) -> list[tuple[int, str]]:
    """Return (pid, command line) of every process below one."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                pid = int(folder.name)
                parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[pid] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    found, frontier = [], {root}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found += [(pid, names.get(pid, "")) for pid in sorted(frontier)]
    return found
