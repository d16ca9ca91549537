"""What stands behind a polymer's numbers, as one picture: `mips explain`.

An SVG of its own: no script, no font, no link, every text escaped.
"""

from pathlib import Path
from typing import TypeVar

import numpy as np

from mips_dist.chem.bands import BandStructure, band_structure
from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
from mips_dist.chem.tight_binding import NoBands
from mips_dist.data.files import write_atomically
from mips_dist.errors import MipsError, UsageError
from mips_dist.page import escape

Energy = TypeVar("Energy", float, np.ndarray)

# Of the Hueckel model, for the drawing alone: what fits the first transitions of acenes.
BETA_EV = -2.7

_NUM_K = 129
# How far below the highest filled and above the lowest empty level the drawing reaches, in eV.
_BELOW, _ABOVE = 8.0, 5.0
_BROADENING = 0.12  # eV
_NUM_ENERGIES = 400

_WIDTH, _HEIGHT = 900, 510
_TOP, _FLOOR = 84, 456
_PANELS = {"valence": (70, 370), "density": (395, 555), "pi": (640, 880)}
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}"
    ".title{font-size:17px;font-weight:600}.small{font-size:12px;fill:#555}"
    ".frame{fill:none;stroke:#888}.tick{stroke:#888}.grid{stroke:#e4e4e4}"
    ".sigma{fill:none;stroke:#8a8f98;stroke-width:1.3}.pi{fill:none;stroke:#c2410c;stroke-width:1.8}"
    ".total{fill:#d5d8dd;stroke:#8a8f98}.part{fill:#f3b391;stroke:#c2410c}"
    ".gap{fill:#dbeafe}.edge{stroke:#1d4ed8;stroke-dasharray:5 3}.dot{fill:#1d4ed8}"
    ".mark{fill:#1d4ed8;stroke:#fff;stroke-width:3;paint-order:stroke}"
)


def explain_file(psmiles: str, output: Path) -> None:
    """Draw what is known of a polymer into an SVG file.

    Parameters
    ----------
    psmiles
        The polymer in any spelling; what is drawn is that of the canonical one.
    output
        An ``.svg`` file; replaced if it exists.

    Raises
    ------
    UsageError
        No polymer, or no place for a file.
    MipsError
        The band model has no parameters for the polymer.
    """
    if output.suffix.lower() != ".svg":
        raise UsageError(f"{output}: the picture is an SVG; give a name that ends in .svg with -o")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent} is no folder; make it, or give another name with -o")
    try:
        canonical = canonicalize(psmiles)
    except InvalidPolymer as error:
        raise UsageError(f"no polymer: {error}") from error
    try:
        bands = band_structure(canonical, _NUM_K)
    except NoBands as error:
        raise MipsError(f"{canonical} has no bands: {error}; choose another polymer") from error
    write_atomically(output, draw_bands(canonical, bands))


def draw_bands(title: str, bands: BandStructure) -> str:
    """Draw a band structure and its density of states.

    Parameters
    ----------
    title
        Canonical P-SMILES.
    bands
        At many wave numbers from 0 to pi.

    Returns
    -------
    A whole SVG document.
    """
    low, high = bands.vbm - _BELOW, max(bands.cbm, bands.vbm) + _ABOVE
    is_metal = bands.num_electrons % 2 == 1 or bands.gap <= 0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img">',
        f"<title>Bands of {escape(title)}: {_gap_in_words(bands, is_metal)}</title>",
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
        "<defs>",
        *(
            f'<clipPath id="{name}"><rect x="{left}" y="{_TOP}" width="{right - left}" '
            f'height="{_FLOOR - _TOP}"/></clipPath>'
            for name, (left, right) in _PANELS.items()
        ),
        "</defs>",
        _text(24, 32, _shortened(title), "title"),
        _text(24, 52, f"{_gap_in_words(bands, is_metal)}; energies of the model, no fit", "small"),
        *_draw_valence(bands, low, high, is_metal),
        *_draw_density(bands, low, high, is_metal),
        *_draw_pi(bands),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _gap_in_words(bands: BandStructure, is_metal: bool) -> str:
    if bands.num_electrons % 2 == 1:
        return "an odd number of electrons in a cell: one band is half filled"
    if is_metal:
        return "no gap: filled and empty bands overlap"
    top = bands.valence[:, bands.num_occupied - 1].argmax()
    bottom = bands.valence[:, bands.num_occupied].argmin()
    narrow = np.ptp(bands.valence[:, [bands.num_occupied - 1, bands.num_occupied]], axis=0).min()
    kind = "direct" if top == bottom or narrow < 1e-6 else "indirect"
    return (
        f"{kind} gap {bands.gap:.2f} eV, between {_energy(bands.vbm)} and {_energy(bands.cbm)} eV"
    )


