"""Parameters of the tight-binding models: tables with their sources."""

import math
from dataclasses import dataclass

HBAR2_OVER_M = 7.62  # eV angstrom^2


@dataclass(frozen=True, slots=True)
class Element:
    """Parameters of an element.

    Attributes
    ----------
    electrons
        Valence electrons of the neutral atom.
    valence
        Bonds of the neutral atom within the octet.
    s, p
        Hartree-Fock term values of the free atom in eV (Mann 1967, as tabulated in Harrison,
        Elementary Electronic Structure, 1999, solid-state table).
    radii
        Covalent radii of single, double and triple bonds in angstrom (Pyykko and Atsumi 2009 a, b;
        Pyykko, Riedel and Patzschke 2005).
    """

    electrons: int
    valence: int
    s: float
    p: float
    radii: tuple[float, float, float]


HYDROGEN = Element(1, 1, -13.61, 0.0, (0.32, 0.32, 0.32))
ELEMENTS = {
    5: Element(3, 3, -13.46, -8.43, (0.85, 0.78, 0.73)),
    6: Element(4, 4, -19.38, -11.07, (0.75, 0.67, 0.60)),
    7: Element(5, 3, -26.22, -13.84, (0.71, 0.60, 0.54)),
    8: Element(6, 2, -34.02, -16.77, (0.63, 0.57, 0.53)),
    9: Element(7, 1, -42.79, -19.87, (0.64, 0.59, 0.53)),
    14: Element(4, 4, -14.79, -7.59, (1.16, 1.07, 1.02)),
    15: Element(5, 3, -19.22, -9.54, (1.11, 1.02, 0.94)),
    16: Element(6, 2, -24.02, -11.60, (1.03, 0.94, 0.95)),
    17: Element(7, 1, -29.20, -13.78, (0.99, 0.95, 0.93)),
    32: Element(4, 4, -15.16, -7.33, (1.21, 1.11, 1.14)),
    33: Element(5, 3, -18.92, -8.98, (1.21, 1.14, 1.06)),
    34: Element(6, 2, -22.86, -10.68, (1.16, 1.07, 1.07)),
    35: Element(7, 1, -27.01, -12.44, (1.14, 1.09, 1.10)),
    50: Element(4, 4, -13.04, -6.76, (1.40, 1.30, 1.32)),
    52: Element(6, 2, -19.12, -9.54, (1.36, 1.28, 1.21)),
    53: Element(7, 1, -22.34, -10.97, (1.33, 1.29, 1.25)),
}

# Universal hopping, V = eta hbar^2 / (m d^2), d in angstrom (Harrison, Elementary Electronic
# Structure, 1999: -3.22 hbar^2 / (m d^2) for two sp3 hybrids).
ETA_SS, ETA_SP, ETA_PP, ETA_PI = -1.32, 1.42, 2.22, -0.63
# A formal charge moves the atom's levels, in eV: what is left of the atom's Coulomb repulsion
# (about 10 eV) when its neighbours screen.
CHARGE_SHIFT = -3.0
# Pi hopping across a single bond, beside that of its length: rings are turned against each other.
TWIST = 0.8

# Van-Catledge, J. Org. Chem. 45, 4801 (1980): alpha_X = alpha + h_X beta, beta_XY = k_XY beta; the
# kind of an atom is its element and whether its p orbital brings one electron or two: C, B, N with
# one, N with two, O, O, F, Si, P, P, S, S, Cl. Elements below these are not in his table: they take
# the values of the one above.
HUECKEL_H = (0.0, -0.45, 0.51, 1.37, 0.97, 2.09, 2.71, 0.0, 0.19, 0.75, 0.46, 1.11, 1.48)
HUECKEL_K = (
    (1.00,),
    (0.73, 0.87),
    (1.02, 0.66, 1.09),
    (0.89, 0.53, 0.99, 0.98),
    (1.06, 0.60, 1.14, 1.13, 1.26),
    (0.66, 0.35, 0.80, 0.89, 1.02, 0.95),
    (0.52, 0.26, 0.65, 0.77, 0.92, 0.94, 1.04),
    (0.75, 0.57, 0.72, 0.43, 0.65, 0.24, 0.17, 0.64),
    (0.77, 0.53, 0.78, 0.55, 0.75, 0.31, 0.21, 0.62, 0.63),
    (0.76, 0.54, 0.81, 0.64, 0.82, 0.39, 0.22, 0.52, 0.58, 0.63),
    (0.81, 0.51, 0.83, 0.68, 0.84, 0.43, 0.28, 0.61, 0.65, 0.65, 0.68),
    (0.69, 0.44, 0.78, 0.73, 0.85, 0.54, 0.32, 0.40, 0.48, 0.60, 0.58, 0.63),
    (0.62, 0.41, 0.77, 0.80, 0.88, 0.70, 0.51, 0.34, 0.35, 0.55, 0.52, 0.59, 0.68),
)
# atomic number -> index of its kind with up to one electron, and with two
HUECKEL_KIND = {
    5: (1, 1),
    6: (0, 0),
    7: (2, 3),
    8: (4, 5),
    9: (6, 6),
    14: (7, 7),
    15: (8, 9),
    16: (10, 11),
    17: (12, 12),
    32: (7, 7),
    33: (8, 9),
    34: (10, 11),
    35: (12, 12),
    50: (7, 7),
    52: (10, 11),
    53: (12, 12),
}
# beta changes with bond length as exp(-(d - 1.397) / 0.3106) (Longuet-Higgins and Salem 1959); for
# the lengths 1.46, 1.34 and 1.20 angstrom of single, double and triple bonds between sp2 and sp
# carbons. Index = code of the bond type; aromatic bonds are the unit.
BETA_OF_TYPE = (1.0, *(math.exp(-(d - 1.397) / 0.3106) for d in (1.46, 1.34, 1.20)), 1.0)
