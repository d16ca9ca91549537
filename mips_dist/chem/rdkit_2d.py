"""Raw values of the 200 RDKit2D descriptors, every shared quantity computed once.

RDKit's own functions start over for each descriptor: the same Crippen contributions for four
families, the same E-state indices for 25 values, the same paths for ten chi indices. Here each is
taken once from the fastest call that gives it, which is a third of the time. Values equal those of
the functions that descriptastorus calls (its list, version 1.0.0) but for the order of float sums.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache

import numpy as np
from rdkit import Chem
from rdkit.Chem import (
    QED,
    FilterCatalog,
    Fragments,
    GraphDescriptors,
    rdFingerprintGenerator,
    rdMolDescriptors,
    rdPartialCharges,
)
from rdkit.Chem.EState import EState_VSA
from rdkit.Chem.EState.EState import GetPrincipleQuantumNumber
from rdkit.Chem.MolSurf import chgBins, logpBins, mrBins
from rdkit.ML.InfoTheory.rdInfoTheory import InfoEntropy

# RDKit's C++ registry computes these in one call: its name -> the name of the descriptor.
_REGISTRY = {
    "exactmw": "ExactMolWt",
    "amw": "MolWt",
    "lipinskiHBA": "NOCount",
    "lipinskiHBD": "NHOHCount",
    "NumRotatableBonds": "NumRotatableBonds",
    "NumHBD": "NumHDonors",
    "NumHBA": "NumHAcceptors",
    "NumHeavyAtoms": "HeavyAtomCount",
    "NumHeteroatoms": "NumHeteroatoms",
    "FractionCSP3": "FractionCSP3",
    "NumRings": "RingCount",
    "NumAromaticRings": "NumAromaticRings",
    "NumAliphaticRings": "NumAliphaticRings",
    "NumSaturatedRings": "NumSaturatedRings",
    "NumAromaticHeterocycles": "NumAromaticHeterocycles",
    "NumSaturatedHeterocycles": "NumSaturatedHeterocycles",
    "NumAliphaticHeterocycles": "NumAliphaticHeterocycles",
    "tpsa": "TPSA",
    "hallKierAlpha": "HallKierAlpha",
}
# The same for the indices over paths, where the short way (`_path_indices`) does not hold.
_PATH_REGISTRY = {
    **{f"chi{n}{kind}": f"Chi{n}{kind}" for kind in "nv" for n in range(5)},
    **{f"kappa{n}": f"Kappa{n}" for n in (1, 2, 3)},
}
_PROPERTIES = rdMolDescriptors.Properties(list(_REGISTRY))
_PATH_PROPERTIES = rdMolDescriptors.Properties(list(_PATH_REGISTRY))

_MORGAN = {r: rdFingerprintGenerator.GetMorganGenerator(radius=r) for r in (1, 2, 3)}
# RDKit 2024.03 changed this pattern; the fitted distribution belongs to the one before.
_UNBRANCHED_ALKANE = Chem.MolFromSmarts("[R0;D2][R0;D2][R0;D2][R0;D2]")
_PERIODIC_TABLE = Chem.GetPeriodicTable()


def _catalog(patterns: Mapping[str, Chem.Mol]) -> FilterCatalog.FilterCatalog:
    """Put patterns into a catalog, which finds those that occur in one call."""
    catalog = FilterCatalog.FilterCatalog()
    for name, pattern in patterns.items():
        matcher = FilterCatalog.SmartsMatcher(name, pattern)
        catalog.AddEntry(FilterCatalog.FilterCatalogEntry(name, matcher))
    return catalog


_ALERTS = _catalog({str(i): pattern for i, pattern in enumerate(QED.StructuralAlerts)})
# RDKit holds each fragment's pattern as the last default of the function that counts it.
_FRAGMENTS = {name: count.__defaults__[-1] for name, count in Fragments.fns}
_FRAGMENTS["fr_unbrch_alkane"] = _UNBRANCHED_ALKANE
_FRAGMENT_CATALOG = _catalog(_FRAGMENTS)


def raw_rdkit_2d(mol: Chem.Mol) -> dict[str, float]:
    """Compute the 200 descriptors of one sanitized molecule, by name.

    Some are NaN where RDKit has no parameters (partial charges near some metals).
    """
    values = dict(zip(_REGISTRY.values(), _PROPERTIES.ComputeProperties(mol), strict=True))
    atoms = _Atoms(mol)
    values.update(_atom_sums(mol, atoms))
    values.update(_path_indices(mol, atoms, values["HallKierAlpha"]))
    values.update(_topology(mol, atoms))
    values.update(_surfaces(mol, atoms))
    values.update(_carbocycles(values))
    values.update(_fragments(mol))
    values["qed"] = _qed(mol, values)
    return values


def _fragments(mol: Chem.Mol) -> dict[str, int]:
    """Count the 85 fragments; only those that occur, a tenth of them, are searched for in full."""
    counts = dict.fromkeys(_FRAGMENTS, 0)
    for entry in _FRAGMENT_CATALOG.GetMatches(mol):
        name = entry.GetDescription()
        counts[name] = len(mol.GetSubstructMatches(_FRAGMENTS[name]))
    return counts


class _Atoms:
    """Per-atom and per-bond numbers that several families need.

    Attributes are arrays over atoms (N,), and over directed bonds (2 B,) for ``source``,
    ``target`` and ``order`` (1.5 where aromatic), sorted by source, then target.
    """

    def __init__(self, mol: Chem.Mol) -> None:
        # Iterating over GetAtoms() takes three times as long.
        atoms = [mol.GetAtomWithIdx(index) for index in range(mol.GetNumAtoms())]
        self.number = np.array([atom.GetAtomicNum() for atom in atoms])
        self.hydrogens = np.array([atom.GetTotalNumHs() for atom in atoms])
        self.charge = np.array([atom.GetFormalCharge() for atom in atoms])
        self.radicals = np.array([atom.GetNumRadicalElectrons() for atom in atoms])
        self.outer = np.array([_outer_electrons(number) for number in self.number.tolist()])
        bond_orders = Chem.GetAdjacencyMatrix(mol, useBO=True)
        self.source, self.target = np.nonzero(bond_orders)
        self.order = bond_orders[self.source, self.target]
        self.degree = np.bincount(self.source, minlength=len(atoms))
        rdPartialCharges.ComputeGasteigerCharges(mol)
        self.partial_charge = np.array([a.GetDoubleProp("_GasteigerCharge") for a in atoms])

    def __len__(self) -> int:
        return len(self.number)


@cache
def _outer_electrons(number: int) -> int:
    return _PERIODIC_TABLE.GetNOuterElecs(number)


@cache
def _quantum_number(number: int) -> int:
    return GetPrincipleQuantumNumber(number)


def _atom_sums(mol: Chem.Mol, atoms: _Atoms) -> dict[str, float]:
    """Take sums and extrema over atoms, and densities of Morgan environments."""
    low, high = _charge_range(atoms.partial_charge)
    values = {
        "HeavyAtomMolWt": rdMolDescriptors._CalcMolWt(mol, True),
        "NumValenceElectrons": int((atoms.outer - atoms.charge + atoms.hydrogens).sum()),
        "NumRadicalElectrons": int(atoms.radicals.sum()),
        "MinPartialCharge": low,
        "MaxPartialCharge": high,
        "MinAbsPartialCharge": min(abs(low), abs(high)),
        "MaxAbsPartialCharge": max(abs(low), abs(high)),
    }
    num_heavy = mol.GetNumHeavyAtoms()
    for radius, generator in _MORGAN.items():
        environments = generator.GetSparseCountFingerprint(mol).GetNonzeroElements()
        values[f"FpDensityMorgan{radius}"] = len(environments) / num_heavy if num_heavy else 0.0
    return values


def _charge_range(charges: np.ndarray) -> tuple[float, float]:
    """Return smallest and largest charge; with NaN among them, what RDKit's loop makes of it."""
    if np.isfinite(charges).all():
        return float(charges.min()), float(charges.max())
    low, high = 500.0, -500.0
    for charge in charges.tolist():
        low, high = min(charge, low), max(charge, high)
    return low, high


