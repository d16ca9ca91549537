"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

# Between plain lines, in seconds: a twentieth of the time that has passed, so that a long run's log
# stays short, but within these bounds.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 10.0, 300.0


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
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, pace="")

        def advance(count: int, is_new: bool = True) -> None:
            meter.add(count, is_new)
            bar.update(task, advance=count, pace=meter.pace())

        yield advance


def duration(seconds: float) -> str:
    """Write a time span with the two largest units that matter.

    >>> duration(4.24), duration(42.4), duration(125), duration(7300), duration(90_000)
    ('4.2 s', '42 s', '2 min 5 s', '2 h 1 min', '1 d 1 h')
    """
    whole = round(seconds)
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), (smaller_name, smaller) in pairwise(units):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {smaller_name}"
    return f"{whole} s" if whole >= 10 else f"{seconds:.1f} s"


class _Meter:
    """Counts items; what an earlier run did takes no time and says nothing about the rate."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.new = 0
        self.begin = self.start = self.last_line = time.monotonic()

    def add(self, count: int, is_new: bool) -> None:
        self.done += count
        self.new += count * is_new
        if not self.new:
            self.start = time.monotonic()  # so far, only earlier work was looked through

    def pace(self) -> str:
        """Return rate and time left; nothing before the first new item."""
        if not self.new:
            return ""
        rate = self.new / max(time.monotonic() - self.start, 1e-9)
        text = f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.2g} {self.unit}/s"
        if self.done < self.total:
            text += f", {duration((self.total - self.done) / rate)} left"
        return text

    def advance_plain(self, count: int, is_new: bool = True) -> None:
        self.add(count, is_new)
        now = time.monotonic()
        pause = min(max((now - self.begin) / 20, _SHORTEST_PAUSE), _LONGEST_PAUSE)
        if now - self.last_line >= pause and self.done < self.total:
            self.last_line = now
            self.print_line()

    def print_line(self) -> None:
        line = f"{self.label}: {self.done:,} of {self.total:,} {self.unit}"
        pace = self.pace()
        print(f"{line}, {pace}" if pace else line, file=sys.stderr, flush=True)
