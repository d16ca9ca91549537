"""Processes share decoded blocks, each decoded once, whatever happens to one of them."""

import multiprocessing
import os
import signal
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from mips_dist.data import reader as reader_module
from mips_dist.data.batch import PolymerBatch
from mips_dist.data.block import PolymerBlock, concatenate
from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.data.reader import ShardReader
from mips_dist.data.shards import read_manifest
from mips_dist.data.shared_blocks import SharedBlocks
from mips_dist.errors import MipsError
from tests.data.shard_folder import copies, cut
from tests.shard_folder import write_blocks

GROUPS = ["rdkit_2d", "atom_pair_3d"]
NUM_BLOCKS = 24
SHUFFLED = np.random.default_rng(1).permutation(8 * NUM_BLOCKS)
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def folder(block: PolymerBlock, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 blocks of 8 polymers."""
    path = tmp_path_factory.mktemp("shared") / "shards"
    write_blocks(path, cut(copies(block, 192), 8, 5))
    return path


@pytest.fixture(scope="module")
def blocks(folder: Path) -> list[PolymerBlock]:
    return list(opened(folder).read(np.arange(NUM_BLOCKS)))


def opened(folder: Path) -> ShardReader:
    shards = read_manifest(folder).shards
    return ShardReader(folder, shards, groups=GROUPS, with_bonds=True)


def ring_for(blocks: list[PolymerBlock], num_kept: float) -> SharedBlocks:
    size = max(block.num_bytes for block in blocks) + 4096
    return SharedBlocks(NUM_BLOCKS, int(num_kept * size))


def test_a_block_comes_back_as_it_was(blocks: list[PolymerBlock], assert_equal) -> None:
    shared = ring_for(blocks, NUM_BLOCKS)
    for number, block in enumerate(blocks):
        assert shared.get(number) is None
        shared.put(number, block)
        found, start = shared.get(number)
        assert shared.holds(start)
        assert_equal(found, block)


def test_the_last_blocks_are_kept(blocks: list[PolymerBlock], assert_equal) -> None:
    shared = ring_for(blocks, 6)
    for number, block in enumerate(blocks):
        shared.put(number, block)
    kept = [number for number in range(NUM_BLOCKS) if shared.get(number) is not None]
    assert len(kept) >= 5
    assert kept == list(range(NUM_BLOCKS - len(kept), NUM_BLOCKS))
    for number in kept:
        assert_equal(shared.get(number)[0], blocks[number])
    too_small = ring_for(blocks, 0.1)
    too_small.put(0, blocks[0])
    assert too_small.get(0) is None
    assert too_small.take(0)


def test_one_process_at_a_time_makes_a_block(blocks: list[PolymerBlock]) -> None:
    shared = ring_for(blocks, NUM_BLOCKS)
    assert shared.take(3)
    assert not shared.take(3)
    shared.leave(3)
    assert shared.take(3)
    shared.put(3, blocks[3])
    assert not shared.take(3)


def test_readers_that_are_overtaken_never_return_a_torn_block(
    blocks: list[PolymerBlock], assert_equal
) -> None:
    """Two writers go round a small ring all the time while others read from it."""
    shared = ring_for(blocks, 3)

    def write(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(3000):
            number = int(rng.integers(NUM_BLOCKS))
            shared.put(number, blocks[number])

    def read(seed: int) -> None:
        rng, num_found = np.random.default_rng(seed), 0
        for _ in range(20_000):
            number = int(rng.integers(NUM_BLOCKS))
            found = shared.get(number)
            if found is None:
                continue
            chosen = rng.integers(8, size=5)
            part = found[0].select(chosen)
            if shared.holds(found[1]):
                num_found += 1
                if num_found % 10 == 0:
                    assert_equal(part, blocks[number].select(chosen))
        assert num_found > 100

    processes = [FORK.Process(target=write, args=(i,)) for i in range(2)]
    processes += [FORK.Process(target=read, args=(i,)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


def test_processes_decode_each_block_once(
    folder: Path, blocks: list[PolymerBlock], assert_equal, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = FORK.Value("i", 0)
    decode = reader_module.decode_record

    def counted(*args: object) -> PolymerBlock:
        with decoded.get_lock():
            decoded.value += 1
        return decode(*args)

    monkeypatch.setattr(reader_module, "decode_record", counted)
    reader = opened(folder)
    reader.share(sum(block.num_bytes + 4096 for block in blocks))

    expected = concatenate(blocks).select(SHUFFLED)

    def read() -> None:
        assert_equal(reader.pick(SHUFFLED), expected)

    processes = [FORK.Process(target=read) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert decoded.value == NUM_BLOCKS


def test_the_block_of_a_killed_process_is_made_by_another(
    folder: Path, blocks: list[PolymerBlock], assert_equal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_PATIENCE", 0.2)
    reader = opened(folder)
    reader.share(sum(block.num_bytes + 4096 for block in blocks))

    def die() -> None:
        assert reader._shared.take(2)
        os.kill(os.getpid(), signal.SIGKILL)

    killed = FORK.Process(target=die)
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert_equal(reader.pick(SHUFFLED), concatenate(blocks).select(SHUFFLED))


def test_a_damaged_block_is_one_line_in_every_process(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    record = read_manifest(copy).shards[0]
    start, size = next(iter(record.blocks[0].members.values()))
    data = bytearray((copy / record.name).read_bytes())
    data[start : start + size] = bytes(size)
    (copy / record.name).write_bytes(data)
    reader = opened(copy)
    reader.share(10**6)
    for _ in range(2):  # nobody is left waiting for it
        with pytest.raises(MipsError, match="cannot be decoded") as caught:
            reader.pick(np.array([3, 11]))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_kept", [0.5, 5, NUM_BLOCKS])
def test_batches_of_sharing_processes_are_those_of_one(
    folder: Path, blocks: list[PolymerBlock], num_kept: float
) -> None:
    """Also where the ring holds less than a window, or not even a block."""

    def batches(num_workers: int) -> list[list[PolymerBatch]]:
        loader = MaskedAtomLoader(
            opened(folder), seed=5, global_batch_size=10, grad_accum_steps=2, window_size=48
        )
        if num_workers:
            loader.share_blocks(int(num_kept * (max(b.num_bytes for b in blocks) + 4096)))
        steps = loader.steps(range(40), num_workers)
        return [[batch.to(torch.device("cpu")) for batch in step] for step in steps]

    for alone, together in zip(batches(0), batches(3), strict=True):
        assert len(alone) == len(together) == 2
        for one, other in zip(alone, together, strict=True):
            for name in (f.name for f in fields(PolymerBatch)):
                assert_same(getattr(one, name), getattr(other, name))


def assert_same(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    else:
        assert one == other
