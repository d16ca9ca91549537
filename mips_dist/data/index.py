"""The index beside a shard: what is known of every polymer without reading it. No torch."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from mips_dist.data.block import RAGGED_FIELDS, TWO_ROW_FIELDS, Array, PolymerBlock
from mips_dist.data.members import FORMS, pack_arrays, unpack_arrays
from mips_dist.data.order import spelling_keys


@dataclass(frozen=True, kw_only=True)
class SampleIndex:
    """Row, spelling, size, checksum and key of G polymers, in the order of their shards."""

    row: Array  # (G,) int64
    num_atoms: Array  # (G,) int32
    num_pairs: Array  # (G,) int32
    checksum: Array  # (G,) uint32, see `sample_checksums`
    key: Array  # (G,) int64, order.spelling_keys
    text: Array  # (bytes,) uint8, all spellings in UTF-8, one after the other
    text_end: Array  # (G,) int64, where each ends

    def __len__(self) -> int:
        """Return the number of polymers."""
        return len(self.row)

    @cached_property
    def psmiles(self) -> list[str]:
        """G canonical spellings."""
        text, ends = self.text.tobytes(), self.text_end.tolist()
        return [text[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)]

    def encode(self) -> bytes:
        """Return the bytes of the npz file, equal for equal values."""
        return pack_arrays({f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def decode(cls, data: bytes) -> "SampleIndex":
        """Return the index that `encode` wrote; other bytes are an error of `members.DAMAGED`."""
        index = cls(**unpack_arrays(data))
        lengths = {len(getattr(index, f.name)) for f in fields(cls) if f.name != "text"}
        if lengths != {len(index)} or np.any(index.text_end[-1:] != len(index.text)):
            raise ValueError("the arrays of the index differ in length")
        return index


def index_blocks(blocks: Sequence[PolymerBlock]) -> SampleIndex:
    """Return the index of the polymers of some blocks, which were read whole."""
    psmiles = [text for block in blocks for text in block.psmiles]
    texts = [text.encode() for text in psmiles]

    def joined(parts: list[Array], dtype: type) -> Array:
        return np.concatenate([np.zeros(0, dtype), *parts])

    return SampleIndex(
        row=joined([block.row for block in blocks], np.int64),
        num_atoms=joined([block.num_atoms for block in blocks], np.int32),
        num_pairs=joined([block.num_pairs for block in blocks], np.int32),
        checksum=joined([sample_checksums(block) for block in blocks], np.uint32),
        key=spelling_keys(psmiles),
        text=np.frombuffer(b"".join(texts), np.uint8),
        text_end=np.cumsum([len(text) for text in texts], dtype=np.int64),
    )


def join_indices(parts: Sequence[SampleIndex]) -> SampleIndex:
    """Put indices one after the other; at least one."""
    names = [f.name for f in fields(SampleIndex)]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    sizes = np.array([len(part.text) for part in parts])
    arrays["text_end"] += np.repeat(np.cumsum(sizes) - sizes, [len(part) for part in parts])
    return SampleIndex(**arrays)


def sample_checksums(block: PolymerBlock) -> Array:
    """Return a CRC-32 of each polymer, (G,) uint32: equal polymers have equal ones in any block.

    It runs over the spelling in UTF-8 and then the little-endian bytes of the polymer's own part
    of: the counts and then the ragged fields of `RAGGED_FIELDS`, in its order, the first row of a
    two-row field before the second; every descriptor group by name, its validity before its
    values; the status of the conformer. The row of the input file does not count.
    """
    parts: list[tuple[memoryview, list[int]]] = []  # bytes of a field, end of each polymer's

    def add(values: Array, ends: Array, dtype: str) -> None:
        flat = np.ascontiguousarray(values, dtype=dtype)
        size = flat.nbytes // max(len(flat), 1)
        parts.append((memoryview(flat.tobytes()), (ends * size).tolist()))

    each = np.arange(len(block) + 1)
    add(np.stack([getattr(block, name) for name in block.offsets], axis=1), each, "<i4")
    for count_name, offsets in block.offsets.items():
        for name in RAGGED_FIELDS[count_name]:
            values = getattr(block, name)
            for row in values if name in TWO_ROW_FIELDS else (values,):
                add(row, offsets, FORMS[name][0])
    for name in sorted(block.descriptors):
        add(block.descriptor_valid[name], each, "|b1")
        add(block.descriptors[name], each, block.descriptors[name].dtype.str)
    if block.conformer_status is not None:
        add(block.conformer_status, each, FORMS["conformer_status"][0])
    sums = np.empty(len(block), np.uint32)
    for g, psmiles in enumerate(block.psmiles):
        crc = zlib.crc32(psmiles.encode())
        for data, ends in parts:
            crc = zlib.crc32(data[ends[g] : ends[g + 1]], crc)
        sums[g] = crc
    return sums
