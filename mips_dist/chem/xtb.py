"""Descriptors from GFN2-xTB, a quantum-mechanical method, on short oligomers of the chain.

``xtb``, a descriptor group: one, two and three canonical units, as far as they have at most
``MAX_CHAIN_ATOMS`` heavy atoms (one alone: ``MAX_UNIT_ATOMS``), are capped with hydrogen, embedded
as the unit is for its conformer, and get one single-point calculation each, in the gas phase,
without relaxing the geometry. Levels of the longest one and their extrapolation in 1 / length, the
energy that one more unit takes to fall apart into atoms, charges, bond orders; all are intensive.

Needs the package tblite (extra ``xtb``), which only this module imports. A function of the spelling
and the seed on one kind of machine. Source of the method: Bannwarth, Ehlert, Grimme, J. Chem.
Theory Comput. 15 (2019) 1652.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from threadpoolctl import threadpool_limits

from mips_dist.chem.conformer import cap_with_hydrogen, embed
from mips_dist.chem.psmiles import RepeatUnit, oligomer, parse
from mips_dist.errors import MipsError

MAX_UNITS = 3
MAX_CHAIN_ATOMS = 40
MAX_UNIT_ATOMS = 100

_EV = 27.211386245988  # a hartree in eV, CODATA 2018
_BOHR = 0.529177210903  # in angstrom, CODATA 2018
_MAX_ITERATIONS = 250  # of the self-consistent charges
_LEVELS = 4  # beside the gap, on each side
_CLIP = 5.0  # standard deviations

# Name -> mean and standard deviation that standardise it, over the 989 polymers of the eight sets
# but egc, clipped at the first and the last percentile. Part of the version.
_STANDARD: dict[str, tuple[float, float]] = {
    "units": (2.191, 0.8426),
    "homo": (-10.52, 0.8426),
    "homo_1": (-10.6, 0.7945),
    "homo_limit": (-10.45, 0.9423),
    "lumo": (-7.065, 2.044),
    "lumo_1": (-6.728, 2.226),
    "lumo_limit": (-7.308, 1.969),
    "gap": (3.454, 2.298),
    "gap_limit": (3.151, 2.161),
    "homo-1": (0.2388, 0.2234),
    "lumo+1": (0.4324, 0.5996),
    "homo-2": (0.4627, 0.3257),
    "lumo+2": (1.201, 1.513),
    "homo-3": (0.6943, 0.4128),
    "lumo+3": (2.177, 2.093),
    "homo-4": (0.8413, 0.4545),
    "lumo+4": (2.878, 2.377),
    "occupied_mean": (-14.9, 1.066),
    "occupied_sd": (2.607, 0.4272),
    "virtual_mean": (4.088, 1.247),
    "lowest": (-20.64, 2.262),
    "atomization": (11.38, 2.206),
    "charge_min": (-0.3627, 0.1024),
    "charge_max": (0.2911, 0.1341),
    "charge_mean_abs": (0.1012, 0.04609),
    "charge_heavy_sd": (0.1635, 0.06416),
    "hydrogen_charge_max": (0.163, 0.09494),
    "valence_mean": (3.495, 0.395),
    "bond_order_mean": (1.19, 0.1206),
    "bond_order_max": (1.706, 0.3036),
    "bond_order_sd": (0.2211, 0.1039),
    "dipole": (0.9675, 0.7294),
}
XTB_DESCRIPTORS: tuple[str, ...] = tuple(_STANDARD)


@dataclass(frozen=True, slots=True)
class _Oligomer:
    """What a calculation gives, in eV and elementary charges; levels ascending."""

    units: int
    levels: npt.NDArray[np.float64]
    num_occupied: int
    atomization: float
    charges: npt.NDArray[np.float64]
    bond_orders: npt.NDArray[np.float64]
    dipole: float
    num_heavy: int

    @property
    def homo(self) -> float:
        return float(self.levels[self.num_occupied - 1])

    @property
    def lumo(self) -> float:
        return float(self.levels[self.num_occupied])


def check_xtb() -> None:
    """Raise MipsError where tblite is not installed."""
    if find_spec("tblite") is None:
        raise MipsError("descriptors of GFN2-xTB need tblite: pip install 'mips-dist[xtb]'")


def describe_xtb(canonical: str, seed: int = 0) -> npt.NDArray[np.float32] | None:
    """Compute the standardised descriptors of a polymer.

    Parameters
    ----------
    canonical
        Canonical P-SMILES.
    seed
        Seed of the embedding.

    Returns
    -------
    (width,) float32 in [-5, 5], or None where the unit is too large, has no geometry, or its
    charges do not converge.

    Raises
    ------
    MipsError
        tblite is not installed.
    """
    raw = raw_xtb(canonical, seed)
    if raw is None:
        return None
    mean, sd = np.array(list(_STANDARD.values())).T
    values = (np.array([raw[name] for name in XTB_DESCRIPTORS]) - mean) / sd
    return np.clip(values, -_CLIP, _CLIP).astype(np.float32)


def raw_xtb(canonical: str, seed: int = 0) -> dict[str, float] | None:
    """Compute the descriptors as they are, by name; energies in eV. See `describe_xtb`."""
    check_xtb()
    unit = parse(canonical)
    done: list[_Oligomer] = []
    with threadpool_limits(1):  # sums in another order would have other last bits
        for units in range(1, MAX_UNITS + 1):
            found = _calculate(unit, units, seed)
            if found is None:
                break
            done.append(found)
    return _numbers(done) if done else None


def _calculate(unit: RepeatUnit, units: int, seed: int) -> _Oligomer | None:
    from tblite.interface import Calculator

    num_heavy = (unit.mol.GetNumAtoms() - len(unit.stars)) * units
    if num_heavy > (MAX_UNIT_ATOMS if units == 1 else MAX_CHAIN_ATOMS):
        return None
    chain = unit.mol if units == 1 else oligomer(unit, units)[0].GetMol()
    # Whole caps and all, as a molecule of its own: an atom without coordinates is no atom here.
    capped = cap_with_hydrogen(chain)[0]
    conformer = embed(capped, seed)
    if conformer is None:
        return None
    heavy = [atom.GetAtomicNum() for atom in capped.GetAtoms()]
    numbers = np.array(heavy + [1] * int(conformer.is_hydrogen.sum()))
    charge = Chem.GetFormalCharge(capped)
    calculator = Calculator(
        "GFN2-xTB",
        numbers,
        conformer.coordinates.astype(np.float64) / _BOHR,
        charge=float(charge),
        uhf=int(numbers.sum() - charge) % 2,
    )
    found = _converged(calculator)
    if found is None:
        return None
    occupied = int(np.ceil(np.asarray(found.get("orbital-occupations")).sum() / 2 - 1e-6))
    levels = np.asarray(found.get("orbital-energies")).ravel() * _EV
    if not 0 < occupied < len(levels):
        return None
    free = sum(_atom_energy(int(number)) for number in numbers)
    return _Oligomer(
        units=units,
        levels=levels,
        num_occupied=occupied,
        atomization=(free - float(found.get("energy"))) * _EV,
        charges=np.asarray(found.get("charges")),
        bond_orders=np.asarray(found.get("bond-orders")).reshape(len(numbers), -1),
        dipole=float(np.linalg.norm(found.get("dipole"))),
        num_heavy=len(heavy),
    )


def _converged(calculator: Any) -> Any:
    calculator.set("verbosity", 0)
    calculator.set("max-iter", _MAX_ITERATIONS)
    try:
        return calculator.singlepoint()
    except RuntimeError:  # the charges do not converge
        return None


@cache
def _atom_energy(number: int) -> float:
    """Return the energy of a free atom, in hartree."""
    from tblite.interface import Calculator

    # Far from anything: GFN2 of one atom.
    calculator = Calculator("GFN2-xTB", np.array([number]), np.zeros((1, 3)), uhf=number % 2)
    found = _converged(calculator)
    return float(found.get("energy")) if found is not None else 0.0


def _numbers(done: list[_Oligomer]) -> dict[str, float]:
    longest = done[-1]
    levels, occupied = longest.levels, longest.num_occupied
    numbers = {"units": float(longest.units)}
    for name in ("homo", "lumo"):
        values = [getattr(oligomer, name) for oligomer in done]
        numbers[name] = values[-1]
        numbers[f"{name}_1"] = values[0]
        numbers[f"{name}_limit"] = _limit(values)
    numbers["gap"] = longest.lumo - longest.homo
    numbers["gap_limit"] = numbers["lumo_limit"] - numbers["homo_limit"]
    for away in range(1, _LEVELS + 1):
        below, above = max(occupied - 1 - away, 0), min(occupied + away, len(levels) - 1)
        numbers[f"homo-{away}"] = longest.homo - levels[below]
        numbers[f"lumo+{away}"] = levels[above] - longest.lumo
    numbers["occupied_mean"] = float(levels[:occupied].mean())
    numbers["occupied_sd"] = float(levels[:occupied].std())
    numbers["virtual_mean"] = float(levels[occupied:].mean())
    numbers["lowest"] = float(levels[0])
    # Of the last unit where there are several: the ends are then out of it.
    if len(done) > 1:
        per_unit = longest.atomization - done[-2].atomization
        numbers["atomization"] = per_unit / (longest.num_heavy - done[-2].num_heavy)
    else:
        numbers["atomization"] = longest.atomization / longest.num_heavy
    charges = longest.charges
    heavy = charges[: longest.num_heavy]
    numbers["charge_min"], numbers["charge_max"] = float(charges.min()), float(charges.max())
    numbers["charge_mean_abs"] = float(np.abs(charges).mean())
    numbers["charge_heavy_sd"] = float(heavy.std())
    numbers["hydrogen_charge_max"] = float(charges[longest.num_heavy :].max(initial=0.0))
    orders = longest.bond_orders[: longest.num_heavy]
    numbers["valence_mean"] = float(orders.sum() / longest.num_heavy)
    bonds = orders[:, : longest.num_heavy][np.triu_indices(longest.num_heavy, 1)]
    bonds = bonds[bonds > 0.5]
    numbers["bond_order_mean"] = float(bonds.mean()) if len(bonds) else 0.0
    numbers["bond_order_max"] = float(bonds.max(initial=0.0))
    numbers["bond_order_sd"] = float(bonds.std()) if len(bonds) else 0.0
    numbers["dipole"] = longest.dipole / longest.units
    return numbers


def _limit(values: list[float]) -> float:
    """Return the line through the last two values, over 1 / length, at length infinity."""
    if len(values) == 1:
        return values[0]
    length = len(values)
    return length * values[-1] - (length - 1) * values[-2]
