"""What stands in the folder of a fine-tuning study, read without changing or locking anything."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mips_dist.chem.morgan import chain_counts, distance_to_nearest
from mips_dist.config import configs_dir
from mips_dist.data.folds import FOLDS_FILE, read_folds
from mips_dist.data.properties import BENCHMARK, Property, read_property
from mips_dist.errors import MipsError
from mips_dist.train.ensemble import ensembles
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.results import (
    GP_TREES,
    NETWORK,
    Cell,
    FoldResult,
    Scores,
    read_lines,
    regression_scores,
)
from mips_dist.train.study import LEDGER_FILE, read_sets
from mips_dist.train.tables import RESULTS_FILE, Summary, summarize

CONFIG_FILE = "config.yaml"
# Scores are recomputed from labels and predictions; sums in another order differ by less.
_SAME_SCORE = 1e-6
# What keys of a configuration that came with a folder must be, before anything is made of them.
_KINDS = {
    "num_folds": "number of folds",
    "protocol": "word",
    "seeds": "list of numbers",
    "baselines": "list of words",
}
_MAX_FOLDS = 1000


class Series(NamedTuple):
    """One row of the tables: a model under a protocol."""

    model: str
    protocol: str


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """A study as its folder tells it; labels are not in it.

    Attributes
    ----------
    config
        Resolved configuration of the last command.
    results
        The cells of the ledger that the tables are made of, sorted.
    ensembles
        What follows from them, where the study makes it; scores as the study wrote them.
    properties
        In the order of the tables.
    num_polymers
        Distinct polymers of each property.
    missing
        Cells that the last command asks for and the ledger lacks.
    """

    path: Path
    config: dict[str, Any]
    results: list[FoldResult]
    ensembles: list[FoldResult]
    properties: list[Property]
    num_polymers: dict[str, int]
    summaries: list[Summary]
    missing: list[Cell]

    @property
    def rows(self) -> list[FoldResult]:
        """All that has scores: results and ensembles."""
        return self.results + self.ensembles

    def series(self) -> list[Series]:
        """Return the models with their protocols, in the order of the tables."""
        found = [Series(s.model, s.protocol) for s in self.summaries if s.num_cells]
        return list(dict.fromkeys(found))

    def cells(self, name: str, series: Series) -> list[FoldResult]:
        """Return the cells of a property and a series, by fold and seed."""
        return [r for r in self.rows if (r.property, r.model, r.protocol) == (name, *series)]

    def best(self, name: str) -> Series | None:
        """Return our series with the largest mean R2 on a property, strict ones first."""
        own = [s for s in self.summaries if s.property == name and s.num_cells]
        if not own:
            return None
        top = max(own, key=lambda s: (s.protocol == "strict", np.nan_to_num(s.r2, nan=-np.inf)))
        return Series(top.model, top.protocol)


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of one property by row of the csv.

    Attributes
    ----------
    value
        Row -> label in the unit of the property.
    distance
        Row -> 1 - largest similarity to a polymer of the other folds, see `chem.morgan`.
    """

    value: dict[int, float]
    distance: dict[int, float]


def read_folder(path: Path) -> StudyFolder:
    """Read a study.

    Raises
    ------
    MipsError
        A damaged file; a study that has no result yet.
    """
    ledger = path / LEDGER_FILE
    config = read_config(path / CONFIG_FILE, ("seeds", "num_folds", "protocol", "baselines"))
    found = read_lines(ledger.read_bytes(), ledger)
    # As in the printed table: other seeds of the network belong to another command.
    results = [r for r in found.values() if r.model != NETWORK or r.seed in config["seeds"]]
    try:
        properties = _properties(config, {result.property for result in results})
        num_polymers = _num_polymers(path / FOLDS_FILE)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise MipsError(
            f"{path / CONFIG_FILE} or {FOLDS_FILE} there is damaged ({type(error).__name__}); "
            "run the command of the run again"
        ) from error
    names = [prop.name for prop in properties]
    results = sorted((r for r in results if r.property in names), key=lambda r: r.cell())
    if not results:
        raise MipsError(f"{path} has no finished cell yet; make the page later")
    num_folds = int(config["num_folds"])
    mixed = _ensembles(path / RESULTS_FILE, config, names, results)
    return StudyFolder(
        path=path,
        config=config,
        results=results,
        ensembles=mixed,
        properties=properties,
        num_polymers=num_polymers,
        summaries=summarize(results + mixed, properties, num_folds, len(config["seeds"])),
        missing=_missing(config, names, results),
    )


def _ensembles(
    path: Path, config: dict[str, Any], names: list[str], results: list[FoldResult]
) -> list[FoldResult]:
    """Return the ensemble's results that the study has scored."""
    if GP_TREES not in config["baselines"] or not path.is_file():
        return []
    scores: dict[Cell, Scores] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                protocol = row["protocol"].partition(",")[0]  # of permuted labels it says more
                cell = Cell(
                    row["model"], row["property"], int(row["fold"]), int(row["seed"]), protocol
                )
                scores[cell] = Scores(*(float(row[name]) for name in Scores._fields))
    except (KeyError, AttributeError, TypeError, ValueError, csv.Error) as error:
        raise MipsError(f"{path} is damaged; run the command of the run again") from error
    known = {result.cell(): result for result in results}
    return [
        replace(mixed, **scores[mixed.cell()]._asdict())
        for mixed in ensembles(known, names, int(config["num_folds"]), config["seeds"])
        if mixed.cell() in scores
    ]


