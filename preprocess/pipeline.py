"""P-SMILES to shards: canonical spellings, merged duplicates, featurized polymers.

Two passes of Ray actors. The first gives every row its canonical spelling or the reason of its
rejection. The driver then decides which rows are the first of their polymer; shards are cut from
those in the order of the input. The second pass featurizes one block of a shard at a time. Actors
only turn arguments into bytes; the driver writes every file, so neither their number nor the order
in which they finish nor the death of any can change a byte (law L7).
"""

import os
import shlex
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib.metadata import version
from itertools import islice
from typing import Any, TypeVar, cast

from mips_dist.chem.conformer import BACKENDS
from mips_dist.chem.descriptors import CONTENTS, Content
from mips_dist.chem.graph import FEATURE_SCHEMA
from mips_dist.chem.sample import check_machine, groups_of
from mips_dist.data.shards import BLOCK_SIZE, SCHEMA_VERSION, block_key
from mips_dist.data.working_copy import WorkingCopy
from mips_dist.errors import UsageError
from preprocess.accounting import account, summary
from preprocess.assembly import Assembly
from preprocess.card import write_card
from preprocess.isolation import Limits
from preprocess.journal import Journal, journal_digest
from preprocess.merge import FirstRows, find_first_rows
from preprocess.output import OWN, STAYS, VERDICTS_NAME, OutputFolder
from preprocess.pool import Task, WorkerPool
from preprocess.preflight import look_ahead
from preprocess.progress import progress
from preprocess.remote import shown
from preprocess.rows import InputFile, inspect
from preprocess.run_log import RunLog
from preprocess.verdicts import VerdictFiles, digest_of

T = TypeVar("T")

CHUNK_SIZE = 2048  # rows of one task of the first pass
# A block is one task of the second pass, some seconds of work: what the death of an actor costs.
# Small blocks are slower to read, so those without conformers are as large as they can be.
BLOCK_SIZES = {"topology": BLOCK_SIZE, "descriptors": BLOCK_SIZE, "full": 256, "xtb": 32}
BLOCKS_PER_SHARD = {"topology": 16, "descriptors": 16, "full": 32, "xtb": 64}
# Small inputs are cut into this many blocks, so that several actors have work.
_MIN_BLOCKS = 8
_MIN_BLOCK_SIZE = 16
_SECONDS_BETWEEN_PUSHES = 30.0  # of verdicts on rows, where the output is behind a URL
_MAX_HOPS = 8
_MAX_LIMIT = 1e6


@dataclass(kw_only=True, slots=True)
class PreprocessConfig:
    """What to make of what.

    Attributes
    ----------
    input
        csv, csv.gz, parquet or txt; a local path or a URL that fsspec knows.
    output
        Folder for the shards, local or behind a URL (``s3://``); new, empty, or of the same
        command.
    num_actors
        Ray actors; null: one per core.
    content
        ``topology``: the graph alone; ``descriptors``: also those that need no conformer;
        ``full``: also a conformer and its descriptors; ``xtb``: also those of GFN2-xTB.
    max_hops
        Radius of attention in bonds; models refuse shards made with another one.
    seed
        Seed of the conformers.
    num_conformers
        Conformers of each polymer; models refuse shards made with another number.
    conformer_backend
        ``rdkit``, or ``nvmolkit`` on a GPU.
    column
        Column with the P-SMILES; empty: psmiles, else smiles.
    seconds_per_polymer
        Wall clock after which a polymer is given up: a last resort and therefore long, since all
        known work is bounded by iterations. The verdict is kept in verdicts.json.
    gb_per_actor
        10^9 bytes that the work of one actor may take; a polymer that needs more is rejected.
    verdicts
        verdicts.json of another run, whose verdicts are to be repeated; empty: none.
    """

    input: str = ""
    output: str = ""
    num_actors: int | None = None
    content: str = "full"
    max_hops: int = 2
    seed: int = 0
    num_conformers: int = 1
    conformer_backend: str = "rdkit"
    column: str = ""
    seconds_per_polymer: float = 600.0
    gb_per_actor: float = 4.0
    verdicts: str = ""

    def __post_init__(self) -> None:
        if self.content not in BLOCKS_PER_SHARD:
            raise ValueError(f"content={self.content}: must be {', '.join(CONTENTS)}")
        if self.num_actors is not None and self.num_actors < 1:
            raise ValueError(f"num_actors={self.num_actors}: must be at least 1")
        if not 1 <= self.max_hops <= _MAX_HOPS:
            raise ValueError(f"max_hops={self.max_hops}: must be 1 to {_MAX_HOPS}")
        if not 0 <= self.seed < 2**31 - 1:
            raise ValueError(f"seed={self.seed}: must be 0 to 2147483646")
        if self.num_conformers < 1:
            raise ValueError(f"num_conformers={self.num_conformers}: must be at least 1")
        if self.conformer_backend not in BACKENDS:
            raise ValueError(
                f"conformer_backend={self.conformer_backend}: must be {' or '.join(BACKENDS)}"
            )
        for key in ("seconds_per_polymer", "gb_per_actor"):
            # Beyond it are no timers and no limits; a child that cannot set them condemns all.
            if not 0 < getattr(self, key) <= _MAX_LIMIT:
                raise ValueError(
                    f"{key}={getattr(self, key)}: must be more than 0, at most {_MAX_LIMIT:g}"
                )


