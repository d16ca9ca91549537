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
    began, first_done, last_done
        When its first step began, and when its first and last were done.
    first, last
        These steps.
    memory_bytes
        The most that rank 0 held.
    checkpoints
        Step -> when its checkpoint was written, and for how many s all ranks stood still for it.
    """

    began: float
    first: int
    first_done: float
    last: int
    last_done: float
    memory_bytes: float
    checkpoints: dict[int, tuple[float, float]] = field(default_factory=dict)

    def seconds_per_step(self) -> float:
        """Return the mean time from a step to the next one, without what checkpoints took."""
        stalls = [seconds for step, (_, seconds) in self.checkpoints.items() if step < self.last]
        return (self.last_done - self.first_done - sum(stalls)) / (self.last - self.first)


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
                    session = Session(now - global_batch_size / speed, step, now, step, now, 0.0)
                session.last, session.last_done = step, now
                memory = values["perf/memory_gib"] * _GIB
                session.memory_bytes = max(session.memory_bytes, memory)
            if session is not None and "perf/checkpoint_s" in values:
                session.checkpoints[step] = (now, values["perf/checkpoint_s"])
        if session is not None:
            found.append(session)
    return sorted(found, key=lambda session: session.began)
