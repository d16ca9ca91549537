"""Predict properties of polymers from Python: `mips_dist.load("egc").predict(["*CC*"])`.

A prediction depends on the polymer alone, bit for bit: each distinct polymer is computed once, by
itself, from its canonical spelling, on one thread.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from mips_dist.data.records import find_column
from mips_dist.errors import UsageError
from mips_dist.model.bundle import Bundle
from mips_dist.model.released import property_directory
from mips_dist.threads import one_thread
from mips_dist.use.predict import estimate, open_property_model
from mips_dist.use.prediction import (
    OK,
    REJECTED,
    Estimate,
    Prediction,
    Predictions,
    columns_of,
    library_of,
    spell,
    with_note,
)

_MIN_SHOWN = 20  # polymers; fewer are done before a progress bar is read


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
                note = found.reason if known == row else with_note(found.reason, known)
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


def load(*names_or_paths: str | Path) -> Predictor:
    """Load models for prediction: `load("egc", "nc").predict(["*CC*"])`.

    Parameters
    ----------
    names_or_paths
        See `Predictor.open`.
    """
    return Predictor.open(names_or_paths)


def _texts(given: Any) -> list[Any]:
    if isinstance(given, str | bytes):
        raise UsageError(f"give a list of P-SMILES, such as [{str(given)[:40]!r}]")
    if library_of(given) is None:
        return list(given)
    if type(given).__name__ != "Series":
        names = [str(name) for name in given.columns]
        given = given[given.columns[find_column("the table", names)]]
    # What a table has for a missing text is no text, whatever the library calls it.
    is_missing = given.isna() if hasattr(given, "isna") else given.is_null()
    pairs = zip(given.to_list(), is_missing.to_list(), strict=True)
    return [None if missing else text for text, missing in pairs]
