"""Cross-validation folds over polymers: grouped across properties, balanced, saved and checked.

Labels of a test polymer under another property tell much about the one in question (up to +.20 in
R2), so a polymer belongs to one fold, whatever property and spelling a row gives it in.
"""

import csv
import hashlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mips_dist.data.files import write_atomically
from mips_dist.data.properties import LabelledSet
from mips_dist.errors import MipsError

FOLDS_FILE = "folds.csv"
_HEADER = ["property", "row", "sha256", "fold"]

Fold = npt.NDArray[np.int64]  # (R,) fold of each row of one labelled set


def polymer_hash(canonical: str) -> str:
    """Return the sha256 of a canonical spelling, which stands for the polymer in saved files."""
    return hashlib.sha256(canonical.encode()).hexdigest()


def assign_folds(sets: list[LabelledSet], num_folds: int, random_state: int) -> list[Fold]:
    """Deal the polymers of several sets into folds.

    The polymers are shuffled, taken by the set of properties that they carry (rarest
    combination last), and each goes to the fold that has the smallest share of those properties'
    rows so far. So every property is balanced, and the result depends on the polymers and
    `random_state` alone, not on the order of rows or files.

    Returns
    -------
    For each set an (R,) array of folds, 0 to num_folds - 1.
    """
    rows_of: dict[str, npt.NDArray[np.float64]] = {}  # polymer -> (num_sets,) number of rows
    for index, labelled in enumerate(sets):
        for canonical in labelled.canonical:
            rows_of.setdefault(canonical, np.zeros(len(sets)))[index] += 1
    polymers = sorted(rows_of, key=polymer_hash)
    rng = np.random.default_rng(random_state)
    polymers = [polymers[i] for i in rng.permutation(len(polymers))]
    carried = {p: tuple(np.flatnonzero(rows_of[p]).tolist()) for p in polymers}
    count: dict[tuple[int, ...], int] = {}
    for polymer in polymers:
        count[carried[polymer]] = count.get(carried[polymer], 0) + 1
    polymers.sort(key=lambda p: (-count[carried[p]], carried[p]))  # stable: keeps the shuffle

    total = np.array([len(labelled.row) for labelled in sets], dtype=np.float64)
    load = np.zeros((num_folds, len(sets)))  # rows of each set in each fold
    fold_of: dict[str, int] = {}
    for polymer in polymers:
        relevant = rows_of[polymer] > 0
        fold = int(np.argmin((load[:, relevant] / total[relevant]).sum(axis=1)))
        load[fold] += rows_of[polymer]
        fold_of[polymer] = fold
    return [np.array([fold_of[c] for c in labelled.canonical], np.int64) for labelled in sets]


def folds_text(sets: list[LabelledSet], folds: list[Fold]) -> str:
    """Return the folds as csv: property, row, sha256 of the canonical spelling, fold."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_HEADER)
    for labelled, fold in zip(sets, folds, strict=True):
        for row, canonical, f in zip(labelled.row, labelled.canonical, fold, strict=True):
            writer.writerow([labelled.property.name, row, polymer_hash(canonical), f])
    return buffer.getvalue()


def folds_hash(text: str) -> str:
    """Return the one hash that names a whole assignment."""
    return hashlib.sha256(text.encode()).hexdigest()


def load_or_assign(
    path: Path, sets: list[LabelledSet], num_folds: int, random_state: int
) -> tuple[list[Fold], str]:
    """Use the folds saved at `path`, or deal and save them there; return them and their hash.

    Beside ``folds.csv`` stands ``folds.csv.sha256`` (as ``sha256sum -c`` reads it).

    Raises
    ------
    MipsError
        The saved folds were changed, or belong to other rows than these.
    """
    if not path.exists():
        folds = assign_folds(sets, num_folds, random_state)
        text = folds_text(sets, folds)
        digest = folds_hash(text)
        # The csv last: where it stands, its hash stands too.
        write_atomically(_hash_path(path), f"{digest}  {path.name}\n")
        write_atomically(path, text)
        return folds, digest
    return read_folds(path, sets, num_folds)


def read_folds(path: Path, sets: list[LabelledSet], num_folds: int) -> tuple[list[Fold], str]:
    """Read saved folds and check them, row by row, against the labelled sets."""
    text = path.read_text(encoding="utf-8")
    digest = folds_hash(text)
    hash_path = _hash_path(path)
    if not hash_path.is_file() or hash_path.read_text(encoding="utf-8").split()[:1] != [digest]:
        raise MipsError(
            f"{path} does not match {hash_path.name}; restore both or use a new run_dir"
        )
    saved = {
        (line["property"], line["row"], line["sha256"]): line["fold"]
        for line in csv.DictReader(io.StringIO(text))
    }
    mismatch = MipsError(f"{path} holds folds of other rows; use the same data or a new run_dir")
    folds: list[Fold] = []
    for labelled in sets:
        name = labelled.property.name
        keys = [
            (name, str(row), polymer_hash(canonical))
            for row, canonical in zip(labelled.row, labelled.canonical, strict=True)
        ]
        if any(key not in saved for key in keys):
            raise mismatch
        folds.append(np.array([int(saved[key]) for key in keys], np.int64))
    if sum(len(fold) for fold in folds) != len(saved):
        raise mismatch
    if any(fold.min() < 0 or fold.max() >= num_folds for fold in folds):
        raise MipsError(f"{path} does not hold {num_folds} folds; use its number or a new run_dir")
    return folds, digest


def _hash_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