def read_config(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    """Read the resolved configuration of a run; MipsError where it is none with these keys."""
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise MipsError(f"{path} cannot be read; run the command of the run again") from error
    if not isinstance(values, dict) or not all(key in values for key in needed):
        raise MipsError(f"{path} is not that of the run; run its command again")
    for key, kind in _KINDS.items():
        if key in needed and not _is_of(values[key], kind):
            raise MipsError(f"{path}: {key} is no {kind}; run the command of the run again")
    return {str(key): value for key, value in values.items()}


def _is_of(value: object, kind: str) -> bool:
    if kind == "number of folds":
        return type(value) is int and 1 < value <= _MAX_FOLDS
    if kind == "word":
        return isinstance(value, str)
    inside = int if kind == "list of numbers" else str
    return isinstance(value, list) and all(type(part) is inside for part in value)


def _properties(config: dict[str, Any], found: set[str]) -> list[Property]:
    """Return what the last command runs, and what else the ledger has."""
    if config.get("input") is not None:
        targets = [str(target) for target in config["targets"]]
        units = config.get("units") or [""] * len(targets)
        return [Property(name=n, unit=str(u)) for n, u in zip(targets, units, strict=True)]
    names = dict.fromkeys(config["properties"]) | dict.fromkeys(n for n in BENCHMARK if n in found)
    if unknown := set(names) - set(BENCHMARK):  # a name becomes that of a file
        raise ValueError(f"no property {min(unknown)}")
    return [read_property(configs_dir() / "property", name) for name in names]


def _num_polymers(path: Path) -> dict[str, int]:
    polymers: dict[str, set[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            polymers.setdefault(line["property"], set()).add(line["sha256"])
    return {name: len(hashes) for name, hashes in polymers.items()}


def _missing(config: dict[str, Any], names: list[str], results: list[FoldResult]) -> list[Cell]:
    """Return the cells of every model, protocol and seed that are asked for or begun."""
    rows = {(NETWORK, config["protocol"], seed) for seed in config["seeds"]}
    rows |= {(model, "strict", 0) for model in config["baselines"]}
    rows |= {(r.model, r.protocol, r.seed) for r in results}
    done = {result.cell() for result in results}
    wanted = [
        Cell(model, name, fold, seed, protocol)
        for model, protocol, seed in sorted(rows)
        for name in names
        for fold in range(int(config["num_folds"]))
    ]
    return [cell for cell in wanted if cell not in done]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read rows that another command leaves in the folder, a JSON list or its ``rows``.

    Empty without the file.
    """
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        rows = None
    if isinstance(rows, dict):
        rows = rows.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise MipsError(f"{path} is no list of rows; delete it, or have it made again")
    return rows


def read_labels(folder: StudyFolder, data: Path | None) -> dict[str, Labels]:
    """Read the labels that the study was scored on, and the distances to the training folds.

    Parameters
    ----------
    data
        Where the data lie now, if not where the study found them: the folder of the eight sets,
        or the csv.

    Raises
    ------
    MipsError
        The data are not there, or are not those of the study: other rows, polymers or labels.
    """
    config = folder.config
    names_of_keys = ("data_dir", "input", "targets", "units", "psmiles_column", "num_folds")
    asked: dict[str, Any] = {key: config[key] for key in names_of_keys if key in config}
    if data is not None:
        asked["data_dir" if asked.get("input") is None else "input"] = str(data)
    try:
        study = FinetuneConfig(**asked)
    except (TypeError, ValueError) as error:
        raise MipsError(f"{folder.path / CONFIG_FILE} is that of no study ({error})") from error
    sets, _ = read_sets(study)
    folds, _ = read_folds(folder.path / FOLDS_FILE, sets, int(config["num_folds"]))
    names = [prop.name for prop in folder.properties]
    labels: dict[str, Labels] = {}
    for labelled, fold in zip(sets, folds, strict=True):
        if labelled.property.name in names:
            rows = labelled.row.tolist()
            distance = _distances(labelled.canonical, fold)
            labels[labelled.property.name] = Labels(
                dict(zip(rows, labelled.value.tolist(), strict=True)),
                dict(zip(rows, distance.tolist(), strict=True)),
            )
    for result in folder.rows:
        value = labels[result.property].value
        target = np.array([value.get(row, np.nan) for row in result.row])
        scores = regression_scores(target, np.array(result.prediction))
        if not abs(scores.rmse - result.rmse) <= _SAME_SCORE * max(1.0, abs(result.rmse)):
            raise MipsError(
                f"the labels of {result.property} are not those that the study was scored on; "
                "restore the data"
            )
    return labels


def _distances(canonical: Sequence[str], fold: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return for each row the distance of its polymer to those of the other folds."""
    polymers, first, index = np.unique(canonical, return_index=True, return_inverse=True)
    counts = [chain_counts(str(polymer)) for polymer in polymers]
    fold_of = fold[first]
    distance = np.empty(len(polymers))
    for k in np.unique(fold):
        test, train = np.flatnonzero(fold_of == k), np.flatnonzero(fold_of != k)
        distance[test] = distance_to_nearest([counts[i] for i in test], [counts[i] for i in train])
    return distance[index]
