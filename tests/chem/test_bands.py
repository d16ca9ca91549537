"""Bands against closed forms, an unfolded Hamiltonian, other spellings, finite chains, labels."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from scipy.stats import spearmanr

from mips_dist.chem.band_parameters import (
    BETA_OF_TYPE,
    ELEMENTS,
    HBAR2_OVER_M,
    HUECKEL_H,
    HUECKEL_K,
    HYDROGEN,
)
from mips_dist.chem.bands import BAND_DESCRIPTORS, band_descriptors, band_structure
from mips_dist.chem.graph import build_graph
from mips_dist.chem.psmiles import allowed_cuts, canonicalize, parse, random_spelling, write_cut
from mips_dist.chem.sample import featurize
from mips_dist.chem.tight_binding import Chain, NoBands, _sigma_hopping, build_chain
from tests.chem.oligomer import explicit_oligomer
from tests.polymers import POLYMERS

SINGLE, DOUBLE = BETA_OF_TYPE[1], BETA_OF_TYPE[2]
HALF_FILLED = "*[CH]*"  # polyacetylene without alternation


def chain_of(psmiles: str) -> Chain:
    return build_chain(build_graph(psmiles, max_hops=1))


def all_levels(chain: Chain, k: np.ndarray) -> np.ndarray:
    flat = np.broadcast_to(chain.flat, (len(k), len(chain.flat)))
    return np.sort(np.concatenate([chain.sigma.levels(k), chain.pi.levels(k), flat], 1), axis=1)


def test_polyacetylene_with_bond_alternation() -> None:
    bands = band_structure("*C=C*", 33)
    energy = np.abs(DOUBLE + SINGLE * np.exp(1j * bands.k))
    np.testing.assert_allclose(bands.pi, np.stack([-energy, energy], axis=1), atol=2e-9)
    assert bands.num_pi_occupied == 1
    assert abs(np.ptp(bands.pi[0]) - 2 * (DOUBLE + SINGLE)) < 5e-9
    gap = bands.pi[:, 1].min() - bands.pi[:, 0].max()
    assert abs(gap - 2 * (DOUBLE - SINGLE)) < 5e-9


def test_polyacetylene_without_bond_alternation_is_a_metal() -> None:
    bands = band_structure(canonicalize(HALF_FILLED), 33)
    expected = -2 * SINGLE * np.cos(bands.k)
    np.testing.assert_allclose(bands.pi[:, 0], expected, atol=2e-9)
    two = chain_of("*[CH][CH]*").hueckel.levels(np.array([0.0, np.pi]))
    assert abs(two[1, 1] - two[1, 0]) < 1e-12  # the folded bands touch


def test_poly_p_phenylene() -> None:
    bands = band_structure("*c1ccc(*)cc1", 33)
    # Of the ring's six orbitals, two are odd about the long axis and do not reach the link; the
    # other four are a ring of hoppings sqrt 2, 1, sqrt 2 and the link's g.
    g = SINGLE
    for k, levels in zip(bands.k, bands.pi, strict=True):
        roots = np.roots([1, 0, -(5 + g * g), 0, 4 + g * g - 4 * g * np.cos(k)]).real
        expected = np.sort([*roots, -1.0, 1.0])
        np.testing.assert_allclose(levels, expected, atol=1e-8)


def test_polyethylene() -> None:
    """Every level solves (E - a)^2 = |b + t e^{ik}|^2, hydrogens and their hybrid eliminated."""
    carbon = ELEMENTS[6]
    e, v = (carbon.s + 3 * carbon.p) / 4, (carbon.s - carbon.p) / 4
    t = _sigma_hopping(4, 4) * HBAR2_OVER_M / (2 * carbon.radii[0]) ** 2
    to_h = _sigma_hopping(4, 1) * HBAR2_OVER_M / (carbon.radii[0] + HYDROGEN.radii[0]) ** 2
    chain = chain_of("*C*")
    k = np.linspace(0.1, 3.0, 11)
    for wave_number, levels in zip(k, chain.sigma.levels(k), strict=True):
        shared = 2 * v * v / (levels - e - v - to_h**2 / (levels - HYDROGEN.s))
        left = (levels - e - shared) ** 2
        right = np.abs(v + shared + t * np.exp(1j * wave_number)) ** 2
        np.testing.assert_allclose(left, right, rtol=1e-8)
    at_edges = chain.sigma.levels(np.array([0.0, np.pi]))
    assert np.abs(at_edges[0] - (carbon.p - t)).min() < 1e-9
    assert np.abs(at_edges[1] - (carbon.p + t)).min() < 1e-9
    # The odd pair of hydrogens: p beside 1s.
    pair = np.linalg.eigvalsh([[carbon.p, to_h], [to_h, HYDROGEN.s]])
    np.testing.assert_allclose(np.sort(chain.flat), pair, atol=1e-12)
    assert abs(_sigma_hopping(4, 4) + 3.22) < 0.01  # Harrison's value for sp3


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_edges_stand_at_zero_and_pi_and_electrons_fit(psmiles: str) -> None:
    chain = chain_of(psmiles)
    assert chain.num_electrons <= 2 * all_levels(chain, np.zeros(1)).shape[1]
    assert 0 <= chain.num_pi_electrons <= 2 * len(chain.pi.h0)
    fine = chain.sigma.levels(np.linspace(0, np.pi, 17))
    ends = np.sort(fine[[0, -1]], axis=0)
    assert (fine > ends[0] - 1e-9).all()
    assert (fine < ends[1] + 1e-9).all()


@pytest.mark.parametrize("psmiles", ["*C*", "*CC(*)C", "*[Si](C)(C)O*", "*C(F)(F)C(*)(F)F"])
def test_folded_hydrogens_and_lone_pairs_change_no_level(psmiles: str) -> None:
    """The same chain with every hybrid and every hydrogen written out."""
    graph = build_graph(psmiles, max_hops=1)
    k = np.array([0.0, 0.7, np.pi])
    h0, h1 = unfolded_sp3(graph)
    for wave_number, levels in zip(k, all_levels(build_chain(graph), k), strict=True):
        phase = np.exp(1j * wave_number)
        expected = np.linalg.eigvalsh(h0 + h1 * phase + h1.T / phase)
        np.testing.assert_allclose(levels, expected, atol=1e-9)


def unfolded_sp3(graph) -> tuple[np.ndarray, np.ndarray]:
    """H0 and H1 of a chain of sp3 atoms, one orbital for each hybrid and hydrogen."""
    rows = graph.atom_features
    size = sum(4 + int(row[6]) for row in rows)
    h0, h1 = np.zeros((size, size)), np.zeros((size, size))
    free, place = [], 0
    for row in rows:
        element = ELEMENTS[int(row[0])]
        block = slice(place, place + 4)
        h0[block, block] = (element.s - element.p) / 4
        h0[block, block] += np.eye(4) * element.p
        free.append(list(range(place, place + 4)))
        place += 4
        for _ in range(int(row[6])):
            hop = _sigma_hopping(4, 1) * HBAR2_OVER_M
            hop /= (element.radii[0] + HYDROGEN.radii[0]) ** 2
            own = free[-1].pop()
            h0[place, place] = HYDROGEN.s
            h0[own, place] = h0[place, own] = hop
            place += 1
    for (i, j), shift in zip(graph.edge_index.T, graph.cell_shift, strict=True):
        d = sum(ELEMENTS[int(rows[a][0])].radii[0] for a in (i, j))
        u, v = free[i].pop(), free[j].pop()
        into = h1 if shift else h0
        into[u, v] = _sigma_hopping(4, 4) * HBAR2_OVER_M / d**2
        if not shift:
            into[v, u] = into[u, v]
    return h0, h1


# L1


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_spellings_give_equal_bytes(psmiles: str) -> None:
    rng = np.random.default_rng(0)
    (expected,) = band_descriptors([canonicalize(psmiles)])
    for _ in range(3):
        (found,) = band_descriptors([canonicalize(random_spelling(psmiles, rng))])
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_cuts_change_no_level(psmiles: str) -> None:
    k = np.linspace(0, np.pi, 4)
    unit = parse(psmiles)
    expected = chain_of(psmiles)
    for cut in allowed_cuts(unit):
        if cut.order != unit.order:
            continue
        chain = chain_of(write_cut(unit, cut))
        np.testing.assert_allclose(all_levels(chain, k), all_levels(expected, k), atol=1e-9)
        np.testing.assert_allclose(chain.hueckel.levels(k), expected.hueckel.levels(k), atol=1e-9)


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_a_doubled_unit_folds_the_bands(psmiles: str) -> None:
    text = Chem.MolToSmiles(explicit_oligomer(psmiles, 2)[0]).replace("[*]", "*")
    doubled = chain_of(text)
    single = chain_of(psmiles)
    k = np.array([0.0, 0.4, 2.0, np.pi])
    both = np.concatenate([all_levels(single, k / 2), all_levels(single, np.pi - k / 2)], axis=1)
    np.testing.assert_allclose(all_levels(doubled, k), np.sort(both, axis=1), atol=1e-9)
    assert doubled.num_electrons == 2 * single.num_electrons
    assert doubled.num_pi_electrons == 2 * single.num_pi_electrons


@pytest.mark.parametrize("psmiles", ["*C=C*", "*CC(*)c1ccccc1", "*c1ccc(*)s1", "*CNC(=O)C*"])
def test_the_centre_of_a_long_finite_chain_has_the_same_density(psmiles: str) -> None:
    chain = chain_of(psmiles)
    cells, k = 41, np.linspace(0, np.pi, 129)
    weight = np.ones(len(k))
    weight[[0, -1]] = 0.5
    for block in (chain.sigma, chain.pi):
        size = len(block.h0)
        finite = np.kron(np.eye(cells), block.h0) + np.kron(np.eye(cells, k=1), block.h1)
        finite += np.kron(np.eye(cells, k=-1), block.h1.T)
        energy, vector = np.linalg.eigh(finite)
        centre = vector[size * (cells // 2) : size * (cells // 2 + 1)]
        for at in (-25.0, -13.0, -9.0, -2.0):
            local = ((centre**2).sum(0) * np.exp(-((energy - at) ** 2) / 2)).sum()
            levels = np.exp(-((block.levels(k) - at) ** 2) / 2).sum(1)
            assert abs(local - weight @ levels / weight.sum()) < 1e-6


# What has bands, and what has none


def test_descriptors_are_finite_and_near_the_unit() -> None:
    rows = np.stack(band_descriptors([canonicalize(p) for p in POLYMERS]))
    assert rows.shape == (len(POLYMERS), len(BAND_DESCRIPTORS))
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert np.abs(rows).max() <= 5
    assert np.mean(np.abs(rows) <= 3) > 0.8  # most of these chains are extreme on purpose
    alone = band_descriptors([canonicalize(POLYMERS[-1])])[0]
    assert alone.tobytes() == rows[-1].tobytes()


@pytest.mark.parametrize(
    ("psmiles", "reason"),
    [("*CC(*)C(=O)O[Na]", "element 11"), ("*" + "CC(C)O" * 100 + "C*", "too_large: 401")],
)
def test_a_polymer_without_bands_lacks_the_group(psmiles: str, reason: str) -> None:
    canonical = canonicalize(psmiles)
    with pytest.raises(NoBands, match=reason):
        band_structure(canonical)
    with_bands, without = featurize(["*CC(*)C", canonical], content="descriptors")
    assert "bands" in with_bands.descriptors
    assert set(without.descriptors) == {"rdkit_2d"}


def test_p_orbitals_bring_their_electrons() -> None:
    assert len(HUECKEL_H) == len(HUECKEL_K)
    assert [len(row) for row in HUECKEL_K] == list(range(1, 14))
    for ring in ("*c1ccc(*)cc1", "*c1ccc(*)nc1", "*c1ccc(*)[nH]1", "*c1ccc(*)s1", "*c1ccc(*)o1"):
        assert chain_of(ring).num_pi_electrons == 6
    assert chain_of("*CNC(=O)C*").num_pi_electrons == 4
    assert chain_of("*CC(*)[N+](=O)[O-]").num_pi_electrons == 4
    assert chain_of("*CS(=O)(=O)C*").num_pi_electrons == 4  # S+-O-, lone pairs


@pytest.mark.skipif("MIPS_DATA" not in os.environ, reason="needs the benchmark sets")
@pytest.mark.parametrize(
    ("name", "descriptor", "least"),
    [("Egb", "gap", 0.9), ("Eea", "gap", -0.78), ("Nc", "gap", -0.78)],
)
def test_gaps_rank_real_polymers(name: str, descriptor: str, least: float) -> None:
    path = Path(os.environ["MIPS_DATA"]) / "benchmark" / f"{name}.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))[::2]
    described = band_descriptors([canonicalize(row["psmiles"]) for row in rows])
    column = BAND_DESCRIPTORS.index(descriptor)
    known = [(d[column], float(row["value"])) for d, row in zip(described, rows, strict=True)]
    found = spearmanr(*zip(*known, strict=True))[0]
    assert found * np.sign(least) > abs(least)
