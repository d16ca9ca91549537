"""Blocks of numpy arrays to batches of torch tensors: global indices, collapsed cells, packs.

Legend: G polymers, N atoms, P pairs, C cells (distinct (query, key) of the pairs), A path atoms,
S path bonds, T pack size in tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mips_dist.data.block import PolymerBlock, ragged_rows

Array = npt.NDArray[Any]

DEFAULT_PACK_SIZE = 128
# Of indices that select rows or add to them; torch scatters and copies by long ones alone.
_INDEX = np.int32
_ALIGNMENT = 64  # bytes; of each tensor in a `FlatBatch`
_STORED = {torch.int64: torch.int32}


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

    pair_query: Tensor  # (P,) int, atom i of cell 0
    pair_key: Tensor  # (P,) int, atom j
    pair_hops: Tensor  # (P,) int
    pair_cell: Tensor  # (P,) long, row of cell_slot: all images of one (i, j) share it
    cell_slot: Tensor  # (C,) long, flat index into (num_packs, T, T)
    token_slot: Tensor  # (N,) long, flat index into (num_packs, T)
    num_packs: int
    pack_size: int  # T

    path_pair: Tensor  # (A,) int, row of pair_*
    path_position: Tensor  # (A,) int, 1..hops-1 counted from the query
    path_atom: Tensor  # (A,) int, global atom
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
    masked_atom: Tensor | None = None  # (M,) long, the same as indices
    # Atoms, cells and masked atoms without padding; None where there is none (see data.padding).
    real_sizes: tuple[int, int, int] | None = None

    @property
    def num_graphs(self) -> int:
        """Return the number of polymers."""
        return len(self.sample_index)

    @property
    def num_atoms(self) -> int:
        """Return the number of atoms, without padding."""
        return len(self.token_slot) if self.real_sizes is None else self.real_sizes[0]

    @property
    def num_cells(self) -> int:
        """Return the number of distinct (query, key), without padding."""
        return len(self.cell_slot) if self.real_sizes is None else self.real_sizes[1]

    @property
    def num_masked(self) -> int:
        """Return the number of masked atoms, without padding."""
        return len(self.masked_atoms()) if self.real_sizes is None else self.real_sizes[2]

    def masked_atoms(self) -> Tensor:
        """Return the masked atoms as indices (M,), in order, padding behind them.

        Where they are not there yet they are looked for, for which a GPU must be waited for.
        """
        assert self.is_masked is not None, "no mask was set on the batch"
        if self.masked_atom is not None:
            return self.masked_atom
        return self.is_masked.nonzero().squeeze(1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PolymerBatch":
        """Return the batch on a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell a GPU's allocator that a stream reads the batch."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self.map(record)

    def tensors(self) -> list[Tensor]:
        """Return all tensors of the batch, those of each kind of batch in one order."""
        found: list[Tensor] = []

        def add(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(add)
        return found

    def map(self, change: Callable[[Tensor], Tensor]) -> "PolymerBatch":
        """Return the batch with every tensor changed."""

        def changed(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, dict):
                return {name: change(tensor) for name, tensor in value.items()}
            return value

        return PolymerBatch(**{f.name: changed(getattr(self, f.name)) for f in fields(self)})


@dataclass(kw_only=True)
class FlatBatch:
    """A batch as one stretch of bytes: one file of shared memory, one copy to a GPU.

    Attributes
    ----------
    data
        (B,) uint8; long integers stand in half their width, as all of them are indices or small.
    parts
        Field, key where the field is a dict, dtype, shape and first byte of each tensor.
    """

    data: Tensor
    parts: list[tuple[str, str, torch.dtype, torch.Size, int]]
    num_packs: int
    pack_size: int
    real_sizes: tuple[int, int, int] | None

    @classmethod
    def of(cls, batch: PolymerBatch) -> "FlatBatch":
        """Return the bytes of a batch on the CPU."""
        tensors = []
        for name in (f.name for f in fields(batch)):
            value = getattr(batch, name)
            if isinstance(value, Tensor):
                tensors.append((name, "", value))
            elif isinstance(value, dict):
                tensors += [(name, key, tensor) for key, tensor in value.items()]
        parts, flats, end = [], [], 0
        for name, key, tensor in tensors:
            parts.append((name, key, tensor.dtype, tensor.shape, end))
            flat = tensor.to(_STORED.get(tensor.dtype, tensor.dtype)).contiguous()
            flats.append(flat.view(-1).view(torch.uint8))
            end += -(-flat.nbytes // _ALIGNMENT) * _ALIGNMENT
        data = torch.empty(end, dtype=torch.uint8)
        for flat, (*_, start) in zip(flats, parts, strict=True):
            data[start : start + len(flat)] = flat
        return cls(
            data=data,
            parts=parts,
            num_packs=batch.num_packs,
            pack_size=batch.pack_size,
            real_sizes=batch.real_sizes,
        )

    def to(
        self, device: torch.device | str, non_blocking: bool = False, staging: Tensor | None = None
    ) -> PolymerBatch:
        """Return the batch on a device.

        Parameters
        ----------
        device, non_blocking
            As for a tensor.
        staging
            Pinned memory that the bytes go through, so that a GPU copies them while it computes; at
            least as long as ``data``.
        """
        data = self.data
        if staging is not None:
            data = staging[: len(data)].copy_(data)
        data = data.to(device, non_blocking=non_blocking)
        found: dict[str, Any] = {"descriptors": {}, "descriptor_valid": {}}
        for name, key, dtype, shape, start in self.parts:
            stored = _STORED.get(dtype, dtype)
            num_bytes = shape.numel() * stored.itemsize
            tensor = data[start : start + num_bytes].view(stored).view(shape).to(dtype)
            if key:
                found[name][key] = tensor
            else:
                found[name] = tensor
        found |= {"num_packs": self.num_packs, "pack_size": self.pack_size}
        return PolymerBatch(**found, real_sizes=self.real_sizes)


def collate(block: PolymerBlock, pack_size: int | None = DEFAULT_PACK_SIZE) -> PolymerBatch:
    """Make one batch of all polymers of a block, in order.

    Parameters
    ----------
    block
        At least one polymer.
    pack_size
        Tokens of one attention pack; doubled until the largest polymer fits. None:
        each polymer is a pack of its own, as long as the largest one.
    """
    starts = block.offsets["num_atoms"]
    first_atom = starts[:-1].astype(_INDEX)
    first_pair = block.offsets["num_pairs"][:-1].astype(_INDEX)
    slot, num_packs, size = _place(block.num_atoms, pack_size)
    first_atom_of_pair = np.repeat(first_atom, block.num_pairs)
    pair_index = np.ascontiguousarray(block.pair_index)
    pair_cell, cell_slot = _cells(pair_index, block.num_pairs, slot, size)
    return PolymerBatch(
        atom_features=_copied(block.atom_features, np.int64),
        is_backbone=_copied(block.is_backbone, bool),
        batch_index=torch.from_numpy(np.repeat(np.arange(len(block)), block.num_atoms)),
        ptr=_copied(starts, np.int64),
        pair_query=torch.from_numpy(pair_index[0] + first_atom_of_pair),
        pair_key=torch.from_numpy(pair_index[1] + first_atom_of_pair),
        pair_hops=_copied(block.pair_hops, _INDEX),
        pair_cell=torch.from_numpy(pair_cell),
        cell_slot=torch.from_numpy(cell_slot),
        token_slot=torch.from_numpy(ragged_rows(slot, block.num_atoms)),
        num_packs=num_packs,
        pack_size=size,
        path_pair=torch.from_numpy(block.path_pair + np.repeat(first_pair, block.num_path_atoms)),
        path_position=_copied(block.path_position, _INDEX),
        path_atom=torch.from_numpy(block.path_atom + np.repeat(first_atom, block.num_path_atoms)),
        path_weight=_copied(block.path_weight, np.float32),
        descriptors={name: _descriptor(x) for name, x in block.descriptors.items()},
        descriptor_valid={name: _copied(x, bool) for name, x in block.descriptor_valid.items()},
        sample_index=_copied(block.row, np.int64),
        **_path_bonds(block),
    )


def _path_bonds(block: PolymerBlock) -> dict[str, Any]:
    if block.num_path_bonds is None:
        return {}
    bonds = block.bonds()
    first_pair = np.repeat(block.offsets["num_pairs"][:-1], bonds["num_path_bonds"])
    return {
        "path_bond_pair": torch.from_numpy(bonds["path_bond_pair"] + first_pair),
        "path_bond_position": _copied(bonds["path_bond_position"], np.int64),
        "path_bond_type": _copied(bonds["path_bond_type"], np.int64),
        "path_bond_weight": _copied(bonds["path_bond_weight"], np.float32),
    }


def _copied(values: Array, dtype: npt.DTypeLike) -> Tensor:
    return torch.from_numpy(values.astype(dtype))


def _descriptor(values: Array) -> Tensor:
    """Return a stored group as float32; a group of bits is stored packed, eight to a byte."""
    is_bits = values.dtype == np.uint8
    return _copied(np.unpackbits(values, axis=1) if is_bits else values, np.float32)


def _cells(pair_index: Array, num_pairs: Array, slot: Array, size: int) -> tuple[Array, Array]:
    """Give each distinct (query, key) a number; the pairs of one stand side by side.

    Parameters
    ----------
    pair_index
        (2, P) atoms, numbered within their polymer.
    num_pairs
        (G,) pairs of each polymer.
    slot
        (G,) first token of each.
    size
        Tokens of a pack.

    Returns
    -------
    Cell of each pair (P,), and the flat place of each cell in (packs, size, size), (C,).
    """
    query, key = pair_index
    is_first = np.empty(len(query), dtype=bool)
    np.not_equal(query[1:], query[:-1], out=is_first[1:])
    is_first[1:] |= key[1:] != key[:-1]
    is_first[np.cumsum(num_pairs) - num_pairs] = True  # whatever atoms the polymer before ends with
    pair_cell = np.cumsum(is_first, dtype=np.int64)
    pair_cell -= 1
    # Token t of the batch stands in row t and column t % size of the packs' matrices.
    within = np.multiply(query, size, dtype=_INDEX)
    within += key
    place = np.repeat(slot * size + slot % size, num_pairs)
    place += within
    return pair_cell, place.take(np.flatnonzero(is_first))


def _place(num_atoms: Array, pack_size: int | None) -> tuple[Array, int, int]:
    """Return the first slot of every polymer (G,), the number of packs, and their size."""
    largest = int(num_atoms.max())
    if pack_size is None:
        return np.arange(len(num_atoms), dtype=np.int64) * largest, len(num_atoms), largest
    size = pack_size
    while size < largest:  # few sizes, so that few shapes are ever compiled
        size *= 2
    return *pack(num_atoms.tolist(), size), size


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
