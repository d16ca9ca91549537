"""Pages that need nothing else to be read: one document, its style, tables and small drawings.

No script and no address to load from: the policy in the head forbids both. What a user supplies
goes through `escape`; everything else here takes finished HTML.
"""

import html
import math
from collections.abc import Iterable, Sequence

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--panel:#f4f6f9;--ink:#1b2430;--soft:#55606e;
--line:#d8dee6;--bar:#2b6cb0;--track:#e3e8ef}
@media (prefers-color-scheme:dark){:root{--paper:#12161c;--panel:#1b212a;--ink:#e8ecf2;
--soft:#a9b4c2;--line:#333d4a;--bar:#63a9ee;--track:#2a323d}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main,header,footer{max-width:64rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.5rem 0 .75rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
p{margin:.5rem 0;max-width:48rem}
.soft,caption,figcaption{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.75rem;
margin:1.5rem 0 .5rem;padding:0;list-style:none}
.tiles li{background:var(--panel);border:1px solid var(--line);border-radius:.5rem;
padding:.75rem 1rem}
.tiles b{display:block;font-size:1.6rem;line-height:1.2;font-variant-numeric:tabular-nums}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));
gap:1.5rem 2.5rem;align-items:start}
figure{margin:0}
figcaption{font-size:.9rem}
table{border-collapse:collapse;width:100%;font-size:.95rem}
caption{text-align:left;font-size:.9rem;padding-bottom:.3rem}
th,td{text-align:left;padding:.3rem .6rem .3rem 0;border-bottom:1px solid var(--line);
vertical-align:top;overflow-wrap:break-word}
th{font-weight:600}
tbody th{font-weight:400}
table+table{margin-top:1.75rem}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.wide{width:38%;vertical-align:middle}
code{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace;font-size:.85em;
overflow-wrap:anywhere}
pre{background:var(--panel);border:1px solid var(--line);border-radius:.5rem;padding:.75rem 1rem;
margin:.5rem 0 1rem;white-space:pre-wrap}
.chart{width:100%;height:auto;display:block}
.chart text{fill:var(--soft);font-size:13px;font-family:inherit}
.grid{stroke:var(--line)}
.bar{fill:var(--bar)}
.track{fill:var(--track)}
.cell{width:100%;height:.7rem;display:block;border-radius:2px}
footer{padding-top:1rem;padding-bottom:3rem;font-size:.9rem;color:var(--soft)}
@media print{body{font-size:11pt}h2{break-after:avoid}li,figure,tr{break-inside:avoid}
.tiles{grid-template-columns:repeat(5,1fr)}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def escape(value: object) -> str:
    """Return a text that is safe in HTML, attributes too; control characters become U+FFFD."""
    return html.escape("".join(c if c.isprintable() else "\ufffd" for c in str(value)))


def document(title: str, style: str, lead: str, body: Iterable[str], footer: str) -> str:
    """Return a whole page.

    Parameters
    ----------
    title
        Of the window and of the heading.
    style
        CSS of this kind of page, beside `STYLE`.
    lead
        What stands below the heading.
    body
        The sections.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}{style}</style></head>\n"
        f"<body><header><h1>{title}</h1>{lead}</header>\n<main>"
        + "\n".join(body)
        + f"</main>\n<footer>{footer}</footer></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return a section under a heading of second rank."""
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>"


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table of finished cells; cells in columns named with a leading # are numbers."""
    numeric = [name.startswith("#") for name in header]
    mark = [' class="number"' if is_number else "" for is_number in numeric]
    mark = [' class="wide"' if not name else m for name, m in zip(header, mark, strict=True)]
    heads = [
        f'<th scope="col"{m}>{name.removeprefix("#")}</th>' if name else f"<td{m}></td>"
        for name, m in zip(header, mark, strict=True)
    ]
    lines = [
        f'<tr><th scope="row">{first}</th>'
        + "".join(f"<td{m}>{cell}</td>" for m, cell in zip(mark[1:], rest, strict=True))
        + "</tr>"
        for first, *rest in rows
    ]
    return (
        f"<table><caption>{caption}</caption><thead><tr>{''.join(heads)}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def bar(share: float) -> str:
    """Draw a horizontal bar that fills a share of its table cell; the number stands beside it."""
    return (
        '<svg class="cell" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="10"/>'
        f'<rect class="bar" width="{100 * share:.2f}" height="10"/></svg>'
    )


def nice(least: float) -> float:
    """Return the smallest of ..., 0.5, 1, 2, 5, 10, 20, ... that is at least so much."""
    exponent = math.floor(math.log10(least)) if least > 0 else 0
    candidates = (float(f"{factor}e{exponent}") for factor in (1, 2, 5, 10))
    return next(value for value in candidates if value >= least)
