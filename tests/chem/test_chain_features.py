"""Features of the infinite chain: no trace of the cut, of the ends or of the unit's repetition."""

import numpy as np
from rdkit import Chem

from mips_dist.chem.chain_features import (
    COMPOSITION,
    MAX_COUNT,
    TOPOLOGY,
    _environments,
    chain_features,
)
from mips_dist.chem.descriptors import cap_with_methyl
from mips_dist.chem.psmiles import RepeatUnit, canonicalize, oligomer, parse
from mips_dist.chem.respell import random_spelling
from tests.polymers import CORNER_CASES

CANONICALS = sorted(set(CORNER_CASES.values()))


def long_chain(unit: RepeatUnit, copies: int, kept: int) -> tuple[Chem.Mol, list[int]]:
    """Write a capped chain of some copies; return it and the atoms of copy number ``kept``."""
    chain, origin = oligomer(unit, copies)
    size = unit.mol.GetNumAtoms()
    return cap_with_methyl(chain), [new for new, old in enumerate(origin) if old // size == kept]


def test_environments_are_those_of_a_longer_oligomer_and_of_any_spelling() -> None:
    """Counts of one unit do not change with the length of the oligomer, nor with the cut."""
    rng = np.random.default_rng(0)
    features = chain_features(CANONICALS)
    for canonical, counts in zip(CANONICALS, features.environments, strict=True):
        longer = _environments(*long_chain(parse(canonical), 15, 7))
        np.testing.assert_array_equal(counts, longer, canonical)
        unit = parse(random_spelling(canonical, rng, max_repeats=2))
        copies = (unit.mol.GetNumAtoms() - 2) / (parse(canonical).mol.GetNumAtoms() - 2)
        other = _environments(*long_chain(unit, 11, 5)).astype(float)
        if other.max() < MAX_COUNT:
            np.testing.assert_allclose(other / copies, counts, err_msg=canonical)


def test_composition_of_polymers_that_can_be_counted_by_hand() -> None:
    for psmiles, expected in {
        "*CC*": {"H": 2, "C": 1, "CSP32": 1, "C-C": 1},
        "*CC(*)Cl": {"H": 1, "C": 2 / 3, "Cl": 1 / 3, "C-C": 2 / 3, "C-Cl": 1 / 3},
        "*OC*": {"H": 1, "C": 0.5, "O": 0.5, "C-O": 1.0},
    }.items():
        row = chain_features([canonicalize(psmiles)]).composition[0]
        for name, value in expected.items():
            assert np.isclose(row[COMPOSITION.index(name)], value), (psmiles, name)


def test_topology_of_polystyrene_and_nylon() -> None:
    styrene, nylon = chain_features(
        [canonicalize("*CC(*)c1ccccc1"), canonicalize("*NCCCCCC(=O)*")]
    ).topology
    at = TOPOLOGY.index
    assert np.isclose(styrene[at("side atoms")], 6 / 8)
    assert styrene[at("largest ring")] == 6
    assert styrene[at("rings in the backbone")] == 0
    assert nylon[at("longest run of CH2 on the path")] == 5
    assert np.isclose(nylon[at("path heteroatoms")], 1 / 7)


def test_a_polymer_has_the_same_features_in_any_company() -> None:
    together = chain_features(CANONICALS[:13])
    for i in (0, 7, 12):
        alone = chain_features([CANONICALS[i]])
        for name in ("environments", "composition", "topology", "descriptors", "bands"):
            np.testing.assert_array_equal(
                getattr(alone, name)[0], getattr(together, name)[i], f"{CANONICALS[i]} {name}"
            )
    assert (
        together.num_atoms() == [Chem.MolFromSmiles(c).GetNumAtoms() - 2 for c in CANONICALS[:13]]
    ).all()
