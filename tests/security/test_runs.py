"""Run folders that a stranger made or changed: checkpoints whose sums agree, ledgers, settings.

Damage that is an accident: tests/train/test_checkpoint.py, tests/finetune/test_report.py. Hostile
names on pages: tests/finetune/test_report.py, tests/train/test_report_kinds.py.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mips_dist.data.files import file_sha256
from mips_dist.errors import MipsError
from mips_dist.train import checkpoint
from mips_dist.train.results import read_lines
from mips_dist.use.report.folder import read_config, read_folder
from tests.security.commands import pickled, refused, run
from tests.shard_folder import write_shards
from tests.train.test_checkpoint import write

DEEP = "[" * 100_000


def forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the state of a checkpoint, and let all its sums agree."""
    path = folder / "state.json"
    body = json.loads(path.read_text())
    del body["sha256"]
    for name in body["files"]:
        if (folder / name).is_file():
            body["files"][name] = file_sha256(folder / name)
    change(body)
    path.write_text(json.dumps({"sha256": checkpoint._digest(body), **body}))


PASSWD = {"../../../../../../etc/passwd": file_sha256(Path("/etc/passwd"))}
CHECKPOINTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "files elsewhere": lambda body: body.update(files=PASSWD),
    "more files": lambda body: body["files"].update(PASSWD),
    "no files": lambda body: body.update(files=[]),
    "another step": lambda body: body.update(step=10**9),
    "a step in words": lambda body: body.update(step="../10"),
    "a state that is a list": lambda body: body.update(state=[]),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_lies_is_named_and_the_one_before_is_used(tmp_path, name):
    write(tmp_path, 5, 10)
    forge(tmp_path / "step-00000010", CHECKPOINTS[name])
    lines: list[str] = []
    found = checkpoint.find_newest(tmp_path, lines.append)
    assert found is not None
    assert (found.step, len(lines)) == (5, 1)
    assert "step-00000010 is damaged" in lines[0]
    assert "\n" not in lines[0]


@pytest.mark.parametrize("data", [pickled(), (2**62).to_bytes(8, "little") + b"{}", b""])
def test_weights_that_are_none(tmp_path, data):
    write(tmp_path, 5, 10)
    (tmp_path / "step-00000010" / "weights.safetensors").write_bytes(data)
    forge(tmp_path / "step-00000010", lambda body: None)
    lines: list[str] = []
    found = checkpoint.find_newest(tmp_path, lines.append)
    assert found is not None
    assert (found.step, len(lines)) == (5, 1)


@pytest.mark.parametrize("text", [DEEP, "[1]", '"x"', "!!python/object/apply:os.system [ls]"])
def test_a_state_that_is_none(tmp_path, text):
    write(tmp_path, 5)
    (tmp_path / "step-00000005" / "state.json").write_text(text)
    with pytest.raises(MipsError, match="no checkpoint in"):
        checkpoint.find_newest(tmp_path, lambda line: None)


def test_pretraining_says_one_line(tmp_path):
    write_shards(tmp_path / "shards", 24)
    command = ["mips_dist.pretrain", "shards=shards", "run_dir=run", "model=debug"]
    command += ["model.descriptors=[]", "global_batch_size=8", "checkpoint_every=1"]
    done = run(tmp_path, *command, "num_steps=1")
    assert done.returncode == 0, done.stderr
    newest = tmp_path / "run" / "checkpoints" / "step-00000001"
    forge(newest, lambda body: body["state"]["train"].update(_target_="os.system"))
    done = run(tmp_path, *command, "num_steps=2")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "does not hold the state of this run" in line
    path = tmp_path / "run" / "config.yaml"
    path.write_text("seed: !!python/object/apply:os.system ['touch canary']\n")
    assert "config.yaml cannot be read" in refused(tmp_path, *command, "num_steps=2")
    assert not (tmp_path / "canary").exists()


GOOD = {
    **{"model": "mips", "property": "egc", "fold": 0, "seed": 0, "protocol": "strict"},
    **{"r2": 0.5, "rmse": 1.0, "mae": 1.0, "unit": "eV", "num_train": 10},
}


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(GOOD | {"fold": "../../x"}),
        json.dumps(GOOD | {"r2": {"_target_": "os.system"}}),
        json.dumps(GOOD | {"curve": [{"train_loss": "x"}]}),
        json.dumps(GOOD | {"row": [1, 2], "prediction": [1.0]}),
        json.dumps(GOOD | {"__class__": "os.system"}),
        DEEP,
        pickled().replace(b"\n", b"").decode("latin-1"),
        "!!python/object/apply:os.system ['touch canary']",
    ],
)
def test_a_line_of_a_ledger_that_is_none(tmp_path, line):
    assert read_lines(json.dumps(GOOD).encode() + b"\n", tmp_path / "ledger.jsonl")
    with pytest.raises(MipsError, match="line 1, is damaged") as caught:
        read_lines(line.encode() + b"\n", tmp_path / "ledger.jsonl")
    assert "\n" not in str(caught.value)


SETTINGS = {
    **{"seeds": [0], "num_folds": 5, "protocol": "strict", "baselines": []},
    **{"properties": ["egc"], "run_dir": "x"},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_folds": 10**12},
        {"num_folds": "5"},
        {"seeds": "all"},
        {"properties": ["../../../../etc/passwd"]},
        {"properties": 7},
        {"input": "x.csv"},
    ],
)
def test_settings_of_a_study_that_are_none(tmp_path, changes):
    (tmp_path / "ledger.jsonl").write_text(json.dumps(GOOD) + "\n")
    (tmp_path / "folds.csv").write_text("property,row,fold,sha256\negc,0,0,x\n")
    (tmp_path / "config.yaml").write_text(json.dumps(SETTINGS))
    assert read_folder(tmp_path).results
    (tmp_path / "config.yaml").write_text(json.dumps(SETTINGS | changes))
    with pytest.raises(MipsError) as caught:
        read_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_settings_look_up_nothing_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "canary-of-the-environment")
    (tmp_path / "config.yaml").write_text("seeds: [0]\nprotocol: ${oc.env:SECRET}\n")
    assert read_config(tmp_path / "config.yaml", ("seeds",))["protocol"] == "${oc.env:SECRET}"


def test_the_report_says_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.jsonl").write_text(json.dumps(GOOD) + "\n")
    settings = tmp_path / "run" / "config.yaml"
    settings.write_text("seeds: !!python/object/apply:os.system ['touch canary']\n")
    assert "config.yaml cannot be read" in refused(tmp_path, "mips", "report", "run")
