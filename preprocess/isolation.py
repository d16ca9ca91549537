"""Chemistry in a process of its own: no molecule can end, hang or starve its actor.

RDKit is C++. A molecule may abort in it, loop in it while it holds the interpreter's lock, or eat
all memory, and no Python handler gets a word in. So each actor keeps a child process for the work,
whose end it can tell the reason of:

- a kernel timer (SIGALRM, default action) ends a child that takes too long, whatever it holds;
- a limit on its data (RLIMIT_DATA) makes an eater fail alone, before the machine suffers;
- a crash ends it by the signal of the crash.

A child that ended of itself is replaced, and the texts of the task are tried one at a time. A text
is condemned if it ends the child each time of three tries, the last two in fresh processes. Ends by
any other signal (SIGKILL: a drill, the kernel short of memory) come from outside, are never held
against a text, and are only repeated. What a task returns still depends on its arguments alone,
once the condemned texts are known (see `preprocess.journal`).
"""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NamedTuple

from mips_dist.errors import MipsError
from preprocess.memory import peak_memory

VERDICT_CODES = ("crashed", "out_of_memory", "timed_out")

_TRIES = 3
_MAX_ROUNDS = 3  # of trying every text alone, when only all together end the child
_MAX_KILLS = 30  # from outside, in one call
_OUT_OF_MEMORY_EXIT = 77
_CRASHES = {
    -getattr(signal, name)
    for name in ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")
}
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one polymer may take: seconds of wall clock, and 10^9 bytes of its process."""

    seconds_per_polymer: float
    gb_per_actor: float


class Condemned(NamedTuple):
    """A text that ended its process each time; ``reason`` is ``code: words``."""

    place: int
    reason: str


class Finished(NamedTuple):
    """What a task returned, the CPU seconds that it took, and the peak memory of its processes."""

    result: Any
    cpu_seconds: float
    max_rss_bytes: int


class _EndedItself(Exception):
    """The child is gone for a reason that lies in its work; the message is ``code: words``."""


class Isolated:
    """A child process that does the work of `preprocess.work`, replaced whenever it ends."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection
        self._cpu_seconds = 0.0
        self._child_rss_bytes = 0

    def run(
        self,
        method: str,
        texts: Sequence[Any],
        condemned: Mapping[int, str],
        suspect: int | None,
        arguments: Sequence[Any],
    ) -> Finished | Condemned:
        """Do one task, or find the next text in it that ends its process.

        Parameters
        ----------
        method
            Function of `preprocess.work`.
        texts
            What the task is about, one text a polymer; whatever is no ``str`` is left alone.
        condemned
            Place -> reason of the texts that are known to end their process.
        suspect
            None: nothing is known against the task. Else texts from this place on are tried one at
            a time first, since the task has ended a process before.
        arguments
            The further arguments of the function.
        """
        seconds = self._limits.seconds_per_polymer
        self._cpu_seconds = 0.0
        if suspect is None:
            # No verdict hangs on this limit: where it is too short, time is lost and nothing else.
            try:
                return self._whole(
                    seconds * (1 + len(texts) / 1000), method, texts, condemned, arguments
                )
            except _EndedItself:
                suspect = 0
        for _ in range(_MAX_ROUNDS):
            for place in range(suspect, len(texts)):
                if place not in condemned and isinstance(texts[place], str):
                    reason = self._why_condemned(method, texts[place], arguments)
                    if reason is not None:
                        return Condemned(place, reason)
            try:
                return self._whole(seconds * len(texts), method, texts, condemned, arguments)
            except _EndedItself as error:
                suspect, last = 0, error
        raise MipsError(
            f"{len(texts)} polymers together end their process ({last}), though each alone does "
            "not; give more memory (gb_per_actor) and run the same command again"
        )

    def _whole(
        self,
        seconds: float,
        method: str,
        texts: Sequence[Any],
        condemned: Mapping[int, str],
        arguments: Sequence[Any],
    ) -> Finished:
        result = self._call(seconds, method, texts, condemned, *arguments)
        return Finished(result, self._cpu_seconds, self._child_rss_bytes + peak_memory())

    def _why_condemned(self, method: str, text: str, arguments: Sequence[Any]) -> str | None:
        """Try one text alone; return the reason if it ends its process each time."""
        reason = None
        for _ in range(_TRIES):
            try:
                self._call(self._limits.seconds_per_polymer, "try_one", method, text, arguments)
            except _EndedItself as error:
                reason = str(error)
            else:
                return None
        return reason

    def _call(self, seconds: float, function: str, *arguments: Any) -> Any:
        """Call a function of `preprocess.work` in the child; again if the child was killed."""
        for _ in range(_MAX_KILLS):
            if self._child is None and not self._start():
                continue
            try:
                self._connection.send((seconds, function, arguments))
                is_done, value, cpu_seconds, rss = self._connection.recv()
            except (EOFError, OSError):
                if (reason := self._why_ended(seconds)) is not None:
                    raise _EndedItself(reason) from None
                continue
            self._cpu_seconds += cpu_seconds
            self._child_rss_bytes = rss
            if not is_done:
                raise RuntimeError(f"preprocess.work.{function} failed\n{value}")
            return value
        raise MipsError(
            f"a process of a worker was killed {_MAX_KILLS} times from outside, most likely for "
            "want of memory on this machine; lower num_actors or gb_per_actor and run the same "
            "command again"
        )

    def _start(self) -> bool:
        """Start a child; return False if it was killed before it was ready."""
        self._connection, theirs = Pipe()
        root = str(Path(__file__).resolve().parent.parent)
        inherited = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([root, inherited] if inherited else [root])
        with theirs:
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    *("-P", "-m", "preprocess.isolation"),
                    *(str(theirs.fileno()), str(os.getpid()), str(self._limits.gb_per_actor)),
                ],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
                pass_fds=[theirs.fileno()],
            )
        try:
            self._connection.recv()
        except (EOFError, OSError):
            if (reason := self._why_ended(0)) is not None:
                raise RuntimeError(f"preprocess.work cannot be loaded ({reason})") from None
            return False
        return True

    def _why_ended(self, seconds: float) -> str | None:
        """Return why the child ended, ``code: words``, or None if it was ended from outside."""
        assert self._child is not None
        self._connection.close()
        code = self._child.wait()
        self._child = None
        if code == -signal.SIGALRM:
            return f"timed_out: no result within {seconds:g} s"
        if code == _OUT_OF_MEMORY_EXIT:
            return f"out_of_memory: needs more than {self._limits.gb_per_actor:g} GB"
        if code in _CRASHES:
            return f"crashed: ended its process by {signal.Signals(-code).name}"
        return f"crashed: ended its process with exit code {code}" if code > 0 else None


def _prepare(parent: int, gb_per_actor: float) -> None:
    """Set this process up as a child: it dies with its actor, of its alarm, of its hunger."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # already gone
        os._exit(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver to answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        soft = int(fields["VmData"].split()[0]) * 1024 + int(gb_per_actor * 1e9)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def main() -> None:
    """Answer (seconds, function, arguments) by (done, value, CPU seconds, bytes) till the end."""
    descriptor, parent, gb_per_actor = sys.argv[1:]
    connection = Connection(int(descriptor))
    from preprocess import work

    _prepare(int(parent), float(gb_per_actor))
    connection.send("ready")
    while True:
        try:
            seconds, function, arguments = connection.recv()
        except EOFError:
            return
        start = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            value = getattr(work, function)(*arguments)
            is_done = True
        except (MemoryError, work.OutOfMemory):
            os._exit(_OUT_OF_MEMORY_EXIT)
        except Exception:
            value, is_done = traceback.format_exc(), False
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send((is_done, value, time.process_time() - start, peak_memory()))


if __name__ == "__main__":
    main()
