"""What may become of the two stars of a repeat unit: the strategies that the paper compares.

``link`` is ours: the exact quotient of the infinite chain. The others read a unit as it is spelled,
so their graphs, and with them predictions, change with the spelling; `mips rsit` measures by how
much. Each is given in the format of `PolymerGraph`, so that blocks, batches and models take it.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from rdkit import Chem

from mips_dist.chem.features import open_unit_features
from mips_dist.chem.graph import PolymerGraph, backbone_atoms, bond_types, build_graphs
from mips_dist.chem.pairs import find_pairs
from mips_dist.chem.psmiles import RepeatUnit, canonicalize, parse

# keep: the stars are atoms of a kind of their own. remove: they are left out. substitute: each
# becomes a copy of the boundary atom at the other end, as in MMPolymer and in the graphs of the
# released code. link_cut_features: the chain is closed by a link bond, but atom features are those
# of the open unit, as released (defect 9). link: `build_graphs` of the canonical spelling.
StarStrategy = Literal["keep", "remove", "substitute", "link_cut_features", "link"]
STAR_STRATEGIES: tuple[StarStrategy, ...] = get_args(StarStrategy)


def build_star_graphs(
    psmiles: list[str], strategy: StarStrategy, max_hops: int = 2
) -> list[PolymerGraph]:
    """Build graphs of spelled units; a unit's graph does not depend on the others in the list.

    Under ``keep``, ``remove`` and ``substitute`` the graph is finite: no link bond, every shift 0.
    Features are taken before stars are changed, as released: the bond to a star counts in the
    degree of a boundary atom, also where the star is gone.

    Parameters
    ----------
    psmiles
        Texts of polymers, any spelling.
    max_hops
        Radius of the pair search in bonds.

    Raises
    ------
    InvalidPolymer
        A text is no polymer.
    """
    if not psmiles:
        return []
    if strategy == "link":
        return build_graphs([canonicalize(text) for text in psmiles], max_hops)
    units = [_StarUnit.make(parse(text), strategy) for text in psmiles]
    starts = np.cumsum([0, *(len(unit.is_backbone) for unit in units)])
    bond_counts = [len(unit.bond_type) for unit in units]
    edge_index = np.concatenate([unit.edge_index for unit in units], axis=1)
    pairs = find_pairs(
        starts,
        edge_index + np.repeat(starts[:-1], bond_counts),
        np.concatenate([unit.bond_type for unit in units]),
        np.concatenate([unit.cell_shift for unit in units]),
        max_hops,
    )
    return [
        PolymerGraph(
            psmiles=text,
            atom_features=unit.atom_features,
            is_backbone=unit.is_backbone,
            edge_index=unit.edge_index.astype(np.int16),
            bond_type=unit.bond_type,
            cell_shift=unit.cell_shift,
            **fields,
        )
        for text, unit, fields in zip(psmiles, units, pairs, strict=True)
    ]


def substituted_molecule(psmiles: str) -> Chem.Mol:
    """Return a unit as a molecule in which each star is the boundary atom at the other end.

    This is ``substitute`` for models that read molecules. The copy has element, isotope and charge
    of the boundary atom, and the star's bond of order 1, 2 or 3. That is its only neighbour, so it
    is not aromatic and has no unpaired electron; hydrogens fill its valence:
    ``*c1ccc(O*)cc1`` becomes ``Oc1ccc(OC)cc1``, ``*=CC=*`` becomes ``C=CC=C``, and of
    ``*CC[N+](*)(C)C`` the left star becomes ``[NH3+]``.

    Parameters
    ----------
    psmiles
        Text of a polymer, any spelling; the molecule depends on it.

    Raises
    ------
    InvalidPolymer
        The text is no polymer.
    """
    unit = parse(psmiles)
    mol = Chem.RWMol(unit.mol)
    for star, other_end in zip(unit.stars, reversed(unit.ends), strict=True):
        boundary = unit.mol.GetAtomWithIdx(other_end)
        copy = Chem.Atom(boundary.GetAtomicNum())
        copy.SetIsotope(boundary.GetIsotope())
        copy.SetFormalCharge(boundary.GetFormalCharge())
        mol.ReplaceAtom(star, copy)
    Chem.SanitizeMol(mol)
    return mol.GetMol()


@dataclass(frozen=True, slots=True)
class _StarUnit:
    """Atoms and bonds of one unit after its stars were dealt with; fields as in `PolymerGraph`."""

    atom_features: np.ndarray
    is_backbone: np.ndarray
    edge_index: np.ndarray
    bond_type: np.ndarray
    cell_shift: np.ndarray

    @classmethod
    def make(cls, unit: RepeatUnit, strategy: StarStrategy) -> "_StarUnit":
        features = open_unit_features(unit)
        is_backbone = np.zeros(len(features), dtype=bool)
        # The released code counts the stars as part of the backbone.
        rings = unit.mol.GetRingInfo().AtomRings()
        is_backbone[[*backbone_atoms(unit, rings), *unit.stars]] = True
        begin, end = np.triu(unit.bond_orders).nonzero()
        orders = unit.bond_orders[begin, end]
        if strategy == "substitute":
            features[list(unit.stars)] = features[list(reversed(unit.ends))]
        if strategy in ("keep", "substitute"):
            edges, shift = np.stack([begin, end]), np.zeros(len(begin), dtype=np.int8)
            return cls(features, is_backbone, edges, bond_types(orders), shift)
        is_atom = np.ones(len(features), dtype=bool)
        is_atom[list(unit.stars)] = False
        is_inner = is_atom[begin] & is_atom[end]
        edges, orders = np.stack([begin, end])[:, is_inner], orders[is_inner]
        shift = np.zeros(len(orders), dtype=np.int8)
        if strategy == "link_cut_features":
            left, right = unit.ends
            edges = np.append(edges, [[right], [left]], axis=1)
            orders, shift = np.append(orders, unit.order), np.append(shift, np.int8(1))
        number = np.cumsum(is_atom) - 1
        return cls(
            features[is_atom], is_backbone[is_atom], number[edges], bond_types(orders), shift
        )
