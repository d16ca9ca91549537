"""`mips report`: one page of any run, that needs nothing else to be read."""

import json
from pathlib import Path

from mips_dist.data.files import write_atomically
from mips_dist.data.shards import MANIFEST_NAME
from mips_dist.errors import MipsError, UsageError
from mips_dist.train.search_space import LEDGER as SEARCH_LEDGER
from mips_dist.train.study import LEDGER_FILE
from mips_dist.use.report.ablation import ablation_page
from mips_dist.use.report.pretraining import pretraining_page
from mips_dist.use.report.search import search_page
from mips_dist.use.report.study import ABLATION_FILE, study_page

REPORT_FILE = "report.html"
SHARD_CARD = "card.html"  # what preprocessing leaves, see preprocess.card


def write_report(run_dir: Path, output: Path | None, data: Path | None) -> Path:
    """Write the page of a run and return where it is.

    What the run is follows from its files: a fine-tuning study, a sweep, an ablation, a
    pre-training run, or shards, which have their page already.

    Parameters
    ----------
    output
        Default: report.html in the folder of the run.
    data
        Where the labels of a study lie now; see `study_page`.

    Raises
    ------
    MipsError
        The folder holds no run, or a damaged one; given data are not those of the study.
    UsageError
        No place for the page; ``data`` for what is no study.
    """
    if not run_dir.is_dir():
        raise MipsError(f"no folder {run_dir}; give the folder of a run")
    target = run_dir / REPORT_FILE if output is None else output
    if target.is_dir():
        raise UsageError(f"{target} is a folder; give a file with -o")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is no folder; make it first")
    kind = kind_of(run_dir)
    if kind != "study" and data is not None:
        raise UsageError(f"{run_dir} is no fine-tuning study; leave out --data")
    if kind == "shards":
        card = run_dir / SHARD_CARD
        if not card.is_file():
            raise MipsError(
                f"{run_dir} has no {SHARD_CARD}; the same python -m preprocess command makes it"
            )
        if output is None:
            return card
        page = card.read_text(encoding="utf-8")
    elif kind == "study":
        page = study_page(run_dir, data)
    elif kind == "search":
        page = search_page(run_dir)
    elif kind == "ablation":
        page = ablation_page(run_dir)
    else:
        page = pretraining_page(run_dir)
    write_atomically(target, page)
    return target


def kind_of(run_dir: Path) -> str:
    """Return study, search, ablation, pretraining or shards.

    Raises
    ------
    MipsError
        The folder is of nothing of these.
    """
    if (run_dir / LEDGER_FILE).is_file():
        return "study"
    if (run_dir / SEARCH_LEDGER).is_file():
        return "search"
    if (run_dir / ABLATION_FILE).is_file():
        return "ablation"
    if (run_dir / "checkpoints").is_dir() or (run_dir / "tensorboard").is_dir():
        return "pretraining"
    if _is_manifest(run_dir / MANIFEST_NAME):
        return "shards"
    raise MipsError(
        f"{run_dir} is no run of this library (no {LEDGER_FILE}, {SEARCH_LEDGER}, {ABLATION_FILE}, "
        f"checkpoints, tensorboard or {MANIFEST_NAME}); give a run_dir or an output of preprocess"
    )


def _is_manifest(path: Path) -> bool:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "num_samples" in manifest
