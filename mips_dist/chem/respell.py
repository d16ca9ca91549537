"""Other spellings of one polymer: what the repeat and shift invariance test draws (RSIT)."""

from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from mips_dist.chem.psmiles import (
    MAX_ATOMS,
    RepeatUnit,
    allowed_cuts,
    move_cut,
    oligomer,
    parse,
)


@dataclass(frozen=True, slots=True)
class Respelling:
    """A spelling that `respell` drew, and what it did to the given one."""

    psmiles: str
    is_repeated: bool
    is_shifted: bool
    is_reversed: bool


def respell(psmiles: str, rng: np.random.Generator) -> Respelling:
    """Draw another spelling of a polymer: Algorithm 1 of the paper, valid cuts only (defect 12).

    With probability 1/2 the unit is written twice; the chain is cut at any of its allowed bonds
    with equal chances, the given one among them; with probability 1/2 it is read from its other
    end. So a draw may be the spelling that was given.

    Parameters
    ----------
    psmiles
        The given spelling.
    rng
        Moved on by three draws.

    Returns
    -------
    The spelling; `mips_dist.chem.psmiles.canonicalize` has the last word on whether it is the same
    polymer.

    Raises
    ------
    InvalidPolymer
        The text is no polymer.
    """
    unit = parse(psmiles)
    is_repeated = rng.random() < 0.5 and 2 * unit.mol.GetNumAtoms() <= MAX_ATOMS
    chain = _repeated(unit, 2 if is_repeated else 1)
    cuts = allowed_cuts(chain)
    number = int(rng.integers(len(cuts)))
    is_reversed = bool(rng.random() < 0.5)
    cut = cuts[number]
    mol = chain.mol if cut.is_link else move_cut(chain.mol, chain, cut)
    # In chain order: the link comes first, and again where the second unit begins.
    per_unit = len(cuts) // (2 if is_repeated else 1)
    return Respelling(
        psmiles=Chem.MolToSmiles(mol, canonical=False, rootedAtAtom=chain.stars[is_reversed]),
        is_repeated=is_repeated,
        is_shifted=not (cuts[0].is_link and number % per_unit == 0),
        is_reversed=is_reversed,
    )


def random_spelling(psmiles: str, rng: np.random.Generator, max_repeats: int = 3) -> str:
    """Draw another spelling of a polymer: repetition, cut, direction, atom order, Kekule form.

    More than `respell` draws: the tests of invariance want all that a text may vary in.
    """
    unit = _repeated(parse(psmiles), int(rng.integers(1, max_repeats + 1)))
    cuts = allowed_cuts(unit)
    cut = cuts[int(rng.integers(len(cuts)))]
    mol = Chem.Mol(unit.mol) if cut.is_link else move_cut(unit.mol, unit, cut).GetMol()
    mol = Chem.RenumberAtoms(mol, [int(i) for i in rng.permutation(mol.GetNumAtoms())])
    if rng.random() < 0.5:
        Chem.SanitizeMol(mol)
        Chem.Kekulize(mol, clearAromaticFlags=True)
    root = int(rng.integers(mol.GetNumAtoms()))
    return Chem.MolToSmiles(mol, canonical=False, rootedAtAtom=root)


def _repeated(unit: RepeatUnit, copies: int) -> RepeatUnit:
    """Write a unit several times in a row, its ends in the same order."""
    chain, _ = oligomer(unit, copies)
    Chem.SanitizeMol(chain)
    stars = [atom.GetIdx() for atom in chain.GetAtoms() if atom.GetAtomicNum() == 0]
    ends = [chain.GetAtomWithIdx(star).GetNeighbors()[0].GetIdx() for star in stars]
    bond_orders = Chem.GetAdjacencyMatrix(chain, useBO=True)
    return RepeatUnit(
        chain.GetMol(), (stars[0], stars[1]), (ends[0], ends[1]), unit.order, bond_orders
    )
