"""The shard format, both ways: WebDataset tars of blocks, their indices and manifest. No torch.

A shard is a tar file; one WebDataset sample in it is one block of up to 1,024 polymers with the
members of `mips_dist.data.members`, named ``KEY.SUFFIX`` with ``{shard:06d}-{block:03d}`` as KEY.
The manifest tells where each member's bytes lie, so nothing here ever looks at a tar header.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mips_dist.data.block import PolymerBlock, concatenate
from mips_dist.data.index import SampleIndex, index_blocks, join_indices
from mips_dist.data.members import DAMAGED, decode_block, encode_block
from mips_dist.data.remote import shown
from mips_dist.data.store import REMEDY, ShardStore
from mips_dist.errors import MipsError, UsageError

SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"
BLOCK_SIZE = 1024  # polymers of a block at most
TABLES = frozenset({"rejects.csv", "merged.csv", "verdicts.json"})  # files beside the shards

# A block whose polymers all failed is left out, and its number with it.
_KEY = re.compile(r"\d{6}-\d{3}")


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """What is known of a block without reading it."""

    key: str
    num_samples: int
    num_atoms: int
    num_pairs: int
    members: dict[str, list[int]]  # suffix -> first byte in the shard, number of bytes


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What is known of a shard without reading it."""

    name: str
    sha256: str
    num_bytes: int
    index_sha256: str
    index_num_bytes: int
    num_samples: int
    blocks: list[BlockRecord]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ShardRecord":
        """Make a record from the values of its JSON object."""
        blocks = [BlockRecord(**block) for block in values["blocks"]]
        return cls(**{**values, "blocks": blocks})

    @property
    def index_name(self) -> str:
        """Return the file name of the shard's index."""
        return self.name.removesuffix(".tar") + ".index.npz"

    def check(self, shard: int) -> None:
        """Raise ValueError unless the record can be one of this shard: nothing leads elsewhere."""
        blocks = self.blocks
        ranges = [place for block in blocks for place in block.members.values()]
        if not (
            self.name == shard_name(shard)
            and [block.key for block in blocks] == sorted({block.key for block in blocks})
            and all(_KEY.fullmatch(b.key) and int(b.key[:6]) == shard for b in blocks)
            and all(0 <= start <= start + size <= self.num_bytes for start, size in ranges)
            and self.num_samples == sum(block.num_samples for block in blocks)
        ):
            raise ValueError(f"the record of shard {shard} contradicts itself")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of ``manifest.json``; row counts obey rows = samples + merged + rejected."""

    schema_version: int
    feature_schema: int
    content: Literal["topology", "descriptors", "full", "xtb"]
    max_hops: int
    seed: int
    num_conformers: int = 1
    conformer_backend: str = "rdkit"
    descriptors: list[dict[str, Any]]  # name, width, version, kind of each group
    config: dict[str, Any]
    input: dict[str, Any]  # name, sha256
    software: dict[str, str]  # versions of the libraries that shape the bytes
    num_rows: int
    num_samples: int
    num_merged: int
    num_rejected: int
    rejected_by_reason: dict[str, int]
    stereo_dropped: int  # accepted rows whose stereo marks were dropped
    conformer_status: dict[str, int]
    tables: dict[str, str]  # rejects.csv, merged.csv, verdicts.json if it is there -> sha256
    shards: list[ShardRecord]

    def __post_init__(self) -> None:
        if self.num_rows != self.num_samples + self.num_merged + self.num_rejected:
            raise ValueError("num_rows is not num_samples + num_merged + num_rejected")
        if self.num_samples != sum(shard.num_samples for shard in self.shards):
            raise ValueError("num_samples is not the sum over the shards")
        if not set(self.tables) <= TABLES:
            raise ValueError("tables names another file")
        for number, shard in enumerate(self.shards):
            shard.check(number)

    def to_json(self) -> str:
        """Return the text of the file; its last value is the sha256 of all before its comma."""
        body = json.dumps(asdict(self), indent=1).removesuffix("\n}")
        return f'{body},\n "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{shard:06d}.tar"


def block_key(shard: int, block: int) -> str:
    """Return the WebDataset key of a block."""
    return f"{shard:06d}-{block:03d}"


def encode_shard(shard: int, blocks: list[PolymerBlock]) -> tuple[bytes, bytes, ShardRecord]:
    """Return the bytes of a shard and of its index, equal for equal blocks, and its record.

    Parameters
    ----------
    shard
        Number of the shard.
    blocks
        Blocks of at most `BLOCK_SIZE` polymers each, with bonds.
    """
    pieces = [encode_piece(block_key(shard, n), block) for n, block in enumerate(blocks)]
    return join_shard(shard, pieces, index_blocks(blocks))


def encode_piece(key: str, block: PolymerBlock) -> tuple[bytes, BlockRecord]:
    """Return the part of a tar file that holds one block, and its record within that part.

    Parameters
    ----------
    key
        WebDataset key of the block.
    block
        At most `BLOCK_SIZE` polymers, with bonds.
    """
    piece = bytearray()
    members = {}
    for suffix, data in encode_block(block).items():
        piece += tar_header(f"{key}.{suffix}", len(data))
        members[suffix] = [len(piece), len(data)]
        piece += data + bytes(-len(data) % tarfile.BLOCKSIZE)
    return bytes(piece), BlockRecord(
        key=key,
        num_samples=len(block),
        num_atoms=len(block.is_backbone),
        num_pairs=len(block.pair_hops),
        members=members,
    )


def tar_header(name: str, size: int) -> bytes:
    """Return the header of a plain file in a tar file: owner 0, time 0, mode 644."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


