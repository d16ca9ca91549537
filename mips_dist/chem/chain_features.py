"""Features of the infinite chain for kernels and trees: per repeat unit, exact, without a network.

They are taken from an oligomer so long that its ends are out of reach, made from the canonical,
primitive unit: so they depend on the polymer alone (law L1), as the features of its graph do.
Every value is per unit or per atom: a chain has no size.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator

from mips_dist.chem.bands import BAND_DESCRIPTORS, band_descriptors
from mips_dist.chem.descriptors import cap_with_methyl
from mips_dist.chem.morgan import middle_unit
from mips_dist.chem.psmiles import RepeatUnit, backbone_path, oligomer, parse
from mips_dist.chem.rdkit_2d import raw_rdkit_2d

VERSION = "1"  # raised whenever any value below changes
RADIUS = 3  # bonds, of the environments
NUM_BINS = 2048
MAX_COUNT = 255

Counts = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ChainFeatures:
    """Features of G polymers.

    Attributes
    ----------
    environments
        (G, 2048) circular environments of radius 0 to 3 bonds of all atoms of a unit, hashed.
    composition
        (G, C) atoms and bonds by type, per heavy atom: what additive properties are made of.
    topology
        (G, T) sizes of backbone, side groups and rings.
    descriptors
        (G, 2 D) RDKit's 200 descriptors: what one more unit adds to a chain of two, and their
        values on the chain of three. NaN where RDKit gives none.
    bands
        (G, B) `mips_dist.chem.bands.band_descriptors`; NaN where an element has no parameters.
    xtb
        (G, X) `mips_dist.chem.xtb.describe_xtb`, NaN where there are none; only for `gp-trees-xtb`.
    """

    environments: Counts
    composition: Values
    topology: Values
    descriptors: Values
    bands: Values
    xtb: Values | None = None

    def num_atoms(self) -> npt.NDArray[np.int64]:
        """Return (G,) heavy atoms of the repeat unit."""
        return np.rint(np.exp(self.topology[:, TOPOLOGY.index(_SIZE)])).astype(np.int64)

    def select(self, polymers: npt.NDArray[np.int64]) -> "ChainFeatures":
        """Return the features of some polymers, in the order given."""
        return ChainFeatures(**{name: array[polymers] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays that there are, by name."""
        values = {name: getattr(self, name) for name in ChainFeatures.__slots__}
        return {name: value for name, value in values.items() if value is not None}


def chain_features(canonicals: list[str]) -> ChainFeatures:
    """Compute the features of canonical P-SMILES; each polymer's depend on it alone."""
    rows = [_one(canonical) for canonical in canonicals]
    environments, composition, topology, descriptors = zip(*rows, strict=True)
    return ChainFeatures(
        np.stack(environments),
        np.stack(composition).astype(np.float32),
        np.stack(topology).astype(np.float32),
        np.stack(descriptors).astype(np.float32),
        _bands(canonicals),
    )


def chain_environments(canonicals: list[str]) -> Counts:
    """Compute the environments alone, (G, 2048); those of `chain_features` cost ten times more."""
    return np.stack([_environments(*_middle(parse(canonical))) for canonical in canonicals])


def _bands(canonicals: list[str]) -> Values:
    values = np.full((len(canonicals), len(BAND_DESCRIPTORS)), np.nan, np.float32)
    for row, own in zip(values, band_descriptors(canonicals), strict=True):
        if own is not None:
            row[:] = own
    return values


