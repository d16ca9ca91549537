"""Permuted labels: the same code finds nothing in them, and every table says so."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mips_dist.data.working_copy import WorkingCopy
from mips_dist.errors import MipsError
from mips_dist.finetune import _report, _summaries
from mips_dist.train.cells import run_cells, study_cells
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.results import Cell, Ledger
from mips_dist.train.study import load_study, read_sets
from mips_dist.train.tables import render
from tests.finetune.learnable import label, tiny_model, write_csv
from tests.shard_folder import polymers, write_shards

COUNT = 200


@pytest.fixture
def config(tmp_path) -> FinetuneConfig:
    rows = [[p, label(p)] for p in polymers(COUNT)]
    csv_file = write_csv(tmp_path / "own.csv", ["psmiles", "oxygen"], rows)
    (tmp_path / "run").mkdir()
    return FinetuneConfig(
        model=tiny_model(), num_epochs=1, input=str(csv_file), targets=["oxygen"], units=["%"],
        shards=str(write_shards(tmp_path / "shards", COUNT)), run_dir=str(tmp_path / "run"),
        baselines=["boosting"],
    )  # fmt: skip


def load(config: FinetuneConfig):
    return load_study(config, *read_sets(config))


def mean_r2(study) -> float:
    cells = [Cell("boosting", "oxygen", fold, 0, "strict") for fold in range(5)]
    return float(np.mean([run_cells(study, [cell])[0].r2 for cell in cells]))


def test_trees_predict_the_labels_and_not_their_permutation(config):
    straight = load(config)
    config.run_dir += "/../permuted"
    Path(config.run_dir).mkdir()
    config.permute_labels = 5
    permuted = load(config)
    assert sorted(permuted.rows["oxygen"].value) == sorted(straight.rows["oxygen"].value)
    assert (permuted.folds["oxygen"] == straight.folds["oxygen"]).all()
    assert (permuted.rows["oxygen"].row == straight.rows["oxygen"].row).all()
    assert mean_r2(straight) > 0.5
    assert mean_r2(permuted) < 0.02


def test_permuted_labels_belong_to_the_study_and_every_table_says_so(config):
    config.permute_labels = 1
    study = load(config)
    assert (load(config).rows["oxygen"].value == study.rows["oxygen"].value).all()
    for other in (None, 2):
        config.permute_labels = other
        with pytest.raises(MipsError, match=r"holds a study with other.* permute_labels"):
            load(config)
    config.permute_labels = 1
    run_dir = Path(config.run_dir)
    ledger = Ledger(run_dir / "ledger.jsonl")
    for cell in study_cells(config):
        ledger.append(run_cells(study, [cell])[0])
    console = Console(record=True, width=200)
    summaries = _summaries(study, ledger)
    console.print(render(summaries, study.num_polymers()))
    _report(study, WorkingCopy(config.run_dir), ledger, summaries, {}, console)
    ledger.close()
    with open(run_dir / "results.csv") as file:
        assert {r["protocol"] for r in csv.DictReader(file)} == {"strict, labels permuted (seed 1)"}
    found = json.loads((run_dir / "results.json").read_text())
    assert found["permute_labels"] == 1
    assert all("labels permuted" in row["protocol"] for row in found["summary"])
    assert "labels permuted" in console.export_text()
