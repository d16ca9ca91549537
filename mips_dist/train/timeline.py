"""When a pre-training run was at work, from its own record: one session for each start."""

from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

_GIB = 2**30


@dataclass
class Session:
    """What one start has recorded; times are those of `time.time`.

    Attributes
    ----------
    began
        When its first step began.
    done
        Step -> when it was done.
    memory
        Step -> the most bytes that rank 0 had held by then.
    checkpoints
        Step -> when its checkpoint was written, and for how many s all ranks stood still for it.
    """

    began: float
    done: dict[int, float] = field(default_factory=dict)
    memory: dict[int, float] = field(default_factory=dict)
    checkpoints: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """Its first step."""
        return min(self.done)

    @property
    def memory_bytes(self) -> float:
        """The most that rank 0 held."""
        return max(self.memory.values())

    @property
    def last(self) -> int:
        """Its last step."""
        return max(self.done)

    def seconds_per_step(self) -> float:
        """Return the mean time from a step to the next one, without what checkpoints took."""
        stalls = [seconds for step, (_, seconds) in self.checkpoints.items() if step < self.last]
        seconds = self.done[self.last] - self.done[self.first] - sum(stalls)
        return seconds / (self.last - self.first)


def read_sessions(run_dir: Path, global_batch_size: int) -> list[Session]:
    """Return the sessions of a run, in order; those that recorded no step left nothing."""
    found = []
    for file in (run_dir / "tensorboard").glob("events.*"):
        session: Session | None = None
        for event in LegacyEventFileLoader(str(file)).Load():
            values = {value.tag: value.simple_value for value in event.summary.value}
            now, step = event.wall_time, event.step
            if (speed := values.get("perf/polymers_per_s")) is not None:
                if session is None:
                    session = Session(now - global_batch_size / speed)
                session.done[step] = now
                session.memory[step] = values["perf/memory_gib"] * _GIB
            if session is not None and "perf/checkpoint_s" in values:
                session.checkpoints[step] = (now, values["perf/checkpoint_s"])
        if session is not None:
            found.append(session)
    return sorted(found, key=lambda session: session.began)