def _draw_valence(bands: BandStructure, low: float, high: float, is_metal: bool) -> list[str]:
    left, right = _PANELS["valence"]
    top_band = bands.valence[:, bands.num_occupied - 1]
    bottom_band = bands.valence[:, bands.num_occupied]
    parts = [_text((left + right) / 2, _TOP - 10, "all valence orbitals", "", "middle")]
    parts += _energy_axis(left, right, low, high, "energy / eV")
    if not is_metal:
        parts += _edges(left, right, bands.vbm, bands.cbm, low, high)
    for mask, kind in ((~bands.is_pi, "sigma"), (bands.is_pi, "pi")):
        levels = bands.valence[mask].reshape(len(bands.k), -1)
        parts += _lines(bands.k, levels, "valence", kind, low, high)
    if not is_metal:
        for band, place in ((top_band, top_band.argmax()), (bottom_band, bottom_band.argmin())):
            x = left + (right - left) * bands.k[place] / np.pi
            y = _y(band[place], low, high)
            parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    legend = "orange: p orbitals; grey: \u03c3 bands, and all states"
    parts.append(_text(left, _FLOOR + 42, legend, "small"))
    return [*parts, *_k_axis(left, right)]


def _draw_density(bands: BandStructure, low: float, high: float, is_metal: bool) -> list[str]:
    """Density of states of one cell, and the part of it in p orbitals."""
    left, right = _PANELS["density"]
    energies = np.linspace(low, high, _NUM_ENERGIES)
    weight = np.ones(len(bands.k))
    weight[[0, -1]] = 0.5
    weight /= weight.sum() * _BROADENING * np.sqrt(2 * np.pi)
    near = (bands.valence > low - 1) & (bands.valence < high + 1)
    weights = np.broadcast_to(weight[:, None], bands.valence.shape)
    curves = []
    for mask in (near, near & bands.is_pi):
        apart = (energies[:, None] - bands.valence[mask]) / _BROADENING
        curves.append(np.exp(-0.5 * apart**2) @ weights[mask])
    # The spikes of flat bands are cut off: at their scale nothing else would be seen.
    top = 1.05 * max(float(np.quantile(curves[0], 0.97)), float(curves[1].max()) / 2, 1e-9)
    parts = [_text((left + right) / 2, _TOP - 10, "density of states", "", "middle")]
    parts += _energy_axis(left, right, low, high, "")
    if not is_metal:
        parts += _edges(left, right, bands.vbm, bands.cbm, low, high)
    y = _y(energies, low, high)
    for curve, kind in zip(curves, ("total", "part"), strict=True):
        if curve.any():
            x = left + (right - left) * np.minimum(curve / top, 1.02)
            parts.append(
                f'<path class="{kind}" clip-path="url(#density)" '
                f'd="M{left},{_FLOOR}L{_points(x, y)}L{left},{_TOP}Z"/>'
            )
    if not is_metal:
        for energy, above in ((bands.vbm, False), (bands.cbm, True)):
            place = _y(energy, low, high) + (-5 if above else 15)
            parts.append(_text(right - 4, place, _energy(energy), "mark", "end"))
        middle = _y((bands.vbm + bands.cbm) / 2, low, high) + 4
        parts.append(_text((left + right) / 2, middle, f"{bands.gap:.2f} eV", "mark", "middle"))
    return parts


