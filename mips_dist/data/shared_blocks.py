"""Decoded blocks that the loader's processes share: each is decoded once, by one of them. No torch.

Memory without a name, which is mapped before the processes are forked: it is gone with the last of
them, however they end. It is a ring. A block is written behind the one before, over the oldest ones
where the ring is full, and a reader who was overtaken while it copied notices by the place.
"""

import json
import mmap
import multiprocessing
from dataclasses import fields
from typing import Any

import numpy as np

from mips_dist.data.block import Array, PolymerBlock

_ALIGNED = 64  # bytes; a power of two above every item


class SharedBlocks:
    """A ring of decoded blocks by number; made before the processes that share it are forked.

    Parameters
    ----------
    num_blocks
        Of the data set.
    num_bytes
        Of the ring. Memory is taken as blocks are put into it.
    """

    def __init__(self, num_blocks: int, num_bytes: int) -> None:
        self._ring = mmap.mmap(-1, num_bytes)
        context = multiprocessing.get_context("fork")
        self._lock, self._writing = context.Lock(), context.Lock()
        # Of each block: where it begins, counted from the first byte ever written (-1: nowhere),
        # its bytes, and whether a process is at it. Then the bytes ever written.
        table: Array = np.frombuffer(mmap.mmap(-1, 8 * (3 * num_blocks + 1)), np.int64)
        self._start, self._size, self._is_taken = table[:-1].reshape(3, num_blocks)
        self._written = table[-1:]
        self._start[:] = -1

    def get(self, number: int) -> PolymerBlock | None:
        """Return a block, if it is there."""
        with self._lock:
            if not self._has(number):
                return None
            start, size = int(self._start[number]), int(self._size[number])
        place = start % len(self._ring)
        data = self._ring[place : place + size]
        with self._lock:
            is_whole = self._is_kept(start)
        return _unpacked(data) if is_whole else None

    def take(self, number: int) -> bool:
        """Tell whether the caller is to make a block that is not there; others then will not.

        It must `put` or `leave` it.
        """
        with self._lock:
            if self._has(number) or self._is_taken[number]:
                return False
            self._is_taken[number] = 1
            return True

    def put(self, number: int, block: PolymerBlock) -> None:
        """Share a block, unless it is larger than the ring."""
        head, arrays = _packed(block)
        size = len(head) + sum(_padded(array.nbytes) for array in arrays)
        if size > len(self._ring):
            self.leave(number)
            return
        # One writes at a time: one that was overtaken by a whole round would write over another.
        with self._writing:
            with self._lock:
                start = int(self._written[0])
                rest = len(self._ring) - start % len(self._ring)
                if size > rest:  # not around the end
                    start += rest
                self._written[0] = start + size
            place = start % len(self._ring)
            parts: list[bytes | memoryview] = [head]
            parts += [array.reshape(-1).view(np.uint8).data for array in arrays]
            for data in parts:
                self._ring[place : place + len(data)] = data
                place += _padded(len(data))
            with self._lock:
                self._start[number], self._size[number] = start, size
                self._is_taken[number] = 0

    def leave(self, number: int) -> None:
        """Let others make a block after all."""
        with self._lock:
            self._is_taken[number] = 0

    def _has(self, number: int) -> bool:
        return self._is_kept(int(self._start[number]))

    def _is_kept(self, start: int) -> bool:
        return start >= max(0, int(self._written[0]) - len(self._ring))


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNED) * _ALIGNED


def _packed(block: PolymerBlock) -> tuple[bytes, list[Array]]:
    """Return a block as a head, whose length is a multiple of 64, and the arrays that follow it."""
    text = "".join(block.psmiles).encode()
    named: dict[str, Array] = {
        "text": np.frombuffer(text, np.uint8),
        "text_end": np.cumsum([len(p.encode()) for p in block.psmiles], dtype=np.int64),
    }
    for f in fields(block):
        value = getattr(block, f.name)
        if isinstance(value, np.ndarray):
            named[f.name] = value
        elif isinstance(value, dict):
            named |= {f"{f.name}/{key}": array for key, array in value.items()}
    arrays = [np.ascontiguousarray(array) for array in named.values()]
    layout = [[n, a.dtype.str, a.shape] for n, a in zip(named, arrays, strict=True)]
    head = json.dumps(layout).encode()
    size = _padded(8 + len(head))
    return len(head).to_bytes(8, "little") + head.ljust(size - 8), arrays


def _unpacked(data: bytes) -> PolymerBlock:
    size = int.from_bytes(data[:8], "little")
    place = _padded(8 + size)
    values: dict[str, Any] = {"descriptors": {}, "descriptor_valid": {}}
    for name, dtype, shape in json.loads(data[8 : 8 + size]):
        count = int(np.prod(shape))
        array = np.frombuffer(data, dtype, count, place).reshape(shape)
        place += _padded(array.nbytes)
        group, _, key = name.partition("/")
        if key:
            values[group][key] = array
        else:
            values[name] = array
    text, ends = values.pop("text").tobytes(), values.pop("text_end").tolist()
    values["psmiles"] = [text[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)]
    return PolymerBlock(**values)
