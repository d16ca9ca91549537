"""The bar on a terminal: two lines that fit its width, however narrow it is."""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

_REFRESH_PER_SECOND = 4  # more is restless, and costs a CPU that trains
_SHORTEST_BAR = 8  # columns


def duration(seconds: float) -> str:
    """Write seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Bar:
    """Steps, time left, and a few numbers below.

    Parameters
    ----------
    first_step, num_steps
        Steps that were done before, and in all.
    console
        Where to; None: the standard output.
    """

    def __init__(self, first_step: int, num_steps: int, console: Console | None = None) -> None:
        self._step = first_step
        self._num_steps = num_steps
        self._left: float | None = None
        self._numbers: tuple[Sequence[str], Sequence[str]] = ((), ())
        self._live = Live(self, console=console, refresh_per_second=_REFRESH_PER_SECOND)

    def start(self) -> None:
        """Show it."""
        self._live.start()

    def stop(self) -> None:
        """Leave it as it stands."""
        self._live.stop()

    def print(self, line: str) -> None:
        """Print a line above it."""
        self._live.console.print(line, markup=False, highlight=False)

    def show(
        self, step: int, left: float | None, long: Sequence[str], short: Sequence[str]
    ) -> None:
        """Set what is shown from the next refresh on.

        Parameters
        ----------
        step
            Steps done.
        left
            Time left in s, None: not known yet.
        long, short
            The numbers in words, the most important first, for a wide and a narrow terminal.
        """
        self._step, self._left, self._numbers = step, left, (long, short)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the two lines for the terminal's present width."""
        # The last column stays free: some terminals wrap when it is written.
        width = options.max_width - 1
        yield self._progress(width, options.ascii_only)
        if self._numbers[0]:
            numbers = fitting(width, *self._numbers)
            yield Text(numbers[:width], no_wrap=True, overflow="crop")

    def _progress(self, width: int, ascii_only: bool) -> Text:
        count = f"{self._step}/{self._num_steps}"
        if self._left is not None and self._step < self._num_steps:
            count += f"  {duration(self._left)} left"
        room = width - len(count) - 2
        if room < _SHORTEST_BAR:
            return Text(count[:width], no_wrap=True, overflow="crop")
        done = room * self._step // self._num_steps
        full, rest = ("#", ".") if ascii_only else ("━", "━")
        return Text.assemble(
            (full * done, "bar.complete" if self._step < self._num_steps else "bar.finished"),
            (rest * (room - done), "bar.back"),
            f"  {count}",
            no_wrap=True,
            overflow="crop",
        )


def fitting(width: int, long: Sequence[str], short: Sequence[str]) -> str:
    """Return the long words if they fit, else as many of the short ones as do."""
    line = "  ".join(long)
    if len(line) <= width:
        return line
    kept = list(short)
    while len(kept) > 1 and len("  ".join(kept)) > width:
        kept.pop()
    return "  ".join(kept)
