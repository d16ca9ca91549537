"""Everything that a shard holds of one polymer: graph, conformer, descriptors."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from rdkit import Chem

from mips_dist.chem.conformer import Conformer, embed
from mips_dist.chem.descriptors import atom_pair_3d, rdkit_2d
from mips_dist.chem.graph import PolymerGraph, build_graphs
from mips_dist.chem.psmiles import in_words

Content = Literal["full", "topology"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One polymer, all parts made from its canonical spelling.

    Attributes
    ----------
    graph
        The star-linking graph.
    descriptors
        Group name to (width,) values. A group that could not be computed is absent, never
        zero-filled (defect 19).
    conformer
        Coordinates, or None where embedding failed or was not asked for.
    """

    graph: PolymerGraph
    descriptors: dict[str, np.ndarray] = field(default_factory=dict)
    conformer: Conformer | None = None


def featurize(
    canonicals: list[str], content: Content = "full", max_hops: int = 2, seed: int = 0
) -> list[Sample]:
    """Make samples of polymers; what a polymer gets does not depend on the others in the list.

    Parameters
    ----------
    canonicals
        Texts written by `mips_dist.chem.psmiles.canonicalize`.
    content
        ``full`` computes conformer and descriptors, ``topology`` the graph alone.
    max_hops
        Radius of the pair search in bonds.
    seed
        Seed of the conformer embedding.
    """
    graphs = build_graphs(canonicals, max_hops)
    if content == "topology":
        return [Sample(graph) for graph in graphs]
    mols = [Chem.MolFromSmiles(canonical) for canonical in canonicals]
    samples = []
    for graph, mol, values in zip(graphs, mols, rdkit_2d(mols), strict=True):
        descriptors = {"rdkit_2d": values}
        conformer = embed(mol, seed)
        if conformer is not None:
            descriptors["atom_pair_3d"] = atom_pair_3d(mol, conformer)
        samples.append(Sample(graph, descriptors, conformer))
    return samples


def featurize_each(
    canonicals: list[str], make: Callable[[list[str]], list[Sample]]
) -> tuple[list[Sample], dict[int, str]]:
    """Featurize all at once, or one by one where that raises.

    Parameters
    ----------
    canonicals
        Canonical P-SMILES.
    make
        `featurize` with its settings.

    Returns
    -------
    The samples that were made, in order, and place -> reason of the others.
    """
    try:
        return make(canonicals), {}
    except Exception:  # someone in the list raises; below each is asked for its own
        samples: list[Sample] = []
        failed = {}
        for place, canonical in enumerate(canonicals):
            try:
                samples += make([canonical])
            except Exception as error:
                failed[place] = f"featurization_failed: {in_words(error)}"
        return samples, failed
