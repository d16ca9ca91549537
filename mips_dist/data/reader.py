"""Blocks of a shard folder by number, and the window of them that is in memory. No torch.

Only the members that are asked for are read, each by its byte range. Every byte of them that counts
is checked: arrays by the CRC-32 in their archive, rows and spellings by the index, the index by the
sha256 in the manifest.
"""

import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from mips_dist.data.block import Array, PolymerBlock, concatenate
from mips_dist.data.cache import ByteCache
from mips_dist.data.members import BONDS, DAMAGED, DESCRIPTORS, NAMES, TOPOLOGY
from mips_dist.data.shards import (
    BlockRecord,
    ShardRecord,
    decode_record,
    no_polymer,
    read_shard_index,
)
from mips_dist.data.shared_blocks import SharedBlocks
from mips_dist.data.store import REMEDY, Part, ShardStore
from mips_dist.errors import MipsError

_TOGETHER = 8  # blocks that are fetched at once
_PATIENCE = 10.0  # seconds, with a block that another process makes
_POLL = 0.002


class ShardReader:
    """The blocks of a shard folder; in memory is only what is known of each polymer, 12 bytes.

    Parameters
    ----------
    folder
        Local folder, or a URL that fsspec knows.
    shards
        Their records, from the manifest.
    groups
        Descriptor groups to read.
    with_bonds
        Whether to read bonds, and bond types along paths: what model.bond_path_bias needs.
    cache
        For what comes from a URL.

    Attributes
    ----------
    num_samples
        (B,) polymers of each block.
    first
        (B,) first polymer of each block; they are numbered through.
    num_atoms
        (G,) atoms of each polymer.
    key
        (G,) keys of the canonical spellings; see `order.spelling_keys`.
    """

    def __init__(
        self,
        folder: str | Path,
        shards: Sequence[ShardRecord],
        *,
        groups: Collection[str],
        with_bonds: bool = False,
        cache: ByteCache | None = None,
    ) -> None:
        self.groups = list(groups)
        self._with_bonds = with_bonds
        self._store = ShardStore(folder, cache)
        self._blocks = [(shard, block) for shard in shards for block in shard.blocks]
        if not self._blocks:
            raise no_polymer(folder)
        self.num_samples: Array = np.array([block.num_samples for _, block in self._blocks])
        self.first: Array = np.cumsum(self.num_samples) - self.num_samples
        self._shared: SharedBlocks | None = None
        self._names_crc: list[int] = []
        sizes, keys = [], []
        for shard in shards:
            index = read_shard_index(self._store, shard)
            sizes.append(index.num_atoms)
            keys.append(index.key)
            end = text_end = 0
            for block in shard.blocks:
                start, end = end, end + block.num_samples
                text_start, text_end = text_end, int(index.text_end[end - 1])
                texts = index.text[text_start:text_end].tobytes()
                self._names_crc.append(_names_crc(index.row[start:end], texts))
        self.num_atoms: Array = np.concatenate(sizes)
        self.key: Array = np.concatenate(keys)

    def blocks_of(self, samples: Array) -> Array:
        """Return the block of each polymer."""
        found: Array = np.searchsorted(self.first, samples, "right") - 1
        return found

    def read(self, blocks: Array) -> Iterator[PolymerBlock]:
        """Yield blocks, in the order of their numbers in `blocks`.

        Raises
        ------
        MipsError
            Something is missing, cannot be had, or is damaged.
        """
        for start in range(0, len(blocks), _TOGETHER):
            numbers = blocks[start : start + _TOGETHER].tolist()
            yield from self._fetch(numbers)

    def share(self, num_bytes: int) -> None:
        """From now on `pick` from blocks that the processes forked from this one decode together.

        Parameters
        ----------
        num_bytes
            Of the blocks that are kept for them, the last ones.
        """
        self._shared = SharedBlocks(len(self._blocks), num_bytes)

    @property
    def is_shared(self) -> bool:
        """Whether `pick` and `make_ready` can be used."""
        return self._shared is not None

    def make_ready(self, blocks: Array) -> None:
        """Decode those of some blocks that no process has decoded or is at."""
        assert self._shared is not None
        for number in blocks.tolist():
            if self._shared.take(number):
                self._make(number)

    def pick(self, samples: Array) -> PolymerBlock:
        """Return polymers, in the order given, from the blocks that the processes share.

        Raises
        ------
        MipsError
            A block that none of them has yet is missing, cannot be had, or is damaged.
        """
        of_block = self.blocks_of(samples)
        by_block = np.argsort(of_block, kind="stable")
        numbers, starts = np.unique(of_block[by_block], return_index=True)
        self.make_ready(numbers)  # the processes deal out what is still to be decoded
        parts = [
            self._pick_of(number, samples[own] - self.first[number])
            for number, own in zip(numbers.tolist(), np.split(by_block, starts[1:]), strict=True)
        ]
        place = np.empty_like(by_block)
        place[by_block] = np.arange(len(by_block))
        return concatenate(parts).select(place)

    def _pick_of(self, number: int, places: Array) -> PolymerBlock:
        assert self._shared is not None
        patience = time.monotonic() + _PATIENCE
        while True:
            if (found := self._shared.get(number)) is not None:
                block, start = found
                part = block.select(places)
                if self._shared.holds(start):
                    return part
            elif self._shared.take(number) or time.monotonic() > patience:
                return self._make(number).select(places)
            else:  # another process is at it, or was when it died
                time.sleep(_POLL)

    def _make(self, number: int) -> PolymerBlock:
        assert self._shared is not None
        try:
            (block,) = self._fetch([number])
            self._shared.put(number, block)
            return block
        except BaseException:
            self._shared.leave(number)
            raise

    def _fetch(self, numbers: list[int]) -> Iterator[PolymerBlock]:
        parts = {number: self._parts(*self._blocks[number]) for number in numbers}
        data = iter(self._store.parts([part for own in parts.values() for part in own.values()]))
        for number, own in parts.items():
            yield self._decode(number, own, {name: next(data) for name in own})

    def _parts(self, shard: ShardRecord, block: BlockRecord) -> dict[str, Part]:
        wanted = [TOPOLOGY, NAMES]
        wanted += [BONDS] if self._with_bonds else []
        wanted += [DESCRIPTORS] if self.groups else []
        places = {suffix: block.members[suffix] for suffix in wanted if suffix in block.members}
        return {
            suffix: Part(shard.name, shard.sha256, start, size)
            for suffix, (start, size) in places.items()
        }

    def _decode(
        self, number: int, parts: dict[str, Part], members: dict[str, bytes], is_last: bool = False
    ) -> PolymerBlock:
        shard, record = self._blocks[number]
        try:
            block = decode_record(record, members, self.groups, self._with_bonds, False)
            texts = "".join(block.psmiles).encode()
            if _names_crc(block.row, texts) != self._names_crc[number]:
                raise ValueError("its rows and spellings are not those of the index")
            return block
        except DAMAGED as error:
            if not self._store.is_remote or is_last:
                raise MipsError(
                    f"block {record.key} of {self._store}/{shard.name} cannot be decoded "
                    f"({error}); {REMEDY}"
                ) from error
        # On the way or in the cache, rather than where it came from.
        self._store.forget(list(parts.values()))
        again = dict(zip(parts, self._store.parts(list(parts.values())), strict=True))
        return self._decode(number, parts, again, is_last=True)


