"""Rows that spell one polymer, found exactly and in bounded memory; the first row wins.

Each accepted row is a record of 24 bytes: 128 bits of hash and the row's number. Records are
spilled to files by their hash, so that equal polymers share a file and each file fits in memory;
each is sorted alone. What is merged is spilled again, by row, and becomes one number per row on
disk. The result is a function of the verdicts alone.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocess.verdicts import Verdicts

# Records of a file on average, and of what is held in memory at once: some 50 MB while sorting.
# 1e9 rows are 4,000 files of 6 MB.
PART_SIZE = 1 << 18

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])
_PAIR = np.dtype([("row", "<i8"), ("first", "<i8")])
_ROW = np.dtype("<i8")

Records = NDArray[Any]


class FirstRows:
    """For each accepted row the first row that spells the same polymer, on disk.

    Attributes
    ----------
    num_polymers
        Distinct polymers.
    """

    def __init__(self, path: Path, num_polymers: int) -> None:
        self._path = path
        self.num_polymers = num_polymers

    def of(self, verdicts: Verdicts) -> NDArray[np.int64]:
        """Return (rows,) first rows of a chunk; a row that is its own is the one that is kept.

        Entries of rejected rows mean nothing.
        """
        count = len(verdicts.canonical)
        return np.fromfile(self._path, _ROW, count, offset=verdicts.start * _ROW.itemsize)


def find_first_rows(verdicts: Iterable[Verdicts], num_rows: int, work: Path) -> FirstRows:
    """Find the rows that spell a polymer of an earlier row.

    Nothing is taken over from an interrupted call: it takes a second or two a million rows.

    Parameters
    ----------
    verdicts
        Verdicts on all rows, in order.
    num_rows
        Rows of the input.
    work
        Folder for temporary files, 24 bytes an accepted row, and for the result, 8 bytes a row.
    """
    spilled = work / "merge"
    shutil.rmtree(spilled, ignore_errors=True)
    num_parts = max(1, -(-num_rows // PART_SIZE))
    by_hash = _Parts(spilled / "by_hash", _RECORD)
    num_accepted = 0
    for records in _in_batches(verdicts):
        num_accepted += len(records)
        by_hash.add((records["high"] % np.uint64(num_parts)).astype(np.intp), records)

    by_row = _Parts(spilled / "by_row", _PAIR)
    num_merged = 0
    for part in range(num_parts):
        # One piece but for a corpus that says the same again and again: what is known of it are
        # its distinct polymers, and hashes spread those evenly.
        known = np.empty(0, _RECORD)
        for piece in by_hash.pieces(part):
            known, pairs = _resolve(known, piece)
            num_merged += len(pairs)
            by_row.add(pairs["row"] // PART_SIZE, pairs)

    path = work / "first_rows"
    with path.open("wb") as stream:
        for part in range(num_parts):
            start = part * PART_SIZE
            first = np.arange(start, min(start + PART_SIZE, num_rows), dtype=_ROW)
            for pairs in by_row.pieces(part):
                first[pairs["row"] - start] = pairs["first"]
            stream.write(first.tobytes())
    shutil.rmtree(spilled)
    return FirstRows(path, num_accepted - num_merged)


def _in_batches(verdicts: Iterable[Verdicts]) -> Iterator[Records]:
    """Yield the records of accepted rows, about `PART_SIZE` at a time."""
    waiting: list[Records] = []
    for chunk in verdicts:
        places = np.flatnonzero(chunk.accepted)
        records = np.empty(len(places), _RECORD)
        records["high"], records["low"] = chunk.keys[places].T
        records["row"] = chunk.start + places
        waiting.append(records)
        if sum(map(len, waiting)) >= PART_SIZE:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _resolve(known: Records, records: Records) -> tuple[Records, Records]:
    """Return the first record of each polymer, and (row, first row) of all others.

    Parameters
    ----------
    known
        First records so far, of earlier rows than `records`.
    records
        More of them, in the order of the rows.
    """
    both = np.concatenate([known, records])
    # A stable sort: the records of one polymer stay in the order of their rows.
    both = both[np.lexsort((both["low"], both["high"]))]
    is_first = np.ones(len(both), np.bool_)
    is_first[1:] = (both["high"][1:] != both["high"][:-1]) | (both["low"][1:] != both["low"][:-1])
    place_of_first = np.maximum.accumulate(np.where(is_first, np.arange(len(both)), 0))
    pairs = np.empty(np.count_nonzero(~is_first), _PAIR)
    pairs["row"] = both["row"][~is_first]
    pairs["first"] = both["row"][place_of_first[~is_first]]
    return both[is_first], pairs


class _Parts:
    """Records in numbered files, which grow at their ends."""

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._dtype = dtype

    def add(self, part: NDArray[np.intp], records: Records) -> None:
        """Append each record to the file of its part, in order."""
        order = np.argsort(part, kind="stable")
        parts, starts = np.unique(part[order], return_index=True)
        groups = np.split(records[order], starts[1:])
        for number, group in zip(parts.tolist(), groups, strict=False):
            # Opened for each group: thousands of open files are more than many systems allow.
            with open(self._path(number), "ab") as stream:
                stream.write(group.tobytes())

    def pieces(self, part: int) -> Iterator[Records]:
        """Yield the records of a part, at most `PART_SIZE` at a time."""
        if not os.path.exists(path := self._path(part)):
            return
        with open(path, "rb") as stream:
            while len(piece := np.fromfile(stream, self._dtype, PART_SIZE)):
                yield piece

    def _path(self, part: int) -> str:
        # Plain text: a Path would keep its name for good, and there are many.
        return f"{self._folder}/{part:05d}"
