"""Run the real command on what a stranger made, and see that it only says a line."""

import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.rules import ROOT

CANARY = "canary"  # what every payload would leave in the working directory
SECONDS = 280


class Payload:
    """A pickle that runs a command when it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {CANARY}",)


def pickled() -> bytes:
    return pickle.dumps(Payload())


def tree(folder: Path) -> dict[str, str]:
    """Every file, folder and link below a folder, with its contents; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def run(folder: Path, *command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the project in a folder; ``mips`` or the name of a module comes first."""
    program = {"mips": "mips_dist.cli"}.get(command[0], command[0])
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", program, *command[1:]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS,
    )


def refused(
    folder: Path, *command: str, codes: tuple[int, ...] = (1, 2), **environment: str
) -> str:
    """Run a command that must end in one clear line, and have changed nothing; return the line."""
    before = tree(folder)
    done = run(folder, *command, **environment)
    assert done.returncode in codes, (command, done)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, (command, done.stderr)
    assert lines[0].startswith("error: "), lines
    assert tree(folder) == before, command
    return lines[0]
