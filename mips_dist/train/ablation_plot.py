"""The plot of one component of an ablation, as a plain SVG file."""

from collections.abc import Sequence
from html import escape
from typing import Any

# Okabe and Ito's colours, which remain apart for most eyes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
_ROW, _PANEL, _LEFT, _TOP, _PLOT = 20, 34, 210, 76, 430
_WIDTH = _LEFT + _PLOT + 90


def draw_component(name: str, about: str, rows: Sequence[dict[str, Any]], size: str) -> str:
    """Draw R2 of every variant, one panel a property: dot and SD are ours, the ring is published.

    Parameters
    ----------
    rows
        Of one component: variant, property, r2, r2_sd and published, None where there is none.
    size
        How large the studies were, for the line below the title.
    """
    properties = list(dict.fromkeys(row["property"] for row in rows))
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    parts, y = [], _TOP
    for prop in properties:
        own = [row for row in rows if row["property"] == prop and row["r2"] is not None]
        parts.append(_panel(prop, own, variants, y))
        y += _PANEL + _ROW * len(own)
    title = escape(f"Ablation: {name}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 10}" '
        f'width="{_WIDTH}" height="{y + 10}" font-family="sans-serif" font-size="12">\n'
        f"<title>{title}</title>\n"
        f'<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="10" y="20" font-size="15">{title}</text>\n'
        f'<text x="10" y="37" fill="#444">{escape(about)}</text>\n'
        + "".join(
            f'<text x="10" y="{53 + 12 * line}" fill="#444" font-size="10">{escape(part)}</text>\n'
            for line, part in enumerate(size.split("; "))
        )
        + "".join(parts)
        + "</svg>\n"
    )


def _panel(prop: str, rows: Sequence[dict[str, Any]], variants: Sequence[str], top: int) -> str:
    """Draw one property; each has a scale of its own, for sets differ more than variants."""
    values = [row["r2"] + sign * (row["r2_sd"] or 0.0) for row in rows for sign in (-1, 1)]
    values += [row["published"] for row in rows if row["published"] is not None]
    if not values:
        return ""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.01
    low, high = low - margin, high + margin

    def x(value: float) -> str:
        return f"{_LEFT + _PLOT * (value - low) / (high - low):.1f}"

    height = _ROW * len(rows)
    lines = [
        f'<text x="10" y="{top + 14}" font-weight="bold">{escape(prop)}</text>\n',
        f'<rect x="{_LEFT}" y="{top + 20}" width="{_PLOT}" height="{height}" fill="#f4f4f4"/>\n',
        f'<text x="{_LEFT}" y="{top + 14}" font-size="10">{low:.3f}</text>\n',
        f'<text x="{_LEFT + _PLOT}" y="{top + 14}" font-size="10" text-anchor="end">'
        f"R2 {high:.3f}</text>\n",
    ]
    for number, row in enumerate(rows):
        y = top + 20 + _ROW * number + _ROW // 2
        colour = COLOURS[variants.index(row["variant"]) % len(COLOURS)]
        r2, sd = row["r2"], row["r2_sd"] or 0.0
        lines += [
            f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">'
            f"{escape(row['variant'])}</text>\n",
            f'<line x1="{x(r2 - sd)}" x2="{x(r2 + sd)}" y1="{y}" y2="{y}" stroke="{colour}" '
            'stroke-width="2"/>\n',
            f'<circle cx="{x(r2)}" cy="{y}" r="5" fill="{colour}"/>\n',
            f'<text x="{_LEFT + _PLOT + 8}" y="{y + 4}">{r2:.3f}</text>\n',
        ]
        if row["published"] is not None:
            lines.append(
                f'<circle cx="{x(row["published"])}" cy="{y}" r="5" fill="none" stroke="#000">'
                f"<title>published {row['published']:.3f}</title></circle>\n"
            )
    return "".join(lines)
