"""Predict properties of polymers from Python: `mips_dist.load("egc").predict(["*CC*"])`.

A prediction depends on the polymer alone, bit for bit: each distinct polymer is computed once, by
itself, from its canonical spelling, on one thread.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from rich.console import Console
from rich.progress import track

from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
from mips_dist.data.records import find_column
from mips_dist.errors import UsageError
from mips_dist.model.bundle import Bundle
from mips_dist.model.released import property_directory
from mips_dist.threads import one_thread
from mips_dist.use.canonicalize import COLUMNS
from mips_dist.use.predict import Estimate, estimate, open_property_model

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
_MIN_SHOWN = 20  # polymers; fewer are done before a progress bar is read


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
        library = _library(self._given)
        if library is None:
            raise UsageError("the polymers came in no table; use to_pandas() or to_polars()")
        return self.to_pandas() if library == "pandas" else self.to_polars()

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame: the columns and index of the input, then `columns`."""
        import pandas as pd

        given = self._given if _library(self._given) == "pandas" else None
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

        given = self._given if _library(self._given) == "polars" else None
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


class Predictor:
    """Models of one or several properties, in memory.

    Attributes
    ----------
    bundles
        Property -> its model.
    """

    def __init__(self, bundles: Mapping[str, Bundle]) -> None:
        self.bundles = dict(bundles)

    @classmethod
    def open(cls, names_or_paths: Sequence[str | Path]) -> "Predictor":
        """Load models, each of one property.

        Parameters
        ----------
        names_or_paths
            Names of released models (egc, egb, eea, ei, xc, eps, nc, eat), or model directories.

        Raises
        ------
        UsageError
            None is given, a name is unknown, or two predict one property.
        MipsError
            A directory holds no property model, or a damaged one.
        """
        if not names_or_paths:
            raise UsageError("nothing to predict; give a released property or a model directory")
        bundles: dict[str, Bundle] = {}
        for name in names_or_paths:
            bundle, scaler = open_property_model(property_directory(name))
            if scaler["property"] in bundles:
                raise UsageError(f"two models predict {scaler['property']}; give one of them")
            bundles[scaler["property"]] = bundle
        columns = columns_of(list(bundles))
        if len(set(columns)) < len(columns):
            twice = next(name for name in columns if columns.count(name) > 1)
            raise UsageError(f"two of the columns would be named {twice}; predict them in turn")
        return cls(bundles)

    @property
    def properties(self) -> list[str]:
        """The properties in the order that they were asked for."""
        return list(self.bundles)

    @property
    def columns(self) -> list[str]:
        """Names of the columns that a table of predictions has after those of the input."""
        return columns_of(self.properties)

    def predict(self, psmiles: Sequence[str] | Any) -> Predictions:
        """Predict for polymers in any spelling.

        Parameters
        ----------
        psmiles
            (N,) texts; or a pandas or polars Series of them, or a DataFrame with a column psmiles
            (or smiles).

        Returns
        -------
        N predictions in the same order. A text that is no polymer costs its row alone, which says
        why in `Prediction.reason`.

        Raises
        ------
        UsageError
            One text in place of several, or a DataFrame without such a column.
        """
        texts = _texts(psmiles)
        rows = []
        first: dict[str, tuple[int, Prediction]] = {}
        is_shown = len(texts) >= _MIN_SHOWN and sys.stderr.isatty()
        console = Console(stderr=True)
        with one_thread():
            for row, text in enumerate(
                track(texts, "predicting", console=console, disable=not is_shown)
            ):
                canonical, reason = spell(text)
                if reason:
                    rows.append(Prediction(text, "", REJECTED, reason))
                    continue
                if canonical not in first:
                    first[canonical] = row, self.predict_canonical(canonical)
                known, found = first[canonical]
                note = found.reason if known == row else with_note(found, known)
                rows.append(Prediction(text, canonical, found.status, note, found.values))
        return Predictions(rows, self.properties, psmiles)

    def predict_canonical(self, canonical: str) -> Prediction:
        """Predict one polymer from its canonical P-SMILES.

        Call it inside `mips_dist.threads.one_thread`: more threads change the order of sums, and
        with it the last bits.
        """
        values: dict[str, Estimate] = {}
        remarks: dict[str, None] = {}
        for name, bundle in self.bundles.items():
            found, remark = estimate(bundle, canonical)
            if found is not None:
                values[name] = found
            if remark:
                remarks[remark] = None
        status = OK if values else REJECTED
        return Prediction(canonical, canonical, status, "; ".join(remarks), values)


def spell(text: object) -> tuple[str, str]:
    """Return the canonical spelling of a text, or an empty one and why it is no polymer."""
    if not isinstance(text, str):
        return "", "empty: no P-SMILES" if text is None else f"characters: {text!r} is no text"
    try:
        return canonicalize(text.strip()), ""
    except InvalidPolymer as error:
        return "", str(error)


def with_note(found: Prediction, first_row: int) -> str:
    """Return the reason of a row whose polymer was met before, in which row (from 0)."""
    note = f"same polymer as row {first_row}"
    return f"{found.reason}; {note}" if found.reason else note


def load(*names_or_paths: str | Path) -> Predictor:
    """Load models for prediction: `load("egc", "nc").predict(["*CC*"])`.

    Parameters
    ----------
    names_or_paths
        See `Predictor.open`.
    """
    return Predictor.open(names_or_paths)


def _library(given: Any) -> str | None:
    """Return "pandas" or "polars" for a table or column of theirs; imports neither."""
    library = type(given).__module__.partition(".")[0]
    return library if library in _FRAMES else None


def _as_frame(given: Any) -> Any:
    return given.to_frame() if type(given).__name__ == "Series" else given


def _texts(given: Any) -> list[Any]:
    if isinstance(given, str | bytes):
        raise UsageError(f"give a list of P-SMILES, such as [{str(given)[:40]!r}]")
    if _library(given) is None:
        return list(given)
    if type(given).__name__ != "Series":
        names = [str(name) for name in given.columns]
        given = given[given.columns[find_column("the table", names)]]
    # What a table has for a missing text is no text, whatever the library calls it.
    is_missing = given.isna() if hasattr(given, "isna") else given.is_null()
    pairs = zip(given.to_list(), is_missing.to_list(), strict=True)
    return [None if missing else text for text, missing in pairs]
