"""A pool of Ray actors that outlives the death of any of them."""

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from mips_dist.own_ray import private_environment

# Read when Ray is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if not os.environ.get("RAY_ADDRESS"):
    os.environ.update(private_environment())

import ray
from ray.exceptions import RayError, RayTaskError

from mips_dist.errors import MipsError
from preprocess.isolation import Condemned, Finished, Isolated, Limits
from preprocess.journal import Journal

# Without a single result between them, so many deaths are held to go on for ever.
_MAX_DEATHS_IN_A_ROW = 100
_MAX_FALSE_STARTS = 10  # actors in a row that died before they answered
_MAX_SECONDS_ALONE = 300.0  # with no actor alive; a node may come back, or be started
_SECONDS_BETWEEN_CHECKS = 5.0
_OBJECT_STORE_BYTES = 256 * 1024 * 1024  # a few shards in flight


@dataclass(kw_only=True)
class Task:
    """One call of an actor: a function of `preprocess.work`, its texts, its further arguments."""

    key: int
    label: str  # names the work in messages
    texts: list[Any]
    arguments: tuple[Any, ...] = ()
    condemned: dict[int, str] = field(default_factory=dict)
    suspect: int | None = None  # see `Isolated.run`


@dataclass(kw_only=True)
class Share:
    """What one actor did; its peak of memory is that of its process and of its child."""

    node: str
    tasks: int = 0
    rows: int = 0
    cpu_seconds: float = 0.0
    max_rss_bytes: int = 0


class Worker:
    """Turns one task after another into bytes; knows no file and keeps no state."""

    def __init__(self, limits: Limits) -> None:
        self._isolated = Isolated(limits)

    def identify(self) -> tuple[str, str]:
        """Return the ids of this actor and of its node."""
        context = ray.get_runtime_context()
        return context.get_actor_id() or "", context.get_node_id()

    def run(self, *arguments: Any) -> Finished | Condemned:
        """See `preprocess.isolation.Isolated.run`."""
        return self._isolated.run(*arguments)


_Actor: Any = ray.remote(num_cpus=1)(Worker)


