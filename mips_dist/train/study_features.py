"""The features of a study's polymers: shards that are there, or made in the run folder."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

from mips_dist.chem.sample import Sample, content_for
from mips_dist.chem.stars import StarStrategy, build_star_graphs
from mips_dist.data.block import PolymerBlock, stack
from mips_dist.data.files import write_atomically
from mips_dist.data.properties import PSMILES_COLUMN, LabelledSet
from mips_dist.data.remote import shown
from mips_dist.data.schema import check_shards, model_schema
from mips_dist.data.shards import MANIFEST_NAME, load, read_manifest
from mips_dist.errors import MipsError
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.results import GP_TREES_XTB


def read_features(
    config: FinetuneConfig, sets: list[LabelledSet]
) -> tuple[PolymerBlock, dict[str, str]]:
    """Return the polymers of some sets with their features, and why any of them has none."""
    needed = sorted({canonical for labelled in sets for canonical in labelled.canonical})
    own = Path(config.run_dir) / "shards"
    if config.shards is None and not (own / MANIFEST_NAME).exists():
        _preprocess(config, needed, own)
    shards = config.shards or str(own)
    manifest = read_manifest(shards)
    check_shards(shown(shards), manifest, model_schema(config.model))
    block = load(shards, with_bonds=config.model.bond_path_bias, with_conformer=False)
    lacking = set(_groups(config)) - set(block.descriptors)
    if lacking:
        raise MipsError(
            f"{shown(shards)} lacks {', '.join(sorted(lacking))}; give another run_dir, or make "
            f"shards with content={content_for(_groups(config))}"
        )
    missing = set(needed) - set(block.psmiles)
    reasons = _shard_rejects(config, own) if missing else {}
    if missing - set(reasons):
        raise MipsError(
            f"{shown(shards)} lacks {len(missing - set(reasons))} of the {len(needed)} polymers; "
            "give another run_dir or other shards"
        )
    if config.star_strategy != "link":
        block = _with_star_graphs(block, config)
    return block, reasons


def _groups(config: FinetuneConfig) -> list[str]:
    """Return the descriptor groups that the models of a study read."""
    return config.model.descriptors + (["xtb"] if GP_TREES_XTB in config.baselines else [])


def _with_star_graphs(block: PolymerBlock, config: FinetuneConfig) -> PolymerBlock:
    """Replace the exact graphs by those of another star strategy; descriptors stay."""
    graphs = build_star_graphs(
        block.psmiles, cast(StarStrategy, config.star_strategy), config.model.max_hops
    )
    drawn = stack([Sample(graph) for graph in graphs], block.row.tolist())
    return replace(drawn, descriptors=block.descriptors, descriptor_valid=block.descriptor_valid)


def _preprocess(config: FinetuneConfig, canonicals: list[str], shards: Path) -> None:
    """Run the preprocessing application on the distinct polymers, in a process of its own."""
    structures = Path(config.run_dir) / "structures.csv"
    write_atomically(structures, "\n".join([PSMILES_COLUMN, *canonicals]) + "\n")
    overrides = {
        "input": str(structures.resolve()),
        "output": str(shards.resolve()),
        "content": content_for(_groups(config)),
        "max_hops": str(config.model.max_hops),
        "num_conformers": str(config.model.num_conformers),
        "conformer_backend": config.model.conformer_backend,
    }
    if config.num_workers is not None:
        overrides["num_actors"] = str(config.num_workers)
    # Quoted, so that Hydra takes spaces, commas and equal signs of a path as they are.
    quoted = {
        key: value.replace("\\", "\\\\").replace("'", "\\'") for key, value in overrides.items()
    }
    command = [sys.executable, "-m", "preprocess", *(f"{k}='{v}'" for k, v in quoted.items())]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise MipsError(f"preprocessing of {structures} failed (exit code {code}); see above")


def _shard_rejects(config: FinetuneConfig, shards: Path) -> dict[str, str]:
    """Return canonical -> reason of the polymers that preprocessing of structures.csv rejected."""
    structures = Path(config.run_dir) / "structures.csv"
    if config.shards is not None or not structures.exists():
        return {}
    canonicals = structures.read_text(encoding="utf-8").split("\n")[1:]
    with open(shards / "rejects.csv", encoding="utf-8", newline="") as file:
        return {canonicals[int(r["row"])]: r["reason"] for r in csv.DictReader(file)}
