"""Shard folders of the small polymers of conftest.py, in many blocks and shards."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from mips_dist.data.block import PolymerBlock
from mips_dist.data.shards import MANIFEST_NAME, SCHEMA_VERSION, Manifest, encode_shard


def copies(block: PolymerBlock, count: int) -> PolymerBlock:
    """Give each of many copies a name and a row of its own."""
    chosen = block.select(np.arange(count) % len(block))
    names = [f"{psmiles} {number}" for number, psmiles in enumerate(chosen.psmiles)]
    return replace(chosen, psmiles=names, row=np.arange(count) * 3)


def write_shards(folder: Path, contents: list[list[PolymerBlock]]) -> Manifest:
    """Write shards of blocks, their indices and the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, blocks in enumerate(contents):
        data, index, record = encode_shard(number, blocks)
        (folder / record.name).write_bytes(data)
        (folder / record.index_name).write_bytes(index)
        records.append(record)
    num_samples = sum(record.num_samples for record in records)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        feature_schema=1,
        content="full",
        max_hops=2,
        seed=0,
        descriptors=[{"name": "rdkit_2d"}, {"name": "atom_pair_3d"}],
        config={},
        input={},
        software={},
        num_rows=num_samples,
        num_samples=num_samples,
        num_merged=0,
        num_rejected=0,
        rejected_by_reason={},
        stereo_dropped=0,
        conformer_status={},
        tables={},
        shards=records,
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return manifest


def cut(block: PolymerBlock, block_size: int, blocks_per_shard: int) -> list[list[PolymerBlock]]:
    """Cut a data set into blocks and shards."""
    starts = range(0, len(block), block_size)
    blocks = [block.select(range(a, min(a + block_size, len(block)))) for a in starts]
    return [blocks[a : a + blocks_per_shard] for a in range(0, len(blocks), blocks_per_shard)]
