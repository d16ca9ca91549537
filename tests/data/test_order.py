"""Law L8: the order is a function of seed and step, whatever the number of ranks."""

from itertools import pairwise

import numpy as np
import pytest

from mips_dist.data.order import (
    batch_indices,
    epoch_order,
    hash_keys,
    held_out,
    spelling_keys,
    split,
    uniform,
)


def test_hash_is_pinned() -> None:
    # Other numbers would give every existing run another order and other masks.
    assert hash_keys(0, 1, 2).tolist() == [6768782832058643234]
    assert hash_keys(np.arange(3), 5)[2] == hash_keys(2, 5)[0]
    assert hash_keys(-1)[0] != hash_keys(1)[0]


def test_uniform_numbers_are_uniform_and_independent() -> None:
    grid = uniform(3, np.arange(300)[:, None], np.arange(300))
    assert abs(grid.mean() - 0.5) < 0.005
    histogram = np.histogram(grid, bins=20, range=(0, 1))[0]
    assert np.all(abs(histogram - 4500) < 5 * 4500**0.5)
    for a, b in ((grid[:-1], grid[1:]), (grid[:, :-1], grid[:, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.015


@pytest.mark.parametrize(("num_samples", "batch_size"), [(100, 7), (10, 10), (5, 12), (1, 3)])
def test_every_sample_once_an_epoch(num_samples: int, batch_size: int) -> None:
    steps = -(-3 * num_samples // batch_size)
    batches = [batch_indices(0, step, num_samples, batch_size) for step in range(steps)]
    assert {len(batch) for batch in batches} == {batch_size}
    stream = np.concatenate(batches)
    for epoch in range(3):
        part = stream[epoch * num_samples : (epoch + 1) * num_samples]
        assert sorted(part) == list(range(num_samples))


def test_epochs_and_seeds_differ_and_a_step_needs_no_history() -> None:
    orders = [epoch_order(seed, epoch, 1000) for seed in range(2) for epoch in range(2)]
    for a, b in pairwise(orders):
        assert not np.array_equal(a, b)
    far = batch_indices(0, 10**9, 1000, 64)
    assert np.array_equal(far, batch_indices(0, 10**9, 1000, 64))


def test_shuffle_is_global() -> None:
    order = epoch_order(1, 0, 20_000)
    # Goal G9: where a sample stands says nothing of its shard.
    assert abs(np.corrcoef(np.arange(20_000), order)[0, 1]) < 0.02
    same_shard = np.mean(order[1:] // 1000 == order[:-1] // 1000)
    assert abs(same_shard - 1 / 20) < 3 * (0.05 * 0.95 / 20_000) ** 0.5


@pytest.mark.parametrize("batch_size", [4, 32, 37])
def test_micro_batches_are_the_same_at_every_world_size(batch_size: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 90, 500)
    indices = batch_indices(0, 3, 500, batch_size)

    def parts(world_size: int, steps: int) -> list[list[int]]:
        return sorted(
            part.tolist()
            for rank in range(world_size)
            for part in split(indices, sizes[indices], world_size, steps, rank)
        )

    assert parts(1, 4) == parts(2, 2) == parts(4, 1)
    assert sorted(i for part in parts(2, 2) for i in part) == sorted(indices.tolist())


def test_work_is_dealt_evenly() -> None:
    sizes = np.random.default_rng(0).integers(1, 90, 10_000)
    indices = batch_indices(0, 0, 10_000, 256)
    parts = [split(indices, sizes[indices], 4, 1, rank)[0] for rank in range(4)]
    work = [int(sizes[part].sum()) for part in parts]
    assert {len(part) for part in parts} == {64}
    assert max(work) - min(work) < 0.03 * max(work)


def test_held_out_depends_on_the_spelling_alone() -> None:
    names = [f"*{'C' * n}O*" for n in range(4000)]
    keys = spelling_keys(names)
    chosen = held_out(keys, 0.05)
    assert abs(chosen.mean() - 0.05) < 0.015
    assert np.array_equal(held_out(spelling_keys(names[::-1]), 0.05)[::-1], chosen)
    assert not held_out(keys, 0.0).any()
    assert np.all(chosen <= held_out(keys, 0.1))  # a larger fraction keeps those of a smaller one
