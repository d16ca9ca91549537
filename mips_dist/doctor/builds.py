"""What DeepSpeed needs to compile its operators, and locks that killed builds have left."""

import os
import shutil
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from mips_dist.doctor.finding import Finding
from mips_dist.doctor.packages import can_import

_DEPTH = ("lock", "*/lock", "*/*/lock")  # OPERATOR/lock, PYTHON_AND_CUDA/OPERATOR/lock


def probe(*folders: str) -> list[Finding]:
    """Look at the compiler, and at the locks of builds.

    Parameters
    ----------
    folders
        Run folders, or folders of them: pre-training builds in ``RUN_DIR/.build``.
    """
    if not can_import("deepspeed"):
        seen = "deepspeed is not installed (pip install 'mips-dist[train]')"
        return [Finding("unchecked", "compiler", seen)]
    return [_compiler(), *_locks(folders)]


def _compiler() -> Finding:
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    missing += [] if header.is_file() else ["Python.h"]
    if not missing:
        return Finding("ok", "compiler", "g++, ninja and Python.h are there")
    remedies = {
        "g++": "apt-get install g++",
        "ninja": "activate the environment, which has it (source .venv/bin/activate)",
        "Python.h": "apt-get install python3-dev",
    }
    seen = f"no {', '.join(missing)}: what is compiled when needed fails (torch.compile on a GPU)"
    return Finding("warning", "compiler", seen, "; ".join(remedies[name] for name in missing))


def build_folders(folders: Sequence[str]) -> list[Path]:
    """Return where torch and pre-training build."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    found = [Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")]
    for folder in map(Path, folders):
        found += [folder / ".build", *sorted(folder.glob("*/.build"))]
    return found


def _locks(folders: Sequence[str]) -> list[Finding]:
    locks = [
        p for f in build_folders(folders) for pattern in _DEPTH for p in sorted(f.glob(pattern))
    ]
    held = _open_files() if locks else set()
    findings = []
    for path in locks:
        try:
            status = path.stat()
        except OSError:  # released meanwhile
            continue
        age = f"{path} is {(time.time() - status.st_mtime) / 60:.0f} min old"
        if (status.st_dev, status.st_ino) in held:
            findings.append(Finding("ok", "locks", f"{age}: a build is at work"))
            continue
        is_ours = os.geteuid() in (0, status.st_uid)
        seen = f"{age}, and no process here holds it: builds wait for it for ever"
        remedy = f"rm {path} (unless another host builds in the same folder)"
        findings.append(Finding("problem" if is_ours else "warning", "locks", seen, remedy))
    return findings or [Finding("ok", "locks", "no build is at work, none was left behind")]


def _open_files() -> set[tuple[int, int]]:
    """Return device and number of every file that a process which we may look at has open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            status = os.stat(link)
        except OSError:
            continue
        found.add((status.st_dev, status.st_ino))
    return found
