"""Dropout with cheap random numbers on CPUs."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_LEVELS = 1 << 16  # 16 random bits decide about one element
_PER_WORD = 4


def dropout(x: Tensor, probability: float, is_training: bool) -> Tensor:
    """Drop elements and scale the others, as `torch.nn.functional.dropout` does.

    torch draws one Bernoulli number for each element, a tenth of a training step on a CPU. Four
    elements share one 64-bit word of the same generator here, at a quarter of the cost; the
    probability is rounded to a multiple of 2^-16, and the scale is that of the rounded one, so
    the mean stays exact.

    Parameters
    ----------
    x
        Any shape, floating.
    probability
        In [0, 1).
    is_training
        Otherwise x is returned as it is.
    """
    if x.device.type != "cpu":
        return F.dropout(x, probability, is_training)
    num_dropped = round(probability * _LEVELS)
    if not is_training or not num_dropped:
        return x
    num_words = -(-x.numel() // _PER_WORD)
    words = torch.empty(num_words, dtype=torch.int64).random_(-(2**63), None)
    levels = words.view(torch.int16)[: x.numel()].view(x.shape)
    noise = (levels >= num_dropped - _LEVELS // 2).to(x.dtype)
    return x * noise.mul_(_LEVELS / (_LEVELS - num_dropped))
