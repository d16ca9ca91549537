"""The cells of a study: which there are, how one is run, and the models that follow from them."""

import json
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter

from mips_dist.chem.chain_features import Counts, chain_environments
from mips_dist.model.bundle import CALIBRATION, METRICS, Partner, is_complete, save_bundle
from mips_dist.threads import one_thread
from mips_dist.train.baselines import baseline_features, fit_predict
from mips_dist.train.calibrate import HeldOut, calibrate
from mips_dist.train.ensemble import NETWORK_SHARE, ensembles
from mips_dist.train.finetune_config import FinetuneConfig, slug
from mips_dist.train.finetuning import finetune_all, finetune_jointly, inner_polymers
from mips_dist.train.fitting import FittedModel, OnEpoch
from mips_dist.train.results import (
    CHEMPROP,
    ENSEMBLE,
    GP_TREES,
    GP_TREES_XTB,
    NETWORK,
    Cell,
    FoldResult,
    regression_scores,
)
from mips_dist.train.study import Study
from mips_dist.train.tables import Summary

Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


def study_cells(config: FinetuneConfig) -> list[Cell]:
    """Return every cell of a study: the network by seed, the baselines once, all on all folds."""
    cells = []
    for name in config.targets or config.properties:
        for fold in range(config.num_folds):
            cells += [Cell(NETWORK, name, fold, seed, config.protocol) for seed in config.seeds]
            # No baseline chooses anything on a test fold: its row is strict under any protocol.
            cells += [Cell(model, name, fold, 0, "strict") for model in config.baselines]
    return cells


def trainings(config: FinetuneConfig) -> list[list[Cell]]:
    """Return every cell, together with those that the same training gives.

    With `joint`, the networks of all properties of a fold are one network.
    """
    groups: dict[Cell, list[Cell]] = {}
    for cell in study_cells(config):
        is_joint = config.joint and cell.model == NETWORK
        groups.setdefault(cell._replace(property="") if is_joint else cell, []).append(cell)
    return list(groups.values())


def run_cells(study: Study, cells: list[Cell], on_epoch: OnEpoch | None = None) -> list[FoldResult]:
    """Run one of the study's `trainings`; a function of the study and the cells alone."""
    first = cells[0]
    if first.model != NETWORK:
        return [_run_baseline(study, cell) for cell in cells]
    names = [cell.property for cell in cells]
    study = study.tuned(names)
    started = time.monotonic()
    taught = _taught(study, names, first.fold)
    lesson = (time.monotonic() - started) / len(cells)
    results = finetune_jointly(
        study.config,
        study.block,
        [study.rows[name] for name in names],
        [study.folds[name] for name in names],
        first.fold,
        first.seed,
        on_epoch,
        taught,
    )
    return [replace(result, seconds=result.seconds + lesson) for result in results]


def _taught(study: Study, names: list[str], fold: int | None) -> list[Values] | None:
    """Return what `gp-trees` says of every training polymer, for each property; NaN of the others.

    Parameters
    ----------
    fold
        The test fold, which it knows nothing of; None: it is fitted to all rows.
    """
    if not study.config.teacher_weight:
        return None
    chains = study.chains
    assert chains is not None  # `load_study` has them where there is a teacher
    train = [np.flatnonzero(study.folds[name] != (-1 if fold is None else fold)) for name in names]
    taught_of = np.unique(
        np.concatenate([study.rows[n].sample[own] for n, own in zip(names, train, strict=True)])
    )
    features = chains.features.select(chains.places([study.block.psmiles[i] for i in taught_of]))
    taught = []
    for name, own in zip(names, train, strict=True):
        rows = study.rows[name]
        known = [study.block.psmiles[i] for i in rows.sample[own]]
        with one_thread():
            model = chains.fit(name, known, rows.value[own], fold, seed=0)
            values = np.full(len(study.block.psmiles), np.nan)
            values[taught_of] = model.predict(features)
        taught.append(values)
    return taught


