"""`mips doctor` on faults that are really there; each is one line with its remedy."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mips_dist.doctor.finding import Probe
from tests.cluster.rules import ROOT
from tests.finetune.test_cluster import cluster, free_port  # noqa: F401  (a fixture)

STATES = {"ok", "warning", "problem", "unchecked"}
Doctor = Callable[..., tuple[int, list[dict[str, str]]]]


@pytest.fixture
def quiet(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has set up nothing yet."""
    dropped = ("RAY_", "MIPS_", "TORCH_", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    (tmp_path / "home").mkdir()
    own = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"HOME": str(tmp_path / "home"), "PATH": own}


@pytest.fixture
def doctor(tmp_path: Path, quiet: dict[str, str]) -> Doctor:
    """Run the command; return its exit code and its findings, which are what it printed."""

    def run(*arguments: str, preexec: Any = None, **environment: str) -> tuple[int, list[Any]]:
        made = tmp_path / "findings.json"
        command = [sys.executable, "-m", "mips_dist.cli", "doctor", *arguments, "--json", made]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=quiet | environment,
            preexec_fn=preexec,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.stderr == ""
        findings = json.loads(made.read_text())
        *lines, last = done.stdout.splitlines()
        assert last.endswith("warnings")
        assert len(lines) == len(findings)
        for line, finding in zip(lines, findings, strict=True):
            assert line.split()[:2] == [finding["state"], finding["what"]]
            assert finding["state"] in STATES
            assert finding["remedy"] or finding["state"] in ("ok", "unchecked")
        is_ill = any(finding["state"] == "problem" for finding in findings)
        assert done.returncode == int(is_ill)
        return done.returncode, findings

    return run


def problems(findings: list[dict[str, str]]) -> dict[str, str]:
    return {f["what"]: f"{f['seen']}; {f['remedy']}" for f in findings if f["state"] == "problem"}


def test_a_quiet_machine(doctor):
    code, findings = doctor()
    assert (code, problems(findings)) == (0, {})
    seen = {finding["what"]: finding for finding in findings}
    looked_at = {"versions", "cores", "memory", "shm", "files", "disk", "locks", "gpu"}
    assert looked_at <= set(seen)
    assert "requirements.lock" in seen["versions"]["seen"]
    assert str(len(os.sched_getaffinity(0))) in seen["cores"]["seen"]
    assert (seen["ray"]["state"], seen["hosts"]["state"]) == ("unchecked", "unchecked")


def test_a_machine_of_many_faults(doctor, tmp_path, quiet):
    """They are independent, and each costs a process: made together, found together."""
    info = tmp_path / "path" / "numpy-0.0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    stale = tmp_path / "extensions" / "py311_cpu" / "cpu_adam" / "lock"
    stale.parent.mkdir(parents=True)
    stale.touch()
    (tmp_path / "thesis").write_text("...")
    token = tmp_path / "home" / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("x" * 64)
    token.chmod(0o644)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 580.65.06\n")
    (tools / "nvidia-smi").chmod(0o755)
    port = free_port()
    code, findings = doctor(
        "thesis",
        preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
        PYTHONPATH=os.pathsep.join([str(info.parent), str(ROOT)]),
        TORCH_EXTENSIONS_DIR=str(tmp_path / "extensions"),
        RAY_ADDRESS=f"127.0.0.1:{port}",
        PATH=f"{tools}{os.pathsep}{quiet['PATH']}",
    )
    assert code == 1
    found = problems(findings)
    assert "numpy 0.0.1 instead of" in found["versions"]
    assert "cluster/setup.sh" in found["versions"]
    assert "256 open files" in found["files"]
    assert "is a file; give another folder" in found["disk"]
    assert f"rm {stale}" in found["locks"]
    assert f"chmod 600 {token}" in found["token"]
    assert f"nobody answers at RAY_ADDRESS=127.0.0.1:{port}" in found["ray"]
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        assert "driver 580.65.06 is there, but torch" in found["gpu"]


def probe(name: str, *arguments: str) -> list[Any]:
    return Probe(name, *arguments, seconds=60).findings()


def test_a_lock_that_a_build_holds_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    lock = tmp_path / "run" / ".build" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    build = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); time.sleep(600)"
    builder = subprocess.Popen([sys.executable, "-c", build, str(lock)])
    try:
        deadline = time.monotonic() + 60
        while not lock.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        states = {f.what: f.state for f in probe("builds", str(tmp_path))}
        assert states["locks"] == "ok"
    finally:
        builder.kill()
        builder.wait()
    (found,) = [f for f in probe("builds", str(tmp_path)) if f.what == "locks"]
    assert (found.state, str(lock) in found.remedy) == ("problem", True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    (found,) = probe("disk", str(small_disk / "runs"))
    assert (found.state, "No space left" in found.seen) == ("problem", True)
    assert list(small_disk.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    (found,) = probe("disk", str(small_disk))
    assert (found.state, "Read-only" in found.seen) == ("problem", True)


def test_what_does_not_answer_costs_one_line(monkeypatch):
    """A Ray that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 64)
        (found,) = probe("ray")
        assert (found.state, "is no Ray" in found.seen) == ("problem", True)
        start = time.monotonic()
        (found,) = Probe("ray", seconds=0.2).findings()
        assert (found.state, "no answer within 0.2 s" in found.seen) == ("problem", True)
        assert time.monotonic() - start < 30


def test_what_crashes_costs_one_line():
    (found,) = probe("disc")
    assert (found.state, "exit code 1" in found.seen) == ("problem", True)
    assert "KeyError: 'disc'" in found.seen


@pytest.mark.parametrize("names", ["-oProxyCommand=touch\tcanary", "a;b", "$(true)"])
def test_a_name_of_a_host_is_no_option_and_no_command(tmp_path, quiet, names):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text(names + " slots=1\n")
    for given in (["--hosts", names], ["--hostfile", str(hostfile)]):
        command = [sys.executable, "-m", "mips_dist.cli", "doctor", *given]
        done = subprocess.run(command, cwd=tmp_path, env=quiet, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "is no name of a host" in done.stderr
    assert not (tmp_path / "canary").exists()


def test_a_cluster_and_its_token(cluster, tmp_path, monkeypatch):  # noqa: F811
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    for name, value in cluster.items():
        if name.startswith("RAY_"):
            monkeypatch.setenv(name, value)
    states = {finding.what: finding.state for finding in probe("ray")}
    assert states == {"token": "ok", "ray": "ok", "host": "ok", "links": "unchecked"}

    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("f" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(wrong))
    *_, found = probe("ray")
    assert (found.state, found.what, "refuses ours" in found.seen) == ("problem", "token", True)
    wrong.unlink()
    (found,) = probe("ray")
    assert (found.state, "there is none here" in found.seen) == ("problem", True)
