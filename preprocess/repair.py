"""``python -m preprocess repair output=DIR``: bad files of a shard folder are made again.

Only what is bad is made, in this process, and only what has the sha256 of the manifest is written.
Spellings come from the shard's index, else from its own members, else from the input file.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from mips_dist.chem.psmiles import canonicalize
from mips_dist.data.block import Array
from mips_dist.data.files import write_atomically
from mips_dist.data.index import SampleIndex, index_blocks, join_indices
from mips_dist.data.members import DAMAGED, NAMES, decode_block, decode_names
from mips_dist.data.shards import (
    BlockRecord,
    Manifest,
    ShardRecord,
    block_members,
    decode_shard,
    encode_piece,
    join_shard,
    read_index,
    read_manifest,
    read_shard,
    read_shard_index,
)
from mips_dist.errors import MipsError, UsageError
from preprocess.output import MERGED_NAME, REJECTS_NAME, VERDICTS_NAME
from preprocess.pipeline import CHUNK_SIZE, software_versions
from preprocess.rows import InputFile, inspect
from preprocess.verify import block_fault, read_table, shard_faults, table_fault
from preprocess.work import FeaturizedBlock, canonical_rows, featurize_block

# Spellings and rows of each block of a shard.
Names = list[tuple[list[str], Array]]


@dataclass(kw_only=True, slots=True)
class RepairConfig:
    """Which folder to mend.

    Attributes
    ----------
    output
        Finished shard folder.
    input
        The file that it was made of; only needed where spellings or a table are lost.
    """

    output: str = ""
    input: str = ""


def repair(config: RepairConfig) -> int:
    """Make bad files again; return 1 if one could not be made as it was, else 0."""
    if not config.output:
        raise UsageError("output=DIR is needed; see --help")
    folder = _Folder(Path(config.output), config.input)
    manifest = folder.manifest
    num_bad = num_left = 0
    # Said file by file, so that what is mended is known even if the disk is full after it.
    for name, remark in _mended(folder, manifest):
        num_bad += 1
        num_left += bool(remark)
        print(f"{folder.path / name}: {remark or 'made again, as it was'}", flush=True)
    print(f"{folder.path}: {num_bad} bad files, {num_bad - num_left} made again")
    return 1 if num_left else 0


def _mended(folder: "_Folder", manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield each bad file, and why it could not be made again, or nothing."""
    for number, shard in enumerate(manifest.shards):
        if shard_faults(folder.path, shard)[0]:
            try:
                yield from folder.mend_shard(number).items()
            except MipsError as error:  # of this shard alone: others may need less
                yield shard.name, str(error)
    lost = [name for name in sorted(manifest.tables) if table_fault(folder.path, manifest, name)]
    if lost:
        try:
            yield from folder.mend_tables(lost).items()
        except MipsError as error:
            yield from dict.fromkeys(lost, str(error)).items()


