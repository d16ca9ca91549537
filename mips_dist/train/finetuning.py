"""Train a network on one property, or on several jointly, and score it on one fold.

No Ray and no DeepSpeed here. Legend: R rows of one property, G polymers of a block, T properties,
E polymers that are trained on.
"""

import time
from collections.abc import Sequence

import numpy as np

from mips_dist.data.block import PolymerBlock
from mips_dist.errors import MipsError
from mips_dist.train.fitting import (
    FittedModel,
    OnEpoch,
    Task,
    evaluate,
    evaluation_batches,
    fit,
)
from mips_dist.train.fold_config import FoldConfig, Indices, PropertyRows, Values
from mips_dist.train.results import NETWORK, FoldResult, regression_scores


def finetune_fold(
    config: FoldConfig,
    block: PolymerBlock,
    rows: PropertyRows,
    folds: Indices,
    fold: int,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> FoldResult:
    """Train on all folds of one property but one and score that one; see `finetune_jointly`."""
    return finetune_jointly(config, block, [rows], [folds], fold, seed, on_epoch)[0]


def finetune_jointly(
    config: FoldConfig,
    block: PolymerBlock,
    properties: Sequence[PropertyRows],
    folds: Sequence[Indices],
    fold: int,
    seed: int,
    on_epoch: OnEpoch | None = None,
    taught: Sequence[Values] | None = None,
) -> list[FoldResult]:
    """Train one network on all folds of some properties but one, and score that one.

    The properties share all but the last layer, and each keeps the weights of the epoch that is
    best for it. A function of its arguments alone: the same numbers every time on one machine.
    Under `strict` no label of the test fold is read before the one scoring at the end.

    Parameters
    ----------
    block
        The polymers that `PropertyRows.sample` points to.
    properties
        Labelled rows of each property.
    folds
        (R,) fold of each row, of each property; all rows of one polymer share a fold.
    on_epoch
        Called with the number of every finished epoch.
    taught
        Of each property: (G,) what its teacher, fitted to the training folds, says of a polymer.

    Returns
    -------
    One result for each property.

    Raises
    ------
    MipsError
        A label or the loss is not finite; too few rows; a pre-trained model that does not fit.
    """
    started = time.monotonic()
    outer = [np.flatnonzero(own != fold) for own in folds]
    test = [np.flatnonzero(own == fold) for own in folds]
    names = ", ".join(rows.name for rows in properties)
    where = f"{names} fold {fold} seed {seed}"
    if config.protocol == "strict":
        polymers = [rows.sample[own] for rows, own in zip(properties, outer, strict=True)]
        inner = inner_polymers(np.concatenate(polymers), config.inner_fraction, seed, fold)
        watched = [
            own[np.isin(rows.sample[own], inner)]
            for rows, own in zip(properties, outer, strict=True)
        ]
        train = [np.setdiff1d(own, part) for own, part in zip(outer, watched, strict=True)]
    else:
        watched, train = test, outer
    for rows, *parts in zip(properties, train, watched, test, strict=True):
        if not all(len(part) for part in parts):
            raise MipsError(
                f"{rows.name} fold {fold} seed {seed}: {len(parts[0])} training, {len(parts[1])} "
                f"inner and {len(parts[2])} test rows are too few"
            )
    tasks = [Task(*task) for task in zip(properties, train, watched, strict=True)]
    _teach(tasks, taught)
    fitted = fit(config, block, tasks, (seed, fold), where, on_epoch)
    seconds = (time.monotonic() - started) / len(properties)
    return [
        _scored(config, block, task, own, part, fold, seed, seconds)
        for task, own, part in zip(tasks, fitted, test, strict=True)
    ]


def _scored(
    config: FoldConfig,
    block: PolymerBlock,
    task: Task,
    fitted: FittedModel,
    test: Indices,
    fold: int,
    seed: int,
    seconds: float,
) -> FoldResult:
    rows = task.rows
    prediction = predict(fitted, block, rows.sample[test])
    return FoldResult(
        model=NETWORK,
        property=rows.name,
        unit=rows.unit,
        fold=fold,
        seed=seed,
        protocol=config.protocol,
        epoch=fitted.epoch,
        num_train=len(task.train),
        seconds=seconds,
        curve=fitted.curve,
        row=rows.row[test].tolist(),
        prediction=prediction.tolist(),
        **regression_scores(rows.value[test], prediction)._asdict(),
    )


def finetune_all(
    config: FoldConfig,
    block: PolymerBlock,
    properties: Sequence[PropertyRows],
    num_epochs: Sequence[int],
    seed: int,
    taught: Sequence[Values] | None = None,
) -> list[FittedModel]:
    """Train one network on every row of some properties.

    Parameters
    ----------
    num_epochs
        Of each property, as the folds have chosen; the schedule is that of the folds.
    taught
        Of each property: (G,) what its teacher, fitted to every row, says of a polymer.
    """
    tasks = []
    for rows, epoch in zip(properties, num_epochs, strict=True):
        every = np.arange(len(rows.value))
        tasks.append(Task(rows, every, every[:0], epoch))
    _teach(tasks, taught)
    names = ", ".join(rows.name for rows in properties)
    return fit(config, block, tasks, (seed, -1), names, None)


def _teach(tasks: list[Task], taught: Sequence[Values] | None) -> None:
    if taught is not None:
        for task, values in zip(tasks, taught, strict=True):
            task.taught = values


def inner_polymers(outer: Indices, fraction: float, seed: int, fold: int) -> Indices:
    """Choose the polymers of the training folds whose rows choose the epoch.

    Parameters
    ----------
    outer
        Polymers of the training folds, repeated or not.
    """
    polymers = np.unique(outer)
    rng = np.random.default_rng([seed, fold, 0])
    return rng.permutation(polymers)[: max(1, round(fraction * len(polymers)))]


def predict(fitted: FittedModel, block: PolymerBlock, sample: Indices) -> Values:
    """Predict polymers of a block in the unit of the property, (R,) for (R,) polymers."""
    z = evaluate(fitted.model, evaluation_batches(block, sample))
    return fitted.scaler.to_physical(z[:, 0])
