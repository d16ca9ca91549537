"""Shards made behind a URL are those of a local folder, whatever dies and wherever it goes on."""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mips_dist.data.shards import load, read_manifest
from preprocess import pipeline
from tests.preprocess.inline import InlinePool
from tests.preprocess.servers import s3_file_system
from tests.preprocess.test_pipeline import command, contents, corpus, in_process

pytest.importorskip("moto")
pytest.importorskip("s3fs")

URL = "s3://bucket/shards"
SECRET = "hush-hush"


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3_file_system() as system:
        system.mkdir("bucket")
        on_host(monkeypatch, tmp_path / "scratch")
        yield system


def on_host(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    """Let what follows happen on a machine whose disk is this folder."""
    monkeypatch.setenv("MIPS_SCRATCH", str(scratch))


def published(system: Any, url: str = URL) -> dict[str, bytes]:
    """Return what others find below a URL."""
    system.invalidate_cache()
    top = system._strip_protocol(url)
    names = [name.removeprefix(f"{top}/") for name in system.find(top)]
    seen = {name: system.cat_file(f"{top}/{name}") for name in names if name[0] != "."}
    return {name: data for name, data in seen.items() if name not in ("log.json", "card.html")}


def test_shards_at_s3_are_those_of_a_local_folder(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "WorkerPool", InlinePool)
    monkeypatch.setattr(pipeline, "CHUNK_SIZE", 10)
    monkeypatch.setitem(pipeline.BLOCKS_PER_SHARD, "topology", 2)
    source = corpus(tmp_path / "in.csv", 120)
    assert in_process(source, tmp_path / "local") == 0
    assert in_process(source, URL) == 0
    local = contents(tmp_path / "local")
    assert published(s3) == local
    assert sum(name.endswith(".tar") for name in local) > 2
    assert read_manifest(URL) == read_manifest(tmp_path / "local")
    assert load(URL).psmiles == load(tmp_path / "local").psmiles

    # Typed again, here and where nothing of it is known, it changes nothing.
    before = s3.find("bucket")
    for scratch in ("scratch", "elsewhere"):
        on_host(monkeypatch, tmp_path / scratch)
        capsys.readouterr()
        assert in_process(source, URL) == 0
        assert f"{URL} is finished already" in capsys.readouterr().out
    s3.invalidate_cache()
    assert s3.find("bucket") == before
    assert in_process(source, URL, "max_hops=3") == 1
    assert "belongs to another run: max_hops is 2 there and 3 here" in capsys.readouterr().err


def test_killed_at_random_and_continued_on_empty_disks(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    source = corpus(tmp_path / "in.csv", 120)
    script = tmp_path / "small_pieces.py"
    script.write_text(
        "import sys\n"
        "from preprocess import pipeline\n"
        "from preprocess.__main__ import main\n"
        "from tests.preprocess.inline import InlinePool\n"
        "pipeline.WorkerPool, pipeline.CHUNK_SIZE = InlinePool, 10\n"
        "pipeline.BLOCKS_PER_SHARD['topology'] = 1\n"
        "pipeline._SECONDS_BETWEEN_PUSHES = 0.0\n"
        "sys.exit(main())\n"
    )
    argv = command(source, URL, "content=topology")
    argv[1:3] = [str(script)]  # type: ignore[list-item]
    chance = random.Random(0)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    states = [0]
    for host in range(3):
        environment["MIPS_SCRATCH"] = str(tmp_path / f"host{host}")
        with (tmp_path / "log").open("a") as log:
            process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
        while newest(s3) <= states[-1] and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.3))
        process.kill()
        process.wait()
        states.append(newest(s3))
    assert states[-1] > states[1]
    environment["MIPS_SCRATCH"] = str(tmp_path / "last")
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    local = command(source, tmp_path / "local", "content=topology")
    local[1:3] = [str(script)]  # type: ignore[list-item]
    subprocess.run(local, env=environment, capture_output=True, check=True, timeout=240)
    assert published(s3) == contents(tmp_path / "local")
    said = (tmp_path / "log").read_text() + done.stdout + done.stderr
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    written += [s3.cat_file(name) for name in s3.find("bucket")]
    assert not any(SECRET.encode() in data for data in [*written, said.encode()])


def newest(system: Any) -> int:
    """Return the number of the newest state."""
    system.invalidate_cache()
    try:
        names = system.ls("bucket/shards/.state", detail=False)
    except FileNotFoundError:
        return 0
    return max((int(n[-13:-5]) for n in names if n.endswith(".json")), default=0)
