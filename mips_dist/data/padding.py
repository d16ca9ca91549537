"""Batches of one shape: padded so that a GPU can replay what it has recorded for the first one.

Padding stands behind everything real. A padding atom takes a free slot of the packs; padding pairs
join padding atoms to slots of their own packs, each a cell in their own rows, so that no real atom
ever attends to padding; what padding computes is finite, and nobody reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev

import torch
from torch import Tensor

from mips_dist.data.batch import PolymerBatch

# Beyond the mean of some batches: so many standard deviations that one batch in a thousand is
# larger, and never less than a part of the mean. The few pairs of one cell follow no such rule: so
# many times the most that were seen.
_DEVIATIONS, _LEAST_MARGIN, _MARGIN_REPEATS = 3.3, 0.01, 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """How much of each kind a padded batch has; atoms fill the packs.

    ``num_repeats`` are pairs beyond the first of each cell.
    """

    num_polymers: int
    num_packs: int
    pack_size: int
    num_cells: int
    num_repeats: int
    num_path_atoms: int
    num_masked: int

    @classmethod
    def over(cls, batches: Sequence[PolymerBatch]) -> "Capacity":
        """Return what nearly all batches of the kind of these need."""

        def most(sizes: list[int]) -> float:
            room = _DEVIATIONS * (stdev(sizes) if len(sizes) > 1 else 0.0)
            return max(mean(sizes) + max(room, _LEAST_MARGIN * mean(sizes)), max(sizes))

        def rounded(size: float) -> int:
            return -(-int(size) // 8) * 8  # as products and kernels like it

        repeats = [len(b.pair_key) - len(b.cell_slot) for b in batches]
        return cls(
            num_polymers=max(batch.num_graphs for batch in batches),
            num_packs=int(most([b.num_packs for b in batches])) + 1,
            pack_size=min(batch.pack_size for batch in batches),
            num_cells=rounded(most([len(b.cell_slot) for b in batches]) + 1),
            num_repeats=rounded(max(repeats) * _MARGIN_REPEATS),
            num_path_atoms=rounded(most([len(b.path_atom) for b in batches])),
            num_masked=rounded(most([b.num_masked for b in batches])),
        )

    def holds(self, batch: PolymerBatch) -> bool:
        """Whether a batch can be padded to it, with room for one padding atom and pair."""
        return (
            batch.num_graphs == self.num_polymers
            and batch.pack_size == self.pack_size
            and batch.num_packs < self.num_packs
            and len(batch.cell_slot) < self.num_cells
            and len(batch.pair_key) - len(batch.cell_slot) <= self.num_repeats
            and len(batch.path_atom) <= self.num_path_atoms
            and batch.num_masked <= self.num_masked
            and batch.path_bond_pair is None
        )


def pad(batch: PolymerBatch, capacity: Capacity) -> PolymerBatch:
    """Return a masked batch on the CPU padded to a capacity that holds it.

    The padding atoms have no features, belong to polymer 0 by number and are not masked; entries of
    ``masked_atom`` beyond ``num_masked`` point to one of them.
    """
    size = capacity.pack_size
    num_slots = capacity.num_packs * size
    is_free = torch.ones(num_slots, dtype=torch.bool)
    is_free[batch.token_slot] = False
    free = is_free.nonzero().squeeze(1)
    num_atoms, num_pairs, num_cells = (
        len(batch.token_slot),
        len(batch.pair_key),
        len(batch.cell_slot),
    )
    atom = num_atoms  # the first padding atom
    more_atoms = len(free)
    more_cells = torch.arange(capacity.num_cells - num_cells)
    more_pairs = capacity.num_cells + capacity.num_repeats - num_pairs
    # One pair for each padding cell, and what is left for the last of them.
    pair_cell = torch.arange(num_cells, num_cells + more_pairs).clamp(max=capacity.num_cells - 1)
    more_paths = capacity.num_path_atoms - len(batch.path_atom)
    path_pair = num_pairs + torch.arange(more_paths) % more_pairs

    def padding_atoms(count: int) -> Tensor:
        # All of them in turn: a GPU adds up in turns what ends at one place.
        return atom + torch.arange(count) % more_atoms

    row = free[more_cells // size]

    def behind(tensor: Tensor, padding: Tensor) -> Tensor:
        return torch.cat([tensor, padding.to(tensor.dtype)])

    def filled(tensor: Tensor, count: int, value: int = 0) -> Tensor:
        shape = count, *tensor.shape[1:]
        return torch.cat([tensor, torch.full(shape, value, dtype=tensor.dtype)])

    assert batch.is_masked is not None, "no mask was set on the batch"
    masked_atom = batch.masked_atoms()
    return replace(
        batch,
        atom_features=filled(batch.atom_features, more_atoms),
        is_backbone=filled(batch.is_backbone, more_atoms),
        batch_index=filled(batch.batch_index, more_atoms),
        token_slot=behind(batch.token_slot, free),
        num_packs=capacity.num_packs,
        pair_query=behind(batch.pair_query, padding_atoms(more_pairs)),
        pair_key=behind(batch.pair_key, padding_atoms(more_pairs)),
        pair_hops=filled(batch.pair_hops, more_pairs),
        pair_cell=behind(batch.pair_cell, pair_cell),
        cell_slot=behind(batch.cell_slot, row * size + more_cells % size),
        path_pair=behind(batch.path_pair, path_pair),
        path_position=filled(batch.path_position, more_paths),
        path_atom=behind(batch.path_atom, padding_atoms(more_paths)),
        path_weight=filled(batch.path_weight, more_paths),
        is_masked=filled(batch.is_masked, more_atoms),
        masked_atom=filled(masked_atom, capacity.num_masked - len(masked_atom), atom),
        real_sizes=(num_atoms, num_cells, len(masked_atom)),
    )
