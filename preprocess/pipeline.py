"""P-SMILES to shards: canonical spellings, merged duplicates, featurized polymers.

Two passes of Ray actors. The first gives every row its canonical spelling or the reason of its
rejection. The driver then decides which rows are the first of their polymer; shards are cut from
those in the order of the input. The second pass featurizes one shard at a time. Actors only turn
arguments into bytes; the driver writes every file, so neither their number nor the order in which
they finish nor the death of any can change a byte (law L7).
"""

import csv
import hashlib
import json
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

from mips_dist.chem.descriptors import DESCRIPTOR_GROUPS
from mips_dist.chem.graph import FEATURE_SCHEMA
from mips_dist.data.shards import (
    BLOCK_SIZE,
    SCHEMA_VERSION,
    Manifest,
    ShardRecord,
    read_shard,
    read_shard_index,
    shard_name,
)
from mips_dist.errors import MipsError, UsageError
from preprocess.output import (
    MERGED_NAME,
    REJECTS_NAME,
    OutputFolder,
    read_checked,
    write_atomically,
    write_checked,
)
from preprocess.pool import Task, WorkerPool
from preprocess.progress import progress
from preprocess.rows import InputFile, inspect

T = TypeVar("T")

CHUNK_SIZE = 2048  # rows of one task of the first pass
# A shard is one task of the second pass: about a minute with conformers, ten seconds without.
BLOCKS_PER_SHARD = {"full": 2, "topology": 8}
# Small inputs are cut into this many shards, so that several actors have work.
_MIN_SHARDS = 8
_MIN_SHARD_SIZE = 64
_MAX_HOPS = 8


@dataclass(kw_only=True, slots=True)
class PreprocessConfig:
    """What to make of what.

    Attributes
    ----------
    input
        csv, csv.gz, parquet or txt; a local path or a URL that fsspec knows.
    output
        Folder for the shards; new, empty, or of the same command.
    num_actors
        Ray actors; null: one per core.
    content
        ``full``: graph, conformer, descriptors; ``topology``: the graph alone.
    max_hops
        Radius of attention in bonds; models refuse shards made with another one.
    seed
        Seed of the conformers.
    column
        Column with the P-SMILES; empty: psmiles, else smiles.
    """

    input: str = ""
    output: str = ""
    num_actors: int | None = None
    content: str = "full"
    max_hops: int = 2
    seed: int = 0
    column: str = ""

    def __post_init__(self) -> None:
        if self.content not in BLOCKS_PER_SHARD:
            raise ValueError(f"content={self.content}: must be full or topology")
        if self.num_actors is not None and self.num_actors < 1:
            raise ValueError(f"num_actors={self.num_actors}: must be at least 1")
        if not 1 <= self.max_hops <= _MAX_HOPS:
            raise ValueError(f"max_hops={self.max_hops}: must be 1 to {_MAX_HOPS}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed={self.seed}: must be 0 to 2147483647")


class Verdict(NamedTuple):
    """What became of an input row in the first pass."""

    row: int
    canonical: str | None
    reason: str  # empty unless rejected
    lost_stereo: bool


def preprocess(config: PreprocessConfig) -> None:
    """Make shards, or go on with those that an interrupted run of the same command began."""
    if not config.input or not config.output:
        raise UsageError("input=FILE and output=DIR are needed; see --help")
    start = time.monotonic()
    source = inspect(config.input, config.column)
    header = manifest_header(config, source)
    folder = OutputFolder(config.output, header)
    if folder.is_finished():
        print(f"{folder.path} is finished already; nothing to do")
        return
    actors = "one actor per core" if config.num_actors is None else f"{config.num_actors} actors"
    print(f"{source.name}: {source.num_rows:,} rows; Ray starts {actors}", file=sys.stderr)
    with folder.begun():
        with WorkerPool(config.num_actors) as pool:
            _canonicalize_rows(source, folder, pool)
            first_row = _first_rows(folder, source)
            _featurize_shards(config, folder, source, first_row, pool)
        manifest = _assemble(header, folder, source, first_row)
        folder.finish(manifest.to_json())
    _print_summary(folder, manifest, time.monotonic() - start, pool.num_deaths)


