"""Errors that a user can act on, and the one place where they become exit codes."""

import errno
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Packages that prediction does without, and the extra of the wheel that brings each.
EXTRA_OF = {
    "deepspeed": "train",
    "hydra": "train",
    "omegaconf": "train",
    "optuna": "train",
    "psutil": "train",
    "ray": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "torch_geometric": "train",
    "webdataset": "train",
}


class MipsError(Exception):
    """Something outside the code went wrong: one line that names cause and remedy (exit code 1)."""

    exit_code = 1


class UsageError(MipsError):
    """The command itself is wrong, such as an unknown key or a missing column (exit code 2)."""

    exit_code = 2


def missing_package(error: ModuleNotFoundError) -> MipsError | None:
    """Return what to install for a package that is not there, or None if it is no extra's."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRA_OF:
        return None
    extra = EXTRA_OF[package]
    return MipsError(
        f"this needs {package}, which is not installed: pip install 'mips-dist[{extra}]'"
    )


@contextmanager
def needs_extra() -> Iterator[None]:
    """End the process in one line if an import in this block wants a package of an extra.

    For the imports of an entry file, which run before anything can be guarded.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        sys.exit(f"error: {missing}")


def guarded(call: Callable[[], int | None], debug: bool = False) -> int:
    """Call a function and return its exit code; errors that a user can act on become one line.

    Anything else is a defect of ours and keeps its traceback.
    """
    try:
        return _called(call)
    except MipsError as error:
        if os.environ.get("RANK", "0") != "0":
            # All ranks meet the same error: rank 0 says it once, and a launcher, which ends every
            # rank as soon as one has failed, must not end it before.
            time.sleep(2.0)
            return error.exit_code
        if debug:
            traceback.print_exc()
        print(f"error: {_in_one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if debug:
            traceback.print_exc()
        where = f" ({error.filename})" if error.filename else ""
        remedy = "; free some space and run the same command again" * (error.errno == errno.ENOSPC)
        # An OSError that a library made itself may have words only.
        what = error.strerror or " ".join(str(error).split()) or type(error).__name__
        print(f"error: {_in_one_line(f'{what}{where}{remedy}')}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130


def _in_one_line(text: str) -> str:
    """Return a text without what ends a line or commands a terminal; names may come from others."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _called(call: Callable[[], int | None]) -> int:
    try:
        return call() or 0
    except ModuleNotFoundError as error:
        if (missing := missing_package(error)) is not None:
            raise missing from error
        raise
