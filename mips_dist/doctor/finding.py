"""One thing that was looked at, and every probe in a process of its own with a time limit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "problem", "unchecked"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes
    ----------
    state
        ``problem``: something will fail; ``warning``: it may; ``unchecked``: nothing is known.
    what
        What was looked at.
    seen
        What is there.
    remedy
        What to do; empty where nothing is to be done.
    """

    state: State
    what: str
    seen: str
    remedy: str = ""

    def line(self) -> str:
        """Return the finding as it is printed."""
        text = " ".join(f"{self.seen}; {self.remedy}".split()) if self.remedy else self.seen
        return f"{self.state:<9}  {self.what:<9}  {' '.join(text.split())}"

    def at(self, host: str) -> "Finding":
        """Return the finding with the host that it was made on."""
        return Finding(self.state, self.what, f"{host}: {self.seen}", self.remedy)


def to_json(findings: Sequence[Finding]) -> str:
    """Return findings as a JSON list of objects."""
    return json.dumps([asdict(finding) for finding in findings], indent=1)


def from_json(text: str) -> list[Finding]:
    """Return what `to_json` wrote."""
    return [Finding(**values) for values in json.loads(text)]


class Probe:
    """A probe at work: ``python -m mips_dist.doctor NAME ARGUMENTS``.

    A disk that does not answer, a driver that crashes, a Ray that waits for ever cost one line.
    """

    def __init__(self, what: str, *arguments: str, seconds: float) -> None:
        self._what, self._seconds = what, seconds
        # -P: nothing that lies in the working directory is imported.
        command = [sys.executable, "-P", "-m", "mips_dist.doctor", what, *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def findings(self) -> list[Finding]:
        """Wait for the probe, up to its time limit, and return what it found."""
        try:
            shown, said = self._process.communicate(timeout=self._seconds)
        except subprocess.TimeoutExpired:
            seen = f"no answer within {self._seconds:g} s"
            return [Finding("problem", self._what, seen, "see what holds it up, and ask again")]
        finally:
            self.end()
        try:
            return from_json(shown.splitlines()[-1])
        except (IndexError, ValueError, TypeError):
            last = (said.strip().splitlines() or ["nothing was said"])[-1][:200]
            seen = f"the look at it failed with exit code {self._process.returncode} ({last})"
            return [Finding("problem", self._what, seen, "report it")]

    def end(self) -> None:
        """End the probe and what it started; one that the kernel holds is left behind."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def said_by(command: Sequence[str], seconds: float, **options: Any) -> str | None:
    """Return what a short command prints, or None where it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=True, **options
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
