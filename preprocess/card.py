"""The data card: what stands in a shard folder, on one page that needs nothing else to be read.

Actors count (`shard_statistics`), the driver adds up and writes ``card.html`` (`write_card`). No
script, no address to load from, and all text that comes from a user is escaped.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mips_dist.chem.conformer import STATUS_NAMES
from mips_dist.chem.features import ATOM_FEATURES
from mips_dist.chem.graph import BOND_TYPES
from mips_dist.data.block import NO_CONFORMER, Array, PolymerBlock
from mips_dist.data.files import write_atomically
from mips_dist.data.shards import Manifest
from preprocess.card_page import render

CARD_NAME = "card.html"
NUM_DRAWN = 24


def shard_statistics(blocks: Sequence[PolymerBlock]) -> dict[str, Any]:
    """Count what stands in the blocks of one shard.

    Returns
    -------
    Values for JSON. Counters have text keys: ``heavy_atoms`` and ``backbone_atoms`` (atoms of a
    polymer's repeat unit -> polymers), ``element_polymers`` and ``element_atoms`` (atomic number ->
    polymers, atoms), ``conformer_status`` (empty without conformers), ``link_bonds`` (type of the
    bond between units -> polymers), ``traits`` (words -> polymers). ``num_polymers`` counts all;
    ``sample`` holds the spellings that `choose_polymers` takes.
    """
    counters: dict[str, Counter[str]] = {
        name: Counter()
        for name in (
            *("heavy_atoms", "backbone_atoms", "element_polymers", "element_atoms"),
            *("conformer_status", "link_bonds", "traits"),
        )
    }
    for block in blocks:
        for name, counts in _block_counts(block).items():
            counters[name].update(counts)
    return {
        "num_polymers": sum(len(block) for block in blocks),
        **{name: dict(counter) for name, counter in counters.items()},
        "sample": choose_polymers(psmiles for block in blocks for psmiles in block.psmiles),
    }


def _block_counts(block: PolymerBlock) -> dict[str, dict[str, int]]:
    num_polymers = len(block)
    owner = np.repeat(np.arange(num_polymers), block.num_atoms)  # polymer of each atom
    column = {name: block.atom_features[:, k] for k, name in enumerate(ATOM_FEATURES)}
    element = column["atomic_number"].astype(np.int64)
    # One number for each pair of polymer and element that occurs.
    pairs = np.unique(owner * 256 + element)

    def having(is_so: Array) -> int:
        return len(np.unique(owner[is_so]))

    traits = {
        "with an aromatic ring": having(column["is_aromatic"] > 0),
        "with any ring": having(column["ring_size"] > 0),
        "with a charged atom": having(column["charge"] != 0),
        "with a radical": having(column["radical_electrons"] > 0),
        "with an isotope": having(column["isotope"] > 0),
    }
    bonds = block.bonds()
    counts = {
        "heavy_atoms": _counted(np.bincount(owner[element > 1], minlength=num_polymers)),
        "backbone_atoms": _counted(np.bincount(owner[block.is_backbone], minlength=num_polymers)),
        "element_polymers": _counted(pairs % 256),
        "element_atoms": _counted(element),
        # The one bond of each polymer that leads to the next unit.
        "link_bonds": _counted(bonds["bond_type"][bonds["cell_shift"] != 0], BOND_TYPES),
        "traits": traits,
    }
    if block.conformer_status is not None:
        status = block.conformer_status.astype(np.int64)
        status[status == NO_CONFORMER] = STATUS_NAMES.index("failed")
        counts["conformer_status"] = _counted(status, STATUS_NAMES)
    return counts


def _counted(values: Array, names: Sequence[str] | None = None) -> dict[str, int]:
    found, counts = np.unique(values, return_counts=True)
    texts = [names[value] if names else str(value) for value in found.tolist()]
    return dict(zip(texts, counts.tolist(), strict=True))


def choose_polymers(polymers: Iterable[str]) -> list[str]:
    """Choose at most `NUM_DRAWN` distinct polymers: those with the smallest hashes.

    A fair sample that does not depend on the order, and that can be chosen in parts: what is chosen
    of the chosen of all shards is what is chosen of all polymers. Memory is flat.
    """
    keyed = ((hashlib.blake2b(text.encode()).digest(), text) for text in polymers)
    chosen: dict[bytes, str] = {}
    for key, text in keyed:
        if len(chosen) < NUM_DRAWN or key < max(chosen):
            chosen[key] = text
            if len(chosen) > NUM_DRAWN:
                del chosen[max(chosen)]
    return [chosen[key] for key in sorted(chosen)]


def write_card(
    folder: Path,
    manifest: Manifest,
    statistics: Iterable[dict[str, Any]],
    polymers: Iterable[str],
    command: str,
) -> None:
    """Write ``card.html`` beside the shards; equal arguments give equal bytes.

    Parameters
    ----------
    folder
        The shard folder.
    manifest
        Its manifest.
    statistics
        What `shard_statistics` returned for every shard, in any order.
    polymers
        Canonical P-SMILES to choose the drawn ones from, such as the samples of all statistics.
    command
        The command that made the folder, as one types it.

    Raises
    ------
    ValueError
        The statistics are not those of the manifest's shards.
    """
    total: dict[str, Counter[str]] = {}
    num_polymers = 0
    for part in statistics:
        num_polymers += part["num_polymers"]
        for name, counts in part.items():
            if isinstance(counts, dict):
                total.setdefault(name, Counter()).update(counts)
    if num_polymers != manifest.num_samples:
        raise ValueError(f"{num_polymers} polymers counted, {manifest.num_samples} in the manifest")
    drawn = sorted(choose_polymers(polymers), key=lambda text: (len(text), text))
    write_atomically(folder / CARD_NAME, render(manifest, total, drawn, command).encode())
