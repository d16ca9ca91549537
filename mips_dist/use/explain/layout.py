"""Where the atoms of a repeat unit and of its neighbours stand on paper."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from rdkit.Chem import rdDepictor

from mips_dist.chem.psmiles import RepeatUnit, oligomer, parse

_WHOLE_NEIGHBOURS = 8  # atoms of a unit whose neighbours are drawn whole
_REACH = 3  # bonds into the neighbours of larger units

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bond:
    """A drawn bond between two of the drawn atoms; its order is 1, 2 or 3, or 1.5."""

    begin: int
    end: int
    order: float


@dataclass(frozen=True, slots=True)
class ChainLayout:
    """A drawn piece of chain, in bond lengths, y downwards; it runs from left to right.

    Attributes
    ----------
    points
        (a, 2) places of the drawn atoms.
    labels
        What is written at each: empty for carbon; ``N``, ``NH2``, ``O-``.
    atom
        (a,) the atom of the canonical unit, -1 for atoms of the neighbouring units.
    links
        The two bonds at which the unit ends, left and right.
    """

    points: Points
    labels: list[str]
    atom: npt.NDArray[np.int64]
    bonds: list[Bond]
    links: tuple[Bond, Bond]


def lay_out(canonical: str) -> ChainLayout:
    """Draw the unit of a canonical P-SMILES between its neighbours."""
    unit = parse(canonical)
    size = unit.mol.GetNumAtoms()
    chain, origin = oligomer(unit, 3)
    _sharpen(chain)
    new = {old: place for place, old in enumerate(origin)}
    left = new[unit.ends[1]], new[size + unit.ends[0]]
    right = new[size + unit.ends[1]], new[2 * size + unit.ends[0]]
    middle = {place for place, old in enumerate(origin) if old // size == 1}
    kept = sorted(_kept(chain, unit, middle))
    place_of = {old: place for place, old in enumerate(kept)}
    labels = [_label(chain.GetAtomWithIdx(atom)) for atom in kept]
    bonds = [
        Bond(place_of[a], place_of[b], bond.GetBondTypeAsDouble())
        for bond in chain.GetBonds()
        for a, b in [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())]
        if a in place_of and b in place_of
    ]
    links = tuple(Bond(place_of[a], place_of[b], unit.order) for a, b in (left, right))
    for atom in range(chain.GetNumAtoms() - 1, -1, -1):
        if atom not in place_of:
            chain.RemoveAtom(atom)
    number = np.cumsum(~np.isin(np.arange(size), unit.stars)) - 1
    atoms = [int(number[origin[old] % size]) if old in middle else -1 for old in kept]
    return ChainLayout(
        _straightened(_places(chain), links), labels, np.array(atoms), bonds, (links[0], links[1])
    )


def _sharpen(chain: Chem.RWMol) -> None:
    """Write aromatic rings with double bonds, where RDKit finds them."""
    try:
        Chem.SanitizeMol(chain)
        Chem.Kekulize(chain, clearAromaticFlags=True)
    except (ValueError, RuntimeError):
        chain.UpdatePropertyCache(False)
        Chem.FastFindRings(chain)


def _kept(chain: Chem.RWMol, unit: RepeatUnit, middle: set[int]) -> set[int]:
    """Return the atoms that are drawn: of the middle unit, and of the neighbours some."""
    reach = chain.GetNumAtoms() if len(middle) <= _WHOLE_NEIGHBOURS else _REACH
    kept, front = set(middle), set(middle)
    for _ in range(reach):
        near = (n.GetIdx() for atom in front for n in chain.GetAtomWithIdx(atom).GetNeighbors())
        front = set(near) - kept
        kept |= front
    return {atom for atom in kept if chain.GetAtomWithIdx(atom).GetAtomicNum()}


def _places(chain: Chem.RWMol) -> Points:
    mol = Chem.Mol(chain)
    mol.UpdatePropertyCache(False)
    Chem.GetSymmSSSR(mol)
    rdDepictor.Compute2DCoords(mol, canonOrient=False)
    places: Points = mol.GetConformer().GetPositions()[:, :2] / 1.5
    return places


def _straightened(points: Points, links: tuple[Bond, ...]) -> Points:
    """Turn a drawing so that the chain runs to the right, and y downwards."""
    left, right = ((points[link.begin] + points[link.end]) / 2 for link in links)
    along = right - left
    length = float(np.hypot(*along)) or 1.0
    cosine, sine = along / length
    turned: Points = (points - (left + right) / 2) @ np.array([[cosine, sine], [-sine, cosine]]).T
    return turned * np.array([1.0, -1.0])


def _label(atom: Chem.Atom) -> str:
    charge, isotope = atom.GetFormalCharge(), atom.GetIsotope()
    if atom.GetAtomicNum() == 6 and not charge and not isotope and atom.GetDegree():
        return ""
    hydrogens = atom.GetTotalNumHs()
    text = f"{isotope or ''}{atom.GetSymbol()}"
    text += "" if not hydrogens else "H" if hydrogens == 1 else f"H{hydrogens}"
    sign = "+" if charge > 0 else "\u2212"
    return text + (f"{abs(charge) if abs(charge) > 1 else ''}{sign}" if charge else "")
