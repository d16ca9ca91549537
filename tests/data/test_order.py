"""Law L8: the order is a function of seed and step, whatever the number of ranks."""

from itertools import pairwise

import numpy as np
import pytest

from mips_dist.data.order import (
    TrainingOrder,
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


def stream(order: TrainingOrder, num_steps: int, batch_size: int) -> np.ndarray:
    """The samples of the first steps."""
    steps = [order.step(step, batch_size) for step in range(num_steps)]
    assert {sum(len(piece.samples) for piece in pieces) for pieces in steps} == {batch_size}
    return np.concatenate([piece.samples for pieces in steps for piece in pieces])


@pytest.mark.parametrize("window_size", [1, 7, 30, 10**6])
@pytest.mark.parametrize(
    ("block_sizes", "batch_size"),
    [([10] * 10, 7), ([3, 0, 7], 10), ([5], 12), ([1], 3), ([16, 1, 1, 40, 0, 0, 9], 37)],
)
def test_every_sample_once_an_epoch(
    block_sizes: list[int], batch_size: int, window_size: int
) -> None:
    size = sum(block_sizes)
    order = TrainingOrder(0, np.array(block_sizes), window_size)
    found = stream(order, -(-3 * size // batch_size), batch_size)
    for epoch in range(3):
        assert sorted(found[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_windows_hold_whole_blocks_and_few_samples() -> None:
    sizes = np.random.default_rng(0).integers(0, 50, 400)
    block = np.repeat(np.arange(400), sizes)
    order = TrainingOrder(3, sizes, 700)
    total, windows, announced = int(sizes.sum()), [], ()
    for step in range(2 * total):
        (piece,) = order.step(step, 1)
        assert np.all(np.diff(piece.blocks) > 0)
        assert block[piece.samples[0]] in piece.blocks
        blocks = tuple(piece.blocks.tolist())
        if not windows or windows[-1] != blocks:
            assert order.after(step)[1] == 0.0
            if windows:  # as it was announced
                assert blocks == announced
            windows.append(blocks)
        announced = tuple(order.after(step)[0].tolist())
    num_windows = -(-total // 700)
    assert len(windows) == 2 * num_windows
    counts = [sizes[list(blocks)].sum() for blocks in windows]
    assert max(counts) <= 700 + 50
    assert min(counts) >= total / num_windows - 50
    for epoch in (windows[:num_windows], windows[num_windows:]):
        assert sorted(b for blocks in epoch for b in blocks) == np.flatnonzero(sizes).tolist()
    # Of other blocks in every epoch.
    assert len(set(windows)) == len(windows)


def test_epochs_and_seeds_differ_and_a_step_needs_no_history() -> None:
    sizes = np.full(20, 50)
    orders = [stream(TrainingOrder(seed, sizes, 300), 2, 1000) for seed in range(2)]
    for a, b in pairwise([part for order in orders for part in np.split(order, 2)]):
        assert not np.array_equal(a, b)
    went, jumped = TrainingOrder(0, sizes, 300), TrainingOrder(0, sizes, 300)
    for step in range(50):
        there = went.step(step, 64)
    here = jumped.step(49, 64)
    assert [p.samples.tolist() for p in here] == [p.samples.tolist() for p in there]
    assert sum(len(piece.samples) for piece in jumped.step(10**9, 64)) == 64


def test_a_small_data_set_is_shuffled_whole() -> None:
    order = stream(TrainingOrder(1, np.full(20, 1000)), 20, 1000)
    assert np.array_equal(order, np.argsort(hash_keys(1, 0, np.arange(20_000))))
    # Where a sample stands says nothing of its block.
    assert abs(np.corrcoef(np.arange(20_000), order)[0, 1]) < 0.02
    same_block = np.mean(order[1:] // 1000 == order[:-1] // 1000)
    assert abs(same_block - 1 / 20) < 3 * (0.05 * 0.95 / 20_000) ** 0.5


def test_within_a_window_blocks_are_mixed_evenly() -> None:
    order = stream(TrainingOrder(1, np.full(80, 256), 2560), 80, 256)
    assert len(order) == 20480
    for window in np.split(order // 256, 8):
        assert len(set(window)) == 10
        same_block = np.mean(window[1:] == window[:-1])
        assert abs(same_block - 1 / 10) < 4 * (0.1 * 0.9 / 2560) ** 0.5


@pytest.mark.parametrize("batch_size", [4, 32, 37])
def test_micro_batches_are_the_same_at_every_world_size(batch_size: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 90, 500)
    indices = hash_keys(np.arange(batch_size)).astype(np.int64) % 500

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
    indices = np.random.default_rng(1).permutation(10_000)[:256]
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
