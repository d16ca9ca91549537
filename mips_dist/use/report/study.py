"""The page of a fine-tuning study."""

import csv
import hashlib
import json
from pathlib import Path

from mips_dist.data.files import file_sha256
from mips_dist.data.folds import FOLDS_FILE
from mips_dist.data.properties import Reject
from mips_dist.errors import MipsError
from mips_dist.page import document, escape
from mips_dist.train.environment import environment, read_environments
from mips_dist.train.study import IDENTITY_FILE, LEDGER_FILE, REJECTS_FILE
from mips_dist.use.report import charts, origin, plots, sections
from mips_dist.use.report.command import study_command
from mips_dist.use.report.folder import (
    CONFIG_FILE,
    Labels,
    StudyFolder,
    read_folder,
    read_labels,
    read_rows,
)

ABLATION_FILE = "ablation.json"
RSIT_FILE = "rsit.json"
MAX_NAMED = 6


def study_page(run_dir: Path, data: Path | None) -> str:
    """Return the page of a study.

    Parameters
    ----------
    data
        Where the labels lie now; default: where the study found them. Where they are not, the page
        is made without what needs them and says so, unless they were asked for here.

    Raises
    ------
    MipsError
        The study is damaged; given data are not those of the study.
    """
    folder = read_folder(run_dir)
    labels: dict[str, Labels] | None = None
    lacking = ""
    try:
        labels = read_labels(folder, data)
    except MipsError as error:
        if data is not None:
            raise
        lacking = str(error)
    return _page(folder, labels, lacking)


def _page(folder: StudyFolder, labels: dict[str, Labels] | None, lacking: str) -> str:
    name = escape(folder.path.resolve().name)
    source = folder.config.get("input")
    what = f"own data ({escape(Path(source).name)})" if source else "the benchmark sets"
    lead = (
        f'<p class="soft">Cross-validation of polymer property models on {what}, '
        f"protocol {escape(folder.config['protocol'])}.</p>"
        + sections.summary_tiles(folder)
        + "".join(f'<p class="notice">{line}</p>' for line in _notices(folder, lacking))
    )
    body = [sections.scores(folder)]
    if labels is not None:
        body += [charts.parity(folder, labels), charts.distance(folder, labels)]
    body += [
        charts.learning_curves(folder),
        sections.ablations(read_rows(folder.path / ABLATION_FILE)),
        sections.respellings(read_rows(folder.path / RSIT_FILE)),
        sections.cost(folder),
        sections.rejected(_read_rejects(folder.path / REJECTS_FILE)),
        _origin(folder),
    ]
    footer = "This page loads nothing and runs no script. Numbers are from the study's ledger."
    if labels is not None:
        footer += " All scores were recomputed from its predictions and the labels, and agree."
    style = plots.STYLE + charts.STYLE + origin.STYLE
    return document(f"Fine-tuning study: {name}", style, lead, filter(None, body), footer)


def _notices(folder: StudyFolder, lacking: str) -> list[str]:
    lines = []
    if folder.missing:
        total = len(folder.missing) + len(folder.results)
        named = ", ".join(escape(cell) for cell in folder.missing[:MAX_NAMED])
        more = ", ..." if len(folder.missing) > MAX_NAMED else ""
        lines.append(
            f"<b>Not finished:</b> {len(folder.missing)} of {total} cells are missing ({named}"
            f"{more}). The same command does them."
        )
    if lacking:
        lines.append(
            "<b>Without labels,</b> and so without parity plots and distances: "
            f"{escape(lacking)}. Give them with <code>mips report --data PATH</code>."
        )
    return lines


def _read_rejects(path: Path) -> list[Reject]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [Reject(r["file"], int(r["row"]), r["reason"]) for r in csv.DictReader(file)]


def _origin(folder: StudyFolder) -> str:
    recorded = read_environments(folder.path)
    identity = json.loads((folder.path / IDENTITY_FILE).read_text(encoding="utf-8"))
    ledger = (folder.path / LEDGER_FILE).read_bytes()
    hashes = [
        (f"folds ({FOLDS_FILE})", file_sha256(folder.path / FOLDS_FILE)),
        ("labels (rows and values)", str(identity.get("labels_sha256", ""))),
        (f"results ({LEDGER_FILE})", hashlib.sha256(ledger).hexdigest()),
    ]
    if identity.get("pretrained"):
        hashes.append(("pre-trained weights", str(identity["pretrained"])))
    config_text = (folder.path / CONFIG_FILE).read_text(encoding="utf-8")
    return origin.origin(
        study_command(folder.config),
        config_text,
        recorded or [environment()],
        bool(recorded),
        hashes,
    )
