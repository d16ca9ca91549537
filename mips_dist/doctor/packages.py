"""Versions: against requirements.lock in a checkout, against the package's own floors in a wheel.

``python -m mips_dist.doctor.packages`` is the check of cluster/setup.sh: a line for every version
in this environment that is not the locked one. It needs the standard library alone.
"""

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from mips_dist.doctor.finding import Finding

LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
_REQUIRED = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?\s*(>=|==)\s*([\w.]+)")
_SHOWN = 5


def locked(lock: Path) -> dict[str, str]:
    """Return the pins of a lock file, name -> version."""
    lines = [line.strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==", 1) for line in lines if "==" in line and line[0] != "#")


def installed(name: str) -> str:
    """Return the version of a package; builds for GPUs have the same one. None: ``none``."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "none"


def can_import(package: str) -> bool:
    """Tell whether a package is there, without importing it."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def not_locked(lock: Path) -> dict[str, tuple[str, str]]:
    """Return name -> (version here, version of the lock file) of all that differ."""
    found = {name: (installed(name), wanted) for name, wanted in locked(lock).items()}
    return {name: pair for name, pair in found.items() if pair[0] != pair[1]}


def below_the_floor(requirements: list[str]) -> dict[str, tuple[str, str]]:
    """Return name -> (version here, what is needed) of all that do not fit.

    Of an extra, what is not installed is not missed.
    """
    wrong = {}
    for text in requirements:
        wanted = _REQUIRED.match(text)
        if wanted is None:
            continue
        name, sign, needed = wanted.groups()
        found = installed(name)
        if found == "none" and "extra ==" in text:
            continue
        is_right = found == needed if sign == "==" else _numbers(found) >= _numbers(needed)
        if found == "none" or not is_right:
            wrong[name] = (found, sign + needed)
    return wrong


def probe() -> list[Finding]:
    """Look at Python and the packages."""
    python = platform.python_version()
    if LOCK.is_file():
        count, wrong, source = len(locked(LOCK)), not_locked(LOCK), "requirements.lock"
        remedy = "run cluster/setup.sh (or scripts/setup), which installs the locked versions"
    else:
        requirements = requires("mips-dist") or []
        count, wrong = len(requirements), below_the_floor(requirements)
        source = "the floors of the package (a wheel has no requirements.lock)"
        remedy = "pip install --upgrade mips-dist, with the extras that you use"
    if not wrong:
        seen = f"Python {python}; all {count} versions agree with {source}"
        return [Finding("ok", "versions", seen)]
    named = [f"{name} {found} instead of {want}" for name, (found, want) in wrong.items()]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    seen = f"Python {python}; against {source}: {', '.join(named[:_SHOWN])}{more}"
    return [Finding("problem", "versions", seen, remedy)]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def main() -> int:
    """Print what is not the locked version; exit code 1 where there is any."""
    host, wrong = platform.node(), not_locked(Path("requirements.lock"))
    for name, (found, wanted) in wrong.items():
        print(f"error: {host}: {name} {found}, requirements.lock has {wanted}")
    if wrong:
        print("error: run cluster/setup.sh on this node", file=sys.stderr)
        return 1
    count = len(locked(Path("requirements.lock")))
    print(f"{host}: Python {platform.python_version()}, {count} locked versions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