def join_shard(
    shard: int, pieces: Sequence[tuple[bytes, BlockRecord]], samples: SampleIndex
) -> tuple[bytes, bytes, ShardRecord]:
    """Return the bytes of a shard and of its index, and its record.

    Parameters
    ----------
    shard
        Number of the shard.
    pieces
        Its blocks as `encode_piece` made them, in order.
    samples
        Index of all their polymers.
    """
    records = []
    start = 0
    for piece, block in pieces:
        members = {suffix: [start + a, size] for suffix, (a, size) in block.members.items()}
        records.append(replace(block, members=members))
        start += len(piece)
    data = b"".join(piece for piece, _ in pieces) + bytes(2 * tarfile.BLOCKSIZE)
    index = samples.encode()
    return (
        data,
        index,
        ShardRecord(
            name=shard_name(shard),
            sha256=hashlib.sha256(data).hexdigest(),
            num_bytes=len(data),
            index_sha256=hashlib.sha256(index).hexdigest(),
            index_num_bytes=len(index),
            num_samples=sum(record.num_samples for record in records),
            blocks=records,
        ),
    )


def block_members(data: bytes, block: BlockRecord) -> dict[str, memoryview]:
    """Return the members of a block, suffix -> bytes, out of the bytes of its shard."""
    view = memoryview(data)
    return {suffix: view[a : a + size] for suffix, (a, size) in block.members.items()}


def decode_shard(
    data: bytes,
    record: ShardRecord,
    groups: Collection[str] | None = None,
    with_bonds: bool = True,
    with_conformer: bool = True,
) -> Iterator[PolymerBlock]:
    """Yield the blocks of a shard; bytes that cannot be decoded are an error of `DAMAGED`.

    Parameters
    ----------
    data
        Bytes of the tar file.
    record
        Its record.
    groups, with_bonds, with_conformer
        What to read; see `read_blocks`.
    """
    for block in record.blocks:
        members = block_members(data, block)
        yield decode_record(block, members, groups, with_bonds, with_conformer)


def decode_record(
    record: BlockRecord,
    members: Mapping[str, bytes | memoryview],
    groups: Collection[str] | None,
    with_bonds: bool,
    with_conformer: bool,
) -> PolymerBlock:
    """Return a block of which the members were read, see `decode_shard` and `members`."""
    block = decode_block(members, groups, with_bonds, with_conformer)
    sizes = len(block), len(block.is_backbone), len(block.pair_hops)
    if sizes != (record.num_samples, record.num_atoms, record.num_pairs):
        raise ValueError(f"block {record.key} has other sizes than its record")
    return block


