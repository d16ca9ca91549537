"""Law L2 and the features of the chain, against explicit oligomers built bond by bond."""

from dataclasses import fields

import numpy as np
import pytest

from mips_dist.chem.graph import PolymerGraph, build_graph, build_graphs
from mips_dist.chem.psmiles import canonicalize
from mips_dist.chem.respell import random_spelling
from tests.chem.oligomer import distances_from, explicit_oligomer, features_of, shortest_paths
from tests.polymers import POLYMERS

BOND_CODE = {"SINGLE": 1, "DOUBLE": 2, "TRIPLE": 3, "AROMATIC": 4}


def as_bytes(graph: PolymerGraph) -> list[bytes]:
    return [
        value.encode() if isinstance(value, str) else value.tobytes()
        for value in (getattr(graph, field.name) for field in fields(graph))
    ]


def check_features(graph: PolymerGraph) -> None:
    n = len(graph.atom_features)
    copies = 9 if n <= 4 else 5
    mol, index = explicit_oligomer(graph.psmiles, copies)
    middle = [features_of(mol, index[i, copies // 2]) for i in range(n)]
    np.testing.assert_array_equal(graph.atom_features, middle, err_msg=graph.psmiles)


def check_pairs(graph: PolymerGraph, max_hops: int) -> None:
    """Compare pair list and path data with plain search in an oligomer longer than the radius."""
    n = len(graph.atom_features)
    copies = 2 * max_hops + 1
    mol, index = explicit_oligomer(graph.psmiles, copies)
    where = {atom: key for key, atom in index.items()}
    pairs: dict[tuple[int, int, int], int] = {}
    atoms_on_path: dict[tuple, float] = {}
    bonds_on_path: dict[tuple, float] = {}
    for i in range(n):
        source = index[i, max_hops]
        for atom, hops in distances_from(mol, source, max_hops).items():
            if atom not in where:
                continue
            j, copy = where[atom]
            pair = (i, j, copy - max_hops)
            pairs[pair] = hops
            paths = shortest_paths(mol, source, atom, hops)
            for path in paths:
                for position in range(1, hops + 1):
                    bond = mol.GetBondBetweenAtoms(path[position - 1], path[position])
                    key = (*pair, position, BOND_CODE[bond.GetBondType().name])
                    bonds_on_path[key] = bonds_on_path.get(key, 0) + 1 / len(paths)
                    if position < hops:
                        key = (*pair, position, where[path[position]][0])
                        atoms_on_path[key] = atoms_on_path.get(key, 0) + 1 / len(paths)
    rows = list(zip(*graph.pair_index.tolist(), graph.pair_shift.tolist(), strict=True))
    assert len(set(rows)) == len(rows)
    assert dict(zip(rows, graph.pair_hops.tolist(), strict=True)) == pairs
    order = [(i, j, h, c) for (i, j, c), h in zip(rows, graph.pair_hops.tolist(), strict=True)]
    assert order == sorted(order)
    found_atoms = entries(rows, graph.path_pair, graph.path_position, graph.path_atom)
    assert dict(zip(found_atoms, graph.path_weight.tolist(), strict=True)) == pytest.approx(
        atoms_on_path
    )
    found_bonds = entries(
        rows, graph.path_bond_pair, graph.path_bond_position, graph.path_bond_type
    )
    assert dict(zip(found_bonds, graph.path_bond_weight.tolist(), strict=True)) == pytest.approx(
        bonds_on_path
    )


def entries(rows, pair, position, value):
    return [
        (*rows[p], k, v)
        for p, k, v in zip(pair.tolist(), position.tolist(), value.tolist(), strict=True)
    ]


@pytest.mark.parametrize("polymer", POLYMERS)
def test_features_equal_the_middle_of_an_oligomer(polymer):
    check_features(build_graph(canonicalize(polymer)))


@pytest.mark.parametrize("max_hops", [1, 2, 3, 4, 5])
def test_pairs_and_paths_equal_those_of_an_oligomer(max_hops):
    polymers = [canonicalize(p) for p in POLYMERS if len(p) < 40]
    lengths = [f"*{'CNOCSNCOC'[:length]}*" for length in range(1, 10)]
    for graph in build_graphs([*polymers, *map(canonicalize, lengths)], max_hops):
        check_pairs(graph, max_hops)


def test_spelling_changes_no_byte():
    rng = np.random.default_rng(3)
    for polymer in POLYMERS:
        expected = as_bytes(build_graph(canonicalize(polymer)))
        for _ in range(3):
            spelling = random_spelling(polymer, rng)
            assert as_bytes(build_graph(canonicalize(spelling))) == expected


def test_neighbours_in_the_list_change_no_byte():
    canonicals = [canonicalize(p) for p in POLYMERS]
    together = build_graphs(canonicals, max_hops=3)
    for canonical, graph in zip(canonicals, together, strict=True):
        assert as_bytes(build_graph(canonical, max_hops=3)) == as_bytes(graph)


@pytest.mark.parametrize(
    ("polymer", "backbone"),
    [
        # para ring: both sides, whichever path the search took; the methyl stays out
        ("*c1ccc(*)c(C)c1", 6),
        # side ring out
        ("*CC(*)c1ccccc1", 2),
        # spiro ring that the chain only touches stays out
        ("*C1(*)CCCCC1", 1),
        # fused system counts as one block
        ("*c1ccc2cc(*)ccc2c1", 10),
        # amide: carbonyl oxygen out
        ("*NCC(*)=O", 3),
    ],
)
def test_backbone_is_atoms_and_rings(polymer, backbone):
    assert build_graph(canonicalize(polymer)).is_backbone.sum() == backbone


def simple_path_atoms(graph: PolymerGraph) -> set[int]:
    """Atoms of all paths between the boundary atoms that meet no atom twice: brute force."""
    *bonds, (right, left) = graph.edge_index.T.tolist()
    neighbours: dict[int, list[int]] = {}
    for a, b in bonds:
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    found = set()
    paths = [[left]]
    while paths:
        path = paths.pop()
        if path[-1] == right:
            found.update(path)
            continue
        paths += [[*path, atom] for atom in neighbours.get(path[-1], []) if atom not in path]
    return found


@pytest.mark.parametrize(
    "polymer",
    [
        *POLYMERS,
        # blocks whose outer rings share no bond with any shortest path
        "*c1ccc2c(c1)c1ccc3ccccc3c1cc2*",
        "*C1CC2CC3CC1CC(C3)C2*",
        "*CC12CC3CC(CC(C3)C1)C2*",
        "*C1CC2(CC1)CC1CCC2C1*",
        "*c1ccc2cc3ccccc3cc2c1CC(*)C1CC2CCC1C2",
    ],
)
def test_backbone_is_every_way_along_the_chain(polymer):
    graph = build_graph(canonicalize(polymer))
    assert set(np.flatnonzero(graph.is_backbone).tolist()) == simple_path_atoms(graph)


def test_link_is_the_only_shifted_bond():
    for polymer in POLYMERS:
        graph = build_graph(canonicalize(polymer))
        assert graph.cell_shift.tolist() == [0] * (len(graph.cell_shift) - 1) + [1]


@pytest.mark.needs_data
def test_laws_over_every_benchmark_polymer(benchmark_texts):
    canonicals = sorted({canonicalize(text) for text in benchmark_texts})
    for graph in build_graphs(canonicals):
        check_features(graph)
        check_pairs(graph, max_hops=2)
