"""What is predicted for the rows of a table, and how it becomes columns; imports no model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
from mips_dist.errors import UsageError
from mips_dist.use.canonicalize import COLUMNS

Kind = Literal["text", "float", "bool"]
# Of a property's columns, in order.
_KIND_OF_ENDING: dict[str, Kind] = {
    "": "float",
    "_lower": "float",
    "_upper": "float",
    "_distance": "float",
    "_in_domain": "bool",
    "_unit": "text",
}
OK, REJECTED = "ok", "rejected"
_FRAMES = ("pandas", "polars")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predicted value and what is known of its error.

    Attributes
    ----------
    value
        In `unit`.
    lower, upper
        The interval that holds the true value of nine in ten polymers, in `unit`; None where the
        model has no calibration.
    distance
        To the nearest polymer that the model was trained on, from 0 (the same environments of
        atoms) to 1 (none in common); None without calibration.
    in_domain
        Whether `distance` is one that 95 % of held-out polymers have from their training set; None
        without calibration.
    unit
        Empty where the property has none.
    """

    value: float
    lower: float | None
    upper: float | None
    distance: float | None
    in_domain: bool | None
    unit: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is predicted for one row.

    Attributes
    ----------
    psmiles
        As it was given.
    canonical
        The one canonical spelling of the polymer; empty where the row is rejected unread.
    status
        "ok" or "rejected".
    reason
        Of the rejection; else a note: descriptors that the polymer does not have, or the earlier
        row (from 0) that holds the same polymer.
    values
        Property -> its estimate; without the properties for which chemistry failed.
    """

    psmiles: str
    canonical: str
    status: str
    reason: str
    values: Mapping[str, Estimate] = field(default_factory=dict)

    def cells(self, properties: Sequence[str]) -> list[str | float | bool | None]:
        """Return the values of the columns `Predictor.columns`; None where there is none."""
        cells: list[str | float | bool | None] = [self.canonical, self.status, self.reason]
        for name in properties:
            own = self.values.get(name)
            if own is None:
                cells += [None] * len(_KIND_OF_ENDING)
            else:
                cells += [own.value, own.lower, own.upper, own.distance, own.in_domain, own.unit]
        return cells


class Predictions(Sequence[Prediction]):
    """Predictions in the order of the rows; a sequence that also turns into a table.

    Attributes
    ----------
    properties
        Those that were asked for.
    columns
        Names of the columns of a table, after the columns of the input.
    """

    def __init__(
        self, rows: Sequence[Prediction], properties: Sequence[str], given: Any = None
    ) -> None:
        self._rows = rows
        self.properties = list(properties)
        self.columns = columns_of(properties)
        self._given = given

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prediction]: ...
    def __getitem__(self, index: int | slice) -> Prediction | Sequence[Prediction]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self._rows)

    def __repr__(self) -> str:
        num_ok = sum(row.status == OK for row in self._rows)
        names = ", ".join(self.properties)
        return f"<{len(self._rows)} predictions of {names}, {num_ok} {OK}>"

    def to_frame(self) -> Any:
        """Return a DataFrame of the library that the polymers were given in.

        Raises
        ------
        UsageError
            They were given as neither a DataFrame nor a Series.
        """
        library = library_of(self._given)
        if library is None:
            raise UsageError("the polymers came in no table; use to_pandas() or to_polars()")
        return self.to_pandas() if library == "pandas" else self.to_polars()

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame: the columns and index of the input, then `columns`."""
        import pandas as pd

        given = self._given if library_of(self._given) == "pandas" else None
        index = None if given is None else given.index
        # None: pandas has its own type for text.
        types = {"text": None, "float": "float64", "bool": "boolean"}
        added = pd.DataFrame(
            {
                name: pd.Series(values, index=index, dtype=types[kind])
                for name, kind, values in self._table()
            }
        )
        if given is None:
            given = pd.Series([row.psmiles for row in self._rows], name="psmiles", dtype=object)
        return pd.concat([_as_frame(given), added], axis=1)

    def to_polars(self) -> Any:
        """Return a polars DataFrame: the columns of the input, then `columns`."""
        import polars as pl

        given = self._given if library_of(self._given) == "polars" else None
        if given is None:
            given = pl.Series("psmiles", [row.psmiles for row in self._rows], dtype=pl.String)
        types = {"text": pl.String, "float": pl.Float64, "bool": pl.Boolean}
        table = self._table()
        added = pl.DataFrame([pl.Series(name, cells, types[kind]) for name, kind, cells in table])
        return pl.concat([_as_frame(given), added], how="horizontal")

    def _table(self) -> list[tuple[str, Kind, list[Any]]]:
        """Return name, kind and values of each added column."""
        rows = [row.cells(self.properties) for row in self._rows]
        columns = zip(self.columns, kinds_of(self.properties), strict=True)
        return [(name, kind, [r[i] for r in rows]) for i, (name, kind) in enumerate(columns)]


def columns_of(properties: Sequence[str]) -> list[str]:
    """Return the names of the columns that are added to a table, in order."""
    return [*COLUMNS, *(name + ending for name in properties for ending in _KIND_OF_ENDING)]


def kinds_of(properties: Sequence[str]) -> list[Kind]:
    """Return what each of these columns holds."""
    added: list[Kind] = ["text" for _ in COLUMNS]
    return added + list(_KIND_OF_ENDING.values()) * len(properties)


def spell(text: object) -> tuple[str, str]:
    """Return the canonical spelling of a text, or an empty one and why it is no polymer.

    None, which is what a table has where there is no text, counts as an empty one.
    """
    if text is not None and not isinstance(text, str):
        return "", f"characters: a {type(text).__name__} is no text"
    try:
        return canonicalize((text or "").strip()), ""
    except InvalidPolymer as error:
        return "", str(error)


def with_note(reason: str, first_row: int) -> str:
    """Return the reason of a row whose polymer was met before, in which row (from 0)."""
    note = f"same polymer as row {first_row}"
    return f"{reason}; {note}" if reason else note


def library_of(given: Any) -> str | None:
    """Return "pandas" or "polars" for a table or column of theirs; imports neither."""
    library = type(given).__module__.partition(".")[0]
    return library if library in _FRAMES else None


def _as_frame(given: Any) -> Any:
    return given.to_frame() if type(given).__name__ == "Series" else given