def _draw_pi(bands: BandStructure) -> list[str]:
    left, right = _PANELS["pi"]
    parts = [_text((left + right) / 2, _TOP - 10, "\u03c0 bands, H\u00fcckel", "", "middle")]
    levels = bands.pi * -BETA_EV
    if not levels.shape[1]:
        parts.append(
            f'<rect class="frame" x="{left}" y="{_TOP}" width="{right - left}" '
            f'height="{_FLOOR - _TOP}"/>'
        )
        parts.append(
            _text((left + right) / 2, (_TOP + _FLOOR) / 2, "no pi system", "small", "middle")
        )
        return parts
    low, high = float(levels.min()) - 1, float(levels.max()) + 1
    parts += _energy_axis(left, right, low, high, "energy above \u03b1 / eV")
    filled = bands.num_pi_occupied
    if 0 < filled < levels.shape[1]:
        vbm, cbm = float(levels[:, filled - 1].max()), float(levels[:, filled].min())
        if cbm - vbm > 1e-6:
            parts += _edges(left, right, vbm, cbm, low, high)
            middle = _y((vbm + cbm) / 2, low, high) + 4
            label = f"{cbm - vbm:.2f} eV"
            parts.append(_text((left + right) / 2, middle, label, "mark", "middle"))
    parts += _lines(bands.k, levels, "pi", "pi", low, high)
    parts.append(_text(left, _FLOOR + 42, f"\u03b2 = {_energy(BETA_EV)} eV", "small"))
    return [*parts, *_k_axis(left, right)]


def _y(energy: Energy, low: float, high: float) -> Energy:
    return _FLOOR - (_FLOOR - _TOP) * (energy - low) / (high - low)


def _edges(left: float, right: float, vbm: float, cbm: float, low: float, high: float) -> list[str]:
    bottom, top = _y(vbm, low, high), _y(cbm, low, high)
    shade = (
        f'<rect class="gap" x="{left}" y="{top:.1f}" width="{right - left}" '
        f'height="{bottom - top:.1f}"/>'
    )
    return [shade] + [
        f'<line class="edge" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        for y in (bottom, top)
    ]


def _lines(
    k: np.ndarray, levels: np.ndarray, panel: str, kind: str, low: float, high: float
) -> list[str]:
    """Draw the bands (K, n) that come into view; equal ones once."""
    left, right = _PANELS[panel]
    x = left + (right - left) * k / np.pi
    seen: set[str] = set()
    for band in levels.T:
        if band.max() > low and band.min() < high:
            is_flat = np.ptp(band) < 1e-9
            keep = [0, -1] if is_flat else slice(None)
            seen.add(_points(x[keep], _y(band[keep], low, high)))
    return [
        f'<path class="{kind}" clip-path="url(#{panel})" d="M{line}"/>' for line in sorted(seen)
    ]


def _points(x: np.ndarray, y: np.ndarray | float) -> str:
    return "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, np.asarray(y), strict=True))


def _energy_axis(left: float, right: float, low: float, high: float, label: str) -> list[str]:
    step = 1 if high - low < 9 else 2 if high - low < 20 else 5
    parts = []
    for energy in range(int(np.ceil(low / step)) * step, int(high) + 1, step):
        if not low <= energy <= high:
            continue
        y = _y(energy, low, high)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if label:
            parts.append(_text(left - 8, y + 4, _energy(energy), "", "end"))
    parts.append(
        f'<rect class="frame" x="{left}" y="{_TOP}" width="{right - left}" '
        f'height="{_FLOOR - _TOP}"/>'
    )
    if label:
        x, y = left - 46, (_TOP + _FLOOR) / 2
        parts.append(
            f'<text x="{x}" y="{y}" text-anchor="middle" transform="rotate(-90 {x} {y})">'
            f"{label}</text>"
        )
    return parts


def _k_axis(left: float, right: float) -> list[str]:
    names = ((left, "0"), ((left + right) / 2, "k"), (right, "\u03c0"))
    return [_text(x, _FLOOR + 20, name, "", "middle") for x, name in names]


def _energy(value: float) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return text.replace("-", "\u2212")


def _shortened(title: str) -> str:
    return title if len(title) <= 90 else f"{title[:87]}..."


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