def _run_baseline(study: Study, cell: Cell) -> FoldResult:
    rows, folds = study.rows[cell.property], study.folds[cell.property]
    started = time.monotonic()
    train, test = np.flatnonzero(folds != cell.fold), np.flatnonzero(folds == cell.fold)
    epoch = 0
    with one_thread():
        if cell.model == CHEMPROP:
            # An optional package, and one that takes seconds to import.
            from mips_dist.train.chemprop_baseline import fit_predict_chemprop

            fraction = study.config.inner_fraction
            inner = inner_polymers(rows.sample[train], fraction, cell.seed, cell.fold)
            is_watched = np.isin(rows.sample[train], inner)
            train, watched = train[~is_watched], train[is_watched]
            units = [study.block.psmiles[i] for i in rows.sample]
            prediction, epoch = fit_predict_chemprop(
                units, rows.value, train, watched, test, cell.seed
            )
        elif cell.model in (GP_TREES, GP_TREES_XTB):
            prediction = _chain_prediction(study, cell, train, test)
        else:
            polymers, index = np.unique(rows.sample, return_inverse=True)
            features = baseline_features(study.block.select(polymers))[index]
            prediction = fit_predict(
                cell.model, features[train], rows.value[train], features[test], cell.seed
            )
    return _scored(study, cell, prediction, len(train), time.monotonic() - started, epoch)


def _chain_prediction(study: Study, cell: Cell, train: Indices, test: Indices) -> Values:
    rows, chains = study.rows[cell.property], study.chains
    assert chains is not None
    if cell.model == GP_TREES_XTB:
        chains = chains.with_xtb(study.block)
    canonicals = [study.block.psmiles[i] for i in rows.sample]
    known = [canonicals[i] for i in train]
    model = chains.fit(cell.property, known, rows.value[train], cell.fold, cell.seed)
    return model.predict(chains.features.select(chains.places([canonicals[i] for i in test])))


def _scored(
    study: Study,
    cell: Cell,
    prediction: Values,
    num_train: int,
    seconds: float,
    epoch: int = 0,
) -> FoldResult:
    rows = study.rows[cell.property]
    test = np.flatnonzero(study.folds[cell.property] == cell.fold)
    return FoldResult(
        model=cell.model,
        property=cell.property,
        fold=cell.fold,
        seed=cell.seed,
        protocol=cell.protocol,
        unit=rows.unit,
        epoch=epoch,
        num_train=num_train,
        seconds=seconds,
        row=rows.row[test].tolist(),
        prediction=prediction.tolist(),
        **regression_scores(rows.value[test], prediction)._asdict(),
    )


def best_model(config: FinetuneConfig) -> str:
    """Return the name of the model that is left for use: the ensemble where there is one."""
    return ENSEMBLE if GP_TREES in config.baselines else NETWORK


def ensemble_results(study: Study, results: Mapping[Cell, FoldResult]) -> list[FoldResult]:
    """Return the results of `ensembles`, scored, where the study's model is one."""
    config = study.config
    if best_model(config) != ENSEMBLE:
        return []
    names = [prop.name for prop in study.properties]
    return [
        _scored(study, mixed.cell(), np.array(mixed.prediction), mixed.num_train, mixed.seconds)
        for mixed in ensembles(results, names, config.num_folds, config.seeds)
    ]


def held_out_predictions(
    study: Study, results: Mapping[Cell, FoldResult], name: str
) -> list[float]:
    """Return what the models of cross-validation predict for each row of a property.

    They are of the kind that `train_model` leaves, its ensemble or the mean network of all seeds,
    and each is trained on the other folds. Under the protocol `paper` the test fold chose the
    epoch, so their errors are too small.

    Parameters
    ----------
    results
        With all cells of the property.
    """
    folds = study.folds[name]
    wanted = name, study.config.protocol
    ensemble = {
        r.fold: r.prediction
        for r in ensemble_results(study, results)
        if (r.property, r.protocol) == wanted
    }
    predictions = np.empty(len(folds))
    for fold in range(study.config.num_folds):
        cells = [Cell(NETWORK, name, fold, s, study.config.protocol) for s in study.config.seeds]
        members = [ensemble[fold]] if ensemble else [results[cell].prediction for cell in cells]
        predictions[folds == fold] = np.mean(members, axis=0)
    return predictions.tolist()


