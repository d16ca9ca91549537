"""Sweeps: the test fold is never scored, nothing is done twice, chosen values find their way."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from mips_dist.config import compose, configs_dir, run
from mips_dist.data.properties import read_property
from mips_dist.data.schema import known_schema
from mips_dist.errors import MipsError, UsageError
from mips_dist.finetune import main
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.search_space import SearchLedger, read_space, sample
from mips_dist.train.study import Study, load_study, read_sets
from mips_dist.train.sweep import inner_score
from tests.finetune.learnable import label, labelled_rows, tiny_model, write_csv
from tests.shard_folder import polymers, write_shards

COUNT = 40
VALUES = {"lr": 0.003, "batch_size": 16}


@pytest.fixture
def own_csv(tmp_path) -> Path:
    rows = [[p, label(p)] for p in polymers(COUNT)]
    return write_csv(tmp_path / "own.csv", ["psmiles", "oxygen"], rows)


@pytest.fixture
def arguments(own_csv, tmp_path) -> list[str]:
    shards = write_shards(tmp_path / "shards", COUNT)
    return [
        f"input={own_csv}", "targets=[oxygen]", "units=['%']", f"shards={shards}", "num_folds=3",
        "model.hidden_dim=16", "model.num_layers=1", "model.num_heads=2", "model.ffn_dim=32",
        "model.descriptors=[]", "num_epochs=2", "num_workers=2", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip


def test_the_score_of_a_sweep_knows_no_label_of_the_test_fold():
    block, rows = labelled_rows(COUNT)
    config = FinetuneConfig(model=tiny_model(), num_epochs=2)
    folds = rows.sample % 5

    def score(value: np.ndarray) -> float:
        named = {"oxygen": replace(rows, value=value)}
        study = Study(config, [], named, {"oxygen": folds}, block, known_schema())
        return inner_score(study, "oxygen", VALUES, 2)

    other_test = np.where(folds == 2, rows.value + 1000.0, rows.value)
    other_training = np.where(folds == 1, rows.value + 1000.0, rows.value)
    assert score(other_test) == score(rows.value)
    assert score(other_training) != score(rows.value)


def test_points_lie_in_the_shipped_space_and_fit_the_configuration():
    space = read_space(["num_epochs", "lr"])
    assert "lr" not in space
    rng = np.random.default_rng(0)
    points = [sample(space, rng) for _ in range(200)]
    for key, where in space.items():
        values = [point[key] for point in points]
        if where.choices:
            assert set(values) == set(where.choices)
        else:
            assert where.low <= min(values) < max(values) <= where.high
            assert len(set(values)) > 100
    for point in points[:20]:
        compose(FinetuneConfig, "finetune", [f"{key}={value}" for key, value in point.items()])
    with pytest.raises(MipsError, match="nothing to search"):
        read_space(read_space([]))


def test_the_ledger_of_a_sweep_takes_each_fold_once_and_survives_a_torn_line(tmp_path):
    path = tmp_path / "search.jsonl"
    line = {"property": "p", "values": {"lr": 0.1}, "failure": ""}
    ledger = SearchLedger(path)
    assert ledger.append(line | {"fold": 0, "score": 0.5})
    assert not ledger.append(line | {"fold": 0, "score": 0.7})
    assert ledger.append(line | {"fold": 1, "score": 0.7})
    bad = {"property": "p", "values": {"lr": 9.0}, "failure": "not finite", "fold": 0}
    assert ledger.append(bad)
    with path.open("ab") as file:
        file.write(b'{"property": "p", "val')
    again = SearchLedger(path)
    assert [(t.scores, t.state(2)) for t in again.of("p")] == [
        ([0.5, 0.7], "complete"),
        ([], "failed"),
    ]
    best = again.best("p", 2)
    assert best is not None
    assert best.mean() == pytest.approx(0.6)
    assert again.best("p", 3) is None
    assert path.read_bytes().endswith(b"\n")
    path.write_text("nonsense\n")
    with pytest.raises(MipsError, match="line 1, is damaged"):
        SearchLedger(path)


@pytest.mark.parametrize("method", ["asha", "optuna"])
def test_a_sweep_continues_where_it_was_and_leaves_the_best(method, arguments, tmp_path):
    if method == "optuna":
        pytest.importorskip("optuna")
    arguments += [f"search={method}", "search_trials=3", "lr=0.01"]
    assert run(main, FinetuneConfig, "finetune", arguments) == 0
    run_dir = tmp_path / "run"
    first = (run_dir / "search.jsonl").read_bytes()
    lines = [json.loads(text) for text in first.splitlines()]
    done = [(json.dumps(x["values"]), x["fold"]) for x in lines]
    assert len(done) == len(set(done))
    assert len({values for values, _ in done}) == 3
    assert not (run_dir / "results.csv").exists()
    with open(run_dir / "search.csv") as file:
        points = list(csv.DictReader(file))
    complete = [p for p in points if p["state"] == "complete"]
    best = OmegaConf.load(run_dir / "best" / "oxygen.yaml")
    scores = {float(p["inner_r2"]): p for p in complete}
    assert float(scores[max(scores)]["batch_size"]) == best.training.batch_size
    assert "lr" not in best.training

    # A driver that died early: what is in the ledger stays, the rest is done.
    cut = first.splitlines(keepends=True)[0]
    (run_dir / "search.jsonl").write_bytes(cut)
    assert run(main, FinetuneConfig, "finetune", arguments) == 0
    second = (run_dir / "search.jsonl").read_bytes()
    assert second.startswith(cut)
    again = [json.loads(text) for text in second.splitlines()]
    done = [(json.dumps(x["values"]), x["fold"]) for x in again]
    assert len(done) == len(set(done))
    assert len({values for values, _ in done}) == 3
    if method == "asha":  # its points follow from the seed; a score follows from point and fold
        scores = {(json.dumps(x["values"]), x["fold"]): x["score"] for x in lines}
        common = [x for x in again if (json.dumps(x["values"]), x["fold"]) in scores]
        assert {json.dumps(x["values"]) for x in again} == {json.dumps(x["values"]) for x in lines}
        assert all(scores[json.dumps(x["values"]), x["fold"]] == x["score"] for x in common)


def test_the_command_line_goes_before_the_values_of_a_property(tmp_path, arguments):
    config = compose(FinetuneConfig, "finetune", [*arguments, "lr=0.007"])
    Path(config.run_dir).mkdir()
    sets, rejects = read_sets(config)
    sets[0].property.training = {"lr": 0.1, "batch_size": 7, "model.dropout": 0.3}
    tuned = load_study(config, sets, rejects).tuned(["oxygen"]).config
    assert (tuned.lr, tuned.batch_size, tuned.model.dropout) == (0.007, 7, 0.3)
    assert (config.batch_size, config.model.hidden_dim) == (64, tuned.model.hidden_dim)
    # They belong to what a cell's number depends on.
    sets[0].property.training = {"batch_size": 8}
    with pytest.raises(MipsError, match="holds a study with other training"):
        load_study(config, sets, rejects)
    sets[0].property.training = {}
    with pytest.raises(MipsError, match="holds a study with other training"):
        load_study(config, sets, rejects)


def test_a_property_file_cannot_change_features(tmp_path, monkeypatch):
    text = (configs_dir() / "property" / "egc.yaml").read_text()
    folder = tmp_path / "property"
    shutil.copytree(configs_dir() / "property", folder)
    (folder / "egc.yaml").write_text(text + "training: {lr: 0.001}\n")
    assert read_property(folder, "egc").training == {"lr": 0.001}
    (folder / "egc.yaml").write_text(text + "training: {model.max_hops: 3}\n")
    for name in ("Egc", "Egb", "Eea", "Ei", "Xc", "EPS", "Nc", "Eat"):
        (tmp_path / f"{name}.csv").touch()
    monkeypatch.setattr("mips_dist.train.study.configs_dir", lambda: tmp_path)
    with pytest.raises(UsageError, match=r"egc: training has no key 'model.max_hops'"):
        read_sets(FinetuneConfig(data_dir=str(tmp_path)))


def test_a_sweep_needs_an_inner_split():
    with pytest.raises(ValueError, match="needs protocol=strict"):
        FinetuneConfig(search="asha", protocol="paper")
    with pytest.raises(ValueError, match="must be one of asha, optuna"):
        FinetuneConfig(search="grid")
