"""Shards give back what was written, to us and to stock WebDataset; damage is named, never read."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from mips_dist.data.block import PolymerBlock, concatenate
from mips_dist.data.shards import (
    MANIFEST_NAME,
    Manifest,
    decode_shard,
    encode_shard,
    load,
    read_blocks,
    read_manifest,
)
from mips_dist.errors import MipsError, UsageError


@pytest.fixture
def shard_dir(tmp_path: Path, block: PolymerBlock) -> Path:
    """Two shards: one of two blocks, one of one."""
    contents = [
        [block.select(range(5)), block.select(range(5, 9))],
        [block.select(range(9, 12))],
    ]
    records = []
    for number, blocks in enumerate(contents):
        data, record = encode_shard(number, blocks)
        (tmp_path / record.name).write_bytes(data)
        records.append(record)
    manifest = Manifest(
        schema_version=1,
        feature_schema=1,
        content="full",
        max_hops=2,
        seed=0,
        descriptors=[{"name": "rdkit_2d"}, {"name": "atom_pair_3d"}],
        config={},
        input={},
        software={},
        num_rows=12,
        num_samples=12,
        num_merged=0,
        num_rejected=0,
        rejected_by_reason={},
        stereo_dropped=0,
        conformer_status={},
        shards=records,
    )
    (tmp_path / MANIFEST_NAME).write_text(manifest.to_json())
    assert read_manifest(tmp_path) == manifest
    return tmp_path


def test_round_trip(shard_dir: Path, block: PolymerBlock, assert_equal) -> None:
    assert [len(b) for b in read_blocks(shard_dir)] == [5, 4, 3]
    assert_equal(load(shard_dir), block)


def test_only_what_is_asked_is_read(shard_dir: Path, block: PolymerBlock, assert_equal) -> None:
    read = load(shard_dir, groups=["rdkit_2d"], with_conformer=False)
    assert list(read.descriptors) == ["rdkit_2d"]
    assert read.coordinates is None
    assert not load(shard_dir, groups=[]).descriptors
    with pytest.raises(UsageError, match=r"no descriptors bands .*they have: rdkit_2d"):
        load(shard_dir, groups=["bands"])


def test_equal_blocks_give_equal_bytes(block: PolymerBlock) -> None:
    assert encode_shard(7, [block])[0] == encode_shard(7, [block.select(range(12))])[0]


def test_stock_webdataset_reads_the_same_arrays(shard_dir: Path) -> None:
    wds = pytest.importorskip("webdataset")
    urls = [str(shard_dir / shard.name) for shard in read_manifest(shard_dir).shards]
    found = list(wds.WebDataset(urls, shardshuffle=False).decode())
    ours = list(read_blocks(shard_dir))
    assert [sample["__key__"] for sample in found] == ["000000-000", "000000-001", "000001-000"]
    for sample, mine in zip(found, ours, strict=True):
        topology = sample["topology.npz"]
        for name, values in topology.items():
            if name.endswith("_diff"):
                name, values = name.removesuffix("_diff"), np.cumsum(values)
            assert np.array_equal(values, getattr(mine, name)), name
        for name, values in mine.descriptors.items():
            assert np.array_equal(sample["descriptors.npz"][name], values)
            valid = sample["descriptors.npz"][f"{name}.valid"]
            assert np.array_equal(valid, mine.descriptor_valid[name])
        assert np.array_equal(sample["conformer.npz"]["coordinates"], mine.coordinates)
        assert sample["psmiles.json"] == {"psmiles": mine.psmiles, "row": mine.row.tolist()}


def test_every_truncation_is_named(shard_dir: Path) -> None:
    path = shard_dir / "shard-000000.tar"
    whole = path.read_bytes()
    for size in range(0, len(whole), 512):
        path.write_bytes(whole[:size])
        with pytest.raises(MipsError, match=r"shard-000000\.tar has .* bytes instead of"):
            load(shard_dir)


def test_every_flipped_bit_is_named(shard_dir: Path) -> None:
    path = shard_dir / "shard-000001.tar"
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 50):
        altered = bytearray(whole)
        altered[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(altered)
        with pytest.raises(MipsError, match=r"shard-000001\.tar was altered"):
            load(shard_dir)


def test_missing_shard_folder_manifest_or_schema_is_one_line(shard_dir: Path) -> None:
    with pytest.raises(MipsError, match="no shard folder"):
        read_manifest(shard_dir / "nowhere")
    manifest = asdict(read_manifest(shard_dir))
    path = shard_dir / MANIFEST_NAME
    path.write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(MipsError, match="schema 99"):
        read_manifest(shard_dir)
    path.write_text(json.dumps({**manifest, "num_rows": 13}))
    with pytest.raises(MipsError, match="num_rows is not"):
        read_manifest(shard_dir)
    path.write_text(path.read_text()[:100])
    with pytest.raises(MipsError, match="cannot be read"):
        read_manifest(shard_dir)
    path.unlink()
    with pytest.raises(MipsError, match=r"no manifest\.json"):
        read_manifest(shard_dir)


def test_pickled_arrays_are_refused(block: PolymerBlock) -> None:
    poisoned = replace(block, atom_features=np.array([object()]))
    with pytest.raises(ValueError, match="allow_pickle"):
        encode_shard(0, [poisoned])


def test_one_block_equals_the_whole(block: PolymerBlock, assert_equal) -> None:
    data, record = encode_shard(0, [block])
    assert (record.num_bytes, record.num_samples) == (len(data), 12)
    assert record.blocks[0].num_atoms == int(block.num_atoms.sum())
    assert_equal(concatenate(list(decode_shard(data))), block)
