"""The page of the data card: its sections, and the style of what only a card has."""

from collections.abc import Iterable, Mapping, Sequence

from rdkit import Chem

from mips_dist.data.shards import Manifest
from mips_dist.page import bar, document, escape, section, table
from preprocess.card_svg import histogram, polymer

_STYLE = """
:root{--nitrogen:#2347d6;--oxygen:#c81e1e;--light-halogen:#1d7a34;--heavy-halogen:#8a4b12;
--sulfur:#7d6300;--phosphorus:#a8420b}
@media (prefers-color-scheme:dark){:root{--nitrogen:#8fa9ff;--oxygen:#ff8a80;
--light-halogen:#6fd58a;--heavy-halogen:#e3ab74;--sulfur:#e3c341;--phosphorus:#ffa96b}}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,13.5rem),1fr));
gap:.75rem;padding:0;margin:0;list-style:none}
.gallery li{background:var(--panel);border:1px solid var(--line);border-radius:.5rem;
padding:.5rem .75rem .75rem}
.polymer{width:100%;height:auto;display:block}
@media print{.gallery{grid-template-columns:repeat(4,1fr)}}
"""


def render(
    manifest: Manifest,
    statistics: Mapping[str, Mapping[str, int]],
    drawn: Sequence[str],
    command: str,
) -> str:
    """Return the page.

    Parameters
    ----------
    statistics
        Sum of what `preprocess.card.shard_statistics` counted.
    drawn
        Canonical P-SMILES to draw, in order.
    """
    name = escape(manifest.input.get("name", ""))
    body = [
        _rows(manifest),
        _shapes(statistics),
        _elements(statistics, manifest.num_samples),
        _chemistry(statistics, manifest),
        _origin(manifest, command),
        _gallery(drawn),
    ]
    title = f"Data card: {name}"
    return document(title, _STYLE, _summary(manifest), body, _footer(manifest))


def _summary(manifest: Manifest) -> str:
    most = ", conformers, descriptors"
    more = {"topology": "", "descriptors": ", descriptors", "full": most, "xtb": most}
    what = f"exact graphs of infinite chains{more.get(manifest.content, '')}"
    tiles = [
        ("rows read", manifest.num_rows),
        ("polymers kept", manifest.num_samples),
        ("duplicates merged", manifest.num_merged),
        ("rows rejected", manifest.num_rejected),
        ("shards", len(manifest.shards)),
    ]
    items = "".join(f"<li><b>{count:,}</b> {label}</li>" for label, count in tiles)
    return (
        f'<p class="soft">Polymers as {what} (content={escape(manifest.content)}), '
        f'for attention within {manifest.max_hops} bonds.</p><ul class="tiles">{items}</ul>'
    )


