"""What a run tells: TensorBoard scalars, a bar on a terminal or lines in a log. Rank 0 only."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Lines of a log without a terminal: about this many in a run, and one at least so often.
_LOG_LINES = 20
_LOG_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One optimizer step, over all ranks.

    ``loss`` nats per masked atom; ``accuracy`` fraction of masked atoms; ``data_wait`` and
    ``seconds`` of rank 0, in s; ``polymers`` of the step.
    """

    loss: float
    accuracy: float
    lr: float
    grad_norm: float
    is_applied: bool
    polymers: int
    seconds: float
    data_wait: float


class Recorder:
    """Writes what happens; a context manager. On other ranks than 0 it does nothing.

    Parameters
    ----------
    directory
        TensorBoard folder.
    first_step, num_steps
        Steps that were done before, and in all.
    is_main
        Whether this is rank 0.
    """

    def __init__(self, directory: Path, first_step: int, num_steps: int, is_main: bool) -> None:
        self.num_steps = num_steps
        self._is_main = is_main
        self._progress: Progress | None = None
        self._last_line = time.monotonic()
        self._every = max(1, num_steps // _LOG_LINES)
        if not is_main:
            return
        from torch.utils.tensorboard import SummaryWriter

        # Steps that were logged after the checkpoint we continue from are hidden, not drawn twice.
        self._writer = SummaryWriter(str(directory), purge_step=first_step + 1)
        if sys.stdout.isatty():
            self._progress = Progress(
                TextColumn("pre-training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[line]}"),
                TimeRemainingColumn(),
            )
            self._task = self._progress.add_task("", total=num_steps, completed=first_step, line="")

    def __enter__(self) -> Self:
        """Show the bar, where there is a terminal."""
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is still in memory."""
        if self._progress:
            self._progress.stop()
        if self._is_main:
            self._writer.close()

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if not self._is_main:
            return
        if self._progress:
            self._progress.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def step(self, step: int, report: StepReport) -> None:
        """Record a step; ``step`` counts from 1."""
        if not self._is_main:
            return
        rate = report.polymers / report.seconds
        scalars = {
            "train/loss": report.loss,
            "train/accuracy": report.accuracy,
            "train/lr": report.lr,
            "train/grad_norm": report.grad_norm,
            "perf/polymers_per_s": rate,
            "perf/data_wait_s": report.data_wait,
        }
        self._scalars(step, scalars)
        line = f"loss {report.loss:.4f}  accuracy {report.accuracy:.3f}  {rate:,.0f} polymers/s"
        if self._progress:
            self._progress.update(self._task, completed=step, line=line)
        elif self._is_due(step):
            self.say(f"step {step}/{self.num_steps}  {line}")

    def validation(self, step: int, scalars: dict[str, float]) -> None:
        """Record held-out numbers, names without ``val/``."""
        if not self._is_main or not scalars:
            return
        self._scalars(step, {f"val/{name}": value for name, value in scalars.items()})
        values = "  ".join(f"{name} {value:.4f}" for name, value in scalars.items())
        self.say(f"step {step}/{self.num_steps}  held out: {values}")

    def flush(self) -> None:
        """Bring the scalars to the disk; before a checkpoint, so that none are lost behind it."""
        if self._is_main:
            self._writer.flush()

    def _scalars(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def _is_due(self, step: int) -> bool:
        now = time.monotonic()
        is_due = (
            step % self._every == 0
            or step in (1, self.num_steps)
            or now - self._last_line > _LOG_SECONDS
        )
        if is_due:
            self._last_line = now
        return is_due
