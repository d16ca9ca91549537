"""A study on a Ray that was started by others, named by RAY_ADDRESS, with its token."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")
COMMAND = [
    sys.executable,
    str(ROOT / "mips_dist/finetune.py"),
    f"input={ROOT / 'examples/glass_transition.csv'}",
    "targets=[tg_K]",
    "model.descriptors=[]",
    "num_epochs=1",
    "num_folds=2",
    "baselines=[mean]",
]
TOKEN = "5" * 64


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment() -> dict[str, str]:
    """Ours, with all that cluster/ray.env sets, and nothing that names a cluster."""
    script = "unset RAY_ADDRESS RAY_AUTH_TOKEN; . cluster/ray.env; env -0"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line)


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Yield the environment of a driver of a cluster that runs in a folder of its own."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: the paths of sockets are
    token = Path(folder) / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    environment = clean_environment() | {"RAY_AUTH_TOKEN_PATH": str(token)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    port = free_port()
    words = ["start", "--block", "--head", "--node-ip-address=127.0.0.1", f"--port={port}"]
    words += [f"--ray-client-server-port={free_port()}", "--include-dashboard=false"]
    words += ["--min-worker-port=0", "--max-worker-port=0", "--num-cpus=2"]
    words += ["--object-store-memory=100000000", f"--temp-dir={folder}"]
    said = Path(folder) / "log"
    with said.open("wb") as log:
        head = subprocess.Popen(
            [RAY, *words],
            env=environment,
            cwd=folder,  # where its workers stand; a study's relative paths are not from there
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 120
            while "Ray runtime started" not in said.read_text():
                assert head.poll() is None, said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.2)
            yield environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        finally:
            head.terminate()
            try:
                head.wait(30)
            finally:
                if head.poll() is None:
                    os.killpg(head.pid, signal.SIGKILL)
                shutil.rmtree(folder, ignore_errors=True)


def run(
    words: list[str], environment: dict[str, str], folder: Path
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *words], env=environment, cwd=folder, capture_output=True, text=True, timeout=550
    )


@pytest.fixture(scope="module")
def there(cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study on the cluster, which also made its shards."""
    folder = tmp_path_factory.mktemp("there")
    done = run(["run_dir=run"], cluster, folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_study_on_a_cluster_is_that_of_one_machine(cluster, there, tmp_path):
    # The token of a cluster may be named where none is used: a Ray of our own has its own.
    kept = cluster.keys() - {"RAY_ADDRESS", "RAY_AUTH_MODE"}
    alone = {name: cluster[name] for name in kept}
    done = run(["run_dir=run", f"shards={there / 'shards'}"], alone, tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("results.csv", "models/tg_K/weights.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (there / name).read_bytes()
    # Nothing of Ray is left in the folder.
    assert not {".ray", ".tune"} & {path.name for path in there.iterdir()}


def test_another_token_is_one_line(cluster, there, tmp_path):
    token = tmp_path / "token"
    token.write_text("6" * 64)
    other = cluster | {"RAY_AUTH_TOKEN_PATH": str(token)}
    done = run(["run_dir=run", f"shards={there / 'shards'}"], other, tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]  # after what Ray says
    assert last.startswith("error: no Ray at RAY_ADDRESS=127.0.0.1:"), done.stderr
    assert "look at the address, at the token" in last
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_share_that_no_node_has_is_one_line(cluster, there, tmp_path):
    words = ["run_dir=run", f"shards={there / 'shards'}", "cpus_per_trial=3"]
    done = run(words, cluster, tmp_path)
    assert done.returncode == 1
    assert "cpus_per_trial=3, but Ray sees 2 CPUs on its largest node" in done.stderr
