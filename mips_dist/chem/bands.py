"""The band structure of the infinite chain, and descriptors made of it.

``bands``, a descriptor group: electronic numbers of a polymer from the two models of
`mips_dist.chem.tight_binding`, on the graph of the canonical, primitive unit (a repeated unit would
fold its bands). No conformer, no fitting, invariant by construction; all are intensive.

Where a link couples one orbital of a block to one of the next cell, det(H(k) - E) is linear in
cos k: each band is monotonic on [0, pi] and its edges stand exactly at 0 and pi, which are always
points of the grid. Means over k are trapezoid sums, exact for all harmonics below twice the
intervals.
"""

from dataclasses import dataclass

import numpy as np

from mips_dist.chem.graph import PolymerGraph, build_graphs
from mips_dist.chem.tight_binding import Chain, NoBands, build_chain

DESCRIPTOR_NUM_K = 5
# Levels closer than this (eV) count as this far apart in sums over 1 / gap.
_LEAST_GAP = 0.3
# Edges of a chain without such pi bands, in units of -beta from alpha: levels out of reach.
_NO_PI = 3.0
# A quantile is the energy below which this fraction of the levels stands.
_OCCUPIED_QUANTILES = (0.5, 0.75, 0.9)
_VIRTUAL_QUANTILES = (0.1, 0.25, 0.5)
# The density of states: energies in eV at which it is taken, and its broadening.
_DENSITY_AT = np.arange(-28.0, 6.0, 2.0)
_DENSITY_WIDTH = 1.0
_CLIP = 5.0  # standard deviations

# Name -> mean and standard deviation that standardise it: over 1,000 polymers of a corpus and every
# eighth row of the eight sets, clipped at the first and the last percentile. Part of the version.
_STANDARD: dict[str, tuple[float, float]] = {
    "pi_vbm": (-0.9895, 0.6089),
    "pi_cbm": (0.8827, 0.5767),
    "pi_gap": (1.872, 1.136),
    "pi_valence_width": (0.0419, 0.1415),
    "pi_conduction_width": (0.04111, 0.1305),
    "pi_fraction": (0.6033, 0.2927),
    "pi_energy": (-1.123, 0.4999),
    "pi_electrons": (0.7066, 0.3283),
    "vbm": (-13.1, 1.595),
    "cbm": (-9.535, 0.9316),
    "gap": (3.559, 2.154),
    "direct_gap": (3.561, 2.155),
    "valence_width": (0.06309, 0.1965),
    "conduction_width": (0.08786, 0.2235),
    "valence_mean": (-13.13, 1.58),
    "conduction_mean": (-9.504, 0.9571),
    "occupied_mean": (-24.52, 0.8923),
    "occupied_energy": (-131.5, 12.39),
    "lowest": (-39.27, 2.971),
    "highest": (1.265, 0.6433),
    "virtual_mean": (-2.385, 0.5362),
    "inverse_gap": (0.05245, 0.005997),
    "inverse_gap_2": (0.003705, 0.001514),
    "electrons": (5.356, 0.3626),
    "atomization": (-22.82, 1.293),
    "occupied_q50": (-24.8, 0.2939),
    "occupied_q75": (-20.67, 2.29),
    "occupied_q90": (-16.08, 2.322),
    "virtual_q10": (-7.395, 1.092),
    "virtual_q25": (-4.861, 1.134),
    "virtual_q50": (-1.229, 0.8624),
    "density_-28": (0.4099, 0.07103),
    "density_-26": (0.5295, 0.1012),
    "density_-24": (0.6804, 0.1611),
    "density_-22": (0.2674, 0.1083),
    "density_-20": (0.1621, 0.1726),
    "density_-18": (0.1957, 0.1052),
    "density_-16": (0.1961, 0.06703),
    "density_-14": (0.1712, 0.1013),
    "density_-12": (0.09799, 0.08056),
    "density_-10": (0.1058, 0.047),
    "density_-8": (0.2367, 0.09074),
    "density_-6": (0.3102, 0.04863),
    "density_-4": (0.3564, 0.07285),
    "density_-2": (0.4434, 0.07597),
    "density_+0": (1.02, 0.3135),
    "density_+2": (0.304, 0.07575),
    "density_+4": (0.006105, 0.008891),
}
BAND_DESCRIPTORS: tuple[str, ...] = tuple(_STANDARD)
_MEAN, _SD = np.array(list(_STANDARD.values())).T


