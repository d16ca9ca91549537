"""Atom features that belong to the chain and not to the cut (defect 9).

Hybridization and conjugation of atoms near the cut change when a star stands where the neighbour
should be. They are perceived here on the repeat unit closed to a ring, by RDKit's local rules alone
(valences, conjugation, hybridization); aromatic flags stay those of the open unit, for perceiving
aromaticity on the ring would invent some (``*C=CC=CC=C*`` would become benzene). The tests hold
this equal to the middle unit of an explicit, sanitized oligomer.

Left out on purpose: chirality. Whether an atom may be a stereo centre depends on the ends of any
finite oligomer, and stereo marks are dropped (see `mips_dist.chem.psmiles`).
"""

import re

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdqueries

from mips_dist.chem.psmiles import BOND_OF_ORDER, RepeatUnit, repeat

ATOM_FEATURES = (
    "atomic_number",
    "degree",
    "charge",
    "radical_electrons",
    "hybridization",
    "is_aromatic",
    "num_hydrogens",
    "ring_size",
    "isotope",
)

# Codes of the column "hybridization"; everything else is 0.
_HYBRIDIZATION_CODE = {
    Chem.HybridizationType.SP: 1,
    Chem.HybridizationType.SP2: 2,
    Chem.HybridizationType.SP3: 3,
    Chem.HybridizationType.SP3D: 4,
    Chem.HybridizationType.SP3D2: 5,
}
_SP2_QUERY = Chem.MolFromSmarts("[^2]")
_RADICAL_QUERY = rdqueries.NumRadicalElectronsGreaterQueryAtom(0)
_ATOM_TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|[BCNOPSFIbcnops*]")

# What RDKit says of an atom follows from its text, its bonds and whether it is sp2: asked once per
# kind, for asking it for every atom costs more than parsing. Bounded by the kinds that exist.
_row_of_kind: dict[tuple[str, int, float, bool], tuple[int, ...]] = {}


def read_canonical(canonical: str) -> RepeatUnit:
    """Read a text that `mips_dist.chem.psmiles.canonicalize` wrote, in about a third of a parse.

    No sanitization, but for radicals: charges and aromatic flags of a canonical text are final.
    """
    mol = Chem.MolFromSmiles(canonical, sanitize=False)
    mol.UpdatePropertyCache(False)
    # Only bracket atoms can be radicals. Counted on aromatic bonds the count is too high ([se]),
    # so where there seem to be some, the few texts are sanitized after all.
    Chem.AssignRadicals(mol)
    if "[" in canonical and len(mol.GetAtomsMatchingQuery(_RADICAL_QUERY)):
        mol = Chem.MolFromSmiles(canonical)
    Chem.GetSymmSSSR(mol)
    bond_orders = Chem.GetAdjacencyMatrix(mol, useBO=True)
    stars = [i for i, token in enumerate(_ATOM_TOKEN.findall(canonical)) if token == "*"]
    left, right = (int(np.flatnonzero(bond_orders[star])[0]) for star in stars)
    return RepeatUnit(
        mol, (stars[0], stars[1]), (left, right), float(bond_orders[stars[0], left]), bond_orders
    )


def close_chain(unit: RepeatUnit) -> Chem.RWMol:
    """Close a unit to a ring and perceive conjugation and hybridization on it.

    Units whose boundary atoms are equal or bonded are written three times first, since a bond can
    neither loop nor be doubled. Atoms of the first copy keep their indices.
    """
    bonded = unit.ends[0] == unit.ends[1] or unit.bond_orders[unit.ends] > 0
    copies = 3 if bonded else 1
    ring = repeat(unit, copies)
    last = (copies - 1) * unit.mol.GetNumAtoms()
    ring.RemoveBond(unit.stars[0], unit.ends[0])
    ring.RemoveBond(last + unit.stars[1], last + unit.ends[1])
    ring.AddBond(last + unit.ends[1], unit.ends[0], BOND_OF_ORDER[unit.order])
    ring.UpdatePropertyCache(False)
    Chem.SetConjugation(ring)
    Chem.SetHybridization(ring)
    return ring


def atom_features(canonical: str, unit: RepeatUnit) -> np.ndarray:
    """Return the features of every atom of the unit, stars left out.

    Parameters
    ----------
    canonical
        The canonical text; its atoms stand in the order of ``unit.mol``.
    unit
        What `read_canonical` gave for it.

    Returns
    -------
    (N, 9) int16 with the columns of `ATOM_FEATURES`. ``hybridization``: 0 other, 1 sp, 2 sp2,
    3 sp3, 4 sp3d, 5 sp3d2. ``ring_size``: the smallest ring of the infinite chain through the atom,
    0 for none; the link is a bridge of the chain, so its rings are those of the open unit.
    ``isotope``: mass number, 0 for the natural mixture.
    """
    ring = close_chain(unit)
    sp2 = {match[0] for match in ring.GetSubstructMatches(_SP2_QUERY, maxMatches=1_000_000)}
    # A star's bond stands for the link's, so degree and bond order sum are already the chain's.
    degrees = np.count_nonzero(unit.bond_orders, axis=1).tolist()
    order_sums = unit.bond_orders.sum(axis=1).tolist()
    rows = []
    for atom, token in enumerate(_ATOM_TOKEN.findall(canonical)):
        if token == "*":
            continue
        kind = (token, degrees[atom], order_sums[atom], atom in sp2)
        row = _row_of_kind.get(kind)
        if row is None:
            row = _row_of_kind[kind] = _ask(ring.GetAtomWithIdx(atom), degrees[atom])
        rows.append(row)
    features = np.array(rows, dtype=np.int16)
    _set_ring_sizes(features[:, ATOM_FEATURES.index("ring_size")], unit)
    return features


def _ask(atom: Chem.Atom, degree: int) -> tuple[int, ...]:
    return (
        atom.GetAtomicNum(),
        degree,
        atom.GetFormalCharge(),
        atom.GetNumRadicalElectrons(),
        _HYBRIDIZATION_CODE.get(atom.GetHybridization(), 0),
        int(atom.GetIsAromatic()),
        atom.GetTotalNumHs(),
        0,
        atom.GetIsotope(),
    )


def _set_ring_sizes(ring_sizes: np.ndarray, unit: RepeatUnit) -> None:
    """Fill the smallest ring size of each atom; a minimal cycle basis holds one such ring."""
    unit_index = without_stars(unit)
    rings = sorted(unit.mol.GetRingInfo().AtomRings(), key=len, reverse=True)
    for ring in rings:
        ring_sizes[unit_index[list(ring)]] = len(ring)


def without_stars(unit: RepeatUnit) -> np.ndarray:
    """Return (n,) intp: the index of each atom once the stars are left out; void for the stars."""
    is_atom = np.ones(unit.mol.GetNumAtoms(), dtype=np.intp)
    is_atom[list(unit.stars)] = 0
    return np.cumsum(is_atom) - 1
