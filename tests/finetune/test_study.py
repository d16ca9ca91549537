"""The study as a user meets it: its command line, its run folder, a killed driver."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mips_dist
from mips_dist.config import run
from mips_dist.data.schema import known_schema
from mips_dist.errors import MipsError
from mips_dist.finetune import _model_jobs, _summaries, main
from mips_dist.model.bundle import load_bundle
from mips_dist.train.cells import has_model, model_dir, study_cells, train_models
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.finetuning import finetune_all, predict
from mips_dist.train.fitting import FittedModel
from mips_dist.train.results import FoldResult, Ledger
from mips_dist.train.study import Study, load_study, read_sets
from mips_dist.train.tables import Summary
from tests.finetune.learnable import label, tiny_model, write_csv
from tests.shard_folder import polymers, write_shards

ENTRY = Path(mips_dist.__file__).parent / "finetune.py"
COUNT = 40
TINY = [
    "model.hidden_dim=16", "model.num_layers=1", "model.num_heads=2", "model.ffn_dim=32",
    "model.descriptors=[]", "num_epochs=2", "num_workers=2", "seeds=[0]",
]  # fmt: skip


@pytest.fixture
def own_csv(tmp_path):
    """Two targets, the second on some rows only, bad rows, a second spelling of polymer 0."""
    names = polymers(COUNT)
    rows = [[i, p, label(p), "" if i % 4 == 0 else label(p) ** 2] for i, p in enumerate(names)]
    rows += [["no star", "CCO", 1.0, 2.0], ["no number", names[1], "high", 2.0]]
    rows += [["again", names[0].replace("*", "[*]"), label(names[0]), 5.0]]
    return write_csv(tmp_path / "my data, 1.csv", ["id", "psmiles", "tg_K", "other one"], rows)


@pytest.fixture
def config(own_csv, tmp_path):
    return FinetuneConfig(
        model=tiny_model(),
        num_epochs=2,
        input=str(own_csv),
        targets=["tg_K", "other one"],
        units=["K", "m"],
        shards=str(write_shards(tmp_path / "shards", COUNT + 5)),
        run_dir=str(tmp_path / "run"),
    )


def study_of(config: FinetuneConfig) -> Study:
    Path(config.run_dir).mkdir(exist_ok=True)
    sets, rejects = read_sets(config)
    return load_study(config, sets, rejects)


def test_rows_find_their_polymer_and_bad_rows_are_listed(config):
    study = study_of(config)
    rows = study.rows["tg_K"]
    assert rows.unit == "K"
    assert rows.row.tolist() == [*range(COUNT), COUNT + 2]
    values = [label(study.block.psmiles[i]) for i in rows.sample]
    assert rows.value == pytest.approx(values)
    assert rows.sample[0] == rows.sample[-1]
    assert study.folds["tg_K"][0] == study.folds["tg_K"][-1]
    assert study.num_polymers() == {"tg_K": COUNT, "other one": COUNT - COUNT // 4 + 1}
    with open(Path(config.run_dir) / "rejects.csv") as file:
        rejects = [(int(r["row"]), r["reason"]) for r in csv.DictReader(file)]
    assert rejects[0][0] == COUNT
    assert rejects[0][1].startswith("star_count")
    assert rejects[1] == (COUNT + 1, "tg_K: 'high' is not a number")


def test_a_run_folder_takes_no_other_study(config, own_csv):
    study_of(config)
    config.seeds, config.protocol = [0, 1], "paper"  # further cells of the same study
    study_of(config)
    config.lr = 1.0
    with pytest.raises(MipsError, match="holds a study with other lr"):
        study_of(config)
    config.lr = 2e-3
    text = own_csv.read_text().splitlines()
    own_csv.write_text("\n".join([*text[:2], text[2] + "1", *text[3:]]) + "\n")
    with pytest.raises(MipsError, match="holds a study with other labels_sha256"):
        study_of(config)


@pytest.mark.parametrize("content", ["", '{"lr": 0.0', "[]"])
def test_a_damaged_study_file_is_refused_with_the_remedy(config, content):
    study_of(config)
    (Path(config.run_dir) / "study.json").write_text(content)
    with pytest.raises(MipsError, match=r"study.json is damaged.*give another run_dir"):
        study_of(config)


def test_the_model_comes_from_the_cells_of_this_command_alone(config):
    config.baselines = []
    study, run_dir = study_of(config), Path(config.run_dir)
    config = study.config  # a copy, which the cells below are asked of
    ledger = Ledger(run_dir / "ledger.jsonl")

    def finish(protocol: str, seeds: list[int], r2: float, epoch: int) -> list[dict]:
        """Give the command's cells these scores, train the models; return the jobs of that."""
        config.protocol, config.seeds = protocol, seeds
        for cell in study_cells(config):
            ledger.append(
                FoldResult(
                    **cell._asdict(),
                    **{"r2": r2, "rmse": 1.0, "mae": 1.0, "unit": "K", "num_train": 9},
                    epoch=epoch,
                    prediction=[300.0] * int((study.folds[cell.property] == cell.fold).sum()),
                )
            )
        jobs = _model_jobs(study, run_dir, ledger, _summaries(study, ledger))
        for job in jobs:
            summaries = [Summary(**s) for s in job["summaries"]]
            train_models(study, run_dir, summaries, job["epochs"], job["held_out"])
        return jobs

    def metrics() -> list:
        found = json.loads((model_dir(run_dir, "tg_K") / "metrics.json").read_text())
        keys = ("protocol", "seeds", "cross_validated_r2", "num_epochs")
        return [found[key] for key in keys]

    assert len(finish("paper", [0], 0.9, 2)) == 2
    assert metrics() == ["paper", [0], 0.9, 2]
    assert finish("paper", [0], 0.9, 2) == []
    assert len(finish("strict", [0], 0.5, 1)) == 2
    assert metrics() == ["strict", [0], 0.5, 1]
    assert len(finish("strict", [1], 0.25, 1)) == 2
    assert metrics() == ["strict", [1], 0.25, 1]

    summaries = _summaries(study, ledger)  # seed 1 alone; the folder has it in one protocol only
    assert [(s.protocol, s.r2) for s in summaries if s.property == "tg_K"] == [("strict", 0.25)]
    config.seeds = [0]
    assert not has_model(config, run_dir, "tg_K")
    both = {s.protocol: s.r2 for s in _summaries(study, ledger) if s.property == "tg_K"}
    assert both == {"paper": 0.9, "strict": 0.5}
    ledger.close()

    config.seeds = [1]
    assert has_model(config, run_dir, "tg_K")
    (model_dir(run_dir, "tg_K") / "weights.safetensors").unlink()
    assert not has_model(config, run_dir, "tg_K")


