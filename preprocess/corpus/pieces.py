"""Known polymers, cut at every backbone bond that can be cut, and pieces joined to new ones.

A chain whose unit has c cuts, the link among them, is a ring of c pieces. A *segment* is 1 to c
consecutive pieces, read in either direction, so that it does not matter where a seed is spelled to
begin. Two segments make a new repeat unit. The bond inside it has on both sides an atom environment
that it has in both seeds; the link between units is a bond between two kinds of atoms that some
seed has in its backbone (no ``O-O`` from two ends that happen to be oxygen).

Joining is done on texts: a piece is written once, with two places for ring-closure numbers that
bond it to the next piece, so that a new polymer costs one parse and no edit of molecules.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rdkit import Chem

from mips_dist.chem.psmiles import RepeatUnit, allowed_cuts, parse, repeat

_ATOM_TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|[BCNOPSFIbcnops]")
_LEFT, _RIGHT = "<", ">"  # places of the two bonds in a piece's text; no SMILES has these signs
_LAST_STAR = re.compile(r"\(\[2\*\]\)|\[2\*\]")

Environment = tuple[object, ...]


class Bond(NamedTuple):
    """A backbone bond that was cut; numbers of equal ones are equal.

    Attributes
    ----------
    along, against
        Environments of both atoms, as met along the chain and as met against it.
    left, right
        Kinds of its atoms: element, charge, hybridization, aromaticity.
    """

    along: int
    against: int
    left: int
    right: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of all seeds.

    Attributes
    ----------
    texts
        Distinct texts of pieces.
    rings
        For each seed that can be cut: its pieces in chain order as indices into `texts`.
    bonds
        For each such seed: the bond before each piece.
    sizes
        Heavy atoms of each text.
    can_link
        (A, A) bool: whether some seed has a backbone bond between two of the A kinds of atoms.
    seed_sizes
        Heavy atoms of each seed that can be cut.
    """

    texts: list[str]
    sizes: npt.NDArray[np.int64]
    rings: list[list[int]]
    bonds: list[list[Bond]]
    can_link: npt.NDArray[np.bool_]
    seed_sizes: npt.NDArray[np.int64]


def cut_seeds(canonicals: Iterable[str]) -> Pieces:
    """Cut polymers into pieces.

    Parameters
    ----------
    canonicals
        Canonical P-SMILES. One whose every backbone bond is multiple gives no piece.
    """
    index_of: dict[str, int] = {}
    bond_number: dict[tuple[Environment, Environment], int] = {}
    atom_number: dict[object, int] = {}
    sizes: list[int] = []
    rings: list[list[int]] = []
    bonds: list[list[Bond]] = []
    for canonical in canonicals:
        unit = parse(canonical)
        if unit.order != 1:
            continue
        cuts = [(cut.left, cut.right) for cut in allowed_cuts(unit)]
        around = _environments(unit, {atom for cut in cuts for atom in cut})
        ring = []
        for text, size in _write_pieces(unit, cuts):
            if text not in index_of:
                index_of[text] = len(index_of)
                sizes.append(size)
            ring.append(index_of[text])
        rings.append(ring)
        bonds.append([])
        for left, right in ((around[left], around[right]) for left, right in cuts):
            bonds[-1].append(
                Bond(
                    bond_number.setdefault((left, right), len(bond_number)),
                    bond_number.setdefault((right, left), len(bond_number)),
                    atom_number.setdefault(left[0], len(atom_number)),
                    atom_number.setdefault(right[0], len(atom_number)),
                )
            )
    can_link = np.zeros((len(atom_number), len(atom_number)), dtype=bool)
    for bond in chain.from_iterable(bonds):
        can_link[bond.left, bond.right] = can_link[bond.right, bond.left] = True
    seed_sizes = [sum(sizes[piece] for piece in ring) for ring in rings]
    return Pieces(list(index_of), np.array(sizes), rings, bonds, can_link, np.array(seed_sizes))


