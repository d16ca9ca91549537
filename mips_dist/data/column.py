"""Polymers as Python hands them over: a list, an array, a series or a frame of one column."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mips_dist.chem.psmiles import InvalidPolymer, canonicalize

SHOWN = 3  # bad entries that an error names


def canonical_column(values: Any) -> tuple[list[str], dict[int, str]]:
    """Canonicalize a column of P-SMILES.

    Parameters
    ----------
    values
        n texts: a list or tuple, an array (n,) or (n, 1), a series, or a frame of pandas or polars
        with one column.

    Returns
    -------
    n canonical spellings, empty where an entry is no polymer, and place -> reason of those.

    Raises
    ------
    ValueError
        Something else than one column.
    """
    spellings: list[str] = []
    reasons: dict[int, str] = {}
    for place, value in enumerate(_one_column(values)):
        spellings.append("")
        if not isinstance(value, str):
            reasons[place] = f"no text but {type(value).__name__}"
            continue
        try:
            spellings[place] = canonicalize(value.strip())
        except InvalidPolymer as error:
            reasons[place] = str(error)
    return spellings, reasons


def in_one_line(values: Any, reasons: dict[int, str]) -> str:
    """Say which entries of a column are no polymers, the first few by name."""
    column = _one_column(values)
    named = [f"row {i} ({_short(column[i])}): {reasons[i]}" for i in sorted(reasons)[:SHOWN]]
    rest = len(reasons) - len(named)
    more = f"; and {rest} more" if rest else ""
    return f"{len(reasons)} of {len(column)} rows cannot be used: {'; '.join(named)}{more}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_column(values: Any) -> Sequence[Any]:
    if isinstance(values, str):
        raise ValueError(f"X is one text; give a list of P-SMILES: [{_short(values)}]")
    if hasattr(values, "columns"):  # a frame
        names = list(values.columns)
        if len(names) != 1:
            shown = ", ".join(map(str, names[:8]))
            raise ValueError(
                f"X has {len(names)} columns ({shown}); select the one that holds P-SMILES"
            )
        values = values[names[0]]
    array = np.asarray(values, dtype=object)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"X has the shape {array.shape}; give one column of P-SMILES, (n,)")
    column: list[Any] = array.tolist()
    return column
