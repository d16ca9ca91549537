"""Seeded conformers of repeat units, and the ladder of methods that makes them.

The unit is cut out of the chain and its ends are capped with hydrogen: a star on a single bond
becomes a hydrogen, a star on a multiple bond becomes a carbon with the hydrogens that its valence
asks for (``=CH2``). A unit of more than ``MAX_EMBEDDED_ATOMS`` atoms, hydrogens not counted, gets
no conformer. The ladder, from the first rung that works:

1. ETKDGv3 on the heavy atoms alone (hydrogens are four fifths of the cost of embedding); where no
   embedding is found, once more from random coordinates, which gives worse geometries;
2. hydrogens placed by geometry;
3. at most ``mmff_iterations`` steps of MMFF94, or of UFF where MMFF94 lacks parameters; where both
   do, the coordinates of rung 2.

Every rung is bounded by a number of iterations, never by a clock, and seeded: equal canonical
spellings give equal bits in every process on one kind of machine.

Two backends do the two costly steps, embedding and relaxing: ``rdkit`` on the CPU, and ``nvmolkit``
on a GPU (see `mips_dist.chem.gpu_conformer`), whose coordinates are others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

STATUS_NAMES = (
    "mmff94_converged",
    "mmff94_unconverged",
    "uff_converged",
    "uff_unconverged",
    "embedded",
    "random_start_mmff94_converged",
    "random_start_mmff94_unconverged",
    "random_start_uff_converged",
    "random_start_uff_unconverged",
    "random_start_embedded",
    "failed",
)
"""What the numbers in ``Conformer.status`` mean; the last one marks a polymer without conformer."""

FAILED = STATUS_NAMES.index("failed")
# The cost grows with the cube of the size: 4 s at 300 atoms, 34 s at 600, minutes at 1,000, where
# one such unit would hold up a whole shard. No polymer of the corpus has more than 170.
MAX_EMBEDDED_ATOMS = 300
# A random start works at one of its first tries or never; RDKit's default of ten tries per atom
# would spend seconds on each unit that cannot be embedded at all. Fewer for more than 100 atoms.
_RANDOM_TRIES = 100
_RANDOM_START = STATUS_NAMES.index("random_start_mmff94_converged")

BACKENDS = ("rdkit", "nvmolkit")
MMFF_ITERATIONS = 50
# RDKit's seeds are 1 to 2**31 - 1. The stride is coprime to their number: no two conformers of a
# polymer share a seed, and runs with neighbouring seeds do not share conformers.
_NUM_SEEDS = 2**31 - 1
_SEED_STRIDE = 1_640_531_527


@dataclass(frozen=True, slots=True)
class Conformer:
    """Three-dimensional structure of one repeat unit.

    Attributes
    ----------
    coordinates
        (M, 3) float32, angstrom. First the atoms of the unit without its stars, in their order;
        then the hydrogens that those atoms carry, hydrogens that cap single bonds included.
        The cap of a multiple bond (its carbon and that carbon's hydrogens) is not listed.
    is_hydrogen
        (M,) bool, False for the atoms of the unit (an explicit isotope such as ``[2H]`` is one of
        them), True for the hydrogens after them.
    status
        Index into ``STATUS_NAMES``.
    """

    coordinates: np.ndarray
    is_hydrogen: np.ndarray
    status: int


def cap_with_hydrogen(mol: Chem.Mol) -> tuple[Chem.Mol, list[int]]:
    """Replace the stars of a repeat unit by hydrogen, or by carbon where the bond is multiple.

    Parameters
    ----------
    mol
        Parsed repeat unit, stars in it.

    Returns
    -------
    The molecule with its hydrogens implicit, atoms in the order of the unit; and the indices of
    the cap carbons in it, which stand after all atoms of the unit.
    """
    editable = Chem.RWMol(mol)
    # A canonical unit has none; a mark left in would name a removed star and crash the embedding.
    Chem.RemoveStereochemistry(editable)
    stars = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() == 0]
    caps = 0
    for star in stars:
        (bond,) = mol.GetAtomWithIdx(star).GetBonds()
        neighbor = editable.GetAtomWithIdx(bond.GetOtherAtomIdx(star))
        if bond.GetBondType() == Chem.BondType.SINGLE:
            # Counted explicitly, or S and P would fall back to a lower valence and n lose its H.
            neighbor.SetNumExplicitHs(neighbor.GetNumExplicitHs() + 1)
        else:
            carbon = editable.AddAtom(Chem.Atom(6))
            editable.AddBond(neighbor.GetIdx(), carbon, bond.GetBondType())
            caps += 1
    for star in sorted(stars, reverse=True):
        editable.RemoveAtom(star)
    capped = editable.GetMol()
    Chem.SanitizeMol(capped)
    num_atoms = capped.GetNumAtoms()
    return capped, list(range(num_atoms - caps, num_atoms))


def embed(mol: Chem.Mol, seed: int = 0, mmff_iterations: int = MMFF_ITERATIONS) -> Conformer | None:
    """Make one conformer of a repeat unit, or None where no method finds one.

    Parameters
    ----------
    mol
        Parsed canonical repeat unit, stars in it.
    seed
        Seed of the embedding, 0 to 2**31 - 2 (RDKit takes negative ones for "not reproducible").
    mmff_iterations
        Most steps of the force field.
    """
    found = embed_each([mol], seed, mmff_iterations=mmff_iterations)[0]
    return found[0] if found else None


def embed_each(
    mols: Sequence[Chem.Mol],
    seed: int = 0,
    num_conformers: int = 1,
    backend: str = "rdkit",
    mmff_iterations: int = MMFF_ITERATIONS,
) -> list[list[Conformer]]:
    """Make conformers of many repeat units.

    Parameters
    ----------
    mols
        Parsed canonical repeat units, stars in them.
    seed
        Seed of the first conformer, 0 to 2**31 - 2; those of the others are made from it.
    num_conformers
        How many conformers to try for each unit, each with a seed of its own.
    backend
        One of `BACKENDS`; with ``rdkit`` a unit's conformers depend on it alone.
    mmff_iterations
        Most steps of the force field.

    Returns
    -------
    For each unit its conformers in the order of their seeds, without those that failed; none for a
    unit of more than `MAX_EMBEDDED_ATOMS` atoms.
    """
    if not 0 <= seed < _NUM_SEEDS:
        raise ValueError(f"seed: {seed} is not 0 to {_NUM_SEEDS - 1}")
    found: list[list[Conformer]] = [[] for _ in mols]
    # The two stars are atoms of the unit's molecule.
    small = [place for place, mol in enumerate(mols) if mol.GetNumAtoms() - 2 <= MAX_EMBEDDED_ATOMS]
    capped = [cap_with_hydrogen(mols[place]) for place in small]
    for index in range(num_conformers):
        rdkit_seed = (seed + index * _SEED_STRIDE) % _NUM_SEEDS + 1
        made = _embed_once(capped, rdkit_seed, backend, mmff_iterations)
        for place, conformer in zip(small, made, strict=True):
            if conformer is not None:
                found[place].append(conformer)
    return found


def check_backend(backend: str) -> None:
    """Raise UsageError where this machine lacks what a backend needs."""
    if backend == "nvmolkit":
        from mips_dist.chem.gpu_conformer import check_nvmolkit

        check_nvmolkit()


def _embed_once(
    capped: list[tuple[Chem.Mol, list[int]]], rdkit_seed: int, backend: str, mmff_iterations: int
) -> list[Conformer | None]:
    """Climb the ladder with one seed; units as `cap_with_hydrogen` returns them."""
    embed_all, relax_all = embed_with_rdkit, relax_with_rdkit
    if backend == "nvmolkit":
        from mips_dist.chem.gpu_conformer import embed_with_nvmolkit, relax_with_nvmolkit

        embed_all, relax_all = embed_with_nvmolkit, relax_with_nvmolkit
    with rdBase.BlockLogs():  # RDKit warns about the missing hydrogens of each molecule
        is_random = embed_all([mol for mol, _ in capped], rdkit_seed)
        places = [place for place, flag in enumerate(is_random) if flag is not None]
        full = [Chem.AddHs(capped[place][0], addCoords=True) for place in places]
        statuses = relax_all(full, mmff_iterations)
    made: list[Conformer | None] = [None] * len(capped)
    for place, mol, status in zip(places, full, statuses, strict=True):
        unit, cap_carbons = capped[place]
        is_listed = _listed_atoms(mol, unit.GetNumAtoms(), cap_carbons)
        coordinates = mol.GetConformer().GetPositions()[is_listed].astype(np.float32)
        if np.isfinite(coordinates).all():
            num_atoms = unit.GetNumAtoms() - len(cap_carbons)
            is_hydrogen = np.arange(len(coordinates)) >= num_atoms
            start = _RANDOM_START if is_random[place] else 0
            made[place] = Conformer(coordinates, is_hydrogen, status + start)
    return made


def embed_with_rdkit(capped: list[Chem.Mol], rdkit_seed: int) -> list[bool | None]:
    """Embed the heavy atoms in place.

    Returns
    -------
    For each molecule whether it took random coordinates, or None where both ways failed.
    """
    return [_embed_heavy_atoms(mol, rdkit_seed) for mol in capped]


def _embed_heavy_atoms(capped: Chem.Mol, rdkit_seed: int) -> bool | None:
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = rdkit_seed  # type: ignore[assignment]
    if rdDistGeom.EmbedMolecule(capped, parameters) == 0:
        return False
    parameters.useRandomCoords = True  # type: ignore[assignment]
    cost = max(1.0, (capped.GetNumAtoms() / 100) ** 2)
    parameters.maxIterations = int(_RANDOM_TRIES / cost)  # type: ignore[assignment]
    return True if rdDistGeom.EmbedMolecule(capped, parameters) == 0 else None


def relax_with_rdkit(full: list[Chem.Mol], iterations: int) -> list[int]:
    """Optimise in place, each with the first force field that has all its parameters.

    Returns
    -------
    Status of each molecule, as after an embedding without random coordinates.
    """
    return [_relax(mol, iterations) for mol in full]


def _relax(full: Chem.Mol, iterations: int) -> int:
    # 0 converged, 1 not yet, -1 parameters missing (MMFF only: UFF raises, hence the question).
    outcome = rdForceFieldHelpers.MMFFOptimizeMolecule(full, maxIters=iterations)
    if outcome >= 0:
        return STATUS_NAMES.index("mmff94_unconverged" if outcome else "mmff94_converged")
    if rdForceFieldHelpers.UFFHasAllMoleculeParams(full):
        outcome = rdForceFieldHelpers.UFFOptimizeMolecule(full, maxIters=iterations)
        return STATUS_NAMES.index("uff_unconverged" if outcome else "uff_converged")
    return STATUS_NAMES.index("embedded")


def _listed_atoms(full: Chem.Mol, num_capped: int, cap_carbons: list[int]) -> np.ndarray:
    """Mask (atoms of ``full``,) bool of the atoms that a conformer lists: all but whole caps."""
    is_listed = np.ones(full.GetNumAtoms(), dtype=bool)
    is_listed[cap_carbons] = False
    for hydrogen in range(num_capped, full.GetNumAtoms()):
        (bond,) = full.GetAtomWithIdx(hydrogen).GetBonds()
        is_listed[hydrogen] = bond.GetOtherAtomIdx(hydrogen) not in cap_carbons
    return is_listed