def _path_indices(mol: Chem.Mol, atoms: _Atoms, alpha: float) -> dict[str, float]:
    """Chi and kappa indices: sums over paths of up to five atoms.

    Without rings of three or four atoms a path is its central atom or bond and its two arms, so a
    sum over paths is a product of sums over neighbours. Otherwise, and where an atom has no
    positive delta, RDKit's enumeration is called.
    """
    values: dict[str, float] = {
        "Chi0": float(np.sum(1 / np.sqrt(atoms.degree[atoms.degree > 0]))),
        "Chi1": float(
            np.sum(1 / np.sqrt(atoms.degree[atoms.source] * atoms.degree[atoms.target])) / 2
        ),
    }
    smallest_ring = min(map(len, mol.GetRingInfo().AtomRings()), default=5)
    valence = (atoms.outer - atoms.hydrogens).astype(np.float64)
    is_regular = smallest_ring > 4 and valence.min() > 0 and atoms.number.min() > 1
    if not is_regular:
        found = _PATH_PROPERTIES.ComputeProperties(mol)
        return values | dict(zip(_PATH_REGISTRY.values(), found, strict=True))

    core = np.where(atoms.number <= 10, 1, atoms.number - atoms.outer - 1)
    # Columns: deltas of chi n, deltas of chi v, and ones, whose path sums count the paths.
    weight = np.stack([valence**-0.5, (valence / core) ** -0.5, np.ones_like(valence)], axis=1)
    arm = weight[atoms.target]  # (2 B, 3) weight of the far atom of each directed bond
    beyond = _sum_by(atoms.source, arm, len(atoms))  # (N, 3) sum over neighbours
    onward = beyond[atoms.target] - weight[atoms.source]  # (2 B, 3) arms one atom further
    two_arm = arm * onward
    pairs = beyond**2 - _sum_by(atoms.source, arm**2, len(atoms))
    long_pairs = _sum_by(atoms.source, two_arm, len(atoms)) ** 2 - _sum_by(
        atoms.source, two_arm**2, len(atoms)
    )
    back = beyond[atoms.source] - arm
    sums = [
        weight.sum(axis=0),
        (weight * beyond).sum(axis=0) / 2,
        (weight * pairs).sum(axis=0) / 2,
        (weight[atoms.source] * two_arm * back).sum(axis=0) / 2,
        (weight * long_pairs).sum(axis=0) / 2,
    ]
    for column, kind in enumerate("nv"):
        values.update({f"Chi{n}{kind}": float(total[column]) for n, total in enumerate(sums)})
    return values | _kappa(len(atoms), alpha, *(float(total[2]) for total in sums[1:4]))


def _sum_by(index: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """Sum the rows (K, C) that have the same index (K,): (size, C)."""
    return np.stack([np.bincount(index, column, minlength=size) for column in rows.T], axis=1)


def _kappa(
    num_atoms: int, alpha: float, paths_1: float, paths_2: float, paths_3: float
) -> dict[str, float]:
    """Hall-Kier kappa indices from the numbers of paths of one, two and three bonds."""
    size = num_atoms + alpha

    def ratio(numerator: float, paths: float) -> float:
        denominator = (paths + alpha) ** 2
        return numerator / denominator if denominator else 0.0

    shift = 1 if num_atoms % 2 else 2
    return {
        "Kappa1": ratio(size * (size - 1) ** 2, paths_1),
        "Kappa2": ratio((size - 1) * (size - 2) ** 2, paths_2),
        "Kappa3": ratio((size - shift) * (size - 3) ** 2, paths_3),
    }


def _topology(mol: Chem.Mol, atoms: _Atoms) -> dict[str, float]:
    """Compute the indices on distance matrices: Balaban, Bertz, Ipc."""
    distance = Chem.GetDistanceMatrix(mol, useBO=True, force=True, prefix="Balaban")
    total = distance.sum(axis=0)
    edges = float(np.sum(1 / np.sqrt(total[atoms.source] * total[atoms.target]))) / 2
    num_bonds = len(atoms.source) // 2
    cycles = num_bonds - len(atoms) + 1
    return {
        "BalabanJ": num_bonds / (cycles + 1) * edges if cycles + 1 else 0.0,
        "BertzCT": _bertz(atoms, distance),
        "Ipc": _ipc(mol, atoms),
    }


def _ipc(mol: Chem.Mol, atoms: _Atoms) -> float:
    """Information content of the characteristic polynomial, where it can matter.

    The fitted distribution of Ipc is shifted by 1e221: any value below 1e200 is absorbed in the
    last digit and the normalised descriptor is one constant. The value is at most
    ``(1 + largest degree) ** atoms`` times an entropy, so only units of hundreds of atoms need it.
    """
    if len(atoms) * math.log10(1 + atoms.degree.max()) < 190:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # NaN from about 900 atoms on
        return float(GraphDescriptors.Ipc(mol))


def _bertz(atoms: _Atoms, distance: np.ndarray) -> float:
    """Bertz complexity: entropies of bond pairs by symmetry class, and of elements."""
    rows = np.rint(np.sort(distance, axis=1)[:, :100] * 1e4).astype(np.int64)
    classes: dict[bytes, int] = {}
    symmetry = [classes.setdefault(row.tobytes(), len(classes)) for row in rows]
    bonds: list[list[tuple[int, int, float]]] = [[] for _ in symmetry]
    for source, target, order in zip(
        atoms.source.tolist(), atoms.target.tolist(), atoms.order.tolist(), strict=True
    ):
        bonds[source].append((target, symmetry[target], order))

    connections: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for atom, around in enumerate(bonds):
        middle = symmetry[atom]
        for position, (neighbor, left, left_order) in enumerate(around):
            if left_order > 1 and neighbor > atom:
                ends = (left, middle) if left < middle else (middle, left)
                connections[ends] += left_order * (left_order - 1) / 2
            for _, right, right_order in around[position + 1 :]:
                key = (left, middle, right) if left < right else (right, middle, left)
                connections[key] += left_order * right_order
    counts = np.array(list(connections.values()) or [1], dtype=np.float64)
    elements = np.array(list(Counter(atoms.number.tolist()).values()), dtype=np.float64)
    num_connections = counts.sum()
    bonding = num_connections * (InfoEntropy(counts) + math.log2(num_connections))
    return float(bonding + len(atoms) * InfoEntropy(elements))


def _surfaces(mol: Chem.Mol, atoms: _Atoms) -> dict[str, float]:
    """Surface areas binned by logP, refractivity, charge and E-state, and E-states by area."""
    contributions, hydrogen_area = rdMolDescriptors._CalcLabuteASAContribs(mol, True)
    area = np.array(contributions)
    crippen = _crippen(mol, atoms)
    log_p, refractivity = crippen.sum(axis=0).tolist()
    e_state = _e_state(mol, atoms)
    values: dict[str, float] = {
        "LabuteASA": float(area.sum() + hydrogen_area),
        "MolLogP": log_p,
        "MolMR": refractivity,
        "MinEStateIndex": float(e_state.min()),
        "MaxEStateIndex": float(e_state.max()),
        "MinAbsEStateIndex": float(np.abs(e_state).min()),
        "MaxAbsEStateIndex": float(np.abs(e_state).max()),
    }
    heavy = crippen[: len(atoms)]
    for name, by, bins, amount in (
        ("SlogP_VSA", heavy[:, 0], logpBins, area),
        ("SMR_VSA", heavy[:, 1], mrBins, area),
        ("PEOE_VSA", atoms.partial_charge, chgBins, area),
        ("EState_VSA", e_state, EState_VSA.estateBins, area),
        ("VSA_EState", area, EState_VSA.vsaBins, e_state),
    ):
        bin_of = np.searchsorted(bins, by, side="right")
        binned = np.bincount(bin_of, amount, minlength=len(bins) + 1)
        values.update({f"{name}{i}": total for i, total in enumerate(binned.tolist(), start=1)})
    return values


def _crippen(mol: Chem.Mol, atoms: _Atoms) -> np.ndarray:
    """Contributions (K, 2) float64 to logP and refractivity: of the atoms, then of hydrogens.

    A hydrogen on carbon or on nitrogen has one value each. Others depend on the surroundings:
    then the hydrogens are made explicit, which doubles the cost and changes no heavy atom's value.
    """
    bearers = atoms.number[atoms.hydrogens > 0]
    if not np.isin(bearers, (6, 7)).all():
        return np.array(rdMolDescriptors._CalcCrippenContribs(Chem.AddHs(mol)))
    heavy = rdMolDescriptors._CalcCrippenContribs(mol)
    hydrogens = [
        np.multiply(_hydrogen_contribution(number), atoms.hydrogens[atoms.number == number].sum())
        for number in (6, 7)
    ]
    return np.array([*heavy, *hydrogens])


@cache
def _hydrogen_contribution(bearer: int) -> tuple[float, float]:
    """Crippen's logP and refractivity of a hydrogen on this element."""
    symbol = _PERIODIC_TABLE.GetElementSymbol(bearer)
    hydride = Chem.AddHs(Chem.MolFromSmiles(symbol))
    return rdMolDescriptors._CalcCrippenContribs(hydride)[1]


def _e_state(mol: Chem.Mol, atoms: _Atoms) -> np.ndarray:
    """Electrotopological state of each atom, (N,) float64."""
    shell = np.array([_quantum_number(number) for number in atoms.number.tolist()])
    intrinsic = np.zeros(len(atoms))
    np.divide(
        4 / shell**2 * (atoms.outer - atoms.hydrogens) + 1,
        atoms.degree,
        out=intrinsic,
        where=atoms.degree > 0,
    )
    distance = Chem.GetDistanceMatrix(mol) + 1
    # Summed row by row, which is RDKit's order: an atom on the edge of a bin stays on its side.
    perturbation = ((intrinsic[None, :] - intrinsic[:, None]) / distance**2).sum(axis=0)
    return perturbation + intrinsic


def _carbocycles(values: dict[str, float]) -> dict[str, float]:
    """Count the rings that are no heterocycles, which the registry lacks."""
    return {
        f"Num{kind}Carbocycles": values[f"Num{kind}Rings"] - values[f"Num{kind}Heterocycles"]
        for kind in ("Aromatic", "Aliphatic", "Saturated")
    }


def _qed(mol: Chem.Mol, values: dict[str, float]) -> float:
    """Drug-likeness from the values that are there already, acceptors and alerts."""
    properties = QED.QEDproperties(
        MW=values["MolWt"],
        ALOGP=values["MolLogP"],
        HBA=sum(len(mol.GetSubstructMatches(pattern)) for pattern in QED.Acceptors),
        HBD=values["NumHDonors"],
        PSA=values["TPSA"],
        ROTB=values["NumRotatableBonds"],
        AROM=_rings_after_deletion(mol, values),
        ALERTS=len(_ALERTS.GetMatches(mol)),
    )
    return QED.qed(mol, qedProperties=properties)


def _rings_after_deletion(mol: Chem.Mol, values: dict[str, float]) -> int:
    """Count the rings left without the aliphatic ring atoms that have an aliphatic neighbour."""
    if values["NumAromaticRings"] == 0:
        return 0
    if not mol.HasSubstructMatch(QED.AliphaticRings):
        return int(values["RingCount"])
    return len(Chem.GetSSSR(Chem.DeleteSubstructs(Chem.Mol(mol), QED.AliphaticRings)))
