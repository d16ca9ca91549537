"""A rank that outlives its launcher stops: nobody would end it, and it would hold its run's lock.

The ranks of torchrun are in sessions of their own, and DeepSpeed's command (a runner, which starts
a launcher, which starts the ranks) dies of a signal without a word to anyone. A process that no
launcher started is left alone, as it may outlive its shell on purpose.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

# Who started this process, asked as early as possible: an orphan is given to another process.
_PARENT = os.getppid()

# What torchrun and DeepSpeed's launcher leave in the environment of their ranks.
_MARKS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")

_INIT = 1
_POLL_SECONDS = 0.25
# For the end of a step and a checkpoint; a second start waits for the lock a little longer.
_GRACE_SECONDS = 10.0
_UNSAID = threading.Lock()  # taken once, by whoever says that the launcher is gone


def watch() -> None:
    """Watch the launcher of this rank from now on, if one started it."""
    if _has_launcher():
        threading.Thread(target=_watch, daemon=True).start()


def say_if_gone() -> None:
    """Say, once on each host, that the launcher is gone, if it is.

    For a rank that another one asks to leave: it may not have seen it by itself yet.
    """
    if not _has_launcher() or not _is_gone() or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    if _UNSAID.acquire(blocking=False):
        with suppress(OSError):  # whoever read our lines may be gone too
            print(
                f"error: the launcher (process {_PARENT}) is gone; its ranks stop, the same "
                "command continues",
                file=sys.stderr,
                flush=True,
            )


def job() -> str:
    """Return a name that the ranks of one launcher share, and no other ranks on this host.

    Empty where ranks on several hosts belong together: nothing is known to them all alone.
    """
    is_on_one_host = os.environ.get("CROSS_SIZE") == "1"
    return os.environ.get("TORCHELASTIC_RUN_ID") or (str(_PARENT) if is_on_one_host else "")


def _has_launcher() -> bool:
    return any(mark in os.environ for mark in _MARKS)


def _watch() -> None:
    """Wait until the launcher is gone; then stop as SIGTERM would, and in any case soon."""
    while not _is_gone():
        time.sleep(_POLL_SECONDS)
    say_if_gone()
    # In the loop a request to save and leave together; before and after it the end.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


def _is_gone() -> bool:
    if _PARENT == _INIT and not _is_our_python(_INIT):
        return True  # before we could ask; in a container the launcher itself may be process 1
    if os.getppid() != _PARENT:
        return True
    return _RUNNER is not None and _parent_of(_PARENT) != _RUNNER


def _runner() -> int | None:
    """Return the process of the command `deepspeed`, where it started the launcher."""
    with suppress(OSError):
        grandparent = _parent_of(_PARENT)
        words = Path(f"/proc/{grandparent}/cmdline").read_bytes().split(b"\0")
        if any(os.path.basename(word) == b"deepspeed" for word in words[:2]):
            return grandparent
    return None


def _parent_of(process: int) -> int | None:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])  # the name, in parentheses, may hold anything


def _is_our_python(process: int) -> bool:
    try:
        return os.path.samefile(f"/proc/{process}/exe", "/proc/self/exe")
    except OSError:  # of another user
        return False


_RUNNER = _runner()
