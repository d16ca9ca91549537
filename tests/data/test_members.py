"""Members that were made to hurt are refused with one line and little memory."""

import io
import json
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mips_dist.data.block import PolymerBlock
from mips_dist.data.files import file_sha256
from mips_dist.data.members import (
    BONDS,
    DAMAGED,
    NAMES,
    TOPOLOGY,
    decode_block,
    encode_block,
    pack_arrays,
    unpack_arrays,
)
from mips_dist.data.shards import MANIFEST_NAME, load, read_manifest
from mips_dist.errors import MipsError
from tests.shard_folder import write_shards

Members = dict[str, bytes]


def zipped(content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("counts.npy", content)
    return buffer.getvalue()


def npy(descr: str, shape: str, data: bytes = b"\0" * 8) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def bomb(size: int) -> bytes:
    """Zeros, a thousand of them in a byte."""
    return zipped(npy("'|u1'", f"({size},)", bytes(size)))


def lying(data: bytes) -> bytes:
    """The same archive, its directory saying that the array is small."""
    place = data.rindex(b"PK\x01\x02")
    return data[: place + 24] + (200).to_bytes(4, "little") + data[place + 28 :]


HOSTILE = {
    "object array": zipped(pickled()),
    "huge shape": zipped(npy("'<i8'", "(1000000000000,)")),
    "huge product": zipped(npy("'<i8'", "(4294967296, 4294967296)")),
    "negative shape": zipped(npy("'<i8'", "(-1,)")),
    "structured": zipped(npy("[('a', '<i8')]", "(1,)")),
    "code in the header": zipped(npy("__import__('os').getcwd()", "(1,)")),
    "too short": zipped(npy("'<i8'", "(2,)")),
    "no npy": zipped(b"#!/bin/sh"),
    "no zip": b"hello",
    "empty": b"",
    "other method": zipped(npy("'<i8'", "(1,)"), zipfile.ZIP_LZMA),
    "cut short": bomb(10**5)[:-40],
    "lying bomb": lying(bomb(50 * 10**6)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused_in_little_memory(name: str) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"npz|numpy|array"):
        unpack_arrays(HOSTILE[name])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_declared_size_beyond_the_limit_is_not_inflated() -> None:
    data = zipped(npy("'|u1'", "(8,)"))
    place = data.rindex(b"PK\x01\x02")
    huge = data[: place + 24] + (2**32 - 2).to_bytes(4, "little") + data[place + 28 :]
    with pytest.raises(ValueError, match="are no block"):
        unpack_arrays(huge)


def changed(members: Members, suffix: str, **arrays: np.ndarray) -> Members:
    return members | {suffix: pack_arrays(unpack_arrays(members[suffix]) | arrays)}


def forgeries(members: Members) -> dict[str, Members]:
    """Members whose arrays contradict each other."""
    topology, bonds = unpack_arrays(members[TOPOLOGY]), unpack_arrays(members[BONDS])
    names = json.loads(members[NAMES])
    counts = topology["counts"].astype(np.int64)
    many = counts.copy()
    many[1, 0] += 2**31
    minus = counts.copy()
    minus[0, 0], minus[0, 1] = -1, counts[0, 0] + counts[0, 1] + 1
    steps = topology["pair_key_step"].astype(np.int16)
    return {
        "more pairs": changed(members, TOPOLOGY, counts=many),
        "negative atoms": changed(members, TOPOLOGY, counts=minus),
        "three dimensions": changed(members, TOPOLOGY, counts=counts[None]),
        "key beyond": changed(members, TOPOLOGY, pair_key_step=steps + 200),
        "path beyond": changed(
            members, TOPOLOGY, path_pair_step=topology["path_pair_step"].astype(np.uint16) + 999
        ),
        "negative step": changed(
            members, TOPOLOGY, path_pair_step=-topology["path_pair_step"].astype(np.int8)
        ),
        "class beyond": changed(members, TOPOLOGY, path_class=topology["path_class"] + 200),
        "floats": changed(members, TOPOLOGY, atom_features=np.zeros((len(steps), 9))),
        "fewer atoms": changed(members, TOPOLOGY, is_backbone=topology["is_backbone"][1:]),
        "bond beyond": changed(members, BONDS, edge_index=bonds["edge_index"] + np.uint8(200)),
        "names": members | {NAMES: json.dumps(names | {"psmiles": 5}).encode()},
        "numbers as names": members | {NAMES: json.dumps(names | {"psmiles": [1] * 12}).encode()},
        "fewer names": members | {NAMES: json.dumps(names | {"psmiles": ["*C*"]}).encode()},
        "words as rows": members | {NAMES: json.dumps(names | {"row": ["a"] * 12}).encode()},
        "huge rows": members | {NAMES: json.dumps(names | {"row": [10**30] * 12}).encode()},
        "nested": members | {NAMES: b"[" * 10**5},
        "no member": {k: v for k, v in members.items() if k != TOPOLOGY},
    }


def test_contradictions_are_refused(block: PolymerBlock) -> None:
    members = encode_block(block)
    assert len(decode_block(members, None, True, True)) == 12
    for name, forged in forgeries(members).items():
        assert refused(forged), name


def refused(members: Members) -> bool:
    try:
        decode_block(members, None, True, True)
    except DAMAGED:
        return True
    return False


def forge(folder: Path, member: bytes) -> None:
    """Give the one block another topology, and let the manifest agree."""
    manifest = read_manifest(folder)
    record = manifest.shards[0]
    path = folder / record.name
    data = path.read_bytes()
    path.write_bytes(data + member)
    members = record.blocks[0].members | {TOPOLOGY: [len(data), len(member)]}
    forged = replace(
        record,
        sha256=file_sha256(path),
        num_bytes=path.stat().st_size,
        blocks=[replace(record.blocks[0], members=members)],
    )
    (folder / MANIFEST_NAME).write_text(replace(manifest, shards=[forged]).to_json())


def test_a_hostile_shard_whose_manifest_agrees_is_one_line(tmp_path: Path) -> None:
    for number, hostile in enumerate(HOSTILE.values()):
        folder = write_shards(tmp_path / str(number), 20)
        forge(folder, hostile)
        with pytest.raises(MipsError, match="cannot be decoded") as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_a_record_that_leads_out_of_the_shard_is_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "out", 20)
    manifest = read_manifest(folder)
    record = manifest.shards[0]
    (block,) = record.blocks
    for forged in (
        {"name": "../secret.tar"},
        {"blocks": [replace(block, members={TOPOLOGY: [-5, 10]})]},
        {"blocks": [replace(block, members={TOPOLOGY: [0, record.num_bytes + 1]})]},
        {"blocks": [replace(block, key="000001-000")]},
    ):
        with pytest.raises(ValueError, match="contradicts itself"):
            replace(manifest, shards=[replace(record, **forged)])
