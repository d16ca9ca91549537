"""Values of coming steps, made by one background thread while the last ones are used."""

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """A function of the step, called ahead for the next steps.

    The values are those of the function; only when they are made differs. An error of the function
    is raised where its step is asked for. The thread ends with `close`, and with the main thread.

    Parameters
    ----------
    make
        Called from the background thread alone, except in a forked child, which has no such thread.
    depth
        Steps that are kept ready.
    """

    def __init__(self, make: Callable[[int], T], depth: int) -> None:
        self._make = make
        self._depth = depth
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._wanted = 0
        self._coming: int | None = None  # the step to be made now or next
        self._values: dict[int, T] = {}
        self._errors: dict[int, BaseException] = {}

    def __call__(self, step: int) -> T:
        """Return the value of a step; the one asked for last is still there."""
        if self._process != os.getpid():
            return self._make(step)
        with self._changed:
            self._wanted = step
            self._values = {n: x for n, x in self._values.items() if n >= step}
            if step not in self._values and step != self._coming:
                self._values, self._errors, self._coming = {}, {}, step
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="prefetch")
                self._thread.start()
            self._changed.notify_all()
            self._changed.wait_for(lambda: step in self._values or step in self._errors)
            if step in self._errors:
                raise self._errors.pop(step)
            return self._values[step]

    def close(self) -> None:
        """End the thread, after the step that it is at."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None and self._process == os.getpid():
            self._thread.join()

    def _work(self) -> None:
        while (step := self._next_step()) is not None:
            value, error = None, None
            try:
                value = self._make(step)
            except BaseException as caught:
                error = caught
            with self._changed:
                if step != self._coming:  # another one was asked for meanwhile
                    continue
                if error is None:
                    self._values[step] = value  # type: ignore[assignment]
                    self._coming = step + 1
                else:
                    self._errors[step], self._coming = error, None
                self._changed.notify_all()

    def _next_step(self) -> int | None:
        """Wait until there is something to do; None: nothing ever again."""
        with self._changed:
            while not self._is_closed and threading.main_thread().is_alive():
                if self._coming is not None and self._coming <= self._wanted + self._depth:
                    return self._coming
                # Nobody tells of the end of the main thread.
                self._changed.wait(0.2)
        return None
