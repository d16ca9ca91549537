"""One server for all tests of serving: two replicas, two small models, started as a user does."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import psutil
import pytest

from mips_dist.data.schema import feature_schema
from mips_dist.model.bundle import save_bundle
from tests.model.hand import property_model

POISON = Path(__file__).parent / "poison"


def save(directory: Path, name: str, unit: str) -> Path:
    save_bundle(
        directory,
        property_model(descriptors=[]),
        feature_schema=feature_schema(2, []),
        metrics={"cross_validated_r2": 0.5, "cross_validated_rmse": 0.25, "protocol": "strict"},
        trained_on="A test.",
        scaler={"property": name, "unit": unit, "mean": 4.5, "std": 1.5},
    )
    return directory


@dataclass
class Server:
    """A running `mips serve`, and what it was started with."""

    process: subprocess.Popen[str]
    url: str
    models: list[Path]

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        """Return status, headers (small letters) and text; `body` is JSON, or bytes as they are."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if data is not None else {}
        request = urllib.request.Request(self.url + path, data, kind | (headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                return answer.status, lower(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, lower(error.headers), error.read().decode()

    def predict(self, texts: list[str], properties: list[str] | None = None) -> list[Any]:
        """Return the rows of a request that must succeed."""
        status, _, text = self.ask("/predict", {"psmiles": texts, "properties": properties})
        assert status == 200, text
        return json.loads(text)["rows"]

    def replicas(self) -> list[psutil.Process]:
        """Return the processes of the replicas that hold models."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in found if "ServeReplica:mips:models" in " ".join(p.cmdline())]


def lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("served")
    return [save(folder / "a", "egc", "eV"), save(folder / "b", "nc", "1")]


@pytest.fixture(scope="session")
def server(model_dirs: list[Path]) -> Iterator[Server]:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra [serve])")
    port = free_port()
    path = os.pathsep.join([str(POISON), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:  # short, for Ray's sockets
        command = [sys.executable, "-m", "mips_dist.cli", "serve", "--port", str(port)]
        command += ["--replicas", "2", *(part for d in model_dirs for part in ("-m", str(d)))]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "TMPDIR": temporary},
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line.startswith("serving egc, nc at "):
            process.kill()
            pytest.fail(line + process.stderr.read())
        server = Server(process, f"http://127.0.0.1:{port}", model_dirs)
        yield server
        children = psutil.Process(process.pid).children(recursive=True)
        # Ctrl-C in a terminal goes to every process of the group; the command alone answers it.
        for child in children:
            if os.getpgid(child.pid) == process.pid:
                child.send_signal(signal.SIGINT)
        assert server.ask("/ready")[0] == 200
        process.terminate()
        assert process.wait(60) == 130
        assert (process.stdout.read(), process.stderr.read()) == ("", "")
        assert os.listdir(temporary) == []
        end = time.monotonic() + 30
        while (left := [p for p in children if p.is_running()]) and time.monotonic() < end:
            time.sleep(0.2)
        assert not left
