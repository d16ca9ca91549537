"""`mips explain` with a model: one folder of tables and pictures for one polymer or a csv."""

import csv
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console

from mips_dist.chem.features import atom_tokens
from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
from mips_dist.chem.symmetry import atoms_as_written
from mips_dist.data.files import flush_to_disk, table, write_atomically
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import Bundle
from mips_dist.threads import one_thread
from mips_dist.use.explain.bands import explain_file
from mips_dist.use.explain.contributions import Explanation, explain
from mips_dist.use.explain.known import GROUPS
from mips_dist.use.explain.picture import draw_explanation
from mips_dist.use.predict import open_property_model
from mips_dist.use.table import PolymerTable

POLYMERS, ATOMS, FRAGMENTS = "polymers.csv", "atoms.csv", "fragments.csv"
POLYMER_COLUMNS = (
    *("row", "psmiles", "canonical", "status", "reason", "property", "prediction", "reference"),
    *("atoms", *GROUPS, "unit", "picture"),
)
ATOM_COLUMNS = (
    *("row", "property", "atom", "symbol", "as_written", "equal_to", "fragment"),
    *("contribution", "standard_error", "unit"),
)
FRAGMENT_COLUMNS = (
    *("row", "property", "kind", "name", "atoms", "contribution", "standard_error", "unit"),
)

_SAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_NAME = 40


def explain_polymers(what: str, model_dirs: list[Path], output: Path) -> None:
    """Explain the predictions of one polymer, or of each row of a csv, or draw a polymer's bands.

    Parameters
    ----------
    what
        A P-SMILES, or a csv or csv.gz with a column of them.
    model_dirs
        Property models of different properties; none: the band structure is drawn.
    output
        A folder, made here; one that an earlier call wrote is replaced, another one is refused. For
        a band structure an svg file.

    Raises
    ------
    UsageError
        No polymer, two models of one property, or no place for the output.
    MipsError
        A model that predicts nothing; chemistry fails on the polymer.
    """
    is_file = "*" not in what and (Path(what).exists() or Path(what).suffix in (".csv", ".gz"))
    if not model_dirs:
        if is_file:
            raise UsageError("a band structure is of one P-SMILES; give one, or a property with -p")
        explain_file(what, output)
        return
    bundles: dict[str, Bundle] = {}
    for model_dir in model_dirs:
        bundle, scaler = open_property_model(model_dir)
        if scaler["property"] in bundles:
            raise UsageError(f"two models predict {scaler['property']}; give one of them")
        bundles[scaler["property"]] = bundle
    _check_output(output)
    rows = _rows_of_file(Path(what)) if is_file else iter([_one(what)])
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with one_thread():
            shown = _write(rows, bundles, partial, is_file)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
    flush_to_disk(output.parent)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for line in (*shown, str(output)):
        console.print(line)


def _one(psmiles: str) -> tuple[str, str, str]:
    try:
        return psmiles, canonicalize(psmiles), ""
    except InvalidPolymer as error:
        raise UsageError(f"no polymer: {error}") from error


def _rows_of_file(path: Path) -> Iterator[tuple[str, str, str]]:
    polymers = PolymerTable.open(path)
    for row, canonical, reason in polymers.rows("explaining"):
        yield row[polymers.psmiles_column], canonical, reason


def _write(
    rows: Iterator[tuple[str, str, str]], bundles: dict[str, Bundle], folder: Path, is_file: bool
) -> list[str]:
    """Write the tables and pictures; return lines for the user."""
    lines: list[str] = []
    counts = {"ok": 0, "rejected": 0}

    @lru_cache(maxsize=256)
    def explained(name: str, canonical: str) -> tuple[Explanation | None, str]:
        return explain(bundles[name], canonical)

    with ExitStack() as stack:
        polymers = stack.enter_context(table(folder / POLYMERS, POLYMER_COLUMNS))
        atoms = stack.enter_context(table(folder / ATOMS, ATOM_COLUMNS))
        fragments = stack.enter_context(table(folder / FRAGMENTS, FRAGMENT_COLUMNS))
        if not is_file and sys.stderr.isatty():
            stack.enter_context(Console(stderr=True).status("explaining"))
        for number, (psmiles, canonical, reason) in enumerate(rows):
            if reason:
                counts["rejected"] += 1
                polymers.writerow([number, "", "", "rejected", reason, *[""] * 10])
                continue
            for index, name in enumerate(bundles):
                explanation, remark = explained(name, canonical)
                if explanation is None:
                    if not is_file:
                        raise MipsError(f"{canonical} cannot be explained: {remark}")
                    counts["rejected"] += 1
                    polymers.writerow(
                        [number, psmiles, canonical, "rejected", remark, name, *[""] * 9]
                    )
                    continue
                counts["ok"] += 1
                stem = _SAFE.sub("_", name)[:_LONGEST_NAME]
                stem = f"{index}_{stem}" if stem != name else stem
                picture = f"{number:06d}_{stem}.svg" if is_file else f"{stem}.svg"
                write_atomically(folder / picture, draw_explanation(explanation))
                polymers.writerow(_polymer_row(number, psmiles, explanation, picture))
                atoms.writerows(_atom_rows(number, psmiles, explanation))
                fragments.writerows(_fragment_rows(number, explanation))
                if not is_file:
                    lines += _in_words(explanation)
    if is_file:
        lines.append(f"{counts['ok']} predictions explained, {counts['rejected']} rejected")
    return lines


