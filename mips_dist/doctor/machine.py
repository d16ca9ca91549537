"""Cores, memory, shared memory, open files and disks of this machine, limits of a cgroup included.

Standard library alone.
"""

import os
import resource
import shutil
import tempfile
from pathlib import Path

from mips_dist.doctor.finding import Finding

GB = 10**9
_CGROUPS = Path("/sys/fs/cgroup")
_SHM = Path("/dev/shm")
_OBJECT_STORE = 256 * 2**20  # bytes that the Ray of our own commands asks for
_RAY_SHARE = 0.3  # of the memory, what `ray start` takes for its object store
_RAY_FILES = 65536  # Ray raises its own limit so far, where the hard limit allows
_WRITTEN = bytes(2**20)


def probe() -> list[Finding]:
    """Look at cores, memory, shared memory and open files."""
    cores, limit = len(os.sched_getaffinity(0)), core_limit()
    findings = [Finding("ok", "cores", str(cores))]
    if limit is not None and limit < cores:
        seen = f"{cores}, of which the cgroup grants the time of {limit:g}"
        remedy = f"give num_actors and num_workers of about {max(1, int(limit))}"
        findings = [Finding("warning", "cores", seen, remedy)]
    return [*findings, _memory(cores), _shared_memory(), _open_files()]


def memory() -> tuple[int, int]:
    """Return the bytes of memory that this process may use, and those of them that are free."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    found = {name: 1024 * int(rest.split()[0]) for name, rest in (x.split(":", 1) for x in lines)}
    total, free = found["MemTotal"], found["MemAvailable"]
    for folder, is_old in _cgroup("memory"):
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (
            _number(folder / n) for n in (names if is_old else ("memory.max", "memory.current"))
        )
        if limit is not None and limit < total:
            total, free = limit, min(free, limit - (used or 0))
    return total, free


def core_limit() -> float | None:
    """Return the cores' worth of time that the cgroup grants; None: no limit."""
    limits = []
    for folder, is_old in _cgroup("cpu"):
        if is_old:
            quota, period = (_number(folder / f"cpu.cfs_{n}_us") for n in ("quota", "period"))
        else:
            words = _text(folder / "cpu.max").split()
            quota, period = (
                (int(w) if w.isdigit() else None for w in words)
                if len(words) == 2
                else (None, None)
            )
        if quota is not None and period and quota > 0:
            limits.append(quota / period)
    return min(limits, default=None)


def _cgroup(controller: str) -> list[tuple[Path, bool]]:
    """Return the folders of this process's cgroup and those above it, and whether they are v1."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, names, path = line.split(":", 2)
        is_old = names != ""
        if is_old and controller not in names.split(","):
            continue
        root = _CGROUPS / controller if is_old else _CGROUPS
        own = root / path.lstrip("/")
        folders = [own, *own.parents]
        inside = [f for f in folders if f == root or root in f.parents]
        if is_old or (root / "cgroup.controllers").exists():
            return [(folder, is_old) for folder in inside]
    return []


def _memory(cores: int) -> Finding:
    total, free = memory()
    seen = f"{free / GB:.1f} of {total / GB:.1f} GB free"
    if free < GB:
        return Finding("problem", "memory", seen, "end what holds it, or use a larger machine")
    if free < GB * cores:
        remedy = f"give num_actors and num_workers of about {int(free / GB)}, or end what holds it"
        return Finding("warning", "memory", f"{seen}, less than 1 GB a core", remedy)
    return Finding("ok", "memory", seen)


def _shared_memory() -> Finding:
    larger = f"mount -o remount,size=SIZE {_SHM}, or docker run --shm-size=SIZE"
    if not _SHM.is_dir():
        return Finding(
            "problem", "shm", f"no {_SHM}, where Ray keeps its objects", "mount a tmpfs there"
        )
    usage = shutil.disk_usage(_SHM)
    seen = f"{usage.free / GB:.1f} of {usage.total / GB:.1f} GB of {_SHM} free"
    if usage.free < _OBJECT_STORE:
        return Finding("problem", "shm", f"{seen}, Ray wants {_OBJECT_STORE / GB:.2f} GB", larger)
    wanted = _RAY_SHARE * memory()[0]
    if os.environ.get("RAY_ADDRESS") and usage.total < wanted:
        remedy = f"{larger}, or give `ray start` --object-store-memory"
        return Finding("warning", "shm", f"{seen}, `ray start` wants {wanted / GB:.1f} GB", remedy)
    return Finding("ok", "shm", seen)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reached = soft if soft == resource.RLIM_INFINITY else max(soft, min(hard, _RAY_FILES))
    if hard == resource.RLIM_INFINITY:
        reached = max(soft, _RAY_FILES)
    seen = f"{soft} open files of a process, hard limit {hard}".replace("-1", "none")
    remedy = f"raise nofile to {_RAY_FILES} in /etc/security/limits.conf (docker: --ulimit nofile)"
    if soft != resource.RLIM_INFINITY and reached < 1024:
        return Finding("problem", "files", seen, remedy)
    if soft != resource.RLIM_INFINITY and reached < 8192:
        return Finding("warning", "files", f"{seen}; Ray asks for 8192", remedy)
    return Finding("ok", "files", seen)


def probe_disk(folder: str) -> list[Finding]:
    """Look whether files can be written to a folder, or to the one that it would be made in."""
    path = Path(folder).absolute()
    try:
        existing = next(place for place in (path, *path.parents) if place.exists())
    except OSError as error:
        return [Finding("problem", "disk", f"{folder}: {error.strerror}", "give another folder")]
    where = folder if existing == path else f"{folder} (not there yet, in {existing})"
    if not existing.is_dir():
        return [Finding("problem", "disk", f"{existing} is a file", "give another folder")]
    try:
        with tempfile.TemporaryFile(dir=existing) as file:  # without a name, gone by itself
            file.write(_WRITTEN)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(existing).free
    except OSError as error:
        remedy = (
            "make room there, or give another folder"
            if error.errno in (28, 122)
            else ("see its owner and rights (ls -ld), or give another folder")
        )
        return [
            Finding("problem", "disk", f"{where} cannot be written to: {error.strerror}", remedy)
        ]
    seen = f"{where}: writable, {free / GB:.1f} GB free"
    if free < GB:
        return [Finding("problem", "disk", seen, "make room there, or give another folder")]
    if free < 10 * GB:
        remedy = "make room there; `mips plan` says what a run writes"
        return [Finding("warning", "disk", seen, remedy)]
    return [Finding("ok", "disk", seen)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None
