"""Drawings of the data card as inline SVG: histograms and polymers."""

import math
import re
from collections.abc import Mapping

from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from mips_dist.page import escape, nice

_WIDTH, _HEIGHT = 400, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 10, 40
_MAX_BARS = 60
_MOL_WIDTH, _MOL_HEIGHT = 240, 170
# Atomic numbers, the pure colour that RDKit draws them in, and the page's colour that takes its
# place: legible on light and on dark paper.
_COLOURS = (
    ((-1,), (0, 0, 0), "ink"),
    ((7,), (0, 0, 1), "nitrogen"),
    ((8,), (1, 0, 0), "oxygen"),
    ((9, 17), (0, 1, 0), "light-halogen"),
    ((35, 53), (0, 1, 1), "heavy-halogen"),
    ((16,), (1, 1, 0), "sulfur"),
    ((15,), (1, 0, 1), "phosphorus"),
)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_CLASS = re.compile(r" ?class='[^']*'")
_DECIMALS = re.compile(r"(\.\d)\d+")


def histogram(counts: Mapping[str, int], title: str, x_label: str) -> str:
    """Draw a histogram of whole numbers.

    Parameters
    ----------
    counts
        Number as text -> how often; at least one.
    title
        What is shown, for those who cannot see it.
    x_label
        What the numbers are.
    """
    numbers = {int(value): count for value, count in counts.items()}
    low, high = min(numbers), max(numbers)
    width = _whole((high - low + 1) / _MAX_BARS)
    first = low // width * width
    bars = [0] * ((high - first) // width + 1)
    for value, count in numbers.items():
        bars[(value - first) // width] += count
    step = _whole(max(bars) / 5)
    top = math.ceil(max(bars) / step) * step
    slot = (_WIDTH - _LEFT - _RIGHT) / len(bars)
    plot_height = _HEIGHT - _TOP - _BOTTOM
    floor = _HEIGHT - _BOTTOM
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(title)}: from {low} to {high}, most often {_modes(numbers)}</title>",
    ]
    for tick in range(0, top + 1, step):
        y = floor - plot_height * tick / top
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:g}" y2="{y:g}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:g}" text-anchor="end">{tick:,}</text>')
    gap = min(1.0, slot / 6)
    for k, count in enumerate(bars):
        if not count:
            continue
        tall = plot_height * count / top
        start = first + k * width
        name = f"{start}" if width == 1 else f"{start} to {start + width - 1}"
        parts.append(
            f'<rect class="bar" x="{_LEFT + k * slot + gap:.2f}" y="{floor - tall:.2f}" '
            f'width="{slot - 2 * gap:.2f}" height="{tall:.2f}">'
            f"<title>{name}: {count:,}</title></rect>"
        )
    every = _whole((high - first + 1) / 8)
    for value in range(-(-first // every) * every, high + 1, every):
        x = _LEFT + ((value - first) / width + (0.5 if width == 1 else 0)) * slot
        parts.append(f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{value}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle:g}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return "".join([*parts, "</svg>"])


def _whole(least: float) -> int:
    return int(nice(max(least, 1.0)))


def _modes(numbers: Mapping[int, int]) -> int:
    return max(numbers, key=lambda value: (numbers[value], -value))


def polymer(psmiles: str) -> str:
    """Draw a repeat unit, attachment points as wavy lines; empty where RDKit cannot."""
    mol = Chem.MolFromSmiles(psmiles)
    if mol is None:
        return ""
    drawer = rdMolDraw2D.MolDraw2DSVG(_MOL_WIDTH, _MOL_HEIGHT)
    options = drawer.drawOptions()
    # RDKit's stubs give these the type of the options themselves.
    options.setAtomPalette({z: rgb for numbers, rgb, _ in _COLOURS for z in numbers})
    options.clearBackground = False  # type: ignore[assignment]
    options.dummiesAreAttachments = True  # type: ignore[assignment]
    options.padding = 0.06  # type: ignore[assignment]
    options.maxFontSize = 16  # type: ignore[assignment]
    drawer.DrawMolecule(rdMolDraw2D.PrepareMolForDrawing(mol))
    drawer.FinishDrawing()
    svg = drawer.GetDrawingText()
    body = _COMMENT.sub("", svg[svg.index(">", svg.index("<svg")) + 1 :])
    # Classes name atoms and bonds for scripts, of which there are none here.
    body = _CLASS.sub("", _DECIMALS.sub(r"\1", body))
    for _, (red, green, blue), name in _COLOURS:
        pure = f"#{255 * red:02X}{255 * green:02X}{255 * blue:02X}"
        body = body.replace(pure, f"var(--{name})")
    return (
        f'<svg class="polymer" viewBox="0 0 {_MOL_WIDTH} {_MOL_HEIGHT}" role="img">'
        f"<title>Structure of {escape(psmiles)}</title>{body.strip()}"
    )
