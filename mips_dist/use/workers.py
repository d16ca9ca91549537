"""Predict in processes of their own: several at a time, and none that a molecule ends is missed.

RDKit is C++: a molecule may abort in it or loop in it for ever. What a process was at work on when
it ended is tried again, one text at a time; a text that ends its process each time is given up, and
the rest is kept. The results are the same for any number of processes.
"""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from mips_dist.errors import MipsError

SECONDS_PER_TEXT = 120.0  # of the processor; the longest units that are allowed take a tenth
_TRIES = 2  # alone, after once with others


class Failed(str):
    """Why a text was given up, ``code: words``, in place of its result."""


class _Piece:
    """Some texts of a task: their places in it, and how often they have ended a process."""

    def __init__(self, places: Sequence[int], num_ends: int = 0) -> None:
        self.places = places
        self.num_ends = num_ends


class _Worker:
    """One process."""

    def __init__(self, models: Sequence[str | Path]) -> None:
        self.connection, theirs = Pipe()
        root = str(Path(__file__).resolve().parents[2])
        inherited = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([root, inherited] if inherited else [root])
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mips_dist.use.predict_worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # ours may carry the csv
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
            )
        self.piece: _Piece | None = None
        self.connection.send(list(models))

    def end(self) -> int:
        """End the process if it still runs, and return its exit code."""
        self.connection.close()
        self.process.kill()
        return self.process.wait()

    def reason(self) -> str:
        """Return why the process ended of itself, ``code: words``."""
        code = self.process.wait()
        if code == -signal.SIGPROF:
            return f"timed_out: no result within {SECONDS_PER_TEXT:g} s of the processor"
        if code == -signal.SIGKILL:
            return "crashed: its process was killed each time, most likely for want of memory"
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return f"crashed: ended its process by {how}"


class Workers:
    """Processes that predict with the same models.

    Use as a context manager: all processes are gone at its end.

    Attributes
    ----------
    properties, uncalibrated
        Those of the models; those whose model gives no interval.
    """

    def __init__(self, models: Sequence[str | Path], number: int) -> None:
        self._models = models
        self._number = number
        self._workers: list[_Worker] = []
        self.properties: list[str] = []
        self.uncalibrated: list[str] = []

    def __enter__(self) -> "Workers":
        try:
            self._workers = [_Worker(self._models) for _ in range(self._number)]
            for worker in self._workers:
                self._make_ready(worker)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []

    def _make_ready(self, worker: _Worker) -> None:
        """Wait until a process has its models.

        Raises
        ------
        MipsError
            The error of a model, or the process cannot be started.
        """
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            raise MipsError(
                f"a process of prediction ended before it began ({worker.reason()}); free memory, "
                "or use fewer with --workers"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        self.properties, self.uncalibrated = answer

    def map(self, method: str, texts: Sequence[str], piece: int) -> list[Any]:
        """Apply a method of `mips_dist.use.predict_worker` to each text, in their order.

        Parameters
        ----------
        piece
            Texts that a process gets at a time.

        Returns
        -------
        One result for each text; `Failed` for those that end their process each time.
        """
        results: list[Any] = [None] * len(texts)
        todo = deque(
            _Piece(range(start, min(start + piece, len(texts))))
            for start in range(0, len(texts), piece)
        )
        while todo or any(worker.piece for worker in self._workers):
            for worker in self._workers:
                if todo and worker.piece is None:
                    worker.piece = todo.popleft()
                    self._ask(worker, method, [texts[place] for place in worker.piece.places])
            busy = {w.connection: (i, w) for i, w in enumerate(self._workers) if w.piece}
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                index, worker = busy[connection]
                assert worker.piece is not None
                try:
                    found = connection.recv()
                except (EOFError, OSError):
                    self._again(worker, todo, results)
                    self._workers[index] = _Worker(self._models)
                    self._make_ready(self._workers[index])
                    continue
                for place, result in zip(worker.piece.places, found, strict=True):
                    results[place] = result
                worker.piece = None
        return results

    def _ask(self, worker: _Worker, method: str, texts: list[str]) -> None:
        with suppress(OSError):  # the process is gone, which its answer will tell
            worker.connection.send((SECONDS_PER_TEXT * len(texts), method, texts))

    def _again(self, worker: _Worker, todo: "deque[_Piece]", results: list[Any]) -> None:
        """Put what an ended process was at work on back, one text at a time, or give it up."""
        piece = worker.piece
        assert piece is not None
        reason = worker.reason()
        worker.connection.close()
        if len(piece.places) > 1:
            todo.extendleft(_Piece([place]) for place in reversed(piece.places))
        elif piece.num_ends + 1 < _TRIES:
            todo.appendleft(_Piece(piece.places, piece.num_ends + 1))
        else:
            results[piece.places[0]] = Failed(reason)
