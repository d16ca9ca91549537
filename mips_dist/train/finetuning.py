"""Train the network on one property and score it on one fold. No Ray and no DeepSpeed here.

Legend: R rows of one property, G polymers of a block.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from mips_dist.data.batch import PolymerBatch, collate
from mips_dist.data.block import PolymerBlock
from mips_dist.data.properties import Scaler
from mips_dist.errors import MipsError
from mips_dist.model.mips import MipsConfig, PropertyModel
from mips_dist.train.results import NETWORK, FoldResult, regression_scores

PROTOCOLS = ("strict", "paper")
EVALUATION_BATCH_SIZE = 256
GRADIENT_CLIP = 1.0

Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


@dataclass(kw_only=True, slots=True)
class FoldConfig:
    """How the network is trained on one fold.

    Attributes
    ----------
    model
        Sizes and switches; must be those of `pretrained` where that is given.
    pretrained
        Folder of a pre-trained model; None: from scratch.
    protocol
        "strict": the epoch is chosen on an inner split of the training folds and the test fold is
        scored once. "paper": the epoch is chosen on the test fold, as in the released code.
    inner_fraction
        Share of the training polymers in the inner split.
    warmup_fraction
        Share of all steps over which the learning rate rises to `lr`; it is constant after that.
    ema_decay
        Per-step decay of the averaged weights that are evaluated and kept; 0: no averaging.
    """

    model: MipsConfig = field(default_factory=MipsConfig)
    pretrained: str | None = None
    protocol: str = "strict"
    num_epochs: int = 50
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup_fraction: float = 0.05
    ema_decay: float = 0.99
    inner_fraction: float = 0.15

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol={self.protocol} must be one of {', '.join(PROTOCOLS)}")
        for name in ("num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be above 0")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay} must not be negative")
        for name in ("warmup_fraction", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if not 0 < self.inner_fraction <= 0.5:
            raise ValueError(f"inner_fraction={self.inner_fraction} must be in (0, 0.5]")


@dataclass(frozen=True, slots=True)
class PropertyRows:
    """The labelled rows of one property, pointing into a block of polymers.

    Attributes
    ----------
    sample
        (R,) polymer of the block; rows of one polymer have the same.
    row
        (R,) row of the csv.
    value
        (R,) in `unit`.
    """

    name: str
    unit: str
    sample: Indices
    row: Indices
    value: Values


@dataclass(slots=True)
class FittedModel:
    """A trained network in eval mode, its scaler, the epoch whose weights it has, its curve."""

    model: PropertyModel
    scaler: Scaler
    epoch: int
    curve: list[dict[str, float]]


OnEpoch = Callable[[int], None]


def finetune_fold(
    config: FoldConfig,
    block: PolymerBlock,
    rows: PropertyRows,
    folds: Indices,
    fold: int,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> FoldResult:
    """Train on all folds but one and score that one.

    A function of its arguments alone: the same numbers every time on one machine. Under `strict`
    no label of the test fold is read before the one scoring at the end.

    Parameters
    ----------
    block
        The polymers that `rows.sample` points to.
    folds
        (R,) fold of each row; rows of one polymer share a fold.
    on_epoch
        Called with the number of every finished epoch.

    Raises
    ------
    MipsError
        A label or the loss is not finite; too few rows; a pre-trained model that does not fit.
    """
    started = time.monotonic()
    test = np.flatnonzero(folds == fold)
    outer = np.flatnonzero(folds != fold)
    where = f"{rows.name} fold {fold} seed {seed}"
    if config.protocol == "strict":
        watched = inner_split(rows.sample, outer, config.inner_fraction, seed, fold)
        train = np.setdiff1d(outer, watched)
    else:
        watched, train = test, outer
    if not (len(train) and len(watched) and len(test)):
        raise MipsError(f"{where}: {len(outer)} training and {len(test)} test rows are too few")
    fitted = _fit(config, block, rows, train, watched, (seed, fold), where, on_epoch)
    prediction = predict(fitted, block, rows.sample[test])
    return FoldResult(
        model=NETWORK,
        property=rows.name,
        unit=rows.unit,
        fold=fold,
        seed=seed,
        protocol=config.protocol,
        epoch=fitted.epoch,
        num_train=len(train),
        seconds=time.monotonic() - started,
        curve=fitted.curve,
        row=rows.row[test].tolist(),
        prediction=prediction.tolist(),
        **regression_scores(rows.value[test], prediction),
    )


def finetune_all(
    config: FoldConfig, block: PolymerBlock, rows: PropertyRows, num_epochs: int, seed: int
) -> FittedModel:
    """Train on every row for a number of epochs that the folds have chosen."""
    every = np.arange(len(rows.value))
    config = copy.copy(config)
    config.num_epochs = num_epochs
    return _fit(config, block, rows, every, every[:0], (seed, -1), rows.name, None)


def inner_split(
    sample: Indices, outer: Indices, fraction: float, seed: int, fold: int
) -> Indices:
    """Choose the rows of the training folds that choose the epoch; whole polymers only.

    Parameters
    ----------
    sample
        (R,) polymer of each row.
    outer
        Rows of the training folds.

    Returns
    -------
    Rows of the inner split, sorted.
    """
    polymers = np.unique(sample[outer])
    rng = np.random.default_rng([seed, fold, 0])
    chosen = rng.permutation(polymers)[: max(1, round(fraction * len(polymers)))]
    return outer[np.isin(sample[outer], chosen)]


def predict(fitted: FittedModel, block: PolymerBlock, sample: Indices) -> Values:
    """Predict polymers of a block in the unit of the property, (R,) for (R,) polymers."""
    return _evaluate(fitted.model, _evaluation_batches(block, sample), fitted.scaler)


def _fit(
    config: FoldConfig,
    block: PolymerBlock,
    rows: PropertyRows,
    train: Indices,
    watched: Indices,
    key: tuple[int, int],
    where: str,
    on_epoch: OnEpoch | None,
) -> FittedModel:
    """Train on `train`; keep the weights of the epoch that does best on `watched`, else the last.

    `key` (seed, fold; -1 for all rows) makes the streams of random numbers.
    """
    if not np.isfinite(rows.value[np.concatenate([train, watched])]).all():
        raise MipsError(f"{where}: a label is NaN or infinite; remove its row")
    scaler = Scaler.fit(rows.value[train])
    z = scaler.to_z(rows.value).astype(np.float32)
    streams = np.random.SeedSequence([key[0], key[1] + 1])
    rng = np.random.default_rng(streams.spawn(1)[0])
    with _one_thread(int(streams.generate_state(1)[0])):
        model = _initial_model(config)
        device = next(model.parameters()).device
        averaged = copy.deepcopy(model).requires_grad_(False).eval()
        batches = _evaluation_batches(block, rows.sample[watched])
        num_steps = config.num_epochs * math.ceil(len(train) / config.batch_size)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        warmup_steps = max(1, round(config.warmup_fraction * num_steps))
        step = 0
        best_rmse, best_epoch, best_state = math.inf, config.num_epochs, None
        curve: list[dict[str, float]] = []
        for epoch in range(1, config.num_epochs + 1):
            loss_sum = torch.zeros((), device=device)
            # Equal parts instead of full batches and a rest: no row is left out, none weighs more.
            for part in np.array_split(rng.permutation(train), -(-len(train) // config.batch_size)):
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * min(1.0, (step + 1) / warmup_steps)
                batch = collate(block.select(rows.sample[part])).to(device)
                target = torch.from_numpy(z[part]).to(device)
                loss = F.mse_loss(model(batch)[:, 0], target)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
                optimizer.step()
                step += 1
                _average(averaged, model, min(config.ema_decay, (step + 1) / (step + 10)))
                loss_sum += loss.detach() * len(part)
            train_loss = float(loss_sum) / len(train)
            if not math.isfinite(train_loss):
                raise MipsError(f"{where}: the loss is not finite in epoch {epoch}; lower lr")
            entry = {"epoch": float(epoch), "train_loss": train_loss}
            if len(watched):
                scores = regression_scores(
                    rows.value[watched], _evaluate(averaged, batches, scaler)
                )
                entry |= {"watched_rmse": scores["rmse"], "watched_r2": scores["r2"]}
                if scores["rmse"] < best_rmse:
                    best_rmse, best_epoch = scores["rmse"], epoch
                    best_state = copy.deepcopy(averaged.state_dict())
            curve.append(entry)
            if on_epoch is not None:
                on_epoch(epoch)
    if best_state is not None:
        averaged.load_state_dict(best_state)
    return FittedModel(averaged, scaler, best_epoch, curve)


def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the current ones; decay 0 copies them."""
    with torch.no_grad():
        torch._foreach_lerp_(
            list(averaged.parameters()), list(model.parameters()), 1.0 - decay
        )
