"""Shards and order to masked batches; the position of the loader is the step, nothing else."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mips_dist.data.batch import DEFAULT_PACK_SIZE, PolymerBatch, collate
from mips_dist.data.block import PolymerBlock
from mips_dist.data.masking import (
    MaskingConfig,
    atom_mask,
    corrupt_descriptors,
    drop_descriptors,
)
from mips_dist.data.order import batch_indices, held_out, spelling_keys, split
from mips_dist.errors import MipsError

Array = npt.NDArray[Any]

# Masks of the held-out polymers never change: those of a step that training never reaches.
_VALIDATION_STEP = -1


class MaskedAtomLoader:
    """Masked micro-batches of any step, for one rank; holds the decoded data set in memory.

    Samples and masks are functions of (seed, step, row of the input file) alone (law L8).

    Parameters
    ----------
    block
        The data set.
    keys
        (G,) keys of the spellings (`SampleIndex.key`); None: made here.
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
    """

    def __init__(
        self,
        block: PolymerBlock,
        *,
        keys: Array | None = None,
        seed: int,
        global_batch_size: int,
        grad_accum_steps: int = 1,
        world_size: int = 1,
        rank: int = 0,
        masking: MaskingConfig | None = None,
        held_out_fraction: float = 0.05,
        pack_size: int | None = DEFAULT_PACK_SIZE,
    ) -> None:
        if global_batch_size < world_size * grad_accum_steps:
            raise ValueError(
                f"global_batch_size={global_batch_size} is less than one polymer for each of "
                f"{world_size} ranks x {grad_accum_steps} accumulation steps"
            )
        self.block = block
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.grad_accum_steps = grad_accum_steps
        self.world_size = world_size
        self.rank = rank
        self.masking = MaskingConfig() if masking is None else masking
        self.pack_size = pack_size
        keys = spelling_keys(block.psmiles) if keys is None else keys
        is_held_out = held_out(keys, held_out_fraction)
        self.training_samples: Array = np.flatnonzero(~is_held_out)
        self.held_out_samples: Array = np.flatnonzero(is_held_out)
        if not len(self.training_samples):
            raise MipsError("every polymer is held out; lower held_out_fraction or add polymers")
        if 0 < len(self.held_out_samples) < world_size:
            raise MipsError(
                f"{len(self.held_out_samples)} of {len(block)} polymers are held out, too few for "
                f"{world_size} ranks; set held_out_fraction=0 or add polymers"
            )

    def micro_batches(self, step: int) -> list[PolymerBatch]:
        """Return this rank's micro-batches of an optimizer step, `is_masked` set."""
        positions = batch_indices(
            self.seed, step, len(self.training_samples), self.global_batch_size
        )
        parts = self._split(self.training_samples[positions], self.grad_accum_steps)
        return [self._batch(samples, step, hide_descriptors=False) for samples in parts]

    def validation_batches(self, with_descriptors: bool = True) -> list[PolymerBatch]:
        """Return this rank's part of the held-out polymers, as many batches on every rank.

        Over all ranks each held-out polymer occurs once, its atoms masked as at every other call.

        Parameters
        ----------
        with_descriptors
            Whether whole-polymer descriptors are given, as they are or not at all. They tell of
            the masked atoms (law L6c), so the loss is reported both ways.
        """
        if not len(self.held_out_samples):
            return []
        batch_size = max(1, self.global_batch_size // self.grad_accum_steps)
        # Rounded down where that would leave a rank with an empty batch.
        num_batches = min(
            -(-len(self.held_out_samples) // batch_size),
            len(self.held_out_samples) // self.world_size,
        )
        return [
            self._batch(samples, _VALIDATION_STEP, hide_descriptors=not with_descriptors)
            for samples in self._split(self.held_out_samples, num_batches)
        ]

    def _split(self, samples: Array, num_batches: int) -> list[Array]:
        sizes = self.block.num_atoms[samples]
        return split(samples, sizes, self.world_size, num_batches, self.rank)

    def _batch(self, samples: Array, step: int, hide_descriptors: bool) -> PolymerBatch:
        block = self.block.select(samples)
        if hide_descriptors:
            block = drop_descriptors(block)
        elif step != _VALIDATION_STEP:
            block = corrupt_descriptors(block, self.seed, step, block.row, self.masking)
        mask = atom_mask(self.seed, step, block.row, block.num_atoms, self.masking.rate)
        return replace(collate(block, self.pack_size), is_masked=torch.from_numpy(mask))
