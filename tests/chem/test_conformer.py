"""Conformers: geometry, order of atoms, the ladder, and the same bits in every process."""

import csv
import hashlib
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from mips_dist.chem import conformer as conformer_module
from mips_dist.chem.conformer import (
    FAILED,
    MAX_EMBEDDED_ATOMS,
    STATUS_NAMES,
    Conformer,
    cap_with_hydrogen,
    embed,
    embed_each,
)

SETS = ("Egc", "Egb", "Eea", "Ei", "Xc", "EPS", "Nc", "Eat")
UNITS = (
    "*CC*",
    "*C*",
    "*CC(*)c1ccccc1",
    "*Oc1ccc(cc1)C(C)(C)c1ccc(cc1)OC(*)=O",
    "*CC(*)C(=O)OC",
    "*[Si](C)(C)O*",
    "*c1ccc(*)s1",
    "*n1ccc(*)c1",
    "*CC[N+](C)(C)*",
    "*S(=O)(=O)c1ccc(*)cc1",
    "*C(F)(F)C(*)(F)F",
    "*N=P(*)(Cl)Cl",
    "*C#C*",
    "*CC(C)(*)C([2H])([2H])[2H]",
)
# Seven atoms, each bonded to all others: more equal distances than space has room for.
IMPOSSIBLE = "*[U]12345[U]6789[U]1%10%11%12[U]621%13[U]7%1032[U]8%1114[U]9%12%1325*"
M31 = 2**31 - 1  # seeds that RDKit has


def unit_atoms(mol: Chem.Mol) -> list[int]:
    return [atom.GetAtomicNum() for atom in mol.GetAtoms() if atom.GetAtomicNum()]


@pytest.mark.parametrize("psmiles", UNITS)
def test_geometry_is_sane(psmiles: str) -> None:
    """Bonded atoms lie at the sum of their covalent radii (triple bonds are 0.32 shorter)."""
    mol = Chem.MolFromSmiles(psmiles)
    conformer = embed(mol)
    assert conformer is not None
    capped, _ = cap_with_hydrogen(mol)
    full = Chem.AddHs(capped)
    assert len(conformer.coordinates) == full.GetNumAtoms()
    table = Chem.GetPeriodicTable()
    radius = np.array([table.GetRcovalent(atom.GetAtomicNum()) for atom in full.GetAtoms()])
    distance = np.linalg.norm(conformer.coordinates[:, None] - conformer.coordinates, axis=-1)
    expected = radius[:, None] + radius
    is_bonded = Chem.GetAdjacencyMatrix(full).astype(bool)
    assert (np.abs(distance - expected)[is_bonded] < 0.35).all()
    is_apart = ~is_bonded & ~np.eye(len(radius), dtype=bool)
    assert (distance[is_apart] > 1.4).all()


@pytest.mark.parametrize("psmiles", UNITS)
def test_atoms_of_the_unit_come_first(psmiles: str) -> None:
    mol = Chem.MolFromSmiles(psmiles)
    conformer = embed(mol)
    assert conformer is not None
    assert conformer.coordinates.dtype == np.float32
    num_atoms = len(unit_atoms(mol))
    num_hydrogens = sum(atom.GetTotalNumHs() for atom in mol.GetAtoms())
    assert not conformer.is_hydrogen[:num_atoms].any()
    # Each star is one more hydrogen.
    assert conformer.is_hydrogen[num_atoms:].sum() == num_hydrogens + 2
    assert len(conformer.is_hydrogen) == len(conformer.coordinates)


def test_coordinates_follow_the_order_of_the_atoms() -> None:
    """Bond lengths of the unit's own bonds tell the atoms apart."""
    mol = Chem.MolFromSmiles("*c1ccc(*)c(C#N)c1CI")
    conformer = embed(mol)
    assert conformer is not None
    kept = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum()]
    place = {index: position for position, index in enumerate(kept)}
    lengths = {}
    for bond in mol.GetBonds():
        ends = bond.GetBeginAtom(), bond.GetEndAtom()
        if all(end.GetAtomicNum() for end in ends):
            first, second = (conformer.coordinates[place[end.GetIdx()]] for end in ends)
            symbols = "".join(sorted(end.GetSymbol() for end in ends))
            length = float(np.linalg.norm(first - second))
            lengths.setdefault((symbols, bond.GetBondType()), []).append(length)
    assert all(1.33 < x < 1.45 for x in lengths["CC", Chem.BondType.AROMATIC])
    assert all(1.1 < x < 1.2 for x in lengths["CN", Chem.BondType.TRIPLE])
    assert all(2.0 < x < 2.3 for x in lengths["CI", Chem.BondType.SINGLE])


