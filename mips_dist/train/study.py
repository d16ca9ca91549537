"""What a fine-tuning study works on: its labels, folds and features."""

import csv
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mips_dist.config import configs_dir, replaced
from mips_dist.data.block import PolymerBlock
from mips_dist.data.files import write_atomically
from mips_dist.data.folds import FOLDS_FILE, Fold, load_or_assign
from mips_dist.data.properties import (
    BENCHMARK,
    LabelledSet,
    Property,
    Reject,
    read_labelled_sets,
    read_property,
)
from mips_dist.data.schema import model_schema
from mips_dist.errors import MipsError, UsageError
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.fold_config import FoldConfig, PropertyRows, load_pretrained, pretrained_path
from mips_dist.train.results import GP_TREES, GP_TREES_XTB
from mips_dist.train.study_chains import StudyChains, load_chains
from mips_dist.train.study_features import read_features

LEDGER_FILE = "ledger.jsonl"
IDENTITY_FILE = "study.json"
REJECTS_FILE = "rejects.csv"
# Behind a URL: what is only of use while it is made, and what nobody else reads.
STAYS = ("*shards/work/*",)
UNPUBLISHED = ("*shards/*", "*chain_features.npz", "*structures.csv")
_FETCH = "fetch the eight sets with `python -m preprocess.corpus fetch benchmark output=FOLDER`"
MIN_POLYMERS_PER_FOLD = 2  # R2 of one polymer does not exist


@dataclass(frozen=True, slots=True)
class Study:
    """All that the cells of a study need, in memory.

    Attributes
    ----------
    properties
        The properties that are run, in the order of the tables.
    rows, folds
        Of each property, by name.
    block
        The polymers with their features.
    schema
        Feature schema of the models that are saved.
    chains
        What gp-trees needs; None where it is not run.
    """

    config: FinetuneConfig
    properties: list[Property]
    rows: dict[str, PropertyRows]
    folds: dict[str, Fold]
    block: PolymerBlock
    schema: dict[str, Any]
    chains: StudyChains | None = None

    def tuned(self, names: list[str]) -> "Study":
        """Return the study with the values that a property's file has for its training.

        They are for a network of its own: of several properties, none holds.
        """
        chosen = next((p.training for p in self.properties if [p.name] == names), {})
        return replace(self, config=replaced(self.config, _not_given(chosen, self.config)))

    def num_polymers(self) -> dict[str, int]:
        """Return the number of distinct polymers of each property."""
        return {name: len(np.unique(rows.sample)) for name, rows in self.rows.items()}


def read_sets(config: FinetuneConfig) -> tuple[list[LabelledSet], list[Reject]]:
    """Read all sets of the study: the eight, or the targets of one csv."""
    if config.input is not None:
        units = config.units or [""] * len(config.targets)
        properties = [
            Property(
                name=target,
                unit=unit,
                file=config.input,
                column=target,
                psmiles_column=config.psmiles_column or "",
            )
            for target, unit in zip(config.targets, units, strict=True)
        ]
    else:
        folder = _data_dir(config)
        properties = [read_property(configs_dir() / "property", name) for name in BENCHMARK]
        for prop in properties:
            _check_training(prop)
            prop.file = str(folder / prop.file)
            if not Path(prop.file).is_file():
                raise MipsError(f"no file {prop.file}; {_FETCH}")
    sets, rejects = read_labelled_sets(properties)
    for labelled in sets:
        found, needed = len(set(labelled.canonical)), config.num_folds * MIN_POLYMERS_PER_FOLD
        name = labelled.property.name
        if found < needed:
            raise MipsError(
                f"{name}: {found} polymers; num_folds={config.num_folds} needs {needed}; "
                "label more, or use a released model (mips predict -p NAME)"
            )
        if np.ptp(labelled.value) == 0:
            raise MipsError(f"{name}: all values are {labelled.value[0]:g}; nothing to learn")
    return sets, rejects


def _data_dir(config: FinetuneConfig) -> Path:
    root = os.environ.get("MIPS_DATA")
    if config.data_dir is None and root is None:
        raise MipsError(
            f"no data: {_FETCH} and give data_dir=FOLDER, or give your own csv with input=FILE "
            "targets=[COLUMN]"
        )
    return Path(config.data_dir) if config.data_dir is not None else Path(str(root)) / "benchmark"


def open_run_dir(run_dir: Path) -> None:
    """Make the folder, or refuse one that holds something else."""
    if run_dir.exists() and not run_dir.is_dir():
        raise MipsError(f"run_dir={run_dir} is a file; give a folder")
    if run_dir.is_dir() and any(run_dir.iterdir()) and not (run_dir / LEDGER_FILE).exists():
        raise MipsError(f"run_dir={run_dir} holds something else than a study; give another folder")
    run_dir.mkdir(parents=True, exist_ok=True)


