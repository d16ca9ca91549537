"""How much memory a process has used at most."""

import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """Return the largest resident memory that this process had, in bytes."""
    if sys.platform == "linux":
        # Not ru_maxrss, which begins at the size of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
