"""`mips finetune`: a csv of one's own to a model, by the recipe of configs/study/own.yaml.

A front of the study (`mips_dist.finetune`), which does all of the work and keeps the books; here
are its defaults, what should be known before it begins, and what its numbers are worth.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mips_dist.chem.descriptors import descriptor_groups
from mips_dist.chem.sample import content_for, featurize, featurize_each
from mips_dist.config import compose, replaced
from mips_dist.data.block import stack
from mips_dist.data.properties import LabelledSet, Reject
from mips_dist.errors import MipsError
from mips_dist.train.cells import model_dir, study_cells
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.finetuning import finetune_all
from mips_dist.train.fold_config import PropertyRows
from mips_dist.train.results import ENSEMBLE, NETWORK, read_lines
from mips_dist.train.study import LEDGER_FILE, REJECTS_FILE, read_sets

MIN_POLYMERS = 20  # four in a fold: with fewer, the score of a fold says nothing
# Of the estimate: polymers that are timed, the epochs that a fold takes (patience ends most of them
# early), the seconds a row costs the trees and the process, those of a start of Ray.
TIMED_POLYMERS = 48
EPOCHS = (25, 45)
SECONDS_PER_ROW = 0.02
SECONDS_OF_START = 30.0

RunStudy = Callable[[FinetuneConfig], int]


def finetune_file(
    input: Path,
    targets: list[str],
    units: list[str],
    output: Path | None,
    psmiles_column: str | None,
    run_study: RunStudy,
) -> None:
    """Cross-validate and train models of the label columns of a csv.

    Parameters
    ----------
    input
        csv or csv.gz; a row without a label is left out for that target.
    targets, units
        Label columns; units none, or one for each.
    output
        Folder of the study; the same call on it continues. Default: `default_folder`.
    psmiles_column
        Default: psmiles, else smiles.
    run_study
        `mips_dist.finetune.main`.

    Raises
    ------
    MipsError, UsageError
        The csv cannot be read or has no such column, or too few or constant labels.
    """
    console = Console()
    started = time.monotonic()
    folder = output or default_folder(input, targets)
    config = own_config(input, targets, units, folder, psmiles_column)
    sets, rejects = read_sets(config)
    for labelled in sets:
        _check_size(labelled)
        console.print(_describe(labelled), highlight=False, soft_wrap=True)
    if rejects:
        console.print(_rejected(rejects, folder), highlight=False, soft_wrap=True)
    missing = _missing_share(config, folder)
    if missing:
        low, high = (missing * seconds for seconds in estimate(config, sets))
        console.print(
            f"cross-validation, then training on all rows: about {_minutes(low)} to "
            f"{_minutes(high)} on {_num_workers(config)} free cores; interrupt it at any time, the "
            "same command continues",
            highlight=False,
            soft_wrap=True,
        )
    run_study(config)
    for line in _verdicts(folder, targets):
        console.print(line, highlight=False, soft_wrap=True)
    models = " ".join(f"-m {model_dir(folder, target)}" for target in targets)
    console.print(f"done after {_minutes(time.monotonic() - started)}; use it:", soft_wrap=True)
    console.print(f"  mips predict NEW.csv {models} -o predictions.csv", soft_wrap=True)


def default_folder(input: Path, targets: list[str]) -> Path:
    """Return the folder of a study that none was given for, below the current one."""
    stem = input.name.split(".")[0]
    return Path("runs") / "-".join([stem, *targets]).replace("/", "_")


def own_config(
    input: Path, targets: list[str], units: list[str], folder: Path, psmiles_column: str | None
) -> FinetuneConfig:
    """Return the study of a csv, by the recipe for data of one's own."""
    values = {
        "targets": targets,
        "input": str(input),
        "units": units,
        "run_dir": str(folder),
        "psmiles_column": psmiles_column,
    }
    recipe = compose(FinetuneConfig, "finetune", ["study=own"])
    return replaced(recipe, {key: value for key, value in values.items() if value})


