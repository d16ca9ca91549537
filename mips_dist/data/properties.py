"""Labelled sets of polymers: properties with units, labelled csv files, and the scaler.

Rows are never merged: a polymer that stands in two rows keeps both labels, and the folds
(`mips_dist.data.folds`) keep its rows together.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
from mips_dist.data.records import PSMILES_COLUMNS, find_column, read_csv
from mips_dist.errors import MipsError, UsageError

PSMILES_COLUMN = PSMILES_COLUMNS[0]  # the name in files that are written
# The eight sets, in the order of the published tables; each has a file in configs/property/.
BENCHMARK = ("egc", "egb", "eea", "ei", "xc", "eps", "nc", "eat")
_MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "-"})


@dataclass(kw_only=True, slots=True)
class Published:
    """A published row: mean and SD over folds; RMSE in the unit of the property."""

    model: str
    protocol: str
    r2: float
    r2_sd: float
    rmse: float
    rmse_sd: float


@dataclass(kw_only=True, slots=True)
class Property:
    """One measured or computed quantity and the csv column that holds it.

    Attributes
    ----------
    unit
        Physical unit; "1" for a number without unit, "" where it is not known.
    file
        Path of the csv; names in configs/property/ are relative to the data folder.
    column, psmiles_column
        Columns of the csv; an empty psmiles_column is psmiles, else smiles.
    published
        The row that the literature gives, or None.
    training
        Values that a sweep chose for this property, by key of configs/finetune.yaml; they go before
        that file, and the command line before them.
    """

    name: str
    description: str = ""
    unit: str = ""
    file: str = ""
    column: str = "value"
    psmiles_column: str = ""
    published: Published | None = None
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """The usable rows of one property: R rows, in the order of the file.

    Attributes
    ----------
    row
        (R,) int64, row of the csv, 0 for the first after the header.
    canonical
        R canonical spellings; equal polymers have equal ones.
    value
        (R,) float64, in the unit of the property.
    """

    property: Property
    row: npt.NDArray[np.int64]
    canonical: list[str]
    value: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be used, and why."""

    file: str
    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class Scaler:
    """Mean and population SD of the training values, in the unit of the property."""

    mean: float
    std: float

    @classmethod
    def fit(cls, value: npt.NDArray[np.float64]) -> "Scaler":
        """Fit to the values of the training rows, and of no other row."""
        std = float(value.std())
        # All training values equal: the mean is the answer, and z-scores stay finite.
        return cls(mean=float(value.mean()), std=std if std > 0 else 1.0)

    def to_z(self, value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Turn physical values into z-scores."""
        return (value - self.mean) / self.std

    def to_physical(self, z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Turn z-scores into physical values."""
        return z * self.std + self.mean


def read_property(folder: Path, name: str) -> Property:
    """Read ``<folder>/<name>.yaml``, the description of a property.

    Raises
    ------
    UsageError
        No such property, or a key that a property does not have.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise UsageError(f"no property '{name}'; known are {known}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Property), OmegaConf.load(path))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UsageError(f"{path}: {str(error).splitlines()[0]}") from error


def read_labelled_sets(properties: list[Property]) -> tuple[list[LabelledSet], list[Reject]]:
    """Read the csv files of some properties by column name.

    An empty or NaN value means that the row has no label for that property; it is no error. A row
    whose polymer or value cannot be read is a reject, listed once.

    Raises
    ------
    MipsError, UsageError
        No such file; no such column; no usable row for some property.
    """
    spellings: dict[str, str | InvalidPolymer] = {}
    sets: list[LabelledSet] = []
    rejects: dict[Reject, None] = {}
    for prop in properties:
        labelled, refused = _read_one(prop, spellings)
        rejects |= dict.fromkeys(refused)
        sets.append(labelled)
    return sets, list(rejects)


def _read_one(
    prop: Property, spellings: dict[str, str | InvalidPolymer]
) -> tuple[LabelledSet, list[Reject]]:
    header, records = read_csv(_local(prop.file))
    psmiles_column = find_column(prop.file, header, prop.psmiles_column)
    value_column = find_column(prop.file, header, prop.column)
    rejects: list[Reject] = []
    rows: list[int] = []
    canonicals: list[str] = []
    values: list[float] = []
    for row, record in enumerate(records):
        try:
            text = record.text(psmiles_column, len(header))
            label = record.text(value_column, len(header))
            canonical = _canonical(text, spellings)
        except InvalidPolymer as error:
            rejects.append(Reject(prop.file, row, str(error)))
            continue
        value = _parse_value(label)
        if value is None:
            rejects.append(Reject(prop.file, row, f"{prop.column}: '{label}' is not a number"))
        elif not math.isnan(value):
            rows.append(row)
            canonicals.append(canonical)
            values.append(value)
    if not rows:
        first = f" (row {rejects[0].row}, from 0: {rejects[0].reason})" if rejects else ""
        raise MipsError(f"{prop.file}: no usable row with a value in column '{prop.column}'{first}")
    row_array = np.array(rows, dtype=np.int64)
    return LabelledSet(prop, row_array, canonicals, np.array(values)), rejects


def _local(file: str) -> Path:
    """Return a file, fetched if it lies behind a URL."""
    if "://" not in file:
        return Path(file)
    from mips_dist.data.working_copy import fetched_file  # with packages that few studies need

    return fetched_file(file)


def _canonical(text: str, known: dict[str, str | InvalidPolymer]) -> str:
    """Canonicalize, or raise `InvalidPolymer`; each text once for all properties."""
    if text not in known:
        try:
            known[text] = canonicalize(text)
        except InvalidPolymer as error:
            known[text] = error
    spelling = known[text]
    if isinstance(spelling, InvalidPolymer):
        raise spelling
    return spelling


def _parse_value(label: str) -> float | None:
    """Return the number, NaN where there is no label, None where it cannot be read."""
    if label.lower() in _MISSING:
        return math.nan
    try:
        value = float(label)
    except ValueError:
        return None
    return None if math.isinf(value) else value
