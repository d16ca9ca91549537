"""Drills of cluster_drill.py on a Ray over two hosts: preprocessing, and a study."""

import json
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drill_base import LONGEST, HostsDrill, Row, wait_during
from hosts import Hosts
from kill_drill import digests
from study_drill import TRIAL, num_finished

HEAD, WORKER = "h1", "h2"
CORPUS = "examples/glass_transition.csv"
NUM_POLYMERS, NUM_BLOCKS = 225, 8
DISK = "256k"  # the preflight has room, the shard beside its blocks has not
# Six conformers of each, so that there is time to break something.
PREPROCESS = ["python", "-m", "preprocess", f"input={CORPUS}", "num_conformers=6"]
STUDY = [
    "python",
    "mips_dist/finetune.py",
    f"input={CORPUS}",
    "targets=[tg_K]",
    "model.descriptors=[]",
    "num_epochs=60",
    "patience=60",
    "num_folds=4",
    "baselines=[mean]",
    "save_model=false",
    "num_workers=2",
]


class RayDrill(HostsDrill):
    """The drills; each returns what was seen."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        super().__init__(hosts, folder)
        token = folder / "auth_token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.environment["RAY_AUTH_TOKEN_PATH"] = str(token)

    def rows(self) -> list[Row]:
        """Return the drills of preprocessing; all need the first one."""
        same = "exit 0, same bytes"
        return [
            ("preprocessing on one host", f"exit 0, {NUM_POLYMERS} samples", self.alone),
            ("preprocessing over two hosts", f"{same}, work done on 2 hosts", self.over_both),
            ("... the second host is switched off", f"{same}, an actor lost", self.worker_off),
            ("... its cable is pulled", f"{same}, an actor lost", self.worker_cut),
            (
                "... head and driver are switched off, and on: the same command",
                f"{same}, {NUM_BLOCKS} blocks made in both runs together",
                self.head_off,
            ),
            (
                "... the disk of the shards is full; with room the same command",
                f"exit 1, 1 line: No space left on device; with room {same}",
                self.full_disk,
            ),
        ]

    def study_rows(self) -> list[Row]:
        """Return the drills of a study, which has the shards of `alone`."""
        return [
            ("study on one host", "exit 0, 8 cells", self.study_alone),
            (
                "study over two hosts, the second is switched off",
                "exit 0, results.csv: same bytes",
                self.study_off,
            ),
        ]

    def alone(self) -> str:
        """Preprocess on one host, without a cluster."""
        words = [*PREPROCESS, "num_actors=2", f"output={self.folder / 'alone'}"]
        code = self.run(HEAD, words, "alone")
        manifest = json.loads((self.folder / "alone/manifest.json").read_text())
        return f"exit {code}, {manifest['num_samples']} samples"

    def over_both(self) -> str:
        """Join two hosts to a cluster and preprocess on it."""
        self.start_ray(HEAD)
        self.start_ray(WORKER)
        seen = self.finish("both", self.start("both"))
        nodes = {share["node"] for share in self._log("both")["actors"].values() if share["tasks"]}
        return f"{seen}, work done on {len(nodes)} hosts"

    def worker_off(self) -> str:
        """Switch the second host off in the middle."""
        return self.harmed("off", self.hosts.kill)

    def worker_cut(self) -> str:
        """Pull the cable of the second host in the middle."""
        self.hosts.boot(WORKER)
        self.start_ray(WORKER)
        return self.harmed("cut", self.hosts.cut)

    def head_off(self) -> str:
        """Switch off the host of head and driver in the middle; on again, type the same."""
        self.hosts.heal(WORKER)
        self.start_ray(WORKER)
        driver = self.start("head")
        self.wait_for_blocks("head", driver)
        self.hosts.kill(HEAD)
        driver.wait()
        kept = len(self._blocks("head"))
        self.hosts.boot(HEAD)
        self.start_ray(HEAD)
        self.start_ray(WORKER)
        seen = self.finish("head", self.start("head"))
        made = kept + sum(share["tasks"] for share in self._log("head")["actors"].values())
        return f"{seen}, {made} blocks made in both runs together"

    def full_disk(self) -> str:
        """Preprocess onto a disk that fills up; make room, type the same."""
        disk = self.folder / "disk"
        disk.mkdir()
        self.hosts.run(HEAD, ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)])
        first = self.start("disk/out", "disk1").wait(LONGEST)
        said = self.said("disk1")
        num_lines = len([x for x in said.splitlines() if x.startswith(("error:", "Traceback"))])
        what = "No space left on device" if "No space left on device" in said else "another error"
        self.hosts.run(HEAD, ["mount", "-o", "remount,size=64m", str(disk)])
        second = self.start("disk/out", "disk2").wait(LONGEST)
        # Only that host sees its disk.
        self.hosts.run(HEAD, ["cp", "-r", str(disk / "out"), str(self.folder / "room")])
        done = f"exit {second}, {self._same('room')}"
        return f"exit {first}, {num_lines} line: {what}; with room {done}"

    def study_alone(self) -> str:
        """Run a study on one host, without a cluster."""
        code = self.run(HEAD, self._study("calm"), "calm")
        return f"exit {code}, {num_finished(self.folder / 'calm')} cells"

    def study_off(self) -> str:
        """Run it over both, and switch the second host off in the middle."""
        self.start_ray(HEAD)
        self.start_ray(WORKER)
        driver = self._on_cluster(self._study("wild"), "wild")
        is_there = ["pgrep", "-f", f"{TRIAL}.train"]

        def is_the_middle() -> bool:
            if num_finished(self.folder / "wild") == 0:
                return False
            found = self.hosts.run(WORKER, is_there, check=False, capture_output=True)
            return found.returncode == 0

        wait_during(driver, is_the_middle, LONGEST, "a trial on the second host")
        self.hosts.kill(WORKER)
        code = driver.wait(LONGEST)
        tables = [(self.folder / run / "results.csv").read_bytes() for run in ("calm", "wild")]
        return f"exit {code}, results.csv: {'same' if tables[0] == tables[1] else 'other'} bytes"

    # ---- commands

    def start_ray(self, name: str) -> None:
        """Let a host found the cluster, or join it; whatever Ray ran there ends."""
        where = "--head --port=6379 --include-dashboard=false"
        where = where if name == HEAD else f"--address={HEAD}:6379"
        # One CPU each: they share the cores of one machine.
        share = "--num-cpus=1 --object-store-memory=200000000"
        script = f". cluster/ray.env; ray stop --force; exec ray start {where} {share}"
        code = self.run(name, ["bash", "-c", script], f"ray-{name}")
        if code != 0:
            raise SystemExit(f"error: ray start on {name} ended with {code}")

    def start(self, output: str, log: str = "") -> "subprocess.Popen[str]":
        """Begin to preprocess on the cluster."""
        words = [*PREPROCESS, f"output={self.folder / output}"]
        return self._on_cluster(words, log or output)

    def finish(self, output: str, driver: "subprocess.Popen[str]") -> str:
        """Wait for the end of preprocessing."""
        return f"exit {driver.wait(LONGEST)}, {self._same(output)}"

    def harmed(self, output: str, harm: Callable[[str], None]) -> str:
        """Preprocess on the cluster, and harm the second host in the middle."""
        driver = self.start(output)
        self.wait_for_blocks(output, driver)
        harm(WORKER)
        seen = self.finish(output, driver)
        return f"{seen}, {'an actor' if self._log(output)['num_deaths'] else 'none'} lost"

    def wait_for_blocks(self, output: str, driver: "subprocess.Popen[str]") -> None:
        """Wait until two blocks are done; more are to come."""
        wait_during(driver, lambda: len(self._blocks(output)) >= 2, LONGEST, "two blocks")

    def _on_cluster(self, words: list[str], log: str) -> "subprocess.Popen[str]":
        """Begin a command that uses the cluster, on its head."""
        script = f'. cluster/ray.env; export RAY_ADDRESS={HEAD}:6379; exec "$@"'
        return self.begin(HEAD, ["bash", "-c", script, "-", *words], log)

    def _study(self, run_dir: str) -> list[str]:
        return [*STUDY, f"shards={self.folder / 'alone'}", f"run_dir={self.folder / run_dir}"]

    # ---- what is seen

    def _blocks(self, output: str) -> list[Path]:
        """Return the blocks that wait for their shard."""
        return list((self.folder / output / "work/blocks").glob("*.json"))

    def _log(self, output: str) -> dict[str, Any]:
        """Return what the last run said of itself."""
        log = json.loads((self.folder / output / "log.json").read_text())
        return dict(log["runs"][-1])

    def _same(self, output: str) -> str:
        """Compare all files with those of one host."""
        expected, found = digests(self.folder / "alone"), digests(self.folder / output)
        return "same bytes" if expected == found else "other bytes"
