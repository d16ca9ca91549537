"""The star-linking graph of an infinite polymer: a quotient graph with cell shifts.

The infinite chain has an atom ``(i, c)`` for every atom ``i`` of the repeat unit and every cell
``c`` in Z. Bonds inside the unit keep ``c``; the link bond leads from the right boundary atom of
cell ``c`` to the left boundary atom of cell ``c + 1``. `PolymerGraph` stores the quotient with
these shifts, and all pairs of the chain within ``max_hops``, found by search on the chain itself:
exact for every unit length, ``*C*`` included, so no unit is ever repeated to make room (defects
2-5).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mips_dist.chem.features import atom_features, read_canonical, ring_sizes, sp2_atoms
from mips_dist.chem.pairs import find_pairs
from mips_dist.chem.psmiles import RepeatUnit, backbone_path

# Raised whenever the meaning or order of any field below changes; shards, checkpoints and models of
# another schema are refused.
FEATURE_SCHEMA = 1

# Index = code of ``bond_type``.
BOND_TYPES = ("other", "single", "double", "triple", "aromatic")
_BOND_TYPE_OF_TWICE_ORDER = np.array([0, 0, 1, 4, 2, 0, 3], dtype=np.uint8)


def bond_types(orders: np.ndarray) -> np.ndarray:
    """Return the code in `BOND_TYPES` of each bond order (uint8)."""
    return _BOND_TYPE_OF_TWICE_ORDER[(2 * orders).astype(np.intp)]


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

    Arrays of a graph are stretches of arrays of the whole list: one kept graph keeps them all.

    Parameters
    ----------
    canonicals
        Texts written by `mips_dist.chem.psmiles.canonicalize`; others give wrong features.
    max_hops
        Radius of the pair search in bonds of the infinite chain (paper: d_thres = 3, so 2).
    """
    if not canonicals:
        return []
    # RDKit is asked unit by unit, numpy once for all: on 30 atoms most of a numpy call is overhead.
    units = [_Unit.read(canonical) for canonical in canonicals]
    atoms = _Atoms.number(units)
    row, column, order = _entries(units, atoms)
    num_in_all = len(atoms.is_atom)
    features = atom_features(
        canonicals,
        degrees=np.bincount(row, minlength=num_in_all),
        order_sums=np.bincount(row, weights=order, minlength=num_in_all),
        is_sp2=atoms.marked(unit.sp2 for unit in units),
        sizes=np.concatenate([unit.ring_sizes for unit in units]),
        is_atom=atoms.is_atom,
    )
    is_backbone = atoms.marked(unit.backbone for unit in units)[atoms.is_atom]
    bonds = _Bonds.collect(units, atoms, row, column, order)
    # Without stars, two to a unit.
    starts = atoms.first - 2 * np.arange(len(units) + 1)
    pairs = find_pairs(starts, bonds.edge_index, bonds.bond_type, bonds.cell_shift, max_hops)
    offset = np.repeat(starts[:-1], np.diff(bonds.ends))
    edge_index = (bonds.edge_index - offset).astype(np.int16)
    graphs = []
    for i, (canonical, fields) in enumerate(zip(canonicals, pairs, strict=True)):
        of_atoms = slice(starts[i], starts[i + 1])
        of_bonds = slice(bonds.ends[i], bonds.ends[i + 1])
        graphs.append(
            PolymerGraph(
                psmiles=canonical,
                atom_features=features[of_atoms],
                is_backbone=is_backbone[of_atoms],
                edge_index=edge_index[:, of_bonds].copy(),
                bond_type=bonds.bond_type[of_bonds],
                cell_shift=bonds.cell_shift[of_bonds],
                **fields,
            )
        )
    return graphs


@dataclass(frozen=True, slots=True)
class _Unit:
    """What RDKit is needed for, of one unit; n atoms in the order of the text, stars included.

    ``stars``, ``ends`` and ``order`` are those of `RepeatUnit`. ``places`` and ``orders`` list the
    entries of its matrix of bond orders as ``row * n + column`` and value: the matrices of a block
    of units of a thousand atoms would fill the memory. ``sp2`` and ``backbone`` list atoms,
    ``ring_sizes`` has one for each atom.
    """

    stars: tuple[int, int]
    ends: tuple[int, int]
    order: float
    places: np.ndarray
    orders: np.ndarray
    sp2: list[int]
    backbone: set[int]
    ring_sizes: list[int]

    @classmethod
    def read(cls, canonical: str) -> "_Unit":
        unit = read_canonical(canonical)
        rings = unit.mol.GetRingInfo().AtomRings()
        matrix = unit.bond_orders.ravel()
        (places,) = matrix.nonzero()
        return cls(
            stars=unit.stars,
            ends=unit.ends,
            order=unit.order,
            places=places,
            orders=matrix[places],
            sp2=sp2_atoms(unit),
            backbone=backbone_atoms(unit, rings),
            ring_sizes=ring_sizes(rings, len(unit.bond_orders)),
        )


