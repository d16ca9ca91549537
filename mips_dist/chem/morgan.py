"""Morgan fingerprints of the infinite chain: how often each atom environment occurs in a unit.

The environments are those of the atoms of the middle unit of an oligomer, long enough that none of
them reaches its ends. So the counts are those of the chain, wherever it is cut: another spelling
gives the same, a unit written twice gives twice as much.
"""

from collections.abc import Sequence

import numpy as np
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from rdkit.DataStructs import ULongSparseIntVect

from mips_dist.chem.psmiles import RepeatUnit, backbone_path, oligomer, parse

RADIUS = 2
# Redundant environments stay: without them one that two atoms share would count for the atom that
# comes first, which may belong to another unit.
_GENERATOR = rdFingerprintGenerator.GetMorganGenerator(
    radius=RADIUS, includeRedundantEnvironments=True
)


def chain_counts(psmiles: str) -> ULongSparseIntVect:
    """Count the environments of up to `RADIUS` bonds around the atoms of one repeat unit.

    Parameters
    ----------
    psmiles
        Any valid spelling.
    """
    chain, middle = middle_unit(parse(psmiles), RADIUS)
    Chem.SanitizeMol(chain)
    return _GENERATOR.GetSparseCountFingerprint(chain, fromAtoms=middle)


def middle_unit(unit: RepeatUnit, radius: int) -> tuple[Chem.RWMol, list[int]]:
    """Write a chain so long that nothing within ``radius`` bonds of its middle unit tells its ends.

    Returns
    -------
    The chain with its two outer stars, not sanitized, and the atoms of the middle unit, ascending.
    """
    chain, origin, middle = long_chain(unit, radius)
    size = unit.mol.GetNumAtoms()
    return chain, [new for new, old in enumerate(origin) if old // size == middle]


def long_chain(unit: RepeatUnit, radius: int) -> tuple[Chem.RWMol, list[int], int]:
    """Write the chain of `middle_unit`.

    Returns
    -------
    The chain, the place of each of its atoms in `mips_dist.chem.psmiles.repeat`, and which of its
    units is the middle one.
    """
    # An environment sees the degrees of atoms `radius` bonds away, so one more atom on each side.
    side = -(-(radius + 1) // len(backbone_path(unit)))
    chain, origin = oligomer(unit, 2 * side + 1)
    return chain, origin, side


def distance_to_nearest(
    polymers: Sequence[ULongSparseIntVect], others: Sequence[ULongSparseIntVect]
) -> np.ndarray:
    """Return 1 - the largest Tanimoto similarity of each polymer to any of the others.

    Parameters
    ----------
    polymers, others
        Counts from `chain_counts`; at least one other.

    Returns
    -------
    (len(polymers),) float64 from 0 (the same counts) to 1 (no environment in common).
    """
    nearest = [max(DataStructs.BulkTanimotoSimilarity(p, list(others))) for p in polymers]
    return 1.0 - np.array(nearest, dtype=np.float64)
