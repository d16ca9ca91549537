"""The shard format, both ways: WebDataset tars of blocks, and their manifest. No torch.

A shard is a tar file; one WebDataset sample in it is one block of up to 1,024 polymers with the
members ``KEY.topology.npz``, ``KEY.descriptors.npz``, ``KEY.conformer.npz`` and
``KEY.psmiles.json``, where KEY is ``{shard:06d}-{block:03d}``. Arrays are those of `PolymerBlock`,
but for ``path_pair`` and ``path_bond_pair``, which are stored as differences. Nothing is pickled.
"""

import hashlib
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mips_dist.data.block import CONFORMER_FIELDS, Array, PolymerBlock, concatenate
from mips_dist.errors import MipsError, UsageError

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
BLOCK_SIZE = 1024  # polymers of a block at most

# Sorted columns of row numbers: their differences are small and compress two to three times better.
_DIFFERENCED = {"path_pair": "path_pair_diff", "path_bond_pair": "path_bond_pair_diff"}
_NOT_TOPOLOGY = {"psmiles", "row", "descriptors", "descriptor_valid", *CONFORMER_FIELDS}
_TOPOLOGY = [f.name for f in fields(PolymerBlock) if f.name not in _NOT_TOPOLOGY]
_VALID = ".valid"


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """What is known of a block without reading it."""

    key: str
    num_samples: int
    num_atoms: int
    num_pairs: int


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What is known of a shard without reading it."""

    name: str
    sha256: str
    num_bytes: int
    num_samples: int
    blocks: list[BlockRecord]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ShardRecord":
        """Make a record from the values of its JSON object."""
        blocks = [BlockRecord(**block) for block in values["blocks"]]
        return cls(**{**values, "blocks": blocks})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of ``manifest.json``; row counts obey rows = samples + merged + rejected."""

    schema_version: int
    feature_schema: int
    content: str  # full or topology
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
    shards: list[ShardRecord]

    def __post_init__(self) -> None:
        if self.num_rows != self.num_samples + self.num_merged + self.num_rejected:
            raise ValueError("num_rows is not num_samples + num_merged + num_rejected")
        if self.num_samples != sum(shard.num_samples for shard in self.shards):
            raise ValueError("num_samples is not the sum over the shards")

    def to_json(self) -> str:
        """Return the text of the file."""
        return json.dumps(asdict(self), indent=1) + "\n"


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{shard:06d}.tar"


def encode_shard(shard: int, blocks: list[PolymerBlock]) -> tuple[bytes, ShardRecord]:
    """Return the bytes of a shard, equal for equal blocks, and its record.

    Parameters
    ----------
    shard
        Number of the shard.
    blocks
        Blocks of at most `BLOCK_SIZE` polymers each.
    """
    buffer = io.BytesIO()
    records = []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, block in enumerate(blocks):
            key = f"{shard:06d}-{number:03d}"
            for suffix, data in _encode_block(block).items():
                member = tarfile.TarInfo(f"{key}.{suffix}")  # owner 0, time 0, mode 644
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            records.append(
                BlockRecord(
                    key=key,
                    num_samples=len(block),
                    num_atoms=len(block.is_backbone),
                    num_pairs=len(block.pair_hops),
                )
            )
    data = buffer.getvalue()
    return data, ShardRecord(
        name=shard_name(shard),
        sha256=hashlib.sha256(data).hexdigest(),
        num_bytes=len(data),
        num_samples=sum(record.num_samples for record in records),
        blocks=records,
    )


def _encode_block(block: PolymerBlock) -> dict[str, bytes]:
    """Return the members of a block, suffix -> bytes."""
    topology = {}
    for name in _TOPOLOGY:
        values = getattr(block, name)
        if name in _DIFFERENCED:
            topology[_DIFFERENCED[name]] = np.diff(values, prepend=values.dtype.type(0))
        else:
            topology[name] = values
    members = {"topology.npz": _npz(topology)}
    if block.descriptors:
        # Column-wise real values compress better.
        stored = {name: np.asfortranarray(x) for name, x in block.descriptors.items()}
        valid = {name + _VALID: x for name, x in block.descriptor_valid.items()}
        members["descriptors.npz"] = _npz(stored | valid)
    if block.conformer_status is not None:
        members["conformer.npz"] = _npz({name: getattr(block, name) for name in CONFORMER_FIELDS})
    names = {"psmiles": block.psmiles, "row": block.row.tolist()}
    members["psmiles.json"] = json.dumps(names, ensure_ascii=False).encode()
    return members


def _npz(arrays: dict[str, Array]) -> bytes:
    buffer = io.BytesIO()
    # Members of the zip file are dated 1980 by numpy, so equal arrays give equal bytes.
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def decode_shard(
    data: bytes, groups: Collection[str] | None = None, with_conformer: bool = True
) -> Iterator[PolymerBlock]:
    """Yield the blocks of a shard.

    Parameters
    ----------
    data
        Bytes of the tar file.
    groups
        Descriptor groups to read; None reads all.
    with_conformer
        Whether to read coordinates.
    """
    members: dict[str, bytes] = {}
    current = ""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            if key != current and members:
                yield _decode_block(members, groups, with_conformer)
                members = {}
            stream = tar.extractfile(member)
            if stream is None:
                raise ValueError(f"{member.name} is no file")
            current, members[suffix] = key, stream.read()
    if members:
        yield _decode_block(members, groups, with_conformer)