def _one(canonical: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    unit = parse(canonical)
    path = backbone_path(unit)
    chain, inner = _middle(unit)
    return (
        _environments(chain, inner),
        _composition(chain, inner),
        _topology(unit, path),
        _descriptors(unit),
    )


def _middle(unit: RepeatUnit) -> tuple[Chem.Mol, list[int]]:
    """Write a chain whose ends are out of reach of its middle unit; return that unit's atoms."""
    chain, inner = middle_unit(unit, RADIUS)
    return cap_with_methyl(chain), inner


@cache
def generator() -> rdFingerprintGenerator.FingerprintGenerator64:
    """Return what hashes the environments."""
    # Redundant environments stay: each atom has one for each radius, whatever the order of atoms.
    return rdFingerprintGenerator.GetMorganGenerator(
        radius=RADIUS, fpSize=NUM_BINS, includeRedundantEnvironments=True
    )


def _environments(chain: Chem.Mol, inner: list[int]) -> np.ndarray:
    counts = generator().GetCountFingerprintAsNumPy(chain, fromAtoms=inner)
    return np.minimum(counts, MAX_COUNT).astype(np.uint8)


# Composition: elements, then elements with hybridization and hydrogens, then bonds.
_ELEMENTS = ("C", "N", "O", "F", "S", "Cl", "Br", "I", "Si", "P", "B")
_KINDS = tuple(
    [f"C{h}{n}" for h in ("SP3", "SP2", "SP") for n in range(4)]
    + [f"{e}{h}" for e in ("N", "O", "S") for h in ("SP3", "SP2", "SP")]
    + ["aromatic C", "aromatic N", "aromatic O", "aromatic S"]
)
_BONDS = tuple(
    [
        f"{a}{order}{b}"
        for a, b in (
            ("C", "C"),
            ("C", "N"),
            ("C", "O"),
            ("N", "O"),
            ("C", "S"),
            ("N", "N"),
            ("O", "S"),
        )
        for order in ("-", "=", "#", ":")
    ]
    + ["C-F", "C-Cl", "Br-C", "C-I", "C-Si", "O-Si", "C-P", "O-P"]
)
COMPOSITION = ("H", *_ELEMENTS, *_KINDS, *_BONDS)
PLACE = {name: place for place, name in enumerate(COMPOSITION)}
_SYMBOL = {
    Chem.BondType.SINGLE: "-",
    Chem.BondType.DOUBLE: "=",
    Chem.BondType.TRIPLE: "#",
    Chem.BondType.AROMATIC: ":",
}


def _composition(chain: Chem.Mol, inner: list[int]) -> np.ndarray:
    totals = np.zeros(len(COMPOSITION))
    for index in inner:
        atom = chain.GetAtomWithIdx(index)
        for name, amount in (*own_terms(atom), *((term, 0.5) for _, term in bond_terms(atom))):
            if name in PLACE:
                totals[PLACE[name]] += amount
    return totals / len(inner)


def own_terms(atom: Chem.Atom) -> list[tuple[str, float]]:
    """Return what an atom adds to the composition by itself: name and amount."""
    symbol, hydrogens = atom.GetSymbol(), atom.GetTotalNumHs()
    hybridization = str(atom.GetHybridization())
    kind = f"C{hybridization}{hydrogens}" if symbol == "C" else f"{symbol}{hybridization}"
    terms = [("H", float(hydrogens)), (symbol, 1.0), (kind, 1.0)]
    if atom.GetIsAromatic():
        terms.append((f"aromatic {symbol}", 1.0))
    return terms


def bond_terms(atom: Chem.Atom) -> list[tuple[int, str]]:
    """Return each bond of an atom: its other atom, and the name of the bond.

    Half of each bond belongs to each of its atoms, so the link counts once.
    """
    terms = []
    for bond in atom.GetBonds():
        other = bond.GetOtherAtom(atom)
        ends = sorted((atom.GetSymbol(), other.GetSymbol()))
        name = f"{ends[0]}{_SYMBOL.get(bond.GetBondType(), '?')}{ends[1]}"
        terms.append((other.GetIdx(), name))
    return terms


_SIZE = "log of the atoms of the unit"
TOPOLOGY = (
    _SIZE,
    "log of the atoms on the path",
    "path atoms in rings",
    "path atoms in aromatic rings",
    "backbone atoms",
    "side groups",
    "log of the atoms of the largest side group",
    "side atoms",
    "rings",
    "aromatic rings",
    "largest ring",
    "rings in the backbone",
    "rotatable path bonds",
    "path heteroatoms",
    "longest run of CH2 on the path",
    "quaternary path atoms",
    "parity of the path",
)


def _topology(unit: RepeatUnit, path: list[int]) -> np.ndarray:
    mol = unit.mol
    n = mol.GetNumAtoms() - 2
    rings = [set(ring) for ring in mol.GetRingInfo().AtomRings()]
    aromatic = [r for r in rings if all(mol.GetAtomWithIdx(i).GetIsAromatic() for i in r)]
    backbone = set(path)
    joined = [r for r in rings if len(r & backbone) > 1]
    for ring in joined:
        backbone |= ring
    sides = _side_groups(mol, backbone | set(unit.stars))
    on_path = [mol.GetAtomWithIdx(i) for i in path]
    rotatable = sum(not any({a, b} <= ring for ring in rings) for a, b in pairwise(path))
    run = longest = 0
    for atom in on_path * 2:  # twice, for the run may pass the cut
        is_methylene = atom.GetSymbol() == "C" and atom.GetTotalNumHs() == 2
        run = run + 1 if is_methylene else 0
        longest = max(longest, run)
    return np.array(
        [
            np.log(n),
            np.log(len(path)),
            sum(a.IsInRing() for a in on_path) / len(path),
            sum(a.GetIsAromatic() for a in on_path) / len(path),
            len(backbone) / n,
            len(sides) / len(path),
            np.log1p(max(sides, default=0)),
            sum(sides) / n,
            len(rings) / n,
            len(aromatic) / n,
            max((len(r) for r in rings), default=0),
            len(joined) / n,
            (rotatable + 1) / n,
            sum(a.GetSymbol() != "C" for a in on_path) / len(path),
            min(longest, len(path)),
            sum(a.GetDegree() == 4 for a in on_path) / len(path),
            len(path) % 2,
        ]
    )


def _side_groups(mol: Chem.Mol, backbone: set[int]) -> list[int]:
    """Return the number of atoms of each group beside the backbone."""
    left = set(range(mol.GetNumAtoms())) - backbone
    sizes = []
    while left:
        group, front = 0, [left.pop()]
        while front:
            atom = front.pop()
            group += 1
            for neighbour in mol.GetAtomWithIdx(atom).GetNeighbors():
                if neighbour.GetIdx() in left:
                    left.remove(neighbour.GetIdx())
                    front.append(neighbour.GetIdx())
        sizes.append(group)
    return sizes


def _descriptors(unit: RepeatUnit) -> np.ndarray:
    two, three = (raw_rdkit_2d(cap_with_methyl(oligomer(unit, copies)[0])) for copies in (2, 3))
    names = sorted(two)
    n = unit.mol.GetNumAtoms() - 2
    added = np.array([three[name] - two[name] for name in names]) / n
    whole = np.array([three[name] for name in names])
    values = np.concatenate([added, whole])
    # Some of RDKit's values explode on long chains; beyond single precision nothing is meant.
    values[~(np.abs(values) < 1e6)] = np.nan
    return values
