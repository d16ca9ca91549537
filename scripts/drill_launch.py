"""Drill of cluster_drill.py --launch: `ray up` with cluster/ray/on_premises.yaml over three hosts.

h1, h2 and h3 are the cluster, each with a home of its own, where `ray up` puts the code and where
cluster/setup.sh installs all that requirements.lock names: three times 4 GB and some minutes. Hosts
have no way out to a package index, so this machine fetches the packages once, and the pip of each
host finds them in that folder. h4 is the machine of the user, who types what cluster/ray/README.md
says. In the YAML only addresses and user are changed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from drill_base import ROOT, HostsDrill, Row, wait_until
from hosts import Hosts
from kill_drill import digests

HEAD, WORKERS, USER = "h1", ["h2", "h3"], "h4"
NUM_HOSTS = 4
CORPUS = "examples/glass_transition.csv"
LONGEST_UP = 1800.0  # seconds; most of it is pip
LONGEST_DOWN = 240.0
PREPROCESS = ["num_conformers=2", "output=shards"]
STUDY = [
    "targets=[tg_K]",
    "model.descriptors=[]",
    "num_epochs=2",
    "num_folds=2",
    "baselines=[mean]",
    "save_model=false",
]


class LaunchDrill(HostsDrill):
    """The drills; each returns what was seen."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        super().__init__(hosts, folder)
        for name in hosts.names():
            self._move_in(name)
        for name in hosts.names():
            # The homes of the others are not there: these hosts share no folder that is written.
            others = [str(self._home(other)) for other in hosts.names() if other != name]
            script = 'for other; do mount -t tmpfs tmpfs "$other"; done'
            hosts.run(name, ["bash", "-c", script, "-", *others])
        self.home = self._home(USER)
        (self.home / ".ssh").mkdir(mode=0o700)
        shutil.copy(hosts.folder / "ssh/id_ed25519", self.home / ".ssh")
        (self.home / "polymers.csv").symlink_to(ROOT / CORPUS)
        self.environment |= {"HOME": str(self.home), "USER": "root"}
        text = (ROOT / "cluster/ray/on_premises.yaml").read_text()
        addresses = ", ".join(hosts.address(name) for name in WORKERS)
        for old, new in (
            (r"head_ip: .*", f"head_ip: {hosts.address(HEAD)}"),
            (r"worker_ips: .*", f"worker_ips: [{addresses}]"),
            (r"ssh_user: .*", "ssh_user: root"),
        ):
            text, number = re.subn(old, new, text)
            assert number == 1, old
        self.yaml = folder / "on_premises.yaml"
        self.yaml.write_text(text)

    def rows(self) -> list[Row]:
        """Return the drills; each needs the ones before."""
        return [
            ("packages of requirements.lock are fetched", "exit 0", self.fetch),
            ("ray up -y on_premises.yaml", "exit 0, 3 nodes", self.up),
            (
                "ray submit, preprocessing",
                "exit 0, bytes of one host, work done on 3 hosts",
                self.preprocess,
            ),
            ("ray submit, study", "exit 0, results.csv: bytes of one host", self.study),
            ("ray down -y", "exit 0, no Ray left", self.down),
        ]

    def fetch(self) -> str:
        """Fetch or build every locked package, and what installs them."""
        words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        words += ["-w", str(self.folder / "wheels"), "-r", "requirements.lock"]
        environment = os.environ | {"DS_BUILD_OPS": "0"}
        done = subprocess.run(
            [*words, "setuptools>=77", "wheel"], env=environment, timeout=LONGEST_UP
        )
        return f"exit {done.returncode}"

    def up(self) -> str:
        """Launch the cluster, and wait for all of it."""
        generate = [
            "bash",
            "-c",
            "ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token",
        ]
        self.run(USER, generate, "token")
        code = self._ray("up", LONGEST_UP, "-y", str(self.yaml))
        if code != 0:
            return f"exit {code}"
        # It returns when the head runs, which then sets up the workers.
        wait_until(lambda: all(map(self._raylets, WORKERS)), LONGEST_UP, "Ray on the workers")
        wait_until(lambda: self._num_nodes() == 3, 120, "three nodes")
        return "exit 0, 3 nodes"

    def preprocess(self) -> str:
        """Preprocess on the cluster and on one host."""
        here = ["python", "-m", "preprocess", f"input={self.home}/polymers.csv", *PREPROCESS]
        self._alone(here, "preprocess-alone")
        self._ray("rsync-up", 60, str(self.yaml), f"{self.home}/polymers.csv", "~/polymers.csv")
        words = ["preprocess/__main__.py", "input=polymers.csv", *PREPROCESS]
        code = self._ray("submit", 600, str(self.yaml), *words)
        self._ray("rsync-down", 60, str(self.yaml), "~/shards/", f"{self.home}/shards/")
        expected, found = digests(self.folder / "alone/shards"), digests(self.home / "shards")
        for name in sorted(expected):
            print(
                f"     {name}: sha256 {found.get(name, 'none')[:16]}, alone {expected[name][:16]}"
            )
        log = json.loads((self.home / "shards/log.json").read_text())["runs"][-1]
        nodes = {share["node"] for share in log["actors"].values() if share["tasks"]}
        same = "bytes of one host" if expected == found else "other bytes"
        return f"exit {code}, {same}, work done on {len(nodes)} hosts"

    def study(self) -> str:
        """Run a study on the cluster and on one host."""
        here = ["python", f"{ROOT}/mips_dist/finetune.py", f"input={self.home}/polymers.csv"]
        self._alone([*here, "run_dir=study", *STUDY], "study-alone")
        words = ["mips_dist/finetune.py", "input=polymers.csv", "run_dir=study", *STUDY]
        code = self._ray("submit", 600, str(self.yaml), *words)
        table = "study/results.csv"
        self._ray("rsync-down", 60, str(self.yaml), f"~/{table}", f"{self.home}/results.csv")
        found = (self.home / "results.csv").read_bytes()
        same = found == (self.folder / "alone" / table).read_bytes()
        return f"exit {code}, results.csv: {'bytes of one host' if same else 'other bytes'}"

    def down(self) -> str:
        """End the cluster."""
        code = self._ray("down", 300, "-y", str(self.yaml))
        # Ray stops the head; raylets of workers leave when they have missed it for a minute.
        cluster = (HEAD, *WORKERS)
        wait_until(lambda: not any(map(self._raylets, cluster)), LONGEST_DOWN, "Ray to leave")
        return f"exit {code}, no Ray left"

    # ---- how

    def _home(self, name: str) -> Path:
        return self.folder / "homes" / name

    def _move_in(self, name: str) -> None:
        """Give a host its own home of root, as a new machine has it, and its own /tmp."""
        home = self._home(name)
        shutil.copytree("/etc/skel", home)
        (home / ".config/pip").mkdir(parents=True)
        (home / ".config/pip/pip.conf").write_text(
            f"[global]\nno-index = true\nfind-links = {self.folder}/wheels\n"
        )
        lines = Path("/etc/passwd").read_text().splitlines(keepends=True)
        passwd = self.folder / f"passwd-{name}"
        passwd.write_text(
            "".join(
                line.replace(f":{self.hosts.home}:", f":{home}:", 1)
                if line.startswith("root:")
                else line
                for line in lines
            )
        )
        script = 'mount --bind "$1" /etc/passwd && mount -t tmpfs tmpfs /tmp'
        self.hosts.run(name, ["bash", "-c", script, "-", str(passwd)])

    def _ray(self, command: str, seconds: float, *words: str) -> int:
        """Type a command of Ray on the user's machine."""
        return self.run(USER, ["ray", command, *words], f"ray-{command}", seconds)

    def _alone(self, words: list[str], log: str) -> None:
        """Run a command on the user's machine, without a cluster."""
        (self.folder / "alone").mkdir(exist_ok=True)
        code = self.run(USER, ["env", "-C", str(self.folder / "alone"), *words], log)
        if code != 0:
            raise SystemExit(f"error: {log} ended with {code}")

    def _num_nodes(self) -> int:
        """Ask the head, as the user may, how many nodes there are."""
        self._ray("exec", 120, str(self.yaml), "ray status")
        active = re.search(
            r"^Active:\s+(\d+) local\.cluster\.node", self.said("ray-exec"), re.MULTILINE
        )
        return int(active[1]) if active else 0

    def _raylets(self, name: str) -> str:
        """Return the processes of Ray on a host, a line each."""
        words = ["pgrep", "-f", "raylet|gcs_server"]
        return str(self.hosts.run(name, words, check=False, capture_output=True).stdout)