def preprocess(config: PreprocessConfig) -> None:
    """Make shards, or go on with those that an interrupted run of the same command began."""
    if not config.input or not config.output:
        raise UsageError("input=FILE and output=DIR are needed; see --help")
    check_machine(cast(Content, config.content), config.conformer_backend)
    source = inspect(config.input, config.column)
    with WorkingCopy(config.output, stays=STAYS, own=OWN) as copy:
        _preprocess(config, source, copy)
        copy.finish()


def _preprocess(config: PreprocessConfig, source: InputFile, copy: WorkingCopy) -> None:
    header = manifest_header(config, source)
    folder = OutputFolder(copy.path, header, journal_digest(config.verdicts))
    if folder.is_finished():
        print(f"{copy} is finished already; nothing to do")
        return
    content = cast(Content, config.content)
    preflight = look_ahead(source, content, folder.path, config.num_conformers)
    # How many a cluster has room for is known once Ray has found it.
    num_actors = config.num_actors
    if num_actors is None and not os.environ.get("RAY_ADDRESS"):
        num_actors = len(os.sched_getaffinity(0))
    print(f"{source.name}: {source.num_rows:,} rows", file=sys.stderr)
    print(preflight.line(num_actors), file=sys.stderr, flush=True)
    log = RunLog(folder.path, source.num_rows, preflight.parse_seconds)
    verdicts = VerdictFiles(folder.work / "rows", source.num_rows)
    assembly = Assembly(folder, copy.push)
    limits = Limits(
        seconds_per_polymer=config.seconds_per_polymer, gb_per_actor=config.gb_per_actor
    )
    with folder.begun():
        copy.push()  # what the folder is for, before anything is in it that others may overwrite
        copy.settle()
        journal = Journal(folder.path / VERDICTS_NAME, verdict_settings(header), config.verdicts)
        with WorkerPool(config.num_actors, limits, journal) as pool:
            try:
                _canonicalize_rows(source, verdicts, pool, copy)
                first_rows = find_first_rows(verdicts, source.num_rows, folder.work)
                num_shards = _featurize_shards(config, assembly, verdicts, first_rows, pool)
            except BaseException:
                with suppress(OSError):  # such as the full disk that is being reported
                    log.write(pool.ledger, pool.num_deaths, is_finished=False)
                raise
        records = assembly.records(num_shards)
        manifest = account(header, folder.path, verdicts, first_rows, records)
        drawn = (text for part in assembly.statistics(num_shards) for text in part["sample"])
        counted = assembly.statistics(num_shards)
        write_card(folder.path, manifest, counted, drawn, command_line(config))
        log.write(pool.ledger, pool.num_deaths, is_finished=True)
        folder.finish(manifest.to_json())
    print(f"{copy}: {manifest.num_rows:,} rows")
    print("\n".join([*summary(manifest), *log.lines()]), flush=True)


