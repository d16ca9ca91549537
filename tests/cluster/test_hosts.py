"""Hosts for drills are hosts: an own network, own processes, own power switch."""

import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hosts import Hosts


def on(
    hosts: "Hosts", name: str, *words: str, **options: Any
) -> "subprocess.CompletedProcess[str]":
    options = {"check": False, "capture_output": True, "timeout": 60} | options
    return hosts.run(name, list(words), **options)


def test_hosts(hosts):
    ssh = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5")
    assert on(hosts, "h1", *ssh, "h2", "hostname").stdout == "h2\n"
    assert on(hosts, "h2", *ssh, hosts.address("h1"), "hostname").stdout == "h1\n"

    hosts.cut("h2")
    assert on(hosts, "h1", *ssh, "h2", "true").returncode == 255
    hosts.heal("h2")
    assert on(hosts, "h1", *ssh, "h2", "true").returncode == 0

    # Processes of a host are seen from there alone, and end with it.
    process = hosts.start("h2", ["sleep", "600"])
    deadline = time.monotonic() + 30  # it enters the host before it is what it was asked to be
    while "sleep 600" not in on(hosts, "h2", "ps", "ax").stdout:
        assert time.monotonic() < deadline, "the process does not start"
    assert "sleep 600" not in on(hosts, "h1", "ps", "ax").stdout
    hosts.kill("h2")
    assert process.wait(10) != 0
    assert not hosts.is_on("h2")
    assert on(hosts, "h1", *ssh, "h2", "true").returncode == 255
    hosts.boot("h2")
    assert on(hosts, "h1", *ssh, "h2", "hostname").stdout == "h2\n"
