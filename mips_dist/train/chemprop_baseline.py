"""Baseline `chemprop`: a directed message-passing network on the star-substituted unit.

Network and training are chemprop's own, with the defaults of its command line (`chemprop train`).
Only this module imports chemprop, an optional dependency, so it is itself imported where needed.
Source: Heid et al., J. Chem. Inf. Model. 64 (2024) 9.
"""

import copy
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from chemprop.data import MoleculeDatapoint, MoleculeDataset, build_dataloader
from chemprop.models import MPNN
from chemprop.nn import BondMessagePassing, NormAggregation, RegressionFFN, UnscaleTransform
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from mips_dist.chem.stars import substituted_molecule
from mips_dist.errors import MipsError

NUM_EPOCHS = 50
BATCH_SIZE = 64

Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


class FoldPrediction(NamedTuple):
    """Predictions of the test rows, in the unit of the labels, and the epoch they are of."""

    prediction: Values
    epoch: int


def fit_predict_chemprop(
    psmiles: list[str], value: Values, train: Indices, watched: Indices, test: Indices, seed: int
) -> FoldPrediction:
    """Train on some rows, keep the epoch that does best on others, and predict the test rows.

    A function of its arguments alone on one machine and with one thread; always on the CPU. No
    label of a test row is read, and nothing is written.

    Parameters
    ----------
    psmiles
        Polymers of the rows, (R,).
    value
        (R,) labels.
    train, watched, test
        Rows that are trained on, that choose the epoch, and that are predicted.
    seed
        Of the initial weights and the order of the batches.

    Raises
    ------
    MipsError
        The loss is finite in no epoch.
    """
    molecules = {text: substituted_molecule(text) for text in set(psmiles)}

    def dataset(rows: Indices, is_labelled: bool) -> MoleculeDataset:
        labels = value[rows] if is_labelled else np.full(len(rows), np.nan)
        points = [
            MoleculeDatapoint(molecules[psmiles[row]], np.array([label]))
            for row, label in zip(rows, labels, strict=True)
        ]
        data = MoleculeDataset(points)
        data.cache = True
        return data

    trained_on, chosen_on = dataset(train, True), dataset(watched, True)
    scaler = trained_on.normalize_targets()
    chosen_on.normalize_targets(scaler)
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        model = MPNN(
            BondMessagePassing(),
            NormAggregation(),
            RegressionFFN(output_transform=UnscaleTransform.from_standard_scaler(scaler)),
        )
        best = _BestEpoch()
        trainer = Trainer(
            max_epochs=NUM_EPOCHS,
            accelerator="cpu",
            devices=1,
            callbacks=[best],
            # Within a Slurm job Lightning would otherwise take each worker for one of its ranks.
            plugins=[LightningEnvironment()],
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, _batches(trained_on, seed), _batches(chosen_on))
        if best.state is None:
            raise MipsError("chemprop: the loss is not finite in any epoch; look at the labels")
        model.load_state_dict(best.state)
        model.eval()
        with torch.inference_mode():
            parts = [model(batch.bmg)[:, 0] for batch in _batches(dataset(test, False))]
    return FoldPrediction(torch.cat(parts).numpy().astype(np.float64), best.epoch)


def _batches(data: MoleculeDataset, seed: int | None = None) -> DataLoader:
    """Load a data set in its order, or by `seed` in another one every epoch."""
    # By default a last batch of one row is dropped, for batch normalisation, which is not used.
    return build_dataloader(data, BATCH_SIZE, seed=seed, shuffle=seed is not None, drop_last=False)


class _BestEpoch(Callback):
    """Keep the weights of the epoch with the smallest validation loss, in memory."""

    def __init__(self) -> None:
        self.loss, self.epoch = math.inf, 0
        self.state: dict[str, torch.Tensor] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = float(trainer.callback_metrics["val_loss"])
        if loss < self.loss:
            self.loss, self.epoch = loss, trainer.current_epoch + 1
            self.state = copy.deepcopy(pl_module.state_dict())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's hints about hardware, loaders and loggers off the terminal."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
