"""What a study has found: the scores of its cells, and the ledger that keeps them.

A cell is one (model, property, fold, seed, protocol). The ledger is plain JSON lines, one a
finished cell, and the only record that decides what is done.
"""

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mips_dist.errors import MipsError

# Names in the tables: the network, the process and forest on features of the chain, these with
# GFN2-xTB's as well, chemprop's network on the star-substituted unit, the mean of the first two.
NETWORK = "mips"
GP_TREES = "gp-trees"
GP_TREES_XTB = "gp-trees-xtb"
CHEMPROP = "chemprop"
ENSEMBLE = "mips-ensemble"

Values = npt.NDArray[np.float64]


class Cell(NamedTuple):
    """One piece of work of a study."""

    model: str
    property: str
    fold: int
    seed: int
    protocol: str

    def __str__(self) -> str:
        return f"{self.model} {self.property} fold {self.fold} seed {self.seed}"


@dataclass(kw_only=True, slots=True)
class FoldResult:
    """Scores of one cell on its test fold, in the unit of the property.

    Attributes
    ----------
    epoch
        The chosen epoch, from 1; 0 for a model without epochs.
    curve
        Per epoch: ``train_loss`` (MSE of z-scores), ``watched_rmse`` and ``watched_r2`` (inner
        split under `strict`, test fold under `paper`).
    row, prediction
        Rows of the csv in the test fold, and what was predicted for them.
    """

    model: str
    property: str
    fold: int
    seed: int
    protocol: str
    r2: float
    rmse: float
    mae: float
    unit: str
    epoch: int = 0
    num_train: int
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    prediction: list[float] = field(default_factory=list)

    def check(self) -> None:
        """Raise TypeError where a value, as it came from a file, is of another type than it has."""
        words, counts = (
            ("model", "property", "protocol", "unit"),
            ("fold", "seed", "epoch", "num_train"),
        )
        is_so = all(type(getattr(self, name)) is str for name in words)
        is_so &= all(type(getattr(self, name)) is int for name in counts)
        is_so &= all(_is_number(getattr(self, name)) for name in ("r2", "rmse", "mae", "seconds"))
        lists = all(type(x) is list for x in (self.row, self.prediction, self.curve))
        if not (is_so and lists):
            raise TypeError("a value is of another type")
        if not (
            all(type(x) is int for x in self.row)
            and all(map(_is_number, self.prediction))
            and len(self.row) == len(self.prediction)
            and all(type(x) is dict and all(map(_is_number, x.values())) for x in self.curve)
        ):
            raise TypeError("a list holds something else")

    def cell(self) -> Cell:
        """Return the cell that this is the result of."""
        return Cell(self.model, self.property, self.fold, self.seed, self.protocol)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


class Scores(NamedTuple):
    """R2 (NaN where all targets are equal); RMSE and MAE in the unit of the targets."""

    r2: float
    rmse: float
    mae: float


def regression_scores(target: Values, prediction: Values) -> Scores:
    """Score predictions.

    Parameters
    ----------
    target, prediction
        (R,) in one physical unit.
    """
    error = prediction - target
    spread = float(((target - target.mean()) ** 2).sum())
    squares = float((error**2).sum())
    return Scores(
        r2=1.0 - squares / spread if spread > 0 else float("nan"),
        rmse=float(np.sqrt((error**2).mean())),
        mae=float(np.abs(error).mean()),
    )


def read_lines(content: bytes, path: Path) -> dict[Cell, FoldResult]:
    """Read the complete lines of a ledger; of two with one cell the later counts.

    Raises
    ------
    MipsError
        A damaged line.
    """
    results: dict[Cell, FoldResult] = {}
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            result = FoldResult(**json.loads(line))
            result.check()
        except (ValueError, TypeError, RecursionError) as error:
            raise MipsError(
                f"{path}, line {number}, is damaged; delete the line to have it done again"
            ) from error
        results[result.cell()] = result
    return results


class Ledger:
    """The finished cells of a study, in a file of one JSON object a line.

    Each line is written with one append and synced, so a killed driver leaves at most one
    incomplete last line; that line is cut off when the ledger is opened again. A lock keeps a
    second driver out.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a+b")  # noqa: SIM115  (held open, with its lock, by the driver)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MipsError(f"another run is at work in {path.parent}; wait for its end") from None
        self._file.seek(0)
        content = self._file.read()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            self._file.truncate(len(complete))
        self.results = read_lines(complete, path)

    def append(self, result: FoldResult) -> None:
        """Add a finished cell; a cell that is there already stays as it is."""
        if result.cell() in self.results:
            return
        self._file.write(json.dumps(asdict(result)).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.results[result.cell()] = result

    def close(self) -> None:
        """Give the lock back."""
        self._file.close()
