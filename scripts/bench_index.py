"""What a rank holds of a corpus and takes to begin, per polymer: index, loader, first batch.

    python scripts/bench_index.py SHARDS [--polymers 10000000]

The index of a folder of shards is read again and again, until it stands for so many polymers; so
the size of the corpus is not bounded by the disk. One thread, CPU time. Also: how many polymers of
a window are decoded in a second, and made into batches; the order of a billion polymers; and a
step of merging as a billion rows have it.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.data.order import TrainingOrder
from mips_dist.data.reader import ShardReader
from mips_dist.data.shards import BLOCK_SIZE, read_manifest
from preprocess.merge import _RECORD, PART_SIZE, _Parts

BILLION = 10**9
BATCH, STEPS = 1024, 4


def held(key: str = "VmRSS:") -> int:
    """Return the bytes that this process holds, or held at most (VmHWM:)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(1024 * int(x.split()[1]) for x in status.splitlines() if x.startswith(key))


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", help="folder made by python -m preprocess")
    parser.add_argument("--polymers", type=int, default=10_000_000)
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.shards)
    num_blocks = sum(len(shard.blocks) for shard in manifest.shards)
    num_bytes = (Path(arguments.shards) / "manifest.json").stat().st_size
    print(f"{manifest.num_samples:,} polymers; manifest {num_bytes / num_blocks:.0f} bytes a block")

    reader = ShardReader(arguments.shards, manifest.shards, groups=[])
    spent = seconds(lambda: list(reader.read(np.arange(num_blocks))))
    print(f"decoding: {manifest.num_samples / spent:,.0f} polymers a CPU-second")
    loader = MaskedAtomLoader(reader, seed=0, global_batch_size=BATCH)
    loader.micro_batches(0)
    spent = seconds(lambda: [loader.micro_batches(step) for step in range(1, 1 + STEPS)])
    print(f"batches of {BATCH}: {STEPS * BATCH / spent:,.0f} polymers a CPU-second")
    del reader, loader

    times = max(1, arguments.polymers // manifest.num_samples)
    count, before = times * manifest.num_samples, held()
    start = time.process_time()
    reader = ShardReader(arguments.shards, list(manifest.shards) * times, groups=[])
    read, after_reader = time.process_time() - start, held()
    loader = MaskedAtomLoader(reader, seed=0, global_batch_size=BATCH)
    begun = time.process_time() - start
    print(
        f"{count:,} polymers: {(after_reader - before) / count:.1f} bytes each in the reader, "
        f"{(held() - before) / count:.1f} with the loader, {(held('VmHWM:') - before) / count:.1f} "
        f"at most; {read / count * 1e6:.2f} and {(begun - read) / count * 1e6:.2f} s a million"
    )
    print(f"first batch: {seconds(lambda: loader.micro_batches(0)):.2f} s more")

    sizes = np.full(BILLION // BLOCK_SIZE, BLOCK_SIZE)
    spent = seconds(lambda: TrainingOrder(0, sizes).step(0, BATCH))
    print(f"order of {BILLION:,} polymers, first step: {spent:.2f} s")

    num_parts = BILLION // PART_SIZE
    records = np.zeros(PART_SIZE, _RECORD)
    part = np.random.default_rng(0).integers(0, num_parts, PART_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        parts = _Parts(Path(folder) / "merge", _RECORD)
        before = held("VmHWM:")
        spent = seconds(lambda: [parts.add(part, records) for _ in range(3)]) / 3
        print(
            f"merging {BILLION:,} rows: {num_parts:,} files; {spent * num_parts / 60:.0f} min of "
            f"spilling, {(held('VmHWM:') - before) / 1e6:.0f} MB for it"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
