"""The star strategies: what each makes of a unit, and where ours differs from all of them."""

from dataclasses import fields

import numpy as np
import pytest
from rdkit import Chem

from mips_dist.chem.features import ATOM_FEATURES
from mips_dist.chem.graph import PolymerGraph, build_graph, build_graphs
from mips_dist.chem.psmiles import canonicalize, parse
from mips_dist.chem.stars import STAR_STRATEGIES, build_star_graphs, substituted_molecule
from tests.polymers import POLYMERS

FINITE = ("keep", "remove", "substitute")
HYBRIDIZATION = ATOM_FEATURES.index("hybridization")


def assert_equal(one: PolymerGraph, other: PolymerGraph, but: str = "") -> None:
    for field in fields(one):
        if field.name != but:
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_a_unit_of_two_atoms_by_hand():
    keep, remove, substitute, cut, link = (
        build_star_graphs(["*CO*"], strategy)[0] for strategy in STAR_STRATEGIES
    )
    star, carbon, oxygen = (keep.atom_features[i].tolist() for i in (0, 1, 2))
    assert (star[0], carbon[:2], oxygen[:2]) == (0, [6, 2], [8, 2])
    assert keep.atom_features.tolist() == [star, carbon, oxygen, star]
    assert remove.atom_features.tolist() == [carbon, oxygen]
    # Each star is a copy of the boundary atom at the other end.
    assert substitute.atom_features.tolist() == [oxygen, carbon, oxygen, carbon]
    assert cut.atom_features.tolist() == [carbon, oxygen]
    assert (
        keep.edge_index.T.tolist() == substitute.edge_index.T.tolist() == [[0, 1], [1, 2], [2, 3]]
    )
    assert remove.edge_index.T.tolist() == [[0, 1]]
    assert cut.edge_index.T.tolist() == link.edge_index.T.tolist() == [[0, 1], [1, 0]]
    assert cut.cell_shift.tolist() == link.cell_shift.tolist() == [0, 1]
    assert [g.psmiles for g in (keep, remove, substitute, cut, link)] == ["*CO*"] * 5


@pytest.mark.parametrize("strategy", FINITE)
@pytest.mark.parametrize("max_hops", [1, 3])
def test_pairs_of_finite_graphs_are_those_of_the_molecule(strategy, max_hops):
    for graph in build_star_graphs(POLYMERS, strategy, max_hops):
        mol = Chem.MolFromSmiles(graph.psmiles)
        distance = Chem.GetDistanceMatrix(mol)
        if strategy == "remove":
            atoms = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum()]
            distance = distance[np.ix_(atoms, atoms)]
        query, key = (distance <= max_hops).nonzero()
        order = np.lexsort([key, query])
        np.testing.assert_array_equal(graph.pair_index, np.stack([query, key])[:, order])
        np.testing.assert_array_equal(graph.pair_hops, distance[query, key][order])
        assert not graph.pair_shift.any()
        assert not graph.cell_shift.any()


def test_link_is_the_graph_of_the_canonical_spelling():
    spellings = ["*NC(=O)CC*", "*C(=O)CCN*", "*CCCC*", "*Oc1ccc(*)cc1"]
    for text, graph in zip(spellings, build_star_graphs(spellings, "link"), strict=True):
        assert_equal(graph, build_graph(canonicalize(text)))


def test_features_at_the_cut_differ_from_ours_in_hybridization_alone():
    canonicals = [canonicalize(polymer) for polymer in POLYMERS]
    cut = build_star_graphs(canonicals, "link_cut_features")
    changed = []
    for graph, ours in zip(cut, build_graphs(canonicals), strict=True):
        assert_equal(graph, ours, but="atom_features")
        differs = graph.atom_features != ours.atom_features
        assert not np.delete(differs, HYBRIDIZATION, axis=1).any(), graph.psmiles
        if differs.any():
            changed.append(graph.psmiles)
    assert 0 < len(changed) < len(canonicals)


def test_features_at_the_cut_depend_on_the_cut():
    spellings = ["*NC(=O)CC*", "*C(=O)CCN*"]
    nitrogens = {}
    for strategy in ("link_cut_features", "link"):
        graphs = build_star_graphs(spellings, strategy)
        rows = [g.atom_features[g.atom_features[:, 0] == 7] for g in graphs]
        nitrogens[strategy] = [row[0, HYBRIDIZATION] for row in rows]
    assert len(set(nitrogens["link_cut_features"])) == 2
    assert len(set(nitrogens["link"])) == 1


@pytest.mark.parametrize("strategy", STAR_STRATEGIES)
def test_neighbours_in_the_list_never_matter(strategy):
    together = build_star_graphs(POLYMERS, strategy)
    for polymer, graph in zip(POLYMERS, together, strict=True):
        assert_equal(build_star_graphs([polymer], strategy)[0], graph)
    assert build_star_graphs([], strategy) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*CO*", "OCOC"),
        ("*C*", "CCC"),
        ("*c1ccc(O*)cc1", "COc1ccc(O)cc1"),
        ("*n1cccc1C*", "Cn1cccc1CN"),
        ("*=CC=*", "C=CC=C"),
        ("*#CC#*", "C#CC#C"),
        ("*CC[N+](*)(C)C", "C[N+](C)(C)CC[NH3+]"),
        ("*c1ccc[s+]1*", "C[s+]1cccc1[SH2+]"),
        ("*[13CH2]O*", "O[13CH2]O[13CH3]"),
        ("*S(=O)(=O)c1ccc(*)cc1", "CS(=O)(=O)c1ccc(S)cc1"),
        ("*[Si](C)(C)O*", "C[Si](C)(O)O[SiH3]"),
        ("*[C](C)*", "C[C](C)C"),
    ],
)
def test_substituted_molecules_by_hand(text, expected):
    mol = substituted_molecule(text)
    assert Chem.MolToSmiles(mol) == Chem.CanonSmiles(expected)


def check_substituted(text: str) -> None:
    """Every atom but the two stars is as it was, and the stars are those of the graph."""
    unit, mol = parse(text), substituted_molecule(text)
    assert Chem.MolFromSmiles(Chem.MolToSmiles(mol)) is not None, text
    for before, after in zip(unit.mol.GetAtoms(), mol.GetAtoms(), strict=True):
        if before.GetIdx() in unit.stars:
            place = unit.stars.index(before.GetIdx())
            source = unit.mol.GetAtomWithIdx(unit.ends[1 - place])
            assert after.GetAtomicNum() == source.GetAtomicNum()
            assert after.GetFormalCharge() == source.GetFormalCharge()
            assert not after.GetIsAromatic()
            assert [b.GetBondTypeAsDouble() for b in after.GetBonds()] == [unit.order]
        else:
            for state in ("AtomicNum", "FormalCharge", "TotalNumHs", "IsAromatic", "Isotope"):
                assert getattr(before, f"Get{state}")() == getattr(after, f"Get{state}")(), text


@pytest.mark.parametrize("text", POLYMERS)
def test_substituted_molecules_keep_the_unit(text):
    check_substituted(text)


@pytest.mark.needs_data
def test_every_benchmark_polymer_has_a_substituted_molecule(benchmark_texts):
    for text in benchmark_texts:
        check_substituted(text)
