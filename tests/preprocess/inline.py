"""The pool of actors without Ray: calls made here and now, in a shuffled order of completion."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

from preprocess import work
from preprocess.isolation import Limits
from preprocess.journal import Journal
from preprocess.pool import Share, Task


class InlinePool:
    """The calls of a `WorkerPool`, made here and now, in a shuffled order of completion."""

    num_deaths = 0

    def __init__(self, num_actors: int | None, limits: Limits, journal: Journal) -> None:
        self.journal = journal
        self.ledger: dict[str, Share] = {}
        self.order = random.Random(num_actors)

    def __enter__(self) -> "InlinePool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, method: str, tasks: Iterable[Task]) -> Iterator[tuple[int, Any]]:
        waiting = list(tasks)
        self.order.shuffle(waiting)
        for task in waiting:
            condemned = self.journal.find(method, task.texts)
            yield task.key, getattr(work, method)(task.texts, condemned, *task.arguments)
