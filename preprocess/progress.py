"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 10.0


class Advance(Protocol):
    """Reports that `count` more items are done, in this run or in an earlier one."""

    def __call__(self, count: int, is_new: bool = True) -> None:
        """Report items."""


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Advance]:
    """Show how far some work has come, on stderr.

    Parameters
    ----------
    label
        What is being done.
    total
        Items in all.
    unit
        What an item is, in the plural.

    Yields
    ------
    A function that reports finished items.
    """
    meter = _Meter(label, total, unit)
    if not sys.stderr.isatty():
        meter.print_line()
        yield meter.advance_plain
        meter.print_line()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, rate="")

        def advance(count: int, is_new: bool = True) -> None:
            meter.add(count, is_new)
            bar.update(task, advance=count, rate=meter.rate_text())

        yield advance


class _Meter:
    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.new = 0
        self.start = self.last_line = time.monotonic()

    def add(self, count: int, is_new: bool) -> None:
        self.done += count
        self.new += count * is_new

    def rate(self) -> float:
        """Items per second of this run; what an earlier run did costs no time."""
        return self.new / max(time.monotonic() - self.start, 1e-9)

    def rate_text(self) -> str:
        return f"{self.rate():,.0f} {self.unit}/s" if self.new else ""

    def advance_plain(self, count: int, is_new: bool = True) -> None:
        self.add(count, is_new)
        now = time.monotonic()
        if now - self.last_line >= _SECONDS_BETWEEN_LINES and self.done < self.total:
            self.last_line = now
            self.print_line()

    def print_line(self) -> None:
        line = f"{self.label}: {self.done:,} of {self.total:,} {self.unit}"
        if self.new:
            line += f", {self.rate_text()}"
            if self.done < self.total:
                line += f", {(self.total - self.done) / self.rate():,.0f} s left"
        print(line, file=sys.stderr, flush=True)
