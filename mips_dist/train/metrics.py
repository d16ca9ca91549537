"""What a run tells: TensorBoard pages, a bar on a terminal or lines in a log. Rank 0 only."""

import math
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from mips_dist.train.bar import Bar, duration
from mips_dist.train.confusion import by_element, draw
from mips_dist.train.validation import Validation

# Lines of a log without a terminal: about this many in a run, and one at least so often.
_LOG_LINES = 20
_LOG_SECONDS = 60.0
_GIB = 2**30

# Runs beside the main one, in folders of their own: TensorBoard draws a curve for each run in one
# chart, so learning/loss and learning/accuracy, with which its first page opens, hold what must be
# compared.
_TRAINING, _HELD_OUT = "training", "held_out"
_LOSSES = {
    "loss": _HELD_OUT,
    "loss_topology": "no_descriptors",
    "class_entropy": "class_frequencies",
}

# The page "Custom Scalars": the same, and all elements in one chart.
_LAYOUT = {
    "Learning": {
        "loss, nats per masked atom": ["Multiline", ["^learning/loss$"]],
        "accuracy on masked atoms": ["Multiline", ["^learning/accuracy$"]],
        "accuracy by element, held out": ["Multiline", ["^val_element/"]],
        "gradient norm before clipping": ["Multiline", ["^train/grad_norm$"]],
        "learning rate": ["Multiline", ["^train/lr$"]],
    },
    "Speed": {
        "polymers per second": ["Multiline", ["^perf/polymers_per_s$"]],
        "fraction of peak": ["Multiline", ["^perf/fraction_of_peak$"]],
        "data wait, fraction of the step": ["Multiline", ["^perf/data_wait_fraction$"]],
        "memory, GiB": ["Multiline", ["^perf/memory_gib$"]],
        "time of a checkpoint, s": ["Multiline", ["^perf/checkpoint_s$"]],
    },
}


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """Means over the last steps; ``wait`` is the fraction of the time that went to waiting."""

    loss: float
    accuracy: float
    polymers_per_s: float
    fraction_of_peak: float
    wait: float

    def long(self) -> list[str]:
        """Say it in words."""
        return [
            f"loss {self.loss:.4f}",
            f"accuracy {self.accuracy:.3f}",
            f"{self.polymers_per_s:,.0f} polymers/s",
            f"{self.fraction_of_peak:.0%} of peak",
            f"data wait {self.wait:.1%}",
        ]

    def short(self) -> list[str]:
        """Say it on a narrow terminal."""
        return [
            f"loss {self.loss:.4f}",
            f"acc {self.accuracy:.3f}",
            f"{self.polymers_per_s:,.0f}/s",
            f"{self.fraction_of_peak:.0%} peak",
            f"wait {self.wait:.1%}",
        ]


