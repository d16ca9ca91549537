"""A study on s3, its driver killed, goes on where nothing of it is known and redoes no fold."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mips_dist.data.generations import Damaged, History
from mips_dist.model.released import model_directory
from tests.preprocess.servers import s3_file_system

pytest.importorskip("moto")
pytest.importorskip("s3fs")

ROOT = Path(__file__).resolve().parents[2]
URL = "s3://bucket/study"
COMMAND = [
    sys.executable,
    str(ROOT / "mips_dist/finetune.py"),
    "input=s3://bucket/labels.csv",
    "targets=[tg_K]",
    "model=small",
    "model.descriptors=[rdkit_2d]",
    "pretrained=s3://bucket/mips-small",
    "num_epochs=6",
    "num_folds=5",
    "num_workers=1",
    "baselines=[mean]",
]


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3_file_system() as system:
        system.mkdir("bucket")
        lines = (ROOT / "examples/glass_transition.csv").read_bytes().splitlines(keepends=True)
        system.pipe_file("bucket/labels.csv", b"".join(lines[:61]))
        for path in model_directory("mips-small").iterdir():
            system.put_file(str(path), f"bucket/mips-small/{path.name}")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        yield system


def ledger(system: Any) -> list[bytes]:
    """Return the lines of the ledger in the newest state."""
    history = History(URL)
    while number := history.newest():
        try:
            entry = history.read(number).files.get("ledger.jsonl")
            names = [f"bucket/study/.state/parts/{part}" for part in entry.parts] if entry else []
            return b"".join(system.cat_file(name) for name in names).splitlines()
        except (Damaged, FileNotFoundError):  # newer ones have come meanwhile
            system.invalidate_cache()
    return []


def test_a_killed_study_goes_on_from_an_empty_disk(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIPS_SCRATCH", str(tmp_path / "first"))
    argv = [*COMMAND, f"run_dir={URL}"]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 400
        while not ledger(s3):
            assert driver.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        for process in family:  # a machine that is switched off
            if process.is_running():
                process.kill()
    before = ledger(s3)
    assert 0 < len(before) < 10
    shutil.rmtree(tmp_path / "first")

    monkeypatch.setenv("MIPS_SCRATCH", str(tmp_path / "second"))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} finished before" in done.stdout
    after = ledger(s3)
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 10
    s3.invalidate_cache()
    table = s3.cat_file("bucket/study/results.csv").decode().splitlines()
    assert len(list(csv.DictReader(table))) == 10
    config = s3.cat_file("bucket/study/config.yaml").decode()
    assert f"run_dir: {URL}" in config
    assert not any(os.environ["AWS_SECRET_ACCESS_KEY"] in text for text in (config, done.stdout))

    mips = [str(Path(sys.executable).with_name("mips")), "predict", "*CC*"]
    said = subprocess.run(
        [*mips, "-m", f"{URL}/models/tg_K"], capture_output=True, text=True, timeout=200
    )
    assert said.returncode == 0, said.stderr
    assert "tg_K" in said.stdout
    gone = subprocess.run([*mips, "-m", f"{URL}/nothing"], capture_output=True, text=True)
    assert gone.returncode == 1
    assert gone.stderr.count("\n") == 1
    assert f"error: no file {URL}/nothing/config.json" in gone.stderr