def write_curve(result: FoldResult, folder: Path) -> None:
    """Write the curve of one cell as TensorBoard events, in place of earlier ones of that cell."""
    if not result.curve:
        return
    name = f"{slug(result.property)}-fold{result.fold}-seed{result.seed}-{result.protocol}"
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    watched = "inner" if result.protocol == "strict" else "test"
    with SummaryWriter(str(target)) as writer:
        for entry in result.curve:
            epoch = int(entry["epoch"])
            writer.add_scalar("train/loss", entry["train_loss"], epoch)
            writer.add_scalar(f"{watched}/rmse", entry["watched_rmse"], epoch)
            writer.add_scalar(f"{watched}/r2", entry["watched_r2"], epoch)


def model_dir(run_dir: Path, name: str) -> Path:
    """Return the folder of the model of a property."""
    return run_dir / "models" / slug(name)


def has_model(config: FinetuneConfig, run_dir: Path, name: str) -> bool:
    """Tell whether the model of a property is finished, undamaged, and the one of this command.

    The cells of other commands on the same folder, with another protocol or other seeds, may have
    chosen another epoch and have other scores.
    """
    folder = model_dir(run_dir, name)
    # Those that were made before there were calibrations are made again.
    if not is_complete(folder) or not (folder / CALIBRATION).is_file():
        return False
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    return all(metrics.get(key) == value for key, value in _origin(config).items())


def _origin(config: FinetuneConfig) -> dict[str, Any]:
    """Return which cells of a property choose the epoch of its model, as its metrics have it."""
    joint = {"trained_jointly": config.targets or config.properties} if config.joint else {}
    return {
        **joint,
        "model": best_model(config),
        "protocol": config.protocol,
        "folds": list(range(config.num_folds)),
        "seeds": list(config.seeds),
    }


def train_models(
    study: Study,
    run_dir: Path,
    summaries: list[Summary],
    epochs: list[list[int]],
    held_out: list[list[float]],
) -> None:
    """Train on all rows of one property, or of several jointly; save the model of each, calibrated.

    Parameters
    ----------
    summaries
        Of each property: cross-validated scores of this command's cells, which become the metrics
        of the model.
    epochs
        Of each property: those that the same cells chose; their median is used.
    held_out
        Of each property: from `held_out_predictions`.
    """
    names = [summary.property for summary in summaries]
    study = study.tuned(names)
    chosen = [max(1, round(statistics.median(own))) for own in epochs]
    rows = [study.rows[name] for name in names]
    taught = _taught(study, names, None)
    fitted = finetune_all(study.config, study.block, rows, chosen, study.config.seeds[0], taught)
    for summary, model, predictions in zip(summaries, fitted, held_out, strict=True):
        _save_model(study, run_dir, summary, model, np.array(predictions))


def _save_model(
    study: Study, run_dir: Path, summary: Summary, fitted: FittedModel, held_out: Values
) -> None:
    name = summary.property
    rows = study.rows[name]
    polymers, first, index = np.unique(rows.sample, return_index=True, return_inverse=True)
    calibration, coverage = calibrate(
        HeldOut(
            environments=_environments(study, polymers),
            fold=study.folds[name][first],
            polymer=index,
            value=rows.value,
            prediction=held_out,
        )
    )
    partner = None
    if best_model(study.config) == ENSEMBLE:
        assert study.chains is not None
        canonicals = [study.block.psmiles[i] for i in rows.sample]
        with one_thread():
            chain_model = study.chains.fit(name, canonicals, rows.value, None, seed=0)
        partner = Partner(chain_model, NETWORK_SHARE)
    save_bundle(
        model_dir(run_dir, name),
        fitted.model,
        feature_schema=study.schema,
        metrics={
            "cross_validated_r2": summary.r2,
            "cross_validated_rmse": summary.rmse,
            "coverage_90": coverage.share,
            "mean_width_90": coverage.mean_width,
            "num_epochs": fitted.epoch,
            **_origin(study.config),
        },
        trained_on=f"All {len(rows.row)} labelled rows ({len(polymers)} polymers) of {name}; the "
        "metrics are those of cross-validation, of models that did not see the rows they predict.",
        scaler={
            "property": name,
            "unit": rows.unit,
            "mean": fitted.scaler.mean,
            "std": fitted.scaler.std,
        },
        partner=partner,
        calibration=calibration,
    )


def _environments(study: Study, polymers: Indices) -> Counts:
    canonicals = [study.block.psmiles[i] for i in polymers]
    if study.chains is None:
        return chain_environments(canonicals)
    return study.chains.features.environments[study.chains.places(canonicals)]
