"""The GPU backend with RDKit behind nvmolkit's two calls: plumbing and refusals, no GPU."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from mips_dist.chem import gpu_conformer
from mips_dist.chem.conformer import STATUS_NAMES, cap_with_hydrogen, check_backend, embed_each
from mips_dist.chem.descriptors import DESCRIPTOR_GROUPS, atom_pair_3d, descriptor_groups
from mips_dist.chem.sample import featurize, featurize_each
from mips_dist.errors import UsageError

UNITS = ("*CC(*)c1ccccc1", "*Oc1ccc(C(*)=O)cc1", "*[Se]CC*", "*=CC=*", "*CCCCCCOC(*)=O")
# Seven atoms, each bonded to all others.
IMPOSSIBLE = "*[U]12345[U]6789[U]1%10%11%12[U]621%13[U]7%1032[U]8%1114[U]9%12%1325*"


class Double:
    """The two functions with nvmolkit's signatures and refusals, on the CPU."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []

    def embed(
        self,
        molecules: list[Chem.Mol],
        params: Any,
        confsPerMolecule: int = 1,  # noqa: N803
        maxIterations: int = -1,  # noqa: N803
    ) -> None:
        self.batches.append(("embed", len(molecules)))
        if not params.useRandomCoords:
            raise ValueError("ETKDG requires useRandomCoords=True in EmbedParameters")
        params.maxIterations = 20
        for mol in molecules:
            rdDistGeom.EmbedMultipleConfs(mol, confsPerMolecule, params)

    def optimize(self, molecules: list[Chem.Mol], maxIters: int = 200) -> list[list[float]]:  # noqa: N803
        self.batches.append(("optimize", len(molecules)))
        if not all(map(rdForceFieldHelpers.MMFFHasAllMoleculeParams, molecules)):
            raise ValueError("lacking MMFF atom types")
        energies = []
        for mol in molecules:
            found = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, maxIters=maxIters)
            energies.append([energy for _, energy in found])
        return energies


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_conformer._functions.cache_clear()
    monkeypatch.setitem(sys.modules, "nvmolkit", None)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Double()
    contents: dict[str, dict[str, Callable[..., Any]]] = {
        "nvmolkit": {},
        "nvmolkit.embedMolecules": {"EmbedMolecules": made.embed},
        "nvmolkit.mmffOptimization": {"MMFFOptimizeMoleculesConfs": made.optimize},
    }
    for name, functions in contents.items():
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
    gpu_conformer._functions.cache_clear()
    yield made
    gpu_conformer._functions.cache_clear()


def expected(mol: Chem.Mol, rdkit_seed: int) -> np.ndarray:
    """Climb the same ladder from random coordinates; the atoms of the unit only."""
    capped, cap_carbons = cap_with_hydrogen(mol)
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = rdkit_seed
    parameters.useRandomCoords = True
    rdDistGeom.EmbedMolecule(capped, parameters)
    full = Chem.AddHs(capped, addCoords=True)
    if rdForceFieldHelpers.MMFFOptimizeMolecule(full, maxIters=50) < 0:
        rdForceFieldHelpers.UFFOptimizeMolecule(full, maxIters=50)
    positions = full.GetConformer().GetPositions()
    return positions[: capped.GetNumAtoms() - len(cap_carbons)].astype(np.float32)


def test_batches_climb_the_same_ladder(double: Double) -> None:
    mols = [Chem.MolFromSmiles(psmiles) for psmiles in (*UNITS, IMPOSSIBLE)]
    found = embed_each(mols, seed=4, num_conformers=2, backend="nvmolkit")
    # One call for all units and each seed; selenium has no MMFF94 parameters.
    assert double.batches == [("embed", 6), ("optimize", 4)] * 2
    assert found.pop() == []
    for mol, conformers in zip(mols, found, strict=False):
        for conformer, rdkit_seed in zip(conformers, (5, 5 + 1_640_531_527), strict=True):
            atoms = conformer.coordinates[~conformer.is_hydrogen]
            assert atoms.tobytes() == expected(mol, rdkit_seed).tobytes()
    statuses = [STATUS_NAMES[conformers[0].status] for conformers in found]
    unconverged = "random_start_mmff94_unconverged"
    assert statuses[:2] + statuses[3:] == [unconverged] * 4
    assert statuses[2].startswith("random_start_uff")


def test_samples_of_the_backend(double: Double) -> None:
    (sample,) = featurize([UNITS[4]], conformer_backend="nvmolkit")
    (on_cpu,) = featurize([UNITS[4]])
    assert sample.conformer is not None
    mol = Chem.MolFromSmiles(UNITS[4])
    bits = sample.descriptors["atom_pair_3d"]
    assert (bits == atom_pair_3d(mol, sample.conformer)).all()
    assert (bits != on_cpu.descriptors["atom_pair_3d"]).any()
    assert (sample.descriptors["rdkit_2d"] == on_cpu.descriptors["rdkit_2d"]).all()


def test_its_bits_have_a_version_of_their_own() -> None:
    groups = descriptor_groups(conformer_backend="nvmolkit")
    assert groups["rdkit_2d"] == DESCRIPTOR_GROUPS["rdkit_2d"]
    assert groups["atom_pair_3d"].version == (
        DESCRIPTOR_GROUPS["atom_pair_3d"].version + ",nvmolkit"
    )


def refused(match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        check_backend("nvmolkit")
    assert len(str(caught.value).splitlines()) == 1


def test_missing_package_is_one_line(absent: None) -> None:
    refused("nvmolkit cannot be used .*; install nvmolkit")
    # A worker without it ends the run; it rejects no polymer.
    with pytest.raises(UsageError, match="install nvmolkit"):
        featurize_each(["*CC*"], lambda texts: featurize(texts, conformer_backend="nvmolkit"))


def test_missing_device_is_one_line(double: Double) -> None:
    if gpu_conformer._num_devices():
        pytest.skip("this machine has a CUDA device")
    refused("no CUDA device")


def test_the_default_needs_nothing(absent: None) -> None:
    check_backend("rdkit")
