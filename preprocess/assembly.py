"""Blocks to shards: blocks come in any order and are kept on disk until their shard is complete.

A block is what an actor makes at a time, seconds of work that a crash can cost; a shard is a file
of a size that storage likes. Joining is copying, so the driver does it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mips_dist.data.files import write_atomically
from mips_dist.data.index import SampleIndex, join_indices
from mips_dist.data.shards import (
    BlockRecord,
    ShardRecord,
    join_shard,
    read_shard,
    read_shard_index,
)
from mips_dist.errors import MipsError
from preprocess.output import OutputFolder, read_checked, write_checked
from preprocess.work import FeaturizedBlock


class Assembly:
    """The blocks and shards of the second pass.

    Parameters
    ----------
    folder
        The output folder.
    on_shard
        Called when a shard is finished.
    """

    def __init__(self, folder: OutputFolder, on_shard: Callable[[], None]) -> None:
        self._folder = folder
        self._on_shard = on_shard
        self._blocks = folder.work / "blocks"
        self._records = folder.work / "shards"
        self._missing: dict[int, set[int]] = {}  # shard -> blocks that are not there yet
        self._plans: dict[int, Sequence[str]] = {}

    def missing(self, shard: int, plan: Sequence[str]) -> set[int]:
        """Return the blocks that are still to be made; a shard that only waits is joined.

        Parameters
        ----------
        shard
            Number of the shard.
        plan
            A digest of what goes into each of its blocks.
        """
        if self._is_joined(shard, plan):
            return set()
        self._plans[shard] = plan
        self._missing[shard] = {
            block for block in range(len(plan)) if not self._is_made(shard, block)
        }
        missing = set(self._missing[shard])
        self._join_if_complete(shard)
        return missing

    def add(self, shard: int, block: int, made: FeaturizedBlock) -> None:
        """Keep a block, and join its shard if it was the last one of it."""
        path = self._path(shard, block)
        # No wait for the disk: five times as fast, and hashes tell if a block survived a crash.
        path.with_suffix(".tar").write_bytes(made.data)
        path.with_suffix(".npz").write_bytes(made.index)
        values = {
            "plan": self._plans[shard][block],
            "sha256": [hashlib.sha256(data).hexdigest() for data in (made.data, made.index)],
            "block": None if made.record is None else asdict(made.record),
            "reasons": made.reasons,
            "conformer_status": made.conformer_status,
            "statistics": made.statistics,
        }
        write_checked(path.with_suffix(".json"), values)
        self._missing[shard].remove(block)
        self._join_if_complete(shard)

    def records(self, num_shards: int) -> Iterator[dict[str, Any]]:
        """Yield what is known of each shard, in order; all must be joined."""
        for shard in range(num_shards):
            values = read_checked(self._record(shard))
            assert values is not None, "the second pass wrote every record"
            yield values

    def statistics(self, num_shards: int) -> Iterator[dict[str, Any]]:
        """Yield what `preprocess.card.shard_statistics` counted of each block."""
        for values in self.records(num_shards):
            yield from values["statistics"]

    def _path(self, shard: int, block: int) -> Path:
        return self._blocks / f"{shard:06d}-{block:03d}"

    def _record(self, shard: int) -> Path:
        return self._records / f"{shard:06d}.json"

    def _is_made(self, shard: int, block: int) -> bool:
        path = self._path(shard, block)
        values = read_checked(path.with_suffix(".json"))
        if values is None or values["plan"] != self._plans[shard][block]:
            return False
        files = [path.with_suffix(suffix) for suffix in (".tar", ".npz")]
        return all(
            file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256
            for file, sha256 in zip(files, values["sha256"], strict=True)
        )

    def _is_joined(self, shard: int, plan: Sequence[str]) -> bool:
        values = read_checked(self._record(shard))
        if values is None or values["plan"] != list(plan):
            return False
        record = ShardRecord.from_json(values["shard"])
        try:
            read_shard(self._folder.path, record)
            read_shard_index(self._folder.path, record)
        except MipsError:
            return False
        return True

    def _join_if_complete(self, shard: int) -> None:
        if self._missing[shard]:
            return
        plan = self._plans.pop(shard)
        del self._missing[shard]
        pieces, indices, statistics = [], [], []
        reasons: dict[str, str] = {}
        status: Counter[str] = Counter()
        for block in range(len(plan)):
            path = self._path(shard, block)
            values = read_checked(path.with_suffix(".json"))
            assert values is not None, "the record was there a moment ago"
            reasons |= values["reasons"]
            status.update(values["conformer_status"])
            statistics.append(values["statistics"])
            indices.append(SampleIndex.decode(path.with_suffix(".npz").read_bytes()))
            if values["block"] is not None:
                data = path.with_suffix(".tar").read_bytes()
                pieces.append((data, BlockRecord(**values["block"])))
        data, index, record = join_shard(shard, pieces, join_indices(indices))
        write_atomically(self._folder.path / record.index_name, index)
        write_atomically(self._folder.path / record.name, data)
        summary = {
            "plan": list(plan),
            "shard": asdict(record),
            "reasons": reasons,
            "conformer_status": dict(sorted(status.items())),
            "statistics": statistics,
        }
        write_checked(self._record(shard), summary)
        for block in range(len(plan)):
            for suffix in (".json", ".tar", ".npz"):
                self._path(shard, block).with_suffix(suffix).unlink()
        self._on_shard()