def test_shards_that_do_not_fit_are_refused(config, tmp_path):
    config.shards = str(write_shards(tmp_path / "few", 10))
    with pytest.raises(MipsError, match=r"lacks 30 of the 40 polymers"):
        study_of(config)
    config.shards = str(write_shards(tmp_path / "wide", COUNT, max_hops=3))
    with pytest.raises(MipsError, match=r"with max_hops=3, the model has model\.max_hops=2"):
        study_of(config)
    config.shards = str(tmp_path / "shards")
    config.model.descriptors = ["rdkit_2d"]
    config.run_dir = str(tmp_path / "other")
    with pytest.raises(
        MipsError,
        match="lacks rdkit_2d; give another run_dir, or make shards with content=descriptors",
    ):
        study_of(config)


def test_baselines_run_once_and_are_strict_under_any_protocol():
    config = FinetuneConfig(protocol="paper", seeds=[0, 1], properties=["egc", "xc"])
    cells = study_cells(config)
    assert len(cells) == len(set(cells)) == 2 * 5 * (2 + 2)
    assert {c.protocol for c in cells if c.model == "mips"} == {"paper"}
    assert {c.protocol for c in cells if c.model != "mips"} == {"strict"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["colour=red"], 2, "colour"),
        (["protocol=best"], 2, "protocol=best must be one of strict, paper"),
        (["properties=[tg]"], 2, "no 'tg'; choose of egc, egb"),
        (["input=my.csv"], 2, "go together"),
        (["input=my.csv", "targets=[a b,a_b]"], 2, "would share a model folder (a_b); rename"),
        (["input=none.csv", "targets=[a]"], 1, "no file none.csv"),
        (["input={csv}", "targets=[a]"], 2, "has no column a; its columns are: id, psmiles, tg_K"),
        (
            ["input={csv}", "targets=[tg_K]", "num_folds=30"],
            1,
            "40 polymers; num_folds=30 needs 60",
        ),
        (["input={csv}", "targets=[tg_K]", "pretrained=none"], 1, "none is no model directory"),
        (["input={csv}", "targets=[tg_K]", "run_dir={folder}"], 1, "something else than a study"),
        ([], 1, "`python -m preprocess.corpus fetch benchmark output=FOLDER` and give data_dir="),
        (["data_dir=none"], 1, "no file none/Egc.csv; fetch the eight sets with `python -m"),
    ],
)
def test_wrong_input_is_one_line(arguments, code, message, own_csv, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MIPS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    own_csv.rename("my.csv")
    filled = [a.format(csv="my.csv", folder=tmp_path) for a in arguments]
    assert run(main, FinetuneConfig, "finetune", filled) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def wait_for_lines(path: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "the driver ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_killed_driver_continues_with_the_same_command(own_csv, tmp_path):
    # By path, as the README has it, with the features made by the preprocessing application.
    run_dir = tmp_path / "run"
    command = [
        sys.executable, str(ENTRY), f"run_dir='{run_dir}'", f"input='{own_csv}'",
        "targets=[tg_K,other one]", "units=[K,m]", "baselines=[mean]", "num_folds=3", *TINY,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w") as log:
        driver = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        wait_for_lines(run_dir / "ledger.jsonl", 3, driver)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    before = (run_dir / "ledger.jsonl").read_bytes()
    finished = before[: before.rfind(b"\n") + 1]
    assert finished.count(b"\n") < 12

    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = (run_dir / "ledger.jsonl").read_bytes()
    assert after.startswith(finished)
    lines = [json.loads(line) for line in after.splitlines()]
    cells = [(r["model"], r["property"], r["fold"]) for r in lines]
    assert len(cells) == len(set(cells)) == 2 * 3 * 2
    with open(run_dir / "results.csv") as file:
        assert len(list(csv.DictReader(file))) == 12
    assert f"{len(finished.splitlines())} finished before" in done.stdout
    assert "2 rows could not be used" in done.stdout
    assert len(list((run_dir / "tensorboard").glob("*/events*"))) == 6

    # The model that is left predicts what a training with the same arguments predicts.
    check_model(run_dir, own_csv)

    start = time.monotonic()
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0
    assert (run_dir / "ledger.jsonl").read_bytes() == after
    assert time.monotonic() - start < 60


def check_model(run_dir: Path, own_csv: Path) -> None:
    bundle = load_bundle(model_dir(run_dir, "tg_K"), known_schema())
    assert bundle.scaler is not None
    assert (bundle.scaler["property"], bundle.scaler["unit"]) == ("tg_K", "K")
    assert bundle.metrics["protocol"] == "strict"
    config = FinetuneConfig(
        model=bundle.model.config, num_epochs=2, input=str(own_csv),
        targets=["tg_K", "other one"], units=["K", "m"], run_dir=str(run_dir), num_folds=3,
    )  # fmt: skip
    study = study_of(config)
    rows = study.rows["tg_K"]
    epochs = bundle.metrics["num_epochs"]
    (fitted,) = finetune_all(config, study.block, [rows], [epochs], 0)
    saved = FittedModel(bundle.model, fitted.scaler, epochs, [])
    assert fitted.scaler.mean == bundle.scaler["mean"]
    expected = predict(fitted, study.block, rows.sample)
    assert np.array_equal(predict(saved, study.block, rows.sample), expected)