def read_manifest(directory: str | Path) -> Manifest:
    """Read and check ``manifest.json`` of a shard folder, local or behind a URL.

    Raises
    ------
    MipsError
        No such folder, not finished, unreadable, or of another schema version.
    """
    store = ShardStore(directory)
    remedy = "make shards with `python -m preprocess input=FILE output=DIR`"
    path = Path(directory)
    if not store.is_remote and not path.is_dir():
        raise MipsError(f"no shard folder {path}; {remedy}")
    if not store.is_remote and not (path / MANIFEST_NAME).is_file():
        raise MipsError(
            f"{path} has no {MANIFEST_NAME}, so it is no finished shard folder; "
            f"{remedy}, or run the command that began it again"
        )
    name = shown(store.address(MANIFEST_NAME))
    data = store.file(MANIFEST_NAME)
    try:
        text = data.decode()
        values = json.loads(text)
        version = values["schema_version"]
        if version == SCHEMA_VERSION:
            del values["sha256"]
            shards = [ShardRecord.from_json(shard) for shard in values["shards"]]
            manifest = Manifest(**{**values, "shards": shards})
            if text != manifest.to_json():
                raise ValueError("its sha256 is not that of its text: it was altered")
            return manifest
    except DAMAGED as error:
        raise MipsError(
            f"{name} cannot be read ({error}); copy it again from where it was made, or {remedy}"
        ) from error
    raise MipsError(
        f"{name} has shard schema {version}, this version reads {SCHEMA_VERSION}; {remedy}"
    )


def read_shard(directory: str | Path, record: ShardRecord) -> bytes:
    """Return the bytes of a shard, checked against the manifest (see `ShardStore.file`)."""
    return ShardStore(directory).file(record.name, record.num_bytes, record.sha256)


def read_shard_index(directory: str | Path | ShardStore, record: ShardRecord) -> SampleIndex:
    """Return the index of a shard, checked against the manifest (see `ShardStore.file`)."""
    store = directory if isinstance(directory, ShardStore) else ShardStore(directory)
    path = shown(store.address(record.index_name))
    data = store.file(record.index_name, record.index_num_bytes, record.index_sha256)
    try:
        index = SampleIndex.decode(data)
    except DAMAGED as error:
        raise MipsError(f"{path} cannot be decoded ({error}); {REMEDY}") from error
    if len(index) != record.num_samples:
        raise MipsError(f"{path} is of {len(index)} instead of {record.num_samples} polymers")
    return index


def read_index(directory: str | Path) -> SampleIndex:
    """Return what is known of every polymer of a shard folder, in order, without its shards."""
    parts = [read_shard_index(directory, record) for record in read_manifest(directory).shards]
    if not parts:
        raise no_polymer(directory)
    return join_indices(parts)


def no_polymer(directory: str | Path) -> MipsError:
    """Return the error for a folder in which every row was rejected."""
    return MipsError(f"shards in {shown(str(directory))} hold no polymer; see rejects.csv there")


def read_blocks(
    directory: str | Path,
    groups: Collection[str] | None = None,
    with_bonds: bool = True,
    with_conformer: bool = True,
) -> Iterator[PolymerBlock]:
    """Yield all blocks of a shard folder, in order.

    Parameters
    ----------
    directory
        Folder with ``manifest.json``.
    groups
        Descriptor groups to read; None reads all.
    with_bonds
        Whether to read bonds, and bond types along paths: what model.bond_path_bias needs.
    with_conformer
        Whether to read coordinates.
    """
    manifest = read_manifest(directory)
    known = [group["name"] for group in manifest.descriptors]
    unknown = [name for name in groups or () if name not in known]
    if unknown:
        raise UsageError(
            f"shards in {shown(str(directory))} have no descriptors {', '.join(unknown)} "
            f"(content={manifest.content}); they have: {', '.join(known) or 'none'}"
        )
    for record in manifest.shards:
        data = read_shard(directory, record)
        try:
            yield from decode_shard(data, record, groups, with_bonds, with_conformer)
        except DAMAGED as error:
            name = shown(ShardStore(directory).address(record.name))
            raise MipsError(f"{name} cannot be decoded ({error}); {REMEDY}") from error


def load(
    directory: str | Path,
    groups: Collection[str] | None = None,
    with_bonds: bool = True,
    with_conformer: bool = True,
) -> PolymerBlock:
    """Read a whole shard folder into memory, in the order of the input file (see `read_blocks`)."""
    blocks = list(read_blocks(directory, groups, with_bonds, with_conformer))
    if not blocks:
        raise no_polymer(directory)
    return concatenate(blocks)
