"""What a result was computed with: versions, processor and cores."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

from mips_dist.data.files import write_atomically

ENVIRONMENT_FILE = "environment.json"
_PACKAGES = ("mips-dist", "torch", "numpy", "rdkit", "scikit-learn", "ray")
_CPU_INFO = Path("/proc/cpuinfo")


def environment() -> dict[str, str]:
    """Return what this process runs with, in words, without names of machine or user."""
    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
    }
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def record_environment(run_dir: Path) -> None:
    """Add this environment to those of a run folder; one that is there already stays single."""
    known = read_environments(run_dir)
    current = environment()
    if current not in known:
        text = json.dumps([*known, current], indent=1)
        write_atomically(run_dir / ENVIRONMENT_FILE, text + "\n")


def read_environments(run_dir: Path) -> list[dict[str, str]]:
    """Return the environments that a run was at work in; none where none was recorded."""
    try:
        known = json.loads((run_dir / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []  # it decides nothing, so a damaged one is only begun anew
    return [entry for entry in known if isinstance(entry, dict)] if isinstance(known, list) else []


def _processor() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
