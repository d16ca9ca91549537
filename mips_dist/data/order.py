"""Which sample stands at which step: pure functions of seed and step (law L8). No torch.

Positions are global. Ranks never own samples or shards; they own positions of a step, so the order
is the same at every world size and a resumed run needs no state beyond its step.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mips_dist.data.block import ragged_rows

Array = npt.NDArray[Any]

WINDOW_SIZE = 65_536  # training samples that are shuffled together

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


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions of the order, one after the other, that lie in one window."""

    blocks: Array  # (K,) blocks of the window, ascending
    samples: Array  # (n,) training samples at these positions


class TrainingOrder:
    """The endless order of the training samples, window after window, epoch after epoch.

    In every epoch the blocks of the data set are permuted; blocks that follow each other form a
    window of at most `window_size` samples and one block, and the samples of a window are permuted.
    So a reader needs the blocks of one window at a time. Epochs follow each other without a gap:
    every sample stands exactly once in each, and no remainder is dropped.

    A data set of at most `window_size` samples is one window, which is a shuffle of all of it. In a
    larger one two samples of a block still have independent places in their window, and windows
    are made of other blocks in every epoch, but the samples of one block stand in the same window:
    the polymers of a step come from the blocks of a window, not of the whole data set.

    Parameters
    ----------
    seed
        Seed of the order.
    block_sizes
        (B,) training samples of each block; they are numbered through, block after block.
    window_size
        Samples of a window.
    """

    def __init__(self, seed: int, block_sizes: Array, window_size: int = WINDOW_SIZE) -> None:
        self.seed = seed
        self.num_samples = int(block_sizes.sum())
        self._sizes = block_sizes.astype(np.int64)
        self._first = np.cumsum(self._sizes) - self._sizes
        self._num_windows = -(-self.num_samples // window_size)
        # A step may straddle two of them; the window after is asked for as well.
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._window = lru_cache(maxsize=2)(self._make_window)

    def step(self, step: int, global_batch_size: int) -> list[Piece]:
        """Return the samples of an optimizer step over all ranks, `global_batch_size` of them.

        Parameters
        ----------
        step
            From 0; no earlier step is looked at.
        global_batch_size
            Samples of a step; may exceed those of the data set.
        """
        position, end = step * global_batch_size, (step + 1) * global_batch_size
        pieces = []
        while position < end:
            epoch, window, start, size = self._locate(position)
            blocks, samples = self._window(epoch, window)
            stop = min(size, start + end - position)
            pieces.append(Piece(blocks, samples[start:stop]))
            position += stop - start
        return pieces

    def after(self, position: int) -> tuple[Array, float]:
        """Return the blocks of the next window, and the fraction of this one before a position."""
        _, _, start, size = self._locate(position)
        epoch, window, _, _ = self._locate(position - start + size)
        return self._epoch(epoch)[0][window], start / size

    def _locate(self, position: int) -> tuple[int, int, int, int]:
        """Return epoch and window of a position, its place in the window, and the window's size."""
        epoch, offset = divmod(position, self.num_samples)
        starts = self._epoch(epoch)[1]
        window = int(np.searchsorted(starts, offset, "right")) - 1
        start = int(starts[window])
        return epoch, window, offset - start, int(starts[window + 1]) - start

    def _make_epoch(self, epoch: int) -> tuple[list[Array], Array]:
        """Return the blocks of each window, and where each begins and the last ends (W + 1,)."""
        blocks = np.flatnonzero(self._sizes)
        # Negative numbers, as samples have the others.
        blocks = blocks[np.argsort(hash_keys(self.seed, epoch, -1 - blocks), kind="stable")]
        starts = np.cumsum(self._sizes[blocks]) - self._sizes[blocks]
        # Equal parts, so that no small last window is left over.
        window = starts * self._num_windows // self.num_samples
        first = np.flatnonzero(np.diff(window, prepend=-1))
        parts = [np.sort(part) for part in np.split(blocks, first[1:])]
        return parts, np.append(starts[first], self.num_samples)

    def _make_window(self, epoch: int, window: int) -> tuple[Array, Array]:
        """Return the blocks of a window and its samples in order."""
        blocks = self._epoch(epoch)[0][window]
        samples = ragged_rows(self._first[blocks], self._sizes[blocks])
        return blocks, samples[np.argsort(hash_keys(self.seed, epoch, samples), kind="stable")]


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