class WindowReader:
    """The blocks of the window that is drawn from, in memory, and of the next as far as read ahead.

    Never more than the blocks of two windows: while one is put together, those that it is made of
    are the only others. Where processes share blocks it holds none itself.
    """

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader
        self._blocks: Array = np.zeros(0, np.int64)
        self._window: PolymerBlock | None = None
        self._next_blocks = self._blocks
        self._next: list[PolymerBlock] = []  # of the first blocks of the next window

    def select(self, blocks: Array, samples: Array) -> PolymerBlock:
        """Return polymers of the window of some blocks, which is read where it is not in memory.

        Parameters
        ----------
        blocks
            (K,) ascending.
        samples
            (n,) polymers in these blocks.
        """
        if self._reader.is_shared:
            return self._reader.pick(samples)
        if self._window is None or not np.array_equal(blocks, self._blocks):
            self._window = None
            self.read_ahead(blocks, 1.0)
            parts, self._next = self._next, []
            self._window, self._blocks = concatenate(parts), blocks
        sizes = self._reader.num_samples[blocks]
        shift = np.cumsum(sizes) - sizes - self._reader.first[blocks]
        place = np.searchsorted(blocks, self._reader.blocks_of(samples))
        return self._window.select(samples + shift[place])

    def read_ahead(self, blocks: Array, share: float) -> None:
        """Read the blocks of the window that comes next up to a share of them."""
        if self._reader.is_shared:
            return self._reader.make_ready(blocks[: int(np.ceil(share * len(blocks)))])
        if np.array_equal(blocks, self._blocks) and self._window is not None:
            return
        if not np.array_equal(blocks, self._next_blocks):
            self._next_blocks, self._next = blocks, []
        wanted = blocks[len(self._next) : int(np.ceil(share * len(blocks)))]
        self._next.extend(self._reader.read(wanted))


def _names_crc(row: Array, texts: bytes) -> int:
    return zlib.crc32(texts, zlib.crc32(row.astype("<i8").tobytes()))
