"""A batch made ahead is the batch, an error comes through, and no process outlives its use."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from mips_dist.data.batch import PolymerBatch, collate
from mips_dist.data.block import PolymerBlock
from mips_dist.data.prefetch import dead_workers_in_words, prefetch
from mips_dist.errors import MipsError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_process_stays() -> Iterator[None]:
    before = set(psutil.Process().children())
    yield
    gone, alive = psutil.wait_procs(set(psutil.Process().children()) - before, timeout=20)
    assert not alive, gone


@pytest.fixture
def make(block: PolymerBlock) -> Callable[[int], list[PolymerBatch]]:
    """Make one polymer a step, and say which process made it."""

    def make(step: int) -> list[PolymerBatch]:
        if step == 6:
            raise MipsError("step 6 cannot be had")
        batch = collate(block.select([step % len(block)]))
        batch.sample_index = torch.tensor([step, os.getpid()])
        return [batch]

    return make


def test_steps_come_in_order_from_all_workers(make):
    ahead = prefetch(make, range(1, 100), 2)
    seen = [next(ahead)[0].to("cpu") for _ in range(5)]
    with pytest.raises(MipsError, match=r"^step 6 cannot be had$"):
        next(ahead)
    assert [int(batch.sample_index[0]) for batch in seen] == [1, 2, 3, 4, 5]
    assert len({int(batch.sample_index[1]) for batch in seen} - {os.getpid()}) == 2
    for step, batch in enumerate(seen, start=1):
        assert torch.equal(batch.atom_features, make(step)[0].atom_features)


def test_a_generator_that_is_closed_ends_its_workers(make):
    ahead = prefetch(make, range(10, 10**9), 2)
    workers = {int(next(ahead)[0].to("cpu").sample_index[1]) for _ in range(4)}
    assert all(psutil.pid_exists(pid) for pid in workers)
    ahead.close()
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_worker_is_one_line(make):
    ahead = prefetch(make, range(10, 10**9), 2)
    (worker, *_) = {int(next(ahead)[0].to("cpu").sample_index[1]) for _ in range(4)}

    def go_on() -> None:
        with dead_workers_in_words():
            os.kill(worker, signal.SIGKILL)
            for _ in ahead:
                pass

    with pytest.raises(MipsError, match=r"reads shards died.*same command") as caught:
        go_on()
    assert "\n" not in str(caught.value)
    # The other worker ends with torch's iterator, which the traceback still holds.
    ahead.close()
    del caught
    gc.collect()


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(7)", 7),
        ("os._exit(9)", 9),
        # A signal to the whole group, which the rank takes for a request: its workers go on.
        (
            "signal.signal(signal.SIGTERM, lambda *_: None); os.killpg(0, signal.SIGTERM)\n"
            "for _ in range(20): next(ahead)\n"
            "sys.exit(3)",
            3,
        ),
        ("os.killpg(0, signal.SIGINT); time.sleep(60)", -signal.SIGINT),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_workers_end_with_their_process(end: str, code: int, tmp_path: Path) -> None:
    text = (
        "import os, signal, sys, time\n"
        "from mips_dist.data.prefetch import prefetch\n"
        "def make(step):\n"
        f"    open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w').close()\n"
        "    return []\n"
        "ahead = prefetch(make, range(10**9), 2)\n"
        "for _ in range(6): next(ahead)\n"
        f"{end}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=ROOT,
        timeout=60,
        capture_output=True,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == code, done.stderr
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
