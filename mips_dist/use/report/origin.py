"""What all pages have: their style, wide tables, and how a run was made."""

from collections.abc import Sequence

from mips_dist.page import escape, section, table

STYLE = """
h3{font-size:1rem;margin:1.5rem 0 .4rem;overflow-wrap:anywhere}
h2+p+.pair h3{margin-top:.5rem}
.pair>:only-child{max-width:31rem}
.scroll{overflow-x:auto;margin:.75rem 0 1.25rem}
.scroll:focus-visible{outline:2px solid var(--bar);outline-offset:2px}
.scroll td,.scroll th{padding-right:1rem}
.scroll thead th{vertical-align:bottom}
.notice{background:var(--panel);border-left:.3rem solid var(--c1);border-radius:.25rem;
padding:.6rem 1rem;max-width:none;overflow-wrap:anywhere}
.sd{display:block;font-size:.85em;font-weight:400;color:var(--soft)}
summary{cursor:pointer;font-size:.9rem;color:var(--soft);padding:.25rem 0}
"""


def scrolling(content: str) -> str:
    """Let a wide table move sideways on a narrow screen."""
    return f'<div class="scroll" role="region" aria-label="wide table" tabindex="0">{content}</div>'


def duration(seconds: float) -> str:
    """Write a time of one core in the unit that fits."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def origin(
    command: str,
    config_text: str,
    environments: Sequence[dict[str, str]],
    is_recorded: bool,
    hashes: Sequence[tuple[str, str]],
    what: str = "the study",
) -> str:
    """Write how a run was made: command, configuration, software, hashes."""
    keys_of = dict.fromkeys(key for entry in environments for key in entry)
    facts = [(escape(k), *(escape(e.get(k, "")) for e in environments)) for k in keys_of]
    where = (
        f"What {what} ran with"
        if is_recorded
        else f"What this page was made with; {what} did not record its own"
    )
    header = ["what", "value"]
    if len(environments) > 1:
        header = ["what", *(f"run {k + 1}" for k in range(len(environments)))]
    return section(
        "How it was made",
        "<p>The last command on this folder, as its configuration gives it:</p>"
        f"<pre><code>{escape(command)}</code></pre>",
        f"<details><summary>Whole configuration</summary><pre><code>{_lines(config_text)}</code>"
        "</pre></details>",
        scrolling(table(where, header, facts)),
        table(
            "sha256",
            ("of", "value"),
            [(escape(name), f"<code>{escape(digest)}</code>") for name, digest in hashes],
        ),
    )


def _lines(text: str) -> str:
    return "\n".join(escape(line) for line in text.splitlines())
