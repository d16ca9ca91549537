"""A small shard folder for tests of training: real graphs, invented descriptors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mips_dist.chem.graph import FEATURE_SCHEMA
from mips_dist.chem.psmiles import canonicalize
from mips_dist.chem.sample import Sample, featurize
from mips_dist.data.block import PolymerBlock, stack
from mips_dist.data.schema import known_schema
from mips_dist.data.shards import MANIFEST_NAME, SCHEMA_VERSION, Manifest, encode_shard

WIDTHS = {"rdkit_2d": ("real", 200), "atom_pair_3d": ("bits", 512)}
ARMS = ("C", "O", "N", "C(=O)", "CC", "c1ccc(cc1)", "CO", "C(C)", "C(F)", "S", "C(Cl)", "NC(=O)")


def polymers(count: int) -> list[str]:
    """Give distinct canonical polymers, short enough that a test runs in seconds."""
    texts = (f"*{a}{b}{c}{d}*" for a in ARMS for b in ARMS for c in ARMS for d in ("C", "N", "O"))
    found: dict[str, None] = {}
    for text in texts:
        found[canonicalize(text)] = None
        if len(found) == count:
            return list(found)
    raise AssertionError(f"only {len(found)} polymers")


def write_shards(
    folder: Path, count: int = 120, content: str = "topology", max_hops: int = 2
) -> Path:
    """Write one shard with its manifest; equal arguments give equal bytes."""
    samples = featurize(polymers(count), "topology", max_hops)
    groups = []
    if content == "full":
        rng = np.random.default_rng(0)
        versions = known_schema()["descriptors"]
        groups = [
            {"name": name, "width": width, "version": versions[name], "kind": kind}
            for name, (kind, width) in WIDTHS.items()
        ]
        samples = [
            Sample(
                sample.graph,
                {
                    "rdkit_2d": rng.random(200, dtype=np.float32),
                    "atom_pair_3d": rng.integers(0, 2, 512, dtype=np.uint8),
                },
            )
            for sample in samples
        ]
    write_blocks(
        folder,
        [[stack(samples, range(len(samples)))]],
        content=content,
        max_hops=max_hops,
        descriptors=groups,
    )
    return folder


def write_blocks(
    folder: Path,
    contents: list[list[PolymerBlock]],
    *,
    content: str = "full",
    max_hops: int = 2,
    descriptors: Sequence[dict[str, Any]] = ({"name": "rdkit_2d"}, {"name": "atom_pair_3d"}),
) -> Manifest:
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
        feature_schema=FEATURE_SCHEMA,
        content=content,
        max_hops=max_hops,
        seed=0,
        descriptors=list(descriptors),
        config={},
        input={"name": "invented.csv", "sha256": "0" * 64},
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
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest
