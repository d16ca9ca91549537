"""Descriptors: equal to descriptastorus, independent of batch mates, the same in every process."""

import csv
import gzip
import hashlib
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

from mips_dist.chem.conformer import Conformer, cap_with_hydrogen, embed
from mips_dist.chem.descriptors import (
    DESCRIPTOR_GROUPS,
    atom_pair_3d,
    cap_with_methyl,
    rdkit_2d,
)
from mips_dist.chem.rdkit_2d import raw_rdkit_2d

UNITS = (
    "*C*",
    "*CC*",
    "*CC(*)C",
    "*CC(*)c1ccccc1",
    "*CC(*)C(=O)OC",
    "*CC(*)(C)C(=O)OCC1CO1",
    "*CC(*)C#N",
    "*CC(*)C(=O)O",
    "*C(F)(F)C(*)(F)F",
    "*CC(*)Cl",
    "*CC(*)(Br)CI",
    "*CC(*)O",
    "*[Si](C)(C)O*",
    "*[SiH2]*",
    "*[Si]1(*)CCC1",
    "*c1ccc(*)s1",
    "*c1cc(*)[nH]c1",
    "*c1ccc(*)cc1",
    "*c1ccc(S*)cc1",
    "*S(=O)(=O)c1ccc(*)cc1",
    "*SSC*",
    "*C=C*",
    "*C#C*",
    "*=C=*",
    "*=c1ccc(=*)cc1",
    "*=NN=*",
    "*Oc1ccc(C(C)(C)c2ccc(OC(*)=O)cc2)cc1",
    "*NCCCCCCNC(=O)CCCCC(*)=O",
    "*OCCOC(=O)c1ccc(C(*)=O)cc1",
    "*C(=O)NNC(=O)c1cccc(*)c1",
    "*Nc1ccc(NC(=O)Nc2ccc(C(*)=O)cc2)cc1",
    "*c1ccc2c(c1)C(=O)N(c1ccc(Oc3ccc(N4C(=O)c5ccc(*)cc5C4=O)cc3)cc1)C2=O",
    "*c1ccc2c(c1)-c1ccc(*)cc1C2(CCCCCCCC)CCCCCCCC",
    "*c1cc2c(s1)-c1sc(-c3ccc(*)c4nsnc34)cc1C2(C)C",
    "*CC[N+](C)(C)*",
    "*CC(*)c1ccc(S(=O)(=O)[O-])cc1",
    "*C(c1ccccc1[N+](=O)[O-])C(*)N=[N+]=[N-]",
    "*OP(=O)(OCC)OCC*",
    "*N=P(*)(Cl)Cl",
    "*B(O)c1ccc(*)cc1",
    "*C[Sn](C)(C)C*",
    "*[Se]CC*",
    "*C1C2CC(C1*)C1C=CCC21",
    "*C12C3C4C1C5C2C3C45*",
    "*C1CCC1C1CC1*",
    "*CC(*)C([2H])([2H])[2H]",
    "*[Fe](C)C*",
    "*OC1OC(CO)C(*)C(O)C1O",
)


def parse(units: tuple[str, ...]) -> list[Chem.Mol]:
    return [Chem.MolFromSmiles(psmiles) for psmiles in units]


@pytest.fixture(scope="module")
def descriptors() -> np.ndarray:
    return rdkit_2d(parse(UNITS))


def reference(psmiles: str) -> np.ndarray:
    """Return what descriptastorus gives for the capped unit."""
    from descriptastorus.descriptors.rdNormalizedDescriptors import RDKit2DNormalized

    capped = cap_with_methyl(Chem.MolFromSmiles(psmiles))
    values = RDKit2DNormalized().calculateMol(capped, psmiles)
    return np.nan_to_num(np.array(values, dtype=np.float64), nan=0.0)


def test_equal_to_descriptastorus(descriptors: np.ndarray) -> None:
    assert descriptors.shape == (len(UNITS), DESCRIPTOR_GROUPS["rdkit_2d"].width)
    assert descriptors.dtype == np.float32
    for psmiles, row in zip(UNITS, descriptors, strict=True):
        np.testing.assert_allclose(row, reference(psmiles), atol=1e-5, err_msg=psmiles)