@dataclass(frozen=True, slots=True)
class _Atoms:
    """The atoms of many units numbered through: U with stars, N without.

    ``first`` (units + 1,) is the first of each unit, stars counted; ``is_atom`` (U,) is False for
    stars; ``index`` (U,) is the number without stars, void for the stars.
    """

    first: np.ndarray
    is_atom: np.ndarray
    index: np.ndarray

    @classmethod
    def number(cls, units: list[_Unit]) -> "_Atoms":
        first = np.cumsum([0, *(len(unit.ring_sizes) for unit in units)])
        is_star = _marked((unit.stars for unit in units), first)
        return cls(first, ~is_star, np.cumsum(~is_star) - 1)

    def marked(self, atoms: Iterable[Iterable[int]]) -> np.ndarray:
        """Return (U,) bool: True for the atoms listed for each unit."""
        return _marked(atoms, self.first)


def _marked(atoms: Iterable[Iterable[int]], first: np.ndarray) -> np.ndarray:
    is_marked = np.zeros(first[-1], dtype=bool)
    is_marked[
        [start + i for start, own in zip(first.tolist(), atoms, strict=False) for i in own]
    ] = True
    return is_marked


def _entries(units: list[_Unit], atoms: _Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row, column and value of all bond orders, each bond twice, atoms numbered through."""
    counts = [len(unit.places) for unit in units]
    first = np.repeat(atoms.first[:-1], counts)
    size = np.repeat(np.diff(atoms.first), counts)
    row, column = np.divmod(np.concatenate([unit.places for unit in units]), size)
    return row + first, column + first, np.concatenate([unit.orders for unit in units])


@dataclass(frozen=True, slots=True)
class _Bonds:
    """The bonds of many quotients: sorted in each, its link last; atoms without stars.

    ``edge_index`` (2, B) int64, ``bond_type`` (B,) uint8 and ``cell_shift`` (B,) int8 as in
    `PolymerGraph`; those of polymer ``i`` are ``ends[i]`` to ``ends[i + 1]``.
    """

    edge_index: np.ndarray
    bond_type: np.ndarray
    cell_shift: np.ndarray
    ends: np.ndarray

    @classmethod
    def collect(
        cls,
        units: list[_Unit],
        atoms: _Atoms,
        row: np.ndarray,
        column: np.ndarray,
        order: np.ndarray,
    ) -> "_Bonds":
        (inner,) = ((row < column) & atoms.is_atom[row] & atoms.is_atom[column]).nonzero()
        unit = np.searchsorted(atoms.first, row[inner], side="right") - 1
        ends = np.cumsum([0, *(np.bincount(unit, minlength=len(units)) + 1)])
        link = ends[1:] - 1
        # Every link before it moves a bond on by one.
        place = np.arange(len(inner)) + unit
        edge_index = np.empty((2, ends[-1]), dtype=np.int64)
        edge_index[:, place] = atoms.index[np.stack([row[inner], column[inner]])]
        left, right = np.array([u.ends for u in units]).T + atoms.first[:-1]
        edge_index[:, link] = atoms.index[np.stack([right, left])]
        orders = np.empty(ends[-1])
        orders[place] = order[inner]
        orders[link] = [u.order for u in units]
        cell_shift = np.zeros(ends[-1], dtype=np.int8)
        cell_shift[link] = 1
        bond_type = bond_types(orders)
        return cls(edge_index, bond_type, cell_shift, ends)


def backbone_atoms(unit: RepeatUnit, rings: tuple[tuple[int, ...], ...]) -> set[int]:
    """Return the atoms of every biconnected block on the block-cut path between the boundary atoms.

    A ring that shares two atoms with blocks of that path closes a cycle with them, so it lies in
    one of them; each block is the union of such rings. A ring that the path only touches is out.
    """
    backbone = set(backbone_path(unit))
    others = [set(ring) for ring in rings]
    while others:
        outside = []
        for ring in others:
            if len(ring & backbone) > 1:
                backbone |= ring
            else:
                outside.append(ring)
        if len(outside) == len(others):
            break
        others = outside
    return backbone
