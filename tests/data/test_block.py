"""A block holds exactly the arrays of its polymers, whichever are chosen."""

from dataclasses import fields, replace

import numpy as np
import pytest

from mips_dist.chem.descriptors import DESCRIPTOR_GROUPS
from mips_dist.chem.graph import PolymerGraph
from mips_dist.chem.sample import Sample
from mips_dist.data.block import NO_CONFORMER, PolymerBlock, concatenate, stack
from mips_dist.data.shards import decode_shard, encode_shard


def test_every_graph_field_comes_back(samples: list[Sample]) -> None:
    for number, sample in enumerate(samples):
        one = stack(samples, range(len(samples))).select([number])
        for f in fields(PolymerGraph):
            stored, made = getattr(one, f.name), getattr(sample.graph, f.name)
            if f.name == "psmiles":
                assert stored == [made]
            else:
                assert stored.dtype == made.dtype
                assert np.array_equal(stored, made), f.name


def test_descriptors_and_conformers_come_back_or_are_marked(
    samples: list[Sample], block: PolymerBlock
) -> None:
    assert block.coordinates is not None
    for number, sample in enumerate(samples):
        one = block.select([number])
        real = sample.descriptors["rdkit_2d"].astype(np.float16)
        assert np.array_equal(one.descriptors["rdkit_2d"][0], real)
        has_bits = "atom_pair_3d" in sample.descriptors
        assert one.descriptor_valid["atom_pair_3d"].tolist() == [has_bits]
        bits = np.unpackbits(one.descriptors["atom_pair_3d"][0])
        assert np.array_equal(bits, sample.descriptors.get("atom_pair_3d", np.zeros(512)))
        if sample.conformer is None:
            assert one.conformer_status.tolist() == [NO_CONFORMER]
            assert one.num_coordinates.tolist() == [0]
        else:
            assert one.conformer_status.tolist() == [sample.conformer.status]
            assert np.array_equal(one.coordinates, sample.conformer.coordinates)
            assert np.array_equal(one.is_hydrogen, sample.conformer.is_hydrogen)


@pytest.mark.parametrize("indices", [[3], [11, 0, 5], [2, 2, 2], list(range(12)), []])
def test_select_is_polymer_by_polymer(block, assert_equal, indices: list[int]) -> None:
    selected = block.select(indices)
    assert len(selected) == len(indices)
    if indices:
        assert_equal(selected, concatenate([block.select([i]) for i in indices]))


def test_select_is_the_same_however_the_fields_lie_in_memory(block, assert_equal) -> None:
    chosen = [7, 0, 7, 11]
    expected = block.select(chosen)
    data, _, record = encode_shard(0, [block.select(range(5)), block.select(range(5, 12))])
    first, second = decode_shard(data, record)
    assert_equal(second.select([2, 6]), block.select([7, 11]))  # as it lies in the file
    side_by_side = concatenate([first, second])
    assert side_by_side.pair_hops.base is side_by_side.pair_index.base
    assert_equal(side_by_side.select(chosen), expected)
    assert_equal(concatenate([side_by_side, block]).select(chosen), expected)
    # A field that is put in another's place counts, though it may be a view of the same memory.
    for hops in (side_by_side.pair_hops[::-1], side_by_side.pair_hops + 1):
        changed = replace(side_by_side, pair_hops=hops)
        assert_equal(changed.select(range(12)), changed)
    large = replace(block, pair_index=block.pair_index + 1000)
    assert_equal(concatenate([first, large]).select([5, 16]), large.select([0, 11]))


def test_stacking_parts_is_stacking_all(samples, block, assert_equal) -> None:
    parts = [stack(samples[a:b], range(100 + a, 100 + b)) for a, b in ((0, 5), (5, 6), (6, 12))]
    assert_equal(concatenate(parts), block)


def test_parts_without_descriptors_are_marked_not_zero_filled(samples, block) -> None:
    bare = stack([Sample(s.graph) for s in samples[:2]], [0, 1])
    assert bare.coordinates is None
    both = concatenate([bare, block])
    assert both.descriptor_valid["rdkit_2d"].tolist() == [False] * 2 + [True] * 12
    assert both.conformer_status.tolist()[:2] == [NO_CONFORMER] * 2


def test_asked_groups_are_there_though_no_polymer_has_them(samples) -> None:
    made = stack([Sample(samples[0].graph)], [0], DESCRIPTOR_GROUPS.values(), with_conformer=True)
    assert {name: x.shape for name, x in made.descriptors.items()} == {
        "atom_pair_3d": (1, 64),
        "bands": (1, 48),
        "rdkit_2d": (1, 200),
        "xtb": (1, 32),
    }
    assert not any(valid.any() for valid in made.descriptor_valid.values())
    assert made.num_coordinates.tolist() == [0]
