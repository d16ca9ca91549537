"""Held-out masked atoms: the loss, and what it must be compared with."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mips_dist.data.batch import PolymerBatch
from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.model.embedding import NUM_ATOM_CLASSES, atom_class
from mips_dist.train.engine import TrainEngine
from mips_dist.train.objective import class_entropy, masked_atom_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """Held-out masked atoms, in nats per atom; None where there is nothing to measure.

    ``loss_topology`` is the loss with every descriptor group switched off, as descriptors tell of
    the masked atoms. ``class_entropy`` is the loss of knowing nothing but the class frequencies.
    """

    loss: float | None = None
    accuracy: float | None = None
    loss_topology: float | None = None
    class_entropy: float | None = None
    num_masked: int = 0

    def scalars(self) -> dict[str, float]:
        """Return the numbers there are, by name."""
        names = ("loss", "accuracy", "loss_topology", "class_entropy")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def masked_classes(batch: PolymerBatch) -> Tensor:
    """Return the classes (M,) of the masked atoms, in the order of the model's logits."""
    return atom_class(batch.atom_features.index_select(0, batch.masked_atoms()))


def validate(trainer: TrainEngine, loader: MaskedAtomLoader) -> Validation:
    """Measure on the held-out polymers, with the same masks at every call; all ranks must call."""
    if not len(loader.held_out_samples):
        return Validation()
    loss_sum, correct, classes = _evaluate(trainer, loader.validation_batches())
    count = float(classes.sum())
    if not count:
        return Validation()
    topology = None
    if loader.has_descriptors:
        hidden = loader.validation_batches(with_descriptors=False)
        topology = _evaluate(trainer, hidden)[0] / count
    return Validation(
        loss=loss_sum / count,
        accuracy=correct / count,
        loss_topology=topology,
        class_entropy=class_entropy(classes),
        num_masked=int(count),
    )


@torch.no_grad()
def _evaluate(trainer: TrainEngine, batches: Iterable[PolymerBatch]) -> tuple[float, float, Tensor]:
    """Return summed loss, correct atoms and the count of each class (101,), over all ranks."""
    loss_sum, num_correct = 0.0, 0
    counts = torch.zeros(NUM_ATOM_CLASSES, dtype=torch.int64)
    trainer.module.eval()
    for batch in batches:
        placed = batch.to(trainer.ranks.device)
        classes = masked_classes(placed)
        loss = masked_atom_loss(trainer.module(placed), classes)
        loss_sum += float(loss.loss_sum)
        num_correct += int(loss.num_correct)
        counts += torch.bincount(classes.cpu(), minlength=NUM_ATOM_CLASSES)
    trainer.module.train()
    total_loss, total_correct, *totals = trainer.ranks.sum(loss_sum, num_correct, *counts.tolist())
    return total_loss, total_correct, torch.tensor(totals, dtype=torch.float64)
