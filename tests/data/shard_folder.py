"""The small polymers of conftest.py many times over, in many blocks and shards."""

from dataclasses import replace

import numpy as np

from mips_dist.data.block import PolymerBlock


def copies(block: PolymerBlock, count: int) -> PolymerBlock:
    """Give each of many copies a name and a row of its own."""
    chosen = block.select(np.arange(count) % len(block))
    names = [f"{psmiles} {number}" for number, psmiles in enumerate(chosen.psmiles)]
    return replace(chosen, psmiles=names, row=np.arange(count) * 3)


def cut(block: PolymerBlock, block_size: int, blocks_per_shard: int) -> list[list[PolymerBlock]]:
    """Cut a data set into blocks and shards."""
    starts = range(0, len(block), block_size)
    blocks = [block.select(range(a, min(a + block_size, len(block)))) for a in starts]
    return [blocks[a : a + blocks_per_shard] for a in range(0, len(blocks), blocks_per_shard)]