def test_raw_values_are_equal_to_descriptastorus() -> None:
    """Tighter than the normalised ones, where saturated distributions forgive everything."""
    from descriptastorus.descriptors.rdDescriptors import FUNCS_V1, RDKIT_PROPS

    for psmiles in UNITS:
        capped = cap_with_methyl(Chem.MolFromSmiles(psmiles))
        found = raw_rdkit_2d(capped)
        assert sorted(found) == sorted(RDKIT_PROPS["1.0.0"])
        for name, value in found.items():
            if name != "Ipc":  # left out where its distribution cannot see it
                expected = FUNCS_V1[name](capped)
                assert value == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True), name


def test_unit_of_hundreds_of_atoms() -> None:
    """Ipc matters there, and nothing overflows."""
    psmiles = "*" + "C(C)(C)" * 100 + "*"
    assert raw_rdkit_2d(cap_with_methyl(Chem.MolFromSmiles(psmiles)))["Ipc"] > 0
    (row,) = rdkit_2d(parse((psmiles,)))
    np.testing.assert_allclose(row, reference(psmiles), atol=1e-5)


def test_batch_is_one_by_one(descriptors: np.ndarray) -> None:
    """Bit for bit, whatever else is in the batch and wherever it stands."""
    chosen = [0, 7, 23, 31, 40, 46]
    for index in chosen:
        alone = rdkit_2d(parse((UNITS[index],)))
        assert alone.tobytes() == descriptors[index].tobytes(), UNITS[index]
    backwards = rdkit_2d(parse(UNITS[::-1]))
    assert backwards[::-1].tobytes() == descriptors.tobytes()


def test_empty_batch() -> None:
    assert rdkit_2d([]).shape == (0, 200)


def test_missing_parameters_give_zero(descriptors: np.ndarray) -> None:
    """NaN raw values (charges on iron) become 0, and nothing leaves [0, 1]."""
    iron = UNITS.index("*[Fe](C)C*")
    raw = raw_rdkit_2d(cap_with_methyl(Chem.MolFromSmiles(UNITS[iron])))
    assert np.isnan(raw["MaxPartialCharge"])
    from descriptastorus.descriptors.rdDescriptors import RDKIT_PROPS

    assert descriptors[iron, RDKIT_PROPS["1.0.0"].index("MaxPartialCharge")] == 0
    assert descriptors.min() >= 0
    assert descriptors.max() <= 1


def test_methyl_caps() -> None:
    for psmiles, expected in (
        ("*CC(*)Cl", "CCC(C)Cl"),
        ("*=C=*", "C=C=C"),
        ("*n1ccc(*)c1", "Cc1ccn(C)c1"),
        ("*S(=O)(=O)*", "CS(C)(=O)=O"),
    ):
        capped = cap_with_methyl(Chem.MolFromSmiles(psmiles))
        assert Chem.MolToSmiles(capped) == Chem.CanonSmiles(expected)


def test_descriptors_need_no_descriptastorus_at_import() -> None:
    code = "import sys, mips_dist.chem.descriptors; sys.exit('descriptastorus' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


DIGEST = """
import hashlib, sys
from rdkit import Chem
from mips_dist.chem.conformer import embed
from mips_dist.chem.descriptors import atom_pair_3d, rdkit_2d
mols = [Chem.MolFromSmiles(psmiles) for psmiles in sys.argv[1:]]
print(hashlib.sha256(rdkit_2d(mols).tobytes()).hexdigest())
print(hashlib.sha256(b"".join(atom_pair_3d(m, embed(m)).tobytes() for m in mols)).hexdigest())
"""


def conformer_of(mol: Chem.Mol) -> Conformer:
    conformer = embed(mol)
    assert conformer is not None
    return conformer


def test_same_bits_in_a_fresh_process() -> None:
    units = UNITS[3:40:6]
    fresh = subprocess.run(
        [sys.executable, "-c", DIGEST, *units], capture_output=True, text=True, check=True
    )
    mols = parse(units)
    pairs = b"".join(atom_pair_3d(mol, conformer_of(mol)).tobytes() for mol in mols)
    assert fresh.stdout.split() == [
        hashlib.sha256(rdkit_2d(mols).tobytes()).hexdigest(),
        hashlib.sha256(pairs).hexdigest(),
    ]


