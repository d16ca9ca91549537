"""Law L8 for whole batches: what a polymer looks like at a step, whoever computes it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mips_dist.data.batch import PolymerBatch
from mips_dist.data.block import PolymerBlock
from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.errors import MipsError


@pytest.fixture(scope="module")
def many(block: PolymerBlock) -> PolymerBlock:
    """Ninety-six polymers with names and rows of their own."""
    copies = block.select(np.tile(np.arange(12), 8))
    names = [f"{psmiles} {number}" for number, psmiles in enumerate(copies.psmiles)]
    return replace(copies, psmiles=names, row=np.arange(96) * 3)


def by_polymer(batches: list[PolymerBatch]) -> dict[int, tuple[Any, ...]]:
    """Row -> what the model gets to see of the polymer."""
    seen: dict[int, tuple[Any, ...]] = {}
    for batch in batches:
        assert batch.is_masked is not None
        for number, row in enumerate(batch.sample_index.tolist()):
            assert row not in seen
            atoms = slice(int(batch.ptr[number]), int(batch.ptr[number + 1]))
            seen[row] = (
                batch.is_masked[atoms].tolist(),
                batch.atom_features[atoms].tolist(),
                {name: x[number].tolist() for name, x in batch.descriptors.items()},
                {name: bool(x[number]) for name, x in batch.descriptor_valid.items()},
            )
    return seen


def loaders(many: PolymerBlock, world_size: int, steps: int, size: int) -> list[MaskedAtomLoader]:
    return [
        MaskedAtomLoader(
            many,
            seed=1,
            global_batch_size=size,
            grad_accum_steps=steps,
            world_size=world_size,
            rank=rank,
            held_out_fraction=0.2,
        )
        for rank in range(world_size)
    ]


def test_same_polymers_and_masks_at_every_world_size(many: PolymerBlock) -> None:
    for step in (0, 3, 1000):
        seen = []
        for world_size, steps in ((1, 4), (2, 2), (4, 1)):
            of_rank = [
                loader.micro_batches(step) for loader in loaders(many, world_size, steps, 24)
            ]
            assert {len(batches) for batches in of_rank} == {steps}
            seen.append(by_polymer([batch for batches in of_rank for batch in batches]))
        assert seen[0] == seen[1] == seen[2]
        assert len(seen[0]) == 24


def test_an_epoch_covers_the_training_polymers_once(many: PolymerBlock) -> None:
    loader = loaders(many, 1, 1, 1)[0]
    steps = range(len(loader.training_samples))
    rows = torch.cat([loader.micro_batches(step)[0].sample_index for step in steps])
    assert sorted(rows.tolist()) == many.row[loader.training_samples].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [6, 24])
def test_validation_covers_the_held_out_once(
    many: PolymerBlock, world_size: int, size: int
) -> None:
    of_rank = [loader.validation_batches() for loader in loaders(many, world_size, 1, size)]
    assert len({len(batches) for batches in of_rank}) == 1
    seen = by_polymer([batch for batches in of_rank for batch in batches])
    one = loaders(many, 1, 1, 24)[0]
    assert sorted(seen) == many.row[one.held_out_samples].tolist()
    assert seen == by_polymer(one.validation_batches())


def test_validation_is_given_with_clean_descriptors_and_without(many: PolymerBlock) -> None:
    loader = loaders(many, 1, 1, 24)[0]
    expected = many.descriptors["rdkit_2d"][loader.held_out_samples].astype(np.float32)
    clean = torch.cat([b.descriptors["rdkit_2d"] for b in loader.validation_batches()])
    assert sorted(clean.sum(1).tolist()) == pytest.approx(sorted(expected.sum(1).tolist()))
    for batch in loader.validation_batches(with_descriptors=False):
        assert not any(valid.any() for valid in batch.descriptor_valid.values())


def test_impossible_splits_are_refused(many: PolymerBlock) -> None:
    with pytest.raises(ValueError, match="global_batch_size=3"):
        loaders(many, 2, 2, 3)
    with pytest.raises(MipsError, match="every polymer is held out"):
        MaskedAtomLoader(many, seed=0, global_batch_size=1, held_out_fraction=1.0)
    few = loaders(many, 1, 1, 1)[0]
    part = many.select([*few.training_samples[:4], few.held_out_samples[0]])
    with pytest.raises(MipsError, match="too few for 2 ranks"):
        loaders(part, 2, 1, 2)
    nothing = MaskedAtomLoader(many, seed=0, global_batch_size=1, held_out_fraction=0.0)
    assert nothing.validation_batches() == []
