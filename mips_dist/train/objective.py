"""The pre-training objective: the class of each masked atom, as a sum and a count."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LEFT_OUT = -100  # the class of padding, which counts nowhere


@dataclass(frozen=True, slots=True)
class MaskedAtomLoss:
    """What a micro-batch adds to the step: sums, never means, so that any split adds up alike.

    ``loss_sum`` () float32 with gradient, nats; ``num_correct`` () int64.
    """

    loss_sum: Tensor
    num_correct: Tensor


def masked_atom_loss(logits: Tensor, classes: Tensor) -> MaskedAtomLoss:
    """Sum the cross-entropy over masked atoms in fp32, whatever the logits' type.

    Parameters
    ----------
    logits
        (M, 101), masked atoms only.
    classes
        (M,) int64; `LEFT_OUT` where a row counts nothing.
    """
    loss_sum = functional.cross_entropy(
        logits.float(), classes, reduction="sum", ignore_index=LEFT_OUT
    )
    with torch.no_grad():
        num_correct = (logits.argmax(dim=-1) == classes).sum()
    return MaskedAtomLoss(loss_sum, num_correct)


def class_entropy(class_counts: Tensor) -> float:
    """Return the entropy in nats of the class frequencies: the loss of knowing only those.

    Parameters
    ----------
    class_counts
        (C,) number of atoms of each class.
    """
    probability = class_counts.double() / class_counts.sum()
    probability = probability[probability > 0]
    return float(-(probability * probability.log()).sum())
