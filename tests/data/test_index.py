"""The index tells of every polymer what the shard holds, and its checksum of each changed byte."""

import zlib
from dataclasses import fields, replace

import numpy as np
import pytest

from mips_dist.data.block import TWO_ROW_FIELDS, PolymerBlock
from mips_dist.data.index import SampleIndex, index_blocks, join_indices, sample_checksums
from mips_dist.data.order import text_key
from mips_dist.data.shards import decode_shard, encode_shard


def equal(left: SampleIndex, right: SampleIndex) -> bool:
    return all(
        np.array_equal(getattr(left, f.name), getattr(right, f.name)) for f in fields(SampleIndex)
    )


def test_the_index_tells_what_the_block_holds(block: PolymerBlock) -> None:
    index = SampleIndex.decode(index_blocks([block]).encode())
    assert index.psmiles == block.psmiles
    assert index.row.tolist() == block.row.tolist()
    assert index.num_atoms.tolist() == block.num_atoms.tolist()
    assert index.num_pairs.tolist() == block.num_pairs.tolist()
    assert index.key.tolist() == [text_key(text) for text in block.psmiles]


def test_indices_of_parts_join_to_that_of_the_whole(block: PolymerBlock) -> None:
    whole = index_blocks([block])
    parts = [block.select(range(4)), block.select(range(4, 12))]
    assert equal(index_blocks(parts), whole)
    assert equal(join_indices([index_blocks([part]) for part in parts]), whole)
    empty = index_blocks([])
    assert len(SampleIndex.decode(empty.encode())) == 0
    assert equal(join_indices([empty, whole, empty]), whole)


def test_a_polymer_has_one_checksum_whatever_block_it_stands_in(block: PolymerBlock) -> None:
    sums = sample_checksums(block)
    assert len(set(sums.tolist())) == 12
    for chosen in ([11, 0, 5], [2, 2], [7]):
        assert np.array_equal(sample_checksums(block.select(chosen)), sums[chosen])
    moved = replace(block, row=block.row + 1000)
    assert np.array_equal(sample_checksums(moved), sums)
    data, _, record = encode_shard(0, [block])
    (read,) = decode_shard(data, record)  # with narrower integers
    assert np.array_equal(sample_checksums(read), sums)


def test_the_checksum_is_the_one_of_the_document(block: PolymerBlock) -> None:
    one = block.select([4])
    parts = [one.psmiles[0].encode()]
    counts = [one.num_atoms, one.num_pairs, one.num_path_atoms, one.num_bonds]
    counts += [one.num_path_bonds, one.num_coordinates]
    values = [
        (counts, "<i4"),
        (one.atom_features, "<i2"),
        (one.is_backbone, "?"),
        (one.pair_index, "<i2"),
        (one.pair_hops, "u1"),
        (one.pair_shift, "i1"),
        (one.path_pair, "<i4"),
        (one.path_position, "u1"),
        (one.path_atom, "<i2"),
        (one.path_weight, "<f4"),
        (one.edge_index, "<i2"),
        (one.bond_type, "u1"),
        (one.cell_shift, "i1"),
        (one.path_bond_pair, "<i4"),
        (one.path_bond_position, "u1"),
        (one.path_bond_type, "u1"),
        (one.path_bond_weight, "<f4"),
        (one.coordinates, "<f4"),
        (one.is_hydrogen, "?"),
        (one.descriptor_valid["atom_pair_3d"], "?"),
        (one.descriptors["atom_pair_3d"], "u1"),
        (one.descriptor_valid["rdkit_2d"], "?"),
        (one.descriptors["rdkit_2d"], "<f2"),
        (one.conformer_status, "u1"),
    ]
    parts += [np.asarray(array).astype(dtype).tobytes() for array, dtype in values]
    assert sample_checksums(block)[4] == zlib.crc32(b"".join(parts))


ARRAYS = [f.name for f in fields(PolymerBlock) if f.name not in ("psmiles", "row")]


@pytest.mark.parametrize("name", [n for n in ARRAYS if not n.startswith("num_")])
def test_a_change_of_any_field_changes_the_checksum_of_its_polymer(
    block: PolymerBlock, name: str
) -> None:
    sums = sample_checksums(block)
    values = getattr(block, name)
    if isinstance(values, dict):
        key, last = list(values.items())[-1]
        changed = {key: altered(last, axis=0)}
        other = replace(block, **{name: values | changed})
    else:
        other = replace(block, **{name: altered(values, axis=1 if name in TWO_ROW_FIELDS else 0)})
    assert (sample_checksums(other) != sums).tolist() == [False] * 11 + [True]


def altered(values: np.ndarray, axis: int) -> np.ndarray:
    """Flip the lowest bit of the last entry."""
    copy = np.ascontiguousarray(np.moveaxis(values, axis, 0)).copy()
    copy[-1:].view(np.uint8).reshape(-1)[-1 if copy.itemsize == 1 else -copy.itemsize] ^= 1
    return np.moveaxis(copy, 0, axis)


def test_another_spelling_is_another_polymer(block: PolymerBlock) -> None:
    names = [*block.psmiles[:-1], block.psmiles[-1] + "C"]
    differs = sample_checksums(replace(block, psmiles=names)) != sample_checksums(block)
    assert differs.tolist() == [False] * 11 + [True]
