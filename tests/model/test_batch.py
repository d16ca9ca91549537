"""Collation: global indices by hand, packs, and the hand-written block against chemistry."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from mips_dist.chem.graph import build_graph
from mips_dist.chem.sample import Sample
from mips_dist.data.batch import collate, pack
from mips_dist.data.block import stack
from tests.model.hand import batch_of, hand_block, samples_with_descriptors


def test_hand_written_block_is_what_chemistry_makes():
    made = stack([Sample(build_graph("*C*")), Sample(build_graph("*CO*"))], [10, 11])
    for field in fields(made):
        expected, found = getattr(hand_block(), field.name), getattr(made, field.name)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(found, expected, err_msg=field.name)
        else:
            assert found == expected


def test_indices_by_hand():
    batch = collate(hand_block(), pack_size=4)
    assert batch.ptr.tolist() == [0, 1, 3]
    assert batch.batch_index.tolist() == [0, 1, 1]
    assert batch.pair_query.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert batch.pair_key.tolist() == [0] * 5 + [1, 1, 1, 2, 2] + [1, 1, 2, 2, 2]
    assert batch.pair_cell.tolist() == [0] * 5 + [1, 1, 1, 2, 2] + [3, 3, 4, 4, 4]
    assert batch.path_pair.tolist() == [3, 4, 6, 7, 13, 14]
    assert batch.path_atom.tolist() == [0, 0, 2, 2, 1, 1]
    assert batch.path_bond_pair.tolist()[6:] == [6, 6, 7, 7, 8, 9, 10, 11, 13, 13, 14, 14]
    # One pack of 4: atoms at tokens 0, 1, 2; cells are (query, key) in a 4 by 4 matrix.
    assert (batch.num_packs, batch.pack_size) == (1, 4)
    assert batch.token_slot.tolist() == [0, 1, 2]
    assert batch.cell_slot.tolist() == [0, 5, 6, 9, 10]
    assert batch.sample_index.tolist() == [10, 11]
    assert batch.num_graphs == 2


def test_one_polymer_per_pack():
    batch = collate(hand_block(), pack_size=None)
    assert (batch.num_packs, batch.pack_size) == (2, 2)
    assert batch.token_slot.tolist() == [0, 2, 3]
    assert batch.cell_slot.tolist() == [0, 4, 5, 6, 7]


@pytest.mark.parametrize("capacity", [40, 64, 128])
def test_packs_hold_whole_polymers_side_by_side(capacity):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 41, size=500)
    slots, num_packs = pack(sizes.tolist(), capacity)
    taken = np.concatenate([np.arange(s, s + n) for s, n in zip(slots, sizes, strict=True)])
    assert len(np.unique(taken)) == sizes.sum()
    assert taken.max() < num_packs * capacity
    assert (slots // capacity == (slots + sizes - 1) // capacity).all()
    assert num_packs <= 1.1 * np.ceil(sizes.sum() / capacity) + 1


def test_packs_double_until_the_largest_polymer_fits(graphs):
    largest = max(len(g.is_backbone) for g in graphs)
    batch = batch_of([Sample(g) for g in graphs], pack_size=2)
    assert batch.pack_size in {2**power for power in range(1, 10)}
    assert largest <= batch.pack_size < 2 * largest


def test_descriptors_are_unpacked_with_their_validity(graphs):
    samples = samples_with_descriptors(graphs)
    batch = batch_of(samples)
    for name, width in (("rdkit_2d", 200), ("atom_pair_3d", 512)):
        assert batch.descriptors[name].shape == (len(graphs), width)
        for index, sample in enumerate(samples):
            assert batch.descriptor_valid[name][index] == (name in sample.descriptors)
            if name in sample.descriptors:
                expected = torch.from_numpy(sample.descriptors[name].astype(np.float32))
                assert torch.equal(batch.descriptors[name][index], expected)


def test_to_moves_every_tensor():
    batch = collate(hand_block()).to("meta")
    tensors = [v for v in vars(batch).values() if isinstance(v, torch.Tensor)]
    assert all(tensor.is_meta for tensor in tensors)


def test_batch_does_not_share_memory_with_the_block():
    block = hand_block()
    batch = collate(block)
    batch.atom_features.zero_()
    batch.is_backbone.zero_()
    assert block.atom_features.any()
    assert block.is_backbone.all()
