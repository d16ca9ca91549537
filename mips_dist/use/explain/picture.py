"""An explanation as one picture: the repeat unit in its chain, atoms coloured by contribution.

An SVG of its own: no script, no font, no link, every text escaped, readable on light and dark.
"""

import numpy as np

from mips_dist.page import escape
from mips_dist.use.explain.contributions import Explanation
from mips_dist.use.explain.layout import Bond, ChainLayout, lay_out

_WIDTH, _MARGIN = 760, 24
_CHAIN_TOP, _MOST_HIGH = 84, 380
_BOND_LENGTH = 46.0  # px at most
_RADIUS = 0.43  # of an atom's disc, in bond lengths
_STRONGEST = 0.85  # opacity of the largest contribution
_ROW = 24
_MAX_ROWS = 9  # of fragments
_MAX_LABEL = 36  # characters
_BAR_LEFT, _BAR_RIGHT = 330, 650

_STYLE = (
    "svg{color-scheme:light dark;--paper:#fff;--ink:#1b2430;--soft:#55606e;--line:#c3cbd6;"
    "--up:#e8702a;--down:#2f7fd0}"
    "@media(prefers-color-scheme:dark){svg{--paper:#12161c;--ink:#eef2f7;--soft:#a9b4c2;"
    "--line:#475363;--up:#d9641f;--down:#2f79c9}}"
    "text{font:13px system-ui,sans-serif;fill:var(--ink)}"
    ".title{font-size:18px;font-weight:600}.soft{fill:var(--soft)}"
    ".code{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px}"
    ".number{font-variant-numeric:tabular-nums}"
    ".bond,.bracket{stroke:var(--ink);stroke-linecap:round;fill:none}"
    ".up{fill:var(--up)}.down{fill:var(--down)}.ring{fill:none;stroke:var(--line)}"
    ".faded{opacity:.3}.zero{stroke:var(--line)}"
    ".stop-up{stop-color:var(--up)}.stop-down{stop-color:var(--down)}"
)


def draw_explanation(explanation: Explanation) -> str:
    """Draw the chain, a legend, and the contributions of fragments and whole-chain features.

    Returns
    -------
    A whole SVG document.
    """
    layout = lay_out(explanation.canonical)
    chain, bottom = _draw_chain(layout, explanation)
    legend, bottom = _draw_legend(explanation, bottom + 16)
    bars, bottom = _draw_bars(explanation, bottom + 34)
    unit = _unit(explanation)
    title = f"{explanation.property} {_number(explanation.prediction)}{unit}"
    what = f"What each part of {explanation.canonical} adds to its predicted {explanation.property}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom:.0f}" '
            f'width="{_WIDTH}" height="{bottom:.0f}" role="img" aria-labelledby="what sums">',
            f'<title id="what">{escape(what)}</title>',
            f'<desc id="sums">{escape(_in_words(explanation))}</desc>',
            f'<style>{_STYLE}</style><rect width="100%" height="100%" style="fill:var(--paper)"/>',
            _text(_MARGIN, 36, _shortened(title, 60), "title"),
            _text(_MARGIN, 60, _shortened(explanation.canonical, 90), "soft code"),
            *chain,
            *legend,
            *bars,
            "</svg>\n",
        ]
    )


def _in_words(explanation: Explanation) -> str:
    unit = _unit(explanation)
    parts = [(label, value) for label, value, _ in _rows(explanation)]
    listed = "; ".join(f"{label} {_signed(value)}" for label, value in parts)
    return (
        f"Prediction {_number(explanation.prediction)}{unit} = reference "
        f"{_number(explanation.reference)}{unit} and the contributions: {listed}."
    )