def load_study(config: FinetuneConfig, sets: list[LabelledSet], rejects: list[Reject]) -> Study:
    """Deal or reuse the folds, make or reuse the features, and put rows and features together.

    Writes folds.csv, rejects.csv and shards into the run folder; refuses a folder that was made
    with other data or another training.
    """
    run_dir = Path(config.run_dir)
    folds, folds_sha256 = load_or_assign(
        run_dir / FOLDS_FILE, sets, config.num_folds, config.fold_seed
    )
    if config.permute_labels is not None:
        sets = _permuted(sets, config.permute_labels)
    _check_identity(run_dir / IDENTITY_FILE, _identity(config, sets, folds_sha256))
    names = config.targets or config.properties
    chosen = {s.property.name: (s, f) for s, f in zip(sets, folds, strict=True)}
    chosen = {name: chosen[name] for name in names}
    block, unusable = read_features(config, [labelled for labelled, _ in chosen.values()])
    sample_of = {psmiles: index for index, psmiles in enumerate(block.psmiles)}
    rows: dict[str, PropertyRows] = {}
    kept_folds: dict[str, Fold] = {}
    for name, (labelled, fold) in chosen.items():
        has = np.array([canonical in sample_of for canonical in labelled.canonical])
        rejects = rejects + [
            Reject(labelled.property.file, int(labelled.row[i]), unusable[labelled.canonical[i]])
            for i in np.flatnonzero(~has)
        ]
        sample = np.array([sample_of[c] for c in labelled.canonical if c in sample_of], np.int64)
        rows[name] = PropertyRows(
            name, labelled.property.unit, sample, labelled.row[has], labelled.value[has]
        )
        kept_folds[name] = fold[has]
    _write_rejects(rejects, run_dir / REJECTS_FILE)
    asked = {GP_TREES, GP_TREES_XTB} & set(config.baselines)
    needs_chains = bool(asked) or config.teacher_weight > 0
    return Study(
        config=replace(config, pretrained=pretrained_path(config)),
        properties=[labelled.property for labelled, _ in chosen.values()],
        rows=rows,
        folds=kept_folds,
        block=block,
        schema=model_schema(config.model),
        chains=load_chains(run_dir, sets, folds, names) if needs_chains else None,
    )


def _not_given(values: dict[str, Any], config: FinetuneConfig) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in config.given}


def _check_training(prop: Property) -> None:
    """Refuse values of a property's file that would need other features or another start."""
    allowed = set(FoldConfig.__slots__) - {"model", "pretrained", "protocol"} | {"model.dropout"}
    for key in sorted(set(prop.training) - allowed):
        raise UsageError(
            f"property {prop.name}: training has no key '{key}'; there are: "
            f"{', '.join(sorted(allowed))}"
        )


def _permuted(sets: list[LabelledSet], seed: int) -> list[LabelledSet]:
    """Deal the labels of each property anew to its rows; no published row is comparable then."""
    return [
        replace(
            labelled,
            value=np.random.default_rng([seed, index]).permutation(labelled.value),
            property=replace(labelled.property, published=None),
        )
        for index, labelled in enumerate(sets)
    ]


def _identity(config: FinetuneConfig, sets: list[LabelledSet], folds_sha256: str) -> dict[str, Any]:
    """Return all that changes the number in a cell; `protocol` and `seeds` are in its name."""
    labels = hashlib.sha256()
    for labelled in sets:
        labels.update(labelled.row.tobytes() + labelled.value.tobytes())
    training = {name: getattr(config, name) for name in FoldConfig.__slots__ if name != "protocol"}
    if not config.teacher_weight:  # as before there was one
        del training["teacher_weight"]
    identity: dict[str, Any] = {
        **training,
        "model": asdict(config.model),
        "properties": [labelled.property.name for labelled in sets],
        "units": [labelled.property.unit for labelled in sets],
        "labels_sha256": labels.hexdigest(),
        "folds_sha256": folds_sha256,
        "num_folds": config.num_folds,
        "fold_seed": config.fold_seed,
        "features": model_schema(config.model),
    }
    chosen = {s.property.name: _not_given(s.property.training, config) for s in sets}
    if any(chosen.values()):
        identity["training"] = {name: values for name, values in chosen.items() if values}
    if config.joint:
        identity["joint"] = config.targets or config.properties
    if config.star_strategy != "link":
        identity["star_strategy"] = config.star_strategy
    if config.permute_labels is not None:
        identity["permute_labels"] = config.permute_labels
    if config.pretrained is not None:
        weights = load_pretrained(config).state_dict()
        digest = hashlib.sha256()
        for name in sorted(weights):
            digest.update(weights[name].numpy().tobytes())
        identity["pretrained"] = digest.hexdigest()
    return identity


def _check_identity(path: Path, identity: dict[str, Any]) -> None:
    if not path.exists():
        write_atomically(path, json.dumps(identity, indent=1) + "\n")
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        saved = None
    if not isinstance(saved, dict):
        raise MipsError(
            f"{path} is damaged, so nothing says which study {path.parent} holds; "
            "delete that folder, or give another run_dir"
        )
    differing = [key for key in saved | identity if saved.get(key) != identity.get(key)]
    if differing:
        raise MipsError(
            f"{path.parent} holds a study with other {', '.join(differing)}; "
            "give another run_dir, or the values of that study"
        )


def _write_rejects(rejects: Iterable[Reject], path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "row", "reason"])
        writer.writerows((Path(r.file).name, r.row, r.reason) for r in rejects)