def _environments(unit: RepeatUnit, atoms: set[int]) -> dict[int, Environment]:
    """Describe atoms of a unit with their neighbours in the infinite chain.

    Element, charge, hydrogens, hybridization, aromaticity, ring membership; the same of every
    neighbour but for its hydrogens and ring, with the order of the bond. Read from the middle one
    of three units, whose atoms all have their neighbours.
    """
    num_atoms = unit.mol.GetNumAtoms()
    oligomer = repeat(unit, 3)
    Chem.SanitizeMol(oligomer)
    environments: dict[int, Environment] = {}
    for index in sorted(atoms):
        atom = oligomer.GetAtomWithIdx(num_atoms + index)
        neighbours = sorted(
            (*_state(bond.GetOtherAtom(atom)), str(bond.GetBondType())) for bond in atom.GetBonds()
        )
        environments[index] = (_state(atom), atom.GetTotalNumHs(), atom.IsInRing(), *neighbours)
    return environments


def _state(atom: Chem.Atom) -> tuple[int, int, str, bool]:
    return (
        atom.GetAtomicNum(),
        atom.GetFormalCharge(),
        str(atom.GetHybridization()),
        atom.GetIsAromatic(),
    )


def _write_pieces(unit: RepeatUnit, cuts: list[tuple[int, int]]) -> list[tuple[str, int]]:
    """Return text and number of heavy atoms of the pieces between the cuts, in chain order."""
    edited = Chem.RWMol(unit.mol)
    edited.GetAtomWithIdx(unit.stars[0]).SetIsotope(1)
    edited.GetAtomWithIdx(unit.stars[1]).SetIsotope(2)
    for left, right in cuts[1:]:
        edited.RemoveBond(left, right)
        for atom, label in ((left, 2), (right, 1)):
            star = Chem.Atom(0)
            star.SetIsotope(label)
            edited.AddBond(atom, edited.AddAtom(star), Chem.BondType.SINGLE)
    atoms: list[tuple[int, ...]] = []
    fragments = Chem.GetMolFrags(
        edited, asMols=True, sanitizeFrags=False, fragsMolAtomMapping=atoms
    )
    place = {atom: k for k, members in enumerate(atoms) for atom in members}
    return [_write_piece(fragments[place[right]]) for _, right in cuts]


def _write_piece(fragment: Chem.Mol) -> tuple[str, int]:
    """Write a piece, its two stars replaced by places behind the atoms that carry them."""
    stars = {atom.GetIsotope(): atom for atom in fragment.GetAtoms() if atom.GetAtomicNum() == 0}
    first, last = stars[1], stars[2]
    (parent,) = last.GetNeighbors()
    text = Chem.MolToSmiles(fragment, rootedAtAtom=first.GetIdx())
    order = list(fragment.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])
    text = _LAST_STAR.sub("", text.removeprefix("[1*]"))
    written = [index for index in order if index not in (first.GetIdx(), last.GetIdx())]
    tokens = list(_ATOM_TOKEN.finditer(text))
    assert len(tokens) == len(written), text
    end = tokens[written.index(parent.GetIdx())].end()
    text = text[:end] + _RIGHT + text[end:]
    start = tokens[0].end()
    size = sum(atom.GetAtomicNum() > 1 for atom in fragment.GetAtoms())
    return text[:start] + _LEFT + text[start:], size


def join(pieces: Iterable[tuple[str, bool]]) -> str:
    """Write the polymer whose repeat unit is some pieces in a row.

    Parameters
    ----------
    pieces
        Text of each piece, and whether it stands the other way round.
    """
    oriented = [
        (_RIGHT, _LEFT, text) if turned else (_LEFT, _RIGHT, text) for text, turned in pieces
    ]
    # Two numbers take turns: of those before and behind a piece, no two are equal.
    numbers = ["-%10" if k % 2 else "-%11" for k in range(len(oriented) + 1)]
    components = [
        text.replace(before, bond).replace(behind, next_bond)
        for (before, behind, text), (bond, next_bond) in zip(
            oriented, pairwise(numbers), strict=True
        )
    ]
    return ".".join([f"*{numbers[0]}", *components, f"*{numbers[-1]}"])
