"""The two parts of the application: the interface, and the replicas that hold the models.

A request is cut into pieces of a few polymers, so that a long one does not hold up the others and
uses every replica. A replica puts pieces that wait into one batch, in which equal polymers are
computed once; polymers are never put into one tensor, because the last bits of a prediction would
then depend on its batch mates.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ray import serve
from ray._common.tls_utils import add_port_to_grpc_server
from ray.exceptions import RayActorError
from ray.serve._private import replica
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from mips_dist.serve.api import MAX_SECONDS, Overloaded, Unavailable, build_api
from mips_dist.serve.engine import Engine

PIECE = 4  # polymers
MAX_BATCH = 16  # pieces
BATCH_WAIT_SECONDS = 0.005
MAX_ONGOING = 2 * MAX_BATCH  # pieces in a replica: a batch that is worked on, and the next
MAX_QUEUED = 64  # pieces that wait for a replica; more are answered by 503
MAX_OPEN = 1000  # requests of any kind in the interface
_PIECES_AT_A_TIME = 4  # of one request
_SECONDS_TO_TRY_AGAIN = 0.2
_SECONDS_TO_BE_READY = 3.0
_SECONDS_TO_FINISH = 20.0  # work that was taken on, when the server stops
_GONE = (RayActorError, ReplicaUnavailableError)

Rows = list[dict[str, Any]]


@serve.deployment(
    name="models",
    max_ongoing_requests=MAX_ONGOING,
    max_queued_requests=MAX_QUEUED,
    graceful_shutdown_timeout_s=_SECONDS_TO_FINISH,
    graceful_shutdown_wait_loop_s=0.2,
    health_check_period_s=5,
    ray_actor_options={"num_cpus": 1},
)
class Models:
    """A replica: models in memory, one polymer after another."""

    def __init__(self, directories: list[str]) -> None:
        _bind_to_this_machine()
        self._engine = Engine(directories)

    @serve.batch(  # type: ignore[arg-type]
        max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS
    )
    async def predict(  # type: ignore[misc]
        self, texts: list[list[str]], properties: list[tuple[str, ...]]
    ) -> list[tuple[Rows, int]]:
        """Return the rows of each piece, and the number of polymers in the batch."""
        pieces = [
            [(text, names) for text in piece]
            for piece, names in zip(texts, properties, strict=True)
        ]
        questions = [question for piece in pieces for question in piece]
        found = await asyncio.to_thread(self._engine.predict_each, questions)
        return [([found[question] for question in piece], len(questions)) for piece in pieces]

    async def picture(self, text: str, kind: str, name: str) -> tuple[str, str]:
        """See `Engine.picture`."""
        return await asyncio.to_thread(self._engine.picture, text, kind, name)

    async def ready(self) -> bool:
        """Answer."""
        return True


@serve.deployment(
    name="front",
    max_ongoing_requests=MAX_OPEN,
    graceful_shutdown_timeout_s=_SECONDS_TO_FINISH,
    graceful_shutdown_wait_loop_s=0.2,
    ray_actor_options={"num_cpus": 0},
)
@serve.ingress()
class Front:
    """The interface; gives work to replicas and gives it again where one has died."""

    def __init__(
        self, replicas: DeploymentHandle, about: dict[str, Any], hosts: Sequence[str]
    ) -> None:
        _bind_to_this_machine()
        self._replicas, self._about, self._hosts = replicas, about, hosts

    def __serve_build_asgi_app__(self) -> Any:
        """Return what answers requests."""
        return build_api(self, self._about["models"], self._about["pictures"], self._hosts)

    async def predict(self, texts: Sequence[str], properties: tuple[str, ...]) -> tuple[Rows, int]:
        """See `mips_dist.serve.api.Backend`.

        The first piece decides whether a request is taken on; the others of one that is wait.
        """
        pieces = [list(texts[start : start + PIECE]) for start in range(0, len(texts), PIECE)]
        ask = self._replicas.predict.remote
        first = await _ask(lambda: ask(pieces[0], properties))
        places = asyncio.Semaphore(_PIECES_AT_A_TIME)

        async def rest(piece: list[str]) -> tuple[Rows, int]:
            async with places:
                return await _ask(lambda: ask(piece, properties), is_taken_on=True)

        async with asyncio.TaskGroup() as group:
            others = [group.create_task(rest(piece)) for piece in pieces[1:]]
        answers = [first, *(task.result() for task in others)]
        return [row for rows, _ in answers for row in rows], max(size for _, size in answers)

    async def picture(self, text: str, kind: str, name: str) -> tuple[str, str]:
        """See `mips_dist.serve.api.Backend`."""
        draw = self._replicas.picture.remote
        answer: tuple[str, str] = await _ask(lambda: draw(text, kind, name))
        return answer

    async def is_ready(self) -> bool:
        """Say whether a replica answers."""
        try:
            await asyncio.wait_for(self._replicas.ready.remote(), _SECONDS_TO_BE_READY)
        except (TimeoutError, BackPressureError, DeploymentUnavailableError, *_GONE) as error:
            return isinstance(error, BackPressureError)  # those that there are have much to do
        return True


def _bind_to_this_machine() -> None:
    """Have this replica listen on 127.0.0.1 only.

    When its class is made, a replica opens a port on all addresses for calls of other deployments,
    asks nobody who they are, and unpickles what comes. Ray 2.60 has no setting for the address.
    """
    replica.add_port_to_grpc_server = lambda server, _: add_port_to_grpc_server(
        server, "127.0.0.1:0"
    )


async def _ask(send: Callable[[], Awaitable[Any]], is_taken_on: bool = False) -> Any:
    """Ask a replica, and another one where it dies: an answer depends on the question alone.

    Raises
    ------
    Overloaded
        Too much waits, and the request is not one that was taken on.
    Unavailable
        No replica, for as long as a request may take.
    """
    end = time.monotonic() + MAX_SECONDS
    while True:
        try:
            return await send()
        except BackPressureError as error:
            if not is_taken_on:
                raise Overloaded from error
        except DeploymentUnavailableError as error:
            raise Unavailable from error
        except _GONE as error:
            if time.monotonic() > end:
                raise Unavailable from error
        await asyncio.sleep(_SECONDS_TO_TRY_AGAIN)


def application(
    directories: list[str], about: dict[str, Any], hosts: Sequence[str], num_replicas: int
) -> serve.Application:
    """Return the whole application, for `ray.serve.run`."""
    replicas = Models.options(num_replicas=num_replicas).bind(directories)  # type: ignore[attr-defined]
    return Front.bind(replicas, about, hosts)  # type: ignore[attr-defined]
