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
        first, group = _grouped(_entry_key(pair, position, value))
        return cls(pair[first], position[first], value[first], np.bincount(group, weights=weight))


def find_pairs(
    offsets: np.ndarray,
    edge_index: np.ndarray,
    bond_type: np.ndarray,
    cell_shift: np.ndarray,
    max_hops: int,
) -> list[dict[str, np.ndarray]]:
    """Find all pairs within ``max_hops`` and the path data of each polymer.

    Parameters
    ----------
    offsets
        (G + 1,) int64 first atom of each polymer, atoms of all numbered through; N at the end.
    edge_index, bond_type, cell_shift
        (2, B) int64, (B,), (B,) of all polymers, each bond once.
    max_hops
        Largest distance in bonds.

    Returns
    -------
    For each polymer the pair and path fields of `mips_dist.chem.graph.PolymerGraph`, by name.
    """
    total = int(offsets[-1])
    bonds = _DirectedBonds.collect(edge_index, bond_type, cell_shift, total)
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
        cls, edge_index: np.ndarray, bond_type: np.ndarray, cell_shift: np.ndarray, total: int
    ) -> "_DirectedBonds":
        begin, end = edge_index
        leave = np.concatenate([begin, end])
        order = np.argsort(leave, kind="stable")
        degrees = np.bincount(leave, minlength=total)
        return cls(
            start=np.concatenate([[0], np.cumsum(degrees)]),
            to=np.concatenate([end, begin])[order],
            shift=np.concatenate([cell_shift, -cell_shift])[order].astype(np.int64),
            bond_type=np.concatenate([bond_type, bond_type])[order].astype(np.int64),
        )


def _next_level(levels: list[_Level], bonds: _DirectedBonds, total: int, max_hops: int) -> _Level:
    """Walk one bond further from the last level, keeping what no shorter walk has reached."""
    last = levels[-1]
    step, bond = _expand(bonds.start, last.atom)
    source = last.source[step]
    atom = bonds.to[bond]
    cell = last.cell[step] + bonds.shift[bond]
    # One bond changes the distance by at most one, so only the last two levels can be met again.
    seen = [level.keys(total, max_hops) for level in levels[-2:]]
    num_seen = sum(len(keys) for keys in seen)
    # One sort serves both: which walks reach the same lifted atom, and which a level has already.
    first, group = _grouped(np.concatenate([*seen, _lift_key(source, atom, cell, total, max_hops)]))
    is_new = np.ones(len(first), dtype=bool)
    is_new[group[:num_seen]] = False
    group = group[num_seen:]
    is_kept = is_new[group]
    step, bond = step[is_kept], bond[is_kept]
    reached = (np.cumsum(is_new) - 1)[group[is_kept]]
    first = first[is_new] - num_seen
    num_paths = np.bincount(reached, weights=last.num_paths[step], minlength=len(first))
    share = last.num_paths[step] / num_paths[reached]
    distance = len(levels)
    return _Level(
        source=source[first],
        atom=atom[first],
        cell=cell[first],
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


def _entry_key(pair: np.ndarray, position: np.ndarray, value: np.ndarray) -> np.ndarray:
    num_positions = position.max(initial=0) + 1
    return (pair * num_positions + position) * (value.max(initial=0) + 1) + value


def _grouped(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (index of the first of each distinct key, ascending; number of every key among them).

    What np.unique gives, but with the stable sort: keys come in sorted stretches, which it merges,
    5 times as fast as the other one.
    """
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    is_first = np.ones(len(keys), dtype=bool)
    np.not_equal(in_order[1:], in_order[:-1], out=is_first[1:])
    number = np.empty(len(keys), dtype=np.int64)
    number[order] = np.cumsum(is_first) - 1
    return order[is_first], number


def _split(levels: list[_Level], offsets: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Sort all pairs by (i, j, hops, cell) and give each polymer its own, with local indices."""
    source = np.concatenate([level.source for level in levels])
    atom = np.concatenate([level.atom for level in levels])
    cell = np.concatenate([level.cell for level in levels])
    sizes = [len(level.source) for level in levels]
    hops = np.repeat(np.arange(len(levels)), sizes)
    # One packed key sorts in a tenth of the time of four (np.lexsort).
    num_atoms, max_hops = offsets[-1], len(levels) - 1
    order = np.argsort(
        ((source * num_atoms + atom) * (max_hops + 1) + hops) * (2 * max_hops + 1) + cell,
        kind="stable",
    )
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    first_pair = np.concatenate([[0], np.cumsum(sizes)])
    source, atom, cell, hops = source[order], atom[order], cell[order], hops[order]
    path = _joined([level.atoms_on_path for level in levels], first_pair, rank)
    path_bond = _joined([level.bonds_on_path for level in levels], first_pair, rank)
    pair_ends = np.searchsorted(source, offsets)
    path_ends = np.searchsorted(path.pair, pair_ends)
    path_bond_ends = np.searchsorted(path_bond.pair, pair_ends)
    # Made local and narrow for all polymers at once; each gets its stretch.
    start = np.repeat(offsets[:-1], np.diff(pair_ends))
    path_start = np.repeat(offsets[:-1], np.diff(path_ends))
    pair_index = np.stack([source - start, atom - start]).astype(np.int16)
    of_pairs: dict[str, np.ndarray] = {
        "pair_shift": cell.astype(np.int8),
        "pair_hops": hops.astype(np.uint8),
    }
    of_path = {
        "path_pair": _local(path.pair, pair_ends, path_ends),
        "path_position": path.position.astype(np.uint8),
        "path_atom": (path.value - path_start).astype(np.int16),
        "path_weight": path.weight.astype(np.float32),
    }
    of_path_bond = {
        "path_bond_pair": _local(path_bond.pair, pair_ends, path_bond_ends),
        "path_bond_position": path_bond.position.astype(np.uint8),
        "path_bond_type": path_bond.value.astype(np.uint8),
        "path_bond_weight": path_bond.weight.astype(np.float32),
    }
    results = []
    for g in range(len(offsets) - 1):
        fields = {"pair_index": pair_index[:, pair_ends[g] : pair_ends[g + 1]].copy()}
        for arrays, ends in (
            (of_pairs, pair_ends),
            (of_path, path_ends),
            (of_path_bond, path_bond_ends),
        ):
            stretch = slice(ends[g], ends[g + 1])
            fields |= {name: array[stretch] for name, array in arrays.items()}
        results.append(fields)
    return results


def _local(pair: np.ndarray, pair_ends: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the pair of each path entry, counted from its polymer's first pair."""
    return (pair - np.repeat(pair_ends[:-1], np.diff(ends))).astype(np.int32)


def _joined(parts: list[_Entries], first_pair: np.ndarray, rank: np.ndarray) -> _Entries:
    """Join the entries of all levels, renumbered to sorted pairs and sorted by them."""
    pair = rank[
        np.concatenate([part.pair + first for part, first in zip(parts, first_pair, strict=False)])
    ]
    position = np.concatenate([part.position for part in parts])
    value = np.concatenate([part.value for part in parts])
    weight = np.concatenate([part.weight for part in parts])
    order = np.argsort(_entry_key(pair, position, value), kind="stable")
    return _Entries(pair[order], position[order], value[order], weight[order])