class _Folder:
    """A folder whose manifest is whole, and the file that it was made of."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.url = url
        self.manifest = read_manifest(path)

    @cached_property
    def source(self) -> InputFile:
        source = inspect(self.url, self.manifest.config["column"])
        if source.sha256 != self.manifest.input["sha256"]:
            raise MipsError(
                f"{self.url} is not what {self.path} was made of: that was "
                f"{self.manifest.input['name']} with sha256 {self.manifest.input['sha256']}"
            )
        return source

    def mend_shard(self, number: int) -> dict[str, str]:
        """Make the bad one of a shard and its index again, or both."""
        shard = self.manifest.shards[number]
        data, index = self._sound_data(shard), self._sound_index(shard)
        if data is not None:
            blocks = index_blocks(list(decode_shard(data, shard)))
            return {shard.index_name: self._write(shard.index_name, blocks.encode(), shard)}
        for names in self._names(number, index):
            made = self._pieces(number, names, index)
            if made is None:
                continue
            data, index_bytes, _ = join_shard(number, *made)
            if hashlib.sha256(data).hexdigest() == shard.sha256:
                remarks = {shard.name: self._write(shard.name, data, shard)}
                if index is None:
                    remarks[shard.index_name] = self._write(shard.index_name, index_bytes, shard)
                return remarks
        return {shard.name: self._reason()} | ({} if index else {shard.index_name: self._reason()})

    def _sound_data(self, shard: ShardRecord) -> bytes | None:
        try:
            return read_shard(self.path, shard)
        except MipsError:
            return None

    def _sound_index(self, shard: ShardRecord) -> SampleIndex | None:
        try:
            return read_shard_index(self.path, shard)
        except MipsError:
            return None

    def _damaged_data(self, shard: ShardRecord) -> bytes:
        """Return what is left of a shard, as many bytes as it must have."""
        path = self.path / shard.name
        left = b""
        if path.is_file():
            with path.open("rb") as stream:
                left = stream.read(shard.num_bytes)
        return left + bytes(shard.num_bytes - len(left))

    def _names(self, number: int, index: SampleIndex | None) -> Iterator[Names]:
        """Yield what the spellings may be, from wherever they may still stand."""
        shard = self.manifest.shards[number]
        if index is not None:
            yield _cut(shard, index.psmiles, index.row)
            return
        data = self._damaged_data(shard)
        with suppress(*DAMAGED):
            yield [decode_names(block_members(data, block)[NAMES]) for block in shard.blocks]
        if self.url:
            yield _cut(shard, *self._names_of_input(number))

    def _names_of_input(self, number: int) -> tuple[list[str], Array]:
        """Return spellings and rows of a shard: the rows that neither table names, in order."""
        for name in (REJECTS_NAME, MERGED_NAME):
            if table_fault(self.path, self.manifest, name):
                raise MipsError(
                    f"{self.path}: the spellings of shard {number} and {name} are lost, so nobody "
                    "knows which rows it held; preprocess again"
                )
        is_sample = np.ones(self.manifest.num_rows, dtype=bool)
        is_sample[read_table(self.path / REJECTS_NAME, "reason")[0]] = False
        is_sample[read_table(self.path / MERGED_NAME, "equals")[0]] = False
        before = sum(shard.num_samples for shard in self.manifest.shards[:number])
        count = self.manifest.shards[number].num_samples
        rows = np.flatnonzero(is_sample)[before : before + count]
        wanted = set(rows.tolist())
        texts = [str(text) for row, text in enumerate(self.source.texts()) if row in wanted]
        return [canonicalize(text) for text in texts], rows

    def _pieces(
        self, number: int, names: Names, index: SampleIndex | None
    ) -> tuple[list[tuple[bytes, BlockRecord]], SampleIndex] | None:
        """Return the blocks of a shard and their index; None where a polymer fails now."""
        shard = self.manifest.shards[number]
        data = self._damaged_data(shard)
        pieces = []
        parts = [index_blocks([])]  # a shard may have no polymer left
        start = 0
        for place, (block, (psmiles, rows)) in enumerate(zip(shard.blocks, names, strict=True)):
            if index is not None and not block_fault(data, shard, place, index, start):
                kept = decode_block(block_members(data, block), None, True, True)
                pieces.append(encode_piece(block.key, kept))
                parts.append(index_blocks([kept]))
            else:
                made = self._featurize(block.key, psmiles, rows.tolist())
                if made.record is None or made.reasons:
                    return None
                pieces.append((made.data, made.record))
                parts.append(SampleIndex.decode(made.index))
            start += block.num_samples
        return pieces, join_indices(parts)

    def _featurize(self, key: str, psmiles: list[str], rows: list[int]) -> FeaturizedBlock:
        manifest = self.manifest
        return featurize_block(
            psmiles,
            {},
            key,
            rows,
            manifest.content,
            manifest.max_hops,
            manifest.seed,
            manifest.num_conformers,
            manifest.conformer_backend,
        )

    def _write(self, name: str, data: bytes, shard: ShardRecord) -> str:
        """Write a shard or its index if it is what it was; else say why not."""
        wanted = shard.sha256 if name == shard.name else shard.index_sha256
        if hashlib.sha256(data).hexdigest() != wanted:
            return self._reason()
        write_atomically(self.path / name, data)
        return ""

    def _reason(self) -> str:
        here, there = software_versions(self.manifest.content), self.manifest.software
        differing = [
            f"{name} {version} there, {here.get(name)} here"
            for name, version in there.items()
            if here.get(name) != version
        ]
        if differing:
            return f"cannot be made as it was by other software ({', '.join(differing)}); left"
        if self.url:
            return "cannot be made as it was, even from the input; left"
        return f"its spellings are lost; give input=FILE (it was {self.manifest.input['name']})"

    def mend_tables(self, names: list[str]) -> dict[str, str]:
        """Make the tables of rejected and merged rows again, from the input and the indices."""
        if VERDICTS_NAME in names:
            # Without it nobody knows which polymers must not be touched.
            return dict.fromkeys(
                names, f"cannot be made again without {VERDICTS_NAME}; preprocess again"
            )
        remarks = dict.fromkeys(names, f"give input=FILE ({self.manifest.input['name']}) as well")
        if not self.url:
            return remarks
        for name, text in self._tables().items():
            if name in names:
                data = text.encode()
                is_same = hashlib.sha256(data).hexdigest() == self.manifest.tables[name]
                remarks[name] = "" if is_same else self._reason()
                if is_same:
                    write_atomically(self.path / name, data)
        return remarks

    def _tables(self) -> dict[str, str]:
        index = read_index(self.path) if self.manifest.shards else None
        first_row = dict(zip(index.psmiles, index.row.tolist(), strict=True)) if index else {}
        verdicts = self._verdicts()
        failed: dict[str, str] = {}  # canonical -> reason
        streams = {REJECTS_NAME: io.StringIO(), MERGED_NAME: io.StringIO()}
        rejects, merged = (csv.writer(s, lineterminator="\n") for s in streams.values())
        rejects.writerow(["row", "reason"])
        merged.writerow(["row", "equals"])
        texts, row = self.source.texts(), 0
        while chunk := list(islice(texts, CHUNK_SIZE)):
            steps = [verdicts.get(("canonical_rows", str(text))) for text in chunk]
            found = canonical_rows(chunk, {k: v for k, v in enumerate(steps) if v is not None})
            for place, canonical in enumerate(found.canonical):
                if canonical is None:
                    rejects.writerow([row, found.reasons[place]])
                elif canonical not in first_row:
                    if canonical not in failed:
                        known = verdicts.get(("featurize_block", canonical))
                        failed[canonical] = known or self._failure(canonical)
                    rejects.writerow([row, failed[canonical]])
                elif first_row[canonical] != row:
                    merged.writerow([row, first_row[canonical]])
                row += 1
        return {name: stream.getvalue() for name, stream in streams.items()}

    def _verdicts(self) -> dict[tuple[str, str], str]:
        path = self.path / VERDICTS_NAME
        entries = json.loads(path.read_bytes()) if path.is_file() else []
        return {(entry["step"], entry["text"]): entry["reason"] for entry in entries}

    def _failure(self, canonical: str) -> str:
        return self._featurize("", [canonical], [0]).reasons.get(0, "")


def _cut(shard: ShardRecord, psmiles: list[str], rows: Array) -> Names:
    """Deal the spellings of a shard to its blocks."""
    names, start = [], 0
    for block in shard.blocks:
        part = slice(start, start := start + block.num_samples)
        names.append((psmiles[part], rows[part]))
    return names
