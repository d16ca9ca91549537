"""What a pre-training run wrote for TensorBoard, read by the tensorboard package."""

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mips_dist.errors import MipsError

Curve = list[tuple[float, float]]

_FACT = re.compile(r"^- \*\*(.+?)\*\* (.*)$")
_ALL = 0  # of a kind of event, in words of tensorboard


@dataclass(frozen=True, slots=True)
class Events:
    """Curves of a run by tag, as (step, value), and the facts of each of its starts.

    Attributes
    ----------
    facts
        For each start: the first step, and what was written of model, corpus, device and versions.
    seconds
        Between the first and the last event of a step, pauses included.
    """

    curves: dict[str, Curve]
    facts: list[tuple[int, dict[str, str]]]
    seconds: float

    def last(self, tag: str) -> float:
        """Return the last value of a tag, NaN without one."""
        curve = self.curves.get(tag)
        return curve[-1][1] if curve else math.nan


def read_events(folder: Path) -> Events:
    """Read the main run of a TensorBoard folder; steps that a resumed run did again count once.

    Raises
    ------
    MipsError
        There are no events, or no package to read them.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise MipsError("curves are read by tensorboard: pip install tensorboard") from error
    if not any(folder.glob("events.out.tfevents.*")):
        raise MipsError(f"{folder} has no events: the run made no step yet, or they were deleted")
    found: Any = EventAccumulator(
        str(folder), size_guidance={"scalars": _ALL, "tensors": _ALL, "images": 1}
    )
    # It says of every resumed run that steps were repeated.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    found.Reload()
    curves: dict[str, Curve] = {}
    times: list[float] = []
    for tag in found.Tags()["scalars"]:
        scalars = found.Scalars(tag)
        # A step that was done again after a crash stands there twice; the last one counts.
        by_step = {scalar.step: scalar.value for scalar in scalars}
        curves[tag] = [(float(step), by_step[step]) for step in sorted(by_step)]
        times += [scalar.wall_time for scalar in (scalars[0], scalars[-1])]
    facts = []
    for tag in found.Tags()["tensors"]:
        if tag.split("/")[0] == "run":
            for event in found.Tensors(tag):
                text = b"".join(event.tensor_proto.string_val).decode("utf-8", "replace")
                facts.append((int(event.step), _facts(text)))
    return Events(curves, facts, max(times) - min(times) if times else 0.0)


def _facts(markdown: str) -> dict[str, str]:
    matches = (_FACT.match(line) for line in markdown.splitlines())
    return {match[1]: match[2] for match in matches if match}


def thinned(curve: Curve, most: int = 300) -> Curve:
    """Return the finite points, means over equal stretches of steps where there are very many."""
    points = [(x, y) for x, y in curve if math.isfinite(y)]
    size = -(-len(points) // most)
    if size < 2:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
