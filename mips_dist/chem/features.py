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
from collections.abc import Iterable
from itertools import chain, islice

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
# A kind is (text, code of the rest); its row of features is kept as bytes, for joining bytes to an
# array is ten times faster than reading tuples. Stars have no row.
_row_of_kind: dict[tuple[str, int], bytes] = {}


def atom_tokens(canonical: str) -> list[str]:
    """Return the text of every atom of a canonical text, stars included, in its order."""
    return _ATOM_TOKEN.findall(canonical)


def read_canonical(canonical: str) -> RepeatUnit:
    """Read a text that `mips_dist.chem.psmiles.canonicalize` wrote, in about a third of a parse.

    No sanitization, but for radicals: charges and aromatic flags of a canonical text are final.
    Its rings are a minimal cycle basis.
    """
    mol = Chem.MolFromSmiles(canonical, sanitize=False)
    if "[" in canonical:
        # Only bracket atoms can be radicals. Counted on aromatic bonds the count is too high
        # ([se]), so where there seem to be some, the few texts are sanitized after all.
        mol.UpdatePropertyCache(False)
        Chem.AssignRadicals(mol)
        if len(mol.GetAtomsMatchingQuery(_RADICAL_QUERY)):
            mol = Chem.MolFromSmiles(canonical)
    # Rings without a common atom (in 9 of 10 units) are all the cycles there are, and any search
    # finds them; the minimal basis of others costs four times as much.
    Chem.FastFindRings(mol)
    rings = mol.GetRingInfo().AtomRings()
    if sum(len(ring) for ring in rings) > len(set().union(*rings)):
        Chem.GetSymmSSSR(mol)
    bond_orders = Chem.GetAdjacencyMatrix(mol, useBO=True)
    tokens = atom_tokens(canonical)
    left_star = tokens.index("*")
    right_star = tokens.index("*", left_star + 1)
    left, right = int(bond_orders[left_star].argmax()), int(bond_orders[right_star].argmax())
    order = bond_orders.item(left_star, left)
    return RepeatUnit(mol, (left_star, right_star), (left, right), order, bond_orders)


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


def sp2_atoms(unit: RepeatUnit) -> list[int]:
    """Return the atoms of a unit that are sp2 in the chain."""
    matches = close_chain(unit).GetSubstructMatches(_SP2_QUERY, maxMatches=1_000_000)
    return [atom for (atom,) in matches if atom < len(unit.bond_orders)]


def ring_sizes(rings: Iterable[tuple[int, ...]], num_atoms: int) -> list[int]:
    """Return the smallest size of the rings through each atom, 0 for none.

    A minimal cycle basis holds a smallest ring of every atom.
    """
    sizes = [0] * num_atoms
    for ring in sorted(rings, key=len, reverse=True):
        for atom in ring:
            sizes[atom] = len(ring)
    return sizes


def atom_features(
    canonicals: list[str],
    degrees: np.ndarray,
    order_sums: np.ndarray,
    is_sp2: np.ndarray,
    sizes: np.ndarray,
    is_atom: np.ndarray,
) -> np.ndarray:
    """Return the features of every atom of many units, stars left out.

    Parameters
    ----------
    canonicals
        The canonical texts, U atoms in all with the stars.
    degrees, order_sums, is_sp2, sizes
        (U,) number of bonds, sum of their orders, and what `sp2_atoms` and `ring_sizes` give. A
        star's bond stands for the link's, so those of its neighbour are already the chain's.
    is_atom
        (U,) False for the stars.

    Returns
    -------
    (N, 9) int16 with the columns of `ATOM_FEATURES`. ``hybridization``: 0 other, 1 sp, 2 sp2,
    3 sp3, 4 sp3d, 5 sp3d2. ``ring_size``: the smallest ring of the infinite chain through the atom,
    0 for none; the link is a bridge of the chain, so its rings are those of the open unit.
    ``isotope``: mass number, 0 for the natural mixture.
    """
    tokens = [atom_tokens(canonical) for canonical in canonicals]
    codes = ((degrees * 256 + (2 * order_sums).astype(np.int64)) * 2 + is_sp2).tolist()
    kinds = list(zip(chain.from_iterable(tokens), codes, strict=True))
    try:
        rows = b"".join([_row_of_kind[kind] for kind in kinds])
    except KeyError:
        remaining = iter(kinds)
        for canonical, own in zip(canonicals, tokens, strict=True):
            _learn(canonical, list(islice(remaining, len(own))))
        rows = b"".join([_row_of_kind[kind] for kind in kinds])
    features = np.frombuffer(rows, dtype=np.int16).reshape(-1, len(ATOM_FEATURES)).copy()
    features[:, ATOM_FEATURES.index("ring_size")] = sizes[is_atom]
    return features


def _learn(canonical: str, kinds: list[tuple[str, int]]) -> None:
    """Ask RDKit for the rows of kinds not met before among the atoms of one unit."""
    ring = None
    for atom, kind in enumerate(kinds):
        if kind in _row_of_kind:
            continue
        if ring is None:
            ring = close_chain(read_canonical(canonical))
        _row_of_kind[kind] = b"" if kind[0] == "*" else _ask(ring.GetAtomWithIdx(atom))


def _ask(atom: Chem.Atom) -> bytes:
    row = (
        atom.GetAtomicNum(),
        atom.GetDegree(),
        atom.GetFormalCharge(),
        atom.GetNumRadicalElectrons(),
        _HYBRIDIZATION_CODE.get(atom.GetHybridization(), 0),
        int(atom.GetIsAromatic()),
        atom.GetTotalNumHs(),
        0,  # the ring size follows from more than the kind
        atom.GetIsotope(),
    )
    return np.array(row, dtype=np.int16).tobytes()


def open_unit_features(unit: RepeatUnit) -> np.ndarray:
    """Return the features of every atom of a unit as it stands, its stars included: (n, 9) int16.

    What the released code gives a model: a star stands where the neighbour should be, so they
    depend on the cut (defect 9). Columns as in `ATOM_FEATURES`; a star has atomic number 0.
    """
    rows = b"".join(_ask(atom) for atom in unit.mol.GetAtoms())
    features = np.frombuffer(rows, dtype=np.int16).reshape(-1, len(ATOM_FEATURES)).copy()
    rings = unit.mol.GetRingInfo().AtomRings()
    features[:, ATOM_FEATURES.index("ring_size")] = ring_sizes(rings, len(features))
    return features
