"""The star-linking graph of an infinite polymer: a quotient graph with cell shifts.

The infinite chain has an atom ``(i, c)`` for every atom ``i`` of the repeat unit and every cell
``c`` in Z. Bonds inside the unit keep ``c``; the link bond leads from the right boundary atom of
cell ``c`` to the left boundary atom of cell ``c + 1``. `PolymerGraph` stores the quotient with
these shifts, and all pairs of the chain within ``max_hops``, found by search on the chain itself:
exact for every unit length, ``*C*`` included, so no unit is ever repeated to make room (defects
2-5).
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mips_dist.chem.features import atom_features, read_canonical, without_stars
from mips_dist.chem.pairs import find_pairs
from mips_dist.chem.psmiles import RepeatUnit, backbone_path

# Raised whenever the meaning or order of any field below changes; shards, checkpoints and models of
# another schema are refused.
FEATURE_SCHEMA = 1

# Index = code of ``bond_type``.
BOND_TYPES = ("other", "single", "double", "triple", "aromatic")
_BOND_TYPE_OF_TWICE_ORDER = np.array([0, 0, 1, 4, 2, 0, 3], dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class PolymerGraph:
    """One infinite polymer (N atoms, B bonds, P pairs, T and S path entries).

    Attributes
    ----------
    psmiles
        Canonical P-SMILES; atoms stand in its order, stars left out.
    atom_features
        (N, 9) int16, columns `mips_dist.chem.features.ATOM_FEATURES`.
    is_backbone
        (N,) bool: atoms and rings between the attachment points.
    edge_index, bond_type, cell_shift
        (2, B) int16, (B,) uint8 code in `BOND_TYPES`, (B,) int8. Each bond once; the link stands
        last, from right to left boundary atom, with shift +1; all others have shift 0.
    pair_index, pair_shift, pair_hops
        (2, P) int16, (P,) int8, (P,) uint8: atom ``pair_index[0]`` of cell 0 and atom
        ``pair_index[1]`` of cell ``pair_shift`` are ``pair_hops`` bonds apart, self pairs included.
        One row for each atom of the chain within ``max_hops``, sorted by (i, j, hops, cell).
    path_pair, path_position, path_atom, path_weight
        (T,) int32, uint8, int16, float32: of all shortest paths of pair ``path_pair`` the fraction
        ``path_weight`` has atom ``path_atom`` at position 1..hops-1; the ends are not listed. The
        mean over tied paths (defect 11).
    path_bond_pair, path_bond_position, path_bond_type, path_bond_weight
        (S,) int32, uint8, uint8, float32: the same for the type of the bond that leads to position
        1..hops.
    """

    psmiles: str
    atom_features: np.ndarray
    is_backbone: np.ndarray
    edge_index: np.ndarray
    bond_type: np.ndarray
    cell_shift: np.ndarray
    pair_index: np.ndarray
    pair_shift: np.ndarray
    pair_hops: np.ndarray
    path_pair: np.ndarray
    path_position: np.ndarray
    path_atom: np.ndarray
    path_weight: np.ndarray
    path_bond_pair: np.ndarray
    path_bond_position: np.ndarray
    path_bond_type: np.ndarray
    path_bond_weight: np.ndarray


def build_graph(canonical: str, max_hops: int = 2) -> PolymerGraph:
    """Build the graph of one polymer from its canonical P-SMILES (see `build_graphs`)."""
    return build_graphs([canonical], max_hops)[0]


def build_graphs(canonicals: list[str], max_hops: int = 2) -> list[PolymerGraph]:
    """Build graphs from canonical P-SMILES; a polymer's graph does not depend on its neighbours.

    Parameters
    ----------
    canonicals
        Texts written by `mips_dist.chem.psmiles.canonicalize`; others give wrong features.
    max_hops
        Radius of the pair search in bonds of the infinite chain (paper: d_thres = 3, so 2).
    """
    units = [_Unit.read(canonical) for canonical in canonicals]
    if not units:
        return []
    pairs = find_pairs(
        num_atoms=np.array([len(unit.atom_features) for unit in units]),
        edges=[(unit.edge_index, unit.bond_type, unit.cell_shift) for unit in units],
        max_hops=max_hops,
    )
    return [
        PolymerGraph(
            psmiles=canonical,
            atom_features=unit.atom_features,
            is_backbone=unit.is_backbone,
            edge_index=unit.edge_index,
            bond_type=unit.bond_type,
            cell_shift=unit.cell_shift,
            **fields,
        )
        for canonical, unit, fields in zip(canonicals, units, pairs, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Unit:
    """The part of a `PolymerGraph` that RDKit is needed for."""

    atom_features: np.ndarray
    is_backbone: np.ndarray
    edge_index: np.ndarray
    bond_type: np.ndarray
    cell_shift: np.ndarray

    @classmethod
    def read(cls, canonical: str) -> "_Unit":
        unit = read_canonical(canonical)
        unit_index = without_stars(unit)
        edge_index, bond_type = _bonds(unit, unit_index)
        cell_shift = np.zeros(len(bond_type), dtype=np.int8)
        cell_shift[-1] = 1
        features = atom_features(canonical, unit)
        is_backbone = np.zeros(len(features), dtype=bool)
        is_backbone[unit_index[_backbone(unit)]] = True
        return cls(features, is_backbone, edge_index, bond_type, cell_shift)


def _bonds(unit: RepeatUnit, unit_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bonds of the quotient, sorted, the link last."""
    orders = np.triu(unit.bond_orders)
    orders[list(unit.stars), :] = 0
    orders[:, list(unit.stars)] = 0
    begin, end = np.nonzero(orders)
    left, right = unit.ends
    edge_index = unit_index[np.array([[*begin, right], [*end, left]], dtype=np.intp)]
    all_orders = np.append(orders[begin, end], unit.order)
    bond_type = _BOND_TYPE_OF_TWICE_ORDER[(2 * all_orders).astype(np.intp)]
    return edge_index.astype(np.int16), bond_type


def _backbone(unit: RepeatUnit) -> list[int]:
    """Return the atoms of every biconnected block on the block-cut path between the boundary atoms.

    Rings that share a bond lie in one block; a ring system belongs to the backbone if the path runs
    along one of its bonds, not if it only touches an atom of it.
    """
    path = backbone_path(unit)
    on_backbone = set(path)
    steps = list(pairwise(path))
    for system in _ring_systems(unit):
        if any(left in ring and right in ring for ring in system for left, right in steps):
            on_backbone.update(*system)
    return sorted(on_backbone)


def _ring_systems(unit: RepeatUnit) -> list[list[set[int]]]:
    """Group rings (as atom sets) that share a bond, directly or through others."""
    info = unit.mol.GetRingInfo()
    systems: list[tuple[set[int], list[set[int]]]] = []
    for bonds, atoms in zip(info.BondRings(), info.AtomRings(), strict=True):
        merged_bonds, merged_rings = set(bonds), [set(atoms)]
        separate = []
        for other_bonds, other_rings in systems:
            if merged_bonds.isdisjoint(other_bonds):
                separate.append((other_bonds, other_rings))
            else:
                merged_bonds |= other_bonds
                merged_rings += other_rings
        systems = [*separate, (merged_bonds, merged_rings)]
    return [rings for _, rings in systems]
