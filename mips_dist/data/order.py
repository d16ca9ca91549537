"""Which sample stands at which step: pure functions of seed and step (law L8). No torch.

Positions are global. Ranks never own samples or shards; they own positions of a step, so the order
is the same at every world size and a resumed run needs no state beyond its step.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_keys(*keys: int | Array) -> Array:
    """Hash integers to uniform 64-bit numbers, element by element (splitmix64, key after key).

    Integer arithmetic alone: the same numbers on every machine and with every library version,
    for any element without the ones before it.

    Parameters
    ----------
    keys
        Integers or integer arrays that broadcast together.

    Returns
    -------
    uint64 array, at least one-dimensional.
    """
    state = np.zeros(1, np.uint64)
    for key in keys:
        # Arrays wrap around silently, as the algorithm wants; scalars would warn.
        state = (state ^ np.atleast_1d(np.asarray(key, dtype=np.int64)).view(np.uint64)) + _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def uniform(*keys: int | Array) -> Array:
    """Return float64 numbers in [0, 1), a pure function of `keys` (see `hash_keys`)."""
    return (hash_keys(*keys) >> np.uint64(11)) * 2.0**-53


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_samples: int) -> Array:
    """Return the permutation of one epoch, (num_samples,) int64.

    Every sample gets a hash and the hashes are sorted; a shuffle over the whole data set, not over
    a buffer. The last two epochs are kept, as a step may straddle them.
    """
    order = np.argsort(hash_keys(seed, epoch, np.arange(num_samples)), kind="stable")
    order.flags.writeable = False
    return order


def batch_indices(seed: int, step: int, num_samples: int, global_batch_size: int) -> Array:
    """Return the samples of one optimizer step over all ranks.

    Epochs follow each other without a gap: a step may end one and begin the next, so every sample
    occurs exactly once in every epoch and no remainder is dropped.

    Parameters
    ----------
    seed
        Seed of the order.
    step
        Optimizer step, from 0.
    num_samples
        Samples in the data set; at least 1.
    global_batch_size
        Samples of a step, over all ranks and micro-batches; may exceed `num_samples`.

    Returns
    -------
    (global_batch_size,) int64 in [0, num_samples).
    """
    position, end = step * global_batch_size, (step + 1) * global_batch_size
    parts = []
    while position < end:
        epoch, start = divmod(position, num_samples)
        stop = min(num_samples, start + end - position)
        parts.append(epoch_order(seed, epoch, num_samples)[start:stop])
        position += stop - start
    return np.concatenate(parts)


def split(
    indices: Array,
    sizes: Array,
    world_size: int,
    grad_accum_steps: int,
    rank: int,
) -> list[Array]:
    """Deal the samples of a step to micro-batches of equal work and return those of one rank.

    The ``world_size * grad_accum_steps`` micro-batches depend on that product alone: 1 rank with 4
    steps, 2 with 2 and 4 with 1 compute the same four micro-batches.

    Parameters
    ----------
    indices
        (B,) samples of the step.
    sizes
        (B,) atoms of each.
    world_size, grad_accum_steps, rank
        Ranks, micro-batches per rank and step, and which rank asks.

    Returns
    -------
    One array of samples per micro-batch, largest polymer first; their lengths differ by at most 1.
    """
    num_parts = world_size * grad_accum_steps
    by_size = indices[np.argsort(-np.asarray(sizes, dtype=np.int64), kind="stable")]
    turn, part = np.divmod(np.arange(len(by_size)), num_parts)
    # Deal forth and back, so that no part gets the larger one of every round.
    part = np.where(turn % 2 == 0, part, num_parts - 1 - part)
    return [by_size[part == rank + step * world_size] for step in range(grad_accum_steps)]


def text_key(text: str) -> int:
    """Return a signed 64-bit key, a pure function of the text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def spelling_keys(psmiles: Sequence[str]) -> Array:
    """Return the `text_key` of each canonical spelling, (G,) int64."""
    return np.fromiter((text_key(text) for text in psmiles), np.int64, count=len(psmiles))


def held_out(keys: Array, fraction: float) -> Array:
    """Return which polymers are held out for validation, by their canonical spelling alone.

    The same polymer is held out in every run, file, seed and world size.

    Parameters
    ----------
    keys
        (G,) keys of the canonical spellings; see `spelling_keys`.
    fraction
        Expected fraction of polymers held out.

    Returns
    -------
    (G,) bool.
    """
    return uniform(keys) < fraction
