"""Law L8 for whole batches: what a polymer looks like at a step, whoever computes it and when."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mips_dist.data import loader as loader_module
from mips_dist.data.batch import PolymerBatch
from mips_dist.data.block import Array, PolymerBlock
from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.data.reader import ShardReader
from mips_dist.data.shards import Manifest, load
from mips_dist.errors import MipsError
from tests.data.shard_folder import copies, cut
from tests.shard_folder import write_blocks

GROUPS = ["rdkit_2d", "atom_pair_3d"]
WINDOW = 20  # samples: five windows; a step of 24 lies in two or three


@pytest.fixture(scope="module")
def many(block: PolymerBlock) -> PolymerBlock:
    """Ninety-six polymers with names and rows of their own."""
    return copies(block, 96)


@pytest.fixture(scope="module")
def folder(many: PolymerBlock, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """The same in twelve blocks of three shards."""
    path = tmp_path_factory.mktemp("shards")
    return path, write_blocks(path, cut(many, 8, 5))


class CountingReader(ShardReader):
    """Remembers which blocks were read."""

    def read(self, blocks: Array) -> Iterator[PolymerBlock]:
        self.__dict__.setdefault("seen", []).extend(blocks.tolist())
        return super().read(blocks)


@pytest.fixture(scope="module")
def reader(folder: tuple[Path, Manifest]) -> ShardReader:
    return ShardReader(folder[0], folder[1].shards, groups=GROUPS)


def by_polymer(batches: list[PolymerBatch]) -> dict[int, tuple[Any, ...]]:
    """Row -> how often, and what the model gets to see of the polymer."""
    seen: dict[int, tuple[Any, ...]] = {}
    for batch in batches:
        assert batch.is_masked is not None
        for number, row in enumerate(batch.sample_index.tolist()):
            atoms = slice(int(batch.ptr[number]), int(batch.ptr[number + 1]))
            look = (
                batch.is_masked[atoms].tolist(),
                batch.atom_features[atoms].tolist(),
                {name: x[number].tolist() for name, x in batch.descriptors.items()},
                {name: bool(x[number]) for name, x in batch.descriptor_valid.items()},
            )
            count = seen[row][0] if row in seen else 0
            assert not count or seen[row][1] == look
            seen[row] = count + 1, look
    return seen


def equal(left: list[PolymerBatch], right: list[PolymerBatch]) -> bool:
    """Whether every tensor of every micro-batch is the same."""
    pairs = zip(left, right, strict=True)
    return all(flat(a).keys() == flat(b).keys() and same(flat(a), flat(b)) for a, b in pairs)


def flat(batch: PolymerBatch) -> dict[str, Any]:
    values = dict(vars(batch))
    for name in ("descriptors", "descriptor_valid"):
        values |= {f"{name}.{key}": x for key, x in values.pop(name).items()}
    return values


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(
        torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name]
        for name in a
    )


def loaders(
    reader: ShardReader, world_size: int, steps: int, size: int, **options: Any
) -> list[MaskedAtomLoader]:
    return [
        MaskedAtomLoader(
            reader,
            global_batch_size=size,
            grad_accum_steps=steps,
            world_size=world_size,
            rank=rank,
            **{"seed": 1, "held_out_fraction": 0.2, "window_size": WINDOW} | options,
        )
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("window_size", [WINDOW, 65_536])
def test_same_polymers_and_masks_at_every_world_size(reader: ShardReader, window_size: int) -> None:
    of_split = [
        loaders(reader, world_size, steps, 24, window_size=window_size)
        for world_size, steps in ((1, 4), (2, 2), (4, 1))
    ]
    for step in (0, 1, 2, 3, 1000):
        seen = []
        for of_rank in of_split:
            batches = [loader.micro_batches(step) for loader in of_rank]
            assert {len(part) for part in batches} == {of_rank[0].grad_accum_steps}
            seen.append(by_polymer([batch for part in batches for batch in part]))
        assert seen[0] == seen[1] == seen[2]
        assert sum(count for count, _ in seen[0].values()) == 24


@pytest.mark.parametrize("size", [1, 7, 24])
def test_an_epoch_covers_the_training_polymers_once(
    reader: ShardReader, many: PolymerBlock, size: int
) -> None:
    loader = loaders(reader, 1, 1, size)[0]
    num_samples = len(loader.training_samples)
    steps = range(-(-2 * num_samples // size))
    rows = torch.cat([loader.micro_batches(step)[0].sample_index for step in steps]).tolist()
    if size == 1:  # the order of a step is that of sizes
        assert sorted(rows[:num_samples]) == many.row[loader.training_samples].tolist()
        assert sorted(rows[num_samples:]) == many.row[loader.training_samples].tolist()
    counts = np.unique(rows, return_counts=True)[1]
    assert counts.sum() == len(steps) * size
    assert set(counts) <= {2, 3}


def test_a_step_larger_than_the_data_set(reader: ShardReader, many: PolymerBlock) -> None:
    loader = loaders(reader, 1, 2, 200)[0]
    rows = torch.cat([batch.sample_index for batch in loader.micro_batches(3)])
    assert len(rows) == 200
    assert set(rows.tolist()) == set(many.row[loader.training_samples].tolist())


def test_a_late_step_needs_no_earlier_one(folder: tuple[Path, Manifest]) -> None:
    readers = [CountingReader(folder[0], folder[1].shards, groups=GROUPS) for _ in range(3)]
    went, resumed, late = (loaders(reader, 1, 2, 8)[0] for reader in readers)
    for step in range(31):
        undisturbed = went.micro_batches(step)
    assert equal(resumed.micro_batches(30), undisturbed)
    assert equal(resumed.micro_batches(31), went.micro_batches(31))
    late.micro_batches(10**6)
    # Two windows of at most 20 training samples and a block, of 8 polymers a block.
    assert len(readers[2].seen) <= 2 * 4
    assert len(readers[0].seen) > 20
    for step in (5, 30, 0):  # backwards too
        assert equal(went.micro_batches(step), resumed.micro_batches(step))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_steps_made_ahead_are_the_steps(reader: ShardReader, num_workers: int) -> None:
    plain, ahead = (loaders(reader, 1, 2, 16)[0] for _ in range(2))
    for first in (0, 90):
        steps = ahead.steps(range(first, first + 12), num_workers)
        for step, made in enumerate(steps, start=first):
            batches = [batch.to("cpu") for batch in made]
            assert equal(plain.micro_batches(step), batches), step
        assert step == first + 11


def test_memory_is_that_of_two_windows(block: PolymerBlock, tmp_path: Path) -> None:
    manifest = write_blocks(tmp_path, cut(copies(block, 9600), 160, 20))
    reader = ShardReader(tmp_path, manifest.shards, groups=GROUPS)
    tracemalloc.start()
    try:
        whole = load(tmp_path, GROUPS, with_bonds=False, with_conformer=False)
        blocks = list(reader.read(np.arange(60)))
        # As it is in a window and as it is read; before that there is little.
        twice = tracemalloc.get_traced_memory()[0]
        del whole, blocks
        loader = loaders(reader, 1, 1, 64, window_size=640)[0]
        before = tracemalloc.get_traced_memory()[0]
        loader.micro_batches(0)
        tracemalloc.reset_peak()
        for _ in loader.steps(range(-(-len(loader.training_samples) // 64))):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Twelve windows; batches and the arrays of one block in the making take the rest.
    assert peak - before < 1.3 * twice / 12 + 2**20


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [6, 24])
def test_validation_covers_the_held_out_once(
    reader: ShardReader, many: PolymerBlock, world_size: int, size: int
) -> None:
    of_rank = [loader.validation_batches() for loader in loaders(reader, world_size, 1, size)]
    assert len({len(batches) for batches in of_rank}) == 1
    seen = by_polymer([batch for batches in of_rank for batch in batches])
    one = loaders(reader, 1, 1, 24)[0]
    assert sorted(seen) == many.row[one.held_out_samples].tolist()
    assert {count for count, _ in seen.values()} == {1}
    assert seen == by_polymer(one.validation_batches())


def test_many_held_out_polymers_are_read_in_part(
    folder: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "_MOST_HELD_OUT", 5)
    reader = CountingReader(folder[0], folder[1].shards, groups=[])
    first, second = loaders(reader, 1, 1, 24)[0], loaders(reader, 2, 1, 24, seed=2)[0]
    assert 5 <= len(first.held_out_samples) < 5 + 8
    assert first.num_held_out > 13
    assert np.array_equal(first.held_out_samples, second.held_out_samples)
    assert not set(first.training_samples) & set(first.held_out_samples)
    assert len(first.training_samples) == 96 - first.num_held_out
    first.validation_batches()
    assert sorted(reader.seen) == sorted(set(reader.blocks_of(first.held_out_samples).tolist()))
    first.validation_batches()
    assert len(reader.seen) == len(set(reader.seen))  # read once


def test_validation_is_given_with_clean_descriptors_and_without(
    reader: ShardReader, many: PolymerBlock
) -> None:
    loader = loaders(reader, 1, 1, 24)[0]
    expected = many.descriptors["rdkit_2d"][loader.held_out_samples].astype(np.float32)
    clean = torch.cat([b.descriptors["rdkit_2d"] for b in loader.validation_batches()])
    assert sorted(clean.sum(1).tolist()) == pytest.approx(sorted(expected.sum(1).tolist()))
    for batch in loader.validation_batches(with_descriptors=False):
        assert not any(valid.any() for valid in batch.descriptor_valid.values())


def test_impossible_splits_are_refused(
    reader: ShardReader, many: PolymerBlock, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="global_batch_size=3"):
        loaders(reader, 2, 2, 3)
    with pytest.raises(MipsError, match="every polymer is held out"):
        loaders(reader, 1, 1, 1, held_out_fraction=1.0)
    few = loaders(reader, 1, 1, 1)[0]
    part = many.select([*few.training_samples[:4], few.held_out_samples[0]])
    manifest = write_blocks(tmp_path, [[part]])
    with pytest.raises(MipsError, match="too few for 2 ranks"):
        loaders(ShardReader(tmp_path, manifest.shards, groups=[]), 2, 1, 2)
    nothing = loaders(reader, 1, 1, 1, held_out_fraction=0.0)[0]
    assert nothing.validation_batches() == []
    with pytest.raises(MipsError, match="hold no polymer"):
        ShardReader(tmp_path, [], groups=[])
