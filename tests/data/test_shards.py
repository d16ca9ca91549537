"""Shards give back what was written, to us and to stock WebDataset; damage is named, never read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mips_dist.data.block import PolymerBlock, concatenate
from mips_dist.data.shards import (
    MANIFEST_NAME,
    decode_shard,
    encode_shard,
    load,
    read_blocks,
    read_manifest,
)
from mips_dist.errors import MipsError, UsageError
from tests.shard_folder import write_blocks


@pytest.fixture
def shard_dir(tmp_path: Path, block: PolymerBlock) -> Path:
    """Two shards: one of two blocks, one of one."""
    contents = [
        [block.select(range(5)), block.select(range(5, 9))],
        [block.select(range(9, 12))],
    ]
    manifest = write_blocks(tmp_path, contents)
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
    assert encode_shard(7, [block]) == encode_shard(7, [block.select(range(12))])


def test_stock_webdataset_reads_the_same_arrays(shard_dir: Path) -> None:
    wds = pytest.importorskip("webdataset")
    urls = [str(shard_dir / shard.name) for shard in read_manifest(shard_dir).shards]
    found = list(wds.WebDataset(urls, shardshuffle=False).decode())
    ours = list(read_blocks(shard_dir))
    assert [sample["__key__"] for sample in found] == ["000000-000", "000000-001", "000001-000"]
    for sample, mine in zip(found, ours, strict=True):
        topology, bonds = sample["topology.npz"], sample["bonds.npz"]
        num_atoms, num_pairs, num_path_atoms = topology["counts"].astype(int)
        assert np.array_equal(num_atoms, mine.num_atoms)
        assert np.array_equal(topology["atom_features"], mine.atom_features)
        # As docs/shard-format.md says, polymer by polymer.
        first_atom = np.cumsum(num_atoms) - num_atoms
        first_pair = np.cumsum(num_pairs) - num_pairs
        atom = np.repeat(np.arange(num_atoms.sum()), topology["pairs_of_atom"])
        query = atom - np.repeat(first_atom, num_pairs)
        key = query + topology["pair_key_step"]
        assert np.array_equal([query, key], mine.pair_index)
        steps = np.split(topology["path_pair_step"].astype(int), np.cumsum(num_path_atoms)[:-1])
        path_pair = np.concatenate([np.cumsum(part) for part in steps])
        assert np.array_equal(path_pair, mine.path_pair)
        path_pair += np.repeat(first_pair, num_path_atoms)
        assert np.array_equal(query[path_pair] + topology["path_atom_step"], mine.path_atom)
        weight = topology["path_class_weight"][topology["path_class"]]
        assert np.array_equal(weight, mine.path_weight)
        for name in ("edge_index", "bond_type", "cell_shift", "pair_shift", "path_bond_type"):
            assert np.array_equal(bonds[name], getattr(mine, name)), name
        for name, values in mine.descriptors.items():
            assert np.array_equal(sample["descriptors.npz"][name], values)
            valid = sample["descriptors.npz"][f"{name}.valid"]
            assert np.array_equal(valid, mine.descriptor_valid[name])
        assert np.array_equal(sample["conformer.npz"]["coordinates"], mine.coordinates)
        assert sample["psmiles.json"] == {"psmiles": mine.psmiles, "row": mine.row.tolist()}


def test_the_snippet_of_the_document_runs(shard_dir: Path, block: PolymerBlock) -> None:
    pytest.importorskip("webdataset")
    text = (Path(__file__).parents[2] / "docs" / "shard-format.md").read_text(encoding="utf-8")
    snippet = text.partition("```python\n")[2].partition("```")[0]
    shards = [str(shard_dir / shard.name) for shard in read_manifest(shard_dir).shards]
    values: dict[str, Any] = {"shards": shards, "polymers": []}
    exec(snippet, values)
    counts = zip(block.psmiles, block.num_atoms, block.num_pairs, strict=True)
    assert values["polymers"] == list(counts)
    last = block.select(range(9, 12))
    assert np.array_equal(values["local_query"], last.pair_index[0])


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
    manifest = read_manifest(shard_dir)
    path = shard_dir / MANIFEST_NAME
    for version in (1, 99):
        path.write_text(replace(manifest, schema_version=version).to_json())
        with pytest.raises(MipsError, match=f"schema {version}, this version reads 2"):
            read_manifest(shard_dir)
    text = manifest.to_json()
    path.write_text(text.replace('"num_rows": 12', '"num_rows": 13'))
    with pytest.raises(MipsError, match="num_rows is not"):
        read_manifest(shard_dir)
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(MipsError, match="it was altered"):
        read_manifest(shard_dir)
    path.write_text(path.read_text()[:100])
    with pytest.raises(MipsError, match="cannot be read"):
        read_manifest(shard_dir)
    path.unlink()
    with pytest.raises(MipsError, match=r"no manifest\.json"):
        read_manifest(shard_dir)


def test_pickled_arrays_are_refused(block: PolymerBlock) -> None:
    poisoned = replace(block, atom_features=np.array([object()]))
    with pytest.raises((ValueError, TypeError)):
        encode_shard(0, [poisoned])


def test_one_block_equals_the_whole(block: PolymerBlock, assert_equal) -> None:
    data, _, record = encode_shard(0, [block])
    assert (record.num_bytes, record.num_samples) == (len(data), 12)
    assert record.blocks[0].num_atoms == int(block.num_atoms.sum())
    assert_equal(concatenate(list(decode_shard(data, record))), block)
