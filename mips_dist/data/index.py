"""The index beside a shard: what is known of every polymer without reading it. No torch."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from mips_dist.data.block import RAGGED_FIELDS, TWO_ROW_FIELDS, Array, PolymerBlock
from mips_dist.data.members import pack_arrays, unpack_arrays
from mips_dist.data.order import spelling_keys

_TEXT, _TEXT_END = "psmiles", "psmiles_end"


@dataclass(frozen=True, kw_only=True)
class SampleIndex:
    """Row, spelling, size, checksum and key of G polymers, in the order of their shards."""

    psmiles: list[str]
    row: Array  # (G,) int64
    num_atoms: Array  # (G,) int32
    num_pairs: Array  # (G,) int32
    checksum: Array  # (G,) uint32, see `sample_checksums`
    key: Array  # (G,) int64, order.spelling_keys

    def __len__(self) -> int:
        """Return the number of polymers."""
        return len(self.psmiles)

    def encode(self) -> bytes:
        """Return the bytes of the npz file, equal for equal values."""
        texts = [text.encode() for text in self.psmiles]
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "psmiles"}
        arrays[_TEXT] = np.frombuffer(b"".join(texts), np.uint8)
        arrays[_TEXT_END] = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return pack_arrays(arrays)

    @classmethod
    def decode(cls, data: bytes) -> "SampleIndex":
        """Return the index that `encode` wrote; other bytes are an error of `members.DAMAGED`."""
        arrays = unpack_arrays(data)
        text, ends = arrays.pop(_TEXT).tobytes(), arrays.pop(_TEXT_END).tolist()
        starts = [0, *ends[:-1]] if ends else []
        psmiles = [text[a:b].decode() for a, b in zip(starts, ends, strict=True)]
        if {len(values) for values in arrays.values()} != {len(psmiles)}:
            raise ValueError("the arrays of the index differ in length")
        return cls(psmiles=psmiles, **arrays)


def index_blocks(blocks: Sequence[PolymerBlock]) -> SampleIndex:
    """Return the index of the polymers of some blocks, which were read whole."""
    psmiles = [text for block in blocks for text in block.psmiles]

    def joined(parts: list[Array], dtype: type) -> Array:
        return np.concatenate([np.zeros(0, dtype), *parts])

    return SampleIndex(
        psmiles=psmiles,
        row=joined([block.row for block in blocks], np.int64),
        num_atoms=joined([block.num_atoms for block in blocks], np.int32),
        num_pairs=joined([block.num_pairs for block in blocks], np.int32),
        checksum=joined([sample_checksums(block) for block in blocks], np.uint32),
        key=spelling_keys(psmiles),
    )


def join_indices(parts: Sequence[SampleIndex]) -> SampleIndex:
    """Put indices one after the other; at least one."""
    arrays = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts])
        for f in fields(SampleIndex)
        if f.name != "psmiles"
    }
    return SampleIndex(psmiles=[text for part in parts for text in part.psmiles], **arrays)


def sample_checksums(block: PolymerBlock) -> Array:
    """Return a CRC-32 of each polymer, (G,) uint32: equal polymers have equal ones in any block.

    It runs over the spelling in UTF-8 and then the little-endian bytes of the polymer's own part
    of: the counts and then the ragged fields of `RAGGED_FIELDS`, in its order, the first row of a
    two-row field before the second; every descriptor group by name, its validity before its
    values; the status of the conformer. The row of the input file does not count.
    """
    parts: list[tuple[memoryview, list[int]]] = []  # bytes of a field, end of each polymer's

    def add(values: Array, ends: Array) -> None:
        flat = np.ascontiguousarray(values)
        size = flat.nbytes // max(len(flat), 1)
        parts.append((memoryview(flat.tobytes()), (ends * size).tolist()))

    each = np.arange(len(block) + 1)
    add(np.stack([getattr(block, name) for name in block.offsets], axis=1), each)
    for count_name, offsets in block.offsets.items():
        for name in RAGGED_FIELDS[count_name]:
            values = getattr(block, name)
            for row in values if name in TWO_ROW_FIELDS else (values,):
                add(row, offsets)
    for name in sorted(block.descriptors):
        add(block.descriptor_valid[name], each)
        add(block.descriptors[name], each)
    if block.conformer_status is not None:
        add(block.conformer_status, each)
    sums = np.empty(len(block), np.uint32)
    for g, psmiles in enumerate(block.psmiles):
        crc = zlib.crc32(psmiles.encode())
        for data, ends in parts:
            crc = zlib.crc32(data[ends[g] : ends[g + 1]], crc)
        sums[g] = crc
    return sums
