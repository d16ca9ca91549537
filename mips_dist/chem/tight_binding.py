"""Tight-binding Hamiltonians of the infinite chain, from its quotient graph alone.

No geometry enters: bond lengths are sums of covalent radii, angles are those of the hybrids. With
H0 inside a cell and H1 from a cell to the next, H(k) = H0 + H1 e^{ik} + H1^T e^{-ik}.

*All-valence model.* Bond orbitals in the sense of Sandorfy (model C, 1955) and Harrison: an atom
with n hybrids has one for each sigma bond and each lone pair, of energy (E_s + (n-1) E_p) / n, and
any two of them are coupled by (E_s - E_p) / n, which is exactly what the atom's s and p term values
say; hybrids that face each other along a bond are coupled by Harrison's universal hopping, and
so are the p orbitals of pi systems. Sigma and pi do not mix. Hybrids that carry hydrogens are
equivalent, as are those of lone pairs: only the symmetric sum of each kind couples to the rest, the
others are levels in closed form (`Chain.flat`). This makes the matrices a third smaller, exactly.

*Pi model.* Hueckel with Van-Catledge's heteroatoms on the same p orbitals, in units of beta.

*Who has p orbitals.* Atoms of aromatic, double and triple bonds; planar centres with a vacant or
half-filled orbital (boron, carbocations, radicals); lone pairs beside such atoms (amide N, aryl
ether O, aryl halides), but for pyramidal P, S+ and below. A double bond beyond the octet (sulfone,
phosphate, phosphazene) is read as a single bond with charges: S+-O-. Aromatic bonds are all equal:
no Kekule structure is chosen.
"""

import math
from dataclasses import dataclass

import numpy as np

from mips_dist.chem.band_parameters import (
    BETA_OF_TYPE,
    CHARGE_SHIFT,
    ELEMENTS,
    ETA_PI,
    ETA_PP,
    ETA_SP,
    ETA_SS,
    HBAR2_OVER_M,
    HUECKEL_H,
    HUECKEL_K,
    HUECKEL_KIND,
    HYDROGEN,
    TWIST,
    Element,
)
from mips_dist.chem.features import ATOM_FEATURES
from mips_dist.chem.graph import BOND_TYPES, PolymerGraph

_SINGLE, _DOUBLE, _TRIPLE, _AROMATIC = (
    BOND_TYPES.index(name) for name in ("single", "double", "triple", "aromatic")
)
_COLUMNS = [ATOM_FEATURES.index(name) for name in ("atomic_number", "charge", "num_hydrogens")]
_PLANAR_LONE_PAIRS = frozenset({7, 8, 9, 16, 17, 34, 35, 52, 53})


# The cost grows with the cube of the unit: half a minute at a thousand atoms. As for conformers.
MAX_HEAVY_ATOMS = 300


class NoBands(ValueError):
    """A polymer that the model does not describe; the message says why."""


@dataclass(frozen=True, slots=True)
class Block:
    """H(k) of orbitals that couple to no other: n orbitals, real H0 and H1, (n, n) float64."""

    h0: np.ndarray
    h1: np.ndarray

    def levels(self, k: np.ndarray) -> np.ndarray:
        """Return the eigenvalues (K, n) at wave numbers k (K,), ascending."""
        if len(self.h0) == 0:
            return np.empty((len(k), 0))
        levels = np.empty((len(k), len(self.h0)))
        sine = np.sin(k)
        real = np.abs(sine) < 1e-12  # at 0 and pi the matrix is real, a third of the cost
        symmetric, skew = self.h1 + self.h1.T, self.h1 - self.h1.T
        cosine = np.cos(k)[:, None, None]
        levels[real] = np.linalg.eigvalsh(self.h0 + cosine[real] * symmetric)
        if not real.all():
            inner = self.h0 + cosine[~real] * symmetric
            levels[~real] = np.linalg.eigvalsh(inner + 1j * sine[~real][:, None, None] * skew)
        return levels


