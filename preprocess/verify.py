"""``python -m preprocess verify output=DIR``: find whatever changed in a shard folder.

Nothing is believed: files are hashed, tar headers compared byte by byte, every block is decoded,
every sample's checksum made again, and every input row must stand in exactly one place.
"""

import csv
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mips_dist.data.block import Array
from mips_dist.data.files import file_sha256
from mips_dist.data.index import SampleIndex, index_blocks
from mips_dist.data.members import DAMAGED, decode_block
from mips_dist.data.shards import (
    Manifest,
    ShardRecord,
    block_members,
    read_manifest,
    read_shard,
    read_shard_index,
    tar_header,
)
from mips_dist.errors import MipsError, UsageError
from preprocess.output import MERGED_NAME, REJECTS_NAME
from preprocess.progress import progress


@dataclass(kw_only=True, slots=True)
class VerifyConfig:
    """Which folder to check.

    Attributes
    ----------
    output
        Finished shard folder.
    """

    output: str = ""


def verify(config: VerifyConfig) -> int:
    """Print one line for each fault of a shard folder; return 1 if there is any, else 0."""
    if not config.output:
        raise UsageError("output=DIR is needed; see --help")
    folder = Path(config.output)
    manifest = read_manifest(folder)
    num_faults = 0
    for fault in faults(folder, manifest):
        num_faults += 1
        print(f"fault: {fault}", flush=True)
    words = f"{num_faults} faults" if num_faults else "no fault"
    shards = f"{len(manifest.shards):,} shards"
    print(
        f"{folder}: {manifest.num_rows:,} rows, {manifest.num_samples:,} samples, {shards}: {words}"
    )
    return 1 if num_faults else 0


def faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield one line for each fault of a folder whose manifest is whole."""
    sound_tables = True
    for name in sorted({REJECTS_NAME, MERGED_NAME, *manifest.tables}):
        if fault := table_fault(folder, manifest, name):
            sound_tables = False
            yield fault
    expected = {name for shard in manifest.shards for name in (shard.name, shard.index_name)}
    for path in sorted(folder.glob("shard-*")):
        if path.name not in expected:
            yield f"{path} is not in the manifest"
    rows: list[Array] = []
    with progress("verify", manifest.num_samples, "polymers") as advance:
        for shard in manifest.shards:
            found, index = shard_faults(folder, shard)
            yield from found
            if index is not None:
                rows.append(index.row)
            advance(shard.num_samples)
    if sound_tables and len(rows) == len(manifest.shards):
        yield from _row_faults(folder, manifest, np.concatenate([np.zeros(0, np.int64), *rows]))


def table_fault(folder: Path, manifest: Manifest, name: str) -> str:
    """Say what is wrong with a table of the folder; empty if nothing is."""
    path = folder / name
    if not path.is_file():
        return f"{path} is missing"
    if file_sha256(path) != manifest.tables.get(name):
        return f"{path} was altered: its sha256 is not the manifest's"
    return ""


def shard_faults(folder: Path, shard: ShardRecord) -> tuple[list[str], SampleIndex | None]:
    """Return a line for each fault of a shard and its index, and the index if it is whole."""
    found: list[str] = []
    index = None
    try:
        index = read_shard_index(folder, shard)
    except MipsError as error:
        found.append(str(error))
    path = folder / shard.name
    try:
        data = read_shard(folder, shard)
    except MipsError as error:
        found.append(str(error))
        if not path.is_file() or path.stat().st_size != shard.num_bytes:
            return found, index
        data = path.read_bytes()  # to find out which samples are hit
    if fault := _tar_fault(data, shard):
        found.append(f"{path}, {fault}")
    start = 0
    for number, block in enumerate(shard.blocks):
        stop = start + block.num_samples
        if fault := block_fault(data, shard, number, index, start):
            found.append(f"{path}, block {block.key}: {fault}")
        start = stop
    return found, index


def block_fault(
    data: bytes, shard: ShardRecord, number: int, index: SampleIndex | None, start: int
) -> str:
    """Say what is wrong with a block; empty if nothing is.

    Parameters
    ----------
    data
        Bytes of the shard, of the right number.
    shard
        Its record.
    number
        Which of its blocks.
    index
        Index of the shard; None where it is lost, so that samples are not compared.
    start
        Where the block begins in the index.
    """
    block = shard.blocks[number]
    try:
        decoded = decode_block(block_members(data, block), None, True, True)
    except DAMAGED as error:
        return f"cannot be decoded ({' '.join(str(error).split())})"
    if len(decoded) != block.num_samples:
        return f"{len(decoded)} samples instead of {block.num_samples}"
    own = index_blocks([decoded])
    if (own.num_atoms.sum(), own.num_pairs.sum()) != (block.num_atoms, block.num_pairs):
        return "atoms or pairs are not as many as the manifest says"
    if index is None:
        return ""
    part = slice(start, start + len(own))
    differs = np.array(own.psmiles) != np.array(index.psmiles[part])
    for name in ("row", "num_atoms", "num_pairs", "checksum", "key"):
        differs |= getattr(own, name) != getattr(index, name)[part]
    if not differs.any():
        return ""
    first = int(np.flatnonzero(differs)[0])
    row = int(index.row[start + first])
    return (
        f"{differs.sum()} samples are not those of the index, the first is sample {first} "
        f"(row {row})"
    )


def _tar_fault(data: bytes, shard: ShardRecord) -> str:
    """Compare every byte of a tar file that is not in a member with what must stand there."""
    place = 0
    for block in shard.blocks:
        for suffix, (start, size) in block.members.items():
            name = f"{block.key}.{suffix}"
            header, end = tar_header(name, size), start + size
            padding = bytes(-size % tarfile.BLOCKSIZE)
            if start != place + len(header) or data[place:start] != header:
                return f"member {name}: its tar header is not that of a file of {size} bytes"
            place = end + len(padding)
            if data[end:place] != padding:
                return f"member {name}: not followed by zeros"
    if data[place:] != bytes(2 * tarfile.BLOCKSIZE):
        return "the end of the tar file is not 1,024 zeros"
    return ""


def _row_faults(folder: Path, manifest: Manifest, sample_rows: Array) -> Iterator[str]:
    """Check that rows in = samples + merged + rejected, each row once (law L9)."""
    try:
        merged, equals = read_table(folder / MERGED_NAME, "equals")
        rejected, reasons = read_table(folder / REJECTS_NAME, "reason")
        equal_rows = np.array([int(text) for text in equals], dtype=np.int64)
    except ValueError as error:
        yield f"{folder}: a table cannot be read ({error})"
        return
    found = len(sample_rows), len(merged), len(rejected)
    said = manifest.num_samples, manifest.num_merged, manifest.num_rejected
    if found != said:
        names = "samples + merged + rejected rows"
        yield f"{folder}: {' + '.join(map(str, found))} {names} instead of {said}"
        return
    rows = np.concatenate([sample_rows, merged, rejected])
    if rows.min(initial=0) < 0 or rows.max(initial=0) >= len(rows):
        yield f"{folder}: row {rows.max()} is beyond the {len(rows)} rows of the input"
        return
    times = np.bincount(rows, minlength=len(rows))
    if (times != 1).any():
        first = int(np.flatnonzero(times != 1)[0])
        yield f"{folder}: row {first} stands in {times[first]} places instead of one"
    if not (np.isin(equal_rows, sample_rows).all() and (equal_rows < merged).all()):
        yield f"{folder / MERGED_NAME}: a row equals one that is no earlier sample"
    by_reason = Counter(reason.partition(":")[0] for reason in reasons)
    if by_reason != manifest.rejected_by_reason:
        yield f"{folder / REJECTS_NAME}: the counts of its reasons are not the manifest's"


def read_table(path: Path, column: str) -> tuple[Array, list[str]]:
    """Return the rows of a table and its second column; ValueError where it has others."""
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        if next(reader, None) != ["row", column]:
            raise ValueError(f"{path.name} has other columns than row, {column}")
        pairs = [(int(row), value) for row, value in reader]
    rows = np.array([row for row, _ in pairs], dtype=np.int64)
    return rows, [value for _, value in pairs]
