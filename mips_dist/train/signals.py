"""Stopping on request: a signal sets a flag, and the loop leaves at the end of its step."""

import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# One Ctrl-C reaches a rank twice, from the terminal and from its launcher; an impatient second one
# comes later than this, in seconds.
_ONE_REQUEST = 3.0


class StopSignal:
    """A context in which SIGINT and SIGTERM only set `is_set`; a second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self.is_set = False
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Take over the signals."""
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.is_set and number == signal.SIGINT and now - self._since > _ONE_REQUEST:
            raise KeyboardInterrupt
        if not self.is_set:
            self.is_set = True
            self._since = now