@dataclass(frozen=True, slots=True)
class Chain:
    """The Hamiltonians of one chain.

    Attributes
    ----------
    sigma, pi
        The all-valence model, in eV.
    flat
        Its levels that are the same at every k, in eV: (F,) float64.
    num_electrons
        Electrons of sigma, pi and flat together, in one cell.
    hueckel
        The pi model, in units of -beta from alpha: negative levels are bonding.
    num_pi_electrons
        Electrons of the p orbitals in one cell.
    num_heavy, num_atoms
        Atoms of a cell without and with hydrogens.
    free_energy
        Sum over the electrons of a cell in free atoms, in eV.
    """

    sigma: Block
    pi: Block
    flat: np.ndarray
    num_electrons: int
    hueckel: Block
    num_pi_electrons: int
    num_heavy: int
    num_atoms: int
    free_energy: float


@dataclass(slots=True)
class _Atom:
    """One heavy atom: what the model asks of it."""

    number: int
    element: Element
    charge: float
    hydrogens: int
    bonds: list[int]
    num_p: int = 0
    hybrids: int = 4
    electrons_p: float = 0.0

    @property
    def num_sigma(self) -> int:
        return len(self.bonds) + self.hydrogens

    @property
    def free_electrons(self) -> float:
        """Electrons that no sigma bond holds."""
        return self.element.electrons - self.charge - self.num_sigma


Bond = tuple[int, int, int, int]  # atom, atom, type, cell shift from the first to the second


def build_chain(graph: PolymerGraph) -> Chain:
    """Build the Hamiltonians of one polymer.

    Raises
    ------
    NoBands
        An element without parameters, or a unit too large.
    """
    atoms, bonds, charge = _heavy_atoms(graph)
    _place_p_orbitals(atoms, bonds)
    sigma, flat = _sigma_block(atoms, bonds)
    pi, hueckel = _pi_blocks(atoms, bonds)
    hydrogens = sum(atom.hydrogens for atom in atoms)
    free = sum(_free_energy(atom.element) for atom in atoms)
    return Chain(
        sigma=sigma,
        pi=pi,
        flat=flat,
        num_electrons=sum(a.element.electrons for a in atoms) + hydrogens - charge,
        hueckel=hueckel,
        num_pi_electrons=round(sum(atom.electrons_p for atom in atoms)),
        num_heavy=len(atoms),
        num_atoms=len(atoms) + hydrogens,
        free_energy=free + hydrogens * HYDROGEN.s,
    )


def _free_energy(element: Element) -> float:
    in_s = min(element.electrons, 2)
    return in_s * element.s + (element.electrons - in_s) * element.p


def _heavy_atoms(graph: PolymerGraph) -> tuple[list[_Atom], list[Bond], int]:
    """Return heavy atoms, bonds among them, and the charge; written hydrogens (isotopes) folded."""
    rows = graph.atom_features[:, _COLUMNS].tolist()
    sources, targets = graph.edge_index.tolist()
    types, shifts = graph.bond_type.tolist(), graph.cell_shift.tolist()
    place = {}
    atoms: list[_Atom] = []
    for i, (number, charge, hydrogens) in enumerate(rows):
        if number == 1:
            continue
        if number not in ELEMENTS:
            raise NoBands(f"no_parameters: element {number} has none in this model")
        place[i] = len(atoms)
        atoms.append(_Atom(number, ELEMENTS[number], float(charge), hydrogens, []))
    if len(atoms) > MAX_HEAVY_ATOMS:
        raise NoBands(f"too_large: {len(atoms)} heavy atoms, at most {MAX_HEAVY_ATOMS}")
    if not atoms:
        raise NoBands("no_parameters: no atom but hydrogen")
    bonds: list[Bond] = []
    for i, j, kind, shift in zip(sources, targets, types, shifts, strict=True):
        if i in place and j in place:
            atoms[place[i]].bonds.append(len(bonds))
            atoms[place[j]].bonds.append(len(bonds))
            bonds.append((place[i], place[j], kind, shift))
        elif i in place or j in place:
            atoms[place[i if i in place else j]].hydrogens += 1
    return atoms, bonds, sum(row[1] for row in rows)


