"""Blocks of numpy arrays to batches of torch tensors: global indices, collapsed cells, packs.

Legend: G polymers, N atoms, P pairs, C cells (distinct (query, key) of the pairs), A path atoms,
S path bonds, T pack size in tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mips_dist.data.block import PolymerBlock

Array = npt.NDArray[Any]

DEFAULT_PACK_SIZE = 128


@dataclass(kw_only=True)
class PolymerBatch:
    """G polymers as torch tensors; indices are global to the batch.

    The atoms stand one after the other without padding. For attention they are scattered into
    packs of `pack_size` tokens that hold one or more whole polymers each.
    """

    atom_features: Tensor  # (N, 9) long, columns ATOM_FEATURES
    is_backbone: Tensor  # (N,) bool
    batch_index: Tensor  # (N,) long, polymer of the atom
    ptr: Tensor  # (G + 1,) long, first atom of each polymer

    pair_query: Tensor  # (P,) long, atom i of cell 0
    pair_key: Tensor  # (P,) long, atom j
    pair_hops: Tensor  # (P,) long
    pair_cell: Tensor  # (P,) long, row of cell_slot: all images of one (i, j) share it
    cell_slot: Tensor  # (C,) long, flat index into (num_packs, T, T)
    token_slot: Tensor  # (N,) long, flat index into (num_packs, T)
    num_packs: int
    pack_size: int  # T

    path_pair: Tensor  # (A,) long, row of pair_*
    path_position: Tensor  # (A,) long, 1..hops-1 counted from the query
    path_atom: Tensor  # (A,) long, global atom
    path_weight: Tensor  # (A,) float32, fraction of the shortest paths through it
    descriptors: dict[str, Tensor]  # name -> (G, width) float32
    descriptor_valid: dict[str, Tensor]  # name -> (G,) bool; an invalid row has no meaning
    sample_index: Tensor  # (G,) long, the block's row

    # None where the block was read without bonds; only a model with bond_path_bias needs them.
    path_bond_pair: Tensor | None = None  # (S,) long
    path_bond_position: Tensor | None = None  # (S,) long, 1..hops counted from the query
    path_bond_type: Tensor | None = None  # (S,) long
    path_bond_weight: Tensor | None = None  # (S,) float32

    is_masked: Tensor | None = None  # (N,) bool, atoms hidden from the model

    @property
    def num_graphs(self) -> int:
        """Return the number of polymers."""
        return len(self.sample_index)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PolymerBatch":
        """Return the batch on a device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=non_blocking)
            if isinstance(value, dict):
                return {name: move(tensor) for name, tensor in value.items()}
            return value

        return PolymerBatch(**{f.name: move(getattr(self, f.name)) for f in fields(self)})


def collate(block: PolymerBlock, pack_size: int | None = DEFAULT_PACK_SIZE) -> PolymerBatch:
    """Make one batch of all polymers of a block, in order.

    Parameters
    ----------
    block
        At least one polymer.
    pack_size
        Tokens of one attention pack; raised to the largest polymer where that is longer. None:
        each polymer is a pack of its own, as long as the largest one.
    """
    num_graphs = len(block)
    starts = block.offsets["num_atoms"]
    atom_start = starts[:-1]
    pair_start = block.offsets["num_pairs"][:-1]

    def spread(values: Array, counts: Array) -> Array:
        return np.repeat(values, counts)

    token_slot, num_packs, size = _place(block.num_atoms, pack_size)
    query, key = block.pair_index.astype(np.int64) + spread(atom_start, block.num_pairs)
    pair_cell, first = _cells(query, key)
    # A pack is size tokens long, so the slot of its token t is pack * size + t.
    query_slot, key_slot = token_slot[query[first]], token_slot[key[first]]
    cell_slot = query_slot * size + key_slot % size

    return PolymerBatch(
        atom_features=_long(block.atom_features),
        is_backbone=torch.from_numpy(np.array(block.is_backbone, dtype=bool)),
        batch_index=_long(spread(np.arange(num_graphs), block.num_atoms)),
        ptr=_long(starts),
        pair_query=_long(query),
        pair_key=_long(key),
        pair_hops=_long(block.pair_hops),
        pair_cell=_long(pair_cell),
        cell_slot=_long(cell_slot),
        token_slot=_long(token_slot),
        num_packs=num_packs,
        pack_size=size,
        path_pair=_long(block.path_pair + spread(pair_start, block.num_path_atoms)),
        path_position=_long(block.path_position),
        path_atom=_long(block.path_atom + spread(atom_start, block.num_path_atoms)),
        path_weight=_float(block.path_weight),
        descriptors={name: _descriptor(x) for name, x in block.descriptors.items()},
        descriptor_valid={
            name: torch.from_numpy(np.array(x, dtype=bool))
            for name, x in block.descriptor_valid.items()
        },
        sample_index=_long(block.row),
        **_path_bonds(block),
    )


