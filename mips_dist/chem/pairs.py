"""Breadth-first search on the infinite chain, for many polymers at once.

The search runs over lifted atoms ``(i, c)`` from every atom of cell 0 in step, all polymers of a
block as one disjoint graph, so that numpy's cost per call is shared. Besides distances it keeps,
for each pair, the distribution over all tied shortest paths of the atom at each position and of the
type of the bond at each step (defect 11: picking one path depends on atom order).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class _Level:
    """All pairs at one distance: source atom, reached atom and cell, and their paths.

    ``entries`` of atoms and bonds are rows (pair of this level, position, value) with weights.
    """

    source: np.ndarray
    atom: np.ndarray
    cell: np.ndarray
    num_paths: np.ndarray
    atoms_on_path: "_Entries"
    bonds_on_path: "_Entries"

    def keys(self, num_atoms: int, max_hops: int) -> np.ndarray:
        return _lift_key(self.source, self.atom, self.cell, num_atoms, max_hops)


@dataclass(frozen=True, slots=True)
class _Entries:
    pair: np.ndarray
    position: np.ndarray
    value: np.ndarray
    weight: np.ndarray

    @classmethod
    def empty(cls) -> "_Entries":
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, nothing, nothing, np.zeros(0))

    @classmethod
    def summed(cls, parts: list["_Entries"]) -> "_Entries":
        """Join parts and add the weights of equal (pair, position, value)."""
        pair = np.concatenate([part.pair for part in parts])
        if not len(pair):
            return cls.empty()
        position = np.concatenate([part.position for part in parts])
        value = np.concatenate([part.value for part in parts])
        weight = np.concatenate([part.weight for part in parts])
        num_positions, num_values = position.max() + 1, value.max() + 1
        keys = (pair * num_positions + position) * num_values + value
        unique, inverse = np.unique(keys, return_inverse=True)
        rest, value = np.divmod(unique, num_values)
        pair, position = np.divmod(rest, num_positions)
        return cls(pair, position, value, np.bincount(inverse, weights=weight))


def find_pairs(
    num_atoms: np.ndarray,
    edges: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    max_hops: int,
) -> list[dict[str, np.ndarray]]:
    """Find all pairs within ``max_hops`` and the path data of each polymer.

    Parameters
    ----------
    num_atoms
        (G,) number of atoms of each polymer.
    edges
        For each polymer (edge_index (2, B), bond_type (B,), cell_shift (B,)), each bond once.
    max_hops
        Largest distance in bonds.

    Returns
    -------
    For each polymer the pair and path fields of `mips_dist.chem.graph.PolymerGraph`, by name.
    """
    offsets = np.concatenate([[0], np.cumsum(num_atoms)]).astype(np.int64)
    total = int(offsets[-1])
    bonds = _DirectedBonds.collect(edges, offsets)
    atoms = np.arange(total)
    levels = [_Level(atoms, atoms, 0 * atoms, np.ones(total), _Entries.empty(), _Entries.empty())]
    for _ in range(max_hops):
        levels.append(_next_level(levels, bonds, total, max_hops))
    return _split(levels, offsets)


@dataclass(frozen=True, slots=True)
class _DirectedBonds:
    """Bonds walked both ways, sorted by the atom they leave; ``start`` (N + 1,) is its index."""

    start: np.ndarray
    to: np.ndarray
    shift: np.ndarray
    bond_type: np.ndarray

    @classmethod
    def collect(
        cls, edges: list[tuple[np.ndarray, np.ndarray, np.ndarray]], offsets: np.ndarray
    ) -> "_DirectedBonds":
        num_bonds = [len(bond_type) for _, bond_type, _ in edges]
        offset = np.repeat(offsets[:-1], num_bonds)
        begin, end = np.concatenate([index for index, _, _ in edges], axis=1) + offset
        bond_type = np.concatenate([kind for _, kind, _ in edges]).astype(np.int64)
        shift = np.concatenate([shift for _, _, shift in edges]).astype(np.int64)
        leave = np.concatenate([begin, end])
        order = np.argsort(leave, kind="stable")
        degrees = np.bincount(leave, minlength=int(offsets[-1]))
        return cls(
            start=np.concatenate([[0], np.cumsum(degrees)]),
            to=np.concatenate([end, begin])[order],
            shift=np.concatenate([shift, -shift])[order],
            bond_type=np.concatenate([bond_type, bond_type])[order],
        )


def _next_level(levels: list[_Level], bonds: _DirectedBonds, total: int, max_hops: int) -> _Level:
    """Walk one bond further from the last level, keeping what no shorter walk has reached."""
    last = levels[-1]
    step, bond = _expand(bonds.start, last.atom)
    source = last.source[step]
    atom = bonds.to[bond]
    cell = last.cell[step] + bonds.shift[bond]
    keys = _lift_key(source, atom, cell, total, max_hops)
    # One bond changes the distance by at most one, so only the last two levels can be met again.
    seen = np.concatenate([level.keys(total, max_hops) for level in levels[-2:]])
    is_new = ~np.isin(keys, seen)
    step, bond = step[is_new], bond[is_new]
    _, first, reached = np.unique(keys[is_new], return_index=True, return_inverse=True)
    num_paths = np.bincount(reached, weights=last.num_paths[step], minlength=len(first))
    share = last.num_paths[step] / num_paths[reached]
    distance = len(levels)
    return _Level(
        source=source[is_new][first],
        atom=atom[is_new][first],
        cell=cell[is_new][first],
        num_paths=num_paths,
        atoms_on_path=_extended(
            last.atoms_on_path, step, reached, share, distance - 1, last.atom[step]
        ),
        bonds_on_path=_extended(
            last.bonds_on_path, step, reached, share, distance, bonds.bond_type[bond]
        ),
    )


def _extended(
    before: _Entries,
    step: np.ndarray,
    reached: np.ndarray,
    share: np.ndarray,
    position: int,
    value: np.ndarray,
) -> _Entries:
    """Carry path entries one step on, and add what the step itself puts at ``position``.

    Each step leads from pair ``step`` of the last level to pair ``reached`` of the new one and
    carries the fraction ``share`` of its shortest paths.
    """
    if position == 0:
        # The source itself: an end of the path, which is not listed.
        return _Entries.empty()
    added = _Entries(reached, np.full(len(reached), position), value, share)
    if not len(before.pair):
        return _Entries.summed([added])
    num_pairs = int(step.max()) + 1 if len(step) else 0
    counts = np.bincount(before.pair, minlength=num_pairs)
    start = np.concatenate([[0], np.cumsum(counts)])
    which, entry = _expand(start, step)
    carried = _Entries(
        reached[which],
        before.position[entry],
        before.value[entry],
        share[which] * before.weight[entry],
    )
    return _Entries.summed([carried, added])


def _expand(start: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join items with their ranges ``start[item] : start[item + 1]``.

    Returns (index into ``items``, index into the ranges' array), one entry for each combination.
    """
    begin = start[items]
    counts = start[items + 1] - begin
    which = np.repeat(np.arange(len(items)), counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return which, np.repeat(begin, counts) + within


def _lift_key(
    source: np.ndarray, atom: np.ndarray, cell: np.ndarray, num_atoms: int, max_hops: int
) -> np.ndarray:
    return (source * num_atoms + atom) * (2 * max_hops + 1) + cell + max_hops


def _split(levels: list[_Level], offsets: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Sort all pairs by (i, j, hops, cell) and give each polymer its own, with local indices."""
    source = np.concatenate([level.source for level in levels])
    atom = np.concatenate([level.atom for level in levels])
    cell = np.concatenate([level.cell for level in levels])
    sizes = [len(level.source) for level in levels]
    hops = np.repeat(np.arange(len(levels)), sizes)
    order = np.lexsort((cell, hops, atom, source))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    first_pair = np.concatenate([[0], np.cumsum(sizes)])
    pair_ends = np.searchsorted(source[order], offsets)
    path = _joined([level.atoms_on_path for level in levels], first_pair, rank)
    path_bond = _joined([level.bonds_on_path for level in levels], first_pair, rank)
    path_ends = np.searchsorted(path.pair, pair_ends)
    path_bond_ends = np.searchsorted(path_bond.pair, pair_ends)
    source, atom, cell, hops = source[order], atom[order], cell[order], hops[order]
    results = []
    for g, offset in enumerate(offsets[:-1]):
        pairs = slice(pair_ends[g], pair_ends[g + 1])
        atoms = slice(path_ends[g], path_ends[g + 1])
        bonds = slice(path_bond_ends[g], path_bond_ends[g + 1])
        results.append(
            {
                "pair_index": (np.stack([source[pairs], atom[pairs]]) - offset).astype(np.int16),
                "pair_shift": cell[pairs].astype(np.int8),
                "pair_hops": hops[pairs].astype(np.uint8),
                "path_pair": (path.pair[atoms] - pair_ends[g]).astype(np.int32),
                "path_position": path.position[atoms].astype(np.uint8),
                "path_atom": (path.value[atoms] - offset).astype(np.int16),
                "path_weight": path.weight[atoms].astype(np.float32),
                "path_bond_pair": (path_bond.pair[bonds] - pair_ends[g]).astype(np.int32),
                "path_bond_position": path_bond.position[bonds].astype(np.uint8),
                "path_bond_type": path_bond.value[bonds].astype(np.uint8),
                "path_bond_weight": path_bond.weight[bonds].astype(np.float32),
            }
        )
    return results


def _joined(parts: list[_Entries], first_pair: np.ndarray, rank: np.ndarray) -> _Entries:
    """Join the entries of all levels, renumbered to sorted pairs and sorted by them."""
    pair = rank[
        np.concatenate([part.pair + first for part, first in zip(parts, first_pair, strict=False)])
    ]
    position = np.concatenate([part.position for part in parts])
    value = np.concatenate([part.value for part in parts])
    weight = np.concatenate([part.weight for part in parts])
    order = np.lexsort((value, position, pair))
    return _Entries(pair[order], position[order], value[order], weight[order])