def manifest_header(config: PreprocessConfig, source: InputFile) -> dict[str, Any]:
    """Return the part of the manifest that is known before the work; it decides every byte."""
    groups = DESCRIPTOR_GROUPS.values() if config.content == "full" else []
    keys = ("name", "width", "version", "kind")
    return {
        "schema_version": SCHEMA_VERSION,
        "feature_schema": FEATURE_SCHEMA,
        "content": config.content,
        "max_hops": config.max_hops,
        "seed": config.seed,
        "descriptors": [{key: getattr(group, key) for key in keys} for group in groups],
        "config": {"column": source.column},
        "input": {"name": source.name, "sha256": source.sha256},
        "software": {
            "rdkit": version("rdkit"),
            "numpy": version("numpy"),
            "zlib": zlib.ZLIB_RUNTIME_VERSION,
        },
    }


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _rows_file(folder: OutputFolder, chunk: int) -> Path:
    return folder.work / "rows" / f"{chunk:06d}.json"


def _record_file(folder: OutputFolder, shard: int) -> Path:
    return folder.work / "shards" / f"{shard:06d}.json"


def _canonicalize_rows(source: InputFile, folder: OutputFolder, pool: WorkerPool) -> None:
    """First pass: leave a file with the verdicts on every chunk of rows."""
    with progress("canonical spellings", source.num_rows, "rows") as advance:
        digests: dict[int, str] = {}

        def unfinished() -> Iterator[Task]:
            for chunk, texts in enumerate(_chunks(source.texts(), CHUNK_SIZE)):
                digest = _digest(texts)
                found = read_checked(_rows_file(folder, chunk))
                if found is not None and found["texts"] == digest:
                    advance(len(texts), is_new=False)
                    continue
                digests[chunk] = digest
                first = chunk * CHUNK_SIZE
                label = f"rows {first} to {first + len(texts) - 1}"
                yield Task(key=chunk, label=label, arguments=(texts,))

        for chunk, result in pool.run("canonicalize", unfinished()):
            values = {"texts": digests.pop(chunk), **asdict(result)}
            write_checked(_rows_file(folder, chunk), values)
            advance(len(result.canonical))