def _shares(caption: str, what: str, counts: Mapping[str, int], total: int) -> str:
    """Write a table of names with their counts and shares, the largest first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return table(
        caption,
        (what, "", "#count", "#share"),
        [
            (escape(name), bar(count / max(total, 1)), f"{count:,}", _percent(count, total))
            for name, count in ordered
        ],
    )


def _percent(count: int, total: int) -> str:
    share = 100 * count / max(total, 1)
    return "&lt; 0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"


def _rows(manifest: Manifest) -> str:
    fate = {
        "kept": manifest.num_samples,
        "merged": manifest.num_merged,
        "rejected": manifest.num_rejected,
    }
    parts = [_shares("What became of every row of the input", "fate", fate, manifest.num_rows)]
    if manifest.rejected_by_reason:
        caption = "Rejected rows by reason; rejects.csv names each one"
        reasons = manifest.rejected_by_reason
        parts.append(_shares(caption, "reason", reasons, manifest.num_rejected))
    else:
        parts.append("<p>No row was rejected.</p>")
    merged = "<p>Merged rows spell a polymer of an earlier row anew; merged.csv names both.</p>"
    stereo = (
        f"<p>Stereo marks were dropped in {manifest.stereo_dropped:,} accepted rows: a stereo "
        "centre of an atactic chain has no fixed sign.</p>"
        if manifest.stereo_dropped
        else "<p>No accepted row carried stereo marks.</p>"
    )
    return section("Rows", f'<div class="pair">{"".join(_boxed(parts))}</div>', merged, stereo)


def _boxed(parts: Iterable[str]) -> list[str]:
    return [f"<div>{part}</div>" for part in parts]


def _shapes(statistics: Mapping[str, Mapping[str, int]]) -> str:
    charts = []
    for key, title, note in (
        ("heavy_atoms", "heavy atoms of the repeat unit", ""),
        (
            "backbone_atoms",
            "backbone atoms of the repeat unit",
            "; rings between the attachment points count whole",
        ),
    ):
        counts = statistics.get(key)
        if counts:
            chart = histogram(counts, f"Polymers by {title}", title)
            caption = f"Polymers by {title}{note}. {_quantiles(counts)}"
            charts.append(f"<figure>{chart}<figcaption>{caption}</figcaption></figure>")
    return section("Size", f'<div class="pair">{"".join(charts) or "<p>No polymer.</p>"}</div>')


def _quantiles(counts: Mapping[str, int]) -> str:
    ordered = sorted((int(value), count) for value, count in counts.items())
    total = sum(count for _, count in ordered)

    def at(fraction: float) -> int:
        seen = 0
        for value, count in ordered:
            seen += count
            if seen >= fraction * total:
                return value
        return ordered[-1][0]

    mean = sum(value * count for value, count in ordered) / total
    return (
        f"Mean {mean:.1f}; 5 % have at most {at(0.05)}, half {at(0.5)}, 95 % {at(0.95)}; "
        f"maximum {ordered[-1][0]}."
    )


def _elements(statistics: Mapping[str, Mapping[str, int]], num_polymers: int) -> str:
    polymers = statistics.get("element_polymers", {})
    atoms = statistics.get("element_atoms", {})
    ordered = sorted(polymers, key=lambda number: (-polymers[number], int(number)))
    counts = table(
        "Elements of the repeat units, hydrogens that are not written left out",
        ("element", "", "#polymers", "#share", "#atoms"),
        [
            (
                Chem.GetPeriodicTable().GetElementSymbol(int(number)),
                bar(polymers[number] / max(num_polymers, 1)),
                f"{polymers[number]:,}",
                _percent(polymers[number], num_polymers),
                f"{atoms[number]:,}",
            )
            for number in ordered
        ],
    )
    return section("Elements", counts)


def _chemistry(statistics: Mapping[str, Mapping[str, int]], manifest: Manifest) -> str:
    total = manifest.num_samples
    status = statistics.get("conformer_status")
    readable = {name.replace("_", " "): count for name, count in (status or {}).items()}
    parts = [
        _shares("Conformers: method, and how it ended", "status", readable, total)
        if status
        else f"<p>No conformers were made (content={escape(manifest.content)}).</p>",
        _shares("Polymers by what they have", "polymers", statistics.get("traits", {}), total)
        + _shares("Bond between units", "order", statistics.get("link_bonds", {}), total),
    ]
    return section("Structure", f'<div class="pair">{"".join(_boxed(parts))}</div>')


def _origin(manifest: Manifest, command: str) -> str:
    facts = [
        ("input", escape(manifest.input.get("name", ""))),
        ("sha256 of the input", f"<code>{escape(manifest.input.get('sha256', ''))}</code>"),
        ("seed of the conformers", str(manifest.seed)),
        *((escape(key), escape(value)) for key, value in manifest.config.items()),
        ("feature schema", str(manifest.feature_schema)),
        ("shard schema", str(manifest.schema_version)),
        *((escape(key), escape(value)) for key, value in manifest.software.items()),
    ]
    groups = [
        (
            *(escape(group[key]) for key in ("name", "width", "kind")),
            f"<code>{escape(group['version'])}</code>",
        )
        for group in manifest.descriptors
    ]
    return section(
        "How it was made",
        f"<pre><code>{escape(command)}</code></pre>",
        '<div class="pair"><div>',
        table("Input, settings and software", ("what", "value"), facts),
        "</div><div>",
        table("Descriptor groups", ("name", "#width", "kind", "version"), groups)
        if groups
        else "<p>No descriptors were made (content=topology).</p>",
        "</div></div>",
    )


def _gallery(drawn: Sequence[str]) -> str:
    items = "".join(
        f"<li>{polymer(psmiles)}<code>{escape(psmiles)}</code></li>" for psmiles in drawn
    )
    note = (
        f"<p>{len(drawn)} polymers drawn by lot (the smallest hashes of their spellings), shortest "
        "first. Wavy lines are the attachment points.</p>"
    )
    return section("Polymers", note, f'<ul class="gallery">{items}</ul>')


def _footer(manifest: Manifest) -> str:
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    return (
        f"{len(manifest.shards):,} shards, {num_bytes / 1e6:,.1f} MB; manifest.json has their "
        "checksums. The same input, command and versions give the same shards and this page."
    )