@pytest.mark.parametrize(
    ("psmiles", "num_atoms", "num_hydrogens"),
    [("*=C=*", 1, 0), ("*=CC=*", 2, 2), ("*=c1ccc(=*)cc1", 6, 4), ("*=NN=*", 2, 0)],
)
def test_caps_of_double_bonds_are_not_listed(
    psmiles: str, num_atoms: int, num_hydrogens: int
) -> None:
    conformer = embed(Chem.MolFromSmiles(psmiles))
    assert conformer is not None
    assert conformer.is_hydrogen.tolist() == [False] * num_atoms + [True] * num_hydrogens


def test_caps_keep_valences() -> None:
    """A hydrogen stands for each star: SO2 stays hexavalent, pyrrole keeps its N-H."""
    for psmiles, expected in (
        ("*S(=O)(=O)*", "[H][SH](=O)=O"),
        ("*n1ccc(*)c1", "c1cc[nH]c1"),
        ("*P(C)(=O)*", "C[PH2]=O"),
        ("*[N+](C)(C)C*", "C[NH+](C)C"),
        ("*[SiH2]*", "[SiH4]"),
        ("*=C=*", "C=C=C"),
    ):
        capped, _ = cap_with_hydrogen(Chem.MolFromSmiles(psmiles))
        wanted = Chem.MolFromSmiles(expected)
        assert Chem.MolToSmiles(capped) == Chem.MolToSmiles(wanted)


def test_statuses_of_the_ladder() -> None:
    def status(psmiles: str, iterations: int = 50) -> str:
        conformer = embed(Chem.MolFromSmiles(psmiles), mmff_iterations=iterations)
        assert conformer is not None
        return STATUS_NAMES[conformer.status]

    assert status("*CC*") == "mmff94_converged"
    assert status("*CC(*)c1ccccc1", iterations=1) == "mmff94_unconverged"
    assert status("*[Se]CC*") == "uff_converged"
    assert status("*C[Sn](C)(C)C*", iterations=1) == "uff_unconverged"
    assert status("*[Fe](C)*") == "embedded"
    assert STATUS_NAMES[FAILED] == "failed"


def test_random_start_is_recorded() -> None:
    """A long chain leaves ETKDG without embedding at its first try."""
    conformer = embed(Chem.MolFromSmiles("*" + "C" * 220 + "*"), mmff_iterations=1)
    assert conformer is not None
    assert STATUS_NAMES[conformer.status] == "random_start_mmff94_unconverged"


def test_impossible_unit_gives_none() -> None:
    mol = Chem.MolFromSmiles(IMPOSSIBLE)
    assert mol is not None
    assert embed(mol) is None


def test_stereo_marks_on_stars_do_not_matter() -> None:
    """They would name an atom that the cap removes, which crashes RDKit's embedding."""
    for marked, plain in (
        ("*/C=C/c1ccc(SCCSS*)cc1", "*C=Cc1ccc(SCCSS*)cc1"),
        ("*C[C@H](*)CC", "*CC(*)CC"),
    ):
        conformers = [embed(Chem.MolFromSmiles(psmiles)) for psmiles in (marked, plain)]
        assert conformers[0] is not None
        assert conformers[1] is not None
        assert conformers[0].coordinates.tobytes() == conformers[1].coordinates.tobytes()


def test_seed_out_of_range_is_refused() -> None:
    for seed in (-1, M31):
        with pytest.raises(ValueError, match="seed"):
            embed(Chem.MolFromSmiles("*CC*"), seed=seed)


