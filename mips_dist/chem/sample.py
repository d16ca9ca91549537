"""Everything that a shard holds of one polymer: graph, conformer, descriptors."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
from rdkit import Chem

from mips_dist.chem.bands import describe_bands
from mips_dist.chem.conformer import Conformer, check_backend, embed_each
from mips_dist.chem.descriptors import (
    CONTENTS,
    DESCRIPTOR_GROUPS,
    Content,
    DescriptorGroup,
    atom_pair_3d,
    descriptor_groups,
    has,
    rdkit_2d,
)
from mips_dist.chem.graph import PolymerGraph, build_graphs
from mips_dist.chem.psmiles import in_words
from mips_dist.chem.xtb import check_xtb, describe_xtb
from mips_dist.errors import MipsError


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
        Coordinates of the first conformer that was found, or None where embedding failed for every
        seed or was not asked for.
    """

    graph: PolymerGraph
    descriptors: dict[str, np.ndarray] = field(default_factory=dict)
    conformer: Conformer | None = None


def featurize(
    canonicals: list[str],
    content: Content = "full",
    max_hops: int = 2,
    seed: int = 0,
    num_conformers: int = 1,
    conformer_backend: str = "rdkit",
) -> list[Sample]:
    """Make samples of polymers; what a polymer gets does not depend on the others in the list.

    Parameters
    ----------
    canonicals
        Texts written by `mips_dist.chem.psmiles.canonicalize`.
    content
        ``topology`` computes the graph alone, ``descriptors`` also what needs no conformer,
        ``full`` also what does, ``xtb`` also what needs tblite.
    max_hops
        Radius of the pair search in bonds.
    seed
        Seed of every embedding.
    num_conformers
        Conformers of each polymer. The bits of ``atom_pair_3d`` are those of one, or the mean
        (float32) over the conformers that were found of several.
    conformer_backend
        See `mips_dist.chem.conformer.embed_each`.
    """
    graphs = build_graphs(canonicals, max_hops)
    if content == "topology":
        return [Sample(graph) for graph in graphs]
    mols = [Chem.MolFromSmiles(canonical) for canonical in canonicals]
    described = _without_conformer(graphs, mols)
    if content == "descriptors":
        return [Sample(*pair) for pair in zip(graphs, described, strict=True)]
    found = embed_each(mols, seed, num_conformers, conformer_backend)
    samples = []
    for graph, mol, descriptors, conformers in zip(graphs, mols, described, found, strict=True):
        bits = [atom_pair_3d(mol, conformer) for conformer in conformers]
        if bits:
            mean = np.asarray(np.mean(bits, 0, np.float32))
            descriptors["atom_pair_3d"] = bits[0] if num_conformers == 1 else mean
        if content == "xtb" and (levels := describe_xtb(graph.psmiles, seed)) is not None:
            descriptors["xtb"] = levels
        samples.append(Sample(graph, descriptors, conformers[0] if bits else None))
    return samples


def _without_conformer(
    graphs: list[PolymerGraph], mols: list[Chem.Mol]
) -> list[dict[str, np.ndarray]]:
    """Compute the descriptor groups that need no conformer."""
    described: list[dict[str, np.ndarray]] = []
    for values, bands in zip(rdkit_2d(mols), describe_bands(graphs), strict=True):
        descriptors = {"rdkit_2d": values}
        if bands is not None:
            descriptors["bands"] = bands
        described.append(descriptors)
    return described


def groups_of(
    content: Content, num_conformers: int = 1, conformer_backend: str = "rdkit"
) -> list[DescriptorGroup]:
    """Return the descriptor groups that `featurize` makes."""
    groups = descriptor_groups(num_conformers, conformer_backend).values()
    return [group for group in groups if has(content, group.content)]


def content_for(groups: Collection[str]) -> Content:
    """Return the least content that has these descriptor groups."""
    needed = ["topology", *(DESCRIPTOR_GROUPS[name].content for name in groups)]
    return max(needed, key=CONTENTS.index)


def check_machine(content: Content, conformer_backend: str) -> None:
    """Raise UsageError or MipsError where this machine lacks what `featurize` needs."""
    if has(content, "full"):
        check_backend(conformer_backend)
    if has(content, "xtb"):
        check_xtb()


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
    except (MipsError, ImportError):
        raise  # this machine lacks something; no polymer is at fault
    except Exception:  # someone in the list raises; below each is asked for its own
        samples: list[Sample] = []
        failed = {}
        for place, canonical in enumerate(canonicals):
            try:
                samples += make([canonical])
            except Exception as error:
                failed[place] = f"featurization_failed: {in_words(error)}"
        return samples, failed
