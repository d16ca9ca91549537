"""The models of one replica, behind a process that no polymer can take down with it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from mips_dist.errors import MipsError, UsageError

SECONDS_PER_POLYMER = 30.0  # of CPU
OUT_OF_MEMORY_EXIT = 77  # as in mips_dist.serve.worker, which would bring torch along
_MAX_KILLS = 5  # from outside, in one call
_MAX_CONDEMNED = 1000
_CRASHES = {
    -getattr(signal, name)
    for name in ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")
}


class Ended(Exception):
    """A polymer ended the process that worked on it; the message is ``code: words``."""


@dataclass(frozen=True, slots=True)
class Work:
    """One thing to do: a method of `mips_dist.serve.worker.Tasks`, a text, what else it takes."""

    task: str
    text: str
    argument: Any


class Engine:
    """A process that holds models and answers one question at a time.

    Parameters
    ----------
    directories
        Of the models, each of one property.
    seconds
        CPU time that one polymer may take.

    Attributes
    ----------
    about
        "models" and "pictures", as `mips_dist.serve.api.build_api` takes them.

    Raises
    ------
    MipsError, UsageError
        What `mips_dist.use.predictor.Predictor.open` says of the directories.
    """

    def __init__(self, directories: Sequence[str], seconds: float = SECONDS_PER_POLYMER) -> None:
        self._directories, self._seconds = list(directories), seconds
        self._lock = threading.Lock()
        self._condemned: dict[str, str] = {}
        self._process: subprocess.Popen[bytes]
        self._connection: Connection
        self.about: dict[str, Any] = {}
        self._start()

    def predict(self, text: str, properties: tuple[str, ...]) -> dict[str, Any]:
        """Return the row of one polymer; one that ends its process is rejected."""
        try:
            return self._call(Work("predict", text, properties))
        except Ended as error:
            return {"canonical": "", "status": "rejected", "reason": str(error), "values": {}}

    def predict_each(
        self, questions: Iterable[tuple[str, tuple[str, ...]]]
    ) -> dict[tuple[str, tuple[str, ...]], dict[str, Any]]:
        """Return the rows of several polymers, equal texts once."""
        return {question: self.predict(*question) for question in dict.fromkeys(questions)}

    def picture(self, text: str, kind: str, name: str) -> tuple[str, str]:
        """Return an SVG for a property, or an empty text and the reason."""
        try:
            return self._call(Work("picture", text, (kind, name)))
        except Ended as error:
            return "", str(error)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _call(self, work: Work) -> Any:
        with self._lock:  # held for one polymer, so that a picture need not wait for a whole batch
            if work.text in self._condemned:
                raise Ended(self._condemned[work.text])
            crashes = kills = 0
            while True:
                word, value = self._ask(work)
                if word == "done":
                    return value
                if word == "error":
                    raise RuntimeError(f"mips_dist.serve.worker failed\n{value}")
                reason = self._why(value)
                if reason is None:  # killed from outside, which is held against no polymer
                    kills += 1
                    if kills == _MAX_KILLS:
                        raise MipsError(
                            f"the process of the models was killed {kills} times from outside; "
                            "is the machine short of memory?"
                        )
                    # From the start: what was asked may still lie in the pipe.
                    self.close()
                    self._start()
                    continue
                crashes += 1
                # A crash may come from what was done before; the second is in a fresh process.
                if crashes == 2 or value not in _CRASHES:
                    while len(self._condemned) >= _MAX_CONDEMNED:
                        del self._condemned[next(iter(self._condemned))]
                    self._condemned[work.text] = reason
                    raise Ended(reason)

    def _ask(self, work: Work) -> tuple[str, Any]:
        try:
            self._connection.send((self._seconds, work.task, (work.text, work.argument)))
            answer: tuple[str, Any] = self._connection.recv()
        except (EOFError, OSError):
            return "ended", -signal.SIGKILL
        return answer

    def _why(self, code: int) -> str | None:
        if code in (-signal.SIGPROF, -signal.SIGALRM):
            return f"timed_out: no result within {self._seconds:g} s of computing"
        if code == OUT_OF_MEMORY_EXIT:
            return "out_of_memory: needs more memory than one polymer may take"
        if code in _CRASHES:
            return f"crashed: ended its process by {signal.Signals(-code).name}"
        return f"crashed: ended its process with exit code {code}" if code > 0 else None

    def _start(self) -> None:
        """Load the models into a process of their own, and wait until it answers."""
        self._connection, theirs = Pipe()
        root = str(Path(__file__).resolve().parent.parent.parent)
        inherited = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([root, inherited] if inherited else [root])
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *("-P", "-m", "mips_dist.serve.worker"),
                    *(str(theirs.fileno()), str(os.getpid()), *self._directories),
                ],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path} | threads,
                pass_fds=[theirs.fileno()],
            )
        try:
            word, value = self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            raise MipsError(
                f"the process of the models ended while it loaded them (exit code {code}); is the "
                "machine short of memory?"
            ) from None
        if word == "failed":
            message, exit_code = value
            self.close()
            raise (UsageError if exit_code == UsageError.exit_code else MipsError)(message)
        self.about = value