def manifest_header(config: PreprocessConfig, source: InputFile) -> dict[str, Any]:
    """Return the part of the manifest that is known before the work; it decides every byte."""
    content = cast(Content, config.content)
    groups = groups_of(content, config.num_conformers, config.conformer_backend)
    keys = ("name", "width", "version", "kind")
    return {
        "schema_version": SCHEMA_VERSION,
        "feature_schema": FEATURE_SCHEMA,
        "content": config.content,
        "max_hops": config.max_hops,
        "seed": config.seed,
        "num_conformers": config.num_conformers,
        "conformer_backend": config.conformer_backend,
        "descriptors": [{key: getattr(group, key) for key in keys} for group in groups],
        "config": {"column": source.column},
        "input": {"name": source.name, "sha256": source.sha256},
        "software": software_versions(content),
    }


def software_versions(content: Content) -> dict[str, str]:
    """Return the versions of the libraries that shape the bytes of shards."""
    versions = {
        "rdkit": version("rdkit"),
        "numpy": version("numpy"),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
    }
    return versions | ({"tblite": version("tblite")} if content == "xtb" else {})


def command_line(config: PreprocessConfig) -> str:
    """Return the command that makes a data set, as one types it."""
    default = PreprocessConfig()
    given = {f.name: getattr(config, f.name) for f in fields(config)}
    given["input"] = shown(config.input)  # a token in a URL is nobody else's business
    words = [f"{key}={value}" for key, value in given.items() if value != getattr(default, key)]
    return shlex.join(["python", "-m", "preprocess", *words])


def verdict_settings(header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return for each pass what decides, beside a text, whether chemistry lives through it."""
    chemistry = ("rdkit", "tblite")
    software = {name: v for name, v in header["software"].items() if name in chemistry}
    software["feature_schema"] = header["feature_schema"]
    keys = ("content", "max_hops", "seed", "num_conformers", "descriptors")
    return {
        "canonical_rows": software,
        "featurize_block": software | {key: header[key] for key in keys},
    }


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _canonicalize_rows(
    source: InputFile, verdicts: VerdictFiles, pool: WorkerPool, copy: WorkingCopy
) -> None:
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
                yield Task(key=chunk, label=label, texts=texts)

        for chunk, result in pool.run("canonical_rows", unfinished()):
            verdicts.write(chunk, digests.pop(chunk), result)
            copy.push(within=_SECONDS_BETWEEN_PUSHES)
            advance(len(result.canonical))


def block_size(num_polymers: int, content: str) -> int:
    """Return the polymers of a block: a function of the input, never of the number of actors."""
    size = max(-(-num_polymers // _MIN_BLOCKS), _MIN_BLOCK_SIZE)
    return min(size, BLOCK_SIZES[content])


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
    assembly: Assembly,
    verdicts: VerdictFiles,
    first_rows: FirstRows,
    pool: WorkerPool,
) -> int:
    """Second pass: leave every shard and, after it, the file with its record; count the shards."""
    num_polymers = first_rows.num_polymers
    size = block_size(num_polymers, config.content)
    per_shard = BLOCKS_PER_SHARD[config.content]
    polymers = _polymers(verdicts, first_rows)
    conformers = (config.seed, config.num_conformers, config.conformer_backend)
    with progress("featurization", num_polymers, "polymers") as advance:

        def unfinished() -> Iterator[Task]:
            for shard, part in enumerate(_chunks(polymers, size * per_shard)):
                blocks = list(_chunks(part, size))
                missing = assembly.missing(shard, [digest_of(block) for block in blocks])
                for number, block in enumerate(blocks):
                    if number not in missing:
                        advance(len(block), is_new=False)
                        continue
                    rows, canonicals = zip(*block, strict=True)
                    key = block_key(shard, number)
                    yield Task(
                        key=shard * per_shard + number,
                        label=f"block {key} (rows {rows[0]} to {rows[-1]})",
                        texts=list(canonicals),
                        arguments=(key, rows, config.content, config.max_hops, *conformers),
                    )

        for key, made in pool.run("featurize_block", unfinished()):
            assembly.add(*divmod(key, per_shard), made)
            advance((0 if made.record is None else made.record.num_samples) + len(made.reasons))
    return -(-num_polymers // (size * per_shard))
