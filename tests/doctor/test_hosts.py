"""`mips doctor` on two hosts: in order, behind a firewall, with a cut cable."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import hosts  # noqa: F401  (a fixture)
from tests.cluster.rules import ROOT
from tests.cluster.test_hosts import on

# All but ssh, as a security group that nobody has opened.
FIREWALL = """
table inet closed {
  chain in { type filter hook input priority 0; iifname eth0 ct state new tcp dport != 22 drop; }
}
"""


def look(hosts, tmp_path: Path) -> tuple[int, dict[str, list[dict[str, str]]]]:  # noqa: F811
    """Run the command on the first host; return its exit code, and findings by what they are of."""
    made = tmp_path / "findings.json"
    (tmp_path / "home").mkdir(exist_ok=True)
    own = [f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}", f"PYTHONPATH={ROOT}"]
    # ssh reads the keys of root wherever HOME is.
    command = ["env", "-u", "RAY_ADDRESS", *own, f"HOME={tmp_path / 'home'}", sys.executable]
    command += ["-m", "mips_dist.cli", "doctor", "--hosts", "h1,h2", "--json", str(made)]
    done = on(hosts, "h1", *command, timeout=250)
    assert done.stderr == ""
    found: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(made.read_text()):
        found.setdefault(finding["what"], []).append(finding)
    return done.returncode, found


def test_two_hosts(hosts, tmp_path):  # noqa: F811
    code, found = look(hosts, tmp_path)
    assert code == 0
    assert [f["seen"].partition(":")[0] for f in found["host"]] == ["h1", "h2"]
    for what in ("clock", "links", "gloo"):
        assert [f["state"] for f in found[what]] == ["ok"], found[what]
    assert "all 2 ways between 2 hosts" in found["links"][0]["seen"]


@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft (apt-get install nftables)")
def test_a_firewall(hosts, tmp_path):  # noqa: F811
    on(hosts, "h2", "nft", FIREWALL, check=True)
    try:
        code, found = look(hosts, tmp_path)
    finally:
        on(hosts, "h2", "nft", "delete table inet closed", check=True)
    assert code == 1
    (link,) = found["links"]
    assert "h1 does not reach h2" in link["seen"]
    assert "open all ports" in link["remedy"]
    assert found["gloo"][0]["state"] == "unchecked"


def test_a_cut_cable(hosts, tmp_path):  # noqa: F811
    hosts.cut("h2")
    try:
        code, found = look(hosts, tmp_path)
    finally:
        hosts.heal("h2")
    assert code == 1
    assert [f["seen"][:7] for f in found["host"] if f["state"] == "problem"] == ["h2: ssh"]
    assert found["links"][0]["state"] == "unchecked"