def estimate(config: FinetuneConfig, sets: list[LabelledSet]) -> tuple[float, float]:
    """Return the fewest and the most seconds that a study should take here, by timing a training.

    Parameters
    ----------
    sets
        The labelled rows of each target.
    """
    canonicals = sorted({c for labelled in sets for c in labelled.canonical})
    chosen = np.random.default_rng(0).permutation(len(canonicals))[:TIMED_POLYMERS]
    content = content_for(config.model.descriptors)
    samples, _ = featurize_each(
        [canonicals[i] for i in chosen],
        lambda texts: featurize(texts, content, config.model.max_hops),
    )
    if not samples:
        return 0.0, 0.0
    known = descriptor_groups(config.model.num_conformers, config.model.conformer_backend)
    groups = [known[name] for name in config.model.descriptors]
    block = stack(samples, range(len(samples)), groups)
    index = np.arange(len(block))
    rows = PropertyRows("timing", "", index, index, index.astype(np.float64))
    marks = [time.process_time()]
    for num_epochs in (1, 3):  # the difference has no loading and no warming up in it
        finetune_all(config, block, [rows], [num_epochs], seed=0)
        marks.append(time.process_time())
    once, thrice = np.diff(marks)
    per_epoch = max(thrice - once, 0.0) / (2 * len(block))
    num_rows = sum(len(labelled.row) for labelled in sets)
    trainings = config.num_folds * (1 - 1 / config.num_folds) * len(config.seeds) + 0.5
    low, high = (
        num_rows * (trainings * epochs * per_epoch + config.num_folds * SECONDS_PER_ROW)
        for epochs in EPOCHS
    )
    workers = _num_workers(config)
    return low / workers + SECONDS_OF_START, high / workers + 2 * SECONDS_OF_START


def _check_size(labelled: LabelledSet) -> None:
    found, name = len(set(labelled.canonical)), labelled.property.name
    if found < MIN_POLYMERS:
        raise MipsError(
            f"{name}: {found} labelled polymers, too few to tell a model from chance; label at "
            f"least {MIN_POLYMERS}, or use a released model (mips predict -p NAME)"
        )


def _describe(labelled: LabelledSet) -> str:
    """Say what a target is made of, and where its labels disagree."""
    values: dict[str, list[float]] = {}
    for canonical, value in zip(labelled.canonical, labelled.value.tolist(), strict=True):
        values.setdefault(canonical, []).append(value)
    unit = f" {labelled.property.unit}" if labelled.property.unit not in ("", "1") else ""
    low, high = labelled.value.min(), labelled.value.max()
    text = (
        f"{labelled.property.name}: {len(labelled.row)} labelled rows of {len(values)} polymers, "
        f"{low:.6g} to {high:.6g}{unit}"
    )
    spreads = [max(own) - min(own) for own in values.values() if len(own) > 1]
    if spreads:
        text += f"; {len(spreads)} in several rows, which stay in one fold"
        differing = [spread for spread in spreads if spread > 0]
        if differing:
            text += f" (labels of {len(differing)} differ, by up to {max(differing):.6g}{unit})"
    return text


def _rejected(rejects: list[Reject], folder: Path) -> str:
    first = rejects[0]
    rows = "1 row cannot" if len(rejects) == 1 else f"{len(rejects)} rows cannot"
    return (
        f"{rows} be used, the first is row {first.row} (from 0): {first.reason}; all are listed "
        f"in {folder / REJECTS_FILE}"
    )


def _missing_share(config: FinetuneConfig, folder: Path) -> float:
    """Return the share of the networks of the folds that is still to be trained."""
    ledger = folder / LEDGER_FILE
    done = read_lines(ledger.read_bytes(), ledger) if ledger.is_file() else {}
    networks = [cell for cell in study_cells(config) if cell.model == NETWORK]
    return sum(cell not in done for cell in networks) / len(networks)


def _num_workers(config: FinetuneConfig) -> int:
    return config.num_workers or len(os.sched_getaffinity(0))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _verdicts(folder: Path, targets: list[str]) -> list[str]:
    """Say of each target what its model is worth."""
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return [
        _verdict(target, {s["model"]: s for s in content["summary"] if s["property"] == target})
        for target in targets
    ]


def _verdict(target: str, rows: dict[str, dict[str, Any]]) -> str:
    own, guess = rows[ENSEMBLE], rows["mean"]
    quality = f"R2 {own['r2']:.2f} ± {own['r2_sd']:.2f} over the folds"
    if own["r2"] <= 0 or own["rmse"] >= guess["rmse"]:
        return f"{target}: no better than guessing the mean ({quality}); do not rely on this model"
    unit = f" {own['unit']}" if own["unit"] not in ("", "1") else ""
    return (
        f"{target}: on polymers like these expect an error of about {own['rmse']:.3g}{unit} (root "
        f"mean square; {guess['rmse']:.3g}{unit} by guessing the mean); {quality}"
    )
