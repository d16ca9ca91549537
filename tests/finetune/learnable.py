"""A property that can be learned from the graph alone, and the smallest network that learns it."""

import csv
from pathlib import Path

import numpy as np

from mips_dist.chem.sample import featurize
from mips_dist.data.block import PolymerBlock, stack
from mips_dist.data.properties import LabelledSet, Property
from mips_dist.model.mips import MipsConfig
from mips_dist.train.fold_config import FoldConfig, PropertyRows
from tests.shard_folder import polymers


def tiny_model() -> MipsConfig:
    return MipsConfig(
        hidden_dim=16, num_layers=1, num_heads=2, ffn_dim=32, dropout=0.0, descriptors=[]
    )


def fold_config(**changes) -> FoldConfig:
    values = {"model": tiny_model(), "num_epochs": 3, "batch_size": 16, "lr": 1e-2} | changes
    return FoldConfig(**values)


def label(psmiles: str) -> float:
    """Share of oxygen among the letters of the canonical spelling, in percent."""
    letters = [c for c in psmiles.upper() if c.isalpha()]
    return 100.0 * letters.count("O") / len(letters)


def labelled_rows(count: int, repeats: int = 0) -> tuple[PolymerBlock, PropertyRows]:
    """Give polymers and one row for each; the first `repeats` of them have a second row."""
    names = polymers(count)
    block = stack(featurize(names, "topology", 2), range(count))
    sample = np.concatenate([np.arange(count), np.arange(repeats)]).astype(np.int64)
    value = np.array([label(names[i]) for i in sample])
    return block, PropertyRows("oxygen", "%", sample, np.arange(len(sample)), value)


def labelled_set(name: str, canonical: list[str]) -> LabelledSet:
    value = np.array([label(c) for c in canonical])
    return LabelledSet(Property(name=name), np.arange(len(canonical)), list(canonical), value)


def write_csv(path: Path, header: list[str], rows: list[list[object]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path
