"""A run on s3, killed, goes on where nothing of it is known, with the curve of a local one."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mips_dist.data.generations import Damaged, History
from tests.distributed.conftest import PRETRAIN, TINY, command, curve, environment, pretrain
from tests.preprocess.servers import s3_file_system

pytest.importorskip("moto")
pytest.importorskip("s3fs")

URL = "s3://bucket/run"
REST = ("num_steps=40", "zero.stage=2")


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3_file_system() as system:
        system.mkdir("bucket")
        monkeypatch.setenv("MIPS_SCRATCH", str(tmp_path / "first"))
        yield system


def checkpoints() -> list[str]:
    """Return the checkpoints of the newest state."""
    history = History(URL)
    while number := history.newest():
        try:
            files = history.read(number).files
        except Damaged:  # newer ones have come meanwhile
            continue
        return sorted({name.split("/")[1] for name in files if name.startswith("checkpoints/")})
    return []


def test_a_killed_run_goes_on_from_an_empty_disk(
    s3: Any, full_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (f"shards={full_shards}", f"run_dir={URL}", *REST)
    argv = command(PRETRAIN, *TINY, *arguments)
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(argv, env=environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while len(checkpoints()) < 2:
            assert run.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert checkpoints()[-1] < "step-00000040", "the run was finished before the kill"

    monkeypatch.setenv("MIPS_SCRATCH", str(tmp_path / "second"))
    done = pretrain(*arguments)
    assert done.code == 0, done.err
    assert f"model: {URL}/model" in done.out
    local = pretrain(f"shards={full_shards}", f"run_dir={tmp_path / 'local'}", *REST)
    assert local.code == 0, local.err
    s3.invalidate_cache()
    s3.get("bucket/run/tensorboard", str(tmp_path / "found" / "tensorboard"), recursive=True)
    assert curve(tmp_path / "found") == curve(tmp_path / "local")
    assert list(curve(tmp_path / "found")) == list(range(1, 41))
    for name in ("weights.safetensors", "config.json", "metrics.json"):
        local_file = tmp_path / "local" / "model" / name
        assert s3.cat_file(f"bucket/run/model/{name}") == local_file.read_bytes()
    assert not s3.exists("bucket/run/checkpoints")

    monkeypatch.setenv("MIPS_SCRATCH", str(tmp_path / "third"))
    again = pretrain(*arguments)
    assert again.code == 0
    assert f"run_dir={URL} is finished: 40 steps, model {URL}/model" in again.out