def _place_p_orbitals(atoms: list[_Atom], bonds: list[Bond]) -> None:
    """Decide how many p orbitals and hybrids each atom has, and the electrons in the former."""
    doubles = [sum(bonds[b][2] == _DOUBLE for b in atom.bonds) for atom in atoms]
    _split_dative_bonds(atoms, bonds, doubles)
    for i, atom in enumerate(atoms):
        kinds = [bonds[b][2] for b in atom.bonds]
        num_p = doubles[i] + 2 * kinds.count(_TRIPLE)
        atom.num_p = min(max(num_p, int(_AROMATIC in kinds)), 2)
        if atom.num_p == 0 and atom.num_sigma <= 3 and atom.free_electrons < 2:
            atom.num_p = 1  # vacant or half filled
    with_p = [atom.num_p > 0 for atom in atoms]
    for i, atom in enumerate(atoms):
        if (
            not with_p[i]
            and atom.number in _PLANAR_LONE_PAIRS
            and atom.num_sigma <= (3 if atom.number == 7 else 2)
            and atom.free_electrons >= 2
            and any(with_p[other] for b in atom.bonds for other in bonds[b][:2])
        ):
            atom.num_p = 1
    for atom in atoms:
        atom.hybrids = max(4 - atom.num_p, atom.num_sigma, 1)
        lone = atom.hybrids - atom.num_sigma
        if atom.num_p:
            atom.electrons_p = min(max(atom.free_electrons - 2 * lone, 0.0), 2.0 * atom.num_p)


