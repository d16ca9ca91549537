"""Equal atoms of a chain, the same atoms of two spellings, and what each brings to its features."""

import numpy as np
import pytest

from mips_dist.chem.chain_features import COMPOSITION, chain_features
from mips_dist.chem.chain_parts import chain_parts, is_bond_column
from mips_dist.chem.features import atom_tokens
from mips_dist.chem.psmiles import canonicalize, parse
from mips_dist.chem.respell import random_spelling
from mips_dist.chem.symmetry import atoms_as_written, equal_atoms
from tests.polymers import CORNER_CASES, POLYMERS


@pytest.mark.parametrize(
    ("canonical", "equal"),
    [
        ("*C*", [0]),
        ("*CO*", [0, 1]),
        ("*COC*", [0, 1, 0]),
        ("*c1ccc(*)s1", [0, 1, 1, 0, 4]),
        ("*C(*)(F)F", [0, 1, 1]),
        ("*C=CCC*", [0, 0, 2, 2]),
        ("*CC(*)c1ccccc1", [0, 1, 2, 3, 4, 5, 4, 3]),
        ("*CNC(=O)C*", [0, 1, 2, 3, 4]),
    ],
)
def test_equal_atoms_by_hand(canonical: str, equal: list[int]) -> None:
    assert equal_atoms(canonical).tolist() == equal


@pytest.mark.parametrize("psmiles", [*CORNER_CASES, *POLYMERS])
def test_atoms_are_found_again_in_every_spelling(psmiles: str) -> None:
    canonical = canonicalize(psmiles)
    elements = [t for t in atom_tokens(canonical) if t != "*"]
    equal = equal_atoms(canonical)
    for written in (psmiles, random_spelling(psmiles, np.random.default_rng(0))):
        found = atoms_as_written(written, canonical)
        assert found is not None
        mol = parse(written).mol
        own = [atom.GetSymbol() for atom in mol.GetAtoms() if atom.GetAtomicNum()]
        copies = len(own) // len(elements)
        # Every atom of the unit stands there once for each copy.
        assert np.bincount(found, minlength=len(elements)).tolist() == [copies] * len(elements)
        for symbol, atom in zip(own, found.tolist(), strict=True):
            assert symbol.lower() in elements[atom].lower()
        # Neighbours stay neighbours.
        number = {
            a.GetIdx(): i for i, a in enumerate(x for x in mol.GetAtoms() if x.GetAtomicNum())
        }
        pairs = _bonded(canonical, equal)
        for bond in mol.GetBonds():
            ends = [number.get(bond.GetBeginAtomIdx()), number.get(bond.GetEndAtomIdx())]
            if None not in ends:
                assert tuple(sorted(int(equal[found[end]]) for end in ends)) in pairs


def _bonded(canonical: str, equal: np.ndarray) -> set[tuple[int, ...]]:
    unit = parse(canonical)
    kept = [i for i in range(unit.mol.GetNumAtoms()) if i not in unit.stars]
    number = {atom: place for place, atom in enumerate(kept)}
    bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in unit.mol.GetBonds()]
    bonds = [(a, b) for a, b in bonds if a in number and b in number] + [unit.ends]
    return {tuple(sorted((int(equal[number[a]]), int(equal[number[b]])))) for a, b in bonds}


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_all_parts_are_the_whole_and_none_is_the_average(psmiles: str) -> None:
    canonical = canonicalize(psmiles)
    whole, parts = chain_features([canonical]), chain_parts(canonical)
    num_atoms = len(parts.own)
    known = np.array([[True] * num_atoms, [False] * num_atoms])
    average = np.random.default_rng(0).random(len(COMPOSITION))
    environments, composition = parts.environments(known), parts.composition(known, average)
    np.testing.assert_array_equal(environments[:1], whole.environments)
    np.testing.assert_allclose(composition[:1], whole.composition, atol=1e-6)
    assert not environments[1].any()
    np.testing.assert_allclose(composition[1], average, atol=1e-6)


def test_a_hidden_atom_hides_what_sees_it() -> None:
    parts = chain_parts("*CO*")
    environments = parts.environments(np.array([[True, False], [False, True]]))
    # Of each atom only the environment of radius 0 does without the other one.
    assert environments.sum(1).tolist() == [1, 1]
    composition = parts.composition(np.array([[True, False]]), np.zeros(len(COMPOSITION)))
    bonds = [is_bond_column(name) for name in COMPOSITION]
    assert not composition[0, bonds].any()
    assert composition[0, COMPOSITION.index("C")] == 0.5
    assert composition[0, COMPOSITION.index("O")] == 0
