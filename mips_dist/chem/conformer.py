"""Seeded conformers of repeat units, and the ladder of methods that makes them.

The unit is cut out of the chain and its ends are capped with hydrogen: a star on a single bond
becomes a hydrogen, a star on a multiple bond becomes a carbon with the hydrogens that its valence
asks for (``=CH2``). The ladder, from the first rung that works:

1. ETKDGv3 on the heavy atoms alone (hydrogens are four fifths of the cost of embedding); where no
   embedding is found, once more from random coordinates, which gives worse geometries;
2. hydrogens placed by geometry;
3. at most ``mmff_iterations`` steps of MMFF94, or of UFF where MMFF94 lacks parameters; where both
   do, the coordinates of rung 2.

Every rung is bounded by a number of iterations, never by a clock, and seeded: equal canonical
spellings give equal bits in every process on one kind of machine.
"""

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
# A random start works at one of its first tries or never; RDKit's default of ten tries per atom
# would spend seconds on each unit that cannot be embedded at all.
_RANDOM_TRIES = 100
_RANDOM_START = STATUS_NAMES.index("random_start_mmff94_converged")


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


def embed(mol: Chem.Mol, seed: int = 0, mmff_iterations: int = 50) -> Conformer | None:
    """Make one conformer of a repeat unit, or None where no method finds one.

    Parameters
    ----------
    mol
        Parsed canonical repeat unit, stars in it.
    seed
        Seed of the embedding, at least 0 (RDKit takes negative ones for "not reproducible").
    mmff_iterations
        Most steps of the force field.
    """
    if seed < 0:
        raise ValueError(f"seed: {seed} is negative")
    capped, cap_carbons = cap_with_hydrogen(mol)
    with rdBase.BlockLogs():  # RDKit warns about the missing hydrogens of each molecule
        is_random = _embed_heavy_atoms(capped, seed)
        if is_random is None:
            return None
        full = Chem.AddHs(capped, addCoords=True)
        status = _relax(full, mmff_iterations) + (_RANDOM_START if is_random else 0)
    is_listed = _listed_atoms(full, capped.GetNumAtoms(), cap_carbons)
    coordinates = full.GetConformer().GetPositions()[is_listed].astype(np.float32)
    if not np.isfinite(coordinates).all():
        return None
    is_hydrogen = np.arange(len(coordinates)) >= capped.GetNumAtoms() - len(cap_carbons)
    return Conformer(coordinates, is_hydrogen, status)


def _embed_heavy_atoms(capped: Chem.Mol, seed: int) -> bool | None:
    """Embed in place; tell whether it took random coordinates, or None where both ways failed."""
    parameters = rdDistGeom.ETKDGv3()
    # RDKit's generator takes 0 and 1 for one seed.
    parameters.randomSeed = seed + 1  # type: ignore[assignment]
    if rdDistGeom.EmbedMolecule(capped, parameters) == 0:
        return False
    parameters.useRandomCoords = True  # type: ignore[assignment]
    parameters.maxIterations = _RANDOM_TRIES  # type: ignore[assignment]
    return True if rdDistGeom.EmbedMolecule(capped, parameters) == 0 else None


def _relax(full: Chem.Mol, iterations: int) -> int:
    """Optimise in place with the first force field that has all parameters; return the status."""
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