def _split_dative_bonds(atoms: list[_Atom], bonds: list[Bond], doubles: list[int]) -> None:
    """Turn double bonds beyond the octet into single bonds with charges at both ends.

    Where only some of an atom's double bonds are such, each carries its share of the charge: which
    of them it is must not depend on the order of atoms.
    """
    moved = [0.0] * len(atoms)
    drop = [0] * len(atoms)
    for i, atom in enumerate(atoms):
        if doubles[i] == 0 or atom.number in (5, 6, 7, 8, 9):
            continue
        orders = sum({_DOUBLE: 2, _TRIPLE: 3}.get(bonds[b][2], 1) for b in atom.bonds)
        excess = orders + atom.hydrogens - atom.element.valence - int(abs(atom.charge))
        dative = min(excess // 2, doubles[i])
        if dative <= 0:
            continue
        drop[i] = dative
        moved[i] += dative
        for b in atom.bonds:
            source, target, kind, _ = bonds[b]
            if kind == _DOUBLE:
                moved[target if source == i else source] -= dative / doubles[i]
    for i, atom in enumerate(atoms):
        atom.charge += moved[i]
        doubles[i] -= drop[i]


def _radius(element: Element, kind: int) -> float:
    single, double, triple = element.radii
    if kind == _AROMATIC:
        return (single + double) / 2
    return triple if kind == _TRIPLE else double if kind == _DOUBLE else single


def _sigma_hopping(n: int, m: int) -> float:
    """Return eta of two hybrids that face each other, one of n and one of m on its atom."""
    sp = math.sqrt(n - 1) + math.sqrt(m - 1)
    pp = math.sqrt((n - 1) * (m - 1))
    return (ETA_SS - sp * ETA_SP - pp * ETA_PP) / math.sqrt(n * m)


def _sigma_block(atoms: list[_Atom], bonds: list[Bond]) -> tuple[Block, np.ndarray]:
    hybrid_of: list[dict[tuple[int, int], int]] = []  # atom -> (bond, end) -> orbital
    flat: list[float] = []
    size = 0
    entries: list[tuple[int, int, float]] = []
    for i, atom in enumerate(atoms):
        shift = CHARGE_SHIFT * atom.charge
        p = atom.element.p + shift
        coupling = (atom.element.s - atom.element.p) / atom.hybrids
        lone = atom.hybrids - atom.num_sigma
        ends = [(b, end) for b in dict.fromkeys(atom.bonds) for end in (0, 1) if bonds[b][end] == i]
        hybrid_of.append({key: size + n for n, key in enumerate(ends)})
        # Square root of how many equivalent hybrids stand behind each orbital.
        weights = [1.0] * len(ends)
        if atom.hydrogens:
            weights.append(math.sqrt(atom.hydrogens))
        if lone:
            weights.append(math.sqrt(lone))
            flat += [p] * (lone - 1)
        for a, wa in enumerate(weights):
            for b, wb in enumerate(weights):
                entries.append((size + a, size + b, wa * wb * coupling + (p if a == b else 0.0)))
        if atom.hydrogens:
            d = atom.element.radii[0] + HYDROGEN.radii[0]
            hop = _sigma_hopping(atom.hybrids, 1) * HBAR2_OVER_M / d**2
            symmetric, own = size + len(ends), size + len(weights)
            entries += [(own, own, HYDROGEN.s), (own, symmetric, hop), (symmetric, own, hop)]
            centre, half = (p + HYDROGEN.s) / 2, math.hypot((p - HYDROGEN.s) / 2, hop)
            flat += [centre - half, centre + half] * (atom.hydrogens - 1)
        size += len(weights) + (atom.hydrogens > 0)
    h0, h1 = np.zeros((size, size)), np.zeros((size, size))
    row, column, value = zip(*entries, strict=True)
    h0[list(row), list(column)] = value
    for b, (i, j, kind, cell_shift) in enumerate(bonds):
        d = _radius(atoms[i].element, kind) + _radius(atoms[j].element, kind)
        eta = _sigma_hopping(atoms[i].hybrids, atoms[j].hybrids)
        _add(h0, h1, hybrid_of[i][b, 0], hybrid_of[j][b, 1], eta * HBAR2_OVER_M / d**2, cell_shift)
    return Block(h0, h1), np.array(flat)


def _pi_blocks(atoms: list[_Atom], bonds: list[Bond]) -> tuple[Block, Block]:
    first: list[int] = []
    size = 0
    for atom in atoms:
        first.append(size)
        size += atom.num_p
    h0, h1 = np.zeros((size, size)), np.zeros((size, size))
    x0, x1 = np.zeros((size, size)), np.zeros((size, size))
    kinds = [HUECKEL_KIND[a.number][int(a.electrons_p > 1.5 * a.num_p)] for a in atoms]
    for i, atom in enumerate(atoms):
        for orbital in range(first[i], first[i] + atom.num_p):
            h0[orbital, orbital] = atom.element.p + CHARGE_SHIFT * atom.charge
            x0[orbital, orbital] = -HUECKEL_H[kinds[i]]
    for b, (i, j, kind, cell_shift) in enumerate(bonds):
        if not (atoms[i].num_p and atoms[j].num_p):
            continue
        d = _radius(atoms[i].element, kind) + _radius(atoms[j].element, kind)
        hop = ETA_PI * HBAR2_OVER_M / d**2 * (TWIST if kind == _SINGLE else 1.0)
        low, high = sorted((kinds[i], kinds[j]))
        x_hop = -HUECKEL_K[high][low] * BETA_OF_TYPE[kind]
        for u, v in _facing(atoms, bonds, b):
            _add(h0, h1, first[i] + u, first[j] + v, hop, cell_shift)
            _add(x0, x1, first[i] + u, first[j] + v, x_hop, cell_shift)
    return Block(h0, h1), Block(x0, x1)


def _facing(atoms: list[_Atom], bonds: list[Bond], b: int) -> list[tuple[int, int]]:
    """Return which p orbitals of its two atoms a bond couples.

    Two atoms with two each share both planes; an atom with one takes the first plane of its
    neighbour, but at the centre of an allene the two double bonds take one plane each.
    """
    i, j = bonds[b][:2]
    if atoms[i].num_p == 2 and atoms[j].num_p == 2:
        return [(0, 0), (1, 1)]
    return [(_plane(atoms, bonds, i, b), _plane(atoms, bonds, j, b))]


def _plane(atoms: list[_Atom], bonds: list[Bond], i: int, b: int) -> int:
    if atoms[i].num_p < 2:
        return 0
    doubles = [c for c in atoms[i].bonds if bonds[c][2] == _DOUBLE]
    others = [bonds[c][1] if bonds[c][0] == i else bonds[c][0] for c in doubles]
    if len(doubles) < 2 or any(atoms[other].num_p == 2 for other in others):
        return 0
    return int(b != doubles[0])


def _add(h0: np.ndarray, h1: np.ndarray, u: int, v: int, hop: float, cell_shift: int) -> None:
    """Couple orbital u of a cell to orbital v of the cell ``cell_shift`` further."""
    if cell_shift == 0:
        h0[u, v] += hop
        h0[v, u] += hop
    else:
        h1[u, v] += hop