def _path_bonds(block: PolymerBlock) -> dict[str, Tensor]:
    if block.num_path_bonds is None:
        return {}
    bonds = block.bonds()
    first_pair = np.repeat(block.offsets["num_pairs"][:-1], block.num_path_bonds)
    return {
        "path_bond_pair": _long(bonds["path_bond_pair"] + first_pair),
        "path_bond_position": _long(bonds["path_bond_position"]),
        "path_bond_type": _long(bonds["path_bond_type"]),
        "path_bond_weight": _float(bonds["path_bond_weight"]),
    }


def _long(values: Array) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _float(values: Array) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32))


def _descriptor(values: Array) -> Tensor:
    """Return a stored group as float32; a group of bits is stored packed, eight to a byte."""
    return _float(np.unpackbits(values, axis=1) if values.dtype == np.uint8 else values)


def _cells(query: Array, key: Array) -> tuple[Array, Array]:
    """Give each distinct (query, key) a number; the pairs of one stand side by side.

    Returns
    -------
    Cell of each pair (P,), and the first pair of each cell (C,).
    """
    is_first = np.ones(len(query), dtype=bool)
    is_first[1:] = (query[1:] != query[:-1]) | (key[1:] != key[:-1])
    return np.cumsum(is_first) - 1, np.flatnonzero(is_first)


def _place(num_atoms: Array, pack_size: int | None) -> tuple[Array, int, int]:
    """Return the slot of every atom (N,), the number of packs, and their size in tokens."""
    largest = int(num_atoms.max())
    if pack_size is None:
        size, num_packs = largest, len(num_atoms)
        polymer_slot = np.arange(num_packs, dtype=np.int64) * size
    else:
        size = max(pack_size, largest)
        polymer_slot, num_packs = pack(num_atoms.tolist(), size)
    starts = np.cumsum(num_atoms, dtype=np.int64) - num_atoms
    slots = np.repeat(polymer_slot - starts, num_atoms) + np.arange(int(num_atoms.sum()))
    return slots, num_packs, size


def pack(sizes: Sequence[int], capacity: int) -> tuple[Array, int]:
    """Put each polymer, in order, into the fullest pack that still has room for it.

    Parameters
    ----------
    sizes
        Atoms of each polymer, at most `capacity`.
    capacity
        Tokens of one pack.

    Returns
    -------
    First slot of each polymer (G,) int64 in (packs * capacity), and the number of packs.
    """
    # Packs by the room they have left, and a bit mask of the rooms in use: its lowest bit at or
    # above the size is the best fit, found without a search over packs.
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0
    num_packs = 0
    slots = []
    for size in sizes:
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            chosen, room = num_packs, capacity
            num_packs += 1
        slots.append(chosen * capacity + capacity - room)
        left = room - size
        if left:
            by_room[left].append(chosen)
            rooms |= 1 << left
    return np.array(slots, dtype=np.int64), num_packs