def _verdicts(folder: OutputFolder, source: InputFile) -> Iterator[Verdict]:
    """Yield the verdict of every row, in order."""
    row = 0
    for chunk in range(-(-source.num_rows // CHUNK_SIZE)):
        values = read_checked(_rows_file(folder, chunk))
        assert values is not None, "the first pass wrote every chunk"
        stereo = set(values["stereo"])
        for place, canonical in enumerate(values["canonical"]):
            reason = values["reasons"].get(str(place), "")
            yield Verdict(row, canonical, reason, place in stereo)
            row += 1


def _key(canonical: str) -> bytes:
    """Return 128 bits that stand for a polymer."""
    return hashlib.blake2b(canonical.encode(), digest_size=16).digest()


def _first_rows(folder: OutputFolder, source: InputFile) -> dict[bytes, int]:
    """Return for each polymer the first row that spells it."""
    first_row: dict[bytes, int] = {}
    for verdict in _verdicts(folder, source):
        if verdict.canonical is not None:
            first_row.setdefault(_key(verdict.canonical), verdict.row)
    return first_row


def shard_size(num_polymers: int, content: str) -> int:
    """Return the polymers of a shard: a function of the input, never of the number of actors."""
    size = -(-num_polymers // _MIN_SHARDS)
    if size > BLOCK_SIZE:
        size = -(-size // BLOCK_SIZE) * BLOCK_SIZE
    return min(max(size, _MIN_SHARD_SIZE), BLOCKS_PER_SHARD[content] * BLOCK_SIZE)


def _featurize_shards(
    config: PreprocessConfig,
    folder: OutputFolder,
    source: InputFile,
    first_row: dict[bytes, int],
    pool: WorkerPool,
) -> None:
    """Second pass: leave every shard and, after it, the file with its record."""
    polymers = (
        (verdict.row, verdict.canonical)
        for verdict in _verdicts(folder, source)
        if verdict.canonical is not None and first_row[_key(verdict.canonical)] == verdict.row
    )
    size = shard_size(len(first_row), config.content)
    with progress("featurization", len(first_row), "polymers") as advance:
        plans: dict[int, tuple[str, int]] = {}

        def unfinished() -> Iterator[Task]:
            for shard, part in enumerate(_chunks(polymers, size)):
                digest = _digest(part)
                if _is_shard_done(folder, shard, digest):
                    advance(len(part), is_new=False)
                    continue
                plans[shard] = digest, len(part)
                rows, canonicals = zip(*part, strict=True)
                label = f"shard {shard} (rows {rows[0]} to {rows[-1]})"
                arguments = (shard, rows, canonicals, config.content, config.max_hops, config.seed)
                yield Task(key=shard, label=label, arguments=arguments)

        for shard, result in pool.run("featurize", unfinished()):
            digest, count = plans.pop(shard)
            write_atomically(folder.path / result.record.index_name, result.index)
            write_atomically(folder.path / shard_name(shard), result.data)
            values = {
                "plan": digest,
                "shard": asdict(result.record),
                "reasons": result.reasons,
                "conformer_status": result.conformer_status,
            }
            write_checked(_record_file(folder, shard), values)
            advance(count)


def _is_shard_done(folder: OutputFolder, shard: int, digest: str) -> bool:
    values = read_checked(_record_file(folder, shard))
    if values is None or values["plan"] != digest:
        return False
    record = ShardRecord.from_json(values["shard"])
    try:
        read_shard(folder.path, record)
        read_shard_index(folder.path, record)
    except MipsError:
        return False
    return True


def _assemble(
    header: dict[str, Any], folder: OutputFolder, source: InputFile, first_row: dict[bytes, int]
) -> Manifest:
    """Account for every row (law L9), and return the manifest."""
    records: list[ShardRecord] = []
    status: Counter[str] = Counter()
    failed: dict[int, str] = {}  # row -> reason, of polymers that could not be featurized
    size = shard_size(len(first_row), header["content"])
    for shard in range(-(-len(first_row) // size)):
        values = read_checked(_record_file(folder, shard))
        assert values is not None, "the second pass wrote every record"
        records.append(ShardRecord.from_json(values["shard"]))
        status.update(values["conformer_status"])
        failed |= {int(row): reason for row, reason in values["reasons"].items()}
    counts: Counter[str] = Counter()
    by_reason: Counter[str] = Counter()
    with (
        _table(folder.path / REJECTS_NAME, "row", "reason") as rejects,
        _table(folder.path / MERGED_NAME, "row", "equals") as merged,
    ):
        for verdict in _verdicts(folder, source):
            first = -1 if verdict.canonical is None else first_row[_key(verdict.canonical)]
            # A row that equals one which cannot be featurized shares its fate.
            reason = verdict.reason or failed.get(first, "")
            if reason:
                rejects.writerow([verdict.row, reason])
                by_reason[reason.partition(":")[0]] += 1
                continue
            counts["stereo_dropped"] += verdict.lost_stereo
            counts["num_samples"] += first == verdict.row
            if first != verdict.row:
                merged.writerow([verdict.row, first])
                counts["num_merged"] += 1
    return Manifest(
        **header,
        num_rows=source.num_rows,
        num_samples=counts["num_samples"],
        num_merged=counts["num_merged"],
        num_rejected=by_reason.total(),
        rejected_by_reason=dict(sorted(by_reason.items())),
        stereo_dropped=counts["stereo_dropped"],
        conformer_status=dict(sorted(status.items())),
        tables={
            name: hashlib.sha256((folder.path / name).read_bytes()).hexdigest()
            for name in (REJECTS_NAME, MERGED_NAME)
        },
        shards=records,
    )


@contextmanager
def _table(path: Path, *columns: str) -> Iterator[Any]:
    """Write a csv file that appears when it is whole."""
    partial = path.with_name(path.name + ".partial")
    stream: TextIO
    with partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        yield writer
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _print_summary(
    folder: OutputFolder, manifest: Manifest, seconds: float, num_deaths: int
) -> None:
    size = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    lines = [
        f"{folder.path}: {manifest.num_rows:,} rows in {seconds:,.1f} s",
        f"  samples   {manifest.num_samples:,} in {len(manifest.shards)} shards, {size:.1f} MB",
        f"  merged    {manifest.num_merged:,} spell a polymer of an earlier row (merged.csv)",
        f"  rejected  {manifest.num_rejected:,} (rejects.csv)",
    ]
    lines += [f"    {reason}: {count:,}" for reason, count in manifest.rejected_by_reason.items()]
    if manifest.stereo_dropped:
        lines.append(f"  stereo marks dropped in {manifest.stereo_dropped:,} rows")
    if manifest.conformer_status:
        found = [f"{name} {count:,}" for name, count in manifest.conformer_status.items()]
        lines.append(f"  conformers: {', '.join(found)}")
    if num_deaths:
        lines.append(f"  {num_deaths} actors died; others did their work")
    print("\n".join(lines), flush=True)
