"""Drills of cluster_drill.py of pre-training: `deepspeed --hostfile` over two hosts."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from drill_base import LONGEST, ROOT, HostsDrill, Row, wait_during, wait_until
from hosts import Hosts
from pretrain_drill import checkpoints, curve

HEAD, WORKER = "h1", "h2"
NUM_STEPS = 200
LIMIT = 0.5  # minutes, timeout_minutes of the run
LONGEST_END = 60 * LIMIT + 45.0  # seconds from the loss of a host to the end of the job
MBIT = 50.0
PRETRAIN = [
    "mips_dist/pretrain.py",
    "model=debug",
    "model.descriptors=[]",
    "model.dropout=0",
    "global_batch_size=32",
    f"num_steps={NUM_STEPS}",
    "checkpoint_every=10",
    "validate_every=1000",
    "held_out_fraction=0.1",
    "num_threads=1",
    f"timeout_minutes={LIMIT}",
]


class PretrainDrill(HostsDrill):
    """The drills; each returns what was seen.

    Parameters
    ----------
    shards
        Of some hundred polymers.
    """

    def __init__(self, hosts: Hosts, folder: Path, shards: Path) -> None:
        super().__init__(hosts, folder)
        self.shards = shards
        (folder / "hostfile-one").write_text(f"{HEAD} slots=1\n")
        (folder / "hostfile-both").write_text(f"{HEAD} slots=1\n{WORKER} slots=1\n")
        ranks = (ROOT / "cluster/deepspeed/deepspeed_env").read_text()
        (folder / "deepspeed_env").write_text(f"{ranks}CUDA_VISIBLE_DEVICES=-1\n")
        self.environment["DS_ENV_FILE"] = str(folder / "deepspeed_env")
        self.environment["PDSH_SSH_ARGS_APPEND"] = (
            "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"
        )

    def rows(self) -> list[Row]:
        """Return the drills, each of which goes on with what the ones before have left."""
        lost = "failed in time, named: rank 1 of 2"
        return [
            ("pre-training, two ranks on one host", "exit 0", self.alone),
            (
                "pre-training over two hosts, deepspeed --hostfile",
                f"exit 0, {NUM_STEPS} losses, the same bits",
                self.over_both,
            ),
            ("... the cable of the second host is pulled", f"{lost}, no rank left", self.cut),
            (
                "... the same command; the second host is switched off",
                f"world 2 from a checkpoint; {lost}",
                self.off,
            ),
            (
                "... the remaining host continues, until Ctrl-C",
                "world 1 from a checkpoint; stopped, checkpoint of that step",
                self.remaining,
            ),
            (
                f"... both again, over a link of {MBIT:g} Mbit/s",
                f"packets to both had to wait; world 2 from a checkpoint; exit 0, "
                f"{NUM_STEPS} losses, within law L8",
                self.slow,
            ),
        ]

    def alone(self) -> str:
        """Train with two ranks on one host."""
        words = ["deepspeed", "--num_gpus", "2", *self._script("straight")]
        return f"exit {self.run(HEAD, words, 'straight')}"

    def over_both(self) -> str:
        """Train with one rank on each host."""
        code = self._start("both", "two", "two").wait(LONGEST)
        return f"exit {code}, {self._difference('two')}"

    def cut(self) -> str:
        """Pull the cable of the second host."""
        for name in (HEAD, WORKER):
            words = "echo 5 > /proc/sys/net/ipv4/tcp_retries2"
            self.hosts.run(name, ["bash", "-c", words])
        seen = self._lose(self.hosts.cut, "run-cut")
        wait_until(lambda: not self._ranks(WORKER), LONGEST_END, f"the rank on {WORKER} to end")
        self.hosts.heal(WORKER)
        return f"{seen}, no rank left"

    def off(self) -> str:
        """Continue, and switch the second host off."""
        seen = self._lose(self.hosts.kill, "run-off")
        return f"{self._resumed('run-off')}; {seen}"

    def remaining(self) -> str:
        """Continue on the host that remains; stop it as Ctrl-C does."""
        job = self._start("one", "run", "run-one")
        self._wait_for_step(job)
        os.killpg(job.pid, signal.SIGINT)
        job.wait(LONGEST)
        wait_until(lambda: not self._ranks(HEAD), LONGEST_END, f"the rank on {HEAD} to end")
        stopped = re.search(r"^stopped after step (\d+);", self.said("run-one"), re.MULTILINE)
        is_kept = stopped and int(stopped[1]) == self._step()
        kept = "stopped, checkpoint of that step" if is_kept else f"newest {self._step()}"
        return f"{self._resumed('run-one')}; {kept}"

    def slow(self) -> str:
        """Continue on both hosts, over a slow link, to the end."""
        self.hosts.boot(WORKER)
        for name in (HEAD, WORKER):
            self.hosts.slow(name, MBIT)
        code = self._start("both", "run", "run-slow").wait(LONGEST)
        slowed = [name for name in (HEAD, WORKER) if self.hosts.held(name)]
        for name in (HEAD, WORKER):
            self.hosts.heal(name)
        to = "both" if len(slowed) == 2 else " and ".join(slowed) or "none"
        resumed, seen = self._resumed("run-slow"), self._difference("run")
        return f"packets to {to} had to wait; {resumed}; exit {code}, {seen}"

    # ---- commands

    def _script(self, run_dir: str) -> list[str]:
        return [*PRETRAIN, f"shards={self.shards}", f"run_dir={self.folder / run_dir}"]

    def _start(self, hostfile: str, run_dir: str, log: str) -> "subprocess.Popen[str]":
        """Begin to train, or continue, on the hosts of a hostfile."""
        where = ["--hostfile", str(self.folder / f"hostfile-{hostfile}"), "--master_addr", HEAD]
        return self.begin(HEAD, ["deepspeed", *where, *self._script(run_dir)], log)

    def _lose(self, lose: Callable[[str], None], log: str) -> str:
        """Train on both, lose the second host, and wait for the end of the job."""
        job = self._start("both", "run", log)
        self._wait_for_step(job)
        began = time.monotonic()
        lose(WORKER)
        code = job.wait(LONGEST)
        seconds = time.monotonic() - began
        when = "in time" if seconds < LONGEST_END else f"after {seconds:.0f} s"
        named = re.findall(r"error: (rank .*) did not answer at step", self.said(log))
        return f"{'failed' if code else 'exit 0'} {when}, named: {', '.join(named) or 'none'}"

    def _wait_for_step(self, job: "subprocess.Popen[str]") -> None:
        """Wait until this start of the run has left a checkpoint."""
        before = self._step()
        wait_during(job, lambda: self._step() > before, LONGEST, "a checkpoint")

    # ---- what is seen

    def _step(self) -> int:
        """Return the step of the newest checkpoint."""
        return int(max(checkpoints(self.folder / "run"), default="step-0").split("-")[1])

    def _ranks(self, name: str) -> str:
        """Return the processes of ranks on a host, a line each."""
        words = ["pgrep", "-f", "mips_dist/pretrain.py"]
        return str(self.hosts.run(name, words, check=False, capture_output=True).stdout)

    def _resumed(self, log: str) -> str:
        """Say with how many ranks a start went on, and from where."""
        first = re.search(rf"step (\d+)/{NUM_STEPS}", self.said(log))
        ranks = re.search(r"of (\d+) ranks together", self.said(log))
        where = "a checkpoint" if first and int(first[1]) > 1 else "the beginning"
        return f"world {ranks[1] if ranks else 1} from {where}"

    def _difference(self, run_dir: str) -> str:
        """Say how far the losses are from those of two ranks on one host."""
        expected, found = curve(self.folder / "straight"), curve(self.folder / run_dir)
        if list(expected) != list(found) or len(found) != NUM_STEPS:
            return f"{len(found)} losses of {len(expected)}"
        return f"{NUM_STEPS} losses, {apart(list(expected.values()), list(found.values()))}"


def apart(expected: list[float], found: list[float]) -> str:
    """Say how far two curves are apart, in the words of law L8."""
    if expected == found:
        return "the same bits"
    differences = [abs(new - old) / abs(old) for old, new in zip(expected, found, strict=True)]
    is_early_same = all(difference <= 1e-5 for difference in differences[:20])
    if is_early_same and all(difference <= 1e-3 for difference in differences):
        return "within law L8"
    return f"up to {max(differences):.1g} apart, beyond law L8"
