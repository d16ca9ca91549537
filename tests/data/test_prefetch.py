"""A value made ahead is the value, an error comes through, and no thread outlives its use."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mips_dist.data.prefetch import Prefetcher
from mips_dist.errors import MipsError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_values_are_made_ahead_and_no_further_than_asked() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step * step

    ahead = Prefetcher(make, 3)
    assert [ahead(step) for step in range(5)] == [0, 1, 4, 9, 16]
    deadline = time.monotonic() + 20
    while len(made) < 8:  # 4 was the last one that was asked for
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ahead(4) == 16  # still there
    assert [ahead(step) for step in (7, 100, 2, 3)] == [49, 10_000, 4, 9]
    assert made[:8] == list(range(8))
    assert max(step for step in made if step < 50) <= 7 + 3
    ahead.close()


def test_an_error_comes_where_its_step_is_asked_for_and_may_pass() -> None:
    broken = {5}

    def make(step: int) -> int:
        if step in broken:
            raise MipsError(f"step {step} cannot be had")
        return step

    ahead = Prefetcher(make, 4)
    assert [ahead(step) for step in range(5)] == [0, 1, 2, 3, 4]
    for _ in range(2):
        with pytest.raises(MipsError, match="step 5 cannot be had"):
            ahead(5)
    broken.clear()
    assert [ahead(step) for step in (5, 6)] == [5, 6]
    ahead.close()


def test_a_forked_child_makes_its_own() -> None:
    ahead = Prefetcher(lambda step: step + 1, 2)
    assert ahead(0) == 1
    child = os.fork()
    if child == 0:
        is_right = ahead(1) == 2 and ahead(9) == 10
        ahead.close()
        os._exit(0 if is_right else 1)
    deadline = time.monotonic() + 20
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0
    assert ahead(1) == 2
    ahead.close()


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(7)", 7),
        ("raise MipsError('no')", 1),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", -signal.SIGINT),
    ],
)
def test_a_process_ends_without_close(end: str, code: int) -> None:
    text = (
        "import os, signal, sys, time\n"
        "from mips_dist.data.prefetch import Prefetcher\n"
        "from mips_dist.errors import MipsError\n"
        "ahead = Prefetcher(lambda step: time.sleep(0.05), 10**9)\n"
        f"ahead(3)\n{end}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, timeout=60, capture_output=True, check=False
    )
    assert done.returncode == code