class WorkerPool:
    """Ray actors on this machine, or on the cluster that RAY_ADDRESS names.

    An actor gets work once it has answered; one that waits for a node to come back holds up nobody.

    Parameters
    ----------
    num_actors
        Actors; None: one per core that is free to use.
    limits
        What one polymer may take.
    journal
        Where verdicts on texts that end their process are looked up and written down.

    Attributes
    ----------
    ledger
        Actor id -> what it did, of all that answered.
    num_deaths
        Actors that died.
    """

    def __init__(self, num_actors: int | None, limits: Limits, journal: Journal) -> None:
        self._limits = limits
        self._journal = journal
        self._start_ray(num_actors or len(os.sched_getaffinity(0)))
        if num_actors is None:
            num_actors = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.ledger: dict[str, Share] = {}
        self.num_deaths = 0
        self._deaths_in_a_row = self._false_starts = 0
        self._last_alive = self._last_check = time.monotonic()
        self._node = ray.get_runtime_context().get_node_id()
        self._starting: dict[Any, Any] = {}  # reference to the first answer -> actor
        self._idle: list[tuple[Any, str]] = []  # actor and its id
        self._busy: dict[Any, tuple[Any, str, Task]] = {}  # reference to the result -> ...
        for _ in range(num_actors):
            self._start_actor()

    @staticmethod
    def _start_ray(num_cpus: int) -> None:
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if not os.environ.get("RAY_ADDRESS"):
            options |= {
                "address": "local",  # never a cluster of someone else on this machine
                "num_cpus": num_cpus,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
            }
        try:
            ray.init(**options)
        except SystemExit as error:  # what Ray's own handler of SIGTERM raises meanwhile
            raise KeyboardInterrupt from error
        except Exception as error:  # Ray raises bare ones
            first_line = str(error).strip().partition("\n")[0]
            raise MipsError(
                f"Ray does not start ({first_line}); look at RAY_ADDRESS, at the token of the "
                "cluster (RAY_AUTH_MODE, ~/.ray/auth_token) and at the load of this machine, and "
                "run the same command again"
            ) from error
        interrupt_on_sigterm()  # in place of Ray's handler, which prints a stack

    def __enter__(self) -> "WorkerPool":
        """Return the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the actors, and Ray if it was started here."""
        ray.shutdown()

    def run(self, method: str, tasks: Iterable[Task]) -> Iterator[tuple[int, Any]]:
        """Yield (key, result) of every task, in order of completion.

        Tasks are taken from the iterable one at a time, as actors become free. The task of an actor
        that dies goes to the next one that is free.

        Parameters
        ----------
        method
            Function of `preprocess.work`.
        tasks
            The calls.
        """
        waiting = iter(tasks)
        returned: deque[Task] = deque()

        def keep_busy() -> None:
            while self._idle:
                task = returned.popleft() if returned else next(waiting, None)
                if task is None:
                    return
                task.condemned |= self._journal.find(method, task.texts)
                self._send(method, task)

        while True:
            keep_busy()
            if not self._busy and self._idle:
                return
            references = [*self._busy, *self._starting]
            done, _ = ray.wait(references, num_returns=1, timeout=_SECONDS_BETWEEN_CHECKS)
            for reference in done:
                if reference in self._starting:
                    self._join(reference)
                    continue
                actor, name, task = self._busy.pop(reference)
                try:
                    outcome = ray.get(reference)
                except RayTaskError as error:
                    raise error.cause from error
                except RayError as error:
                    returned.append(task)
                    self._replace(actor, f"at {task.label}", error)
                    continue
                self._idle.append((actor, name))
                self._deaths_in_a_row = 0
                if isinstance(outcome, Condemned):
                    self._condemn(method, task, outcome)
                    returned.append(task)
                    continue
                self._count(name, task, outcome)
                keep_busy()  # before the caller writes down what has come
                yield task.key, outcome.result
            self._check_alive()

    def _send(self, method: str, task: Task) -> None:
        actor, name = self._idle.pop()
        reference = actor.run.remote(
            method, task.texts, task.condemned, task.suspect, task.arguments
        )
        self._busy[reference] = (actor, name, task)

    def _condemn(self, method: str, task: Task, outcome: Condemned) -> None:
        text = task.texts[outcome.place]
        self._journal.add(method, text, outcome.reason)
        task.suspect = outcome.place + 1
        line = f"{task.label}: {text[:60]!r} is left out; {outcome.reason}"
        print(line, file=sys.stderr, flush=True)

    def _count(self, name: str, task: Task, outcome: Finished) -> None:
        share = self.ledger[name]
        share.tasks += 1
        share.rows += len(task.texts)
        share.cpu_seconds += outcome.cpu_seconds
        share.max_rss_bytes = max(share.max_rss_bytes, outcome.max_rss_bytes)

    def _start_actor(self) -> None:
        actor = _Actor.remote(self._limits)
        self._starting[actor.identify.remote()] = actor

    def _join(self, reference: Any) -> None:
        """Take in an actor that has given its first answer, or has died over it."""
        actor = self._starting.pop(reference)
        try:
            name, node = ray.get(reference)
        except RayError as error:
            self._false_starts += 1
            self._replace(actor, "before it was ready", error)
            return
        self._false_starts = 0
        self.ledger[name] = Share(node=node)
        self._idle.append((actor, name))

    def _replace(self, actor: Any, when: str, error: RayError) -> None:
        self.num_deaths += 1
        self._deaths_in_a_row += 1
        print(f"an actor died {when}; a new one goes on", file=sys.stderr, flush=True)
        if self._deaths_in_a_row == _MAX_DEATHS_IN_A_ROW or self._false_starts == _MAX_FALSE_STARTS:
            first_line = str(error).strip().partition("\n")[0]
            raise MipsError(
                f"actors only die and do no work ({first_line}); give them more memory (fewer "
                "num_actors) or end what kills them, and run the same command again"
            ) from error
        ray.kill(actor)  # in case it is only out of reach
        self._start_actor()

    def _check_alive(self) -> None:
        now = time.monotonic()
        if now - self._last_check < _SECONDS_BETWEEN_CHECKS:
            return
        self._last_check = now
        if not any(node["Alive"] and node["NodeID"] == self._node for node in ray.nodes()):
            raise MipsError(
                "the processes of Ray on this machine were ended; run the same command again"
            )
        if self._idle or self._busy:
            self._last_alive = now
        elif now - self._last_alive > _MAX_SECONDS_ALONE:
            raise MipsError(
                f"no actor was alive for {_MAX_SECONDS_ALONE:g} s; look at `ray status` for nodes "
                "with a free CPU, and run the same command again"
            )


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: one line, exit code 130, resumable."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
