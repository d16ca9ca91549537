"""Dropout with cheap random numbers, on CPUs and in compiled code."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

LEVELS = 1 << 16  # 16 random bits decide about one element
_PER_WORD = 4


def dropout(x: Tensor, probability: float, is_training: bool, seed: Tensor | None = None) -> Tensor:
    """Drop elements and scale the others, as `torch.nn.functional.dropout` does.

    torch draws one Bernoulli number for each element, a tenth of a training step on a CPU. Four
    elements share one 64-bit word of the same generator here, at a quarter of the cost. In compiled
    code for a GPU its numbers cost more than the rest of the kernel; a hash of seed and place costs
    little, and nothing has to be kept for the backward pass. The probability is rounded to a
    multiple of 2^-16, and the scale is that of the rounded one, so the mean stays exact.

    Parameters
    ----------
    x
        Any shape, floating.
    probability
        In [0, 1).
    is_training
        Otherwise x is returned as it is.
    seed
        () int32, for compiled code.
    """
    num_dropped = round(probability * LEVELS)
    if not is_training or not num_dropped:
        return x
    scale = LEVELS / (LEVELS - num_dropped)
    if seed is not None and torch.compiler.is_compiling():
        place = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
        bits = (random_words(place, seed) >> 16) & 0xFFFF
        return torch.where(bits >= num_dropped, x * scale, 0.0)
    if x.device.type != "cpu":
        return F.dropout(x, probability, is_training)
    num_words = -(-x.numel() // _PER_WORD)
    words = torch.empty(num_words, dtype=torch.int64).random_(-(2**63), None)
    levels = words.view(torch.int16)[: x.numel()].view(x.shape)
    noise = (levels >= num_dropped - LEVELS // 2).to(x.dtype)
    return x * noise.mul_(scale)


def random_words(place: Tensor, seed: Tensor) -> Tensor:
    """Hash places to 32 uniform bits each: an integer finalizer with the seed stirred in twice.

    Once alone, two seeds would give the same sequence from two places on.

    Parameters
    ----------
    place
        Any shape, int32.
    seed
        () int32.

    Returns
    -------
    int32, the shape of ``place``; each half alone decides about one element.
    """
    # The seed comes first: compilers take multiples of places for addresses, which would overflow.
    bits = (place ^ seed) * -1640531535
    # Shifts of int32 copy the sign; the masks undo it.
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * 0x7FEB352D
    bits = bits ^ (seed * 747796405)
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * -2073254261
    return bits ^ ((bits >> 16) & 0xFFFF)
