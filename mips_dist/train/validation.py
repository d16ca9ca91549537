"""Held-out masked atoms: the loss, what it must be compared with, and which element is which."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mips_dist.data.batch import PolymerBatch
from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.model.embedding import NUM_ATOM_CLASSES, atom_class
from mips_dist.train.engine import TrainEngine
from mips_dist.train.objective import LEFT_OUT, class_entropy, masked_atom_loss


def _nothing_counted() -> Tensor:
    return torch.zeros(NUM_ATOM_CLASSES, NUM_ATOM_CLASSES, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """Held-out masked atoms, in nats per atom; None where there is nothing to measure.

    ``loss_topology`` is the loss with every descriptor group switched off, as descriptors tell of
    the masked atoms. ``class_entropy`` is the loss of knowing nothing but the class frequencies.
    ``confusion`` (101, 101) int64 counts the atoms of each class (row) that were taken for each
    (column), over all ranks, descriptors on.
    """

    loss: float | None = None
    accuracy: float | None = None
    loss_topology: float | None = None
    class_entropy: float | None = None
    confusion: Tensor = field(default_factory=_nothing_counted)

    @property
    def num_masked(self) -> int:
        """Return the number of masked atoms."""
        return int(self.confusion.sum())

    def scalars(self) -> dict[str, float]:
        """Return the numbers there are, by name."""
        names = ("loss", "accuracy", "loss_topology", "class_entropy")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def masked_classes(batch: PolymerBatch) -> Tensor:
    """Return the classes (M,) of the masked atoms, in the order of the model's logits.

    Padding has the class that the cross-entropy leaves out.
    """
    classes = atom_class(batch.atom_features.index_select(0, batch.masked_atoms()))
    if batch.real_sizes is None:
        return classes
    assert batch.is_masked is not None
    return classes.masked_fill(~batch.is_masked[batch.masked_atoms()], LEFT_OUT)


def validate(trainer: TrainEngine, loader: MaskedAtomLoader) -> Validation:
    """Measure on the held-out polymers, with the same masks at every call; all ranks must call."""
    if not len(loader.held_out_samples):
        return Validation()
    loss_sum, confusion = _evaluate(trainer, loader.validation_batches())
    count = float(confusion.sum())
    if not count:
        return Validation()
    topology = None
    if loader.has_descriptors:
        hidden = loader.validation_batches(with_descriptors=False)
        topology = _evaluate(trainer, hidden)[0] / count
    return Validation(
        loss=loss_sum / count,
        accuracy=float(confusion.trace()) / count,
        loss_topology=topology,
        class_entropy=class_entropy(confusion.sum(1)),
        confusion=confusion,
    )


@torch.no_grad()
def _evaluate(trainer: TrainEngine, batches: Iterable[PolymerBatch]) -> tuple[float, Tensor]:
    """Return the summed loss and the confusion (101, 101) of true and predicted classes."""
    device = trainer.ranks.device
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    counts = torch.zeros(NUM_ATOM_CLASSES**2, dtype=torch.int64, device=device)
    trainer.module.eval()
    for batch in batches:
        placed = batch.to(device)
        classes, logits = masked_classes(placed), trainer.module(placed)
        loss_sum += masked_atom_loss(logits, classes).loss_sum
        counts += count_pairs(classes, logits.argmax(dim=-1))
    trainer.module.train()
    total, *totals = trainer.ranks.sum(float(loss_sum), *counts.tolist())
    confusion = torch.tensor(totals, dtype=torch.float64).long()
    return total, confusion.view(NUM_ATOM_CLASSES, NUM_ATOM_CLASSES)


def count_pairs(true: Tensor, predicted: Tensor) -> Tensor:
    """Count how often each class (row) was taken for each (column): (101 * 101,) int64.

    Parameters
    ----------
    true, predicted
        (M,) int64 in 0..100.
    """
    return torch.bincount(true * NUM_ATOM_CLASSES + predicted, minlength=NUM_ATOM_CLASSES**2)