def _decode_block(
    members: dict[str, bytes], groups: Collection[str] | None, with_conformer: bool
) -> PolymerBlock:
    names = json.loads(members["psmiles.json"])
    values: dict[str, Any] = {"psmiles": names["psmiles"], "row": np.array(names["row"], np.int64)}
    with np.load(io.BytesIO(members["topology.npz"]), allow_pickle=False) as stored:
        for name in _TOPOLOGY:
            if name in _DIFFERENCED:
                steps = stored[_DIFFERENCED[name]]
                values[name] = np.cumsum(steps, dtype=steps.dtype)
            else:
                values[name] = stored[name]
    descriptors: dict[str, Array] = {}
    valid: dict[str, Array] = {}
    if "descriptors.npz" in members and (groups is None or len(groups)):
        with np.load(io.BytesIO(members["descriptors.npz"]), allow_pickle=False) as stored:
            present = [name.removesuffix(_VALID) for name in stored.files if name.endswith(_VALID)]
            for name in present if groups is None else groups:
                descriptors[name] = np.ascontiguousarray(stored[name])
                valid[name] = stored[name + _VALID]
    if "conformer.npz" in members and with_conformer:
        with np.load(io.BytesIO(members["conformer.npz"]), allow_pickle=False) as stored:
            values |= {name: stored[name] for name in CONFORMER_FIELDS}
    return PolymerBlock(descriptors=descriptors, descriptor_valid=valid, **values)


def read_manifest(directory: str | Path) -> Manifest:
    """Read and check ``manifest.json`` of a shard folder.

    Raises
    ------
    MipsError
        No such folder, not finished, unreadable, or of another schema version.
    """
    path = Path(directory) / MANIFEST_NAME
    remedy = "make shards with `python -m preprocess input=FILE output=DIR`"
    if not path.parent.is_dir():
        raise MipsError(f"no shard folder {path.parent}; {remedy}")
    if not path.is_file():
        raise MipsError(
            f"{path.parent} has no {MANIFEST_NAME}, so it is no finished shard folder; "
            f"{remedy}, or run the command that began it again"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["schema_version"]
        if version == SCHEMA_VERSION:
            shards = [ShardRecord.from_json(shard) for shard in values["shards"]]
            return Manifest(**{**values, "shards": shards})
    except (ValueError, KeyError, TypeError) as error:
        raise MipsError(f"{path} cannot be read ({error}); {remedy}") from error
    raise MipsError(
        f"{path} has shard schema {version}, this version reads {SCHEMA_VERSION}; {remedy}"
    )


def read_shard(directory: str | Path, record: ShardRecord, verify: bool = True) -> bytes:
    """Return the bytes of a shard, checked against the manifest.

    Raises
    ------
    MipsError
        The file is missing, truncated or altered.
    """
    path = Path(directory) / record.name
    remedy = "copy it again from where it was made, or remove the folder and preprocess again"
    if not path.is_file():
        raise MipsError(f"shard {path} is missing; {remedy}")
    data = path.read_bytes()
    if len(data) != record.num_bytes:
        raise MipsError(
            f"shard {path} has {len(data)} bytes instead of {record.num_bytes}; {remedy}"
        )
    if verify and hashlib.sha256(data).hexdigest() != record.sha256:
        raise MipsError(f"shard {path} was altered: its sha256 is not the manifest's; {remedy}")
    return data


def read_blocks(
    directory: str | Path,
    groups: Collection[str] | None = None,
    with_conformer: bool = True,
    verify: bool = True,
) -> Iterator[PolymerBlock]:
    """Yield all blocks of a shard folder, in order.

    Parameters
    ----------
    directory
        Folder with ``manifest.json``.
    groups
        Descriptor groups to read; None reads all.
    with_conformer
        Whether to read coordinates.
    verify
        Whether to check each shard's sha256.
    """
    manifest = read_manifest(directory)
    known = [group["name"] for group in manifest.descriptors]
    unknown = [name for name in groups or () if name not in known]
    if unknown:
        raise UsageError(
            f"shards in {directory} have no descriptors {', '.join(unknown)} "
            f"(content={manifest.content}); they have: {', '.join(known) or 'none'}"
        )
    for record in manifest.shards:
        data = read_shard(directory, record, verify)
        try:
            yield from decode_shard(data, groups, with_conformer)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, ValueError, KeyError) as error:
            raise MipsError(
                f"shard {Path(directory) / record.name} cannot be decoded ({error}); "
                "remove the folder and preprocess again"
            ) from error


def load(
    directory: str | Path,
    groups: Collection[str] | None = None,
    with_conformer: bool = True,
) -> PolymerBlock:
    """Read a whole shard folder into memory, in the order of the input file (see `read_blocks`)."""
    blocks = list(read_blocks(directory, groups, with_conformer))
    if not blocks:
        raise MipsError(f"shards in {directory} hold no polymer; see rejects.csv there")
    return concatenate(blocks)
