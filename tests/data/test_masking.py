"""Masks are functions of (seed, step, sample); corrupted descriptors have the stated rates."""

import numpy as np
import pytest

from mips_dist.chem.sample import featurize
from mips_dist.data.block import PolymerBlock, stack
from mips_dist.data.masking import (
    MaskingConfig,
    atom_mask,
    corrupt_descriptors,
    drop_descriptors,
)


def test_mask_does_not_depend_on_batch_mates_or_their_order() -> None:
    sample = np.array([7, 3, 900])
    num_atoms = np.array([5, 40, 12])
    together = np.split(atom_mask(0, 4, sample, num_atoms, 0.3), [5, 45])
    for place in (2, 0, 1):
        alone = atom_mask(0, 4, sample[[place]], num_atoms[[place]], 0.3)
        assert np.array_equal(alone, together[place])


def test_mask_changes_with_seed_step_and_sample() -> None:
    sizes = np.array([200])
    base = atom_mask(0, 0, np.array([0]), sizes, 0.3)
    for seed, step, sample in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not np.array_equal(base, atom_mask(seed, step, np.array([sample]), sizes, 0.3))


def test_mask_rate() -> None:
    masks = [
        atom_mask(1, step, np.arange(500), np.full(500, 30), 0.3).reshape(500, 30)
        for step in range(20)
    ]
    mean = np.mean(masks, axis=0)
    assert abs(mean.mean() - 0.3) < 0.003
    # Per atom position and per polymer, so that no place is favoured.
    assert abs(mean.mean(axis=0) - 0.3).max() < 5 * (0.21 / 10_000) ** 0.5
    assert abs(mean.mean(axis=1) - 0.3).max() < 5 * (0.21 / 600) ** 0.5


def test_corruption_rates(block: PolymerBlock) -> None:
    many = block.select(np.tile(np.arange(12), 50))
    sample = np.arange(600)
    config = MaskingConfig(descriptor_corruption=0.3, group_drop=0.2)
    made = corrupt_descriptors(many, 0, 0, sample, config)
    for name, before in many.descriptors.items():
        was_valid, is_valid = many.descriptor_valid[name], made.descriptor_valid[name]
        assert not np.any(is_valid & ~was_valid)
        assert abs(is_valid.sum() / was_valid.sum() - 0.8) < 0.07
        old, new = before[is_valid], made.descriptors[name][is_valid]
        if old.dtype == np.uint8:
            old, new = np.unpackbits(old, axis=1), np.unpackbits(new, axis=1)
        assert abs(np.mean(old != new) - 0.3) < 0.01
        assert not made.descriptors[name][~is_valid].any()
        assert made.descriptors[name].dtype == before.dtype
        if before.dtype != np.uint8:
            assert abs(new[old != new].mean() - 0.5) < 0.02
    assert many.descriptors["rdkit_2d"].any()
    assert many.descriptor_valid["rdkit_2d"].all()


def test_corruption_is_per_polymer_and_per_group(block: PolymerBlock) -> None:
    config = MaskingConfig()
    sample = np.arange(12) + 40
    together = corrupt_descriptors(block, 5, 6, sample, config)
    for place in (11, 0, 4):
        alone = corrupt_descriptors(block.select([place]), 5, 6, sample[[place]], config)
        for name in block.descriptors:
            assert np.array_equal(alone.descriptors[name][0], together.descriptors[name][place])
            assert alone.descriptor_valid[name][0] == together.descriptor_valid[name][place]


def test_no_corruption_changes_nothing_and_dropping_leaves_nothing(block, assert_equal) -> None:
    off = MaskingConfig(descriptor_corruption=0.0, group_drop=0.0)
    assert_equal(corrupt_descriptors(block, 0, 0, block.row, off), block)
    bare = drop_descriptors(block)
    assert not any(x.any() for x in (*bare.descriptors.values(), *bare.descriptor_valid.values()))


@pytest.mark.parametrize("values", [{"rate": 1.1}, {"rate": 0.0}, {"group_drop": -0.1}])
def test_impossible_rates_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"masking.{next(iter(values))}"):
        MaskingConfig(**values)


def test_bands_are_corrupted_and_dropped_as_the_other_groups() -> None:
    """Law L6c: what tells of masked atoms is taken away or replaced, the band structure too."""
    polymers = ["*CC(*)c1ccccc1", "*c1ccc(*)s1", "*CO*"]
    samples = featurize(polymers, content="descriptors")
    many = stack(samples, range(3)).select(np.tile(np.arange(3), 200))
    made = corrupt_descriptors(many, 0, 0, np.arange(600), MaskingConfig())
    kept = made.descriptor_valid["bands"]
    assert abs(kept.mean() - 0.8) < 0.05
    replaced = made.descriptors["bands"][kept] != many.descriptors["bands"][kept]
    assert abs(replaced.mean() - 0.3) < 0.02
    # Groups are dropped independently of each other, so that each learns to do without the rest.
    both = kept & made.descriptor_valid["rdkit_2d"]
    assert abs(both.mean() - 0.64) < 0.06
