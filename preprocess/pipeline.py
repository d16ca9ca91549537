"""P-SMILES to shards: canonical spellings, merged duplicates, featurized polymers.

Two passes of Ray actors. The first gives every row its canonical spelling or the reason of its
rejection. The driver then decides which rows are the first of their polymer; shards are cut from
those in the order of the input. The second pass featurizes one shard at a time. Actors only turn
arguments into bytes; the driver writes every file, so neither their number nor the order in which
they finish nor the death of any can change a byte (law L7).
"""

import hashlib
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mips_dist.chem.descriptors import DESCRIPTOR_GROUPS
from mips_dist.chem.graph import FEATURE_SCHEMA
from mips_dist.data.files import write_atomically
from mips_dist.data.shards import BLOCK_SIZE, SCHEMA_VERSION, shard_name
from mips_dist.errors import UsageError
from preprocess.accounting import account, summary
from preprocess.merge import FirstRows, find_first_rows
from preprocess.output import OutputFolder, read_checked, write_checked
from preprocess.pool import Task, WorkerPool
from preprocess.preflight import look_ahead
from preprocess.progress import progress
from preprocess.rows import InputFile, inspect
from preprocess.run_log import RunLog
from preprocess.verdicts import VerdictFiles, digest_of

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


def preprocess(config: PreprocessConfig) -> None:
    """Make shards, or go on with those that an interrupted run of the same command began."""
    if not config.input or not config.output:
        raise UsageError("input=FILE and output=DIR are needed; see --help")
    source = inspect(config.input, config.column)
    header = manifest_header(config, source)
    folder = OutputFolder(config.output, header)
    if folder.is_finished():
        print(f"{folder.path} is finished already; nothing to do")
        return
    preflight = look_ahead(source, config.content, folder.path)
    # How many a cluster has room for is known once Ray has found it.
    num_actors = config.num_actors
    if num_actors is None and not os.environ.get("RAY_ADDRESS"):
        num_actors = len(os.sched_getaffinity(0))
    print(f"{source.name}: {source.num_rows:,} rows", file=sys.stderr)
    print(preflight.line(num_actors), file=sys.stderr, flush=True)
    log = RunLog(folder.path, source.num_rows, preflight.parse_seconds)
    verdicts = VerdictFiles(folder.work / "rows", source.num_rows)
    with folder.begun():
        with WorkerPool(config.num_actors) as pool:
            try:
                _canonicalize_rows(source, verdicts, pool)
                first_rows = find_first_rows(verdicts, source.num_rows, folder.work)
                num_shards = _featurize_shards(config, folder, verdicts, first_rows, pool)
            except BaseException:
                with suppress(OSError):  # such as the full disk that is being reported
                    log.write(pool.ledger, pool.num_deaths, is_finished=False)
                raise
        records = (_read_record(folder, shard) for shard in range(num_shards))
        manifest = account(header, folder.path, verdicts, first_rows, records)
        log.write(pool.ledger, pool.num_deaths, is_finished=True)
        folder.finish(manifest.to_json())
    print(f"{folder.path}: {manifest.num_rows:,} rows")
    print("\n".join([*summary(manifest), *log.lines()]), flush=True)


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


def _record_file(folder: OutputFolder, shard: int) -> Path:
    return folder.work / "shards" / f"{shard:06d}.json"


def _read_record(folder: OutputFolder, shard: int) -> dict[str, Any]:
    values = read_checked(_record_file(folder, shard))
    assert values is not None, "the second pass wrote every record"
    return values


def _canonicalize_rows(source: InputFile, verdicts: VerdictFiles, pool: WorkerPool) -> None:
    """First pass: leave a file with the verdicts on every chunk of rows."""
    with progress("canonical spellings", source.num_rows, "rows") as advance:
        digests: dict[int, str] = {}

        def unfinished() -> Iterator[Task]:
            for chunk, texts in enumerate(_chunks(source.texts(), CHUNK_SIZE)):
                digest = digest_of(texts)
                if verdicts.is_done(chunk, digest):
                    advance(len(texts), is_new=False)
                    continue
                digests[chunk] = digest
                first = chunk * CHUNK_SIZE
                label = f"rows {first} to {first + len(texts) - 1}"
                yield Task(key=chunk, label=label, num_rows=len(texts), arguments=(texts,))

        for chunk, result in pool.run("canonical_rows", unfinished()):
            verdicts.write(chunk, digests.pop(chunk), result)
            advance(len(result.canonical))


def shard_size(num_polymers: int, content: str) -> int:
    """Return the polymers of a shard: a function of the input, never of the number of actors."""
    size = -(-num_polymers // _MIN_SHARDS)
    if size > BLOCK_SIZE:
        size = -(-size // BLOCK_SIZE) * BLOCK_SIZE
    return min(max(size, _MIN_SHARD_SIZE), BLOCKS_PER_SHARD[content] * BLOCK_SIZE)


def _polymers(verdicts: VerdictFiles, first_rows: FirstRows) -> Iterator[tuple[int, str]]:
    """Yield row and canonical spelling of each first row, in order."""
    for chunk in verdicts:
        firsts = first_rows.of(chunk).tolist()
        for row, (canonical, first) in enumerate(
            zip(chunk.canonical, firsts, strict=True), chunk.start
        ):
            if canonical is not None and row == first:
                yield row, canonical


def _featurize_shards(
    config: PreprocessConfig,
    folder: OutputFolder,
    verdicts: VerdictFiles,
    first_rows: FirstRows,
    pool: WorkerPool,
) -> int:
    """Second pass: leave every shard and, after it, the file with its record; count the shards."""
    num_polymers = first_rows.num_polymers
    size = shard_size(num_polymers, config.content)
    polymers = _polymers(verdicts, first_rows)
    with progress("featurization", num_polymers, "polymers") as advance:
        plans: dict[int, tuple[str, int]] = {}

        def unfinished() -> Iterator[Task]:
            for shard, part in enumerate(_chunks(polymers, size)):
                digest = digest_of(part)
                if _is_shard_done(folder, shard, digest):
                    advance(len(part), is_new=False)
                    continue
                plans[shard] = digest, len(part)
                rows, canonicals = zip(*part, strict=True)
                label = f"shard {shard} (rows {rows[0]} to {rows[-1]})"
                arguments = (shard, rows, canonicals, config.content, config.max_hops, config.seed)
                yield Task(key=shard, label=label, num_rows=len(part), arguments=arguments)

        for shard, result in pool.run("featurize_shard", unfinished()):
            digest, count = plans.pop(shard)
            write_atomically(folder.path / shard_name(shard), result.data)
            values = {
                "plan": digest,
                "shard": asdict(result.record),
                "reasons": result.reasons,
                "conformer_status": result.conformer_status,
            }
            write_checked(_record_file(folder, shard), values)
            advance(count)
    return -(-num_polymers // size)


def _is_shard_done(folder: OutputFolder, shard: int, digest: str) -> bool:
    values = read_checked(_record_file(folder, shard))
    file = folder.path / shard_name(shard)
    if values is None or values["plan"] != digest or not file.is_file():
        return False
    found: str = hashlib.sha256(file.read_bytes()).hexdigest()
    return bool(found == values["shard"]["sha256"])
