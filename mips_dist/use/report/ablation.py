"""The page of an ablation: a folder of studies that differ in one component each."""

from pathlib import Path

from mips_dist.data.files import file_sha256
from mips_dist.errors import MipsError
from mips_dist.page import document, escape, section, table
from mips_dist.train.study import LEDGER_FILE
from mips_dist.use.report import charts, origin, plots, sections
from mips_dist.use.report.command import study_command
from mips_dist.use.report.folder import CONFIG_FILE, StudyFolder, read_folder, read_rows
from mips_dist.use.report.origin import duration, scrolling

ABLATION_FILE = "ablation.json"


def ablation_page(run_dir: Path) -> str:
    """Return the page of an ablation.

    Raises
    ------
    MipsError
        A file is damaged; no variant is finished.
    """
    rows = read_rows(run_dir / ABLATION_FILE)
    if not rows:
        raise MipsError(f"{run_dir / ABLATION_FILE} has no rows yet; make the page later")
    studies, unfinished = [], []
    for ledger in sorted(run_dir.glob(f"*/{LEDGER_FILE}")):
        try:
            studies.append(read_folder(ledger.parent))
        except MipsError:
            unfinished.append(ledger.parent.name)
    components = {str(row.get("component", "")) for row in rows}
    variants = {(str(row.get("component", "")), str(row.get("variant", ""))) for row in rows}
    properties = {str(row.get("property", "")) for row in rows}
    tiles = [
        (f"{len(components)}", "components"),
        (f"{len(variants)}", "variants"),
        (f"{len(properties)}", "properties and means"),
    ]
    seconds = sum(result.seconds for study in studies for result in study.results)
    if studies:
        tiles += [(f"{len(studies)}", "studies"), (duration(seconds), "core time")]
    items = "".join(f"<li><b>{value}</b> {what}</li>" for value, what in tiles)
    notice = ""
    if unfinished:
        names = ", ".join(map(escape, unfinished))
        notice = f'<p class="notice"><b>No result yet:</b> {names}.</p>'
    lead = (
        '<p class="soft">What each component of the model is worth, one changed at a time.</p>'
        f'<ul class="tiles">{items}</ul>{notice}'
    )
    body = [sections.ablations(rows), _studies(studies), _hashes(run_dir)]
    footer = "This page loads nothing and runs no script. Numbers are from ablation.json."
    style = plots.STYLE + charts.STYLE + origin.STYLE
    name = escape(run_dir.resolve().name)
    return document(f"Ablations: {name}", style, lead, filter(None, body), footer)


def _studies(studies: list[StudyFolder]) -> str:
    """Write which studies it is made of, with the command of each; empty where none lies there."""
    if not studies:
        return ""
    rows = []
    for study in studies:
        seconds = sum(result.seconds for result in study.results)
        rows.append(
            (
                escape(study.path.name),
                f"{len(study.results)}",
                f"{len(study.missing)}",
                duration(seconds),
                f"<code>{escape(study_command(study.config))}</code>",
            )
        )
    header = ("study", "#cells", "#missing", "#core time", "command")
    return section(
        "The studies",
        "<p>Each is a folder beside this page; <code>mips report FOLDER</code> makes its own.</p>",
        scrolling(table("Studies", header, rows)),
    )


def _hashes(run_dir: Path) -> str:
    found = [
        ABLATION_FILE,
        *(str(p.relative_to(run_dir)) for p in run_dir.glob(f"*/{CONFIG_FILE}")),
    ]
    rows = [(escape(name), f"<code>{file_sha256(run_dir / name)}</code>") for name in sorted(found)]
    return section("How it was made", table("sha256", ("of", "value"), rows))
