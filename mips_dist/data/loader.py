"""Shards and order to masked batches; the position of the loader is the step, nothing else."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mips_dist.data.batch import DEFAULT_PACK_SIZE, FlatBatch, PolymerBatch, collate
from mips_dist.data.block import PolymerBlock, concatenate
from mips_dist.data.masking import (
    MaskingConfig,
    atom_mask,
    corrupt_descriptors,
    drop_descriptors,
)
from mips_dist.data.order import WINDOW_SIZE, Piece, TrainingOrder, hash_keys, held_out, split
from mips_dist.data.padding import Capacity, pad
from mips_dist.data.prefetch import prefetch
from mips_dist.data.reader import ShardReader, WindowReader
from mips_dist.errors import MipsError

Array = npt.NDArray[Any]

# Masks of the held-out polymers never change: those of a step that training never reaches.
_VALIDATION_STEP = -1
_MOST_HELD_OUT = 20_000  # polymers to validate on, where that many are held out


class MaskedAtomLoader:
    """Masked micro-batches of any step, for one rank.

    Samples and masks are functions of (seed, step, row of the input file) alone (law L8). In memory
    are the blocks of at most two windows of the order, and this rank's held-out polymers.

    Parameters
    ----------
    reader
        The shards.
    seed
        Seed of order and masks.
    global_batch_size
        Polymers of an optimizer step, over all ranks and micro-batches.
    grad_accum_steps, world_size, rank
        Micro-batches per rank and step, ranks, and which one this is.
    masking
        How inputs are hidden.
    held_out_fraction
        Expected fraction of polymers held out for validation, by hash of the canonical spelling.
    pack_size
        Tokens of an attention pack.
    window_size
        See `TrainingOrder`.

    Attributes
    ----------
    training_samples
        Polymers to train on, numbered as in the reader.
    held_out_samples
        Polymers to validate on: those held out, or of more than 20,000 the ones in the first blocks
        by hash that hold that many; a function of the data set alone, which costs no reading of
        the whole of it.
    num_held_out
        All polymers that are held out of training.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        seed: int,
        global_batch_size: int,
        grad_accum_steps: int = 1,
        world_size: int = 1,
        rank: int = 0,
        masking: MaskingConfig | None = None,
        held_out_fraction: float = 0.05,
        pack_size: int | None = DEFAULT_PACK_SIZE,
        window_size: int = WINDOW_SIZE,
    ) -> None:
        if global_batch_size < world_size * grad_accum_steps:
            raise ValueError(
                f"global_batch_size={global_batch_size} is less than one polymer for each of "
                f"{world_size} ranks x {grad_accum_steps} accumulation steps"
            )
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.grad_accum_steps = grad_accum_steps
        self.world_size = world_size
        self.rank = rank
        self.masking = MaskingConfig() if masking is None else masking
        self.pack_size = pack_size
        self._reader = reader
        self._window = WindowReader(reader)
        is_held_out = held_out(reader.key, held_out_fraction)
        self.training_samples: Array = np.flatnonzero(~is_held_out)
        self.num_held_out = len(is_held_out) - len(self.training_samples)
        self.held_out_samples = _validation_samples(reader, is_held_out)
        if not len(self.training_samples):
            raise MipsError("every polymer is held out; lower held_out_fraction or add polymers")
        if 0 < self.num_held_out < world_size:
            raise MipsError(
                f"{self.num_held_out} of {len(is_held_out)} polymers are held out, too few for "
                f"{world_size} ranks; set held_out_fraction=0 or add polymers"
            )
        per_block = np.add.reduceat(~is_held_out, reader.first, dtype=np.int64)
        self._order = TrainingOrder(seed, per_block, window_size)
        self._capacity: Capacity | None = None
        self._held_out: tuple[PolymerBlock, list[Array]] | None = None

    @property
    def has_descriptors(self) -> bool:
        """Whether batches have whole-polymer descriptors."""
        return bool(self._reader.groups)

    def micro_batches(self, step: int) -> list[PolymerBatch]:
        """Return this rank's micro-batches of an optimizer step, masks set.

        Raises
        ------
        MipsError
            Shards are missing, damaged or cannot be had.
        """
        pieces = self._order.step(step, self.global_batch_size)
        samples = self.training_samples[np.concatenate([piece.samples for piece in pieces])]
        parts = self._split(samples, self.grad_accum_steps)
        # Of a small data set all windows are the whole of it, also that of the next epoch.
        if all(np.array_equal(piece.blocks, pieces[0].blocks) for piece in pieces[1:]):
            blocks = [self._window.select(pieces[0].blocks, samples[part]) for part in parts]
        else:
            blocks = self._select_across(pieces, samples, parts)
        return [self._batch(block, step, hide_descriptors=False) for block in blocks]

    def share_blocks(self, num_bytes: int) -> None:
        """From now on let each block be decoded once for all processes that make batches.

        Parameters
        ----------
        num_bytes
            Of the decoded blocks that are kept for them.
        """
        self._reader.share(num_bytes)

    def pad_batches(self, steps: range, num_batches: int) -> None:
        """From now on pad training batches to one shape, taken from the first of some steps.

        A batch that is larger stays as it is.
        """
        self._capacity = None
        needed = steps[: -(-num_batches // self.grad_accum_steps)]
        batches = [batch for step in needed for batch in self.micro_batches(step)]
        self._capacity = Capacity.over(batches)

    def steps(
        self, steps: range, num_workers: int = 0
    ) -> Iterator[Sequence[PolymerBatch | FlatBatch]]:
        """Yield the micro-batches of steps in order.

        Parameters
        ----------
        steps
            From any step on.
        num_workers
            Processes that make them ahead; 0: they are made here, when they are due.
        """
        if num_workers:
            return prefetch(self._prepare, steps, num_workers)
        return (self.micro_batches(step) for step in steps)

    def validation_batches(self, with_descriptors: bool = True) -> list[PolymerBatch]:
        """Return this rank's part of the held-out polymers, as many batches on every rank.

        Over all ranks each held-out polymer occurs once, its atoms masked as at every other call.
        They are read at the first one.

        Parameters
        ----------
        with_descriptors
            Whether whole-polymer descriptors are given, as they are or not at all. They tell of
            the masked atoms (law L6c), so the loss is reported both ways.
        """
        if not len(self.held_out_samples):
            return []
        if self._held_out is None:
            self._held_out = self._read_held_out()
        block, parts = self._held_out
        return [
            self._batch(block.select(part), _VALIDATION_STEP, hide_descriptors=not with_descriptors)
            for part in parts
        ]

    def _prepare(self, step: int) -> list[PolymerBatch]:
        """Make a step ahead of its time, and read what later ones need bit by bit."""
        batches = self.micro_batches(step)
        self._window.read_ahead(*self._order.after((step + 1) * self.global_batch_size))
        return batches

    def _select_across(
        self, pieces: Sequence[Piece], samples: Array, parts: list[Array]
    ) -> list[PolymerBlock]:
        """Return the polymers of each part of a step whose pieces lie in several windows."""
        mine = np.sort(np.concatenate(parts))
        ends = np.cumsum([len(piece.samples) for piece in pieces])
        by_piece = np.split(mine, np.searchsorted(mine, ends[:-1]))
        found = [
            self._window.select(piece.blocks, samples[places])
            for piece, places in zip(pieces, by_piece, strict=True)
            if len(places)
        ]
        block = concatenate(found)
        return [block.select(np.searchsorted(mine, part)) for part in parts]

    def _read_held_out(self) -> tuple[PolymerBlock, list[Array]]:
        """Return this rank's held-out polymers, and which of them stand in each batch."""
        batch_size = max(1, self.global_batch_size // self.grad_accum_steps)
        # Rounded down where that would leave a rank with an empty batch.
        num_batches = min(
            -(-len(self.held_out_samples) // batch_size),
            len(self.held_out_samples) // self.world_size,
        )
        parts = self._split(self.held_out_samples, num_batches)
        mine = np.sort(np.concatenate(parts))
        samples = self.held_out_samples[mine]
        numbers, starts = np.unique(self._reader.blocks_of(samples), return_index=True)
        found = [
            block.select(of_block - self._reader.first[number])
            for number, of_block, block in zip(
                numbers, np.split(samples, starts[1:]), self._reader.read(numbers), strict=True
            )
        ]
        return concatenate(found), [np.searchsorted(mine, part) for part in parts]

    def _split(self, samples: Array, num_batches: int) -> list[Array]:
        """Return which of the samples stand in each of this rank's batches."""
        sizes = self._reader.num_atoms[samples]
        return split(np.arange(len(samples)), sizes, self.world_size, num_batches, self.rank)

    def _batch(self, block: PolymerBlock, step: int, hide_descriptors: bool) -> PolymerBatch:
        if hide_descriptors:
            block = drop_descriptors(block)
        elif step != _VALIDATION_STEP:
            block = corrupt_descriptors(block, self.seed, step, block.row, self.masking)
        mask = atom_mask(self.seed, step, block.row, block.num_atoms, self.masking.rate)
        batch = replace(
            collate(block, self.pack_size),
            is_masked=torch.from_numpy(mask),
            masked_atom=torch.from_numpy(np.flatnonzero(mask)),
        )
        capacity = None if step == _VALIDATION_STEP else self._capacity
        return pad(batch, capacity) if capacity and capacity.holds(batch) else batch


def _validation_samples(reader: ShardReader, is_held_out: Array) -> Array:
    """Return the held-out polymers to validate on; see `MaskedAtomLoader`."""
    per_block = np.add.reduceat(is_held_out, reader.first, dtype=np.int64)
    by_hash = np.argsort(hash_keys(np.arange(len(per_block))), kind="stable")
    before = np.cumsum(per_block[by_hash]) - per_block[by_hash]
    is_chosen = np.zeros(len(per_block), dtype=bool)
    is_chosen[by_hash[before < _MOST_HELD_OUT]] = True
    return np.flatnonzero(is_held_out & np.repeat(is_chosen, reader.num_samples))
