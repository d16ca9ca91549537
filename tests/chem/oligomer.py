"""Explicit oligomers, the independent reference for everything said of the infinite chain."""

from collections import deque

from rdkit import Chem

from mips_dist.chem.features import _HYBRIDIZATION_CODE


def explicit_oligomer(canonical: str, copies: int) -> tuple[Chem.Mol, dict[tuple[int, int], int]]:
    """Write a unit ``copies`` times as one open, sanitized molecule with its two outer stars.

    Returns the molecule and (atom of the unit without stars, copy) -> atom index.
    """
    unit = Chem.MolFromSmiles(canonical)
    stars = [a.GetIdx() for a in unit.GetAtoms() if a.GetAtomicNum() == 0]
    ends = [unit.GetAtomWithIdx(s).GetNeighbors()[0].GetIdx() for s in stars]
    link = unit.GetBondBetweenAtoms(stars[0], ends[0]).GetBondType()
    Chem.Kekulize(unit, clearAromaticFlags=True)
    n = unit.GetNumAtoms()
    atoms = [i for i in range(n) if i not in stars]
    chain = Chem.RWMol()
    index = {}
    for copy in range(copies):
        for k, i in enumerate(atoms):
            index[k, copy] = chain.AddAtom(unit.GetAtomWithIdx(i))
        for bond in unit.GetBonds():
            a, b = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            if a not in stars and b not in stars:
                chain.AddBond(
                    index[atoms.index(a), copy], index[atoms.index(b), copy], bond.GetBondType()
                )
    right, left = atoms.index(ends[1]), atoms.index(ends[0])
    for copy in range(copies - 1):
        chain.AddBond(index[right, copy], index[left, copy + 1], link)
    for atom in (index[left, 0], index[right, copies - 1]):
        chain.AddBond(atom, chain.AddAtom(Chem.Atom(0)), link)
    Chem.SanitizeMol(chain)
    return chain.GetMol(), index


def distances_from(mol: Chem.Mol, source: int, max_hops: int) -> dict[int, int]:
    """Plain breadth-first search."""
    found = {source: 0}
    queue = deque([source])
    while queue:
        atom = queue.popleft()
        if found[atom] == max_hops:
            continue
        for neighbour in mol.GetAtomWithIdx(atom).GetNeighbors():
            if neighbour.GetIdx() not in found:
                found[neighbour.GetIdx()] = found[atom] + 1
                queue.append(neighbour.GetIdx())
    return found


def shortest_paths(mol: Chem.Mol, source: int, target: int, hops: int) -> list[list[int]]:
    """All paths of exactly ``hops`` bonds, by brute force."""
    if hops == 0:
        return [[source]] if source == target else []
    return [
        [source, *rest]
        for neighbour in mol.GetAtomWithIdx(source).GetNeighbors()
        for rest in shortest_paths(mol, neighbour.GetIdx(), target, hops - 1)
    ]


def features_of(mol: Chem.Mol, atom_index: int) -> list[int]:
    """The columns of ATOM_FEATURES as RDKit gives them on a sanitized molecule."""
    atom = mol.GetAtomWithIdx(atom_index)
    rings = [len(r) for r in mol.GetRingInfo().AtomRings() if atom_index in r]
    return [
        atom.GetAtomicNum(),
        atom.GetDegree(),
        atom.GetFormalCharge(),
        atom.GetNumRadicalElectrons(),
        _HYBRIDIZATION_CODE.get(atom.GetHybridization(), 0),
        int(atom.GetIsAromatic()),
        atom.GetTotalNumHs(),
        min(rings, default=0),
        atom.GetIsotope(),
    ]