@pytest.mark.parametrize("psmiles", ["*CC(*)c1ccccc1", "*CCOC(=O)CCC(*)=O", "*[Si](C)(C)O*"])
def test_atom_pairs_are_rdkits(psmiles: str) -> None:
    """The published recipe's call on the same coordinates gives the same bits."""
    mol = Chem.MolFromSmiles(psmiles)
    conformer = conformer_of(mol)
    capped, _ = cap_with_hydrogen(mol)
    placed = Chem.Conformer(capped.GetNumAtoms())
    heavy = conformer.coordinates[~conformer.is_hydrogen]
    placed.SetPositions(heavy.astype(np.float64))
    capped.AddConformer(placed)
    expected = rdMolDescriptors.GetHashedAtomPairFingerprintAsBitVect(
        capped, nBits=512, use2D=False
    )
    bits = atom_pair_3d(mol, conformer)
    assert bits.dtype == np.uint8
    assert bits.tolist() == list(expected)


def test_atom_pairs_depend_on_the_geometry_of_the_unit_only() -> None:
    """Stretching changes bits; neither hydrogens nor the caps of double bonds do."""
    mol = Chem.MolFromSmiles("*=CC(C)=CC=*")
    conformer = conformer_of(mol)
    bits = atom_pair_3d(mol, conformer)
    stretched = Conformer(conformer.coordinates * 2, conformer.is_hydrogen, conformer.status)
    assert (atom_pair_3d(mol, stretched) != bits).any()
    moved = conformer.coordinates.copy()
    moved[conformer.is_hydrogen] += 50
    assert (atom_pair_3d(mol, Conformer(moved, conformer.is_hydrogen, 0)) == bits).all()
    turned = conformer.coordinates + np.float32([40, -8, 16])  # away from the caps at the origin
    assert (atom_pair_3d(mol, Conformer(turned, conformer.is_hydrogen, 0)) == bits).all()
    assert bits.sum() <= 5 * 4 / 2 * 4  # five atoms: at most ten pairs of four bits


def test_one_atom_has_no_pairs() -> None:
    for psmiles in ("*C*", "*=C=*"):
        mol = Chem.MolFromSmiles(psmiles)
        assert not atom_pair_3d(mol, conformer_of(mol)).any()


@pytest.mark.needs_data
def test_constants_and_duplicates_are_those_named(data_dir: Path) -> None:
    """The lists of the module's documentation, over polymers of the corpus."""
    from descriptastorus.descriptors.rdDescriptors import RDKIT_PROPS

    names = RDKIT_PROPS["1.0.0"]
    with gzip.open(data_dir / "corpus" / "pl1m_like.csv.gz", "rt", newline="") as file:
        rows = itertools.islice(csv.DictReader(file), 0, 60_000, 120)
        mols = [Chem.MolFromSmiles(row["psmiles"]) for row in rows]
    normalised = rdkit_2d(mols)
    constant = {n for n, values in zip(names, normalised.T, strict=True) if np.ptp(values) == 0}
    assert constant >= {
        "Ipc", "SMR_VSA8", "SlogP_VSA9",
        "VSA_EState1", "VSA_EState3", "VSA_EState4", "VSA_EState6",
        "fr_benzodiazepine", "fr_dihydropyridine", "fr_isothiocyan", "fr_lactam", "fr_prisulfonamd",
    }  # fmt: skip
    assert len(constant) < 30
    raw = [raw_rdkit_2d(cap_with_methyl(mol)) for mol in mols]
    for one, other in (
        ("fr_Ar_NH", "fr_Nhpyrrole"),
        ("fr_azide", "fr_diazo"),
        ("fr_nitro", "fr_nitro_arom"),
        ("fr_phenol", "fr_phenol_noOrthoHbond"),
    ):
        differing = sum(values[one] != values[other] for values in raw)
        assert differing <= 1, (one, other, differing)
    for one, other in (("MaxAbsEStateIndex", "MaxEStateIndex"), ("ExactMolWt", "MolWt")):
        pairs = np.array([(values[one], values[other]) for values in raw])
        assert np.corrcoef(pairs.T)[0, 1] > 0.9999


def test_groups_name_their_caps() -> None:
    assert set(DESCRIPTOR_GROUPS) == {"rdkit_2d", "atom_pair_3d", "bands", "xtb"}
    assert "cap-CH3" in DESCRIPTOR_GROUPS["rdkit_2d"].version
    assert "cap-H" in DESCRIPTOR_GROUPS["atom_pair_3d"].version
    assert all(group.name == name for name, group in DESCRIPTOR_GROUPS.items())
