"""Descriptor groups: vectors of one whole polymer, each with a name, a width and a version.

``rdkit_2d``: the 200 descriptors of descriptastorus' RDKit2DNormalized (list 1.0.0), each mapped to
[0, 1] by the distribution that descriptastorus fitted to it; equal to its values to 1e-5.

- *Caps.* The unit's stars become methyl groups (``=CH2`` where the bond is double). With stars left
  in, 18 of the 200 are meaningless: RDKit has no Gasteiger parameters for ``*``, so the four
  partial charges are NaN in 95 % of the units and the 14 PEOE_VSA put the whole surface into one
  bin. The published code leaves them in. The caps are part of the version.
- *NaN.* A raw value that is NaN gives 0. (descriptastorus gives NaN, which the published code turns
  into 0; infinite values are clipped to the fitted range by both.) It happens to partial
  charges near atoms without parameters.
- *Constants*, over thousands of polymers: Ipc, SMR_VSA8, SlogP_VSA9, VSA_EState1, 3, 4 and 6,
  fr_benzodiazepine, fr_dihydropyridine, fr_isothiocyan, fr_lactam and fr_prisulfonamd;
  one value in more than 99.9 % of them: fr_HOCCN, fr_azide, fr_barbitur, fr_diazo, fr_guanido,
  fr_nitroso, fr_oxime, fr_tetrazole and fr_thiocyan.
- *Duplicates*: fr_Ar_NH and fr_Nhpyrrole, fr_azide and fr_diazo, fr_nitro and fr_nitro_arom,
  fr_phenol and fr_phenol_noOrthoHbond; MaxAbsEStateIndex and MaxEStateIndex, and ExactMolWt and
  MolWt, correlate to more than 0.9999.

``atom_pair_3d``: 512 bits, hashed pairs of heavy atoms at their distance in space (RDKit's atom
pairs of 1 to 30 angstrom, without chirality, counts simulated by 4 bits), on the conformer. Of
several conformers it is the mean of their bits, real values in [0, 1].

``bands``: numbers of the chain's band structure, standardised (`mips_dist.chem.bands`). A polymer
with an element that the model has no parameters for (most metals) has none.

``xtb``: numbers of GFN2-xTB on short oligomers, standardised (`mips_dist.chem.xtb`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator

from mips_dist.chem.bands import BAND_DESCRIPTORS
from mips_dist.chem.conformer import Conformer, cap_with_hydrogen
from mips_dist.chem.rdkit_2d import raw_rdkit_2d
from mips_dist.chem.xtb import XTB_DESCRIPTORS

# What is computed of a polymer; each holds what the one before it holds: the graph; the descriptors
# that need no conformer; the conformer and what is made of it, eight times the time; GFN2-xTB's.
Content = Literal["topology", "descriptors", "full", "xtb"]
CONTENTS: tuple[Content, ...] = ("topology", "descriptors", "full", "xtb")


@dataclass(frozen=True, slots=True)
class DescriptorGroup:
    """What a descriptor vector is; two groups with different versions must not be mixed.

    ``content`` is the least that has it.
    """

    name: str
    width: int
    version: str
    kind: Literal["real", "bits"]
    content: Content


def descriptor_groups(
    num_conformers: int = 1, conformer_backend: str = "rdkit"
) -> dict[str, DescriptorGroup]:
    """Return the groups, by name, as they are with these conformers.

    Parameters
    ----------
    num_conformers
        Conformers of each polymer.
    conformer_backend
        One of `mips_dist.chem.conformer.BACKENDS`.
    """
    made_by = "" if conformer_backend == "rdkit" else f",{conformer_backend}"
    groups = (
        DescriptorGroup(
            name="rdkit_2d",
            width=200,
            version="descriptastorus-RDKit2DNormalized-1.0.0,cap-CH3",
            kind="real",
            content="descriptors",
        ),
        DescriptorGroup(
            name="atom_pair_3d",
            width=512,
            version=f"rdkit-atom-pair-3d-1-30-counts-4,cap-H{made_by}",
            kind="bits" if num_conformers == 1 else "real",
            content="full",
        ),
        DescriptorGroup(
            name="bands",
            width=len(BAND_DESCRIPTORS),
            version="tight-binding-1",
            kind="real",
            content="descriptors",
        ),
        DescriptorGroup(
            name="xtb",
            width=len(XTB_DESCRIPTORS),
            version="gfn2-xtb-oligomers-3-40-100,cap-H-1",
            kind="real",
            content="xtb",
        ),
    )
    return {group.name: group for group in groups}


DESCRIPTOR_GROUPS = descriptor_groups()


def has(content: Content, part: Content) -> bool:
    """Whether one content holds what another one does."""
    return CONTENTS.index(content) >= CONTENTS.index(part)


_STAR = Chem.MolFromSmarts("[#0]")
_ATOM_PAIRS = rdFingerprintGenerator.GetAtomPairGenerator(
    minDistance=1,
    maxDistance=30,
    use2D=False,
    countSimulation=True,
    fpSize=DESCRIPTOR_GROUPS["atom_pair_3d"].width,
)


def cap_with_methyl(mol: Chem.Mol) -> Chem.Mol:
    """Turn the stars of a repeat unit into carbons: ``CH3``, or ``=CH2`` on a double bond."""
    capped = Chem.RWMol(mol)
    for (star,) in mol.GetSubstructMatches(_STAR):
        capped.ReplaceAtom(star, Chem.Atom(6))
    Chem.SanitizeMol(capped)
    return capped.GetMol()


def rdkit_2d(mols: list[Chem.Mol]) -> np.ndarray:
    """Compute the 200 normalised RDKit descriptors of repeat units.

    Parameters
    ----------
    mols
        Parsed canonical repeat units, stars in them. Each one's result depends on it alone, but
        a batch of hundreds is faster: normalising costs 20 ms a call.

    Returns
    -------
    (n, 200) float32 in [0, 1], columns in descriptastorus' order.
    """
    names, normalisers = _distributions()
    raw = np.empty((len(names), len(mols)))  # descriptors first, so that each is contiguous
    for column, mol in enumerate(mols):
        values = raw_rdkit_2d(cap_with_methyl(mol))
        raw[:, column] = [values[name] for name in names]
    normalised = np.empty_like(raw)
    for row, normalise in enumerate(normalisers):
        normalised[row] = normalise(raw[row])
    return np.ascontiguousarray(np.nan_to_num(normalised.T, nan=0.0), dtype=np.float32)


@cache
def _distributions() -> tuple[list[str], list[Callable[[np.ndarray], np.ndarray]]]:
    """Load names and normalising functions, in order; takes seconds, hence not at import."""
    from descriptastorus.descriptors.rdDescriptors import RDKIT_PROPS
    from descriptastorus.descriptors.rdNormalizedDescriptors import cdfs

    names = RDKIT_PROPS["1.0.0"]
    normalisers = [cdfs[name] for name in names]
    slow = names.index("FractionCSP3")
    normalisers[slow] = _by_distinct_value(normalisers[slow])
    return names, normalisers


def _by_distinct_value(
    normalise: Callable[[np.ndarray], np.ndarray],
) -> Callable[[np.ndarray], np.ndarray]:
    """Remember the results of a slow function of few distinct values.

    The distribution of FractionCSP3 has no closed form: scipy integrates it, 1 ms a value, while
    all others together take a few microseconds. But the values are fractions of small integers.
    """
    remembered = lru_cache(maxsize=1 << 16)(lambda value: float(normalise(value)))
    return lambda values: np.array([remembered(value) for value in values.tolist()])


def atom_pair_3d(mol: Chem.Mol, conformer: Conformer) -> np.ndarray:
    """Compute the hashed 3D atom pairs of a repeat unit.

    Parameters
    ----------
    mol
        Parsed canonical repeat unit, stars in it.
    conformer
        Conformer of that unit. Its float32 coordinates are what the bits are made of, so that
        they can be made again from a shard.

    Returns
    -------
    (512,) uint8 of 0 and 1.
    """
    capped, cap_carbons = cap_with_hydrogen(mol)
    # Cap carbons have no coordinates; they stay at the origin and no pair with them is counted.
    placed = Chem.Conformer(capped.GetNumAtoms())
    placed.Set3D(True)
    positions = np.zeros((capped.GetNumAtoms(), 3))
    positions[: len(positions) - len(cap_carbons)] = conformer.coordinates[~conformer.is_hydrogen]
    placed.SetPositions(positions)
    capped.AddConformer(placed, assignId=True)
    return _ATOM_PAIRS.GetFingerprintAsNumPy(capped, ignoreAtoms=cap_carbons)
