"""A job in which one rank hangs or dies ends within a limit, with a line that names the rank.

Every rank has a thread that writes its place (a tick, and the step that the rank works on) to the
store through which the ranks found each other, and reads the places of all. A rank whose step does
not move for the limit looks at what it has read: a rank whose tick stands still is stopped, dead or
cut off; else the ranks that are behind in steps are stuck. The lowest rank that is neither says so,
and all leave: a launcher then ends the rest.
"""

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch.distributed as dist

from mips_dist.train.ranks import Ranks

# Ticks that a rank may miss before it counts as silent.
_TICKS = 4
# Seconds between two: longer for many ranks, as each reads the places of all; a fraction of the
# limit where that is short, as in tests.
_SHORTEST_TICK, _LONGEST_TICK = 0.75, 3.0
_SECONDS_PER_RANK = 0.01
_TICKS_PER_LIMIT = 12
# Seconds that come before the first step in any case: the data set is read there.
_SET_UP = 600.0
# Seconds to wait for the threads at the end.
_LONGEST_GOODBYE = 10.0


class Watchdog:
    """A context; call `progress` at every step.

    Parameters
    ----------
    ranks
        Of the run.
    limit
        Seconds that a step may take; before the first one at least ten minutes.
    """

    def __init__(self, ranks: Ranks, limit: float) -> None:
        self._ranks = ranks
        self._limit = limit
        by_size = max(_SHORTEST_TICK, _SECONDS_PER_RANK * ranks.world_size)
        self._tick = min(by_size, _LONGEST_TICK, limit / _TICKS_PER_LIMIT)
        self._step = 0
        self._moved = time.monotonic()
        self._ended = threading.Event()
        self._is_store_gone = threading.Event()
        self._is_speaking = threading.Lock()
        # Place of each rank as last read, and when it last changed.
        self._places = [""] * ranks.world_size
        self._changed = [self._moved] * ranks.world_size

    def __enter__(self) -> Self:
        """Begin to watch; all ranks must."""
        # A connection of its own: that of the collectives may be waiting for a stuck rank.
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(
            f"mips_watchdog_{restart}",
            dist.TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=max(60.0, self._limit)),
            ),
        )
        store.set(str(self._ranks.rank), "0 0")
        dist.barrier()
        self._moved = time.monotonic()
        self._changed = [self._moved] * self._ranks.world_size
        # Two threads, as reading may wait for ever where the store itself is gone.
        self._threads = [
            threading.Thread(target=self._exchange, args=(store,), daemon=True),
            threading.Thread(target=self._watch, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop watching; an error of a collective, because a rank is gone, ends in the line."""
        if isinstance(error, RuntimeError) and self._ranks.world_size > 1:
            # A launcher that has seen the rank die asks the others to end; the line comes first.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            deadline = time.monotonic() + (_TICKS + 2) * self._tick
            while not (silent := self._silent()) and time.monotonic() < deadline:
                self._is_store_gone.wait(self._tick / 4)
            if silent:
                self._leave(silent)
        self._ended.set()
        # A thread that still talks to the store when the interpreter ends aborts the process.
        for thread in self._threads:
            thread.join(_LONGEST_GOODBYE)

    def progress(self, step: int) -> None:
        """Say that this rank has begun to work on a step."""
        self._step = step
        self._moved = time.monotonic()

    def _exchange(self, store: dist.Store) -> None:
        """Write this rank's place and read all, until the end."""
        keys = [str(rank) for rank in range(self._ranks.world_size)]
        tick = 0
        while not self._ended.wait(self._tick):
            tick += 1
            try:
                store.set(keys[self._ranks.rank], f"{tick} {self._step}")
                found = [place.decode() for place in store.multi_get(keys)]
            except RuntimeError:  # the store is gone, and with it the process that keeps it
                self._is_store_gone.set()
                return
            for rank, place in enumerate(found):
                if place != self._places[rank]:
                    self._places[rank], self._changed[rank] = place, time.monotonic()

    def _watch(self) -> None:
        """End the process when its step has not moved for the limit."""
        while not self._ended.wait(self._tick):
            limit = self._limit if self._step else max(self._limit, _SET_UP)
            if time.monotonic() - self._moved > limit:
                self._leave(self._silent() or self._behind())

    def _silent(self) -> list[int]:
        """List the ranks whose ticks stand still."""
        if self._is_store_gone.is_set():
            return [0]  # its keeper
        now = time.monotonic()
        silent = [r for r, at in enumerate(self._changed) if now - at > _TICKS * self._tick]
        # Nothing is heard of anyone, this rank included: the way to the store is cut.
        return [0] if self._ranks.rank in silent else silent

    def _behind(self) -> list[int]:
        """List the ranks that work on an earlier step than others; all where none does."""
        steps = [int(place.split()[1]) for place in self._places]
        return [rank for rank, step in enumerate(steps) if step == min(steps)]

    def _leave(self, stuck: list[int]) -> None:
        """Print the line, on one rank, and end this process whatever its main thread waits for."""
        self._is_speaking.acquire()  # for ever: the main thread and `_watch` may both come here
        others = [r for r in range(self._ranks.world_size) if r not in stuck]
        if self._ranks.rank == min(others or stuck):
            names = ", ".join(map(str, stuck))
            print(
                f"error: rank {names} of {self._ranks.world_size} did not answer at step "
                f"{self._step} (timeout_minutes={self._limit / 60:g}); the job ends, the same "
                "command continues from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        else:
            time.sleep(2.0)
        sys.stdout.flush()
        os._exit(1)