@dataclass(frozen=True, slots=True)
class BandStructure:
    """The bands of one chain at K wave numbers.

    Attributes
    ----------
    k
        (K,) wave numbers in [0, pi], in units of 1 / cell.
    pi
        (K, P) levels of the Hueckel model in units of -beta from alpha, ascending; P is 0 without
        pi system.
    num_pi_occupied
        Filled bands of it.
    valence
        (K, V) levels of the all-valence model in eV, ascending.
    is_pi
        (K, V) bool: the levels of p orbitals among them.
    num_electrons
        Electrons of a cell in these bands.
    num_occupied
        Filled bands of it; with an odd number of electrons the next one is half filled.
    """

    k: np.ndarray
    pi: np.ndarray
    num_pi_occupied: int
    valence: np.ndarray
    is_pi: np.ndarray
    num_electrons: int
    num_occupied: int

    @property
    def vbm(self) -> float:
        """Highest filled level in eV."""
        return float(self.valence[:, self.num_occupied - 1].max())

    @property
    def cbm(self) -> float:
        """Lowest level that is not filled, in eV."""
        return float(self.valence[:, self.num_occupied].min())

    @property
    def gap(self) -> float:
        """Band gap in eV; negative where bands overlap."""
        return self.cbm - self.vbm


def band_structure(canonical: str, num_k: int = 65) -> BandStructure:
    """Return the bands of a polymer.

    Parameters
    ----------
    canonical
        Canonical P-SMILES.
    num_k
        Wave numbers from 0 to pi, both included; at least 2.

    Raises
    ------
    NoBands
        An element without parameters, or a unit too large.
    """
    return _bands(build_chain(build_graphs([canonical], max_hops=1)[0]), num_k)


def band_descriptors(canonicals: list[str]) -> list[np.ndarray | None]:
    """Return the descriptors of polymers from their canonical P-SMILES, see `describe_bands`."""
    return describe_bands(build_graphs(canonicals, max_hops=1))


def describe_bands(graphs: list[PolymerGraph]) -> list[np.ndarray | None]:
    """Compute the descriptors `BAND_DESCRIPTORS` of polymers, standardised.

    Returns
    -------
    For each an array (W,) float32 in [-5, 5], or None where the chain has no bands, see
    `mips_dist.chem.tight_binding.NoBands`.
    """
    described: list[np.ndarray | None] = []
    for graph in graphs:
        try:
            chain = build_chain(graph)
        except NoBands:
            described.append(None)
            continue
        raw = np.array(list(raw_descriptors(chain).values()))
        standard = np.clip((raw - _MEAN) / _SD, -_CLIP, _CLIP)
        described.append(standard.astype(np.float32))
    return described


