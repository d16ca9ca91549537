"""A small shard folder for tests of training: real graphs, invented descriptors."""

from pathlib import Path

import numpy as np

from mips_dist.chem.graph import FEATURE_SCHEMA
from mips_dist.chem.psmiles import canonicalize
from mips_dist.chem.sample import Sample, featurize
from mips_dist.data.block import stack
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
    data, index, record = encode_shard(0, [stack(samples, range(len(samples)))])
    folder.mkdir(parents=True)
    (folder / record.name).write_bytes(data)
    (folder / record.index_name).write_bytes(index)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        feature_schema=FEATURE_SCHEMA,
        content=content,
        max_hops=max_hops,
        seed=0,
        descriptors=groups,
        config={},
        input={"name": "invented.csv", "sha256": "0" * 64},
        software={},
        num_rows=count,
        num_samples=count,
        num_merged=0,
        num_rejected=0,
        rejected_by_reason={},
        stereo_dropped=0,
        conformer_status={},
        tables={},
        shards=[record],
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return folder
