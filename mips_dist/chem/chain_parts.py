"""What every atom brings to the features of the infinite chain: its environments, its composition.

The features of a chain of which only some atoms are known follow from it (`PartlyKnown`): an
environment counts where all its atoms are known, a bond where both of its atoms are; what is not
known of the composition, which is a mean over atoms, is that of an average atom.

Legend: n atoms of the unit, E environments, C columns of the composition, G sets of known atoms.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator

from mips_dist.chem.chain_features import (
    COMPOSITION,
    MAX_COUNT,
    NUM_BINS,
    PLACE,
    RADIUS,
    Counts,
    Values,
    bond_terms,
    generator,
    own_terms,
)
from mips_dist.chem.descriptors import cap_with_methyl
from mips_dist.chem.morgan import long_chain
from mips_dist.chem.psmiles import parse

Known = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ChainParts:
    """The parts of one polymer.

    Attributes
    ----------
    environment_bin
        (E,) place of each environment in the counts.
    environment_atoms
        (E, n) whether an atom of the unit, in any cell, is in the environment.
    own
        (n, C) what an atom adds by itself.
    bond_atoms
        (B, 2) an atom and what it is bonded to; every bond stands here twice.
    bond_column
        (B,) column of the composition, -1 where the bond has none.
    """

    environment_bin: npt.NDArray[np.int64]
    environment_atoms: Known
    own: npt.NDArray[np.float64]
    bond_atoms: npt.NDArray[np.int64]
    bond_column: npt.NDArray[np.int64]

    def environments(self, known: Known) -> Counts:
        """Return the counts (G, 2048) where only the atoms `known` (G, n) are."""
        lacking = (~known).astype(np.float32) @ self.environment_atoms.T.astype(np.float32)
        set_of, environment = (lacking == 0).nonzero()
        counts = np.zeros((len(known), NUM_BINS), np.int64)
        np.add.at(counts, (set_of, self.environment_bin[environment]), 1)
        return np.minimum(counts, MAX_COUNT).astype(np.uint8)

    def composition(self, known: Known, average: npt.NDArray[np.float64]) -> Values:
        """Return the composition (G, C) where only the atoms `known` (G, n) are.

        Parameters
        ----------
        average
            (C,) composition of an average polymer.
        """
        num_atoms = len(self.own)
        is_bond = np.array([is_bond_column(name) for name in COMPOSITION])
        weight = known.astype(np.float64)
        total = weight @ self.own + (1.0 - weight).sum(1)[:, None] * np.where(is_bond, 0, average)
        # An atom's share of bonds that are not known is the average's, bond for bond of its own.
        first, second = self.bond_atoms.T
        seen = (known[:, first] & known[:, second]).astype(np.float64)
        has_column = self.bond_column >= 0
        bonds = np.zeros((len(first), len(COMPOSITION)))
        bonds[has_column.nonzero()[0], self.bond_column[has_column]] = 0.5
        degree = np.bincount(first, minlength=num_atoms)
        hidden = (1.0 - seen) @ (1.0 / degree[first])
        total += seen @ bonds + hidden[:, None] * np.where(is_bond, average, 0)
        return (total / num_atoms).astype(np.float32)


def is_bond_column(name: str) -> bool:
    """Tell whether a column of the composition counts bonds."""
    return any(mark in name for mark in "-=#:")


def chain_parts(canonical: str) -> ChainParts:
    """Take a polymer apart; all atoms together give its `chain_features`."""
    unit = parse(canonical)
    size = unit.mol.GetNumAtoms()
    chain, origin, middle = long_chain(unit, RADIUS)
    capped = cap_with_methyl(chain)
    is_star = np.isin(np.arange(size), unit.stars)
    number = np.cumsum(~is_star) - 1  # without stars, as in the polymer's graph
    atom_of = [int(number[old % size]) for old in origin]
    inner = [new for new, old in enumerate(origin) if old // size == middle]
    n = len(inner)

    found = rdFingerprintGenerator.AdditionalOutput()
    found.AllocateBitInfoMap()
    generator().GetCountFingerprint(capped, fromAtoms=inner, additionalOutput=found)
    places = [
        (place, centre, radius)
        for place, environments in found.GetBitInfoMap().items()
        for centre, radius in environments
    ]
    balls = {centre: _balls(capped, centre) for centre in inner}
    members = np.zeros((len(places), n), bool)
    for row, (_, centre, radius) in enumerate(places):
        members[row, [atom_of[atom] for atom in balls[centre][radius]]] = True

    own = np.zeros((n, len(COMPOSITION)))
    bond_atoms, bond_column = [], []
    for index in inner:
        atom = capped.GetAtomWithIdx(index)
        for name, amount in own_terms(atom):
            if name in PLACE:
                own[atom_of[index], PLACE[name]] += amount
        for other, name in bond_terms(atom):
            bond_atoms.append((atom_of[index], atom_of[other]))
            bond_column.append(PLACE.get(name, -1))
    return ChainParts(
        np.array([place for place, _, _ in places], np.int64),
        members,
        own,
        np.array(bond_atoms, np.int64).reshape(-1, 2),
        np.array(bond_column, np.int64),
    )


def _balls(mol: Chem.Mol, centre: int) -> list[set[int]]:
    """Return the atoms within 0, 1, ... `RADIUS` bonds of an atom."""
    balls = [{centre}]
    for _ in range(RADIUS):
        grown = {n.GetIdx() for a in balls[-1] for n in mol.GetAtomWithIdx(a).GetNeighbors()}
        balls.append(balls[-1] | grown)
    return balls
