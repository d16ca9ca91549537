"""Fragments of the infinite chain: ring systems, functional groups, and single atoms between them.

Every atom of the repeat unit is in exactly one fragment. The bonds that stay are those in rings,
those of order above 1, and of the single bonds between atoms in no ring those from a hetero atom to
another one or to an atom with a multiple bond, and those of halogens. So esters, amides, carbonates
and sulfones stay whole, exocyclic C=O stays with its ring, ether oxygens and the carbons of alkyl
chains stand alone. The rule looks at the chain and not at the cut, so a fragment may lie across it.
"""

from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from mips_dist.chem.psmiles import BOND_OF_ORDER, RepeatUnit, parse

_CARBON = 6
_HALOGENS = (9, 17, 35, 53)


@dataclass(frozen=True, slots=True)
class Fragment:
    """One fragment of a polymer.

    Attributes
    ----------
    smiles
        Its canonical text; a ``*`` stands where a bond was cut. A fragment without end, such as a
        siloxane chain, is cut at the link.
    atoms
        Sorted, numbered as in the polymer's graph: the order of the canonical text without stars.
    """

    smiles: str
    atoms: tuple[int, ...]


def fragments(canonical: str) -> list[Fragment]:
    """Divide the atoms of a polymer into fragments.

    Parameters
    ----------
    canonical
        Text written by `mips_dist.chem.psmiles.canonicalize`.

    Returns
    -------
    The fragments, by their first atom.
    """
    unit = parse(canonical)
    pieces = Chem.RWMol(unit.mol)
    for bond in unit.mol.GetBonds():
        begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if not (begin in unit.stars or end in unit.stars or _stays(unit, begin, end)):
            _cut(pieces, begin, end)
    left, right = unit.ends
    piece_of = {
        atom: number for number, atoms in enumerate(Chem.GetMolFrags(pieces)) for atom in atoms
    }
    # Where the ends hang together already, one more bond would make the fragment infinite.
    if _stays(unit, left, right, unit.order) and piece_of[left] != piece_of[right]:
        for star, end in zip(unit.stars, unit.ends, strict=True):
            pieces.RemoveBond(star, end)
        pieces.AddBond(right, left, BOND_OF_ORDER[unit.order])
    is_star = np.isin(np.arange(unit.mol.GetNumAtoms()), unit.stars)
    number_of = np.cumsum(~is_star) - 1
    found = []
    members: list[tuple[int, ...]] = []
    mols = Chem.GetMolFrags(pieces, asMols=True, sanitizeFrags=False, fragsMolAtomMapping=members)
    for mol, atoms in zip(mols, members, strict=True):
        # Stars that were made by a cut stand after the atoms of the unit.
        own = [atom for atom in atoms if atom < len(is_star) and not is_star[atom]]
        if own:
            text = Chem.MolToSmiles(mol).replace("[*]", "*")
            found.append(Fragment(text, tuple(sorted(int(number_of[atom]) for atom in own))))
    return sorted(found, key=lambda fragment: fragment.atoms)


def _stays(unit: RepeatUnit, one: int, other: int, link_order: float | None = None) -> bool:
    """Tell whether a bond of the chain stays; ``link_order`` is given for the link."""
    rings = unit.mol.GetRingInfo()
    if link_order is None and rings.AreAtomsInSameRing(one, other):
        return True
    order = unit.bond_orders[one, other] if link_order is None else link_order
    if order != 1:
        return True
    if rings.NumAtomRings(one) or rings.NumAtomRings(other):
        return False
    numbers = [unit.mol.GetAtomWithIdx(atom).GetAtomicNum() for atom in (one, other)]
    if any(number in _HALOGENS for number in numbers):
        return True
    # A star's bond has the order of the link, so the chain's multiple bonds are all there.
    is_hetero = [number != _CARBON for number in numbers]
    is_unsaturated = [bool((unit.bond_orders[atom] > 1).any()) for atom in (one, other)]
    return (is_hetero[0] and (is_hetero[1] or is_unsaturated[1])) or (
        is_hetero[1] and is_unsaturated[0]
    )


def _cut(pieces: Chem.RWMol, begin: int, end: int) -> None:
    pieces.RemoveBond(begin, end)
    for atom in (begin, end):
        pieces.AddBond(atom, pieces.AddAtom(Chem.Atom(0)), Chem.BondType.SINGLE)
