"""Decoded blocks that the loader's processes share: each is decoded once, by one of them. No torch.

Memory without a name, which is mapped before the processes are forked: it is gone with the last of
them, however they end. It is a ring. A block is written behind the one before, over the oldest ones
where the ring is full. Nobody copies a whole block: a reader takes polymers from where it lies, and
notices by its place where it was overtaken meanwhile.
"""

import json
import mmap
import multiprocessing
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from mips_dist.data.block import Array, PolymerBlock

_ALIGNED = 64  # bytes; a power of two above every item
_MOST_SEEN = 200_000  # polymers of which a process keeps spellings and sizes at hand


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
        self._seen: dict[int, tuple[PolymerBlock, int]] = {}  # by this process
        self._num_seen = 0

    def get(self, number: int) -> tuple[PolymerBlock, int] | None:
        """Return a block that lies in the ring, and its place, if it is there.

        What is taken from it counts if `holds` says so afterwards. Its sizes are copies: those of
        what is taken are right in any case.
        """
        with self._lock:
            if not self._has(number):
                self._seen.pop(number, None)
                return None
            start, size = int(self._start[number]), int(self._size[number])
        known = self._seen.get(number)
        if known is None or known[1] != start:
            place = start % len(self._ring)
            block = _unpacked(
                memoryview(self._ring)[place : place + size], partial(self.holds, start)
            )
            if block is None:
                return None
            self._num_seen += len(block)
            if self._num_seen > _MOST_SEEN:
                self._seen.clear()
                self._num_seen = len(block)
            known = self._seen[number] = block, start
        return known

    def holds(self, start: int) -> bool:
        """Tell whether the block at a place has not been written over."""
        with self._lock:
            return self._is_kept(start)

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
    named: dict[str, Array] = {}
    for f in fields(block):
        value = getattr(block, f.name)
        if isinstance(value, np.ndarray):
            named[f.name] = value
        elif isinstance(value, dict):
            named |= {f"{f.name}/{key}": array for key, array in value.items()}
    arrays = [np.ascontiguousarray(array) for array in named.values()]
    layout = [[n, a.dtype.str, a.shape] for n, a in zip(named, arrays, strict=True)]
    head = json.dumps([block.psmiles, layout]).encode()
    size = _padded(8 + len(head))
    return len(head).to_bytes(8, "little") + head.ljust(size - 8), arrays


def _unpacked(data: memoryview, is_whole: Callable[[], bool]) -> PolymerBlock | None:
    """Return a block over some bytes, or None where they changed meanwhile."""
    size = int.from_bytes(data[:8], "little")
    head = bytes(data[8 : 8 + size])
    if not is_whole():
        return None
    place = _padded(8 + size)
    psmiles, layout = json.loads(head)
    values: dict[str, Any] = {"descriptors": {}, "descriptor_valid": {}}
    for name, dtype, shape in layout:
        array: Array = np.frombuffer(data, dtype, int(np.prod(shape)), place).reshape(shape)
        place += _padded(array.nbytes)
        group, _, key = name.partition("/")
        if key:
            values[group][key] = array
        else:
            values[name] = array.copy() if name.startswith("num_") else array
    return PolymerBlock(psmiles=psmiles, **values) if is_whole() else None
