"""Which atoms of an infinite chain are equal, and which atoms of two spellings are the same.

Both questions are asked of a ring of some units: turning it moves the chain along itself, and its
mirror images are those of the chain. Bonds and atoms keep the labels of the unit, nothing is
perceived on the ring.
"""

import numpy as np
import numpy.typing as npt
from rdkit import Chem

from mips_dist.chem.psmiles import BOND_OF_ORDER, RepeatUnit, parse, repeat

_LEAST_UNITS = 5  # of a ring; the automorphisms of shorter ones may be none of the chain
_MARK = 1  # an atom map number; parsing drops those that a user gave

Numbers = npt.NDArray[np.int64]


def equal_atoms(canonical: str) -> Numbers:
    """Name for each atom of a polymer the first one that equals it.

    Two atoms are equal where some motion of the chain onto itself (along it, or end for end)
    brings one to the other.

    Parameters
    ----------
    canonical
        Text written by `mips_dist.chem.psmiles.canonicalize`.

    Returns
    -------
    (n,) atoms in the order of the text.
    """
    ring, atom_of = _ring(parse(canonical), _LEAST_UNITS)
    num_atoms = 1 + max(atom_of)
    ranks = list(Chem.CanonicalRankAtoms(ring, breakTies=False))
    alike: dict[int, list[int]] = {}
    for atom in range(num_atoms):
        alike.setdefault(ranks[atom], []).append(atom)
    # Equal ranks are a hint. A motion that is found is the proof.
    equal = np.arange(num_atoms)
    for first, *others in alike.values():
        firsts = [first]
        for atom in others:
            images = (other for other in firsts if _motion(ring, ring, atom, other) is not None)
            equal[atom] = next(images, atom)
            if equal[atom] == atom:
                firsts.append(atom)
    return equal


def _motion(
    one: Chem.Mol, other: Chem.Mol, marked: int | None = None, image: int | None = None
) -> list[int] | None:
    """Map the atoms of a ring to those of another one, bonds to bonds; None if no way is found.

    Parameters
    ----------
    marked, image
        An atom, and the one that it must be mapped to.
    """
    first, second = _ranks(one, marked), _ranks(other, image)
    if len(first) != len(second):
        return None
    of_rank = {rank: atom for atom, rank in enumerate(second)}
    found = [of_rank[rank] for rank in first]
    atoms = zip(one.GetAtoms(), (other.GetAtomWithIdx(atom) for atom in found), strict=True)
    if any(_kind(a) != _kind(b) for a, b in atoms):
        return None
    if marked is not None and found[marked] != image:
        return None
    bonds = {
        (found[b.GetBeginAtomIdx()], found[b.GetEndAtomIdx()], b.GetBondType())
        for b in one.GetBonds()
    }
    for bond in other.GetBonds():
        begin, end, kind = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), bond.GetBondType()
        if (begin, end, kind) not in bonds and (end, begin, kind) not in bonds:
            return None
    return found


def _ranks(ring: Chem.Mol, marked: int | None) -> list[int]:
    if marked is not None:
        ring.GetAtomWithIdx(marked).SetAtomMapNum(_MARK)
    ranks = [int(rank) for rank in Chem.CanonicalRankAtoms(ring, breakTies=True)]
    if marked is not None:
        ring.GetAtomWithIdx(marked).SetAtomMapNum(0)
    return ranks


def _kind(atom: Chem.Atom) -> tuple[int, ...]:
    return (
        *(atom.GetAtomicNum(), atom.GetIsotope(), atom.GetFormalCharge(), atom.GetTotalNumHs()),
        *(atom.GetDegree(), atom.GetNumRadicalElectrons()),
    )


def atoms_as_written(psmiles: str, canonical: str) -> Numbers | None:
    """Say which atom of the canonical unit every atom of a text is.

    Parameters
    ----------
    psmiles
        A spelling of a polymer.
    canonical
        The canonical one.

    Returns
    -------
    (m,) for the atoms of ``psmiles`` in their order, stars left out; equal atoms (`equal_atoms`)
    may be exchanged. None in the rare case that RDKit draws the aromatic bonds of the two texts
    differently.
    """
    written, unit = parse(psmiles), parse(canonical)
    copies = (written.mol.GetNumAtoms() - 2) // (unit.mol.GetNumAtoms() - 2)
    one, atom_of_one = _ring(written, _LEAST_UNITS)
    other, atom_of_other = _ring(unit, _LEAST_UNITS * copies)
    motion = _motion(one, other)
    if motion is None:
        for mol in (one, other):
            _forget_bonds(mol)
        motion = _motion(one, other)
    if motion is None:
        return None
    # Every cell of the ring says the same but for a motion of the chain; the first one decides.
    first_cell = motion[: 1 + max(atom_of_one)]
    return np.array([atom_of_other[atom] for atom in first_cell])


def _forget_bonds(mol: Chem.Mol) -> None:
    """Make all bonds alike; hydrogens, which stay, tell what they were.

    For spellings whose Kekule forms differ: a double link is moved to a single bond.
    """
    for atom in mol.GetAtoms():
        atom.SetIsAromatic(False)
        atom.SetNoImplicit(True)
        atom.SetAtomMapNum(1 + atom.GetTotalNumHs())
    for bond in mol.GetBonds():
        bond.SetIsAromatic(False)
        bond.SetBondType(Chem.BondType.SINGLE)


def _ring(unit: RepeatUnit, copies: int) -> tuple[Chem.RWMol, list[int]]:
    """Close some copies of a unit to a ring without stars.

    Returns
    -------
    The ring, not sanitized, and the atom of the unit, stars left out, that each of its atoms is;
    the atoms of the first copy come first.
    """
    size = unit.mol.GetNumAtoms()
    ring = repeat(unit, copies)
    last = (copies - 1) * size
    for star, end in ((unit.stars[0], unit.ends[0]), (last + unit.stars[1], last + unit.ends[1])):
        ring.RemoveBond(star, end)
    ring.AddBond(last + unit.ends[1], unit.ends[0], BOND_OF_ORDER[unit.order])
    is_star = np.isin(np.arange(size), unit.stars)
    number = np.cumsum(~is_star) - 1
    kept = [atom for atom in range(copies * size) if not is_star[atom % size]]
    for atom in range(copies * size - 1, -1, -1):
        if is_star[atom % size]:
            ring.RemoveAtom(atom)
    ring.UpdatePropertyCache(False)
    Chem.FastFindRings(ring)
    return ring, [int(number[atom % size]) for atom in kept]
