"""Secrets of the environment are in no file and no line, and a Ray of our own leaves none."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.commands import run, tree

CANARIES = {
    "AWS_ACCESS_KEY_ID": "canary" + secrets.token_hex(8),
    "AWS_SECRET_ACCESS_KEY": "canary" + secrets.token_hex(20),
    "AWS_SESSION_TOKEN": "canary" + secrets.token_hex(20),
    "HF_TOKEN": "canary" + secrets.token_hex(20),
}
TOKEN = secrets.token_hex(32)
PRETRAIN = ["model=debug", "model.descriptors=[]", "num_steps=2", "global_batch_size=4"]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: paths of sockets are
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def found_in(folder: Path, words: list[str]) -> list[str]:
    """Files below a folder that hold one of these words, or have it in their name."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert paths
    return [
        str(path)
        for path in paths
        if any(word.encode() in path.read_bytes() or word in path.name for word in words)
    ]


@pytest.mark.parametrize("given", ["a token of the user", "no token"])
def test_no_secret_is_written_or_said(tmp_path: Path, ray_folder: Path, given: str) -> None:
    (tmp_path / "in.csv").write_text("psmiles\n" + "".join(f"*{'C' * n}O*\n" for n in range(1, 9)))
    (tmp_path / "home").mkdir()
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN} if given != "no token" else {}
    environment = CANARIES | own | {"HOME": str(tmp_path / "home"), "RAY_TMPDIR": str(ray_folder)}
    commands = [["preprocess", "input=in.csv", "output=shards", "content=topology", "num_actors=1"]]
    if own:
        commands.append(["mips_dist.pretrain", "shards=shards", "run_dir=run", *PRETRAIN])
        commands.append(["mips", "report", "run"])
    said = ""
    for command in commands:
        done = run(tmp_path, *command, **environment)
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
    words = [*CANARIES.values(), TOKEN]
    assert not [word for word in words if word in said]
    assert found_in(tmp_path, words) == []
    assert found_in(ray_folder, words) == []
    # Ray would leave a token there, which everyone may read.
    assert tree(tmp_path / "home") == {}


def test_a_secret_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\0key=" + TOKEN.encode())
    assert found_in(tmp_path, [TOKEN]) == [str(tmp_path / "log")]