def _polymer_row(number: int, psmiles: str, explanation: Explanation, picture: str) -> list[Any]:
    groups = {name: _text(value) for name, value, _ in explanation.groups}
    return [
        *(number, psmiles, explanation.canonical, "ok", explanation.remark, explanation.property),
        *(_text(explanation.prediction), _text(explanation.reference)),
        _text(float(explanation.atoms.sum())),
        *(groups.get(name, "") for name in GROUPS),
        *(explanation.unit, picture),
    ]


def _atom_rows(number: int, psmiles: str, explanation: Explanation) -> Iterator[list[Any]]:
    tokens = [token for token in atom_tokens(explanation.canonical) if token != "*"]
    written = atoms_as_written(psmiles, explanation.canonical)
    fragment_of = {
        atom: place + 1
        for place, (part, _, _) in enumerate(explanation.fragments)
        for atom in part.atoms
    }
    for atom, (token, value, error) in enumerate(
        zip(tokens, explanation.atoms, explanation.atom_errors, strict=True)
    ):
        places = [] if written is None else (written == atom).nonzero()[0].tolist()
        yield [
            *(number, explanation.property, atom + 1, token),
            " ".join(str(place + 1) for place in places),
            *(int(explanation.equal[atom]) + 1, fragment_of[atom]),
            *(_text(float(value)), _text(float(error)), explanation.unit),
        ]


def _fragment_rows(number: int, explanation: Explanation) -> Iterator[list[Any]]:
    for part, value, error in explanation.fragments:
        atoms = " ".join(str(atom + 1) for atom in part.atoms)
        yield [
            *(number, explanation.property, "fragment", part.smiles, atoms),
            *(_text(value), _text(error), explanation.unit),
        ]
    for name, value, error in explanation.groups:
        yield [
            *(number, explanation.property, "whole chain", name, ""),
            *(_text(value), _text(error), explanation.unit),
        ]


def _text(value: float) -> str:
    return format(value, ".12g")


def _in_words(explanation: Explanation) -> list[str]:
    unit = f" {explanation.unit}" if explanation.unit not in ("", "1") else ""
    lines = [
        f"{explanation.property} of {explanation.canonical}: {explanation.prediction:.4g}{unit}",
        f"{explanation.reference:+9.4g}  reference, what the model says knowing nothing "
        f"(mean of its labels: {explanation.label_mean:.4g})",
    ]
    parts = [(part.smiles, value) for part, value, _ in explanation.fragments]
    parts += [(f"whole chain: {name}", value) for name, value, _ in explanation.groups]
    lines += [f"{value:+9.4g}  {name}" for name, value in parts]
    if explanation.remark:
        lines.append(explanation.remark)
    return lines


def _check_output(output: Path) -> None:
    if output.suffix.lower() == ".svg":
        raise UsageError(f"{output}: contributions are several files; give a folder with -o")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; give a folder with -o")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent} is no folder; make it, or give another name with -o")
    if output.is_dir():
        others = {path.name for path in output.iterdir()} - _own_files(output)
        if others:
            raise UsageError(
                f"{output} holds other files ({min(others)}); give another folder with -o"
            )


def _own_files(folder: Path) -> set[str]:
    """Return the names of what an earlier call wrote there."""
    path = folder / POLYMERS
    if not path.is_file():
        return set()
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != POLYMER_COLUMNS:
            return set()
        return {POLYMERS, ATOMS, FRAGMENTS, *(line["picture"] for line in reader)}
