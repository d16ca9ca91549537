"""A pool of Ray actors that outlives the death of any of them."""

import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# Both are read when Ray is imported. The second, made for desktops, is what binds a local Ray to
# 127.0.0.1: an address given to ray.init is replaced by one that other machines can reach.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from ray.exceptions import RayError, RayTaskError

from mips_dist.errors import MipsError
from preprocess import work

# Work that ends its actor this often is held to be the cause of it.
_MAX_ATTEMPTS = 10
_OBJECT_STORE_BYTES = 256 * 1024 * 1024  # a few shards in flight


@dataclass(kw_only=True)
class Task:
    """One call of an actor."""

    key: int
    label: str  # names the work in messages
    arguments: tuple[Any, ...]
    num_rows: int
    attempts: int = 0


@dataclass(kw_only=True)
class Share:
    """What one actor did; its peak of memory is that of its process."""

    node: str
    tasks: int = 0
    rows: int = 0
    cpu_seconds: float = 0.0
    max_rss_bytes: int = 0


class Finished(NamedTuple):
    """What a task returned, and who did it at what cost."""

    result: Any
    actor: str
    node: str
    cpu_seconds: float
    max_rss_bytes: int


class Worker:
    """Turns one task after another into bytes; knows no file and keeps no state."""

    def run(self, function: str, arguments: Sequence[Any]) -> Finished:
        """Call a function of `preprocess.work`."""
        start = time.process_time()
        result = getattr(work, function)(*arguments)
        cpu_seconds = time.process_time() - start
        context = ray.get_runtime_context()
        return Finished(
            result,
            context.get_actor_id() or "",
            context.get_node_id(),
            cpu_seconds,
            1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        )


_Actor: Any = ray.remote(num_cpus=1)(Worker)


class WorkerPool:
    """Ray actors on this machine, or on the cluster that RAY_ADDRESS names.

    Parameters
    ----------
    num_actors
        Actors; None: one per core that is free to use.

    Attributes
    ----------
    ledger
        Actor id -> what it did.
    num_deaths
        Actors that died.
    """

    def __init__(self, num_actors: int | None) -> None:
        self._start_ray(num_actors or len(os.sched_getaffinity(0)))
        if num_actors is None:
            num_actors = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._workers = [_Actor.remote() for _ in range(num_actors)]
        self.num_deaths = 0
        self.ledger: dict[str, Share] = {}

    @staticmethod
    def _start_ray(num_cpus: int) -> None:
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
            return
        ray.init(
            address="local",  # never a cluster of someone else on this machine
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )

    def __enter__(self) -> "WorkerPool":
        """Return the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the actors, and Ray if it was started here."""
        ray.shutdown()

    def run(self, method: str, tasks: Iterable[Task]) -> Iterator[tuple[int, Any]]:
        """Yield (key, result) of every task, in order of completion.

        Tasks are taken from the iterable one at a time, as actors become free. A task whose actor
        dies is given to a new actor.

        Parameters
        ----------
        method
            Function of `preprocess.work`.
        tasks
            The calls.
        """
        waiting = iter(tasks)
        running: dict[Any, tuple[int, Task]] = {}

        def submit(slot: int, task: Task | None) -> None:
            if task is not None:
                reference = self._workers[slot].run.remote(method, task.arguments)
                running[reference] = (slot, task)

        for slot in range(len(self._workers)):
            submit(slot, next(waiting, None))
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            slot, task = running.pop(done[0])
            try:
                result = ray.get(done[0])
            except RayTaskError as error:
                raise error.cause from error
            except RayError as error:
                self._replace(slot, task, error)
                submit(slot, task)
                continue
            submit(slot, next(waiting, None))
            self._count(task, result)
            yield task.key, result.result

    def _count(self, task: Task, finished: Finished) -> None:
        share = self.ledger.setdefault(finished.actor, Share(node=finished.node))
        share.tasks += 1
        share.rows += task.num_rows
        share.cpu_seconds += finished.cpu_seconds
        share.max_rss_bytes = max(share.max_rss_bytes, finished.max_rss_bytes)

    def _replace(self, slot: int, task: Task, error: RayError) -> None:
        task.attempts += 1
        self.num_deaths += 1
        print(f"an actor died at {task.label}; a new one goes on", file=sys.stderr, flush=True)
        if task.attempts == _MAX_ATTEMPTS:
            first_line = str(error).strip().partition("\n")[0]
            raise MipsError(
                f"{task.label} ended {_MAX_ATTEMPTS} workers ({first_line}); take these rows out "
                "of the input, or give the workers more memory (fewer num_actors)"
            ) from error
        ray.kill(self._workers[slot])  # in case it is only out of reach
        self._workers[slot] = _Actor.remote()