def _draw_chain(layout: ChainLayout, explanation: Explanation) -> tuple[list[str], float]:
    low, high = layout.points.min(0) - 0.8, layout.points.max(0) + 0.8
    wide, tall = high - low
    scale = min(_BOND_LENGTH, (_WIDTH - 2 * _MARGIN) / wide, _MOST_HIGH / tall)
    shift = np.array([(_WIDTH - wide * scale) / 2, _CHAIN_TOP])
    points = (layout.points - low) * scale + shift
    largest = float(np.abs(explanation.atoms).max()) or 1.0
    is_own = layout.atom >= 0
    discs, labels, faded_labels = [], [], []
    for place, (x, y) in enumerate(points):
        label = _draw_label(layout.labels[place], x, y, scale)
        if not is_own[place]:
            faded_labels.append(label)
            continue
        value = float(explanation.atoms[layout.atom[place]])
        tip = (
            f"atom {layout.atom[place] + 1}: {_signed(value)}{_unit(explanation)}"
            f"{_error(float(explanation.atom_errors[layout.atom[place]]))}"
        )
        kind = "up" if value > 0 else "down"
        opacity = _STRONGEST * abs(value) / largest
        circle = f'cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS * scale:.1f}"'
        discs.append(
            f'<g><title>{escape(tip)}</title><circle class="{kind}" {circle} '
            f'fill-opacity="{opacity:.3f}"/><circle class="ring" {circle}/></g>'
        )
        labels.append(label)
    of_unit: list[str] = []
    of_others: list[str] = []
    for bond in layout.bonds:
        inside = bool(is_own[bond.begin] or is_own[bond.end])
        (of_unit if inside else of_others).append(_draw_bond(bond, points, layout.labels, scale))
    bottom = float(_CHAIN_TOP + tall * scale)
    return [
        f'<g class="faded">{"".join(of_others)}{"".join(faded_labels)}</g>',
        *discs,
        *of_unit,
        *labels,
        *_draw_brackets(layout, points, scale),
    ], bottom


def _draw_bond(bond: Bond, points: np.ndarray, labels: list[str], scale: float) -> str:
    begin, end = points[bond.begin], points[bond.end]
    along = (end - begin) / (float(np.hypot(*(end - begin))) or 1.0)
    across = np.array([-along[1], along[0]])
    # A label needs room; bonds end before it.
    begin = begin + along * scale * (0.26 if labels[bond.begin] else 0.0)
    end = end - along * scale * (0.26 if labels[bond.end] else 0.0)
    offsets = {1.0: [0.0], 2.0: [-0.06, 0.06], 3.0: [-0.11, 0.0, 0.11]}.get(bond.order)
    is_aromatic = offsets is None
    lines = []
    for number, offset in enumerate(offsets or [-0.06, 0.06]):
        a, b = begin + across * offset * scale, end + across * offset * scale
        dash = f' stroke-dasharray="{scale / 12:.1f}"' if is_aromatic and number else ""
        lines.append(
            f'<line class="bond" x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" '
            f'stroke-width="{max(0.6, scale / 26):.2f}"{dash}/>'
        )
    return "".join(lines)


def _draw_label(label: str, x: float, y: float, scale: float) -> str:
    if not label:
        return ""
    size = 0.36 * scale
    # The element stands on the atom, hydrogens and charge beside it.
    letters = 1 + (len(label) > 1 and label[1].islower()) if label[0].isalpha() else len(label)
    head, tail = label[:letters], label[letters:]
    parts = [escape(head)]
    for character in tail:
        small = character.isdigit() or character in "+\u2212"
        shift = 0.0 if not small else (-0.35 if character in "+\u2212" else 0.25)
        style = f' font-size="{0.72 * size:.1f}" dy="{shift * size:.1f}"' if small else ""
        parts.append(f"<tspan{style}>{escape(character)}</tspan>")
        if small:
            parts.append(f'<tspan dy="{-shift * size:.1f}">\u200b</tspan>')
    left = x - 0.36 * size * len(head)
    return (
        f'<text x="{left:.1f}" y="{y + 0.35 * size:.1f}" style="font-size:{size:.1f}px">'
        f"{''.join(parts)}</text>"
    )


def _draw_brackets(layout: ChainLayout, points: np.ndarray, scale: float) -> list[str]:
    """Draw a bracket across each of the two bonds at which the unit ends."""
    width = max(0.8, scale / 26)
    parts = []
    for link, outward in zip(layout.links, (-1, 1), strict=True):
        begin, end = points[link.begin], points[link.end]
        along = outward * (end - begin) / (float(np.hypot(*(end - begin))) or 1.0)
        across = np.array([-along[1], along[0]])
        middle, hook = (begin + end) / 2, -0.16 * scale * along
        corners = [middle + sign * 0.62 * scale * across for sign in (-1, 1)]
        path = [corners[0] + hook, *corners, corners[1] + hook]
        drawn = "L".join(f"{x:.1f},{y:.1f}" for x, y in path)
        parts.append(f'<path class="bracket" stroke-width="{width:.2f}" d="M{drawn}"/>')
        if outward > 0:
            x, y = max(corners, key=lambda corner: float(corner[1])) + 0.2 * scale * along
            parts.append(
                f'<text class="soft" x="{x:.1f}" y="{y + 0.1 * scale:.1f}" '
                f'style="font-size:{max(9.0, 0.34 * scale):.1f}px;font-style:italic">n</text>'
            )
    return parts


