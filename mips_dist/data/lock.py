"""A lock that keeps a second process of this machine out of a folder."""

import fcntl
import time
from pathlib import Path
from typing import IO

from mips_dist.errors import MipsError

# Ranks whose launcher was killed need some seconds to notice it (see launcher.py).
LOCK_SECONDS = 15.0
_POLL_SECONDS = 0.2


def lock_file(path: Path, folder: str, action: str) -> IO[str]:
    """Take the lock that is a file; closing what is returned gives it back.

    The system frees it however the process ends, so a lock is never stale. A process that is about
    to end is waited for, `LOCK_SECONDS`.

    Parameters
    ----------
    path
        Made if it is not there.
    folder, action
        What is locked, and what its holder does, for the line to a user.

    Raises
    ------
    MipsError
        Another process keeps it.
    """
    lock = path.open("a")
    deadline = time.monotonic() + LOCK_SECONDS
    is_waiting = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.close()
                raise MipsError(
                    f"another process is {action} {folder}; wait for it or stop it"
                ) from None
        if not is_waiting:
            print(f"{folder} is in use, waiting up to {LOCK_SECONDS:.0f} s for it", flush=True)
            is_waiting = True
        time.sleep(_POLL_SECONDS)
