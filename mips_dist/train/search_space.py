"""The space of a sweep, and the ledger of what a sweep has tried."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from mips_dist.config import configs_dir
from mips_dist.data.files import write_atomically
from mips_dist.errors import MipsError

SPACE_FILE = "search_space.yaml"
LEDGER = "search.jsonl"
Values = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Range:
    """Where a value is looked for: `choices`, or from `low` to `high`, even in the logarithm."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: list[Any] = field(default_factory=list)


def read_space(given: Iterable[str]) -> dict[str, Range]:
    """Read the shipped space without the keys that the command line fixes."""
    content = OmegaConf.to_container(OmegaConf.load(configs_dir() / SPACE_FILE))
    assert isinstance(content, dict)
    ranges = {str(key): Range(**value) for key, value in content.items()}
    space = {key: value for key, value in ranges.items() if key not in set(given)}
    if not space:
        raise MipsError("every key of the space is given on the command line; nothing to search")
    return space


def sample(space: dict[str, Range], rng: np.random.Generator) -> Values:
    """Draw one point."""
    values: Values = {}
    for key, where in space.items():
        if where.choices:
            values[key] = where.choices[int(rng.integers(len(where.choices)))]
        elif where.log:
            values[key] = math.exp(rng.uniform(math.log(where.low), math.log(where.high)))
        else:
            values[key] = float(rng.uniform(where.low, where.high))
    return rounded(values)


def rounded(values: Values) -> Values:
    """Return the values with three digits: more mean nothing, and these are written down."""
    return {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in values.items()}


def point_key(values: Values) -> str:
    """Return a point as text."""
    return json.dumps(values, sort_keys=True)


@dataclass(kw_only=True, slots=True)
class Tried:
    """One point of one property: its score on the inner split of each fold that was run.

    A point whose training failed has the reason, and no score from that fold on.
    """

    property: str
    values: Values
    scores: list[float] = field(default_factory=list)
    failure: str = ""

    def mean(self) -> float:
        """Return the mean score, NaN where there is none."""
        return float(np.mean(self.scores)) if self.scores else math.nan

    def state(self, num_folds: int) -> str:
        """Return complete, stopped (by the scheduler or an interruption), or failed."""
        if self.failure:
            return "failed"
        return "complete" if len(self.scores) == num_folds else "stopped"


def read_tried(content: bytes, path: Path) -> dict[tuple[str, str], Tried]:
    """Read the lines of a ledger that are whole: (property, `point_key`) -> point.

    Raises
    ------
    MipsError
        A line is damaged; ``path`` names the file.
    """
    tried: dict[tuple[str, str], Tried] = {}
    whole = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            _take(tried, json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise MipsError(
                f"{path}, line {number}, is damaged; delete the line to have it done again"
            ) from error
    return tried


def _take(tried: dict[tuple[str, str], Tried], line: dict[str, Any]) -> bool:
    key = line["property"], point_key(line["values"])
    point = tried.setdefault(key, Tried(property=key[0], values=line["values"]))
    if point.failure or line["fold"] != len(point.scores):
        return False  # told again by a trial that started again
    if line["failure"]:
        point.failure = line["failure"]
    else:
        point.scores.append(float(line["score"]))
    return True


class SearchLedger:
    """What was tried, one JSON object a line: property, values, fold, and score or failure."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.tried: dict[tuple[str, str], Tried] = {}
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # a driver was killed while it wrote
            os.truncate(path, whole)
        self.tried = read_tried(content, path)

    def append(self, line: dict[str, Any]) -> bool:
        """Add what one fold of a point gave and return True; what is there already stays."""
        if not _take(self.tried, line):
            return False
        with open(self._path, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return True

    def of(self, name: str) -> list[Tried]:
        """Return the points of a property in the order of their first fold."""
        return [tried for (prop, _), tried in self.tried.items() if prop == name]

    def best(self, name: str, num_folds: int) -> Tried | None:
        """Return the complete point with the best mean score, or None."""
        complete = [t for t in self.of(name) if t.state(num_folds) == "complete"]
        return max(complete, key=Tried.mean, default=None)

    def write_csv(self, path: Path, names: list[str], num_folds: int) -> None:
        """Write one line a point: property, values, mean score, folds run, state."""
        keys = list(dict.fromkeys(key for tried in self.tried.values() for key in tried.values))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["property", *keys, "inner_r2", "num_folds", "state"])
        for tried in (tried for name in names for tried in self.of(name)):
            values = [tried.values.get(key, "") for key in keys]
            numbers = [tried.mean(), len(tried.scores), tried.state(num_folds)]
            writer.writerow([tried.property, *values, *numbers])
        write_atomically(path, text.getvalue())
