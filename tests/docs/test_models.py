"""docs/study.md and the table of results name the models that a study has, no others."""

import csv
from pathlib import Path

from mips_dist.train.baselines import BASELINES
from mips_dist.train.results import ENSEMBLE, NETWORK

ROOT = Path(__file__).resolve().parents[2]
MODELS = {NETWORK, ENSEMBLE, *BASELINES}


def test_models_of_the_study() -> None:
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    table = text.partition("## Models\n")[2].partition("\n## ")[0]
    named = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert named[0] == "name"
    assert sorted(named[1:]) == sorted(MODELS)
    with (ROOT / "docs" / "results" / "benchmark.csv").open(encoding="utf-8", newline="") as file:
        cells = [
            (r["model"], r["protocol"], r["property"], r["fold"]) for r in csv.DictReader(file)
        ]
    assert {model for model, *_ in cells} == MODELS
    assert len(set(cells)) == len(cells) == 40 * (len(MODELS) + 2)  # two under `paper` too
