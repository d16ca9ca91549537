"""What the processes that make batches take together, with decoded blocks shared and without.

    python scripts/bench_loader.py SHARDS [--workers 4] [--ranks 1 8 64] [--polymers 262144]

They make the micro-batches of one rank of so many, in steps of 1,024 polymers a rank, until the
ranks have passed that many polymers. CPU time of the workers, both ways in turn, in one run.
"""

import argparse
import resource
import sys

from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.data.reader import ShardReader
from mips_dist.data.shards import read_manifest

BATCH = 1024  # polymers of a rank in a step


def cpu_seconds(shards: str, ranks: int, workers: int, num_steps: int, is_shared: bool) -> float:
    """Return the CPU time of the workers of the first rank."""
    manifest = read_manifest(shards)
    groups = [group["name"] for group in manifest.descriptors]
    reader = ShardReader(shards, manifest.shards, groups=groups)
    loader = MaskedAtomLoader(reader, seed=0, global_batch_size=ranks * BATCH, world_size=ranks)
    if is_shared:
        loader.share_blocks(4 * 10**9)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in loader.steps(range(num_steps), workers):
        pass
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", help="folder made by python -m preprocess")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--polymers", type=int, default=262_144, help="that all ranks pass")
    given = parser.parse_args()
    print("ranks  polymers of a rank  CPU-s shared  CPU-s apart  apart/shared  a CPU-second")
    for ranks in given.ranks:
        num_steps = max(1, given.polymers // (ranks * BATCH))
        shared, apart = (
            cpu_seconds(given.shards, ranks, given.workers, num_steps, is_shared)
            for is_shared in (True, False)
        )
        made = num_steps * BATCH
        print(
            f"{ranks:5}  {made:18,}  {shared:12.1f}  {apart:11.1f}  {apart / shared:12.2f}  "
            f"{made / shared:10,.0f} of the rank's, {made * ranks / shared:,.0f} of all",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