def test_seeds_differ_and_input_is_untouched() -> None:
    mol = Chem.MolFromSmiles("*CCCCCCOC(=O)CCCC(*)=O")
    before = mol.ToBinary()
    first, again, other = (embed(mol, seed=seed) for seed in (0, 0, 1))
    assert first is not None
    assert again is not None
    assert other is not None
    assert mol.ToBinary() == before
    assert first.coordinates.tobytes() == again.coordinates.tobytes()
    assert not np.allclose(first.coordinates, other.coordinates, atol=0.1)


def as_bytes(conformer: Conformer | None) -> tuple[bytes, bytes, int]:
    assert conformer is not None
    arrays = conformer.coordinates, conformer.is_hydrogen
    return arrays[0].tobytes(), arrays[1].tobytes(), conformer.status


def test_many_units_are_each_by_itself() -> None:
    """Whatever else is in the list, and whichever conformers were made before."""
    units = [Chem.MolFromSmiles(psmiles) for psmiles in (*UNITS, "*C[Sn](C)(C)C*", "*=CC=*")]
    together = embed_each([*units, Chem.MolFromSmiles(IMPOSSIBLE)], seed=7, num_conformers=3)
    assert together.pop() == []
    for mol, conformers in zip(units, together, strict=True):
        alone = [embed(mol, seed) for seed in (7, 7 + 1_640_531_527, (7 + 2 * 1_640_531_527) % M31)]
        assert list(map(as_bytes, conformers)) == list(map(as_bytes, alone))


def test_conformers_of_one_unit_differ() -> None:
    mol = Chem.MolFromSmiles("*CCCCCCOC(=O)CCCC(*)=O")
    (found,) = embed_each([mol], seed=M31 - 1, num_conformers=4)
    assert len({as_bytes(conformer) for conformer in found}) == 4


def test_a_seed_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    embed_heavy_atoms = conformer_module._embed_heavy_atoms
    mol = Chem.MolFromSmiles("*CCCCO*")
    (three,) = embed_each([mol], num_conformers=3)
    monkeypatch.setattr(
        conformer_module,
        "_embed_heavy_atoms",
        lambda capped, seed: None if seed == 1 else embed_heavy_atoms(capped, seed),
    )
    (two,) = embed_each([mol], num_conformers=3)
    assert list(map(as_bytes, two)) == list(map(as_bytes, three[1:]))


def test_large_units_are_not_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert embed(Chem.MolFromSmiles("*" + "OCC" * (MAX_EMBEDDED_ATOMS // 3) + "C*")) is None
    monkeypatch.setattr(conformer_module, "MAX_EMBEDDED_ATOMS", 9)
    units = [Chem.MolFromSmiles("*=" + "C" * size + "=*") for size in (9, 10, 8)]
    assert [len(found) for found in embed_each(units)] == [1, 0, 1]


DIGEST = """
import hashlib, sys
from rdkit import Chem
from mips_dist.chem.conformer import embed
for psmiles in sys.argv[1:]:
    print(hashlib.sha256(embed(Chem.MolFromSmiles(psmiles)).coordinates.tobytes()).hexdigest())
"""


def test_same_bits_in_a_fresh_process() -> None:
    units = [*UNITS, "*C[Sn](C)(C)C*", "*=CC=*"]
    fresh = subprocess.run(
        [sys.executable, "-c", DIGEST, *units], capture_output=True, text=True, check=True
    )
    here = []
    for psmiles in reversed(units):  # in another order: nothing carries over
        conformer = embed(Chem.MolFromSmiles(psmiles))
        assert conformer is not None
        here.append(hashlib.sha256(conformer.coordinates.tobytes()).hexdigest())
    assert fresh.stdout.split() == here[::-1]


def test_no_warnings_are_printed(capfd: pytest.CaptureFixture[str]) -> None:
    embed(Chem.MolFromSmiles("*CC*"))
    embed(Chem.MolFromSmiles("*[Fe](C)*"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.needs_data
def test_benchmark_polymers_have_conformers(data_dir: Path) -> None:
    found = []
    for name in SETS:
        with open(data_dir / "benchmark" / f"{name}.csv", newline="") as file:
            rows = itertools.islice(csv.DictReader(file), 0, None, 12)
            found += [embed(Chem.MolFromSmiles(row["psmiles"])) is not None for row in rows]
    assert len(found) > 500
    assert np.mean(found) > 0.99