class Recent:
    """The last steps, at most twenty of them: single ones are too restless to be read."""

    def __init__(self) -> None:
        self._steps: deque[tuple[StepReport, float]] = deque(maxlen=20)

    def add(self, report: StepReport, fraction_of_peak: float) -> None:
        """Take in a step."""
        self._steps.append((report, fraction_of_peak))

    def means(self) -> Means:
        """Average over steps, speeds over their time; a loss that is not finite is left out."""
        reports = [report for report, _ in self._steps]
        seconds = sum(r.seconds for r in reports)
        losses = [r.loss for r in reports if math.isfinite(r.loss)]
        return Means(
            loss=sum(losses) / len(losses) if losses else math.nan,
            accuracy=sum(r.accuracy for r in reports) / len(reports),
            polymers_per_s=sum(r.polymers for r in reports) / seconds,
            fraction_of_peak=sum(f * r.seconds for r, f in self._steps) / seconds,
            wait=sum(r.data_wait for r in reports) / seconds,
        )


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
    peak
        Operations per second that all ranks together can do at most.
    device
        Whose memory is watched: the GPU's, or on a CPU that of this process.
    """

    def __init__(
        self,
        directory: Path,
        first_step: int,
        num_steps: int,
        is_main: bool,
        peak: float,
        device: torch.device,
    ) -> None:
        self.num_steps = num_steps
        self._directory = directory
        self._writers: dict[str, SummaryWriter] = {}
        self._first_step = first_step
        self._is_main = is_main
        self._peak = peak
        self._device = device
        self._process = psutil.Process()
        self._recent = Recent()
        self._pace: tuple[int, float] | None = None
        self._bar: Bar | None = None
        self._last_line = time.monotonic()
        self._every = max(1, num_steps // _LOG_LINES)
        if not is_main:
            return
        self._writer = self._open("")
        for run in (_TRAINING, *_LOSSES.values()):
            if (directory / run).is_dir():
                self._open(run)
        self._writer.add_custom_scalars(_LAYOUT)
        if sys.stdout.isatty():
            self._bar = Bar(first_step, num_steps)

    def __enter__(self) -> Self:
        """Show the bar, where there is a terminal."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is still in memory."""
        if self._bar:
            self._bar.stop()
        if self._is_main:
            for writer in self._writers.values():
                writer.close()

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if not self._is_main:
            return
        if self._bar:
            self._bar.print(line)
        else:
            print(line, flush=True)

    def text(self, tag: str, markdown: str) -> None:
        """Record a text that holds from the first step of this process on.

        As it stands at a step that a resumed run hides or repeats, no text is shown twice.
        """
        if self._is_main:
            self._writer.add_text(tag, markdown, self._first_step + 1)

    def step(self, step: int, report: StepReport, work: float) -> None:
        """Record a step; ``step`` counts from 1, ``work`` is its operations over all ranks."""
        if not self._is_main:
            return
        fraction = work / report.seconds / self._peak
        scalars = {
            "train/loss": report.loss,
            "train/accuracy": report.accuracy,
            "train/lr": report.lr,
            "train/grad_norm": report.grad_norm,
            "perf/polymers_per_s": report.polymers / report.seconds,
            "perf/fraction_of_peak": fraction,
            "perf/data_wait_s": report.data_wait,
            "perf/data_wait_fraction": report.data_wait / report.seconds,
            "perf/memory_gib": self._memory() / _GIB,
        }
        self._scalars("", step, scalars)
        compared = {"learning/loss": report.loss, "learning/accuracy": report.accuracy}
        self._scalars(_TRAINING, step, compared)
        self._recent.add(report, fraction)
        left = self._seconds_left(step)
        if self._bar:
            means = self._recent.means()
            self._bar.show(step, left, means.long(), means.short())
        elif self._is_due(step):
            words = [f"step {step}/{self.num_steps}", *self._recent.means().long()]
            if left is not None and step < self.num_steps:
                words.append(f"{duration(left)} left")
            self.say("  ".join(words))

    def validation(self, step: int, result: Validation) -> None:
        """Record held-out numbers: losses, accuracy by element, and the confusion as an image."""
        scalars = result.scalars()
        if not self._is_main or not scalars:
            return
        self._scalars("", step, {f"val/{name}": value for name, value in scalars.items()})
        for name, run in _LOSSES.items():
            if name in scalars:
                self._scalars(run, step, {"learning/loss": scalars[name]})
        self._scalars(_HELD_OUT, step, {"learning/accuracy": scalars["accuracy"]})
        confusion = by_element(result.confusion.numpy())
        rates = confusion.accuracy()
        self._scalars("", step, {f"val_element/{name}": rate for name, rate in rates.items()})
        self._writer.add_image("val/confusion", draw(confusion), step, dataformats="HWC")
        self.flush()
        values = "  ".join(f"{name} {value:.4f}" for name, value in scalars.items())
        self.say(f"step {step}/{self.num_steps}  held out: {values}")

    def checkpoint(self, step: int, seconds: float) -> None:
        """Record for how long all ranks stood still for the checkpoint of a step."""
        if self._is_main:
            self._scalars("", step, {"perf/checkpoint_s": seconds})
            self.flush()  # until the next one nothing else would

    def flush(self) -> None:
        """Bring all to the disk; before a checkpoint, so that nothing is lost behind it."""
        if self._is_main:
            for writer in self._writers.values():
                writer.flush()

    def _open(self, run: str) -> SummaryWriter:
        """Return the writer of a run below the folder; "" is the main one."""
        if run not in self._writers:
            # Steps that were logged after the checkpoint we continue from are hidden, not drawn
            # twice.
            self._writers[run] = SummaryWriter(
                str(self._directory / run), purge_step=self._first_step + 1, flush_secs=10
            )
        return self._writers[run]

    def _scalars(self, run: str, step: int, scalars: dict[str, float]) -> None:
        """Write all of them as one event: a fifth of the time of one each, at every step."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        writer = self._open(run).file_writer
        assert writer is not None, "closed"
        writer.add_summary(Summary(value=values), step)

    def _memory(self) -> int:
        """Return the most that a GPU held so far, or what this process holds now, in bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return self._process.memory_info().rss

    def _seconds_left(self, step: int) -> float | None:
        """Judge by all time since the end of the first step, which is often a slow one."""
        now = time.monotonic()
        if self._pace is None:
            self._pace = (step, now)
            return None
        first, since = self._pace
        return (self.num_steps - step) * (now - since) / (step - first)

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