def _bands(chain: Chain, num_k: int) -> BandStructure:
    k = np.linspace(0.0, np.pi, num_k)
    flat = np.broadcast_to(chain.flat, (num_k, len(chain.flat)))
    pi = chain.pi.levels(k)
    # Without the last digits of the solver, so that a flat band is flat.
    levels = np.round(np.concatenate([pi, chain.sigma.levels(k), flat], axis=1), 9)
    order = np.argsort(levels, axis=1, kind="stable")
    valence = np.take_along_axis(levels, order, axis=1)
    return BandStructure(
        k=k,
        pi=np.round(chain.hueckel.levels(k), 9),
        num_pi_occupied=chain.num_pi_electrons // 2,
        valence=valence,
        is_pi=order < pi.shape[1],
        num_electrons=chain.num_electrons,
        num_occupied=_within(chain.num_electrons // 2, valence.shape[1]),
    )


def _within(num_occupied: int, num_bands: int) -> int:
    """Return the number of filled bands, at least one and not all: charges beyond are not real."""
    return min(max(num_occupied, 1), num_bands - 1)


def raw_descriptors(chain: Chain) -> dict[str, float]:
    """Return the descriptors of a chain by name, before they are standardised.

    Names that begin with ``pi_``: the Hueckel model, energies in units of -beta from alpha. All
    others: the all-valence model, in eV. ``..._width``: the square root of the highest occupied or
    lowest virtual band's width, for most are narrow. ``density_E``: levels of a heavy atom near
    E, broadened by a Gaussian that is 1 at its top.
    ``inverse_gap`` and ``inverse_gap_2`` are means of 1 / (E_v - E_o) and its square over all pairs
    of an occupied and a virtual level, whatever their k.
    """
    bands = _bands(chain, DESCRIPTOR_NUM_K)
    weight = np.ones(DESCRIPTOR_NUM_K)
    weight[[0, -1]] = 0.5
    weight /= weight.sum()
    return _pi_descriptors(chain, bands, weight) | _valence_descriptors(chain, bands, weight)


def _pi_descriptors(chain: Chain, bands: BandStructure, weight: np.ndarray) -> dict[str, float]:
    levels, filled = bands.pi, bands.num_pi_occupied
    num_orbitals = levels.shape[1]
    energy = 2 * float(weight @ levels[:, :filled].sum(1))
    # Where no band is filled, or all are, that edge is out of reach.
    top = levels[:, filled - 1] if filled else np.full(len(weight), -_NO_PI)
    bottom = levels[:, filled] if filled < num_orbitals else np.full(len(weight), _NO_PI)
    return {
        "pi_vbm": top.max(),
        "pi_cbm": bottom.min(),
        "pi_gap": bottom.min() - top.max(),
        "pi_valence_width": np.ptp(top) ** 0.5,
        "pi_conduction_width": np.ptp(bottom) ** 0.5,
        "pi_fraction": num_orbitals / chain.num_heavy,
        "pi_energy": energy / chain.num_heavy,
        "pi_electrons": chain.num_pi_electrons / chain.num_heavy,
    }


def _valence_descriptors(
    chain: Chain, bands: BandStructure, weight: np.ndarray
) -> dict[str, float]:
    filled = bands.num_occupied
    occupied, virtual = bands.valence[:, :filled], bands.valence[:, filled:]
    top, bottom = occupied[:, -1], virtual[:, 0]
    energy = 2 * float(weight @ occupied.sum(1))
    inverse, inverse_2 = _inverse_gaps(occupied, virtual, weight)
    values = {
        "vbm": top.max(),
        "cbm": bottom.min(),
        "gap": bottom.min() - top.max(),
        "direct_gap": (bottom - top).min(),
        "valence_width": np.ptp(top) ** 0.5,
        "conduction_width": np.ptp(bottom) ** 0.5,
        "valence_mean": weight @ top,
        "conduction_mean": weight @ bottom,
        "occupied_mean": weight @ occupied.mean(1),
        "occupied_energy": energy / chain.num_heavy,
        "lowest": occupied.min(),
        "highest": virtual.max(),
        "virtual_mean": weight @ virtual.mean(1),
        "inverse_gap": inverse,
        "inverse_gap_2": inverse_2,
        "electrons": chain.num_electrons / chain.num_heavy,
        "atomization": (energy - chain.free_energy) / chain.num_atoms,
    }
    for name, levels, fractions in (
        ("occupied", occupied, _OCCUPIED_QUANTILES),
        ("virtual", virtual, _VIRTUAL_QUANTILES),
    ):
        found = _quantiles(levels, weight, fractions)
        values |= {f"{name}_q{q * 100:.0f}": e for q, e in zip(fractions, found, strict=True)}
    for at in _DENSITY_AT:
        near = np.exp(-0.5 * ((bands.valence - at) / _DENSITY_WIDTH) ** 2).sum(1)
        values[f"density_{at:+.0f}"] = weight @ near / chain.num_heavy
    return values


def _inverse_gaps(
    occupied: np.ndarray, virtual: np.ndarray, weight: np.ndarray
) -> tuple[float, float]:
    """Return the means of 1 / gap and of its square over all pairs of levels (K, n), (K, m)."""
    first = second = 0.0
    for row, w in zip(occupied, weight, strict=True):
        for other, v in zip(virtual, weight, strict=True):
            inverse = 1.0 / np.maximum(other - row[:, None], _LEAST_GAP)
            first += w * v * inverse.mean()
            second += w * v * (inverse * inverse).mean()
    return float(first), float(second)


def _quantiles(levels: np.ndarray, weight: np.ndarray, fractions: tuple[float, ...]) -> list[float]:
    """Return the energies below which these fractions of the levels (K, n) stand."""
    flat = levels.ravel()
    order = np.argsort(flat, kind="stable")
    share = np.repeat(weight, levels.shape[1])[order].cumsum()
    # A hair less, so that sums rounded up and down fall on the same level.
    places = np.searchsorted(share / share[-1], np.array(fractions) - 1e-9)
    return flat[order[places]].tolist()
