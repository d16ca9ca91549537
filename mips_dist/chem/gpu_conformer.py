"""The two costly steps of a conformer on a GPU, by the package nvmolkit. Off by default.

**It was not run on a GPU**: the calls follow the signatures of nvmolkit 0.6.0, and the tests put
RDKit's functions behind them. nvmolkit 0.6.0 asks for rdkit==2026.3.5, which is not the version
that this project pins, so it needs an environment of its own. What is known to differ from the
``rdkit`` backend:

- It always starts from random coordinates, which gives other and, by RDKit, worse geometries.
- It does not say whether the force field converged: a status says ``unconverged`` for each.
- Whether a unit's bits depend on the others in its batch is not known.

So the bits belong to a descriptor version of their own, and the manifest names the backend.
"""

import ctypes
from functools import cache
from typing import Any

from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from mips_dist.chem.conformer import STATUS_NAMES, relax_with_rdkit
from mips_dist.errors import UsageError

_UNKNOWN_CONVERGENCE = STATUS_NAMES.index("mmff94_unconverged")


def check_nvmolkit() -> None:
    """Raise UsageError where conformers cannot be made on a GPU: no package, or no device."""
    _functions()
    if not _num_devices():
        raise UsageError(
            "conformer_backend=nvmolkit finds no CUDA device; run it on a machine with an NVIDIA "
            "GPU and driver, or use conformer_backend=rdkit"
        )


@cache
def _functions() -> tuple[Any, Any]:
    """Return EmbedMolecules and MMFFOptimizeMoleculesConfs."""
    try:
        from nvmolkit.embedMolecules import EmbedMolecules
        from nvmolkit.mmffOptimization import MMFFOptimizeMoleculesConfs
    except ImportError as error:  # a library that it is built against may be what is missing
        raise UsageError(
            f"conformer_backend=nvmolkit cannot be used ({error}); install nvmolkit and the rdkit "
            "that it was built for in an environment of their own, or use conformer_backend=rdkit"
        ) from error
    return EmbedMolecules, MMFFOptimizeMoleculesConfs


def _num_devices() -> int:
    """Ask the CUDA driver, as this package does without torch."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def embed_with_nvmolkit(capped: list[Chem.Mol], rdkit_seed: int) -> list[bool | None]:
    """Embed the heavy atoms in place, all molecules in one call; see `embed_with_rdkit`."""
    embed_molecules, _ = _functions()
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = rdkit_seed  # type: ignore[assignment]
    parameters.useRandomCoords = True  # type: ignore[assignment]  # it knows no other start
    for mol in capped:
        mol.RemoveAllConformers()  # else a failure would leave that of the seed before
    embed_molecules(capped, parameters, confsPerMolecule=1)
    return [True if mol.GetNumConformers() else None for mol in capped]


def relax_with_nvmolkit(full: list[Chem.Mol], iterations: int) -> list[int]:
    """Optimise in place, all molecules that MMFF94 knows in one call; see `relax_with_rdkit`."""
    _, optimize = _functions()
    known = [rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol) for mol in full]
    optimize([mol for mol, has in zip(full, known, strict=True) if has], maxIters=iterations)
    return [
        _UNKNOWN_CONVERGENCE if has else relax_with_rdkit([mol], iterations)[0]
        for mol, has in zip(full, known, strict=True)
    ]