def _draw_legend(explanation: Explanation, top: float) -> tuple[list[str], float]:
    largest = float(np.abs(explanation.atoms).max())
    left, right = _WIDTH / 2 - 130, _WIDTH / 2 + 130
    stops = (
        f'<stop offset="0" class="stop-down" stop-opacity="{_STRONGEST}"/>'
        '<stop offset=".5" class="stop-down" stop-opacity="0"/>'
        '<stop offset=".5" class="stop-up" stop-opacity="0"/>'
        f'<stop offset="1" class="stop-up" stop-opacity="{_STRONGEST}"/>'
    )
    heading = f"contribution of an atom{_in(explanation)}"
    middle = _WIDTH / 2
    top += 16
    return [
        _text(middle, top - 7, heading, "soft", "middle"),
        f'<defs><linearGradient id="scale">{stops}</linearGradient></defs>',
        f'<rect x="{left}" y="{top}" width="{right - left}" height="12" fill="url(#scale)"/>',
        f'<rect class="ring" x="{left}" y="{top}" width="{right - left}" height="12"/>',
        _text(left - 8, top + 11, "lowers", "soft", "end"),
        _text(right + 8, top + 11, "raises", "soft"),
        _text(left, top + 28, _signed(-largest), "number soft", "middle"),
        _text(middle, top + 28, "0", "number soft", "middle"),
        _text(right, top + 28, _signed(largest), "number soft", "middle"),
    ], top + 28


def _rows(explanation: Explanation) -> list[tuple[str, float, str]]:
    """Return label, contribution and kind: equal fragments together, then whole-chain features."""
    sums: dict[str, list[float]] = {}
    for part, value, _ in explanation.fragments:
        sums.setdefault(part.smiles, []).append(value)
    found = [
        (f"{smiles} \u00d7{len(values)}" if len(values) > 1 else smiles, sum(values))
        for smiles, values in sums.items()
    ]
    found.sort(key=lambda item: (-abs(item[1]), item[0]))
    rows = [(label, value, "code") for label, value in found[:_MAX_ROWS]]
    if len(found) > _MAX_ROWS:
        others = found[_MAX_ROWS:]
        rows.append((f"{len(others)} other fragments", sum(value for _, value in others), ""))
    rows += [(f"whole chain: {name}", value, "") for name, value, _ in explanation.groups]
    return rows


def _draw_bars(explanation: Explanation, top: float) -> tuple[list[str], float]:
    rows = _rows(explanation)
    largest = max(abs(value) for _, value, _ in rows) or 1.0
    zero = (_BAR_LEFT + _BAR_RIGHT) / 2
    half = (_BAR_RIGHT - _BAR_LEFT) / 2
    unit = _unit(explanation)
    parts = [
        _text(_MARGIN, top, "reference: the model knows nothing of the polymer", "soft"),
        _text(
            _WIDTH - _MARGIN, top, f"{_number(explanation.reference)}{unit}", "number soft", "end"
        ),
    ]
    y = top + 8
    parts.append(
        f'<line class="zero" x1="{zero}" x2="{zero}" y1="{y}" y2="{y + _ROW * len(rows)}"/>'
    )
    for number, (label, value, kind) in enumerate(rows):
        at = y + _ROW * number
        length = half * abs(value) / largest
        left = zero if value > 0 else zero - length
        parts += [
            _text(_MARGIN, at + 17, _shortened(label, _MAX_LABEL), kind),
            f'<rect class="{"up" if value > 0 else "down"}" x="{left:.1f}" y="{at + 5}" '
            f'width="{length:.1f}" height="{_ROW - 10}"/>',
            _text(_WIDTH - _MARGIN, at + 17, _signed(value), "number", "end"),
        ]
    y += _ROW * len(rows) + 20
    parts += [
        _text(_MARGIN, y, "prediction: the sum", ""),
        _text(_WIDTH - _MARGIN, y, f"{_number(explanation.prediction)}{unit}", "number", "end"),
    ]
    how = (
        "exact over all sets of parts"
        if explanation.is_exact
        else "standard error of an atom at most"
        f"{_error(float(explanation.atom_errors.max()))}{unit}".replace(" \u00b1", "")
    )
    parts.append(_text(_MARGIN, y + 24, f"Shapley values, {how}; what the model does.", "soft"))
    return parts, y + 40


def _unit(explanation: Explanation) -> str:
    return f" {explanation.unit}" if explanation.unit not in ("", "1") else ""


def _in(explanation: Explanation) -> str:
    return f", in {explanation.unit}" if explanation.unit not in ("", "1") else ""


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "\u2212")


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "\u2212")


def _error(value: float) -> str:
    return f" \u00b1 {value:.2g}" if value else ""


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
